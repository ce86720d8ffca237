/* 07: where the time goes. Two workers train with 1F1B and keep a trace of the last steps; what is
   measured is printed beside what the simulator says for the same costs, then a table of where each
   worker's time went, and what bounds the speedup. 07_timeline.svg (for a browser) and
   07_timeline.json (for ui.perfetto.dev) are written into the directory given, or the current one.
   The simulator knows no operating system: what it lacks is what hand-offs, clocks and other
   programs cost. The exit status is 0 if the files are written, the spans of each worker follow one
   another without overlap, and the shares of its time add up to the whole.

       cc -O3 -std=c99 07_timeline.c -o 07_timeline -pthread -lm                                  */
#define PIPEMLP_IMPLEMENTATION
#include "../pipemlp.h"

#include <math.h>
#include <stdio.h>

enum { ROWS = 4096, INPUTS = 784, CLASSES = 10, LAYERS = 4, BATCH = 512 };
enum { EPOCHS = 12, TRACED = 40, CELLS = 32 };

/* True if the worker's spans come one after the other, between 0 and the end of all. */
static bool in_order(const pmlp_timeline *timeline, int worker) {
    double end = 0;
    int count;
    const pmlp_span *span = pmlp_timeline_spans(timeline, worker, &count);
    for (int i = 0; i < count; end = span[i++].end)
        if (span[i].begin < end || span[i].end < span[i].begin) return false;
    return count > 0 && end <= pmlp_timeline_makespan(timeline);
}

/* Prints the drawing and the table of shares; true if they are what they must be. */
static bool show(const char *name, const pmlp_timeline *timeline, double unit) {
    static char drawing[1 << 16];
    const double makespan = pmlp_timeline_makespan(timeline);
    bool good = pmlp_timeline_draw(timeline, unit, drawing, sizeof drawing, NULL, NULL) == PMLP_OK;

    printf("%s: %.3f ms, a cell is %.3f ms\n%s\n", name, 1000 * makespan, 1000 * unit, drawing);
    printf("          busy (    F      I      W      U)  fill  waiting  hand-offs  drain\n");
    for (int r = 0; r < pmlp_timeline_workers(timeline); r++) {
        pmlp_worker_time t = {0};
        pmlp_timeline_worker(timeline, r, &t);
        const double part = 100 / makespan, i = t.i + t.b;
        printf("worker %d %5.1f (%5.1f  %5.1f  %5.1f  %5.1f)%6.1f%9.1f%11.1f%7.1f  %%\n", r,
               part * t.busy, part * t.f, part * i, part * t.w, part * t.u, part * t.fill,
               part * t.waiting, part * t.transfer, part * t.drain);
        good = in_order(timeline, r) && good;
        good = fabs(t.busy + t.fill + t.waiting + t.transfer + t.drain - makespan) <
                   1e-6 * makespan && good;
    }
    printf("\n");
    return good;
}

/* The timelines of what the trainer has traced, and what they teach. */
static bool look(pmlp_trainer *trainer, const pmlp_model *model, const pmlp_trainer_desc *how,
                 const char *directory, pmlp_error *error) {
    const pmlp_picture picture = {.title = "1F1B, two workers", .unit = "ms", .scale = 1000};
    pmlp_timeline *measured = NULL, *simulated = NULL;
    pmlp_schedule *lists = NULL; /* as they run: a gradient leaves between I and W */
    pmlp_ceiling_report bound = {0};
    pmlp_costs costs = {0};
    char svg[512], json[512];
    bool good = false;

    snprintf(svg, sizeof svg, "%s/07_timeline.svg", directory);
    snprintf(json, sizeof json, "%s/07_timeline.json", directory);
    if (pmlp_trainer_timeline(trainer, 0, &measured) != PMLP_OK ||
        pmlp_trainer_costs(trainer, &costs) != PMLP_OK)
        *error = *pmlp_trainer_error(trainer);
    else if (pmlp_schedule_lower(pmlp_trainer_schedule(trainer), &lists, error) == PMLP_OK &&
             pmlp_schedule_timeline(lists, &costs, &simulated, error) == PMLP_OK &&
             pmlp_timeline_write_svg(measured, simulated, &picture, svg, error) == PMLP_OK &&
             pmlp_timeline_write_trace(measured, simulated, &picture, json, error) == PMLP_OK &&
             pmlp_ceiling(model, how, &costs, &bound, error) == PMLP_OK) {
        const double unit = pmlp_timeline_makespan(simulated) / CELLS;
        good = show("simulated with the costs measured", simulated, unit);
        good = show("measured, the step of median length", measured, unit) && good;
        printf("bounds of the speedup on %d workers: %.2f by the cut, %.2f by fill and drain, %.2f "
               "by both,\n%.2f with hand-offs; what costs most: %s\n%s\n\nwritten: %s, %s\n",
               bound.workers, bound.balance, bound.fill, bound.schedule, bound.speedup, bound.binds,
               bound.advice, svg, json);
    }
    pmlp_timeline_destroy(measured);
    pmlp_timeline_destroy(simulated);
    pmlp_schedule_destroy(lists);
    return good;
}

int main(int argc, char **argv) {
    static float x[ROWS][INPUTS];
    static int labels[ROWS];
    const int sizes[LAYERS + 1] = {INPUTS, 512, 256, 128, CLASSES};
    const pmlp_data data = {.rows = ROWS, .x = &x[0][0], .labels = labels};
    const pmlp_model_desc net = {.layers = LAYERS, .sizes = sizes};
    const pmlp_trainer_desc how = {
        .workers = 2, .microbatches = 4, .batch = BATCH, .trace = TRACED, .learning_rate = 0.01f};
    pmlp_model *model = NULL;
    pmlp_trainer *trainer = NULL;
    pmlp_error error = {0};
    bool good = false;

    for (int r = 0; r < ROWS; r++) { /* what is learned does not matter here */
        labels[r] = r % CLASSES;
        for (int n = 0; n < INPUTS; n++) x[r][n] = (float)((r * 31 + n * 17) % 101) / 101;
    }
    if (pmlp_model_create(&net, &model, &error) == PMLP_OK &&
        pmlp_trainer_create(model, &how, &trainer, &error) == PMLP_OK) {
        for (int epoch = 0; epoch < EPOCHS && error.result == PMLP_OK; epoch++)
            if (pmlp_trainer_epoch(trainer, &data, NULL) != PMLP_OK)
                error = *pmlp_trainer_error(trainer);
        if (error.result == PMLP_OK)
            good = look(trainer, model, &how, argc > 1 ? argv[1] : ".", &error);
    }
    pmlp_trainer_destroy(trainer);
    pmlp_model_destroy(model);
    if (error.result != PMLP_OK) fprintf(stderr, "07_timeline: %s\n", error.text);
    return good ? 0 : 1;
}
