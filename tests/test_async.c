/* Asynchronous schedules, where every weight is right only by the age of those that made it: held
   against a slow and obvious simulation that keeps each stage's history of weights. Then what a
   trainer measures of itself: staleness, traces, costs, and the ceiling that follows from these.

   cc -std=c99 -O2 tests/test_async.c -o test_async -lm -lpthread */
#define PIPEMLP_IMPLEMENTATION
#include "../pipemlp.h"
#include "test.h"
#include "networks.h"

enum { MAX_STAGES = 4, MAX_WIDTH = 104, ROWS = 61, BATCH = 16, KEPT = 16,
       PASS_ROWS = 65536, MANY_ROWS = PASS_ROWS + 5000, MOST_MICROBATCHES = 8 * PASS_ROWS / BATCH };

/* --- networks and data ----------------------------------------------------------------------- */

/* clang-format off */
static const network deep_net = {
    "deep, xent", 6, {6, 9, 7, 12, 5, 8, 4},
    {PMLP_TANH, PMLP_GELU, PMLP_RELU, PMLP_SIGMOID, PMLP_TANH, PMLP_LINEAR}, PMLP_LOSS_XENT, false};
static const network wide_net = { /* its first layer is cut, GELU keeps more than its outputs */
    "wide, mse", 3, {7, 101, 12, 5}, {PMLP_GELU, PMLP_TANH, PMLP_SIGMOID}, PMLP_LOSS_MSE, true};
static const network tiny_net = {
    "tiny, xent", 4, {3, 4, 3, 4, 2}, {PMLP_TANH, PMLP_TANH, PMLP_RELU, PMLP_LINEAR},
    PMLP_LOSS_XENT, false};
/* clang-format on */

static float data_x[MANY_ROWS * 8], data_targets[ROWS * 8];
static int data_labels[MANY_ROWS];
static char label[200]; /* the configuration, for messages */

static pmlp_data make_data(const network *net, size_t rows) {
    pmlp_data data = {0};
    uint64_t rng = 17;
    const size_t n_in = (size_t)net->sizes[0], n_out = (size_t)net->sizes[net->layers];
    for (size_t i = 0; i < rows * n_in; i++) data_x[i] = (float)test_uniform(&rng, -1, 1);
    for (size_t r = 0; r < rows; r++) data_labels[r] = (int)(test_random(&rng) % n_out);
    data.rows = rows, data.x = data_x;
    if (!net->targets) return data.labels = data_labels, data;
    for (size_t i = 0; i < ROWS * n_out; i++) data_targets[i] = (float)test_uniform(&rng, 0, 1);
    return data.targets = data_targets, data;
}

static pmlp_trainer *make_trainer(pmlp_model *model, const pmlp_trainer_desc *desc) {
    pmlp_trainer *trainer = NULL;
    pmlp_error error = {0};
    CHECK(pmlp_trainer_create(model, desc, &trainer, &error) == PMLP_OK, "%s: %s", label,
          error.text);
    return trainer;
}

static bool fine(const pmlp_trainer *trainer, pmlp_result result) {
    return CHECK(result == PMLP_OK, "%s: %s: %s", label, pmlp_result_name(result),
                 pmlp_trainer_error(trainer)->text);
}

static uint64_t word_of(const pmlp_model *model) {
    uint64_t word = 0;
    CHECK(pmlp_model_hash(model, &word, NULL) == PMLP_OK, "%s: no weights word", label);
    return word;
}

static void describe(const network *net, const pmlp_trainer_desc *desc) {
    snprintf(label, sizeof label, "%s, %s, %d workers, %d micro-batches, %s%s%s", net->name,
             pmlp_optimizer_name(desc->optimizer), desc->workers, desc->microbatches,
             pmlp_schedule_kind_name(desc->schedule), desc->no_stashing ? ", no stashing" : "",
             desc->no_threads ? ", no threads" : "");
}

/* The order in which an epoch takes its rows: that in which a back end is asked for them. */
static uint32_t drawn[ROWS];
static size_t drawn_count;

static pmlp_result noting_input(void *context, size_t rows, size_t n, const pmlp_data *data,
                                const uint32_t *index, size_t first, float *x) {
    for (size_t r = 0; r < rows && drawn_count < ROWS; r++)
        drawn[drawn_count++] = index ? index[r] : (uint32_t)(first + r);
    return pmlp_cpu_backend()->input(context, rows, n, data, index, first, x);
}

static const uint32_t *draw(const network *net, const pmlp_data *data, uint64_t seed, int epoch) {
    pmlp_backend table = *pmlp_cpu_backend();
    pmlp_trainer_desc desc = {0};
    pmlp_model *model = make_model(net, 8);
    desc.batch = data->rows, desc.seed = seed, desc.backend = &table;
    table.input = noting_input;
    pmlp_trainer *trainer = make_trainer(model, &desc);
    for (int i = 0; trainer && i <= epoch; i++) {
        drawn_count = 0;
        fine(trainer, pmlp_trainer_epoch(trainer, data, NULL));
    }
    CHECK(drawn_count == data->rows, "%zu rows of %zu", drawn_count, data->rows);
    pmlp_trainer_destroy(trainer);
    pmlp_model_destroy(model);
    return drawn;
}

/* --- the reference --------------------------------------------------------------------------- */

/* Micro-batches go through the whole network one after the other. What makes the training
   asynchronous is only which of a stage's versions of the weights each reads; version n is what the
   n-th update left. Stage s of p does the forward of micro-batch i after p - 1 - s forwards more
   than backwards, hence behind the backward of micro-batch i - (p - s) and of no later one. */
typedef struct piece { /* the outputs of a layer that one stage has */
    int stage, layer;
    size_t n_in, n_out, first;
    void *newest;           /* the back end's layer: newest weights, gradient, moments */
    void *older;            /* another one, into which any version is written before it is read */
    float *versions[KEPT];  /* the last ones, n at n % KEPT: w [n_out][n_in], then b [n_out] */
} piece;

typedef struct reference {
    const network *net;
    pmlp_trainer_desc how; /* resolved */
    const pmlp_backend *be;
    void *context;
    int pieces;
    piece piece[MAX_LAYERS + MAX_STAGES];
    float *x[MAX_LAYERS + 1], *dz[MAX_LAYERS + 1]; /* of one micro-batch */
    long updates, before; /* so far; before the present pass */
    long *after;          /* [micro-batches]: updates after each one of the pass */
    bool begun;           /* the group has a gradient */
    long gradients, stale[MAX_STAGES], most[MAX_STAGES], torn[MAX_STAGES];
    double loss;          /* sum of the call */
    long hits;
} reference;

static reference ref;

static void must(pmlp_result result, const char *what) {
    CHECK(result == PMLP_OK, "%s: the reference's %s", label, what);
}

static void *new_layer(const piece *of, bool moments) {
    const network *net = ref.net;
    const int l = of->layer;
    pmlp_layer_desc desc = {0};
    void *layer = NULL;
    desc.n_in = of->n_in, desc.n_out = of->n_out, desc.first_out = of->first;
    desc.row_outs = (size_t)net->sizes[l + 1], desc.activation = net->act[l];
    desc.below = l ? net->act[l - 1] : PMLP_LINEAR, desc.needs_input_gradient = l > 0;
    desc.optimizer = moments ? ref.how.optimizer : PMLP_SGD, desc.versions = 1;
    must(ref.be->layer_create(ref.context, &desc, &layer), "layer");
    return layer;
}

static float *version(const piece *of, long n) {
    CHECK(n >= 0 && n <= ref.updates && n > ref.updates - KEPT, "version %ld of %ld", n,
          ref.updates);
    return of->versions[n % KEPT];
}

static void ref_piece(pmlp_model *model, int stage, const pmlp_stage_info *info, int l) {
    piece *of = &ref.piece[ref.pieces++];
    pmlp_params params = {0};
    must(pmlp_model_params(model, info->first_layer + l, &params, NULL), "weights");
    of->stage = stage, of->layer = info->first_layer + l;
    of->first = l ? 0 : info->first_column, of->n_out = l ? params.n_out : info->columns;
    of->n_in = params.n_in;
    const size_t weights = of->n_in * of->n_out;
    for (int n = 0; n < KEPT; n++)
        of->versions[n] = calloc(weights + of->n_out, sizeof(float));
    memcpy(of->versions[0], params.w + of->first * of->n_in, weights * sizeof(float));
    memcpy(of->versions[0] + weights, params.b + of->first, of->n_out * sizeof(float));
    of->newest = new_layer(of, true), of->older = new_layer(of, false);
    must(ref.be->write(ref.context, of->newest, PMLP_TENSOR_PARAMS, of->versions[0],
                       of->versions[0] + weights), "write");
}

