/* Several ranks, one training: each rank is a thread of this process with a model and a trainer of
   its own. Pipelines over ranks and chains of replicas give the bits of one worker; sums are
   repeatable; and whatever fails, everybody returns. */
#define PIPEMLP_IMPLEMENTATION
#include "pipemlp.h"
#include "test.h"
#include "networks.h"
#include "shapes.h"
#include <time.h>

enum { RANKS = 6, BATCH = 24, ROWS = 64, STEPS = 3 };

static const network nets[] = {
    {"relu", 4, {20, 96, 24, 16, 5}, {PMLP_RELU, PMLP_RELU, PMLP_RELU, PMLP_LINEAR},
     PMLP_LOSS_XENT, false},
    {"gelu", 8, {12, 40, 18, 17, 16, 15, 14, 13, 4},
     {PMLP_GELU, PMLP_TANH, PMLP_RELU, PMLP_SIGMOID, PMLP_GELU, PMLP_RELU, PMLP_TANH, PMLP_LINEAR},
     PMLP_LOSS_MSE, true},
};
static float xs[ROWS * 20], targets[ROWS * 5];
static int labels[ROWS];

static pmlp_data data_of(const network *net) {
    pmlp_data data = {0};
    data.rows = ROWS, data.x = xs;
    if (net->targets) data.targets = targets;
    else data.labels = labels;
    return data;
}

static void make_data(void) {
    uint64_t rng = 5;
    for (int i = 0; i < ROWS * 20; i++) xs[i] = (float)test_uniform(&rng, -1.0, 1.0);
    for (int i = 0; i < ROWS * 5; i++) targets[i] = (float)test_uniform(&rng, -1.0, 1.0);
    for (int i = 0; i < ROWS; i++) labels[i] = (int)(test_random(&rng) % 5);
}

/* --- ranks that run the same calls ----------------------------------------------------------- */

/* What came of some steps, an epoch and an evaluation. */
typedef struct outcome {
    pmlp_result result;
    char text[512];
    uint64_t word;
    double loss[STEPS + 2], accuracy[STEPS + 2], norm, gradient;
    uint64_t steps;
    double stale, idle;
    double seconds; /* until the rank was back; the test's clock, not compared */
} outcome;

typedef struct rank rank;
typedef void (*script)(rank *r);
typedef void (*changer)(rank *r); /* of one rank's desc or model, before it begins */
struct rank {
    const network *net;
    pmlp_trainer_desc desc;
    script body;
    int number;
    pmlp_model *model;
    outcome out;
    pthread_t thread;
};

static bool failed(rank *r, pmlp_result result, const char *text) {
    if (result == PMLP_OK || r->out.result != PMLP_OK) return result != PMLP_OK;
    r->out.result = result;
    snprintf(r->out.text, sizeof r->out.text, "%s", text);
    return true;
}

/* Three steps of 24, 7 and 2 rows, an epoch with a ragged end, an evaluation. */
static void train(rank *r, pmlp_trainer *t) {
    static const size_t rows[STEPS] = {BATCH, 7, 2};
    const pmlp_data data = data_of(r->net);
    pmlp_stats stats = {0};
    for (int i = 0; i < STEPS + 2; i++) {
        pmlp_result result;
        if (i < STEPS) {
            const pmlp_data batch = rows_of(r->net, &data, (size_t)i * 11, rows[i]);
            result = pmlp_trainer_step(t, &batch, &stats);
        } else {
            result = i == STEPS ? pmlp_trainer_epoch(t, &data, &stats)
                                : pmlp_trainer_eval(t, &data, &stats);
        }
        if (failed(r, result, pmlp_trainer_error(t)->text)) return;
        r->out.loss[i] = stats.loss, r->out.accuracy[i] = stats.accuracy;
        r->out.norm = stats.gradient_norm, r->out.steps = stats.step, r->out.idle = 0.0;
        for (int w = 0; w < stats.workers; w++) r->out.idle += stats.idle[w] * (w + 1);
    }
    for (int i = 0; i < pmlp_schedule_stages(pmlp_trainer_schedule(t)); i++) {
        pmlp_stage_info info;
        pmlp_trainer_stage(t, i, &info);
        r->out.stale += (i + 1) * (info.staleness + info.most_stale + info.torn);
    }
    if (r->desc.keep_gradients) {
        float b[64], w[96 * 64], sum = 0;
        failed(r, pmlp_trainer_gradient(t, 1, NULL, b), pmlp_trainer_error(t)->text);
        failed(r, pmlp_trainer_gradient(t, 1, w, NULL), pmlp_trainer_error(t)->text);
        for (int i = 0; i < r->net->sizes[1] * r->net->sizes[2]; i++) sum += w[i];
        for (int i = 0; i < r->net->sizes[2]; i++) sum += b[i];
        r->out.gradient = (double)sum;
    }
}

static void train_and_end(rank *r) {
    pmlp_trainer *t = NULL;
    pmlp_error error = {0};
    if (!failed(r, pmlp_trainer_create(r->model, &r->desc, &t, &error), error.text)) train(r, t);
    if (t && r->desc.no_threads && r->out.result == PMLP_OK) /* or destroy does it */
        failed(r, pmlp_trainer_sync(t), pmlp_trainer_error(t)->text);
    pmlp_trainer_destroy(t);
    if (pmlp_model_hash(r->model, &r->out.word, &error) != PMLP_OK) {
        r->out.word = 0;
        failed(r, error.result, error.text);
    }
}

static void *rank_main(void *argument) {
    rank *r = argument;
    const double begin = test_seconds();
    r->body(r);
    r->out.seconds = test_seconds() - begin;
    return NULL;
}

/* Runs a script on each rank. */
static void run_ranks(rank *ranks, int count, const network *net, const pmlp_trainer_desc *desc,
                      script body, changer change) {
    pmlp_group groups[RANKS];
    pmlp_error error = {0};
    if (!CHECK(pmlp_thread_groups_create(count, NULL, groups, &error) == PMLP_OK, "%s", error.text))
        return;
    for (int i = 0; i < count; i++) {
        rank *r = &ranks[i];
        memset(r, 0, sizeof *r);
        r->net = net, r->desc = *desc, r->body = body, r->number = i;
        r->desc.group = &groups[i], r->model = make_model(net, 3);
        if (change) change(r);
    }
    for (int i = 0; i < count; i++) {
        rank *r = &ranks[i];
        CHECK(pthread_create(&r->thread, NULL, rank_main, r) == 0, "a thread");
    }
    for (int i = 0; i < count; i++) pthread_join(ranks[i].thread, NULL);
    for (int i = 0; i < count; i++) pmlp_model_destroy(ranks[i].model);
    pmlp_thread_groups_destroy(groups);
}

static outcome run_alone(const network *net, const pmlp_trainer_desc *desc) {
    rank r;
    memset(&r, 0, sizeof r);
    r.net = net, r.desc = *desc, r.model = make_model(net, 3);
    train_and_end(&r);
    pmlp_model_destroy(r.model);
    CHECK(r.out.result == PMLP_OK, "alone: %s", r.out.text);
    return r.out;
}

static bool same(const outcome *a, const outcome *b) {
    return a->word == b->word && memcmp(a->loss, b->loss, sizeof a->loss) == 0 &&
           memcmp(a->accuracy, b->accuracy, sizeof a->accuracy) == 0 && a->norm == b->norm &&
           a->gradient == b->gradient && a->steps == b->steps && a->stale == b->stale;
}

/* --- the same bits --------------------------------------------------------------------------- */

static long runs;

static void check_ranks(const char *what, const network *net, const pmlp_trainer_desc *desc,
                        int count, const outcome *expected) {
    rank ranks[RANKS];
    run_ranks(ranks, count, net, desc, train_and_end, NULL);
    runs++;
    for (int i = 0; i < count; i++) {
        CHECK(ranks[i].out.result == PMLP_OK, "%s: rank %d of %d: %s", what, i, count,
              ranks[i].out.text);
        CHECK(same(&ranks[i].out, expected),
              "%s %s p=%d m=%d R=%d: rank %d of %d: %016llx, not %016llx; loss %.17g, not %.17g; "
              "norm %.17g, not %.17g",
              what, net->name, desc->workers, desc->microbatches, desc->replicas, i, count,
              (unsigned long long)ranks[i].out.word, (unsigned long long)expected->word,
              ranks[i].out.loss[0], expected->loss[0], ranks[i].out.norm, expected->norm);
        CHECK(ranks[i].out.idle == ranks[0].out.idle, "%s: idle shares differ", what);
    }
}

static const shape shapes[] = {
    {PMLP_SCHEDULE_SEQUENTIAL, 2, 1, 3, 1}, {PMLP_SCHEDULE_GPIPE, 3, 1, 5, 1},
    {PMLP_SCHEDULE_1F1B, 4, 1, 4, 1},       {PMLP_SCHEDULE_1F1B, 3, 1, 1, 1},
    {PMLP_SCHEDULE_EAGER_1F1B, 3, 1, 6, 1}, {PMLP_SCHEDULE_INTERLEAVED, 2, 2, 4, 1},
    {PMLP_SCHEDULE_LOOPED_BFS, 2, 2, 3, 1}, {PMLP_SCHEDULE_ZB_H1, 3, 1, 4, 1},
    {PMLP_SCHEDULE_ZB_H2, 2, 1, 5, 1},      {PMLP_SCHEDULE_ZB_V, 2, 2, 5, 1},
    {PMLP_SCHEDULE_DUALPIPE_V, 2, 2, 6, 1},
};
enum { SHAPES = sizeof shapes / sizeof *shapes };

