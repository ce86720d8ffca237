/* Every operation of the CPU back end, for every instruction set of this machine, against triple
   loops in double; and the bits: however rows are cut into calls, the same floats come out.

   cc -std=c99 -O2 tests/test_kernels.c -o test_kernels -lm -lpthread

   Tolerances. U = 2^-24 is the rounding error of a float. A chain of k multiply-adds is off by at
   most (k + 2) U times the sum of the terms' magnitudes: that is a theorem, no number tuned to
   pass. An activation or its derivative may add SLACK, absolutely or relative to its value. */
#define PIPEMLP_IMPLEMENTATION
#include "../pipemlp.h"
#include "test.h"

/* Sizes go up to MAX in every direction, or in one of them to LONG while the others stay small. */
enum { MAX = 65, LONG = 600, BELOW_IN = 5, CANARY_ROWS = 1 };

static const double U = 1.0 / 16777216, SLACK = 5e-7;
static const size_t full_sizes[] = {1, 2, 3, 17, 31, 33, 64, 65};
static const size_t quick_sizes[] = {1, 3, 17, 65};
static const pmlp_activation activations[] = {PMLP_RELU, PMLP_SIGMOID, PMLP_TANH, PMLP_GELU,
                                              PMLP_LINEAR};
enum { ACTIVATIONS = 5 };

/* The back end under test. */
static const pmlp_backend *be;
static void *context;
static const char *isa;
static uint64_t rng;
static test_memory memory;

/* --- references in double -------------------------------------------------------------------- */

static double f(pmlp_activation a, double z) {
    switch (a) {
    case PMLP_RELU: return z > 0 ? z : 0;
    case PMLP_SIGMOID: return 1 / (1 + exp(-z));
    case PMLP_TANH: return tanh(z);
    case PMLP_GELU: return 0.5 * z * erfc(-z * 0.70710678118654752440);
    default: return z;
    }
}

static double f_prime(pmlp_activation a, double z) {
    double s = f(a, z);
    switch (a) {
    case PMLP_RELU: return z > 0 ? 1 : 0;
    case PMLP_SIGMOID: return s * (1 - s);
    case PMLP_TANH: return 1 - s * s;
    case PMLP_GELU:
        return 0.5 * erfc(-z * 0.70710678118654752440) +
               z * 0.39894228040143267794 * exp(-z * z / 2);
    default: return 1;
    }
}

/* Bounds of |f'| and |f''|: how far an error of z reaches. ReLU's jump is dealt with apart. */
static double lipschitz(pmlp_activation a) {
    return a == PMLP_SIGMOID ? 0.25 : a == PMLP_GELU ? 1.13 : 1;
}
static double lipschitz_prime(pmlp_activation a) {
    return a == PMLP_SIGMOID ? 0.1 : a == PMLP_TANH ? 0.77 : a == PMLP_GELU ? 0.8 : 0;
}
static double slack(pmlp_activation a, double value) {
    if (a == PMLP_RELU || a == PMLP_LINEAR) return 0;
    return SLACK * (fabs(value) > 1 ? fabs(value) : 1);
}

static const pmlp_data *as_data(const float *x) {
    static pmlp_data data;
    data.x = x;
    return &data;
}

/* --- a layer and what feeds it --------------------------------------------------------------- */

/* Layer `upper` is the one under test. Its input x comes from forward() of a layer below, because a
   back end may keep more than the outputs in a row, or from input() if `raw`. */
typedef struct stack {
    size_t rows, n_in, n_out;
    pmlp_activation below, activation;
    bool raw;
    void *lower, *upper;
    float *data_x, *x, *y, *dz, *dx; /* buffers, a canary row behind each */
    size_t x_floats, y_floats;       /* of a row of x and dx; of y and dz */
    float w[MAX * MAX], b[LONG];     /* of upper */
    float w_below[LONG * BELOW_IN], b_below[LONG];
    float data[MAX * MAX]; /* host rows of data_x or, if raw, of x */
} stack;

static stack s; /* large, so not on the C stack */

static float *buffer(size_t rows, size_t row_floats) {
    void *p = NULL;
    CHECK(be->alloc(context, (rows + CANARY_ROWS) * row_floats * sizeof(float), &p) == PMLP_OK,
          "%s: alloc of %zu x %zu floats", isa, rows, row_floats);
    return p;
}

static void fill_rows(float *out, size_t rows, size_t n, size_t row_floats) {
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < n; i++) out[r * row_floats + i] = (float)test_uniform(&rng, -1, 1);
}

static void *new_layer(size_t n_in, size_t n_out, pmlp_activation below, pmlp_activation activation,
                       pmlp_optimizer optimizer, bool needs_dx, const float *w, const float *b) {
    pmlp_layer_desc desc = {0};
    void *layer = NULL;
    desc.n_in = n_in, desc.n_out = desc.row_outs = n_out;
    desc.activation = activation, desc.below = below;
    desc.optimizer = optimizer, desc.needs_input_gradient = needs_dx;
    desc.versions = 1;
    CHECK(be->layer_create(context, &desc, &layer) == PMLP_OK, "%s: layer_create", isa);
    CHECK(be->write(context, layer, PMLP_TENSOR_PARAMS, w, b) == PMLP_OK, "%s: write", isa);
    return layer;
}

/* A canary row: what a call must leave alone because it belongs to the next micro-batch. */
static void canary_set(float *rows_end, size_t n) {
    for (size_t i = 0; i < n; i++) rows_end[i] = 12345.0f + (float)i;
}
static bool canary_alive(const float *rows_end, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!(rows_end[i] == 12345.0f + (float)i)) return false;
    return true;
}

static void stack_forward(void) {
    CHECK(be->forward(context, s.upper, 0, s.rows, s.x, s.y) == PMLP_OK, "%s: forward", isa);
    CHECK(be->synchronize(context) == PMLP_OK, "%s: synchronize", isa);
}

static void stack_open(size_t rows, size_t n_in, size_t n_out, bool raw, pmlp_activation below,
                       pmlp_activation activation) {
    s.rows = rows, s.n_in = n_in, s.n_out = n_out, s.raw = raw;
    s.below = raw ? PMLP_LINEAR : below, s.activation = activation;
    s.x_floats = be->row_floats(context, n_in, s.below);
    s.y_floats = be->row_floats(context, n_out, activation);
    CHECK(s.x_floats >= n_in && s.y_floats >= n_out, "%s: row_floats", isa);
    s.x = buffer(rows, s.x_floats), s.dx = buffer(rows, s.x_floats);
    s.y = buffer(rows, s.y_floats), s.dz = buffer(rows, s.y_floats);
    fill_rows(s.w, n_out, n_in, n_in), fill_rows(s.b, 1, n_out, n_out);
    s.upper = new_layer(n_in, n_out, s.below, activation, PMLP_SGD, !raw, s.w, s.b);
    fill_rows(s.dz, rows, n_out, s.y_floats);
    s.lower = NULL, s.data_x = NULL;
    if (raw) {
        fill_rows(s.data, rows, n_in, n_in);
        CHECK(be->input(context, rows, n_in, as_data(s.data), NULL, 0, s.x) == PMLP_OK,
              "%s: input", isa);
    } else {
        fill_rows(s.data, rows, BELOW_IN, BELOW_IN);
        fill_rows(s.w_below, n_in, BELOW_IN, BELOW_IN), fill_rows(s.b_below, 1, n_in, n_in);
        s.data_x = buffer(rows, be->row_floats(context, BELOW_IN, PMLP_LINEAR));
        s.lower =
            new_layer(BELOW_IN, n_in, PMLP_LINEAR, below, PMLP_SGD, false, s.w_below, s.b_below);
        CHECK(be->input(context, rows, BELOW_IN, as_data(s.data), NULL, 0, s.data_x) == PMLP_OK &&
                  be->forward(context, s.lower, 0, rows, s.data_x, s.x) == PMLP_OK,
              "%s: layer below", isa);
    }
    CHECK(be->synchronize(context) == PMLP_OK, "%s: synchronize", isa);
}

