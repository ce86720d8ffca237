/* Numbers that are infinite or not a number, in data, targets, weights, losses and gradients: which
   step, row, layer and value the error names; that the weights are those of a training that never
   saw the step; that it goes on; and that a step can be skipped. In all schedules, with and without
   threads, over ranks and replicas. */
#define PIPEMLP_IMPLEMENTATION
#include "pipemlp.h"

#include "test.h"
#include "networks.h"
#include "shapes.h"

enum { ROWS = 60, BATCH = 20, N_IN = 6, N_OUT = 3, MOST_RANKS = 4 };
static float data_x[ROWS * N_IN], data_targets[ROWS * N_OUT];
static int data_labels[ROWS];

static const network classes = {"classes", 3, {N_IN, 64, 8, N_OUT},
                                {PMLP_RELU, PMLP_TANH, PMLP_LINEAR}, PMLP_LOSS_XENT, false};
static const network squares = {"squares", 3, {N_IN, 64, 8, N_OUT},
                                {PMLP_GELU, PMLP_LINEAR, PMLP_LINEAR}, PMLP_LOSS_MSE, true};

static pmlp_data good_data(const network *net) {
    uint64_t random = 3;
    pmlp_data data = {0};
    for (int i = 0; i < ROWS * N_IN; i++) data_x[i] = (float)test_uniform(&random, -1, 1);
    for (int i = 0; i < ROWS * N_OUT; i++) data_targets[i] = (float)test_uniform(&random, -1, 1);
    for (int i = 0; i < ROWS; i++) data_labels[i] = (int)(test_random(&random) % N_OUT);
    data.rows = ROWS, data.x = data_x;
    if (net->targets) data.targets = data_targets;
    else data.labels = data_labels;
    return data;
}

static uint64_t word_of(pmlp_trainer *t, pmlp_model *model) {
    uint64_t hash = 0;
    pmlp_error error = {0};
    CHECK(pmlp_trainer_sync(t) == PMLP_OK, "%s", pmlp_trainer_error(t)->text);
    CHECK(pmlp_model_hash(model, &hash, &error) == PMLP_OK, "%s", error.text);
    return hash;
}

/* --- one rank or several ---------------------------------------------------------------------- */

/* Three batches with what is in the data, then the first once more; the middle one may be bad.
   `without`: not given at all. */
typedef struct run {
    const network *net;
    const pmlp_data *data;
    pmlp_trainer_desc desc;
    bool without;
    pmlp_model *model;
    pmlp_result middle;
    char text[512];
    pmlp_stats stats; /* of the middle one */
    uint64_t before, after, end, steps;
} run;

static void *train(void *argument) {
    run *r = argument;
    pmlp_trainer *t = NULL;
    pmlp_error error = {0};
    pmlp_stats stats = {0};
    if (!CHECK(pmlp_trainer_create(r->model, &r->desc, &t, &error) == PMLP_OK, "%s", error.text))
        return NULL;
    for (int i = 0; i < 4; i++) {
        const pmlp_data batch = rows_of(r->net, r->data, (size_t)(i % 3) * BATCH, BATCH);
        if (i == 1 && r->without) continue;
        if (i != 1) {
            CHECK(pmlp_trainer_step(t, &batch, &stats) == PMLP_OK, "%d: %s", i,
                  pmlp_trainer_error(t)->text);
            continue;
        }
        r->before = word_of(t, r->model);
        r->middle = pmlp_trainer_step(t, &batch, &r->stats);
        snprintf(r->text, sizeof r->text, "%s",
                 r->middle == PMLP_OK ? "" : pmlp_trainer_error(t)->text);
        r->after = word_of(t, r->model);
    }
    r->end = word_of(t, r->model);
    r->steps = stats.step;
    pmlp_trainer_destroy(t);
    return NULL;
}