static pmlp_trainer_desc desc_of(const shape *s) {
    pmlp_trainer_desc d = {0};
    d.schedule = s->kind, d.workers = s->p, d.virtual_stages = s->v, d.microbatches = s->m;
    d.batch = BATCH, d.deadline = 20.0, d.optimizer = PMLP_MOMENTUM;
    return d;
}

static pmlp_trainer_desc serial_of(pmlp_trainer_desc d) {
    d.workers = d.virtual_stages = d.microbatches = 1, d.schedule = PMLP_SCHEDULE_SEQUENTIAL;
    d.cuts = NULL, d.no_threads = true, d.replicas = 0;
    return d;
}

static void vary(pmlp_trainer_desc *d, int number) {
    d->no_threads = number % 2;
    d->clip_norm = number % 3 == 1 ? 0.5f : 0.0f;
    d->gradient_norm = number % 3 == 2;
    d->keep_gradients = number % 4 == 3;
}

TEST(pipelines_over_ranks) {
    int number = 0;
    runs = 0;
    for (int n = 0; n < 2; n++)
        for (int i = 0; i < SHAPES; i++)
            for (int ranks = 1; ranks <= shapes[i].p; ranks++, number++) {
                static const pmlp_cut cuts[] = {{0, 32}, {0, 64}, {1, 0}};
                pmlp_trainer_desc d = desc_of(&shapes[i]), s;
                if (test_quick() && number % 3) continue;
                vary(&d, number + number / 5);
                if (n == 0 && shapes[i].p * shapes[i].v <= 4 && number % 3 == 0) d.cuts = cuts;
                s = serial_of(d);
                const outcome expected = run_alone(&nets[n], &s);
                check_ranks(pmlp_schedule_kind_name(d.schedule), &nets[n], &d, ranks, &expected);
            }
    SAY("pipelines over ranks, the bits of one worker: %s trainings", test_count(runs));
}

TEST(chains_of_replicas) {
    int number = 0;
    runs = 0;
    for (int n = 0; n < 2; n++)
        for (int i = 0; i < SHAPES; i++)
            for (int replicas = 2; replicas <= 3; replicas++)
                for (int each = 1; each <= 2; each++, number++) {
                    pmlp_trainer_desc d = desc_of(&shapes[i]), s;
                    if (test_quick() && number % 5) continue;
                    vary(&d, number + number / 5);
                    d.replicas = replicas;
                    s = serial_of(d);
                    const outcome expected = run_alone(&nets[n], &s);
                    check_ranks(pmlp_schedule_kind_name(d.schedule), &nets[n], &d, replicas * each,
                                &expected);
                }
    SAY("chains of replicas, the bits of one worker: %s trainings", test_count(runs));
}

static pmlp_group without_sums[RANKS];

static void use_no_sums(rank *r) {
    without_sums[r->number] = *r->desc.group, without_sums[r->number].sum = NULL;
    r->desc.group = &without_sums[r->number];
}

/* A schedule of the caller's, over pipelines and replicas; and chains need no sums. */
TEST(customs) {
    const char *text = "0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1\n";
    pmlp_schedule *custom = NULL;
    CHECK(pmlp_schedule_parse(text, strlen(text), NULL, &custom, NULL) == PMLP_OK, "no schedule");
    for (int replicas = 1; replicas <= 2; replicas++) {
        pmlp_trainer_desc d = desc_of(&shapes[2]), s = serial_of(d);
        rank ranks[RANKS];
        d.custom = custom, d.workers = d.microbatches = 0, d.replicas = replicas;
        const outcome expected = run_alone(&nets[0], &s);
        run_ranks(ranks, 2 * replicas, &nets[0], &d, train_and_end, use_no_sums);
        for (int i = 0; i < 2 * replicas; i++)
            CHECK(ranks[i].out.result == PMLP_OK && same(&ranks[i].out, &expected),
                  "%d replicas: rank %d: %s", replicas, i, ranks[i].out.text);
    }
    pmlp_schedule_destroy(custom);
    SAY("a schedule of the caller's over ranks and replicas, in groups that cannot sum: the bits of "
        "one worker");
}

/* --- sums ------------------------------------------------------------------------------------ */

TEST(sums_of_replicas) {
    double worst = 0.0;
    runs = 0;
    for (int i = 0; i < SHAPES; i++)
        for (int replicas = 2; replicas <= 3; replicas++) {
            pmlp_trainer_desc d = desc_of(&shapes[i]), s;
            rank ranks[RANKS];
            if (test_quick() && (i + replicas) % 4) continue;
            vary(&d, i + replicas);
            s = serial_of(d);
            const outcome expected = run_alone(&nets[0], &s);
            d.replicas = replicas, d.allreduce = true;
            run_ranks(ranks, 2 * replicas, &nets[0], &d, train_and_end, NULL);
            const outcome first = ranks[0].out;
            CHECK(first.result == PMLP_OK, "%s", first.text);
            check_ranks("allreduce again", &nets[0], &d, 2 * replicas, &first);
            for (int k = 0; k < STEPS + 2; k++) {
                const double off = fabs(first.loss[k] - expected.loss[k]);
                CHECK(off < 1e-4, "loss %d is %.9g, serially %.9g", k, first.loss[k],
                      expected.loss[k]);
                if (off > worst) worst = off;
            }
        }
    SAY("sums of replicas: twice the same bits, losses within %.1e of one worker's, %s trainings",
        worst, test_count(runs));
}

static void use_not_exact(rank *r) {
    static pmlp_backend table;
    if (r->number == 0) table = *pmlp_cpu_backend(), table.exact = false;
    r->desc.backend = &table;
}

TEST(not_exact) {
    pmlp_trainer_desc d = desc_of(&shapes[2]);
    rank ranks[RANKS];
    d.replicas = 2;
    run_ranks(ranks, 2, &nets[1], &d, train_and_end, use_not_exact);
    const outcome first = ranks[0].out;
    d.allreduce = true;
    run_ranks(ranks, 2, &nets[1], &d, train_and_end, use_not_exact);
    CHECK(first.result == PMLP_OK && ranks[0].out.result == PMLP_OK, "%s", first.text);
    CHECK(same(&first, &ranks[0].out) && same(&first, &ranks[1].out), "other bits");
    SAY("replicas of a back end that is not exact are summed");
}

/* --- asynchronous ---------------------------------------------------------------------------- */

TEST(asynchronous) {
    static const shape kinds[] = {{PMLP_SCHEDULE_PIPEDREAM, 3, 1, 2, 1},
                                  {PMLP_SCHEDULE_PIPEDREAM_2BW, 3, 1, 4, 1}};
    runs = 0;
    for (int i = 0; i < 2; i++)
        for (int ranks = 1; ranks <= 3; ranks++)
            for (int no_threads = 0; no_threads < 2; no_threads++) {
                pmlp_trainer_desc d = desc_of(&kinds[i]);
                d.no_threads = no_threads;
                const outcome expected = run_alone(&nets[1], &d);
                check_ranks("asynchronous", &nets[1], &d, ranks, &expected);
            }
    SAY("asynchronous pipelines over 1..3 ranks, the bits of one process: %s trainings",
        test_count(runs));
}

/* --- costs that are measured, verify, traces ------------------------------------------------- */

static void trace_and_end(rank *r) {
    pmlp_trainer *t = NULL;
    pmlp_timeline *timeline = NULL;
    pmlp_costs costs;
    pmlp_error error = {0};
    if (!failed(r, pmlp_trainer_create(r->model, &r->desc, &t, &error), error.text)) {
        train(r, t);
        failed(r, pmlp_trainer_timeline(t, 1, &timeline), pmlp_trainer_error(t)->text);
        failed(r, pmlp_trainer_costs(t, &costs), pmlp_trainer_error(t)->text);
        pmlp_timeline_destroy(timeline);
        /* what was measured is the same everywhere: the schedule's text, the cuts */
        char text[4096];
        pmlp_schedule_print(pmlp_trainer_schedule(t), text, sizeof text, NULL);
        r->out.stale = (double)(pmlp_hash(0, text, strlen(text)) >> 12);
        for (int i = 0; i < pmlp_schedule_stages(pmlp_trainer_schedule(t)) - 1; i++) {
            const pmlp_cut cut = pmlp_trainer_query_desc(t).cuts[i];
            r->out.stale += 4096.0 * cut.layer + cut.column;
        }
    }
    pmlp_trainer_destroy(t);
    if (r->out.result == PMLP_OK)
        failed(r, pmlp_model_hash(r->model, &r->out.word, &error), error.text);
}