static void stack_close(void) {
    be->free(context, s.x), be->free(context, s.dx), be->free(context, s.y),
        be->free(context, s.dz);
    be->layer_destroy(context, s.upper);
    if (s.lower) be->layer_destroy(context, s.lower);
    if (s.data_x) be->free(context, s.data_x);
}

static const char *shape(void) {
    static char text[160];
    snprintf(text, sizeof text, "%s, rows %zu, in %zu, out %zu, %s below, %s", isa, s.rows, s.n_in,
             s.n_out, s.raw ? "data" : pmlp_activation_name(s.below),
             pmlp_activation_name(s.activation));
    return text;
}

/* want and tolerance are [rows][n]; got is [rows][row_floats]. */
static void compare(const char *what, const float *got, size_t row_floats, const double *want,
                    const double *tolerance, size_t rows, size_t n) {
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < n; i++) {
            double g = (double)got[r * row_floats + i], e = want[r * n + i],
                   t = tolerance[r * n + i];
            if (!(fabs(g - e) <= t)) { /* so that NaN fails */
                CHECK(false, "%s[%zu][%zu] is %.9g, expected %.9g +- %.2g; %s", what, r, i, g, e, t,
                      shape());
                return;
            }
        }
    CHECK(true, "%s", what);
}

static bool same_rows(const float *a, const float *b, size_t row_floats, size_t rows, size_t n) {
    for (size_t r = 0; r < rows; r++)
        if (memcmp(a + r * row_floats, b + r * row_floats, n * sizeof(float)) != 0) return false;
    return true;
}

static bool all_zero(const float *values, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!(values[i] == 0)) return false;
    return true;
}

static float zeros[MAX];
static double want[MAX * MAX], tolerance[MAX * MAX];

/* --- the loop over instruction sets and sizes ------------------------------------------------ */

static char isas_seen[128];
static int isas;

/* Runs body once per back end of this machine; the best one, which programs get, comes last. */
static void each_isa(void (*body)(void)) {
    static const char *names[] = {"generic", "sse2", "avx2", "avx512", "neon", NULL};
    isas = 0, isas_seen[0] = 0, rng = 1;
    for (int i = 0; i < 6; i++) {
        be = names[i] ? pmlp_cpu_backend_isa(names[i]) : pmlp_cpu_backend();
        isa = names[i] ? names[i] : "default";
        if (!be) continue;
        pmlp_backend_desc desc = {0};
        pmlp_error error = {0};
        desc.workers = 1;
        test_memory_init(&memory, 0);
        desc.allocator = memory.allocator;
        if (!CHECK(be->open(be, &desc, &context, &error) == PMLP_OK, "%s: %s", isa, error.text))
            continue;
        body();
        be->close(context);
        CHECK(memory.blocks == 0, "%s: %ld blocks leak", isa, memory.blocks);
        size_t used = strlen(isas_seen);
        snprintf(isas_seen + used, sizeof isas_seen - used, "%s%s", isas ? " " : "", isa);
        isas++;
    }
}

static size_t size_count(void) {
    return test_quick() ? 4 : 8;
}
static size_t size_at(size_t i) {
    return test_quick() ? quick_sizes[i] : full_sizes[i];
}

static long shapes;

static void each_shape(void (*body)(size_t rows, size_t n_in, size_t n_out)) {
    for (size_t i = 0; i < size_count(); i++)
        for (size_t j = 0; j < size_count(); j++)
            for (size_t k = 0; k < size_count(); k++, shapes++)
                body(size_at(i), size_at(j), size_at(k));
}

/* --- tables ---------------------------------------------------------------------------------- */

static void check_table(void) {
    CHECK(be->abi == PMLP_BACKEND_ABI, "%s: abi %u", isa, (unsigned)be->abi);
    CHECK(be->size == sizeof *be, "%s: size %u", isa, (unsigned)be->size);
    CHECK(be->name && *be->name, "%s: no name", isa);
    const pmlp_edges *edges = be->edges ? be->edges : pmlp_thread_edges();
    CHECK(edges->abi == PMLP_EDGES_ABI && edges->size == sizeof *edges, "%s: edges", isa);
    CHECK(edges->shared && edges->name && *edges->name, "%s: edges", isa);
}

TEST(tables) {
    each_isa(check_table);
    CHECK(pmlp_cpu_backend() != NULL, "no CPU back end");
    CHECK(pmlp_cpu_backend_isa("generic") != NULL, "plain C must work everywhere");
    CHECK(pmlp_cpu_backend_isa("abacus") == NULL, "unknown instruction set");
    CHECK(pmlp_cpu_backend_isa("") == NULL, "empty name");
    SAY("tables of %d back ends (%s)", isas, isas_seen);
}

/* --- input ----------------------------------------------------------------------------------- */

static float source[(MAX + 9) * MAX];
static uint32_t row_index[MAX];

static void check_input(void) {
    for (size_t i = 0; i < size_count(); i++)
        for (size_t j = 0; j < size_count(); j++)
            for (int indexed = 0; indexed < 2; indexed++, shapes++) {
                size_t rows = size_at(i), n = size_at(j), total = rows + 9, first = 4;
                size_t stride = be->row_floats(context, n, PMLP_LINEAR);
                fill_rows(source, total, n, n);
                for (size_t r = 0; r < rows; r++)
                    row_index[r] = (uint32_t)(test_random(&rng) % total);
                float *x = buffer(rows, stride);
                canary_set(x + rows * stride, stride);
                CHECK(be->input(context, rows, n, as_data(source), indexed ? row_index : NULL,
                                first, x) ==
                              PMLP_OK &&
                          be->synchronize(context) == PMLP_OK,
                      "%s", isa);
                size_t wrong = 0;
                for (size_t r = 0; r < rows; r++) {
                    size_t from = indexed ? row_index[r] : first + r;
                    wrong += memcmp(x + r * stride, source + from * n, n * sizeof(float)) != 0;
                }
                CHECK(wrong == 0, "%s: %zu of %zu rows of %zu wrong, indexed %d", isa, wrong, rows,
                      n, indexed);
                CHECK(canary_alive(x + rows * stride, stride), "%s: wrote behind %zu x %zu", isa,
                      rows, n);
                be->free(context, x);
            }
}

TEST(input) {
    shapes = 0;
    each_isa(check_input);
    SAY("input copies rows, with and without index, %s cases, %d back ends", test_count(shapes),
        isas);
}

/* --- forward --------------------------------------------------------------------------------- */

static void forward_reference(void) {
    for (size_t r = 0; r < s.rows; r++)
        for (size_t o = 0; o < s.n_out; o++) {
            double z = (double)s.b[o], sum = fabs(z);
            for (size_t i = 0; i < s.n_in; i++) {
                double term = (double)s.w[o * s.n_in + i] * (double)s.x[r * s.x_floats + i];
                z += term, sum += fabs(term);
            }
            double y = f(s.activation, z);
            want[r * s.n_out + o] = y;
            tolerance[r * s.n_out + o] =
                lipschitz(s.activation) * ((double)s.n_in + 2) * U * sum + slack(s.activation, y);
        }
}

static void check_forward_shape(size_t rows, size_t n_in, size_t n_out) {
    for (int a = 0; a < ACTIVATIONS; a++) {
        /* what feeds the layer changes with the shape, so that every pair occurs */
        int feed = (int)((rows + n_in + n_out + (size_t)a) % (ACTIVATIONS + 1));
        bool raw = feed == ACTIVATIONS;
        stack_open(rows, n_in, n_out, raw, raw ? PMLP_LINEAR : activations[feed], activations[a]);
        canary_set(s.y + rows * s.y_floats, s.y_floats);
        stack_forward();
        forward_reference();
        compare("y", s.y, s.y_floats, want, tolerance, rows, n_out);
        CHECK(canary_alive(s.y + rows * s.y_floats, s.y_floats), "wrote behind y; %s", shape());
        stack_close();
    }
}
static void check_forward(void) {
    each_shape(check_forward_shape);
}

