/* 03: schedules are data. Nothing is trained here: three schedules for 4 workers and 8
   micro-batches are built, proved by the checker, timed by the simulator and drawn. A forward takes
   one cell, a backward two (one for the input, one for the weights). GPipe and 1F1B are equally
   fast, and idle for (p-1)/(m+p-1) of the time; but 1F1B holds the activations of 4 micro-batches
   instead of 8. Then two broken schedules are refused, each with its sentence. The exit status is 0
   if all of that holds.

       cc -O3 -std=c99 03_schedules.c -o 03_schedules -pthread -lm                                */
#define PIPEMLP_IMPLEMENTATION
#include "../pipemlp.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { WORKERS = 4, MICROBATCHES = 8, CELLS = 16384 };

/* Builds, proves, times and draws one schedule; true if the numbers are the expected ones. */
static bool show(pmlp_schedule_kind kind, double makespan, int peak) {
    const pmlp_schedule_desc desc = {
        .kind = kind, .workers = WORKERS, .microbatches = MICROBATCHES};
    const double work = 3.0 * MICROBATCHES; /* of each worker: F, I and W */
    static char drawing[CELLS];
    pmlp_schedule *schedule = NULL;
    pmlp_check check = {0};
    pmlp_simulation time = {0};
    pmlp_error error = {0};

    if (pmlp_schedule_create(&desc, &schedule, &error) == PMLP_OK &&
        pmlp_schedule_check(schedule, 0, &check, &error) == PMLP_OK &&
        pmlp_schedule_simulate(schedule, NULL, NULL, &time, &error) == PMLP_OK)
        pmlp_schedule_draw(schedule, NULL, 1, drawing, sizeof drawing, NULL, &error);
    pmlp_schedule_destroy(schedule);
    if (error.result != PMLP_OK) return fprintf(stderr, "03_schedules: %s\n", error.text), false;

    printf("%s: makespan %g, bubble %.1f %%, at most %d micro-batches in memory, proved\n%s\n",
           pmlp_schedule_kind_name(kind), time.makespan, 100 * time.bubble, check.peak, drawing);
    return fabs(time.makespan - makespan) < 1e-9 && check.peak == peak &&
           fabs(time.bubble - (1 - work / makespan)) < 1e-9;
}

/* True if the text is read but the checker refuses it with the expected result. */
static bool refuse(const char *what, const char *text, pmlp_result expected) {
    pmlp_schedule *schedule = NULL;
    pmlp_error error = {0};

    if (pmlp_schedule_parse(text, strlen(text), NULL, &schedule, &error) == PMLP_OK)
        pmlp_schedule_check(schedule, 0, NULL, &error);
    pmlp_schedule_destroy(schedule);
    printf("%s\n%s%s: %s\n\n", what, text, pmlp_result_name(error.result), error.text);
    return error.result == expected && error.text[0] != '\0';
}

int main(void) {
    const double p = WORKERS, m = MICROBATCHES;
    bool good = true;

    good = show(PMLP_SCHEDULE_SEQUENTIAL, 3 * m * p, 1) && good;
    good = show(PMLP_SCHEDULE_GPIPE, 3 * (m + p - 1), MICROBATCHES) && good;
    good = show(PMLP_SCHEDULE_1F1B, 3 * (m + p - 1), WORKERS) && good;

    good = refuse("a backward is missing:",
                  "0F0,0F1,0B0,0B1\n"
                  "1F0,1B0,1F1\n",
                  PMLP_ERROR_SCHEDULE) &&
           good;
    good = refuse("each worker waits for the other:",
                  "0F0,0B0,0F1,0B1\n"
                  "1F0,1F1,1B0,1B1\n",
                  PMLP_ERROR_DEADLOCK) &&
           good;

    printf(good ? "all as expected\n" : "NOT AS EXPECTED\n");
    return good ? 0 : 1;
}
