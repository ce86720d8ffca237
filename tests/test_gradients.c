/* What the trainer computes, against a network of our own in double that shares no line with it:
   gradients by central differences for every activation and loss, losses, hits, predictions, and
   the step that follows from a gradient.

   cc -std=c99 -O2 tests/test_gradients.c -o test_gradients -lm -lpthread

   Tolerances. The difference quotient with STEP is good to about 1e-9, a gradient in float to a few
   hundred roundings of 2^-24; GRADIENT_TOLERANCE is relative to the layer's largest gradient, or to
   1 if that is larger: a few times what is seen, a thousandth of what a wrong factor or a lost term
   makes. */
#define PIPEMLP_IMPLEMENTATION
#include "../pipemlp.h"
#include "test.h"

#include <float.h>

enum { MAX_LAYERS = 5, MAX_WIDTH = 65, MAX_ROWS = 48, MAX_PARAMS = 16384 };

static const double STEP = 1e-7, GRADIENT_TOLERANCE = 2e-6, OUTPUT_TOLERANCE = 2e-6;
static const pmlp_activation activations[] = {PMLP_RELU, PMLP_SIGMOID, PMLP_TANH, PMLP_GELU,
                                              PMLP_LINEAR};
enum { ACTIVATIONS = 5 };

/* The three ways of asking: XENT with labels, MSE with labels, MSE with targets. */
enum { XENT, MSE_LABELS, MSE_TARGETS, LOSS_KINDS };
static const char *loss_kinds[] = {"xent", "mse with labels", "mse with targets"};

/* --- the reference network, in double -------------------------------------------------------- */

typedef struct net {
    int layers, kind;
    int sizes[MAX_LAYERS + 1];
    pmlp_activation act[MAX_LAYERS];
    double w[MAX_PARAMS]; /* layer by layer: w [n_out][n_in], then b [n_out] */
} net;

typedef struct rows_data {
    size_t rows;
    float x[MAX_ROWS * MAX_WIDTH], targets[MAX_ROWS * MAX_WIDTH];
    int labels[MAX_ROWS];
} rows_data;

static net reference;
static rows_data set;
static uint64_t rng = 3;

static double activate(pmlp_activation a, double z) {
    switch (a) {
    case PMLP_RELU: return z > 0 ? z : 0;
    case PMLP_SIGMOID: return 1 / (1 + exp(-z));
    case PMLP_TANH: return tanh(z);
    case PMLP_GELU: return 0.5 * z * (1 + erf(z * 0.70710678118654752440));
    default: return z;
    }
}

/* Outputs of the last layer for one row. */
static void net_outputs(const net *n, const float *x, double *out) {
    double a[MAX_WIDTH], z[MAX_WIDTH];
    const double *w = n->w;
    for (int i = 0; i < n->sizes[0]; i++) a[i] = (double)x[i];
    for (int l = 0; l < n->layers; l++) {
        int n_in = n->sizes[l], n_out = n->sizes[l + 1];
        for (int o = 0; o < n_out; o++) {
            z[o] = w[n_out * n_in + o];
            for (int i = 0; i < n_in; i++) z[o] += w[o * n_in + i] * a[i];
            z[o] = activate(n->act[l], z[o]);
        }
        memcpy(a, z, sizeof a);
        w += n_out * (n_in + 1);
    }
    memcpy(out, a, (size_t)n->sizes[n->layers] * sizeof *out);
}

static double net_row_loss(const net *n, const double *y, const float *target, int label) {
    const int outputs = n->sizes[n->layers];
    double loss = 0, sum = 0;
    for (int o = 0; o < outputs; o++) {
        double goal = n->kind == MSE_TARGETS ? (double)target[o] : o == label;
        loss += 0.5 * (y[o] - goal) * (y[o] - goal);
        sum += exp(y[o]); /* outputs are small here: no need for the maximum */
    }
    return n->kind == XENT ? log(sum) - y[label] : loss;
}

/* Mean loss; *hits, unless NULL, counts rows whose largest output is at the label. */
static double net_loss(const net *n, const rows_data *d, size_t rows, size_t *hits) {
    const size_t n_in = (size_t)n->sizes[0], n_out = (size_t)n->sizes[n->layers];
    double y[MAX_WIDTH], sum = 0;
    if (hits) *hits = 0;
    for (size_t r = 0; r < rows; r++) {
        net_outputs(n, d->x + r * n_in, y);
        sum += net_row_loss(n, y, d->targets + r * n_out, d->labels[r]);
        size_t best = 0;
        for (size_t o = 1; o < n_out; o++)
            if (y[o] > y[best]) best = o;
        if (hits) *hits += best == (size_t)d->labels[r];
    }
    return sum / (double)rows;
}