TEST(forward) {
    shapes = 0;
    each_isa(check_forward);
    SAY("forward vs double, %s shapes x %d activations, %d back ends", test_count(shapes / isas),
        ACTIVATIONS, isas);
}

/* --- activations far out --------------------------------------------------------------------- */

/* One weight of 1, so that z runs over any values: f by forward(), f' by backward_input() of a
   layer above. Rows are taken in blocks of MAX. */
static void check_sweep(void) {
    static const float far[] = {0.0f,   -0.0f,   1e-30f, -1e-30f, 88.0f, -88.0f, 89.0f, -89.0f,
                                104.0f, -104.0f, 1e4f,   -1e4f,   1e19f, -1e19f, 3e38f, -3e38f};
    const size_t n_far = sizeof far / sizeof *far, points = test_quick() ? 640 : 6400;
    const float one = 1, zero = 0;
    size_t data_floats = be->row_floats(context, 1, PMLP_LINEAR);
    for (int a = 0; a < ACTIVATIONS; a++) {
        pmlp_activation act = activations[a];
        size_t x_floats = be->row_floats(context, 1, act);
        void *lower = new_layer(1, 1, PMLP_LINEAR, act, PMLP_SGD, false, &one, &zero);
        void *upper = new_layer(1, 1, act, PMLP_LINEAR, PMLP_SGD, true, &one, &zero);
        float *data = buffer(MAX, data_floats), *x = buffer(MAX, x_floats);
        float *dz = buffer(MAX, data_floats), *dx = buffer(MAX, x_floats);
        for (size_t begin = 0; begin < points + n_far; begin += MAX) {
            float z[MAX];
            for (size_t r = 0; r < MAX; r++) {
                size_t i = begin + r;
                z[r] =
                    i < n_far ? far[i] : (float)(-20 + 40 * (double)(i - n_far) / (double)points);
                dz[r * data_floats] = 1;
            }
            bool ok = be->input(context, MAX, 1, as_data(z), NULL, 0, data) == PMLP_OK &&
                      be->forward(context, lower, 0, MAX, data, x) == PMLP_OK &&
                      be->backward_input(context, upper, 0, MAX, dz, x, dx) == PMLP_OK &&
                      be->synchronize(context) == PMLP_OK;
            CHECK(ok, "%s: %s", isa, pmlp_activation_name(act));
            for (size_t r = 0; r < MAX; r++) {
                double zr = (double)z[r], y = f(act, zr), d = f_prime(act, zr);
                double gy = (double)x[r * x_floats], gd = (double)dx[r * x_floats];
                CHECK(fabs(gy - y) <= slack(act, y), "%s: %s(%.9g) is %.9g, expected %.9g", isa,
                      pmlp_activation_name(act), zr, gy, y);
                CHECK(fabs(gd - d) <= 2 * slack(act, d), "%s: %s'(%.9g) is %.9g, expected %.9g",
                      isa, pmlp_activation_name(act), zr, gd, d);
                shapes++;
            }
        }
        be->free(context, data), be->free(context, x), be->free(context, dz), be->free(context, dx);
        be->layer_destroy(context, lower), be->layer_destroy(context, upper);
    }
}

TEST(activations) {
    shapes = 0;
    each_isa(check_sweep);
    SAY("f and f' from -3e38 to 3e38, %s points, %d back ends", test_count(shapes), isas);
}

/* --- backward_input -------------------------------------------------------------------------- */

static void backward_input_reference(void) {
    for (size_t r = 0; r < s.rows; r++)
        for (size_t i = 0; i < s.n_in; i++) {
            double g = 0, sum = 0, z = (double)s.b_below[i], z_sum = fabs(z);
            for (size_t o = 0; o < s.n_out; o++) {
                double term = (double)s.dz[r * s.y_floats + o] * (double)s.w[o * s.n_in + i];
                g += term, sum += fabs(term);
            }
            for (size_t k = 0; k < BELOW_IN; k++) {
                double term =
                    (double)s.data[r * BELOW_IN + k] * (double)s.w_below[i * BELOW_IN + k];
                z += term, z_sum += fabs(term);
            }
            double d = f_prime(s.below, z), z_off = (BELOW_IN + 2) * U * z_sum;
            if (s.below == PMLP_RELU) d = s.x[r * s.x_floats + i] > 0 ? 1 : 0;
            want[r * s.n_in + i] = g * d;
            tolerance[r * s.n_in + i] =
                fabs(d) * ((double)s.n_out + 3) * U * sum +
                sum * (lipschitz_prime(s.below) * z_off + 2 * slack(s.below, d));
        }
}

static void check_backward_input_shape(size_t rows, size_t n_in, size_t n_out) {
    for (int a = 0; a < ACTIVATIONS; a++) {
        pmlp_activation own = activations[(rows + n_in + n_out + (size_t)a) % ACTIVATIONS];
        stack_open(rows, n_in, n_out, false, activations[a], own);
        canary_set(s.dx + rows * s.x_floats, s.x_floats);
        CHECK(be->backward_input(context, s.upper, 0, rows, s.dz, s.x, s.dx) == PMLP_OK &&
                  be->synchronize(context) == PMLP_OK,
              "%s", shape());
        backward_input_reference();
        compare("dz below", s.dx, s.x_floats, want, tolerance, rows, n_in);
        CHECK(canary_alive(s.dx + rows * s.x_floats, s.x_floats), "wrote behind dx; %s", shape());
        stack_close();
    }
}
static void check_backward_input(void) {
    each_shape(check_backward_input_shape);
}

TEST(backward_input) {
    shapes = 0;
    each_isa(check_backward_input);
    SAY("backward_input vs double, %s shapes x %d activations below, %d back ends",
        test_count(shapes / isas), ACTIVATIONS, isas);
}

/* --- backward_weight ------------------------------------------------------------------------- */

static float dw[MAX * MAX], db[LONG], dw2[MAX * MAX], db2[LONG];
static double db_want[LONG], db_tolerance[LONG];

/* `times` calls over the same rows, each continuing the sums of the one before. */
static void backward_weight_reference(double times) {
    for (size_t o = 0; o < s.n_out; o++) {
        double sum_b = 0, abs_b = 0, chain = times * (double)s.rows + 2;
        for (size_t r = 0; r < s.rows; r++) {
            sum_b += (double)s.dz[r * s.y_floats + o];
            abs_b += fabs((double)s.dz[r * s.y_floats + o]);
        }
        db_want[o] = times * sum_b, db_tolerance[o] = chain * U * times * abs_b;
        for (size_t i = 0; i < s.n_in; i++) {
            double sum = 0, magnitude = 0;
            for (size_t r = 0; r < s.rows; r++) {
                double x = (double)s.x[r * s.x_floats + i];
                sum += (double)s.dz[r * s.y_floats + o] * x;
                magnitude += fabs((double)s.dz[r * s.y_floats + o] * x);
            }
            want[o * s.n_in + i] = times * sum;
            tolerance[o * s.n_in + i] = chain * U * times * magnitude;
        }
    }
}

static void run_backward_weight(bool accumulate) {
    CHECK(be->backward_weight(context, s.upper, s.rows, s.x, s.dz, accumulate) == PMLP_OK &&
              be->synchronize(context) == PMLP_OK,
          "%s", shape());
}
static void read_gradient(float *w, float *b) {
    CHECK(be->read(context, s.upper, PMLP_TENSOR_GRADIENTS, w, b) == PMLP_OK, "%s", shape());
}