static void train_ranks(run *runs, int ranks) {
    pmlp_group groups[MOST_RANKS];
    pthread_t threads[MOST_RANKS];
    pmlp_error error = {0};
    if (ranks == 1) {
        train(&runs[0]);
        return;
    }
    if (!CHECK(pmlp_thread_groups_create(ranks, NULL, groups, &error) == PMLP_OK, "%s", error.text))
        return;
    for (int i = 0; i < ranks; i++) {
        runs[i].desc.group = &groups[i];
        pthread_create(&threads[i], NULL, train, &runs[i]);
    }
    for (int i = 0; i < ranks; i++) pthread_join(threads[i], NULL);
    pmlp_thread_groups_destroy(groups);
}

/* The weights' word at the end of a plain training that never sees the second batch. */
static uint64_t word_without(const network *net, const pmlp_data *data, pmlp_trainer_desc desc) {
    run r = {0};
    desc.workers = desc.microbatches = desc.virtual_stages = 0, desc.replicas = 0;
    desc.schedule = PMLP_SCHEDULE_DEFAULT, desc.bad_numbers = PMLP_BAD_NUMBERS_STOP;
    r.net = net, r.data = data, r.desc = desc, r.without = true, r.model = make_model(net, 5);
    train(&r);
    pmlp_model_destroy(r.model);
    return r.end;
}

/* The second batch is bad: it stops with these words, or is skipped, on every rank, and the rest is
   as if it had never been. */
static void bad_step(const network *net, const pmlp_data *data, pmlp_trainer_desc desc, int ranks,
                     const char *words, const char *label) {
    const uint64_t wanted = word_without(net, data, desc);
    for (int skip = 0; skip < 2; skip++) {
        run runs[MOST_RANKS] = {0};
        desc.bad_numbers = skip ? PMLP_BAD_NUMBERS_SKIP : PMLP_BAD_NUMBERS_DEFAULT;
        for (int i = 0; i < ranks; i++) {
            runs[i].net = net, runs[i].data = data, runs[i].desc = desc;
            runs[i].model = make_model(net, 5);
        }
        train_ranks(runs, ranks);
        for (int i = 0; i < ranks; i++) {
            const run *r = &runs[i];
            if (skip)
                CHECK(r->middle == PMLP_OK && r->stats.skipped == 1 && r->stats.steps == 1 &&
                          r->stats.loss == 0,
                      "%s: %s, %zu skipped", label, r->text, r->stats.skipped);
            else
                CHECK(r->middle == PMLP_ERROR_NUMBER && strstr(r->text, words) &&
                          strstr(r->text, "step 2: ") && strstr(r->text, "are those before it"),
                      "%s: %s: %s", label, pmlp_result_name(r->middle), r->text);
            CHECK(r->before == r->after, "%s: the step has changed something", label);
            CHECK(r->end == wanted && r->steps == 3, "%s: rank %d, %d: other weights, %d steps",
                  label, i, skip, (int)r->steps);
            pmlp_model_destroy(r->model);
        }
    }
}

/* --- tests ------------------------------------------------------------------------------------ */

TEST(named) {
    static const struct {
        bool target;
        int row, column;
        float value;
        const char *words;
    } cases[] = {
        {false, 27, 4, (float)NAN, "row 27 of the data: input 4 is nan"},
        {false, 20, 0, (float)INFINITY, "row 20 of the data: input 0 is inf"},
        {false, 39, 5, -(float)INFINITY, "row 39 of the data: input 5 is -inf"},
        {true, 31, 2, (float)NAN, "row 31 of the data: target 2 is nan"},
        {true, 25, 1, 3e38f, "the gradient of output "},
    };
    long runs = 0;
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++)
        for (int norm = 0; norm < 2; norm++) {
            const network *net = cases[c].target ? &squares : &classes;
            pmlp_data data = good_data(net);
            pmlp_trainer_desc desc = {0};
            if (c == 4 && !norm) continue; /* the loss is finite: only the gradient tells */
            desc.batch = BATCH, desc.workers = 2, desc.learning_rate = 0.01f;
            desc.gradient_norm = norm, desc.optimizer = PMLP_ADAM;
            /* batches are rows of the data as a whole, so that row numbers are those of a batch */
            const int row = cases[c].row;
            if (c == 4) data_x[row * N_IN] = 1000; /* and then the gradient is out of range */
            if (cases[c].target) data_targets[row * N_OUT + cases[c].column] = cases[c].value;
            else data_x[row * N_IN + cases[c].column] = cases[c].value;
            char words[96], number[16];
            snprintf(words, sizeof words, "%s", cases[c].words);
            char *digits = strstr(words, "row ");
            if (digits) { /* a step's rows are counted from its own first */
                char rest[80];
                snprintf(rest, sizeof rest, "%s", digits + 6);
                snprintf(number, sizeof number, "row %d", row - BATCH);
                snprintf(digits, sizeof words - (size_t)(digits - words), "%s%s", number, rest);
            }
            bad_step(net, &data, desc, 1, words, cases[c].words);
            runs++;
        }
    SAY("inputs, targets, outputs and gradients: named, nothing changed, %ld trainings", 2 * runs);
}