/* --- the same network in the library --------------------------------------------------------- */

static char what[160]; /* the case, for messages */

static void set_fill(const net *n, size_t rows) {
    const size_t n_in = (size_t)n->sizes[0], n_out = (size_t)n->sizes[n->layers];
    set.rows = rows;
    for (size_t i = 0; i < rows * n_in; i++) set.x[i] = (float)test_uniform(&rng, -1, 1);
    for (size_t i = 0; i < rows * n_out; i++) set.targets[i] = (float)test_uniform(&rng, -1, 1);
    for (size_t r = 0; r < rows; r++) set.labels[r] = (int)(test_random(&rng) % n_out);
}

static pmlp_data as_data(const net *n, size_t rows) {
    pmlp_data data = {0};
    data.rows = rows, data.x = set.x;
    if (n->kind == MSE_TARGETS)
        data.targets = set.targets;
    else
        data.labels = set.labels;
    return data;
}

/* Reads the model's parameters into the reference. */
static void net_from_model(net *n, pmlp_model *model) {
    double *w = n->w;
    for (int l = 0; l < n->layers; l++) {
        pmlp_params p = {0};
        pmlp_error error = {0};
        if (!CHECK(pmlp_model_params(model, l, &p, &error) == PMLP_OK, "%s: %s", what, error.text))
            return;
        CHECK(p.n_in == (size_t)n->sizes[l] && p.n_out == (size_t)n->sizes[l + 1] &&
                  p.activation == n->act[l],
              "%s: shape or activation of layer %d", what, l);
        for (size_t i = 0; i < p.n_in * p.n_out; i++) *w++ = (double)p.w[i];
        for (size_t i = 0; i < p.n_out; i++) *w++ = (double)p.b[i];
    }
}

/* A model like n, with biases that are not 0, and n given its weights. */
static pmlp_model *model_like(net *n, uint64_t seed) {
    pmlp_model_desc desc = {0};
    pmlp_model *model = NULL;
    pmlp_error error = {0};
    desc.layers = n->layers, desc.sizes = n->sizes, desc.activations = n->act;
    desc.loss = n->kind == XENT ? PMLP_LOSS_XENT : PMLP_LOSS_MSE;
    desc.seed = seed;
    if (!CHECK(pmlp_model_create(&desc, &model, &error) == PMLP_OK, "%s: %s", what, error.text))
        return NULL;
    for (int l = 0; l < n->layers; l++) {
        pmlp_params p = {0};
        CHECK(pmlp_model_params(model, l, &p, &error) == PMLP_OK, "%s", error.text);
        for (size_t i = 0; i < p.n_out; i++) p.b[i] = (float)test_uniform(&rng, -0.5, 0.5);
    }
    net_from_model(n, model);
    return model;
}

/* Workers, micro-batches and schedule that change from case to case. */
static pmlp_trainer *trainer_for(pmlp_model *model, const net *n, size_t batch, int number,
                                 pmlp_trainer_desc desc) {
    static const pmlp_schedule_kind kinds[] = {PMLP_SCHEDULE_1F1B, PMLP_SCHEDULE_GPIPE,
                                               PMLP_SCHEDULE_SEQUENTIAL};
    static const int microbatches[] = {1, 3, 4, 7};
    pmlp_trainer *trainer = NULL;
    pmlp_error error = {0};
    desc.workers = 1 + number % n->layers;
    desc.microbatches = microbatches[(number + number / 4) % 4];
    desc.schedule = kinds[number % 3], desc.no_threads = number % 2 == 0;
    desc.batch = batch;
    CHECK(pmlp_trainer_create(model, &desc, &trainer, &error) == PMLP_OK, "%s: %s", what,
          error.text);
    return trainer;
}

static void describe(const net *n, size_t rows, int number) {
    snprintf(what, sizeof what, "case %d: %d layers, %s .. %s, %s, %zu rows", number, n->layers,
             pmlp_activation_name(n->act[0]), pmlp_activation_name(n->act[n->layers - 1]),
             loss_kinds[n->kind], rows);
}

/* --- gradients ------------------------------------------------------------------------------- */

static long cases, parameters;
static double worst; /* largest error seen, relative to its tolerance */

