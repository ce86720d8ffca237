/* Whatever fails, the library says so in one sentence, hangs nowhere, loses nothing and breaks
   nothing. Here everything fails that can: the allocator at its k-th call, each worker's back end at
   its k-th operation, each edge at its k-th hand-off, the start of the k-th thread, the k-th mutex,
   for every k; and the caller, who passes every wrong thing there is to pass.

       cc -std=c99 -I. tests/test_errors.c -o test_errors -pthread -lm                            */
#include <pthread.h>
static int test_thread_start(pthread_t *thread, const pthread_attr_t *attributes,
                             void *(*body)(void *), void *argument);
static int test_mutex_init(pthread_mutex_t *mutex, const pthread_mutexattr_t *attributes);
static int test_cond_init(pthread_cond_t *cond, const pthread_condattr_t *attributes);
#define pthread_create test_thread_start
#define pthread_mutex_init test_mutex_init
#define pthread_cond_init test_cond_init
#define PIPEMLP_IMPLEMENTATION
#include "../pipemlp.h"
#undef pthread_create
#undef pthread_mutex_init
#undef pthread_cond_init
#include "test.h"
#include "faulty.h"

#include <dirent.h>

/* --- the network that all tests here train, and the words it must give -------------------------- */

enum { LAYERS = 5, INPUTS = 5, CLASSES = 3, ROWS = 23, BATCH = 8, WORKERS = 4, CASE_SECONDS = 60 };

static const int net_sizes[LAYERS + 1] = {INPUTS, 7, 6, 9, 4, CLASSES};
static float net_x[ROWS * INPUTS], net_targets[ROWS * CLASSES];
static int net_labels[ROWS];
static uint64_t net_words[3]; /* the weights word after 0, 1, 2 undisturbed steps */

static pmlp_model_desc net_desc(test_memory *memory) {
    pmlp_model_desc desc = {.layers = LAYERS, .sizes = net_sizes, .hidden = PMLP_TANH, .seed = 7};
    if (memory) desc.allocator = memory->allocator;
    return desc;
}

/* The rows of step 0 or 1: 8, then 7. */
static pmlp_data net_batch(int step) {
    pmlp_data data = {.rows = step ? BATCH - 1 : BATCH,
                      .x = net_x + step * BATCH * INPUTS,
                      .labels = net_labels + step * BATCH};
    return data;
}

static pmlp_data net_data(void) {
    pmlp_data data = {.rows = ROWS, .x = net_x, .labels = net_labels};
    return data;
}

static bool net_fused; /* the last W of a step is done by U: nobody wants the gradient itself */

static pmlp_trainer_desc net_how(int workers, bool no_threads) {
    pmlp_trainer_desc how = {.workers = workers,
                             .microbatches = 3,
                             .batch = BATCH,
                             .optimizer = PMLP_ADAM,
                             .clip_norm = net_fused ? 0 : 0.5f,
                             .keep_gradients = !net_fused,
                             .seed = 3,
                             .no_threads = no_threads};
    return how;
}

static uint64_t word_of(const pmlp_model *model) {
    uint64_t word = 0;
    return pmlp_model_hash(model, &word, NULL) == PMLP_OK ? word : 0;
}

static void net_train(bool fused) {
    net_fused = fused;
    for (int steps = 0; steps <= 2; steps++) {
        pmlp_model_desc desc = net_desc(NULL);
        pmlp_trainer_desc how = net_how(1, true);
        pmlp_model *model = NULL;
        pmlp_trainer *trainer = NULL;
        pmlp_error error = {0};
        if (pmlp_model_create(&desc, &model, &error) == PMLP_OK)
            pmlp_trainer_create(model, &how, &trainer, &error);
        for (int step = 0; trainer && step < steps; step++) {
            pmlp_data batch = net_batch(step);
            if (pmlp_trainer_step(trainer, &batch, NULL) != PMLP_OK)
                error = *pmlp_trainer_error(trainer);
        }
        pmlp_trainer_destroy(trainer);
        net_words[steps] = model ? word_of(model) : 0;
        pmlp_model_destroy(model);
        if (error.result != PMLP_OK) printf("training alone fails: %s\n", error.text);
    }
}

static void *nothing_to_do(void *unused) { return unused; }

static void net_make(void) {
    uint64_t state = 1;
    pthread_t thread; /* the thread sanitizer starts one of its own with the first of ours */
    if (pthread_create(&thread, NULL, nothing_to_do, NULL) == 0) pthread_join(thread, NULL);
    for (int i = 0; i < ROWS * INPUTS; i++) net_x[i] = (float)test_uniform(&state, -1, 1);
    for (int i = 0; i < ROWS * CLASSES; i++) net_targets[i] = (float)test_uniform(&state, 0, 1);
    for (int i = 0; i < ROWS; i++) net_labels[i] = (int)(test_random(&state) % CLASSES);
    net_train(false);
}

/* --- judging -------------------------------------------------------------------------------- */

/* One sentence: several words, no line break. */
static bool sentence(const char *text) {
    return strlen(text) >= 8 && strchr(text, ' ') && !strpbrk(text, "\r\n\t");
}

/* A call that must be refused with `want`, in a sentence that holds `thing`. */
static void refused(const char *what, pmlp_result got, pmlp_result want, const pmlp_error *error,
                    const char *thing) {
    CHECK(got == want, "%s: %s, not %s", what, pmlp_result_name(got), pmlp_result_name(want));
    CHECK(error->result == got, "%s: the error holds %s", what, pmlp_result_name(error->result));
    CHECK(sentence(error->text), "%s: says \"%s\"", what, error->text);
    CHECK(strstr(error->text, thing), "%s: \"%s\" does not name %s", what, error->text, thing);
}

/* A call that may succeed, or fail for want of memory and then leaves NULL behind. */
static bool survived(pmlp_result result, const pmlp_error *error, const void *out,
                     const char *call) {
    if (result == PMLP_OK) return true;
    CHECK(result == PMLP_ERROR_MEMORY, "%s: %s", call, pmlp_result_name(result));
    CHECK(error->result == result && sentence(error->text), "%s: %s, \"%s\"", call,
          pmlp_result_name(error->result), error->text);
    CHECK(out == NULL, "%s: the out-parameter is not NULL", call);
    return false;
}

