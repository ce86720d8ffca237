/* scale: on how many GPUs does which pipeline pay? Simulates steps of wide networks on 8 to 1,024
   GPUs in nodes, cut into P stages and R replicas, by every schedule that is worth it, and prints
   tables in Markdown. Nothing is measured here: every number is a prediction from the assumptions
   below, which can be given as NAME=VALUE.

       build/scale [NAME=VALUE ...]            the tables; make scale writes tests/bench/SCALE.md
       build/scale case [NAME=VALUE ...]       one case, as NAME=VALUE                            */
#define PIPEMLP_IMPLEMENTATION
#include "../../pipemlp.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The machine; then the case, of which the tables set all by themselves. */
static struct {
    double tflops, hbm, memory, launch, node, nvlink, nvlink_us, network, network_us;
    double layers, width, rows, stages, replicas, virtual_stages, microbatches;
    pmlp_schedule_kind kind;
} is = {300, 2700, 72, 3, 8, 360, 8, 40, 15, 64, 16384, 16384, 8, 1, 1, 32, PMLP_SCHEDULE_1F1B};

static const struct { const char *name; double *value; const char *meaning; } knobs[] = {
    {"tflops", &is.tflops, "TFLOP/s of a large product: 60 % of an H100's 495 in TF32 (data sheet)"},
    {"hbm", &is.hbm, "GB/s of its memory: 80 % of 3,350"},
    {"memory", &is.memory, "GB of memory that can be used: 90 % of 80"},
    {"launch", &is.launch, "us that each operation takes at least"},
    {"node", &is.node, "GPUs in a node"},
    {"nvlink", &is.nvlink, "GB/s from GPU to GPU in a node, each way: 80 % of 450"},
    {"nvlink_us", &is.nvlink_us, "us until the first byte is there"},
    {"network", &is.network, "GB/s of each GPU to other nodes, each way: 80 % of 400 Gb/s"},
    {"network_us", &is.network_us, "us until the first byte is there"},
    {"layers", &is.layers, NULL},
    {"width", &is.width, NULL},
    {"rows", &is.rows, NULL},
    {"stages", &is.stages, NULL},
    {"replicas", &is.replicas, NULL},
    {"virtual", &is.virtual_stages, NULL},
    {"microbatches", &is.microbatches, NULL},
};
enum { KNOBS = (int)(sizeof knobs / sizeof knobs[0]), MOST_STAGES = 1024 };

/* A way to train, and what is predicted of it; times in seconds. */
typedef struct plan {
    int stages, replicas, virtual_stages, microbatches;
    pmlp_schedule_kind kind;
    double step, pipeline, sum; /* = pipeline + sum, over the replicas */
    double busy;                /* share of the assumed TFLOP/s that trains, 0 .. 1 */
    double gigabytes;           /* on each GPU */
    double held;                /* micro-batches that the schedule makes a GPU hold, at most */
} plan;

static void must(pmlp_result result, const pmlp_error *error) {
    if (result == PMLP_OK) return;
    fprintf(stderr, "scale: %s\n", error->text);
    exit(1);
}

static double larger(double a, double b) { return a > b ? a : b; }

/* A product of `rows` rows with a layer's weights: arithmetic or memory, whichever takes longer.
   moved: how often each weight, or its gradient, goes to or from memory. */
static double product_seconds(double rows, double moved) {
    const double weights = is.width * is.width;
    const double flops = 2 * rows * weights, bytes = 4 * (moved * weights + 2 * rows * is.width);
    return 1e-6 * is.launch + larger(flops / (1e12 * is.tflops), bytes / (1e9 * is.hbm));
}

/* From worker to worker of one pipeline, whose workers sit side by side. */
static double message_seconds(int from, int to, double bytes) {
    const bool near = from / (int)is.node == to / (int)is.node;
    if (from == to) return 0;
    return near ? 1e-6 * is.nvlink_us + bytes / (1e9 * is.nvlink)
                : 1e-6 * is.network_us + bytes / (1e9 * is.network);
}