static double difference_quotient(net *n, size_t at, size_t rows) {
    const double w = n->w[at];
    n->w[at] = w + STEP;
    double up = net_loss(n, &set, rows, NULL);
    n->w[at] = w - STEP;
    double down = net_loss(n, &set, rows, NULL);
    n->w[at] = w;
    return (up - down) / (2 * STEP);
}

/* Every `stride`-th parameter. Returns the squares of the gradient that was read, summed. */
static double check_layer_gradient(pmlp_trainer *trainer, net *n, int layer, size_t offset,
                                   size_t stride, size_t rows) {
    static float g[MAX_PARAMS];
    static double quotient[MAX_PARAMS];
    const size_t n_in = (size_t)n->sizes[layer], n_out = (size_t)n->sizes[layer + 1];
    const size_t count = n_out * (n_in + 1);
    double squares = 0, largest = 1;
    memset(g, 0xff, sizeof g);
    CHECK(pmlp_trainer_gradient(trainer, layer, g, g + n_out * n_in) == PMLP_OK, "%s: %s", what,
          pmlp_trainer_error(trainer)->text);
    for (size_t o = 0; o < n_out; o++) { /* the order that decides the norm's bits */
        double row = 0;
        for (size_t i = 0; i < n_in; i++) row += (double)g[o * n_in + i] * (double)g[o * n_in + i];
        squares += row + (double)g[n_out * n_in + o] * (double)g[n_out * n_in + o];
    }
    for (size_t i = 0; i < count; i += stride) {
        quotient[i] = difference_quotient(n, offset + i, rows);
        if (fabs(quotient[i]) > largest) largest = fabs(quotient[i]);
    }
    for (size_t i = 0; i < count; i += stride) {
        double off = fabs((double)g[i] - quotient[i]) / (GRADIENT_TOLERANCE * largest);
        CHECK(off <= 1, "%s: layer %d, %s %zu: gradient %.9g, differences %.9g", what, layer,
              i < n_in * n_out ? "weight" : "bias", i, (double)g[i], quotient[i]);
        if (off > worst) worst = off;
        parameters++;
    }
    return squares;
}

/* One step of the trainer from weights that `reference` has too. */
static void check_gradients(int number, size_t batch, size_t rows, size_t stride) {
    net *n = &reference;
    pmlp_trainer_desc desc = {0};
    pmlp_stats stats = {0};
    describe(n, rows, number);
    set_fill(n, rows);
    pmlp_model *model = model_like(n, (uint64_t)number);
    if (!model) return;
    desc.gradient_norm = desc.keep_gradients = true;
    if (number % 5 == 4) desc.clip_norm = 1e-3f; /* the gradient is the one before clipping */
    pmlp_trainer *trainer = trainer_for(model, n, batch, number, desc);
    if (trainer) {
        pmlp_data data = as_data(n, rows);
        size_t hits, offset = 0;
        double loss = net_loss(n, &set, rows, &hits), squares = 0;
        CHECK(pmlp_trainer_step(trainer, &data, &stats) == PMLP_OK, "%s: %s", what,
              pmlp_trainer_error(trainer)->text);
        CHECK(fabs(stats.loss - loss) <= OUTPUT_TOLERANCE * (1 + loss), "%s: loss %.9g, not %.9g",
              what, stats.loss, loss);
        double accuracy = n->kind == MSE_TARGETS ? -1 : (double)hits / (double)rows;
        CHECK(fabs(stats.accuracy - accuracy) <= 1e-12, "%s: accuracy %.9g, not %.9g", what,
              stats.accuracy, accuracy);
        CHECK(stats.step == 1 && stats.steps == 1 && stats.rows == rows && stats.total_rows == rows,
              "%s: step %d, steps %zu, rows %zu of %zu", what, (int)stats.step, stats.steps,
              stats.rows, stats.total_rows);
        for (int l = 0; l < n->layers; l++) {
            squares += check_layer_gradient(trainer, n, l, offset, stride, rows);
            offset += (size_t)(n->sizes[l + 1] * (n->sizes[l] + 1));
        }
        const double norm = sqrt(squares), off = fabs(stats.gradient_norm - norm);
        /* to the bit, unless the processor has doubles that are longer (the 387 and its like) */
        CHECK(off <= (FLT_EVAL_METHOD == 2 ? 4 * DBL_EPSILON * norm : 0),
              "%s: norm %.17g, the gradients' %.17g", what, stats.gradient_norm, norm);
        cases++;
    }
    pmlp_trainer_destroy(trainer);
    pmlp_model_destroy(model);
}

