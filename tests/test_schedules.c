/* Schedules as data: what the builders write, what the checker accepts and refuses, the simulator,
   the text form, lowering and drawing. The checker is held against a second one, written here from
   its rules with other means.

   cc -std=c99 -O2 tests/test_schedules.c -o test_schedules -lm -lpthread */
#define PIPEMLP_IMPLEMENTATION
#include "../pipemlp.h"
#include "test.h"

enum { MAX_P = 8, MAX_M = 24, MAX_S = 8, MAX_LIST = 256, TEXT = 16384 };

static const pmlp_schedule_kind kinds[] = {PMLP_SCHEDULE_SEQUENTIAL, PMLP_SCHEDULE_GPIPE,
                                           PMLP_SCHEDULE_1F1B};

static int least(int a, int b) {
    return a < b ? a : b;
}

/* --- plain lists, which the tests change and write as text ----------------------------------- */

typedef struct lists {
    int p, stages, m;
    int count[MAX_P];
    pmlp_action list[MAX_P][MAX_LIST];
} lists;

static lists original, changed, scratch; /* large, so not on the C stack */
static char text[TEXT], text2[TEXT];

static pmlp_schedule *build(pmlp_schedule_kind kind, int p, int m) {
    pmlp_schedule_desc desc = {0};
    pmlp_schedule *schedule = NULL;
    pmlp_error error = {0};
    desc.kind = kind, desc.workers = p, desc.microbatches = m;
    CHECK(pmlp_schedule_create(&desc, &schedule, &error) == PMLP_OK, "%s p %d m %d: %s",
          pmlp_schedule_kind_name(kind), p, m, error.text);
    return schedule;
}

static void to_lists(const pmlp_schedule *schedule, lists *out) {
    out->p = pmlp_schedule_workers(schedule), out->stages = pmlp_schedule_stages(schedule);
    out->m = pmlp_schedule_microbatches(schedule);
    for (int w = 0; w < out->p; w++) {
        const pmlp_action *a = pmlp_schedule_actions(schedule, w, &out->count[w]);
        if (CHECK(out->count[w] <= MAX_LIST, "list of %d", out->count[w]))
            memcpy(out->list[w], a, (size_t)out->count[w] * sizeof *a);
    }
}

static void action_text(pmlp_action a, char *out, size_t size) {
    if (a.op == PMLP_OP_U)
        snprintf(out, size, "%dU", a.stage);
    else
        snprintf(out, size, "%d%s%d", a.stage, pmlp_op_name(a.op), a.microbatch);
}

static void to_text(const lists *l, char *out, size_t size) {
    size_t used = 0;
    out[0] = 0;
    for (int w = 0; w < l->p; w++)
        for (int i = 0; i <= l->count[w]; i++) {
            char cell[32] = "\n";
            if (i < l->count[w]) action_text(l->list[w][i], cell, sizeof cell - 1);
            if (i + 1 < l->count[w]) strcat(cell, ",");
            snprintf(out + used, size - used, "%s", cell);
            used += strlen(out + used);
        }
}

static pmlp_result parse_text(const char *form, pmlp_schedule **schedule, pmlp_error *error) {
    *schedule = NULL;
    return pmlp_schedule_parse(form, strlen(form), NULL, schedule, error);
}

static pmlp_schedule *parse_fine(const char *form) {
    pmlp_schedule *schedule = NULL;
    pmlp_error error = {0};
    CHECK(parse_text(form, &schedule, &error) == PMLP_OK, "%s\n%s", error.text, form);
    return schedule;
}

/* --- a second checker ------------------------------------------------------------------------ */

/* The rules of pmlp_schedule_check() by brute force: count everything, look at every pair, then let
   the workers run against bounded queues until nothing moves. */

static int find(const lists *l, int w, pmlp_op op, int stage, int microbatch) {
    for (int i = 0; i < l->count[w]; i++) {
        pmlp_action a = l->list[w][i];
        bool whole = a.op == PMLP_OP_B && (op == PMLP_OP_I || op == PMLP_OP_W);
        if ((a.op == op || whole) && a.stage == stage && a.microbatch == microbatch) return i;
    }
    return -1;
}

static int how_often(const lists *l, pmlp_op op, int stage, int microbatch) {
    int n = 0;
    for (int w = 0; w < l->p; w++)
        for (int i = 0; i < l->count[w]; i++) {
            pmlp_action a = l->list[w][i];
            bool whole = a.op == PMLP_OP_B && (op == PMLP_OP_I || op == PMLP_OP_W);
            n += (a.op == op || whole) && a.stage == stage && a.microbatch == microbatch;
        }
    return n;
}

static int owner_of(const lists *l, int stage) {
    for (int w = 0; w < l->p; w++)
        for (int i = 0; i < l->count[w]; i++)
            if (l->list[w][i].stage == stage) return w;
    return -1;
}

/* An update waits for the gradients of every stage, so none may stand before a W of its worker. */
static bool updates_last(const lists *l) {
    for (int w = 0; w < l->p; w++)
        for (int i = 0, updated = 0; i < l->count[w]; i++) {
            pmlp_op op = l->list[w][i].op;
            updated |= op == PMLP_OP_U;
            if (updated && (op == PMLP_OP_W || op == PMLP_OP_B)) return false;
        }
    return true;
}

static bool rules_hold(const lists *l) {
    if (!updates_last(l)) return false;
    for (int s = 0; s < l->stages; s++) {
        int w = owner_of(l, s), u = find(l, w, PMLP_OP_U, s, -1), last = -1;
        if (w < 0 || how_often(l, PMLP_OP_U, s, -1) != 1) return false;
        for (int k = 0; k < l->m; k++) {
            int at_f = find(l, w, PMLP_OP_F, s, k), at_i = find(l, w, PMLP_OP_I, s, k);
            int at_w = find(l, w, PMLP_OP_W, s, k);
            if (how_often(l, PMLP_OP_F, s, k) != 1 || how_often(l, PMLP_OP_I, s, k) != 1 ||
                how_often(l, PMLP_OP_W, s, k) != 1)
                return false;
            if (at_f > at_i || at_i > at_w || at_w < last || u < at_w) return false;
            last = at_w;
        }
    }
    return true;
}

/* A queue of micro-batch numbers; slots 0 means without bound. */
typedef struct queue {
    int item[2 * MAX_M], head, tail;
} queue;

static bool put(queue *q, int slots, int microbatch) {
    if (slots > 0 && q->tail - q->head >= slots) return false;
    return q->item[q->tail++] = microbatch, true;
}
static bool take(queue *q, int microbatch, bool *wrong) {
    if (q->head == q->tail) return false;
    if (q->item[q->head] != microbatch) return *wrong = true, false;
    return q->head++, true;
}

typedef struct replay {
    const lists *l;
    int slots, owner[MAX_S];
    queue up[MAX_S], down[MAX_S]; /* up[s]: activations s -> s+1; down[s]: gradients s+1 -> s */
    bool f[MAX_S][MAX_M], i[MAX_S][MAX_M];
    bool wrong;                    /* something came, or is done, in the wrong order */
    int w_left;                    /* W of all stages */
    int next[MAX_P], phase[MAX_P]; /* of each worker: the action, and how far it is in it */
} replay;