/* The ring: each GPU sends 2 (R - 1) / R of its gradients, in 2 (R - 1) steps. As many replicas as a
   node holds share its ports. */
static double sum_seconds(int stages, int replicas, double bytes) {
    const double in_node = larger(1, is.node / stages), far = replicas > in_node;
    const double links = is.network * in_node < is.nvlink ? is.network * in_node : is.nvlink;
    const double rate = 1e9 * (far ? links : is.nvlink);
    if (replicas == 1) return 0;
    return 2.0 * (replicas - 1) *
           (bytes / replicas / rate + 1e-6 * (far ? is.network_us : is.nvlink_us));
}

/* The pipeline of one replica, as the trainer runs it. */
static void simulate(plan *p, double layers, double rows) {
    static double f[MOST_STAGES], w[MOST_STAGES], message[MOST_STAGES];
    const int stages = p->stages * p->virtual_stages;
    const pmlp_schedule_desc desc = {.kind = p->kind, .workers = p->stages,
                                     .virtual_stages = p->virtual_stages,
                                     .microbatches = p->microbatches};
    const pmlp_costs costs = {.f = f, .i = f, .w = w, .per_byte = 1, .message_bytes = message};
    pmlp_schedule *schedule = NULL, *lowered = NULL;
    pmlp_simulation simulated;
    pmlp_error error;
    double wire = 0;
    must(pmlp_schedule_create(&desc, &schedule, &error), &error);
    for (int s = 0; s < stages; s++) {
        f[s] = layers * product_seconds(rows, 1);
        w[s] = layers * product_seconds(rows, 2);
        if (s + 1 == stages) break;
        message[s] = message_seconds(pmlp_schedule_stage_worker(schedule, s),
                                     pmlp_schedule_stage_worker(schedule, s + 1),
                                     4 * rows * is.width);
        wire = larger(wire, message[s]);
    }
    must(pmlp_schedule_lower(schedule, &lowered, &error), &error);
    must(pmlp_schedule_simulate(lowered, &costs, NULL, &simulated, &error), &error);
    p->held = simulated.peak;
    /* The simulator lets messages pass each other; on one wire, each way, they follow each other. */
    p->pipeline = larger(simulated.makespan, wire * p->microbatches * p->virtual_stages);
    pmlp_schedule_destroy(schedule);
    pmlp_schedule_destroy(lowered);
}

static void predict(plan *p) {
    const double weights = is.width * is.width, layers = is.layers / p->stages;
    const double share = is.rows / p->replicas;
    simulate(p, layers / p->virtual_stages, share / p->microbatches);
    p->pipeline += layers * (1e-6 * is.launch + 28 * weights / (1e9 * is.hbm)); /* Adam */
    p->sum = sum_seconds(p->stages, p->replicas, 4 * weights * layers);
    p->step = p->pipeline + p->sum;
    p->busy = 6 * is.rows * weights * is.layers /
              (1e12 * is.tflops * p->stages * p->replicas * p->step);
    p->gigabytes = 1e-9 * layers * (16 * weights + 8 * share * is.width);
}

/* Can it be trained so, and is it worth a look? */
static bool is_possible(const plan *p) {
    const double rows = is.rows / p->replicas / p->microbatches;
    const double held = is.layers / p->stages * (16 * is.width * is.width +
                                                 8 * is.rows / p->replicas * is.width);
    if (p->stages * p->virtual_stages > is.layers || held > 1e9 * is.memory) return false;
    return rows >= 16 && p->microbatches >= p->stages && p->microbatches <= 8 * p->stages;
}

/* The fastest for so many stages and replicas; false if there is none. A plan that comes later must
   be 1 % faster to win: the simple ones come first. */
