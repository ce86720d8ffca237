/* Where the time of a training step of 784-512-256-128-10 goes, and how far each operation is from
   what the machine can do.

   Serially, one worker and the whole batch at once: the CPU back end's table is copied, and its
   operations are replaced by ones that time and call the real ones, so that what is looked at is
   the training itself. Floors are the larger of two times: the operation's arithmetic at the speed
   of multiply-adds from registers, and each of its bytes once, as many as fit from the first cache,
   then from the second, and so on. No operation by itself can be faster; fused ones can.

   Then with two workers and four micro-batches: each worker's time by what it did or waited for, of
   of the step of median length, as pmlp_trainer_timeline() measured it.

   And what a hand-off costs: of an edge by itself, two threads that do nothing else; and in
   training, from the end of what produced a message to the begin of what waited for it.

   Other programs disturb, workers that wait for each other most of all. The steps are therefore
   done in BLOCKS blocks, and everything is a median of the block with the shortest median step.

       cc -O3 -std=gnu11 -I. tests/bench/profile.c -o build/bench/profile -pthread -lm           */
#define PIPEMLP_IMPLEMENTATION
#include "pipemlp.h"

#include "machine.h"
#include <math.h>
#include <pthread.h>

enum { LAYERS = 4, ROWS = 16384, CLASSES = 10 };
enum { WARM = 10, BLOCKS = 5, WORKERS = 2, MICROBATCHES = 4 };
static const int size[LAYERS + 1] = {784, 512, 256, 128, CLASSES};

/* What is timed. UPDATE does the last BACKWARD_WEIGHT of the step, too, if the trainer has kept it
   for there; TRANSPOSE is a part of the first BACKWARD_INPUT after an update; REST is what the step
   takes beside all others. */
typedef enum kind { INPUT, FORWARD, LOSS, BACKWARD_INPUT, BACKWARD_WEIGHT, UPDATE, TRANSPOSE, REST,
                    KINDS } kind;
static const struct {
    const char *name;
    int first, layers; /* layers that it has; 0: it is none of a layer */
} kinds[KINDS] = {{"input", 0, 0},          {"forward", 0, LAYERS}, {"loss", 0, 0},
                  {"backward_input", 1, 3}, {"backward_weight", 0, LAYERS},
                  {"update", 0, LAYERS},    {"transpose", 1, 3},    {"rest", 0, 0}};

static void die(const char *text) {
    fprintf(stderr, "profile: %s\n", text);
    exit(2);
}

static void must(pmlp_result result, const pmlp_error *error) {
    if (result != PMLP_OK) die(error ? error->text : pmlp_result_text(result));
}

static void *memory(size_t bytes) {
    void *const p = calloc(bytes, 1);
    return p ? p : (die("out of memory"), NULL);
}

/* --- a table that times --------------------------------------------------------------------- */

static const pmlp_backend *real;
static pmlp_backend timing;        /* for one worker only: what follows has no locks */
static void *handles[LAYERS];
static double spent[KINDS][LAYERS]; /* seconds, in the present step */
static bool look_for_transpose;
static size_t update_rows;          /* of the BACKWARD_WEIGHT in the last UPDATE */

static int layer_of(const void *handle) {
    for (int l = 0; l < LAYERS; l++)
        if (handles[l] == handle) return l;
    return 0;
}

static pmlp_result timed_open(const pmlp_backend *self, const pmlp_backend_desc *desc,
                              void **context, pmlp_error *error) {
    return (void)self, real->open(real, desc, context, error);
}

static pmlp_result timed_layer_create(void *context, const pmlp_layer_desc *desc, void **layer) {
    const pmlp_result result = real->layer_create(context, desc, layer);
    for (int l = 0; l < LAYERS; l++)
        if ((size_t)size[l] == desc->n_in) handles[l] = *layer;
    return result;
}

#define TIMED(KIND, LAYER, CALL)                                                                   \
    const double begin = machine_seconds();                                                        \
    const pmlp_result result = CALL;                                                               \
    spent[KIND][LAYER] += machine_seconds() - begin

static pmlp_result timed_input(void *context, size_t rows, size_t n, const pmlp_data *data,
                               const uint32_t *index, size_t first, float *x) {
    TIMED(INPUT, 0, real->input(context, rows, n, data, index, first, x));
    return result;
}

static pmlp_result timed_forward(void *context, void *layer, int version, size_t rows,
                                 const float *x, float *y) {
    TIMED(FORWARD, layer_of(layer), real->forward(context, layer, version, rows, x, y));
    return result;
}