/* Phase 0 takes the input and computes, phase 1 hands over. Returns whether the action moved on. */
static bool replay_input(replay *r, pmlp_action a) {
    const int s = a.stage, k = a.microbatch, last = r->l->stages - 1;
    if (a.op == PMLP_OP_F) {
        if (s == 0) return true;
        if (r->owner[s - 1] != r->owner[s]) return take(&r->up[s - 1], k, &r->wrong);
        r->wrong |= !r->f[s - 1][k];
        return r->f[s - 1][k];
    }
    if (a.op == PMLP_OP_I || a.op == PMLP_OP_B) {
        if (s == last) return true;
        if (r->owner[s + 1] != r->owner[s]) return take(&r->down[s], k, &r->wrong);
        r->wrong |= !r->i[s + 1][k];
        return r->i[s + 1][k];
    }
    return a.op != PMLP_OP_U || r->w_left == 0;
}
static bool replay_output(replay *r, pmlp_action a) {
    const int s = a.stage, k = a.microbatch, last = r->l->stages - 1;
    if (a.op == PMLP_OP_F && s < last && r->owner[s + 1] != r->owner[s])
        return put(&r->up[s], r->slots, k);
    if ((a.op == PMLP_OP_I || a.op == PMLP_OP_B) && s > 0 && r->owner[s - 1] != r->owner[s])
        return put(&r->down[s - 1], r->slots, k);
    return true;
}

/* A network of processes and queues: how far it gets does not depend on who runs first. What comes
   in the wrong order breaks a rule and is no deadlock. */
static pmlp_result replay_run(const lists *l, int slots) {
    static replay r;
    memset(&r, 0, sizeof r);
    r.l = l, r.slots = slots, r.w_left = l->stages * l->m;
    for (int s = 0; s < l->stages; s++) r.owner[s] = owner_of(l, s);
    for (bool moved = true; moved;) {
        moved = false;
        for (int w = 0; w < l->p; w++)
            while (r.next[w] < l->count[w]) {
                pmlp_action a = l->list[w][r.next[w]];
                if (r.phase[w] == 0) {
                    if (!replay_input(&r, a)) break;
                    if (a.op == PMLP_OP_F) r.f[a.stage][a.microbatch] = true;
                    if (a.op == PMLP_OP_I || a.op == PMLP_OP_B) r.i[a.stage][a.microbatch] = true;
                    r.phase[w] = 1, moved = true;
                }
                if (!replay_output(&r, a)) break;
                if (a.op == PMLP_OP_W || a.op == PMLP_OP_B) r.w_left--;
                r.phase[w] = 0, r.next[w]++, moved = true;
            }
    }
    if (r.wrong) return PMLP_ERROR_SCHEDULE;
    for (int w = 0; w < l->p; w++)
        if (r.next[w] < l->count[w]) return PMLP_ERROR_DEADLOCK;
    return PMLP_OK;
}

static pmlp_result oracle(const lists *l, int slots) {
    return rules_hold(l) ? replay_run(l, slots) : PMLP_ERROR_SCHEDULE;
}

/* --- builders -------------------------------------------------------------------------------- */

/* Calls body for every kind, p <= 8, m <= 24; the quick set takes fewer m. */
static long each_builder(void (*body)(pmlp_schedule_kind kind, int p, int m,
                                      pmlp_schedule *schedule)) {
    long called = 0;
    for (int k = 0; k < 3; k++)
        for (int p = 1; p <= MAX_P; p++)
            for (int m = 1; m <= MAX_M; m += test_quick() ? 5 : 1, called++) {
                pmlp_schedule *schedule = build(kinds[k], p, m);
                if (schedule) body(kinds[k], p, m, schedule);
                pmlp_schedule_destroy(schedule);
            }
    return called;
}

static int expected_peak(pmlp_schedule_kind kind, int p, int m, int worker) {
    if (kind == PMLP_SCHEDULE_SEQUENTIAL) return 1;
    return kind == PMLP_SCHEDULE_GPIPE ? m : least(m, p - worker);
}

static void check_builder(pmlp_schedule_kind kind, int p, int m, pmlp_schedule *schedule) {
    const char *name = pmlp_schedule_kind_name(kind);
    int peaks[MAX_P], up[MAX_S], down[MAX_S], total = 0;
    pmlp_check report = {0};
    pmlp_error error = {0};
    report.peaks = peaks, report.forward_slots = up, report.backward_slots = down;
    CHECK(pmlp_schedule_workers(schedule) == p && pmlp_schedule_stages(schedule) == p &&
              pmlp_schedule_microbatches(schedule) == m,
          "%s p %d m %d: sizes", name, p, m);
    CHECK(pmlp_schedule_check(schedule, 0, &report, &error) == PMLP_OK, "%s p %d m %d: %s", name, p,
          m, error.text);
    for (int w = 0; w < p; w++) {
        int want = expected_peak(kind, p, m, w), count = 0;
        CHECK(peaks[w] == want, "%s p %d m %d: peak of worker %d is %d, not %d", name, p, m, w,
              peaks[w], want);
        CHECK(pmlp_schedule_stage_worker(schedule, w) == w, "%s: stage %d", name, w);
        CHECK(pmlp_schedule_actions(schedule, w, &count) != NULL, "%s: worker %d", name, w);
        total += count;
    }
    CHECK(report.peak == expected_peak(kind, p, m, 0), "%s p %d m %d: peak %d", name, p, m,
          report.peak);
    for (int s = 0; s + 1 < p; s++)
        CHECK(up[s] == 1 && down[s] == 1, "%s p %d m %d: edge %d needs %d up, %d down", name, p, m,
              s, up[s], down[s]);
    if (p > 1) CHECK(report.slots == 1, "%s p %d m %d: %d slots", name, p, m, report.slots);
    if (p > 1)
        CHECK(pmlp_schedule_check(schedule, 1, &report, &error) == PMLP_OK && report.slots == 1,
              "%s p %d m %d, one slot: %s", name, p, m, error.text);
    CHECK(total == p * (2 * m + 1), "%s p %d m %d: %d actions", name, p, m, total);
    to_lists(schedule, &original);
    CHECK(oracle(&original, 1) == PMLP_OK, "%s p %d m %d: refused by the second checker", name, p,
          m);
}

TEST(builders) {
    int count = 7;
    long n = each_builder(check_builder);
    pmlp_schedule *schedule = build(PMLP_SCHEDULE_DEFAULT, 3, 5),
                  *same = build(PMLP_SCHEDULE_1F1B, 3, 5);
    pmlp_schedule_print(schedule, text, TEXT, NULL), pmlp_schedule_print(same, text2, TEXT, NULL);
    CHECK(!strcmp(text, text2), "the default is not 1F1B:\n%s", text);
    CHECK(pmlp_schedule_actions(schedule, 3, &count) == NULL && count == 0, "worker 3 of 3");
    CHECK(pmlp_schedule_actions(schedule, -1, &count) == NULL, "worker -1");
    CHECK(pmlp_schedule_stage_worker(schedule, 3) == -1 &&
              pmlp_schedule_stage_worker(schedule, -1) == -1,
          "stages 3 and -1 of 3");
    pmlp_schedule_destroy(schedule), pmlp_schedule_destroy(same);
    SAY("%s schedules (p <= 8, m <= 24): accepted by both checkers, peaks as published, one slot",
        test_count(n));
}

/* --- simulator ------------------------------------------------------------------------------- */

static bool near(double a, double b) {
    return fabs(a - b) <= 1e-9 * (1 + fabs(b));
}