static bool best_plan(int stages, int replicas, plan *best) {
    static const struct { pmlp_schedule_kind kind; int virtual_stages; } ways[] = {
        {PMLP_SCHEDULE_1F1B, 1}, {PMLP_SCHEDULE_EAGER_1F1B, 1}, {PMLP_SCHEDULE_ZB_H1, 1},
        {PMLP_SCHEDULE_INTERLEAVED, 2}, {PMLP_SCHEDULE_INTERLEAVED, 4}, {PMLP_SCHEDULE_ZB_V, 2}};
    bool found = false;
    for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++)
        for (int m = stages; m <= 8 * stages; m *= 2) {
            plan p = {stages, replicas, ways[i].virtual_stages, m, ways[i].kind, 0, 0, 0, 0, 0, 0};
            if (!is_possible(&p) || (stages == 1 && i > 0)) continue;
            predict(&p);
            if (!found || p.step < 0.99 * best->step) *best = p;
            found = true;
        }
    return found;
}

static bool best_of_all(int gpus, plan *best) {
    bool found = false;
    for (int stages = 1; stages <= gpus && stages <= is.layers; stages *= 2) {
        plan p;
        if (!best_plan(stages, gpus / stages, &p)) continue;
        if (!found || p.step < 0.99 * best->step) *best = p;
        found = true;
    }
    return found;
}

static void print_plan(const plan *p) {
    char kind[32] = "-";
    if (p->stages > 1 && p->kind == PMLP_SCHEDULE_INTERLEAVED)
        snprintf(kind, sizeof kind, "interleaved, %d", p->virtual_stages);
    else if (p->stages > 1) snprintf(kind, sizeof kind, "%s", pmlp_schedule_kind_name(p->kind));
    printf("%d x %d | %s | %d x %.0f | %.1f | %.0f %% | %.1f | %.1f |", p->stages, p->replicas, kind,
           p->microbatches, is.rows / p->replicas / p->microbatches, 1e3 * p->step, 100 * p->busy,
           1e3 * p->sum, p->gigabytes);
}

static void print_time(bool found, const plan *p) {
    if (found) printf(" %.1f |", 1e3 * p->step);
    else printf(" - |");
}

static const char head[] = "P x R | schedule | micro-batches x rows | step, ms | of the TFLOP/s | "
                           "sum, ms | GB |";
static const char rule[] = "--:|---|--:|--:|--:|--:|--:|";

static void describe(double layers, double width, double rows) {
    is.layers = layers, is.width = width, is.rows = rows;
    printf("%.0f layers of %.0f x %.0f (%.3g G weights), batch of %.0f rows", layers, width, width,
           1e-9 * layers * width * width, rows);
}

/* The best for each number of GPUs; beside it what replicas alone and one pipeline alone would do. */
static void print_network(double layers, double width, double rows) {
    static const int gpus[] = {8, 32, 128, 512, 1024};
    printf("\n### ");
    describe(layers, width, rows);
    printf("\n\n| GPUs | %s P = 1, ms | R = 1, ms |\n|--:|%s--:|--:|\n", head, rule);
    for (size_t i = 0; i < sizeof gpus / sizeof gpus[0]; i++) {
        plan best, other;
        printf("| %d | ", gpus[i]);
        if (best_of_all(gpus[i], &best)) print_plan(&best);
        else printf("too few | | | | | | |");
        print_time(best_plan(1, gpus[i], &other), &other);
        print_time(best_plan(gpus[i], 1, &other), &other);
        printf("\n");
        fflush(stdout);
    }
}

/* The best for each P: why it is that one. */
static void print_choice(double layers, double width, double rows, int gpus) {
    printf("\n### %d GPUs: ", gpus);
    describe(layers, width, rows);
    printf("\n\n| %s pipeline, ms |\n|%s--:|\n", head, rule);
    for (int stages = 1; stages <= gpus && stages <= is.layers; stages *= 2) {
        plan p;
        printf("| ");
        if (best_plan(stages, gpus / stages, &p)) print_plan(&p), printf(" %.1f |\n", 1e3 * p.pipeline);
        else printf("%d x %d | does not fit | | | | | | |\n", stages, gpus / stages);
    }
}

