/* IDX files, good and broken: whatever is wrong, the reader says so in one sentence that names the
   file, leaves *images all zero, reads no byte too many (every input lies in a block of exactly its
   size, so the sanitizers and valgrind see it) and keeps no memory.

       cc -std=c99 -I. tests/test_images.c -o test_images -pthread -lm                            */
#define PIPEMLP_IMPLEMENTATION
#include "../pipemlp.h"
#include "test.h"

#include <errno.h>
#include <sys/stat.h>
#ifdef _WIN32
#  include <direct.h>
#  define mkdir(path, mode) _mkdir(path)
#endif

enum { ROWS = 3, HEIGHT = 2, WIDTH = 5, PIXELS = HEIGHT * WIDTH };
enum { IMAGE_BYTES = 16 + ROWS * PIXELS, LABEL_BYTES = 8 + ROWS };

/* One file in memory, in a block of exactly its size. */
typedef struct bytes {
    unsigned char *data;
    size_t size;
} bytes;

static bytes bytes_copy(const void *data, size_t size) {
    bytes copy = {malloc(size ? size : 1), size};
    if (!copy.data) exit(1);
    if (size) memcpy(copy.data, data, size);
    return copy;
}

static void bytes_u32(bytes b, size_t at, uint32_t value) {
    for (size_t i = 0; i < 4; i++) b.data[at + i] = (unsigned char)(value >> (24 - 8 * i));
}

/* Pixels count up from 0 by 7, labels from 1. */
static bytes good_images(void) {
    unsigned char file[IMAGE_BYTES] = {0};
    bytes b = bytes_copy(file, sizeof file);
    bytes_u32(b, 0, 0x803), bytes_u32(b, 4, ROWS), bytes_u32(b, 8, HEIGHT), bytes_u32(b, 12, WIDTH);
    for (size_t i = 0; i < ROWS * PIXELS; i++) b.data[16 + i] = (unsigned char)(i * 7);
    b.data[IMAGE_BYTES - 1] = 255;
    return b;
}

static bytes good_labels(void) {
    unsigned char file[LABEL_BYTES] = {0};
    bytes b = bytes_copy(file, sizeof file);
    bytes_u32(b, 0, 0x801), bytes_u32(b, 4, ROWS);
    for (size_t i = 0; i < ROWS; i++) b.data[8 + i] = (unsigned char)(i + 1);
    b.data[LABEL_BYTES - 1] = 255;
    return b;
}

static bool all_zero(const pmlp_images *images) {
    return !images->rows && !images->height && !images->width && !images->x && !images->labels;
}

static bool sentence(const char *text) {
    return strlen(text) >= 12 && strchr(text, ' ') && !strpbrk(text, "\r\n\t");
}

static void refused(const char *what, pmlp_result got, pmlp_result want, const pmlp_error *error,
                    const pmlp_images *images, const char *thing) {
    CHECK(got == want, "%s: %s", what, pmlp_result_name(got));
    CHECK(error->result == got, "%s: the error holds %s", what, pmlp_result_name(error->result));
    CHECK(sentence(error->text), "%s: says \"%s\"", what, error->text);
    CHECK(strstr(error->text, thing), "%s: \"%s\" does not name %s", what, error->text, thing);
    CHECK(all_zero(images), "%s: *images is not all zero", what);
}

/* --- from memory and from files, the same list ----------------------------------------------------- */

static char folder[200];

static const char *path_of(const char *name) {
    static char paths[2][300];
    static int next;
    next = !next;
    snprintf(paths[next], sizeof paths[next], "%s/%s", folder, name);
    return paths[next];
}

static void write_file(const char *name, bytes b) {
    FILE *file = fopen(path_of(name), "wb");
    if (!file || fwrite(b.data, 1, b.size, file) != b.size || fclose(file) != 0) {
        printf("%s: cannot write\n", path_of(name));
        exit(1);
    }
}

/* Parses, then loads; both must refuse, and load must name the broken file. `labels_guilty`: 1 the
   label file is the broken one, 0 the image file, -1 either may be blamed. Takes both blocks. */
