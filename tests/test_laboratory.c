/* The laboratory: how schedules travel over five transports and deadlock, what they take, what they
   hold, which one the search finds. Each number of the library is held against a slow one that is
   counted here by other means; the table of all schedules goes to build/test/schedules.md and is
   compared with README.md.

   cc -std=c99 -O2 tests/test_laboratory.c -o test_laboratory -lm -lpthread */
#define PIPEMLP_IMPLEMENTATION
#include "../pipemlp.h"
#include "test.h"
#include "shapes.h"
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/wait.h>

enum { MAX_P = 8, MAX_V = 4, MAX_S = MAX_P * MAX_V, MAX_M = 72, MAX_LIST = 1024 };

static bool near(double a, double b) {
    return fabs(a - b) <= 1e-9 * (1 + fabs(b));
}
static unsigned below(uint64_t *rng, unsigned n) {
    return (unsigned)(test_random(rng) % n);
}

static const char *name_of(shape c) {
    static char name[80];
    snprintf(name, sizeof name, "%s p %d v %d m %d x %d", pmlp_schedule_kind_name(c.kind), c.p, c.v,
             c.m, c.batches);
    return name;
}

static pmlp_result create(shape c, const pmlp_costs *costs, double memory, pmlp_schedule **schedule,
                          pmlp_error *error) {
    pmlp_schedule_desc desc = {0};
    *schedule = NULL;
    desc.kind = c.kind, desc.workers = c.p, desc.virtual_stages = c.v, desc.microbatches = c.m;
    desc.batches = c.batches, desc.costs = costs, desc.memory = memory;
    return pmlp_schedule_create(&desc, schedule, error);
}

/* NULL if the kind cannot have the shape. */
static pmlp_schedule *build_if(shape c) {
    pmlp_schedule *schedule;
    return create(c, NULL, 0, &schedule, NULL) == PMLP_OK ? schedule : NULL;
}

static pmlp_schedule *build(shape c) {
    pmlp_schedule *schedule;
    pmlp_error error = {0};
    CHECK(create(c, NULL, 0, &schedule, &error) == PMLP_OK, "%s: %s", name_of(c), error.text);
    return schedule;
}

static bool is_handoff(pmlp_op op) {
    return op >= PMLP_OP_SEND_F;
}
static bool is_send(pmlp_op op) {
    return op == PMLP_OP_SEND_F || op == PMLP_OP_SEND_B;
}

/* --- five transports by hand ------------------------------------------------------------------ */

/* The program that one would write from a list: receive, compute, send. */
typedef struct program {
    int p, stages, m, owner[MAX_S], count[MAX_P];
    bool synchronous;
    pmlp_action step[MAX_P][MAX_LIST];
    int from[MAX_P][MAX_LIST]; /* place of the action in the schedule's list */
} program;

static bool apart(const program *x, int s) {
    return s >= 0 && s + 1 < x->stages && x->owner[s] != x->owner[s + 1];
}

static void add_step(program *x, int w, pmlp_op op, pmlp_action like, int from) {
    like.op = op;
    x->from[w][x->count[w]] = from, x->step[w][x->count[w]++] = like;
}

static void write_program(const pmlp_schedule *schedule, program *x) {
    bool lowered = false;
    x->p = pmlp_schedule_workers(schedule), x->stages = pmlp_schedule_stages(schedule);
    x->m = pmlp_schedule_microbatches(schedule);
    x->synchronous = pmlp_schedule_is_synchronous(schedule);
    for (int s = 0; s < x->stages; s++) x->owner[s] = pmlp_schedule_stage_worker(schedule, s);
    for (int pass = 0; pass < 2; pass++)
        for (int w = 0; w < x->p; w++) {
            int n;
            const pmlp_action *a = pmlp_schedule_actions(schedule, w, &n);
            for (int i = x->count[w] = 0; i < n; i++) {
                const pmlp_op op = a[i].op;
                const bool b = (op == PMLP_OP_I || op == PMLP_OP_B) && !lowered,
                           f = op == PMLP_OP_F && !lowered;
                lowered |= pass == 0 && is_handoff(op);
                if (pass == 0) continue;
                if (f && apart(x, a[i].stage - 1)) add_step(x, w, PMLP_OP_RECV_F, a[i], i);
                if (b && apart(x, a[i].stage)) add_step(x, w, PMLP_OP_RECV_B, a[i], i);
                add_step(x, w, op, a[i], i);
                if (f && apart(x, a[i].stage)) add_step(x, w, PMLP_OP_SEND_F, a[i], i);
                if (b && apart(x, a[i].stage - 1)) add_step(x, w, PMLP_OP_SEND_B, a[i], i);
            }
        }
}

/* A message's channel: the boundary (by the stage below it) and the direction. */
static int channel_of(pmlp_action a) {
    const bool down = a.op == PMLP_OP_SEND_B || a.op == PMLP_OP_RECV_B;
    const bool upper = a.op == PMLP_OP_RECV_F || a.op == PMLP_OP_SEND_B;
    return 2 * (upper ? a.stage - 1 : a.stage) + down;
}
static int sender_of(const program *x, int channel) {
    return x->owner[channel / 2 + channel % 2];
}
static int receiver_of(const program *x, int channel) {
    return x->owner[channel / 2 + 1 - channel % 2];
}

typedef struct network {
    const program *x;
    int at[MAX_P];
    bool passed[MAX_P][MAX_LIST]; /* hand-offs that are over */
    bool done[4][MAX_S][MAX_M];   /* 0: F, 1: I, 2: activations are here, 3: gradients are here */
    int left;                     /* W of all stages */
    bool wrong;
    int head[2 * MAX_S], tail[2 * MAX_S], queue[2 * MAX_S][MAX_M * 8];
} network;

static int group_end(const network *n, int w, bool grouped) {
    int end = n->at[w];
    do end++;
    while (grouped && end < n->x->count[w] && is_handoff(n->x->step[w][end].op));
    return end;
}

/* Compute steps of a worker until a hand-off, a wait or the end; whether it moved. */
static bool compute(network *n, int w) {
    const program *x = n->x;
    const int began = n->at[w];
    for (; n->at[w] < x->count[w]; n->at[w]++) {
        const pmlp_action a = x->step[w][n->at[w]];
        const int s = a.stage, k = a.microbatch;
        if (is_handoff(a.op) || (a.op == PMLP_OP_U && x->synchronous && n->left > 0)) break;
        if (a.op == PMLP_OP_F) {
            n->wrong |= s > 0 && !(apart(x, s - 1) ? n->done[2][s][k] : n->done[0][s - 1][k]);
            n->done[0][s][k] = true;
        }
        if (a.op == PMLP_OP_I || a.op == PMLP_OP_B) {
            n->wrong |=
                s + 1 < x->stages && !(apart(x, s) ? n->done[3][s][k] : n->done[1][s + 1][k]);
            n->done[1][s][k] = true;
        }
        n->left -= a.op == PMLP_OP_W || a.op == PMLP_OP_B;
    }
    return n->at[w] > began;
}

static void arrive(network *n, pmlp_action receive) {
    n->done[receive.op == PMLP_OP_RECV_F ? 2 : 3][receive.stage][receive.microbatch] = true;
}
static bool was_computed(const network *n, pmlp_action send) {
    return n->done[send.op == PMLP_OP_SEND_F ? 0 : 1][send.stage][send.microbatch];
}

/* Without a buffer: a SEND of this worker's group and the RECV of its peer's group meet. */
static bool meet(network *n, int w, bool grouped) {
    const program *x = n->x;
    bool moved = false, seen[2 * MAX_S] = {false};
    if (n->at[w] == x->count[w] || !is_handoff(x->step[w][n->at[w]].op)) return false;
    for (int i = n->at[w]; i < group_end(n, w, grouped); i++) {
        const pmlp_action a = x->step[w][i];
        const int c = channel_of(a), peer = receiver_of(x, c);
        if (n->passed[w][i] || !is_send(a.op) || seen[c]) continue;
        seen[c] = true; /* the first of its channel that is still to come */
        n->wrong |= !was_computed(n, a);
        if (n->at[peer] == x->count[peer] || !is_handoff(x->step[peer][n->at[peer]].op)) continue;
        for (int j = n->at[peer]; j < group_end(n, peer, grouped); j++) {
            const pmlp_action b = x->step[peer][j];
            if (is_send(b.op) || n->passed[peer][j] || channel_of(b) != c) continue;
            n->wrong |= a.microbatch != b.microbatch;
            n->passed[w][i] = n->passed[peer][j] = moved = true;
            seen[c] = false;
            arrive(n, b);
            break;
        }
    }
    return moved;
}

