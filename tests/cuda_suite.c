/* pipemlp_cuda.cu against the CPU back end, against itself, and under faults. Runs on a GPU (`make
   test-cuda`), or on the stand-in of tests/cudahost, which executes the same file on the CPU; it
   then finds CUDAHOST defined, and tests a little more: faults and leaks.

   nvcc -x c tests/cuda_suite.c -x cu pipemlp_cuda.cu -I. -lcublas -lcublasLt -o cuda_suite
   ./cuda_suite [NAME ...]       all tests, or those named */
#define PIPEMLP_IMPLEMENTATION
#include "../pipemlp.h"
#include "test.h"
#include "networks.h"
#include "shapes.h"

enum { ROWS = 53, BATCH = 16, MAX_WIDTH = 104, PARAMS = 12000 };

/* clang-format off */
static const network nets[] = {
    {"relu, xent", 4, {20, 17, 33, 11, 10}, {PMLP_RELU, PMLP_RELU, PMLP_RELU, PMLP_LINEAR},
     PMLP_LOSS_XENT, false},
    {"mixed, mse", 5, {9, 65, 8, 31, 5, 3},
     {PMLP_GELU, PMLP_SIGMOID, PMLP_RELU, PMLP_TANH, PMLP_SIGMOID}, PMLP_LOSS_MSE, true},
    {"gelu at the end, mse of labels", 3, {7, 40, 70, 35}, {PMLP_TANH, PMLP_LINEAR, PMLP_GELU},
     PMLP_LOSS_MSE, false},
    {"one layer, xent of 40", 1, {13, 40}, {PMLP_LINEAR}, PMLP_LOSS_XENT, false},
    {"one output, mse", 2, {5, 9, 1}, {PMLP_RELU, PMLP_RELU}, PMLP_LOSS_MSE, true}};
static const network long_net = {
    "long, xent", 8, {6, 40, 7, 12, 5, 8, 10, 6, 4},
    {PMLP_TANH, PMLP_GELU, PMLP_RELU, PMLP_SIGMOID, PMLP_TANH, PMLP_GELU, PMLP_TANH, PMLP_LINEAR},
    PMLP_LOSS_XENT, false};
/* clang-format on */
enum { NETS = sizeof nets / sizeof *nets };

/* PMLP_TEST_TINY=1: under the thread sanitizer, to which each CUDA thread is a thread. */
static bool tiny(void) { return getenv("PMLP_TEST_TINY") != NULL; }

static float data_x[ROWS * MAX_WIDTH], data_targets[ROWS * MAX_WIDTH];
static int data_labels[ROWS];

static pmlp_data make_data(const network *net) {
    pmlp_data data = {0};
    uint64_t rng = 11;
    const size_t n_in = (size_t)net->sizes[0], n_out = (size_t)net->sizes[net->layers];
    for (size_t i = 0; i < ROWS * n_in; i++) data_x[i] = (float)test_uniform(&rng, -1, 1);
    for (size_t i = 0; i < ROWS * n_out; i++) data_targets[i] = (float)test_uniform(&rng, 0, 1);
    for (size_t r = 0; r < ROWS; r++) data_labels[r] = (int)(test_random(&rng) % n_out);
    data.rows = ROWS, data.x = data_x;
    if (net->targets) data.targets = data_targets;
    else data.labels = data_labels;
    return data;
}

/* PMLP_TEST_HANDOFF=nccl: workers on several GPUs hand over by NCCL. */
static pmlp_cuda_handoff handoff(void) {
    const char *const name = getenv("PMLP_TEST_HANDOFF");
    return name && strcmp(name, "nccl") == 0 ? PMLP_CUDA_NCCL : PMLP_CUDA_COPIES;
}

/* A table with options that live as long as the next call but seven. */
static const pmlp_backend *with(pmlp_cuda_gemm gemm, pmlp_cuda_math math, bool no_graphs) {
    static pmlp_cuda_options options[8];
    static pmlp_backend tables[8];
    static unsigned next;
    const unsigned at = next++ % 8;
    memset(&options[at], 0, sizeof options[at]);
    options[at].gemm = gemm, options[at].math = math, options[at].no_graphs = no_graphs;
    options[at].handoff = handoff();
    pmlp_cuda_backend_with(&options[at], &tables[at]);
    return &tables[at];
}

/* All options at their defaults, but for that. */
static const pmlp_backend *usual(void) {
    return with(PMLP_CUDA_GEMM_FUSED, PMLP_CUDA_FP32, false);
}

/* --- what a training leaves ------------------------------------------------------------------- */

typedef struct outcome {
    bool ok;
    float params[PARAMS]; /* all layers, weights and biases */
    size_t count;
    uint64_t hash;
    double loss, accuracy, eval_loss, eval_accuracy, norm;
} outcome;

static char label[200];

static bool fine(pmlp_trainer *trainer, pmlp_result result) {
    return CHECK(result == PMLP_OK, "%s: %s: %s", label, pmlp_result_name(result),
                 pmlp_trainer_error(trainer)->text);
}

static bool collect(pmlp_model *model, const network *net, outcome *out) {
    for (int l = 0; l < net->layers; l++) {
        pmlp_params p = {0};
        const size_t w = (size_t)net->sizes[l] * (size_t)net->sizes[l + 1];
        const size_t b = (size_t)net->sizes[l + 1];
        if (!CHECK(pmlp_model_params(model, l, &p, NULL) == PMLP_OK, "%s", label)) return false;
        if (!CHECK(out->count + w + b <= PARAMS, "%s: too large", label)) return false;
        memcpy(out->params + out->count, p.w, w * sizeof *p.w);
        memcpy(out->params + out->count + w, p.b, b * sizeof *p.b);
        out->count += w + b;
    }
    return pmlp_model_hash(model, &out->hash, NULL) == PMLP_OK;
}

