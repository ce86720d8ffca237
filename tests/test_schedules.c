/* Schedules as data: what the builders write, what the checker accepts and refuses, the simulator,
   the text form, lowering, lists by hand and drawing. The builders are held against their papers'
   rules in other words, the checker against a second one, written here from its rules with other
   means. How schedules travel, deadlock and are timed is in test_laboratory.c.

   cc -std=c99 -O2 tests/test_schedules.c -o test_schedules -lm -lpthread */
#define PIPEMLP_IMPLEMENTATION
#include "../pipemlp.h"
#include "test.h"
#include "shapes.h"

enum { MAX_P = 8, MAX_M = 24, MAX_V = 4, MAX_S = MAX_P * MAX_V, MAX_LIST = 1024, TEXT = 1 << 17 };

static int least(int a, int b) {
    return a < b ? a : b;
}

/* --- which schedules there are --------------------------------------------------------------- */

static bool is_split(pmlp_schedule_kind k) { /* I and W apart */
    return k == PMLP_SCHEDULE_ZB_H1 || k == PMLP_SCHEDULE_ZB_H2 || is_v(k);
}

/* What each kind demands, as the manual says it. */
static bool exists(shape c) {
    const int rounds = c.m < c.p ? 1 : c.m / c.p;
    if (is_v(c.kind) ? c.v != 2 : !is_looped(c.kind) && c.v != 1) return false;
    if (c.batches > 1 && !is_async(c.kind)) return false;
    switch (c.kind) {
    case PMLP_SCHEDULE_INTERLEAVED: return c.m % rounds == 0;
    case PMLP_SCHEDULE_DUALPIPE_V: return c.m >= 2 * c.p;
    case PMLP_SCHEDULE_PIPEDREAM_2BW: return c.m >= c.p;
    default: return true;
    }
}

static const char *name_of(shape c) {
    static char name[80];
    snprintf(name, sizeof name, "%s p %d v %d m %d x %d", pmlp_schedule_kind_name(c.kind), c.p, c.v,
             c.m, c.batches);
    return name;
}

static pmlp_result create(shape c, pmlp_schedule **schedule, pmlp_error *error) {
    pmlp_schedule_desc desc = {0};
    *schedule = NULL;
    desc.kind = c.kind, desc.workers = c.p, desc.virtual_stages = c.v, desc.microbatches = c.m;
    desc.batches = c.batches;
    return pmlp_schedule_create(&desc, schedule, error);
}

static pmlp_schedule *build_shape(shape c) {
    pmlp_schedule *schedule = NULL;
    pmlp_error error = {0};
    CHECK(create(c, &schedule, &error) == PMLP_OK, "%s: %s", name_of(c), error.text);
    return schedule;
}

static pmlp_schedule *build(pmlp_schedule_kind kind, int p, int m) {
    shape c = {kind, p, 0, m, 0};
    return build_shape(c);
}

/* Calls body for every kind but auto, p <= 8, v <= 4, m <= 24, one batch or three, that exists; the
   quick set takes fewer m and v. */
static long each_builder(void (*body)(shape c, pmlp_schedule *schedule)) {
    long called = 0;
    shape c;
    for (int kind = 1; kind < PMLP_SCHEDULE_KIND_COUNT; kind++)
        for (c.p = 1; c.p <= MAX_P; c.p++)
            for (c.v = 1; c.v <= (test_quick() ? 2 : MAX_V); c.v++)
                for (c.m = 1; c.m <= MAX_M; c.m += test_quick() ? 5 : 1)
                    for (c.batches = 1; c.batches <= 3 && c.batches * c.m <= MAX_M;
                         c.batches += 2) {
                        c.kind = (pmlp_schedule_kind)kind;
                        if (c.kind == PMLP_SCHEDULE_AUTO || !exists(c)) continue;
                        pmlp_schedule *schedule = build_shape(c);
                        if (schedule) body(c, schedule), called++;
                        pmlp_schedule_destroy(schedule);
                    }
    return called;
}

/* --- plain lists, which the tests change and write as text ----------------------------------- */

typedef struct lists {
    int p, stages, m;
    int per_update, delay; /* asynchronous: micro-batches of an update, 0 if synchronous; which
                              version a forward reads, as in desc */
    bool lowered;
    int owner[MAX_S]; /* -1: nobody */
    int count[MAX_P];
    pmlp_action list[MAX_P][MAX_LIST];
} lists;

static lists original, changed; /* large, so not on the C stack */
static char text[TEXT], text2[TEXT];

static void copy_lists(lists *out, const lists *in) { /* what is there, not the whole room */
    memcpy(out, in, offsetof(lists, list));
    for (int w = 0; w < in->p; w++)
        memcpy(out->list[w], in->list[w], (size_t)in->count[w] * sizeof in->list[w][0]);
}

static bool is_handoff(pmlp_op op) {
    return op >= PMLP_OP_SEND_F;
}

static void to_lists(const pmlp_schedule *schedule, lists *out) {
    out->p = pmlp_schedule_workers(schedule), out->stages = pmlp_schedule_stages(schedule);
    out->m = pmlp_schedule_microbatches(schedule);
    out->per_update = out->delay = 0, out->lowered = false;
    for (int s = 0; s < MAX_S; s++) out->owner[s] = pmlp_schedule_stage_worker(schedule, s);
    for (int w = 0; w < out->p; w++) {
        const pmlp_action *a = pmlp_schedule_actions(schedule, w, &out->count[w]);
        if (!CHECK(out->count[w] <= MAX_LIST, "list of %d", out->count[w])) out->count[w] = 0;
        if (out->count[w]) memcpy(out->list[w], a, (size_t)out->count[w] * sizeof *a);
        for (int i = 0; i < out->count[w]; i++) out->lowered |= is_handoff(a[i].op);
    }
}

/* The same, knowing the rules of a kind, which the actions alone do not tell. */
static void to_lists_of(shape c, const pmlp_schedule *schedule, lists *out) {
    to_lists(schedule, out);
    out->per_update = c.kind == PMLP_SCHEDULE_PIPEDREAM       ? 1
                      : c.kind == PMLP_SCHEDULE_PIPEDREAM_2BW ? c.m
                                                              : 0;
    out->delay = c.kind == PMLP_SCHEDULE_PIPEDREAM_2BW ? 1 : -1;
}