static void ref_open(const network *net, pmlp_model *model, const pmlp_trainer *trainer) {
    pmlp_backend_desc desc = {0};
    memset(&ref, 0, sizeof ref);
    ref.net = net, ref.how = pmlp_trainer_query_desc(trainer), ref.be = pmlp_cpu_backend();
    desc.workers = 1;
    must(ref.be->open(ref.be, &desc, &ref.context, NULL), "open");
    ref.after = calloc(MOST_MICROBATCHES, sizeof *ref.after);
    for (int s = 0; s < ref.how.workers; s++) {
        pmlp_stage_info info = {0};
        must(pmlp_trainer_stage(trainer, s, &info), "stage");
        for (int l = 0; l < info.layers; l++) ref_piece(model, s, &info, l);
    }
    for (int l = 0; l <= net->layers; l++) {
        const size_t row = ref.be->row_floats(ref.context, (size_t)net->sizes[l],
                                              l ? net->act[l - 1] : PMLP_LINEAR);
        void *x = NULL, *dz = NULL;
        must(ref.be->alloc(ref.context, ref.how.batch * row * sizeof(float), &x), "alloc");
        must(ref.be->alloc(ref.context, ref.how.batch * row * sizeof(float), &dz), "alloc");
        ref.x[l] = x, ref.dz[l] = dz;
    }
}

static void ref_close(void) {
    for (int i = 0; i < ref.pieces; i++) {
        for (int n = 0; n < KEPT; n++) free(ref.piece[i].versions[n]);
        ref.be->layer_destroy(ref.context, ref.piece[i].newest);
        ref.be->layer_destroy(ref.context, ref.piece[i].older);
    }
    for (int l = 0; l <= ref.net->layers; l++)
        ref.be->free(ref.context, ref.x[l]), ref.be->free(ref.context, ref.dz[l]);
    ref.be->close(ref.context);
    free(ref.after);
}

/* What a forward reads. */
static long read_by_forward(int stage, int microbatch) {
    const int m = ref.how.microbatches, last = microbatch - (ref.how.workers - stage);
    if (ref.how.schedule == PMLP_SCHEDULE_PIPEDREAM_2BW && !ref.how.no_stashing) {
        const long group = ref.before + microbatch / m;
        return group > 0 ? group - 1 : 0;
    }
    return last < 0 ? ref.before : ref.after[last];
}

static void *with_version(const piece *of, long n) {
    float *w = version(of, n);
    must(ref.be->write(ref.context, of->older, PMLP_TENSOR_PARAMS, w, w + of->n_in * of->n_out),
         "write");
    return of->older;
}

/* F, I, W of one micro-batch, the rows `from` .. `from + rows - 1` of the pass. */
static void ref_microbatch(const pmlp_data *data, const uint32_t *index, size_t first, int i,
                           size_t rows, size_t group_rows) {
    double row_loss[BATCH * 8];
    unsigned char row_hit[BATCH * 8];
    pmlp_loss_args args = {0};
    const int layers = ref.net->layers;
    void *last = NULL;
    must(ref.be->input(ref.context, rows, (size_t)ref.net->sizes[0], data,
                       index ? index + first : NULL, first, ref.x[0]), "input");
    for (int k = 0; k < ref.pieces; k++) { /* in the order of the layers */
        const piece *of = &ref.piece[k];
        last = with_version(of, read_by_forward(of->stage, i));
        must(ref.be->forward(ref.context, last, 0, rows, ref.x[of->layer], ref.x[of->layer + 1]),
             "forward");
    }
    args.loss = ref.net->loss, args.rows = rows, args.y = ref.x[layers], args.data = data;
    args.index = index ? index + first : NULL, args.first = first;
    args.scale = 1.0f / (float)group_rows, args.dz = ref.dz[layers];
    args.row_loss = row_loss, args.row_hit = row_hit;
    must(ref.be->loss(ref.context, last, &args), "loss");
    for (size_t r = 0; r < rows; r++) ref.loss += row_loss[r], ref.hits += row_hit[r];
    for (int k = ref.pieces - 1; k >= 0 && ref.piece[k].layer > 0; k--) {
        const piece *of = &ref.piece[k];
        const long n = ref.how.no_stashing ? ref.updates : read_by_forward(of->stage, i);
        must(ref.be->backward_input(ref.context, with_version(of, n), 0, rows,
                                    ref.dz[of->layer + 1], ref.x[of->layer], ref.dz[of->layer]),
             "backward_input");
    }
    for (int k = 0; k < ref.pieces; k++)
        must(ref.be->backward_weight(ref.context, ref.piece[k].newest, rows,
                                     ref.x[ref.piece[k].layer], ref.dz[ref.piece[k].layer + 1],
                                     ref.begun), "backward_weight");
    ref.begun = true, ref.gradients++;
    for (int s = 0; s < ref.how.workers; s++) {
        const long read = read_by_forward(s, i), stale = ref.updates - read;
        ref.stale[s] += stale;
        if (stale > ref.most[s]) ref.most[s] = stale;
        if (ref.how.no_stashing) ref.torn[s] += stale != 0;
    }
}

static void ref_update(void) {
    pmlp_update_args args = {0};
    const pmlp_trainer_desc *how = &ref.how;
    args.optimizer = how->optimizer, args.learning_rate = how->learning_rate;
    args.momentum = how->momentum, args.beta1 = how->beta1, args.beta2 = how->beta2;
    args.epsilon = how->epsilon, args.weight_decay = how->weight_decay;
    args.gradient_scale = 1, args.step = (uint64_t)++ref.updates;
    for (int k = 0; k < ref.pieces; k++) {
        const piece *of = &ref.piece[k];
        float *w = version(of, ref.updates);
        must(ref.be->update(ref.context, of->newest, &args), "update");
        must(ref.be->read(ref.context, of->newest, PMLP_TENSOR_PARAMS, w, w + of->n_in * of->n_out),
             "read");
    }
    ref.begun = false;
}

/* A pass: rows first .. first + rows - 1 in batches, none waiting for the one before. */
static void ref_pass(const pmlp_data *data, const uint32_t *index, size_t first, size_t rows) {
    const size_t m = (size_t)ref.how.microbatches;
    const bool each = ref.how.schedule == PMLP_SCHEDULE_PIPEDREAM;
    int i = 0;
    ref.before = ref.updates;
    for (size_t done = 0; done < rows; done += ref.how.batch) {
        const size_t batch = rows - done < ref.how.batch ? rows - done : ref.how.batch;
        for (size_t j = 0; j < m; j++, i++) {
            const size_t begin = batch * j / m, count = batch * (j + 1) / m - begin;
            if (count)
                ref_microbatch(data, index, first + done + begin, i, count, each ? count : batch);
            if (count ? each || j + 1 == m : j + 1 == m && ref.begun) ref_update();
            ref.after[i] = ref.updates;
        }
    }
}

static void ref_epoch(const pmlp_data *data, const uint32_t *index) {
    const size_t most = PASS_ROWS / ref.how.batch * ref.how.batch;
    ref.loss = 0, ref.hits = 0;
    for (size_t first = 0; first < data->rows; first += most)
        ref_pass(data, index, first, data->rows - first < most ? data->rows - first : most);
}

/* Every bit of weights and losses, and every number about staleness. */
static bool ref_agrees(pmlp_model *model, pmlp_trainer *trainer, const pmlp_stats *stats,
                       size_t rows, const char *when) {
    const int p = ref.how.workers, stash = !ref.how.no_stashing;
    const double loss = ref.loss / (double)rows;
    bool ok = fine(trainer, pmlp_trainer_sync(trainer));
    for (int k = 0; ok && k < ref.pieces; k++) {
        const piece *of = &ref.piece[k];
        const float *w = version(of, ref.updates), *b = w + of->n_in * of->n_out;
        pmlp_params params = {0};
        must(pmlp_model_params(model, of->layer, &params, NULL), "params");
        ok = CHECK(!memcmp(w, params.w + of->first * of->n_in,
                           of->n_in * of->n_out * sizeof *w) &&
                       !memcmp(b, params.b + of->first, of->n_out * sizeof *b),
                   "%s, %s: other weights in layer %d, stage %d of %d", label, when, of->layer,
                   of->stage, p);
    }
    ok = ok && CHECK(!memcmp(&loss, &stats->loss, sizeof loss), "%s, %s: loss %.17g, not %.17g",
                     label, when, stats->loss, loss);
    if (ref.net->loss == PMLP_LOSS_XENT)
        ok = ok && CHECK(stats->accuracy == (double)ref.hits / (double)rows, "%s, %s: accuracy",
                         label, when);
    for (int s = 0; ok && s < p; s++) {
        pmlp_stage_info info = {0};
        const bool dream = ref.how.schedule == PMLP_SCHEDULE_PIPEDREAM;
        const double n = (double)ref.gradients;
        ok = CHECK(pmlp_trainer_stage(trainer, s, &info) == PMLP_OK, "%s: stage %d", label, s) &&
             CHECK(info.versions == (!stash ? 1 : dream ? p - s : 2), "%s: stage %d keeps %d",
                   label, s, info.versions) &&
             CHECK(info.staleness == (double)ref.stale[s] / n && info.most_stale == ref.most[s],
                   "%s, %s: stage %d is stale by %.17g, at most %d; not %.17g, %ld", label, when, s,
                   info.staleness, info.most_stale, (double)ref.stale[s] / n, ref.most[s]) &&
             CHECK(info.torn == (double)ref.torn[s] / n, "%s, %s: stage %d torn %g, not %g", label,
                   when, s, info.torn, (double)ref.torn[s] / n);
    }
    return ok;
}

