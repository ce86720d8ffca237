/* Equal bits: the trained weights, the losses and the gradient norm do not depend on workers,
   stages, micro-batches, schedule, slots or threads, and equal plain full-batch serial training.
   Also pmlp_verify(), which must say so and be able to say the opposite, and what the trainer owes
   to a back end.

   cc -std=c99 -O2 tests/test_parity.c -o test_parity -lm -lpthread */
#define PIPEMLP_IMPLEMENTATION
#include "../pipemlp.h"
#include "test.h"
#include "faulty.h"
#include "networks.h"

enum { ROWS = 53, BATCH = 16, MAX_WIDTH = 104 };

/* --- networks and data ----------------------------------------------------------------------- */

/* clang-format off */
static const network relu_net = {
    "relu, xent", 4, {20, 17, 33, 11, 10}, {PMLP_RELU, PMLP_RELU, PMLP_RELU, PMLP_LINEAR},
    PMLP_LOSS_XENT, false};
static const network mixed_net = {
    "mixed, mse", 5, {9, 65, 8, 31, 5, 3},
    {PMLP_GELU, PMLP_SIGMOID, PMLP_RELU, PMLP_TANH, PMLP_SIGMOID}, PMLP_LOSS_MSE, true};
static const network deep_net = {
    "deep, xent", 8, {6, 9, 7, 12, 5, 8, 10, 6, 4},
    {PMLP_TANH, PMLP_GELU, PMLP_RELU, PMLP_SIGMOID, PMLP_TANH, PMLP_GELU, PMLP_TANH, PMLP_LINEAR},
    PMLP_LOSS_XENT, false};
/* Twelve places to cut at, four of them inside the first layer or none. */
static const network long_net = {
    "long, xent", 12, {6, 5, 4, 7, 3, 6, 5, 4, 6, 3, 5, 6, 4},
    {PMLP_TANH, PMLP_GELU, PMLP_RELU, PMLP_SIGMOID, PMLP_TANH, PMLP_TANH, PMLP_GELU, PMLP_TANH,
     PMLP_SIGMOID, PMLP_TANH, PMLP_RELU, PMLP_LINEAR}, PMLP_LOSS_XENT, false};
static const network wide_net = {
    "wide, mse", 9, {19, 101, 6, 5, 9, 4, 7, 3, 6, 5},
    {PMLP_GELU, PMLP_TANH, PMLP_RELU, PMLP_SIGMOID, PMLP_TANH, PMLP_GELU, PMLP_TANH, PMLP_TANH,
     PMLP_SIGMOID}, PMLP_LOSS_MSE, true};
/* clang-format on */

static float data_x[ROWS * MAX_WIDTH], data_targets[ROWS * MAX_WIDTH];
static int data_labels[ROWS];

static pmlp_data make_data(const network *net) {
    pmlp_data data = {0};
    uint64_t rng = 11;
    const size_t n_in = (size_t)net->sizes[0], n_out = (size_t)net->sizes[net->layers];
    if (!CHECK(n_in <= MAX_WIDTH && n_out <= MAX_WIDTH, "%s is too wide", net->name)) return data;
    for (size_t i = 0; i < ROWS * n_in; i++) data_x[i] = (float)test_uniform(&rng, -1, 1);
    for (size_t i = 0; i < ROWS * n_out; i++) data_targets[i] = (float)test_uniform(&rng, 0, 1);
    for (size_t r = 0; r < ROWS; r++) data_labels[r] = (int)(test_random(&rng) % n_out);
    data.rows = ROWS, data.x = data_x;
    if (net->targets)
        data.targets = data_targets;
    else
        data.labels = data_labels;
    return data;
}

/* --- one run, and what must be equal --------------------------------------------------------- */

typedef struct words {
    uint64_t weights; /* pmlp_model_hash() at the end */
    uint64_t losses;  /* all losses and accuracies, to the bit */
    uint64_t norms;   /* all gradient norms, to the bit */
    bool ok;
} words;

static char label[200]; /* the configuration, for messages */

static void fold(words *out, const pmlp_stats *stats) {
    out->losses = pmlp_hash(out->losses, &stats->loss, sizeof stats->loss);
    out->losses = pmlp_hash(out->losses, &stats->accuracy, sizeof stats->accuracy);
    out->norms = pmlp_hash(out->norms, &stats->gradient_norm, sizeof stats->gradient_norm);
}

static bool fold_progress(const pmlp_stats *stats, void *user) {
    fold(user, stats);
    return true;
}

static bool fine(pmlp_trainer *trainer, pmlp_result result) {
    return CHECK(result == PMLP_OK, "%s: %s: %s", label, pmlp_result_name(result),
                 pmlp_trainer_error(trainer)->text);
}

/* Steps of ragged batches with a changed learning rate, two shuffled epochs whose last batch is
   ragged, an evaluation. */
static words train(const network *net, pmlp_trainer_desc desc) {
    static const size_t rows[] = {16, 13, 1, 7};
    words out = {0, 0, 0, false};
    pmlp_error error = {0};
    pmlp_stats stats = {0};
    pmlp_trainer *trainer = NULL;
    pmlp_data data = make_data(net);
    pmlp_model *model = make_model(net, 5);
    uint64_t before = 0;
    if (!model) return out;
    pmlp_model_hash(model, &before, NULL);
    desc.batch = BATCH, desc.seed = 9;
    desc.progress = fold_progress, desc.progress_user = &out;
    pmlp_result made = pmlp_trainer_create(model, &desc, &trainer, &error);
    bool ok = CHECK(made == PMLP_OK, "%s: %s: %s", label, pmlp_result_name(made), error.text);
    for (size_t i = 0, first = 3; ok && i < 4; first += rows[i++]) {
        pmlp_data batch = rows_of(net, &data, first, rows[i]);
        ok = i != 2 || fine(trainer, pmlp_trainer_set_learning_rate(trainer, 0.02f));
        ok = ok && fine(trainer, pmlp_trainer_step(trainer, &batch, &stats));
        fold(&out, &stats);
    }
    for (int epoch = 0; ok && epoch < 2; epoch++) {
        /* an evaluation in between must leave no trace; serial runs go without */
        if (epoch == 1 && !desc.no_threads)
            ok = fine(trainer, pmlp_trainer_eval(trainer, &data, NULL));
        ok = ok && fine(trainer, pmlp_trainer_epoch(trainer, &data, &stats));
        fold(&out, &stats);
    }
    ok = ok && CHECK(stats.step == 12 && stats.epoch == 2, "%s: step %d, epoch %d", label,
                     (int)stats.step, (int)stats.epoch);
    ok = ok && fine(trainer, pmlp_trainer_eval(trainer, &data, &stats));
    fold(&out, &stats);
    ok = ok && fine(trainer, pmlp_trainer_sync(trainer));
    ok = ok && CHECK(pmlp_model_hash(model, &out.weights, &error) == PMLP_OK, "%s: %s", label,
                     error.text);
    pmlp_trainer_destroy(trainer);
    if (ok) {
        uint64_t after = 0;
        CHECK(pmlp_model_hash(model, &after, NULL) == PMLP_OK && after == out.weights,
              "%s: destroying the trainer changed the weights", label);
        CHECK(after != before, "%s: nothing was learnt", label);
    }
    pmlp_model_destroy(model);
    out.ok = ok;
    return out;
}

static words train_serially(const network *net, pmlp_trainer_desc desc) {
    desc.workers = desc.microbatches = 1, desc.no_threads = true;
    desc.schedule = PMLP_SCHEDULE_SEQUENTIAL;
    desc.custom = NULL, desc.cuts = NULL, desc.slots = 0, desc.w_rows = 0;
    desc.virtual_stages = 0, desc.edges = NULL;
    snprintf(label, sizeof label, "serial, %s, %s", net->name, pmlp_optimizer_name(desc.optimizer));
    return train(net, desc);
}

static void compare(words serial, words pipeline) {
    if (!serial.ok || !pipeline.ok) return; /* said already */
    CHECK(serial.weights == pipeline.weights, "%s: weights %016llx, serial %016llx", label,
          (unsigned long long)pipeline.weights, (unsigned long long)serial.weights);
    CHECK(serial.losses == pipeline.losses, "%s: losses differ from serial", label);
    CHECK(serial.norms == pipeline.norms, "%s: gradient norms differ from serial", label);
}

static void describe(const network *net, const pmlp_trainer_desc *desc) {
    snprintf(label, sizeof label, "%s, %s, %d x %d stages, %d micro-batches, %s, slots %d%s%s%s%s",
             net->name, pmlp_optimizer_name(desc->optimizer), desc->workers,
             desc->virtual_stages ? desc->virtual_stages : 1, desc->microbatches,
             pmlp_schedule_kind_name(desc->schedule), desc->slots,
             desc->edges ? ", other edges" : "",
             desc->clip_norm > 0 ? ", clip" : "", desc->weight_decay > 0 ? ", decay" : "",
             desc->no_threads ? ", no threads" : "");
}

/* --- everything with everything -------------------------------------------------------------- */

static const pmlp_schedule_kind kinds[] = {PMLP_SCHEDULE_SEQUENTIAL, PMLP_SCHEDULE_GPIPE,
                                           PMLP_SCHEDULE_1F1B};
static const pmlp_optimizer optimizers[] = {PMLP_SGD, PMLP_MOMENTUM, PMLP_NESTEROV, PMLP_ADAM,
                                            PMLP_ADAMW};
static const int microbatches[] = {1, 2, 3, 5, 8, 16};

/* Calls body for every workers x micro-batches x schedule x threads; the quick set takes every
   `stride`-th of them. Returns how many it called. */
static long each_pipeline(long stride, void (*body)(pmlp_trainer_desc, void *),
                          pmlp_trainer_desc desc, void *user) {
    /* by default one W does a whole batch as small as these: then nothing would be accumulated */
    static const size_t w_rows[] = {1, 6, 0};
    long number = 0, called = 0;
    for (desc.workers = 1; desc.workers <= 4; desc.workers++)
        for (int m = 0; m < 6; m++)
            for (int k = 0; k < 3; k++)
                for (int quiet = 0; quiet < 2; quiet++) {
                    if (number++ % stride != 0) continue;
                    desc.microbatches = microbatches[m], desc.schedule = kinds[k];
                    desc.no_threads = quiet != 0;
                    desc.w_rows = w_rows[(number + m + desc.workers) % 3];
                    body(desc, user);
                    called++;
                }
    return called;
}

typedef struct comparison {
    const network *net;
    words serial;
} comparison;

static void compare_pipeline(pmlp_trainer_desc desc, void *user) {
    comparison *with = user;
    describe(with->net, &desc);
    words got = train(with->net, desc);
    describe(with->net, &desc);
    compare(with->serial, got);
}

TEST(exhaustive) {
    static const network *nets[] = {&relu_net, &mixed_net};
    long runs = 0, references = 0;
    uint64_t seen[20], word = 0; /* of everything: to compare one build with another */
    for (int n = 0; n < 2; n++)
        for (int o = 0; o < 5; o++)
            for (int variant = 0; variant < 2; variant++) {
                pmlp_trainer_desc desc = {0};
                desc.optimizer = optimizers[o], desc.gradient_norm = true;
                if (variant) desc.clip_norm = 0.05f, desc.weight_decay = 0.01f;
                comparison with = {nets[n], train_serially(nets[n], desc)};
                for (long i = 0; i < references; i++) {
                    /* without decay AdamW is Adam; else each must learn something of its own */
                    bool same = seen[i] == with.serial.weights;
                    bool adams = desc.optimizer == PMLP_ADAMW && !variant && i == references - 2;
                    CHECK(same == adams, "%s: %s", label,
                          same ? "the weights of another" : "not Adam");
                }
                seen[references++] = with.serial.weights;
                word = pmlp_hash(word, &with.serial, offsetof(words, ok));
                runs += each_pipeline(test_quick() ? 13 : 1, compare_pipeline, desc, &with);
            }
    SAY("workers 1..4 x micro-batches 1..16 x 3 schedules x threads or none x 5 optimizers x "
        "clipping and decay x 2 networks: %s runs, equal bits to %s serial ones (word %016llx)",
        test_count(runs), test_count(references), (unsigned long long)word);
}

/* Every synchronous kind, with so many stages per worker. */
static const struct { pmlp_schedule_kind kind; int least, most; } all_kinds[] = {
    {PMLP_SCHEDULE_SEQUENTIAL, 1, 1}, {PMLP_SCHEDULE_GPIPE, 1, 1},
    {PMLP_SCHEDULE_1F1B, 1, 1},       {PMLP_SCHEDULE_EAGER_1F1B, 1, 1},
    {PMLP_SCHEDULE_INTERLEAVED, 1, 3},{PMLP_SCHEDULE_LOOPED_BFS, 1, 3},
    {PMLP_SCHEDULE_ZB_H1, 1, 1},      {PMLP_SCHEDULE_ZB_H2, 1, 1},
    {PMLP_SCHEDULE_ZB_V, 2, 2},       {PMLP_SCHEDULE_DUALPIPE_V, 2, 2},
    {PMLP_SCHEDULE_AUTO, 1, 3}};