/* The published makespans, with costs not all 1 too: (p-1)(F+B) of bubble, or (p-1) m (F+B). */
static void check_makespan(pmlp_schedule_kind kind, int p, int m, pmlp_schedule *schedule) {
    static const double units[][3] = {{1, 1, 1}, {2, 3, 1}, {0.5, 0.25, 4}};
    const bool sequential = kind == PMLP_SCHEDULE_SEQUENTIAL;
    for (int u = 0; u < 3; u++) {
        double f[MAX_P], i[MAX_P], w[MAX_P], fb = units[u][0] + units[u][1] + units[u][2];
        for (int s = 0; s < p; s++) f[s] = units[u][0], i[s] = units[u][1], w[s] = units[u][2];
        pmlp_costs costs = {f, i, w, NULL, 0};
        pmlp_simulation sim = {0};
        pmlp_error error = {0};
        CHECK(pmlp_schedule_simulate(schedule, u ? &costs : NULL, NULL, &sim, &error) == PMLP_OK,
              "%s", error.text);
        double busiest = m * fb, bubble = (p - 1) * (sequential ? m * fb : fb);
        CHECK(near(sim.busiest, busiest) && near(sim.makespan, busiest + bubble) &&
                  near(sim.bubble, bubble / (busiest + bubble)),
              "%s p %d m %d: makespan %g, busiest %g, bubble %g; expected %g, %g, %g",
              pmlp_schedule_kind_name(kind), p, m, sim.makespan, sim.busiest, sim.bubble,
              busiest + bubble, busiest, bubble / (busiest + bubble));
    }
}

/* The beginnings keep every dependency, and nobody does two things at once. */
static void check_begins(pmlp_schedule_kind kind, int p, int m, pmlp_schedule *schedule) {
    static double begin[MAX_P * MAX_LIST], f_end[MAX_S][MAX_M], b_end[MAX_S][MAX_M];
    double f[MAX_P], i[MAX_P], w[MAX_P], end = 0;
    pmlp_simulation sim = {0};
    pmlp_error error = {0};
    uint64_t rng = (uint64_t)(p * 100 + m);
    for (int s = 0; s < p; s++) {
        f[s] = test_uniform(&rng, 0.5, 3);
        i[s] = test_uniform(&rng, 0.5, 3), w[s] = test_uniform(&rng, 0.5, 3);
    }
    pmlp_costs costs = {f, i, w, NULL, 0.75};
    CHECK(pmlp_schedule_simulate(schedule, &costs, begin, &sim, &error) == PMLP_OK, "%s",
          error.text);
    to_lists(schedule, &original);
    for (int pass = 0; pass < 2; pass++)
        for (int worker = 0, at = 0; worker < p; worker++) {
            double free_at = 0;
            for (int k = 0; k < original.count[worker]; k++, at++) {
                pmlp_action a = original.list[worker][k];
                const int s = a.stage, b = a.microbatch;
                if (a.op == PMLP_OP_U) continue;
                double cost = a.op == PMLP_OP_F ? f[s] : i[s] + w[s], need = free_at;
                if (pass == 0) {
                    (a.op == PMLP_OP_F ? f_end : b_end)[s][b] = begin[at] + cost;
                    if (begin[at] + cost > end) end = begin[at] + cost;
                    continue;
                }
                if (a.op == PMLP_OP_F && s > 0) need = fmax(need, f_end[s - 1][b] + 0.75);
                if (a.op == PMLP_OP_B && s < p - 1) need = fmax(need, b_end[s + 1][b] + 0.75);
                CHECK(near(begin[at], need),
                      "%s p %d m %d: worker %d action %d begins at %g, not %g",
                      pmlp_schedule_kind_name(kind), p, m, worker, k, begin[at], need);
                free_at = begin[at] + cost;
            }
        }
    CHECK(near(sim.makespan, end), "makespan %g, last end %g", sim.makespan, end);
}

TEST(simulator) {
    static const struct {
        pmlp_schedule_kind kind;
        double makespan;
    } published[] = {
        {PMLP_SCHEDULE_SEQUENTIAL, 96}, {PMLP_SCHEDULE_GPIPE, 33}, {PMLP_SCHEDULE_1F1B, 33}};
    for (int k = 0; k < 3; k++) {
        pmlp_schedule *schedule = build(published[k].kind, 4, 8);
        pmlp_simulation sim = {0};
        CHECK(pmlp_schedule_simulate(schedule, NULL, NULL, &sim, NULL) == PMLP_OK &&
                  sim.makespan == published[k].makespan && sim.busiest == 24,
              "%s: %g", pmlp_schedule_kind_name(published[k].kind), sim.makespan);
        pmlp_schedule_destroy(schedule);
    }
    long n = each_builder(check_makespan);
    each_builder(check_begins);
    SAY("p 4, m 8: 96, 33, 33; makespan, bubble and every beginning of %s schedules",
        test_count(n));
}

/* I and W apart, costs of U, and what an update waits for. */
TEST(simulator_by_hand) {
    double begin[16], f[] = {2, 1}, i[] = {1, 2}, w[] = {3, 1}, u[] = {0.5, 4};
    pmlp_costs costs = {f, i, w, u, 0.25};
    pmlp_simulation sim = {0};
    pmlp_error error = {0};
    /* worker 0: F 0-2, then I when worker 1's I ends at 2.25+1+2, that is at 5.5, W 6.5-9.5
       worker 1: F 2.25-3.25, I 3.25-5.25, W 5.25-6.25; both U after 9.5 and its transfer */
    pmlp_schedule *schedule = parse_fine("0F0,0I0,0W0\n1F0,1I0,1W0\n");
    CHECK(pmlp_schedule_simulate(schedule, &costs, begin, &sim, &error) == PMLP_OK, "%s",
          error.text);
    CHECK(begin[0] == 0 && begin[1] == 5.5 && begin[2] == 6.5, "worker 0: %g %g %g", begin[0],
          begin[1], begin[2]);
    CHECK(begin[4] == 2.25 && begin[5] == 3.25 && begin[6] == 5.25, "worker 1: %g %g %g", begin[4],
          begin[5], begin[6]);
    CHECK(begin[3] == 9.5, "U of stage 0 begins at %g", begin[3]);
    CHECK(begin[7] == 9.5 || begin[7] == 9.75, "U of stage 1 begins at %g", begin[7]);
    CHECK(near(sim.makespan, begin[7] + 4), "makespan %g", sim.makespan);
    CHECK(near(sim.busiest, 8), "busiest %g", sim.busiest);
    CHECK(near(sim.bubble, 1 - (6.5 + 8) / (2 * sim.makespan)), "bubble %g", sim.bubble);
    pmlp_schedule_destroy(schedule);
    for (int k = 0; k < 2; k++) {
        static const char *endless[] = {"0F0,0B0,0F1,0B1\n1F0,1F1,1B0,1B1\n", "1F0,0F0,1B0,0B0\n"};
        schedule = parse_fine(endless[k]);
        pmlp_result result = pmlp_schedule_simulate(schedule, NULL, NULL, &sim, &error);
        CHECK((result == PMLP_ERROR_SCHEDULE || result == PMLP_ERROR_DEADLOCK) && *error.text,
              "%s gives %s", endless[k], pmlp_result_name(result));
        pmlp_schedule_destroy(schedule);
    }
    SAY("I and W apart, cost of U, transfers: as counted by hand; refuses what cannot finish");
}

/* --- the text form --------------------------------------------------------------------------- */

