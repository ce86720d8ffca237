/* Fuzz target: safetensors files, as libFuzzer makes them up.

       make fuzz                    or, for this one alone and for longer:
       clang -g -O1 -fsanitize=fuzzer,address,undefined -I. tests/fuzz_safetensors.c -o fuzz -lm
       ./fuzz NEW_CORPUS tests/corpus/safetensors

   Each input is read as a file three times: as a model, as it is; then, so that what lies behind
   the checksum is reached, as a model and as a training with the checksum set right. What can be
   read as a model must come back from a second file with the same weights word. A training that is
   refused must leave the trainer as it was. */
#define PIPEMLP_IMPLEMENTATION
#include "../pipemlp.h"

#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static const pmlp_allocator standard = {NULL, NULL, NULL};

/* Says why, or is what it was made of when it is written and read again. */
static void read_model(const uint8_t *bytes, size_t size) {
    pmlp_model *model = NULL, *again = NULL;
    pmlp_error error;
    pmlp__image image;
    uint64_t word = 0, word_again = 1;
    memset(&error, 0, sizeof error);
    if (pmlp_model_parse(bytes, size, NULL, &model, &error) != PMLP_OK) {
        MUST(model == NULL && error.result != PMLP_OK && strlen(error.text) > 8);
        return;
    }
    MUST(pmlp__image_make(&image, model, NULL, &error) == PMLP_OK);
    MUST(pmlp_model_parse(image.bytes, image.size, NULL, &again, &error) == PMLP_OK);
    MUST(pmlp_model_hash(model, &word, NULL) == PMLP_OK);
    MUST(pmlp_model_hash(again, &word_again, NULL) == PMLP_OK && word == word_again);
    pmlp__delete(&standard, image.bytes);
    pmlp_model_destroy(model);
    pmlp_model_destroy(again);
}

/* Sets the checksum right, if there is room for one. */
static bool seal(uint8_t *bytes, size_t size) {
    pmlp__tensors f;
    bool good = pmlp__tensors_open(&f, bytes, size, "", &standard, NULL) == PMLP_OK;
    const pmlp__slice place = good ? pmlp__metadata(&f, PMLP__CHECKSUM) : (pmlp__slice){NULL, 0};
    good = good && place.at && place.length == 16;
    if (good)
        memcpy(bytes + (place.at - (const char *)bytes), pmlp__word_of(pmlp__tensors_hash(&f)).text,
               16);
    pmlp__tensors_close(&f);
    return good;
}

/* The trainer of the training in the corpus: 2-2-2, Adam. */
static pmlp_trainer *make_trainer(void) {
    static const int sizes[] = {2, 2, 2};
    pmlp_model_desc net;
    pmlp_trainer_desc how;
    pmlp_model *model = NULL;
    pmlp_trainer *trainer = NULL;
    memset(&net, 0, sizeof net);
    memset(&how, 0, sizeof how);
    net.layers = 2, net.sizes = sizes;
    how.optimizer = PMLP_ADAM, how.batch = 16, how.seed = 5;
    MUST(pmlp_model_create(&net, &model, NULL) == PMLP_OK);
    MUST(pmlp_trainer_create(model, &how, &trainer, NULL) == PMLP_OK);
    return trainer;
}

static void read_training(const uint8_t *bytes, size_t size) {
    static pmlp_trainer *trainer;
    pmlp__image before, after;
    if (!trainer) trainer = make_trainer();
    MUST(pmlp__image_make(&before, trainer->model, trainer, NULL) == PMLP_OK);
    if (pmlp__trainer_parse(trainer, bytes, size, "the file") != PMLP_OK) {
        MUST(strlen(trainer->error.text) > 8 && !pmlp__load(&trainer->failed));
        MUST(pmlp__image_make(&after, trainer->model, trainer, NULL) == PMLP_OK);
        MUST(before.size == after.size && memcmp(before.bytes, after.bytes, after.size) == 0);
        pmlp__delete(&standard, after.bytes);
    }
    pmlp__delete(&standard, before.bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    uint8_t *copy;
    read_model(bytes, size);
    copy = (uint8_t *)malloc(size ? size : 1);
    MUST(copy != NULL);
    memcpy(copy, bytes, size);
    if (seal(copy, size)) {
        read_model(copy, size);
        read_training(copy, size);
    }
    free(copy);
    return 0;
}
