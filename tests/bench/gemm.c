/* The matrix products of one training step of 784-512-256-128-10 on one core: pipemlp's beside
   those of OpenBLAS, oneDNN, BLIS and libxsmm, and beside what the core can do at all.

   A step is 4 forwards, 3 gradients of an input, 4 gradients of weights: 2,596,352 FLOP a row. The
   libraries compute the bare products, from weights in the layout that suits them best, which is
   [n_in][n_out]; pipemlp is timed through its back-end table, as its trainer calls it: with bias,
   activation, derivative and gradient of the bias, and with the transposition of the weights that
   follows each update. The update itself is timed for nobody. libxsmm's kernels cannot transpose
   where backward_input wants it, so its time holds a transposition, too.

   Answers are compared with sums in double first; one that is wrong has no time. The contestants
   then take turns, in rounds; speeds are medians over the rounds, and a ratio is the median of each
   round's ratio: pipemlp's speed / that one's, above 1 where pipemlp is the faster.

   The libraries are looked for when the program runs, where the system keeps its libraries, in
   LD_LIBRARY_PATH, and beside the program; one that is not there is named as missing. libxsmm may
   come as an archive, which becomes such a library by

       cc -shared -o libxsmm.so -Wl,--whole-archive libxsmm.a -Wl,--no-whole-archive \
          libxsmmnoblas.a -lpthread -ldl -lm

   Older libraries do not know newer processors and then take instructions of long ago. Where one
   takes none of 512 bits on an Intel processor that has them, it is told to (OPENBLAS_CORETYPE and
   BLIS_ARCH_TYPE, unless you have set them), and its version says what it chose by itself.

       cc -O3 -std=gnu11 -I. tests/bench/gemm.c -o build/bench/gemm -ldl -pthread -lm            */
#define PIPEMLP_IMPLEMENTATION
#include "pipemlp.h"

#include "machine.h"
#include <dlfcn.h>
#include <math.h>

enum { LAYERS = 4, OPS = 3 * LAYERS - 1, ROWS = 1024, ROUNDS = 9, CONTESTANTS = 5 };
static const size_t size[LAYERS + 1] = {784, 512, 256, 128, 10};
static const double tolerance = 1e-4;

typedef enum kind { FORWARD, INPUT, WEIGHT } kind;
static const char *const kind_names[] = {"forward", "backward_input", "backward_weight"};

/* In the order of a step on one worker. */
static const struct {
    kind kind;
    int layer;
} ops[OPS] = {{FORWARD, 0}, {FORWARD, 1}, {FORWARD, 2}, {FORWARD, 3}, {INPUT, 3}, {INPUT, 2},
              {INPUT, 1},   {WEIGHT, 3},  {WEIGHT, 2},  {WEIGHT, 1},  {WEIGHT, 0}};

static float *weights[LAYERS], *transposed[LAYERS]; /* [n_out][n_in], [n_in][n_out] */
static float *biases[LAYERS], *inputs, *gradients;  /* [n_out]; [ROWS][784], [ROWS][10] */

typedef struct contestant contestant;
struct contestant {
    const char *name;
    bool (*open)(contestant *c); /* false: `version` says what is missing */
    /* c [m][n] = a b; a is [m][k], or [k][m] if ta; b is [k][n], or [n][k] if tb. NULL: pipemlp */
    void (*product)(const contestant *c, bool ta, bool tb, size_t m, size_t n, size_t k,
                    const float *a, const float *b, float *out);
    char version[128];
    bool present, wrong;
    void (*gemm)(void), (*transpose)(void); /* of the library */
    double check;                           /* the worst relative error of an answer */

    float *x[LAYERS + 1], *dz[LAYERS + 1]; /* [ROWS][row]: layer inputs, gradients at z */
    float *w[LAYERS], *dw[LAYERS];         /* [n_in][n_out], unless pipemlp */
    size_t row[LAYERS + 1];
    double seconds[ROUNDS], op_seconds[OPS][ROUNDS]; /* of one step */
};

static void die(const char *text) {
    fprintf(stderr, "gemm: %s\n", text);
    exit(2);
}

static float *floats(size_t n) {
    float *const p = (float *)aligned_alloc(64, (n * sizeof *p + 63) / 64 * 64);
    if (!p) die("out of memory");
    return (float *)memset(p, 0, n * sizeof *p);
}