/* Ragged steps, each twice so that graphs are recorded and replayed; epochs, an evaluation. */
static void train(const network *net, pmlp_trainer_desc desc, bool constant, outcome *out) {
    static const size_t rows[] = {16, 16, 13, 1, 13, 7, 16};
    pmlp_error error = {0};
    pmlp_stats stats = {0};
    pmlp_trainer *trainer = NULL;
    pmlp_data data = make_data(net);
    pmlp_model *model = make_model(net, 5);
    memset(out, 0, sizeof *out);
    if (!model) return;
    desc.batch = BATCH, desc.seed = 9, data.constant = constant;
    bool ok = CHECK(pmlp_trainer_create(model, &desc, &trainer, &error) == PMLP_OK, "%s: %s", label,
                    error.text);
    for (size_t i = 0; ok && i < sizeof rows / sizeof *rows; i++) {
        pmlp_data batch = rows_of(net, &data, 3 + i, rows[i]);
        ok = i != 2 || fine(trainer, pmlp_trainer_set_learning_rate(trainer, 0.02f));
        ok = ok && fine(trainer, pmlp_trainer_step(trainer, &batch, &stats));
    }
    out->norm = stats.gradient_norm;
    for (int epoch = 0; ok && epoch < 2; epoch++)
        ok = fine(trainer, pmlp_trainer_epoch(trainer, &data, &stats));
    out->loss = stats.loss, out->accuracy = stats.accuracy;
    ok = ok && fine(trainer, pmlp_trainer_eval(trainer, &data, &stats));
    out->eval_loss = stats.loss, out->eval_accuracy = stats.accuracy;
    ok = ok && fine(trainer, pmlp_trainer_sync(trainer));
    ok = ok && collect(model, net, out);
    pmlp_trainer_destroy(trainer);
    pmlp_model_destroy(model);
    out->ok = ok;
}

/* How far two trainings are apart, beside how far the weights have come: the length of the
   difference by that of b's way from the initial weights; or the losses' difference, if that is
   more. A NaN anywhere is infinitely far. */
static double distance(const network *net, const outcome *a, const outcome *b) {
    static outcome begin;
    pmlp_model *model = make_model(net, 5);
    double apart = 0, way = 0, worst;
    memset(&begin, 0, sizeof begin);
    collect(model, net, &begin);
    pmlp_model_destroy(model);
    if (!a->ok || !b->ok || a->count != b->count || a->count != begin.count) return INFINITY;
    for (size_t i = 0; i < a->count; i++) {
        apart += pow((double)a->params[i] - (double)b->params[i], 2);
        way += pow((double)begin.params[i] - (double)b->params[i], 2);
    }
    worst = sqrt(apart / way);
    const double losses[2] = {a->loss / b->loss - 1, a->eval_loss / b->eval_loss - 1};
    for (int i = 0; i < 2; i++)
        if (!(fabs(losses[i]) <= worst)) worst = fabs(losses[i]);
    return worst == worst ? worst : INFINITY;
}

static const pmlp_optimizer optimizers[] = {PMLP_SGD, PMLP_MOMENTUM, PMLP_NESTEROV, PMLP_ADAM,
                                            PMLP_ADAMW};
static const char *const gemm_names[] = {"fused", "plain", "teaching"};
static const char *const math_names[] = {"fp32", "tf32", "bf16"};

/* --- against the CPU -------------------------------------------------------------------------- */

static void describe(const network *net, const pmlp_trainer_desc *d, const char *what) {
    snprintf(label, sizeof label, "%s, %s, %d workers, %d micro-batches, %s, %s", net->name,
             pmlp_optimizer_name(d->optimizer), d->workers, d->microbatches,
             pmlp_schedule_kind_name(d->schedule), what);
}

/* fp32 differs from the CPU by roundings and functions such as exp; TF32 and bf16 also by what they
   round products' factors to. */
static const double tolerance[] = {1e-4, 1e-2, 0.2};

TEST(cpu) {
    static outcome cpu, gpu;
    double worst[PMLP_CUDA_MATH_COUNT] = {0};
    long runs = 0;
    for (int n = 0; n < NETS; n++)
        for (int o = 0; o < 5; o++) {
            pmlp_trainer_desc desc = {0};
            desc.optimizer = optimizers[o], desc.no_threads = true;
            desc.weight_decay = o % 2 ? 0.01f : 0, desc.clip_norm = n == 1 ? 0.5f : 0;
            desc.learning_rate = desc.optimizer >= PMLP_ADAM ? 0.002f : 0.05f;
            describe(&nets[n], &desc, "cpu");
            train(&nets[n], desc, false, &cpu);
            for (int g = 0; g < PMLP_CUDA_GEMM_COUNT; g++)
                for (int m = 0; m < PMLP_CUDA_MATH_COUNT; m++, runs++) {
                    if (test_quick() && (n + o + g + 3 * m) % 10) continue;
                    char what[40];
                    snprintf(what, sizeof what, "%s, %s", gemm_names[g], math_names[m]);
                    desc.backend = with((pmlp_cuda_gemm)g, (pmlp_cuda_math)m, false);
                    describe(&nets[n], &desc, what);
                    train(&nets[n], desc, n % 2, &gpu);
                    const double d = distance(&nets[n], &gpu, &cpu);
                    CHECK(d <= tolerance[m], "%s: %g from the CPU", label, d);
                    CHECK(m == PMLP_CUDA_BF16 || (fabs(gpu.accuracy - cpu.accuracy) < 2.5 / ROWS &&
                                                  fabs(gpu.eval_accuracy - cpu.eval_accuracy) <
                                                      2.5 / ROWS),
                          "%s: accuracy %g, %g, CPU %g, %g", label, gpu.accuracy,
                          gpu.eval_accuracy, cpu.accuracy, cpu.eval_accuracy);
                    CHECK(fabs(gpu.norm - cpu.norm) <= tolerance[m] * (0.05 + cpu.norm),
                          "%s: gradient norm %g, CPU %g", label, gpu.norm, cpu.norm);
                    if (d > worst[m]) worst[m] = d;
                }
        }
    SAY("networks x optimizers x products x fp32, TF32, bf16: at most %.1e, %.1e, %.1e from the "
        "CPU", worst[0], worst[1], worst[2]);
}