TEST(everywhere) {
    static const shape shapes[] = {
        {PMLP_SCHEDULE_GPIPE, 3, 1, 4, 1}, {PMLP_SCHEDULE_1F1B, 2, 1, 4, 1},
        {PMLP_SCHEDULE_EAGER_1F1B, 2, 1, 3, 1}, {PMLP_SCHEDULE_INTERLEAVED, 2, 2, 4, 1},
        {PMLP_SCHEDULE_ZB_V, 2, 2, 4, 1}, {PMLP_SCHEDULE_ZB_H2, 3, 1, 6, 1}};
    long runs = 0;
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int how = 0; how < 8; how++) { /* threads or not, ranks, replicas */
            pmlp_data data = good_data(&classes);
            pmlp_trainer_desc desc = {0};
            const int ranks = how & 4 ? how & 2 ? 4 : 2 : how & 2 ? 2 : 1;
            if (test_quick() && (s + (size_t)how) % 3) continue;
            desc.batch = BATCH, desc.schedule = shapes[s].kind, desc.workers = shapes[s].p;
            desc.virtual_stages = shapes[s].v, desc.microbatches = shapes[s].m;
            desc.no_threads = how & 1, desc.replicas = how & 4 ? 2 : 1;
            desc.clip_norm = how % 3 == 0 ? 1.0f : 0.0f, desc.optimizer = PMLP_MOMENTUM;
            desc.deadline = 20;
            data_x[35 * N_IN + 3] = (float)NAN;
            bad_step(&classes, &data, desc, ranks, "row 15 of the data: input 3 is nan",
                     pmlp_schedule_kind_name(shapes[s].kind));
            runs += 2;
        }
    SAY("schedules, threads, ranks, replicas: the same words and weights, %ld trainings", runs);
}

/* A weight that is bad already: training says so before it does anything. */
TEST(weights) {
    static const float values[] = {(float)NAN, (float)INFINITY, 3e38f};
    for (size_t v = 0; v < 3; v++)
        for (int layer = 0; layer < 3; layer++) {
            const network *net = v == 2 ? &squares : &classes; /* tanh would bound what overflows */
            pmlp_data data = good_data(net), batch = rows_of(net, &data, 0, BATCH);
            pmlp_model *model = make_model(net, 5);
            pmlp_trainer *t = NULL;
            pmlp_trainer_desc desc = {0};
            pmlp_params params;
            pmlp_error error = {0};
            char wanted[48];
            CHECK(pmlp_model_params(model, layer, &params, &error) == PMLP_OK, "%s", error.text);
            for (size_t i = 0; i < params.n_in; i++) params.w[params.n_in + i] = values[v];
            if (v == 2) snprintf(wanted, sizeof wanted, "output 1 of layer %d is ", layer);
            else snprintf(wanted, sizeof wanted, "weight %zu of layer %d is ", params.n_in, layer);
            if (v == 2 && layer != 0) { /* what reaches these layers may have any sign */
                pmlp_model_destroy(model);
                continue;
            }
            desc.batch = BATCH, desc.workers = 2;
            if (v == 2) /* inputs of one sign, so that the sum leaves the range */
                for (int i = 0; i < BATCH * N_IN; i++) data_x[i] = 1;
            CHECK(pmlp_trainer_create(model, &desc, &t, &error) == PMLP_OK, "%s", error.text);
            CHECK(pmlp_trainer_step(t, &batch, NULL) == PMLP_ERROR_NUMBER &&
                      strstr(pmlp_trainer_error(t)->text, wanted),
                  "%s, not %s", pmlp_trainer_error(t)->text, wanted);
            pmlp_trainer_destroy(t);
            pmlp_model_destroy(model);
        }
    SAY("bad weights and layers that overflow: named by layer and place");
}