static bool same_actions(const pmlp_schedule *one, const pmlp_schedule *two) {
    to_lists(one, &original), to_lists(two, &changed);
    bool same = original.p == changed.p && original.stages == changed.stages;
    for (int w = 0; same && w < original.p; w++) {
        same = original.m == changed.m && original.count[w] == changed.count[w];
        for (int i = 0; same && i < original.count[w]; i++) {
            pmlp_action a = original.list[w][i], b = changed.list[w][i];
            same = a.op == b.op && a.stage == b.stage && a.microbatch == b.microbatch;
        }
    }
    return same;
}

static void check_round_trip(pmlp_schedule_kind kind, int p, int m, pmlp_schedule *schedule) {
    const char *name = pmlp_schedule_kind_name(kind);
    size_t length = 0, again = 0;
    CHECK(pmlp_schedule_print(schedule, NULL, 0, &length) == PMLP_OK && length > 0 && length < TEXT,
          "%s: length %zu", name, length);
    memset(text, '#', TEXT);
    CHECK(pmlp_schedule_print(schedule, text, TEXT, &again) == PMLP_OK && again == length &&
              strlen(text) == length && text[length + 1] == '#',
          "%s p %d m %d: length %zu, then %zu", name, p, m, length, again);
    CHECK(strchr(text, 'U') == NULL, "%s: prints updates at the end of rows", name);
    pmlp_schedule *read = parse_fine(text);
    if (!read) return;
    pmlp_schedule_print(read, text2, TEXT, NULL);
    CHECK(!strcmp(text, text2), "%s p %d m %d: print, parse, print:\n%s\nbecame\n%s", name, p, m,
          text, text2);
    CHECK(same_actions(schedule, read), "%s p %d m %d: other actions after a round trip", name, p,
          m);
    pmlp_schedule_destroy(read);
    if (length > 5) { /* cut: terminated, and nothing behind it */
        memset(text2, '#', 8);
        CHECK(pmlp_schedule_print(schedule, text2, 5, &again) == PMLP_OK && again == length &&
                  !strncmp(text, text2, 4) && text2[4] == 0 && text2[5] == '#',
              "%s: cut to 5", name);
    }
}

TEST(round_trip) {
    long n = each_builder(check_round_trip);
    SAY("print, parse, print: %s schedules, equal bytes and actions", test_count(n));
}

TEST(text_forms) {
    static const char *plain = "0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1\n";
    static const char *forms[] = {"0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1",
                                  "0F0,0F1,,,0B0,,0B1,\r\n,1F0,1B0,1F1,1B1\r\n",
                                  " 0F0 , 0F1,  ,0B0,\t0B1\n1F0,1B0 ,1F1, 1B1\n\n\r\n  \n",
                                  "0F0,0F1,0B0,0B1,0U\n1F0,1B0,1F1,1B1,1U\n",
                                  "0F0,0F1,0B0,0B1,0U\n,,1F0,1B0,1F1,1B1,,\n,,\n"};
    pmlp_schedule *schedule = NULL;
    pmlp_error error = {0};
    int n = 0;
    for (; n < (int)(sizeof forms / sizeof *forms); n++) {
        schedule = parse_fine(forms[n]);
        if (!schedule) continue;
        pmlp_schedule_print(schedule, text, TEXT, NULL);
        CHECK(!strcmp(text, plain), "form %d became\n%s", n, text);
        CHECK(pmlp_schedule_check(schedule, 0, NULL, &error) == PMLP_OK, "form %d: %s", n,
              error.text);
        pmlp_schedule_destroy(schedule);
    }
    /* an update in the middle of its row is no default and must be printed */
    static const char *early = "0F0,0B0,2F0,2B0\n";
    schedule = parse_fine("0F0,1F0,1B0,1U,0B0\n");
    if (schedule) pmlp_schedule_print(schedule, text, TEXT, NULL);
    CHECK(schedule && strstr(text, "1U,0B0") != NULL, "printed as %s", text);
    pmlp_schedule_destroy(schedule);
    /* updates in any order at the end of their row */
    for (int order = 0; order < 27; order++) {
        char form[64];
        const int u[] = {order % 3, order / 3 % 3, order / 9};
        if (u[0] == u[1] || u[0] == u[2] || u[1] == u[2]) continue;
        snprintf(form, sizeof form, "0F0,1F0,2F0,2B0,1B0,0B0,%dU,%dU,%dU\n", u[0], u[1], u[2]);
        schedule = parse_fine(form);
        pmlp_schedule_print(schedule, text, TEXT, NULL);
        pmlp_schedule *read = parse_fine(text);
        CHECK(same_actions(schedule, read), "%s became\n%s", form, text);
        CHECK((strchr(text, 'U') == NULL) == (order == 21), "%s printed as\n%s", form, text);
        pmlp_schedule_destroy(schedule), pmlp_schedule_destroy(read);
        n++;
    }
    /* a stage without a worker, and text that is not terminated */
    CHECK(parse_text(early, &schedule, &error) == PMLP_ERROR_SCHEDULE && !schedule, "stage 1: %s",
          error.text);
    CHECK(strstr(error.text, "1") != NULL, "names no stage: %s", error.text);
    char raw[] = {'0', 'F', '0', ',', '0', 'B', '0', '9', '9'};
    CHECK(pmlp_schedule_parse(raw, 7, NULL, &schedule, &error) == PMLP_OK, "%s", error.text);
    CHECK(pmlp_schedule_microbatches(schedule) == 1, "read behind the end");
    pmlp_schedule_destroy(schedule);
    SAY("%d ways to write one schedule: blanks, empty cells, \\r\\n, no last newline, updates",
        n + 3);
}

TEST(parse_errors) {
    static const struct {
        const char *form;
        pmlp_result result;
        int row, cell;
    } bad[] = {
        {"", PMLP_ERROR_PARSE, -1, -1},
        {"\n\n", PMLP_ERROR_PARSE, -1, -1},
        {"hello\n", PMLP_ERROR_PARSE, 0, 0},
        {"0F0,0X0\n", PMLP_ERROR_PARSE, 0, 1},
        {"0F0,0B0\n1F0,1B\n", PMLP_ERROR_PARSE, 1, 1},
        {"0F0,F0\n", PMLP_ERROR_PARSE, 0, 1},
        {"0F0,0B0,0U0\n", PMLP_ERROR_PARSE, 0, 2},
        {"0F0,0B0x\n", PMLP_ERROR_PARSE, 0, 1},
        {"0F0,,,0 B0\n", PMLP_ERROR_PARSE, 0, 3},
        {"0F0,0B-1\n", PMLP_ERROR_PARSE, 0, 1},
        {"0F0,-1B0\n", PMLP_ERROR_PARSE, 0, 1},
        {"0F99999999999999999999,0B0\n", PMLP_ERROR_PARSE, 0, 0},
        {"99999999999999999999F0,0B0\n", PMLP_ERROR_PARSE, 0, 0},
        {"0F0;0B0\n", PMLP_ERROR_PARSE, 0, 0},
        {"0f0,0b0\n", PMLP_ERROR_PARSE, 0, 0},
        {"0F0,0B0\n0F1,0B1\n", PMLP_ERROR_SCHEDULE, -1, -1},
        {"0F0,0B0\n2F0,2B0\n", PMLP_ERROR_SCHEDULE, -1, -1},
    };
    const int n = (int)(sizeof bad / sizeof *bad);
    for (int i = 0; i < n; i++) {
        pmlp_schedule *schedule = (pmlp_schedule *)&text;
        pmlp_error error = {0};
        char row[24], cell[24];
        pmlp_result result =
            pmlp_schedule_parse(bad[i].form, strlen(bad[i].form), NULL, &schedule, &error);
        CHECK(result == bad[i].result && error.result == result && !schedule, "'%s' gives %s: %s",
              bad[i].form, pmlp_result_name(result), error.text);
        CHECK(error.text[0] && !strchr(error.text, '\n'), "'%s' says '%s'", bad[i].form,
              error.text);
        if (bad[i].row < 0) continue;
        snprintf(row, sizeof row, "row %d", bad[i].row + 1);
        snprintf(cell, sizeof cell, "cell %d", bad[i].cell + 1);
        CHECK(strstr(error.text, row) && strstr(error.text, cell), "'%s' names not %s, %s: %s",
              bad[i].form, row, cell, error.text);
    }
    SAY("%d texts refused, each with its row and cell", n);
}