/* The gradient itself, of one batch and of micro-batches. */
TEST(gradients) {
    static float dw[2][MAX_WIDTH * MAX_WIDTH], db[2][MAX_WIDTH];
    double worst = 0;
    for (int n = 0; n < NETS; n++)
        for (int m = 1; m <= 3; m += 2) {
            pmlp_data data = make_data(&nets[n]);
            data.rows = BATCH;
            for (int l = 0; l < nets[n].layers; l++) {
                const size_t n_out = (size_t)nets[n].sizes[l + 1];
                const size_t count = (size_t)nets[n].sizes[l] * n_out;
                for (int gpu = 0; gpu < 2; gpu++) {
                    pmlp_trainer_desc desc = {0};
                    pmlp_error error = {0};
                    pmlp_trainer *t = NULL;
                    pmlp_model *model = make_model(&nets[n], 5);
                    desc.batch = BATCH, desc.microbatches = m, desc.keep_gradients = true;
                    if (gpu) desc.backend = usual();
                    describe(&nets[n], &desc, "gradient");
                    if (CHECK(pmlp_trainer_create(model, &desc, &t, &error) == PMLP_OK, "%s: %s",
                              label, error.text)) {
                        fine(t, pmlp_trainer_step(t, &data, NULL));
                        fine(t, pmlp_trainer_gradient(t, l, dw[gpu], db[gpu]));
                    }
                    pmlp_trainer_destroy(t);
                    pmlp_model_destroy(model);
                }
                for (size_t i = 0; i < count + n_out; i++) {
                    const double a = (double)(i < count ? dw[1][i] : db[1][i - count]);
                    const double b = (double)(i < count ? dw[0][i] : db[0][i - count]);
                    const double d = fabs(a - b) / fmax(1e-2, fabs(b));
                    if (!(d <= worst)) worst = d == d ? d : INFINITY;
                }
            }
        }
    CHECK(worst <= 1e-4, "%g", worst);
    SAY("gradients of %d networks, whole and by micro-batch: at most %.1e from the CPU", NETS,
        worst);
}

/* --- against itself --------------------------------------------------------------------------- */

/* Graphs or not, data on the device or coming with each batch: the same bits. */
TEST(same_ways) {
    static outcome first, other;
    long runs = 0;
    for (int n = 0; n < NETS; n++)
        for (int g = 0; g < PMLP_CUDA_GEMM_COUNT; g++) {
            if (test_quick() && (n + g) % 4) continue;
            pmlp_trainer_desc desc = {0};
            desc.optimizer = optimizers[(n + g) % 5], desc.workers = nets[n].layers > 1 ? 2 : 1;
            desc.microbatches = 3;
            for (int way = 0; way < 4; way++, runs++) {
                desc.backend = with((pmlp_cuda_gemm)g, PMLP_CUDA_FP32, way % 2);
                describe(&nets[n], &desc, way % 2 ? "no graphs" : "graphs");
                train(&nets[n], desc, way / 2, way ? &other : &first);
                if (way) CHECK(other.hash == first.hash && other.loss == first.loss, "%s", label);
            }
        }
    SAY("graphs or not, data on the device or not: %s trainings, equal bits", test_count(runs));
}

static void verify(const network *net, const pmlp_trainer_desc *desc, long *runs) {
    pmlp_verify_report report;
    pmlp_error error = {0};
    pmlp_data data = make_data(net);
    pmlp_model *model = make_model(net, 5);
    const pmlp_result result = pmlp_verify(model, desc, &data, tiny() ? 3 : 4, &report, &error);
    pmlp_model_destroy(model);
    if (result == PMLP_ERROR_SHAPE || result == PMLP_ERROR_ARGUMENT) return; /* too few layers */
    ++*runs;
    CHECK(result == PMLP_OK, "%s: %s", label, error.text);
    CHECK(result != PMLP_OK || report.identical, "%s: %s", label, report.text);
}

/* Every synchronous schedule on every number of workers has the bits of one worker with the same
   micro-batches, whether they share a GPU or not. */
static const int few[] = {1, 2, 5};