static void check_gradient_squares(void) {
    double squares[LONG];
    memset(squares, 0xff, sizeof squares); /* NaN, should one be left out */
    CHECK(be->gradient_squares(context, s.upper, squares) == PMLP_OK &&
              be->synchronize(context) == PMLP_OK,
          "%s", shape());
    for (size_t o = 0; o < s.n_out; o++) {
        /* a float squared is exact in double, so the order decides every bit */
        double sum = 0;
        for (size_t i = 0; i < s.n_in; i++) {
            double g = (double)dw[o * s.n_in + i];
            sum += g * g;
        }
        sum += (double)db[o] * (double)db[o];
        CHECK(squares[o] == sum, "squares[%zu] is %.17g, expected %.17g; %s", o, squares[o], sum,
              shape());
    }
}

static void check_backward_weight_shape(size_t rows, size_t n_in, size_t n_out) {
    int a = (int)((rows + n_in + n_out) % ACTIVATIONS), feed = (int)((rows + n_out) % 6);
    bool raw = feed == ACTIVATIONS;
    stack_open(rows, n_in, n_out, raw, raw ? PMLP_LINEAR : activations[feed], activations[a]);
    run_backward_weight(false);
    for (int times = 1; times <= 2; times++) {
        read_gradient(dw, db);
        backward_weight_reference(times);
        compare("dW", dw, n_in, want, tolerance, n_out, n_in);
        compare("db", db, n_out, db_want, db_tolerance, 1, n_out);
        check_gradient_squares();
        if (times == 1) run_backward_weight(true);
    }
    run_backward_weight(false); /* begins anew: what was there must not show */
    read_gradient(dw, db);
    backward_weight_reference(1);
    compare("dW begun anew", dw, n_in, want, tolerance, n_out, n_in);
    compare("db begun anew", db, n_out, db_want, db_tolerance, 1, n_out);
    /* no rows, begun anew: what the trainer asks for when the first micro-batch is empty */
    s.rows = 0;
    run_backward_weight(false);
    read_gradient(dw, db);
    CHECK(all_zero(dw, n_out * n_in) && all_zero(db, n_out), "no rows, gradient not 0; %s",
          shape());
    stack_close();
}
static void check_backward_weight(void) {
    each_shape(check_backward_weight_shape);
}

TEST(backward_weight) {
    shapes = 0;
    each_isa(check_backward_weight);
    SAY("backward_weight vs double, anew and accumulated, and gradient_squares to the bit, "
        "%s shapes, %d back ends",
        test_count(shapes / isas), isas);
}

/* --- bits ------------------------------------------------------------------------------------ */

/* Cuts the rows into calls: one by one, then at random places. */
static size_t next_cut(int way, size_t begin) {
    size_t left = s.rows - begin;
    return way == 0 ? 1 : 1 + (size_t)(test_random(&rng) % (left < 9 ? left : way == 1 ? 9 : left));
}

static void check_cuts_shape(size_t rows, size_t n_in, size_t n_out) {
    int a = (int)((rows + n_in + n_out) % ACTIVATIONS), feed = (int)((rows + 2 * n_out) % 6);
    bool raw = feed == ACTIVATIONS;
    stack_open(rows, n_in, n_out, raw, raw ? PMLP_LINEAR : activations[feed], activations[a]);
    float *x = buffer(rows, s.x_floats), *y = buffer(rows, s.y_floats);
    float *dx = buffer(rows, s.x_floats);
    size_t data_n = raw ? n_in : BELOW_IN;
    size_t data_floats = be->row_floats(context, data_n, PMLP_LINEAR);
    float *data_x = raw ? x : buffer(rows, data_floats);
    stack_forward();
    if (!raw)
        CHECK(be->backward_input(context, s.upper, 0, rows, s.dz, s.x, s.dx) == PMLP_OK, "%s",
              shape());
    run_backward_weight(false);
    read_gradient(dw, db);
    for (int way = 0; way < 3; way++) {
        for (size_t i = 0, n; i < rows; i += n) {
            n = next_cut(way, i);
            bool ok =
                be->input(context, n, data_n, as_data(s.data), NULL, i,
                          data_x + i * data_floats) == PMLP_OK;
            if (!raw)
                ok = ok && be->forward(context, s.lower, 0, n, data_x + i * data_floats,
                                       x + i * s.x_floats) == PMLP_OK;
            ok = ok && be->forward(context, s.upper, 0, n, x + i * s.x_floats, y + i * s.y_floats) ==
                           PMLP_OK;
            if (!raw)
                ok = ok && be->backward_input(context, s.upper, 0, n, s.dz + i * s.y_floats,
                                              x + i * s.x_floats, dx + i * s.x_floats) == PMLP_OK;
            ok = ok && be->backward_weight(context, s.upper, n, x + i * s.x_floats,
                                           s.dz + i * s.y_floats, i > 0) == PMLP_OK;
            CHECK(ok && be->synchronize(context) == PMLP_OK, "%s", shape());
        }
        read_gradient(dw2, db2);
        CHECK(same_rows(s.x, x, s.x_floats, rows, n_in), "x differs, way %d; %s", way, shape());
        CHECK(same_rows(s.y, y, s.y_floats, rows, n_out), "y differs, way %d; %s", way, shape());
        CHECK(raw || same_rows(s.dx, dx, s.x_floats, rows, n_in), "dx differs, way %d; %s", way,
              shape());
        CHECK(memcmp(dw, dw2, n_out * n_in * sizeof *dw) == 0, "dW differs, way %d; %s", way,
              shape());
        CHECK(memcmp(db, db2, n_out * sizeof *db) == 0, "db differs, way %d; %s", way, shape());
    }
    be->free(context, x), be->free(context, y), be->free(context, dx);
    if (!raw) be->free(context, data_x);
    stack_close();
}
static void check_cuts(void) {
    each_shape(check_cuts_shape);
}

TEST(cuts) {
    shapes = 0;
    each_isa(check_cuts);
    SAY("x, y, dx, dW, db: equal bits however the rows are cut, %s shapes x 3 cuts, %d back ends",
        test_count(shapes / isas), isas);
}

/* --- part of a layer ------------------------------------------------------------------------- */

/* Outputs [first, first + n) of upper as a layer of its own. */
static void *slice_layer(size_t first, size_t n) {
    pmlp_layer_desc desc = {0};
    void *layer = NULL;
    desc.n_in = s.n_in, desc.n_out = n, desc.first_out = first, desc.row_outs = s.n_out;
    desc.activation = s.activation, desc.below = PMLP_LINEAR, desc.optimizer = PMLP_SGD;
    desc.versions = 1;
    CHECK(be->layer_create(context, &desc, &layer) == PMLP_OK &&
              be->write(context, layer, PMLP_TENSOR_PARAMS, s.w + first * s.n_in, s.b + first) ==
                  PMLP_OK,
          "%s", shape());
    return layer;
}

/* A layer computed in parts of `step` outputs, the last part smaller, must give the bits of the
   whole: y, what the layer above makes of y and of what may be kept beside it, dW, db, squares. */