/* n floats, uniform in [-limit, limit]. */
static float *uniform(size_t n, double limit) {
    static uint32_t state = 1;
    float *const v = floats(n);
    for (size_t i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        v[i] = (float)(limit * ((double)(state >> 8) / 8388608.0 - 1.0));
    }
    return v;
}

static void make_data(void) {
    inputs = uniform(ROWS * size[0], 1.0);
    gradients = uniform(ROWS * size[LAYERS], 1.0);
    for (int l = 0; l < LAYERS; l++) {
        const size_t n_in = size[l], n_out = size[l + 1];
        weights[l] = uniform(n_in * n_out, sqrt(3.0 / (double)n_in));
        transposed[l] = floats(n_in * n_out);
        biases[l] = uniform(n_out, 0.5);
        for (size_t i = 0; i < n_in * n_out; i++)
            transposed[l][i % n_in * n_out + i / n_in] = weights[l][i];
    }
}

/* --- libraries -------------------------------------------------------------------------------- */

/* The first library of a list that ends in NULL. */
static void *load(contestant *c, const char *const *names) {
    for (; *names; names++) {
        char beside[64];
        void *library = dlopen(*names, RTLD_NOW | RTLD_LOCAL);
        snprintf(beside, sizeof beside, "$ORIGIN/%s", *names);
        if (!library) library = dlopen(beside, RTLD_NOW | RTLD_LOCAL);
        if (library) return library;
    }
    snprintf(c->version, sizeof c->version, "no %s", names[-1]);
    return NULL;
}

/* ISO C knows no way from dlsym() to a function but the bytes of the pointer. */
static bool find(contestant *c, void *library, const char *name, void *function) {
    void *const found = dlsym(library, name);
    memcpy(function, &found, sizeof found);
    if (!found) snprintf(c->version, sizeof c->version, "no function %s", name);
    return found != NULL;
}

/* Does an Intel processor have instructions of 512 bits that this core type does not use? */
static bool too_narrow(const char *core) {
#if defined(__x86_64__)
    static const char *const wide[] = {"SkylakeX", "Cooperlake", "SapphireRapids", "skx", "knl"};
    for (size_t i = 0; i < sizeof wide / sizeof *wide; i++)
        if (strcmp(core, wide[i]) == 0) return false;
    return __builtin_cpu_is("intel") && __builtin_cpu_supports("avx512f");
#else
    return (void)core, false;
#endif
}

typedef void (*cblas_sgemm_fn)(int order, int ta, int tb, int m, int n, int k, float alpha,
                               const float *a, int lda, const float *b, int ldb, float beta,
                               float *c, int ldc);

static void cblas_product(const contestant *c, bool ta, bool tb, size_t m, size_t n, size_t k,
                          const float *a, const float *b, float *out) {
    ((cblas_sgemm_fn)c->gemm)(101, ta ? 112 : 111, tb ? 112 : 111, (int)m, (int)n, (int)k, 1.0f, a,
                              (int)(ta ? m : k), b, (int)(tb ? k : n), 0.0f, out, (int)n);
}

static bool openblas_open(contestant *c) {
    static const char *const names[] = {"libopenblas.so.0", "libopenblas.so", NULL};
    const char *(*core)(void), *(*config)(void);
    void (*threads)(int);
    char version[32] = "?", chose[64] = "";
    void *library = load(c, names);
    if (!library || !find(c, library, "openblas_get_corename", &core)) return false;
    if (!getenv("OPENBLAS_CORETYPE") && too_narrow(core())) {
        snprintf(chose, sizeof chose, ", by itself %s", core());
        setenv("OPENBLAS_CORETYPE", "SkylakeX", 1);
        dlclose(library); /* it chooses when it is loaded */
        library = load(c, names);
    }
    if (!library || !find(c, library, "openblas_get_corename", &core) ||
        !find(c, library, "openblas_get_config", &config) ||
        !find(c, library, "openblas_set_num_threads", &threads) ||
        !find(c, library, "cblas_sgemm", &c->gemm))
        return false;
    threads(1);
    sscanf(config(), "OpenBLAS %31s", version);
    snprintf(c->version, sizeof c->version, "%s %s%s", version, core(), chose);
    return true;
}