static void action_text(pmlp_action a, char *out, size_t size) {
    if (a.op == PMLP_OP_U && a.microbatch < 0)
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

/* The rules of pmlp_schedule_check() by other means: where everything stands goes into a table, the
   rules are comparisons of places in it; then each list is written out with its hand-offs and the
   workers run against bounded queues until nothing moves. */

enum { NOWHERE = 1 << 20 };
static int place[PMLP_OP_COUNT][MAX_S][MAX_M + 1], often[PMLP_OP_COUNT][MAX_S][MAX_M + 1];

static void note(pmlp_op op, int s, int k, int at) {
    if (often[op][s][k]++ == 0) place[op][s][k] = at;
}

/* B counts as I and as W; each U under its micro-batch, or under 0. */
static void tabulate(const lists *l) {
    memset(often, 0, sizeof often);
    for (int o = 0; o < PMLP_OP_COUNT; o++)
        for (int s = 0; s < MAX_S; s++)
            for (int k = 0; k <= MAX_M; k++) place[o][s][k] = NOWHERE;
    for (int w = 0; w < l->p; w++)
        for (int i = 0; i < l->count[w]; i++) {
            const pmlp_action a = l->list[w][i];
            const int k = a.microbatch < 0 ? 0 : a.microbatch;
            if (a.op == PMLP_OP_B)
                note(PMLP_OP_I, a.stage, k, i), note(PMLP_OP_W, a.stage, k, i);
            else
                note(a.op, a.stage, k, i);
        }
}

/* Synchronous: an update waits for the gradients of every stage, so none may stand before a W of its
   worker. Asynchronous: the n-th update of a stage lies between the W of its batch and the next. */
static bool updates_hold(const lists *l, int s) {
    if (l->per_update == 0) {
        if (often[PMLP_OP_U][s][0] != 1) return false;
        for (int t = 0; t < l->stages; t++)
            for (int k = 0; l->owner[t] == l->owner[s] && k < l->m; k++)
                if (place[PMLP_OP_W][t][k] > place[PMLP_OP_U][s][0]) return false;
        return true;
    }
    for (int k = 0; k < l->m; k++) {
        const bool due = (k + 1) % l->per_update == 0;
        const int group = k / l->per_update, at = place[PMLP_OP_U][s][k];
        if (often[PMLP_OP_U][s][k] != due) return false;
        if (due &&
            (at < place[PMLP_OP_W][s][k] || (k + 1 < l->m && at > place[PMLP_OP_W][s][k + 1])))
            return false;
        /* with a delay of 1, batch n computes with the weights that update n - 2 left */
        if (l->delay == 1 && group >= 2 &&
            place[PMLP_OP_U][s][(group - 1) * l->per_update - 1] > place[PMLP_OP_F][s][k])
            return false;
    }
    return true;
}

static bool rules_hold(const lists *l) {
    tabulate(l);
    for (int s = 0; s < l->stages; s++) {
        if (l->owner[s] < 0 || !updates_hold(l, s)) return false;
        for (int k = 0; k < l->m; k++) {
            for (int o = PMLP_OP_F; o <= PMLP_OP_W; o++)
                if (often[o][s][k] != 1) return false;
            for (int o = PMLP_OP_SEND_F; o < PMLP_OP_COUNT; o++)
                if (often[o][s][k] > 1) return false;
            if (place[PMLP_OP_F][s][k] > place[PMLP_OP_I][s][k] ||
                place[PMLP_OP_I][s][k] > place[PMLP_OP_W][s][k] ||
                (k > 0 && place[PMLP_OP_W][s][k] < place[PMLP_OP_W][s][k - 1]))
                return false;
        }
    }
    return true;
}

/* A queue of micro-batch numbers. */
typedef struct queue {
    int item[2 * MAX_M], head, tail;
} queue;

typedef struct replay {
    queue up[MAX_S], down[MAX_S]; /* up[s]: activations s -> s+1; down[s]: gradients s+1 -> s */
    bool f[MAX_S][MAX_M], i[MAX_S][MAX_M], got_f[MAX_S][MAX_M], got_b[MAX_S][MAX_M];
    bool wrong;      /* something came, or is done, in the wrong order */
    int w_left;      /* W of all stages */
    int next[MAX_P]; /* of each worker */
} replay;

static bool apart(const lists *l, int s) { /* s and s + 1 exist, on different workers */
    return s >= 0 && s + 1 < l->stages && l->owner[s] != l->owner[s + 1];
}

/* With the hand-offs: B is I, W; each RECV right before what needs it, each SEND right behind. */
static void write_out(const lists *l, lists *out) {
    memcpy(out, l, offsetof(lists, list));
    out->lowered = true;
    for (int w = 0; w < l->p; w++) {
        int n = 0;
        for (int i = 0; i < l->count[w]; i++) {
            const pmlp_action a = l->list[w][i];
            const int s = a.stage, k = a.microbatch;
            const bool f = a.op == PMLP_OP_F, b = a.op == PMLP_OP_I || a.op == PMLP_OP_B;
            const pmlp_action parts[] = {
                {f && apart(l, s - 1) ? PMLP_OP_RECV_F : PMLP_OP_NONE, s, k},
                {b && apart(l, s) ? PMLP_OP_RECV_B : PMLP_OP_NONE, s, k},
                {a.op == PMLP_OP_B ? PMLP_OP_I : a.op, s, k},
                {f && apart(l, s) ? PMLP_OP_SEND_F : PMLP_OP_NONE, s, k},
                {b && apart(l, s - 1) ? PMLP_OP_SEND_B : PMLP_OP_NONE, s, k},
                {a.op == PMLP_OP_B ? PMLP_OP_W : PMLP_OP_NONE, s, k}};
            for (int j = 0; j < 6; j++)
                if (parts[j].op != PMLP_OP_NONE) out->list[w][n++] = parts[j];
        }
        out->count[w] = n;
    }
}

/* Whether the action moved on. slots 0 means without bound. */
static bool replay_step(replay *r, const lists *l, int slots, pmlp_action a) {
    const int s = a.stage, k = a.microbatch;
    queue *q;
    switch (a.op) {
    case PMLP_OP_F:
        r->wrong |= s > 0 && !(apart(l, s - 1) ? r->got_f[s][k] : r->f[s - 1][k]);
        return r->f[s][k] = !r->wrong;
    case PMLP_OP_I:
    case PMLP_OP_B:
        r->wrong |= s + 1 < l->stages && !(apart(l, s) ? r->got_b[s][k] : r->i[s + 1][k]);
        r->w_left -= a.op == PMLP_OP_B;
        return r->i[s][k] = !r->wrong;
    case PMLP_OP_W: r->w_left--; return true;
    case PMLP_OP_U: return l->per_update > 0 || r->w_left == 0;
    case PMLP_OP_SEND_F:
    case PMLP_OP_SEND_B:
        q = a.op == PMLP_OP_SEND_F ? &r->up[s] : &r->down[s - 1];
        r->wrong |= !(a.op == PMLP_OP_SEND_F ? r->f : r->i)[s][k];
        if (r->wrong || (slots > 0 && q->tail - q->head >= slots)) return false;
        q->item[q->tail++] = k;
        return true;
    default:
        q = a.op == PMLP_OP_RECV_F ? &r->up[s - 1] : &r->down[s];
        if (q->head == q->tail) return false;
        r->wrong |= q->item[q->head++] != k;
        (a.op == PMLP_OP_RECV_F ? r->got_f : r->got_b)[s][k] = true;
        return !r->wrong;
    }
}

/* A network of processes and queues: how far it gets does not depend on who runs first. What comes
   in the wrong order breaks a rule and is no deadlock. */
static pmlp_result replay_run(const lists *lists_, int slots) {
    static replay r;
    static lists written;
    const lists *l = lists_;
    memset(&r, 0, sizeof r);
    if (!l->lowered) write_out(l, &written), l = &written;
    r.w_left = l->stages * l->m;
    for (bool moved = true; moved && !r.wrong;) {
        moved = false;
        for (int w = 0; w < l->p; w++)
            while (r.next[w] < l->count[w] && replay_step(&r, l, slots, l->list[w][r.next[w]]))
                r.next[w]++, moved = true;
    }
    if (r.wrong) return PMLP_ERROR_SCHEDULE;
    for (int w = 0; w < l->p; w++)
        if (r.next[w] < l->count[w]) return PMLP_ERROR_DEADLOCK;
    return PMLP_OK;
}

static pmlp_result oracle(const lists *l, int slots) {
    return rules_hold(l) ? replay_run(l, slots) : PMLP_ERROR_SCHEDULE;
}

/* Micro-batches whose forward is done and whose W is not: counted anew for every place of the list
   from the table that rules_hold() made. */
static int counted_peak(const lists *l, int w) {
    int most = 0;
    for (int end = 0; end < l->count[w]; end++) {
        int held = 0;
        for (int s = 0; s < l->stages; s++)
            for (int k = 0; l->owner[s] == w && k < l->m; k++)
                held += place[PMLP_OP_F][s][k] <= end && place[PMLP_OP_W][s][k] > end;
        if (held > most) most = held;
    }
    return most;
}

/* --- builders: the rules of the papers in other words ----------------------------------------- */

/* What a worker's list must be, grown from nothing. */
typedef struct wanted {
    pmlp_action list[MAX_LIST];
    int count;
} wanted;

static void want(wanted *x, pmlp_op op, int stage, int microbatch) {
    const pmlp_action a = {op, stage, microbatch};
    x->list[x->count++] = a;
}

/* All forwards and all backwards of the worker, each in its order: sorted by a key. Chunks of a loop
   take turns every g micro-batches, those of a whole batch when g is m. */
static void in_turns(wanted *x, pmlp_op op, const shape *c, int r, int g) {
    for (int round = 0; round * g < c->m; round++)
        for (int turn = 0; turn < c->v; turn++)
            for (int k = round * g; k < least(c->m, round * g + g); k++)
                want(x, op, r + c->p * (op == PMLP_OP_F ? turn : c->v - 1 - turn), k);
}

/* 1F1B in its widest sense: so many forwards run ahead, then a backward follows each forward, then
   what is left; W `late` backwards behind its I, updates each `per` backwards. */
static void one_f_one_b(wanted *x, const wanted *f, const wanted *b, int ahead, int late,
                        bool split, int per) {
    int done = 0;
    for (int i = 0; i < f->count + ahead; i++) {
        if (i < f->count) x->list[x->count++] = f->list[i];
        if (i < ahead || done == b->count) continue;
        pmlp_action a = b->list[done++];
        if (split) a.op = PMLP_OP_I;
        x->list[x->count++] = a;
        if (split && done > late) want(x, PMLP_OP_W, a.stage, done - 1 - late);
        if (per && done % per == 0) want(x, PMLP_OP_U, a.stage, a.microbatch);
    }
    for (; done < b->count; done++) x->list[x->count++] = b->list[done];
    for (int k = split ? b->count - least(late, b->count) : b->count; k < b->count; k++)
        want(x, PMLP_OP_W, b->list[k].stage, k);
}

/* A V is written as a sentence of letters, f F0, b I0, w W0 of the lower chunk, capitals of the
   upper one; each letter has its own count, and micro-batches that do not exist fall out. */
static void say(char *out, const char *phrase, int times) {
    for (out += strlen(out); times > 0; times--) out += sprintf(out, "%s", phrase);
}

static void read_aloud(wanted *x, const char *letters, const shape *c, int r) {
    int count[128] = {0};
    for (; *letters; letters++) {
        const int up = *letters >= 'A' && *letters <= 'Z', low = up ? *letters + 32 : *letters;
        const int k = count[(unsigned char)*letters]++;
        const pmlp_op op = low == 'f' ? PMLP_OP_F : low == 'b' ? PMLP_OP_I : PMLP_OP_W;
        if (k < c->m) want(x, op, up ? 2 * c->p - 1 - r : r, k);
    }
}

static void say_zb_v(char *s, int p, int m, int r) {
    const int n = m < 2 * p - 1 ? 2 * p - 1 : m;
    say(s, "f", 2 * (p - r) - 1), say(s, "Ff", r), say(s, "FBW", p - r);
    say(s, "fbwFBW", n - 2 * p + r + 1), say(s, "bwFBW", p - 1 - r);
    say(s, "bB", r), say(s, "bw", p - r), say(s, "W", r), say(s, "w", r);
}

static void say_dualpipe_v(char *s, int p, int m, int r) {
    char late[4 * MAX_P + 1] = "", *next = late; /* the W that were put off, first in, first out */
    say(s, "f", 2 * (p - r - 1)), say(s, "fF", r + 1), say(s, "BWF", p - r - 1);
    say(s, "fBWFbw", m - 2 * p + r + 1), say(s, "BWFbw", p - r - 1);
    for (int i = 0; i < 2 * (r + 1); i++) { /* backwards of both in turn; the later half keep W */
        const bool whole = i < r + 1;
        say(s, i % 2 ? whole ? "bw" : "b" : whole ? "BW" : "B", 1);
        if (!whole) say(late, i % 2 ? "w" : "W", 1);
    }
    for (int i = 0; i < p - r - 1; i++) {
        char one[2] = {*next++, 0};
        say(s, one, 1), say(s, "b", 1), say(late, "w", 1);
    }
    say(s, next, 1);
}

static void expected_list(const shape *c, int r, wanted *x) {
    static wanted f, b;
    static char sentence[MAX_LIST];
    const int m = c->m * c->batches, behind = c->p - 1 - r;
    const int rounds = c->m / c->p < 1 ? 1 : c->m / c->p;
    shape all = *c;
    int ahead = behind, g = m;
    all.m = m, f.count = b.count = x->count = 0, sentence[0] = 0;
    switch (c->kind) {
    case PMLP_SCHEDULE_SEQUENTIAL: ahead = 0; break;
    case PMLP_SCHEDULE_GPIPE:
    case PMLP_SCHEDULE_LOOPED_BFS: ahead = m * c->v; break;
    case PMLP_SCHEDULE_EAGER_1F1B:
    case PMLP_SCHEDULE_ZB_H2: ahead = 2 * behind; break;
    case PMLP_SCHEDULE_INTERLEAVED: g = m / rounds, ahead = 2 * behind + (c->v - 1) * g; break;
    default: break;
    }
    if (is_v(c->kind)) {
        (c->kind == PMLP_SCHEDULE_ZB_V ? say_zb_v : say_dualpipe_v)(sentence, c->p, m, r);
        read_aloud(x, sentence, &all, r);
    } else {
        in_turns(&f, PMLP_OP_F, &all, r, g), in_turns(&b, PMLP_OP_B, &all, r, g);
        one_f_one_b(x, &f, &b, least(ahead, f.count),
                    c->kind == PMLP_SCHEDULE_ZB_H1   ? r
                    : c->kind == PMLP_SCHEDULE_ZB_H2 ? 2 * r
                                                     : 0,
                    is_split(c->kind),
                    c->kind == PMLP_SCHEDULE_PIPEDREAM       ? 1
                    : c->kind == PMLP_SCHEDULE_PIPEDREAM_2BW ? c->m
                                                             : 0);
    }
    for (int s = 0; s < c->p * c->v && !is_async(c->kind); s++)
        if (s == r || (is_v(c->kind) ? s == 2 * c->p - 1 - r : s % c->p == r))
            want(x, PMLP_OP_U, s, -1);
}

/* The published peaks: exact where a formula says so, else the least and the most. */
static void expected_peak(shape c, int r, int *low, int *high) {
    const int p = c.p, m = c.m * c.batches, behind = p - 1 - r, g = c.m / (c.m < p ? 1 : c.m / p);
    *low = *high = m;
    switch (c.kind) {
    case PMLP_SCHEDULE_SEQUENTIAL: *low = *high = 1; break;
    case PMLP_SCHEDULE_GPIPE: break;
    case PMLP_SCHEDULE_EAGER_1F1B: *low = *high = least(m, 2 * (p - r) - 1); break;
    case PMLP_SCHEDULE_INTERLEAVED:
        *low = *high = least((c.v - 1) * g + 2 * behind + 1, m * c.v);
        break;
    case PMLP_SCHEDULE_LOOPED_BFS: *low = *high = m * c.v; break;
    case PMLP_SCHEDULE_ZB_H1: *low = *high = least(m, p); break;
    case PMLP_SCHEDULE_ZB_H2: *low = *high = least(m, 2 * p - 1); break;
    case PMLP_SCHEDULE_ZB_V: /* 2 p chunks if there are that many micro-batches */
        *low = *high = least(m, 2 * p - 1 - r) + least(m, r + 1);
        break;
    case PMLP_SCHEDULE_DUALPIPE_V: *low = *high = 2 * p + 1; break;
    default: *low = *high = least(m, p - r); break; /* 1F1B and its asynchronous kin */
    }
}

/* One slot everywhere, but half the workers for interleaved ones, at most; and breadth first worker
   0 takes nothing before it has got rid of all m: each of the others has one in hand, the queues
   between the p workers of the loop must hold the rest. */
static int expected_slots(shape c) {
    if (c.kind == PMLP_SCHEDULE_INTERLEAVED) return (c.p + 1) / 2;
    if (c.kind == PMLP_SCHEDULE_LOOPED_BFS && c.p > 1 && c.v > 1 && c.m >= c.p) return c.m / c.p;
    return 1;
}

static void check_list(shape c, int r) {
    static wanted x;
    char got[40], wanted_[40];
    expected_list(&c, r, &x);
    if (!CHECK(original.count[r] == x.count, "%s: worker %d has %d actions, expected %d",
               name_of(c), r, original.count[r], x.count))
        return;
    for (int i = 0; i < x.count; i++) {
        const pmlp_action a = original.list[r][i], b = x.list[i];
        action_text(a, got, sizeof got), action_text(b, wanted_, sizeof wanted_);
        if (!CHECK(!strcmp(got, wanted_), "%s: worker %d, place %d: %s, expected %s", name_of(c), r,
                   i, got, wanted_))
            return;
    }
}

static void check_builder(shape c, pmlp_schedule *schedule) {
    int peaks[MAX_P], up[MAX_S], down[MAX_S], low, high;
    pmlp_check report = {0};
    pmlp_error error = {0};
    const int stages = c.p * c.v, m = c.m * c.batches;
    report.peaks = peaks, report.forward_slots = up, report.backward_slots = down;
    CHECK(pmlp_schedule_workers(schedule) == c.p && pmlp_schedule_stages(schedule) == stages &&
              pmlp_schedule_microbatches(schedule) == m &&
              pmlp_schedule_is_synchronous(schedule) == !is_async(c.kind),
          "%s: sizes", name_of(c));
    CHECK(pmlp_schedule_check(schedule, 0, &report, &error) == PMLP_OK, "%s: %s", name_of(c),
          error.text);
    to_lists_of(c, schedule, &original);
    CHECK(oracle(&original, expected_slots(c)) == PMLP_OK, "%s: refused by the second checker",
          name_of(c));
    int most = 0, versions = 1;
    for (int w = 0; w < c.p; w++) {
        check_list(c, w);
        expected_peak(c, w, &low, &high);
        CHECK(peaks[w] >= low && peaks[w] <= high && peaks[w] == counted_peak(&original, w),
              "%s: peak of worker %d is %d, counted %d, published %d .. %d", name_of(c), w,
              peaks[w], counted_peak(&original, w), low, high);
        if (peaks[w] > most) most = peaks[w];
    }
    CHECK(report.peak == most, "%s: peak %d, not %d", name_of(c), report.peak, most);
    for (int s = 0; s < stages; s++) {
        const int owner = s < c.p ? s : is_v(c.kind) ? 2 * c.p - 1 - s : s % c.p;
        int need = 1;
        if (c.kind == PMLP_SCHEDULE_PIPEDREAM) need = least(m, c.p - s);
        if (c.kind == PMLP_SCHEDULE_PIPEDREAM_2BW) need = 2;
        CHECK(pmlp_schedule_stage_worker(schedule, s) == owner, "%s: stage %d", name_of(c), s);
        CHECK(pmlp_schedule_versions(schedule, s) == need, "%s: stage %d needs %d versions, not %d",
              name_of(c), s, need, pmlp_schedule_versions(schedule, s));
        if (need > versions) versions = need;
    }
    CHECK(report.versions == versions, "%s: %d versions", name_of(c), report.versions);
    int widest = 0;
    for (int s = 0; s + 1 < stages; s++) {
        const bool crosses = original.owner[s] != original.owner[s + 1];
        CHECK(up[s] >= crosses && down[s] >= crosses && (crosses || up[s] + down[s] == 0) &&
                  up[s] <= expected_slots(c) && down[s] <= expected_slots(c),
              "%s: edge %d needs %d up, %d down", name_of(c), s, up[s], down[s]);
        if (up[s] > widest) widest = up[s];
        if (down[s] > widest) widest = down[s];
    }
    CHECK(report.slots == widest, "%s: %d slots, %d on an edge", name_of(c), report.slots, widest);
    CHECK(widest == (c.p == 1 ? 0 : expected_slots(c)) || c.kind == PMLP_SCHEDULE_INTERLEAVED,
          "%s: %d slots, expected %d", name_of(c), widest, expected_slots(c));
    for (int slots = 1; c.p > 1 && slots <= widest; slots++)
        CHECK(pmlp_schedule_check(schedule, slots, &report, &error) ==
                  (slots < widest ? PMLP_ERROR_DEADLOCK : PMLP_OK),
              "%s, %d slots of %d: %s", name_of(c), slots, widest, error.text);
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
              pmlp_schedule_stage_worker(schedule, -1) == -1 &&
              pmlp_schedule_versions(schedule, 3) == 0 && pmlp_schedule_versions(schedule, -1) == 0,
          "stages 3 and -1 of 3");
    pmlp_schedule_destroy(schedule), pmlp_schedule_destroy(same);
    SAY("%s schedules of %d kinds (p <= 8, v <= 4, m <= 24): every action, peak, slot and version as "
        "published; accepted by both checkers",
        test_count(n), PMLP_SCHEDULE_KIND_COUNT - 2);
}