/* One cell or delimiter of a text that is nearly a schedule; now and then any byte. */
static size_t noise(uint64_t *rng, char *out, size_t room) {
    static const char letters[] = "0123FBIWU,, \r\n\n-x";
    static const char *ops[] = {"F", "F", "B", "B", "I", "W", "U", "X"};
    char cell[24];
    const unsigned stage = (unsigned)(test_random(rng) % 3),
                   microbatch = (unsigned)(test_random(rng) % 3);
    const char *op = ops[test_random(rng) % (test_random(rng) % 8 ? 6 : 8)];
    switch (test_random(rng) % 40) {
    case 0:
        snprintf(cell, sizeof cell, "%c", letters[test_random(rng) % (sizeof letters - 1)]);
        break;
    case 1: snprintf(cell, sizeof cell, "%uU,", stage); break;
    case 2:
    case 3: snprintf(cell, sizeof cell, "\n"); break;
    default: snprintf(cell, sizeof cell, "%u%s%u,", stage, op, microbatch); break;
    }
    const size_t n = strlen(cell) < room ? strlen(cell) : room;
    return memcpy(out, cell, n), n;
}

/* Whatever the bytes: a result, no crash, no leak, and the second checker's verdict. */
TEST(parse_noise) {
    const int tries = test_quick() ? 2000 : 50000;
    long read = 0, legal = 0;
    uint64_t rng = 5;
    for (int t = 0; t < tries; t++) {
        test_memory memory;
        pmlp_schedule *schedule = NULL;
        pmlp_error error = {0};
        char any[64];
        size_t size = 0;
        const size_t wanted = (size_t)(test_random(&rng) % sizeof any);
        while (size < wanted) size += noise(&rng, any + size, wanted - size);
        char *form = malloc(size ? size : 1); /* exact, so that a sanitizer sees a read behind it */
        if (!CHECK(form != NULL, "no memory")) break;
        memcpy(form, any, size);
        test_memory_init(&memory, 0);
        pmlp_result result = pmlp_schedule_parse(form, size, &memory.allocator, &schedule, &error);
        CHECK((result == PMLP_OK) == (schedule != NULL), "%s", pmlp_result_name(result));
        for (int slots = 0; schedule && slots < 3; slots++) {
            to_lists(schedule, &changed);
            pmlp_result want = oracle(&changed, slots);
            result = pmlp_schedule_check(schedule, slots, NULL, &error);
            CHECK(result == want, "'%.*s', %d slots: %s, expected %s: %s", (int)size, form, slots,
                  pmlp_result_name(result), pmlp_result_name(want), error.text);
            read += slots == 0, legal += slots == 0 && want == PMLP_OK;
        }
        pmlp_schedule_destroy(schedule);
        CHECK(memory.blocks == 0, "%ld blocks leak from '%.*s'", memory.blocks, (int)size, form);
        free(form);
    }
    CHECK(read > tries / 20, "only %ld texts could be read", read);
    SAY("%s random texts, %s of them schedules, %s legal: no crash, no leak, right verdicts",
        test_count(tries), test_count(read), test_count(legal));
}

/* --- lowering -------------------------------------------------------------------------------- */

static bool is(pmlp_action a, pmlp_op op, int stage, int microbatch) {
    return a.op == op && a.stage == stage && a.microbatch == microbatch;
}

/* Takes the next action of a lowered list if it is the one; says so if it is not. */
static bool expect(const lists *low, int w, int *at, pmlp_op op, int stage, int microbatch,
                   const char *name) {
    char want[32], got[32] = "nothing";
    pmlp_action a = {op, stage, microbatch};
    action_text(a, want, sizeof want);
    if (*at < low->count[w]) action_text(low->list[w][*at], got, sizeof got);
    bool ok = *at < low->count[w] && is(low->list[w][*at], op, stage, microbatch);
    ++*at;
    return CHECK(ok, "%s: worker %d, place %d: %s, expected %s", name, w, *at - 1, got, want);
}

/* RECV right before, SEND right after, B apart, silent within a worker: that leaves one list. */
static void check_lowered(const char *name, const pmlp_schedule *schedule) {
    pmlp_schedule *lowered = NULL;
    pmlp_error error = {0};
    if (!CHECK(pmlp_schedule_lower(schedule, &lowered, &error) == PMLP_OK, "%s: %s", name,
               error.text))
        return;
    to_lists(schedule, &original), to_lists(lowered, &changed);
    const lists *o = &original;
    CHECK(changed.p == o->p && changed.stages == o->stages && changed.m == o->m, "%s: sizes", name);
    int sends = 0, receives = 0;
    for (int w = 0; w < o->p; w++) {
        int at = 0;
        bool ok = true;
        for (int i = 0; ok && i < o->count[w]; i++) {
            pmlp_action a = o->list[w][i];
            const int s = a.stage, k = a.microbatch;
            bool below = s > 0 && owner_of(o, s - 1) != w;
            bool above = s < o->stages - 1 && owner_of(o, s + 1) != w;
            bool f = a.op == PMLP_OP_F, input = a.op == PMLP_OP_I || a.op == PMLP_OP_B;
            if (f && below) ok = ok && expect(&changed, w, &at, PMLP_OP_RECV_F, s, k, name);
            if (input && above) ok = ok && expect(&changed, w, &at, PMLP_OP_RECV_B, s, k, name);
            pmlp_op op = a.op == PMLP_OP_B ? PMLP_OP_I : a.op;
            ok = ok && expect(&changed, w, &at, op, s, k, name);
            if (f && above) ok = ok && expect(&changed, w, &at, PMLP_OP_SEND_F, s, k, name);
            if (input && below) ok = ok && expect(&changed, w, &at, PMLP_OP_SEND_B, s, k, name);
            if (a.op == PMLP_OP_B) ok = ok && expect(&changed, w, &at, PMLP_OP_W, s, k, name);
        }
        CHECK(!ok || at == changed.count[w], "%s: worker %d has %d actions, expected %d", name, w,
              changed.count[w], at);
        for (int i = 0; i < changed.count[w]; i++) {
            pmlp_op op = changed.list[w][i].op;
            sends += op == PMLP_OP_SEND_F || op == PMLP_OP_SEND_B;
            receives += op == PMLP_OP_RECV_F || op == PMLP_OP_RECV_B;
        }
    }
    int edges = 0;
    for (int s = 0; s + 1 < o->stages; s++) edges += owner_of(o, s) != owner_of(o, s + 1);
    CHECK(sends == receives && sends == 2 * edges * o->m, "%s: %d sends, %d receives over %d edges",
          name, sends, receives, edges);
    pmlp_schedule_destroy(lowered);
}