static void check_slices_shape(size_t rows, size_t n_in, size_t n_out) {
    enum { ABOVE = 3 };
    const int a = (int)((rows + n_in + n_out) % ACTIVATIONS);
    for (size_t step = PMLP_COLUMN_STEP; step < n_out; step += PMLP_COLUMN_STEP) {
        double squares[MAX], part_squares[MAX];
        float above_w[ABOVE * MAX];
        stack_open(rows, n_in, n_out, true, PMLP_LINEAR, activations[a]);
        fill_rows(above_w, ABOVE, n_out, n_out);
        void *above =
            new_layer(n_out, ABOVE, activations[a], PMLP_LINEAR, PMLP_SGD, true, above_w, zeros);
        float *y = buffer(rows, s.y_floats), *dx = buffer(rows, s.y_floats);
        float *dx2 = buffer(rows, s.y_floats);
        float *dz_above = buffer(rows, be->row_floats(context, ABOVE, PMLP_LINEAR));
        fill_rows(dz_above, rows, ABOVE, be->row_floats(context, ABOVE, PMLP_LINEAR));
        stack_forward(), run_backward_weight(false), read_gradient(dw, db);
        bool ok = be->gradient_squares(context, s.upper, squares) == PMLP_OK;
        for (size_t first = 0; first < n_out; first += step) {
            const size_t n = n_out - first < step ? n_out - first : step;
            void *part = slice_layer(first, n);
            ok = ok && be->forward(context, part, 0, rows, s.x, y) == PMLP_OK &&
                 be->backward_weight(context, part, rows, s.x, s.dz, false) == PMLP_OK &&
                 be->gradient_squares(context, part, part_squares + first) == PMLP_OK &&
                 be->read(context, part, PMLP_TENSOR_GRADIENTS, dw2 + first * n_in, db2 + first) ==
                     PMLP_OK;
            be->layer_destroy(context, part);
        }
        ok = ok && be->backward_input(context, above, 0, rows, dz_above, s.y, dx) == PMLP_OK &&
             be->backward_input(context, above, 0, rows, dz_above, y, dx2) == PMLP_OK &&
             be->synchronize(context) == PMLP_OK;
        CHECK(ok, "%s", shape());
        CHECK(same_rows(s.y, y, s.y_floats, rows, n_out), "y, step %zu; %s", step, shape());
        CHECK(same_rows(dx, dx2, s.y_floats, rows, n_out), "dz below, step %zu; %s", step, shape());
        CHECK(!memcmp(dw, dw2, n_out * n_in * sizeof *dw), "dW, step %zu; %s", step, shape());
        CHECK(!memcmp(db, db2, n_out * sizeof *db), "db, step %zu; %s", step, shape());
        CHECK(!memcmp(squares, part_squares, n_out * sizeof *squares), "squares, step %zu; %s",
              step, shape());
        be->free(context, y), be->free(context, dx), be->free(context, dx2);
        be->free(context, dz_above), be->layer_destroy(context, above);
        stack_close();
        shapes++;
    }
}
static void check_slices(void) {
    for (size_t i = 0; i < size_count(); i++)
        for (size_t j = 0; j < size_count(); j++)
            for (size_t n_out = 33; n_out <= MAX; n_out += n_out == 33 ? 31 : 1)
                check_slices_shape(size_at(i), size_at(j), n_out);
}

TEST(slices) {
    shapes = 0;
    each_isa(check_slices);
    SAY("a layer in parts: y, what lies above, dW, db, squares: equal bits, %s cases, %d back ends",
        test_count(shapes), isas);
}

/* --- long chains ------------------------------------------------------------------------------ */

/* A kernel may take a long sum in blocks; each of rows, n_in and n_out is a sum's length once. */
static void check_long(void) {
    static const size_t far[] = {255, 256, 257, 512, 513, LONG}, few[] = {1, 3, 7};
    for (size_t i = 0; i < 6 * 3 * 3 * 3; i++) {
        const size_t size[] = {far[i % 6], few[i / 6 % 3], few[i / 18 % 3]}, turn = i / 54;
        const size_t rows = size[turn], n_in = size[(turn + 1) % 3], n_out = size[(turn + 2) % 3];
        if (test_quick() && (i % 6 + i / 6) % 6 != 5) continue;
        check_forward_shape(rows, n_in, n_out);
        check_backward_input_shape(rows, n_in, n_out);
        check_backward_weight_shape(rows, n_in, n_out);
        check_cuts_shape(rows, n_in, n_out);
        shapes++;
    }
}

TEST(long_chains) {
    shapes = 0;
    each_isa(check_long);
    SAY("the same with one side of 255 to %d: %s shapes, %d back ends", LONG,
        test_count(shapes / isas), isas);
}

/* --- loss ------------------------------------------------------------------------------------ */

enum { LOSS_XENT, LOSS_MSE_LABELS, LOSS_MSE_TARGETS, LOSS_KINDS };

static float targets[(MAX + 9) * MAX], identity[MAX * MAX];
static int labels[MAX + 9];

/* y of one row, in double: row_loss, and dz before the scale. Returns the hit. */
static bool loss_reference(int kind, pmlp_activation act, size_t n, const float *y, const float *z,
                           const float *t, int label, double *loss, double *dz) {
    size_t best = 0;
    double sum = 0;
    for (size_t i = 1; i < n; i++)
        if (y[i] > y[best]) best = i;
    for (size_t i = 0; i < n; i++) sum += exp((double)y[i] - (double)y[best]);
    *loss = kind == LOSS_XENT ? log(sum) + (double)y[best] - (double)y[label] : 0;
    for (size_t i = 0; i < n; i++) {
        double hot = (size_t)label == i, goal = kind == LOSS_MSE_TARGETS ? (double)t[i] : hot;
        double miss = (double)y[i] - goal;
        if (kind == LOSS_XENT)
            miss = exp((double)y[i] - (double)y[best]) / sum - hot;
        else
            *loss += 0.5 * miss * miss;
        dz[i] = miss * f_prime(act, (double)z[i]);
    }
    return best == (size_t)label;
}

/* The layer is the identity, so that z is whatever data says. */
static void check_loss_case(int kind, pmlp_activation act, size_t rows, size_t n, bool indexed,
                            double reach) {
    const size_t total = rows + 9, first = 5, floats = be->row_floats(context, n, act);
    const float scale = 1.0f / (float)(rows + 3);
    static float z[MAX * MAX];
    double row_loss[MAX], loss, dz_row[MAX], eval_loss[MAX];
    unsigned char row_hit[MAX], eval_hit[MAX];
    float *x = buffer(rows, be->row_floats(context, n, PMLP_LINEAR));
    float *y = buffer(rows, floats), *dz = buffer(rows, floats);
    void *layer = new_layer(n, n, PMLP_LINEAR, act, PMLP_SGD, false, identity, zeros);
    pmlp_data data = {0};
    pmlp_loss_args args = {0};

    fill_rows(targets, total, n, n);
    for (size_t i = 0; i < rows * n; i++) z[i] = (float)test_uniform(&rng, -reach, reach);
    for (size_t r = 0; r < total; r++) labels[r] = (int)(test_random(&rng) % n);
    for (size_t r = 0; r < rows; r++) row_index[r] = (uint32_t)(test_random(&rng) % total);
    data.rows = total;
    if (kind == LOSS_MSE_TARGETS)
        data.targets = targets;
    else
        data.labels = labels;
    args.loss = kind == LOSS_XENT ? PMLP_LOSS_XENT : PMLP_LOSS_MSE;
    args.rows = rows, args.y = y, args.data = &data;
    args.index = indexed ? row_index : NULL, args.first = first;
    args.scale = scale, args.dz = dz, args.row_loss = row_loss, args.row_hit = row_hit;
    canary_set(dz + rows * floats, floats);
    bool ok = be->input(context, rows, n, as_data(z), NULL, 0, x) == PMLP_OK &&
              be->forward(context, layer, 0, rows, x, y) == PMLP_OK &&
              be->loss(context, layer, &args) == PMLP_OK;
    args.dz = NULL, args.row_loss = eval_loss, args.row_hit = eval_hit;
    ok = ok && be->loss(context, layer, &args) == PMLP_OK && be->synchronize(context) == PMLP_OK;
    CHECK(ok, "%s: loss", isa);

    for (size_t r = 0; r < rows; r++) {
        size_t from = indexed ? row_index[r] : first + r;
        bool hit = loss_reference(kind, act, n, y + r * floats, z + r * n, targets + from * n,
                                  labels[from], &loss, dz_row);
        const double chain = ((double)n + 10) * U;
        CHECK(fabs(row_loss[r] - loss) <= (2e-6 + chain) * (1 + fabs(loss)),
              "%s: loss %d, %s, rows %zu, n %zu, reach %g, index %d: row %zu is %.9g, not %.9g",
              isa, kind, pmlp_activation_name(act), rows, n, reach, indexed, r, row_loss[r], loss);
        CHECK(row_loss[r] == eval_loss[r], "%s: evaluation gives another loss", isa);
        if (kind != LOSS_MSE_TARGETS) {
            CHECK((row_hit[r] != 0) == hit, "%s: hit of row %zu of %zu, n %zu", isa, r, rows, n);
            CHECK(row_hit[r] == eval_hit[r] && row_hit[r] <= 1, "%s: evaluation's hit", isa);
        }
        for (size_t i = 0; i < n; i++) {
            double got = (double)dz[r * floats + i], e = (double)scale * dz_row[i];
            double miss = kind == LOSS_XENT ? 1 : 1 + fabs((double)y[r * floats + i]);
            double t = (double)scale * (miss * (2 * slack(act, 1) + chain) + chain);
            CHECK(fabs(got - e) <= t,
                  "%s: loss %d, %s, rows %zu, n %zu: dz[%zu][%zu] is %.9g, not %.9g", isa, kind,
                  pmlp_activation_name(act), rows, n, r, i, got, e);
        }
    }
    CHECK(canary_alive(dz + rows * floats, floats), "%s: wrote behind dz", isa);
    be->free(context, x), be->free(context, y), be->free(context, dz);
    be->layer_destroy(context, layer);
    shapes++;
}