/* Names, defaults, and what a kind cannot have. */
TEST(kinds) {
    pmlp_schedule *schedule;
    long made = 0, refused = 0;
    shape c;
    for (int k = 1; k < PMLP_SCHEDULE_KIND_COUNT; k++) {
        const char *name = pmlp_schedule_kind_name((pmlp_schedule_kind)k);
        CHECK(pmlp_schedule_kind_of(name) == (pmlp_schedule_kind)k, "%d is '%s'", k, name);
        for (int o = 0; o < k; o++)
            CHECK(strcmp(name, pmlp_schedule_kind_name((pmlp_schedule_kind)o)), "two are '%s'",
                  name);
        c.kind = (pmlp_schedule_kind)k, c.p = 2, c.v = 0, c.m = 4, c.batches = 0;
        schedule = build_shape(c);
        CHECK(pmlp_schedule_stages(schedule) == (is_looped(c.kind) || is_v(c.kind) ? 4 : 2) &&
                  pmlp_schedule_microbatches(schedule) == 4,
              "%s: %d stages by default", name, pmlp_schedule_stages(schedule));
        pmlp_schedule_destroy(schedule);
    }
    CHECK(!strcmp(pmlp_schedule_kind_name(PMLP_SCHEDULE_KIND_COUNT), "?"), "a kind too many");
    CHECK(pmlp_schedule_kind_of("default") == PMLP_SCHEDULE_DEFAULT &&
              pmlp_schedule_kind_of("1F1B") == PMLP_SCHEDULE_DEFAULT &&
              pmlp_schedule_kind_of("") == PMLP_SCHEDULE_DEFAULT &&
              pmlp_schedule_kind_of(NULL) == PMLP_SCHEDULE_DEFAULT,
          "a name that is none");
    for (int k = 1; k < PMLP_SCHEDULE_KIND_COUNT; k++)
        for (c.p = 1; c.p <= MAX_P; c.p++)
            for (c.v = 1; c.v <= 3; c.v++)
                for (c.m = 1; c.m <= MAX_M; c.m++)
                    for (c.batches = 1; c.batches <= 2; c.batches++) {
                        pmlp_error error = {0};
                        c.kind = (pmlp_schedule_kind)k;
                        if (c.kind == PMLP_SCHEDULE_AUTO) continue;
                        const bool ok = create(c, &schedule, &error) == PMLP_OK;
                        CHECK(ok == exists(c) && ok == (schedule != NULL), "%s: %s", name_of(c),
                              error.text);
                        if (!ok)
                            CHECK(error.result == PMLP_ERROR_ARGUMENT &&
                                      (!strncmp(error.text, "virtual_stages:", 15) ||
                                       !strncmp(error.text, "microbatches:", 13) ||
                                       !strncmp(error.text, "batches:", 8)),
                                  "%s: %s", name_of(c), error.text);
                        *(ok ? &made : &refused) += 1;
                        pmlp_schedule_destroy(schedule);
                    }
    /* the interleaved sentence names a number that works */
    pmlp_error error = {0};
    c.kind = PMLP_SCHEDULE_INTERLEAVED, c.p = 4, c.v = 2, c.m = 11, c.batches = 1;
    CHECK(create(c, &schedule, &error) == PMLP_ERROR_ARGUMENT && strstr(error.text, "; 10 can"),
          "%s", error.text);
    SAY("%d names; %s shapes made, %s refused with the field's name", PMLP_SCHEDULE_KIND_COUNT - 1,
        test_count(made), test_count(refused));
}

/* --- simulator ------------------------------------------------------------------------------- */

static bool near(double a, double b) {
    return fabs(a - b) <= 1e-9 * (1 + fabs(b));
}

/* The published makespan where there is one, for stages that all cost F, I, W; else -1. Work is the
   same for every kind: a stage is 1 / v of a worker. Where I is shorter than F, or W than I, the
   zero-bubble kinds have other formulas, which are not published. */
static double published(shape c, double f, double i, double w) {
    const double fb = f + i + w, p = c.p, m = c.m, ideal = m * fb;
    const bool unit = f == i && i == w;
    switch (c.kind) {
    case PMLP_SCHEDULE_SEQUENTIAL: return p * ideal;
    case PMLP_SCHEDULE_GPIPE:
    case PMLP_SCHEDULE_1F1B:
    case PMLP_SCHEDULE_EAGER_1F1B: return ideal + (p - 1) * fb;
    case PMLP_SCHEDULE_INTERLEAVED:
    case PMLP_SCHEDULE_LOOPED_BFS:
        if (c.m % c.p == 0 || (c.kind == PMLP_SCHEDULE_LOOPED_BFS && c.m > c.p))
            return ideal + (p - 1) * fb / c.v;
        return -1;
    case PMLP_SCHEDULE_ZB_H1: return unit && c.m >= c.p ? ideal + (p - 1) * (f + i - w) : -1;
    case PMLP_SCHEDULE_ZB_H2: return unit && c.m >= 2 * c.p - 1 ? ideal + (p - 1) * f : -1;
    case PMLP_SCHEDULE_ZB_V: return unit && c.m >= 2 * c.p ? ideal + (p - 1) * f / 2 : -1;
    case PMLP_SCHEDULE_DUALPIPE_V: return unit ? ideal + (p - 1) * f / 2 : -1;
    default: return -1;
    }
}

/* No bubble between a worker's first action and its last, if F = I = W and m suffices. */
static bool has_no_gap(shape c) {
    return (c.kind == PMLP_SCHEDULE_ZB_H2 && c.m >= 2 * c.p - 1) ||
           (c.kind == PMLP_SCHEDULE_ZB_V && c.m >= 2 * c.p);
}

static long formulas;

static void check_makespan(shape c, pmlp_schedule *schedule) {
    static double begin[MAX_P * MAX_LIST];
    static const double units[][3] = {{1, 1, 1}, {2, 3, 1}, {0.5, 0.25, 4}};
    for (int u = 0; u < 3; u++) {
        double f[MAX_S], i[MAX_S], w[MAX_S];
        const double *x = units[u], want = published(c, x[0], x[1], x[2]);
        for (int s = 0; s < c.p * c.v; s++) f[s] = x[0] / c.v, i[s] = x[1] / c.v, w[s] = x[2] / c.v;
        pmlp_costs costs = {f, i, w, NULL, 0, 0, NULL, NULL, 0, NULL};
        pmlp_simulation sim = {0};
        pmlp_error error = {0};
        CHECK(pmlp_schedule_simulate(schedule, u || c.v > 1 ? &costs : NULL, begin, &sim, &error) ==
                  PMLP_OK,
              "%s", error.text);
        for (int r = 0, at = 0, n; u == 0 && has_no_gap(c) && r < c.p; r++, at += n) {
            pmlp_schedule_actions(schedule, r, &n); /* the last actions are W, U, or W, U, U */
            const double span = begin[at + n - 1 - c.v] + 1.0 / c.v - begin[at];
            CHECK(near(span, 3 * c.m), "%s: worker %d spans %g, not %d", name_of(c), r, span,
                  3 * c.m);
        }
        const double busiest = c.m * c.batches * (x[0] + x[1] + x[2]);
        CHECK(near(sim.busiest, busiest) && sim.makespan >= busiest - 1e-9 &&
                  near(sim.bubble, 1 - busiest / sim.makespan),
              "%s: makespan %g, busiest %g, not %g, bubble %g", name_of(c), sim.makespan,
              sim.busiest, busiest, sim.bubble);
        if (want < 0) continue;
        formulas++;
        CHECK(near(sim.makespan, want), "%s: makespan %g, published %g", name_of(c), sim.makespan,
              want);
    }
}

/* The beginnings keep every dependency, and nobody does two things at once. */
static void check_begins(shape c, pmlp_schedule *schedule) {
    static double begin[MAX_P * MAX_LIST], end[PMLP_OP_COUNT][MAX_S][MAX_M];
    double cost[PMLP_OP_COUNT][MAX_S], last = 0, last_w = 0;
    pmlp_simulation sim = {0};
    pmlp_error error = {0};
    uint64_t rng = (uint64_t)(c.p * 1000 + c.v * 100 + c.m);
    for (int s = 0; s < c.p * c.v; s++) {
        for (int o = PMLP_OP_F; o <= PMLP_OP_U; o++) cost[o][s] = test_uniform(&rng, 0.5, 3);
        cost[PMLP_OP_B][s] = cost[PMLP_OP_I][s] + cost[PMLP_OP_W][s];
    }
    pmlp_costs costs = {
        cost[PMLP_OP_F], cost[PMLP_OP_I], cost[PMLP_OP_W], cost[PMLP_OP_U], 0.75, 0, NULL, NULL, 0, NULL};
    CHECK(pmlp_schedule_simulate(schedule, &costs, begin, &sim, &error) == PMLP_OK, "%s",
          error.text);
    to_lists_of(c, schedule, &original);
    for (int pass = 0; pass < 2; pass++)
        for (int worker = 0, at = 0; worker < c.p; worker++) {
            double free_at = 0;
            for (int k = 0; k < original.count[worker]; k++, at++) {
                const pmlp_action a = original.list[worker][k];
                const int s = a.stage, b = a.microbatch < 0 ? 0 : a.microbatch;
                const bool f = a.op == PMLP_OP_F, i = a.op == PMLP_OP_I || a.op == PMLP_OP_B;
                double need = free_at, from = 0;
                if (pass == 0) {
                    from = begin[at] + cost[a.op][s];
                    end[i ? PMLP_OP_I : a.op][s][b] = from;
                    if (a.op == PMLP_OP_W || a.op == PMLP_OP_B) last_w = fmax(last_w, from);
                    last = fmax(last, from);
                    continue;
                }
                if (f && s > 0) from = end[PMLP_OP_F][s - 1][b] + 0.75 * apart(&original, s - 1);
                if (i && s + 1 < original.stages)
                    from = end[PMLP_OP_I][s + 1][b] + 0.75 * apart(&original, s);
                if (a.op == PMLP_OP_U && !original.per_update) from = last_w;
                need = fmax(need, from);
                CHECK(near(begin[at], need), "%s: worker %d action %d begins at %g, not %g",
                      name_of(c), worker, k, begin[at], need);
                free_at = begin[at] + cost[a.op][s];
            }
        }
    CHECK(near(sim.makespan, last), "%s: makespan %g, last end %g", name_of(c), sim.makespan, last);
}