static pmlp_result timed_backward_input(void *context, void *layer, int version, size_t rows,
                                        const float *dz, const float *x, float *dz_below) {
    const int l = layer_of(layer);
    if (look_for_transpose) { /* one row twice: the first call packs what the second one finds */
        const double first = machine_seconds();
        real->backward_input(context, layer, version, 1, dz, x, dz_below);
        const double second = machine_seconds();
        real->backward_input(context, layer, version, 1, dz, x, dz_below);
        spent[TRANSPOSE][l] += second - first - (machine_seconds() - second);
    }
    TIMED(BACKWARD_INPUT, l, real->backward_input(context, layer, version, rows, dz, x, dz_below));
    return result;
}

static pmlp_result timed_backward_weight(void *context, void *layer, size_t rows, const float *x,
                                         const float *dz, bool accumulate) {
    TIMED(BACKWARD_WEIGHT, layer_of(layer),
          real->backward_weight(context, layer, rows, x, dz, accumulate));
    return result;
}

static pmlp_result timed_loss(void *context, void *layer, const pmlp_loss_args *args) {
    TIMED(LOSS, 0, real->loss(context, layer, args));
    return result;
}

static pmlp_result timed_update(void *context, void *layer, const pmlp_update_args *args) {
    TIMED(UPDATE, layer_of(layer), real->update(context, layer, args));
    update_rows = args->rows;
    return result;
}

static void make_table(void) {
    real = pmlp_cpu_backend();
    timing = *real;
    timing.open = timed_open;
    timing.layer_create = timed_layer_create;
    timing.input = timed_input;
    timing.forward = timed_forward;
    timing.backward_input = timed_backward_input;
    timing.backward_weight = timed_backward_weight;
    timing.loss = timed_loss;
    timing.update = timed_update;
}

/* --- training ------------------------------------------------------------------------------- */

static float *x; /* [ROWS][784] */
static int *labels;

/* More rows than most caches hold, as in training. */
static void make_data(void) {
    uint32_t state = 1;
    x = (float *)memory(ROWS * (size_t)size[0] * sizeof *x);
    labels = (int *)memory(ROWS * sizeof *labels);
    for (size_t i = 0; i < ROWS * (size_t)size[0]; i++) {
        state = state * 1664525u + 1013904223u;
        x[i] = (float)(state >> 8) / 16777216.0f;
    }
    for (int i = 0; i < ROWS; i++) labels[i] = (int)((uint32_t)i * 2654435761u >> 16) % CLASSES;
}

static pmlp_trainer *start(pmlp_model **model, const pmlp_trainer_desc *desc) {
    const pmlp_model_desc net = {.layers = LAYERS, .sizes = size};
    pmlp_trainer *trainer;
    pmlp_error error;
    must(pmlp_model_create(&net, model, &error), &error);
    must(pmlp_trainer_create(*model, desc, &trainer, &error), &error);
    return trainer;
}

static void stop(pmlp_model *model, pmlp_trainer *trainer) {
    pmlp_trainer_destroy(trainer);
    pmlp_model_destroy(model);
}

/* Trains on the next batch; seconds. */
static double step(pmlp_trainer *trainer, size_t batch) {
    static size_t next;
    const size_t at = next + batch <= ROWS ? next : 0;
    const pmlp_data data = {
        .rows = batch, .x = x + at * (size_t)size[0], .labels = labels + at};
    const double begin = machine_seconds();
    must(pmlp_trainer_step(trainer, &data, NULL), pmlp_trainer_error(trainer));
    next = at + batch;
    return machine_seconds() - begin;
}

/* The median step of a trainer in seconds and, unless NULL, the timeline of that. */
static double median_step(pmlp_trainer *trainer, size_t batch, int steps,
                          pmlp_timeline **timeline) {
    double *const seconds = (double *)memory((size_t)steps * sizeof *seconds), best = INFINITY;
    for (int block = 0; block < BLOCKS; block++) {
        for (int i = 0; i < WARM; i++) step(trainer, batch);
        for (int i = 0; i < steps; i++) seconds[i] = step(trainer, batch);
        const double median = machine_median(seconds, (size_t)steps);
        if (median >= best) continue;
        best = median;
        if (!timeline) continue;
        pmlp_timeline_destroy(*timeline);
        must(pmlp_trainer_timeline(trainer, 0, timeline), pmlp_trainer_error(trainer));
    }
    free(seconds);
    return best;
}