static void check_loss(void) {
    for (size_t i = 0; i < size_count(); i++)
        for (size_t j = 0; j < size_count(); j++) {
            size_t n = size_at(j);
            memset(identity, 0, sizeof identity);
            for (size_t k = 0; k < n; k++) identity[k * n + k] = 1;
            for (int kind = 0; kind < LOSS_KINDS; kind++)
                for (int a = 0; a < ACTIVATIONS; a++)
                    for (int indexed = 0; indexed < 2; indexed++)
                        check_loss_case(kind, activations[a], size_at(i), n, indexed != 0, 4);
            check_loss_case(LOSS_XENT, PMLP_LINEAR, size_at(i), n, false, 1e4);
            check_loss_case(LOSS_XENT, PMLP_LINEAR, size_at(i), n, false, 1e30);
            check_loss_case(LOSS_XENT, PMLP_LINEAR, size_at(i), n, true, 3e38);
        }
}

TEST(loss) {
    shapes = 0;
    each_isa(check_loss);
    SAY("loss, dz, hits: %d kinds x %d activations, logits up to 3e38, %s cases, %d back ends",
        LOSS_KINDS, ACTIVATIONS, test_count(shapes), isas);
}

/* --- update ---------------------------------------------------------------------------------- */

static const pmlp_optimizer optimizers[] = {PMLP_SGD, PMLP_MOMENTUM, PMLP_NESTEROV, PMLP_ADAM,
                                            PMLP_ADAMW};

/* One parameter and its moments, in double. */
static void update_reference(const pmlp_update_args *args, bool decays, double g, double *w,
                             double *m, double *v) {
    double lr = (double)args->learning_rate, decay = decays ? (double)args->weight_decay : 0;
    double mu = (double)args->momentum, b1 = (double)args->beta1, b2 = (double)args->beta2;
    double t = (double)args->step;
    g *= (double)args->gradient_scale;
    if (args->optimizer == PMLP_ADAMW)
        *w -= lr * decay * *w;
    else
        g += decay * *w;
    switch (args->optimizer) {
    case PMLP_MOMENTUM: *m = mu * *m + g, *w -= lr * *m; break;
    case PMLP_NESTEROV: *m = mu * *m + g, *w -= lr * (g + mu * *m); break;
    case PMLP_ADAM:
    case PMLP_ADAMW:
        *m = b1 * *m + (1 - b1) * g, *v = b2 * *v + (1 - b2) * g * g;
        *w -= lr * (*m / (1 - pow(b1, t))) / (sqrt(*v / (1 - pow(b2, t))) + (double)args->epsilon);
        break;
    default: *w -= lr * g; break;
    }
}

/* Index MAX * MAX and up: the biases. */
enum { ALL = MAX * MAX + MAX, STEPS = 6 };
static double ref_w[ALL], ref_m[ALL], ref_v[ALL];
static float host_w[ALL], host_g[ALL], got[ALL];

/* True where a layer of this size has a parameter. */
static bool used(size_t i, size_t n_in, size_t n_out) {
    return i < MAX * MAX ? i < n_in * n_out : i - MAX * MAX < n_out;
}

static void compare_tensor(void *layer, pmlp_tensor tensor, const double *ref, double relative,
                           double absolute, size_t n_in, size_t n_out, const char *what) {
    memset(got, 0xff, sizeof got);
    CHECK(be->read(context, layer, tensor, got, got + MAX * MAX) == PMLP_OK, "%s: read", isa);
    for (size_t i = 0; i < ALL; i++) {
        if (!used(i, n_in, n_out)) continue;
        double g = (double)got[i], allowed = relative * fabs(ref[i]) + absolute;
        if (fabs(g - ref[i]) <= allowed) continue; /* NaN goes on to the failure */
        CHECK(false, "%s: %s, element %zu of %zu x %zu: tensor %d is %.9g, expected %.9g", isa,
              what, i, n_out, n_in, (int)tensor, g, ref[i]);
        return;
    }
    CHECK(true, "%s", what);
}

static void check_update_case(size_t n_in, size_t n_out, const pmlp_update_args *given) {
    pmlp_update_args args = *given;
    fill_rows(host_w, 1, n_in * n_out, 0), fill_rows(host_w + MAX * MAX, 1, n_out, 0);
    void *layer = new_layer(n_in, n_out, PMLP_LINEAR, PMLP_LINEAR, args.optimizer, false, host_w,
                            host_w + MAX * MAX);
    char what[80];
    for (size_t i = 0; i < ALL; i++) ref_w[i] = (double)host_w[i], ref_m[i] = ref_v[i] = 0;
    for (args.step = 1; args.step <= STEPS; args.step++) {
        args.learning_rate = given->learning_rate / (float)args.step; /* may change at any step */
        for (size_t i = 0; i < ALL; i++) {
            if (!used(i, n_in, n_out)) continue;
            /* away from 0, where Adam jumps, and large enough not to cancel against the decay */
            double sign = test_random(&rng) & 1 ? 1 : -1;
            host_g[i] = (float)(sign * test_uniform(&rng, 0.3, 1));
            update_reference(&args, i < MAX * MAX, (double)host_g[i], &ref_w[i], &ref_m[i],
                             &ref_v[i]);
        }
        CHECK(be->write(context, layer, PMLP_TENSOR_GRADIENTS, host_g, host_g + MAX * MAX) ==
                      PMLP_OK &&
                  be->update(context, layer, &args) == PMLP_OK &&
                  be->synchronize(context) == PMLP_OK,
              "%s: update", isa);
        snprintf(what, sizeof what, "%s, decay %g, step %d", pmlp_optimizer_name(args.optimizer),
                 (double)args.weight_decay, (int)args.step);
        /* a few roundings a step of w and of the change of w, which is about lr in Adam */
        double steps = (double)args.step, lr = (double)given->learning_rate;
        compare_tensor(layer, PMLP_TENSOR_PARAMS, ref_w, 4 * U * steps, 64 * U * lr * steps, n_in,
                       n_out, what);
        compare_tensor(layer, PMLP_TENSOR_MOMENT1, ref_m, 8 * U, 8 * U * steps, n_in, n_out, what);
        compare_tensor(layer, PMLP_TENSOR_MOMENT2, ref_v, 32 * U * steps, 0, n_in, n_out, what);
    }
    be->layer_destroy(context, layer);
    shapes++;
}

static void check_update(void) {
    for (size_t i = 0; i < size_count(); i++)
        for (size_t j = 0; j < size_count(); j++)
            for (int o = 0; o < 5; o++)
                for (int variant = 0; variant < 4; variant++) {
                    pmlp_update_args args = {0};
                    args.optimizer = optimizers[o];
                    args.learning_rate = o < 3 ? 0.1f : 0.01f;
                    args.momentum = 0.9f, args.beta1 = 0.9f, args.beta2 = 0.999f;
                    args.epsilon = 1e-8f, args.weight_decay = variant & 1 ? 0.05f : 0;
                    args.gradient_scale = variant & 2 ? 0.37f : 1;
                    check_update_case(size_at(i), size_at(j), &args);
                }
}