static const char *by_hand[] = {
    "0F0,0F1,0I0,0F2,0W0,0I1,0W1,0I2,0W2\n1F0,1I0,1F1,1I1,1W0,1F2,1I2,1W1,1W2\n",
    "0F0,0F1,3F0,3B0,3F1,3B1,0B0,0B1\n1F0,2F0,1F1,2F1,2B0,1B0,2B1,1B1\n",
    ("0F0,0F1,0F2,0F3,2F0,2F1,2F2,2F3,2B0,2B1,2B2,2B3,0B0,0B1,0B2,0B3\n"
     "1F0,1F1,1F2,1F3,1B0,1B1,1B2,1B3\n"),
    "1F0,1B0,1F1,1B1\n0F0,0F1,0B0,0B1\n", "0F0,1F0,1B0,0B0\n"};
enum { BY_HAND = (int)(sizeof by_hand / sizeof *by_hand) };

static void check_lowered_builder(pmlp_schedule_kind kind, int p, int m, pmlp_schedule *schedule) {
    snprintf(text2, sizeof text2, "%s p %d m %d", pmlp_schedule_kind_name(kind), p, m);
    check_lowered(text2, schedule);
}

TEST(lowering) {
    long n = each_builder(check_lowered_builder);
    for (int i = 0; i < BY_HAND; i++, n++) {
        pmlp_schedule *schedule = parse_fine(by_hand[i]);
        if (schedule) check_lowered(by_hand[i], schedule);
        pmlp_schedule_destroy(schedule);
    }
    SAY("B apart, RECV right before, SEND right after, silent within a worker: %s schedules",
        test_count(n));
}

/* --- drawing --------------------------------------------------------------------------------- */

static void check_drawing(const char *form, const pmlp_costs *costs, double unit,
                          const char *want) {
    pmlp_schedule *schedule = parse_fine(form);
    pmlp_error error = {0};
    size_t length = 0;
    if (!schedule) return;
    CHECK(pmlp_schedule_draw(schedule, costs, unit, text, TEXT, &length, &error) == PMLP_OK, "%s",
          error.text);
    CHECK(!strcmp(text, want), "%s\ndrawn as\n%s\nexpected\n%s", form, text, want);
    CHECK(length == strlen(want), "length %zu", length);
    memset(text2, '#', TEXT);
    CHECK(pmlp_schedule_draw(schedule, costs, unit, text2, 4, &length, &error) == PMLP_OK &&
              length == strlen(want) && text2[3] == 0 && text2[4] == '#' &&
              !strncmp(text2, want, 3),
          "cut to 4");
    pmlp_schedule_destroy(schedule);
}

/* The rows are written out by hand from the unit costs; between the bars stand the cells. */
TEST(drawing) {
    static const double two[] = {2, 2}, one[] = {1, 1}, four[] = {4, 4};
    pmlp_costs costs = {two, one, one, NULL, 1}, large = {four, two, two, NULL, 2};
    int n = 0;
    check_drawing("0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1\n", NULL, 0,
                  "worker 0  | F0 F1 .. .. B0 == .. B1 == |\n"
                  "worker 1  | .. F0 B0 == F1 B1 == .. .. |\n"),
        n++;
    check_drawing("0F0,0I0,0W0\n1F0,1I0,1W0\n", NULL, 1,
                  "worker 0  | F0 .. .. I0 W0 |\n"
                  "worker 1  | .. F0 I0 W0 .. |\n"),
        n++;
    check_drawing("0F0,0B0\n1F0,1B0\n", &costs, 0,
                  "worker 0  | F0 == .. .. .. .. .. .. B0 == |\n"
                  "worker 1  | .. .. .. F0 == B0 == .. .. .. |\n"),
        n++;
    check_drawing("0F0,0B0\n1F0,1B0\n", &large, 2,
                  "worker 0  | F0 == .. .. .. .. .. .. B0 == |\n"
                  "worker 1  | .. .. .. F0 == B0 == .. .. .. |\n"),
        n++;
    check_drawing("0F0,1F0,1B0,0B0\n", NULL, 0, "worker 0  | 0F0 1F0 1B0 === 0B0 === |\n"), n++;
    check_drawing("1F0,1B0,1F1,1B1\n0F0,0F1,0B0,0B1\n", NULL, 0,
                  "worker 0  | .. F0 B0 == F1 B1 == .. .. |\n"
                  "worker 1  | F0 F1 .. .. B0 == .. B1 == |\n"),
        n++;
    SAY("%d timelines drawn as by hand", n);
}

/* --- planted faults -------------------------------------------------------------------------- */

/* Two workers claim a stage, or nobody does: the reader's business, which knows no further rule. */
static bool owners_clash(const lists *l) {
    for (int s = 0; s < l->stages; s++) {
        int owner = owner_of(l, s);
        if (owner < 0) return true;
        for (int w = 0; w < l->p; w++)
            for (int i = 0; i < l->count[w]; i++)
                if (l->list[w][i].stage == s && w != owner) return true;
    }
    return false;
}

static void count_again(lists *l) {
    l->stages = l->m = 0;
    for (int w = 0; w < l->p; w++)
        for (int i = 0; i < l->count[w]; i++) {
            pmlp_action a = l->list[w][i];
            if (a.stage >= l->stages) l->stages = a.stage + 1;
            if (a.microbatch >= l->m) l->m = a.microbatch + 1;
        }
}

static void drop(lists *l, int w, int i) {
    for (l->count[w]--; i < l->count[w]; i++) l->list[w][i] = l->list[w][i + 1];
}
static void insert(lists *l, int w, int i, pmlp_action a) {
    for (int k = l->count[w]++; k > i; k--) l->list[w][k] = l->list[w][k - 1];
    l->list[w][i] = a;
}

/* The error must say where: in its fields, and in its sentence with the same worker and action. */
static void check_sentence(const char *fault, const pmlp_error *error) {
    char worker[32], action[32] = "", for_it[32] = "";
    pmlp_op op = PMLP_OP_NONE;
    for (int o = 0; o < PMLP_OP_COUNT; o++)
        if (!strcmp(error->op, pmlp_op_name((pmlp_op)o))) op = (pmlp_op)o;
    CHECK(error->worker >= 0 && error->worker < changed.p && error->stage >= 0 &&
              error->stage < MAX_S && op != PMLP_OP_NONE &&
              (op == PMLP_OP_U || error->microbatch >= 0),
          "%s: worker %d, stage %d, micro-batch %d, op '%s': %s", fault, error->worker,
          error->stage, error->microbatch, error->op, error->text);
    pmlp_action a = {op, error->stage, error->microbatch};
    action_text(a, action, sizeof action);
    /* a hand-off may be named by what it is for, I by its B: that is what the user wrote */
    a.op = op == PMLP_OP_RECV_F || op == PMLP_OP_SEND_F ? PMLP_OP_F : op;
    a.op = op == PMLP_OP_RECV_B || op == PMLP_OP_SEND_B || op == PMLP_OP_I ? PMLP_OP_B : a.op;
    action_text(a, for_it, sizeof for_it);
    snprintf(worker, sizeof worker, "worker %d", error->worker);
    CHECK(strstr(error->text, worker) &&
              (strstr(error->text, action) || strstr(error->text, for_it)),
          "%s: '%s' not with %s and %s or %s", fault, error->text, worker, action, for_it);
    CHECK(!strchr(error->text, '\n') && strlen(error->text) < sizeof error->text - 1,
          "%s: no sentence: '%s'", fault, error->text);
}