TEST(epochs) {
    for (int skip = 0; skip < 2; skip++) {
        pmlp_data data = good_data(&classes);
        pmlp_model *model = make_model(&classes, 5);
        pmlp_trainer *t = NULL;
        pmlp_trainer_desc desc = {0};
        pmlp_stats stats = {0};
        pmlp_error error = {0};
        desc.batch = BATCH, desc.workers = 2, desc.no_shuffle = true;
        desc.bad_numbers = skip ? PMLP_BAD_NUMBERS_SKIP : PMLP_BAD_NUMBERS_STOP;
        data_x[45 * N_IN] = (float)NAN;
        CHECK(pmlp_trainer_create(model, &desc, &t, &error) == PMLP_OK, "%s", error.text);
        const pmlp_result result = pmlp_trainer_epoch(t, &data, &stats);
        if (skip) {
            const pmlp_data good = rows_of(&classes, &data, 0, 2 * BATCH);
            pmlp_model *other = make_model(&classes, 5);
            pmlp_stats wanted = {0};
            CHECK(result == PMLP_OK && stats.skipped == 1 && stats.steps == 3 && stats.step == 2 &&
                      stats.epoch == 1,
                  "%s: %zu skipped", pmlp_trainer_error(t)->text, stats.skipped);
            pmlp_trainer_destroy(t);
            CHECK(pmlp_trainer_create(other, &desc, &t, &error) == PMLP_OK &&
                      pmlp_trainer_epoch(t, &good, &wanted) == PMLP_OK &&
                      stats.loss == wanted.loss && stats.accuracy == wanted.accuracy,
                  "loss %g, without the rows %g", stats.loss, wanted.loss);
            pmlp_trainer_destroy(t), t = NULL;
            pmlp_model_destroy(other);
        } else {
            CHECK(result == PMLP_ERROR_NUMBER &&
                      strstr(pmlp_trainer_error(t)->text, "step 3: row 45 of the data: input 0"),
                  "%s", pmlp_trainer_error(t)->text);
            data_x[45 * N_IN] = 0; /* mended: the epoch goes on where it stopped */
            CHECK(pmlp_trainer_epoch(t, &data, &stats) == PMLP_OK && stats.step == 3 &&
                      stats.epoch == 1,
                  "%s", pmlp_trainer_error(t)->text);
        }
        pmlp_trainer_destroy(t);
        pmlp_model_destroy(model);
    }
    SAY("an epoch stops at the step, and goes on there; or leaves it out of everything");
}

/* An epoch over two replicas in a drawn order: whosever rows the bad one is among, both name it. */
static void *stopped_epoch(void *argument) {
    run *r = argument;
    pmlp_trainer *t = NULL;
    pmlp_error error = {0};
    if (!CHECK(pmlp_trainer_create(r->model, &r->desc, &t, &error) == PMLP_OK, "%s", error.text))
        return NULL;
    r->middle = pmlp_trainer_epoch(t, r->data, NULL);
    snprintf(r->text, sizeof r->text, "%s", pmlp_trainer_error(t)->text);
    pmlp_trainer_destroy(t);
    return NULL;
}