static void net_shape(int layers, const int *sizes, pmlp_activation hidden, pmlp_activation output,
                      int kind) {
    reference.layers = layers, reference.kind = kind;
    memcpy(reference.sizes, sizes, (size_t)(layers + 1) * sizeof *sizes);
    for (int l = 0; l < layers; l++) reference.act[l] = l + 1 < layers ? hidden : output;
}

/* hidden x output x loss x rows, on networks of one, three and four layers. */
TEST(every_activation_and_loss) {
    static const int three[] = {7, 9, 6, 5}, four[] = {3, 17, 4, 8, 2}, one[] = {6, 4};
    static const size_t rows[] = {11, 1, 16, 7};
    int number = 0;
    cases = parameters = 0, worst = 0;
    for (int h = 0; h < ACTIVATIONS; h++)
        for (int o = 0; o < ACTIVATIONS; o++)
            for (int kind = 0; kind < LOSS_KINDS; kind++)
                for (int r = 0; r < 4; r++, number++) {
                    if (test_quick() && r != number / 4 % 4) continue;
                    net_shape(3, three, activations[h], activations[o], kind);
                    check_gradients(number, 16, rows[r], 1);
                    net_shape(4, four, activations[h], activations[o], kind);
                    check_gradients(number, 16, rows[r], test_quick() ? 3 : 1);
                    if (h > 0) continue;
                    net_shape(1, one, activations[o], activations[o], kind);
                    check_gradients(number, 16, rows[r], 1);
                }
    SAY("gradients vs central differences: 5 hidden x 5 output activations x 3 losses, %s nets, "
        "%s parameters, worst %.2f of the tolerance",
        test_count(cases), test_count(parameters), worst);
}

/* Layers wider than a register tile, a mixture of activations, one class only. */
TEST(odd_networks) {
    static const int wide[] = {33, 65, 31, 17}, narrow[] = {1, 1, 1, 1, 1, 1},
                     deep[] = {5, 2, 9, 1, 7, 3};
    cases = parameters = 0, worst = 0;
    for (int kind = 0; kind < LOSS_KINDS; kind++)
        for (int h = 0; h < ACTIVATIONS; h++) {
            net_shape(3, wide, activations[h], PMLP_LINEAR, kind);
            check_gradients(kind + 3 * h, 40, 37, test_quick() ? 211 : 23);
            net_shape(5, narrow, activations[h], PMLP_LINEAR, kind);
            check_gradients(kind + 3 * h + 1, 9, 9, 1);
            net_shape(5, deep, PMLP_TANH, PMLP_LINEAR, kind);
            for (int l = 0; l < 5; l++) reference.act[l] = activations[(l + h) % ACTIVATIONS];
            check_gradients(kind + 3 * h + 2, 30, 23, 1);
        }
    SAY("gradients of wide, narrow and mixed networks: %s networks, %s parameters, "
        "worst %.2f of the tolerance",
        test_count(cases), test_count(parameters), worst);
}

/* --- what a step does with a gradient -------------------------------------------------------- */

/* All derivatives; returns their norm. */
static double net_gradient(net *n, size_t count, size_t rows, double *g) {
    double squares = 0;
    for (size_t i = 0; i < count; i++) {
        g[i] = difference_quotient(n, i, rows);
        squares += g[i] * g[i];
    }
    return sqrt(squares);
}

/* The gradients that the trainer says it used, in the reference's order; returns their norm. */
static double trainer_gradients(pmlp_trainer *trainer, const net *n, double *g) {
    static float one[MAX_PARAMS];
    double squares = 0;
    for (int l = 0; l < n->layers; l++) {
        const int weights = n->sizes[l] * n->sizes[l + 1], biases = n->sizes[l + 1];
        CHECK(pmlp_trainer_gradient(trainer, l, one, one + weights) == PMLP_OK, "%s", what);
        for (int i = 0; i < weights + biases; i++, g++) {
            *g = (double)one[i];
            squares += *g * *g;
        }
    }
    return sqrt(squares);
}