TEST(measured) {
    for (int replicas = 1; replicas <= 2; replicas++)
        for (int automatic = 0; automatic < 2; automatic++) {
            pmlp_trainer_desc d = desc_of(&shapes[3]), s;
            rank ranks[RANKS];
            if (automatic) d.schedule = PMLP_SCHEDULE_AUTO;
            d.microbatches = 4, d.measure_layers = true, d.replicas = replicas, d.trace = 2;
            s = serial_of(d), s.trace = 0;
            const outcome expected = run_alone(&nets[0], &s);
            run_ranks(ranks, 3 * replicas, &nets[0], &d, trace_and_end, NULL);
            for (int i = 0; i < 3 * replicas; i++) {
                CHECK(ranks[i].out.result == PMLP_OK, "%s", ranks[i].out.text);
                CHECK(ranks[i].out.word == expected.word, "rank %d: other weights", i);
                CHECK(ranks[i].out.stale == ranks[0].out.stale, "rank %d: another schedule", i);
            }
        }
    SAY("what rank 0 measures decides everywhere; traces of a rank's own workers");
}

static void verify_and_end(rank *r) {
    const pmlp_data data = data_of(r->net);
    pmlp_verify_report report;
    pmlp_error error = {0};
    if (failed(r, pmlp_verify(r->model, &r->desc, &data, 3, &report, &error), error.text)) return;
    r->out.word = report.hash, r->out.steps = report.identical;
}

TEST(verified) {
    pmlp_trainer_desc d = desc_of(&shapes[2]);
    rank ranks[RANKS];
    for (int allreduce = 0; allreduce < 2; allreduce++) {
        d.replicas = 2, d.allreduce = allreduce;
        run_ranks(ranks, 4, &nets[1], &d, verify_and_end, NULL);
        for (int i = 0; i < 4; i++)
            CHECK(ranks[i].out.result == PMLP_OK && ranks[i].out.steps == !allreduce &&
                      ranks[i].out.word == ranks[0].out.word,
                  "%d: identical %d, %s", i, (int)ranks[i].out.steps, ranks[i].out.text);
    }
    SAY("verify over ranks: the chain is identical, the sum is not, on every rank");
}

/* --- ranks that do not agree ----------------------------------------------------------------- */

enum { DIFFERENT = 1 }; /* the rank that does */

static void change_batch(rank *r) { if (r->number == DIFFERENT) r->desc.batch = 12; }
static void change_seed(rank *r) { if (r->number == DIFFERENT) r->desc.seed = 7; }
static void change_rate(rank *r) { if (r->number == DIFFERENT) r->desc.learning_rate = 0.25f; }
static void change_kind(rank *r) {
    if (r->number == DIFFERENT) r->desc.schedule = PMLP_SCHEDULE_GPIPE;
}
static void change_m(rank *r) { if (r->number == DIFFERENT) r->desc.microbatches = 3; }
static void change_clip(rank *r) { if (r->number == DIFFERENT) r->desc.clip_norm = 2.0f; }
static void change_rule(rank *r) { if (r->number == DIFFERENT) r->desc.optimizer = PMLP_ADAM; }
static void change_keep(rank *r) { if (r->number == DIFFERENT) r->desc.keep_gradients = true; }
static void change_back_end(rank *r) {
    static pmlp_backend other;
    other = *pmlp_cpu_backend(), other.name = "other";
    if (r->number == DIFFERENT) r->desc.backend = &other;
}
static void change_weights(rank *r) {
    if (r->number == DIFFERENT) pmlp_model_destroy(r->model), r->model = make_model(r->net, 4);
}
static void change_layers(rank *r) {
    if (r->number == DIFFERENT) pmlp_model_destroy(r->model), r->model = make_model(&nets[1], 3);
}
static void change_costs(rank *r) {
    static const pmlp_costs costs = {NULL, NULL, NULL, NULL, 3, 0, NULL, NULL, 0, NULL};
    if (r->number == DIFFERENT) r->desc.costs = &costs;
}
static void change_cuts(rank *r) {
    static const pmlp_cut cuts[] = {{0, 16}, {1, 0}, {2, 0}};
    if (r->number == DIFFERENT) r->desc.cuts = cuts;
}

TEST(settings_that_differ) {
    static const struct {
        changer change;
        const char *says;
    } cases[] = {
        {change_batch, "batch: 24 on rank 0, 12 on rank 1"},
        {change_seed, "seed: 0 on rank 0, 7 on rank 1"},
        {change_rate, "learning_rate: 0.0500000007 on rank 0, 0.25 on rank 1"},
        {change_kind, "schedule: 1f1b on rank 0, gpipe on rank 1"},
        {change_m, "microbatches: 4 on rank 0, 3 on rank 1"},
        {change_clip, "clip_norm: 0 on rank 0, 2 on rank 1"},
        {change_rule, "optimizer: momentum on rank 0, adam on rank 1"},
        {change_keep, "keep_gradients: 0 on rank 0, 1 on rank 1"},
        {change_back_end, "backend: cpu on rank 0, other on rank 1"},
        {change_weights, "weights: digest "},
        {change_layers, "layers: 4 on rank 0, 8 on rank 1"},
        {change_cuts, "cuts: "},
        {change_costs, "costs: no, 0 on rank 0, given, 3 on rank 1"},
    };
    const pmlp_trainer_desc d = desc_of(&shapes[2]);
    const int count = (int)(sizeof cases / sizeof *cases);
    rank ranks[RANKS];
    for (int i = 0; i < count; i++) {
        run_ranks(ranks, 3, &nets[0], &d, train_and_end, cases[i].change);
        for (int k = 0; k < 3; k++) {
            CHECK(ranks[k].out.result == PMLP_ERROR_RANK, "%s: %s", cases[i].says,
                  ranks[k].out.text);
            CHECK(strstr(ranks[k].out.text, cases[i].says) != NULL, "rank %d: '%s' lacks '%s'", k,
                  ranks[k].out.text, cases[i].says);
            CHECK(strcmp(ranks[k].out.text, ranks[0].out.text) == 0, "rank %d: '%s'", k,
                  ranks[k].out.text);
            CHECK(ranks[k].out.seconds < 10.0, "%g s", ranks[k].out.seconds);
        }
    }
    SAY("settings that differ: refused with both values, the same sentence everywhere, %d cases",
        count);
}

static int wrong_call; /* what rank 1 does instead of the step of the others */

static void call_wrongly(rank *r) {
    pmlp_trainer *t = NULL;
    pmlp_error error = {0};
    const pmlp_data data = data_of(r->net);
    pmlp_data batch = rows_of(r->net, &data, 0, BATCH);
    int bad_labels[BATCH] = {0}, other_labels[BATCH];
    float other_x[BATCH * 64];
    pmlp_result result;
    if (failed(r, pmlp_trainer_create(r->model, &r->desc, &t, &error), error.text)) return;
    bad_labels[3] = 99;
    memcpy(other_labels, batch.labels, sizeof other_labels);
    memcpy(other_x, batch.x, BATCH * (size_t)r->net->sizes[0] * sizeof *batch.x);
    other_labels[BATCH - 1] ^= 1, other_x[(BATCH - 1) / 2 * r->net->sizes[0]] += 1;
    if (r->number != DIFFERENT) result = pmlp_trainer_step(t, &batch, NULL);
    else if (wrong_call == 0) result = pmlp_trainer_eval(t, &batch, NULL);
    else if (wrong_call == 1) result = pmlp_trainer_epoch(t, &data, NULL);
    else if (wrong_call == 2) batch.rows = 20, result = pmlp_trainer_step(t, &batch, NULL);
    else if (wrong_call == 3)
        batch.labels = bad_labels, result = pmlp_trainer_step(t, &batch, NULL);
    else if (wrong_call == 4) result = pmlp_trainer_sync(t);
    else if (wrong_call <= 7) { /* rows that are the next ones, a label, a row in the middle */
        if (wrong_call == 5) batch.x += r->net->sizes[0];
        if (wrong_call == 6) batch.labels = other_labels;
        if (wrong_call == 7) batch.x = other_x;
        result = pmlp_trainer_step(t, &batch, NULL);
    }
    else {
        pmlp_trainer_set_learning_rate(t, 0.5f);
        result = pmlp_trainer_step(t, &batch, NULL);
        pmlp_trainer_set_learning_rate(t, 0.05f);
    }
    snprintf(r->out.text, sizeof r->out.text, "%s", pmlp_trainer_error(t)->text);
    r->out.norm = result; /* kept here: what follows shall be a success */
    char text[512];
    memcpy(text, r->out.text, sizeof text);
    train(r, t); /* nothing has happened */
    r->out.gradient = 0.0, r->out.norm = result;
    pmlp_trainer_destroy(t);
    if (r->out.result == PMLP_OK)
        failed(r, pmlp_model_hash(r->model, &r->out.word, &error), error.text);
    if (r->out.result == PMLP_OK) memcpy(r->out.text, text, sizeof text);
}