static void broken(const char *what, bytes images, bytes labels, size_t limit, int labels_guilty) {
    test_memory memory;
    pmlp_images set;
    pmlp_error error = {0};
    const char *thing = labels_guilty < 0 ? "" : labels_guilty ? "label" : "image";
    test_memory_init(&memory, 0);
    memset(&set, 0xA5, sizeof set);
    pmlp_result result = pmlp_images_parse(images.data, images.size, labels.data, labels.size, limit,
                                           &memory.allocator, &set, &error);
    refused(what, result, PMLP_ERROR_PARSE, &error, &set, thing);
    CHECK(memory.blocks == 0 && memory.peak < 1 << 20, "%s: leaks, or asks for %ld bytes", what,
          (long)memory.peak);
    write_file("the-images", images);
    write_file("the-labels", labels);
    memset(&set, 0xA5, sizeof set), memset(&error, 0, sizeof error);
    result = pmlp_images_load(path_of("the-images"), path_of("the-labels"), limit, &memory.allocator,
                              &set, &error);
    thing = labels_guilty < 0 ? "the-" : labels_guilty ? "the-labels" : "the-images";
    refused(what, result, PMLP_ERROR_PARSE, &error, &set, thing);
    CHECK(memory.blocks == 0 && memory.peak < 1 << 20, "%s: the file leaks, or asks for %ld bytes",
          what, (long)memory.peak);
    pmlp_images_free(&set);
    free(images.data);
    free(labels.data);
}

static void broken_images(const char *what, size_t at, uint32_t value) {
    bytes images = good_images();
    bytes_u32(images, at, value);
    broken(what, images, good_labels(), 0, at == 4 ? -1 : 0);
}

static void broken_labels(const char *what, size_t at, uint32_t value) {
    bytes labels = good_labels();
    bytes_u32(labels, at, value);
    broken(what, good_images(), labels, 0, at == 4 ? -1 : 1);
}

static void check_good(const char *what, const pmlp_images *set, size_t rows) {
    bytes images = good_images(), labels = good_labels();
    if (!CHECK(set->rows == rows && set->height == HEIGHT && set->width == WIDTH, "%s: shape", what) ||
        !CHECK(set->x && set->labels, "%s: no data", what))
        rows = 0;
    for (size_t i = 0; i < rows * PIXELS; i++) {
        const float pixel = (float)images.data[16 + i] / 255.0f;
        CHECK(set->x[i] == pixel, "%s: pixel %d is %g", what, (int)i, (double)set->x[i]);
    }
    for (size_t i = 0; i < rows; i++)
        CHECK(set->labels[i] == labels.data[8 + i], "%s: label %d is %d", what, (int)i, set->labels[i]);
    free(images.data);
    free(labels.data);
}

TEST(good) {
    bytes images = good_images(), labels = good_labels();
    const size_t limits[] = {0, 1, 2, ROWS, ROWS + 1, SIZE_MAX};
    test_memory memory;
    write_file("the-images", images);
    write_file("the-labels", labels);
    for (int i = 0; i < 6; i++) {
        size_t rows = limits[i] == 0 || limits[i] > ROWS ? ROWS : limits[i];
        pmlp_images set;
        pmlp_error error = {0};
        test_memory_init(&memory, 0);
        pmlp_result result = pmlp_images_parse(images.data, images.size, labels.data, labels.size,
                                               limits[i], &memory.allocator, &set, &error);
        CHECK(result == PMLP_OK, "parse: %s", error.text);
        check_good("parse", &set, rows);
        pmlp_images_free(&set);
        CHECK(all_zero(&set), "free leaves something behind");
        pmlp_images_free(&set);
        result = pmlp_images_load(path_of("the-images"), path_of("the-labels"), limits[i],
                                  i % 2 ? &memory.allocator : NULL, &set, &error);
        CHECK(result == PMLP_OK, "load: %s", error.text);
        check_good("load", &set, rows);
        pmlp_images_free(&set);
        CHECK(memory.blocks == 0, "%ld blocks leak", memory.blocks);
    }
    free(images.data);
    free(labels.data);
    SAY("a good pair, from memory and from files, with limits");
}

TEST(truncated) {
    for (size_t size = 0; size < IMAGE_BYTES; size++) {
        bytes whole = good_images(), cut = bytes_copy(whole.data, size);
        char what[64];
        snprintf(what, sizeof what, "images cut to %d bytes", (int)size);
        broken(what, cut, good_labels(), 0, 0);
        free(whole.data);
    }
    for (size_t size = 0; size < LABEL_BYTES; size++) {
        bytes whole = good_labels(), cut = bytes_copy(whole.data, size);
        char what[64];
        snprintf(what, sizeof what, "labels cut to %d bytes", (int)size);
        broken(what, good_images(), cut, 0, 1);
        free(whole.data);
    }
    SAY("truncated at every boundary, in memory and as files: %d cases", IMAGE_BYTES + LABEL_BYTES);
}