TEST(shuffled) {
    for (int row = 0; row < ROWS; row += 7) {
        pmlp_data data = good_data(&classes);
        pmlp_group groups[2];
        pthread_t threads[2];
        run runs[2] = {0};
        char words[64];
        data_x[row * N_IN + 1] = (float)NAN;
        snprintf(words, sizeof words, ": row %d of the data: input 1 is nan", row);
        CHECK(pmlp_thread_groups_create(2, NULL, groups, NULL) == PMLP_OK, "groups");
        for (int i = 0; i < 2; i++) {
            runs[i].data = &data, runs[i].model = make_model(&classes, 5);
            runs[i].desc.group = &groups[i], runs[i].desc.replicas = 2;
            runs[i].desc.batch = BATCH, runs[i].desc.workers = 2, runs[i].desc.deadline = 20;
            pthread_create(&threads[i], NULL, stopped_epoch, &runs[i]);
        }
        for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
        for (int i = 0; i < 2; i++) {
            CHECK(runs[i].middle == PMLP_ERROR_NUMBER && strstr(runs[i].text, words),
                  "rank %d: '%s' lacks '%s'", i, runs[i].text, words);
            pmlp_model_destroy(runs[i].model);
        }
        pmlp_thread_groups_destroy(groups);
    }
    SAY("a shuffled epoch over two replicas: both name the row in the data");
}

/* Asynchronous: found when it is too late, and said. */
TEST(too_late) {
    const pmlp_schedule_kind kinds[] = {PMLP_SCHEDULE_PIPEDREAM, PMLP_SCHEDULE_PIPEDREAM_2BW};
    for (int k = 0; k < 2; k++) {
        pmlp_data data = good_data(&classes);
        pmlp_model *model = make_model(&classes, 5);
        pmlp_trainer *t = NULL;
        pmlp_trainer_desc desc = {0};
        pmlp_error error = {0};
        desc.batch = BATCH, desc.workers = 2, desc.schedule = kinds[k];
        data_x[45 * N_IN + 2] = (float)NAN;
        CHECK(pmlp_trainer_create(model, &desc, &t, &error) == PMLP_OK, "%s", error.text);
        CHECK(pmlp_trainer_epoch(t, &data, NULL) == PMLP_ERROR_NUMBER &&
                  strstr(pmlp_trainer_error(t)->text, "have been updated with it"),
              "%s", pmlp_trainer_error(t)->text);
        pmlp_trainer_destroy(t);
        desc.bad_numbers = PMLP_BAD_NUMBERS_SKIP;
        CHECK(pmlp_trainer_create(model, &desc, &t, &error) == PMLP_ERROR_ARGUMENT &&
                  strstr(error.text, "bad_numbers: of an asynchronous schedule"),
              "%s", error.text);
        desc.bad_numbers = PMLP_BAD_NUMBERS_COUNT;
        CHECK(pmlp_trainer_create(model, &desc, &t, &error) == PMLP_ERROR_ARGUMENT &&
                  strstr(error.text, "bad_numbers: is no value"),
              "%s", error.text);
        pmlp_model_destroy(model);
    }
    SAY("asynchronous schedules: said when it is too late; they cannot skip");
}

/* Edges of the back end's own: there losses may be known too late, but not if the norm is wanted,
   and skipping wants it. */
TEST(edges_of_the_back_end) {
    pmlp_backend table = *pmlp_cpu_backend();
    pmlp_data data = good_data(&classes);
    pmlp_trainer_desc desc = {0};
    table.edges = pmlp_thread_edges();
    desc.batch = BATCH, desc.workers = 2, desc.backend = &table;
    data_x[35 * N_IN + 3] = (float)NAN;
    const uint64_t wanted = word_without(&classes, &data, desc);
    for (int way = 0; way < 3; way++) { /* stops too late, stops, skips */
        run r = {0};
        desc.gradient_norm = way == 1;
        desc.bad_numbers = way == 2 ? PMLP_BAD_NUMBERS_SKIP : PMLP_BAD_NUMBERS_STOP;
        if (way == 0) { /* what follows has bad weights, and is no step of train() */
            pmlp_model *model = make_model(&classes, 5);
            const pmlp_data batch = rows_of(&classes, &data, BATCH, BATCH);
            pmlp_trainer *t = NULL;
            CHECK(pmlp_trainer_create(model, &desc, &t, NULL) == PMLP_OK, "no trainer");
            CHECK(pmlp_trainer_step(t, &batch, NULL) == PMLP_ERROR_NUMBER &&
                      strstr(pmlp_trainer_error(t)->text, "have been updated with it"),
                  "%s", pmlp_trainer_error(t)->text);
            pmlp_trainer_destroy(t);
            pmlp_model_destroy(model);
            continue;
        }
        r.net = &classes, r.data = &data, r.desc = desc, r.model = make_model(&classes, 5);
        train(&r);
        CHECK(r.middle == (way == 2 ? PMLP_OK : PMLP_ERROR_NUMBER) && r.end == wanted,
              "%d: %s: %s", way, pmlp_result_name(r.middle), r.text);
        pmlp_model_destroy(r.model);
    }
    SAY("a back end with edges of its own: too late without the norm, in time with it");
}