TEST(calls_that_differ) {
    static const char *const says[] = {
        "call: step on rank 0, eval on rank 1", "call: step on rank 0, epoch on rank 1",
        "rows: 24 on rank 0, 20 on rank 1", "rank 1 failed: data: the label 99 of row 3",
        "call: step on rank 0, sync on rank 1", "some rows of the data: digest ",
        "some rows of the data: digest ", "some rows of the data: digest ",
        "learning_rate: 0.0500000007 on rank 0, 0.5 on rank 1"};
    pmlp_trainer_desc d = desc_of(&shapes[2]), s = serial_of(d);
    const outcome expected = run_alone(&nets[0], &s);
    const int count = (int)(sizeof says / sizeof *says);
    rank ranks[RANKS];
    for (wrong_call = 0; wrong_call < count; wrong_call++) {
        d.no_threads = wrong_call % 2;
        run_ranks(ranks, 3, &nets[0], &d, call_wrongly, NULL);
        for (int k = 0; k < 3; k++) {
            const bool own = wrong_call == 3 && k == DIFFERENT;
            CHECK((pmlp_result)ranks[k].out.norm == (own ? PMLP_ERROR_DATA : PMLP_ERROR_RANK),
                  "%s: rank %d: %s", says[wrong_call], k, ranks[k].out.text);
            CHECK(own || strstr(ranks[k].out.text, says[wrong_call]), "rank %d: '%s' lacks '%s'", k,
                  ranks[k].out.text, says[wrong_call]);
            CHECK(ranks[k].out.word == expected.word, "%s: rank %d has other weights afterwards",
                  says[wrong_call], k);
        }
    }
    SAY("calls that differ: named with both values, the trainers go on, the same weights, %d cases",
        count);
}

static bool stop_soon(const pmlp_stats *stats, void *user) {
    (void)user;
    return stats->steps < 2;
}

static void stop_one(rank *r) {
    if (r->number == DIFFERENT) r->desc.progress = stop_soon;
}

static void epoch_and_end(rank *r) {
    pmlp_trainer *t = NULL;
    pmlp_error error = {0};
    const pmlp_data data = data_of(r->net);
    if (failed(r, pmlp_trainer_create(r->model, &r->desc, &t, &error), error.text)) return;
    const pmlp_result result = pmlp_trainer_epoch(t, &data, NULL);
    r->out.norm = result;
    failed(r, pmlp_trainer_sync(t), pmlp_trainer_error(t)->text);
    failed(r, pmlp_model_hash(r->model, &r->out.word, &error), error.text);
    pmlp_trainer_destroy(t);
}

TEST(one_rank_stops) {
    const pmlp_trainer_desc d = desc_of(&shapes[2]);
    rank ranks[RANKS];
    run_ranks(ranks, 2, &nets[0], &d, epoch_and_end, stop_one);
    for (int k = 0; k < 2; k++)
        CHECK(ranks[k].out.result == PMLP_OK &&
                  (pmlp_result)ranks[k].out.norm == PMLP_ERROR_CANCELLED &&
                  ranks[k].out.word == ranks[0].out.word,
              "rank %d: %d %s", k, (int)ranks[k].out.norm, ranks[k].out.text);
    SAY("a progress callback of one rank stops the epoch of all");
}

/* --- descs and tables that are wrong --------------------------------------------------------- */

TEST(bad_groups) {
    pmlp_group groups[4], g;
    pmlp_edges edges;
    pmlp_backend device = *pmlp_cpu_backend();
    pmlp_error error = {0};
    pmlp_trainer *t = NULL;
    pmlp_model *model = make_model(&nets[0], 3);
    CHECK(pmlp_thread_groups_create(0, NULL, groups, &error) == PMLP_ERROR_ARGUMENT, "no ranks");
    CHECK(pmlp_thread_groups_create(16385, NULL, groups, &error) == PMLP_ERROR_ARGUMENT &&
              strstr(error.text, "16385 is not in 1 .. 16384"),
          "too many ranks: %s", error.text);
    CHECK(pmlp_thread_groups_create(2, NULL, NULL, &error) == PMLP_ERROR_ARGUMENT, "no groups");
    CHECK(pmlp_thread_groups_create(4, NULL, groups, &error) == PMLP_OK, "%s", error.text);
#define REFUSED(says, ...)                                                                         \
    do {                                                                                           \
        pmlp_trainer_desc d = desc_of(&shapes[2]);                                                 \
        g = groups[0], edges = *g.edges, g.edges = &edges, d.group = &g, d.deadline = 0.2;         \
        __VA_ARGS__;                                                                               \
        const pmlp_result result = pmlp_trainer_create(model, &d, &t, &error);                     \
        CHECK(result == PMLP_ERROR_ARGUMENT && !t && strstr(error.text, says), "%s: %s", says,     \
              error.text);                                                                         \
    } while (0)
    REFUSED("group: was built", g.abi++);
    REFUSED("group: was built", g.size--);
    REFUSED("group: was built", g.gather = NULL);
    REFUSED("group: was built", g.broadcast = NULL);
    REFUSED("group: was built", g.abort = NULL);
    REFUSED("group: was built", g.edges = NULL);
    REFUSED("group: was built", g.rank = 4);
    REFUSED("group: was built", g.rank = -1);
    REFUSED("group: was built", g.ranks = 0);
    REFUSED("group: was built", g.ranks = 16385);
    g.abort = groups[0].abort; /* from here on ranks would be told; nobody is there */
    REFUSED("edges for another version", edges.abi--);
    REFUSED("edges for another version", edges.size--);
    REFUSED("edges for another version", edges.connect = NULL);
    REFUSED("edges for another version", edges.disconnect = NULL);
    REFUSED("edges for another version", edges.reset = NULL);
    REFUSED("edges for another version", edges.send = NULL);
    REFUSED("edges for another version", edges.receive = NULL);
    REFUSED("share memory", edges.shared = true);
    REFUSED("the host's memory", device.edges = pmlp_thread_edges(), d.backend = &device);
    REFUSED("replicas: is negative", d.replicas = -1);
    REFUSED("replicas: do not divide", d.replicas = 3);
    REFUSED("more ranks than", d.workers = 3);
    REFUSED("replicas: want a synchronous", d.schedule = PMLP_SCHEDULE_PIPEDREAM, d.replicas = 2);
    REFUSED("allreduce: wants a group that can sum",
            g.sum = NULL, d.replicas = 2, d.allreduce = true);
    REFUSED("allreduce: wants a group that can sum", g.sum = NULL, d.replicas = 2,
            device.edges = NULL, device.exact = false, d.backend = &device);
    REFUSED("replicas: want a group", d.group = NULL, d.replicas = 2);
    REFUSED("deadline: is not", d.deadline = -1.0);
    REFUSED("deadline: is not", d.deadline = (double)NAN);
    REFUSED("deadline: is not", d.deadline = 2e9);
#undef REFUSED
    pmlp_thread_groups_destroy(groups);
    pmlp_thread_groups_destroy(NULL);
    pmlp_model_destroy(model);
    for (long k = 1; k < 20; k++) {
        test_memory memory;
        test_memory_init(&memory, k);
        if (pmlp_thread_groups_create(3, &memory.allocator, groups, &error) == PMLP_OK) {
            pmlp_thread_groups_destroy(groups);
            k = 20;
        } else {
            CHECK(error.result == PMLP_ERROR_MEMORY, "%s", error.text);
        }
        CHECK(memory.blocks == 0, "%ld blocks are left", memory.blocks);
    }
    SAY("groups and descs that are wrong: one sentence each");
}

/* --- a group's calls, without a trainer ------------------------------------------------------ */

/* Two ranks call; what each of them does, and in what time, is the case's. */
typedef struct caller {
    pmlp_group group;
    int call; /* 0: gather, 1: broadcast, 2: sum */
    size_t bytes;
    int from;
    double seconds;
    pmlp_result result;
    char why[400];
} caller;

static void *call_group(void *argument) {
    caller *c = argument;
    static char mine[64];
    char all[128] = {0};
    float sum[16] = {0};
    const pmlp_group *g = &c->group;
    c->result = c->call == 0   ? g->gather(g->context, mine, c->bytes, all, c->seconds)
                : c->call == 1 ? g->broadcast(g->context, c->from, all, c->bytes, c->seconds)
                               : g->sum(g->context, 3, 2, NULL, sum, c->bytes / 4, c->seconds);
    snprintf(c->why, sizeof c->why, "%s", g->explain(g->context));
    return NULL;
}

TEST(meetings) {
    static const struct {
        int calls[2];
        size_t bytes[2];
        int from[2];
        const char *says; /* "": they meet; rank 1's reason */
    } cases[] = {
        {{0, 0}, {8, 8}, {0, 0}, ""},
        {{1, 1}, {8, 8}, {1, 1}, ""},
        {{2, 2}, {8, 8}, {0, 0}, ""},
        {{0, 0}, {8, 16}, {0, 0}, "not at the same place: here, a gather of 16 bytes"},
        {{0, 1}, {8, 8}, {0, 0}, "not at the same place: here, a broadcast of 8 bytes"},
        {{1, 1}, {8, 8}, {0, 1}, "not at the same place: here, a broadcast of 8 bytes"},
        {{2, 2}, {8, 4}, {0, 0}, "not at the same place: here, a sum of 4 bytes"},
        {{-1, 0}, {0, 8}, {0, 0}, "rank 1 waited 0.05 s for rank 0 in a gather"},
        {{-1, 2}, {0, 8}, {0, 0}, "rank 1 waited 0.05 s for other replicas in a sum"},
    };
    const int n = (int)(sizeof cases / sizeof *cases);
    for (int i = 0; i < n; i++) {
        pmlp_group groups[2];
        pmlp_error error = {0};
        pthread_t thread;
        caller callers[2];
        CHECK(pmlp_thread_groups_create(2, NULL, groups, &error) == PMLP_OK, "%s", error.text);
        memset(callers, 0, sizeof callers);
        for (int k = 0; k < 2; k++) {
            callers[k].group = groups[k], callers[k].call = cases[i].calls[k];
            callers[k].bytes = cases[i].bytes[k], callers[k].from = cases[i].from[k];
            callers[k].seconds = cases[i].calls[0] < 0 ? 0.05 : 20;
        }
        if (cases[i].calls[0] >= 0)
            CHECK(pthread_create(&thread, NULL, call_group, &callers[0]) == 0, "a thread");
        call_group(&callers[1]);
        if (cases[i].calls[0] >= 0) pthread_join(thread, NULL);
        CHECK(callers[1].result == (*cases[i].says ? PMLP_ERROR_RANK : PMLP_OK) &&
                  strstr(callers[1].why, cases[i].says) && !callers[1].why[0] == !*cases[i].says,
              "%d: %s: '%s' lacks '%s'", i, pmlp_result_name(callers[1].result), callers[1].why,
              cases[i].says);
        CHECK(cases[i].calls[0] < 0 || callers[0].result == callers[1].result,
              "%d: the ranks differ: %s", i, callers[0].why);
        pmlp_thread_groups_destroy(groups);
    }
    SAY("ranks that call for different things, or alone: each says what it was about, %d cases", n);
}