TEST(update) {
    shapes = 0;
    each_isa(check_update);
    SAY("update vs double: 5 optimizers, decay, clipping, %d steps, %s cases, %d back ends", STEPS,
        test_count(shapes), isas);
}

/* A back end may keep the weights packed: what update() and write() changed must reach forward()
   and backward_input(). */
static void check_fresh_shape(size_t rows, size_t n_in, size_t n_out) {
    static float g[MAX * MAX];
    stack_open(rows, n_in, n_out, false, PMLP_TANH, PMLP_LINEAR);
    for (int way = 0; way < 3; way++) {
        pmlp_result result = PMLP_OK;
        fill_rows(g, n_out, n_in, n_in);
        if (way == 0) {
            pmlp_update_args args = {0};
            args.optimizer = PMLP_SGD, args.learning_rate = args.gradient_scale = 1, args.step = 1;
            result = be->write(context, s.upper, PMLP_TENSOR_GRADIENTS, g, g);
            if (result == PMLP_OK) result = be->update(context, s.upper, &args);
        } else {
            const float *w = way == 1 ? g : NULL, *b = way == 1 ? NULL : g;
            result = be->write(context, s.upper, PMLP_TENSOR_PARAMS, w, b);
            if (w) memcpy(s.w, w, n_in * n_out * sizeof *w);
            if (b) memcpy(s.b, b, n_out * sizeof *b);
        }
        CHECK(result == PMLP_OK, "way %d; %s", way, shape());
        if (way == 0)
            CHECK(be->read(context, s.upper, PMLP_TENSOR_PARAMS, s.w, s.b) == PMLP_OK, "%s",
                  shape());
        stack_forward();
        forward_reference();
        compare("y after a change", s.y, s.y_floats, want, tolerance, rows, n_out);
        CHECK(be->backward_input(context, s.upper, 0, rows, s.dz, s.x, s.dx) == PMLP_OK &&
                  be->synchronize(context) == PMLP_OK,
              "%s", shape());
        backward_input_reference();
        compare("dz below after a change", s.dx, s.x_floats, want, tolerance, rows, n_in);
    }
    stack_close();
}
static void check_fresh(void) {
    each_shape(check_fresh_shape);
}

TEST(fresh) {
    shapes = 0;
    each_isa(check_fresh);
    SAY("forward and backward_input see updated and written weights, %s shapes, %d back ends",
        test_count(shapes / isas), isas);
}

/* --- W and U in one ---------------------------------------------------------------------------- */

/* update() that is given the last rows of W leaves the same bits as backward_weight() of these rows
   and then update(): weights, moments, transposed weights; for every way to cut the rows, into the
   same place or another version, for all of a layer or some of its outputs. */
static void check_fused_case(size_t rows, size_t n_in, size_t n_out, pmlp_optimizer optimizer,
                             size_t first_out) {
    enum { WAYS = 4 };
    static float w[2][MAX * MAX], b[2][MAX];
    pmlp_layer_desc desc = {0};
    pmlp_update_args args = {0};
    void *layers[2] = {NULL, NULL};
    char what[120];
    desc.n_in = n_in, desc.n_out = n_out, desc.first_out = first_out;
    desc.row_outs = n_out + first_out, desc.activation = desc.below = PMLP_RELU;
    desc.optimizer = optimizer, desc.needs_input_gradient = true, desc.versions = 2;
    const size_t x_row = be->row_floats(context, n_in, PMLP_RELU);
    const size_t dz_row = be->row_floats(context, desc.row_outs, PMLP_RELU);
    float *x = buffer(rows, x_row), *dz = buffer(rows, dz_row);
    float *dx[2] = {buffer(rows, x_row), buffer(rows, x_row)};
    fill_rows(w[0], 1, n_in * n_out, 0), fill_rows(b[0], 1, n_out, 0);
    for (int k = 0; k < 2; k++)
        CHECK(be->layer_create(context, &desc, &layers[k]) == PMLP_OK &&
                  be->write(context, layers[k], PMLP_TENSOR_PARAMS, w[0], b[0]) == PMLP_OK,
              "%s: layer", isa);
    args.optimizer = optimizer, args.learning_rate = 0.1f, args.momentum = 0.9f;
    args.beta1 = 0.9f, args.beta2 = 0.999f, args.epsilon = 1e-8f, args.weight_decay = 0.01f;
    for (int way = 0; way < WAYS; way++) {
        const size_t before = way == 0 ? 0 : way == 1 ? rows : way == 2 ? rows / 2 : rows / 3;
        fill_rows(x, rows, n_in, x_row), fill_rows(dz, rows, desc.row_outs, dz_row);
        args.step = (uint64_t)way + 1, args.gradient_scale = way & 1 ? 0.5f : 1;
        args.from = way / 2, args.to = way == 1 ? 1 : args.from;
        bool ok = be->backward_weight(context, layers[0], rows, x, dz, false) == PMLP_OK &&
                  be->update(context, layers[0], &args) == PMLP_OK;
        if (before > 0)
            ok = ok && be->backward_weight(context, layers[1], before, x, dz, false) == PMLP_OK;
        args.rows = rows - before, args.x = x + before * x_row, args.dz = dz + before * dz_row;
        args.anew = before == 0;
        ok = ok && be->update(context, layers[1], &args) == PMLP_OK;
        args.rows = 0, args.anew = false;
        for (int k = 0; k < 2; k++)
            ok = ok &&
                 be->backward_input(context, layers[k], args.to, rows, dz, x, dx[k]) == PMLP_OK;
        snprintf(what, sizeof what, "%s, %s, %zu rows, %zu before, %zu x %zu, outputs from %zu", isa,
                 pmlp_optimizer_name(optimizer), rows, before, n_out, n_in, first_out);
        CHECK(ok && !memcmp(dx[0], dx[1], rows * x_row * sizeof(float)), "%s: dX", what);
        for (int tensor = 0; tensor < PMLP_TENSOR_COUNT; tensor++) {
            if (tensor == PMLP_TENSOR_GRADIENTS) continue;
            for (int k = 0; k < 2; k++)
                ok = ok && be->read(context, layers[k], (pmlp_tensor)tensor, w[k], b[k]) == PMLP_OK;
            CHECK(ok && !memcmp(w[0], w[1], n_in * n_out * sizeof(float)) &&
                      !memcmp(b[0], b[1], n_out * sizeof(float)),
                  "%s: tensor %d", what, tensor);
        }
        shapes++;
    }
    be->layer_destroy(context, layers[0]), be->layer_destroy(context, layers[1]);
    be->free(context, x), be->free(context, dz);
    be->free(context, dx[0]), be->free(context, dx[1]);
}

static void check_fused(void) {
    static const size_t rows[] = {0, 1, 7, 32, 201, 450}, sides[] = {1, 12, 13, 29, 33};
    static const pmlp_optimizer optimizers[] = {PMLP_SGD, PMLP_MOMENTUM, PMLP_NESTEROV, PMLP_ADAM,
                                                PMLP_ADAMW};
    for (int r = 0; r < 6; r++)
        for (int i = 0; i < 5; i++)
            for (int o = 0; o < 5; o++)
                check_fused_case(rows[r], sides[i], sides[(i + o) % 5], optimizers[o],
                                 (size_t)(o % 3));
}

TEST(fused) {
    shapes = 0;
    each_isa(check_fused);
    SAY("update that does the last W itself: as if apart, 5 optimizers, %s cases, %d back ends",
        test_count(shapes), isas);
}

/* --- versions -------------------------------------------------------------------------------- */