enum { ALL_KINDS = (int)(sizeof all_kinds / sizeof *all_kinds), COMBINATIONS = 457 };

/* What each kind can do, said once more than in the library. */
static bool can_have(int k, int p, int v, int m) {
    if (v < all_kinds[k].least || v > all_kinds[k].most) return false;
    if (all_kinds[k].kind == PMLP_SCHEDULE_DUALPIPE_V) return m >= 2 * p;
    if (all_kinds[k].kind == PMLP_SCHEDULE_INTERLEAVED) return m < p || m % (m / p) == 0;
    return true;
}

/* The micro-batches of all, fewer than workers and no multiple of them too. Calls body for what the
   kinds can have, every `stride`-th; what they cannot is refused. Returns how many can be. */
static long each_kind(long stride, void (*body)(pmlp_trainer_desc, void *), pmlp_trainer_desc desc,
                      void *user, long *called) {
    static const int many[] = {1, 2, 3, 5, 6, 8, 16};
    long allowed = 0;
    for (int k = 0; k < ALL_KINDS; k++)
        for (int p = 1; p <= 4; p++)
            for (int v = 1; v <= 3; v++)
                for (int m = 0; m < 7; m++) {
                    pmlp_schedule_desc plan = {0};
                    pmlp_schedule *schedule = NULL;
                    plan.kind = desc.schedule = all_kinds[k].kind;
                    plan.workers = desc.workers = p, plan.virtual_stages = desc.virtual_stages = v;
                    plan.microbatches = desc.microbatches = many[m], plan.costs = desc.costs;
                    const pmlp_result made = pmlp_schedule_create(&plan, &schedule, NULL);
                    pmlp_schedule_destroy(schedule);
                    CHECK(made == (can_have(k, p, v, many[m]) ? PMLP_OK : PMLP_ERROR_ARGUMENT),
                          "%s, %d workers with %d stages, %d micro-batches: %s",
                          pmlp_schedule_kind_name(plan.kind), p, v, many[m], pmlp_result_name(made));
                    if (made != PMLP_OK || allowed++ % stride) continue;
                    body(desc, user), ++*called;
                }
    return allowed;
}

/* Each with another optimizer, network, way of putting off W, with threads and without. */
typedef struct all_words {
    words serial[2][5];
    long number;
} all_words;

static pmlp_trainer_desc nth_desc(pmlp_trainer_desc desc, long number, int *net, int *o) {
    static const size_t w_rows[] = {0, 1, 6};
    *net = (int)(number / 2 % 2), *o = (int)(number / 4 % 5);
    desc.optimizer = optimizers[*o], desc.gradient_norm = true;
    if (*o % 2) desc.clip_norm = 0.05f, desc.weight_decay = 0.01f;
    desc.w_rows = w_rows[number / 20 % 3], desc.no_threads = number % 2;
    return desc;
}

static void serial_words(all_words *all, pmlp_trainer_desc desc) {
    int net, o;
    memset(all, 0, sizeof *all);
    for (long number = 0; number < 20; number += 2) {
        pmlp_trainer_desc how = nth_desc(desc, number, &net, &o);
        all->serial[net][o] = train_serially(net ? &wide_net : &long_net, how);
    }
}

static void compare_nth(pmlp_trainer_desc desc, all_words *all) {
    int net, o;
    desc = nth_desc(desc, all->number++, &net, &o);
    describe(net ? &wide_net : &long_net, &desc);
    const words got = train(net ? &wide_net : &long_net, desc);
    describe(net ? &wide_net : &long_net, &desc);
    compare(all->serial[net][o], got);
}

static void compare_twice(pmlp_trainer_desc desc, void *user) { /* with threads and without */
    compare_nth(desc, user), compare_nth(desc, user);
}

TEST(all_kinds) {
    static all_words all;
    double costs[4][12];
    uint64_t rng = 6;
    pmlp_trainer_desc desc = {0};
    pmlp_costs given = {.f = costs[0], .i = costs[1], .w = costs[2], .u = costs[3], .latency = 0.2};
    long called = 0, columns = 0;
    for (int i = 0; i < 48; i++) costs[i / 12][i % 12] = test_uniform(&rng, 0.1, 3);
    serial_words(&all, desc);
    desc.costs = &given; /* auto's */
    const long allowed = each_kind(test_quick() ? 9 : 1, compare_twice, desc, &all, &called);
    CHECK(allowed == COMBINATIONS, "%ld combinations, not %d", allowed, COMBINATIONS);
    for (int stages = 2; stages <= 12; stages++) {
        pmlp_cut cuts[12];
        pmlp_model *model = make_model(&wide_net, 5);
        CHECK(pmlp_partition(model, stages, false, NULL, cuts, NULL, NULL) == PMLP_OK, "%d", stages);
        for (int i = 0; i < stages - 1; i++) columns += cuts[i].column > 0;
        pmlp_model_destroy(model);
    }
    CHECK(columns > 11, "only %ld cuts inside the first layer", columns);
    SAY("all 11 synchronous kinds, 1..4 workers x 1..3 stages x 1..16 micro-batches: %s of %s that "
        "can be, with threads and without, W put off or not: equal bits",
        test_count(called), test_count(allowed));
}

/* Auto that measures for itself. */
TEST(auto_measured) {
    static all_words all;
    long runs = 0;
    pmlp_trainer_desc desc = {0};
    serial_words(&all, desc);
    desc.schedule = PMLP_SCHEDULE_AUTO;
    for (desc.workers = 1; desc.workers <= 4; desc.workers++)
        for (desc.virtual_stages = 1; desc.virtual_stages <= 3; desc.virtual_stages++)
            for (int m = 1; m < 4; m++, runs++) {
                if (test_quick() && (desc.workers + desc.virtual_stages + m) % 4) continue;
                desc.microbatches = microbatches[m];
                compare_nth(desc, &all);
            }
    SAY("auto by its own measurements: %s runs, equal bits", test_count(runs));
}

/* --- edges without a buffer ------------------------------------------------------------------ */

/* send() is BUSY until the receiver has taken the message: either side waits for the other. */
typedef struct meeting {
    pmlp_edge_desc desc;
    struct meet_plan *plan;
    pthread_mutex_t lock;
    bool offered, taken;
    int microbatch;
    const void *data;
    size_t bytes;
    long busy;
} meeting;

typedef struct meet_plan {
    pmlp_edges table;
    pthread_mutex_t lock;
    long patience; /* BUSYs in a row after which a send gives up */
    long messages, broken;
} meet_plan;

static pmlp_result meet_connect(const pmlp_edges *self, const pmlp_edge_desc *desc, void **edge,
                                pmlp_error *error) {
    meeting *e = calloc(1, sizeof *e);
    (void)error;
    if (!e) return PMLP_ERROR_MEMORY;
    e->desc = *desc, e->plan = (meet_plan *)(uintptr_t)self->user;
    pthread_mutex_init(&e->lock, NULL);
    return *edge = e, PMLP_OK;
}

static void meet_disconnect(void *edge) {
    meeting *e = edge;
    pthread_mutex_destroy(&e->lock);
    free(e);
}

static pmlp_result meet_reset(void *edge) {
    meeting *e = edge;
    e->plan->broken += e->offered; /* something of the last pass was never taken */
    e->busy = 0;
    return PMLP_OK;
}

static pmlp_result meet_send(void *edge, int microbatch, const void *data, size_t bytes) {
    meeting *e = edge;
    pmlp_result result = PMLP_BUSY;
    bool offers = false;
    long broken = 0;
    pthread_mutex_lock(&e->lock);
    if (!e->offered) {
        offers = e->offered = true, e->taken = false;
        e->microbatch = microbatch, e->data = data, e->bytes = bytes;
    }
    broken += e->microbatch != microbatch || e->data != data || e->bytes != bytes;
    if (e->taken) e->offered = false, result = PMLP_OK;
    e->busy = result == PMLP_OK ? 0 : e->busy + 1;
    if (e->busy > e->plan->patience) e->offered = false, result = PMLP_ERROR_BACKEND;
    pthread_mutex_unlock(&e->lock);
    if (offers) e->desc.wake(e->desc.to_wake);
    if (broken || result == PMLP_OK) {
        pthread_mutex_lock(&e->plan->lock);
        e->plan->messages += result == PMLP_OK, e->plan->broken += broken;
        pthread_mutex_unlock(&e->plan->lock);
    }
    return result;
}

static pmlp_result meet_receive(void *edge, int microbatch, void *data, size_t bytes) {
    meeting *e = edge;
    pmlp_result result = PMLP_BUSY;
    long broken = 0;
    pthread_mutex_lock(&e->lock);
    if (e->offered && !e->taken) {
        broken = e->microbatch != microbatch || e->bytes != bytes ||
                 (e->plan->table.shared && e->data != data);
        if (!e->plan->table.shared && bytes && !broken) memcpy(data, e->data, bytes);
        e->taken = true, result = PMLP_OK;
    }
    pthread_mutex_unlock(&e->lock);
    if (result == PMLP_OK) e->desc.wake(e->desc.from_wake);
    if (broken) {
        pthread_mutex_lock(&e->plan->lock);
        e->plan->broken += broken;
        pthread_mutex_unlock(&e->plan->lock);
    }
    return result;
}

static void meet_make(meet_plan *plan, bool shared, pmlp_transport transport, long patience) {
    memset(plan, 0, sizeof *plan);
    pthread_mutex_init(&plan->lock, NULL);
    plan->patience = patience;
    plan->table.abi = PMLP_EDGES_ABI, plan->table.size = sizeof plan->table;
    plan->table.name = "meetings", plan->table.user = plan;
    plan->table.shared = shared, plan->table.transport = transport;
    plan->table.connect = meet_connect, plan->table.disconnect = meet_disconnect;
    plan->table.reset = meet_reset, plan->table.send = meet_send;
    plan->table.receive = meet_receive;
}

enum { PATIENCE = 30000 }; /* some of it spent asleep: ten seconds or more */
static meet_plan meet;
static long met; /* messages */

static void compare_meeting(pmlp_trainer_desc desc, void *user) {
    if (desc.workers == 1 || test_run.bad) return; /* a hang takes long to give up */
    const bool first = ((all_words *)user)->number / 4 % 2;
    for (int turn = 0; turn < 2; turn++) { /* with threads, then without; one of the two copies */
        meet_make(&meet, first ^ turn, PMLP_TRANSPORT_RENDEZVOUS, PATIENCE);
        desc.edges = &meet.table;
        compare_nth(desc, user);
        CHECK(meet.messages > 0 && meet.broken == 0, "%s: %ld messages, %ld broken rules", label,
              meet.messages, meet.broken);
        met += meet.messages;
    }
}

/* Left at SLOTS, the trainer would write lists that hang over such edges where the replay says so;
   here they give up instead. The trainer runs without threads. */
typedef struct hang_count { long hung, went; } hang_count;

static void expect_hang(pmlp_trainer_desc desc, void *user) {
    hang_count *count = user;
    pmlp_data data = make_data(&long_net), batch = rows_of(&long_net, &data, 0, BATCH);
    pmlp_model *model = make_model(&long_net, 5);
    pmlp_trainer *trainer = NULL;
    pmlp_schedule *lowered = NULL;
    pmlp_error error = {0};
    if (desc.workers > 1) {
        meet_make(&meet, true, PMLP_TRANSPORT_SLOTS, 5000);
        desc.edges = &meet.table, desc.no_threads = true, desc.batch = BATCH;
        describe(&long_net, &desc);
        CHECK(pmlp_trainer_create(model, &desc, &trainer, &error) == PMLP_OK, "%s: %s", label,
              error.text);
    }
    if (trainer) {
        pmlp_schedule_lower(pmlp_trainer_schedule(trainer), &lowered, NULL);
        const pmlp_result said =
            pmlp_schedule_replay(lowered, PMLP_TRANSPORT_RENDEZVOUS, 0, NULL, &error);
        const pmlp_result got = pmlp_trainer_step(trainer, &batch, NULL);
        CHECK(got == (said == PMLP_OK ? PMLP_OK : PMLP_ERROR_BACKEND), "%s: %s, the replay: %s",
              label, pmlp_result_name(got), pmlp_result_name(said));
        CHECK(said == PMLP_OK || (said == PMLP_ERROR_DEADLOCK && strstr(error.text, "waits for")),
              "%s: the replay says '%s'", label, error.text);
        if (got != PMLP_OK)
            CHECK(!strncmp(pmlp_trainer_error(trainer)->op, "SEND", 4), "%s: '%s'", label,
                  pmlp_trainer_error(trainer)->text);
        *(got == PMLP_OK ? &count->went : &count->hung) += 1;
    }
    pmlp_schedule_destroy(lowered);
    pmlp_trainer_destroy(trainer);
    pmlp_model_destroy(model);
}