/* Micro-batches whose forward is done and whose W is not: counted anew after every action. */
static int counted_peak(const lists *l, int w) {
    int most = 0;
    for (int end = 1; end <= l->count[w]; end++) {
        lists *begun = &scratch;
        int held = 0;
        *begun = *l, begun->count[w] = end;
        for (int s = 0; s < l->stages; s++)
            for (int k = 0; k < l->m; k++)
                held += find(begun, w, PMLP_OP_F, s, k) >= 0 && find(begun, w, PMLP_OP_W, s, k) < 0;
        if (held > most) most = held;
    }
    return most;
}

static long refused, harmless, deadlocks;

/* `changed` against both checkers, with one slot, with two and with as many as it takes. */
static void check_changed(const char *fault) {
    int peaks[MAX_P];
    pmlp_schedule *schedule = NULL;
    pmlp_error error = {0};
    pmlp_check report = {0};
    count_again(&changed);
    to_text(&changed, text, TEXT);
    pmlp_result result = parse_text(text, &schedule, &error);
    if (owners_clash(&changed)) {
        CHECK(result == PMLP_ERROR_SCHEDULE && error.result == result, "%s: %s\n%s", fault,
              pmlp_result_name(result), text);
        CHECK(error.stage >= 0 && strstr(error.text, "stage"), "%s: %s", fault, error.text);
        refused++;
        pmlp_schedule_destroy(schedule);
        return;
    }
    if (!CHECK(result == PMLP_OK, "%s: %s\n%s", fault, error.text, text)) return;
    to_lists(schedule, &changed); /* the reader added updates that were lost */
    for (int slots = 0; slots <= 2; slots++) {
        pmlp_result want = oracle(&changed, slots);
        memset(&error, 0, sizeof error);
        report.peaks = peaks;
        result = pmlp_schedule_check(schedule, slots, &report, &error);
        CHECK(result == want, "%s, %d slots: %s, expected %s: %s\n%s", fault, slots,
              pmlp_result_name(result), pmlp_result_name(want), error.text, text);
        for (int w = 0; result == PMLP_OK && w < changed.p; w++)
            CHECK(peaks[w] == counted_peak(&changed, w), "%s: peak of worker %d is %d, not %d\n%s",
                  fault, w, peaks[w], counted_peak(&changed, w), text);
        if (result == PMLP_OK)
            harmless += slots == 0;
        else
            check_sentence(fault, &error), refused += slots == 0;
        deadlocks += slots == 0 && result == PMLP_ERROR_DEADLOCK;
        CHECK(error.result == result, "%s: error says %s", fault, pmlp_result_name(error.result));
    }
    pmlp_schedule_destroy(schedule);
}

/* Every fault at one action of `original`. */
static void plant_faults(const char *name, int w, int i) {
    const pmlp_action a = original.list[w][i];
    char cell[32], fault[160];
    action_text(a, cell, sizeof cell);
    if (a.op != PMLP_OP_U) { /* a lost update is added by the reader */
        changed = original, drop(&changed, w, i);
        snprintf(fault, sizeof fault, "%s: %s dropped", name, cell), check_changed(fault);
    }
    changed = original, insert(&changed, w, i, a);
    snprintf(fault, sizeof fault, "%s: %s doubled", name, cell), check_changed(fault);
    changed = original, insert(&changed, w, changed.count[w], a);
    snprintf(fault, sizeof fault, "%s: %s again at the end", name, cell), check_changed(fault);
    for (int k = i + 1, same = 0; k < original.count[w] && !same; k++) {
        same = original.list[w][k].stage == a.stage;
        if (!same && k > i + 1) continue;
        changed = original;
        changed.list[w][i] = original.list[w][k], changed.list[w][k] = a;
        snprintf(fault, sizeof fault, "%s: %s swapped with the %s", name, cell,
                 same ? "next of its stage" : "next");
        check_changed(fault);
    }
    changed = original, drop(&changed, w, i), insert(&changed, w, 0, a);
    snprintf(fault, sizeof fault, "%s: %s first", name, cell), check_changed(fault);
    for (int s = 0; s <= original.stages && s < MAX_S; s++) {
        if (s == a.stage) continue;
        changed = original, changed.list[w][i].stage = s;
        snprintf(fault, sizeof fault, "%s: %s at stage %d", name, cell, s), check_changed(fault);
    }
    for (int k = 0; k <= original.m && a.op != PMLP_OP_U; k++) {
        if (k == a.microbatch) continue;
        changed = original, changed.list[w][i].microbatch = k;
        snprintf(fault, sizeof fault, "%s: %s on micro-batch %d", name, cell, k),
            check_changed(fault);
    }
    for (int other = 0; other < original.p; other++) {
        if (other == w) continue;
        changed = original, drop(&changed, w, i), insert(&changed, other, original.count[other], a);
        snprintf(fault, sizeof fault, "%s: %s moved to worker %d", name, cell, other);
        check_changed(fault);
    }
}

static void plant_everywhere(const char *name, const pmlp_schedule *schedule) {
    to_lists(schedule, &original);
    for (int w = 0; w < original.p; w++)
        for (int i = 0; i < original.count[w]; i++) plant_faults(name, w, i);
}

TEST(planted_faults) {
    static const int shapes[][2] = {{1, 1}, {1, 3}, {2, 1}, {2, 4}, {3, 4}, {4, 2}};
    refused = harmless = deadlocks = 0;
    for (int k = 0; k < 3; k++)
        for (int n = 0; n < (test_quick() ? 4 : 6); n++) {
            char name[64];
            pmlp_schedule *schedule = build(kinds[k], shapes[n][0], shapes[n][1]);
            snprintf(name, sizeof name, "%s p %d m %d", pmlp_schedule_kind_name(kinds[k]),
                     shapes[n][0], shapes[n][1]);
            if (schedule) plant_everywhere(name, schedule);
            pmlp_schedule_destroy(schedule);
        }
    for (int i = 0; i < BY_HAND; i++) {
        pmlp_schedule *schedule = parse_fine(by_hand[i]);
        if (schedule) plant_everywhere(by_hand[i], schedule);
        pmlp_schedule_destroy(schedule);
    }
    CHECK(refused > 100 && harmless > 10 && deadlocks > 10,
          "%ld refused, %ld harmless, %ld deadlocks", refused, harmless, deadlocks);
    SAY("dropped, doubled, reordered, moved, wrong stage or micro-batch: %s refused (%s deadlocks)"
        ", %s harmless, as a second checker says",
        test_count(refused), test_count(deadlocks), test_count(harmless));
}

/* --- sentences ------------------------------------------------------------------------------- */