/* One step, taken apart: seconds of each operation and, last, of all. */
static void timed_step(pmlp_trainer *trainer, size_t batch, double part[KINDS * LAYERS + 1]) {
    memset(spent, 0, sizeof spent);
    const double all = step(trainer, batch);
    spent[REST][0] = all;
    for (int k = 0; k < TRANSPOSE; k++)
        for (int l = 0; l < LAYERS; l++) spent[REST][0] -= spent[k][l];
    memcpy(part, spent, sizeof spent);
    part[KINDS * LAYERS] = all;
}

static double peak; /* the best seen: the clock rate is not always the same */
static machine_level levels[MACHINE_LEVELS];

/* The medians of the operations, each over the same steps; returns that of the step. */
static double serial(size_t batch, int steps, double median[KINDS][LAYERS]) {
    const pmlp_trainer_desc desc = {.batch = batch, .learning_rate = 0.01f, .backend = &timing};
    double(*const parts)[KINDS * LAYERS + 1] = memory((size_t)steps * sizeof *parts);
    double *const column = (double *)memory((size_t)steps * sizeof *column), best = INFINITY;
    pmlp_model *model;
    pmlp_trainer *const trainer = start(&model, &desc);
    for (int block = 0; block < BLOCKS; block++) {
        for (int i = 0; i < WARM; i++) step(trainer, batch);
        for (int i = 0; i < steps; i++) timed_step(trainer, batch, parts[i]);
        peak = fmax(peak, machine_flops_now());
        for (int k = KINDS * LAYERS; k >= 0; k--) { /* the step, and if it is the best, the rest */
            for (int i = 0; i < steps; i++) column[i] = parts[i][k];
            const double m = machine_median(column, (size_t)steps);
            if (k < KINDS * LAYERS) median[k / LAYERS][k % LAYERS] = m;
            else if (m < best) best = m;
            else break;
        }
    }
    stop(model, trainer);
    free(column);
    free(parts);
    return best;
}

/* --- floors --------------------------------------------------------------------------------- */

typedef struct bound {
    double seconds;
    bool by_flops;
    const char *level; /* the farthest that has some of its bytes */
} bound;

static bound floor_of(kind kind, int layer, size_t batch) {
    const double rows = (double)batch, n_in = size[layer], n_out = size[layer + 1];
    const double w = n_in * n_out, in = rows * n_in, out = rows * n_out;
    double flops = 0, reads = 0, writes = 0; /* floats */
    bound b = {0, false, ""};
    switch (kind) {
    case INPUT: reads = writes = rows * size[0]; break;
    case FORWARD: flops = 2 * rows * w, reads = in + w, writes = out; break;
    case LOSS: reads = writes = rows * CLASSES; break;
    case BACKWARD_INPUT: flops = 2 * rows * w, reads = out + w + in, writes = in; break;
    case BACKWARD_WEIGHT: flops = 2 * rows * w, reads = in + out, writes = w; break;
    case UPDATE: /* a gradient that is made here need not be moved */
        flops = 2 * w * (1 + (double)update_rows);
        reads = w + (update_rows ? in + out : w), writes = w;
        break;
    case TRANSPOSE: reads = writes = w; break;
    default: break;
    }
    const double touched = sizeof(float) * (kind == UPDATE ? reads : reads + writes);
    double left = touched, bytes = 0;
    for (int i = 0; i < MACHINE_LEVELS && left > 0; i++) {
        const machine_level *const m = &levels[i];
        const double part = i < MACHINE_LEVELS - 1 ? fmin(left, (double)m->size) : left;
        /* what a byte that is written adds to one that is read, as copying shows it */
        const double write = fmax(0, 2 / m->copy - 1 / m->read);
        bytes += sizeof(float) * (reads / m->read + writes * write) * part / touched;
        b.level = m->name;
        left -= part;
    }
    b.by_flops = flops / peak > bytes;
    b.seconds = fmax(flops / peak, bytes);
    return b;
}

/* --- what is printed ------------------------------------------------------------------------ */