TEST(schedules) {
    long runs = 0;
    for (int kind = PMLP_SCHEDULE_SEQUENTIAL; kind < PMLP_SCHEDULE_KIND_COUNT; kind++) {
        if (is_async((pmlp_schedule_kind)kind) || kind == PMLP_SCHEDULE_AUTO) continue;
        for (int workers = 1; workers <= 4; workers++)
            for (int m = 0; m < 3; m++) {
                pmlp_trainer_desc desc = {0};
                const network *const net = tiny() ? &nets[0] : &long_net;
                if (test_quick() && (kind + 2 * workers + 3 * m) % 8) continue;
                if (tiny() && (m == 2 || workers > 3)) continue;
                desc.schedule = (pmlp_schedule_kind)kind, desc.workers = workers;
                desc.microbatches = few[m] * workers, desc.batch = tiny() ? 8 : 23;
                desc.optimizer = optimizers[(kind + m) % 5], desc.clip_norm = m == 1 ? 0.1f : 0;
                desc.no_threads = workers == 3;
                desc.backend = with((pmlp_cuda_gemm)((kind + workers) % 3),
                                    (pmlp_cuda_math)(m % 3), workers == 4);
                describe(net, &desc, "verify");
                verify(net, &desc, &runs);
            }
    }
    CHECK(runs > (tiny() ? 3 : test_quick() ? 8 : 60), "%ld", runs);
    SAY("all synchronous schedules, 1 to 4 workers: the bits of one worker, %s pipelines",
        test_count(runs));
}

/* One slot for each edge: a message waits until the one before it has been taken out. */
TEST(slots) {
    static const pmlp_schedule_kind kinds[] = {PMLP_SCHEDULE_GPIPE, PMLP_SCHEDULE_1F1B};
    long runs = 0;
    for (int k = 0; k < 2; k++)
        for (int workers = 2; workers <= 3; workers++) {
            pmlp_trainer_desc desc = {0};
            desc.schedule = kinds[k], desc.workers = workers, desc.microbatches = 6;
            desc.slots = 1, desc.batch = 12, desc.backend = usual();
            describe(&nets[0], &desc, "one slot");
            verify(&nets[0], &desc, &runs);
        }
    CHECK(runs == 4, "%ld", runs);
    SAY("edges of one slot: the bits of one worker, %ld pipelines", runs);
}

/* The teaching product adds up as the CPU does, so a pipeline has the bits of whole batches, even
   if it is cut inside the first layer and W is put off. */
TEST(teaching_is_exact) {
    long runs = 0;
    const int most = test_quick() ? 2 : 3;
    for (int workers = 1; workers <= most; workers++)
        for (int m = 0; m < most; m++) {
            const pmlp_cut cuts[] = {{0, 32}, {3, 0}};
            pmlp_trainer_desc desc = {0};
            desc.workers = workers, desc.microbatches = few[m] * workers, desc.batch = 23;
            desc.backend = with(PMLP_CUDA_GEMM_TEACHING, PMLP_CUDA_FP32, false);
            desc.cuts = workers > 1 ? cuts : NULL, desc.optimizer = optimizers[m];
            describe(&long_net, &desc, "teaching");
            CHECK(desc.backend->exact, "%s", label);
            verify(&long_net, &desc, &runs);
        }
    CHECK(runs == most * most, "%ld", runs);
    SAY("the teaching product: the bits of whole batches, also with a cut inside layer 0: %ld "
        "pipelines", runs);
}

/* An asynchronous schedule is as stale on the GPU as on the CPU: the same weights, nearly. */
TEST(asynchronous) {
    static outcome cpu, gpu;
    const network *const net = tiny() ? &nets[0] : &long_net;
    double worst = 0;
    for (int kind = PMLP_SCHEDULE_PIPEDREAM; kind <= PMLP_SCHEDULE_PIPEDREAM_2BW; kind++)
        for (int workers = 2; workers <= (test_quick() ? 2 : 4); workers++) {
            pmlp_trainer_desc desc = {0};
            desc.schedule = (pmlp_schedule_kind)kind, desc.workers = workers;
            desc.microbatches = 4, desc.learning_rate = 0.02f;
            describe(net, &desc, "cpu");
            train(net, desc, false, &cpu);
            desc.backend = usual();
            describe(net, &desc, "cuda");
            train(net, desc, workers % 2, &gpu);
            const double d = distance(net, &gpu, &cpu);
            CHECK(d <= tolerance[0], "%s: %g", label, d);
            if (d > worst) worst = d;
        }
    SAY("PipeDream and PipeDream-2BW on 2 workers and more: at most %.1e from the CPU", worst);
}

/* PipeDream on one worker is serial training, in passes of many steps without a wait between. */
TEST(without_waits) {
    static outcome serial, on;
    for (int n = 0; n < NETS; n++) {
        pmlp_trainer_desc desc = {0};
        if (test_quick() && n % 2) continue;
        desc.optimizer = optimizers[n % 5], desc.backend = with((pmlp_cuda_gemm)(n % 3),
                                                                (pmlp_cuda_math)(n / 2 % 3), false);
        describe(&nets[n], &desc, "serial");
        train(&nets[n], desc, n % 2, &serial);
        desc.schedule = PMLP_SCHEDULE_PIPEDREAM;
        describe(&nets[n], &desc, "without waits");
        train(&nets[n], desc, n % 2, &on);
        CHECK(on.ok && on.hash == serial.hash && on.loss == serial.loss, "%s", label);
    }
    SAY("PipeDream on one worker: the bits of serial training");
}

/* Equal outputs, and extreme ones: the first of the largest is the answer, and the loss is what
   it is on the CPU. */