TEST(rendezvous) {
    static all_words all;
    long called = 0, runs = 0;
    hang_count hangs = {0, 0};
    pmlp_trainer_desc desc = {0};
    const pmlp_costs unit = {0};
    met = 0;
    serial_words(&all, desc);
    desc.costs = &unit;
    each_kind(test_quick() ? 41 : 3, compare_meeting, desc, &all, &called);
    for (int kind = PMLP_SCHEDULE_PIPEDREAM; kind <= PMLP_SCHEDULE_PIPEDREAM_2BW; kind++)
        for (desc.workers = 2; desc.workers <= 4; desc.workers++)
            for (int way = 0; way < 4; way++, runs++) { /* asynchronous ones against themselves */
                desc.schedule = (pmlp_schedule_kind)kind, desc.virtual_stages = 1;
                desc.microbatches = desc.workers + way % 2, desc.edges = NULL, desc.no_threads = true;
                describe(&long_net, &desc);
                const words slots = train(&long_net, desc);
                meet_make(&meet, way / 2, PMLP_TRANSPORT_RENDEZVOUS, PATIENCE);
                desc.edges = &meet.table, desc.no_threads = way % 2;
                compare(slots, train(&long_net, desc));
                CHECK(meet.messages > 0 && meet.broken == 0, "%s: %ld broken rules", label,
                      meet.broken);
                met += meet.messages;
            }
    desc.edges = NULL;
    each_kind(test_quick() ? 7 : 2, expect_hang, desc, &hangs, &called);
    CHECK(hangs.hung > hangs.went && hangs.went > 0, "%ld hang, %ld do not", hangs.hung, hangs.went);
    SAY("edges without a buffer, shared and copying: %s runs of all kinds, %s messages, equal bits; "
        "in slots' order %s of %s would hang, as the replay says",
        test_count(all.number + runs), test_count(met), test_count(hangs.hung),
        test_count(hangs.hung + hangs.went));
}

/* Asking for the norm, with a limit that is never reached, must change no weight. */
TEST(norm_is_free) {
    pmlp_trainer_desc desc = {0};
    desc.optimizer = PMLP_MOMENTUM;
    words plain = train_serially(&relu_net, desc);
    desc.gradient_norm = true;
    words norm = train_serially(&relu_net, desc);
    desc.clip_norm = 1e9f;
    words unclipped = train_serially(&relu_net, desc);
    desc.workers = 3, desc.microbatches = 4;
    describe(&relu_net, &desc);
    compare(unclipped, train(&relu_net, desc));
    CHECK(plain.weights == norm.weights, "asking for the norm changed the weights");
    CHECK(plain.weights == unclipped.weights, "a limit out of reach changed the weights");
    CHECK(norm.norms == unclipped.norms && plain.losses == norm.losses, "norms or losses differ");
    SAY("the gradient norm and a clip_norm out of reach change no bit");
}

TEST(instruction_sets) {
    static const char *names[] = {"generic", "sse2", "avx2", "avx512", "neon"};
    char seen[80] = "";
    long runs = 0;
    for (int i = 0; i < 5; i++) {
        const pmlp_backend *backend = pmlp_cpu_backend_isa(names[i]);
        if (!backend) continue;
        for (int n = 0; n < 2; n++) {
            const network *net = n ? &mixed_net : &relu_net;
            pmlp_trainer_desc desc = {0};
            desc.backend = backend, desc.gradient_norm = true, desc.clip_norm = 0.5f;
            desc.optimizer = n ? PMLP_NESTEROV : PMLP_ADAM;
            comparison with = {net, train_serially(net, desc)};
            runs += each_pipeline(test_quick() ? 29 : 5, compare_pipeline, desc, &with);
        }
        snprintf(seen + strlen(seen), sizeof seen - strlen(seen), " %s", names[i]);
    }
    SAY("each instruction set (%s ) against its own serial run: %s runs", seen, test_count(runs));
}

TEST(slots) {
    long runs = 0;
    pmlp_trainer_desc desc = {0};
    desc.gradient_norm = true, desc.optimizer = PMLP_MOMENTUM;
    words serial = train_serially(&relu_net, desc);
    for (desc.workers = 2; desc.workers <= 4; desc.workers++)
        for (int m = 1; m < 6; m++)
            for (int k = 0; k < 3; k++)
                for (int slots = 0; slots < 3; slots++)
                    for (int quiet = 0; quiet < 2; quiet++) {
                        if (test_quick() && (m + k + slots + quiet) % 5) continue;
                        desc.microbatches = microbatches[m], desc.schedule = kinds[k];
                        desc.slots = slots < 2 ? slots + 1 : microbatches[m];
                        desc.no_threads = quiet != 0;
                        describe(&relu_net, &desc);
                        compare(serial, train(&relu_net, desc));
                        runs++;
                    }
    SAY("1, 2 and m slots per edge: %s runs, equal bits", test_count(runs));
}

/* Stages cut by hand, down to one layer and up to all but one. */
TEST(cuts) {
    static const pmlp_cut by_hand[][3] = {{{1, 0}, {2, 0}, {3, 0}}, {{1, 0}, {2, 0}, {7, 0}},
                                          {{5, 0}, {6, 0}, {7, 0}}, {{1, 0}, {6, 0}, {7, 0}},
                                          {{3, 0}, {4, 0}, {6, 0}}};
    long runs = 0;
    pmlp_trainer_desc desc = {0};
    desc.optimizer = PMLP_ADAM, desc.gradient_norm = true;
    words serial = train_serially(&deep_net, desc);
    for (int c = 0; c < 5; c++)
        for (int k = 0; k < 3; k++)
            for (int m = 1; m <= 9; m += 4) {
                desc.workers = 4, desc.cuts = by_hand[c], desc.schedule = kinds[k];
                desc.microbatches = m;
                describe(&deep_net, &desc);
                compare(serial, train(&deep_net, desc));
                runs++;
            }
    SAY("stages cut by hand: %s runs, equal bits", test_count(runs));
}

/* Boundaries inside the first layer: once, several times, together with others; every activation of
   that layer, since GELU keeps more than its outputs; networks of one layer only. */
TEST(columns) {
    static const pmlp_cut by_hand[][3] = {{{0, 32}, {1, 0}, {2, 0}}, {{0, 64}, {1, 0}, {2, 0}},
                                          {{0, 32}, {0, 64}, {0, 96}}, {{0, 96}, {1, 0}, {2, 0}},
                                          {{0, 32}, {0, 96}, {2, 0}}, {{0, 64}, {0, 96}, {1, 0}}};
    static network net = {"wide, xent", 3, {7, 101, 12, 5}, {PMLP_RELU, PMLP_TANH, PMLP_LINEAR},
                          PMLP_LOSS_XENT, false};
    long runs = 0;
    pmlp_trainer_desc desc = {0};
    desc.optimizer = PMLP_MOMENTUM, desc.gradient_norm = true, desc.weight_decay = 0.01f;
    for (int a = PMLP_RELU; a <= PMLP_LINEAR; a++)
        for (int single = 0; single < 2; single++) {
            net.layers = single ? 1 : 3, net.sizes[1] = 101;
            net.act[0] = (pmlp_activation)a;
            words serial = train_serially(&net, desc);
            for (int c = 0; c < 6; c++)
                for (int stages = 2; stages <= 4; stages++)
                    for (int m = 1; m <= 5; m += 2) {
                        desc.cuts = by_hand[c];
                        if (by_hand[c][stages - 2].layer >= net.layers) continue;
                        desc.workers = stages, desc.schedule = kinds[runs % 3];
                        desc.microbatches = m, desc.no_threads = runs % 2;
                        describe(&net, &desc);
                        compare(serial, train(&net, desc));
                        runs++;
                    }
            for (int c = 0; c < 6; c++) /* the same cuts, two stages a worker */
                for (int k = 0; k < ALL_KINDS; k++) {
                    pmlp_trainer_desc two = desc;
                    if (all_kinds[k].most < 2 || by_hand[c][2].layer >= net.layers) continue;
                    two.cuts = by_hand[c], two.workers = two.virtual_stages = 2;
                    two.schedule = all_kinds[k].kind, two.microbatches = 4;
                    two.no_threads = runs % 2;
                    runs++;
                    if (test_quick() && runs % 5) continue;
                    describe(&net, &two);
                    compare(serial, train(&net, two));
                }
        }
    SAY("stages cut inside the first layer: %s runs, equal bits", test_count(runs));
}

/* W put off until so many rows are together, or not at all. */
TEST(w_rows) {
    static const size_t together[] = {1, 2, 5, 8, 1000};
    long runs = 0;
    pmlp_trainer_desc desc = {0};
    desc.optimizer = PMLP_ADAM, desc.clip_norm = 0.5f;
    words serial = train_serially(&mixed_net, desc);
    for (int r = 0; r < 5; r++)
        for (int k = 0; k < 3; k++)
            for (int m = 1; m <= 16; m += 5)
                for (int workers = 1; workers <= 4; workers++) {
                    desc.workers = workers, desc.schedule = kinds[k], desc.microbatches = m;
                    desc.w_rows = together[r], desc.no_threads = runs % 2;
                    describe(&mixed_net, &desc);
                    compare(serial, train(&mixed_net, desc));
                    runs++;
                }
    SAY("W put off until 1 to 1,000 rows are together: %s runs, equal bits", test_count(runs));
}

/* Losses are added in the order of the samples: the mean over many rows is, to the bit, that of the
   rows' losses added one after the other. Comparing pipelines with each other could not show it. */
TEST(loss_order) {
    const network *nets[] = {&relu_net, &mixed_net};
    for (int n = 0; n < 2; n++)
        for (int workers = 1; workers <= 3; workers++) {
            pmlp_data data = make_data(nets[n]);
            pmlp_model *model = make_model(nets[n], 5);
            pmlp_trainer_desc desc = {0};
            pmlp_trainer *trainer = NULL;
            pmlp_stats stats = {0};
            pmlp_error error = {0};
            double sum = 0;
            desc.workers = workers, desc.microbatches = 3, desc.batch = BATCH;
            if (!CHECK(pmlp_trainer_create(model, &desc, &trainer, &error) == PMLP_OK, "%s",
                       error.text))
                return;
            for (size_t r = 0; r < ROWS; r++) {
                pmlp_data row = rows_of(nets[n], &data, r, 1);
                fine(trainer, pmlp_trainer_eval(trainer, &row, &stats));
                sum += stats.loss;
            }
            fine(trainer, pmlp_trainer_eval(trainer, &data, &stats));
            sum /= ROWS;
            CHECK(memcmp(&sum, &stats.loss, sizeof sum) == 0, "%s: mean %.17g, row by row %.17g",
                  nets[n]->name, stats.loss, sum);
            pmlp_trainer_destroy(trainer);
            pmlp_model_destroy(model);
        }
    SAY("losses are added in the order of the samples: 6 evaluations, to the bit");
}

/* --- schedules that no builder writes -------------------------------------------------------- */