static bool blis_open(contestant *c) {
    static const char *const names[] = {"libblis.so.4", "libblis.so.5", "libblis.so", NULL};
    const char *(*version)(void), *(*core_name)(int);
    int (*core)(void);
    void (*init)(void), (*threads)(int);
    char chose[64] = "", number[16];
    void *library = load(c, names);
    for (int again = 0; again < 2; again++) {
        if (!library || !find(c, library, "bli_init", &init) ||
            !find(c, library, "bli_arch_query_id", &core) ||
            !find(c, library, "bli_arch_string", &core_name) ||
            !find(c, library, "bli_info_get_version_str", &version) ||
            !find(c, library, "bli_thread_set_num_threads", &threads) ||
            !find(c, library, "cblas_sgemm", &c->gemm))
            return false;
        init();
        if (again || getenv("BLIS_ARCH_TYPE") || !too_narrow(core_name(core()))) break;
        for (int id = 0; id < 8; id++) /* the numbers differ between versions */
            if (strcmp(core_name(id), "skx") == 0) {
                snprintf(chose, sizeof chose, ", by itself %s", core_name(core()));
                snprintf(number, sizeof number, "%d", id);
                setenv("BLIS_ARCH_TYPE", number, 1);
                break;
            }
        if (!chose[0]) break;
        dlclose(library); /* it chooses once */
        library = load(c, names);
    }
    threads(1);
    snprintf(c->version, sizeof c->version, "%s %s%s", version(), core_name(core()), chose);
    return true;
}

typedef int (*dnnl_sgemm_fn)(char ta, char tb, int64_t m, int64_t n, int64_t k, float alpha,
                             const float *a, int64_t lda, const float *b, int64_t ldb, float beta,
                             float *c, int64_t ldc);

static void onednn_product(const contestant *c, bool ta, bool tb, size_t m, size_t n, size_t k,
                           const float *a, const float *b, float *out) {
    if (((dnnl_sgemm_fn)c->gemm)(ta ? 'T' : 'N', tb ? 'T' : 'N', (int64_t)m, (int64_t)n, (int64_t)k,
                                 1.0f, a, (int64_t)(ta ? m : k), b, (int64_t)(tb ? k : n), 0.0f,
                                 out, (int64_t)n) != 0)
        die("dnnl_sgemm refuses");
}

static bool onednn_open(contestant *c) {
    static const char *const names[] = {"libdnnl.so.3", "libdnnl.so.2", "libdnnl.so", NULL};
    const struct {
        int major, minor, patch;
    } *(*version)(void);
    int (*isa)(void);
    void *const library = load(c, names);
    if (!library || !find(c, library, "dnnl_version", &version) ||
        !find(c, library, "dnnl_get_effective_cpu_isa", &isa) ||
        !find(c, library, "dnnl_sgemm", &c->gemm))
        return false;
    snprintf(c->version, sizeof c->version, "%d.%d.%d %s", version()->major, version()->minor,
             version()->patch, isa() & 0x20 ? "avx512" : isa() & 0x4 ? "avx2" : "narrower");
    return true;
}

typedef void (*xsmm_fn)(const float *a, const float *b, float *c, ...);
typedef xsmm_fn (*xsmm_dispatch_fn)(int m, int n, int k, const int *lda, const int *ldb,
                                    const int *ldc, const float *alpha, const float *beta,
                                    const int *flags, const int *prefetch);
typedef void (*xsmm_transpose_fn)(void *out, const void *in, unsigned bytes, int m, int n, int ldi,
                                  int ldo);

/* Its matrices are stored by columns, so that ours are their transposes, and it computes
   out' = b' a'. Its kernels are made for small products; large ones are cut by hand. */
enum { XSMM_ROWS = 96, XSMM_DEPTH = 256, XSMM_TRANS_B = 2, XSMM_BETA_0 = 16 };