TEST(headers) {
    const uint32_t magics[] = {0, 0x00000802, 0x00000903, 0x03080000, 0x01080000, 0x1f8b0808,
                               0x00000803, 0x00000801, 0xffffffff, 0x01000803, 0x00010801};
    for (int i = 0; i < 11; i++) {
        if (magics[i] != 0x803) broken_images("image magic", 0, magics[i]);
        if (magics[i] != 0x801) broken_labels("label magic", 0, magics[i]);
    }
    const uint32_t counts[] = {0, 1, ROWS - 1, ROWS + 1, 1u << 30, 0x7fffffff, 0xffffffff};
    for (int i = 0; i < 7; i++) {
        broken_images("image count", 4, counts[i]);
        broken_labels("label count", 4, counts[i]);
    }
    const uint32_t sides[] = {0, 1, 3, 1u << 16, 1u << 30, 0x7fffffff, 0xffffffff};
    for (int i = 0; i < 7; i++) {
        broken_images("height", 8, sides[i]);
        broken_images("width", 12, sides[i]);
    }
    SAY("wrong magic, counts that disagree, wrong sides: refused");
}

TEST(overflow) {
    const uint32_t sides[][3] = {{0xffffffff, 0xffffffff, 0xffffffff}, /* rows, height, width */
                                 {ROWS, 0xffffffff, 0xffffffff},
                                 {ROWS, 0x80000000, 0x80000000},
                                 {ROWS, 0x80000000, 2},
                                 {1u << 31, 1u << 31, 4},
                                 {0xffffffff, 1, 1},
                                 {1u << 22, 1u << 21, 1u << 21}}; /* product 2^64: wraps to 0 */
    for (int i = 0; i < 7; i++) {
        bytes images = good_images(), labels = good_labels();
        for (size_t k = 0; k < 3; k++) bytes_u32(images, 4 + 4 * k, sides[i][k]);
        bytes_u32(labels, 4, sides[i][0]);
        broken("huge sides", images, labels, 0, -1);
        images = good_images(), labels = good_labels(); /* and as much with a limit */
        for (size_t k = 0; k < 3; k++) bytes_u32(images, 4 + 4 * k, sides[i][k]);
        bytes_u32(labels, 4, sides[i][0]);
        broken("huge sides, limit 2", images, labels, 2, -1);
    }
    for (size_t limit = 0; limit <= 4; limit += 2) { /* 4 images of 2^62 pixels, all in 0 bytes */
        bytes whole = good_images(), images = bytes_copy(whole.data, 16);
        bytes labels = bytes_copy("\0\0\10\1\0\0\0\4\1\2\3\4", 12);
        bytes_u32(images, 4, 4), bytes_u32(images, 8, 1u << 31), bytes_u32(images, 12, 1u << 31);
        broken("a product of 2^64", images, labels, limit, 0);
        free(whole.data);
    }
    SAY("sides up to 2^32 - 1 whose products overflow: refused, no memory asked for");
}

TEST(others) {
    bytes images = good_images(), labels = good_labels(), longer;
    unsigned char more[IMAGE_BYTES + 1] = {0};
    bytes none_i = bytes_copy(images.data, 16), none_l = bytes_copy(labels.data, 8);
    bytes_u32(none_i, 4, 0), bytes_u32(none_l, 4, 0);
    broken("no rows", none_i, none_l, 0, -1);
    memcpy(more, images.data, IMAGE_BYTES);
    longer = bytes_copy(more, IMAGE_BYTES + 1);
    broken("images with a byte too many", longer, good_labels(), 0, 0);
    memcpy(more, labels.data, LABEL_BYTES);
    longer = bytes_copy(more, LABEL_BYTES + 1);
    broken("labels with a byte too many", good_images(), longer, 0, 1);
    for (size_t rows = 1; rows <= ROWS + 2; rows++) { /* each file good, but not the pair */
        if (rows == ROWS) continue;
        memset(more, 1, sizeof more);
        memcpy(more, labels.data, 8);
        longer = bytes_copy(more, 8 + rows);
        bytes_u32(longer, 4, (uint32_t)rows);
        broken("another number of labels", good_images(), longer, rows > ROWS ? 1 : 0, -1);
    }
    broken("two label files", good_labels(), good_labels(), 0, 0);
    broken("two image files", good_images(), good_images(), 0, 1);
    broken("changed places", good_labels(), good_images(), 0, -1);
    broken("a cut pair behind a limit", bytes_copy(images.data, IMAGE_BYTES - 1), good_labels(), 1, 0);
    free(images.data);
    free(labels.data);
    SAY("no rows, bytes too many, other counts, files exchanged: refused");
}