static void nobody_sleeps(void *worker) { (void)worker; }

/* Both ends of an edge, one after the other; messages of the wrong size, ends that are taken or
   gone, memory that is lacking. */
TEST(boxes) {
    static char message[64];
    pmlp_group groups[2];
    pmlp_error error = {0};
    test_memory few;
    void *out = NULL, *in = NULL, *again = NULL;
    int me = 0;
    pmlp_edge_desc from = {0}, to;
    from.slots = 2, from.max_rows = 4, from.row_bytes = 8, from.to_stage = 1;
    from.to_rank = 1, from.wake = nobody_sleeps, from.channel = 5;
    to = from, from.from_wake = &me, to.to_wake = &me;
    test_memory_init(&few, 0);
    CHECK(pmlp_thread_groups_create(2, &few.allocator, groups, &error) == PMLP_OK, "%s",
          error.text);
    const pmlp_edges *e = groups[0].edges;
    const long blocks = few.blocks;
    for (long k = 1; !out; k++) {
        few.calls = 0, few.fail_at = k;
        const pmlp_result result = e->connect(e, &from, &out, &error);
        if (result == PMLP_OK) {
            CHECK(k == 5, "%ld failures", k - 1);
            break;
        }
        CHECK(result == PMLP_ERROR_MEMORY && few.blocks == blocks &&
                  strstr(error.text, "memory for an edge between ranks"),
              "%s, %ld blocks", error.text, few.blocks - blocks);
    }
    few.fail_at = 0;
    CHECK(e->connect(e, &from, &again, &error) == PMLP_ERROR_STATE &&
              strstr(error.text, "the group has a trainer already"),
          "an end that is taken: %s", error.text);
    CHECK(e->send(out, 0, message, 32) == PMLP_OK, "before the other end is there");
    CHECK(e->connect(e, &to, &in, &error) == PMLP_OK, "%s", error.text);
    CHECK(e->receive(in, 0, message, 32) == PMLP_OK && e->receive(in, 0, message, 32) == PMLP_BUSY,
          "one message");
    CHECK(e->send(out, 0, message, 16) == PMLP_OK && e->send(out, 0, message, 0) == PMLP_OK &&
              e->send(out, 0, message, 8) == PMLP_BUSY,
          "two slots");
    CHECK(e->receive(in, 0, message, 24) == PMLP_ERROR_RANK &&
              strstr(groups[1].explain(groups[1].context), "rank 0 sent 16 bytes, not 24"),
          "another size: %s", groups[1].explain(groups[1].context));
    CHECK(e->receive(in, 0, message, 16) == PMLP_OK && e->receive(in, 0, message, 0) == PMLP_OK,
          "the messages are still there");
    e->disconnect(in);
    CHECK(e->send(out, 0, message, 8) == PMLP_ERROR_RANK &&
              strstr(groups[0].explain(groups[0].context), "rank 1 has left"),
          "to nobody: %s", groups[0].explain(groups[0].context));
    e->disconnect(out);
    pmlp_thread_groups_destroy(groups);
    CHECK(few.blocks == 0, "%ld blocks are left", few.blocks);
    CHECK(pmlp_thread_groups_create(2, NULL, groups, &error) == PMLP_OK, "%s", error.text);
    e = groups[0].edges;
    CHECK(e->connect(e, &from, &out, &error) == PMLP_OK, "%s", error.text);
    CHECK(e->send(out, 0, message, 33) == PMLP_ERROR_RANK &&
              strstr(groups[0].explain(groups[0].context),
                     "a message of 33 bytes is larger than was agreed on"),
          "too large: %s", groups[0].explain(groups[0].context));
    CHECK(e->connect(e, &to, &in, &error) == PMLP_OK, "%s", error.text);
    e->disconnect(out);
    CHECK(e->receive(in, 0, message, 8) == PMLP_ERROR_RANK &&
              strstr(groups[1].explain(groups[1].context), "rank 0 has left"),
          "from nobody: %s", groups[1].explain(groups[1].context));
    e->disconnect(in);
    CHECK(e->connect(e, &to, &in, &error) == PMLP_OK && e->receive(in, 0, message, 8) == PMLP_BUSY,
          "from one that is still to come: %s", groups[1].explain(groups[1].context));
    e->disconnect(in);
    from.max_rows = SIZE_MAX, from.row_bytes = 16;
    CHECK(e->connect(e, &from, &out, &error) == PMLP_ERROR_MEMORY, "messages of any size: %s",
          error.text);
    pmlp_thread_groups_destroy(groups);
    SAY("messages of the wrong size, ends that are taken or gone, no memory: refused with reasons");
}

/* Where the sums of a worker meet is made by the first that comes. */
TEST(memory_for_sums) {
    pmlp_group groups[1];
    pmlp_error error = {0};
    test_memory few;
    float x = 1;
    test_memory_init(&few, 0);
    CHECK(pmlp_thread_groups_create(1, &few.allocator, groups, &error) == PMLP_OK, "%s",
          error.text);
    const pmlp_group *g = &groups[0];
    few.calls = 0, few.fail_at = 1;
    CHECK(g->sum(g->context, 0, 1, NULL, &x, 1, 1) == PMLP_ERROR_MEMORY &&
              strstr(g->explain(g->context), "out of memory for a sum"),
          "%s", g->explain(g->context));
    CHECK(g->sum(g->context, 0, 1, NULL, &x, 1, 1) == PMLP_OK && x == 1, "with memory, %g",
          (double)x);
    pmlp_thread_groups_destroy(groups);
    CHECK(few.blocks == 0, "%ld blocks are left", few.blocks);
    SAY("no memory for a sum is an error of that sum");
}

/* --- ranks that are not there, or late ------------------------------------------------------- */

static pthread_barrier_t all_back; /* lets the absent rank wait for the others */
static int absent_how;

/* Ranks but one go on after the first step; that one stays away, or leaves. */
static void step_alone(rank *r) {
    pmlp_trainer *t = NULL;
    pmlp_error error = {0};
    const pmlp_data data = data_of(r->net), batch = rows_of(r->net, &data, 0, BATCH);
    const bool absent = r->number == DIFFERENT;
    if (absent && absent_how == 0) {
        pthread_barrier_wait(&all_back);
        return;
    }
    if (!failed(r, pmlp_trainer_create(r->model, &r->desc, &t, &error), error.text)) {
        failed(r, pmlp_trainer_step(t, &batch, NULL), pmlp_trainer_error(t)->text);
        if (absent_how == 3) failed(r, pmlp_trainer_sync(t), pmlp_trainer_error(t)->text);
        if (absent && absent_how >= 2) { /* leaves, with weights to write back or without */
            pmlp_trainer_destroy(t), t = NULL;
        }
        if (!absent) {
            failed(r, pmlp_trainer_step(t, &batch, NULL), pmlp_trainer_error(t)->text);
            r->out.norm = pmlp_trainer_step(t, &batch, NULL);
            r->out.gradient = pmlp_trainer_sync(t);
        }
    }
    if (absent) pthread_barrier_wait(&all_back);
    pmlp_trainer_destroy(t);
    if (!absent) pthread_barrier_wait(&all_back);
}

TEST(absent_ranks) {
    int cases = 0;
    for (absent_how = 0; absent_how < 4; absent_how++)
        for (int no_threads = 0; no_threads < 2; no_threads++)
            for (int replicas = 1; replicas <= 2; replicas++, cases++) {
                pmlp_trainer_desc d = desc_of(&shapes[2]);
                rank ranks[RANKS];
                d.no_threads = no_threads, d.deadline = 0.08, d.replicas = replicas;
                pthread_barrier_init(&all_back, NULL, 2);
                run_ranks(ranks, 2, &nets[0], &d, step_alone, NULL);
                pthread_barrier_destroy(&all_back);
                for (int k = 0; k < 2; k++)
                    CHECK(ranks[k].out.seconds < 5.0, "rank %d: %g s", k, ranks[k].out.seconds);
                CHECK(ranks[0].out.result == PMLP_ERROR_RANK &&
                          strstr(ranks[0].out.text, "rank 1"),
                      "%d: %s", absent_how, ranks[0].out.text);
                if (absent_how > 0 && absent_how != 2)
                    CHECK((pmlp_result)ranks[0].out.norm == PMLP_ERROR_STATE, "usable after all");
            }
    SAY("a rank that never comes, stays away, leaves: the others are told, %d cases", cases);
}