TEST(ties) {
    static const float biases[3][10] = {{0}, {0, 7, 7}, {1e30f, -1e30f, 1e30f, 3}};
    for (int b = 0; b < 3; b++) {
        double loss[2], accuracy[2];
        for (int gpu = 0; gpu < 2; gpu++) {
            pmlp_trainer_desc desc = {0};
            pmlp_error error = {0};
            pmlp_stats stats = {0};
            pmlp_trainer *t = NULL;
            pmlp_data data = make_data(&nets[0]);
            pmlp_model *model = make_model(&nets[0], 5);
            pmlp_params p = {0};
            if (!CHECK(pmlp_model_params(model, 3, &p, NULL) == PMLP_OK, "no parameters")) return;
            memset(p.w, 0, 11 * 10 * sizeof *p.w);
            memcpy(p.b, biases[b], sizeof biases[b]);
            for (size_t r = 0; r < ROWS; r++) data_labels[r] %= 3;
            desc.batch = ROWS;
            if (gpu) desc.backend = usual();
            if (CHECK(pmlp_trainer_create(model, &desc, &t, &error) == PMLP_OK, "%s", error.text))
                fine(t, pmlp_trainer_eval(t, &data, &stats));
            pmlp_trainer_destroy(t);
            pmlp_model_destroy(model);
            loss[gpu] = stats.loss, accuracy[gpu] = stats.accuracy;
        }
        CHECK(accuracy[0] == accuracy[1], "%d: accuracy %g, CPU %g", b, accuracy[1], accuracy[0]);
        CHECK(fabs(loss[1] - loss[0]) <= 1e-6 * loss[0], "%d: loss %g, CPU %g", b, loss[1],
              loss[0]);
    }
    SAY("equal outputs and outputs of 1e30: the same answers and losses as on the CPU");
}

/* Layers larger than any launch's first wave: all loops of the kernels go round. */
TEST(large) {
    static const network net = {"large", 3, {784, 512, 300, 10},
                                {PMLP_RELU, PMLP_RELU, PMLP_LINEAR}, PMLP_LOSS_XENT, false};
    const size_t rows = test_quick() ? 24 : 200;
    float *x = malloc(rows * 784 * sizeof *x);
    int *labels = malloc(rows * sizeof *labels);
    double loss[2] = {0}, norm[2] = {0};
    uint64_t rng = 4;
    for (size_t i = 0; i < rows * 784; i++) x[i] = (float)test_uniform(&rng, 0, 1);
    for (size_t i = 0; i < rows; i++) labels[i] = (int)(test_random(&rng) % 10);
    for (int gpu = 0; gpu < 2; gpu++) {
        pmlp_trainer_desc desc = {0};
        pmlp_error error = {0};
        pmlp_stats stats = {0};
        pmlp_trainer *t = NULL;
        pmlp_model *model = make_model(&net, 5);
        pmlp_data data = {0};
        data.rows = rows, data.x = x, data.labels = labels;
        desc.batch = rows, desc.gradient_norm = true, desc.learning_rate = 0.01f;
        if (gpu) desc.backend = usual();
        if (CHECK(pmlp_trainer_create(model, &desc, &t, &error) == PMLP_OK, "%s", error.text))
            for (int i = 0; i < 3; i++) fine(t, pmlp_trainer_step(t, &data, &stats));
        loss[gpu] = stats.loss, norm[gpu] = stats.gradient_norm;
        pmlp_trainer_destroy(t);
        pmlp_model_destroy(model);
    }
    free(x);
    free(labels);
    CHECK(fabs(loss[1] - loss[0]) <= 1e-5 * loss[0], "loss %g, CPU %g", loss[1], loss[0]);
    CHECK(fabs(norm[1] - norm[0]) <= 1e-4 * norm[0], "norm %g, CPU %g", norm[1], norm[0]);
    SAY("784-512-300-10, %zu rows: loss and gradient norm of the CPU", rows);
}

/* Costs measured on the back end, layer by layer in one context, and the trainer cut by them. */
TEST(measured) {
    pmlp_trainer_desc desc = {0};
    long runs = 0;
    desc.workers = 2, desc.batch = BATCH, desc.measure_layers = true;
    desc.backend = usual();
    describe(&long_net, &desc, "measured");
    verify(&long_net, &desc, &runs);
    desc.schedule = PMLP_SCHEDULE_AUTO;
    verify(&long_net, &desc, &runs);
    CHECK(runs == 2, "%ld", runs);
    SAY("layers measured, and the search by measured costs: %ld pipelines", runs);
}

/* A context knows layers by their address, and what it has recorded must not outlive them: a layer
   is made, used until it is recorded, and destroyed; the next one lies in its place, but has
   another activation. */
static double place[64];
static bool next_here; /* the next block is this one */

static void *place_alloc(size_t bytes, void *user) {
    (void)user;
    if (!next_here || bytes > sizeof place) return malloc(bytes);
    next_here = false;
    return place;
}
static void place_free(void *p, void *user) {
    (void)user;
    if (p != (void *)place) free(p);
}