TEST(no_files) {
    bytes images = good_images(), labels = good_labels();
    pmlp_images set;
    pmlp_error error = {0};
    const char *missing = "no-such-file";
    write_file("the-images", images);
    write_file("the-labels", labels);
    const struct { const char *images, *labels, *thing; } files[] = {
        {"the-images", missing, missing}, {missing, "the-labels", missing},
        {missing, missing, missing},      {"", "the-labels", folder},
        {"the-images", "", folder}}; /* "": the folder itself, which opens but cannot be read */
    for (int i = 0; i < 5; i++) {
        char image_path[300];
        memset(&set, 0xA5, sizeof set);
        snprintf(image_path, sizeof image_path, "%s/%s", folder, files[i].images);
        pmlp_result result =
            pmlp_images_load(image_path, path_of(files[i].labels), 0, NULL, &set, &error);
        refused("a missing file", result, PMLP_ERROR_FILE, &error, &set, files[i].thing);
    }
#define BAD_ARGUMENT(call, thing)                                                              \
    do {                                                                                       \
        memset(&set, 0xA5, sizeof set);                                                        \
        refused(#call, call, PMLP_ERROR_ARGUMENT, &error, &set, thing);                        \
    } while (0)
    BAD_ARGUMENT(pmlp_images_load(NULL, path_of("the-labels"), 0, NULL, &set, &error), "image");
    BAD_ARGUMENT(pmlp_images_load(path_of("the-images"), NULL, 0, NULL, &set, &error), "label");
    BAD_ARGUMENT(pmlp_images_parse(NULL, 9, labels.data, labels.size, 0, NULL, &set, &error), "image");
    BAD_ARGUMENT(pmlp_images_parse(images.data, images.size, NULL, 9, 0, NULL, &set, &error), "label");
    CHECK(pmlp_images_load(path_of("the-images"), path_of("the-labels"), 0, NULL, NULL, &error) ==
              PMLP_ERROR_ARGUMENT, "load into NULL");
    CHECK(pmlp_images_parse(images.data, images.size, labels.data, labels.size, 0, NULL, NULL,
                            &error) == PMLP_ERROR_ARGUMENT, "parse into NULL");
    CHECK(pmlp_images_load(path_of(missing), path_of(missing), 0, NULL, &set, NULL) ==
              PMLP_ERROR_FILE, "load without an error to fill");
    pmlp_images_free(NULL);
    free(images.data);
    free(labels.data);
    SAY("images without labels, no images, folders, NULL: refused, the file is named");
}

/* A path longer than an error's text: cut, but still terminated and named. */
TEST(long_path) {
    char path[2000];
    pmlp_images set;
    pmlp_error error = {0};
    memset(path, 'p', sizeof path);
    path[sizeof path - 1] = 0;
    pmlp_result result = pmlp_images_load(path, path, 0, NULL, &set, &error);
    refused("a long path", result, PMLP_ERROR_FILE, &error, &set, "ppp");
    CHECK(strlen(error.text) < sizeof error.text, "the sentence is not terminated");
    SAY("a path longer than a sentence");
}

/* Every byte of a small pair, changed: refused or read, never a bad access, never a leak. */
TEST(every_byte) {
    uint64_t state = 11;
    long taken = 0, cases = 0;
    for (size_t at = 0; at < 16 + 8; at++) {
        for (int value = 0; value < 256; value += test_quick() ? 17 : 1, cases++) {
            bytes images = good_images(), labels = good_labels();
            test_memory memory;
            pmlp_images set;
            pmlp_error error = {0};
            if (at < 16) images.data[at] = (unsigned char)value;
            else labels.data[at - 16] = (unsigned char)value;
            test_memory_init(&memory, 0);
            pmlp_result result =
                pmlp_images_parse(images.data, images.size, labels.data, labels.size,
                                  test_random(&state) % 5, &memory.allocator, &set, &error);
            taken += result == PMLP_OK;
            CHECK(result == PMLP_OK || (result == PMLP_ERROR_PARSE && sentence(error.text)),
                  "byte %d = %d: %s", (int)at, value, pmlp_result_name(result));
            pmlp_images_free(&set);
            CHECK(memory.blocks == 0, "byte %d = %d: leaks", (int)at, value);
            free(images.data);
            free(labels.data);
        }
    }
    CHECK(taken <= 24, "%ld changed headers were taken for good ones", taken);
    SAY("every byte of both headers, every value: %s cases", test_count(cases));
}

int main(void) {
    const char *root = getenv("TMPDIR");
    test_begin("images");
    snprintf(folder, sizeof folder, "%s/pmlp_images_%ld", root && *root ? root : "/tmp",
             (long)getpid());
    if (mkdir(folder, 0700) != 0 && errno != EEXIST) return printf("cannot make %s\n", folder), 1;
    RUN(good);
    RUN(truncated);
    RUN(headers);
    RUN(overflow);
    RUN(others);
    RUN(no_files);
    RUN(long_path);
    RUN(every_byte);
    remove(path_of("the-images"));
    remove(path_of("the-labels"));
    rmdir(folder);
    return test_end();
}