static const struct {
    const char *name;
    int slots; /* fewest that do */
    const char *text;
} custom[] = {
    /* W stays behind I, so that the other worker gets its gradient sooner */
    {"zero bubble, W late", 1,
     "0F0,0F1,0I0,0F2,0W0,0I1,0F3,0I2,0W1,0W2,0I3,0W3\n"
     "1F0,1I0,1F1,1I1,1W0,1F2,1I2,1W1,1F3,1I3,1W2,1W3\n"},
    {"all W at the end", 1,
     "0F0,0F1,0F2,0I0,0I1,0I2,0W0,0W1,0W2\n"
     "1F0,1I0,1F1,1I1,1F2,1I2,1W0,1W1,1W2\n"},
    {"B and I, W mixed, U in the lists", 1,
     "0F0,0F1,0B0,0F2,0I1,0W1,0B2,0U\n"
     "1F0,1I0,1W0,1F1,1B1,1F2,1I2,1W2,1U\n"},
    {"backwards in another order than forwards", 3,
     "0F2,0F0,0F1,0I1,0I2,0I0,0W0,0W1,0W2\n"
     "1F2,1F0,1F1,1I1,1I2,1I0,1W0,1W1,1W2\n"},
    {"two stages a worker, breadth first", 4,
     "0F0,0F1,0F2,0F3,2F0,2F1,2F2,2F3,2B0,2B1,2B2,2B3,0B0,0B1,0B2,0B3\n"
     "1F0,1F1,1F2,1F3,3F0,3F1,3F2,3F3,3B0,3B1,3B2,3B3,1B0,1B1,1B2,1B3\n"},
    {"two stages a worker, interleaved", 4,
     "0F0,0F1,2F0,2F1,0F2,2B0,0F3,2B1,2F2,0B0,2F3,0B1,2B2,2B3,0B2,0B3\n"
     "1F0,1F1,3F0,3B0,3F1,3B1,1F2,1B0,1F3,1B1,3F2,3B2,3F3,3B3,1B2,1B3\n"},
    {"a V: stages 1 and 2 on one worker", 2,
     "0F0,0F1,3F0,3B0,0F2,3F1,3B1,0B0,3F2,3B2,0B1,0B2\n"
     "1F0,2F0,1F1,2F1,2B0,1B0,1F2,2F2,2B1,1B1,2B2,1B2\n"},
    {"the last stage first in the list of workers", 1,
     "2F0,2B0,2F1,2B1,2F2,2B2\n0F0,0F1,0F2,0B0,0B1,0B2\n1F0,1F1,1B0,1F2,1B1,1B2\n"},
    {"all stages on one worker", 0,
     "0F0,1F0,2F0,2B0,0F1,1B0,1F1,0B0,2F1,2I1,1I1,0I1,2W1,1W1,0W1\n"},
    {"three stages on two workers", 4,
     "0F0,0F1,0F2,0F3,2F0,2F1,2F2,2F3,2B0,2B1,2B2,2B3,0B0,0B1,0B2,0B3\n"
     "1F0,1F1,1F2,1F3,1B0,1B1,1B2,1B3\n"},
};
enum { CUSTOM = (int)(sizeof custom / sizeof *custom) };

static pmlp_schedule *parse(const char *name, const char *text) {
    pmlp_schedule *schedule = NULL;
    pmlp_error error = {0};
    pmlp_result result = pmlp_schedule_parse(text, strlen(text), NULL, &schedule, &error);
    CHECK(result == PMLP_OK, "%s: %s", name, error.text);
    return schedule;
}

TEST(custom) {
    long runs = 0;
    for (int o = 0; o < 5; o++) {
        pmlp_trainer_desc desc = {0};
        desc.optimizer = optimizers[o], desc.gradient_norm = true;
        desc.clip_norm = o % 2 ? 0.1f : 0;
        words serial = train_serially(&deep_net, desc);
        for (int c = 0; c < CUSTOM; c++) {
            pmlp_schedule *schedule = parse(custom[c].name, custom[c].text);
            if (!schedule) continue;
            for (int slots = 0; slots < 2; slots++)
                for (int quiet = 0; quiet < 2; quiet++) {
                    desc.custom = schedule, desc.slots = slots ? custom[c].slots : 0;
                    desc.w_rows = slots ? 1 : 0;
                    desc.no_threads = quiet != 0;
                    snprintf(label, sizeof label, "custom '%s', %s, slots %d%s", custom[c].name,
                             pmlp_optimizer_name(desc.optimizer), desc.slots,
                             quiet ? ", no threads" : "");
                    compare(serial, train(&deep_net, desc));
                    runs++;
                }
            pmlp_schedule_destroy(schedule);
        }
    }
    SAY("%d schedules written by hand (I and W apart, two stages a worker, V): %s runs, equal bits",
        CUSTOM, test_count(runs));
}

/* --- schedules drawn by lot ------------------------------------------------------------------ */

enum { LOT_WORKERS = 4, LOT_STAGES = 8, LOT_MICROBATCHES = 6, LOT_TEXT = 4096 };

typedef struct lot {
    int p, stages, m;
    int owner[LOT_STAGES];
    int forward[LOT_MICROBATCHES], backward[LOT_MICROBATCHES]; /* orders of F and of I */
    int f[LOT_STAGES], i[LOT_STAGES], w[LOT_STAGES];           /* how many are done */
    char rows[LOT_WORKERS][LOT_TEXT];
} lot;

static void permute(uint64_t *rng, int *order, int n) {
    bool ascending = test_random(rng) % 2 == 0;
    for (int k = 0; k < n; k++) order[k] = k;
    for (int k = n - 1; k > 0 && !ascending; k--) {
        int other = (int)(test_random(rng) % (uint64_t)(k + 1)), kept = order[k];
        order[k] = order[other], order[other] = kept;
    }
}

static bool forward_done(const lot *l, int stage, int microbatch) {
    for (int k = 0; k < l->f[stage]; k++)
        if (l->forward[k] == microbatch) return true;
    return false;
}
static bool input_done(const lot *l, int stage, int microbatch) {
    for (int k = 0; k < l->i[stage]; k++)
        if (l->backward[k] == microbatch) return true;
    return false;
}

static void lot_write(lot *l, int stage, char op, int microbatch) {
    char *row = l->rows[l->owner[stage]];
    size_t used = strlen(row);
    snprintf(row + used, LOT_TEXT - used, "%d%c%d,", stage, op, microbatch);
}

/* Writes one action of one stage if one can run now. */
static bool lot_act(lot *l, uint64_t *rng, int stage) {
    const int last = l->stages - 1, f = l->f[stage], i = l->i[stage], w = l->w[stage];
    const int next = i < l->m ? l->backward[i] : -1;
    const bool can_f = f < l->m && (stage == 0 || l->f[stage - 1] > f);
    const bool can_i =
        i < l->m && forward_done(l, stage, next) && (stage == last || l->i[stage + 1] > i);
    const bool can_w = w < l->m && input_done(l, stage, w);
    switch (test_random(rng) % 4) {
    case 0:
        if (can_f) return lot_write(l, stage, 'F', l->forward[f]), l->f[stage]++, true;
        break;
    case 1:
        if (can_i) return lot_write(l, stage, 'I', next), l->i[stage]++, true;
        break;
    case 2:
        if (can_w) return lot_write(l, stage, 'W', w), l->w[stage]++, true;
        break;
    default:
        if (can_i && next == w)
            return lot_write(l, stage, 'B', w), l->i[stage]++, l->w[stage]++, true;
        break;
    }
    return false;
}

/* A legal schedule: every action is written at a moment at which it can run. */
static void lot_draw(lot *l, uint64_t *rng, char *text, size_t size) {
    memset(l, 0, sizeof *l);
    l->stages = 1 + (int)(test_random(rng) % LOT_STAGES);
    l->p = 1 + (int)(test_random(rng) % LOT_WORKERS);
    if (l->p > l->stages) l->p = l->stages;
    l->m = 1 + (int)(test_random(rng) % LOT_MICROBATCHES);
    for (int s = 0; s < l->stages; s++)
        l->owner[s] = s < l->p ? s : (int)(test_random(rng) % (uint64_t)l->p);
    for (int s = l->stages - 1; s > 0; s--) { /* so that owners do not ascend */
        int other = (int)(test_random(rng) % (uint64_t)(s + 1)), kept = l->owner[s];
        l->owner[s] = l->owner[other], l->owner[other] = kept;
    }
    permute(rng, l->forward, l->m), permute(rng, l->backward, l->m);
    for (int left = 3 * l->m * l->stages; left > 0;) {
        int stage = (int)(test_random(rng) % (uint64_t)l->stages);
        int before = l->f[stage] + l->i[stage] + l->w[stage];
        lot_act(l, rng, stage);
        left -= l->f[stage] + l->i[stage] + l->w[stage] - before;
    }
    text[0] = 0;
    for (int r = 0; r < l->p; r++) {
        size_t used = strlen(text);
        snprintf(text + used, size - used, "%s\n", l->rows[r]);
    }
}

TEST(by_lot) {
    static lot l;
    static char text[LOT_WORKERS * LOT_TEXT];
    uint64_t rng = 2024;
    const int draws = test_quick() ? 40 : 600;
    int most_slots = 0;
    words serial[5];
    pmlp_trainer_desc desc = {0};
    for (int o = 0; o < 5; o++) {
        desc.optimizer = optimizers[o], desc.gradient_norm = true;
        serial[o] = train_serially(&deep_net, desc);
    }
    for (int draw = 0; draw < draws; draw++) {
        pmlp_check report = {0};
        pmlp_error error = {0};
        lot_draw(&l, &rng, text, sizeof text);
        snprintf(label, sizeof label, "drawn schedule %d (%d workers, %d stages, %d micro-batches)",
                 draw, l.p, l.stages, l.m);
        pmlp_schedule *schedule = parse(label, text);
        if (!schedule) continue;
        if (CHECK(pmlp_schedule_check(schedule, 0, &report, &error) == PMLP_OK, "%s: %s\n%s", label,
                  error.text, text)) {
            const int fewest = report.slots;
            if (fewest > most_slots) most_slots = fewest;
            CHECK(fewest <= l.m, "%s: %d slots for %d messages", label, fewest, l.m);
            if (fewest > 0)
                CHECK(pmlp_schedule_check(schedule, fewest, NULL, &error) == PMLP_OK,
                      "%s: refused with the %d slots that were found: %s", label, fewest,
                      error.text);
            if (fewest > 1)
                CHECK(pmlp_schedule_check(schedule, fewest - 1, NULL, &error) ==
                          PMLP_ERROR_DEADLOCK,
                      "%s: %d slots would do, not %d", label, fewest - 1, fewest);
            desc.optimizer = optimizers[draw % 5], desc.custom = schedule;
            desc.w_rows = draw % 4 ? 1 : 0;
            desc.slots = draw & 1 ? fewest : 0, desc.no_threads = draw % 3 == 0;
            compare(serial[draw % 5], train(&deep_net, desc));
        }
        pmlp_schedule_destroy(schedule);
    }
    SAY("%d legal schedules drawn by lot (up to 8 stages, I and W in any order, up to %d slots): "
        "accepted, fewest slots right, equal bits",
        draws, most_slots);
}

/* --- a back end between trainer and CPU: watches the contract, or spoils it ------------------ */

typedef enum fault {
    FAULT_NONE,
    FAULT_LOSS,     /* one row's loss, if several workers train */
    FAULT_GRADIENT, /* dW[2][3] of one layer, when called with less than a batch */
    FAULT_WEIGHT,   /* w[2][3] of one layer after an update, if several workers train */
    FAULT_BIAS      /* b[2], the same */
} fault;

enum { FAULT_ROW = 2, FAULT_COLUMN = 3, WATCHED = 4 };

typedef struct spy {
    const pmlp_backend *inner;
    void *context;
    int workers;
    pthread_t thread; /* of the step's operations */
    bool used;
    long strangers; /* calls from a second thread, to create or during steps */
    long cores;     /* that this thread may run on, where it can be asked */
    struct spy_layer *layers;
} spy;

typedef struct spy_layer {
    spy *owner;
    void *inner;
    pmlp_layer_desc desc;
    size_t forward_rows, input_rows, weight_rows; /* summed over the calls of all steps */
    size_t most_rows;                             /* of one forward() */
    long updates, anew, empty;                    /* empty: calls with no row */
    struct spy_layer *next;
} spy_layer;

static struct {
    fault kind;
    size_t n_out;       /* the layer is known by its outputs */
    float relative;     /* 0: the next float */
    uint64_t from_step; /* of updates, from 1 */
} spoil;

static spy *spies[WATCHED]; /* contexts by worker, for the test that asks */
static long spies_opened;
static long weight_calls, serial_calls; /* of backward_weight, by several workers and by one */
static uint32_t drawn[4 * ROWS]; /* rows of data in the order in which input() was asked for them */
static size_t drawn_count;

static float spoiled(float value) {
    return spoil.relative > 0 ? value * (1 + spoil.relative) : nextafterf(value, INFINITY);
}

static long cores_allowed(void) {
    long count = 0;
#ifdef __linux__
    unsigned long cores[64] = {0};
    if (pmlp__get_cores(0, sizeof cores, cores) < 0) return 0;
    for (size_t bit = 0; bit < 8 * sizeof cores; bit++)
        count += (long)(cores[bit / (8 * sizeof *cores)] >> bit % (8 * sizeof *cores) & 1);
#endif
    return count;
}

/* What a worker has is made and used by one thread, whichever it is. */
static void spy_seen(spy *s) {
    if (!s->used) s->thread = pthread_self(), s->used = true, s->cores = cores_allowed();
    s->strangers += !pthread_equal(s->thread, pthread_self());
}

static pmlp_result spoil_tensor(spy_layer *l, pmlp_tensor tensor, bool weight) {
    static float w[MAX_WIDTH * MAX_WIDTH], b[MAX_WIDTH]; /* one layer is spoiled, by one worker */
    pmlp_result result = l->owner->inner->read(l->owner->context, l->inner, tensor, w, b);
    if (result != PMLP_OK) return result;
    if (weight)
        w[FAULT_ROW * l->desc.n_in + FAULT_COLUMN] =
            spoiled(w[FAULT_ROW * l->desc.n_in + FAULT_COLUMN]);
    else
        b[FAULT_ROW] = spoiled(b[FAULT_ROW]);
    return l->owner->inner->write(l->owner->context, l->inner, tensor, w, b);
}