/* One parameter, with the defaults of the desc. */
static void learn(pmlp_optimizer optimizer, double lr, double decay, int step, double g, double *w,
                  double *m, double *v) {
    const double b1 = (double)0.9f, b2 = (double)0.999f;
    if (optimizer == PMLP_ADAMW)
        *w *= 1 - lr * decay;
    else
        g += decay * *w;
    switch (optimizer) {
    case PMLP_MOMENTUM:
        *m = b1 * *m + g;
        *w -= lr * *m;
        break;
    case PMLP_NESTEROV:
        *m = b1 * *m + g;
        *w -= lr * (g + b1 * *m);
        break;
    case PMLP_ADAM:
    case PMLP_ADAMW:
        *m = b1 * *m + (1 - b1) * g;
        *v = b2 * *v + (1 - b2) * g * g;
        *w -= lr * (*m / (1 - pow(b1, step))) / (sqrt(*v / (1 - pow(b2, step))) + 1e-8);
        break;
    default: *w -= lr * g; break;
    }
}

enum { LEARN_ROWS = 13, LEARN_STEPS = 4 };

/* Four steps against double: what was learnt must reach the next step, decay must spare the biases,
   clipping must come before decay, a new rate must count from the next step on. SGD is given
   gradients of its own; Adam, which divides by them, the trainer's. */
static void check_steps(int number, pmlp_optimizer optimizer) {
    static const int sizes[] = {6, 8, 7, 4};
    static double g[MAX_PARAMS], m[MAX_PARAMS], v[MAX_PARAMS];
    static net learnt;
    const bool own = optimizer == PMLP_SGD, decays = (number & 1) != 0, clips = (number & 2) != 0;
    const double decay = decays ? (double)0.02f : 0;
    net *n = &reference;
    pmlp_trainer_desc desc = {0};
    net_shape(3, sizes, activations[number % 5], PMLP_LINEAR, number % 3);
    describe(n, LEARN_ROWS, number);
    set_fill(n, LEARN_ROWS);
    pmlp_model *model = model_like(n, 77);
    const size_t count = pmlp_model_param_count(model);
    /* just below or just above the first norm: both sides of the limit are seen */
    const double clip = (number & 4 ? 1.2 : 0.8) * net_gradient(n, count, LEARN_ROWS, g);
    desc.optimizer = optimizer;
    desc.learning_rate = own ? 0.25f : optimizer < PMLP_ADAM ? 0.05f : 0.01f;
    desc.weight_decay = (float)decay, desc.clip_norm = clips ? (float)clip : 0;
    desc.keep_gradients = !own;
    pmlp_trainer *trainer = trainer_for(model, n, LEARN_ROWS, number, desc);
    pmlp_data data = as_data(n, LEARN_ROWS);
    double lr = (double)desc.learning_rate;
    memset(m, 0, sizeof m), memset(v, 0, sizeof v);
    for (int step = 1; step <= LEARN_STEPS; step++) {
        if (step == 3) {
            lr *= 0.5;
            CHECK(pmlp_trainer_set_learning_rate(trainer, (float)lr) == PMLP_OK, "%s", what);
        }
        double norm = own ? net_gradient(n, count, LEARN_ROWS, g) : 0;
        CHECK(pmlp_trainer_step(trainer, &data, NULL) == PMLP_OK, "%s: %s", what,
              pmlp_trainer_error(trainer)->text);
        if (!own) norm = trainer_gradients(trainer, n, g);
        const double scale = clips && norm > clip ? clip / norm : 1;
        size_t at = 0;
        for (int l = 0; l < n->layers; l++)
            for (int i = 0; i < n->sizes[l + 1] * (n->sizes[l] + 1); i++, at++) {
                bool weight = i < n->sizes[l + 1] * n->sizes[l];
                learn(optimizer, lr, weight ? decay : 0, step, g[at] * scale, &n->w[at], &m[at],
                      &v[at]);
            }
    }
    CHECK(pmlp_trainer_sync(trainer) == PMLP_OK, "%s", what);
    learnt = *n;
    net_from_model(&learnt, model);
    for (size_t i = 0; i < count; i++)
        CHECK(fabs(learnt.w[i] - n->w[i]) <= 4e-6, "%s, %s: parameter %zu is %.9g, expected %.9g",
              what, pmlp_optimizer_name(optimizer), i, learnt.w[i], n->w[i]);
    pmlp_trainer_destroy(trainer);
    pmlp_model_destroy(model);
    cases++;
}

TEST(steps) {
    static const pmlp_optimizer optimizers[] = {PMLP_SGD, PMLP_MOMENTUM, PMLP_NESTEROV, PMLP_ADAM,
                                                PMLP_ADAMW};
    cases = 0;
    for (int number = 0; number < 24; number++)
        for (int o = 0; o < 5; o++) check_steps(number, optimizers[o]);
    SAY("%d steps vs double: 5 optimizers, decay, clipping, a new learning rate, %s networks",
        LEARN_STEPS, test_count(cases));
}