/* A back end that works as the CPU's until its so manieth call, and then fails or dawdles. */
static pmlp_backend shim;
static long shim_calls, shim_fails_at;
static double shim_naps;

static pmlp_result shim_call(void) {
    const struct timespec nap = {0, 10000000};
    const long call = __atomic_add_fetch(&shim_calls, 1, __ATOMIC_SEQ_CST);
    if (call != shim_fails_at) return PMLP_OK;
    if (shim_naps == 0.0) return PMLP_ERROR_BACKEND;
    for (const double until = test_seconds() + shim_naps; test_seconds() < until;)
        nanosleep(&nap, NULL);
    return PMLP_OK;
}

#define SHIM(call) shim_call() != PMLP_OK ? PMLP_ERROR_BACKEND : pmlp_cpu_backend()->call
static pmlp_result shim_create(void *c, const pmlp_layer_desc *d, void **layer) {
    *layer = NULL;
    return SHIM(layer_create(c, d, layer));
}
static pmlp_result shim_read(void *c, void *l, pmlp_tensor tensor, float *w, float *b) {
    return SHIM(read(c, l, tensor, w, b));
}
static pmlp_result shim_forward(void *c, void *l, int v, size_t rows, const float *x, float *y) {
    return SHIM(forward(c, l, v, rows, x, y));
}
static pmlp_result shim_input(void *c, void *l, int v, size_t rows, const float *dz, const float *x,
                              float *below) {
    return SHIM(backward_input(c, l, v, rows, dz, x, below));
}
static pmlp_result shim_weight(void *c, void *l, size_t rows, const float *x, const float *dz,
                               bool accumulate) {
    return SHIM(backward_weight(c, l, rows, x, dz, accumulate));
}
static pmlp_result shim_squares(void *c, void *l, double *squares) {
    return SHIM(gradient_squares(c, l, squares));
}
static pmlp_result shim_gradient(void *c, void *l, float **data, size_t *floats) {
    return SHIM(gradient(c, l, data, floats));
}
static pmlp_result shim_update(void *c, void *l, const pmlp_update_args *args) {
    return SHIM(update(c, l, args));
}
static pmlp_result shim_synchronize(void *c) { return SHIM(synchronize(c)); }

static void shim_make(long fails_at, double naps) {
    shim = *pmlp_cpu_backend();
    shim.layer_create = shim_create, shim.read = shim_read, shim.forward = shim_forward;
    shim.backward_input = shim_input, shim.backward_weight = shim_weight;
    shim.gradient_squares = shim_squares, shim.gradient = shim_gradient;
    shim.update = shim_update, shim.synchronize = shim_synchronize;
    shim_calls = 0, shim_fails_at = fails_at, shim_naps = naps;
}

static void use_shim(rank *r) { if (r->number == DIFFERENT) r->desc.backend = &shim; }

/* A rank that takes longer than the deadline in the middle of a step: whoever waits for it says on
   which hand-off, with threads and without. */
TEST(slow_ranks) {
    int cases = 0;
    for (int no_threads = 0; no_threads < 2; no_threads++)
        for (int replicas = 1; replicas <= 2; replicas++, cases++) {
            pmlp_trainer_desc d = desc_of(&shapes[2]);
            rank ranks[RANKS];
            d.no_threads = no_threads, d.replicas = replicas, d.deadline = 0.1;
            shim_make(12, 0.4);
            run_ranks(ranks, 2, &nets[0], &d, train_and_end, use_shim);
            CHECK(ranks[0].out.result == PMLP_ERROR_RANK &&
                      strstr(ranks[0].out.text, "waited 0.1 s for rank 1 in "),
                  "%s", ranks[0].out.text);
            CHECK(ranks[1].out.result == PMLP_ERROR_RANK &&
                      strstr(ranks[1].out.text, "rank 0 failed: "),
                  "%s", ranks[1].out.text);
            CHECK(ranks[0].out.seconds < 3.0, "%g s", ranks[0].out.seconds);
        }
    SAY("a rank that is too slow: named with the hand-off that was waited for, %d cases", cases);
}

/* --- failures -------------------------------------------------------------------------------- */

/* Whatever failed on rank 1: it says so or has heard of it, the others are told at once, long
   before the deadline. What is left of weights is the same on all ranks, and that of a complete
   step. Only reading back what all have may fail on one rank alone. */
static uint64_t words[16]; /* serially, before the first step and after each */
static int word_count;

static void check_failure(const char *what, long k, const rank *ranks, int count) {
    const bool reading = strstr(ranks[DIFFERENT].out.text, "reading the weights") ||
                         strstr(ranks[DIFFERENT].out.text, "weights are lost");
    uint64_t word = 0;
    for (int i = 0; i < count; i++) {
        const outcome *out = &ranks[i].out;
        const bool lost = strstr(out->text, "weights are lost") != NULL;
        bool found = out->word == 0 || ranks[0].desc.allreduce;
        CHECK(out->seconds < 5.0, "%s %ld: rank %d took %g s", what, k, i, out->seconds);
        CHECK(out->result != PMLP_OK || (reading && ranks[0].desc.replicas == count),
              "%s %ld: rank %d heard nothing of '%s'", what, k, i, ranks[DIFFERENT].out.text);
        CHECK(i == DIFFERENT || lost || out->result == PMLP_OK || out->result == PMLP_ERROR_RANK,
              "%s %ld: rank %d: %s", what, k, i, pmlp_result_name(out->result));
        CHECK(out->result == PMLP_OK || out->text[0] != '\0', "%s %ld: rank %d says nothing", what,
              k, i);
        CHECK(i == DIFFERENT || lost || out->result == PMLP_OK || strstr(out->text, "rank "),
              "%s %ld: rank %d: '%s'", what, k, i, out->text);
        for (int n = 0; n < word_count; n++) found = found || out->word == words[n];
        CHECK(found, "%s %ld: rank %d has weights that never were", what, k, i);
        CHECK(!word || !out->word || out->word == word, "%s %ld: rank %d has other weights", what,
              k, i);
        if (out->word) word = out->word;
    }
}

/* The words of a serial training by train(). */
static void serial_words(const network *net, const pmlp_trainer_desc *desc) {
    static const size_t rows[] = {BATCH, 7, 2, BATCH, BATCH, ROWS - 2 * BATCH};
    static const size_t first[] = {0, 11, 22, 0, BATCH, 2 * BATCH}; /* then the epoch's */
    pmlp_model *model = make_model(net, 3);
    pmlp_trainer_desc d = serial_of(*desc);
    pmlp_trainer *t = NULL;
    const pmlp_data data = data_of(net);
    word_count = 0;
    CHECK(pmlp_model_hash(model, &words[word_count++], NULL) == PMLP_OK &&
              pmlp_trainer_create(model, &d, &t, NULL) == PMLP_OK,
          "serial words");
    for (int i = 0; i < 6; i++) {
        const pmlp_data batch = rows_of(net, &data, first[i], rows[i]);
        CHECK(pmlp_trainer_step(t, &batch, NULL) == PMLP_OK && pmlp_trainer_sync(t) == PMLP_OK &&
                  pmlp_model_hash(model, &words[word_count++], NULL) == PMLP_OK,
              "serial words");
    }
    pmlp_trainer_destroy(t);
    pmlp_model_destroy(model);
}

static bool all_well(const rank *ranks, int count) {
    for (int i = 0; i < count; i++)
        if (ranks[i].out.result != PMLP_OK) return false;
    return true;
}

static void fault_desc(pmlp_trainer_desc *d, int variant) {
    *d = desc_of(&shapes[variant % 2 ? 9 : 2]);
    d->no_threads = variant / 2 % 2, d->clip_norm = variant % 2 ? 0.5f : 0.0f;
    d->replicas = variant >= 4 ? 2 : 1, d->allreduce = variant >= 6;
    d->no_shuffle = true;
}

/* In all variants the k-th of rank 1's calls fails, for every `step`-th k until there are no more:
   all ranks return. `begin` sets the k-th up, `after` looks at what it left behind. Returns how many
   there were. */
static long each_fault(const char *what, long step, void (*begin)(long k), const long *calls,
                       changer change, void (*after)(long k)) {
    long cases = 0;
    for (int variant = 0; variant < 8; variant++) {
        pmlp_trainer_desc d;
        rank ranks[RANKS];
        const int count = 2;
        fault_desc(&d, variant);
        serial_words(&nets[0], &d);
        for (long k = 1;; k += step, cases++) {
            begin(k);
            run_ranks(ranks, count, &nets[0], &d, train_and_end, change);
            if (after) after(k);
            if (*calls < k) {
                CHECK(all_well(ranks, count), "%s", ranks[0].out.text);
                break;
            }
            check_failure(what, k, ranks, count);
        }
    }
    return cases;
}

static void shim_begin(long k) {
    shim_make(k, 0.0);
}