TEST(layers_come_and_go) {
    static const pmlp_activation f[] = {PMLP_LINEAR, PMLP_RELU, PMLP_LINEAR};
    const float w[2] = {1, -1}, b[2] = {0, 0}, one = 1;
    const pmlp_backend *const be = pmlp_cuda_backend();
    pmlp_backend_desc desc = {0};
    pmlp_error error = {0};
    void *context = NULL, *x = NULL, *y = NULL, *layer = NULL;
    desc.workers = 1, desc.allocator.alloc = place_alloc, desc.allocator.free = place_free;
    if (!CHECK(be->open(be, &desc, &context, &error) == PMLP_OK, "%s", error.text)) return;
    pmlp_data data = {0};
    data.rows = 1, data.x = &one;
    const pmlp_layer_desc of_x = {.n_in = 1, .n_out = 2, .row_outs = 2, .versions = 1,
                                  .activation = PMLP_LINEAR, .below = PMLP_LINEAR,
                                  .optimizer = PMLP_SGD};
    CHECK(be->alloc(context, 256, &x) == PMLP_OK && be->alloc(context, 256, &y) == PMLP_OK, "room");
    for (int l = 0; l < 3; l++) {
        pmlp_layer_desc d = of_x;
        unsigned char hits[1];
        double losses[1];
        const float target[2] = {1, -1};
        d.activation = f[l];
        next_here = true;
        CHECK(be->layer_create(context, &d, &layer) == PMLP_OK && layer == (void *)place,
              "layer %d does not lie where it should", l);
        CHECK(be->write(context, layer, PMLP_TENSOR_PARAMS, w, b) == PMLP_OK, "layer %d", l);
        for (int turn = 0; turn < 3; turn++) { /* issued, recorded, replayed */
            pmlp_loss_args a = {.loss = PMLP_LOSS_MSE, .rows = 1, .y = y, .data = &data,
                                .scale = 1, .row_loss = losses, .row_hit = hits};
            data.targets = target;
            CHECK(be->input(context, 1, 1, &data, NULL, 0, x) == PMLP_OK &&
                      be->forward(context, layer, 0, 1, x, y) == PMLP_OK &&
                      be->loss(context, layer, &a) == PMLP_OK &&
                      be->synchronize(context) == PMLP_OK,
                  "layer %d: %s", l, be->explain(context));
            CHECK(losses[0] == (f[l] == PMLP_RELU ? 0.5 : 0), "layer %d, turn %d: loss %g", l, turn,
                  losses[0]);
        }
        be->layer_destroy(context, layer);
    }
    be->free(context, x);
    be->free(context, y);
    be->close(context);
    SAY("a layer in the place of one that is gone: its own activation, not what was recorded");
}

/* --- what ran when ---------------------------------------------------------------------------- */

TEST(timeline) {
    pmlp_trainer_desc desc = {0};
    pmlp_error error = {0};
    pmlp_trainer *trainer = NULL;
    pmlp_timeline *timeline = NULL;
    pmlp_data data = make_data(&long_net);
    pmlp_model *model = make_model(&long_net, 5);
    long spans = 0;
    desc.workers = 2, desc.microbatches = 4, desc.batch = BATCH, desc.trace = 3;
    desc.backend = usual();
    data.rows = BATCH;
    describe(&long_net, &desc, "traced");
    CHECK(pmlp_trainer_create(model, &desc, &trainer, &error) == PMLP_OK, "%s", error.text);
    for (int i = 0; trainer && i < 3; i++) fine(trainer, pmlp_trainer_step(trainer, &data, NULL));
    if (trainer && fine(trainer, pmlp_trainer_timeline(trainer, 0, &timeline))) {
        for (int w = 0; w < 2; w++) {
            int count;
            const pmlp_span *const span = pmlp_timeline_spans(timeline, w, &count);
            for (int i = 0; i < count; i++, spans++) {
                CHECK(span[i].end >= span[i].begin && span[i].begin >= 0,
                      "worker %d, span %d: %g .. %g", w, i, span[i].begin, span[i].end);
                CHECK(i == 0 || span[i].begin >= span[i - 1].end, "worker %d, span %d begins at %g,"
                      " before %g", w, i, span[i].begin, span[i - 1].end);
            }
        }
        CHECK(pmlp_timeline_makespan(timeline) < 60, "%g s", pmlp_timeline_makespan(timeline));
    }
    CHECK(spans >= 2 * 9, "%ld spans", spans); /* F, I, W of four, U */
    pmlp_timeline_destroy(timeline);
    pmlp_trainer_destroy(trainer);
    pmlp_model_destroy(model);
    SAY("the timeline of a step, by the device's clock: %ld spans in order", spans);
}

/* --- mistakes --------------------------------------------------------------------------------- */

static void refused(const pmlp_cuda_options *options, pmlp_result want, const char *word) {
    pmlp_backend table;
    pmlp_trainer_desc desc = {0};
    pmlp_error error = {0};
    pmlp_trainer *trainer = NULL;
    pmlp_model *model = make_model(&nets[0], 5);
    pmlp_cuda_backend_with(options, &table);
    desc.backend = &table;
    const pmlp_result got = pmlp_trainer_create(model, &desc, &trainer, &error);
    CHECK(got == want && strstr(error.text, word) && !trainer, "%s: %s", pmlp_result_name(got),
          error.text);
    pmlp_trainer_destroy(trainer);
    pmlp_model_destroy(model);
}

TEST(bad_options) {
    const int far = 999, below = -1;
    pmlp_cuda_options o = {0};
    o.devices = &far, o.device_count = 1;
    refused(&o, PMLP_ERROR_ARGUMENT, "no GPU 999");
    o.devices = &below;
    refused(&o, PMLP_ERROR_ARGUMENT, "no GPU -1");
    o.device_count = 0;
    refused(&o, PMLP_ERROR_ARGUMENT, "device_count");
    o.devices = NULL, o.math = (pmlp_cuda_math)7;
    refused(&o, PMLP_ERROR_ARGUMENT, "math");
    o.math = PMLP_CUDA_FP32, o.gemm = (pmlp_cuda_gemm)-1;
    refused(&o, PMLP_ERROR_ARGUMENT, "gemm");
    o.gemm = PMLP_CUDA_GEMM_FUSED, o.handoff = PMLP_CUDA_HANDOFF_COUNT;
    refused(&o, PMLP_ERROR_ARGUMENT, "handoff");
    static outcome out; /* and what failed before is not held against the next one */
    pmlp_trainer_desc desc = {0};
    desc.backend = pmlp_cuda_backend();
    train(&nets[0], desc, false, &out);
    CHECK(out.ok, "no training afterwards");
    SAY("devices that are not there, no devices, unknown math, gemm, handoff: one sentence each, and the "
        "next training runs");
}

