/* Several ranks, one training: each rank is a thread of this process with a model and a trainer of
   its own. Pipelines over ranks and chains of replicas give the bits of one worker; sums are
   repeatable; and whatever fails, everybody returns. */
#define PIPEMLP_IMPLEMENTATION
#include "pipemlp.h"
#include "test.h"
#include "networks.h"
#include "shapes.h"

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
} outcome;

typedef struct rank rank;
typedef void (*script)(rank *r);
struct rank {
    const network *net;
    pmlp_trainer_desc desc;
    script body;
    void *user;
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
        r->out.norm = stats.gradient_norm, r->out.steps = stats.step;
    }
    if (r->desc.keep_gradients) {
        float b[64], sum = 0;
        failed(r, pmlp_trainer_gradient(t, 1, NULL, b), pmlp_trainer_error(t)->text);
        for (int i = 0; i < r->net->sizes[2]; i++) sum += b[i];
        r->out.gradient = (double)sum;
    }
}

static void train_and_end(rank *r) {
    pmlp_trainer *t = NULL;
    pmlp_error error = {0};
    if (!failed(r, pmlp_trainer_create(r->model, &r->desc, &t, &error), error.text)) train(r, t);
    pmlp_trainer_destroy(t);
    if (r->out.result == PMLP_OK)
        failed(r, pmlp_model_hash(r->model, &r->out.word, &error), error.text);
}

static void *rank_main(void *argument) {
    rank *r = argument;
    r->body(r);
    return NULL;
}

/* Runs a script on each rank; the descs may be changed by `each` before. */
static void run_ranks(rank *ranks, int count, const network *net, const pmlp_trainer_desc *desc,
                      script body, void *user) {
    pmlp_group groups[RANKS];
    pmlp_error error = {0};
    if (!CHECK(pmlp_thread_groups_create(count, NULL, groups, &error) == PMLP_OK, "%s", error.text))
        return;
    for (int i = 0; i < count; i++) {
        rank *r = &ranks[i];
        memset(r, 0, sizeof *r);
        r->net = net, r->desc = *desc, r->body = body, r->user = user, r->number = i;
        r->desc.group = &groups[i], r->model = make_model(net, 3);
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
           a->gradient == b->gradient && a->steps == b->steps;
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
                pmlp_trainer_desc d = desc_of(&shapes[i]), s;
                if (test_quick() && number % 2) continue;
                vary(&d, number + number / 5);
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
                    if (test_quick() && number % 3) continue;
                    vary(&d, number + number / 5);
                    d.replicas = replicas;
                    s = serial_of(d);
                    const outcome expected = run_alone(&nets[n], &s);
                    check_ranks(pmlp_schedule_kind_name(d.schedule), &nets[n], &d, replicas * each,
                                &expected);
                }
    SAY("chains of replicas, the bits of one worker: %s trainings", test_count(runs));
}

/* --- sums ------------------------------------------------------------------------------------ */

TEST(sums_of_replicas) {
    double worst = 0.0;
    runs = 0;
    for (int i = 0; i < SHAPES; i++)
        for (int replicas = 2; replicas <= 3; replicas++) {
            pmlp_trainer_desc d = desc_of(&shapes[i]), s;
            rank ranks[RANKS];
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

int main(void) {
    test_begin("ranks");
    make_data();
    RUN(pipelines_over_ranks);
    RUN(chains_of_replicas);
    RUN(sums_of_replicas);
    RUN(asynchronous);
    return test_end();
}