/* The serial step; returns it in seconds, without the clocks in between. */
static double print_serial(size_t batch, int steps) {
    const pmlp_trainer_desc plain = {.batch = batch, .learning_rate = 0.01f};
    double median[KINDS][LAYERS], again[KINDS][LAYERS], floors = 0;
    pmlp_model *model;
    const double seconds = serial(batch, steps, median);
    look_for_transpose = true;
    serial(batch, steps, again);
    look_for_transpose = false;
    for (int l = 1; l < LAYERS; l++) { /* backward_input is shown without the transposition */
        median[TRANSPOSE][l] = fmax(0, again[TRANSPOSE][l]);
        median[BACKWARD_INPUT][l] -= median[TRANSPOSE][l];
    }
    pmlp_trainer *const trainer = start(&model, &plain);
    const double untimed = median_step(trainer, batch, steps, NULL);
    stop(model, trainer);
    for (int k = 0; k < KINDS; k++) {
        const int layers = kinds[k].layers, end = kinds[k].first + (layers ? layers : 1);
        for (int l = kinds[k].first; l < end; l++) {
            const bound b = floor_of((kind)k, l, batch);
            if (median[k][l] == 0) continue; /* this trainer never calls it */
            floors += b.seconds;
            printf("profile batch=%zu op=%s", batch, kinds[k].name);
            if (layers) printf(" layer=%d", l);
            if (k == UPDATE && update_rows) printf(" with=backward_weight");
            printf(" us=%.1f share=%.4f", 1e6 * median[k][l], median[k][l] / seconds);
            if (k != REST)
                printf(" floor_us=%.1f over=%.2f bound=%s level=%s", 1e6 * b.seconds,
                       median[k][l] / b.seconds, b.by_flops ? "flops" : "bytes", b.level);
            printf("\n");
        }
    }
    printf("profile batch=%zu op=step us=%.1f share=1 floor_us=%.1f over=%.2f untimed_us=%.1f "
           "peak_gflops=%.1f\n", batch, 1e6 * seconds, 1e6 * floors, seconds / floors,
           1e6 * untimed, 1e-9 * peak);
    return untimed;
}

/* The same step on two workers, and where each one's time went. */
static void print_pipelined(size_t batch, int steps, double serially) {
    const pmlp_trainer_desc desc = {.batch = batch,
                                    .learning_rate = 0.01f,
                                    .workers = WORKERS,
                                    .microbatches = MICROBATCHES,
                                    .schedule = PMLP_SCHEDULE_EAGER_1F1B,
                                    .trace = steps};
    pmlp_timeline *timeline = NULL;
    pmlp_model *model;
    pmlp_trainer *const trainer = start(&model, &desc);
    const double seconds = median_step(trainer, batch, steps, &timeline);
    const double makespan = pmlp_timeline_makespan(timeline);
    char what[96];
    snprintf(what, sizeof what, "profile batch=%zu workers=%d microbatches=%d", batch, WORKERS,
             MICROBATCHES);
    for (int w = 0; w < WORKERS; w++) {
        pmlp_worker_time t;
        must(pmlp_timeline_worker(timeline, w, &t), NULL);
        const struct {
            const char *name;
            double seconds;
        } parts[] = {{"forward", t.f},     {"backward_input", t.i + t.b}, {"backward_weight", t.w},
                     {"update", t.u},      {"busy", t.busy},              {"fill", t.fill},
                     {"waiting", t.waiting}, {"transfer", t.transfer},    {"drain", t.drain}};
        for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
            printf("%s worker=%d op=%s us=%.1f share=%.4f\n", what, w, parts[i].name,
                   1e6 * parts[i].seconds, parts[i].seconds / makespan);
    }
    printf("%s op=makespan us=%.1f\n", what, 1e6 * makespan);
    printf("%s op=step us=%.1f speedup=%.3f\n", what, 1e6 * seconds, serially / seconds);
    pmlp_timeline_destroy(timeline);
    stop(model, trainer);
}

/* --- hand-offs ------------------------------------------------------------------------------ */

enum { TRIPS = 20000 };

typedef struct pingpong {
    const pmlp_edges *edges;
    void *there, *back;
    double seconds[TRIPS]; /* of each trip there and back */
} pingpong;

static void nobody_sleeps(void *nobody) { (void)nobody; }

static void pass_on(const pmlp_edges *e, void *from, void *to, int message) {
    while (e->receive(from, message, NULL, 0) == PMLP_BUSY) pmlp__pause();
    e->send(to, message, NULL, 0);
}

static void *pong(void *argument) {
    pingpong *const p = argument;
    for (int i = 0; i < TRIPS; i++) pass_on(p->edges, p->there, p->back, i);
    return NULL;
}

/* Seconds from send to receive on an edge whose ends do nothing else. */
static double edge_alone(void) {
    static pingpong p;
    pmlp_edge_desc desc = {.slots = 1, .wake = nobody_sleeps};
    pmlp_error error;
    pthread_t other;
    p.edges = pmlp_thread_edges();
    must(p.edges->connect(p.edges, &desc, &p.there, &error), &error);
    must(p.edges->connect(p.edges, &desc, &p.back, &error), &error);
    if (pthread_create(&other, NULL, pong, &p) != 0) die("no thread could be started");
    for (int i = 0; i < TRIPS; i++) {
        const double begin = machine_seconds();
        p.edges->send(p.there, i, NULL, 0);
        while (p.edges->receive(p.back, i, NULL, 0) == PMLP_BUSY) pmlp__pause();
        p.seconds[i] = machine_seconds() - begin;
    }
    pthread_join(other, NULL);
    p.edges->disconnect(p.there);
    p.edges->disconnect(p.back);
    return machine_median(p.seconds, TRIPS) / 2;
}

