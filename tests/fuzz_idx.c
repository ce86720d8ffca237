/* Fuzz target: pairs of IDX files, as libFuzzer makes them up.

       make fuzz                    or, for this one alone and for longer:
       clang -g -O1 -fsanitize=fuzzer,address,undefined -I. tests/fuzz_idx.c -o fuzz -lm
       ./fuzz NEW_CORPUS tests/corpus/idx

   An input is one byte, the most rows to read, then the image file, whose length its own header
   gives if it can, then the label file. Each lies in a block of exactly its size. What is read must
   be what stands there. */
#define PIPEMLP_IMPLEMENTATION
#include "../pipemlp.h"

#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static uint8_t *copy_of(const uint8_t *bytes, size_t size) {
    uint8_t *copy = (uint8_t *)malloc(size ? size : 1);
    MUST(copy != NULL);
    if (size) memcpy(copy, bytes, size);
    return copy;
}

/* Where the label file begins: behind the images, or in the middle. */
static size_t split(const uint8_t *bytes, size_t size) {
    size_t images = 16;
    int i;
    if (size < 16) return size / 2;
    for (i = 1; i < 4; i++) images *= bytes[4 * i + 3];
    images = images / 16 + 16;
    return images <= size ? images : size / 2;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    const size_t limit = size ? bytes[0] % 8 : 0;
    const size_t skip = size ? 1 : 0, at = split(bytes + skip, size - skip);
    const size_t label_size = size - skip - at;
    uint8_t *image_file = copy_of(bytes + skip, at);
    uint8_t *label_file = copy_of(bytes + skip + at, label_size);
    pmlp_images images;
    pmlp_error error;
    size_t i;
    memset(&error, 0, sizeof error);
    if (pmlp_images_parse(image_file, at, label_file, label_size, limit, NULL, &images, &error) ==
        PMLP_OK) {
        MUST(images.rows > 0 && (limit == 0 || images.rows <= limit));
        for (i = 0; i < images.rows * images.height * images.width; i++)
            MUST(images.x[i] == (float)image_file[16 + i] / 255.0f);
        for (i = 0; i < images.rows; i++) MUST(images.labels[i] == label_file[8 + i]);
    } else {
        MUST(error.result != PMLP_OK && strlen(error.text) > 8 && !images.x && !images.labels);
    }
    pmlp_images_free(&images);
    free(image_file);
    free(label_file);
    return 0;
}
