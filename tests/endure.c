/* Random trainings for as long as one likes, each against serial training to the bit: networks,
   schedules, optimizers and ragged batches by lot; every third training meets a failing allocation
   at a random call, must say so and lose nothing. The first case that goes wrong ends it, with the
   line that repeats it.

       build/endure [--seconds N] [--seed FIRST]      default 3600 s from a seed by the clock
       build/endure --seed N --seconds 0              the one case N                              */
#define PIPEMLP_IMPLEMENTATION
#include "../pipemlp.h"
#include "test.h"

#include <sys/resource.h>
#include <time.h>

enum { WIDEST = 40, MOST_ROWS = 48, DEEPEST = 12 };
static float x[MOST_ROWS * WIDEST];
static int labels[MOST_ROWS];
static long trained, refused, failures, steps_run;

static int lot(uint64_t *state, int low, int high) {
    return low + (int)(test_random(state) % (uint64_t)(high - low + 1));
}

/* Trains a new model; its weights word, and what went wrong, if anything did. */
static pmlp_result train(const pmlp_model_desc *net, const pmlp_trainer_desc *how, uint64_t seed,
                         uint64_t *word, pmlp_error *error) {
    const int steps = lot(&seed, 1, 6);
    pmlp_model *model = NULL;
    pmlp_trainer *trainer = NULL;
    pmlp_result result = pmlp_model_create(net, &model, error);
    if (result == PMLP_OK) result = pmlp_trainer_create(model, how, &trainer, error);
    for (int s = 0; s < steps && result == PMLP_OK; s++) {
        pmlp_data data = {0};
        data.rows = (size_t)lot(&seed, 1, (int)how->batch), data.x = x, data.labels = labels;
        result = pmlp_trainer_step(trainer, &data, NULL);
        if (result != PMLP_OK) *error = *pmlp_trainer_error(trainer);
        steps_run++;
    }
    pmlp_trainer_destroy(trainer);
    if (result == PMLP_OK) result = pmlp_model_hash(model, word, error);
    pmlp_model_destroy(model);
    return result;
}

static bool wrong(uint64_t seed, const char *what, const pmlp_error *error) {
    printf("FAIL endure: %s (%s); again: build/endure --seed %llu --seconds 0\n", what, error->text,
           (unsigned long long)seed);
    return false;
}

static bool one(uint64_t seed) {
    uint64_t state = seed, serial = 0, piped = 0;
    int sizes[DEEPEST + 1];
    pmlp_model_desc net = {0};
    pmlp_trainer_desc plain = {0}, how;
    pmlp_error error = {0};
    test_memory memory;
    net.layers = lot(&state, 1, DEEPEST), net.sizes = sizes, net.seed = seed;
    for (int l = 0; l <= net.layers; l++) sizes[l] = lot(&state, 1, WIDEST);
    net.hidden = (pmlp_activation)lot(&state, 1, PMLP_ACTIVATION_COUNT - 1);
    for (int i = 0; i < MOST_ROWS * WIDEST; i++) x[i] = (float)test_uniform(&state, -1, 1);
    for (int i = 0; i < MOST_ROWS; i++) labels[i] = lot(&state, 0, sizes[net.layers] - 1);
    plain.batch = (size_t)lot(&state, 1, MOST_ROWS);
    plain.optimizer = (pmlp_optimizer)lot(&state, 1, PMLP_OPTIMIZER_COUNT - 1);
    plain.clip_norm = lot(&state, 0, 1) ? 0.5f : 0, plain.weight_decay = lot(&state, 0, 1) ? 0.01f : 0;
    how = plain;
    how.workers = lot(&state, 1, 4), how.virtual_stages = lot(&state, 0, 3);
    how.microbatches = lot(&state, 0, 12), how.no_threads = lot(&state, 0, 3) == 0;
    how.schedule = (pmlp_schedule_kind)lot(&state, 0, PMLP_SCHEDULE_PIPEDREAM - 1);
    if (train(&net, &plain, seed, &serial, &error) != PMLP_OK)
        return wrong(seed, "serial training fails", &error);
    test_memory_init(&memory, lot(&state, 0, 2) ? 0 : lot(&state, 1, 120));
    how.allocator = memory.allocator;
    const pmlp_result result = train(&net, &how, seed, &piped, &error);
    if (memory.blocks != 0) return wrong(seed, "memory is lost", &error);
    pthread_mutex_destroy(&memory.lock);
    if (result == PMLP_ERROR_ARGUMENT || result == PMLP_ERROR_SHAPE) return refused++, true; /* more than the layers or the schedule can be cut into */
    if (result == PMLP_ERROR_MEMORY && memory.fail_at > 0) return failures++, true;
    if (result != PMLP_OK) return wrong(seed, "the pipeline fails", &error);
    if (piped != serial) return wrong(seed, "other bits than serial training", &error);
    return trained++, true;
}

static long megabytes(void) { /* the most so far */
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_maxrss / 1024;
}

int main(int argc, char **argv) {
    double seconds = 3600, begin = test_seconds();
    uint64_t seed = (uint64_t)time(NULL) << 20;
    long early = 0, cases = 0;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--seed")) seed = strtoull(argv[i + 1], NULL, 10);
        else if (!strcmp(argv[i], "--seconds")) seconds = atof(argv[i + 1]);
        else return printf("endure: %s: expected --seed N or --seconds N\n", argv[i]), 2;
    }
    test_begin("endure");
    printf("seed %llu\n", (unsigned long long)seed);
    do {
        if (!one(seed++)) return 1;
        if (++cases == 2000) early = megabytes();
    } while (test_seconds() - begin < seconds);
    if (trained == 0 && seconds > 0) return printf("FAIL endure: nothing was trained\n"), 1;
    if (early > 0 && megabytes() > early + 16)
        return printf("FAIL endure: %ld MB after 2,000 cases, %ld at the end\n", early, megabytes()), 1;
    printf("ok   endure: %ld cases, %ld steps: %ld trainings with equal bits, %ld failed allocations, "
           "%ld refused; %ld MB\n1 passed, 0 failed\n",
           cases, steps_run, trained, failures, refused, megabytes());
    return 0;
}