static pmlp_result spy_open(const pmlp_backend *self, const pmlp_backend_desc *desc, void **context,
                            pmlp_error *error) {
    spy *s = calloc(1, sizeof *s);
    if (!s) return PMLP_ERROR_MEMORY;
    s->inner = self->user, s->workers = desc->workers;
    spy_seen(s);
    pmlp_result result = s->inner->open(s->inner, desc, &s->context, error);
    if (result != PMLP_OK) return free(s), result;
    if (desc->worker < WATCHED) spies[desc->worker] = s;
    spies_opened++;
    return *context = s, PMLP_OK;
}
static void spy_close(void *context) {
    spy *s = context;
    s->inner->close(s->context);
    for (int i = 0; i < WATCHED; i++)
        if (spies[i] == s) spies[i] = NULL;
    free(s);
}
static pmlp_result spy_alloc(void *context, size_t bytes, void **buffer) {
    spy *s = context;
    spy_seen(s);
    return s->inner->alloc(s->context, bytes, buffer);
}
static void spy_free(void *context, void *buffer) {
    spy *s = context;
    s->inner->free(s->context, buffer);
}
static size_t spy_row_floats(void *context, size_t n, pmlp_activation activation) {
    spy *s = context;
    return s->inner->row_floats(s->context, n, activation);
}
static pmlp_result spy_layer_create(void *context, const pmlp_layer_desc *desc, void **layer) {
    spy *s = context;
    spy_layer *l = calloc(1, sizeof *l);
    if (!l) return PMLP_ERROR_MEMORY;
    l->owner = s, l->desc = *desc;
    spy_seen(s);
    pmlp_result result = s->inner->layer_create(s->context, desc, &l->inner);
    if (result != PMLP_OK) return free(l), result;
    l->next = s->layers, s->layers = l;
    return *layer = l, PMLP_OK;
}
static void spy_layer_destroy(void *context, void *layer) {
    spy *s = context;
    spy_layer *l = layer, **at = &s->layers;
    s->inner->layer_destroy(s->context, l->inner);
    while (*at && *at != l) at = &(*at)->next;
    if (*at) *at = l->next;
    free(l);
}
static pmlp_result spy_write(void *context, void *layer, pmlp_tensor tensor, const float *w,
                             const float *b) {
    spy *s = context;
    return s->inner->write(s->context, ((spy_layer *)layer)->inner, tensor, w, b);
}
static pmlp_result spy_read(void *context, void *layer, pmlp_tensor tensor, float *w, float *b) {
    spy *s = context;
    return s->inner->read(s->context, ((spy_layer *)layer)->inner, tensor, w, b);
}
static pmlp_result spy_input(void *context, size_t rows, size_t n, const pmlp_data *data,
                             const uint32_t *index, size_t first, float *x) {
    spy *s = context;
    spy_seen(s);
    for (size_t r = 0; r < rows && drawn_count < 4 * ROWS; r++)
        drawn[drawn_count++] = index ? index[r] : (uint32_t)(first + r);
    return s->inner->input(s->context, rows, n, data, index, first, x);
}
static pmlp_result spy_forward(void *context, void *layer, int version, size_t rows, const float *x,
                               float *y) {
    spy *s = context;
    spy_layer *l = layer;
    spy_seen(s), l->forward_rows += rows, l->empty += rows == 0;
    if (rows > l->most_rows) l->most_rows = rows;
    return s->inner->forward(s->context, l->inner, version, rows, x, y);
}
static pmlp_result spy_backward_input(void *context, void *layer, int version, size_t rows,
                                      const float *dz, const float *x, float *dz_below) {
    spy *s = context;
    spy_layer *l = layer;
    spy_seen(s), l->input_rows += rows, l->empty += rows == 0;
    return s->inner->backward_input(s->context, l->inner, version, rows, dz, x, dz_below);
}
static pmlp_result spy_backward_weight(void *context, void *layer, size_t rows, const float *x,
                                       const float *dz, bool accumulate) {
    spy *s = context;
    spy_layer *l = layer;
    spy_seen(s), l->weight_rows += rows, l->anew += !accumulate;
    __atomic_fetch_add(s->workers > 1 ? &weight_calls : &serial_calls, 1, __ATOMIC_RELAXED);
    l->empty += rows == 0 && accumulate; /* with no rows, beginning anew still clears the sums */
    pmlp_result result = s->inner->backward_weight(s->context, l->inner, rows, x, dz, accumulate);
    if (result == PMLP_OK && spoil.kind == FAULT_GRADIENT && rows < BATCH &&
        l->desc.n_out == spoil.n_out)
        result = spoil_tensor(l, PMLP_TENSOR_GRADIENTS, true);
    return result;
}
static pmlp_result spy_loss(void *context, void *layer, const pmlp_loss_args *args) {
    spy *s = context;
    spy_seen(s);
    pmlp_result result = s->inner->loss(s->context, ((spy_layer *)layer)->inner, args);
    if (result == PMLP_OK && spoil.kind == FAULT_LOSS && s->workers > 1) {
        result = s->inner->synchronize(s->context);
        args->row_loss[0] += 1e-3 * fabs(args->row_loss[0]);
    }
    return result;
}
static pmlp_result spy_gradient_squares(void *context, void *layer, double *squares) {
    spy *s = context;
    spy_seen(s);
    return s->inner->gradient_squares(s->context, ((spy_layer *)layer)->inner, squares);
}
static pmlp_result spy_update(void *context, void *layer, const pmlp_update_args *args) {
    spy *s = context;
    spy_layer *l = layer;
    spy_seen(s), l->updates++;
    pmlp_result result = s->inner->update(s->context, l->inner, args);
    bool now = s->workers > 1 && l->desc.n_out == spoil.n_out && args->step >= spoil.from_step;
    if (result == PMLP_OK && now && (spoil.kind == FAULT_WEIGHT || spoil.kind == FAULT_BIAS))
        result = spoil_tensor(l, PMLP_TENSOR_PARAMS, spoil.kind == FAULT_WEIGHT);
    return result;
}
static pmlp_result spy_gradient(void *context, void *layer, float **data, size_t *floats) {
    spy *s = context;
    return s->inner->gradient(s->context, ((spy_layer *)layer)->inner, data, floats);
}
static pmlp_result spy_synchronize(void *context) {
    spy *s = context;
    return s->inner->synchronize(s->context);
}

static const pmlp_backend *spy_backend(void) {
    static pmlp_backend table;
    table = *pmlp_cpu_backend();
    table.name = "spy", table.user = pmlp_cpu_backend();
    table.open = spy_open, table.close = spy_close;
    table.alloc = spy_alloc, table.free = spy_free, table.row_floats = spy_row_floats;
    table.layer_create = spy_layer_create, table.layer_destroy = spy_layer_destroy;
    table.write = spy_write, table.read = spy_read, table.input = spy_input;
    table.forward = spy_forward, table.backward_input = spy_backward_input;
    table.backward_weight = spy_backward_weight, table.loss = spy_loss;
    table.gradient_squares = spy_gradient_squares, table.update = spy_update;
    table.gradient = spy_gradient;
    table.synchronize = spy_synchronize;
    memset(&spoil, 0, sizeof spoil);
    memset(spies, 0, sizeof spies);
    spies_opened = 0, drawn_count = 0;
    return &table;
}

/* --- pmlp_verify ----------------------------------------------------------------------------- */

static pmlp_verify_report verify(const network *net, pmlp_trainer_desc desc, int steps) {
    pmlp_verify_report report = {0};
    pmlp_error error = {0};
    pmlp_data data = make_data(net);
    pmlp_model *model = make_model(net, 5);
    uint64_t before = 0, after = 1;
    pmlp_model_hash(model, &before, NULL);
    desc.batch = BATCH;
    pmlp_result result = pmlp_verify(model, &desc, &data, steps, &report, &error);
    CHECK(result == PMLP_OK, "%s: %s: %s", label, pmlp_result_name(result), error.text);
    CHECK(pmlp_model_hash(model, &after, NULL) == PMLP_OK && before == after,
          "%s: verify changed the model", label);
    pmlp_model_destroy(model);
    return report;
}

static void expect_identical(const network *net, pmlp_trainer_desc desc) {
    pmlp_verify_report report = verify(net, desc, 6);
    CHECK(report.identical, "%s: step %d: %s, layer %d [%zu][%zu]: %.17g, serial %.17g", label,
          report.steps, report.what ? report.what : "(null)", report.layer, report.row,
          report.column, report.pipeline, report.serial);
    CHECK(report.steps == 6, "%s: %d steps", label, report.steps);
    CHECK(report.what && !*report.what, "%s: identical, but says '%s'", label, report.what);
}

static void verify_pipeline(pmlp_trainer_desc desc, void *user) {
    describe(user ? &mixed_net : &relu_net, &desc);
    expect_identical(user ? &mixed_net : &relu_net, desc);
}

TEST(verify_agrees) {
    long runs = 0;
    int mixed = 1;
    for (int o = 0; o < 5; o++) {
        pmlp_trainer_desc desc = {0};
        desc.optimizer = optimizers[o];
        if (o % 2) desc.clip_norm = 0.1f, desc.gradient_norm = true, desc.weight_decay = 0.01f;
        runs += each_pipeline(test_quick() ? 23 : 3, verify_pipeline, desc, o > 2 ? &mixed : NULL);
    }
    for (int c = 0; c < CUSTOM; c++) {
        pmlp_trainer_desc desc = {0};
        pmlp_schedule *schedule = parse(custom[c].name, custom[c].text);
        desc.custom = schedule;
        snprintf(label, sizeof label, "custom '%s'", custom[c].name);
        if (schedule) expect_identical(&deep_net, desc), runs++;
        pmlp_schedule_destroy(schedule);
    }
    SAY("pmlp_verify finds no difference in %s pipelines", test_count(runs));
}

/* The hash that verify reports is that of training the same batches here. */
TEST(verify_hash) {
    pmlp_trainer_desc desc = {0};
    pmlp_trainer *trainer = NULL;
    pmlp_error error = {0};
    uint64_t hash = 0;
    desc.workers = 2, desc.microbatches = 4, desc.optimizer = PMLP_MOMENTUM;
    snprintf(label, sizeof label, "verify's hash");
    pmlp_verify_report report = verify(&relu_net, desc, 3); /* 48 of 53 rows: no ragged batch */
    pmlp_data data = make_data(&relu_net);
    pmlp_model *model = make_model(&relu_net, 5);
    desc.batch = BATCH;
    CHECK(pmlp_trainer_create(model, &desc, &trainer, &error) == PMLP_OK, "%s", error.text);
    for (size_t i = 0; trainer && i < 3; i++) {
        pmlp_data batch = rows_of(&relu_net, &data, i * BATCH, BATCH);
        fine(trainer, pmlp_trainer_step(trainer, &batch, NULL));
    }
    pmlp_trainer_destroy(trainer);
    CHECK(pmlp_model_hash(model, &hash, &error) == PMLP_OK && hash == report.hash,
          "verify says %016llx, training says %016llx", (unsigned long long)report.hash,
          (unsigned long long)hash);
    pmlp_model_destroy(model);
    SAY("pmlp_verify reports the weights word of the pipeline's weights");
}