/* clang-format off */
static const struct {
    const char *what, *form;
    int slots;
    pmlp_result result;
    int worker, stage, microbatch;
    const char *op, *names[3]; /* what the sentence must hold besides worker and action */
} wrong[] = {
    {"dropped F", "0F0,0B0,0B1\n1F0,1B0,1F1,1B1\n", 0, PMLP_ERROR_SCHEDULE, 0, 0, 1, "F", {"0F1"}},
    {"dropped B", "0F0,0F1,0B0,0B1\n1F0,1B0,1F1\n", 0, PMLP_ERROR_SCHEDULE, 1, 1, 1, "", {"1"}},
    {"doubled F", "0F0,0F0,0B0\n1F0,1B0\n", 0, PMLP_ERROR_SCHEDULE, 0, 0, 0, "F", {"0F0"}},
    {"I and B", "0F0,0I0,0B0\n", 0, PMLP_ERROR_SCHEDULE, 0, 0, 0, "B", {"0B0"}},
    {"W before I", "0F0,0W0,0I0\n", 0, PMLP_ERROR_SCHEDULE, 0, 0, 0, "W", {"0W0", "0I0"}},
    {"B before F", "0B0,0F0\n", 0, PMLP_ERROR_SCHEDULE, 0, 0, 0, "B", {"0B0", "0F0"}},
    {"W descending", "0F0,0F1,0B1,0B0\n", 0, PMLP_ERROR_SCHEDULE, 0, 0, -2, "", {"0B1", "0B0"}},
    {"U before W", "0F0,0I0,0U,0W0\n", 0, PMLP_ERROR_SCHEDULE, 0, 0, -2, "", {"0U", "0W0"}},
    {"two U", "0F0,0B0,0U,0U\n", 0, PMLP_ERROR_SCHEDULE, 0, 0, -1, "U", {"0U"}},
    {"cyclic wait", "0F0,0B0,0F1,0B1\n1F0,1F1,1B0,1B1\n", 0, PMLP_ERROR_DEADLOCK, 0, 0, 0,
     "RECV_B", {"0B0", "1I0"}},
    {"cyclic wait that worker 0 has no part in",
     "0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1\n2F0,2F1,2B0,2B1\n", 0, PMLP_ERROR_DEADLOCK, 1, 1, 0,
     "RECV_B", {"1B0", "2I0", "worker 2"}},
    {"F in another order", "0F0,0F1,0B0,0B1\n1F1,1F0,1B0,1B1\n", 0, PMLP_ERROR_SCHEDULE, 1, 1, 1,
     "RECV_F", {"micro-batch 1", "stage 0"}},
    {"a worker's stages the wrong way round", "1F0,0F0,1B0,0B0\n", 0, PMLP_ERROR_SCHEDULE, 0, 1, 0,
     "F", {"1F0", "0F0"}},
    {"U before another stage's W", "0F0,1F0,1B0,1U,0B0\n", 0, PMLP_ERROR_SCHEDULE, 0, -2, -2, "",
     {"1U", "0B0"}},
    {"undersized edge",
     "0F0,0F1,0F2,0F3,2F0,2F1,2F2,2F3,2B0,2B1,2B2,2B3,0B0,0B1,0B2,0B3\n"
     "1F0,1F1,1F2,1F3,1B0,1B1,1B2,1B3\n", 1, PMLP_ERROR_DEADLOCK, -2, -2, -2, "", {"slot"}},
};
/* clang-format on */

TEST(sentences) {
    const int n = (int)(sizeof wrong / sizeof *wrong);
    for (int i = 0; i < n; i++) {
        pmlp_error error = {0};
        pmlp_schedule *schedule = parse_fine(wrong[i].form);
        if (!schedule) continue;
        to_lists(schedule, &changed);
        pmlp_result result = pmlp_schedule_check(schedule, wrong[i].slots, NULL, &error);
        CHECK(result == wrong[i].result && error.result == result, "%s: %s: %s", wrong[i].what,
              pmlp_result_name(result), error.text);
        check_sentence(wrong[i].what, &error);
        CHECK(wrong[i].worker == -2 || error.worker == wrong[i].worker, "%s: worker %d: %s",
              wrong[i].what, error.worker, error.text);
        CHECK(wrong[i].stage == -2 || error.stage == wrong[i].stage, "%s: stage %d: %s",
              wrong[i].what, error.stage, error.text);
        CHECK(wrong[i].microbatch == -2 || error.microbatch == wrong[i].microbatch,
              "%s: micro-batch %d: %s", wrong[i].what, error.microbatch, error.text);
        CHECK(!*wrong[i].op || !strcmp(error.op, wrong[i].op), "%s: op %s: %s", wrong[i].what,
              error.op, error.text);
        for (int k = 0; k < 3 && wrong[i].names[k]; k++)
            CHECK(strstr(error.text, wrong[i].names[k]), "%s: no '%s' in: %s", wrong[i].what,
                  wrong[i].names[k], error.text);
        pmlp_schedule_destroy(schedule);
    }
    SAY("%d broken schedules: result, worker, stage, micro-batch, op, and a sentence that names "
        "the action and what it lacks",
        n);
}

/* A legal schedule on edges too small for it; and the checker's own count of what it takes. */
TEST(slots) {
    static const char *breadth = "0F0,0F1,0F2,0F3,2F0,2F1,2F2,2F3,2B0,2B1,2B2,2B3,0B0,0B1,0B2,0B3\n"
                                 "1F0,1F1,1F2,1F3,1B0,1B1,1B2,1B3\n";
    int up[2], down[2], peaks[2];
    const pmlp_error untouched = {PMLP_OK, -7, -7, -7, "", ""};
    pmlp_check report = {0};
    pmlp_error error = untouched;
    pmlp_schedule *schedule = parse_fine(breadth);
    report.forward_slots = up, report.backward_slots = down, report.peaks = peaks;
    CHECK(pmlp_schedule_check(schedule, 0, &report, &error) == PMLP_OK, "%s", error.text);
    CHECK(!memcmp(&error, &untouched, sizeof error), "accepted, but an error: %s", error.text);
    int fewest = report.slots;
    to_lists(schedule, &original);
    for (int slots = 1; slots <= 5; slots++) {
        pmlp_result want = replay_run(&original, slots);
        CHECK((want == PMLP_OK) == (slots >= fewest),
              "%d slots: the second checker says %s, fewest %d", slots, pmlp_result_name(want),
              fewest);
        CHECK(pmlp_schedule_check(schedule, slots, &report, &error) == want, "%d slots: %s", slots,
              error.text);
        CHECK(want != PMLP_OK || report.slots == slots, "%d slots given, %d reported", slots,
              report.slots);
    }
    CHECK(fewest > 1, "one slot would do");
    CHECK(peaks[0] == 8 && peaks[1] == 4 && report.peak == 8, "peaks %d, %d", peaks[0], peaks[1]);
    pmlp_schedule_destroy(schedule);
    schedule = parse_fine("0F0,1F0,2F0,2B0,1B0,0B0\n");
    up[0] = up[1] = down[0] = down[1] = -1;
    CHECK(pmlp_schedule_check(schedule, 0, &report, &error) == PMLP_OK && up[0] == 0 &&
              up[1] == 0 && down[0] == 0 && down[1] == 0,
          "edges within a worker need %d, %d, %d, %d slots", up[0], up[1], down[0], down[1]);
    pmlp_schedule_destroy(schedule);
    SAY("an edge too small is refused; fewest slots %d, as the second checker finds", fewest);
}

int main(void) {
    test_begin("schedules");
    RUN(builders);
    RUN(simulator);
    RUN(simulator_by_hand);
    RUN(round_trip);
    RUN(text_forms);
    RUN(parse_errors);
    RUN(parse_noise);
    RUN(lowering);
    RUN(drawing);
    RUN(planted_faults);
    RUN(sentences);
    RUN(slots);
    return test_end();
}