/* Two shuffled epochs, an evaluation, ragged steps at another learning rate, a shorter epoch. */
static void check_life(const network *net, pmlp_trainer_desc desc) {
    static const size_t rows[] = {16, 3, 1, 13};
    pmlp_data data = make_data(net, ROWS);
    pmlp_stats stats = {0};
    pmlp_model *model = make_model(net, 8);
    desc.batch = BATCH, desc.seed = 4, desc.weight_decay = 0.01f;
    describe(net, &desc);
    pmlp_trainer *trainer = make_trainer(model, &desc);
    if (!trainer) return pmlp_model_destroy(model);
    ref_open(net, model, trainer);
    bool ok = true;
    for (int epoch = 0; ok && epoch < 2; epoch++) {
        ref_epoch(&data, draw(net, &data, desc.seed, epoch));
        describe(net, &desc);
        ok = fine(trainer, pmlp_trainer_epoch(trainer, &data, &stats)) &&
             ref_agrees(model, trainer, &stats, ROWS, epoch ? "epoch 2" : "epoch 1");
        ok = ok && CHECK(stats.steps == 4 && stats.step == 4 * (uint64_t)(epoch + 1) &&
                             stats.gradient_norm == 0,
                         "%s: %d steps, step %d, norm %g", label, (int)stats.steps,
                         (int)stats.step, stats.gradient_norm);
        ok = ok && fine(trainer, pmlp_trainer_eval(trainer, &data, NULL));
    }
    ref.how.learning_rate /= 2;
    ok = ok && fine(trainer, pmlp_trainer_set_learning_rate(trainer, ref.how.learning_rate));
    for (size_t i = 0, first = 2; ok && i < 4; first += rows[i++]) {
        pmlp_data batch = rows_of(net, &data, first, rows[i]);
        ref_epoch(&batch, NULL);
        ok = fine(trainer, pmlp_trainer_step(trainer, &batch, &stats)) &&
             ref_agrees(model, trainer, &stats, rows[i], "a step");
    }
    data.rows = 2 * BATCH; /* whole batches only, fewer than before */
    if (ok) ref_epoch(&data, draw(net, &data, desc.seed, 2));
    describe(net, &desc);
    ok = ok && fine(trainer, pmlp_trainer_epoch(trainer, &data, &stats)) &&
         ref_agrees(model, trainer, &stats, 2 * BATCH, "epoch 3");
    pmlp_trainer_destroy(trainer);
    ref_close();
    pmlp_model_destroy(model);
}

static const int microbatches[] = {1, 2, 4, 5, 8};
static const pmlp_optimizer optimizers[] = {PMLP_MOMENTUM, PMLP_ADAM, PMLP_SGD, PMLP_ADAMW,
                                            PMLP_NESTEROV};

TEST(reference) {
    static const network *nets[] = {&deep_net, &wide_net};
    static const size_t w_rows[] = {0, 1, 6};
    const long stride = test_quick() ? 5 : 1;
    long number = 0, runs = 0, updates = 0;
    for (int kind = PMLP_SCHEDULE_PIPEDREAM; kind <= PMLP_SCHEDULE_PIPEDREAM_2BW; kind++)
        for (int p = 1; p <= MAX_STAGES; p++)
            for (int m = 0; m < 5; m++)
                for (int way = 0; way < 8; way++) {
                    pmlp_trainer_desc desc = {0};
                    desc.schedule = (pmlp_schedule_kind)kind, desc.workers = p;
                    desc.microbatches = microbatches[m];
                    desc.no_threads = way & 1, desc.no_stashing = (way & 2) != 0;
                    if (kind == PMLP_SCHEDULE_PIPEDREAM_2BW && microbatches[m] < p) continue;
                    if (number++ % stride) continue;
                    desc.optimizer = optimizers[number % 5], desc.w_rows = w_rows[number % 3];
                    check_life(nets[way >> 2], desc);
                    runs++, updates += ref.updates;
                }
    SAY("PipeDream and 2BW against whole networks with a history of weights: 1..4 workers, 1..8 "
        "micro-batches, with and without stashing and threads, epochs and steps: %s runs, %s "
        "updates, equal bits",
        test_count(runs), test_count(updates));
}

/* More rows than a pass has: the pipeline is empty once in between, and micro-batches are counted
   from 0 again. */
TEST(passes) {
    long runs = 0, rows = 0;
    for (int kind = PMLP_SCHEDULE_PIPEDREAM; kind <= PMLP_SCHEDULE_PIPEDREAM_2BW; kind++)
        for (int p = 1; p <= MAX_STAGES; p++) {
            static const size_t batches[] = {100, 64, 33, 128};
            pmlp_trainer_desc desc = {0};
            pmlp_stats stats = {0};
            if (test_quick() && p != 1 + kind % 2 * 2) continue;
            desc.schedule = (pmlp_schedule_kind)kind, desc.workers = p, desc.no_shuffle = true;
            desc.microbatches = kind == PMLP_SCHEDULE_PIPEDREAM ? p % 3 + 1 : p + 1;
            desc.batch = batches[p - 1], desc.optimizer = optimizers[p % 2];
            desc.no_threads = p % 2, desc.no_stashing = p == 3, desc.learning_rate = 1e-3f;
            describe(&tiny_net, &desc);
            pmlp_data data = make_data(&tiny_net, MANY_ROWS);
            pmlp_model *model = make_model(&tiny_net, 8);
            pmlp_trainer *trainer = make_trainer(model, &desc);
            if (trainer) {
                ref_open(&tiny_net, model, trainer);
                ref_epoch(&data, NULL);
                fine(trainer, pmlp_trainer_epoch(trainer, &data, &stats));
                ref_agrees(model, trainer, &stats, MANY_ROWS, "two passes");
                CHECK(stats.rows == MANY_ROWS && stats.total_rows == MANY_ROWS, "%s: %d rows",
                      label, (int)stats.rows);
                pmlp_trainer_destroy(trainer);
                ref_close();
                runs++, rows += MANY_ROWS;
            }
            pmlp_model_destroy(model);
        }
    SAY("more than one pass of 65,536 rows: %s epochs, %s rows, equal bits", test_count(runs),
        test_count(rows));
}

/* --- formulas -------------------------------------------------------------------------------- */

/* Who reads what, from the lists alone. */
TEST(lists) {
    long forwards = 0;
    for (int kind = PMLP_SCHEDULE_PIPEDREAM; kind <= PMLP_SCHEDULE_PIPEDREAM_2BW; kind++)
        for (int p = 1; p <= 6; p++)
            for (int m = 1; m <= 8; m++) {
                pmlp_schedule_desc desc = {0};
                pmlp_schedule *schedule = NULL;
                pmlp_check report = {0};
                pmlp_error error = {0};
                const bool dream = kind == PMLP_SCHEDULE_PIPEDREAM;
                const int group = dream ? 1 : m;
                desc.kind = (pmlp_schedule_kind)kind, desc.workers = p;
                desc.microbatches = m, desc.batches = 2 * p + 2;
                const pmlp_result made = pmlp_schedule_create(&desc, &schedule, &error);
                CHECK(made == (!dream && m < p ? PMLP_ERROR_ARGUMENT : PMLP_OK), "%s, %d, %d: %s",
                      pmlp_schedule_kind_name(desc.kind), p, m, error.text);
                for (int s = 0; schedule && s < p; s++) {
                    int count, updates = 0, backwards = 0;
                    const pmlp_action *a = pmlp_schedule_actions(schedule, s, &count);
                    for (int k = 0; k < count; k++) {
                        const int i = a[k].microbatch, behind = i - (p - s) + 1;
                        if (a[k].op == PMLP_OP_F)
                            CHECK(updates == (behind < 0 ? 0 : behind) / group,
                                  "F(%d) of stage %d of %d comes after %d updates", i, s, p, updates);
                        if (a[k].op == PMLP_OP_U)
                            CHECK(i == backwards - 1 && backwards == (updates + 1) * group,
                                  "update %d of stage %d after %d backwards, for %d", updates, s,
                                  backwards, i);
                        forwards += a[k].op == PMLP_OP_F;
                        backwards += a[k].op == PMLP_OP_B;
                        updates += a[k].op == PMLP_OP_U;
                    }
                    CHECK(updates * group == backwards && backwards == m * desc.batches,
                          "stage %d: %d updates, %d backwards", s, updates, backwards);
                    CHECK(pmlp_schedule_versions(schedule, s) == (dream ? p - s : 2),
                          "%d versions at stage %d of %d",
                          pmlp_schedule_versions(schedule, s), s, p);
                }
                if (!schedule) continue;
                CHECK(!pmlp_schedule_is_synchronous(schedule), "is synchronous");
                CHECK(pmlp_schedule_check(schedule, m, &report, &error) == PMLP_OK &&
                          report.versions == (dream ? p : 2),
                      "%d versions: %s", report.versions, error.text);
                pmlp_schedule_destroy(schedule);
            }
    SAY("lists of 1..6 workers, 1..8 micro-batches: updates before each forward, versions, %s "
        "forwards", test_count(forwards));
}