/* Several versions of the weights: each update reads one and writes another, and leaves all others
   as they were, for forward() and for backward_input(); read and write mean the one written last. A
   layer with one version of those weights is what to compare with. */
static void check_versions_shape(size_t rows, size_t n_in, size_t n_out) {
    enum { VERSIONS = 3 };
    static float g[MAX * MAX], w[VERSIONS][MAX * MAX], b[VERSIONS][MAX], got_w[MAX * MAX], got_b[MAX];
    pmlp_layer_desc desc = {0};
    void *layer = NULL;
    stack_open(rows, n_in, n_out, false, PMLP_TANH, PMLP_SIGMOID);
    float *y = buffer(rows, s.y_floats), *dx = buffer(rows, s.x_floats);
    desc.n_in = n_in, desc.n_out = desc.row_outs = n_out, desc.activation = s.activation;
    desc.below = s.below, desc.needs_input_gradient = true, desc.versions = VERSIONS;
    desc.optimizer = PMLP_MOMENTUM;
    CHECK(be->layer_create(context, &desc, &layer) == PMLP_OK &&
              be->write(context, layer, PMLP_TENSOR_PARAMS, s.w, s.b) == PMLP_OK,
          "%s", shape());
    memcpy(w[0], s.w, sizeof w[0]), memcpy(b[0], s.b, n_out * sizeof(float));
    for (int step = 1; step <= 2 * VERSIONS; step++) {
        pmlp_update_args args = {0};
        const int from = (step - 1) % VERSIONS, to = step % VERSIONS;
        args.optimizer = PMLP_MOMENTUM, args.momentum = 0.9f, args.learning_rate = 0.1f;
        args.gradient_scale = 1, args.step = (uint64_t)step, args.from = from, args.to = to;
        fill_rows(g, n_out, n_in, n_in);
        bool ok = be->write(context, layer, PMLP_TENSOR_GRADIENTS, g, g) == PMLP_OK &&
                  be->update(context, layer, &args) == PMLP_OK &&
                  be->read(context, layer, PMLP_TENSOR_PARAMS, w[to], b[to]) == PMLP_OK;
        CHECK(ok && memcmp(w[to], w[from], n_in * n_out * sizeof(float)), "step %d; %s", step,
              shape());
        if (step == VERSIONS) { /* what is written by hand counts as the latest, too */
            fill_rows(w[to], n_out, n_in, n_in);
            CHECK(be->write(context, layer, PMLP_TENSOR_PARAMS, w[to], NULL) == PMLP_OK &&
                      be->read(context, layer, PMLP_TENSOR_PARAMS, got_w, got_b) == PMLP_OK &&
                      !memcmp(got_w, w[to], n_in * n_out * sizeof(float)) &&
                      !memcmp(got_b, b[to], n_out * sizeof(float)),
                  "written and read; %s", shape());
        }
        for (int v = 0; v <= step && v < VERSIONS; v++) { /* those that there are */
            ok = be->write(context, s.upper, PMLP_TENSOR_PARAMS, w[v], b[v]) == PMLP_OK &&
                 be->forward(context, s.upper, 0, rows, s.x, s.y) == PMLP_OK &&
                 be->forward(context, layer, v, rows, s.x, y) == PMLP_OK &&
                 be->backward_input(context, s.upper, 0, rows, s.dz, s.x, s.dx) == PMLP_OK &&
                 be->backward_input(context, layer, v, rows, s.dz, s.x, dx) == PMLP_OK &&
                 be->synchronize(context) == PMLP_OK;
            for (size_t r = 0; r < rows; r++)
                ok = ok && !memcmp(y + r * s.y_floats, s.y + r * s.y_floats, n_out * sizeof *y) &&
                     !memcmp(dx + r * s.x_floats, s.dx + r * s.x_floats, n_in * sizeof *dx);
            CHECK(ok, "%s: step %d, version %d; %s", isa, step, v, shape());
        }
    }
    be->layer_destroy(context, layer);
    be->free(context, y), be->free(context, dx);
    stack_close();
}
static void check_versions(void) {
    each_shape(check_versions_shape);
}

TEST(versions) {
    shapes = 0;
    each_isa(check_versions);
    SAY("three versions of the weights, each as if it were alone, %s shapes, %d back ends",
        test_count(shapes / isas), isas);
}

/* --- tensors --------------------------------------------------------------------------------- */

static void check_round_trip(size_t n_in, size_t n_out, pmlp_optimizer optimizer) {
    const size_t n = n_in * n_out;
    const bool first = optimizer != PMLP_SGD;
    const bool second = optimizer == PMLP_ADAM || optimizer == PMLP_ADAMW;
    static float kept[PMLP_TENSOR_COUNT][ALL];
    fill_rows(host_w, 1, ALL, ALL);
    void *layer = new_layer(n_in, n_out, PMLP_LINEAR, PMLP_LINEAR, optimizer, true, host_w,
                            host_w + MAX * MAX);
    for (int t = PMLP_TENSOR_MOMENT1; t < PMLP_TENSOR_COUNT; t++)
        CHECK(be->read(context, layer, (pmlp_tensor)t, got, got + MAX * MAX) == PMLP_OK &&
                  all_zero(got, n) && all_zero(got + MAX * MAX, n_out),
              "%s: moment %d of %zu x %zu does not begin at 0", isa, t, n_out, n_in);
    for (int t = 0; t < PMLP_TENSOR_COUNT; t++) { /* w and b each on their own */
        fill_rows(kept[t], 1, ALL, ALL);
        CHECK(be->write(context, layer, (pmlp_tensor)t, kept[t], NULL) == PMLP_OK &&
                  be->write(context, layer, (pmlp_tensor)t, NULL, kept[t] + MAX * MAX) == PMLP_OK &&
                  be->write(context, layer, (pmlp_tensor)t, NULL, NULL) == PMLP_OK,
              "%s: write of tensor %d", isa, t);
    }
    for (int t = 0; t < PMLP_TENSOR_COUNT; t++) {
        bool has = t < PMLP_TENSOR_MOMENT1 || (t == PMLP_TENSOR_MOMENT1 ? first : second);
        memset(got, 0xff, sizeof got);
        CHECK(be->read(context, layer, (pmlp_tensor)t, got, NULL) == PMLP_OK, "%s: read", isa);
        CHECK(memcmp(got + MAX * MAX, got + MAX * MAX + 1, sizeof(float)) == 0, "%s: b touched",
              isa);
        CHECK(be->read(context, layer, (pmlp_tensor)t, NULL, got + MAX * MAX) == PMLP_OK,
              "%s: read", isa);
        bool same = memcmp(got, kept[t], n * sizeof *got) == 0 &&
                    memcmp(got + MAX * MAX, kept[t] + MAX * MAX, n_out * sizeof *got) == 0;
        bool zero = all_zero(got, n) && all_zero(got + MAX * MAX, n_out);
        CHECK(has ? same : zero, "%s: tensor %d of %zu x %zu, %s", isa, t, n_out, n_in,
              pmlp_optimizer_name(optimizer));
        shapes++;
    }
    be->layer_destroy(context, layer);
}

static void check_tensors(void) {
    for (size_t i = 0; i < size_count(); i++)
        for (size_t j = 0; j < size_count(); j++)
            for (int o = 0; o < 5; o++) check_round_trip(size_at(i), size_at(j), optimizers[o]);
}

TEST(tensors) {
    shapes = 0;
    each_isa(check_tensors);
    SAY("write and read give the same bits, %s tensors, %d back ends", test_count(shapes), isas);
}

int main(void) {
    test_begin("kernels");
    RUN(tables);
    RUN(input);
    RUN(forward);
    RUN(activations);
    RUN(backward_input);
    RUN(backward_weight);
    RUN(cuts);
    RUN(slices);
    RUN(long_chains);
    RUN(loss);
    RUN(update);
    RUN(fresh);
    RUN(fused);
    RUN(versions);
    RUN(tensors);
    return test_end();
}