/* With queues: one step. shared: all channels from one worker to another are one queue. */
static bool through_queue(network *n, int w, int slots, bool shared) {
    const program *x = n->x;
    if (n->at[w] == x->count[w] || !is_handoff(x->step[w][n->at[w]].op)) return false;
    const pmlp_action a = x->step[w][n->at[w]];
    const int c = channel_of(a), message = c * MAX_M + a.microbatch;
    int q = c;
    for (int o = 0; shared && o < c; o++)
        if (sender_of(x, o) == sender_of(x, c) && receiver_of(x, o) == receiver_of(x, c)) {
            q = o;
            break;
        }
    if (is_send(a.op)) {
        n->wrong |= !was_computed(n, a);
        if (slots > 0 && n->tail[q] - n->head[q] >= slots) return false;
        n->queue[q][n->tail[q]++] = message;
    } else {
        if (n->head[q] == n->tail[q]) return false;
        n->wrong |= n->queue[q][n->head[q]++] != message;
        arrive(n, a);
    }
    return n->passed[w][n->at[w]++] = true;
}

static network net;

static pmlp_result travel(const program *x, pmlp_transport transport, int slots) {
    const bool grouped = transport == PMLP_TRANSPORT_GROUPED;
    const bool meets = grouped || transport == PMLP_TRANSPORT_RENDEZVOUS;
    memset(&net, 0, offsetof(network, queue));
    net.x = x, net.left = x->stages * x->m;
    for (bool moved = true; moved && !net.wrong;) {
        moved = false;
        for (int w = 0; w < x->p; w++) {
            moved |= compute(&net, w);
            if (meets)
                moved |= meet(&net, w, grouped);
            else
                while (through_queue(&net, w, transport == PMLP_TRANSPORT_SLOTS ? slots : 0,
                                     transport == PMLP_TRANSPORT_PAIR))
                    moved = true, compute(&net, w);
        }
        for (int w = 0; meets && w < x->p; w++) { /* groups that are over as a whole */
            int i = net.at[w];
            if (i == x->count[w] || !is_handoff(x->step[w][i].op)) continue;
            const int end = group_end(&net, w, grouped);
            while (i < end && net.passed[w][i]) i++;
            if (i == end) net.at[w] = end, moved = true;
        }
    }
    if (net.wrong) return PMLP_ERROR_SCHEDULE;
    for (int w = 0; w < x->p; w++)
        if (net.at[w] < x->count[w]) return PMLP_ERROR_DEADLOCK;
    return PMLP_OK;
}

/* --- the circle ------------------------------------------------------------------------------- */

/* Is `channel`, `microbatch`, sent or received, what worker w waits for in `net`? */
static bool waits_for(int w, bool send, int channel, int microbatch, bool grouped) {
    if (w < 0 || w >= net.x->p || net.at[w] >= net.x->count[w]) return false;
    for (int i = net.at[w]; i < group_end(&net, w, grouped); i++) {
        const pmlp_action a = net.x->step[w][i];
        if (is_handoff(a.op) && !net.passed[w][i] && is_send(a.op) == send &&
            channel_of(a) == channel && a.microbatch == microbatch)
            return true;
    }
    return false;
}

/* The other end has not come to its half of the hand-off. */
static bool still_to_come(int w, bool send, int channel, int microbatch) {
    for (int i = 0; w >= 0 && w < net.x->p && i < net.x->count[w]; i++) {
        const pmlp_action a = net.x->step[w][i];
        if (is_handoff(a.op) && is_send(a.op) == send && channel_of(a) == channel &&
            a.microbatch == microbatch)
            return !net.passed[w][i] && i >= net.at[w];
    }
    return false;
}

static long circles, links, longest, cut_off;

/* Reads the sentence: each link must be true in `net`, whose schedule deadlocked, and the last one
   must lead back to the first. */
static void check_circle(const char *what, const pmlp_error *error, bool grouped) {
    const char *at = error->text;
    int first = -1, worker, seen = 0, n = 0;
    if (!CHECK(sscanf(at, "deadlock: worker %d waits %n", &first, &n) == 1 && n > 0, "%s: '%s'",
               what, at))
        return;
    CHECK(error->worker == first, "%s: worker %d: %s", what, error->worker, at);
    for (at += n, worker = first;; at += n) {
        char letter = 0;
        int other = -1, k = -1, stage = -1, updates = -1;
        bool send = false, update = false;
        n = 0;
        if (sscanf(at, "for worker %d to take %c(%d) of stage %d%n", &other, &letter, &k, &stage,
                   &n) == 4 &&
            n > 0)
            send = true;
        else if (sscanf(at, "with %dU for the gradients of worker %d%n", &updates, &other, &n) ==
                     2 &&
                 n > 0)
            update = true;
        else if (sscanf(at, "for %c(%d) of stage %d from worker %d%n", &letter, &k, &stage, &other,
                        &n) != 4 ||
                 n == 0) {
            cut_off++; /* no room for a long circle; what there was has been checked */
            CHECK(strlen(error->text) >= sizeof error->text - 80, "%s: cannot read '%s' of '%s'",
                  what, at, error->text);
            return;
        }
        /* what is named by its producer: F(k) of stage s goes up from s, B(k) of stage s down */
        const int channel = letter == 'F' ? 2 * stage : 2 * (stage - 1) + 1;
        CHECK(!(seen >> worker & 1), "%s: worker %d twice in '%s'", what, worker, error->text);
        seen |= 1 << worker, links++;
        if (update) {
            CHECK(net.at[worker] < net.x->count[worker] &&
                      net.x->step[worker][net.at[worker]].op == PMLP_OP_U &&
                      net.x->step[worker][net.at[worker]].stage == updates && other != worker &&
                      net.at[other] < net.x->count[other] &&
                      net.x->step[other][net.at[other]].op != PMLP_OP_U,
                  "%s: worker %d does not wait with %dU: '%s'", what, worker, updates, error->text);
        } else {
            CHECK((letter == 'F' || letter == 'B') &&
                      other == (send ? receiver_of : sender_of)(net.x, channel) &&
                      waits_for(worker, send, channel, k, grouped) &&
                      still_to_come(other, !send, channel, k),
                  "%s: worker %d does not wait for worker %d because of %c(%d) of stage %d: '%s'",
                  what, worker, other, letter, k, stage, error->text);
        }
        if (!strncmp(at + n, ", which waits ", 14)) {
            worker = other, n += 14;
            continue;
        }
        CHECK(!at[n] && other == first, "%s: the circle does not close: '%s'", what, error->text);
        break;
    }
    int members = 0;
    for (int w = 0; w < MAX_P; w++) members += seen >> w & 1;
    circles++, longest = members > longest ? members : longest;
}

/* --- the table -------------------------------------------------------------------------------- */

enum { ONE_SLOT, UNBOUNDED, BLOCKING, GROUPED, PAIR, LOW_BLOCKING, LOW_GROUPED, IN_ORDER, WAYS };

typedef struct row {
    pmlp_schedule_kind kind;
    int v, cases, finished[WAYS], slots, versions;
    double time, peak; /* p = 4, m = 8 */
} row;

static row rows[32];
static int row_count;
static long replays;
static program prog;

/* One way of one schedule, against the transport by hand. */
static pmlp_result try_way(shape c, const pmlp_schedule *schedule, pmlp_transport transport,
                           const char *way) {
    int done[MAX_P];
    char what[160];
    pmlp_error error = {0};
    const pmlp_result result = pmlp_schedule_replay(schedule, transport, 0, done, &error);
    write_program(schedule, &prog);
    const pmlp_result want = travel(&prog, transport, 1);
    snprintf(what, sizeof what, "%s, %s%s", name_of(c), pmlp_transport_name(transport), way);
    CHECK(result == want, "%s: %s, by hand %s: %s", what, pmlp_result_name(result),
          pmlp_result_name(want), error.text);
    replays++;
    if (result == PMLP_ERROR_SCHEDULE || result != want) return result;
    for (int w = 0; w < prog.p; w++) { /* whole actions that are over */
        int i = net.at[w], n;
        pmlp_schedule_actions(schedule, w, &n);
        while (i < prog.count[w] && net.passed[w][i]) i++;
        const int by_hand = i < prog.count[w] ? prog.from[w][i] : n;
        CHECK(done[w] == by_hand, "%s: worker %d did %d actions, by hand %d", what, w, done[w],
              by_hand);
    }
    if (result == PMLP_ERROR_DEADLOCK)
        check_circle(what, &error, transport == PMLP_TRANSPORT_GROUPED);
    return result;
}