/* One epoch of whole batches, unshuffled, that the pipeline fills; returns the weights word. */
static uint64_t train_once(const network *net, pmlp_trainer_desc desc, bool by_steps,
                           pmlp_stage_info *infos) {
    pmlp_data data = make_data(net, 3 * BATCH);
    pmlp_model *model = make_model(net, 8);
    desc.batch = BATCH, desc.no_shuffle = true;
    describe(net, &desc);
    pmlp_trainer *trainer = make_trainer(model, &desc);
    for (size_t first = 0; trainer && by_steps && first < data.rows; first += BATCH) {
        pmlp_data batch = rows_of(net, &data, first, BATCH);
        fine(trainer, pmlp_trainer_step(trainer, &batch, NULL));
    }
    if (trainer && !by_steps) fine(trainer, pmlp_trainer_epoch(trainer, &data, NULL));
    for (int s = 0; trainer && infos && s < desc.workers; s++)
        CHECK(pmlp_trainer_stage(trainer, s, &infos[s]) == PMLP_OK, "%s: stage %d", label, s);
    pmlp_trainer_destroy(trainer);
    const uint64_t word = word_of(model);
    pmlp_model_destroy(model);
    return word;
}

TEST(formulas) {
    pmlp_stage_info info[MAX_STAGES];
    long stages = 0;
    for (int p = 1; p <= MAX_STAGES; p++)
        for (int m = 0; m < 5; m++)
            for (int stashing = 0; stashing < 2; stashing++) {
                pmlp_trainer_desc desc = {0};
                const int n = 3 * microbatches[m];
                desc.workers = p, desc.microbatches = microbatches[m];
                desc.no_stashing = !stashing, desc.schedule = PMLP_SCHEDULE_PIPEDREAM;
                train_once(&deep_net, desc, false, info);
                for (int s = 0; s < p; s++, stages++) {
                    double sum = 0, torn = 0;
                    for (int i = 0; i < n; i++) sum += i < p - 1 - s ? i : p - 1 - s;
                    for (int i = 1; i < n; i++) torn += p - 1 - s > 0 && !stashing;
                    CHECK(info[s].staleness == sum / n, "%s: stage %d: %g, not %g", label, s,
                          info[s].staleness, sum / n);
                    CHECK(info[s].most_stale == (n <= p - 1 - s ? n - 1 : p - 1 - s),
                          "%s: stage %d at most %d", label, s, info[s].most_stale);
                    CHECK(info[s].torn == torn / n, "%s: stage %d torn %g, not %g", label, s,
                          info[s].torn, torn / n);
                    CHECK(info[s].versions == (stashing ? p - s : 1), "%s: versions", label);
                }
                if (microbatches[m] < p || !stashing) continue;
                desc.schedule = PMLP_SCHEDULE_PIPEDREAM_2BW;
                train_once(&deep_net, desc, false, info);
                for (int s = 0; s < p; s++, stages++)
                    CHECK(info[s].most_stale == 1 && info[s].staleness == 2.0 / 3 &&
                              info[s].torn == 0 && info[s].versions == 2,
                          "%s: stage %d stale by %g, at most %d, torn %g", label, s,
                          info[s].staleness, info[s].most_stale, info[s].torn);
            }
    SAY("staleness of stage s of p is p - 1 - s once the pipeline is full, 1 with 2BW; torn only "
        "without stashing: %s stages",
        test_count(stages));
}

/* Which old weights 2BW reads does not depend on the pipeline; PipeDream on one worker is plain
   training with batches as large as its micro-batches. */
TEST(words) {
    long runs = 0;
    for (int o = 0; o < 5; o++) {
        pmlp_trainer_desc desc = {0};
        desc.optimizer = optimizers[o];
        desc.schedule = PMLP_SCHEDULE_PIPEDREAM_2BW;
        desc.workers = desc.microbatches = 1;
        const uint64_t one = train_once(&deep_net, desc, false, NULL);
        for (desc.workers = 1; desc.workers <= MAX_STAGES; desc.workers++)
            for (desc.microbatches = desc.workers; desc.microbatches <= 8; desc.microbatches += 2)
                for (int by_steps = 0; by_steps < 2; by_steps++, runs++) {
                    desc.no_threads = by_steps ^ (desc.workers % 2);
                    const uint64_t word = train_once(&deep_net, desc, by_steps, NULL);
                    CHECK(word == one, "%s%s: other weights than one worker's", label,
                          by_steps ? ", by steps" : "");
                }
        desc.workers = desc.microbatches = 1;
        desc.schedule = PMLP_SCHEDULE_SEQUENTIAL;
        const uint64_t serial = train_once(&deep_net, desc, false, NULL);
        desc.schedule = PMLP_SCHEDULE_PIPEDREAM;
        CHECK(train_once(&deep_net, desc, false, NULL) == serial, "%s: not serial training", label);
        CHECK(one != serial, "%s: 2BW is serial training", label);
        for (int m = 2; m <= 8; m *= 2) { /* batches cut into m */
            pmlp_data data = make_data(&deep_net, 3 * BATCH);
            pmlp_model *model = make_model(&deep_net, 8);
            pmlp_trainer_desc small = desc;
            small.batch = (size_t)(BATCH / m), small.no_shuffle = true;
            small.schedule = PMLP_SCHEDULE_SEQUENTIAL;
            pmlp_trainer *trainer = make_trainer(model, &small);
            if (trainer) fine(trainer, pmlp_trainer_epoch(trainer, &data, NULL));
            pmlp_trainer_destroy(trainer);
            desc.microbatches = m;
            CHECK(train_once(&deep_net, desc, false, NULL) == word_of(model),
                  "%s: not serial training with batches of %d", label, BATCH / m);
            pmlp_model_destroy(model);
            runs++;
        }
    }
    SAY("2BW: one weights word for 1..4 workers, epochs and steps; PipeDream alone is serial "
        "training: %s runs", test_count(runs));
}

TEST(verify) {
    long runs = 0;
    for (int kind = PMLP_SCHEDULE_PIPEDREAM; kind <= PMLP_SCHEDULE_PIPEDREAM_2BW; kind++)
        for (int p = 1; p <= MAX_STAGES; p++, runs++) {
            pmlp_trainer_desc desc = {0};
            pmlp_verify_report report = {0};
            pmlp_error error = {0};
            pmlp_data data = make_data(&deep_net, ROWS);
            pmlp_model *model = make_model(&deep_net, 8);
            char text[40];
            const uint64_t before = word_of(model);
            desc.schedule = (pmlp_schedule_kind)kind, desc.workers = p, desc.batch = BATCH;
            desc.microbatches = p == 1 ? 1 : 4, desc.no_threads = p % 2;
            describe(&deep_net, &desc);
            CHECK(pmlp_verify(model, &desc, &data, 5, &report, &error) == PMLP_OK, "%s: %s", label,
                  error.text);
            CHECK(report.steps == 5, "%s: %d steps", label, report.steps);
            if (p == 1 && kind == PMLP_SCHEDULE_PIPEDREAM) {
                CHECK(report.identical && report.at_step == 0 && report.staleness == 0, "%s: %s",
                      label, report.text);
            } else {
                const bool dream = kind == PMLP_SCHEDULE_PIPEDREAM;
                /* each step fills the pipeline anew: 0, 1, 2, 2 ..; 2BW is old from step 2 on */
                double sum = 0;
                for (int i = 0; i < 4; i++) sum += i < p - 1 ? i : p - 1;
                const double most = dream ? sum / 4 : 0.8;
                CHECK(!report.identical && report.at_step == (dream ? 1 : 2), "%s: step %d", label,
                      report.at_step);
                CHECK(fabs(report.staleness - most) < 1e-12, "%s: staleness %g, not %g", label,
                      report.staleness, most);
                snprintf(text, sizeof text, "stage 0 %.2f", most);
                CHECK(strstr(report.text, text) && strstr(report.text, "stale"), "%s: '%s'", label,
                      report.text);
                CHECK(*report.what, "%s: what differs?", label);
            }
            CHECK(word_of(model) == before, "%s: verify changed the model", label);
            pmlp_model_destroy(model);
        }
    SAY("pmlp_verify tells asynchronous training from serial, with its staleness: %s pipelines",
        test_count(runs));
}