/* A planted difference must be found: what, in which step, where, and both values. */
TEST(verify_can_fail) {
    pmlp_trainer_desc desc = {0};
    pmlp_verify_report r;
    long faults = 0;
    desc.backend = spy_backend();
    desc.workers = 2, desc.microbatches = 4, desc.optimizer = PMLP_MOMENTUM;
    for (int quiet = 0; quiet < 2; quiet++) {
        desc.no_threads = quiet != 0, desc.gradient_norm = false;
        snprintf(label, sizeof label, "unspoiled");
        memset(&spoil, 0, sizeof spoil);
        r = verify(&mixed_net, desc, 4);
        CHECK(r.identical, "the spy alone makes a difference: %s", r.what);

        snprintf(label, sizeof label, "spoiled loss");
        spoil.kind = FAULT_LOSS;
        r = verify(&mixed_net, desc, 4), faults++;
        CHECK(!r.identical && r.steps == 1 && !strcmp(r.what, "loss") && r.layer == -1,
              "%d: step %d, '%s', layer %d", r.identical, r.steps, r.what, r.layer);
        CHECK(r.pipeline > r.serial && r.serial > 0, "%.17g, serial %.17g", r.pipeline, r.serial);

        /* mixed_net's layer 1 is the one with 8 outputs, of 65 inputs; layer 3 has 5, of 31 */
        for (int late = 0; late < 2; late++)
            for (int bias = 0; bias < 2; bias++) {
                snprintf(label, sizeof label, "spoiled %s", bias ? "bias" : "weight");
                spoil.kind = bias ? FAULT_BIAS : FAULT_WEIGHT;
                spoil.n_out = late ? 5 : 8, spoil.from_step = late ? 3 : 1;
                r = verify(&mixed_net, desc, 4), faults++;
                CHECK(!r.identical && r.steps == (late ? 3 : 1) && r.layer == (late ? 3 : 1) &&
                          !strcmp(r.what, bias ? "bias" : "weight") && r.row == FAULT_ROW,
                      "%s: %d: step %d, '%s', layer %d, row %zu", label, r.identical, r.steps,
                      r.what, r.layer, r.row);
                CHECK(bias || r.column == FAULT_COLUMN, "%s: column %zu", label, r.column);
                CHECK((float)r.pipeline == nextafterf((float)r.serial, INFINITY),
                      "%s: %.17g, not %.17g", label, r.pipeline, r.serial);
            }

        /* one bit of dW, in micro-batches only: the sum of squares shows it */
        snprintf(label, sizeof label, "spoiled gradient, norm wanted");
        spoil.kind = FAULT_GRADIENT, spoil.n_out = 8, spoil.from_step = 0,
        desc.gradient_norm = true, desc.w_rows = 1; /* not put together to a batch */
        r = verify(&mixed_net, desc, 4), faults++;
        CHECK(!r.identical && r.steps == 1 && !strcmp(r.what, "gradient norm") && r.layer == -1 &&
                  r.pipeline != r.serial,
              "%d: step %d, '%s', layer %d", r.identical, r.steps, r.what, r.layer);
        desc.gradient_norm = false, spoil.relative = 0.01f; /* enough for the weights to show it */
        snprintf(label, sizeof label, "spoiled gradient");
        r = verify(&mixed_net, desc, 4), faults++;
        CHECK(!r.identical && r.steps == 1, "%d: step %d, '%s'", r.identical, r.steps, r.what);
        if (!r.identical && strcmp(r.what, "gradient norm") != 0)
            CHECK(!strcmp(r.what, "weight") && r.layer == 1 && r.row == FAULT_ROW &&
                      r.column == FAULT_COLUMN,
                  "'%s', layer %d [%zu][%zu]", r.what, r.layer, r.row, r.column);
        /* the same with one worker: it is the micro-batches that differ */
        desc.workers = 1;
        r = verify(&mixed_net, desc, 4), faults++;
        CHECK(!r.identical && r.steps == 1, "%d: step %d, '%s'", r.identical, r.steps, r.what);
        desc.workers = 2, desc.w_rows = 0, spoil.relative = 0;
    }
    memset(&spoil, 0, sizeof spoil);
    SAY("pmlp_verify finds %s planted differences: what, step, layer, row, column, values",
        test_count(faults));
}

/* --- the contract with the back end ---------------------------------------------------------- */

static void check_contract(pmlp_trainer_desc desc) {
    static const size_t rows[] = {16, 13, 1, 7, 2};
    size_t total = 0;
    pmlp_error error = {0};
    pmlp_trainer *trainer = NULL;
    pmlp_data data = make_data(&deep_net);
    pmlp_model *model = make_model(&deep_net, 5);
    desc.backend = spy_backend(), desc.batch = BATCH, desc.gradient_norm = true;
    describe(&deep_net, &desc);
    if (!CHECK(pmlp_trainer_create(model, &desc, &trainer, &error) == PMLP_OK, "%s: %s", label,
               error.text)) {
        pmlp_model_destroy(model);
        return;
    }
    CHECK(spies_opened == desc.workers, "%s: %ld contexts", label, spies_opened);
    for (int i = 0; i < 5; total += rows[i++]) {
        pmlp_data batch = rows_of(&deep_net, &data, 0, rows[i]);
        fine(trainer, pmlp_trainer_step(trainer, &batch, NULL));
    }
    for (int stage = 0; stage < desc.workers; stage++) {
        pmlp_stage_info info = {0};
        CHECK(pmlp_trainer_stage(trainer, stage, &info) == PMLP_OK && info.worker == stage, "%s",
              label);
        spy *s = spies[info.worker];
        int layers = 0;
        for (spy_layer *l = s->layers; l; l = l->next, layers++) {
            int index = info.first_layer; /* the layers' shapes are all different */
            while (index < info.first_layer + info.layers &&
                   ((size_t)deep_net.sizes[index] != l->desc.n_in ||
                    (size_t)deep_net.sizes[index + 1] != l->desc.n_out))
                index++;
            CHECK(index < info.first_layer + info.layers, "%s: a layer %zu -> %zu at stage %d",
                  label, l->desc.n_in, l->desc.n_out, stage);
            CHECK(l->desc.needs_input_gradient == (index > 0), "%s: layer %d", label, index);
            CHECK(l->desc.activation == deep_net.act[index] &&
                      l->desc.below == (index ? deep_net.act[index - 1] : PMLP_LINEAR),
                  "%s: activations of layer %d", label, index);
            CHECK(l->forward_rows == total && l->weight_rows == total &&
                      l->input_rows == (index ? total : 0),
                  "%s: layer %d saw %zu, %zu, %zu of %zu rows", label, index, l->forward_rows,
                  l->input_rows, l->weight_rows, total);
            CHECK(l->updates == 5 && l->anew == 5,
                  "%s: layer %d: %ld updates, %ld new sums in 5 steps", label, index, l->updates,
                  l->anew);
            size_t m = (size_t)desc.microbatches;
            CHECK(l->most_rows == (BATCH + m - 1) / m, "%s: layer %d: %zu rows at once", label,
                  index, l->most_rows);
            CHECK(l->empty == 0, "%s: layer %d: %ld calls without a row", label, index, l->empty);
        }
        CHECK(layers == info.layers, "%s: %d layers at stage %d, not %d", label, layers, stage,
              info.layers);
        CHECK(s->strangers == 0, "%s: worker %d: %ld calls from another thread", label, stage,
              s->strangers);
        bool mine = pthread_equal(s->thread, pthread_self()) != 0;
        CHECK(mine == (desc.no_threads || stage == 0), "%s: worker %d runs on %s thread", label,
              stage, mine ? "the calling" : "another");
        for (int other = 1; other < stage && !desc.no_threads; other++)
            CHECK(!pthread_equal(s->thread, spies[other]->thread),
                  "%s: workers %d and %d share a thread", label, other, stage);
    }
    pmlp_trainer_destroy(trainer);
    pmlp_model_destroy(model);
}

TEST(contract) {
    long runs = 0;
    pmlp_trainer_desc desc = {0};
    for (desc.workers = 1; desc.workers <= 4; desc.workers++)
        for (int m = 0; m < 6; m++)
            for (int k = 0; k < 3; k++)
                for (int quiet = 0; quiet < 2; quiet++, runs++) {
                    desc.microbatches = microbatches[m], desc.schedule = kinds[k];
                    desc.no_threads = quiet != 0;
                    check_contract(desc);
                }
    SAY("every row once through every layer, one thread per worker or none, dX of layer 0 never: "
        "%s pipelines",
        test_count(runs));
}

/* Threads that are bound to a core each, if the process may use more than one. */
TEST(bound) {
    const long allowed = cores_allowed();
    pmlp_data data = make_data(&relu_net);
    for (int bind = 0; bind < 2; bind++) {
        pmlp_trainer_desc desc = {0};
        pmlp_trainer *trainer = NULL;
        pmlp_error error = {0};
        pmlp_model *model = make_model(&relu_net, 5);
        desc.backend = spy_backend(), desc.workers = 3, desc.batch = ROWS, desc.bind_threads = bind;
        CHECK(pmlp_trainer_create(model, &desc, &trainer, &error) == PMLP_OK, "%s", error.text);
        if (trainer) fine(trainer, pmlp_trainer_step(trainer, &data, NULL));
        for (int w = 0; trainer && w < 3; w++)
            CHECK(spies[w]->cores == (bind && w > 0 && allowed ? 1 : allowed),
                  "worker %d may run on %ld of %ld cores", w, spies[w]->cores, allowed);
        pmlp_trainer_destroy(trainer);
        pmlp_model_destroy(model);
    }
    CHECK(cores_allowed() == allowed, "the caller's own cores have changed");
    SAY("threads of workers 1 and 2 on one of %ld cores each, or on all; the caller's on all",
        allowed);
}

/* A back end that works on by itself tells the times: the nth that a worker asks for is n seconds,
   and is only known when the worker waits. The timeline must be made of these. */
enum { STAMPS = 64 };
static struct { double *at[STAMPS]; int count; } stamps[WATCHED];

static pmlp_result late_stamp(void *context, double *seconds) {
    for (int w = 0; w < WATCHED; w++)
        if (spies[w] == context && stamps[w].count < STAMPS) stamps[w].at[stamps[w].count++] = seconds;
    return PMLP_OK;
}
static pmlp_result late_synchronize(void *context) {
    for (int w = 0; w < WATCHED; w++) {
        if (spies[w] != context) continue;
        for (int i = 0; i < stamps[w].count; i++) *stamps[w].at[i] = i;
        stamps[w].count = 0;
    }
    return spy_synchronize(context);
}

TEST(times_of_the_back_end) {
    pmlp_backend table = *spy_backend();
    pmlp_trainer_desc desc = {0};
    pmlp_trainer *trainer = NULL;
    pmlp_timeline *timeline = NULL;
    pmlp_error error = {0};
    pmlp_data data = make_data(&relu_net);
    pmlp_model *model = make_model(&relu_net, 5);
    long spans = 0;
    table.stamp = late_stamp, table.synchronize = late_synchronize;
    desc.backend = &table, desc.workers = 2, desc.batch = ROWS, desc.trace = 1;
    CHECK(pmlp_trainer_create(model, &desc, &trainer, &error) == PMLP_OK, "%s", error.text);
    if (trainer && fine(trainer, pmlp_trainer_step(trainer, &data, NULL)) &&
        fine(trainer, pmlp_trainer_timeline(trainer, 1, &timeline)))
        for (int w = 0; w < 2; w++) {
            int count;
            const pmlp_span *span = pmlp_timeline_spans(timeline, w, &count);
            for (int i = 0; i < count; i++, spans++)
                CHECK(span[i].begin == 2 * i && span[i].end == 2 * i + 1,
                      "worker %d, span %d: %g .. %g", w, i, span[i].begin, span[i].end);
        }
    CHECK(spans >= 2 * 9, "%ld spans", spans); /* F, I, W of four micro-batches, U */
    pmlp_timeline_destroy(timeline);
    pmlp_trainer_destroy(trainer);
    pmlp_model_destroy(model);
    SAY("times that the back end tells afterwards: %ld spans made of them", spans);
}

/* A back end whose sums depend on the cut: each W comes by itself, cuts lie between layers, and
   pmlp_verify() holds against one worker with the same micro-batches. The spy pretends to be one. */
TEST(not_exact) {
    pmlp_backend table = *spy_backend();
    long runs = 0;
    table.exact = false;
    for (int m = 2; m <= 5; m++) {
        pmlp_trainer_desc desc = {0};
        pmlp_trainer *trainer = NULL;
        pmlp_error error = {0};
        pmlp_verify_report report;
        pmlp_data data = make_data(&wide_net);
        pmlp_model *model = make_model(&wide_net, 5);
        desc.backend = &table, desc.workers = 2, desc.microbatches = m, desc.batch = BATCH;
        CHECK(pmlp_trainer_create(model, &desc, &trainer, &error) == PMLP_OK, "%s", error.text);
        const pmlp_trainer_desc got = pmlp_trainer_query_desc(trainer);
        CHECK(got.w_rows == 1 && got.whole_layers, "%zu rows of W, %s", got.w_rows,
              got.whole_layers ? "whole layers" : "cut inside");
        pmlp_trainer_destroy(trainer);
        weight_calls = serial_calls = 0;
        CHECK(pmlp_verify(model, &desc, &data, 3, &report, &error) == PMLP_OK && report.identical,
              "%s", error.text);
        CHECK(serial_calls > 0 && weight_calls == serial_calls,
              "m %d: %ld products for dW, %ld of the serial training", m, weight_calls,
              serial_calls);
        runs++;
        pmlp_model_destroy(model);
    }
    SAY("a back end that is not exact: each W by itself, whole layers, the same micro-batches for "
        "the serial run: %ld pipelines", runs);
}

/* --- the order of an epoch -------------------------------------------------------------------- */