/* Data and weights that are finite, and what comes of them is not; and a bias. */
TEST(outputs) {
    for (int ranks = 1; ranks <= 2; ranks++) {
        pmlp_data data = good_data(&squares);
        pmlp_trainer_desc desc = {0};
        desc.batch = BATCH, desc.workers = 2, desc.deadline = 20;
        data_x[35 * N_IN + 3] = 3e38f, data_x[35 * N_IN + 4] = -3e38f;
        bad_step(&squares, &data, desc, ranks, "row 15 of the data: output ", "outputs");
    }
    pmlp_data data = good_data(&classes), batch = rows_of(&classes, &data, 0, BATCH);
    pmlp_model *model = make_model(&classes, 5);
    pmlp_trainer *t = NULL;
    pmlp_trainer_desc desc = {0};
    pmlp_params params;
    CHECK(pmlp_model_params(model, 1, &params, NULL) == PMLP_OK, "no parameters");
    params.b[3] = (float)NAN;
    desc.batch = BATCH, desc.workers = 2;
    CHECK(pmlp_trainer_create(model, &desc, &t, NULL) == PMLP_OK, "no trainer");
    CHECK(pmlp_trainer_step(t, &batch, NULL) == PMLP_ERROR_NUMBER &&
              strstr(pmlp_trainer_error(t)->text, "bias 3 of layer 1 is nan"),
          "%s", pmlp_trainer_error(t)->text);
    pmlp_trainer_destroy(t);
    pmlp_model_destroy(model);
    SAY("outputs out of range, on one rank and two, and a bias: named");
}

/* Without memory to look for the layer the step is still refused. */
TEST(no_memory) {
    for (long k = 1; k <= 2; k++) {
        pmlp_data data = good_data(&classes), batch = rows_of(&classes, &data, 0, BATCH);
        pmlp_model *model = make_model(&classes, 5);
        pmlp_trainer *t = NULL;
        pmlp_trainer_desc desc = {0};
        pmlp_params params;
        pmlp_error error = {0};
        test_memory memory;
        test_memory_init(&memory, 0);
        CHECK(pmlp_model_params(model, 1, &params, &error) == PMLP_OK, "%s", error.text);
        params.w[0] = (float)NAN;
        desc.batch = BATCH, desc.workers = 2, desc.allocator = memory.allocator;
        CHECK(pmlp_trainer_create(model, &desc, &t, &error) == PMLP_OK, "%s", error.text);
        memory.fail_at = memory.calls + k;
        CHECK(pmlp_trainer_step(t, &batch, NULL) == PMLP_ERROR_NUMBER &&
                  strstr(pmlp_trainer_error(t)->text, k == 1 ? "the loss is nan" : "weight 0 of"),
              "%s", pmlp_trainer_error(t)->text);
        pmlp_trainer_destroy(t);
        CHECK(memory.blocks == 0, "%ld blocks left", memory.blocks);
        pmlp_model_destroy(model);
    }
    SAY("no memory to look for the layer: refused all the same");
}

int main(void) {
    test_begin("numbers");
    RUN(named);
    RUN(everywhere);
    RUN(weights);
    RUN(epochs);
    RUN(shuffled);
    RUN(too_late);
    RUN(edges_of_the_back_end);
    RUN(outputs);
    RUN(no_memory);
    return test_end();
}
