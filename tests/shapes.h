/* The schedules that tests build: include it after test.h. */
#ifndef PMLP_TEST_SHAPES_H
#define PMLP_TEST_SHAPES_H

/* A schedule's kind and sizes, and what sort of kind it is. */
typedef struct shape {
    pmlp_schedule_kind kind;
    int p, v, m, batches;
} shape;

static inline bool is_async(pmlp_schedule_kind k) {
    return k == PMLP_SCHEDULE_PIPEDREAM || k == PMLP_SCHEDULE_PIPEDREAM_2BW;
}
static inline bool is_v(pmlp_schedule_kind k) {
    return k == PMLP_SCHEDULE_ZB_V || k == PMLP_SCHEDULE_DUALPIPE_V;
}
static inline bool is_looped(pmlp_schedule_kind k) {
    return k == PMLP_SCHEDULE_INTERLEAVED || k == PMLP_SCHEDULE_LOOPED_BFS;
}

#endif