/* Two epochs with a seed; their rows lie in `drawn` afterwards. Returns the weights word. */
static uint64_t draw_epochs(const network *net, uint64_t seed, int workers, bool no_shuffle) {
    uint64_t hash = 0;
    pmlp_trainer_desc desc = {0};
    pmlp_trainer *trainer = NULL;
    pmlp_error error = {0};
    pmlp_data data = make_data(net);
    pmlp_model *model = make_model(net, 5);
    desc.backend = spy_backend(), desc.batch = BATCH, desc.seed = seed;
    desc.workers = workers, desc.no_shuffle = no_shuffle;
    snprintf(label, sizeof label, "epochs of seed %d", (int)seed);
    CHECK(pmlp_trainer_create(model, &desc, &trainer, &error) == PMLP_OK, "%s", error.text);
    for (int epoch = 0; trainer && epoch < 2; epoch++)
        fine(trainer, pmlp_trainer_epoch(trainer, &data, NULL));
    pmlp_trainer_destroy(trainer);
    CHECK(pmlp_model_hash(model, &hash, &error) == PMLP_OK, "%s", error.text);
    pmlp_model_destroy(model);
    CHECK(drawn_count == 2 * ROWS, "%zu rows in 2 epochs of %d", drawn_count, ROWS);
    return hash;
}

/* The same by steps, on batches put together here from the rows in `drawn`: what an epoch does with
   rows, it must do with their labels and targets. */
static uint64_t step_epochs(const network *net) {
    static float x[BATCH * MAX_WIDTH], targets[BATCH * MAX_WIDTH];
    int labels[BATCH];
    const size_t n_in = (size_t)net->sizes[0], n_out = (size_t)net->sizes[net->layers];
    uint64_t hash = 0;
    pmlp_trainer_desc desc = {0};
    pmlp_trainer *trainer = NULL;
    pmlp_error error = {0};
    pmlp_data data = make_data(net), batch = {0};
    pmlp_model *model = make_model(net, 5);
    desc.batch = BATCH;
    CHECK(pmlp_trainer_create(model, &desc, &trainer, &error) == PMLP_OK, "%s", error.text);
    batch.x = x, batch.labels = data.labels ? labels : NULL;
    batch.targets = data.targets ? targets : NULL;
    for (size_t i = 0; trainer && i < 2 * ROWS; i++) {
        const size_t from = drawn[i], to = batch.rows++;
        memcpy(x + to * n_in, data.x + from * n_in, n_in * sizeof *x);
        if (data.labels) labels[to] = data.labels[from];
        if (data.targets)
            memcpy(targets + to * n_out, data.targets + from * n_out, n_out * sizeof *targets);
        if (batch.rows < BATCH && (i + 1) % ROWS != 0) continue;
        fine(trainer, pmlp_trainer_step(trainer, &batch, NULL));
        batch.rows = 0;
    }
    pmlp_trainer_destroy(trainer);
    CHECK(pmlp_model_hash(model, &hash, &error) == PMLP_OK, "%s", error.text);
    pmlp_model_destroy(model);
    return hash;
}

TEST(epochs) {
    static uint32_t kept[2 * ROWS], identity[2 * ROWS];
    long in_place = 0;
    for (size_t i = 0; i < 2 * ROWS; i++) identity[i] = (uint32_t)(i % ROWS);
    for (uint64_t seed = 0; seed < 8; seed++) {
        uint64_t by_epoch = draw_epochs(&deep_net, seed, 1, false);
        CHECK(by_epoch == step_epochs(&deep_net), "seed %d: an epoch is not its steps", (int)seed);
        for (size_t epoch = 0; epoch < 2; epoch++) {
            int times[ROWS] = {0};
            for (size_t i = 0; i < ROWS; i++) {
                if (drawn[epoch * ROWS + i] < ROWS) times[drawn[epoch * ROWS + i]]++;
                in_place += drawn[epoch * ROWS + i] == i;
            }
            for (size_t i = 0; i < ROWS; i++)
                CHECK(times[i] == 1, "seed %d: row %zu comes %d times", (int)seed, i, times[i]);
        }
        CHECK(memcmp(drawn, drawn + ROWS, ROWS * sizeof *drawn) != 0, "two epochs are alike");
        CHECK(!seed || memcmp(drawn, kept, sizeof kept) != 0, "seeds %d and %d draw the same order",
              (int)seed - 1, (int)seed);
        memcpy(kept, drawn, sizeof kept);
        draw_epochs(&deep_net, seed, 3, false);
        CHECK(!memcmp(drawn, kept, sizeof kept), "seed %d: three workers draw another order",
              (int)seed);
    }
    CHECK(draw_epochs(&mixed_net, 1, 1, false) == step_epochs(&mixed_net), "targets go astray");
    draw_epochs(&deep_net, 1, 1, true);
    CHECK(!memcmp(drawn, identity, sizeof identity), "no_shuffle does not keep the order");
    /* chance leaves one row in place per shuffle; none in 16 shuffles, or many, is no chance */
    CHECK(in_place >= 4 && in_place <= 40, "%ld rows stay in place in 16 shuffles", in_place);
    SAY("epochs: each row once, another order for each seed and epoch, and what steps would do");
}

/* --- pmlp_partition --------------------------------------------------------------------------- */

enum { CUT_LAYERS = 8 };

static const double *given; /* layer_costs, or NULL */

/* Costs between 1 and 1000, in no order. */
static const double *draw_costs(uint64_t *rng, double *costs) {
    for (int l = 0; l < CUT_LAYERS; l++) costs[l] = exp(test_uniform(rng, 0, log(1000)));
    return costs;
}

/* What is given, or multiply-adds of F, I and W per row; the first layer has no I. */
static double layer_cost(const network *net, int layer) {
    if (given) return given[layer];
    return (layer ? 3.0 : 2.0) * net->sizes[layer] * net->sizes[layer + 1];
}

/* The costliest stage when a stage begins at each layer whose bit is set. */
static double costliest(const network *net, unsigned begins) {
    double most = 0, sum = 0;
    for (int l = 0; l < net->layers; l++) {
        if (begins >> l & 1) sum = 0;
        sum += layer_cost(net, l);
        if (sum > most) most = sum;
    }
    return most;
}

static void check_partition(const network *net, int stages) {
    pmlp_cut cuts[CUT_LAYERS];
    double balance = 0, total = 0, best = -1;
    unsigned begins = 0;
    pmlp_error error = {0};
    pmlp_model *model = make_model(net, 5);
    CHECK(pmlp_partition(model, stages, true, given, cuts, &balance, &error) == PMLP_OK, "%s",
          error.text);
    for (int i = 0; i < stages - 1; i++) {
        CHECK(cuts[i].layer > (i ? cuts[i - 1].layer : 0) && cuts[i].layer < net->layers &&
                  cuts[i].column == 0,
              "%s: cut %d is %d, column %d", net->name, i, cuts[i].layer, cuts[i].column);
        begins |= 1u << cuts[i].layer;
    }
    for (int l = 0; l < net->layers; l++) total += layer_cost(net, l);
    for (unsigned tried = 0; tried < 1u << net->layers; tried += 2) { /* all ways to cut */
        int n = 1;
        for (int l = 1; l < net->layers; l++) n += (tried >> l & 1) != 0;
        if (n == stages && (best < 0 || costliest(net, tried) < best)) best = costliest(net, tried);
    }
    CHECK(costliest(net, begins) <= best * (1 + 1e-12), "%s in %d: %g, the best is %g", net->name,
          stages, costliest(net, begins), best);
    CHECK(fabs(balance - total / stages / best) <= 1e-12, "%s in %d: balance %g, not %g", net->name,
          stages, balance, total / stages / best);
    CHECK(pmlp_partition(model, net->layers + 1, true, NULL, cuts, NULL, &error) == PMLP_ERROR_SHAPE,
          "%s", net->name);
    pmlp_trainer_desc desc = {0};
    pmlp_trainer *trainer = NULL;
    desc.workers = stages, desc.whole_layers = true, desc.layer_costs = given;
    if (CHECK(pmlp_trainer_create(model, &desc, &trainer, &error) == PMLP_OK, "%s", error.text)) {
        double shares = 0;
        int next = 0;
        for (int s = 0; s < stages; s++) {
            pmlp_stage_info info = {0};
            double cost = 0;
            CHECK(pmlp_trainer_stage(trainer, s, &info) == PMLP_OK && info.worker == s &&
                      info.first_layer == next && (s == 0 || next == cuts[s - 1].layer),
                  "%s: stage %d begins at layer %d", net->name, s, info.first_layer);
            for (int l = 0; l < info.layers; l++) cost += layer_cost(net, next++);
            CHECK(fabs(info.cost - cost / total) <= 1e-12, "%s: stage %d costs %g, not %g",
                  net->name, s, info.cost, cost / total);
            shares += info.cost;
        }
        CHECK(next == net->layers && fabs(shares - 1) <= 1e-12, "%s: %d layers, costs %g",
              net->name, next, shares);
    }
    pmlp_trainer_destroy(trainer);
    pmlp_model_destroy(model);
}

TEST(partition) {
    static network net;
    double costs[CUT_LAYERS];
    uint64_t rng = 4;
    const int tries = test_quick() ? 20 : 200;
    for (int t = 0; t < tries; t++) {
        net = deep_net;
        net.layers = 1 + (int)(test_random(&rng) % CUT_LAYERS);
        for (int l = 0; l <= net.layers; l++) net.sizes[l] = 1 + (int)(test_random(&rng) % 40);
        given = t % 2 ? draw_costs(&rng, costs) : NULL;
        for (int stages = 1; stages <= net.layers; stages++) check_partition(&net, stages);
    }
    given = NULL;
    SAY("pmlp_partition is as good as the best of all cuts: %d networks of up to %d layers, by "
        "multiply-adds and by costs of any kind", tries, CUT_LAYERS);
}

/* With cuts inside the first layer, which are at the first places: the smallest largest cost of all
   ways to choose places, found by trying each; a stage's cost is what pmlp_trainer_stage() says. If
   each may cost a little more than that, 4 outputs of the first layer, there may be a way with fewer
   such cuts; then the fewest, and of these the cheapest. */
enum { MOST_PLACES = 24 };
typedef struct places {
    double below[MOST_PLACES], cap;
    int count, inside;
} places;

static double try_places(const places *p, int from, int stages, int cuts_left) {
    double best = HUGE_VAL;
    const double all = p->below[p->count - 1] - p->below[from];
    if (stages == 1) return all <= p->cap && cuts_left >= 0 ? all : HUGE_VAL;
    for (int i = from + 1; i < p->count - (stages - 1); i++) {
        const double own = p->below[i] - p->below[from];
        if (own > p->cap) break;
        best = fmin(best, fmax(own, try_places(p, i, stages - 1, cuts_left - (i < p->inside))));
    }
    return best;
}

static double best_places(places *p, int stages, double output) {
    double best = HUGE_VAL;
    p->cap = HUGE_VAL;
    p->cap = try_places(p, 0, stages, stages) + 4 * output;
    for (int cuts = 0; best == HUGE_VAL; cuts++) best = try_places(p, 0, stages, cuts);
    return best;
}

static void check_column_partition(const network *net, int stages) {
    double scaled[CUT_LAYERS], balance = 0, sum = 0, largest = 0;
    pmlp_cut cuts[MOST_PLACES], again[MOST_PLACES];
    places p = {{0}, 0, 0, 0};
    int count = 0;
    pmlp_error error = {0};
    pmlp_trainer_desc desc = {0};
    pmlp_trainer *trainer = NULL;
    pmlp_model *model = make_model(net, 5);
    for (int c = 0; c < net->sizes[1]; c += PMLP_COLUMN_STEP)
        p.below[count++] = layer_cost(net, 0) / net->sizes[1] * c;
    p.inside = count;
    for (int l = 0; l < net->layers; l++) p.below[count++] = sum += layer_cost(net, l);
    p.count = count;
    const double best = best_places(&p, stages, layer_cost(net, 0) / net->sizes[1]);
    CHECK(pmlp_partition(model, stages, false, given, cuts, &balance, &error) == PMLP_OK, "%s",
          error.text);
    for (int l = 0; given && l < net->layers; l++) scaled[l] = ldexp(given[l], -30); /* exactly */
    CHECK(!given || (pmlp_partition(model, stages, false, scaled, again, NULL, NULL) == PMLP_OK &&
                     !memcmp(cuts, again, (size_t)(stages - 1) * sizeof *cuts)),
          "%d-%d in %d: other cuts in another unit", net->sizes[0], net->sizes[1], stages);
    CHECK(fabs(balance - sum / stages / best) <= 1e-12, "%d-%d in %d: balance %g, not %g",
          net->sizes[0], net->sizes[1], stages, balance, sum / stages / best);
    CHECK(pmlp_partition(model, count, false, NULL, cuts, NULL, &error) == PMLP_ERROR_SHAPE, "%d places",
          count);
    desc.workers = stages, desc.layer_costs = given;
    if (CHECK(pmlp_trainer_create(model, &desc, &trainer, &error) == PMLP_OK, "%s", error.text))
        for (int s = 0; s < stages; s++) {
            pmlp_stage_info info = {0};
            CHECK(pmlp_trainer_stage(trainer, s, &info) == PMLP_OK, "stage %d", s);
            if (s > 0)
                CHECK(info.first_layer == cuts[s - 1].layer &&
                          (int)info.first_column == cuts[s - 1].column,
                      "stage %d begins at %d, column %d", s, info.first_layer,
                      (int)info.first_column);
            largest = fmax(largest, info.cost);
        }
    CHECK(fabs(largest - best / sum) <= 1e-12, "the largest share is %g, not %g", largest,
          best / sum);
    pmlp_trainer_destroy(trainer);
    pmlp_model_destroy(model);
}