static void xsmm_product(const contestant *c, bool ta, bool tb, size_t m, size_t n, size_t k,
                         const float *a, const float *b, float *out) {
    static float *scratch;
    const int lda = (int)n, ldb = (int)(ta ? m : k), ldc = (int)n;
    if (tb) {
        if (!scratch) scratch = floats(size[0] * size[1]);
        ((xsmm_transpose_fn)c->transpose)(scratch, b, sizeof *b, (int)k, (int)n, (int)k, (int)n);
        b = scratch;
    }
    for (size_t q = 0; q < k; q += XSMM_DEPTH)
        for (size_t i = 0; i < m; i += XSMM_ROWS) {
            const int rows = (int)(m - i < XSMM_ROWS ? m - i : XSMM_ROWS);
            const int depth = (int)(k - q < XSMM_DEPTH ? k - q : XSMM_DEPTH);
            const int flags = (ta ? XSMM_TRANS_B : 0) | (q == 0 ? XSMM_BETA_0 : 0);
            const float beta = q == 0 ? 0.0f : 1.0f;
            const xsmm_fn kernel = ((xsmm_dispatch_fn)c->gemm)(
                (int)n, rows, depth, &lda, &ldb, &ldc, NULL, &beta, &flags, NULL);
            if (!kernel) die("libxsmm makes no kernel of this shape");
            kernel(b + q * n, ta ? a + q * m + i : a + i * k + q, out + i * n);
        }
}

static bool xsmm_open(contestant *c) {
    static const char *const names[] = {"libxsmm.so.1", "libxsmm.so", NULL};
    const char *(*target)(void);
    void *const library = load(c, names);
    if (!library || !find(c, library, "libxsmm_get_target_arch", &target) ||
        !find(c, library, "libxsmm_otrans", &c->transpose) ||
        !find(c, library, "libxsmm_smmdispatch", &c->gemm))
        return false;
    snprintf(c->version, sizeof c->version, "%s", target());
    return true;
}

/* --- pipemlp ---------------------------------------------------------------------------------- */

static const pmlp_backend *table;
static void *context, *layers[LAYERS];

static void must(pmlp_result result) {
    if (result != PMLP_OK) die(pmlp_result_text(result));
}

static void *host_alloc(size_t bytes, void *user) { return (void)user, malloc(bytes); }
static void host_free(void *pointer, void *user) { (void)user, free(pointer); }

/* Of the layer's outputs; layer -1: the inputs. */
static pmlp_activation activation(int layer) {
    return layer < 0 || layer == LAYERS - 1 ? PMLP_LINEAR : PMLP_RELU;
}

static bool pipemlp_open(contestant *c) {
    static const char *const isas[] = {"avx512", "avx2", "sse2", "neon", "generic"};
    const pmlp_backend_desc desc = {0, 1, {host_alloc, host_free, NULL}};
    int isa = 0;
    table = pmlp_cpu_backend();
    while (isa < 4 && pmlp_cpu_backend_isa(isas[isa]) != table) isa++;
    must(table->open(table, &desc, &context, NULL));
    for (int l = 0; l < LAYERS; l++) {
        const pmlp_layer_desc layer = {.n_in = size[l],
                                       .n_out = size[l + 1],
                                       .row_outs = size[l + 1],
                                       .activation = activation(l),
                                       .below = activation(l - 1),
                                       .optimizer = PMLP_SGD,
                                       .needs_input_gradient = l > 0,
                                       .versions = 1};
        must(table->layer_create(context, &layer, &layers[l]));
    }
    snprintf(c->version, sizeof c->version, "%d.%d.%d %s", PMLP_VERSION_MAJOR, PMLP_VERSION_MINOR,
             PMLP_VERSION_PATCH, isas[isa]);
    return true;
}

/* --- a step ----------------------------------------------------------------------------------- */

static float *buffer(const contestant *c, size_t row) {
    float *p = NULL;
    if (c->product) return floats(ROWS * row);
    must(table->alloc(context, ROWS * row * sizeof *p, (void **)&p));
    return p;
}

/* Buffers, with the same inputs for everybody. */
static void prepare(contestant *c) {
    for (int l = 0; l <= LAYERS; l++) {
        c->row[l] = c->product ? size[l] : table->row_floats(context, size[l], activation(l - 1));
        c->x[l] = buffer(c, c->row[l]);
        c->dz[l] = buffer(c, c->row[l]);
        if (!c->product || l == LAYERS) continue;
        c->w[l] = floats(size[l] * size[l + 1]);
        c->dw[l] = floats(size[l] * size[l + 1]);
    }
    for (size_t r = 0; r < ROWS; r++) {
        memcpy(c->x[0] + r * c->row[0], inputs + r * size[0], size[0] * sizeof(float));
        memcpy(c->dz[LAYERS] + r * c->row[LAYERS], gradients + r * size[LAYERS],
               size[LAYERS] * sizeof(float));
    }
}