/* What an asynchronous trainer does not do. */
TEST(refusals) {
    pmlp_model *model = make_model(&deep_net, 8);
    pmlp_schedule_desc plan = {0};
    pmlp_schedule *schedule = NULL, *lowered = NULL;
    plan.kind = PMLP_SCHEDULE_PIPEDREAM, plan.workers = 2, plan.microbatches = 4;
    CHECK(pmlp_schedule_create(&plan, &schedule, NULL) == PMLP_OK &&
              pmlp_schedule_lower(schedule, &lowered, NULL) == PMLP_OK,
          "no schedule");
    struct { const char *thing; pmlp_trainer_desc desc; } bad[] = {
        {"clip_norm", {.workers = 2, .schedule = PMLP_SCHEDULE_PIPEDREAM, .clip_norm = 1}},
        {"clip_norm", {.workers = 2, .schedule = PMLP_SCHEDULE_PIPEDREAM_2BW, .clip_norm = 1}},
        {"custom", {.custom = schedule}},
        {"custom", {.custom = lowered}},
        {"virtual_stages", {.workers = 2, .virtual_stages = 2, .schedule = PMLP_SCHEDULE_PIPEDREAM}},
        {"microbatches", {.workers = 3, .microbatches = 2, .schedule = PMLP_SCHEDULE_PIPEDREAM_2BW}},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        pmlp_trainer *trainer = (void *)&plan;
        pmlp_error error = {0};
        const pmlp_result result = pmlp_trainer_create(model, &bad[i].desc, &trainer, &error);
        CHECK(result == PMLP_ERROR_ARGUMENT && !trainer, "%zu: %s", i, pmlp_result_name(result));
        CHECK(strstr(error.text, bad[i].thing), "%zu: '%s' does not name %s", i, error.text,
              bad[i].thing);
    }
    pmlp_schedule_destroy(lowered);
    plan.kind = PMLP_SCHEDULE_GPIPE;
    pmlp_schedule *plain = NULL;
    CHECK(pmlp_schedule_create(&plan, &plain, NULL) == PMLP_OK &&
              pmlp_schedule_lower(plain, &lowered, NULL) == PMLP_OK,
          "no schedule");
    pmlp_trainer_desc desc = {.custom = lowered};
    pmlp_trainer *trainer = (void *)&plan;
    pmlp_error error = {0};
    CHECK(pmlp_trainer_create(model, &desc, &trainer, &error) == PMLP_ERROR_ARGUMENT && !trainer &&
              strstr(error.text, "lowered"),
          "a lowered schedule: %s", error.text);
    pmlp_schedule_destroy(lowered);
    pmlp_schedule_destroy(plain);
    pmlp_schedule_destroy(schedule);
    pmlp_model_destroy(model);
    SAY("clipping, asynchronous and lowered schedules of the caller, stages and micro-batches that "
        "do not fit: refused");
}

/* --- traces ---------------------------------------------------------------------------------- */

/* One worker's spans of one step against its list: F, I and U in the list's order; W in theirs, some
   of them merged; nothing overlaps. microbatches: that many of each stage. */
static void check_spans(const pmlp_action *list, int count, const pmlp_span *spans, int spanned,
                        int worker) {
    int at = 0, w_next[3 * MAX_STAGES] = {0}, w_listed[3 * MAX_STAGES] = {0};
    long listed = 0, seen = 0;
    for (int k = 0; k < spanned; k++) {
        const pmlp_span *s = &spans[k];
        CHECK(s->end >= s->begin && (k == 0 || s->begin >= spans[k - 1].end),
              "%s: worker %d: span %d of %d overlaps another", label, worker, k, spanned);
        seen += s->count;
        if (s->op == PMLP_OP_W) {
            CHECK(s->microbatch == w_next[s->stage] && s->count >= 1,
                  "%s: W(%d) of stage %d after W(%d)", label, s->microbatch, s->stage,
                  w_next[s->stage] - 1);
            w_next[s->stage] = s->microbatch + s->count;
            continue;
        }
        while (at < count && list[at].op != PMLP_OP_F && list[at].op != PMLP_OP_I &&
               list[at].op != PMLP_OP_U)
            at++;
        CHECK(at < count && s->op == list[at].op && s->stage == list[at].stage &&
                  s->microbatch == list[at].microbatch && s->count == 1,
              "%s: worker %d: span %d is %d%s%d, not in the list's order", label, worker, k,
              s->stage, pmlp_op_name(s->op), s->microbatch);
        at++;
    }
    for (int k = 0; k < count; k++) {
        listed += list[k].op == PMLP_OP_F || list[k].op == PMLP_OP_I || list[k].op == PMLP_OP_W ||
                  list[k].op == PMLP_OP_U;
        w_listed[list[k].stage] += list[k].op == PMLP_OP_W;
    }
    for (int s = 0; s < 3 * MAX_STAGES; s++)
        CHECK(w_next[s] == w_listed[s], "%s: %d of %d W of stage %d", label, w_next[s], w_listed[s],
              s);
    CHECK(seen == listed, "%s: worker %d: spans of %ld actions, the list has %ld", label, worker,
          seen, listed);
}

static const pmlp_span *find_span(const pmlp_timeline *t, pmlp_op op, int stage, int microbatch) {
    for (int w = 0; w < pmlp_timeline_workers(t); w++) {
        int count;
        const pmlp_span *s = pmlp_timeline_spans(t, w, &count);
        for (int k = 0; k < count; k++)
            if (s[k].op == op && s[k].stage == stage && s[k].microbatch <= microbatch &&
                microbatch < s[k].microbatch + s[k].count)
                return &s[k];
    }
    return NULL;
}

/* Nobody begins before what he needs has ended. */
static void check_order(const pmlp_timeline *t, int stages, int m, bool updates) {
    for (int s = 0; s < stages; s++)
        for (int i = 0; i < m; i++) {
            const pmlp_span *f = find_span(t, PMLP_OP_F, s, i), *b = find_span(t, PMLP_OP_I, s, i);
            const pmlp_span *w = find_span(t, PMLP_OP_W, s, i), *u = find_span(t, PMLP_OP_U, s, -1);
            const pmlp_span *below = s ? find_span(t, PMLP_OP_F, s - 1, i) : NULL;
            const pmlp_span *above = s + 1 < stages ? find_span(t, PMLP_OP_I, s + 1, i) : NULL;
            if (!CHECK(f && b && w && (u || !updates), "%s: stage %d lacks something of %d", label,
                       s, i))
                return;
            CHECK(b->begin >= f->end && w->begin >= b->end, "%s: F, I, W of %d at stage %d", label,
                  i, s);
            CHECK(!updates || u->begin >= w->end, "%s: U before W(%d) of stage %d", label, i, s);
            CHECK(!below || f->begin >= below->end, "%s: F(%d) of stage %d begins too soon", label,
                  i, s);
            CHECK(!above || b->begin >= above->end, "%s: I(%d) of stage %d begins too soon", label,
                  i, s);
        }
}

/* Where the time went adds up. */
static void check_times(const pmlp_timeline *t) {
    const double makespan = pmlp_timeline_makespan(t);
    double first = HUGE_VAL, last = 0;
    for (int w = 0; w < pmlp_timeline_workers(t); w++) {
        pmlp_worker_time time;
        int count;
        const pmlp_span *s = pmlp_timeline_spans(t, w, &count);
        if (!CHECK(count > 0 && pmlp_timeline_worker(t, w, &time) == PMLP_OK, "worker %d", w))
            return;
        first = fmin(first, s[0].begin), last = fmax(last, s[count - 1].end);
        const double sum = time.busy + time.fill + time.waiting + time.transfer + time.drain;
        const double busy = time.f + time.i + time.w + time.b + time.u;
        CHECK(fabs(sum - makespan) <= 1e-9 * makespan && fabs(busy - time.busy) <= 1e-9 * busy,
              "%s: worker %d: %g of %g, busy %g of %g", label, w, sum, makespan, busy, time.busy);
        CHECK(time.busy > 0 && time.fill >= 0 && time.waiting >= 0 && time.transfer >= 0 &&
                  time.drain >= 0 && time.fill == s[0].begin && time.peak > 0 && time.b == 0,
              "%s: worker %d: %g %g %g %g %g", label, w, time.busy, time.fill, time.waiting,
              time.transfer, time.drain);
        CHECK(time.waits_for != w, "%s: worker %d waits for itself", label, w);
    }
    CHECK(first == 0 && last == makespan, "%s: from %g to %g of %g", label, first, last, makespan);
}

/* The same spans, `a` beginning at a[0] and b at b[0]: the clock's reading may be far from 0. */
static bool same_spans(const pmlp_span *a, const pmlp_span *b, int count, double shift) {
    for (int k = 0; k < count; k++)
        if (a[k].op != b[k].op || a[k].stage != b[k].stage || a[k].microbatch != b[k].microbatch ||
            a[k].count != b[k].count || fabs(a[k].begin - b[k].begin - shift) > 1e-8 ||
            fabs(a[k].end - b[k].end - shift) > 1e-8)
            return false;
    return true;
}

/* Where step `step` of a worker begins among the spans of several; each has one U per stage. */
static int step_at(const pmlp_span *s, int count, int own, int step) {
    int updates = 0, k = 0;
    for (; k < count && updates < step * own; k++) updates += s[k].op == PMLP_OP_U;
    return k;
}

/* Is `one` the step `step` of `all`? */
static bool is_step(const pmlp_timeline *one, const pmlp_timeline *all, const pmlp_schedule *s,
                    int step) {
    double shift = HUGE_VAL;
    for (int pass = 0; pass < 2; pass++) /* the shift is that of the earliest span */
        for (int w = 0; w < pmlp_timeline_workers(one); w++) {
            int count, counted, own = 0;
            const pmlp_span *a = pmlp_timeline_spans(all, w, &count);
            const pmlp_span *b = pmlp_timeline_spans(one, w, &counted);
            for (int i = 0; i < pmlp_schedule_stages(s); i++)
                own += pmlp_schedule_stage_worker(s, i) == w;
            const int from = step_at(a, count, own, step), to = step_at(a, count, own, step + 1);
            if (to - from != counted) return false;
            if (!pass) shift = fmin(shift, a[from].begin);
            else if (!same_spans(a + from, b, counted, shift)) return false;
        }
    return true;
}