static void print_tables(int count, char **words) {
    printf("# On many GPUs: predictions\n\nMade by `build/scale");
    for (int i = 1; i < count; i++) printf(" %s", words[i]);
    printf("`. **Nothing here was measured**: each number is a prediction, a simulation by\n"
           "`pmlp_schedule_simulate()` under these assumptions, none of which was measured either:\n\n"
           "| assumed | | |\n|---|--:|---|\n");
    for (int i = 0; i < KNOBS && knobs[i].meaning; i++)
        printf("| `%s` | %g | %s |\n", knobs[i].name, *knobs[i].value, knobs[i].meaning);
    printf("\n"
           "P x R are stages x replicas. A product takes `launch` and its arithmetic or its memory\n"
           "traffic, whichever is longer (W reads and writes the gradient, F and I read the\n"
           "weights); every layer has F, I and W, the first one, too. The schedule runs as the\n"
           "trainer lowers it; a message takes its latency and its bytes, and messages on one wire\n"
           "follow each other. A pipeline's GPUs sit side by side, in as few nodes as possible.\n"
           "Adam moves 28 bytes for each weight. Then the sum over replicas, a ring: 2 (R - 1)\n"
           "steps of 1/R of a GPU's gradients, behind the backward, not during it; replicas in one\n"
           "node share its ports. GB: weights, gradients and Adam's moments, 16 bytes for each weight, and the\n"
           "activations and their gradients of the replica's whole share of the batch, as the\n"
           "trainer keeps them. Searched: powers of two; 1f1b, eager-1f1b, zb-h1, interleaved with 2\n"
           "and 4 stages per worker, zb-v; P to 8 P micro-batches of 16 rows or more. What is not at\n"
           "least 1 %% faster than something simpler does not count. \"Of the TFLOP/s\" is the share\n"
           "of all GPUs' `tflops` that the step's arithmetic fills. P = 1: replicas alone, R = 1: one\n"
           "pipeline alone; `-`: does not fit, in memory or because there are too few layers or rows.\n"
           "\n## Which P x R\n");
    print_network(32, 4096, 16384);
    print_network(32, 4096, 131072);
    print_network(64, 16384, 16384);
    print_network(64, 16384, 131072);
    print_network(128, 32768, 16384);
    print_network(128, 32768, 131072);
    printf("\n## Why\n");
    print_choice(32, 4096, 16384, 128);
    print_choice(64, 16384, 131072, 512);
}

static void print_case(void) {
    plan p = {(int)is.stages, (int)is.replicas, (int)is.virtual_stages, (int)is.microbatches,
              is.kind, 0, 0, 0, 0, 0, 0};
    predict(&p);
    printf("step=%.9g pipeline=%.9g sum=%.9g busy=%.6f gigabytes=%.6f held=%g\n", p.step,
           p.pipeline, p.sum, p.busy, p.gigabytes, p.held);
}

/* NAME=VALUE, or schedule=NAME. */
static void set(const char *word) {
    const char *value = strchr(word, '=');
    char *end = NULL;
    int i = 0;
    if (value == NULL) value = "";
    else value++;
    while (i < KNOBS && (strncmp(word, knobs[i].name, strlen(knobs[i].name)) != 0 ||
                         word[strlen(knobs[i].name)] != '='))
        i++;
    if (i < KNOBS) *knobs[i].value = strtod(value, &end);
    if (strncmp(word, "schedule=", 9) == 0) is.kind = pmlp_schedule_kind_of(value);
    else if (end == NULL || end == value || *end != '\0' || !(*knobs[i].value >= 0))
        fprintf(stderr, "scale: %s: not a NAME=NUMBER that is known\n", word), exit(2);
}

int main(int argc, char **argv) {
    const bool one = argc > 1 && strcmp(argv[1], "case") == 0;
    for (int i = one ? 2 : 1; i < argc; i++) set(argv[i]);
    if (one) print_case();
    else print_tables(argc, argv);
    return 0;
}
