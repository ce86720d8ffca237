/* 04: a schedule of your own. A rule of a few lines says what each of 4 workers does with 8 micro-
   batches, one stage each, and writes it down action by action. The checker grades it: at first the
   workers warm up the wrong way round, which is a deadlock; mended, the rule is 1F1B. Then W, the
   half of the backward for which nobody waits, is put off into the time in which the worker would
   be idle; some are forgotten first, and found missing; at last it is as fast as the built-in
   ZB-H1. It is printed as the text that `train --schedule FILE` reads, and trained with. The exit
   status is 0 if the grades are the expected ones, none of the three built-in schedules is faster,
   and the trained bits are those of serial training.

       cc -O3 -std=c99 04_your_own_schedule.c -o 04_your_own_schedule -pthread -lm                */
#define PIPEMLP_IMPLEMENTATION
#include "../pipemlp.h"

#include <stdio.h>

enum { WORKERS = 4, MICROBATCHES = 8, ROWS = 512, INPUTS = 16, CLASSES = 4 };

static char text[16384]; /* drawings, and the schedule itself */

typedef struct rule {
    const char *what;
    bool upside_down; /* the last worker warms up longest instead of the first */
    bool put_off;     /* worker r keeps its W r micro-batches behind */
    bool forget;      /* what was put off is never made up for */
    pmlp_result grade;
} rule;

static const rule rules[] = {
    {"worker r begins with r + 1 forwards", true, false, false, PMLP_ERROR_DEADLOCK},
    {"with 4 - r forwards instead", false, false, false, PMLP_OK},
    {"and its Ws stay r micro-batches behind", false, true, true, PMLP_ERROR_SCHEDULE},
    {"and are made up for at the end", false, true, false, PMLP_OK},
};
enum { RULES = sizeof rules / sizeof rules[0] };

/* The list of worker r: a W that is due, or that is all that is left; else a forward, while few
   enough are on their way; else a backward I. */
static void write_list(const rule *my, int r, pmlp_schedule *mine, pmlp_error *error) {
    const int on_their_way = my->upside_down ? r + 1 : WORKERS - r, behind = my->put_off ? r : 0;
    const int end = my->forget ? MICROBATCHES - behind : MICROBATCHES;
    int f = 0, i = 0, w = 0; /* how many of each are written */

    while (w < end && error->result == PMLP_OK) {
        if (w < i - behind || i == MICROBATCHES)
            pmlp_schedule_append(mine, PMLP_OP_W, r, w++, error);
        else if (f < MICROBATCHES && f < i + on_their_way)
            pmlp_schedule_append(mine, PMLP_OP_F, r, f++, error);
        else
            pmlp_schedule_append(mine, PMLP_OP_I, r, i++, error);
    }
    if (error->result == PMLP_OK) pmlp_schedule_append(mine, PMLP_OP_U, r, -1, error);
}

/* Has it proved and timed; prints the grade, the drawing too if it is mine. */
static pmlp_result grade(const char *what, const pmlp_schedule *schedule, bool mine,
                         double *makespan) {
    pmlp_simulation time = {0};
    pmlp_check check = {0};
    pmlp_error error = {0};

    if (pmlp_schedule_check(schedule, 0, &check, &error) != PMLP_OK ||
        pmlp_schedule_simulate(schedule, NULL, NULL, &time, &error) != PMLP_OK ||
        pmlp_schedule_draw(schedule, NULL, 1, text, sizeof text, NULL, &error) != PMLP_OK)
        return printf("%s: %s\n\n", what, error.text), error.result;
    printf("%s: proved; makespan %g, %.1f %% idle, at most %d micro-batches in memory\n", what,
           time.makespan, 100 * time.bubble, check.peak);
    if (mine) printf("%s\n", text);
    *makespan = time.makespan;
    return PMLP_OK;
}

/* 20 steps with it, compared bit by bit with serial ones. */
static bool train(const pmlp_schedule *mine, pmlp_error *error) {
    static float x[ROWS][INPUTS];
    static int labels[ROWS];
    const int sizes[] = {INPUTS, 32, 32, 32, CLASSES};
    const pmlp_data data = {.rows = ROWS, .x = &x[0][0], .labels = labels};
    const pmlp_model_desc net = {.layers = 4, .sizes = sizes};
    const pmlp_trainer_desc how = {.custom = mine, .batch = 128};
    pmlp_model *model = NULL;
    pmlp_verify_report report = {0};

    for (int r = 0; r < ROWS; r++) {
        for (int n = 0; n < INPUTS; n++) x[r][n] = (float)(r * (37 + n) % 101) / 101 - 0.5f;
        labels[r] = (x[r][0] > 0) + 2 * (x[r][1] > 0);
    }
    if (pmlp_model_create(&net, &model, error) == PMLP_OK &&
        pmlp_verify(model, &how, &data, 20, &report, error) == PMLP_OK)
        printf("trained with it, beside serial training: %s\n", report.text);
    pmlp_model_destroy(model);
    return report.identical;
}

int main(void) {
    static const pmlp_schedule_kind built_in[] = {PMLP_SCHEDULE_GPIPE, PMLP_SCHEDULE_1F1B,
                                                  PMLP_SCHEDULE_ZB_H1};
    const int stage_worker[WORKERS] = {0, 1, 2, 3};
    pmlp_schedule *mine = NULL, *other = NULL;
    double makespan = 0, others = 0;
    pmlp_error error = {0};
    bool good = true;

    for (int n = 0; n < RULES && error.result == PMLP_OK; n++) {
        pmlp_schedule_destroy(mine);
        pmlp_schedule_empty(WORKERS, WORKERS, MICROBATCHES, stage_worker, NULL, &mine, &error);
        for (int r = 0; r < WORKERS && error.result == PMLP_OK; r++)
            write_list(&rules[n], r, mine, &error);
        if (error.result == PMLP_OK)
            good = grade(rules[n].what, mine, true, &makespan) == rules[n].grade && good;
    }
    for (int k = 0; k < 3 && error.result == PMLP_OK; k++) {
        const pmlp_schedule_desc desc = {
            .kind = built_in[k], .workers = WORKERS, .microbatches = MICROBATCHES};
        if (pmlp_schedule_create(&desc, &other, &error) != PMLP_OK) break;
        good = grade(pmlp_schedule_kind_name(built_in[k]), other, false, &others) == PMLP_OK &&
               makespan <= others && good;
        pmlp_schedule_destroy(other);
    }
    if (error.result == PMLP_OK && pmlp_schedule_print(mine, text, sizeof text, NULL) == PMLP_OK)
        printf("\n%s\n", text);
    good = error.result == PMLP_OK && train(mine, &error) && good;
    pmlp_schedule_destroy(mine);
    if (error.result != PMLP_OK) fprintf(stderr, "04_your_own_schedule: %s\n", error.text);
    return good ? 0 : 1;
}
