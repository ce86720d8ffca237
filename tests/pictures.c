/* pictures: draws the simulated timeline of every schedule as DIR/NAME.svg, and a page,
   DIR/index.html, that shows them under each other. `make pictures` runs it. Each worker's share of
   F, I and W takes 1 for a micro-batch, whether it is one stage or several, so that the lengths can
   be compared. */
#define PIPEMLP_IMPLEMENTATION
#include "../pipemlp.h"

#include <stdio.h>

enum { WORKERS = 4, MICROBATCHES = 8, BATCHES = 3, ROOM = 4096 };

static const char *const about[PMLP_SCHEDULE_KIND_COUNT] = {
    [PMLP_SCHEDULE_SEQUENTIAL] = "One micro-batch at a time: the workers take turns.",
    [PMLP_SCHEDULE_GPIPE] = "All forwards, then all backwards.",
    [PMLP_SCHEDULE_1F1B] = "As soon as there is a backward, do it: less is held, the bubble stays.",
    [PMLP_SCHEDULE_EAGER_1F1B] = "1F1B with twice the warm-up, which hides the time of hand-offs.",
    [PMLP_SCHEDULE_INTERLEAVED] = "1F1B over two stages per worker: half the bubble.",
    [PMLP_SCHEDULE_LOOPED_BFS] = "GPipe over two stages per worker, one stage after the other.",
    [PMLP_SCHEDULE_ZB_H1] = "1F1B with W put off into the bubble.",
    [PMLP_SCHEDULE_ZB_H2] = "The same with twice the warm-up: no bubble between first and last.",
    [PMLP_SCHEDULE_ZB_V] = "Two stages per worker in the shape of a V.",
    [PMLP_SCHEDULE_DUALPIPE_V] = "The same shape, eight phases.",
    [PMLP_SCHEDULE_AUTO] = "Found by search for these costs.",
    [PMLP_SCHEDULE_PIPEDREAM] = "Asynchronous: an update after every micro-batch, no flush.",
    [PMLP_SCHEDULE_PIPEDREAM_2BW] = "Asynchronous: an update per batch, weights one update old.",
};

/* One schedule: its picture, and its part of the page. */
static pmlp_result draw(const char *dir, pmlp_schedule_kind kind, FILE *page, pmlp_error *error) {
    const char *name = pmlp_schedule_kind_name(kind);
    const bool goes_on = kind == PMLP_SCHEDULE_PIPEDREAM || kind == PMLP_SCHEDULE_PIPEDREAM_2BW;
    const pmlp_schedule_desc desc = {
        .kind = kind,
        .workers = WORKERS,
        .microbatches = MICROBATCHES,
        .batches = goes_on ? BATCHES : 1,
    };
    char path[ROOM], title[128];
    double share[WORKERS * WORKERS];
    const pmlp_costs costs = {.f = share, .i = share, .w = share, .held = share};
    const pmlp_picture picture = {.title = title};
    pmlp_schedule *schedule = NULL;
    pmlp_timeline *timeline = NULL;
    pmlp_simulation simulation = {0};
    pmlp_result result = pmlp_schedule_create(&desc, &schedule, error);

    snprintf(path, sizeof path, "%s/%s.svg", dir, name);
    snprintf(title, sizeof title, "%s, %d workers, %d micro-batches%s", name, WORKERS, MICROBATCHES,
             goes_on ? " a batch" : "");
    for (int s = 0; result == PMLP_OK && s < pmlp_schedule_stages(schedule); s++)
        share[s] = (double)WORKERS / pmlp_schedule_stages(schedule);
    if (result == PMLP_OK) result = pmlp_schedule_timeline(schedule, &costs, &timeline, error);
    if (result == PMLP_OK)
        result = pmlp_schedule_simulate(schedule, &costs, NULL, &simulation, error);
    if (result == PMLP_OK) result = pmlp_timeline_write_svg(timeline, NULL, &picture, path, error);
    if (result == PMLP_OK)
        fprintf(page, "<h2>%s</h2>\n<p>%s Length %g, idle %.1f %%, most held by a worker: %g.</p>\n"
                "<img src=\"%s.svg\" alt=\"the timeline of %s\">\n", name, about[kind],
                simulation.makespan, 100 * simulation.bubble, simulation.peak, name, name);
    pmlp_timeline_destroy(timeline);
    pmlp_schedule_destroy(schedule);
    return result;
}

int main(int argc, char **argv) {
    char path[ROOM];
    FILE *page;
    pmlp_error error = {0};

    if (argc != 2 || strlen(argv[1]) > ROOM / 2) {
        fprintf(stderr, "usage: pictures DIR\n");
        return 2;
    }
    snprintf(path, sizeof path, "%s/index.html", argv[1]);
    page = fopen(path, "w");
    if (page == NULL) {
        fprintf(stderr, "pictures: %s cannot be written\n", path);
        return 1;
    }
    fprintf(page, "<!DOCTYPE html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n"
            "<meta name=\"color-scheme\" content=\"light dark\">\n<title>Schedules</title>\n"
            "<style>body{font:15px sans-serif;max-width:1200px;margin:2em auto;padding:0 1em}"
            "img{max-width:100%%;height:auto}</style>\n<h1>Schedules</h1>\n"
            "<p>%d workers, %d micro-batches. A worker's share of F, I and W takes 1 each for a\n"
            "micro-batch, B is I and W, hand-offs and updates take no time. What a worker holds\n"
            "is counted in activations of whole micro-batches. Of asynchronous schedules %d\n"
            "batches are drawn.</p>\n",
            WORKERS, MICROBATCHES, BATCHES);
    for (int k = PMLP_SCHEDULE_DEFAULT + 1; k < PMLP_SCHEDULE_KIND_COUNT; k++)
        if (draw(argv[1], (pmlp_schedule_kind)k, page, &error) != PMLP_OK) {
            fprintf(stderr, "pictures: %s: %s\n", pmlp_schedule_kind_name((pmlp_schedule_kind)k),
                    error.text);
            fclose(page);
            return 1;
        }
    fprintf(page, "</html>\n");
    if (fclose(page) != 0) {
        fprintf(stderr, "pictures: %s cannot be written\n", path);
        return 1;
    }
    printf("%s\n", path);
    return 0;
}