TEST(simulator) {
    static const struct {
        pmlp_schedule_kind kind;
        double makespan;
    } known[] = {{PMLP_SCHEDULE_SEQUENTIAL, 96},    {PMLP_SCHEDULE_GPIPE, 33},
                 {PMLP_SCHEDULE_1F1B, 33},          {PMLP_SCHEDULE_EAGER_1F1B, 33},
                 {PMLP_SCHEDULE_ZB_H1, 27},         {PMLP_SCHEDULE_ZB_H2, 27},
                 {PMLP_SCHEDULE_INTERLEAVED, 28.5}, {PMLP_SCHEDULE_ZB_V, 25.5}};
    static const double half[] = {0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5};
    const pmlp_costs halves = {half, half, half, NULL, 0, 0, NULL, NULL, 0, NULL};
    for (int k = 0; k < (int)(sizeof known / sizeof *known); k++) {
        pmlp_schedule *schedule = build(known[k].kind, 4, 8);
        pmlp_simulation sim = {0};
        CHECK(pmlp_schedule_simulate(schedule, pmlp_schedule_stages(schedule) == 8 ? &halves : NULL,
                                     NULL, &sim, NULL) == PMLP_OK &&
                  sim.makespan == known[k].makespan && sim.busiest == 24,
              "%s: %g", pmlp_schedule_kind_name(known[k].kind), sim.makespan);
        pmlp_schedule_destroy(schedule);
    }
    formulas = 0;
    long n = each_builder(check_makespan);
    each_builder(check_begins);
    SAY("p 4, m 8: 96, 33, 33, 33, 27, 27, 28.5, 25.5 of 24; %s makespans by published formulas; "
        "every beginning of %s schedules",
        test_count(formulas), test_count(n));
}