static double step_length(const pmlp_timeline *all, const pmlp_schedule *s, int step) {
    double begin = HUGE_VAL, end = 0;
    for (int w = 0; w < pmlp_timeline_workers(all); w++) {
        int count, own = 0;
        const pmlp_span *a = pmlp_timeline_spans(all, w, &count);
        for (int i = 0; i < pmlp_schedule_stages(s); i++)
            own += pmlp_schedule_stage_worker(s, i) == w;
        begin = fmin(begin, a[step_at(a, count, own, step)].begin);
        end = fmax(end, a[step_at(a, count, own, step + 1) - 1].end);
    }
    return end - begin;
}

static pmlp_timeline *timeline(pmlp_trainer *trainer, int steps) {
    pmlp_timeline *t = NULL;
    fine(trainer, pmlp_trainer_timeline(trainer, steps, &t));
    return t;
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* The lower median of what a micro-batch of a stage took in an op. */
static double median_of(const pmlp_timeline *all, int worker, int stage, pmlp_op op) {
    static double values[1024];
    int count, n = 0;
    const pmlp_span *s = pmlp_timeline_spans(all, worker, &count);
    for (int k = 0; k < count && n < 1024; k++)
        if (s[k].stage == stage && s[k].op == op) values[n++] = (s[k].end - s[k].begin) / s[k].count;
    qsort(values, (size_t)n, sizeof *values, by_value);
    return n ? values[(n - 1) / 2] : 0;
}

static void check_costs(pmlp_trainer *trainer, const pmlp_schedule *schedule,
                        const pmlp_timeline *all) {
    const int stages = pmlp_schedule_stages(schedule);
    const pmlp_trainer_desc how = pmlp_trainer_query_desc(trainer);
    pmlp_costs costs;
    pmlp_simulation simulation = {0};
    if (!fine(trainer, pmlp_trainer_costs(trainer, &costs))) return;
    CHECK(costs.latency >= 0 && costs.per_byte >= 0 && isfinite(costs.latency), "%s: latency %g",
          label, costs.latency);
    for (int s = 0; s < stages; s++) {
        pmlp_stage_info info = {0};
        const double rows = (double)how.batch / how.microbatches;
        CHECK(pmlp_trainer_stage(trainer, s, &info) == PMLP_OK, "stage %d", s);
        CHECK(costs.f[s] > 0 && costs.i[s] >= 0 && costs.w[s] > 0 && costs.u[s] > 0 &&
                  costs.f[s] < 1 && costs.u[s] < 1,
              "%s: stage %d costs %g %g %g %g s", label, s, costs.f[s], costs.i[s], costs.w[s],
              costs.u[s]);
        const pmlp_op ops[] = {PMLP_OP_F, PMLP_OP_I, PMLP_OP_W, PMLP_OP_U};
        const double *of_op[] = {costs.f, costs.i, costs.w, costs.u};
        for (int o = 0; o < 4; o++) {
            const double median = median_of(all, info.worker, s, ops[o]);
            CHECK(fabs(of_op[o][s] - median) <= 1e-8, "%s: %s of stage %d costs %g, not %g", label,
                  pmlp_op_name(ops[o]), s, of_op[o][s], median);
        }
        const int top = info.first_layer + info.layers; /* rows are padded */
        const double bytes = rows * sizeof(float) * deep_net.sizes[top];
        if (s + 1 < stages)
            CHECK(costs.message_bytes[s] >= bytes && costs.message_bytes[s] <= 16 * bytes,
                  "%s: %g bytes above stage %d, not %g", label, costs.message_bytes[s], s, bytes);
        CHECK(costs.held[s] > 2 * bytes, "%s: stage %d holds %g bytes", label, s, costs.held[s]);
    }
    CHECK(pmlp_schedule_simulate(schedule, &costs, NULL, &simulation, NULL) == PMLP_OK &&
              simulation.makespan > 0,
          "%s: measured costs cannot be simulated", label);
}

static void check_traces(pmlp_trainer_desc desc) {
    enum { KEEP = 3, STEPS = 5 };
    pmlp_data data = make_data(&deep_net, ROWS), batch = rows_of(&deep_net, &data, 0, BATCH);
    pmlp_model *model = make_model(&deep_net, 8), *plain = make_model(&deep_net, 8);
    pmlp_timeline *t = NULL, *before = NULL;
    pmlp_schedule *lowered = NULL;
    pmlp_costs costs;
    double lengths[KEEP];
    desc.batch = BATCH;
    describe(&deep_net, &desc);
    pmlp_trainer *untraced = make_trainer(plain, &desc);
    desc.trace = KEEP;
    pmlp_trainer *trainer = make_trainer(model, &desc);
    if (!trainer || !untraced) return;
    const pmlp_schedule *schedule = pmlp_trainer_schedule(trainer);
    const int stages = pmlp_schedule_stages(schedule), p = pmlp_schedule_workers(schedule);
    CHECK(pmlp_schedule_lower(schedule, &lowered, NULL) == PMLP_OK, "%s: lower", label);
    CHECK(pmlp_trainer_timeline(trainer, 1, &t) == PMLP_ERROR_STATE && !t &&
              pmlp_trainer_costs(trainer, &costs) == PMLP_ERROR_STATE,
          "%s: a timeline before the first step", label);
    for (int step = 0; step < STEPS; step++) {
        fine(untraced, pmlp_trainer_step(untraced, &batch, NULL));
        CHECK(pmlp_trainer_timeline(untraced, 1, &t) == PMLP_ERROR_STATE && !t &&
                  pmlp_trainer_costs(untraced, &costs) == PMLP_ERROR_STATE,
              "%s: traces without being asked", label);
        fine(trainer, pmlp_trainer_step(trainer, &batch, NULL));
        fine(trainer, pmlp_trainer_eval(trainer, &batch, NULL)); /* leaves no trace */
        if (before && (t = timeline(trainer, 2)))
            CHECK(is_step(before, t, schedule, 0), "%s: step %d of 2", label, step - 1);
        pmlp_timeline_destroy(t);
        pmlp_timeline_destroy(before);
        before = timeline(trainer, 1);
        if (!before) return;
        for (int w = 0; w < p; w++) {
            int count, spanned;
            const pmlp_action *list = pmlp_schedule_actions(lowered, w, &count);
            const pmlp_span *spans = pmlp_timeline_spans(before, w, &spanned);
            check_spans(list, count, spans, spanned, w);
        }
        check_order(before, stages, pmlp_schedule_microbatches(schedule), true);
        check_times(before);
    }
    pmlp_timeline *all = timeline(trainer, 100), *median = timeline(trainer, 0);
    if (!all || !median) return;
    check_times(all), check_times(median);
    long actions = 0, listed = 0;
    for (int w = 0; w < p; w++) {
        int count;
        const pmlp_span *s = pmlp_timeline_spans(all, w, &count);
        for (int k = 0; k < count; k++) actions += s[k].count;
        s = pmlp_timeline_spans(before, w, &count);
        for (int k = 0; k < count; k++) listed += s[k].count;
    }
    CHECK(actions == KEEP * listed, "%s: %ld actions in %d steps of %ld", label, actions, KEEP,
          listed);
    int which = -1;
    for (int step = 0; step < KEEP; step++) {
        lengths[step] = step_length(all, schedule, step);
        if (is_step(median, all, schedule, step)) which = step;
    }
    CHECK(is_step(before, all, schedule, KEEP - 1), "%s: the last step is not the last", label);
    if (CHECK(which >= 0, "%s: timeline(0) is none of the steps kept", label)) {
        int shorter = 0, longer = 0;
        for (int step = 0; step < KEEP; step++) {
            shorter += lengths[step] < lengths[which] - 1e-8;
            longer += lengths[step] > lengths[which] + 1e-8;
        }
        CHECK(shorter <= 1 && longer <= 1, "%s: not the median: %g of %g %g %g", label,
              lengths[which], lengths[0], lengths[1], lengths[2]);
    }
    check_costs(trainer, schedule, all);
    pmlp_trainer_destroy(trainer);
    pmlp_trainer_destroy(untraced);
    CHECK(word_of(model) == word_of(plain), "%s: tracing changes the weights", label);
    check_times(all); /* it outlives the trainer */
    pmlp_timeline_destroy(all);
    pmlp_timeline_destroy(median);
    pmlp_timeline_destroy(before);
    pmlp_schedule_destroy(lowered);
    pmlp_model_destroy(model);
    pmlp_model_destroy(plain);
}

TEST(traces) {
    static const pmlp_schedule_kind kinds[] = {
        PMLP_SCHEDULE_SEQUENTIAL, PMLP_SCHEDULE_GPIPE, PMLP_SCHEDULE_1F1B,
        PMLP_SCHEDULE_EAGER_1F1B, PMLP_SCHEDULE_INTERLEAVED, PMLP_SCHEDULE_LOOPED_BFS,
        PMLP_SCHEDULE_ZB_H1, PMLP_SCHEDULE_ZB_H2, PMLP_SCHEDULE_ZB_V, PMLP_SCHEDULE_DUALPIPE_V};
    long runs = 0;
    for (int k = 0; k < 10; k++)
        for (int p = 1; p <= 3; p++)
            for (int way = 0; way < 4; way++) {
                pmlp_trainer_desc desc = {0};
                if (test_quick() && (k + p + way) % 4) continue;
                desc.schedule = kinds[k], desc.workers = p, desc.microbatches = way % 2 ? 6 : 20;
                if (kinds[k] == PMLP_SCHEDULE_INTERLEAVED) desc.microbatches = 2 * p;
                desc.no_threads = way & 1, desc.w_rows = way & 2 ? 1 : 0;
                desc.optimizer = optimizers[runs % 5];
                check_traces(desc);
                runs++;
            }
    SAY("traces: each action once, in order, after what it needs, times that add up, the median "
        "step, costs: %s trainers", test_count(runs));
}

/* An epoch without a flush: the first 4 batches of it. */
TEST(traces_async) {
    long runs = 0;
    for (int kind = PMLP_SCHEDULE_PIPEDREAM; kind <= PMLP_SCHEDULE_PIPEDREAM_2BW; kind++)
        for (int p = 1; p <= 3; p++)
            for (int batches = 2; batches <= 20; batches += 9, runs++) {
                pmlp_trainer_desc desc = {0};
                pmlp_model *model = make_model(&deep_net, 8);
                pmlp_costs costs;
                desc.schedule = (pmlp_schedule_kind)kind, desc.workers = p, desc.batch = 3;
                desc.microbatches = 3, desc.no_threads = batches == 11, desc.trace = 2;
                describe(&deep_net, &desc);
                pmlp_data data = make_data(&deep_net, 3 * (size_t)batches);
                pmlp_trainer *trainer = make_trainer(model, &desc);
                if (!trainer) return;
                const int kept = batches < 4 ? batches : 4, each = kind == PMLP_SCHEDULE_PIPEDREAM;
                for (int epoch = 0; epoch < 3; epoch++) {
                    fine(trainer, pmlp_trainer_epoch(trainer, &data, NULL));
                    pmlp_timeline *t = timeline(trainer, 1);
                    for (int w = 0; t && w < p; w++) {
                        int count, by[PMLP_OP_COUNT] = {0};
                        const pmlp_span *s = pmlp_timeline_spans(t, w, &count);
                        for (int k = 0; k < count; k++) by[s[k].op] += s[k].count;
                        CHECK(by[PMLP_OP_F] == 3 * kept && by[PMLP_OP_I] == 3 * kept &&
                                  by[PMLP_OP_W] == 3 * kept &&
                                  by[PMLP_OP_U] == (each ? 3 : 1) * kept,
                              "%s, %d batches: worker %d did %d F, %d I, %d W, %d U", label, batches,
                              w, by[PMLP_OP_F], by[PMLP_OP_I], by[PMLP_OP_W], by[PMLP_OP_U]);
                    }
                    if (t) check_order(t, p, 3 * kept, false), check_times(t);
                    pmlp_timeline_destroy(t);
                }
                fine(trainer, pmlp_trainer_costs(trainer, &costs));
                for (int s = 0; s < p; s++)
                    CHECK(costs.f[s] > 0 && costs.w[s] > 0 && costs.u[s] > 0, "%s: free", label);
                pmlp_trainer_destroy(trainer);
                pmlp_model_destroy(model);
            }
    SAY("traces of epochs without a flush: the first 4 batches, %s trainers", test_count(runs));
}

/* A stage that completes layer 0 does its own columns while it waits for the stage below: each
   micro-batch once at most, before its F, in order; nobody else does. On one thread the second of
   two stages of 1F1B waits for its third micro-batch, so that there must be some. */
TEST(traces_ahead) {
    static const pmlp_schedule_kind kinds[] = {PMLP_SCHEDULE_1F1B, PMLP_SCHEDULE_GPIPE,
                                               PMLP_SCHEDULE_ZB_H1, PMLP_SCHEDULE_PIPEDREAM};
    static const pmlp_cut cuts[][2] = {{{0, 64}, {1, 0}}, {{0, 32}, {0, 96}}, {{1, 0}, {2, 0}}};
    enum { M = 6 };
    pmlp_data data = make_data(&wide_net, BATCH);
    long runs = 0, all_early = 0;
    for (int way = 0; way < 4 * 3 * 2 * 2; way++, runs++) {
        const int cut = way / 4 % 3, stages = 2 + way / 12 % 2;
        const bool async = kinds[way % 4] == PMLP_SCHEDULE_PIPEDREAM;
        pmlp_trainer_desc desc = {0};
        pmlp_model *model = make_model(&wide_net, 8);
        pmlp_costs costs = {0};
        bool seen[4] = {false};
        desc.schedule = kinds[way % 4], desc.workers = stages, desc.microbatches = M;
        desc.batch = BATCH, desc.cuts = cuts[cut], desc.no_threads = way / 24, desc.trace = 1;
        desc.w_rows = 1;
        describe(&wide_net, &desc);
        pmlp_trainer *trainer = make_trainer(model, &desc);
        if (!trainer) return;
        for (int step = 0; step < 3; step++) {
            fine(trainer, async ? pmlp_trainer_epoch(trainer, &data, NULL)
                                : pmlp_trainer_step(trainer, &data, NULL));
            pmlp_timeline *t = timeline(trainer, 1);
            for (int w = 0, n; t && w < stages; w++) {
                const pmlp_span *s = pmlp_timeline_spans(t, w, &n);
                int done = 0, early = 0; /* F, and those begun */
                for (int k = 0; k < n; k++) {
                    if (s[k].op != PMLP_OP_F) continue;
                    if (!s[k].ahead) {
                        CHECK(s[k].microbatch == done, "%s: F%d", label, s[k].microbatch);
                        if (++done > early) early = done;
                        continue;
                    }
                    CHECK(!async && w > 0 && desc.cuts[w - 1].layer == 0 && s[k].stage == w &&
                              s[k].count == 1 && s[k].microbatch == early && early < M,
                          "%s: stage %d does F%d ahead, %d F done, %d begun", label, w,
                          s[k].microbatch, done, early);
                    early++, all_early++, seen[w] = true;
                }
                CHECK(done == M, "%s: %d F", label, done);
            }
            pmlp_timeline_destroy(t);
        }
        if (desc.no_threads && kinds[way % 4] == PMLP_SCHEDULE_1F1B && cut < 2 && stages == 2)
            CHECK(seen[1], "%s: nothing is done ahead", label);
        fine(trainer, pmlp_trainer_costs(trainer, &costs));
        if (CHECK(costs.ahead && costs.ahead[0] == 0, "%s: stage 0 goes ahead", label))
            for (int s = 0; s < stages; s++) {
                CHECK(costs.ahead[s] >= 0 && costs.ahead[s] <= costs.f[s], "%s: %g of %g ahead",
                      label, costs.ahead[s], costs.f[s]);
                if (async || (s > 0 && desc.cuts[s - 1].layer > 0))
                    CHECK(costs.ahead[s] == 0, "%s: stage %d, %g ahead", label, s, costs.ahead[s]);
            }
        pmlp_trainer_destroy(trainer);
        pmlp_model_destroy(model);
    }
    CHECK(all_early > 0, "nothing is done ahead");
    SAY("stages that complete layer 0 and only they go ahead, each micro-batch once: %s F of "
        "%s trainers", test_count(all_early), test_count(runs));
}

/* F in descending order, which the checker allows: on one thread the second stage waits for the third
   of them, and goes ahead with those that are left, not with what is done. */
TEST(traces_ahead_descending) {
    const char *text = "0F3,0F2,0I3,0F1,0I2,0F0,0I1,0I0,0W0,0W1,0W2,0W3,0U\n"
                       "1F3,1I3,1F2,1I2,1F1,1I1,1F0,1I0,1W0,1W1,1W2,1W3,1U\n";
    const pmlp_cut cut = {0, 64};
    pmlp_data data = make_data(&wide_net, BATCH);
    pmlp_trainer_desc desc = {0}, serial = {0};
    pmlp_schedule *schedule = NULL;
    pmlp_error error = {0};
    uint64_t words[2] = {0, 1};
    CHECK(pmlp_schedule_parse(text, strlen(text), NULL, &schedule, &error) == PMLP_OK, "%s",
          error.text);
    desc.custom = schedule, desc.cuts = &cut, desc.batch = serial.batch = BATCH;
    desc.no_threads = true, desc.trace = 1, desc.w_rows = 1;
    snprintf(label, sizeof label, "descending");
    for (int way = 0; way < 2; way++) {
        pmlp_model *model = make_model(&wide_net, 8);
        pmlp_trainer *trainer = make_trainer(model, way ? &desc : &serial);
        if (!trainer) return;
        for (int step = 0; step < 3; step++) {
            bool begun[4] = {false};
            int count = 0, early = 0;
            fine(trainer, pmlp_trainer_step(trainer, &data, NULL));
            pmlp_timeline *t = way ? timeline(trainer, 1) : NULL;
            const pmlp_span *s = t ? pmlp_timeline_spans(t, 1, &count) : NULL;
            for (int k = 0; k < count; k++) {
                if (s[k].op != PMLP_OP_F) continue;
                CHECK(!s[k].ahead || !begun[s[k].microbatch], "F%d ahead, again", s[k].microbatch);
                begun[s[k].microbatch] = true, early += s[k].ahead;
            }
            CHECK(!way || early > 0, "nothing is done ahead");
            pmlp_timeline_destroy(t);
        }
        pmlp_trainer_destroy(trainer);
        CHECK(pmlp_model_hash(model, &words[way], &error) == PMLP_OK, "%s", error.text);
        pmlp_model_destroy(model);
    }
    CHECK(words[0] == words[1], "other weights than serially");
    pmlp_schedule_destroy(schedule);
    SAY("F in descending order: what is done is not done again, equal bits");
}

/* --- the ceiling ----------------------------------------------------------------------------- */

static pmlp_ceiling_report ceiling(const pmlp_model *model, pmlp_trainer_desc desc,
                                   const pmlp_costs *costs) {
    pmlp_ceiling_report report = {0};
    pmlp_error error = {0};
    snprintf(label, sizeof label, "%s, %d workers, %d micro-batches%s",
             pmlp_schedule_kind_name(desc.schedule), desc.workers, desc.microbatches,
             desc.whole_layers ? ", whole layers" : "");
    CHECK(pmlp_ceiling(model, &desc, costs, &report, &error) == PMLP_OK, "%s: %s", label,
          error.text);
    const double p = report.workers;
    CHECK(report.workers == (desc.workers ? desc.workers : 1) && *report.advice &&
              strlen(report.advice) < sizeof report.advice,
          "%s: %d workers, '%s'", label, report.workers, report.advice);
    CHECK(report.balance <= p * (1 + 1e-9) && report.fill <= p * (1 + 1e-9) &&
              report.schedule <= report.balance * (1 + 1e-9) &&
              report.speedup <= report.schedule * (1 + 1e-9) && report.speedup > 0,
          "%s: balance %g, fill %g, schedule %g, speedup %g", label, report.balance, report.fill,
          report.schedule, report.speedup);
    return report;
}

TEST(ceiling) {
    static const int sizes[] = {784, 512, 256, 128, 10};
    const double work = 2.0 * 784 * 512 + 3.0 * (512 * 256 + 256 * 128 + 128 * 10);
    const double whole = work / (2.0 * 784 * 512);
    pmlp_model_desc model_desc = {.layers = 4, .sizes = sizes};
    pmlp_model *model = NULL;
    pmlp_error error = {0};
    pmlp_ceiling_report r;
    double before = 0;
    long runs = 0;
    if (!CHECK(pmlp_model_create(&model_desc, &model, &error) == PMLP_OK, "%s", error.text)) return;
    pmlp_trainer_desc desc = {.workers = 2, .microbatches = 200, .whole_layers = true};
    desc.schedule = PMLP_SCHEDULE_1F1B;
    r = ceiling(model, desc, NULL);
    CHECK(fabs(r.balance - whole) < 1e-12 && fabs(whole - 1.617) < 5e-4, "balance %.6f, not %.6f",
          r.balance, whole);
    CHECK(r.whole_layers == r.balance && !strcmp(r.binds, "balance"), "%g binds %s", r.whole_layers,
          r.binds);
    CHECK(strstr(r.advice, "cut inside the first layer"), "advice '%s'", r.advice);
    desc.whole_layers = false;
    for (desc.microbatches = 1; desc.microbatches <= 512; desc.microbatches *= 2, runs++) {
        r = ceiling(model, desc, NULL);
        CHECK(fabs(r.whole_layers - whole) < 1e-12, "%s: whole layers %g", label, r.whole_layers);
        CHECK(r.speedup > before && r.speedup == r.schedule, "%s: %g after %g", label, r.speedup,
              before);
        before = r.speedup;
        /* the bubble is at most p - 1 rounds */
        CHECK(r.fill >= 2.0 * desc.microbatches / (desc.microbatches + 1) - 1e-9, "%s: fill %g",
              label, r.fill);
        if (desc.microbatches <= 4)
            CHECK(!strcmp(r.binds, "fill and drain"), "%s: '%s' binds", label, r.binds);
    }
    CHECK(r.speedup > 1.95 && r.balance > 1.97, "many micro-batches, a free cut: %g of %g",
          r.speedup, r.balance);
    CHECK(strcmp(r.binds, "fill and drain") && strcmp(r.binds, "hand-offs"), "'%s' binds", r.binds);
    desc.schedule = PMLP_SCHEDULE_SEQUENTIAL, desc.microbatches = 8, desc.whole_layers = true;
    r = ceiling(model, desc, NULL);
    CHECK(!strcmp(r.binds, "fill and drain") && strstr(r.advice, "1f1b"), "sequential: '%s'",
          r.advice);
    /* nothing overlaps but W: put off, it fits into the waits, all but the last; done at once, with
       the I of the stage below */
    CHECK(fabs(r.fill - 48.0 / 33) < 1e-9, "sequential: fill %g", r.fill);
    desc.w_rows = 1;
    r = ceiling(model, desc, NULL);
    CHECK(fabs(r.fill - 48.0 / 40) < 1e-9, "sequential, W at once: fill %g", r.fill);
    desc.w_rows = 0, desc.whole_layers = false;
    for (desc.workers = 1; desc.workers <= 4; desc.workers++)
        for (int kind = PMLP_SCHEDULE_SEQUENTIAL; kind < PMLP_SCHEDULE_KIND_COUNT; kind++, runs++) {
            desc.schedule = (pmlp_schedule_kind)kind, desc.microbatches = 4 * desc.workers;
            r = ceiling(model, desc, NULL);
            if (desc.workers == 1)
                CHECK(fabs(r.speedup - 1) < 1e-9 && !strcmp(r.binds, "nothing"),
                      "%s: %g, '%s' binds", label, r.speedup, r.binds);
        }
    desc.schedule = PMLP_SCHEDULE_1F1B, desc.workers = 2, desc.microbatches = 64;
    pmlp_costs costs = {.latency = 1e6};
    r = ceiling(model, desc, &costs);
    CHECK(!strcmp(r.binds, "hand-offs") && r.speedup < 0.01 && r.schedule > 1.9,
          "slow hand-offs: '%s' binds, %g", r.binds, r.speedup);
    const double bytes[] = {1000};
    costs.latency = 0, costs.per_byte = 10, costs.message_bytes = bytes;
    r = ceiling(model, desc, &costs);
    CHECK(!strcmp(r.binds, "hand-offs"), "slow bytes: '%s' binds", r.binds);
    /* costs that are measured go where counted ones do */
    const double f[] = {3, 1}, i[] = {0, 1}, w[] = {3, 1};
    pmlp_costs given = {.f = f, .i = i, .w = w};
    r = ceiling(model, desc, &given);
    CHECK(fabs(r.balance - 9.0 / 6) < 1e-12 && !strcmp(r.binds, "balance"), "given costs: %g, %s",
          r.balance, r.binds);
    pmlp_schedule *custom = NULL;
    CHECK(pmlp_schedule_parse("0F0,0B0\n1F0,1B0\n", 16, NULL, &custom, NULL) == PMLP_OK, "parse");
    pmlp_trainer_desc own = {.custom = custom};
    pmlp_ceiling_report report;
    CHECK(pmlp_ceiling(model, &own, NULL, &report, &error) == PMLP_OK && report.workers == 2 &&
              report.fill > 1 && report.fill < 1.5,
          "custom: %d workers, fill %g", report.workers, report.fill);
    pmlp_schedule_destroy(custom);
    pmlp_model_destroy(model);
    SAY("the ceiling of 784-512-256-128-10: %.3f by whole layers, %.3f with a free cut and 512 "
        "micro-batches; what binds, and advice: %s reports",
        whole, before, test_count(runs));
}

/* Two workers on one core. What either waits for, the other can do only when it has the core: each
   learns to give it away almost at once. */
static void *share_a_core(void *argument) {
    int *fewest = argument;
    pmlp_trainer_desc desc = {.workers = 2, .microbatches = 8, .batch = BATCH};
    pmlp_data data = make_data(&tiny_net, BATCH);
    CHECK(pmlp__bind_thread(0), "not bound"); /* nor would the trainer's thread be, which follows */
    describe(&tiny_net, &desc);
    pmlp_model *model = make_model(&tiny_net, 8);
    pmlp_trainer *trainer = make_trainer(model, &desc);
    for (int step = 0; trainer && step < 200; step++) {
        fine(trainer, pmlp_trainer_step(trainer, &data, NULL));
        for (int w = 0; w < 2; w++)
            fewest[w] = pmlp__least(fewest[w], trainer->workers[w].pauses);
    }
    pmlp_trainer_destroy(trainer);
    pmlp_model_destroy(model);
    return NULL;
}

TEST(one_core) {
    int fewest[2] = {PMLP__MOST_PAUSES, PMLP__MOST_PAUSES};
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, share_a_core, fewest) == 0, "a thread");
    pthread_join(thread, NULL);
    for (int w = 0; w < 2; w++)
        CHECK(fewest[w] <= 4 * PMLP__FEW_PAUSES, "worker %d spins %d times", w, fewest[w]);
    SAY("two workers on one core give it away after %d and %d pauses", fewest[0], fewest[1]);
}

int main(void) {
    test_begin("async");
    RUN(lists);
    RUN(reference);
    RUN(passes);
    RUN(formulas);
    RUN(words);
    RUN(verify);
    RUN(refusals);
    RUN(traces);
    RUN(traces_async);
    RUN(traces_ahead);
    RUN(traces_ahead_descending);
    RUN(ceiling);
    RUN(one_core);
    return test_end();
}