/* Instead of an update: the weights are written anew, so that caches and pipemlp's transposition
   are as they are after one. */
static void renew(contestant *c) {
    for (int l = 0; l < LAYERS; l++) {
        if (c->product) memcpy(c->w[l], transposed[l], size[l] * size[l + 1] * sizeof(float));
        else must(table->write(context, layers[l], PMLP_TENSOR_PARAMS, weights[l], biases[l]));
    }
}

static void run_op(contestant *c, int op, size_t batch) {
    const int l = ops[op].layer;
    const size_t n_in = size[l], n_out = size[l + 1];
    const float *x = c->x[l], *dz = c->dz[l + 1];
    if (c->product) {
        switch (ops[op].kind) {
        case FORWARD:
            c->product(c, false, false, batch, n_out, n_in, x, c->w[l], c->x[l + 1]);
            break;
        case INPUT: c->product(c, false, true, batch, n_in, n_out, dz, c->w[l], c->dz[l]); break;
        case WEIGHT: c->product(c, true, false, n_in, n_out, batch, x, dz, c->dw[l]); break;
        }
        return;
    }
    switch (ops[op].kind) {
    case FORWARD: must(table->forward(context, layers[l], 0, batch, x, c->x[l + 1])); break;
    case INPUT: must(table->backward_input(context, layers[l], 0, batch, dz, x, c->dz[l])); break;
    case WEIGHT: must(table->backward_weight(context, layers[l], batch, x, dz, false)); break;
    }
}

/* Adds the time of each operation. */
static void step(contestant *c, size_t batch, double seconds[OPS]) {
    renew(c);
    for (int op = 0; op < OPS; op++) {
        const double begin = machine_seconds();
        run_op(c, op, batch);
        seconds[op] += machine_seconds() - begin;
    }
}

static double flops(int op, size_t batch) {
    return 2.0 * (double)batch * (double)size[ops[op].layer] * (double)size[ops[op].layer + 1];
}

static double step_flops(size_t batch) {
    double all = 0;
    for (int op = 0; op < OPS; op++) all += flops(op, batch);
    return all;
}

/* --- checking --------------------------------------------------------------------------------- */

/* out [m][n] = a b in double; a(i, k) lies at a[i * a_row + k * a_k] */
static void reference(size_t m, size_t n, size_t k, const float *a, size_t a_row, size_t a_k,
                      const float *b, size_t b_row, double *out) {
    memset(out, 0, m * n * sizeof *out);
    for (size_t i = 0; i < m; i++)
        for (size_t q = 0; q < k; q++) {
            const double s = (double)a[i * a_row + q * a_k];
            for (size_t j = 0; j < n; j++) out[i * n + j] += s * (double)b[q * b_row + j];
        }
}

/* |got - want| / |want|, got(i, j) at got[i * row + j * column] */
static double distance(size_t m, size_t n, const float *got, size_t row, size_t column,
                       const double *want) {
    double apart = 0, length = 0;
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) {
            const double d = (double)got[i * row + j * column] - want[i * n + j];
            apart += d * d;
            length += want[i * n + j] * want[i * n + j];
        }
    return sqrt(apart / length);
}