static double peak_of(const pmlp_schedule *schedule, const double *held);

static void run_case(row *r, shape c) {
    static const pmlp_transport ways[] = {PMLP_TRANSPORT_SLOTS, PMLP_TRANSPORT_UNBOUNDED,
                                          PMLP_TRANSPORT_RENDEZVOUS, PMLP_TRANSPORT_GROUPED,
                                          PMLP_TRANSPORT_PAIR};
    pmlp_schedule *schedule = build_if(c), *low = NULL, *ordered = NULL;
    pmlp_error error = {0};
    pmlp_check report = {0};
    bool ok[WAYS];
    if (!schedule) return;
    r->cases++;
    CHECK(pmlp_schedule_lower(schedule, &low, &error) == PMLP_OK &&
              pmlp_schedule_lower_in_order(schedule, NULL, &ordered, &error) == PMLP_OK,
          "%s: %s", name_of(c), error.text);
    for (int i = 0; i < 5; i++) ok[i] = try_way(c, schedule, ways[i], "") == PMLP_OK;
    ok[LOW_BLOCKING] = try_way(c, low, PMLP_TRANSPORT_RENDEZVOUS, ", lowered") == PMLP_OK;
    ok[LOW_GROUPED] = try_way(c, low, PMLP_TRANSPORT_GROUPED, ", lowered") == PMLP_OK;
    ok[IN_ORDER] = try_way(c, ordered, PMLP_TRANSPORT_RENDEZVOUS, ", in order") == PMLP_OK;
    for (int i = 0; i < WAYS; i++) r->finished[i] += ok[i];
    CHECK(ok[UNBOUNDED] && ok[IN_ORDER], "%s: unbounded %d, in order %d", name_of(c), ok[UNBOUNDED],
          ok[IN_ORDER]);
    /* breadth first, a loop that is longer than the batch swallows all of it */
    const bool safe = c.p == 1 || c.m * c.batches == 1 || c.kind == PMLP_SCHEDULE_SEQUENTIAL ||
                      c.kind == PMLP_SCHEDULE_GPIPE ||
                      (c.kind == PMLP_SCHEDULE_LOOPED_BFS && c.m < c.p);
    CHECK(ok[BLOCKING] == safe && ok[LOW_BLOCKING] == safe,
          "%s: blocking sends in program order: %d, lowered %d", name_of(c), ok[BLOCKING],
          ok[LOW_BLOCKING]);
    CHECK(pmlp_schedule_check(schedule, 0, &report, &error) == PMLP_OK, "%s: %s", name_of(c),
          error.text);
    CHECK((report.slots <= 1) == ok[ONE_SLOT], "%s: %d slots, one %d", name_of(c), report.slots,
          ok[ONE_SLOT]);
    if (report.slots > r->slots) r->slots = report.slots;
    if (c.p == 4 && c.m == 8) {
        double part[MAX_S];
        pmlp_costs costs = {0};
        pmlp_simulation sim = {0};
        for (int s = 0; s < MAX_S; s++) part[s] = 1.0 / c.v;
        costs.f = costs.i = costs.w = costs.held = part;
        CHECK(pmlp_schedule_simulate(schedule, &costs, NULL, &sim, &error) == PMLP_OK, "%s",
              error.text);
        CHECK(near(sim.peak, peak_of(schedule, part)), "%s: peak %g", name_of(c), sim.peak);
        r->time = sim.makespan / c.batches, r->peak = sim.peak, r->versions = report.versions;
    }
    pmlp_schedule_destroy(schedule), pmlp_schedule_destroy(low), pmlp_schedule_destroy(ordered);
}

static void make_rows(void) {
    row_count = 0;
    for (int kind = 1; kind < PMLP_SCHEDULE_KIND_COUNT; kind++)
        for (int v = 1; v <= MAX_V; v++) {
            row *r = &rows[row_count];
            shape c = {(pmlp_schedule_kind)kind, 0, v, 0, 1};
            if (c.kind == PMLP_SCHEDULE_AUTO || (is_looped(c.kind) && v == 1)) continue;
            if (test_quick() && v > 2) continue;
            memset(r, 0, sizeof *r);
            r->kind = c.kind, r->v = v;
            if (is_async(c.kind)) c.batches = 3; /* so that something follows without a flush */
            for (c.p = 1; c.p <= MAX_P; c.p++)
                for (c.m = 1; c.m <= 24; c.m += test_quick() ? (c.p > 4 ? 11 : 7) : 1)
                    if (!test_quick() || c.p != 7) run_case(r, c);
            row_count += r->cases > 0;
        }
}

static const char *of_cases(int n, int cases) {
    static char text[8][32];
    static unsigned next;
    if (n == cases) return "all";
    snprintf(text[++next & 7], sizeof *text, n ? "%d" : "none", n);
    return text[next & 7];
}

static char table[8192];