TEST(back_end_fails) {
    const long cases =
        each_fault("back end", test_quick() ? 53 : 11, shim_begin, &shim_calls, use_shim, NULL);
    SAY("the back end of one rank fails at its k-th call: all return, %s cases", test_count(cases));
}

/* Rank 0 fails in a W, before the gate: rank 1, which has had its gradients for long, has not
   updated. Both count the updates that they began. */
static long updates[2], weight_calls, weight_fails_at;

static pmlp_result gate_weight(void *c, void *l, size_t rows, const float *x, const float *dz,
                               bool accumulate) {
    if (__atomic_add_fetch(&weight_calls, 1, __ATOMIC_SEQ_CST) == weight_fails_at)
        return PMLP_ERROR_BACKEND;
    return pmlp_cpu_backend()->backward_weight(c, l, rows, x, dz, accumulate);
}
static pmlp_result gate_update_0(void *c, void *l, const pmlp_update_args *args) {
    __atomic_add_fetch(&updates[0], 1, __ATOMIC_SEQ_CST);
    return pmlp_cpu_backend()->update(c, l, args);
}
static pmlp_result gate_update_1(void *c, void *l, const pmlp_update_args *args) {
    __atomic_add_fetch(&updates[1], 1, __ATOMIC_SEQ_CST);
    return pmlp_cpu_backend()->update(c, l, args);
}

static void use_gate(rank *r) {
    static pmlp_backend tables[2];
    pmlp_backend *const table = &tables[r->number];
    *table = *pmlp_cpu_backend(), r->desc.backend = table;
    table->update = r->number ? gate_update_1 : gate_update_0;
    if (r->number == 0) table->backward_weight = gate_weight;
}

TEST(gate) {
    static const pmlp_cut cuts[] = {{2, 0}}; /* two layers each */
    static const shape two = {PMLP_SCHEDULE_1F1B, 2, 1, 4, 1};
    long cases = 0;
    for (weight_fails_at = 1;; weight_fails_at++, cases++) {
        pmlp_trainer_desc d = desc_of(&two);
        rank ranks[RANKS];
        d.cuts = cuts, d.keep_gradients = true;
        updates[0] = updates[1] = weight_calls = 0;
        run_ranks(ranks, 2, &nets[0], &d, train_and_end, use_gate);
        if (weight_calls < weight_fails_at) break;
        CHECK(ranks[1].out.result == PMLP_ERROR_RANK, "%s", ranks[1].out.text);
        CHECK(updates[0] % 2 == 0 && updates[1] == updates[0], "%ld: %ld and %ld updates",
              weight_fails_at, updates[0], updates[1]);
    }
    SAY("no rank updates before all ranks have all gradients, %ld cases", cases);
}

/* A group whose so manieth call fails. */
static pmlp_group faulty;
static pmlp_edges faulty_edges;
static const pmlp_group *faulty_inner;
static long group_calls, group_fails_at;

static bool group_fails(void) {
    return __atomic_add_fetch(&group_calls, 1, __ATOMIC_SEQ_CST) == group_fails_at;
}
static pmlp_result faulty_gather(void *c, const void *mine, size_t bytes, void *all, double s) {
    return group_fails() ? PMLP_ERROR_RANK : faulty_inner->gather(c, mine, bytes, all, s);
}
static pmlp_result faulty_broadcast(void *c, int from, void *data, size_t bytes, double s) {
    return group_fails() ? PMLP_ERROR_RANK : faulty_inner->broadcast(c, from, data, bytes, s);
}
static pmlp_result faulty_sum(void *c, int worker, int replicas, void *b, float *data,
                              size_t floats, double s) {
    return group_fails() ? PMLP_ERROR_RANK
                         : faulty_inner->sum(c, worker, replicas, b, data, floats, s);
}
static pmlp_result faulty_connect(const pmlp_edges *self, const pmlp_edge_desc *d, void **edge,
                                  pmlp_error *error) {
    (void)self;
    return group_fails() ? PMLP_ERROR_RANK
                         : faulty_inner->edges->connect(faulty_inner->edges, d, edge, error);
}
static pmlp_result faulty_send(void *edge, int m, const void *data, size_t bytes) {
    const pmlp_result result = faulty_inner->edges->send(edge, m, data, bytes);
    return result == PMLP_OK && group_fails() ? PMLP_ERROR_RANK : result;
}
static pmlp_result faulty_receive(void *edge, int m, void *data, size_t bytes) {
    const pmlp_result result = faulty_inner->edges->receive(edge, m, data, bytes);
    return result == PMLP_OK && group_fails() ? PMLP_ERROR_RANK : result;
}

static const char *no_reason(void *context) { return (void)context, (const char *)NULL; }

static void use_faulty(rank *r) {
    if (r->number != DIFFERENT) return;
    faulty_inner = r->desc.group, faulty = *faulty_inner, faulty_edges = *faulty.edges;
    faulty.gather = faulty_gather, faulty.broadcast = faulty_broadcast, faulty.sum = faulty_sum;
    faulty_edges.connect = faulty_connect, faulty_edges.send = faulty_send;
    faulty_edges.receive = faulty_receive;
    faulty.edges = &faulty_edges;
    if (group_fails_at % 3 == 1) faulty.explain = NULL; /* some have no reasons to tell */
    if (group_fails_at % 3 == 2) faulty.explain = no_reason;
    r->desc.group = &faulty;
}

static void faulty_begin(long k) {
    group_calls = 0, group_fails_at = k;
}

TEST(group_fails) {
    const long cases =
        each_fault("group", test_quick() ? 31 : 5, faulty_begin, &group_calls, use_faulty, NULL);
    SAY("the k-th call of one rank's group fails: all return, %s cases", test_count(cases));
}

static test_memory memory;

static void use_memory(rank *r) {
    if (r->number == DIFFERENT) r->desc.allocator = memory.allocator;
}

static void memory_begin(long k) {
    test_memory_init(&memory, k);
}
static void memory_after(long k) {
    CHECK(memory.blocks == 0, "allocation %ld: %ld blocks are left", k, memory.blocks);
}

TEST(memory_fails) {
    const long cases = each_fault("allocation", test_quick() ? 17 : 2, memory_begin, &memory.calls,
                                  use_memory, memory_after);
    SAY("the k-th allocation of one rank fails: all return, nothing is left, %s cases",
        test_count(cases));
}

static void create_and_end(rank *r) {
    pmlp_trainer *t = NULL;
    pmlp_error error = {0};
    failed(r, pmlp_trainer_create(r->model, &r->desc, &t, &error), error.text);
    pmlp_trainer_destroy(t);
}
static void use_memory_first(rank *r) {
    if (r->number == 0) r->desc.allocator = memory.allocator;
}

/* While the others wait for what rank 0 measures: they hear what went wrong there. */
TEST(measuring_fails) {
    const long step = test_quick() ? 7 : 1;
    long cases = 0;
    for (int automatic = 0; automatic < 2; automatic++)
        for (long k = 1;; k += step, cases++) {
            pmlp_trainer_desc d = desc_of(&shapes[2]);
            rank ranks[RANKS];
            const outcome *own = &ranks[0].out, *other = &ranks[1].out;
            if (automatic) d.schedule = PMLP_SCHEDULE_AUTO;
            d.measure_layers = true;
            memory_begin(k);
            run_ranks(ranks, 2, &nets[0], &d, create_and_end, use_memory_first);
            memory_after(k);
            if (memory.calls < k) {
                CHECK(all_well(ranks, 2), "%s, %s", own->text, other->text);
                break;
            }
            CHECK(own->result == PMLP_ERROR_MEMORY, "allocation %ld: %s", k, own->text);
            CHECK(other->result == PMLP_ERROR_RANK && strstr(other->text, own->text),
                  "allocation %ld: '%s', the other: '%s'", k, own->text, other->text);
        }
    SAY("the k-th allocation of rank 0 fails while it measures: the others are told, %s cases",
        test_count(cases));
}

TEST(auto_with_slots) {
    pmlp_trainer_desc d = desc_of(&shapes[2]);
    rank ranks[RANKS];
    d.schedule = PMLP_SCHEDULE_AUTO, d.slots = 1, d.microbatches = 6;
    run_ranks(ranks, 2, &nets[0], &d, create_and_end, NULL);
    CHECK(ranks[0].out.result == ranks[1].out.result &&
              strcmp(ranks[0].out.text, ranks[1].out.text) == 0,
          "'%s', '%s'", ranks[0].out.text, ranks[1].out.text);
    /* what it measures with must not meet it, what it finds may */
    CHECK(ranks[0].out.result == PMLP_OK || ranks[0].out.result == PMLP_ERROR_DEADLOCK, "%s",
          ranks[0].out.text);
    SAY("auto with edges of one slot: %s on all ranks", pmlp_result_name(ranks[0].out.result));
}

/* --- files ------------------------------------------------------------------------------------ */

static char saved[64]; /* a training, after two steps */

static pmlp_result step_number(rank *r, pmlp_trainer *t, int i) {
    const pmlp_data data = data_of(r->net), batch = rows_of(r->net, &data, (size_t)i * 5, BATCH);
    return pmlp_trainer_step(t, &batch, NULL);
}