/* How far the result of an operation is from what its inputs, as they are, should give. */
static double check_op(contestant *c, int op, size_t batch) {
    const bool fused = !c->product;
    const int l = ops[op].layer;
    const size_t n_in = size[l], n_out = size[l + 1], x_row = c->row[l], dz_row = c->row[l + 1];
    const float *x = c->x[l], *dz = c->dz[l + 1];
    static float dw[512 * 784], db[512];
    static double want[ROWS * 784], ones[512];
    double far;
    switch (ops[op].kind) {
    case FORWARD:
        reference(batch, n_out, n_in, x, x_row, 1, transposed[l], n_out, want);
        for (size_t i = 0; fused && i < batch * n_out; i++) {
            want[i] += (double)biases[l][i % n_out];
            if (activation(l) == PMLP_RELU && want[i] < 0) want[i] = 0;
        }
        return distance(batch, n_out, c->x[l + 1], c->row[l + 1], 1, want);
    case INPUT:
        reference(batch, n_in, n_out, dz, dz_row, 1, weights[l], n_in, want);
        for (size_t i = 0; fused && i < batch * n_in; i++)
            if (x[i / n_in * x_row + i % n_in] <= 0) want[i] = 0; /* layers 1 .. have ReLU below */
        return distance(batch, n_in, c->dz[l], c->row[l], 1, want);
    default:
        reference(n_in, n_out, batch, x, 1, x_row, dz, dz_row, want);
        if (!fused) return distance(n_in, n_out, c->dw[l], n_out, 1, want);
        must(table->read(context, layers[l], PMLP_TENSOR_GRADIENTS, dw, db));
        far = distance(n_in, n_out, dw, 1, n_in, want);
        memset(ones, 0, sizeof ones);
        for (size_t r = 0; r < batch; r++)
            for (size_t o = 0; o < n_out; o++) ones[o] += (double)dz[r * dz_row + o];
        return fmax(far, distance(1, n_out, db, 0, 1, ones));
    }
}

/* One step, every answer of it looked at. */
static void check(contestant *c, size_t batch) {
    double seconds[OPS] = {0};
    for (int l = 0; l < LAYERS; l++) { /* answers to an earlier batch are none to this one */
        memset(c->x[l + 1], 0, batch * c->row[l + 1] * sizeof(float));
        memset(c->dz[l], 0, batch * c->row[l] * sizeof(float));
    }
    step(c, batch, seconds);
    c->wrong = false;
    c->check = 0;
    for (int op = 0; op < OPS; op++) {
        const double far = check_op(c, op, batch);
        if (!(far <= c->check)) c->check = far; /* a NaN, too */
        if (far <= tolerance) continue;
        c->wrong = true;
        printf("wrong batch=%zu who=%s op=%s layer=%d error=%.2g\n", batch, c->name,
               kind_names[ops[op].kind], ops[op].layer, far);
    }
}

/* --- timing ----------------------------------------------------------------------------------- */

/* For about so many seconds, after a step that fills the caches. */
static void time_steps(contestant *c, size_t batch, int round, double budget) {
    double seconds[OPS] = {0};
    const double begin = machine_seconds();
    int steps = 0;
    step(c, batch, seconds);
    memset(seconds, 0, sizeof seconds);
    do {
        step(c, batch, seconds);
        steps++;
    } while (machine_seconds() - begin < budget);
    c->seconds[round] = 0;
    for (int op = 0; op < OPS; op++) {
        c->op_seconds[op][round] = seconds[op] / steps;
        c->seconds[round] += c->op_seconds[op][round];
    }
}

static void report(contestant *c, const contestant *pipemlp, size_t batch, bool each_op) {
    double ratio[ROUNDS], sorted[ROUNDS];
    for (int r = 0; r < ROUNDS; r++) ratio[r] = c->seconds[r] / pipemlp->seconds[r];
    memcpy(sorted, c->seconds, sizeof sorted);
    const double seconds = machine_median(sorted, ROUNDS);
    printf("gemm batch=%zu who=%s us=%.1f gflops=%.1f", batch, c->name, 1e6 * seconds,
           1e-9 * step_flops(batch) / seconds);
    if (!pipemlp->wrong) printf(" ratio=%.3f", machine_median(ratio, ROUNDS));
    printf(" version=\"%s\" check=%.1e\n", c->version, c->check);
    for (int op = 0; each_op && op < OPS; op++) {
        memcpy(sorted, c->op_seconds[op], sizeof sorted);
        const double one = machine_median(sorted, ROUNDS);
        printf("gemm-op batch=%zu op=%s layer=%d who=%s us=%.1f gflops=%.1f\n", batch,
               kind_names[ops[op].kind], ops[op].layer, c->name, 1e6 * one,
               1e-9 * flops(op, batch) / one);
    }
}