/* A NaN in the data is found behind the step, in the loss and in the weights; or, if the norm is
   computed, before the update, which is then none. It hangs nothing. */
TEST(nan) {
    static outcome out;
    for (int way = 0; way < 3 * PMLP_CUDA_MATH_COUNT; way++) {
        const int how = way % 3; /* plain, with the norm, to be skipped */
        pmlp_trainer_desc desc = {0};
        pmlp_error error = {0};
        pmlp_stats stats = {0};
        pmlp_trainer *trainer = NULL;
        pmlp_data data = make_data(&nets[0]);
        pmlp_model *model = make_model(&nets[0], 5);
        desc.workers = 2, desc.batch = BATCH;
        desc.backend = with(PMLP_CUDA_GEMM_FUSED, (pmlp_cuda_math)(way / 3), false);
        desc.gradient_norm = how == 1;
        desc.bad_numbers = how == 2 ? PMLP_BAD_NUMBERS_SKIP : PMLP_BAD_NUMBERS_STOP;
        data.rows = BATCH, data_x[5] = NAN, out.count = 0;
        CHECK(pmlp_trainer_create(model, &desc, &trainer, &error) == PMLP_OK, "%s", error.text);
        if (!trainer) return;
        const pmlp_result result = pmlp_trainer_step(trainer, &data, &stats);
        const char *text = pmlp_trainer_error(trainer)->text;
        if (how == 2) CHECK(result == PMLP_OK && stats.skipped == 1, "%s", text);
        else
            CHECK(result == PMLP_ERROR_NUMBER && strstr(text, "row 0 of the data: input 5 is nan") &&
                      strstr(text, how ? "those before it" : "have been updated with it"),
                  "%s", text);
        pmlp_trainer_destroy(trainer);
        collect(model, &nets[0], &out);
        CHECK((out.params[0] != out.params[0]) == (how == 0), "%g", (double)out.params[0]);
        pmlp_model_destroy(model);
    }
    SAY("a NaN in the input: found behind the step, or before its update if there is a norm");
}

/* --- faults, on the stand-in ------------------------------------------------------------------ */

#ifdef CUDAHOST
/* tests/cudahost/control.cpp */
void cudahost_fail(const char *api, long nth); /* the nth call from now on; NULL: none */
long cudahost_calls(const char *api);          /* since that */
long cudahost_live(void);                      /* things that were not given back */

/* What a step costs the host once it has been seen: one worker copies its numbers, launches one
   graph, fetches the losses and waits, once each; nothing is allocated. */
TEST(steady) {
    enum { STEPS = 10 };
    static const struct { const char *api; long per_step; } expected[] = {
        {"cudaGraphLaunch", 1}, {"cudaMemcpyAsync", 2}, {"cudaStreamSynchronize", 1},
        {"launch", 0}, {"cudaMalloc", 0}, {"cudaMallocHost", 0}, {"cudaGraphInstantiate", 0},
        {"cudaStreamBeginCapture", 0}, {"cudaEventRecord", 0}, {"cudaDeviceSynchronize", 0},
        {"cudaEventSynchronize", 0}, {"cublasLtMatmul", 0}, {"cublasGemmEx", 0}};
    for (int g = 0; g < PMLP_CUDA_GEMM_COUNT; g++) {
        pmlp_trainer_desc desc = {0};
        pmlp_error error = {0};
        pmlp_trainer *trainer = NULL;
        pmlp_data data = make_data(&nets[0]);
        pmlp_model *model = make_model(&nets[0], 5);
        desc.batch = BATCH, desc.backend = with((pmlp_cuda_gemm)g, PMLP_CUDA_FP32, false);
        data.rows = BATCH, data.constant = true;
        CHECK(pmlp_trainer_create(model, &desc, &trainer, &error) == PMLP_OK, "%s", error.text);
        for (int i = 0; trainer && i < STEPS + 4; i++) {
            if (i == 4) cudahost_fail(NULL, 0);
            fine(trainer, pmlp_trainer_step(trainer, &data, NULL));
        }
        for (size_t i = 0; i < sizeof expected / sizeof *expected; i++)
            CHECK(cudahost_calls(expected[i].api) == STEPS * expected[i].per_step,
                  "%s: %ld calls of %s in %d steps", gemm_names[g],
                  cudahost_calls(expected[i].api), expected[i].api, STEPS);
        pmlp_trainer_destroy(trainer);
        pmlp_model_destroy(model);
    }
    for (int way = 0; way < 3; way++) { /* several workers: nothing new after some steps either */
        pmlp_trainer_desc desc = {0};
        pmlp_error error = {0};
        pmlp_trainer *trainer = NULL;
        pmlp_data data = make_data(&long_net);
        pmlp_model *model = make_model(&long_net, 5);
        desc.batch = BATCH, desc.workers = way < 2 ? 2 : 1;
        desc.microbatches = way == 0 ? 16 : way == 1 ? 4 : 1;
        desc.schedule = way ? PMLP_SCHEDULE_PIPEDREAM : PMLP_SCHEDULE_1F1B;
        desc.backend = usual();
        data.rows = 48, data.constant = true;
        CHECK(pmlp_trainer_create(model, &desc, &trainer, &error) == PMLP_OK, "%s", error.text);
        for (int i = 0; trainer && i < 8; i++) {
            if (i == 6) cudahost_fail(NULL, 0);
            fine(trainer, pmlp_trainer_epoch(trainer, &data, NULL));
        }
        CHECK(cudahost_calls("launch") == 0 && cudahost_calls("cudaGraphInstantiate") == 0 &&
                  cudahost_calls("cudaGraphLaunch") > 0 && cudahost_calls("cudaMalloc") == 0,
              "%s: %ld launches, %ld graphs made, %ld launched",
              pmlp_schedule_kind_name(desc.schedule), cudahost_calls("launch"),
              cudahost_calls("cudaGraphInstantiate"), cudahost_calls("cudaGraphLaunch"));
        if (way == 2) /* two epochs of three steps, each a graph; one wait for an epoch */
            CHECK(cudahost_calls("cudaGraphLaunch") == 6 &&
                      cudahost_calls("cudaStreamSynchronize") == 2,
                  "%ld graphs, %ld waits", cudahost_calls("cudaGraphLaunch"),
                  cudahost_calls("cudaStreamSynchronize"));
        pmlp_trainer_destroy(trainer);
        pmlp_model_destroy(model);
    }
    SAY("a step of one worker: one copy up, one graph, one copy down, one wait, or by PipeDream none "
        "in an epoch but the last; of two workers: nothing but graphs");
}