/* Two steps, saved; then one rank leaves, and the others hear of it. */
static void save_and_lose(rank *r) {
    pmlp_trainer *t = NULL;
    pmlp_error error = {0};
    if (failed(r, pmlp_trainer_create(r->model, &r->desc, &t, &error), error.text)) return;
    for (int i = 0; i < 2; i++) failed(r, step_number(r, t, i), pmlp_trainer_error(t)->text);
    failed(r, pmlp_trainer_save(t, saved), pmlp_trainer_error(t)->text);
    if (r->number != DIFFERENT) r->out.norm = step_number(r, t, 2);
    pmlp_trainer_destroy(t);
}

/* Goes on for two steps; or, if there is no file, says so. */
static void load_and_end(rank *r) {
    pmlp_trainer *t = NULL;
    pmlp_error error = {0};
    if (failed(r, pmlp_trainer_create(r->model, &r->desc, &t, &error), error.text)) return;
    if (!failed(r, pmlp_trainer_load(t, saved), pmlp_trainer_error(t)->text))
        for (int i = 2; i < 4; i++) failed(r, step_number(r, t, i), pmlp_trainer_error(t)->text);
    pmlp_trainer_destroy(t);
    if (r->out.result == PMLP_OK)
        failed(r, pmlp_model_hash(r->model, &r->out.word, &error), error.text);
}

TEST(saved_and_resumed) {
    pmlp_trainer_desc d = desc_of(&shapes[2]), s = serial_of(d);
    pmlp_trainer *t = NULL;
    rank ranks[RANKS], alone;
    memset(&alone, 0, sizeof alone);
    alone.net = &nets[0], alone.model = make_model(&nets[0], 3);
    CHECK(pmlp_trainer_create(alone.model, &s, &t, NULL) == PMLP_OK, "alone");
    for (int i = 0; i < 4; i++) CHECK(step_number(&alone, t, i) == PMLP_OK, "alone");
    pmlp_trainer_destroy(t);
    CHECK(pmlp_model_hash(alone.model, &alone.out.word, NULL) == PMLP_OK, "alone");
    pmlp_model_destroy(alone.model);
    snprintf(saved, sizeof saved, "test_ranks.%ld.safetensors", (long)getpid());
    run_ranks(ranks, 3, &nets[0], &d, load_and_end, NULL); /* nothing is there yet */
    for (int k = 0; k < 3; k++)
        CHECK(ranks[k].out.result == (k ? PMLP_ERROR_RANK : PMLP_ERROR_FILE) &&
                  strstr(ranks[k].out.text, saved),
              "rank %d: %s", k, ranks[k].out.text);
    for (int from = 1; from < 4; from++) {
        d.replicas = from == 3 ? 2 : 1, d.deadline = 2.0; /* for the one that is lost */
        run_ranks(ranks, from + 1, &nets[0], &d, save_and_lose, NULL);
        d.deadline = 20.0;
        for (int k = 0; k <= from; k++)
            CHECK(ranks[k].out.result == PMLP_OK &&
                      (k == DIFFERENT || (pmlp_result)ranks[k].out.norm == PMLP_ERROR_RANK),
                  "%d ranks, rank %d: %s, then %d", from + 1, k, ranks[k].out.text,
                  (int)ranks[k].out.norm);
        for (int to = 1; to <= 4; to++) {
            d.replicas = to == 2 ? 2 : 1, d.no_threads = to % 2;
            run_ranks(ranks, to, &nets[0], &d, load_and_end, NULL);
            for (int k = 0; k < to; k++)
                CHECK(ranks[k].out.result == PMLP_OK && ranks[k].out.word == alone.out.word,
                      "%d ranks, then %d: rank %d: %s", from + 1, to, k, ranks[k].out.text);
        }
    }
    remove(saved);
    SAY("2 to 4 ranks save, one is lost, 1 to 4 go on: the bits of one process");
}

/* --- every single call of what is done once --------------------------------------------------- */

static void save_only(rank *r) {
    pmlp_trainer *t = NULL;
    pmlp_error error = {0};
    if (!failed(r, pmlp_trainer_create(r->model, &r->desc, &t, &error), error.text))
        failed(r, pmlp_trainer_save(t, saved), pmlp_trainer_error(t)->text);
    pmlp_trainer_destroy(t);
}

static void load_only(rank *r) {
    pmlp_trainer *t = NULL;
    pmlp_error error = {0};
    if (!failed(r, pmlp_trainer_create(r->model, &r->desc, &t, &error), error.text))
        failed(r, pmlp_trainer_load(t, saved), pmlp_trainer_error(t)->text);
    pmlp_trainer_destroy(t);
}

/* As each_fault() does, but of one script, each call up to `most`, and without weights. */
static long each_call(const char *what, const pmlp_trainer_desc *d, script body, long most,
                      void (*begin)(long k), const long *calls, changer change) {
    long cases = 0;
    rank ranks[RANKS];
    for (long k = 1; k <= most; k++, cases++) {
        begin(k);
        run_ranks(ranks, 2, &nets[0], d, body, change);
        if (*calls < k) {
            CHECK(all_well(ranks, 2), "%s %ld: %s", what, k, ranks[0].out.text);
            break;
        }
        for (int i = 0; i < 2; i++) {
            CHECK(ranks[i].out.result != PMLP_OK && strchr(ranks[i].out.text, ' '),
                  "%s %ld: rank %d: %s", what, k, i, ranks[i].out.text);
            CHECK(ranks[i].out.seconds < 5.0, "%s %ld: rank %d took %g s, '%s'", what, k, i,
                  ranks[i].out.seconds, ranks[i].out.text);
        }
        CHECK(ranks[0].out.result == PMLP_ERROR_RANK && strstr(ranks[0].out.text, "rank 1"),
              "%s %ld: %s", what, k, ranks[0].out.text);
    }
    return cases;
}

TEST(beginning_fails) {
    long cases = 0;
    for (int variant = 0; variant < 5; variant++) {
        pmlp_trainer_desc d = desc_of(&shapes[2]);
        d.replicas = variant == 1 || variant == 2 ? 2 : 1, d.allreduce = variant == 2;
        if (variant == 3) d.schedule = PMLP_SCHEDULE_AUTO;
        d.measure_layers = variant == 4;
        cases += each_call("group", &d, create_and_end, 40, faulty_begin, &group_calls, use_faulty);
        cases += each_call("memory", &d, create_and_end, test_quick() ? 16 : 400, memory_begin,
                           &memory.calls, use_memory);
        cases += each_call("back end", &d, create_and_end, 200, shim_begin, &shim_calls, use_shim);
    }
    SAY("each call of a group, a back end, an allocator while trainers are made fails: all hear of "
        "it, %s cases", test_count(cases));
}

/* A bound is a rank's own business: the other does not call. */
TEST(ceilings) {
    pmlp_trainer_desc d = desc_of(&shapes[2]);
    pmlp_group groups[2];
    pmlp_error error = {0};
    pmlp_ceiling_report report;
    d.measure_layers = true, d.workers = 3, d.deadline = 0.2;
    CHECK(pmlp_thread_groups_create(2, NULL, groups, &error) == PMLP_OK, "%s", error.text);
    pmlp_model *model = make_model(&nets[0], 3);
    for (int i = 0; i < 2; i++) {
        d.group = &groups[i];
        CHECK(pmlp_ceiling(model, &d, NULL, &report, &error) == PMLP_OK && report.speedup > 1,
              "rank %d: %s", i, error.text);
    }
    pmlp_model_destroy(model);
    pmlp_thread_groups_destroy(groups);
    SAY("bounds ask no other rank, with layers measured, too");
}

TEST(loading_fails) {
    const pmlp_trainer_desc d = desc_of(&shapes[2]);
    rank ranks[RANKS];
    snprintf(saved, sizeof saved, "test_ranks.%ld.safetensors", (long)getpid());
    run_ranks(ranks, 2, &nets[0], &d, save_only, NULL);
    CHECK(all_well(ranks, 2), "not saved: %s", ranks[0].out.text);
    const long calls = each_call("group", &d, load_only, 100, faulty_begin, &group_calls,
                                 use_faulty);
    const long blocks = each_call("memory", &d, load_only, 1000, memory_begin,
                                  &memory.calls, use_memory);
    remove(saved);
    CHECK(calls > 5 && blocks > 20, "%ld calls, %ld allocations", calls, blocks);
    SAY("each call of a group, each allocation while a file is loaded fails: all hear it, %s cases",
        test_count(calls + blocks));
}

int main(void) {
    test_begin("ranks");
    make_data();
    RUN(pipelines_over_ranks);
    RUN(chains_of_replicas);
    RUN(customs);
    RUN(sums_of_replicas);
    RUN(not_exact);
    RUN(asynchronous);
    RUN(measured);
    RUN(verified);
    RUN(settings_that_differ);
    RUN(calls_that_differ);
    RUN(one_rank_stops);
    RUN(bad_groups);
    RUN(meetings);
    RUN(boxes);
    RUN(memory_for_sums);
    RUN(absent_ranks);
    RUN(slow_ranks);
    RUN(back_end_fails);
    RUN(gate);
    RUN(group_fails);
    RUN(memory_fails);
    RUN(measuring_fails);
    RUN(auto_with_slots);
    RUN(saved_and_resumed);
    RUN(beginning_fails);
    RUN(loading_fails);
    RUN(ceilings);
    return test_end();
}