/* One batch size; false if an answer is wrong. */
static bool run(contestant *all, size_t batch, double budget, bool each_op) {
    double peak[ROUNDS], ratio[ROUNDS];
    bool good = true;
    for (int i = 0; i < CONTESTANTS; i++) {
        if (all[i].present) check(&all[i], batch);
        good = good && !all[i].wrong;
    }
    for (int r = 0; r < ROUNDS; r++) {
        for (int i = 0; i < CONTESTANTS; i++) { /* another one begins in each round */
            contestant *const c = &all[(i + r) % CONTESTANTS];
            if (c->present && !c->wrong) time_steps(c, batch, r, budget / ROUNDS / CONTESTANTS);
        }
        peak[r] = machine_flops_now();
        ratio[r] = step_flops(batch) / all[0].seconds[r] / peak[r];
    }
    for (int i = 0; i < CONTESTANTS; i++)
        if (all[i].present && !all[i].wrong) report(&all[i], &all[0], batch, each_op);
    printf("gemm batch=%zu who=fma-peak gflops=%.1f", batch, 1e-9 * machine_median(peak, ROUNDS));
    if (!all[0].wrong) printf(" ratio=%.3f", machine_median(ratio, ROUNDS));
    printf("\n");
    fflush(stdout);
    return good;
}

/* A number above 0, not above `most`; 0: it is none. */
static double number(const char *text, double most) {
    char *end = NULL;
    const double v = text ? strtod(text, &end) : 0;
    return end && end != text && !*end && v > 0 && v <= most ? v : 0;
}

static const char help[] =
    "gemm: the matrix products of a training step of 784-512-256-128-10 on one core, pipemlp's\n"
    "beside those of OpenBLAS, oneDNN, BLIS and libxsmm.\n\n"
    "  --batch N     this many rows only, 1 to 1024; default 16, 32, 64, 128, 512 and 1024\n"
    "  --seconds S   to measure for, checking not counted; default 24\n\n"
    "Lines: `gemm` a whole step; ratio = pipemlp's speed / this one's; check = largest relative\n"
    "error of an answer. `gemm-op` one product, for 128 rows or those of --batch. pipemlp's times\n"
    "hold bias, activation, derivative and transposition as well, the others' only the products.\n"
    "`peak` multiply-adds from registers; `bandwidth` copy counts bytes read and bytes written.\n"
    "Exit status: 0; 1 if an answer was wrong; 2 if it could not run.\n";

int main(int argc, char **argv) {
    static contestant all[CONTESTANTS] = {
        {.name = "pipemlp", .open = pipemlp_open},
        {.name = "openblas", .open = openblas_open, .product = cblas_product},
        {.name = "onednn", .open = onednn_open, .product = onednn_product},
        {.name = "blis", .open = blis_open, .product = cblas_product},
        {.name = "libxsmm", .open = xsmm_open, .product = xsmm_product}};
    static const size_t batches[] = {16, 32, 64, 128, 512, 1024};
    static const char *const threads[] = {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS",
                                          "BLIS_NUM_THREADS"};
    const size_t count = sizeof batches / sizeof *batches;
    machine_level levels[MACHINE_LEVELS];
    double seconds = 24;
    size_t only = 0;
    bool good = true;
    for (int i = 1; i < argc; i += 2) {
        const char *const value = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(argv[i], "--help") == 0) return fputs(help, stdout), 0;
        if (strcmp(argv[i], "--batch") == 0) {
            only = (size_t)number(value, ROWS);
            if (!only) die("--batch wants a number of rows from 1 to 1024");
        } else if (strcmp(argv[i], "--seconds") == 0) {
            seconds = number(value, 1e6);
            if (seconds == 0) die("--seconds wants a number above 0");
        } else {
            fprintf(stderr, "gemm: unknown option %s; --help lists them\n", argv[i]);
            return 2;
        }
    }
    for (size_t i = 0; i < sizeof threads / sizeof *threads; i++) setenv(threads[i], "1", 1);
    make_data();
    if (!machine_levels(levels)) die("out of memory");
    machine_print(machine_peak(), levels);
    for (int i = 0; i < CONTESTANTS; i++) {
        all[i].present = all[i].open(&all[i]);
        if (all[i].present) prepare(&all[i]);
        else printf("missing who=%s reason=\"%s\"\n", all[i].name, all[i].version);
    }
    for (size_t i = 0; i < (only ? 1 : count); i++) {
        const size_t batch = only ? only : batches[i];
        const double budget = only ? seconds : seconds / (double)count;
        good = run(all, batch, budget, only || batch == 128) && good;
    }
    return good ? 0 : 1;
}