static long most_calls; /* that an attempt made */
static uint64_t clean[12]; /* the weights of each way without a fault */

/* Creates, trains and destroys once; whatever fails says so, and nothing is left. Returns whether
   something failed. */
static bool attempt(long nth) {
    pmlp_trainer_desc desc = {0};
    pmlp_error error = {0};
    pmlp_trainer *trainer = NULL;
    pmlp_data data = make_data(&nets[0]);
    pmlp_model *model = make_model(&nets[0], 5);
    pmlp_result result;
    desc.workers = 2, desc.microbatches = 2, desc.batch = BATCH, desc.trace = nth % 3 == 0;
    desc.clip_norm = nth % 2 ? 1.0f : 0, desc.optimizer = PMLP_ADAM;
    desc.backend = with((pmlp_cuda_gemm)(nth / 2 % 3), (pmlp_cuda_math)(nth % 2 * 2), false);
    data.rows = BATCH, data.constant = nth % 4 == 0;
    cudahost_fail("any", nth);
    result = pmlp_trainer_create(model, &desc, &trainer, &error);
    const bool created = result == PMLP_OK;
    for (int i = 0; result == PMLP_OK && i < 3; i++) {
        result = pmlp_trainer_step(trainer, &data, NULL);
        if (result != PMLP_OK) error = *pmlp_trainer_error(trainer);
    }
    if (result != PMLP_OK) {
        CHECK(strlen(error.text) > 20 && error.result == result, "call %ld: %s, '%s'", nth,
              pmlp_result_name(result), error.text);
        CHECK(created == (trainer != NULL), "call %ld", nth);
        if (created)
            CHECK(pmlp_trainer_step(trainer, &data, NULL) == PMLP_ERROR_STATE, "call %ld", nth);
    }
    pmlp_trainer_destroy(trainer);
    if (result == PMLP_OK) {
        uint64_t hash = 0;
        if (pmlp_model_hash(model, &hash, NULL) == PMLP_OK && clean[nth % 12])
            CHECK(hash == clean[nth % 12], "call %ld failed, nobody said so, and it shows", nth);
        if (!clean[nth % 12]) clean[nth % 12] = hash;
    }
    pmlp_model_destroy(model);
    if (cudahost_calls("any") > most_calls) most_calls = cudahost_calls("any");
    cudahost_fail(NULL, 0);
    CHECK(cudahost_live() == 0, "call %ld: %ld things are left", nth, cudahost_live());
    return result != PMLP_OK;
}

TEST(faults) {
    const long never = 1000000 * 12, step = test_quick() ? 17 : 1;
    long failed = 0, calls;
    for (long way = 0; way < 12; way++) CHECK(!attempt(never + way), "fails without a fault");
    calls = most_calls;
    for (long nth = 1; nth <= calls; nth += step) failed += attempt(nth);
    CHECK(calls > 200 && failed > calls / step / 4, "%ld of %ld", failed, calls);
    SAY("the n-th call of CUDA, cuBLAS or a launch fails, n = 1 .. %ld: clear errors, nothing left "
        "behind", calls);
}

TEST(leaks) {
    CHECK(cudahost_live() == 0, "%ld", cudahost_live());
    SAY("nothing is left on any device");
}
#endif

int main(int argc, char **argv) {
    pmlp_error error = {0};
    pmlp_trainer *trainer = NULL;
    pmlp_trainer_desc desc = {0};
    test_begin("cuda");
    pmlp_model *model = make_model(&nets[0], 1);
    desc.backend = pmlp_cuda_backend();
    const pmlp_result result = pmlp_trainer_create(model, &desc, &trainer, &error);
    pmlp_trainer_destroy(trainer);
    pmlp_model_destroy(model);
    if (result == PMLP_ERROR_UNSUPPORTED) {
        printf("skip cuda: %s\n", error.text);
        return 0;
    }
    RUN_IF_ASKED(cpu);
    RUN_IF_ASKED(gradients);
    RUN_IF_ASKED(same_ways);
    RUN_IF_ASKED(schedules);
    RUN_IF_ASKED(slots);
    RUN_IF_ASKED(teaching_is_exact);
    RUN_IF_ASKED(asynchronous);
    RUN_IF_ASKED(without_waits);
    RUN_IF_ASKED(ties);
    RUN_IF_ASKED(large);
    RUN_IF_ASKED(measured);
    RUN_IF_ASKED(layers_come_and_go);
    RUN_IF_ASKED(timeline);
    RUN_IF_ASKED(bad_options);
    RUN_IF_ASKED(nan);
#ifdef CUDAHOST
    RUN_IF_ASKED(steady);
    RUN_IF_ASKED(faults);
    RUN_IF_ASKED(leaks);
#endif
    return test_end();
}