/* With `result` and `error` in scope. MAKE fills `out` with a pointer to nonsense first. */
#define TRY(call) (result = (call), survived(result, &error, NULL, #call))
#define MAKE(out, call)                                                                        \
    ((out) = (void *)&error, result = (call),                                                  \
     survived(result, &error, result == PMLP_OK ? NULL : (out), #call) || ((out) = NULL, false))
#define TRAIN(call)                                                                            \
    (result = (call), survived(result, pmlp_trainer_error(trainer), NULL, #call))

static int living_threads(void) {
    int threads = 0;
    DIR *tasks = opendir("/proc/self/task");
    if (!tasks) return -1;
    for (struct dirent *task; (task = readdir(tasks)) != NULL;) threads += task->d_name[0] != '.';
    closedir(tasks);
    return threads;
}

/* A joined thread may linger in the kernel's list for a moment. */
static bool all_joined(int before) {
    for (int tries = 0; tries < 1000; tries++) {
        if (living_threads() <= before) return true;
        select(0, NULL, NULL, NULL, &(struct timeval){0, 1000});
    }
    return false;
}

/* No failure takes long to come back. A machine that stands still now and then may
   make a case slow; it does not make three of them slow. */
static int slow_cases;

static void not_slow(const char *what, double seconds) {
    const double limit = test_quick() ? 20 : 5; /* sanitizers, and machines with other work */
    slow_cases += seconds > limit;
    CHECK(slow_cases < 3, "%s: took %.1f s, and %d cases before it were slow", what, seconds,
          slow_cases - 1);
}

/* Threads whose start fails: the k-th pthread_create of the library from now. */
static long thread_fail_at, thread_starts;

static int test_thread_start(pthread_t *thread, const pthread_attr_t *attributes,
                             void *(*body)(void *), void *argument) {
    if (++thread_starts == thread_fail_at) return 11; /* EAGAIN */
    return pthread_create(thread, attributes, body, argument);
}

/* Mutexes and conditions that cannot be made: the k-th of the library from now. */
static long mutex_fail_at, mutex_inits;

static int test_mutex_init(pthread_mutex_t *mutex, const pthread_mutexattr_t *attributes) {
    if (++mutex_inits == mutex_fail_at) return 11; /* EAGAIN */
    return pthread_mutex_init(mutex, attributes);
}

static int test_cond_init(pthread_cond_t *cond, const pthread_condattr_t *attributes) {
    if (++mutex_inits == mutex_fail_at) return 11;
    return pthread_cond_init(cond, attributes);
}

/* --- (a) the allocator fails at its k-th call ---------------------------------------------------- */

typedef pmlp_result (*walk_fn)(test_memory *memory, const void *argument, uint64_t *word);

static pmlp_result walk_model(test_memory *memory, const void *argument, uint64_t *word) {
    pmlp_model_desc desc = net_desc(memory);
    pmlp_model *model = NULL, *clone = NULL;
    pmlp_error error = {0};
    pmlp_result result;
    pmlp_params params;
    pmlp_cut cuts[2];
    double balance;
    float y[ROWS * CLASSES];
    (void)argument;
    if (MAKE(model, pmlp_model_create(&desc, &model, &error)) &&
        TRY(pmlp_model_params(model, 1, &params, &error)) &&
        TRY(pmlp_model_predict(model, net_x, ROWS, y, &error)) &&
        TRY(pmlp_partition(model, 3, false, NULL, cuts, &balance, &error)) &&
        MAKE(clone, pmlp_model_clone(model, &clone, &error)))
        TRY(pmlp_model_hash(clone, word, &error));
    pmlp_model_destroy(clone);
    pmlp_model_destroy(model);
    return result;
}

/* Everything that can be done with a schedule; those that cannot be read back are copied instead,
   action by action. */
static pmlp_result copy_schedule(const pmlp_schedule *from, const pmlp_allocator *allocator,
                                 pmlp_schedule **to, pmlp_error *error) {
    int stage_worker[16] = {0}, at[16] = {0}, count;
    const int workers = pmlp_schedule_workers(from);
    for (int i = 0; i < pmlp_schedule_stages(from); i++)
        stage_worker[i] = pmlp_schedule_stage_worker(from, i);
    pmlp_result result = pmlp_schedule_empty(workers, pmlp_schedule_stages(from),
                                             pmlp_schedule_microbatches(from), stage_worker,
                                             allocator, to, error);
    for (int w = 0; w < workers; w++) {
        const pmlp_action *a = pmlp_schedule_actions(from, w, &count);
        for (; result == PMLP_OK && at[w] < count; at[w]++) {
            const pmlp_action b = a[at[w]];
            if (b.op != PMLP_OP_U || b.microbatch < 0 || at[w] == count - 1)
                result = pmlp_schedule_append(*to, b.op, b.stage, b.microbatch, error);
        }
    }
    if (result == PMLP_OK) return result;
    pmlp_schedule_destroy(*to);
    *to = NULL;
    return result;
}

static pmlp_result walk_schedule(test_memory *memory, const void *argument, uint64_t *word) {
    pmlp_schedule_desc desc = *(const pmlp_schedule_desc *)argument;
    pmlp_schedule *schedule = NULL, *parsed = NULL, *made[4] = {NULL};
    pmlp_timeline *timeline = NULL;
    int slots[2][16];
    pmlp_check report = {0};
    pmlp_simulation simulation;
    pmlp_worker_time time;
    pmlp_error error = {0};
    pmlp_result result;
    static char text[65536];
    size_t length = 0;
    report.forward_slots = slots[0], report.backward_slots = slots[1];
    desc.allocator = memory->allocator;
    if (MAKE(schedule, pmlp_schedule_create(&desc, &schedule, &error)) &&
        TRY(pmlp_schedule_print(schedule, text, sizeof text, &length)) &&
        MAKE(parsed, pmlp_schedule_is_synchronous(schedule)
                         ? pmlp_schedule_parse(text, length, &desc.allocator, &parsed, &error)
                         : copy_schedule(schedule, &desc.allocator, &parsed, &error)) &&
        MAKE(made[0], copy_schedule(parsed, &desc.allocator, &made[0], &error)) &&
        TRY(pmlp_schedule_check(made[0], 0, &report, &error)) && (*word = (uint64_t)report.slots, true) &&
        TRY(pmlp_schedule_check(schedule, 0, &report, &error)) &&
        MAKE(made[1], pmlp_schedule_lower(schedule, &made[1], &error)) &&
        MAKE(made[2], pmlp_schedule_lower_in_order(schedule, NULL, &made[2], &error)) &&
        MAKE(made[3], pmlp_schedule_put_off(schedule, NULL, 2, &made[3], &error)) &&
        TRY(pmlp_schedule_replay(made[1], PMLP_TRANSPORT_UNBOUNDED, 0, NULL, &error)) &&
        TRY(pmlp_schedule_replay(made[2], PMLP_TRANSPORT_RENDEZVOUS, 0, NULL, &error)) &&
        TRY(pmlp_schedule_simulate(schedule, NULL, NULL, &simulation, &error)) &&
        MAKE(timeline, pmlp_schedule_timeline(made[1], NULL, &timeline, &error)) &&
        TRY(pmlp_schedule_draw(schedule, NULL, 0, text, sizeof text, &length, &error))) {
        *word = pmlp_hash(*word * 99 + (uint64_t)report.slots + (uint64_t)simulation.makespan, text,
                          length);
        result = pmlp_timeline_worker(timeline, 0, &time); /* has no error to fill */
        CHECK(result == PMLP_OK || result == PMLP_ERROR_MEMORY, "%s", pmlp_result_name(result));
        *word += result == PMLP_OK ? (uint64_t)time.busy : 0;
        if (result == PMLP_OK &&
            TRY(pmlp_timeline_svg(timeline, timeline, NULL, text, sizeof text, &length, &error)) &&
            TRY(pmlp_timeline_write_svg(timeline, NULL, NULL, "/dev/null", &error)))
            *word = pmlp_hash(*word, text, length);
    }
    pmlp_timeline_destroy(timeline);
    for (int i = 0; i < 4; i++) pmlp_schedule_destroy(made[i]);
    pmlp_schedule_destroy(parsed);
    pmlp_schedule_destroy(schedule);
    return result;
}

/* Every transport, with lists that hang over some. */
static pmlp_result walk_replays(test_memory *memory, const void *argument, uint64_t *word) {
    pmlp_schedule_desc desc = *(const pmlp_schedule_desc *)argument;
    pmlp_schedule *schedule = NULL;
    pmlp_error error = {0};
    pmlp_result result;
    int done[8];
    desc.allocator = memory->allocator;
    if (MAKE(schedule, pmlp_schedule_create(&desc, &schedule, &error)))
        for (int t = 0; t < PMLP_TRANSPORT_COUNT; t++) {
            result = pmlp_schedule_replay(schedule, (pmlp_transport)t, 1, done, &error);
            *word = *word * 2 + (result == PMLP_OK);
            if (result == PMLP_ERROR_DEADLOCK ||
                (result == PMLP_ERROR_SCHEDULE && t == PMLP_TRANSPORT_PAIR)) { /* out of order */
                CHECK(sentence(error.text), "%s says '%s'", pmlp_transport_name((pmlp_transport)t),
                      error.text);
                result = PMLP_OK;
            }
            if (!survived(result, &error, NULL, "replay")) break;
        }
    pmlp_schedule_destroy(schedule);
    return result;
}

static pmlp_result walk_measure(test_memory *memory, const void *argument, uint64_t *word) {
    pmlp_trainer_desc how = *(const pmlp_trainer_desc *)argument;
    pmlp_model_desc desc = net_desc(NULL);
    pmlp_model *model = NULL;
    pmlp_error error = {0};
    pmlp_result result;
    double costs[LAYERS];
    how.allocator = memory->allocator;
    if (!CHECK(pmlp_model_create(&desc, &model, &error) == PMLP_OK, "%s", error.text))
        return PMLP_ERROR_MEMORY;
    TRY(pmlp_measure_layers(model, &how, costs, &error));
    *word = word_of(model);
    CHECK(*word == net_words[0], "measuring changes the weights");
    pmlp_model_destroy(model);
    return result;
}

/* After a failed create the model must be as free as before: a second try, with memory, works. */
static void try_again(test_memory *memory, pmlp_model *model, const pmlp_trainer_desc *how) {
    pmlp_trainer *trainer = NULL;
    pmlp_error error = {0};
    memory->fail_at = 0, memory->fail_on = false;
    pmlp_result result = pmlp_trainer_create(model, how, &trainer, &error);
    CHECK(result == PMLP_OK, "a second create: %s", error.text);
    pmlp_trainer_destroy(trainer);
    CHECK(word_of(model) == net_words[0], "a failed create changed the weights");
}

static pmlp_result walk_trainer(test_memory *memory, const void *argument, uint64_t *word) {
    pmlp_trainer_desc how = *(const pmlp_trainer_desc *)argument;
    pmlp_model_desc desc = net_desc(NULL);
    pmlp_model *model = NULL;
    pmlp_trainer *trainer = NULL;
    pmlp_error error = {0};
    pmlp_result result;
    pmlp_data batch = net_batch(0), data = net_data();
    float dw[7 * 6];
    how.allocator = memory->allocator;
    if (!CHECK(pmlp_model_create(&desc, &model, &error) == PMLP_OK, "%s", error.text))
        return PMLP_ERROR_MEMORY;
    if (!MAKE(trainer, pmlp_trainer_create(model, &how, &trainer, &error)))
        try_again(memory, model, &how);
    else if (!(TRAIN(pmlp_trainer_step(trainer, &batch, NULL)) &&
               TRAIN(pmlp_trainer_epoch(trainer, &data, NULL)) &&
               TRAIN(pmlp_trainer_eval(trainer, &data, NULL)) &&
               TRAIN(pmlp_trainer_gradient(trainer, 1, dw, NULL)) &&
               TRAIN(pmlp_trainer_sync(trainer)))) {
        pmlp_result later = pmlp_trainer_step(trainer, &batch, NULL); /* it may have failed for good */
        CHECK(later == PMLP_OK || later == PMLP_ERROR_STATE || later == PMLP_ERROR_MEMORY,
              "a step after a failure: %s", pmlp_result_name(later));
    }
    pmlp_trainer_destroy(trainer);
    *word = word_of(model);
    pmlp_model_destroy(model);
    return result;
}

/* What an asynchronous or traced trainer allocates: lists when an epoch's length changes, costs and
   timelines when they are asked for; and what one that measures for itself does. */
static pmlp_result walk_traced(test_memory *memory, const void *argument, uint64_t *word) {
    pmlp_trainer_desc how = *(const pmlp_trainer_desc *)argument;
    pmlp_model_desc desc = net_desc(memory);
    pmlp_model *model = NULL;
    pmlp_trainer *trainer = NULL;
    pmlp_timeline *timelines[2] = {NULL, NULL};
    pmlp_error error = {0};
    pmlp_result result;
    pmlp_costs costs;
    pmlp_data batch = net_batch(0), data = net_data(), shorter = net_data();
    shorter.rows = BATCH + 3;
    how.allocator = memory->allocator;
    if (!MAKE(model, pmlp_model_create(&desc, &model, &error))) return result;
    if (!MAKE(trainer, pmlp_trainer_create(model, &how, &trainer, &error)))
        try_again(memory, model, &how);
    else if (!(TRAIN(pmlp_trainer_epoch(trainer, &data, NULL)) &&
               TRAIN(pmlp_trainer_step(trainer, &batch, NULL)) &&
               TRAIN(pmlp_trainer_epoch(trainer, &shorter, NULL)) &&
               TRAIN(pmlp_trainer_timeline(trainer, 0, &timelines[0])) &&
               TRAIN(pmlp_trainer_costs(trainer, &costs)) &&
               TRAIN(pmlp_trainer_epoch(trainer, &data, NULL)) &&
               TRAIN(pmlp_trainer_timeline(trainer, 2, &timelines[1])))) {
        CHECK(!timelines[1], "a timeline in spite of the failure");
        const pmlp_result later = pmlp_trainer_step(trainer, &batch, NULL);
        CHECK(later == PMLP_OK || later == PMLP_ERROR_MEMORY, "a step after a failure: %s",
              pmlp_result_name(later));
    }
    pmlp_trainer_destroy(trainer);
    for (int i = 0; i < 2; i++) pmlp_timeline_destroy(timelines[i]);
    *word = word_of(model);
    pmlp_model_destroy(model);
    return result;
}

static pmlp_result walk_ceiling(test_memory *memory, const void *argument, uint64_t *word) {
    pmlp_trainer_desc how = *(const pmlp_trainer_desc *)argument;
    pmlp_model_desc desc = net_desc(memory);
    pmlp_model *model = NULL;
    pmlp_ceiling_report report;
    pmlp_error error = {0};
    pmlp_result result;
    how.allocator = memory->allocator, how.clip_norm = 0;
    if (MAKE(model, pmlp_model_create(&desc, &model, &error)) &&
        TRY(pmlp_ceiling(model, &how, NULL, &report, &error))) {
        *word = pmlp_hash(0, &report.balance, 5 * sizeof report.balance);
        *word = pmlp_hash(*word, report.advice, strlen(report.advice));
    }
    pmlp_model_destroy(model);
    return result;
}

static bool is_asynchronous(pmlp_schedule_kind kind) {
    return kind == PMLP_SCHEDULE_PIPEDREAM || kind == PMLP_SCHEDULE_PIPEDREAM_2BW;
}

static pmlp_result walk_verify(test_memory *memory, const void *argument, uint64_t *word) {
    pmlp_trainer_desc how = *(const pmlp_trainer_desc *)argument;
    pmlp_model_desc desc = net_desc(memory);
    pmlp_model *model = NULL;
    pmlp_verify_report report = {0};
    pmlp_error error = {0};
    pmlp_result result;
    pmlp_data data = net_data();
    how.allocator = memory->allocator;
    if (MAKE(model, pmlp_model_create(&desc, &model, &error)) &&
        TRY(pmlp_verify(model, &how, &data, 2, &report, &error))) {
        CHECK(report.identical == !is_asynchronous(how.schedule), "not identical: %s", report.what);
        *word = report.hash;
    }
    pmlp_model_destroy(model);
    return result;
}

static void big_endian(unsigned char *out, uint32_t value) {
    for (int i = 0; i < 4; i++) out[i] = (unsigned char)(value >> (24 - 8 * i));
}

static pmlp_result walk_images(test_memory *memory, const void *argument, uint64_t *word) {
    unsigned char images[16 + 2 * 6] = {0, 0, 8, 3}, labels[8 + 2] = {0, 0, 8, 1};
    pmlp_images set;
    pmlp_error error = {0};
    pmlp_result result;
    (void)argument;
    big_endian(images + 4, 2), big_endian(images + 8, 2), big_endian(images + 12, 3);
    big_endian(labels + 4, 2);
    memset(&set, 0xA5, sizeof set);
    if (TRY(pmlp_images_parse(images, sizeof images, labels, sizeof labels, 0, &memory->allocator,
                              &set, &error)))
        *word = set.rows;
    else CHECK(!set.x && !set.labels && !set.rows && !set.width, "*images is not all zero");
    pmlp_images_free(&set);
    return result;
}

/* Every k, failing once and failing from then on; returns the number of cases. */
static long exhaust(const char *name, walk_fn walk, const void *argument) {
    long cases = 0;
    test_memory memory;
    uint64_t good = 0;
    int threads = living_threads();
    test_memory_init(&memory, 0);
    CHECK(walk(&memory, argument, &good) == PMLP_OK, "%s fails with all the memory it wants", name);
    const long stride = !test_quick() || memory.calls < 150 ? 1 : 3;
    for (int on = 0; on <= 1; on++) {
        for (long k = 1, calls = k; calls >= k - stride; k += stride, cases++) {
            uint64_t word = 0;
            double begin = test_seconds();
            test_memory_init(&memory, k), memory.fail_on = on;
            alarm(CASE_SECONDS);
            pmlp_result result = walk(&memory, argument, &word);
            calls = memory.calls;
            not_slow(name, test_seconds() - begin);
            CHECK(memory.blocks == 0, "%s, call %ld: %ld blocks leak", name, k, memory.blocks);
            CHECK(result != PMLP_OK || word == good, "%s, call %ld: a wrong success", name, k);
            CHECK(calls >= k || result == PMLP_OK, "%s, %ld: fails without a cause", name, k);
        }
    }
    CHECK(all_joined(threads), "%s: threads are left over", name);
    return cases;
}

TEST(memory_model) {
    long cases = exhaust("model", walk_model, NULL) + exhaust("images", walk_images, NULL);
    SAY("memory fails at its k-th call: model, clone, predict, partition, images, %s cases",
        test_count(cases));
}

TEST(memory_schedule) {
    long cases = 0;
    for (int kind = 0; kind < PMLP_SCHEDULE_KIND_COUNT; kind++) {
        pmlp_schedule_desc desc = {
            .kind = (pmlp_schedule_kind)kind, .workers = 2, .microbatches = kind % 2 ? 4 : 12};
        if (is_asynchronous(desc.kind)) desc.batches = 2;
        cases += exhaust(pmlp_schedule_kind_name(desc.kind), walk_schedule, &desc);
        cases += exhaust(pmlp_schedule_kind_name(desc.kind), walk_replays, &desc);
    }
    SAY("memory fails at its k-th call: schedules of every kind built, read, copied, checked, "
        "lowered, put off, replayed, timed, drawn, %s cases",
        test_count(cases));
}

/* Kinds that a trainer has its own ways with. */
static pmlp_trainer_desc special_how(int which, bool no_threads) {
    static const pmlp_schedule_kind kinds[] = {PMLP_SCHEDULE_1F1B, PMLP_SCHEDULE_PIPEDREAM,
                                               PMLP_SCHEDULE_PIPEDREAM_2BW, PMLP_SCHEDULE_AUTO};
    pmlp_trainer_desc how = net_how(2, no_threads);
    how.schedule = kinds[which], how.trace = 2;
    if (is_asynchronous(how.schedule)) how.clip_norm = 0;
    return how;
}

TEST(memory_traced) {
    long cases = 0;
    for (int which = 0; which < 4; which++) {
        pmlp_trainer_desc how = special_how(which, which % 2);
        cases += exhaust(pmlp_schedule_kind_name(how.schedule), walk_traced, &how);
        cases += exhaust(pmlp_schedule_kind_name(how.schedule), walk_ceiling, &how);
    }
    SAY("memory fails at its k-th call: traces, costs, asynchronous epochs of new lengths, auto that "
        "measures, ceilings, %s cases",
        test_count(cases));
}

TEST(memory_trainer) {
    long cases = 0;
    for (int workers = 1; workers <= 3; workers++) {
        for (int no_threads = 0; no_threads <= 1; no_threads++) {
            pmlp_trainer_desc how = net_how(workers, no_threads);
            cases += exhaust("trainer", walk_trainer, &how);
        }
    }
    pmlp_trainer_desc how = net_how(2, true);
    cases += exhaust("measure_layers", walk_measure, &how);
    how.measure_layers = true;
    cases += exhaust("trainer that measures", walk_trainer, &how);
    how = net_how(0, true), how.microbatches = 0;
    pmlp_schedule *custom = NULL;
    const char *text = "0F0,0F1,0F2,0B0,0B1,0B2\n1F0,1B0,1F1,1B1,1F2,1B2\n";
    CHECK(pmlp_schedule_parse(text, strlen(text), NULL, &custom, NULL) == PMLP_OK, "no schedule");
    how.custom = custom;
    cases += exhaust("trainer with a schedule of its own", walk_trainer, &how);
    pmlp_schedule_destroy(custom);
    SAY("memory fails at its k-th call: trainers of 1..3 workers, threads and none, layers "
        "measured, %s cases", test_count(cases));
}

TEST(memory_verify) {
    pmlp_trainer_desc how = net_how(2, false);
    pmlp_trainer_desc late = special_how(1, true);
    SAY("memory fails at its k-th call: verify, %s cases",
        test_count(exhaust("verify", walk_verify, &how) + exhaust("late", walk_verify, &late)));
}

/* --- (b) back ends and edges that fail ----------------------------------------------------------- */

enum { EDGES = 2 * (WORKERS - 1) };

/* The op that an error must name; NULL: any. */
static const char *const entry_ops[ENTRIES] = {
    NULL, NULL, NULL, NULL, NULL, "F", "F", "I", "W", NULL, NULL, "U", NULL};

/* Edges of another kind: messages are copied into a mailbox of `slots` letters and out of it again,
   nobody wakes anybody, and every rule of the contract that can be seen from here is checked. */
typedef struct letter {
    int microbatch;
    size_t bytes;
    unsigned char *data; /* a block of max_rows * row_bytes */
} letter;

typedef struct mailbox {
    pmlp_edge_desc desc;
    struct mail_plan *plan;
    pthread_mutex_t lock;
    int first, count; /* of the letters in the box */
    long broken;
    letter letters[8];
} mailbox;

typedef struct mail_plan {
    pmlp_edges table;
    int living, connects;
    long broken; /* rules broken, added up at disconnect() */
} mail_plan;

static void mail_disconnect(void *edge) {
    mailbox *box = edge;
    for (int i = 0; i < 8; i++) free(box->letters[i].data);
    pthread_mutex_destroy(&box->lock);
    box->plan->living--, box->plan->broken += box->broken;
    free(box);
}

static pmlp_result mail_connect(const pmlp_edges *self, const pmlp_edge_desc *desc, void **edge,
                                pmlp_error *error) {
    mailbox *box = calloc(1, sizeof *box);
    (void)error;
    *edge = NULL;
    if (!box) return PMLP_ERROR_MEMORY;
    box->desc = *desc, box->plan = (mail_plan *)(uintptr_t)self->user;
    box->plan->living++, box->plan->connects++;
    box->broken += desc->slots < 1 || desc->slots > 8 || desc->row_bytes == 0 ||
                         desc->from_worker == desc->to_worker || !desc->from_context ||
                         desc->to_stage - desc->from_stage != (desc->gradient ? -1 : 1);
    pthread_mutex_init(&box->lock, NULL);
    for (int i = 0; i < 8; i++) {
        box->letters[i].data = malloc(desc->max_rows * desc->row_bytes);
        if (!box->letters[i].data) return mail_disconnect(box), PMLP_ERROR_MEMORY;
    }
    *edge = box;
    return PMLP_OK;
}

static pmlp_result mail_reset(void *edge) {
    mailbox *box = edge;
    box->broken += box->count != 0;
    return PMLP_OK;
}

static pmlp_result mail_send(void *edge, int microbatch, const void *data, size_t bytes) {
    mailbox *box = edge;
    pmlp_result result = PMLP_BUSY;
    pthread_mutex_lock(&box->lock);
    if (box->count < box->desc.slots) {
        letter *to = &box->letters[(box->first + box->count++) % 8];
        box->broken += bytes % box->desc.row_bytes != 0 ||
                             bytes > box->desc.max_rows * box->desc.row_bytes;
        to->microbatch = microbatch, to->bytes = bytes;
        if (bytes) memcpy(to->data, data, bytes);
        result = PMLP_OK;
    }
    pthread_mutex_unlock(&box->lock);
    return result;
}

static pmlp_result mail_receive(void *edge, int microbatch, void *data, size_t bytes) {
    mailbox *box = edge;
    pmlp_result result = PMLP_BUSY;
    pthread_mutex_lock(&box->lock);
    if (box->count > 0) {
        letter *from = &box->letters[box->first];
        box->broken += from->microbatch != microbatch || from->bytes != bytes;
        if (bytes) memcpy(data, from->data, bytes);
        memset(from->data, 0xFF, bytes); /* nobody may look there again */
        box->first = (box->first + 1) % 8, box->count--;
        result = PMLP_OK;
    }
    pthread_mutex_unlock(&box->lock);
    return result;
}

static void mail_make(mail_plan *plan) {
    memset(plan, 0, sizeof *plan);
    plan->table.abi = PMLP_EDGES_ABI, plan->table.size = sizeof plan->table;
    plan->table.name = "mail", plan->table.user = plan, plan->table.shared = false;
    plan->table.connect = mail_connect, plan->table.disconnect = mail_disconnect;
    plan->table.reset = mail_reset, plan->table.send = mail_send;
    plan->table.receive = mail_receive;
}

/* --- one training in which something fails ------------------------------------------------------- */

typedef struct fault_case {
    char what[160];
    pmlp_trainer_desc how;
    faulty *plan;      /* or NULL */
    wire_plan *wires;  /* or NULL */
} fault_case;

static bool has_failed(const fault_case *c) {
    return (c->plan && c->plan->failed >= 0) || (c->wires && c->wires->failed);
}

/* An error inside a step names the worker, its stage and what it did. */
static void check_where(const fault_case *c, const pmlp_trainer *trainer, pmlp_result result) {
    const pmlp_error *error = pmlp_trainer_error(trainer);
    int worker = c->plan ? c->plan->worker : error->worker;
    const char *op = NULL;
    char label[32];
    snprintf(label, sizeof label, "%d%s", error->stage, error->op); /* 0F of 0F3: stage and op */
    if (c->wires && c->wires->entry == RESET) { /* before any action */
        refused(c->what, result, PMLP_ERROR_BACKEND, error, "");
        return;
    }
    refused(c->what, result, PMLP_ERROR_BACKEND, error, label);
    if (c->plan) op = entry_ops[c->plan->failed];
    if (c->plan) /* in the back end's words, or in the library's if it has none */
        CHECK(strstr(error->text, c->plan->dead ? pmlp_result_text(PMLP_ERROR_BACKEND)
                                                : "the shim was told to fail"),
              "%s: %s", c->what, error->text);
    if (c->wires) {
        const pmlp_edge_desc *edge = &c->wires->descs[c->wires->edge];
        bool sends = c->wires->entry == SEND;
        worker = sends ? edge->from_worker : edge->to_worker;
        op = sends ? (edge->gradient ? "SEND_B" : "SEND_F") : (edge->gradient ? "RECV_B" : "RECV_F");
    }
    CHECK(error->worker == worker, "%s: blames worker %d", c->what, error->worker);
    CHECK(pmlp_schedule_stage_worker(pmlp_trainer_schedule(trainer), error->stage) == worker,
          "%s: blames stage %d", c->what, error->stage);
    CHECK(error->op[0] && (!op || strcmp(op, error->op) == 0), "%s: blames op \"%s\"", c->what,
          error->op);
    CHECK(error->microbatch >= -1 &&
              error->microbatch < c->how.microbatches * (is_asynchronous(c->how.schedule) ? 3 : 1),
          "%s: blames micro-batch %d", c->what, error->microbatch);
}

/* After a failure inside the pipeline everything that computes is refused. */
static void check_state(const fault_case *c, pmlp_trainer *trainer) {
    pmlp_data batch = net_batch(0);
    CHECK(pmlp_trainer_step(trainer, &batch, NULL) == PMLP_ERROR_STATE, "%s: steps on", c->what);
    CHECK(sentence(pmlp_trainer_error(trainer)->text), "%s: no sentence for STATE", c->what);
    CHECK(pmlp_trainer_epoch(trainer, &batch, NULL) == PMLP_ERROR_STATE, "%s: epoch", c->what);
    CHECK(pmlp_trainer_eval(trainer, &batch, NULL) == PMLP_ERROR_STATE, "%s: eval", c->what);
}

/* Two steps, an evaluation, gradient, sync. Returns how many steps' weights must be there at the
   end; -1 if updates had begun, so that nothing is promised. */
static int train_faulty(const fault_case *c, pmlp_trainer *trainer) {
    pmlp_data batch;
    pmlp_result result = PMLP_OK;
    float dw[7 * 6], db[6];
    for (int step = 0; step < 2; step++) {
        long updates = c->plan ? faulty_total(c->plan, UPDATE) : 0;
        batch = net_batch(step);
        result = pmlp_trainer_step(trainer, &batch, NULL);
        if (result != PMLP_OK) {
            if (CHECK(has_failed(c), "%s: fails without a cause", c->what))
                check_where(c, trainer, result);
            check_state(c, trainer);
            return c->plan && faulty_total(c->plan, UPDATE) != updates ? -1 : step;
        }
        CHECK(!has_failed(c), "%s: a failure is lost", c->what);
    }
    result = pmlp_trainer_eval(trainer, &batch, NULL);
    CHECK((result != PMLP_OK) == has_failed(c), "%s: eval gives %s", c->what, pmlp_result_name(result));
    if (result != PMLP_OK) {
        check_where(c, trainer, result);
        check_state(c, trainer);
        return 2;
    }
    result = net_fused ? PMLP_OK : pmlp_trainer_gradient(trainer, 1, dw, db);
    if (result == PMLP_OK) result = pmlp_trainer_sync(trainer);
    CHECK((result != PMLP_OK) == has_failed(c), "%s: a failed read is lost", c->what);
    if (result != PMLP_OK) {
        CHECK(result == PMLP_ERROR_BACKEND, "%s: %s", c->what, pmlp_result_name(result));
        CHECK(sentence(pmlp_trainer_error(trainer)->text), "%s: no sentence", c->what);
    }
    return 2;
}

static void run_fault(fault_case *c) {
    pmlp_model *model = NULL;
    pmlp_trainer *trainer = NULL;
    pmlp_error error = {0};
    test_memory memory;
    int threads = living_threads(), steps = 0;
    double begin = test_seconds();
    test_memory_init(&memory, 0);
    pmlp_model_desc desc = net_desc(&memory);
    c->how.allocator = memory.allocator;
    if (c->plan) c->how.backend = &c->plan->table;
    if (c->wires) c->how.edges = &c->wires->table;
    alarm(CASE_SECONDS);
    pmlp_result result = pmlp_model_create(&desc, &model, &error);
    if (!CHECK(result == PMLP_OK, "%s: %s", c->what, error.text)) return;
    trainer = (void *)&error;
    result = pmlp_trainer_create(model, &c->how, &trainer, &error);
    if (result != PMLP_OK) {
        CHECK(!trainer, "%s: *trainer is not NULL", c->what);
        CHECK(has_failed(c), "%s: create fails without a cause", c->what);
        refused(c->what, result, PMLP_ERROR_BACKEND, &error, "");
        trainer = NULL;
    } else steps = train_faulty(c, trainer);
    bool readable = !has_failed(c) || !c->plan || !c->plan->dead;
    bool before = has_failed(c);
    pmlp_trainer_destroy(trainer);
    if (has_failed(c) != before) readable = false; /* the write-back itself failed */
    if (readable && steps >= 0)
        CHECK(word_of(model) == net_words[steps], "%s: not the weights of step %d", c->what, steps);
    pmlp_model_destroy(model);
    not_slow(c->what, test_seconds() - begin);
    CHECK(all_joined(threads), "%s: threads are left over", c->what);
    CHECK(memory.blocks == 0, "%s: %ld blocks leak", c->what, memory.blocks);
    CHECK(!c->plan || faulty_balanced(c->plan), "%s: contexts, buffers or layers leak", c->what);
    CHECK(!c->wires || c->wires->living == 0, "%s: edges leak", c->what);
}

/* The same in epochs without a flush: three batches at once, then two. Returns the weights word. */
static uint64_t run_late_fault(fault_case *c) {
    pmlp_model *model = NULL;
    pmlp_trainer *trainer = NULL;
    pmlp_data data = net_data();
    pmlp_error error = {0};
    test_memory memory;
    const int threads = living_threads();
    const double begin = test_seconds();
    uint64_t word = 0;
    test_memory_init(&memory, 0);
    pmlp_model_desc desc = net_desc(&memory);
    c->how.allocator = memory.allocator;
    if (c->plan) c->how.backend = &c->plan->table;
    if (c->wires) c->how.edges = &c->wires->table;
    alarm(CASE_SECONDS);
    CHECK(pmlp_model_create(&desc, &model, &error) == PMLP_OK, "%s: %s", c->what, error.text);
    if (pmlp_trainer_create(model, &c->how, &trainer, &error) != PMLP_OK)
        CHECK(has_failed(c) && !trainer && sentence(error.text), "%s: %s", c->what, error.text);
    for (int epoch = 0; trainer && epoch < 2 && !has_failed(c); epoch++, data.rows = BATCH + 4) {
        const pmlp_result result = pmlp_trainer_epoch(trainer, &data, NULL);
        CHECK((result != PMLP_OK) == has_failed(c), "%s: %s", c->what, pmlp_result_name(result));
        if (result != PMLP_OK) check_where(c, trainer, result), check_state(c, trainer);
    }
    pmlp_trainer_destroy(trainer);
    pmlp_model_hash(model, &word, NULL); /* they may be lost */
    pmlp_model_destroy(model);
    not_slow(c->what, test_seconds() - begin);
    CHECK(all_joined(threads), "%s: threads are left over", c->what);
    CHECK(memory.blocks == 0, "%s: %ld blocks leak", c->what, memory.blocks);
    CHECK(!c->plan || faulty_balanced(c->plan), "%s: contexts, buffers or layers leak", c->what);
    CHECK(!c->wires || c->wires->living == 0, "%s: edges leak", c->what);
    return word;
}

TEST(asynchronous) {
    static faulty plan;
    wire_plan wires;
    long cases = 0, stride = test_quick() ? 11 : 2;
    bool seen[ENTRIES] = {false};
    for (int way = 0; way < 4; way++) {
        uint64_t good = 0;
        fault_case c = {.how = special_how(1 + way % 2, way / 2), .plan = &plan};
        c.how.workers = 3, c.how.no_stashing = way == 3;
        for (int w = -1; w < 3; w++)
            for (long k = 1, missed = 0; missed < 2; k += w < 0 ? 1000 : stride, cases++) {
                snprintf(c.what, sizeof c.what, "%s%s, worker %d fails at operation %ld",
                         pmlp_schedule_kind_name(c.how.schedule), way / 2 ? " without threads" : "",
                         w, k);
                faulty_make(&plan, w, k, k % 2);
                const uint64_t word = run_late_fault(&c);
                if (w < 0 && !good) good = word;
                missed = plan.failed < 0 ? missed + 1 : 0;
                if (plan.failed >= 0) seen[plan.failed] = true;
                else CHECK(word == good && word, "%s: other weights", c.what);
                if (!CHECK(w < 0 || k < 2000, "%s: does this never end?", c.what)) break;
            }
        c.plan = NULL, c.how.backend = NULL, c.wires = &wires;
        for (int edge = 0; edge < 4; edge++)
            for (int entry = 0; entry < WIRE_ENTRIES; entry++)
                for (long k = 1; k <= (entry < SEND ? 1 : 15); k += entry < SEND ? 1 : stride) {
                    snprintf(c.what, sizeof c.what, "%s%s, edge %d fails at %s %ld",
                             pmlp_schedule_kind_name(c.how.schedule),
                             way / 2 ? " without threads" : "", edge, wire_names[entry], k);
                    wire_make(&wires, edge, (enum wire_entry)entry, k);
                    run_late_fault(&c);
                    CHECK(wires.failed, "%s: never got there", c.what), cases++;
                }
    }
    for (int e = FORWARD; e < ENTRIES; e++)
        CHECK(seen[e] || e == SQUARES || test_quick(), "%s never failed", entry_names[e]);
    SAY("back end and edges fail in epochs without a flush: an error, nothing lost, %s cases",
        test_count(cases));
}

/* Every operation of every worker of one pipeline; fills which entries have failed. How many there are
   may differ from run to run, since neighbouring W are merged or not: the end has come when several
   in a row are never reached. */
static long fault_backend(int workers, bool no_threads, bool dead, bool *seen) {
    static faulty plan; /* large */
    long cases = 0, stride = test_quick() ? 7 : 1;
    fault_case c = {.how = net_how(workers, no_threads), .plan = &plan};
    for (int w = 0; w < workers; w++) {
        int missed = 0;
        for (long k = 1 + (test_quick() ? w : 0); missed < 4; k += stride, cases++) {
            snprintf(c.what, sizeof c.what, "%d workers%s, worker %d fails at operation %ld%s",
                     workers, no_threads ? " without threads" : "", w, k, dead ? " and on" : "");
            faulty_make(&plan, w, k, dead);
            run_fault(&c);
            missed = plan.failed < 0 ? missed + 1 : 0;
            if (plan.failed >= 0) seen[plan.failed] = true;
            if (!CHECK(k < 1000, "%s: does this never end?", c.what)) break;
        }
    }
    return cases;
}

static void fault_all(bool no_threads, bool fused) {
    bool seen[ENTRIES] = {false};
    long cases = 0;
    net_train(fused);
    for (int workers = 1; workers <= WORKERS; workers++)
        for (int dead = 0; dead <= 1; dead++)
            cases += fault_backend(workers, no_threads, dead, seen);
    net_train(false);
    for (int e = 0; e < ENTRIES; e++) /* with threads, which k is which entry may change */
        CHECK(seen[e] || (fused && e == SQUARES) || (test_quick() && !no_threads),
              "%s never failed", entry_names[e]);
    SAY("the back end fails at its k-th operation: 1..%d workers, %s, W %s U, %s cases", WORKERS,
        no_threads ? "no threads" : "threads", fused ? "with" : "before", test_count(cases));
}

TEST(backend_threads) { fault_all(false, false); }
TEST(backend_no_threads) { fault_all(true, false); }
TEST(backend_threads_fused) { fault_all(false, true); }
TEST(backend_no_threads_fused) { fault_all(true, true); }

TEST(edges) {
    wire_plan wires;
    long cases = 0, counts[EDGES][WIRE_ENTRIES];
    for (int no_threads = 0; no_threads <= 1; no_threads++) {
        fault_case c = {.how = net_how(WORKERS, no_threads), .wires = &wires};
        snprintf(c.what, sizeof c.what, "edges, nothing fails");
        wire_make(&wires, -1, CONNECT, 0);
        run_fault(&c);
        memcpy(counts, wires.counts, sizeof counts);
        CHECK(wires.connects == EDGES, "%d edges for %d workers", wires.connects, WORKERS);
        for (int edge = 0; edge < EDGES; edge++) {
            for (int entry = 0; entry < WIRE_ENTRIES; entry++) {
                CHECK(counts[edge][entry] > 0, "edge %d never %s", edge, wire_names[entry]);
                for (long k = 1; k <= counts[edge][entry]; k++, cases++) {
                    snprintf(c.what, sizeof c.what, "edge %d%s fails at %s %ld", edge,
                             no_threads ? " without threads" : "", wire_names[entry], k);
                    wire_make(&wires, edge, (enum wire_entry)entry, k);
                    run_fault(&c);
                    CHECK(wires.failed, "%s: never got there", c.what);
                }
            }
        }
    }
    SAY("edges fail at their k-th connect, reset, send, receive, %s cases", test_count(cases));
}

TEST(edges_busy) {
    wire_plan wires;
    long cases = 0;
    for (int workers = 2; workers <= WORKERS; workers++) {
        for (int no_threads = 0; no_threads <= 1; no_threads++, cases++) {
            fault_case c = {.how = net_how(workers, no_threads), .wires = &wires};
            snprintf(c.what, sizeof c.what, "%d workers%s, busy edges", workers,
                     no_threads ? " without threads" : "");
            wire_make(&wires, -1, CONNECT, 0), wires.busy = true;
            run_fault(&c);
        }
    }
    SAY("edges that are busy at first and never wake: same weights, %s cases", test_count(cases));
}

TEST(edges_copying) {
    mail_plan mail;
    long cases = 0;
    for (int workers = 2; workers <= WORKERS; workers++) {
        for (int no_threads = 0; no_threads <= 1; no_threads++) {
            for (int slots = 1; slots <= 3; slots++, cases++) {
                fault_case c = {.how = net_how(workers, no_threads)};
                snprintf(c.what, sizeof c.what, "%d workers%s, %d letters", workers,
                         no_threads ? " without threads" : "", slots);
                mail_make(&mail);
                c.how.edges = &mail.table, c.how.slots = slots;
                run_fault(&c);
                CHECK(mail.connects == 2 * (workers - 1), "%s: %d edges", c.what, mail.connects);
                CHECK(mail.broken == 0, "%s: %ld rules of the contract broken", c.what, mail.broken);
                CHECK(mail.living == 0, "%s: edges leak", c.what);
            }
        }
    }
    SAY("edges that copy through 1..3 slots and never wake: same weights, %s cases",
        test_count(cases));
}

TEST(threads) {
    long cases = 0;
    for (int workers = 2; workers <= WORKERS; workers++) {
        for (long k = 1; k < workers; k++, cases++) {
            pmlp_model_desc desc;
            pmlp_trainer_desc how = net_how(workers, false);
            pmlp_model *model = NULL;
            pmlp_trainer *trainer = (void *)&how;
            pmlp_error error = {0};
            test_memory memory;
            int threads = living_threads();
            test_memory_init(&memory, 0);
            desc = net_desc(&memory), how.allocator = memory.allocator;
            alarm(CASE_SECONDS);
            CHECK(pmlp_model_create(&desc, &model, &error) == PMLP_OK, "%s", error.text);
            thread_starts = 0, thread_fail_at = k;
            pmlp_result result = pmlp_trainer_create(model, &how, &trainer, &error);
            thread_fail_at = 0;
            CHECK(thread_starts == k, "%ld threads of %d workers", thread_starts, workers);
            refused("a thread fails", result, PMLP_ERROR_THREAD, &error, "thread");
            CHECK(!trainer, "*trainer is not NULL");
            try_again(&memory, model, &how);
            pmlp_model_destroy(model);
            CHECK(memory.blocks == 0, "%ld blocks leak", memory.blocks);
            CHECK(all_joined(threads), "threads are left over");
        }
    }
    SAY("the k-th thread does not start: all others are joined, %s cases", test_count(cases));
}

TEST(mutexes) {
    long cases = 0;
    for (int workers = 1; workers <= 2; workers++)
        for (int no_threads = 0; no_threads <= 1; no_threads++)
            for (long k = 1;; k++, cases++) {
                int threads = living_threads();
                pmlp_model_desc desc = net_desc(NULL);
                pmlp_model *model = NULL;
                pmlp_error error = {0};
                pmlp_trainer *trainer = (void *)&error;
                test_memory memory;
                test_memory_init(&memory, 0);
                pmlp_trainer_desc how = net_how(workers, no_threads);
                how.allocator = memory.allocator;
                CHECK(pmlp_model_create(&desc, &model, NULL) == PMLP_OK, "no model");
                mutex_inits = 0, mutex_fail_at = k;
                const pmlp_result result = pmlp_trainer_create(model, &how, &trainer, &error);
                const bool failed = mutex_inits >= k;
                mutex_fail_at = 0;
                if (failed) {
                    refused("a mutex fails", result, PMLP_ERROR_THREAD, &error, "mutex");
                    CHECK(!trainer, "*trainer is not NULL");
                } else CHECK(result == PMLP_OK, "%s", error.text);
                pmlp_trainer_destroy(trainer);
                CHECK(word_of(model) == net_words[0], "a failed create changed the weights");
                pmlp_model_destroy(model);
                CHECK(memory.blocks == 0, "%ld blocks leak", memory.blocks);
                CHECK(all_joined(threads), "threads are left over");
                if (!failed) break;
            }
    for (long k = 1;; k++, cases++) {
        pmlp_group groups[2];
        pmlp_error error = {0};
        test_memory memory;
        test_memory_init(&memory, 0);
        mutex_inits = 0, mutex_fail_at = k;
        const pmlp_result result = pmlp_thread_groups_create(2, &memory.allocator, groups, &error);
        const bool failed = mutex_inits >= k;
        mutex_fail_at = 0;
        if (failed) refused("a group's mutex", result, PMLP_ERROR_MEMORY, &error, "a group");
        else CHECK(result == PMLP_OK, "%s", error.text);
        pmlp_thread_groups_destroy(groups);
        CHECK(memory.blocks == 0, "%ld blocks leak", memory.blocks);
        if (!failed) break;
    }
    CHECK(cases >= 10, "only %ld cases", cases);
    SAY("the k-th mutex or condition cannot be made: refused, nothing is left, %s cases",
        test_count(cases));
}

#ifdef __linux__
/* In the place of the C library's: a machine of which this process may use cores 1 and 3. */
static int cores_fail, cores_set[8], cores_count; /* the caller's thread, worker 0, is not bound */

int sched_getaffinity(int thread, size_t bytes, unsigned long *cores);
int sched_setaffinity(int thread, size_t bytes, const unsigned long *cores);
int sched_getaffinity(int thread, size_t bytes, unsigned long *cores) {
    (void)thread;
    memset(cores, 0, bytes);
    cores[0] = cores_fail == 2 ? 0 : 10;
    return cores_fail == 1 ? -1 : 0;
}
int sched_setaffinity(int thread, size_t bytes, const unsigned long *cores) {
    (void)thread, (void)bytes;
    if (cores_fail == 3) return -1;
    cores_set[cores_count++ & 7] = (int)cores[0];
    return 0;
}

static void note_warning(pmlp_log_level level, const char *text, void *user) {
    if (level == PMLP_LOG_WARNING) snprintf(user, 200, "%s", text);
}

TEST(cores) {
    for (cores_fail = 0; cores_fail <= 3; cores_fail++) {
        pmlp_model_desc desc = net_desc(NULL);
        pmlp_trainer_desc how = net_how(3, false);
        pmlp_data batch = net_batch(0);
        pmlp_model *model = NULL;
        pmlp_trainer *trainer = NULL;
        pmlp_error error = {0};
        char warning[200] = "";
        how.bind_threads = true, how.logger.log = note_warning, how.logger.user = warning;
        cores_count = 0;
        CHECK(pmlp_model_create(&desc, &model, NULL) == PMLP_OK, "no model");
        CHECK(pmlp_trainer_create(model, &how, &trainer, &error) == PMLP_OK, "%s", error.text);
        CHECK(pmlp_trainer_step(trainer, &batch, NULL) == PMLP_OK, "no step");
        pmlp_trainer_destroy(trainer);
        CHECK(word_of(model) == net_words[1], "other weights");
        pmlp_model_destroy(model);
        if (cores_fail)
            CHECK(strcmp(warning, "worker 2: not bound to a core") == 0 && cores_count == 0,
                  "failure %d: \"%s\"", cores_fail, warning);
        else
            CHECK(!warning[0] && cores_count == 2 && cores_set[0] == 8 && cores_set[1] == 2,
                  "%d calls: %d, %d; \"%s\"", cores_count, cores_set[0], cores_set[1], warning);
    }
    SAY("workers bound to the cores that there are, in turn; where that fails, a warning");
}
#endif

/* --- (c) bad use: descs --------------------------------------------------------------------------- */

/* Refuses what no machine has, so that absurd sizes are asked for in vain. */
static void *capped_alloc(size_t bytes, void *user) {
    return bytes > (size_t)64 << 20 ? NULL : test_alloc(bytes, user);
}

/* Half an allocator. */
static void *no_alloc(size_t bytes, void *user) { return (void)bytes, (void)user, NULL; }
static void no_free(void *pointer, void *user) { (void)pointer, (void)user; }

static void capped_memory(test_memory *memory) {
    test_memory_init(memory, 0);
    memory->allocator.alloc = capped_alloc;
}

static const float not_a_number = (float)NAN, endless = (float)INFINITY;

static void bad_model(const pmlp_model_desc *desc, pmlp_result want, const char *thing,
                      const char *what) {
    test_memory memory;
    pmlp_model_desc used;
    pmlp_error error = {0};
    pmlp_model *model = (void *)&error;
    capped_memory(&memory);
    if (desc) {
        used = *desc;
        if (!used.allocator.alloc && !used.allocator.free) used.allocator = memory.allocator;
    }
    pmlp_result result = pmlp_model_create(desc ? &used : NULL, &model, &error);
    /* sizes beyond size_t may count as a bad argument or as too much memory */
    if (want == PMLP_ERROR_MEMORY && result == PMLP_ERROR_ARGUMENT) want = result;
    refused(what, result, want, &error, thing);
    CHECK(!model, "%s: *model is not NULL", what);
    CHECK(memory.blocks == 0, "%s: leaks", what);
    model = (void *)&error;
    CHECK(pmlp_model_create(desc ? &used : NULL, &model, NULL) == result && !model,
          "%s: another result without an error to fill", what);
}

#define BAD_MODEL(change, want, thing)                                                         \
    do {                                                                                       \
        pmlp_model_desc desc = net_desc(NULL);                                                 \
        change;                                                                                \
        bad_model(&desc, want, thing, #change);                                                \
    } while (0)

TEST(bad_models) {
    const int zero[] = {4, 0, 3}, negative[] = {4, 5, -3}, no_input[] = {0, 3};
    const int huge[] = {INT32_MAX, INT32_MAX, INT32_MAX}, tall[] = {3, INT32_MAX}, wide[] = {INT32_MAX, 3};
    const pmlp_activation strange[] = {PMLP_RELU, (pmlp_activation)77};
    const pmlp_activation negative_ones[] = {PMLP_RELU, (pmlp_activation)-1};
    pmlp_error error = {0};
    BAD_MODEL(desc.layers = 0, PMLP_ERROR_ARGUMENT, "layers");
    BAD_MODEL(desc.layers = -1, PMLP_ERROR_ARGUMENT, "layers");
    BAD_MODEL(desc.layers = (1 << 20) + 1, PMLP_ERROR_ARGUMENT, "layers");
    BAD_MODEL(desc.sizes = NULL, PMLP_ERROR_ARGUMENT, "sizes");
    BAD_MODEL((desc.layers = 2, desc.sizes = zero), PMLP_ERROR_ARGUMENT, "sizes");
    BAD_MODEL((desc.layers = 2, desc.sizes = negative), PMLP_ERROR_ARGUMENT, "sizes");
    BAD_MODEL((desc.layers = 1, desc.sizes = no_input), PMLP_ERROR_ARGUMENT, "sizes");
    BAD_MODEL((desc.layers = 2, desc.sizes = huge), PMLP_ERROR_MEMORY, "");
    BAD_MODEL((desc.layers = 1, desc.sizes = tall), PMLP_ERROR_MEMORY, "");
    BAD_MODEL((desc.layers = 1, desc.sizes = wide), PMLP_ERROR_MEMORY, "");
    BAD_MODEL(desc.hidden = PMLP_ACTIVATION_COUNT, PMLP_ERROR_ARGUMENT, "hidden");
    BAD_MODEL(desc.output = (pmlp_activation)99, PMLP_ERROR_ARGUMENT, "output");
    BAD_MODEL((desc.layers = 2, desc.activations = strange), PMLP_ERROR_ARGUMENT, "activations");
    BAD_MODEL((desc.layers = 2, desc.activations = negative_ones), PMLP_ERROR_ARGUMENT,
              "activations[1]: -1");
    BAD_MODEL(desc.hidden = (pmlp_activation)-1, PMLP_ERROR_ARGUMENT, "hidden: -1");
    BAD_MODEL(desc.output = (pmlp_activation)-1, PMLP_ERROR_ARGUMENT, "output: -1");
    BAD_MODEL(desc.loss = PMLP_LOSS_COUNT, PMLP_ERROR_ARGUMENT, "loss");
    BAD_MODEL(desc.loss = (pmlp_loss)-1, PMLP_ERROR_ARGUMENT, "loss: -1");
    BAD_MODEL(desc.init = (pmlp_init)99, PMLP_ERROR_ARGUMENT, "init");
    BAD_MODEL(desc.init = (pmlp_init)-1, PMLP_ERROR_ARGUMENT, "init: -1");
    BAD_MODEL(desc.allocator.alloc = no_alloc, PMLP_ERROR_ARGUMENT, "allocator");
    BAD_MODEL(desc.allocator.free = no_free, PMLP_ERROR_ARGUMENT, "allocator");
    bad_model(NULL, PMLP_ERROR_ARGUMENT, "desc", "no desc");
    pmlp_model_desc good = net_desc(NULL);
    refused("nowhere to put it", pmlp_model_create(&good, NULL, &error), PMLP_ERROR_ARGUMENT, &error,
            "model");
    pmlp_model_destroy(NULL);
    SAY("models: bad descs refused, %s checks", test_count(test_run.checks));
}

#define NULL_CALL(call, thing)                                                                 \
    do {                                                                                       \
        pmlp_error error = {0};                                                                \
        refused(#call, call, PMLP_ERROR_ARGUMENT, &error, thing);                              \
    } while (0)

TEST(null_arguments) {
    pmlp_model_desc desc = net_desc(NULL);
    pmlp_schedule_desc plan = {.workers = 2};
    pmlp_trainer_desc how = net_how(2, true);
    pmlp_data data = net_data();
    pmlp_model *model = NULL, *clone = NULL;
    pmlp_schedule *schedule = NULL, *lowered = NULL;
    pmlp_trainer *trainer = NULL;
    pmlp_params params;
    pmlp_simulation simulation;
    pmlp_verify_report report;
    uint64_t word;
    pmlp_cut cuts[WORKERS];
    int count = 5;
    double costs[LAYERS];
    float y[ROWS * CLASSES];
    if (!CHECK(pmlp_model_create(&desc, &model, NULL) == PMLP_OK, "no model")) return;
    if (!CHECK(pmlp_schedule_create(&plan, &schedule, NULL) == PMLP_OK, "no schedule")) return;
    NULL_CALL(pmlp_model_params(NULL, 0, &params, &error), "model");
    NULL_CALL(pmlp_model_params(model, 0, NULL, &error), "params");
    NULL_CALL(pmlp_model_params(model, -1, &params, &error), "layer");
    NULL_CALL(pmlp_model_params(model, LAYERS, &params, &error), "layer");
    NULL_CALL(pmlp_model_hash(NULL, &word, &error), "model");
    NULL_CALL(pmlp_model_hash(model, NULL, &error), "hash");
    NULL_CALL(pmlp_model_clone(NULL, &clone, &error), "model");
    NULL_CALL(pmlp_model_clone(model, NULL, &error), "clone");
    NULL_CALL(pmlp_model_predict(NULL, net_x, 1, y, &error), "model");
    NULL_CALL(pmlp_model_predict(model, NULL, 1, y, &error), "x");
    NULL_CALL(pmlp_model_predict(model, net_x, 1, NULL, &error), "y");
    NULL_CALL(pmlp_partition(NULL, 2, false, NULL, cuts, NULL, &error), "model");
    NULL_CALL(pmlp_partition(model, 2, false, NULL, NULL, NULL, &error), "cuts");
    NULL_CALL(pmlp_partition(model, 0, false, NULL, cuts, NULL, &error), "stages");
    NULL_CALL(pmlp_measure_layers(NULL, &how, costs, &error), "model");
    NULL_CALL(pmlp_measure_layers(model, NULL, costs, &error), "desc");
    NULL_CALL(pmlp_measure_layers(model, &how, NULL, &error), "costs");
    NULL_CALL(pmlp_schedule_create(NULL, &lowered, &error), "desc");
    NULL_CALL(pmlp_schedule_create(&plan, NULL, &error), "schedule");
    NULL_CALL(pmlp_schedule_parse(NULL, 3, NULL, &lowered, &error), "text");
    NULL_CALL(pmlp_schedule_parse("0F0", 3, NULL, NULL, &error), "schedule");
    NULL_CALL(pmlp_schedule_lower(NULL, &lowered, &error), "schedule");
    NULL_CALL(pmlp_schedule_check(NULL, 0, NULL, &error), "schedule");
    NULL_CALL(pmlp_schedule_check(schedule, -1, NULL, &error), "slots");
    NULL_CALL(pmlp_schedule_simulate(NULL, NULL, NULL, &simulation, &error), "schedule");
    NULL_CALL(pmlp_schedule_draw(NULL, NULL, 0, NULL, 0, NULL, &error), "schedule");
    NULL_CALL(pmlp_schedule_draw(schedule, NULL, -1, NULL, 0, NULL, &error), "unit");
    NULL_CALL(pmlp_trainer_create(NULL, &how, &trainer, &error), "model");
    NULL_CALL(pmlp_trainer_create(model, &how, NULL, &error), "trainer");
    NULL_CALL(pmlp_trainer_create(model, NULL, &trainer, &error), "desc");
    NULL_CALL(pmlp_verify(NULL, &how, &data, 1, &report, &error), "model");
    NULL_CALL(pmlp_verify(model, NULL, &data, 1, &report, &error), "desc");
    NULL_CALL(pmlp_verify(model, &how, NULL, 1, &report, &error), "data");
    NULL_CALL(pmlp_verify(model, &how, &data, 0, &report, &error), "steps");
    NULL_CALL(pmlp_verify(model, &how, &data, 1, NULL, &error), "report");
    pmlp_ceiling_report ceiling;
    NULL_CALL(pmlp_ceiling(NULL, &how, NULL, &ceiling, &error), "model");
    NULL_CALL(pmlp_ceiling(model, NULL, NULL, &ceiling, &error), "desc");
    NULL_CALL(pmlp_ceiling(model, &how, NULL, NULL, &error), "report");
    const pmlp_allocator half = {no_alloc, NULL, NULL};
    pmlp_group groups[2];
    pmlp_position position;
    NULL_CALL(pmlp_schedule_parse("0F0", 3, &half, &lowered, &error), "allocator");
    NULL_CALL(pmlp_model_parse("x", 1, &half, &clone, &error), "allocator");
    NULL_CALL(pmlp_model_load("x", &half, &clone, &error), "allocator");
    NULL_CALL(pmlp_thread_groups_create(2, &half, groups, &error), "allocator");
    NULL_CALL(pmlp_schedule_lower(schedule, NULL, &error), "lowered");
    NULL_CALL(pmlp_model_load_weights(model, NULL, &error), "path");
    how.momentum = -1;
    NULL_CALL(pmlp_measure_layers(model, &how, costs, &error), "momentum");
    NULL_CALL(pmlp_ceiling(model, &how, NULL, &ceiling, &error), "momentum");
    how.momentum = 0;
    CHECK(pmlp_partition(model, 1, false, NULL, NULL, NULL, NULL) == PMLP_OK, "one stage, no cuts");
    CHECK(pmlp_schedule_workers(NULL) == 0 && pmlp_schedule_stages(NULL) == 0 &&
              pmlp_schedule_microbatches(NULL) == 0 && !pmlp_schedule_is_synchronous(NULL) &&
              pmlp_schedule_stage_worker(NULL, 0) == -1 &&
              pmlp_schedule_stage_worker(schedule, -1) == -1,
          "of no schedule");
    CHECK(!pmlp_schedule_actions(NULL, 0, &count) && count == 0 &&
              !pmlp_schedule_actions(schedule, -1, &count) && count == 0,
          "actions of nobody");
    CHECK(pmlp_model_param_count(NULL) == 0 && !pmlp_cpu_backend_isa(NULL) &&
              !pmlp_cpu_backend_isa("vax"),
          "of no model, of no instruction set");
    CHECK(!pmlp_trainer_error(NULL) && !pmlp_trainer_schedule(NULL) &&
              pmlp_trainer_query_desc(NULL).workers == 0 &&
              pmlp_trainer_position(NULL, &position) == PMLP_ERROR_ARGUMENT,
          "of no trainer");
    CHECK(pmlp_schedule_print(NULL, NULL, 0, NULL) == PMLP_ERROR_ARGUMENT, "print nothing");
    CHECK(pmlp_schedule_print(schedule, NULL, 5, NULL) == PMLP_ERROR_ARGUMENT, "print nowhere");
    CHECK(!pmlp_schedule_actions(schedule, 2, &count) && count == 0, "actions of worker 2 of 2");
    CHECK(pmlp_schedule_stage_worker(schedule, 9) == -1, "stage 9 has a worker");
    CHECK(pmlp_model_predict(model, net_x, 1, y, NULL) == PMLP_OK, "the model is broken");
    CHECK(word_of(model) == net_words[0], "the model's weights changed");
    for (int i = -1; i <= PMLP_RESULT_COUNT; i++)
        CHECK(*pmlp_result_name((pmlp_result)i) && *pmlp_result_text((pmlp_result)i), "result %d", i);
    pmlp_schedule_destroy(schedule);
    pmlp_schedule_destroy(NULL);
    pmlp_model_destroy(model);
    pmlp_trainer_destroy(NULL);
    pmlp_images_free(NULL);
    SAY("NULL and out of range: every argument of every function, %s checks",
        test_count(test_run.checks));
}

TEST(bad_schedules) {
    const pmlp_schedule_desc descs[] = {{.workers = -1},
                                        {.microbatches = -1},
                                        {.kind = PMLP_SCHEDULE_KIND_COUNT},
                                        {.kind = (pmlp_schedule_kind)-1},
                                        {.allocator = {.alloc = no_alloc}},
                                        {.virtual_stages = -1},
                                        {.kind = PMLP_SCHEDULE_GPIPE, .virtual_stages = 2},
                                        {.kind = PMLP_SCHEDULE_ZB_V, .virtual_stages = 3},
                                        {.kind = PMLP_SCHEDULE_ZB_V, .virtual_stages = 1},
                                        {.kind = PMLP_SCHEDULE_LOOPED_BFS, .virtual_stages = INT32_MAX},
                                        {.kind = PMLP_SCHEDULE_INTERLEAVED, .workers = 2, .microbatches = 5},
                                        {.kind = PMLP_SCHEDULE_DUALPIPE_V, .workers = 2, .microbatches = 3},
                                        {.kind = PMLP_SCHEDULE_PIPEDREAM_2BW, .workers = 3, .microbatches = 2},
                                        {.kind = PMLP_SCHEDULE_PIPEDREAM, .batches = -1},
                                        {.kind = PMLP_SCHEDULE_PIPEDREAM, .batches = INT32_MAX},
                                        {.batches = 2},
                                        {.kind = PMLP_SCHEDULE_AUTO, .memory = -1},
                                        {.kind = PMLP_SCHEDULE_AUTO, .memory = (double)NAN},
                                        {.kind = PMLP_SCHEDULE_AUTO, .memory = 0.5},
                                        {.workers = INT32_MAX, .microbatches = INT32_MAX},
                                        {.workers = INT32_MAX},
                                        {.microbatches = INT32_MAX}};
    const char *const things[] = {"workers", "microbatches", "kind", "kind", "allocator",
                                  "virtual_stages", "virtual_stages", "virtual_stages",
                                  "virtual_stages", "virtual_stages", "microbatches", "microbatches",
                                  "microbatches", "batches", "batches", "batches", "memory", "memory",
                                  "memory", "", "", ""};
    for (int i = 0; i < 22; i++) {
        test_memory memory;
        pmlp_error error = {0};
        pmlp_schedule *schedule = (void *)&error;
        pmlp_schedule_desc desc = descs[i];
        pmlp_result want = i < 19 ? PMLP_ERROR_ARGUMENT : PMLP_ERROR_MEMORY;
        char what[32];
        capped_memory(&memory);
        if (!desc.allocator.alloc) desc.allocator = memory.allocator;
        alarm(CASE_SECONDS);
        snprintf(what, sizeof what, "schedule desc %d", i);
        pmlp_result result = pmlp_schedule_create(&desc, &schedule, &error);
        if (want == PMLP_ERROR_MEMORY && result == PMLP_ERROR_ARGUMENT) want = result;
        refused(what, result, want, &error, things[i]);
        CHECK(!schedule && memory.blocks == 0, "%s leaves something behind", what);
    }
    SAY("schedules: bad and absurd descs refused");
}

/* The model must stay as it was, and free for a good trainer. */
static void bad_trainer(const pmlp_trainer_desc *desc, pmlp_result want, const char *thing,
                        const char *what) {
    test_memory memory;
    pmlp_model_desc net = net_desc(NULL);
    pmlp_trainer_desc used = *desc, good = net_how(2, false);
    pmlp_model *model = NULL;
    pmlp_error error = {0};
    pmlp_trainer *trainer = (void *)&error;
    pmlp_data batch = net_batch(0);
    capped_memory(&memory);
    if (!used.allocator.alloc && !used.allocator.free) used.allocator = memory.allocator;
    CHECK(pmlp_model_create(&net, &model, NULL) == PMLP_OK, "no model");
    pmlp_result result = pmlp_trainer_create(model, &used, &trainer, &error);
    if (want == PMLP_ERROR_MEMORY && result == PMLP_ERROR_ARGUMENT) want = result;
    refused(what, result, want, &error, thing);
    CHECK(!trainer, "%s: *trainer is not NULL", what);
    if (result == PMLP_OK) pmlp_trainer_destroy(trainer);
    CHECK(memory.blocks == 0, "%s: %ld blocks leak", what, memory.blocks);
    trainer = (void *)&error;
    CHECK(pmlp_trainer_create(model, &used, &trainer, NULL) == result, "%s: needs an error", what);
    if (result == PMLP_OK) pmlp_trainer_destroy(trainer);
    CHECK(pmlp_trainer_create(model, &good, &trainer, &error) == PMLP_OK, "%s: %s", what, error.text);
    CHECK(pmlp_trainer_step(trainer, &batch, NULL) == PMLP_OK, "%s, then a step", what);
    pmlp_trainer_destroy(trainer);
    CHECK(word_of(model) == net_words[1], "%s: then other weights", what);
    pmlp_model_destroy(model);
}

#define BAD_TRAINER(change, want, thing)                                                       \
    do {                                                                                       \
        pmlp_trainer_desc desc = net_how(2, false);                                            \
        change;                                                                                \
        alarm(CASE_SECONDS);                                                                   \
        bad_trainer(&desc, want, thing, #change);                                              \
    } while (0)

/* Costs with one thing wrong each; names what of the nine it is. */
enum { BAD_COSTS = 27 };
static pmlp_costs bad_costs(int which, char *what) {
    static double arrays[3][4] = {{1, -1, 1, 1}, {1, NAN, 1, 1}, {INFINITY, 1, 1, 1}};
    static const char *const names[] = {"f", "i", "w", "u", "message_bytes", "held", "ahead",
                                        "latency", "per_byte"};
    const double values[] = {-1, NAN, INFINITY};
    pmlp_costs c = {0};
    const double **of_stage[] = {&c.f, &c.i, &c.w, &c.u, &c.message_bytes, &c.held,
                                &c.ahead};
    if (which / 3 < 7) *of_stage[which / 3] = arrays[which % 3];
    if (which / 3 == 7) c.latency = values[which % 3];
    if (which / 3 == 8) c.per_byte = values[which % 3];
    sprintf(what, "costs with a bad %s, %g", names[which / 3], values[which % 3]);
    return c;
}

TEST(bad_costs) {
    pmlp_schedule_desc plan = {.workers = 3, .microbatches = 4}; /* message_bytes has 2 */
    pmlp_schedule *schedule = NULL, *out = NULL;
    pmlp_timeline *timeline = NULL;
    pmlp_simulation simulation;
    pmlp_model_desc desc = net_desc(NULL);
    pmlp_model *model = NULL;
    pmlp_trainer_desc how = net_how(3, true);
    pmlp_ceiling_report report;
    char what[60];
    CHECK(pmlp_schedule_create(&plan, &schedule, NULL) == PMLP_OK, "no schedule");
    CHECK(pmlp_model_create(&desc, &model, NULL) == PMLP_OK, "no model");
    plan.kind = PMLP_SCHEDULE_AUTO;
    for (int i = 0; i < BAD_COSTS; i++) {
        pmlp_costs costs = bad_costs(i, what);
#define BAD_COST(call)                                                                         \
    do {                                                                                       \
        pmlp_error error = {0};                                                                \
        refused(what, call, PMLP_ERROR_ARGUMENT, &error, "cost");                              \
    } while (0)
        BAD_COST(pmlp_schedule_simulate(schedule, &costs, NULL, &simulation, &error));
        BAD_COST(pmlp_schedule_timeline(schedule, &costs, &timeline, &error));
        BAD_COST(pmlp_schedule_draw(schedule, &costs, 0, NULL, 0, NULL, &error));
        BAD_COST(pmlp_schedule_lower_in_order(schedule, &costs, &out, &error));
        BAD_COST(pmlp_schedule_put_off(schedule, &costs, 1, &out, &error));
        BAD_COST(pmlp_ceiling(model, &how, &costs, &report, &error));
        plan.costs = &costs;
        BAD_COST(pmlp_schedule_create(&plan, &out, &error));
        BAD_TRAINER((desc.schedule = PMLP_SCHEDULE_AUTO, desc.workers = 3, desc.costs = &costs),
                    PMLP_ERROR_ARGUMENT, "cost");
    }
    const double nothing[3] = {0};
    pmlp_costs free_costs = {.f = nothing, .i = nothing, .w = nothing};
    strcpy(what, "nothing costs anything");
    BAD_COST(pmlp_ceiling(model, &how, &free_costs, &report, &error));
    pmlp_model_destroy(model);
    pmlp_schedule_destroy(schedule);
    SAY("costs that are negative, infinite or no number: refused by all who take some, %s checks",
        test_count(test_run.checks));
}

/* Functions that are new to schedules: every argument. */
TEST(schedule_arguments) {
    const int workers[] = {0, 1, 1}, outside[] = {0, 2, 1}, below[] = {0, -1, 1};
    const pmlp_allocator half = {no_alloc, NULL, NULL};
    pmlp_schedule_desc plan = {.workers = 2, .microbatches = 3};
    pmlp_schedule *s = NULL, *made = NULL, *lowered = NULL, *out = NULL;
    pmlp_timeline *t = NULL;
    pmlp_worker_time time;
    pmlp_error error = {0};
    int count = 7;
    CHECK(pmlp_schedule_create(&plan, &s, NULL) == PMLP_OK, "no schedule");
    CHECK(pmlp_schedule_empty(2, 3, 4, workers, NULL, &made, &error) == PMLP_OK, "%s", error.text);
    CHECK(pmlp_schedule_lower(s, &lowered, NULL) == PMLP_OK, "lower");
    NULL_CALL(pmlp_schedule_empty(0, 3, 4, workers, NULL, &out, &error), "worker");
    NULL_CALL(pmlp_schedule_empty(-1, 3, 4, workers, NULL, &out, &error), "worker");
    NULL_CALL(pmlp_schedule_empty(INT32_MAX, 3, 4, workers, NULL, &out, &error), "worker");
    NULL_CALL(pmlp_schedule_empty(2, 0, 4, workers, NULL, &out, &error), "stage");
    NULL_CALL(pmlp_schedule_empty(2, INT32_MAX, 4, workers, NULL, &out, &error), "stage");
    NULL_CALL(pmlp_schedule_empty(2, 3, 0, workers, NULL, &out, &error), "micro-batch");
    NULL_CALL(pmlp_schedule_empty(2, 3, INT32_MAX, workers, NULL, &out, &error), "micro-batch");
    NULL_CALL(pmlp_schedule_empty(2, 3, 4, NULL, NULL, &out, &error), "stage_worker");
    NULL_CALL(pmlp_schedule_empty(2, 3, 4, outside, NULL, &out, &error), "stage_worker");
    NULL_CALL(pmlp_schedule_empty(2, 3, 4, below, NULL, &out, &error), "stage_worker");
    NULL_CALL(pmlp_schedule_empty(2, 3, 4, workers, &half, &out, &error), "allocator");
    NULL_CALL(pmlp_schedule_empty(2, 3, 4, workers, NULL, NULL, &error), "schedule");
    CHECK(!out, "something was made");
    NULL_CALL(pmlp_schedule_append(NULL, PMLP_OP_F, 0, 0, &error), "schedule");
    NULL_CALL(pmlp_schedule_append(made, PMLP_OP_NONE, 0, 0, &error), "op");
    NULL_CALL(pmlp_schedule_append(made, PMLP_OP_COUNT, 0, 0, &error), "op");
    NULL_CALL(pmlp_schedule_append(made, (pmlp_op)-1, 0, 0, &error), "op");
    NULL_CALL(pmlp_schedule_append(made, (pmlp_op)99, 0, 0, &error), "op");
    NULL_CALL(pmlp_schedule_append(made, PMLP_OP_F, -1, 0, &error), "stage");
    NULL_CALL(pmlp_schedule_append(made, PMLP_OP_U, 3, 0, &error), "stage");
    NULL_CALL(pmlp_schedule_append(made, PMLP_OP_F, 0, -1, &error), "microbatch");
    NULL_CALL(pmlp_schedule_append(made, PMLP_OP_W, 0, 4, &error), "microbatch");
    NULL_CALL(pmlp_schedule_append(made, PMLP_OP_SEND_F, 2, 0, &error), "stage");
    NULL_CALL(pmlp_schedule_append(made, PMLP_OP_RECV_B, 2, 0, &error), "stage");
    NULL_CALL(pmlp_schedule_append(made, PMLP_OP_RECV_F, 0, 0, &error), "stage");
    NULL_CALL(pmlp_schedule_append(made, PMLP_OP_SEND_B, 0, 0, &error), "stage");
    CHECK(pmlp_schedule_append(made, PMLP_OP_U, 2, -77, &error) == PMLP_OK, "U: %s", error.text);
    const pmlp_action *u = pmlp_schedule_actions(made, 1, &count);
    CHECK(count == 1 && u[0].op == PMLP_OP_U && u[0].microbatch == -1, "%d actions", count);
    CHECK(!pmlp_schedule_actions(made, 0, &count) || count == 0, "refused, but appended");
    refused("a schedule with holes", pmlp_schedule_check(made, 0, NULL, &error), PMLP_ERROR_SCHEDULE,
            &error, "");
    NULL_CALL(pmlp_schedule_lower_in_order(NULL, NULL, &out, &error), "schedule");
    NULL_CALL(pmlp_schedule_lower_in_order(s, NULL, NULL, &error), "lowered");
    refused("lowered twice", pmlp_schedule_lower_in_order(lowered, NULL, &out, &error),
            PMLP_ERROR_SCHEDULE, &error, "lowered");
    NULL_CALL(pmlp_schedule_put_off(NULL, NULL, 1, &out, &error), "schedule");
    NULL_CALL(pmlp_schedule_put_off(s, NULL, 1, NULL, &error), "out");
    NULL_CALL(pmlp_schedule_put_off(s, NULL, 0, &out, &error), "most");
    NULL_CALL(pmlp_schedule_put_off(s, NULL, -1, &out, &error), "most");
    refused("put off too late", pmlp_schedule_put_off(lowered, NULL, 1, &out, &error),
            PMLP_ERROR_SCHEDULE, &error, "lowered");
    NULL_CALL(pmlp_schedule_replay(NULL, PMLP_TRANSPORT_SLOTS, 1, NULL, &error), "schedule");
    NULL_CALL(pmlp_schedule_replay(s, PMLP_TRANSPORT_COUNT, 1, NULL, &error), "transport");
    NULL_CALL(pmlp_schedule_replay(s, (pmlp_transport)-1, 1, NULL, &error), "transport");
    NULL_CALL(pmlp_schedule_replay(s, (pmlp_transport)99, 1, NULL, &error), "transport");
    NULL_CALL(pmlp_schedule_replay(s, PMLP_TRANSPORT_SLOTS, -1, NULL, &error), "slots");
    NULL_CALL(pmlp_schedule_timeline(NULL, NULL, &t, &error), "schedule");
    NULL_CALL(pmlp_schedule_timeline(s, NULL, NULL, &error), "timeline");
    CHECK(!t && !out, "something was made");
    CHECK(pmlp_schedule_timeline(s, NULL, &t, &error) == PMLP_OK, "%s", error.text);
    NULL_CALL(pmlp_timeline_draw(NULL, 0, NULL, 0, NULL, &error), "timeline");
    NULL_CALL(pmlp_timeline_draw(t, -1, NULL, 0, NULL, &error), "unit");
    NULL_CALL(pmlp_timeline_draw(t, (double)NAN, NULL, 0, NULL, &error), "unit");
    NULL_CALL(pmlp_timeline_draw(t, 1e-9, NULL, 0, NULL, &error), "more than a million cells");
    NULL_CALL(pmlp_timeline_draw(t, 0, NULL, 5, NULL, &error), "buffer");
    CHECK(pmlp_timeline_worker(t, -1, &time) == PMLP_ERROR_ARGUMENT &&
              pmlp_timeline_worker(t, 2, &time) == PMLP_ERROR_ARGUMENT &&
              pmlp_timeline_worker(t, 0, NULL) == PMLP_ERROR_ARGUMENT &&
              pmlp_timeline_worker(NULL, 0, &time) == PMLP_ERROR_ARGUMENT,
          "times of worker -1, 2, nobody");
    CHECK(!pmlp_timeline_spans(t, 2, &count) && count == 0, "spans of worker 2 of 2");
    CHECK(!pmlp_timeline_spans(NULL, 0, &count) && count == 0, "spans of nothing");
    CHECK(pmlp_timeline_workers(NULL) == 0 && pmlp_timeline_makespan(NULL) == 0, "of nothing");
    CHECK(pmlp_schedule_versions(NULL, 0) == 0 && pmlp_schedule_versions(s, -1) == 0 &&
              pmlp_schedule_versions(s, 2) == 0 && pmlp_schedule_versions(s, 1) == 1,
          "versions");
    CHECK(pmlp_schedule_kind_of(NULL) == PMLP_SCHEDULE_DEFAULT &&
              pmlp_schedule_kind_of("") == PMLP_SCHEDULE_DEFAULT &&
              pmlp_schedule_kind_of("1F1B") == PMLP_SCHEDULE_DEFAULT,
          "names of no kind");
    for (int i = -1; i <= PMLP_SCHEDULE_KIND_COUNT; i++) {
        const char *name = pmlp_schedule_kind_name((pmlp_schedule_kind)i);
        const bool is = i >= 0 && i < PMLP_SCHEDULE_KIND_COUNT;
        CHECK(is ? (int)pmlp_schedule_kind_of(name) == i : !strcmp(name, "?"), "%d: %s", i, name);
    }
    for (int i = -1; i <= PMLP_TRANSPORT_COUNT; i++)
        CHECK(*pmlp_transport_name((pmlp_transport)i), "transport %d", i);
    CHECK(!strcmp(pmlp_transport_name((pmlp_transport)99), "?"), "transport 99 has a name");
    pmlp_timeline_destroy(t);
    pmlp_timeline_destroy(NULL);
    pmlp_schedule_destroy(s);
    pmlp_schedule_destroy(made);
    pmlp_schedule_destroy(lowered);
    SAY("empty, append, lower_in_order, put_off, replay, timelines: every bad argument, %s checks",
        test_count(test_run.checks));
}

TEST(bad_trainers) {
    BAD_TRAINER(desc.workers = -1, PMLP_ERROR_ARGUMENT, "workers");
    BAD_TRAINER(desc.workers = LAYERS + 1, PMLP_ERROR_SHAPE, "layers");
    BAD_TRAINER(desc.workers = INT32_MAX, PMLP_ERROR_ARGUMENT, "workers");
    BAD_TRAINER(desc.microbatches = -4, PMLP_ERROR_ARGUMENT, "microbatches");
    BAD_TRAINER(desc.microbatches = INT32_MAX, PMLP_ERROR_MEMORY, "");
    BAD_TRAINER(desc.batch = SIZE_MAX, PMLP_ERROR_MEMORY, "");
    BAD_TRAINER(desc.batch = SIZE_MAX / 16, PMLP_ERROR_MEMORY, "");
    BAD_TRAINER(desc.batch = (size_t)1 << 30, PMLP_ERROR_MEMORY, "");
    BAD_TRAINER(desc.schedule = PMLP_SCHEDULE_KIND_COUNT, PMLP_ERROR_ARGUMENT, "schedule");
    BAD_TRAINER(desc.schedule = (pmlp_schedule_kind)-1, PMLP_ERROR_ARGUMENT, "schedule");
    BAD_TRAINER(desc.slots = -1, PMLP_ERROR_ARGUMENT, "slots");
    BAD_TRAINER(desc.optimizer = PMLP_OPTIMIZER_COUNT, PMLP_ERROR_ARGUMENT, "optimizer");
    BAD_TRAINER(desc.optimizer = (pmlp_optimizer)-1, PMLP_ERROR_ARGUMENT, "optimizer");
    BAD_TRAINER(desc.bad_numbers = (pmlp_bad_numbers)-1, PMLP_ERROR_ARGUMENT, "bad_numbers");
    BAD_TRAINER(desc.bad_numbers = PMLP_BAD_NUMBERS_COUNT, PMLP_ERROR_ARGUMENT, "bad_numbers");
    BAD_TRAINER(desc.deadline = 2e9, PMLP_ERROR_ARGUMENT, "deadline");
    BAD_TRAINER((desc.schedule = PMLP_SCHEDULE_PIPEDREAM, desc.clip_norm = 0,
                 desc.microbatches = (1 << 17) + 1),
                PMLP_ERROR_ARGUMENT, "microbatches: is not in 1 .. 131072");
    BAD_TRAINER(desc.learning_rate = -0.1f, PMLP_ERROR_ARGUMENT, "learning_rate");
    BAD_TRAINER(desc.learning_rate = not_a_number, PMLP_ERROR_ARGUMENT, "learning_rate");
    BAD_TRAINER(desc.learning_rate = endless, PMLP_ERROR_ARGUMENT, "learning_rate");
    BAD_TRAINER(desc.momentum = -0.5f, PMLP_ERROR_ARGUMENT, "momentum");
    BAD_TRAINER(desc.momentum = not_a_number, PMLP_ERROR_ARGUMENT, "momentum");
    BAD_TRAINER(desc.beta1 = 1, PMLP_ERROR_ARGUMENT, "beta1");
    BAD_TRAINER(desc.beta1 = not_a_number, PMLP_ERROR_ARGUMENT, "beta1");
    BAD_TRAINER(desc.beta2 = -0.1f, PMLP_ERROR_ARGUMENT, "beta2");
    BAD_TRAINER(desc.beta2 = 1.5f, PMLP_ERROR_ARGUMENT, "beta2");
    BAD_TRAINER(desc.epsilon = -1, PMLP_ERROR_ARGUMENT, "epsilon");
    BAD_TRAINER(desc.epsilon = not_a_number, PMLP_ERROR_ARGUMENT, "epsilon");
    BAD_TRAINER(desc.weight_decay = -1, PMLP_ERROR_ARGUMENT, "weight_decay");
    BAD_TRAINER(desc.weight_decay = endless, PMLP_ERROR_ARGUMENT, "weight_decay");
    BAD_TRAINER(desc.clip_norm = -1, PMLP_ERROR_ARGUMENT, "clip_norm");
    BAD_TRAINER(desc.clip_norm = not_a_number, PMLP_ERROR_ARGUMENT, "clip_norm");
    BAD_TRAINER(desc.allocator.alloc = no_alloc, PMLP_ERROR_ARGUMENT, "allocator");
    BAD_TRAINER(desc.virtual_stages = -1, PMLP_ERROR_ARGUMENT, "virtual_stages");
    BAD_TRAINER(desc.virtual_stages = INT32_MAX, PMLP_ERROR_ARGUMENT, "virtual_stages");
    BAD_TRAINER(desc.virtual_stages = 2, PMLP_ERROR_ARGUMENT, "virtual_stages"); /* 1F1B */
    BAD_TRAINER((desc.schedule = PMLP_SCHEDULE_ZB_V, desc.virtual_stages = 1), PMLP_ERROR_ARGUMENT,
                "virtual_stages");
    BAD_TRAINER((desc.schedule = PMLP_SCHEDULE_LOOPED_BFS, desc.virtual_stages = 3),
                PMLP_ERROR_SHAPE, "stages");
    BAD_TRAINER((desc.schedule = PMLP_SCHEDULE_ZB_V, desc.workers = 3), PMLP_ERROR_SHAPE, "stages");
    BAD_TRAINER((desc.schedule = PMLP_SCHEDULE_DUALPIPE_V), PMLP_ERROR_ARGUMENT, "microbatches");
    BAD_TRAINER((desc.schedule = PMLP_SCHEDULE_INTERLEAVED, desc.microbatches = 5),
                PMLP_ERROR_ARGUMENT, "microbatches");
    BAD_TRAINER(desc.trace = -1, PMLP_ERROR_ARGUMENT, "trace");
    BAD_TRAINER(desc.trace = INT32_MAX, PMLP_ERROR_ARGUMENT, "trace");
    BAD_TRAINER(desc.memory = -1, PMLP_ERROR_ARGUMENT, "memory");
    BAD_TRAINER(desc.memory = (double)NAN, PMLP_ERROR_ARGUMENT, "memory");
    BAD_TRAINER((desc.schedule = PMLP_SCHEDULE_AUTO, desc.memory = 1), PMLP_ERROR_ARGUMENT,
                "memory"); /* a byte, measured */
    SAY("trainers: numbers out of range refused, the model is as before, %s checks",
        test_count(test_run.checks));
}

TEST(bad_cuts) {
    const pmlp_cut falling[] = {{3, 0}, {2, 0}, {4, 0}}, twice[] = {{1, 0}, {1, 0}, {2, 0}};
    const pmlp_cut first[] = {{0, 0}, {2, 0}, {3, 0}}, beyond[] = {{1, 0}, {2, 0}, {LAYERS, 0}};
    const pmlp_cut negative[] = {{-1, 0}, {2, 0}, {3, 0}}, odd[] = {{0, 3}, {2, 0}, {3, 0}};
    const pmlp_cut wide[] = {{0, 1 << 20}, {2, 0}, {3, 0}}, inside[] = {{1, 32}, {2, 0}, {3, 0}};
    const pmlp_cut below[] = {{0, -32}, {2, 0}, {3, 0}};
    BAD_TRAINER((desc.workers = 4, desc.cuts = falling), PMLP_ERROR_ARGUMENT, "cuts");
    BAD_TRAINER((desc.workers = 4, desc.cuts = twice), PMLP_ERROR_ARGUMENT, "cuts");
    BAD_TRAINER((desc.workers = 4, desc.cuts = first), PMLP_ERROR_ARGUMENT, "cuts");
    BAD_TRAINER((desc.workers = 4, desc.cuts = beyond), PMLP_ERROR_ARGUMENT, "cuts");
    BAD_TRAINER((desc.workers = 4, desc.cuts = negative), PMLP_ERROR_ARGUMENT, "cuts");
    BAD_TRAINER((desc.workers = 4, desc.cuts = odd), PMLP_ERROR_ARGUMENT, "cuts");
    BAD_TRAINER((desc.workers = 4, desc.cuts = wide), PMLP_ERROR_ARGUMENT, "cuts");
    BAD_TRAINER((desc.workers = 4, desc.cuts = inside), PMLP_ERROR_ARGUMENT, "cuts");
    BAD_TRAINER((desc.workers = 4, desc.cuts = below), PMLP_ERROR_ARGUMENT, "cuts");
    BAD_TRAINER((desc.workers = 4, desc.cuts = wide, desc.whole_layers = true), PMLP_ERROR_ARGUMENT,
                "cuts");
    SAY("cuts that fall, repeat, lie outside or inside a later layer are refused");
}

TEST(bad_tables) {
    pmlp_backend backend;
    pmlp_edges edges;
#define BAD_BACKEND(change, thing)                                                             \
    BAD_TRAINER((backend = *pmlp_cpu_backend(), change, desc.backend = &backend),              \
                PMLP_ERROR_ARGUMENT, thing)
#define BAD_EDGES(change, thing)                                                               \
    BAD_TRAINER((edges = *pmlp_thread_edges(), change, desc.edges = &edges),                   \
                PMLP_ERROR_ARGUMENT, thing)
    BAD_BACKEND(backend.abi++, "backend");
    BAD_BACKEND(backend.abi = 0, "backend");
    BAD_BACKEND(backend.size--, "backend");
    BAD_BACKEND(backend.size = 0, "backend");
    BAD_EDGES(edges.abi++, "edges");
    BAD_EDGES(edges.size++, "edges");
    BAD_EDGES(edges.transport = (pmlp_transport)-1, "transport");
    BAD_EDGES(edges.transport = PMLP_TRANSPORT_COUNT, "transport");
    BAD_EDGES(edges.transport = PMLP_TRANSPORT_GROUPED, "transport");
    BAD_EDGES(edges.abi = 0, "edges");
    BAD_EDGES(edges.size = 0, "edges");
    BAD_EDGES(edges.connect = NULL, "edges");
    BAD_EDGES(edges.disconnect = NULL, "edges");
    BAD_EDGES(edges.reset = NULL, "edges");
    BAD_EDGES(edges.send = NULL, "edges");
    BAD_EDGES(edges.receive = NULL, "edges");
#define NO_ENTRY(entry) BAD_BACKEND(backend.entry = NULL, "backend")
    NO_ENTRY(name);
    NO_ENTRY(open);
    NO_ENTRY(close);
    NO_ENTRY(alloc);
    NO_ENTRY(free);
    NO_ENTRY(row_floats);
    NO_ENTRY(layer_create);
    NO_ENTRY(layer_destroy);
    NO_ENTRY(write);
    NO_ENTRY(read);
    NO_ENTRY(input);
    NO_ENTRY(forward);
    NO_ENTRY(backward_input);
    NO_ENTRY(backward_weight);
    NO_ENTRY(loss);
    NO_ENTRY(gradient_squares);
    NO_ENTRY(update);
    NO_ENTRY(gradient);
    NO_ENTRY(synchronize);
    SAY("tables of another ABI, size or transport, or without an entry, are refused");
}

static void bad_custom(const char *text, pmlp_result want, const char *thing) {
    pmlp_schedule *schedule = NULL;
    pmlp_error error = {0};
    if (!CHECK(pmlp_schedule_parse(text, strlen(text), NULL, &schedule, &error) == PMLP_OK, "%s: %s",
               text, error.text))
        return;
    BAD_TRAINER((desc.custom = schedule, desc.microbatches = 0, desc.workers = 0), want, thing);
    pmlp_schedule_destroy(schedule);
}

/* What schedules, edges of a back end, images and simulated costs may not be. */
TEST(bad_odds_and_ends) {
    const double negative[] = {1, -1}, not_a_number[] = {1, NAN}, fine[] = {1, 2};
    const double *bad[] = {negative, not_a_number};
    pmlp_schedule_desc plan = {.workers = 2, .microbatches = 3};
    pmlp_schedule *schedule = NULL, *lowered = NULL, *twice = NULL;
    pmlp_edges edges = *pmlp_thread_edges();
    pmlp_backend backend = *pmlp_cpu_backend();
    pmlp_allocator half = {no_alloc, NULL, NULL};
    pmlp_images images;
    pmlp_error error = {0};
    if (!CHECK(pmlp_schedule_create(&plan, &schedule, &error) == PMLP_OK, "%s", error.text)) return;
    CHECK(pmlp_schedule_lower(schedule, &lowered, &error) == PMLP_OK, "%s", error.text);
    refused("lowered twice", pmlp_schedule_lower(lowered, &twice, &error), PMLP_ERROR_SCHEDULE, &error,
            "lowered");
    for (int b = 0; b < 2; b++)
        for (int which = 0; which < 4; which++) {
            pmlp_costs costs = {.f = fine, .i = fine, .w = fine, .u = fine};
            const double **of_stage[] = {&costs.f, &costs.i, &costs.w, &costs.u};
            *of_stage[which] = bad[b];
            refused("a bad cost", pmlp_schedule_simulate(schedule, &costs, NULL, NULL, &error),
                    PMLP_ERROR_ARGUMENT, &error, "costs");
        }
    pmlp_costs slow = {.latency = -1};
    refused("a bad transfer", pmlp_schedule_simulate(schedule, &slow, NULL, NULL, &error),
            PMLP_ERROR_ARGUMENT, &error, "costs");
    pmlp_schedule_destroy(lowered);
    pmlp_schedule_destroy(schedule);
    refused("half an allocator", pmlp_images_parse("x", 1, "y", 1, 0, &half, &images, &error),
            PMLP_ERROR_ARGUMENT, &error, "allocator");
    refused("half an allocator", pmlp_images_load("x", "y", 0, &half, &images, &error),
            PMLP_ERROR_ARGUMENT, &error, "allocator");
    edges.abi = 99, backend.edges = &edges;
    BAD_TRAINER(desc.backend = &backend, PMLP_ERROR_ARGUMENT, "edges");
    edges.abi = PMLP_EDGES_ABI, edges.send = NULL;
    BAD_TRAINER(desc.backend = &backend, PMLP_ERROR_ARGUMENT, "edges");
    backend.edges = NULL, backend.update = NULL;
    BAD_TRAINER(desc.backend = &backend, PMLP_ERROR_ARGUMENT, "backend");
    SAY("lowered twice, bad costs, half allocators, tables with holes: refused");
}

static bool updates_fail;

static pmlp_result failing_update(void *context, void *layer, const pmlp_update_args *args) {
    return updates_fail ? PMLP_ERROR_BACKEND : pmlp_cpu_backend()->update(context, layer, args);
}

/* A failure amid the updates leaves neither the old weights nor the new: nobody may be given them. */
TEST(mixed_weights) {
    for (int no_threads = 0; no_threads <= 1; no_threads++) {
        pmlp_backend backend = *pmlp_cpu_backend();
        pmlp_model_desc model_desc = net_desc(NULL);
        pmlp_trainer_desc desc = net_how(2, no_threads != 0);
        pmlp_model *model = NULL;
        pmlp_trainer *trainer = NULL;
        pmlp_data batch = net_batch(0);
        pmlp_error error = {0};
        uint64_t word;
        pmlp_timeline *timeline = NULL;
        float dw[1000];
        updates_fail = false, desc.trace = 1;
        backend.update = failing_update, desc.backend = &backend;
        if (!CHECK(pmlp_model_create(&model_desc, &model, &error) == PMLP_OK &&
                       pmlp_trainer_create(model, &desc, &trainer, &error) == PMLP_OK,
                   "%s", error.text))
            return;
        CHECK(pmlp_trainer_step(trainer, &batch, NULL) == PMLP_OK, "the first step");
        updates_fail = true;
        CHECK(pmlp_trainer_step(trainer, &batch, NULL) == PMLP_ERROR_BACKEND, "the update failed");
        const pmlp_error *said = pmlp_trainer_error(trainer);
        CHECK(said && strcmp(said->op, "U") == 0, "op %s", said ? said->op : "?");
        CHECK(pmlp_trainer_sync(trainer) == PMLP_ERROR_STATE, "sync gives mixed weights");
        CHECK(said && strstr(said->text, "lost"), "%s", said ? said->text : "?");
        refused("what was traced", pmlp_trainer_timeline(trainer, 1, &timeline), PMLP_ERROR_STATE,
                said, "the trainer has failed");
        refused("a gradient", pmlp_trainer_gradient(trainer, 0, dw, NULL), PMLP_ERROR_STATE, said,
                "of a step that failed");
        pmlp_trainer_destroy(trainer);
        CHECK(pmlp_model_hash(model, &word, &error) == PMLP_ERROR_STATE, "destroy left mixed weights");
        CHECK(strstr(error.text, "lost") != NULL, "%s", error.text);
        pmlp_model_destroy(model);
    }
    SAY("a failure amid the updates: the weights are lost, and the model says so");
}

static pmlp_result no_open(const pmlp_backend *self, const pmlp_backend_desc *desc, void **context,
                           pmlp_error *error) {
    (void)self, (void)desc, (void)context, (void)error;
    return PMLP_ERROR_BACKEND;
}
static long forwards_left;

static pmlp_result no_forward(void *context, void *layer, int version, size_t rows, const float *x,
                              float *y) {
    if (forwards_left-- <= 0) return PMLP_ERROR_BACKEND;
    return pmlp_cpu_backend()->forward(context, layer, version, rows, x, y);
}
static pmlp_result no_weight(void *context, void *layer, size_t rows, const float *x,
                             const float *dz, bool anew) {
    (void)context, (void)layer, (void)rows, (void)x, (void)dz, (void)anew;
    return PMLP_ERROR_BACKEND;
}
static pmlp_result no_synchronize(void *context) { return (void)context, PMLP_ERROR_BACKEND; }

/* Measuring stops at the first call that fails, and says what could not be done. */
TEST(measuring_fails) {
    static const char *const entries[] = {"open", "forward", "backward_weight", "update",
                                          "synchronize"};
    const pmlp_model_desc net = net_desc(NULL);
    pmlp_model *model = NULL;
    double costs[LAYERS];
    CHECK(pmlp_model_create(&net, &model, NULL) == PMLP_OK, "no model");
    updates_fail = true;
    for (int i = 0; i < 5; i++) {
        pmlp_backend backend = *pmlp_cpu_backend();
        pmlp_trainer_desc how = net_how(2, true);
        pmlp_error error = {0};
        test_memory memory;
        test_memory_init(&memory, 0);
        if (i == 0) backend.open = no_open;
        if (i == 1) backend.forward = no_forward;
        if (i == 2) backend.backward_weight = no_weight;
        if (i == 3) backend.update = failing_update;
        if (i == 4) backend.synchronize = no_synchronize;
        how.backend = &backend, how.allocator = memory.allocator;
        forwards_left = 0;
        refused(entries[i], pmlp_measure_layers(model, &how, costs, &error), PMLP_ERROR_BACKEND,
                &error, pmlp_result_text(PMLP_ERROR_BACKEND));
        CHECK(memory.blocks == 0, "%s: %ld blocks leak", entries[i], memory.blocks);
    }
    double given[LAYERS] = {1, 1, 1, 1, 1}; /* with which nobody measures */
    pmlp_backend backend = *pmlp_cpu_backend();
    pmlp_trainer_desc known = net_how(2, true);
    pmlp_trainer *trainer = NULL;
    backend.update = failing_update, known.backend = &backend;
    known.measure_layers = true, known.layer_costs = given;
    CHECK(pmlp_trainer_create(model, &known, &trainer, NULL) == PMLP_OK, "measures all the same");
    pmlp_trainer_destroy(trainer);
    for (int batch = 1; batch <= 5; batch++) { /* fewer rows than micro-batches, none before U */
        pmlp_trainer_desc how = net_how(2, true);
        pmlp_error error = {0};
        how.batch = (size_t)batch, how.microbatches = 3;
        CHECK(pmlp_measure_layers(model, &how, costs, &error) == PMLP_OK, "%s", error.text);
        for (int l = 0; l < LAYERS; l++)
            CHECK(costs[l] > 0 && costs[l] < 10, "layer %d takes %g s", l, costs[l]);
    }
    pmlp_model_destroy(model);
    SAY("a back end that fails while layers are measured: refused, nothing is lost");
}

/* Bounds with costs in the desc, and with a schedule of the caller's. */
TEST(bounds) {
    const double ones[3] = {1, 1, 1};
    const pmlp_costs costs = {.f = ones, .i = ones, .w = ones, .stages = 3};
    const pmlp_model_desc net = net_desc(NULL);
    const char *text = "0F0,0B0\n1F0,1B0\n2F0,2B0\n";
    pmlp_model *model = NULL;
    pmlp_schedule *custom = NULL;
    pmlp_trainer_desc how = net_how(3, true);
    pmlp_ceiling_report report;
    pmlp_error error = {0};
    CHECK(pmlp_model_create(&net, &model, NULL) == PMLP_OK, "no model");
    how.schedule = PMLP_SCHEDULE_AUTO, how.costs = &costs, how.clip_norm = 0;
    CHECK(pmlp_ceiling(model, &how, NULL, &report, &error) == PMLP_OK && report.speedup > 1, "%s",
          error.text);
    how.schedule = PMLP_SCHEDULE_SEQUENTIAL, how.costs = NULL;
    CHECK(pmlp_ceiling(model, &how, NULL, &report, &error) == PMLP_OK &&
              strstr(report.advice, "lets the workers take turns"),
          "%s", report.advice);
    CHECK(pmlp_schedule_parse(text, strlen(text), NULL, &custom, NULL) == PMLP_OK, "no schedule");
    how.custom = custom, how.workers = how.microbatches = 0;
    CHECK(pmlp_ceiling(model, &how, NULL, &report, &error) == PMLP_OK &&
              !strcmp(report.binds, "fill and drain") && !strstr(report.advice, "take turns"),
          "%s: %s: %s", error.text, report.binds, report.advice);
    pmlp_schedule_destroy(custom);
    pmlp_model_destroy(model);
    SAY("bounds with costs given, of a sequential schedule and of the caller's own");
}

/* The pipeline or the serial training beside it fails at some forward: its words come back. */
TEST(verifying_fails) {
    const pmlp_model_desc net = net_desc(NULL);
    const pmlp_data data = net_data();
    pmlp_model *model = NULL;
    long k = 0;
    CHECK(pmlp_model_create(&net, &model, NULL) == PMLP_OK, "no model");
    for (pmlp_result result = PMLP_ERROR_BACKEND; result != PMLP_OK && k < 1000; k++) {
        pmlp_backend backend = *pmlp_cpu_backend();
        pmlp_trainer_desc how = net_how(2, true);
        pmlp_verify_report report = {0};
        pmlp_error error = {0};
        backend.forward = no_forward, how.backend = &backend, forwards_left = k;
        result = pmlp_verify(model, &how, &data, 2, &report, &error);
        if (result == PMLP_OK) CHECK(report.identical && report.steps == 2, "%s", report.what);
        else refused("verify", result, PMLP_ERROR_BACKEND, &error, "F");
        if (result != PMLP_OK)
            CHECK(pmlp_verify(model, &how, &data, 2, &report, NULL) == PMLP_ERROR_BACKEND,
                  "without an error to fill");
    }
    CHECK(k > 2 * LAYERS && k < 1000, "%ld forwards", k);
    pmlp_model_destroy(model);
    SAY("a back end that fails while trainings are compared: refused with its words, %ld cases", k);
}

TEST(bad_customs) {
    static const int owners[] = {0, 1};
    pmlp_schedule *empty = NULL;
    CHECK(pmlp_schedule_empty(2, 2, 1, owners, NULL, &empty, NULL) == PMLP_OK, "empty");
    BAD_TRAINER((desc.custom = empty, desc.microbatches = 0, desc.workers = 0), PMLP_ERROR_SCHEDULE,
                "worker 0 never does 0F0");
    pmlp_schedule_destroy(empty);
    bad_custom("0F0,0B0\n1F0,1B0\n2F0,2B0\n3F0,3B0\n4F0,4B0\n5F0,5B0\n", PMLP_ERROR_SHAPE, "layers");
    bad_custom("0F0,0F1,0B0\n1F0,1B0,1F1,1B1\n", PMLP_ERROR_SCHEDULE, "0I1");
    bad_custom("0F0,0B0,0F1,0B1\n1F0,1F1,1B0,1B1\n", PMLP_ERROR_DEADLOCK, "worker");
    SAY("custom schedules with more stages than layers, missing actions or a deadlock are refused");
}

/* --- (c) bad use: calls --------------------------------------------------------------------------- */

typedef struct subject { /* one model, one trainer, one step done */
    pmlp_model *model;
    pmlp_trainer *trainer;
} subject;

static bool subject_make(subject *s, const pmlp_trainer_desc *how, pmlp_loss loss) {
    pmlp_model_desc desc = net_desc(NULL);
    pmlp_data batch = net_batch(0);
    pmlp_error error = {0};
    desc.loss = loss;
    s->model = NULL, s->trainer = NULL;
    alarm(CASE_SECONDS);
    return CHECK(pmlp_model_create(&desc, &s->model, &error) == PMLP_OK, "%s", error.text) &&
           CHECK(pmlp_trainer_create(s->model, how, &s->trainer, &error) == PMLP_OK, "%s",
                 error.text) &&
           CHECK(pmlp_trainer_step(s->trainer, &batch, NULL) == PMLP_OK, "first step");
}

/* Trains the second step; returns the weights word. */
static uint64_t subject_end(subject *s, const char *what) {
    pmlp_data batch = net_batch(1);
    pmlp_stats stats = {0};
    CHECK(pmlp_trainer_step(s->trainer, &batch, &stats) == PMLP_OK, "%s, then a step: %s", what,
          pmlp_trainer_error(s->trainer)->text);
    CHECK(stats.step == 2, "%s, then step %ld", what, (long)stats.step);
    pmlp_trainer_destroy(s->trainer);
    uint64_t word = word_of(s->model);
    pmlp_model_destroy(s->model);
    return word;
}

typedef struct bad_data {
    const char *what;
    pmlp_data data;
    pmlp_result want;
    const char *thing;
    bool step_only;
} bad_data;

static int labels_negative[BATCH], labels_large[BATCH], labels_last[BATCH];

static void bad_call(const bad_data *bad, const pmlp_trainer_desc *how, pmlp_loss loss,
                     uint64_t good_word) {
    subject s;
    char what[120];
    for (int call = 0; call < (bad->step_only ? 1 : 3); call++) {
        if (!subject_make(&s, how, loss)) return;
        snprintf(what, sizeof what, "%s(%s)", call == 0 ? "step" : call == 1 ? "epoch" : "eval",
                 bad->what);
        pmlp_stats stats;
        pmlp_result result = call == 0   ? pmlp_trainer_step(s.trainer, &bad->data, &stats)
                             : call == 1 ? pmlp_trainer_epoch(s.trainer, &bad->data, &stats)
                                         : pmlp_trainer_eval(s.trainer, &bad->data, &stats);
        pmlp_result want = bad->want;
        if (call == 0 && bad->data.rows > BATCH) want = PMLP_ERROR_SHAPE; /* more than a batch */
        refused(what, result, want, pmlp_trainer_error(s.trainer), bad->thing);
        uint64_t word = subject_end(&s, what);
        CHECK(word == good_word, "%s, then other weights", what);
    }
}

TEST(bad_batches) {
    const float *x = net_x;
    const bad_data list[] = {
        {"no rows", {0, x, net_labels, NULL, false}, PMLP_ERROR_ARGUMENT, "rows", false},
        {"too many rows", {BATCH + 1, x, net_labels, NULL, false}, PMLP_ERROR_SHAPE, "rows", true},
        {"far too many rows", {1 << 28, x, net_labels, NULL, false}, PMLP_ERROR_SHAPE, "rows", true},
        {"absurd rows", {SIZE_MAX, x, net_labels, NULL, false}, PMLP_ERROR_ARGUMENT, "rows", false},
        {"rows past memory", {sizeof(size_t) > 4 ? SIZE_MAX / 8 : SIZE_MAX, x, net_labels, NULL, false}, PMLP_ERROR_ARGUMENT, "rows", false},
        {"no x", {BATCH, NULL, net_labels, NULL, false}, PMLP_ERROR_ARGUMENT, "x", false},
        {"no labels", {BATCH, x, NULL, NULL, false}, PMLP_ERROR_ARGUMENT, "labels", false},
        {"targets, too", {BATCH, x, net_labels, net_targets, false}, PMLP_ERROR_ARGUMENT,
         "labels, not targets", false},
        {"targets only", {BATCH, x, NULL, net_targets, false}, PMLP_ERROR_ARGUMENT, "labels", false},
        {"label -1", {BATCH, x, labels_negative, NULL, false}, PMLP_ERROR_DATA, "label", false},
        {"label 3 of 3", {BATCH, x, labels_large, NULL, false}, PMLP_ERROR_DATA, "label", false},
        {"last label", {BATCH, x, labels_last, NULL, false}, PMLP_ERROR_DATA, "label", false}};
    labels_negative[0] = -1, labels_large[3] = CLASSES, labels_last[BATCH - 1] = INT32_MAX;
    for (int workers = 1; workers <= 3; workers += 2) {
        for (int no_threads = 0; no_threads <= 1; no_threads++) {
            pmlp_trainer_desc how = net_how(workers, no_threads);
            for (size_t i = 0; i < sizeof list / sizeof *list; i++)
                bad_call(&list[i], &how, PMLP_LOSS_XENT, net_words[2]);
        }
    }
    SAY("batches with bad rows, labels, pointers: refused, then the same weights, %s checks",
        test_count(test_run.checks));
}

TEST(bad_targets) {
    const bad_data list[] = {
        {"mse, nothing", {BATCH, net_x, NULL, NULL, false}, PMLP_ERROR_ARGUMENT, "targets", false},
        {"mse, label", {BATCH, net_x, labels_large, NULL, false}, PMLP_ERROR_DATA, "label", false}};
    pmlp_trainer_desc how = net_how(2, false);
    subject s;
    if (!subject_make(&s, &how, PMLP_LOSS_MSE)) return;
    uint64_t word = subject_end(&s, "mse");
    for (size_t i = 0; i < sizeof list / sizeof *list; i++)
        bad_call(&list[i], &how, PMLP_LOSS_MSE, word);
    SAY("mean squared error without targets or with bad labels: refused");
}

TEST(bad_calls) {
    pmlp_trainer_desc how = net_how(3, false);
    pmlp_data batch = net_batch(0);
    pmlp_stage_info info;
    subject s;
    float dw[1000];
    if (!subject_make(&s, &how, PMLP_LOSS_XENT)) return;
#define BAD_CALL(call, want, thing)                                                            \
    refused(#call, call, want, pmlp_trainer_error(s.trainer), thing)
    BAD_CALL(pmlp_trainer_step(s.trainer, NULL, NULL), PMLP_ERROR_ARGUMENT, "NULL");
    BAD_CALL(pmlp_trainer_epoch(s.trainer, NULL, NULL), PMLP_ERROR_ARGUMENT, "NULL");
    BAD_CALL(pmlp_trainer_eval(s.trainer, NULL, NULL), PMLP_ERROR_ARGUMENT, "NULL");
    BAD_CALL(pmlp_trainer_gradient(s.trainer, -1, dw, NULL), PMLP_ERROR_ARGUMENT, "layer");
    BAD_CALL(pmlp_trainer_gradient(s.trainer, LAYERS, dw, NULL), PMLP_ERROR_ARGUMENT, "layer");
    BAD_CALL(pmlp_trainer_set_learning_rate(s.trainer, not_a_number), PMLP_ERROR_ARGUMENT, "learning");
    BAD_CALL(pmlp_trainer_set_learning_rate(s.trainer, endless), PMLP_ERROR_ARGUMENT, "learning");
    BAD_CALL(pmlp_trainer_set_learning_rate(s.trainer, -1), PMLP_ERROR_ARGUMENT, "learning");
    CHECK(pmlp_trainer_step(NULL, &batch, NULL) == PMLP_ERROR_ARGUMENT, "step(NULL)");
    CHECK(pmlp_trainer_epoch(NULL, &batch, NULL) == PMLP_ERROR_ARGUMENT, "epoch(NULL)");
    CHECK(pmlp_trainer_eval(NULL, &batch, NULL) == PMLP_ERROR_ARGUMENT, "eval(NULL)");
    CHECK(pmlp_trainer_sync(NULL) == PMLP_ERROR_ARGUMENT, "sync(NULL)");
    CHECK(pmlp_trainer_set_learning_rate(NULL, 1) == PMLP_ERROR_ARGUMENT, "rate(NULL)");
    CHECK(pmlp_trainer_gradient(NULL, 0, dw, dw) == PMLP_ERROR_ARGUMENT, "gradient(NULL)");
    CHECK(pmlp_trainer_stage(NULL, 0, &info) == PMLP_ERROR_ARGUMENT, "stage(NULL)");
    CHECK(pmlp_trainer_stage(s.trainer, 3, &info) == PMLP_ERROR_ARGUMENT, "stage 3 of 3");
    CHECK(pmlp_trainer_stage(s.trainer, -1, &info) == PMLP_ERROR_ARGUMENT, "stage -1");
    CHECK(pmlp_trainer_stage(s.trainer, 0, NULL) == PMLP_ERROR_ARGUMENT, "stage into NULL");
    pmlp_timeline *timeline = (void *)&info;
    pmlp_costs costs;
    BAD_CALL(pmlp_trainer_timeline(s.trainer, 1, &timeline), PMLP_ERROR_STATE, "trace");
    CHECK(!timeline, "a timeline of nothing");
    BAD_CALL(pmlp_trainer_timeline(s.trainer, -1, &timeline), PMLP_ERROR_ARGUMENT, "steps");
    BAD_CALL(pmlp_trainer_timeline(s.trainer, 1, NULL), PMLP_ERROR_ARGUMENT, "timeline");
    BAD_CALL(pmlp_trainer_costs(s.trainer, &costs), PMLP_ERROR_STATE, "trace");
    BAD_CALL(pmlp_trainer_costs(s.trainer, NULL), PMLP_ERROR_ARGUMENT, "costs");
    CHECK(pmlp_trainer_timeline(NULL, 1, &timeline) == PMLP_ERROR_ARGUMENT && !timeline, "NULL");
    CHECK(pmlp_trainer_costs(NULL, &costs) == PMLP_ERROR_ARGUMENT, "costs(NULL)");
    CHECK(pmlp_trainer_gradient(s.trainer, 0, NULL, NULL) == PMLP_OK, "a gradient nobody wants");
    CHECK(subject_end(&s, "bad calls") == net_words[2], "then other weights");
    SAY("calls with NULL, bad layers, stages, learning rates: refused, then the same weights");
}

TEST(states) {
    pmlp_trainer_desc how = net_how(2, false);
    pmlp_data data = net_data();
    pmlp_model_desc desc = net_desc(NULL);
    pmlp_model *clone = NULL, *other = NULL;
    pmlp_params params;
    pmlp_verify_report report;
    pmlp_error error = {0};
    uint64_t word;
    float y[CLASSES], dw[100];
    subject s;
    if (!subject_make(&s, &how, PMLP_LOSS_XENT)) return;
    pmlp_trainer *second = (void *)&error;
#define BAD_STATE(call) refused(#call, call, PMLP_ERROR_STATE, &error, "trainer")
    BAD_STATE(pmlp_trainer_create(s.model, &how, &second, &error));
    CHECK(!second, "*trainer is not NULL");
    BAD_STATE(pmlp_model_params(s.model, 0, &params, &error));
    BAD_STATE(pmlp_model_hash(s.model, &word, &error));
    BAD_STATE(pmlp_model_predict(s.model, net_x, 1, y, &error));
    clone = (void *)&error;
    BAD_STATE(pmlp_model_clone(s.model, &clone, &error));
    CHECK(!clone, "*clone is not NULL");
    BAD_STATE(pmlp_verify(s.model, &how, &data, 1, &report, &error));
    CHECK(pmlp_trainer_sync(s.trainer) == PMLP_OK, "sync");
    CHECK(word_of(s.model) == net_words[1], "sync brings other weights");
    CHECK(pmlp_model_params(s.model, 0, &params, &error) == PMLP_OK, "%s", error.text);
    CHECK(pmlp_model_predict(s.model, net_x, 1, y, &error) == PMLP_OK, "%s", error.text);
    CHECK(pmlp_model_clone(s.model, &clone, &error) == PMLP_OK, "%s", error.text);
    BAD_STATE(pmlp_trainer_create(s.model, &how, &second, &error));
    CHECK(subject_end(&s, "states") == net_words[2], "then other weights");
    CHECK(word_of(clone) == net_words[1], "the clone changed");
    CHECK(pmlp_trainer_create(clone, &how, &second, &error) == PMLP_OK, "%s", error.text);
    CHECK(word_of(clone) == net_words[1], "a trainer without a step needs no sync");
    refused("gradient before a step", pmlp_trainer_gradient(second, 0, dw, NULL), PMLP_ERROR_STATE,
            pmlp_trainer_error(second), "step");
    pmlp_trainer_destroy(second);
    const pmlp_data first = net_batch(0);
    how.keep_gradients = false;
    CHECK(pmlp_trainer_create(clone, &how, &second, &error) == PMLP_OK &&
              pmlp_trainer_step(second, &first, NULL) == PMLP_OK,
          "%s", error.text);
    refused("a gradient that was not kept", pmlp_trainer_gradient(second, 0, dw, NULL),
            PMLP_ERROR_STATE, pmlp_trainer_error(second), "keep_gradients");
    pmlp_trainer_destroy(second);
    pmlp_model_destroy(clone);
    CHECK(pmlp_model_create(&desc, &other, NULL) == PMLP_OK, "create");
    pmlp_model_destroy(other);
    SAY("a second trainer, and weights before a sync: STATE, then the same weights");
}

/* --- (c) bad use: two callers at once, cancelling, empty micro-batches ---------------------------- */

typedef struct intruder {
    pmlp_trainer *trainer;
    pmlp_result results[10];
} intruder;

static void *intrude(void *user) {
    intruder *in = user;
    pmlp_data batch = net_batch(0);
    float dw[100];
    in->results[0] = pmlp_trainer_step(in->trainer, &batch, NULL);
    in->results[1] = pmlp_trainer_epoch(in->trainer, &batch, NULL);
    in->results[2] = pmlp_trainer_eval(in->trainer, &batch, NULL);
    in->results[3] = pmlp_trainer_sync(in->trainer);
    in->results[4] = pmlp_trainer_set_learning_rate(in->trainer, 9);
    in->results[5] = pmlp_trainer_gradient(in->trainer, 0, dw, NULL);
    pmlp_timeline *timeline = NULL;
    pmlp_costs costs;
    in->results[6] = pmlp_trainer_timeline(in->trainer, 1, &timeline);
    in->results[7] = pmlp_trainer_costs(in->trainer, &costs);
    pmlp_position position;
    in->results[8] = pmlp_trainer_position(in->trainer, &position);
    in->results[9] = pmlp_trainer_save(in->trainer, "never.safetensors");
    return NULL;
}

/* Runs in the middle of a step; the step waits until the other thread has made its calls. */
static void intrude_now(void *user) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, intrude, user) == 0) pthread_join(thread, NULL);
}

TEST(two_callers) {
    static faulty plan;
    for (int workers = 1; workers <= 3; workers++) {
        for (int no_threads = 0; no_threads <= 1; no_threads++) {
            intruder in = {0};
            subject s;
            pmlp_trainer_desc how = net_how(workers, no_threads);
            faulty_make(&plan, -1, 0, false);
            how.backend = &plan.table, how.trace = 1;
            if (!subject_make(&s, &how, PMLP_LOSS_XENT)) return;
            in.trainer = s.trainer;
            plan.hook = intrude_now, plan.hook_user = &in;
            CHECK(subject_end(&s, "an intruder") == net_words[2], "other weights");
            for (int i = 0; i < 10; i++)
                CHECK(in.results[i] == PMLP_ERROR_STATE, "%d workers: the intruder's call %d gives %s",
                      workers, i, pmlp_result_name(in.results[i]));
            CHECK(faulty_balanced(&plan), "%d workers: contexts, buffers or layers leak", workers);
        }
    }
    SAY("a second thread in the middle of a step: STATE for each of its calls, the same weights");
}

/* A second thread that never stops calling while epochs run and their callback is called. */
typedef struct pest {
    pmlp_trainer *trainer;
    pthread_mutex_t lock;
    bool stop, pestered; /* pestered: the callback is still to wait for a round of calls */
    long calls, refused, strange;
} pest;

static void *pester(void *user) {
    pest *p = user;
    for (bool stop = false; !stop;) {
        pmlp_result results[3] = {pmlp_trainer_sync(p->trainer),
                                  pmlp_trainer_set_learning_rate(p->trainer, 0.001f), /* as it is */
                                  pmlp_trainer_step(p->trainer, NULL, NULL)};
        pthread_mutex_lock(&p->lock);
        for (int i = 0; i < 3; i++) {
            p->refused += results[i] == PMLP_ERROR_STATE;
            p->strange += results[i] != PMLP_ERROR_STATE && results[i] != (i < 2 ? PMLP_OK : PMLP_ERROR_ARGUMENT);
        }
        p->calls += 3, stop = p->stop;
        pthread_mutex_unlock(&p->lock);
    }
    return NULL;
}

/* Waits once, up to ten seconds, until the other thread has made a round of its calls from begin to
   end: one of them must then have met an epoch that is under way, however rarely it is its turn. */
static bool go_on(const pmlp_stats *stats, void *user) {
    pest *p = user;
    long calls = -1;
    bool wait = p->pestered;
    for (long ms = 0; wait && ms < 10000; ms++) {
        pthread_mutex_lock(&p->lock);
        if (calls < 0) calls = p->calls;
        wait = p->calls < calls + 6;
        pthread_mutex_unlock(&p->lock);
        if (wait) nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
    p->pestered = false;
    return stats->rows <= stats->total_rows;
}

/* The epochs may lose the race for the trainer themselves; then they are asked for again. */
static uint64_t pestered_epochs(int workers, bool no_threads, bool pestered, pest *p) {
    pmlp_model_desc desc = net_desc(NULL);
    pmlp_trainer_desc how = net_how(workers, no_threads);
    pmlp_data data = net_data();
    pmlp_model *model = NULL;
    pthread_t thread;
    how.progress = go_on, how.progress_user = p;
    memset(p, 0, sizeof *p);
    p->pestered = pestered;
    pthread_mutex_init(&p->lock, NULL);
    CHECK(pmlp_model_create(&desc, &model, NULL) == PMLP_OK, "no model");
    CHECK(pmlp_trainer_create(model, &how, &p->trainer, NULL) == PMLP_OK, "no trainer");
    if (pestered) pestered = pthread_create(&thread, NULL, pester, p) == 0;
    for (int epoch = 0; epoch < 20;) {
        pmlp_result result = pmlp_trainer_epoch(p->trainer, &data, NULL);
        epoch += result == PMLP_OK;
        if (result != PMLP_OK && !CHECK(result == PMLP_ERROR_STATE && pestered, "epoch: %s",
                                        pmlp_result_name(result)))
            break;
    }
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    pthread_mutex_unlock(&p->lock);
    if (pestered) pthread_join(thread, NULL);
    pmlp_trainer_destroy(p->trainer);
    pthread_mutex_destroy(&p->lock);
    uint64_t word = word_of(model);
    pmlp_model_destroy(model);
    return word;
}

TEST(two_callers_in_epochs) {
    pest p;
    long calls = 0, refusals = 0;
    for (int workers = 1; workers <= 2; workers++) {
        for (int no_threads = 0; no_threads <= 1; no_threads++) {
            alarm(CASE_SECONDS);
            uint64_t alone = pestered_epochs(workers, no_threads, false, &p);
            uint64_t word = pestered_epochs(workers, no_threads, true, &p);
            CHECK(word == alone, "%d workers: other weights", workers);
            CHECK(p.strange == 0, "%ld strange results", p.strange);
            calls += p.calls, refusals += p.refused;
        }
    }
    CHECK(refusals > 0, "of %ld calls none was refused", calls);
    SAY("a second thread calling all through epochs with a callback: STATE or done, the same weights");
}

typedef struct witness {
    pmlp_trainer *trainer;
    long calls, stop_at;
    pmlp_result nested[3], allowed[2];
} witness;

static bool watch_epoch(const pmlp_stats *stats, void *user) {
    witness *w = user;
    pmlp_data batch = net_batch(0);
    (void)stats;
    w->nested[0] = pmlp_trainer_step(w->trainer, &batch, NULL);
    w->nested[1] = pmlp_trainer_epoch(w->trainer, &batch, NULL);
    w->nested[2] = pmlp_trainer_eval(w->trainer, &batch, NULL);
    w->allowed[0] = pmlp_trainer_sync(w->trainer);
    w->allowed[1] = pmlp_trainer_set_learning_rate(w->trainer, 0.001f); /* Adam's own */
    return ++w->calls != w->stop_at;
}

TEST(cancelling) {
    pmlp_data data = {.rows = 2 * BATCH - 1, .x = net_x, .labels = net_labels};
    for (int stop_at = 1; stop_at <= 3; stop_at++) {
        witness w = {.stop_at = stop_at};
        pmlp_trainer_desc how = net_how(2, false);
        pmlp_model_desc desc = net_desc(NULL);
        pmlp_model *model = NULL;
        pmlp_stats stats = {0};
        how.no_shuffle = true, how.progress = watch_epoch, how.progress_user = &w;
        CHECK(pmlp_model_create(&desc, &model, NULL) == PMLP_OK, "no model");
        CHECK(pmlp_trainer_create(model, &how, &w.trainer, NULL) == PMLP_OK, "no trainer");
        pmlp_result result = pmlp_trainer_epoch(w.trainer, &data, &stats);
        if (stop_at <= 2)
            refused("cancel", result, PMLP_ERROR_CANCELLED, pmlp_trainer_error(w.trainer), "callback");
        else CHECK(result == PMLP_OK, "epoch: %s", pmlp_trainer_error(w.trainer)->text);
        long steps = stop_at < 2 ? stop_at : 2;
        CHECK(w.calls == steps && stats.step == (uint64_t)steps, "%ld calls, step %ld", w.calls,
              (long)stats.step);
        for (int i = 0; i < 3; i++)
            CHECK(w.nested[i] == PMLP_ERROR_STATE, "nested call %d: %s", i,
                  pmlp_result_name(w.nested[i]));
        CHECK(w.allowed[0] == PMLP_OK && w.allowed[1] == PMLP_OK, "sync or rate in the callback");
        if (stop_at == 1) { /* the trainer goes on where it was stopped */
            pmlp_data batch = net_batch(1);
            CHECK(pmlp_trainer_step(w.trainer, &batch, NULL) == PMLP_OK, "step after cancelling");
        }
        pmlp_trainer_destroy(w.trainer);
        CHECK(word_of(model) == net_words[2], "other weights after stopping at %d", stop_at);
        pmlp_model_destroy(model);
    }
    SAY("the progress callback cancels: CANCELLED, the trainer goes on, the same weights");
}

TEST(few_rows) {
    const int microbatches[] = {1, 2, 7, 8, 9, 40};
    for (int rows = 1; rows <= 3; rows++) {
        uint64_t words[2] = {0, 0};
        for (int i = 0; i < 6; i++) {
            for (int workers = 1; workers <= 3; workers++) {
                pmlp_model_desc desc = net_desc(NULL);
                pmlp_trainer_desc how = net_how(workers, workers == 2);
                pmlp_data batch = {.rows = (size_t)rows, .x = net_x, .labels = net_labels};
                pmlp_model *model = NULL;
                pmlp_trainer *trainer = NULL;
                pmlp_error error = {0};
                how.microbatches = microbatches[i];
                CHECK(pmlp_model_create(&desc, &model, NULL) == PMLP_OK, "no model");
                CHECK(pmlp_trainer_create(model, &how, &trainer, &error) == PMLP_OK, "%s", error.text);
                CHECK(pmlp_trainer_step(trainer, &batch, NULL) == PMLP_OK, "%d rows, %d micro-batches",
                      rows, how.microbatches);
                CHECK(pmlp_trainer_eval(trainer, &batch, NULL) == PMLP_OK, "eval");
                pmlp_trainer_destroy(trainer);
                words[i > 0 || workers > 1] = word_of(model);
                if (i > 0 || workers > 1)
                    CHECK(words[0] == words[1], "%d rows in %d micro-batches: other weights", rows,
                          how.microbatches);
                pmlp_model_destroy(model);
            }
        }
    }
    SAY("fewer rows than micro-batches: empty ones are harmless, the same weights");
}

/* --- (d) a life of accidents ---------------------------------------------------------------------- */

TEST(accidents) {
    static faulty plan;
    wire_plan wires;
    uint64_t state = 2026;
    long happened = 0, count = test_quick() ? 60 : 200;
    int threads = living_threads();
    for (long i = 0; i < count; i++) {
        int workers = 1 + (int)(test_random(&state) % WORKERS);
        pmlp_trainer_desc how = net_how(workers, test_random(&state) % 2);
        pmlp_model_desc desc;
        pmlp_data batch = net_batch(0), data = net_data();
        pmlp_model *model = NULL;
        pmlp_trainer *trainer = NULL;
        test_memory memory;
        int steps = (int)(test_random(&state) % 3), kind = (int)(test_random(&state) % 5);
        test_memory_init(&memory, kind == 0 ? 1 + (long)(test_random(&state) % 60) : 0);
        faulty_make(&plan, kind == 1 ? (int)(test_random(&state) % (unsigned)workers) : -1,
                    1 + (long)(test_random(&state) % 150), test_random(&state) % 2);
        wire_make(&wires, kind == 2 ? (int)(test_random(&state) % EDGES) : -1,
                  (enum wire_entry)(test_random(&state) % WIRE_ENTRIES),
                  1 + (long)(test_random(&state) % 6));
        thread_starts = 0, thread_fail_at = kind == 3 ? 1 + (long)(test_random(&state) % 3) : 0;
        how.schedule = (pmlp_schedule_kind)(test_random(&state) % PMLP_SCHEDULE_KIND_COUNT);
        how.microbatches = 1 + (int)(test_random(&state) % 9);
        how.optimizer = (pmlp_optimizer)(test_random(&state) % PMLP_OPTIMIZER_COUNT);
        how.backend = &plan.table, how.edges = &wires.table, how.allocator = memory.allocator;
        desc = net_desc(&memory);
        alarm(CASE_SECONDS);
        pmlp_result result = pmlp_model_create(&desc, &model, NULL);
        if (result == PMLP_OK) result = pmlp_trainer_create(model, &how, &trainer, NULL);
        for (int step = 0; trainer && step < steps; step++) {
            if (result == PMLP_OK) result = pmlp_trainer_step(trainer, &batch, NULL);
            else CHECK(pmlp_trainer_step(trainer, &batch, NULL) == PMLP_ERROR_STATE, "goes on");
        }
        if (trainer && result == PMLP_OK) result = pmlp_trainer_epoch(trainer, &data, NULL);
        if (trainer && test_random(&state) % 2) pmlp_trainer_sync(trainer);
        pmlp_trainer_destroy(trainer);
        pmlp_model_destroy(model);
        thread_fail_at = 0;
        happened += result != PMLP_OK;
        CHECK(memory.blocks == 0, "accident %ld: %ld blocks leak", i, memory.blocks);
        CHECK(faulty_balanced(&plan), "accident %ld: contexts, buffers or layers leak", i);
        CHECK(wires.living == 0, "accident %ld: edges leak", i);
    }
    CHECK(happened > count / 5, "only %ld accidents", happened);
    CHECK(all_joined(threads), "threads are left over");
    SAY("%s trainers created, failed at random, destroyed; %s accidents, nothing lost",
        test_count(count), test_count(happened));
}

int main(void) {
    test_begin("errors");
    alarm(CASE_SECONDS);
    net_make();
    alarm(0);
    RUN(memory_model);
    RUN(memory_schedule);
    RUN(memory_traced);
    RUN(memory_trainer);
    RUN(memory_verify);
    RUN(backend_threads);
    RUN(backend_no_threads);
    RUN(backend_threads_fused);
    RUN(backend_no_threads_fused);
    RUN(asynchronous);
    RUN(edges);
    RUN(edges_busy);
    RUN(edges_copying);
    RUN(threads);
    RUN(mutexes);
#ifdef __linux__
    RUN(cores);
#endif
    RUN(bad_models);
    RUN(null_arguments);
    RUN(schedule_arguments);
    RUN(bad_schedules);
    RUN(bad_costs);
    RUN(bad_trainers);
    RUN(bad_cuts);
    RUN(bad_odds_and_ends);
    RUN(mixed_weights);
    RUN(measuring_fails);
    RUN(bounds);
    RUN(verifying_fails);
    RUN(bad_tables);
    RUN(bad_customs);
    RUN(bad_batches);
    RUN(bad_targets);
    RUN(bad_calls);
    RUN(states);
    RUN(two_callers);
    RUN(two_callers_in_epochs);
    RUN(cancelling);
    RUN(few_rows);
    RUN(accidents);
    return test_end();
}