static void write_table(void) {
    size_t n = (size_t)snprintf(
        table, sizeof table,
        "| schedule | stages per worker | time | held | weights | cases | queues of one slot | slots "
        "that always do | blocking | grouped | grouped, before W | queue per pair | blocking, one "
        "order |\n"
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n");
    for (int i = 0; i < row_count; i++) {
        const row *r = &rows[i];
        const int c = r->cases, *f = r->finished;
        n += (size_t)snprintf(
            table + n, sizeof table - n,
            "| %s | %d | %.4g | %.3g | %d | %d | %s | %d | %s | %s | %s | %s | %s |\n",
            pmlp_schedule_kind_name(r->kind), r->v, r->time, r->peak, r->versions, c,
            of_cases(f[ONE_SLOT], c), r->slots > 1 ? r->slots : 1, of_cases(f[BLOCKING], c),
            of_cases(f[GROUPED], c), of_cases(f[LOW_GROUPED], c), of_cases(f[PAIR], c),
            of_cases(f[IN_ORDER], c));
        CHECK(n < sizeof table, "the table is too long");
    }
}

/* The README's lines between the markers, or "". */
static const char *table_in_readme(void) {
    static char readme[1 << 17];
    static const char begin[] = "<!-- schedules -->\n", end[] = "<!-- /schedules -->";
    FILE *file = fopen("README.md", "rb");
    const size_t size = file ? fread(readme, 1, sizeof readme - 1, file) : 0;
    if (file) fclose(file);
    readme[size] = 0;
    char *from = strstr(readme, begin), *to = from ? strstr(from, end) : NULL;
    if (!to) return "";
    return *to = 0, from + strlen(begin);
}

static const row *row_of(pmlp_schedule_kind kind, int v) {
    for (int i = 0; i < row_count; i++)
        if (rows[i].kind == kind && rows[i].v == v) return &rows[i];
    return CHECK(false, "no row of %s", pmlp_schedule_kind_name(kind)), &rows[0];
}

TEST(transports) {
    static const struct {
        pmlp_schedule_kind kind;
        int way, finished, cases;
    } known[] = {
        {PMLP_SCHEDULE_SEQUENTIAL, BLOCKING, 192, 192},
        {PMLP_SCHEDULE_GPIPE, BLOCKING, 192, 192},
        {PMLP_SCHEDULE_1F1B, GROUPED, 192, 192},
        {PMLP_SCHEDULE_EAGER_1F1B, GROUPED, 192, 192},
        {PMLP_SCHEDULE_ZB_H1, GROUPED, 192, 192},
        {PMLP_SCHEDULE_ZB_H2, GROUPED, 87, 192},
        {PMLP_SCHEDULE_INTERLEAVED, GROUPED, 87, 137},
        {PMLP_SCHEDULE_ZB_V, GROUPED, 31, 192},
        {PMLP_SCHEDULE_DUALPIPE_V, GROUPED, 23, 128},
    };
    long cases = 0;
    replays = circles = links = longest = cut_off = 0;
    make_rows();
    write_table();
    for (int i = 0; i < row_count; i++) cases += rows[i].cases;
    if (!test_quick()) {
        for (int k = 0; k < (int)(sizeof known / sizeof *known); k++) {
            const row *r =
                row_of(known[k].kind, is_looped(known[k].kind) || is_v(known[k].kind) ? 2 : 1);
            CHECK(r->cases == known[k].cases && r->finished[known[k].way] == known[k].finished,
                  "%s: %d of %d, published %d of %d", pmlp_schedule_kind_name(r->kind),
                  r->finished[known[k].way], r->cases, known[k].finished, known[k].cases);
        }
        for (int i = 0; i < row_count; i++) {
            const row *r = &rows[i];
            CHECK((r->finished[PAIR] < r->cases) == is_v(r->kind) || is_looped(r->kind),
                  "%s: %d of %d with one queue per pair", pmlp_schedule_kind_name(r->kind),
                  r->finished[PAIR], r->cases);
            CHECK((r->finished[ONE_SLOT] == r->cases) == !is_looped(r->kind) &&
                      (r->kind != PMLP_SCHEDULE_INTERLEAVED || r->slots == MAX_P / 2),
                  "%s: %d of %d with one slot, %d slots", pmlp_schedule_kind_name(r->kind),
                  r->finished[ONE_SLOT], r->cases, r->slots);
        }
        CHECK(row_of(PMLP_SCHEDULE_EAGER_1F1B, 1)->finished[LOW_GROUPED] < 192,
              "eager-1f1b with gradients sent before W: grouping suffices");
        mkdir("build", 0777), mkdir("build/test", 0777);
        FILE *file = fopen("build/test/schedules.md", "wb");
        CHECK(file && fwrite(table, 1, strlen(table), file) == strlen(table) && !fclose(file),
              "build/test/schedules.md cannot be written; tests run in the repository's root");
        const bool same = !strcmp(table, table_in_readme());
        CHECK(
            same,
            "the table in README.md is another: cp what is in build/test/schedules.md between its "
            "lines <!-- schedules --> and <!-- /schedules -->");
    }
    SAY("%s schedules, %s journeys over 5 transports as by hand; %s deadlocks, each a closed circle "
        "of true links (up to %ld workers; %s cut off)%s",
        test_count(cases), test_count(replays), test_count(circles + cut_off), longest,
        test_count(cut_off), test_quick() ? "" : "; the table is the README's");
}

/* More slots, and circles of lists that are wrong by themselves. */
TEST(circles_by_hand) {
    static const struct {
        const char *form, *sentence;
    } wrong[] = {
        {"0F0,0B0,0F1,0B1\n1F0,1F1,1B0,1B1\n",
         "deadlock: worker 0 waits for B(0) of stage 1 from worker 1, which waits for F(1) of stage "
         "0 from worker 0"},
        {"0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1\n2F0,2F1,2B0,2B1\n",
         "deadlock: worker 1 waits for B(0) of stage 2 from worker 2, which waits for F(1) of stage "
         "1 from worker 1"},
    };
    int done[3];
    for (int k = 0; k < 2; k++) {
        pmlp_schedule *schedule = NULL;
        pmlp_error error = {0};
        CHECK(pmlp_schedule_parse(wrong[k].form, strlen(wrong[k].form), NULL, &schedule, &error) ==
                  PMLP_OK,
              "%s", error.text);
        CHECK(pmlp_schedule_replay(schedule, PMLP_TRANSPORT_UNBOUNDED, 0, done, &error) ==
                      PMLP_ERROR_DEADLOCK &&
                  !strcmp(error.text, wrong[k].sentence),
              "%s", error.text);
        pmlp_schedule_destroy(schedule);
    }
    /* 1F1B between two workers who meet: each has something for the other */
    const shape c = {PMLP_SCHEDULE_1F1B, 2, 1, 4, 1};
    pmlp_schedule *schedule = build(c);
    pmlp_error error = {0};
    CHECK(pmlp_schedule_replay(schedule, PMLP_TRANSPORT_RENDEZVOUS, 0, done, &error) ==
                  PMLP_ERROR_DEADLOCK &&
              !strcmp(error.text,
                      "deadlock: worker 0 waits for worker 1 to take F(1) of stage 0, which waits "
                      "for worker 0 to take B(0) of stage 1") &&
              done[0] == 1 && done[1] == 1,
          "%d, %d: %s", done[0], done[1], error.text);
    CHECK(pmlp_schedule_replay(schedule, PMLP_TRANSPORT_DEFAULT, 0, NULL, &error) == PMLP_OK, "%s",
          error.text);
    CHECK(pmlp_schedule_replay(schedule, PMLP_TRANSPORT_COUNT, 0, done, &error) ==
              PMLP_ERROR_ARGUMENT,
          "a transport too many");
    CHECK(pmlp_schedule_replay(schedule, PMLP_TRANSPORT_SLOTS, -1, done, &error) ==
              PMLP_ERROR_ARGUMENT,
          "slots -1");
    CHECK(pmlp_schedule_replay(NULL, PMLP_TRANSPORT_SLOTS, 1, done, &error) == PMLP_ERROR_ARGUMENT,
          "no schedule");
    pmlp_schedule_destroy(schedule);
    /* two chunks, one queue: what comes first is the other chunk's */
    const shape v = {PMLP_SCHEDULE_ZB_V, 2, 2, 4, 1};
    schedule = build(v);
    CHECK(pmlp_schedule_replay(schedule, PMLP_TRANSPORT_PAIR, 0, done, &error) ==
                  PMLP_ERROR_SCHEDULE &&
              strstr(error.text, "first"),
          "%s", error.text);
    pmlp_schedule_destroy(schedule);
    for (int i = 0; i <= PMLP_TRANSPORT_COUNT; i++) {
        static const char *names[] = {"default", "slots", "unbounded", "rendezvous",
                                      "grouped", "pair",  "?"};
        CHECK(!strcmp(pmlp_transport_name((pmlp_transport)i), names[i]), "transport %d is '%s'", i,
              pmlp_transport_name((pmlp_transport)i));
    }
    /* slots from one up to what is needed, loops being the only ones that need more */
    long n = 0;
    for (int p = 2; p <= 6; p++)
        for (int m = p; m <= 4 * p; m += p)
            for (int k = 0; k < 2; k++) {
                const shape l = {k ? PMLP_SCHEDULE_LOOPED_BFS : PMLP_SCHEDULE_INTERLEAVED, p, 2, m,
                                 1};
                schedule = build(l);
                for (int slots = 1; slots <= 5; slots++, n++) {
                    write_program(schedule, &prog);
                    const pmlp_result want = travel(&prog, PMLP_TRANSPORT_SLOTS, slots),
                                      result = pmlp_schedule_replay(schedule, PMLP_TRANSPORT_SLOTS,
                                                                    slots, NULL, &error);
                    CHECK(result == want, "%s, %d slots: %s", name_of(l), slots, error.text);
                    if (want == PMLP_ERROR_DEADLOCK) check_circle(name_of(l), &error, false);
                }
                pmlp_schedule_destroy(schedule);
            }
    SAY("circles as written out by hand; names, arguments; %s journeys with 1 to 5 slots",
        test_count(n));
}

/* --- a slow simulator ------------------------------------------------------------------------- */

typedef struct timed {
    double begin[MAX_P][MAX_LIST], end[MAX_P][MAX_LIST];
    double makespan, busiest, work, peak;
} timed;

static timed slow;

static double cost_of(const pmlp_costs *c, pmlp_action a) {
    const double i = c->i ? c->i[a.stage] : 1, w = c->w ? c->w[a.stage] : 1;
    switch (a.op) {
    case PMLP_OP_F: return c->f ? c->f[a.stage] : 1;
    case PMLP_OP_I: return i;
    case PMLP_OP_W: return w;
    case PMLP_OP_B: return i + w;
    case PMLP_OP_U: return c->u ? c->u[a.stage] : 0;
    default: return 0;
    }
}

/* Most that a worker holds: for each place of its list, everything is counted anew. */
static double peak_of(const pmlp_schedule *schedule, const double *held) {
    static double now[MAX_S];
    double most = 0;
    for (int w = 0; w < pmlp_schedule_workers(schedule); w++) {
        int n;
        const pmlp_action *a = pmlp_schedule_actions(schedule, w, &n);
        memset(now, 0, sizeof now);
        for (int i = 0; i < n; i++) {
            double all = 0;
            if (a[i].op == PMLP_OP_F) now[a[i].stage]++;
            for (int s = 0; s < MAX_S; s++) all += now[s] * (held ? held[s] : 1);
            most = fmax(most, all);
            if (a[i].op == PMLP_OP_W || a[i].op == PMLP_OP_B) now[a[i].stage]--;
        }
    }
    return most;
}

static double hand_over(const pmlp_costs *c, int boundary) {
    return c->latency + c->per_byte * (c->message_bytes ? c->message_bytes[boundary] : 0);
}

/* Event by event: of all workers' next actions, the one that can begin first begins. */
static void simulate_slowly(const pmlp_schedule *schedule, const pmlp_costs *c) {
    static double f[MAX_S][MAX_M], b[MAX_S][MAX_M];
    const int p = pmlp_schedule_workers(schedule), stages = pmlp_schedule_stages(schedule);
    const int m = pmlp_schedule_microbatches(schedule);
    int next[MAX_P] = {0}, left = stages * m;
    double clock[MAX_P] = {0}, busy[MAX_P] = {0}, last_w = 0;
    for (int s = 0; s < stages; s++)
        for (int k = 0; k < m; k++) f[s][k] = b[s][k] = INFINITY;
    for (;;) {
        int who = -1;
        double first = INFINITY;
        for (int w = 0; w < p; w++) {
            int n;
            const pmlp_action *list = pmlp_schedule_actions(schedule, w, &n);
            if (next[w] == n) continue;
            const pmlp_action a = list[next[w]];
            const int s = a.stage, k = a.microbatch;
            double there = 0;
            if (a.op == PMLP_OP_F && s > 0)
                there =
                    f[s - 1][k] +
                    (pmlp_schedule_stage_worker(schedule, s - 1) == w ? 0 : hand_over(c, s - 1));
            if ((a.op == PMLP_OP_I || a.op == PMLP_OP_B) && s + 1 < stages)
                there = b[s + 1][k] +
                        (pmlp_schedule_stage_worker(schedule, s + 1) == w ? 0 : hand_over(c, s));
            if (a.op == PMLP_OP_U && pmlp_schedule_is_synchronous(schedule))
                there = left ? INFINITY : last_w;
            const double begin = fmax(there, clock[w]);
            if (begin < first) first = begin, who = w;
        }
        if (who < 0) break;
        const pmlp_action a = pmlp_schedule_actions(schedule, who, NULL)[next[who]];
        const double end = first + cost_of(c, a);
        slow.begin[who][next[who]] = first, slow.end[who][next[who]++] = clock[who] = end;
        busy[who] += end - first;
        if (a.op == PMLP_OP_F) f[a.stage][a.microbatch] = end;
        if (a.op == PMLP_OP_I || a.op == PMLP_OP_B) b[a.stage][a.microbatch] = end;
        if (a.op == PMLP_OP_W || a.op == PMLP_OP_B) left--, last_w = fmax(last_w, end);
    }
    slow.makespan = slow.busiest = slow.work = 0;
    for (int w = 0; w < p; w++) {
        slow.makespan = fmax(slow.makespan, clock[w]);
        slow.busiest = fmax(slow.busiest, busy[w]), slow.work += busy[w];
    }
    slow.peak = peak_of(schedule, c->held);
}

/* Costs by lot: even, or over six orders of magnitude; now and then none at all. */
typedef struct lot {
    double f[MAX_S], i[MAX_S], w[MAX_S], u[MAX_S], bytes[MAX_S], held[MAX_S];
    pmlp_costs costs;
} lot;

static double draw(uint64_t *rng, int how) {
    const double x = test_uniform(rng, 0, 1);
    return how == 0 ? 0.5 + x : how == 1 ? pow(10, 6 * x - 3) : (int)(4 * x);
}

static void draw_costs(uint64_t *rng, lot *x) {
    const int how = (int)below(rng, 3);
    for (int s = 0; s < MAX_S; s++) {
        x->f[s] = draw(rng, how), x->i[s] = draw(rng, how), x->w[s] = draw(rng, how);
        x->u[s] = draw(rng, how), x->bytes[s] = draw(rng, 0), x->held[s] = draw(rng, how);
    }
    memset(&x->costs, 0, sizeof x->costs);
    if (below(rng, 8)) x->costs.f = x->f;
    if (below(rng, 8)) x->costs.i = x->i;
    if (below(rng, 8)) x->costs.w = x->w;
    if (below(rng, 2)) x->costs.u = x->u;
    if (below(rng, 4)) x->costs.held = x->held;
    if (below(rng, 2)) x->costs.latency = draw(rng, how);
    if (below(rng, 2)) x->costs.per_byte = draw(rng, 0) / 2;
    if (below(rng, 4)) x->costs.message_bytes = x->bytes;
}

static void check_times(const char *what, const pmlp_schedule *schedule, const pmlp_costs *costs) {
    static double begin[MAX_P * MAX_LIST];
    const int p = pmlp_schedule_workers(schedule);
    pmlp_simulation sim = {0};
    pmlp_error error = {0};
    CHECK(pmlp_schedule_simulate(schedule, costs, begin, &sim, &error) == PMLP_OK, "%s: %s", what,
          error.text);
    simulate_slowly(schedule, costs);
    for (int w = 0, at = 0; w < p; w++) {
        int n;
        pmlp_schedule_actions(schedule, w, &n);
        for (int i = 0; i < n; i++, at++)
            if (!CHECK(near(begin[at], slow.begin[w][i]), "%s: worker %d, %d begins at %g, not %g",
                       what, w, i, begin[at], slow.begin[w][i]))
                return;
    }
    const double bubble = slow.makespan > 0 ? 1 - slow.work / (p * slow.makespan) : 0;
    CHECK(near(sim.makespan, slow.makespan) && near(sim.busiest, slow.busiest) &&
              fabs(sim.bubble - bubble) < 1e-9 && near(sim.peak, slow.peak),
          "%s: makespan %g, busiest %g, bubble %g, peak %g, slowly %g, %g, %g, %g", what,
          sim.makespan, sim.busiest, sim.bubble, sim.peak, slow.makespan, slow.busiest, bubble,
          slow.peak);
}

/* The timeline of what `slow` holds: spans, sums, and who kept whom waiting, counted by hand. */
static void check_timeline(const char *what, const pmlp_schedule *schedule,
                           const pmlp_costs *costs) {
    const int p = pmlp_schedule_workers(schedule);
    pmlp_timeline *timeline = NULL;
    pmlp_error error = {0};
    int n = 7;
    CHECK(pmlp_schedule_timeline(schedule, costs, &timeline, &error) == PMLP_OK, "%s: %s", what,
          error.text);
    if (!timeline) return;
    CHECK(pmlp_timeline_workers(timeline) == p &&
              near(pmlp_timeline_makespan(timeline), slow.makespan) &&
              !pmlp_timeline_spans(timeline, p, &n) && n == 0 &&
              !pmlp_timeline_spans(timeline, -1, NULL),
          "%s: %d workers, makespan %g", what, pmlp_timeline_workers(timeline),
          pmlp_timeline_makespan(timeline));
    double most = 0;
    for (int w = 0; w < p; w++) {
        int actions, count, at = 0, final = 0;
        double by_op[PMLP_OP_COUNT] = {0}, from = 0, fill = -1, waiting = 0, transfer = 0;
        double waited[MAX_P] = {0}, drain = slow.makespan;
        const pmlp_action *a = pmlp_schedule_actions(schedule, w, &actions);
        const pmlp_span *span = pmlp_timeline_spans(timeline, w, &count);
        pmlp_worker_time time;
        for (int i = 0; i < actions; i++)
            if (!is_handoff(a[i].op) && a[i].op != PMLP_OP_U) final = i + 1;
        for (int i = 0; i < actions; i++) {
            const double begin = slow.begin[w][i], end = slow.end[w][i];
            if (is_handoff(a[i].op)) continue;
            by_op[a[i].op] += end - begin;
            CHECK(at < count && span[at].op == a[i].op && span[at].stage == a[i].stage &&
                      span[at].microbatch == a[i].microbatch && span[at].count == 1 &&
                      near(span[at].begin, begin) && near(span[at].end, end),
                  "%s: worker %d, span %d of %d", what, w, at, count);
            at++;
            if (i < final)
                drain = slow.makespan - end;
            else
                drain -= end - begin;
            if (fill < 0)
                fill = begin;
            else if (i < final &&
                     begin > from) { /* a gap: was what it needs done, or on its way? */
                const int s = a[i].stage + (a[i].op == PMLP_OP_F ? -1 : 1);
                const int other = pmlp_schedule_stage_worker(schedule, s);
                double ready = from;
                int others;
                const pmlp_action *b = pmlp_schedule_actions(schedule, other, &others);
                for (int j = 0; j < others; j++)
                    if (b[j].stage == s && b[j].microbatch == a[i].microbatch &&
                        (a[i].op == PMLP_OP_F ? b[j].op == PMLP_OP_F
                                              : b[j].op == PMLP_OP_I || b[j].op == PMLP_OP_B))
                        ready = slow.end[other][j];
                const double wait = fmax(0, fmin(ready, begin) - from);
                waiting += wait, waited[other] += wait, transfer += begin - from - wait;
            }
            from = end;
        }
        CHECK(at == count, "%s: worker %d has %d spans, not %d", what, w, count, at);
        CHECK(pmlp_timeline_worker(timeline, w, &time) == PMLP_OK, "%s: worker %d", what, w);
        const double busy = by_op[PMLP_OP_F] + by_op[PMLP_OP_I] + by_op[PMLP_OP_W] +
                            by_op[PMLP_OP_B] + by_op[PMLP_OP_U];
        const double unit = 1e-9 * (1 + slow.makespan);
        CHECK(fabs(time.busy - busy) < unit && fabs(time.f - by_op[PMLP_OP_F]) < unit &&
                  fabs(time.i - by_op[PMLP_OP_I]) < unit &&
                  fabs(time.w - by_op[PMLP_OP_W]) < unit &&
                  fabs(time.b - by_op[PMLP_OP_B]) < unit && fabs(time.u - by_op[PMLP_OP_U]) < unit,
              "%s: worker %d busy %g, not %g", what, w, time.busy, busy);
        CHECK(fabs(time.fill - fill) < unit && fabs(time.waiting - waiting) < unit &&
                  fabs(time.transfer - transfer) < unit && fabs(time.drain - drain) < unit,
              "%s: worker %d fill %g, waiting %g, transfer %g, drain %g; by hand %g, %g, %g, %g",
              what, w, time.fill, time.waiting, time.transfer, time.drain, fill, waiting, transfer,
              drain);
        CHECK(fabs(time.busy + time.fill + time.waiting + time.transfer + time.drain -
                   slow.makespan) < unit,
              "%s: worker %d: the parts are not the whole", what, w);
        double longest_wait = 0;
        for (int o = 0; o < p; o++) longest_wait = fmax(longest_wait, waited[o]);
        CHECK(longest_wait > unit ? time.waits_for >= 0 && time.waits_for < p &&
                                        fabs(waited[time.waits_for] - longest_wait) < unit
                                  : time.waits_for < 0 || waited[time.waits_for] < unit,
              "%s: worker %d waits for %d", what, w, time.waits_for);
        most = fmax(most, time.peak);
    }
    CHECK(near(most, slow.peak), "%s: peak %g, not %g", what, most, slow.peak);
    pmlp_worker_time time;
    CHECK(pmlp_timeline_worker(timeline, p, &time) == PMLP_ERROR_ARGUMENT &&
              pmlp_timeline_worker(timeline, -1, &time) == PMLP_ERROR_ARGUMENT &&
              pmlp_timeline_worker(timeline, 0, NULL) == PMLP_ERROR_ARGUMENT &&
              pmlp_timeline_worker(NULL, 0, &time) == PMLP_ERROR_ARGUMENT,
          "%s: wrong arguments", what);
    pmlp_timeline_destroy(timeline);
}

static shape draw_shape(uint64_t *rng, bool only_synchronous) {
    shape c;
    do {
        c.kind = (pmlp_schedule_kind)(1 + below(rng, PMLP_SCHEDULE_KIND_COUNT - 1));
        c.p = 1 + (int)below(rng, MAX_P), c.m = 1 + (int)below(rng, 20);
        c.v = is_v(c.kind) ? 2 : is_looped(c.kind) ? 1 + (int)below(rng, MAX_V) : 1;
        c.batches = is_async(c.kind) ? 1 + (int)below(rng, 3) : 1;
        pmlp_schedule *schedule = c.kind == PMLP_SCHEDULE_AUTO ? NULL : build_if(c);
        if (!schedule) c.p = 0;
        pmlp_schedule_destroy(schedule);
    } while (c.p == 0 || (only_synchronous && is_async(c.kind)));
    return c;
}

TEST(times) {
    const int tries = test_quick() ? 200 : 4000;
    uint64_t rng = 3;
    long ordered = 0;
    for (int t = 0; t < tries; t++) {
        static lot x;
        const shape c = draw_shape(&rng, false);
        char what[120];
        pmlp_schedule *schedule = build(c), *low = NULL;
        pmlp_error error = {0};
        draw_costs(&rng, &x);
        snprintf(what, sizeof what, "%s, lot %d", name_of(c), t);
        check_times(what, schedule, &x.costs), check_timeline(what, schedule, &x.costs);
        CHECK(pmlp_schedule_lower(schedule, &low, &error) == PMLP_OK, "%s", error.text);
        strcat(what, ", lowered");
        check_times(what, low, &x.costs), check_timeline(what, low, &x.costs);
        pmlp_schedule_destroy(low);
        /* one order of all hand-offs, by these costs: everybody meets */
        CHECK(pmlp_schedule_lower_in_order(schedule, &x.costs, &low, &error) == PMLP_OK, "%s",
              error.text);
        strcat(what, " in order");
        write_program(low, &prog);
        const pmlp_result want = travel(&prog, PMLP_TRANSPORT_RENDEZVOUS, 0);
        CHECK(want == PMLP_OK, "%s: by hand %s", what, pmlp_result_name(want));
        CHECK(pmlp_schedule_replay(low, PMLP_TRANSPORT_RENDEZVOUS, 0, NULL, &error) == want &&
                  pmlp_schedule_check(low, 1, NULL, &error) == PMLP_OK,
              "%s: %s", what, error.text);
        if (want == PMLP_OK) check_times(what, low, &x.costs), ordered++;
        pmlp_schedule_destroy(low), pmlp_schedule_destroy(schedule);
    }
    SAY("%s lists with random costs, latencies and bytes: every beginning, makespan, peak, span and "
        "share of time as counted slowly; %s lowered in one order meet without a deadlock",
        test_count(3 * tries), test_count(ordered));
}

/* Actions that cost nearly nothing beside the others: the clock does not move, the order must. */
TEST(no_time_at_all) {
    uint64_t rng = 17;
    long n = 0;
    for (int t = 0; t < (test_quick() ? 60 : 600); t++) {
        static lot x;
        const shape c = draw_shape(&rng, true);
        pmlp_schedule *schedule = build(c), *low = NULL;
        pmlp_error error = {0};
        draw_costs(&rng, &x);
        for (int s = 0; s < MAX_S; s++) {
            if (below(&rng, 3) == 0) x.f[s] = below(&rng, 2) ? 0 : 1e-20;
            if (below(&rng, 3) == 0) x.i[s] = below(&rng, 2) ? 0 : 1e-20;
        }
        x.costs.f = x.f, x.costs.i = x.i;
        CHECK(pmlp_schedule_lower_in_order(schedule, &x.costs, &low, &error) == PMLP_OK, "%s: %s",
              name_of(c), error.text);
        if (low) {
            CHECK(pmlp_schedule_replay(low, PMLP_TRANSPORT_RENDEZVOUS, 0, NULL, &error) == PMLP_OK,
                  "%s: %s", name_of(c), error.text);
            n++;
        }
        pmlp_schedule_destroy(low), pmlp_schedule_destroy(schedule);
    }
    SAY("%s lists lowered in one order with costs of 0 and 1e-20 beside 1: nobody sends too early",
        test_count(n));
}

/* Where time went, by hand. */
TEST(reasons) {
    static const double f[] = {1, 3}, one[] = {1, 1}, u[] = {0.5, 0.25}, bytes[] = {4};
    static const double held[] = {3, 5};
    const pmlp_costs costs = {f, one, one, u, 0.5, 0.125, bytes, held, 0, NULL};
    static const pmlp_worker_time want[] = {
        /* F0 0-1, F1 1-2; B0 of stage 1 is I 5-6 W 6-7, so that it is there at 8: B0 8-10. Worker
           1's F1 7-10, B1 10-12, there at 13: B1 13-15. Updates from 15 on. */
        {6.5, 2, 0, 0, 4, 0.5, 0, 5 + 2, 1 + 1, 0, 1, 6},
        {10.25, 6, 0, 0, 4, 0.25, 2, 0, 0, 3.25, -1, 5}};
    static const char *form = "0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1\n";
    pmlp_schedule *schedule = NULL;
    pmlp_timeline *timeline = NULL;
    pmlp_error error = {0};
    CHECK(pmlp_schedule_parse(form, strlen(form), NULL, &schedule, &error) == PMLP_OK, "%s",
          error.text);
    CHECK(pmlp_schedule_timeline(schedule, &costs, &timeline, &error) == PMLP_OK, "%s", error.text);
    CHECK(near(pmlp_timeline_makespan(timeline), 15.5), "makespan %g",
          pmlp_timeline_makespan(timeline));
    for (int w = 0; w < 2; w++) {
        pmlp_worker_time t;
        const pmlp_worker_time *x = &want[w];
        CHECK(pmlp_timeline_worker(timeline, w, &t) == PMLP_OK, "worker %d", w);
        CHECK(near(t.busy, x->busy) && near(t.f, x->f) && near(t.b, x->b) && near(t.u, x->u) &&
                  t.i == 0 && t.w == 0,
              "worker %d: busy %g f %g b %g u %g", w, t.busy, t.f, t.b, t.u);
        CHECK(near(t.fill, x->fill) && near(t.waiting, x->waiting) &&
                  near(t.transfer, x->transfer) && near(t.drain, x->drain),
              "worker %d: fill %g waiting %g transfer %g drain %g", w, t.fill, t.waiting,
              t.transfer, t.drain);
        CHECK(t.waits_for == x->waits_for && near(t.peak, x->peak),
              "worker %d: waits for %d, peak %g", w, t.waits_for, t.peak);
    }
    pmlp_timeline_destroy(timeline), pmlp_schedule_destroy(schedule);
    pmlp_timeline_destroy(NULL);
    CHECK(pmlp_timeline_workers(NULL) == 0 && pmlp_timeline_makespan(NULL) == 0, "no timeline");
    SAY("shares of time of two workers with hand-offs of 0.5 + 4 x 0.125, as counted by hand");
}

/* Without a flush, updates wait for nobody: the makespan of so many batches is one fill. */
TEST(without_flush) {
    long n = 0;
    for (int p = 1; p <= MAX_P; p++)
        for (int m = p; m <= 10; m++)
            for (int batches = 1; batches <= 3; batches++, n++) {
                static const double u[MAX_P] = {0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25};
                pmlp_costs costs = {0};
                pmlp_simulation sim = {0};
                const shape c = {PMLP_SCHEDULE_PIPEDREAM_2BW, p, 1, m, batches};
                const shape d = {PMLP_SCHEDULE_PIPEDREAM, p, 1, m, batches};
                pmlp_schedule *schedule = build(c);
                pmlp_schedule_simulate(schedule, NULL, NULL, &sim, NULL);
                CHECK(near(sim.makespan, 3 * m * batches + 3 * (p - 1)), "%s: %g", name_of(c),
                      sim.makespan);
                pmlp_schedule_destroy(schedule);
                schedule = build(d), costs.u = u;
                pmlp_schedule_simulate(schedule, &costs, NULL, &sim, NULL);
                CHECK(near(sim.busiest, 3.25 * m * batches) &&
                          sim.makespan < 3.25 * m * batches + 3.25 * p,
                      "%s: %g", name_of(d), sim.makespan);
                pmlp_schedule_destroy(schedule);
            }
    SAY("%s runs of several batches without a flush: fill and drain once", test_count(n));
}

/* --- the search ------------------------------------------------------------------------------- */

/* What one micro-batch in flight needs at most on some worker; at the least of the two shapes. */
static double least_memory(int p, int v, const double *held) {
    double best = INFINITY;
    for (int shape_ = 0; shape_ < (v == 2 ? 2 : 1); shape_++) {
        double most = 0;
        for (int w = 0; w < p; w++) {
            double all = 0;
            for (int s = 0; s < p * v; s++)
                if (w == (shape_ && s >= p ? 2 * p - 1 - s : s % p)) all += held ? held[s] : 1;
            most = fmax(most, all);
        }
        best = fmin(best, most);
    }
    return best;
}

TEST(search) {
    const int tries = test_quick() ? 30 : 1500;
    uint64_t rng = 23;
    long shorter = 0, capped = 0, refused = 0;
    double gain = 1;
    for (int t = 0; t < tries; t++) {
        static lot x;
        shape c = {PMLP_SCHEDULE_AUTO, 1 + (int)below(&rng, 6), 1 + (int)below(&rng, 3),
                   1 + (int)below(&rng, 12), 1};
        pmlp_schedule *schedule;
        pmlp_simulation sim = {0}, other = {0};
        pmlp_error error = {0};
        char what[96];
        double cap = 0, best = INFINITY;
        draw_costs(&rng, &x);
        snprintf(what, sizeof what, "%s, lot %d", name_of(c), t);
        const double need = least_memory(c.p, c.v, x.costs.held);
        switch (below(&rng, 3)) {
        case 0: cap = need; break;
        case 1: cap = need * test_uniform(&rng, 1, c.m + 1); break;
        default: break;
        }
        if (cap > 0) {
            capped++;
            CHECK(create(c, &x.costs, cap * (1 - 1e-6), &schedule, &error) ==
                      (cap <= need ? PMLP_ERROR_ARGUMENT : PMLP_OK),
                  "%s, cap below %g: %s", what, need, error.text);
            if (cap <= need)
                refused++, CHECK(!strncmp(error.text, "memory:", 7), "%s: %s", what, error.text);
            pmlp_schedule_destroy(schedule);
        }
        if (!CHECK(create(c, &x.costs, cap, &schedule, &error) == PMLP_OK && schedule,
                   "%s, cap %.17g, needed %.17g: %s", what, cap, need, error.text))
            continue;
        CHECK(pmlp_schedule_check(schedule, 0, NULL, &error) == PMLP_OK, "%s: %s", what,
              error.text);
        CHECK(pmlp_schedule_workers(schedule) == c.p &&
                  pmlp_schedule_stages(schedule) == c.p * c.v &&
                  pmlp_schedule_microbatches(schedule) == c.m,
              "%s: sizes", what);
        CHECK(pmlp_schedule_simulate(schedule, &x.costs, NULL, &sim, &error) == PMLP_OK, "%s",
              error.text);
        CHECK(cap == 0 || (sim.peak <= cap && peak_of(schedule, x.costs.held) <= cap * (1 + 1e-12)),
              "%s: holds %.17g of %.17g", what, sim.peak, cap);
        for (int k = 1; k < PMLP_SCHEDULE_AUTO; k++) {
            shape b = c;
            b.kind = (pmlp_schedule_kind)k;
            pmlp_schedule *built = build_if(b);
            if (built && pmlp_schedule_simulate(built, &x.costs, NULL, &other, NULL) == PMLP_OK &&
                (cap == 0 || other.peak <= cap)) {
                CHECK(sim.makespan <= other.makespan * (1 + 1e-12), "%s: %.17g, but %s %.17g", what,
                      sim.makespan, pmlp_schedule_kind_name(b.kind), other.makespan);
                best = fmin(best, other.makespan);
            }
            pmlp_schedule_destroy(built);
        }
        shorter += sim.makespan < best * (1 - 1e-9);
        if (best < INFINITY && sim.makespan > 0) gain = fmax(gain, best / sim.makespan);
        pmlp_schedule_destroy(schedule);
    }
    SAY("%s searches: never longer than a built-in kind that fits, %s times shorter (up to %.2fx); "
        "%s caps kept, %s too small ones refused",
        test_count(tries), test_count(shorter), gain, test_count(capped), test_count(refused));
}

/* All lists of one worker with one stage: interleavings of F, I, W, each ascending, F before I
   before W. */
enum { MAX_WAYS = 512, TINY = 12 };
static signed char way[MAX_WAYS][TINY]; /* 0: F, 1: I, 2: W */
static int way_peak[MAX_WAYS], ways;

static void list_ways(int m, signed char *list, int n, const int *done, int peak) {
    if (n == 3 * m) {
        memcpy(way[ways], list, (size_t)n), way_peak[ways++] = peak;
        return;
    }
    for (int o = 0; o < 3; o++) {
        int next[3] = {done[0], done[1], done[2]};
        if (done[o] == m || (o > 0 && done[o] == done[o - 1])) continue;
        next[o]++, list[n] = (signed char)o;
        list_ways(m, list, n + 1, next, next[0] - next[2] > peak ? next[0] - next[2] : peak);
    }
}

/* The makespan of p lists, each as soon as it can; INFINITY if they wait in a circle, or as soon as
   it is no shorter than `best`. */
static double run_ways(int p, int m, const int *which, const lot *x, double best) {
    double f[3][4], b[3][4], clock[3] = {0};
    int at[3] = {0}, done[3][3] = {{0}};
    for (bool moved = true; moved;) {
        moved = false;
        for (int w = 0; w < p; w++)
            for (; at[w] < 3 * m; at[w]++) {
                const int o = way[which[w]][at[w]], k = done[w][o];
                double there = 0;
                if (o == 0 && w > 0) {
                    if (done[w - 1][0] <= k) break;
                    there = f[w - 1][k] + hand_over(&x->costs, w - 1);
                }
                if (o == 1 && w + 1 < p) {
                    if (done[w + 1][1] <= k) break;
                    there = b[w + 1][k] + hand_over(&x->costs, w);
                }
                const pmlp_action a = {o == 0 ? PMLP_OP_F : o == 1 ? PMLP_OP_I : PMLP_OP_W, w, k};
                clock[w] = fmax(clock[w], there) + cost_of(&x->costs, a);
                if (clock[w] >= best) return INFINITY;
                if (o == 0) f[w][k] = clock[w];
                if (o == 1) b[w][k] = clock[w];
                done[w][o]++, moved = true;
            }
    }
    double makespan = 0;
    for (int w = 0; w < p; w++) {
        if (at[w] < 3 * m) return INFINITY;
        makespan = fmax(makespan, clock[w]);
    }
    return makespan;
}

TEST(optimum) {
    static const struct {
        int p, m, tries;
    } sizes[] = {{2, 2, 1000}, {2, 3, 1000}, {3, 2, 1000}, {2, 4, 12}, {3, 3, 60}};
    const double allowed = 1.26;
    uint64_t rng = 31;
    long tried = 0, optimal = 0;
    double worst = 1, sum = 0;
    for (int n = 0; n < (test_quick() ? 3 : 5); n++) {
        const int p = sizes[n].p, m = sizes[n].m;
        signed char list[TINY];
        const int none[3] = {0};
        ways = 0, list_ways(m, list, 0, none, 0);
        CHECK(ways == (m == 2 ? 5 : m == 3 ? 42 : 462), "%d lists of %d", ways, m);
        for (int t = 0; t < (test_quick() ? 20 : sizes[n].tries); t++) {
            static lot x;
            const shape c = {PMLP_SCHEDULE_AUTO, p, 1, m, 1};
            const int cap = below(&rng, 2) ? 1 + (int)below(&rng, (unsigned)m) : m;
            pmlp_schedule *schedule;
            pmlp_simulation sim = {0};
            pmlp_error error = {0};
            int which[3] = {0};
            double best = INFINITY;
            draw_costs(&rng, &x);
            x.costs.held = NULL, x.costs.u = NULL;
            if (!CHECK(create(c, &x.costs, cap, &schedule, &error) == PMLP_OK, "%s", error.text))
                continue;
            pmlp_schedule_simulate(schedule, &x.costs, NULL, &sim, NULL);
            pmlp_schedule_destroy(schedule);
            for (;;) {
                bool fits = true;
                for (int w = 0; w < p; w++) fits &= way_peak[which[w]] <= cap;
                if (fits) best = fmin(best, run_ways(p, m, which, &x, best));
                int w = 0;
                while (w < p && ++which[w] == ways) which[w++] = 0;
                if (w == p) break;
            }
            CHECK(sim.makespan >= best * (1 - 1e-9), "p %d m %d: %g, but no list is below %g", p, m,
                  sim.makespan, best);
            const double ratio = best > 0 ? sim.makespan / best : 1;
            CHECK(ratio <= allowed, "p %d m %d, lot %d, cap %d: %g, optimum %g", p, m, t, cap,
                  sim.makespan, best);
            tried++, optimal += ratio < 1 + 1e-9, sum += ratio, worst = fmax(worst, ratio);
        }
    }
    CHECK((double)optimal >= (test_quick() ? 0.95 : 0.98) * (double)tried &&
              sum <= (test_quick() ? 1.002 : 1.001) * (double)tried,
          "%ld of %ld optimal, %.4f of the optimum on average", optimal, tried,
          sum / (double)tried);
    SAY("the search against all lists there are (p 2 and 3, m 2 to 4): optimal in %s of %s cases, "
        "%.4f of the optimum on average, %.3f at worst",
        test_count(optimal), test_count(tried), sum / (double)tried, worst);
}

/* --- scale ------------------------------------------------------------------------------------ */

typedef struct measured {
    double build, check, simulate; /* seconds */
    int ok;
} measured;

static bool is_watched(void) { /* sanitizers and valgrind have a time and a memory of their own */
    const char *preload = getenv("LD_PRELOAD");
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    return true;
#endif
#ifdef __has_feature
#  if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
    return true;
#  endif
#endif
    return preload && strstr(preload, "vgpreload");
}

/* Of this process: what else runs on the machine does not count. */
static double cpu_seconds(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           1e-6 * (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

static measured measure(int p, int m) {
    measured out = {0, 0, 0, 0};
    const shape c = {PMLP_SCHEDULE_1F1B, p, 1, m, 1};
    pmlp_schedule *schedule = NULL;
    pmlp_check report = {0};
    pmlp_simulation sim = {0};
    double then = cpu_seconds(), now;
    const bool built = create(c, NULL, 0, &schedule, NULL) == PMLP_OK;
    now = cpu_seconds(), out.build = now - then, then = now;
    const bool checked = built && pmlp_schedule_check(schedule, 0, &report, NULL) == PMLP_OK;
    now = cpu_seconds(), out.check = now - then, then = now;
    out.ok = checked && pmlp_schedule_simulate(schedule, NULL, NULL, &sim, NULL) == PMLP_OK &&
             report.peak == (m < p ? m : p) && report.slots == 1 &&
             sim.makespan == 3.0 * (m + p - 1);
    out.simulate = cpu_seconds() - then;
    pmlp_schedule_destroy(schedule);
    return out;
}

/* In a child of its own: what the other tests hold does not count. */
static bool measure_apart(int p, int m, measured *out, double *megabytes) {
    int ends[2], status = -1;
    struct rusage usage;
    if (!CHECK(pipe(ends) == 0, "no pipe")) return false;
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        const measured x = measure(p, m);
        _exit(write(ends[1], &x, sizeof x) != (ssize_t)sizeof x);
    }
    close(ends[1]);
    const bool got = child > 0 && read(ends[0], out, sizeof *out) == (ssize_t)sizeof *out;
    close(ends[0]);
    if (child > 0) waitpid(child, &status, 0);
    getrusage(RUSAGE_CHILDREN, &usage); /* the largest child so far: they come in ascending order */
    *megabytes = (double)usage.ru_maxrss / 1024;
    return CHECK(got && status == 0 && out->ok, "%d workers, %d micro-batches: status %d, %s", p, m,
                 status, got ? "a wrong result" : "no result");
}

TEST(scale) {
    const int p = test_quick() ? 128 : 1024, m = 4 * p;
    const double share = (double)p / 1024 * ((double)p / 1024);
    measured half = {0, 0, 0, 0}, whole = {0, 0, 0, 0};
    double small = 0, large = 0;
    if (!measure_apart(p / 2, m / 2, &half, &small) || !measure_apart(p, m, &whole, &large)) return;
    const double seconds = whole.build + whole.check + whole.simulate;
    const double before = half.build + half.check + half.simulate;
    if (!is_watched()) {
        CHECK(seconds <= fmax(10 * share, 0.5), "%.1f s", seconds);
        CHECK(large <= 1024 * share + 32, "%.0f MB", large);
        /* four times the actions; less than quadratic in them */
        CHECK(test_quick() || seconds <= 12 * before, "%.2f s, then %.2f s", before, seconds);
    }
    SAY("1F1B of %s workers x %s micro-batches: built %.2f s, checked %.2f s, simulated %.2f s, %.0f MB; "
        "%.1f times as long as with half of both",
        test_count(p), test_count(m), whole.build, whole.check, whole.simulate, large,
        seconds / before);
}

int main(void) {
    test_begin("laboratory");
    RUN(scale);
    RUN(transports);
    RUN(circles_by_hand);
    RUN(times);
    RUN(no_time_at_all);
    RUN(reasons);
    RUN(without_flush);
    RUN(search);
    RUN(optimum);
    return test_end();
}