/* The same in training, beside the F of a micro-batch. */
static void print_handoff(int workers, size_t batch, int steps) {
    const pmlp_trainer_desc desc = {.batch = batch,
                                    .learning_rate = 0.01f,
                                    .workers = workers,
                                    .microbatches = MICROBATCHES,
                                    .trace = steps};
    pmlp_costs costs;
    pmlp_model *model;
    pmlp_trainer *const trainer = start(&model, &desc);
    double f = 0;
    median_step(trainer, batch, steps, NULL);
    must(pmlp_trainer_costs(trainer, &costs), pmlp_trainer_error(trainer));
    for (int s = 0; s < workers; s++) f += costs.f[s] / workers;
    printf("handoff batch=%zu workers=%d microbatches=%d us=%.2f f_us=%.1f\n", batch, workers,
           MICROBATCHES, 1e6 * costs.latency, 1e6 * f);
    stop(model, trainer);
}

static void print_handoffs(size_t batch, int steps) {
    const int cores = (int)sysconf(_SC_NPROCESSORS_ONLN);
    printf("handoff us=%.2f\n", 1e6 * edge_alone());
    print_handoff(WORKERS, batch, steps);
    if (2 * cores <= 8) print_handoff(2 * cores, batch, steps); /* who waits has no core */
}

static const char help[] =
    "profile: where the time of a training step of 784-512-256-128-10 goes.\n\n"
    "  --batch N     rows of a batch, 1 to 16384; default 128, then 1024\n"
    "  --steps N     steps to take medians of, in each of 5 blocks, of which the fastest counts;\n"
    "                default 60\n\n"
    "Lines without `workers`: one worker, the whole batch at once, by operation and layer.\n"
    "  us            the median\n"
    "  share         of the step\n"
    "  floor_us      its multiply-adds at the best peak seen, peak_gflops, or each of its bytes\n"
    "                once, from caches up to the level named, whichever is more (bound=)\n"
    "  over          us / floor_us\n"
    "  transpose     what the first backward_input after an update takes longer than a second;\n"
    "                backward_input is shown without it\n"
    "  with=backward_weight   this update makes the gradient, too\n"
    "  rest          what is left of the step\n"
    "  untimed_us    a step without clocks inside\n"
    "Lines with `workers`: shares of the makespan of the step of median length; busy is forward\n"
    "to update, and an update that makes its gradient counts as backward_weight; fill, waiting,\n"
    "transfer and drain are idle; speedup is untimed_us / us of the step.\n"
    "Lines that begin with `handoff`: us from send to receive of an edge by itself; with\n"
    "`workers`, from the end of what produced a message to the begin of what waited for it; f_us\n"
    "is the F of a micro-batch, mean of the stages.\n"
    "Exit status: 0; 2 if it could not run.\n";

int main(int argc, char **argv) {
    size_t batches[] = {128, 1024}, count = 2;
    int steps = 60;
    for (int i = 1; i < argc; i += 2) {
        const bool batch = strcmp(argv[i], "--batch") == 0;
        char *end = NULL;
        const long value = i + 1 < argc ? strtol(argv[i + 1], &end, 10) : 0;
        if (strcmp(argv[i], "--help") == 0) return fputs(help, stdout), 0;
        if (!batch && strcmp(argv[i], "--steps") != 0) {
            fprintf(stderr, "profile: unknown option %s; --help lists them\n", argv[i]);
            return 2;
        }
        if (!end || *end || value < 1 || value > (batch ? ROWS : 100000))
            die(batch ? "--batch wants a number of rows from 1 to 16384"
                      : "--steps wants a number from 1 to 100000");
        if (batch) batches[0] = (size_t)value, count = 1;
        else steps = (int)value;
    }
    make_table();
    make_data();
    peak = machine_peak();
    if (!machine_levels(levels)) die("out of memory");
    machine_print(peak, levels);
    for (size_t i = 0; i < count; i++) {
        const double serially = print_serial(batches[i], steps);
        print_pipelined(batches[i], steps, serially);
        fflush(stdout);
    }
    print_handoffs(batches[0], steps);
    free(x);
    free(labels);
    return 0;
}