TEST(column_partition) {
    static network net;
    double costs[CUT_LAYERS];
    uint64_t rng = 14;
    const int tries = test_quick() ? 10 : 60;
    for (int t = 0; t < tries; t++) {
        net = deep_net;
        net.layers = 1 + (int)(test_random(&rng) % 4);
        for (int l = 0; l <= net.layers; l++) net.sizes[l] = 1 + (int)(test_random(&rng) % 60);
        net.sizes[1] = 1 + (int)(test_random(&rng) % 200);
        given = t % 2 ? draw_costs(&rng, costs) : NULL;
        for (int stages = 1; stages <= net.layers; stages++) check_column_partition(&net, stages);
    }
    given = NULL;
    SAY("cuts inside the first layer are as good as the best of all: %d networks", tries);
}

/* A sliver of layer 0 would fit into the third stage, but makes nothing better. */
TEST(fewest_cuts) {
    const int sizes[] = {784, 512, 256, 128, 10};
    const double costs[] = {7018, 3270, 879, 125};
    const pmlp_cut wanted[] = {{0, 256}, {1, 0}, {2, 0}};
    pmlp_model_desc of = {0};
    pmlp_error error = {0};
    pmlp_model *model = NULL;
    pmlp_cut cuts[3] = {{0, 0}};
    of.layers = 4, of.sizes = sizes;
    CHECK(pmlp_model_create(&of, &model, &error) == PMLP_OK, "%s", error.text);
    CHECK(pmlp_partition(model, 4, false, costs, cuts, NULL, &error) == PMLP_OK, "%s", error.text);
    for (int i = 0; i < 3; i++)
        CHECK(cuts[i].layer == wanted[i].layer && cuts[i].column == wanted[i].column,
              "cut %d at layer %d, column %d", i, cuts[i].layer, cuts[i].column);
    pmlp_model_destroy(model);
    SAY("no cut inside the first layer that makes nothing better");
}

/* Costs that are none. */
TEST(bad_layer_costs) {
    const double bad[] = {0, -1, NAN, INFINITY, -INFINITY, 1e-300};
    const pmlp_cut given = {1, 0};
    pmlp_model *model = make_model(&relu_net, 5);
    for (int k = 0; k < 6; k++)
        for (int l = 0; l < relu_net.layers; l++)
            for (int stages = 1; stages <= 2; stages++) {
                double costs[CUT_LAYERS] = {1, 1, 1, 1, 1, 1, 1, 1};
                pmlp_trainer_desc desc = {.workers = stages, .layer_costs = costs};
                if (stages == 2 && l % 2) desc.cuts = &given; /* refused even if not needed */
                pmlp_trainer *trainer = NULL;
                pmlp_error error = {0}, created = {0};
                pmlp_cut cuts[1];
                costs[l] = bad[k];
                CHECK(pmlp_partition(model, stages, false, costs, cuts, NULL, &error) ==
                              PMLP_ERROR_ARGUMENT && strstr(error.text, "layer_costs"),
                      "%g for layer %d: '%s'", bad[k], l, error.text);
                CHECK(pmlp_trainer_create(model, &desc, &trainer, &created) ==
                              PMLP_ERROR_ARGUMENT && strstr(created.text, "layer_costs") &&
                          !trainer,
                      "%g for layer %d, a trainer: '%s'", bad[k], l, created.text);
                pmlp_trainer_destroy(trainer);
            }
    pmlp_model_destroy(model);
    SAY("layer_costs of 0, negative, infinite, no number: refused, %s checks",
        test_count(test_run.checks));
}

/* Cuts by what was measured: wherever they lie, the bits are the same. */
TEST(measured_layers) {
    static const network *const nets[] = {&relu_net, &mixed_net, &wide_net};
    long runs = 0;
    for (int n = 0; n < 3; n++) {
        const network *net = nets[n];
        pmlp_trainer_desc desc = {0};
        desc.optimizer = PMLP_ADAM, desc.gradient_norm = true;
        words serial = train_serially(net, desc);
        pmlp_model *model = make_model(net, 5);
        double costs[16];
        desc.batch = BATCH, desc.microbatches = 4;
        for (int l = 0; l < 16; l++) costs[l] = -1;
        CHECK(pmlp_measure_layers(model, &desc, costs, NULL) == PMLP_OK, "%s", net->name);
        for (int l = 0; l < 16; l++)
            CHECK(l < net->layers ? costs[l] > 0 && costs[l] < 60 : costs[l] == -1,
                  "%s: layer %d takes %g s", net->name, l, costs[l]);
        desc.measure_layers = true;
        for (int way = 0; way < 6; way++, runs++) {
            const int stages = 2 + way % 3;
            pmlp_trainer *trainer = NULL;
            pmlp_error error = {0};
            pmlp_cut cuts[4];
            double sum = 0;
            desc.workers = stages, desc.no_threads = way % 2, desc.whole_layers = way > 3;
            desc.schedule = kinds[way % 3], desc.layer_costs = NULL;
            describe(net, &desc);
            compare(serial, train(net, desc));
            if (!CHECK(pmlp_trainer_create(model, &desc, &trainer, &error) == PMLP_OK, "%s",
                       error.text))
                continue;
            const pmlp_trainer_desc used = pmlp_trainer_query_desc(trainer);
            CHECK(used.layer_costs && used.cuts &&
                      pmlp_partition(model, stages, desc.whole_layers, used.layer_costs, cuts, NULL,
                                     &error) == PMLP_OK &&
                      !memcmp(cuts, used.cuts, (size_t)(stages - 1) * sizeof *cuts),
                  "%s: not cut by its own costs: %s", net->name, error.text);
            for (int s = 0; s < stages; s++) {
                pmlp_stage_info info = {0};
                CHECK(pmlp_trainer_stage(trainer, s, &info) == PMLP_OK && info.cost > 0 &&
                          info.columns > 0 &&
                          (s == 0 || (info.first_layer == cuts[s - 1].layer &&
                                      (int)info.first_column == cuts[s - 1].column)) &&
                          (!desc.whole_layers || info.first_column == 0),
                      "%s: stage %d begins at %d, column %d, and costs %g", net->name, s,
                      info.first_layer, (int)info.first_column, info.cost);
                sum += info.cost;
            }
            CHECK(fabs(sum - 1) <= 1e-12, "%s: shares of %g", net->name, sum);
            pmlp_trainer_destroy(trainer);
        }
        pmlp_model_destroy(model);
    }
    SAY("layers measured, then cut by that: %s trainers, equal bits", test_count(runs));
}

/* Layers that take longer in their stage than alone: here those of the second, whose forwards are
   slow. That shows only when the stages are measured, and the cut moves up. */
static pmlp_result slow_forward(void *context, void *layer, int version, size_t rows,
                                const float *x, float *y) {
    const double until = test_seconds() + (((shim *)context)->worker == 1 ? 4e-4 : 1e-4);
    while (test_seconds() < until) continue;
    return shim_forward(context, layer, version, rows, x, y);
}

/* And fetching the input takes long, too: of the first stage, but not of its layers. */
static pmlp_result slow_input(void *context, size_t rows, size_t n, const pmlp_data *data,
                              const uint32_t *index, size_t first, float *x) {
    const double until = test_seconds() + 1e-4 * (double)rows;
    while (test_seconds() < until) continue;
    return shim_input(context, rows, n, data, index, first, x);
}

TEST(measured_stages) {
    const int sizes[] = {8, 8, 8, 8, 8, 8, 8};
    pmlp_model_desc of = {0};
    pmlp_trainer_desc desc = {0};
    pmlp_error error = {0};
    pmlp_schedule_desc kind = {.kind = PMLP_SCHEDULE_1F1B, .workers = 2, .microbatches = 2};
    pmlp_schedule *own = NULL;
    pmlp_model *model = NULL;
    pmlp_trainer *trainer = NULL;
    faulty plan;
    of.layers = 6, of.sizes = sizes;
    faulty_make(&plan, -1, 0, false);
    plan.table.forward = slow_forward, plan.table.input = slow_input;
    desc.backend = &plan.table, desc.batch = 8, desc.microbatches = 2, desc.workers = 2;
    desc.whole_layers = desc.measure_layers = true;
    CHECK(pmlp_model_create(&of, &model, &error) == PMLP_OK, "%s", error.text);
    CHECK(pmlp_schedule_create(&kind, &own, &error) == PMLP_OK, "%s", error.text);
    for (int way = 0; way < 2; way++) {
        desc.custom = way ? own : NULL;
        if (!CHECK(pmlp_trainer_create(model, &desc, &trainer, &error) == PMLP_OK, "%s",
                   error.text))
            continue;
        const pmlp_trainer_desc used = pmlp_trainer_query_desc(trainer);
        const double *c = used.layer_costs;
        CHECK(c[3] > 1.5 * c[2] && c[5] > 1.5 * c[0], "layers cost %g %g %g, %g %g %g", c[0], c[1],
              c[2], c[3], c[4], c[5]);
        CHECK(used.cuts[0].layer == 4, "cut at layer %d", used.cuts[0].layer);
        pmlp_trainer_destroy(trainer);
    }
    pmlp_schedule_destroy(own);
    pmlp_model_destroy(model);
    CHECK(faulty_balanced(&plan), "something is left of what was measured");
    SAY("layers that take longer in their stage than alone: the cut knows");
}

/* --- errors that are none --------------------------------------------------------------------- */

/* "Functions that take an error fill it when they fail and leave it alone when they succeed." */
TEST(no_errors) {
    const pmlp_error before = {PMLP_OK, -7, -7, -7, "op", "what was there before"};
    pmlp_error error = before;
    pmlp_trainer_desc desc = {0};
    pmlp_data data = make_data(&relu_net);
    pmlp_model *model = make_model(&relu_net, 5), *clone = NULL;
    pmlp_trainer *trainer = NULL;
    pmlp_params params;
    pmlp_verify_report report;
    pmlp_cut cuts[1];
    int calls = 0;
    uint64_t hash;
    float y[ROWS * MAX_WIDTH];
    desc.workers = 2;
    struct {
        const char *name;
        pmlp_result result;
        pmlp_error error;
    } done[7];
/* clang-format off */
#define DO(call)                                                                               \
    error = before, done[calls].name = #call, done[calls].result = call, done[calls++].error = error
/* clang-format on */
    DO(pmlp_model_params(model, 0, &params, &error));
    DO(pmlp_model_hash(model, &hash, &error));
    DO(pmlp_model_clone(model, &clone, &error));
    DO(pmlp_model_predict(model, data.x, ROWS, y, &error));
    DO(pmlp_partition(model, 2, false, NULL, cuts, NULL, &error));
    DO(pmlp_trainer_create(clone, &desc, &trainer, &error));
    DO(pmlp_verify(model, &desc, &data, 1, &report, &error));
#undef DO
    for (int i = 0; i < calls; i++) {
        CHECK(done[i].result == PMLP_OK, "%s: %s", done[i].name, pmlp_result_name(done[i].result));
        CHECK(!memcmp(&done[i].error, &before, sizeof before), "%s succeeds, but changes the error",
              done[i].name);
    }
    pmlp_trainer_destroy(trainer);
    pmlp_model_destroy(clone);
    pmlp_model_destroy(model);
    SAY("%d functions that succeed leave the caller's error alone", calls);
}

int main(void) {
    test_begin("parity");
    RUN(exhaustive);
    RUN(all_kinds);
    RUN(auto_measured);
    RUN(rendezvous);
    RUN(norm_is_free);
    RUN(instruction_sets);
    RUN(slots);
    RUN(cuts);
    RUN(columns);
    RUN(w_rows);
    RUN(loss_order);
    RUN(custom);
    RUN(by_lot);
    RUN(verify_agrees);
    RUN(verify_hash);
    RUN(verify_can_fail);
    RUN(contract);
    RUN(bound);
    RUN(times_of_the_back_end);
    RUN(not_exact);
    RUN(epochs);
    RUN(partition);
    RUN(column_partition);
    RUN(fewest_cuts);
    RUN(bad_layer_costs);
    RUN(measured_layers);
    RUN(measured_stages);
    RUN(no_errors);
    return test_end();
}