/* --- predict and eval ------------------------------------------------------------------------ */

static void check_predict(const net *n, pmlp_model *model, size_t rows) {
    static float y[MAX_ROWS * MAX_WIDTH + 1];
    const size_t n_in = (size_t)n->sizes[0], n_out = (size_t)n->sizes[n->layers];
    pmlp_error error = {0};
    y[rows * n_out] = 42;
    CHECK(pmlp_model_predict(model, set.x, rows, y, &error) == PMLP_OK, "%s: %s", what, error.text);
    CHECK(y[rows * n_out] == 42, "%s: predict wrote behind y", what);
    for (size_t r = 0; r < rows; r++) {
        double out[MAX_WIDTH], sum = 0;
        net_outputs(n, set.x + r * n_in, out);
        for (size_t o = 0; o < n_out; o++) sum += exp(out[o]);
        for (size_t o = 0; o < n_out; o++) {
            double e = n->kind == XENT ? exp(out[o]) / sum : out[o], got = (double)y[r * n_out + o];
            CHECK(fabs(got - e) <= OUTPUT_TOLERANCE * (1 + fabs(e)),
                  "%s: output %zu of row %zu is %.9g, expected %.9g", what, o, r, got, e);
        }
    }
}

/* Rows below, at and above the batch's size; the last batch ragged. */
static void check_eval(const net *n, pmlp_trainer *trainer, size_t rows, bool both) {
    pmlp_stats stats = {0};
    pmlp_data data = as_data(n, rows);
    size_t hits;
    double loss = net_loss(n, &set, rows, &hits);
    bool labelled = n->kind != MSE_TARGETS || both;
    if (both) data.labels = set.labels, data.targets = set.targets;
    CHECK(pmlp_trainer_eval(trainer, &data, &stats) == PMLP_OK, "%s: %s", what,
          pmlp_trainer_error(trainer)->text);
    CHECK(fabs(stats.loss - loss) <= OUTPUT_TOLERANCE * (1 + loss),
          "%s: eval of %zu: loss %.9g, not %.9g", what, rows, stats.loss, loss);
    double accuracy = labelled ? (double)hits / (double)rows : -1;
    CHECK(fabs(stats.accuracy - accuracy) <= 1e-12, "%s: eval of %zu: accuracy %.9g, not %.9g",
          what, rows, stats.accuracy, accuracy);
    CHECK(stats.rows == rows && stats.total_rows == rows, "%s: eval of %zu: rows %zu of %zu", what,
          rows, stats.rows, stats.total_rows);
}

TEST(predict_and_eval) {
    static const int sizes[] = {9, 18, 12, 33, 6};
    static const size_t rows[] = {1, 5, 16, 17, 48};
    net *n = &reference;
    int number = 0;
    cases = 0;
    for (int h = 0; h < ACTIVATIONS; h++)
        for (int o = 0; o < ACTIVATIONS; o++)
            for (int kind = 0; kind < LOSS_KINDS; kind++, number++) {
                net_shape(4, sizes, activations[h], activations[o], kind);
                describe(n, MAX_ROWS, number);
                set_fill(n, MAX_ROWS);
                pmlp_model *model = model_like(n, 5);
                if (!model) return;
                uint64_t before = 0, after = 1;
                pmlp_trainer_desc desc = {0};
                CHECK(pmlp_model_hash(model, &before, NULL) == PMLP_OK, "%s", what);
                for (int r = 0; r < 5; r++) check_predict(n, model, rows[r]);
                pmlp_trainer *trainer = trainer_for(model, n, 16, number, desc);
                if (trainer)
                    for (int r = 0; r < 5; r++) {
                        check_eval(n, trainer, rows[r], false);
                        if (kind == MSE_TARGETS) check_eval(n, trainer, rows[r], true);
                        cases++;
                    }
                pmlp_trainer_destroy(trainer);
                CHECK(pmlp_model_hash(model, &after, NULL) == PMLP_OK && before == after,
                      "%s: eval or predict changed the weights", what);
                pmlp_model_destroy(model);
            }
    SAY("predict and eval vs double: outputs, loss, accuracy, %s evaluations of 1 to 48 rows",
        test_count(cases));
}

int main(void) {
    test_begin("gradients");
    RUN(every_activation_and_loss);
    RUN(odd_networks);
    RUN(steps);
    RUN(predict_and_eval);
    return test_end();
}