/* I and W apart, costs of U, and what an update waits for. */
TEST(simulator_by_hand) {
    double begin[16], f[] = {2, 1}, i[] = {1, 2}, w[] = {3, 1}, u[] = {0.5, 4};
    pmlp_costs costs = {f, i, w, u, 0.25, 0, NULL, NULL, 0, NULL};
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

/* Two stages, F = 2, of which the upper can do 1 before it hears from the lower; I = W = 1. */
/* All that can be done ahead is done, and the worker waits on. */
static void all_ahead(void) {
    static const double f[] = {100, 2}, ahead[] = {0, 1};
    pmlp_schedule *schedule = build(PMLP_SCHEDULE_GPIPE, 2, 2);
    pmlp_simulation sim = {0};
    pmlp_error error = {0};
    pmlp_costs costs = {0};
    costs.f = f, costs.ahead = ahead;
    CHECK(pmlp_schedule_simulate(schedule, &costs, NULL, &sim, &error) == PMLP_OK &&
              sim.makespan == 207,
          "%g: %s", sim.makespan, error.text);
    pmlp_schedule_destroy(schedule);
}

TEST(ahead_by_hand) {
    all_ahead();
    static const struct {
        pmlp_schedule_kind kind;
        int m;
        double part, makespan, without;
        double begin[2][9]; /* F and B of either worker, in the order of its list */
        double early[5];    /* begins of what worker 1 does ahead, of micro-batches 0, 1, ...; -1 */
    } hand[] = {
        {PMLP_SCHEDULE_GPIPE, 2, 1, 11, 12, {{0, 2, 7, 9}, {2, 4, 5, 7}}, {0, 1, -1}},
        {PMLP_SCHEDULE_GPIPE, 2, 2, 10, 12, {{0, 2, 6, 8}, {2, 4, 4, 6}}, {0, 2, -1}},
        {PMLP_SCHEDULE_GPIPE, 2, 1.5, 10.5, 12, {{0, 2, 6.5, 8.5}, {3, 4, 4.5, 6.5}}, {0, 1.5, -1}},
        {PMLP_SCHEDULE_GPIPE, 3, 1, 15, 16, {{0, 2, 4, 9, 11, 13}, {2, 4, 6, 7, 9, 11}},
         {0, 1, 3, -1}},
        {PMLP_SCHEDULE_1F1B, 2, 1, 10, 12, {{0, 2, 5, 8}, {2, 3, 5, 6}}, {0, 1, -1}},
        {PMLP_SCHEDULE_1F1B, 4, 1, 18, 20,
         {{0, 2, 5, 7, 9, 11, 13, 16}, {2, 3, 5, 6, 9, 10, 13, 14}}, {0, 1, 8, 12, -1}}};
    const double f[] = {2, 2}, nothing[] = {0, 0};
    for (int k = 0; k < (int)(sizeof hand / sizeof *hand); k++) {
        const double part[] = {0, hand[k].part};
        const int m = hand[k].m;
        pmlp_schedule *schedule = build(hand[k].kind, 2, m);
        pmlp_costs costs = {.f = f};
        pmlp_simulation sim = {0};
        double begin[2 * 24];
        for (int zero = 0; zero < 2; zero++) {
            costs.ahead = zero ? nothing : NULL;
            CHECK(pmlp_schedule_simulate(schedule, &costs, begin, &sim, NULL) == PMLP_OK &&
                      near(sim.makespan, hand[k].without),
                  "case %d: nothing ahead, makespan %g", k, sim.makespan);
        }
        costs.ahead = part;
        CHECK(pmlp_schedule_simulate(schedule, &costs, begin, &sim, NULL) == PMLP_OK &&
                  near(sim.makespan, hand[k].makespan) && near(sim.busiest, 4 * m) &&
                  near(sim.bubble, 1 - 4 * m / hand[k].makespan),
              "case %d: makespan %g, busiest %g, bubble %g", k, sim.makespan, sim.busiest,
              sim.bubble);
        for (int w = 0, at = 0, n; w < 2; w++, at += n) {
            pmlp_schedule_actions(schedule, w, &n);
            for (int i = 0; i < 2 * m; i++)
                CHECK(near(begin[at + i], hand[k].begin[w][i]),
                      "case %d: action %d of worker %d begins at %g, not %g", k, i, w,
                      begin[at + i], hand[k].begin[w][i]);
        }
        pmlp_timeline *timeline = NULL;
        CHECK(pmlp_schedule_timeline(schedule, &costs, &timeline, NULL) == PMLP_OK, "case %d", k);
        int count = 0, early = 0;
        const pmlp_span *span = pmlp_timeline_spans(timeline, 1, &count);
        for (int i = 0; i < count; i++) {
            if (!span[i].ahead) continue;
            const double want = hand[k].early[early];
            CHECK(span[i].op == PMLP_OP_F && span[i].microbatch == early &&
                      near(span[i].begin, want) && near(span[i].end, want + hand[k].part),
                  "case %d: F%d ahead at %g .. %g, not at %g", k, span[i].microbatch, span[i].begin,
                  span[i].end, want);
            early += want >= 0;
        }
        CHECK(hand[k].early[early] < 0, "case %d: %d done ahead", k, early);
        pmlp_timeline_destroy(timeline);
        pmlp_schedule_destroy(schedule);
    }
    pmlp_schedule *schedule = build(PMLP_SCHEDULE_1F1B, 2, 4);
    const double bad[][2] = {{0, 2.001}, {3, 0}, {0, -1}, {0, NAN}, {0, INFINITY}};
    for (int k = 0; k < 6; k++) { /* the last: more than an f that is 1 by default */
        const pmlp_costs costs = {.f = k < 5 ? f : NULL, .ahead = k < 5 ? bad[k] : f};
        pmlp_simulation sim;
        pmlp_timeline *timeline = NULL;
        pmlp_error error = {0};
        CHECK(pmlp_schedule_simulate(schedule, &costs, NULL, &sim, &error) == PMLP_ERROR_ARGUMENT &&
                  strstr(error.text, "cost"),
              "bad part %d: '%s'", k, error.text);
        CHECK(pmlp_schedule_timeline(schedule, &costs, &timeline, &error) == PMLP_ERROR_ARGUMENT &&
                  !timeline,
              "bad part %d: a timeline", k);
    }
    pmlp_schedule_destroy(schedule);
    SAY("F done ahead, 6 schedules as counted by hand; a part that is negative, no number or more "
        "than F is refused");
}

static long done_ahead;

/* What is done ahead stands where its worker would wait for an F of that stage; with it all actions
   of a stage cost what they cost without; begins are the simulator's. Without flush: none. */
static void check_ahead(shape c, pmlp_schedule *schedule) {
    static double plain[MAX_P * MAX_LIST], begin[MAX_P * MAX_LIST], sums[MAX_S][MAX_M];
    static double f_end[MAX_S][MAX_M];
    double f[MAX_S], i[MAX_S], w[MAX_S], part[MAX_S];
    pmlp_costs costs = {.f = f, .i = i, .w = w, .latency = 0.75};
    pmlp_simulation sim = {0}, before = {0};
    pmlp_timeline *timeline = NULL;
    pmlp_error error = {0};
    uint64_t rng = (uint64_t)(c.p * 1000 + c.v * 100 + c.m);
    int actions = 0;
    to_lists_of(c, schedule, &original);
    for (int s = 0; s < original.stages; s++) {
        f[s] = test_uniform(&rng, 0.5, 3), i[s] = test_uniform(&rng, 0.5, 3);
        w[s] = test_uniform(&rng, 0.5, 3), part[s] = 0;
    }
    CHECK(pmlp_schedule_simulate(schedule, &costs, plain, &before, &error) == PMLP_OK, "%s",
          error.text);
    for (int r = 0; r < c.p; r++) actions += original.count[r];
    for (int zero = 1; zero >= 0; zero--) {
        costs.ahead = part;
        CHECK(pmlp_schedule_simulate(schedule, &costs, begin, &sim, &error) == PMLP_OK, "%s",
              error.text);
        if (zero || is_async(c.kind))
            CHECK(!memcmp(plain, begin, (size_t)actions * sizeof *begin) &&
                      sim.makespan == before.makespan,
                  "%s: %g, not %g", name_of(c), sim.makespan, before.makespan);
        for (int s = 0; zero && s < original.stages; s++)
            part[s] = f[s] * (double)(test_random(&rng) % 3) / 2;
    }
    CHECK(near(sim.busiest, before.busiest) && sim.makespan >= sim.busiest - 1e-9 &&
              near(sim.bubble, 1 - (1 - before.bubble) * before.makespan / sim.makespan),
          "%s: busiest %g, not %g", name_of(c), sim.busiest, before.busiest);
    if (!CHECK(pmlp_schedule_timeline(schedule, &costs, &timeline, &error) == PMLP_OK, "%s",
               error.text))
        return;
    memset(sums, 0, sizeof sums);
    CHECK(near(pmlp_timeline_makespan(timeline), sim.makespan), "%s: %g, not %g", name_of(c),
          pmlp_timeline_makespan(timeline), sim.makespan);
    for (int pass = 0; pass < 2; pass++)
        for (int r = 0, at = 0, n; r < c.p; r++) {
            const pmlp_span *span = pmlp_timeline_spans(timeline, r, &n);
            double free_at = 0, busy = 0;
            for (int k = 0; k < n; k++) {
                const pmlp_span *x = &span[k];
                const int s = x->stage;
                if (x->op == PMLP_OP_F && pass == 0) {
                    sums[s][x->microbatch] += x->end - x->begin;
                    if (!x->ahead) f_end[s][x->microbatch] = x->end;
                }
                if (pass == 0) continue;
                CHECK(x->begin >= free_at - 1e-9, "%s: worker %d does two things at %g", name_of(c),
                      r, x->begin);
                free_at = x->end, busy += x->end - x->begin;
                if (!x->ahead) {
                    CHECK(near(x->begin, begin[at]), "%s: span at %g, simulated at %g", name_of(c),
                          x->begin, begin[at]);
                    at++;
                    continue;
                }
                const pmlp_span *next = x;
                while (next < span + n - 1 && next->ahead) next++;
                done_ahead++;
                CHECK(!is_async(c.kind) && x->op == PMLP_OP_F && near(x->end - x->begin, part[s]) &&
                          next->op == PMLP_OP_F && next->stage == s && s > 0 &&
                          x->microbatch >= next->microbatch &&
                          f_end[s - 1][next->microbatch] + 0.75 * apart(&original, s - 1) >
                              x->begin,
                      "%s: stage %d, micro-batch %d, is done ahead at %g", name_of(c), s,
                      x->microbatch, x->begin);
            }
            pmlp_worker_time time = {0};
            CHECK(pass == 0 || (pmlp_timeline_worker(timeline, r, &time) == PMLP_OK &&
                                near(time.busy, busy) &&
                                near(time.busy + time.fill + time.waiting + time.transfer +
                                         time.drain, sim.makespan)),
                  "%s: worker %d is busy for %g, not %g", name_of(c), r, time.busy, busy);
        }
    for (int s = 0; s < original.stages; s++)
        for (int k = 0; k < original.m; k++)
            CHECK(near(sums[s][k], f[s]), "%s: F%d of stage %d takes %g, not %g", name_of(c), k, s,
                  sums[s][k], f[s]);
    pmlp_timeline_destroy(timeline);
}

TEST(ahead) {
    done_ahead = 0;
    const long n = each_builder(check_ahead);
    CHECK(done_ahead > n, "%ld parts of F done ahead in %ld schedules", done_ahead, n);
    SAY("parts of F done ahead: %s in %s schedules, only where a worker would wait, each once; "
        "none without a flush", test_count(done_ahead), test_count(n));
}

static bool same_actions(const pmlp_schedule *one, const pmlp_schedule *two) {
    to_lists(one, &original), to_lists(two, &changed);
    for (int s = 0; s < MAX_S; s++)
        if (original.owner[s] != changed.owner[s]) return false;
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

/* Every update stands in the text with its micro-batch, and the reader says which cell it is. */
static void check_async_text(shape c, const pmlp_schedule *schedule) {
    char cell[32];
    pmlp_schedule *read = NULL;
    pmlp_error error = {0};
    to_lists_of(c, schedule, &original);
    to_text(&original, text2, TEXT);
    CHECK(!strcmp(text, text2), "%s printed as\n%s\nexpected\n%s", name_of(c), text, text2);
    snprintf(cell, sizeof cell, "'0U%d'", original.per_update - 1);
    CHECK(parse_text(text, &read, &error) == PMLP_ERROR_PARSE && !read &&
              strstr(error.text, "row 1, cell ") && strstr(error.text, cell),
          "%s: read: %s", name_of(c), error.text);
    pmlp_schedule_destroy(read);
}

static void check_round_trip(shape c, pmlp_schedule *schedule) {
    const char *name = name_of(c);
    size_t length = 0, again = 0;
    CHECK(pmlp_schedule_print(schedule, NULL, 0, &length) == PMLP_OK && length > 0 && length < TEXT,
          "%s: length %zu", name, length);
    memset(text, '#', TEXT);
    CHECK(pmlp_schedule_print(schedule, text, TEXT, &again) == PMLP_OK && again == length &&
              strlen(text) == length && text[length + 1] == '#',
          "%s: length %zu, then %zu", name, length, again);
    if (is_async(c.kind)) return check_async_text(c, schedule);
    CHECK(strchr(text, 'U') == NULL, "%s: prints updates at the end of rows", name);
    pmlp_schedule *read = parse_fine(text);
    if (!read) return;
    pmlp_schedule_print(read, text2, TEXT, NULL);
    CHECK(!strcmp(text, text2), "%s: print, parse, print:\n%s\nbecame\n%s", name, text, text2);
    CHECK(same_actions(schedule, read), "%s: other actions after a round trip", name);
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
    SAY("print, parse, print: %s schedules, equal bytes and actions; asynchronous ones are printed "
        "with their updates and refused by the reader",
        test_count(n));
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
        const char *says;
    } bad[] = {
        {"", PMLP_ERROR_PARSE, -1, -1, "holds no actions"},
        {"\n\n", PMLP_ERROR_PARSE, -1, -1, ""},
        {"hello\n", PMLP_ERROR_PARSE, 0, 0, ""},
        {"0F0,0X0\n", PMLP_ERROR_PARSE, 0, 1, ""},
        {"0F0,0B0\n1F0,1B\n", PMLP_ERROR_PARSE, 1, 1, ""},
        {"0F0,F0\n", PMLP_ERROR_PARSE, 0, 1, ""},
        {"0F0,0B0,0U0\n", PMLP_ERROR_PARSE, 0, 2, ""},
        {"0F0,0B0x\n", PMLP_ERROR_PARSE, 0, 1, ""},
        {"0F0,,,0 B0\n", PMLP_ERROR_PARSE, 0, 3, ""},
        {"0F0,0B-1\n", PMLP_ERROR_PARSE, 0, 1, ""},
        {"0F0,-1B0\n", PMLP_ERROR_PARSE, 0, 1, ""},
        {"0F99999999999999999999,0B0\n", PMLP_ERROR_PARSE, 0, 0, ""},
        {"99999999999999999999F0,0B0\n", PMLP_ERROR_PARSE, 0, 0, ""},
        {"0F0,16384B0\n", PMLP_ERROR_PARSE, 0, 1, ""}, /* so many workers are too many, */
        {"0F0,16383B0\n", PMLP_ERROR_SCHEDULE, -1, -1, ""}, /* of these only many are missing */
        {"0F1048576,0B0\n", PMLP_ERROR_PARSE, 0, 0, ""},
        {"0F0;0B0\n", PMLP_ERROR_PARSE, 0, 0, ""},
        {"0f0,0b0\n", PMLP_ERROR_PARSE, 0, 0, ""},
        {"0F0,0B0\n0F1,0B1\n", PMLP_ERROR_SCHEDULE, -1, -1, ""},
        {"0F0,0B0\n2F0,2B0\n", PMLP_ERROR_SCHEDULE, -1, -1, ""},
        {"0F0,0SEND_F0\n", PMLP_ERROR_PARSE, 0, 1, "hand-off or the like; leave those out"},
        {"0F0\n1RECV_F0\n", PMLP_ERROR_PARSE, 1, 0, "hand-off or the like; leave those out"},
        {"0F0,0B0,0U:\n", PMLP_ERROR_PARSE, 0, 2, "something behind the action"},
        {"0F0,0B0,0U.\n", PMLP_ERROR_PARSE, 0, 2, "something behind the action"},
        {"0F0,0F0abcdefghijklmnopqrstuvwxyz\n", PMLP_ERROR_PARSE, 0, 1,
         "'0F0abcdefghijklmnopqrstu' has something"}, /* cut to 24 */
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
        CHECK(error.text[0] && !strchr(error.text, '\n') && strstr(error.text, bad[i].says),
              "'%s' says '%s'", bad[i].form, error.text);
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
            bool below = s > 0 && o->owner[s - 1] != w;
            bool above = s < o->stages - 1 && o->owner[s + 1] != w;
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
    for (int s = 0; s + 1 < o->stages; s++) edges += o->owner[s] != o->owner[s + 1];
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

static void check_lowered_builder(shape c, pmlp_schedule *schedule) {
    check_lowered(name_of(c), schedule);
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
    pmlp_costs costs = {two, one, one, NULL, 1, 0, NULL, NULL, 0, NULL},
               large = {four, two, two, NULL, 2, 0, NULL, NULL, 0, NULL};
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
        int owner = -1;
        for (int w = l->p - 1; w >= 0; w--)
            for (int i = 0; i < l->count[w]; i++)
                if (l->list[w][i].stage == s) owner = w;
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
    char worker[32], action[48] = "", for_it[48] = "";
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
    if (error->result == PMLP_ERROR_DEADLOCK) { /* what travels, by who computed it */
        const int from = op == PMLP_OP_RECV_F ? -1 : op == PMLP_OP_RECV_B ? 1 : 0;
        if (is_handoff(op))
            snprintf(action, sizeof action, "%s(%d) of stage %d",
                     op == PMLP_OP_SEND_F || op == PMLP_OP_RECV_F ? "F" : "B", error->microbatch,
                     error->stage + from);
        snprintf(worker, sizeof worker, "deadlock: worker %d waits ", error->worker);
        CHECK(!strncmp(error->text, worker, strlen(worker)) && strstr(error->text, action),
              "%s: '%s' not with '%s' and '%s'", fault, error->text, worker, action);
    }
    snprintf(worker, sizeof worker, "worker %d", error->worker);
    CHECK(strstr(error->text, worker) &&
              (strstr(error->text, action) || strstr(error->text, for_it)),
          "%s: '%s' not with %s and %s or %s", fault, error->text, worker, action, for_it);
    CHECK(!strchr(error->text, '\n') && strlen(error->text) < sizeof error->text - 1,
          "%s: no sentence: '%s'", fault, error->text);
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
        copy_lists(&changed, &original), drop(&changed, w, i);
        snprintf(fault, sizeof fault, "%s: %s dropped", name, cell), check_changed(fault);
    }
    copy_lists(&changed, &original), insert(&changed, w, i, a);
    snprintf(fault, sizeof fault, "%s: %s doubled", name, cell), check_changed(fault);
    copy_lists(&changed, &original), insert(&changed, w, changed.count[w], a);
    snprintf(fault, sizeof fault, "%s: %s again at the end", name, cell), check_changed(fault);
    for (int k = i + 1, same = 0; k < original.count[w] && !same; k++) {
        same = original.list[w][k].stage == a.stage;
        if (!same && k > i + 1) continue;
        copy_lists(&changed, &original);
        changed.list[w][i] = original.list[w][k], changed.list[w][k] = a;
        snprintf(fault, sizeof fault, "%s: %s swapped with the %s", name, cell,
                 same ? "next of its stage" : "next");
        check_changed(fault);
    }
    copy_lists(&changed, &original), drop(&changed, w, i), insert(&changed, w, 0, a);
    snprintf(fault, sizeof fault, "%s: %s first", name, cell), check_changed(fault);
    for (int s = 0; s <= original.stages && s < MAX_S; s++) {
        if (s == a.stage) continue;
        copy_lists(&changed, &original), changed.list[w][i].stage = s;
        snprintf(fault, sizeof fault, "%s: %s at stage %d", name, cell, s), check_changed(fault);
    }
    for (int k = 0; k <= original.m && a.op != PMLP_OP_U; k++) {
        if (k == a.microbatch) continue;
        copy_lists(&changed, &original), changed.list[w][i].microbatch = k;
        snprintf(fault, sizeof fault, "%s: %s on micro-batch %d", name, cell, k),
            check_changed(fault);
    }
    for (int other = 0; other < original.p; other++) {
        if (other == w) continue;
        copy_lists(&changed, &original), drop(&changed, w, i),
            insert(&changed, other, original.count[other], a);
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
    static const int shapes[][2] = {{1, 1}, {1, 3}, {2, 1}, {2, 4}, {2, 2}, {3, 4}, {4, 2}};
    refused = harmless = deadlocks = 0;
    for (int k = 1; k < PMLP_SCHEDULE_KIND_COUNT; k++)
        for (int n = 0; n < (test_quick() ? 4 : 7); n++) {
            char name[80];
            shape c = {(pmlp_schedule_kind)k, shapes[n][0],
                       is_looped((pmlp_schedule_kind)k) || is_v((pmlp_schedule_kind)k) ? 2 : 1,
                       shapes[n][1], 1};
            if (is_async(c.kind) || c.kind == PMLP_SCHEDULE_AUTO || !exists(c)) continue;
            if (test_quick() && c.v == 2 && c.p * c.m > 4) continue;
            pmlp_schedule *schedule = build_shape(c);
            snprintf(name, sizeof name, "%s", name_of(c));
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
     "RECV_B", {"B(0) of stage 1 from worker 1", "F(1) of stage 0 from worker 0"}},
    {"cyclic wait that worker 0 has no part in",
     "0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1\n2F0,2F1,2B0,2B1\n", 0, PMLP_ERROR_DEADLOCK, 1, 1, 0,
     "RECV_B", {"B(0) of stage 2 from worker 2", "F(1) of stage 1 from worker 1"}},
    {"F in another order", "0F0,0F1,0B0,0B1\n1F1,1F0,1B0,1B1\n", 0, PMLP_ERROR_SCHEDULE, 1, 1, 1,
     "RECV_F", {"micro-batch 1", "stage 0"}},
    {"a worker's stages the wrong way round", "1F0,0F0,1B0,0B0\n", 0, PMLP_ERROR_SCHEDULE, 0, 1, 0,
     "F", {"1F0", "0F0"}},
    {"U before another stage's W", "0F0,1F0,1B0,1U,0B0\n", 0, PMLP_ERROR_SCHEDULE, 0, -2, -2, "",
     {"1U", "0B0"}},
    {"undersized edge",
     "0F0,0F1,0F2,0F3,2F0,2F1,2F2,2F3,2B0,2B1,2B2,2B3,0B0,0B1,0B2,0B3\n"
     "1F0,1F1,1F2,1F3,1B0,1B1,1B2,1B3\n", 1, PMLP_ERROR_DEADLOCK, -2, -2, -2, "",
     {"worker 1 to take F(3) of stage 0", "worker 0 to take F(1) of stage 1"}},
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

/* --- lists by hand --------------------------------------------------------------------------- */

static pmlp_result from_lists(const lists *l, pmlp_schedule **schedule, pmlp_error *error) {
    pmlp_result result =
        pmlp_schedule_empty(l->p, l->stages, l->m, l->owner, NULL, schedule, error);
    for (int w = 0; result == PMLP_OK && w < l->p; w++)
        for (int i = 0; result == PMLP_OK && i < l->count[w]; i++)
            result = pmlp_schedule_append(*schedule, l->list[w][i].op, l->list[w][i].stage,
                                          l->list[w][i].microbatch, error);
    return result;
}

/* `changed`, whose sizes and owners stay, against both checkers. Returns the verdict on one slot. */
static pmlp_result check_by_hand(const char *fault) {
    int peaks[MAX_P];
    pmlp_schedule *schedule = NULL;
    pmlp_check report = {0};
    pmlp_error error = {0};
    pmlp_result first = PMLP_OK;
    changed.lowered = false;
    for (int w = 0; w < changed.p; w++)
        for (int i = 0; i < changed.count[w]; i++)
            changed.lowered |= is_handoff(changed.list[w][i].op);
    if (!CHECK(from_lists(&changed, &schedule, &error) == PMLP_OK, "%s: %s", fault, error.text))
        return PMLP_ERROR_ARGUMENT;
    report.peaks = peaks;
    for (int slots = 2; slots >= 0; slots--) {
        const pmlp_result want = oracle(&changed, slots);
        memset(&error, 0, sizeof error);
        const pmlp_result result = pmlp_schedule_check(schedule, slots, &report, &error);
        CHECK(result == want && error.result == result, "%s, %d slots: %s, expected %s: %s", fault,
              slots, pmlp_result_name(result), pmlp_result_name(want), error.text);
        if (result != PMLP_OK) check_sentence(fault, &error);
        for (int w = 0; result == PMLP_OK && w < changed.p; w++)
            CHECK(peaks[w] == counted_peak(&changed, w), "%s: peak of worker %d is %d, not %d",
                  fault, w, peaks[w], counted_peak(&changed, w));
        if (slots == 0) (result == PMLP_OK ? harmless++ : refused++);
        if (slots == 0) deadlocks += result == PMLP_ERROR_DEADLOCK;
        if (slots == 1) first = result;
    }
    pmlp_schedule_destroy(schedule);
    return first;
}

/* Lists with their hand-offs, then each of them without one action, with one twice, with two
   neighbours swapped, with one moved to the front or to the end of its list. */
TEST(handoffs_by_hand) {
    static const int shapes[][2] = {{2, 2}, {3, 3}, {2, 4}, {4, 2}};
    static lists lowered;
    long whole = 0;
    refused = harmless = deadlocks = 0;
    for (int k = 1; k < PMLP_SCHEDULE_KIND_COUNT; k++)
        for (int n = 0; n < (test_quick() ? 1 : 4); n++)
            for (int in_order = 0; in_order < 2; in_order++) {
                const pmlp_schedule_kind kind = (pmlp_schedule_kind)k;
                const shape c = {kind, shapes[n][0], is_looped(kind) || is_v(kind) ? 2 : 1,
                                 shapes[n][1], 1};
                char name[80], fault[160], cell[32];
                pmlp_schedule *schedule, *low = NULL;
                pmlp_error error = {0};
                if (is_async(kind) || kind == PMLP_SCHEDULE_AUTO || !exists(c)) continue;
                snprintf(name, sizeof name, "%s", name_of(c));
                schedule = build_shape(c);
                CHECK((in_order ? pmlp_schedule_lower_in_order(schedule, NULL, &low, &error)
                                : pmlp_schedule_lower(schedule, &low, &error)) == PMLP_OK,
                      "%s: %s", name, error.text);
                to_lists(low, &lowered);
                pmlp_schedule *twice = schedule;
                CHECK(pmlp_schedule_lower(low, &twice, &error) == PMLP_ERROR_SCHEDULE && !twice,
                      "%s lowered twice", name);
                pmlp_schedule_destroy(schedule), pmlp_schedule_destroy(low);
                copy_lists(&changed, &lowered);
                whole += check_by_hand(name) == PMLP_OK;
                for (int w = 0; w < lowered.p; w++)
                    for (int i = 0; i < lowered.count[w]; i++) {
                        const pmlp_action a = lowered.list[w][i];
                        action_text(a, cell, sizeof cell);
                        copy_lists(&changed, &lowered), drop(&changed, w, i);
                        snprintf(fault, sizeof fault, "%s: no %s", name, cell);
                        CHECK(check_by_hand(fault) != PMLP_OK, "%s accepted", fault);
                        copy_lists(&changed, &lowered), insert(&changed, w, i, a);
                        snprintf(fault, sizeof fault, "%s: two %s", name, cell);
                        CHECK(check_by_hand(fault) != PMLP_OK, "%s accepted", fault);
                        copy_lists(&changed, &lowered), drop(&changed, w, i);
                        insert(&changed, w, changed.count[w], a);
                        snprintf(fault, sizeof fault, "%s: %s last", name, cell),
                            check_by_hand(fault);
                        copy_lists(&changed, &lowered), drop(&changed, w, i);
                        insert(&changed, w, 0, a);
                        snprintf(fault, sizeof fault, "%s: %s first", name, cell),
                            check_by_hand(fault);
                        if (i + 1 == lowered.count[w]) continue;
                        copy_lists(&changed, &lowered);
                        changed.list[w][i] = changed.list[w][i + 1], changed.list[w][i + 1] = a;
                        snprintf(fault, sizeof fault, "%s: %s later", name, cell),
                            check_by_hand(fault);
                    }
            }
    CHECK(refused > 100 && harmless > 100 && deadlocks > 100 && whole > 10,
          "%ld refused, %ld harmless, %ld deadlocks, %ld whole", refused, harmless, deadlocks,
          whole);
    SAY("%s lists with SEND and RECV, and those with one missing, doubled or misplaced: %s refused "
        "(%s deadlocks), %s harmless, as the second checker says",
        test_count(whole), test_count(refused), test_count(deadlocks), test_count(harmless));
}

/* clang-format off */
static const struct {
    const char *what, *form; /* rows; the cells may hold SEND and RECV */
    pmlp_result result;
    const char *sentence;
} lacking[] = {
    {"right", "0F0,0SEND_F0,0RECV_B0,0I0,0W0,0U;1RECV_F0,1F0,1I0,1SEND_B0,1W0,1U", PMLP_OK, ""},
    {"no RECV", "0F0,0SEND_F0,0RECV_B0,0B0,0U;1F0,1B0,1SEND_B0,1U", PMLP_ERROR_SCHEDULE,
     "worker 1 does 1F0 before 1RECV_F0"},
    {"no RECV of a gradient", "0F0,0SEND_F0,0B0,0U;1RECV_F0,1F0,1B0,1SEND_B0,1U",
     PMLP_ERROR_SCHEDULE, "worker 0 does 0B0 before 0RECV_B0"},
    {"no SEND", "0F0,0SEND_F0,0RECV_B0,0I0,0W0,0U;1RECV_F0,1F0,1B0,1U", PMLP_ERROR_DEADLOCK,
     "deadlock: worker 0 waits for B(0) of stage 1 from worker 1, which waits with 1U for the "
     "gradients of worker 0"},
    {"SEND too early", "0SEND_F0,0F0,0RECV_B0,0B0,0U;1RECV_F0,1F0,1B0,1SEND_B0,1U",
     PMLP_ERROR_SCHEDULE, "worker 0 does 0SEND_F0 before it has computed that"},
    {"SEND of a gradient too early", "0F0,0SEND_F0,0RECV_B0,0B0,0U;1RECV_F0,1F0,1SEND_B0,1B0,1U",
     PMLP_ERROR_SCHEDULE, "worker 1 does 1SEND_B0 before it has computed that"},
    {"two SEND", "0F0,0SEND_F0,0SEND_F0,0RECV_B0,0B0,0U;1RECV_F0,1F0,1B0,1SEND_B0,1U",
     PMLP_ERROR_SCHEDULE, "worker 0 does 0SEND_F0 twice"},
    {"two RECV", "0F0,0SEND_F0,0RECV_B0,0B0,0U;1RECV_F0,1RECV_F0,1F0,1B0,1SEND_B0,1U",
     PMLP_ERROR_SCHEDULE, "worker 1 does 1RECV_F0 twice"},
    {"another order",
     "0F0,0F1,0SEND_F0,0SEND_F1,0RECV_B0,0B0,0RECV_B1,0B1,0U;"
     "1RECV_F1,1RECV_F0,1F0,1B0,1SEND_B0,1F1,1B1,1SEND_B1,1U", PMLP_ERROR_SCHEDULE,
     "worker 1 expects micro-batch 1 in 1RECV_F1, but worker 0 hands over F(0) of stage 0 first"},
    {"gradients in another order",
     "0F0,0F1,0SEND_F0,0SEND_F1,0RECV_B0,0B0,0RECV_B1,0B1,0U;"
     "1RECV_F0,1RECV_F1,1F0,1I0,1F1,1I1,1SEND_B1,1SEND_B0,1W0,1W1,1U", PMLP_ERROR_SCHEDULE,
     "worker 1 offers micro-batch 1 in 1SEND_B1, but worker 0 expects B(0) of stage 1 first"},
    {"RECV behind what needs it", "0F0,0SEND_F0,0B0,0RECV_B0,0U;1RECV_F0,1F0,1B0,1SEND_B0,1U",
     PMLP_ERROR_SCHEDULE, "worker 0 does 0B0 before 0RECV_B0"},
};
/* clang-format on */

/* Rows of cells into `changed`, two workers with a stage each. */
static void read_rows(const char *form, int m) {
    memset(&changed, 0, offsetof(lists, list));
    changed.p = changed.stages = 2, changed.m = m, changed.lowered = true, changed.owner[1] = 1;
    for (int w = 0; *form; form += strcspn(form, ",;"), w += *form == ';', form += *form != 0) {
        pmlp_action a = {PMLP_OP_NONE, *form - '0', -1};
        size_t n = 0;
        for (int o = 1; o < PMLP_OP_COUNT; o++) /* the longest name that fits */
            if (!strncmp(form + 1, pmlp_op_name((pmlp_op)o), strlen(pmlp_op_name((pmlp_op)o))) &&
                strlen(pmlp_op_name((pmlp_op)o)) > n)
                a.op = (pmlp_op)o, n = strlen(pmlp_op_name(a.op));
        if (a.op != PMLP_OP_U) a.microbatch = atoi(form + 1 + n);
        changed.list[w][changed.count[w]++] = a;
    }
}

TEST(handoff_sentences) {
    const int n = (int)(sizeof lacking / sizeof *lacking);
    for (int i = 0; i < n; i++) {
        pmlp_schedule *schedule = NULL;
        pmlp_error error = {0};
        read_rows(lacking[i].form, strstr(lacking[i].form, "0F1") ? 2 : 1);
        CHECK(from_lists(&changed, &schedule, &error) == PMLP_OK, "%s: %s", lacking[i].what,
              error.text);
        const pmlp_result result = pmlp_schedule_check(schedule, 0, NULL, &error);
        CHECK(result == lacking[i].result && strstr(error.text, lacking[i].sentence) &&
                  result == oracle(&changed, 0),
              "%s: %s: '%s', expected '%s'", lacking[i].what, pmlp_result_name(result), error.text,
              lacking[i].sentence);
        pmlp_schedule_destroy(schedule);
    }
    SAY("%d lists with hand-offs by hand: missing, early, doubled and swapped ones, each with its "
        "sentence",
        n - 1);
}

/* Asynchronous lists have no text; their actions are exchanged where they stand. */
TEST(asynchronous_faults) {
    static const shape shapes[] = {{PMLP_SCHEDULE_PIPEDREAM, 3, 1, 2, 2},
                                   {PMLP_SCHEDULE_PIPEDREAM, 2, 1, 1, 3},
                                   {PMLP_SCHEDULE_PIPEDREAM_2BW, 2, 1, 2, 3},
                                   {PMLP_SCHEDULE_PIPEDREAM_2BW, 3, 1, 3, 3},
                                   {PMLP_SCHEDULE_PIPEDREAM_2BW, 1, 1, 2, 3}};
    long bad = 0, good = 0;
    for (int n = 0; n < 5; n++) {
        pmlp_schedule *schedule = build_shape(shapes[n]);
        for (int w = 0; w < shapes[n].p; w++) {
            int count = 0;
            pmlp_action *a = (pmlp_action *)pmlp_schedule_actions(schedule, w, &count);
            for (int i = 0; i < count; i++)
                for (int j = i + 1; j < count; j++)
                    for (int way = 0; way < 2; way++) { /* exchanged; the first one replaced */
                        const pmlp_action was = a[i], then = a[j];
                        pmlp_error error = {0};
                        /* the number of an update is the printer's; the checker counts them */
                        if (was.op == PMLP_OP_U && then.op == PMLP_OP_U) continue;
                        a[i] = then, a[j] = way ? then : was;
                        to_lists_of(shapes[n], schedule, &changed);
                        const pmlp_result expected = oracle(&changed, 0),
                                          result = pmlp_schedule_check(schedule, 0, NULL, &error);
                        CHECK(result == expected, "%s: worker %d, %d and %d: %s, expected %s: %s",
                              name_of(shapes[n]), w, i, j, pmlp_result_name(result),
                              pmlp_result_name(expected), error.text);
                        if (result != PMLP_OK) check_sentence(name_of(shapes[n]), &error);
                        *(result == PMLP_OK ? &good : &bad) += 1;
                        a[i] = was, a[j] = then;
                    }
        }
        pmlp_schedule_destroy(schedule);
    }
    CHECK(bad > 100 && good > 0, "%ld refused, %ld harmless", bad, good);
    SAY("asynchronous lists with two actions exchanged or one replaced: %s refused, %s harmless",
        test_count(bad), test_count(good));
}

/* --- schedules by lot ------------------------------------------------------------------------ */

/* A topological order of everything that has to be done, drawn action by action: whatever could run
   next may. Whether the queues between workers then come in order is for the checkers to say, so
   that forwards and input backwards of a stage are drawn in ascending order. */
static void draw_lot(uint64_t *rng, int p, int stages, int m) {
    static int done[3][MAX_S]; /* micro-batches: F, I, W */
    memset(&changed, 0, offsetof(lists, list));
    memset(done, 0, sizeof done);
    changed.p = p, changed.stages = stages, changed.m = m;
    for (int s = 0; s < stages; s++)
        changed.owner[s] = s < p ? s : (int)(test_random(rng) % (unsigned)p);
    for (int s = stages - 1; s > 0; s--) { /* anybody's stages */
        const int t = (int)(test_random(rng) % (unsigned)(s + 1)), o = changed.owner[s];
        changed.owner[s] = changed.owner[t], changed.owner[t] = o;
    }
    for (int left = 3 * stages * m; left > 0;) {
        const int s = (int)(test_random(rng) % (unsigned)stages), o = (int)(test_random(rng) % 3);
        const int k = done[o][s], w = changed.owner[s];
        if (k == m || (o == 0 && s > 0 && done[0][s - 1] <= k) || (o > 0 && done[o - 1][s] <= k) ||
            (o == 1 && s + 1 < stages && done[1][s + 1] <= k))
            continue;
        pmlp_action a = {o == 0 ? PMLP_OP_F : o == 1 ? PMLP_OP_I : PMLP_OP_W, s, k};
        if (o == 1 && done[2][s] == k && test_random(rng) % 2)
            a.op = PMLP_OP_B, done[2][s]++, left--;
        done[o][s]++, left--;
        changed.list[w][changed.count[w]++] = a;
    }
    for (int s = 0; s < stages; s++) {
        const pmlp_action u = {PMLP_OP_U, s, -1};
        const int w = changed.owner[s];
        changed.list[w][changed.count[w]++] = u;
    }
}

/* Valid by construction with queues without bound; then with one thing wrong. */
TEST(by_lot) {
    const int tries = test_quick() ? 300 : 6000;
    uint64_t rng = 11;
    long valid = 0;
    static lists good;
    refused = harmless = deadlocks = 0;
    for (int t = 0; t < tries; t++) {
        const int p = 1 + (int)(test_random(&rng) % 4), stages = p + (int)(test_random(&rng) % 4),
                  m = 1 + (int)(test_random(&rng) % 5);
        draw_lot(&rng, p, stages, m);
        copy_lists(&good, &changed);
        CHECK(oracle(&changed, 0) == PMLP_OK, "the second checker refuses lot %d", t);
        check_by_hand("by lot");
        if (test_random(&rng) % 2) { /* the same with its hand-offs written out */
            write_out(&good, &changed);
            check_by_hand("by lot, written out");
            copy_lists(&good, &changed);
        }
        valid++;
        for (int n = 0; n < 4; n++) {
            const int w = (int)(test_random(&rng) % (unsigned)p), count = good.count[w];
            const int i = (int)(test_random(&rng) % (unsigned)count),
                      j = (int)(test_random(&rng) % (unsigned)count);
            copy_lists(&changed, &good);
            const pmlp_action a = changed.list[w][i];
            switch (n) {
            case 0: changed.list[w][i] = changed.list[w][j], changed.list[w][j] = a; break;
            case 1: drop(&changed, w, i), insert(&changed, w, least(j, count - 1), a); break;
            case 2: drop(&changed, w, i); break;
            default: changed.list[w][j] = a; break;
            }
            check_by_hand("by lot, then changed");
        }
    }
    CHECK(refused > valid && harmless > valid && deadlocks > valid / 20,
          "%ld refused, %ld harmless, %ld deadlocks", refused, harmless, deadlocks);
    SAY("%s random schedules accepted; changed ones: %s refused (%s deadlocks), %s harmless",
        test_count(valid), test_count(refused), test_count(deadlocks),
        test_count(harmless - valid));
}

/* What pmlp_schedule_empty() and _append() themselves refuse. */
TEST(appending) {
    static const int owners[] = {0, 1, 0}, wrong_owner[] = {0, 2, 0};
    static const struct {
        pmlp_op op;
        int stage, microbatch;
        const char *says;
    } bad[] = {{PMLP_OP_NONE, 0, 0, "op:"},       {PMLP_OP_COUNT, 0, 0, "op:"},
               {(pmlp_op)-1, 0, 0, "op:"},        {PMLP_OP_F, 3, 0, "stage:"},
               {PMLP_OP_F, -1, 0, "stage:"},      {PMLP_OP_F, 0, 4, "microbatch:"},
               {PMLP_OP_W, 0, -1, "microbatch:"}, {PMLP_OP_SEND_F, 2, 0, "stage:"},
               {PMLP_OP_RECV_B, 2, 0, "stage:"},  {PMLP_OP_RECV_F, 0, 0, "stage:"},
               {PMLP_OP_SEND_B, 0, 0, "stage:"}};
    pmlp_schedule *schedule = (pmlp_schedule *)&text;
    pmlp_error error = {0};
    int count;
    CHECK(pmlp_schedule_empty(0, 3, 4, owners, NULL, &schedule, &error) == PMLP_ERROR_ARGUMENT &&
              !schedule,
          "no workers");
    CHECK(pmlp_schedule_empty(2, 0, 4, owners, NULL, &schedule, &error) == PMLP_ERROR_ARGUMENT &&
              pmlp_schedule_empty(2, 3, 0, owners, NULL, &schedule, &error) ==
                  PMLP_ERROR_ARGUMENT &&
              pmlp_schedule_empty(2, 3, 4, NULL, NULL, &schedule, &error) == PMLP_ERROR_ARGUMENT &&
              pmlp_schedule_empty(2, 3, 4, wrong_owner, NULL, &schedule, &error) ==
                  PMLP_ERROR_ARGUMENT &&
              strstr(error.text, "stage 1") && strstr(error.text, "worker 2"),
          "%s", error.text);
    CHECK(pmlp_schedule_empty(2, 3, 4, owners, NULL, &schedule, &error) == PMLP_OK, "%s",
          error.text);
    for (int i = 0; i < (int)(sizeof bad / sizeof *bad); i++)
        CHECK(pmlp_schedule_append(schedule, bad[i].op, bad[i].stage, bad[i].microbatch, &error) ==
                      PMLP_ERROR_ARGUMENT &&
                  !strncmp(error.text, bad[i].says, strlen(bad[i].says)),
              "%d: %s", i, error.text);
    for (int w = 0; w < 2; w++) {
        pmlp_schedule_actions(schedule, w, &count);
        CHECK(count == 0, "worker %d has %d actions", w, count);
    }
    CHECK(pmlp_schedule_check(schedule, 0, NULL, &error) == PMLP_ERROR_SCHEDULE, "an empty one");
    CHECK(pmlp_schedule_append(schedule, PMLP_OP_U, 2, 77, &error) == PMLP_OK, "%s", error.text);
    const pmlp_action *a = pmlp_schedule_actions(schedule, 0, &count);
    CHECK(count == 1 && a[0].op == PMLP_OP_U && a[0].stage == 2 && a[0].microbatch == -1,
          "an update's micro-batch");
    pmlp_schedule_destroy(schedule);
    schedule = build_shape((shape){PMLP_SCHEDULE_PIPEDREAM, 2, 1, 1, 2});
    CHECK(pmlp_schedule_append(schedule, PMLP_OP_F, 0, 0, &error) == PMLP_ERROR_ARGUMENT &&
              strstr(error.text, "asynchronous; only the builders write those"),
          "to an asynchronous one: %s", error.text);
    pmlp_schedule_destroy(schedule);
    SAY("%d actions and 5 shapes refused, each with the argument's name",
        (int)(sizeof bad / sizeof *bad));
}

/* Updates at the end of a list are left out of its text exactly if reading would add them again. */
TEST(updates_in_text) {
    static const struct {
        const char *updates, *printed; /* of stages 0 and 1, behind their one F each, if any */
        bool f;
    } lists_[] = {{"01", "0F0,1F0\n", true},    {"10", "0F0,1F0,1U\n", true},
                  {"0011", "0F0,1F0,0U,0U,1U,1U\n", true},
                  {"011", "0F0,1F0,0U,1U,1U\n", true},
                  {"01", "0U,1U\n", false},      {"", "\n", false}};
    static const int lonely[] = {0, 0};
    const int n = (int)(sizeof lists_ / sizeof *lists_);
    for (int i = 0; i < n; i++) {
        pmlp_schedule *schedule = NULL;
        size_t length = 0;
        CHECK(pmlp_schedule_empty(1, 2, 1, lonely, NULL, &schedule, NULL) == PMLP_OK, "empty");
        for (int stage = 0; lists_[i].f && stage < 2; stage++)
            pmlp_schedule_append(schedule, PMLP_OP_F, stage, 0, NULL);
        for (const char *u = lists_[i].updates; *u; u++)
            pmlp_schedule_append(schedule, PMLP_OP_U, *u - '0', -1, NULL);
        CHECK(pmlp_schedule_print(schedule, text, TEXT, &length) == PMLP_OK &&
                  !strcmp(text, lists_[i].printed),
              "%d: '%s', not '%s'", i, text, lists_[i].printed);
        pmlp_schedule_destroy(schedule);
    }
    SAY("updates in the text where reading would not add them: %d lists", n);
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
    /* four forwards before the first backward, and two backwards before the third forward: one of
       the edges must hold two messages; the second, since the first is made small first */
    schedule = parse_fine("0F0,0F1,0F2,0F3,0B0,0B1,0B2,0B3\n1F0,1F1,1B0,1B1,1F2,1F3,1B2,1B3\n");
    CHECK(pmlp_schedule_check(schedule, 0, &report, &error) == PMLP_OK && report.slots == 2 &&
              up[0] == 1 && down[0] == 2,
          "%d slots, %d up, %d down", report.slots, up[0], down[0]);
    report.forward_slots = NULL, up[0] = -1;
    CHECK(pmlp_schedule_check(schedule, 0, &report, &error) == PMLP_OK && up[0] == -1 &&
              down[0] == 2,
          "only one of the arrays: %d up, %d down", up[0], down[0]);
    pmlp_schedule_destroy(schedule);
    SAY("an edge too small is refused; fewest slots %d, as the second checker finds", fewest);
}

/* --- W put off ------------------------------------------------------------------------------- */

static pmlp_schedule *put_off(const pmlp_schedule *schedule, const pmlp_costs *costs, int most) {
    pmlp_schedule *out = NULL;
    pmlp_error error = {0};
    CHECK(pmlp_schedule_put_off(schedule, costs, most, &out, &error) == PMLP_OK, "%s", error.text);
    return out;
}

static double makespan_of(const pmlp_schedule *schedule, const pmlp_costs *costs) {
    pmlp_simulation sim = {0};
    pmlp_error error = {0};
    CHECK(pmlp_schedule_simulate(schedule, costs, NULL, &sim, &error) == PMLP_OK, "%s", error.text);
    return sim.makespan;
}

/* F and I stay in order, each W comes once and behind its I, no more of a stage than `most` are ever
   put off, and the checker agrees. */
static void check_put_off(const pmlp_schedule *schedule, const pmlp_schedule *out, int most) {
    const int p = pmlp_schedule_workers(schedule);
    pmlp_error error = {0};
    CHECK(pmlp_schedule_check(out, 0, NULL, &error) == PMLP_OK, "%s", error.text);
    for (int w = 0; w < p; w++) {
        int n = 0, k = 0, at = 0, i = 0, waiting[3 * MAX_S] = {0};
        const pmlp_action *a = pmlp_schedule_actions(schedule, w, &n);
        const pmlp_action *b = pmlp_schedule_actions(out, w, &k);
        bool whole = true; /* else the schedule itself has W behind its I */
        for (int c = 0; c < n; c++) whole &= a[c].op != PMLP_OP_I;
        for (; i < k; i++) {
            if (b[i].op == PMLP_OP_I) waiting[b[i].stage]++;
            if (b[i].op == PMLP_OP_W) waiting[b[i].stage]--;
            CHECK(!whole || waiting[b[i].stage] <= most, "%d W put off", waiting[b[i].stage]);
            if (b[i].op == PMLP_OP_W) continue;
            while (at < n && a[at].op == PMLP_OP_W) at++;
            CHECK(at < n && b[i].stage == a[at].stage && b[i].microbatch == a[at].microbatch &&
                      (b[i].op == a[at].op || (b[i].op == PMLP_OP_I && a[at].op == PMLP_OP_B)),
                  "worker %d: action %d is another one", w, i);
            at++;
        }
    }
}

TEST(putting_off) {
    pmlp_error error = {0};
    long runs = 0;
    for (int kind = 1; kind < PMLP_SCHEDULE_KIND_COUNT; kind++)
        for (int p = 1; p <= 4; p++)
            for (int most = 1; most <= 8; most *= 2, runs++) {
                pmlp_schedule_desc desc = {0};
                pmlp_schedule *schedule = NULL, *out;
                desc.kind = (pmlp_schedule_kind)kind, desc.workers = p, desc.microbatches = 8;
                if (pmlp_schedule_create(&desc, &schedule, &error) != PMLP_OK) continue;
                out = put_off(schedule, NULL, most);
                check_put_off(schedule, out, most);
                pmlp_schedule_destroy(schedule), pmlp_schedule_destroy(out);
            }
    /* 1F1B of two workers and four micro-batches, by hand: 15 as written; worker 1 is busy from 1 to
       13 and hands the last gradient over at 9, worker 0 has F4 I4 W4 done at 13 */
    pmlp_schedule *schedule = build(PMLP_SCHEDULE_1F1B, 2, 4), *out = put_off(schedule, NULL, 4);
    CHECK(makespan_of(schedule, NULL) == 15 && makespan_of(out, NULL) == 13, "%g, then %g",
          makespan_of(schedule, NULL), makespan_of(out, NULL));
    pmlp_schedule_destroy(out);
    CHECK(pmlp_schedule_put_off(schedule, NULL, 0, &out, &error) == PMLP_ERROR_ARGUMENT && !out,
          "at most 0: %s", error.text);
    pmlp_schedule *lowered = NULL;
    CHECK(pmlp_schedule_lower(schedule, &lowered, &error) == PMLP_OK &&
              pmlp_schedule_put_off(lowered, NULL, 1, &out, &error) == PMLP_ERROR_SCHEDULE,
          "lowered: %s", error.text);
    pmlp_schedule_destroy(lowered);
    pmlp_schedule_destroy(schedule);
    SAY("W put off, %s schedules: F and I as they were, never more together than allowed; 1F1B in 13 "
        "instead of 15", test_count(runs));
}

/* --- what nobody may ask for ------------------------------------------------------------------ */

TEST(refusals) {
    static const int lonely[] = {0, 0}, two[] = {0, 1};
    pmlp_schedule *schedule = NULL;
    pmlp_error error = {0};
    CHECK(pmlp_schedule_empty(2, 2, 1, lonely, NULL, &schedule, &error) == PMLP_ERROR_ARGUMENT &&
              !schedule && strstr(error.text, "worker 1 has no stage"),
          "a worker without a stage: '%s'", error.text);
    /* lists longer than an int can count */
    static const int sizes[][2] = {{1, 16384}, {2, 8192}};
    for (int i = 0; i < 2; i++)
        for (int kind = PMLP_SCHEDULE_INTERLEAVED; kind <= PMLP_SCHEDULE_LOOPED_BFS; kind++) {
            pmlp_schedule_desc desc = {0};
            desc.kind = (pmlp_schedule_kind)kind, desc.workers = sizes[i][0];
            desc.virtual_stages = sizes[i][1], desc.microbatches = 1 << 20;
            CHECK(pmlp_schedule_create(&desc, &schedule, &error) == PMLP_ERROR_ARGUMENT,
                  "%d stages of %d micro-batches: '%s'", sizes[i][1], 1 << 20, error.text);
        }
    /* a message that does not come */
    static const struct {
        pmlp_op op;
        int stage;
    } rows[] = {{PMLP_OP_F, 0},      {PMLP_OP_SEND_F, 0}, {PMLP_OP_RECV_B, 0}, {PMLP_OP_B, 0},
                {PMLP_OP_U, 0},      {PMLP_OP_RECV_F, 1}, {PMLP_OP_F, 1},      {PMLP_OP_B, 1},
                {PMLP_OP_SEND_B, 1}, {PMLP_OP_U, 1}};
    for (int without = -1; without < 10; without++) {
        if (without >= 0 && rows[without].op != PMLP_OP_RECV_B) continue;
        CHECK(pmlp_schedule_empty(2, 2, 1, two, NULL, &schedule, &error) == PMLP_OK, "%s",
              error.text);
        for (int i = 0; i < 10; i++)
            if (i != without)
                CHECK(pmlp_schedule_append(schedule, rows[i].op, rows[i].stage, 0, &error) ==
                          PMLP_OK, "%s", error.text);
        const pmlp_result result = pmlp_schedule_check(schedule, 0, NULL, &error);
        CHECK(result == (without < 0 ? PMLP_OK : PMLP_ERROR_SCHEDULE), "without %d: %s", without,
              error.text);
        pmlp_schedule_destroy(schedule);
    }
    /* ... and one within a worker, who hands over to himself without */
    CHECK(pmlp_schedule_empty(1, 2, 1, lonely, NULL, &schedule, &error) == PMLP_OK, "%s",
          error.text);
    for (pmlp_op op = PMLP_OP_SEND_F; op <= PMLP_OP_RECV_B;
         op = (pmlp_op)((int)op + 1)) {
        const int stage = op == PMLP_OP_SEND_F || op == PMLP_OP_RECV_B ? 0 : 1;
        CHECK(pmlp_schedule_append(schedule, op, stage, 0, &error) == PMLP_ERROR_ARGUMENT,
              "%s of stage %d within a worker is appended", pmlp_op_name(op), stage);
    }
    pmlp_schedule_destroy(schedule);
    /* costs of another number of stages */
    static const double four[] = {1, 1, 1, 1};
    const pmlp_costs costs = {four, four, four, NULL, 0, 0, NULL, NULL, 4, NULL};
    schedule = build(PMLP_SCHEDULE_1F1B, 2, 2);
    CHECK(pmlp_schedule_simulate(schedule, &costs, NULL, NULL, &error) == PMLP_ERROR_ARGUMENT,
          "costs of 4 stages for 2: %s", error.text);
    pmlp_schedule_destroy(schedule);
    /* a text that names far more than it has, for which no table is made */
    static const char *sparse = "0F0,0F1000000\n1F0\n";
    CHECK(pmlp_schedule_parse(sparse, strlen(sparse), NULL, &schedule, &error) == PMLP_OK, "%s",
          error.text);
    CHECK(pmlp_schedule_check(schedule, 0, NULL, &error) == PMLP_ERROR_SCHEDULE &&
              strstr(error.text, "5 actions are far too few for 2 stages and 1000001 micro-"),
          "a sparse one is checked: %s", error.text);
    CHECK(pmlp_schedule_simulate(schedule, NULL, NULL, NULL, &error) == PMLP_ERROR_SCHEDULE &&
              strstr(error.text, "far too few"),
          "a sparse one is simulated: %s", error.text);
    pmlp_schedule_destroy(schedule);
    /* asynchronous lists: an update with another number, and one too few */
    schedule = build_shape((shape){PMLP_SCHEDULE_PIPEDREAM, 2, 1, 1, 2});
    int count = 0;
    pmlp_action *last = (pmlp_action *)pmlp_schedule_actions(schedule, 0, &count) + count - 1;
    CHECK(last->op == PMLP_OP_U && last->microbatch == 1, "not the last update");
    last->microbatch = 0;
    CHECK(pmlp_schedule_check(schedule, 0, NULL, &error) == PMLP_ERROR_SCHEDULE &&
              strstr(error.text, "where the update after micro-batch 1 is due"),
          "an update with another number: %s", error.text);
    last->op = PMLP_OP_NONE, last->microbatch = 1;
    CHECK(pmlp_schedule_check(schedule, 0, NULL, &error) == PMLP_ERROR_SCHEDULE &&
              strstr(error.text, "worker 0 never does 0U, every update of stage 0"),
          "an update too few: %s", error.text);
    pmlp_schedule_destroy(schedule);
    /* lists without actions take no time */
    pmlp_simulation sim = {0};
    pmlp_timeline *timeline = NULL;
    pmlp_worker_time time;
    double begin = -1;
    CHECK(pmlp_schedule_empty(2, 2, 1, two, NULL, &schedule, NULL) == PMLP_OK, "empty");
    CHECK(pmlp_schedule_simulate(schedule, NULL, &begin, &sim, &error) == PMLP_OK &&
              sim.makespan == 0 && begin == -1,
          "nothing takes %g: %s", sim.makespan, error.text);
    CHECK(pmlp_schedule_simulate(schedule, NULL, NULL, NULL, &error) == PMLP_OK, "%s", error.text);
    CHECK(pmlp_schedule_timeline(schedule, NULL, &timeline, &error) == PMLP_OK &&
              pmlp_timeline_worker(timeline, 1, &time) == PMLP_OK && time.busy == 0 &&
              time.waits_for == -1,
          "the times of nothing: %s", error.text);
    pmlp_timeline_destroy(timeline);
    pmlp_schedule_destroy(schedule);
    SAY("workers without stages, lists too long or far too short, messages within a worker, costs "
        "of other stages, updates out of turn");
}

int main(void) {
    test_begin("schedules");
    RUN(builders);
    RUN(kinds);
    RUN(simulator);
    RUN(simulator_by_hand);
    RUN(ahead_by_hand);
    RUN(ahead);
    RUN(round_trip);
    RUN(text_forms);
    RUN(parse_errors);
    RUN(parse_noise);
    RUN(lowering);
    RUN(drawing);
    RUN(planted_faults);
    RUN(sentences);
    RUN(handoffs_by_hand);
    RUN(handoff_sentences);
    RUN(asynchronous_faults);
    RUN(by_lot);
    RUN(appending);
    RUN(updates_in_text);
    RUN(slots);
    RUN(putting_off);
    RUN(refusals);
    return test_end();
}
