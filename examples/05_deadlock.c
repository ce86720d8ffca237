/* 05: deadlock. Threads run the lists of a schedule with the hand-offs where one would write them,
   RECV before what needs it and SEND behind what it comes from, over blocking channels made here of
   a mutex and a condition variable. Without a buffer 1F1B stops: each worker wants to hand
   something to the other. With room for one message (slots) it does not, which is why such programs
   work until their messages outgrow the buffers. Beginning neighbouring hand-offs together
   (grouped) cures 1F1B, not ZB-V; one order of hand-offs that all workers follow cures everything.
   Each line is run 20 times, and pmlp_schedule_replay(), which runs nothing, says where the threads
   will stand. The exit status is 0 if they do, and the cures cure.

       cc -O3 -std=c99 05_deadlock.c -o 05_deadlock -pthread -lm                                  */
#define PIPEMLP_IMPLEMENTATION
#include "../pipemlp.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_WORKERS = 4, MOST_STAGES = 8, MICROBATCHES = 8, RUNS = 20 };

/* What the threads share. A hand-off is over when both ends have come to its channel equally often;
   for the sender also while the receiver is at most `slots` behind. */
static struct {
    const pmlp_schedule *lists;
    bool grouped;
    int slots, gradients_left, changes;
    int come[MOST_STAGES][2][2]; /* [stage below][gradients][receiver]: how often */
    int running, waiting;        /* waiting: have looked since the last change, and must wait */
    int done[MOST_WORKERS];      /* actions of its list that each worker has finished */
} now;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t change = PTHREAD_COND_INITIALIZER;

static bool is_handoff(pmlp_action a) { return a.op >= PMLP_OP_SEND_F; }

/* How often the worker that does a has come to a's channel, or the one at its other end. */
static int *come(pmlp_action a, bool other) {
    const bool receives = a.op == PMLP_OP_RECV_F || a.op == PMLP_OP_RECV_B;
    const bool gradients = a.op == PMLP_OP_SEND_B || a.op == PMLP_OP_RECV_B;
    return &now.come[a.stage - (receives != gradients)][gradients][receives != other];
}

static bool is_over(pmlp_action a) {
    const bool sends = a.op == PMLP_OP_SEND_F || a.op == PMLP_OP_SEND_B;
    if (a.op == PMLP_OP_U) return now.gradients_left == 0; /* of all stages */
    return !is_handoff(a) || *come(a, false) <= *come(a, true) + (sends ? now.slots : 0);
}

static void changed(void) {
    now.changes++;
    now.waiting = 0;
    pthread_cond_broadcast(&change);
}

/* Blocks until the action is over; false if that will never be, because everybody waits. */
static bool await(pmlp_action a) {
    int looked = -1; /* at which change */
    while (!is_over(a)) {
        if (looked != now.changes) now.waiting++;
        looked = now.changes;
        if (now.waiting == now.running) return pthread_cond_broadcast(&change), false;
        pthread_cond_wait(&change, &mutex);
    }
    return true;
}

static void *work(void *place) {
    int *done = place, count, end;
    const pmlp_action *list = pmlp_schedule_actions(now.lists, (int)(done - now.done), &count);
    bool going = true;

    pthread_mutex_lock(&mutex);
    while (going && *done < count) {
        for (end = *done + 1; now.grouped && end < count; end++) /* what begins together */
            if (!is_handoff(list[end - 1]) || !is_handoff(list[end])) break;
        for (int i = *done; i < end; i++)
            if (is_handoff(list[i])) ++*come(list[i], false);
        now.gradients_left -= list[*done].op == PMLP_OP_W;
        changed();
        while (*done < end && (going = await(list[*done]))) ++*done;
        pthread_mutex_unlock(&mutex);
        sched_yield(); /* chance may decide who is next */
        pthread_mutex_lock(&mutex);
    }
    if (going) now.running--, changed();
    pthread_mutex_unlock(&mutex);
    return NULL;
}

/* Runs the lists once, each on a thread. */
static void run(const pmlp_schedule *lists, pmlp_transport transport) {
    pthread_t threads[MOST_WORKERS];
    memset(&now, 0, sizeof now);
    now.lists = lists;
    now.grouped = transport == PMLP_TRANSPORT_GROUPED;
    now.slots = transport == PMLP_TRANSPORT_SLOTS;
    now.running = pmlp_schedule_workers(lists);
    now.gradients_left = pmlp_schedule_stages(lists) * MICROBATCHES;
    for (int r = 0, workers = now.running; r < workers; r++)
        if (pthread_create(&threads[r], NULL, work, &now.done[r]) != 0)
            fprintf(stderr, "05_deadlock: a thread cannot be started\n"), exit(1);
    for (int r = 0; r < pmlp_schedule_workers(lists); r++) pthread_join(threads[r], NULL);
}

/* Replays the lists, runs them RUNS times, prints where the threads stood. */
static bool watch(const pmlp_schedule *lists, pmlp_transport transport, bool stops) {
    int done[MOST_WORKERS] = {0}, alike = 0, count;
    pmlp_error error = {0};

    pmlp_schedule_replay(lists, transport, 1, done, &error);
    for (int n = 0; n < RUNS; n++) {
        run(lists, transport);
        alike += memcmp(done, now.done, sizeof done) == 0;
    }
    printf("%s, as replayed in %d of %d runs\n", now.running > 0 ? "STOPS" : "goes to the end",
           alike, RUNS);
    for (int r = 0; r < pmlp_schedule_workers(lists) && now.running > 0; r++) {
        const pmlp_action a = pmlp_schedule_actions(lists, r, &count)[now.done[r]];
        printf("    worker %d stands at %d%s%d, after %d of %d actions\n", r, a.stage,
               pmlp_op_name(a.op), a.microbatch, now.done[r], count);
    }
    if (error.result != PMLP_OK) printf("    %s\n", error.text);
    return alike == RUNS && stops == (now.running > 0) && stops == (error.result != PMLP_OK);
}

int main(void) {
    static const struct {
        pmlp_schedule_kind kind;
        int workers;
        pmlp_transport transport;
        bool in_order, stops;
    } cases[] = {{PMLP_SCHEDULE_1F1B, 2, PMLP_TRANSPORT_RENDEZVOUS, false, true},
                 {PMLP_SCHEDULE_1F1B, 2, PMLP_TRANSPORT_SLOTS, false, false},
                 {PMLP_SCHEDULE_1F1B, 2, PMLP_TRANSPORT_GROUPED, false, false},
                 {PMLP_SCHEDULE_ZB_V, 2, PMLP_TRANSPORT_GROUPED, false, true},
                 {PMLP_SCHEDULE_INTERLEAVED, 4, PMLP_TRANSPORT_RENDEZVOUS, false, true},
                 {PMLP_SCHEDULE_1F1B, 2, PMLP_TRANSPORT_RENDEZVOUS, true, false},
                 {PMLP_SCHEDULE_ZB_V, 2, PMLP_TRANSPORT_RENDEZVOUS, true, false},
                 {PMLP_SCHEDULE_INTERLEAVED, 4, PMLP_TRANSPORT_RENDEZVOUS, true, false}};
    bool good = true;

    for (size_t n = 0; n < sizeof cases / sizeof cases[0]; n++) {
        const pmlp_schedule_desc desc = {
            .kind = cases[n].kind, .workers = cases[n].workers, .microbatches = MICROBATCHES};
        pmlp_schedule *schedule = NULL, *lists = NULL;
        pmlp_error error = {0};
        if (pmlp_schedule_create(&desc, &schedule, &error) == PMLP_OK) {
            if (cases[n].in_order) pmlp_schedule_lower_in_order(schedule, NULL, &lists, &error);
            else pmlp_schedule_lower(schedule, &lists, &error);
        }
        pmlp_schedule_destroy(schedule);
        if (lists == NULL) return fprintf(stderr, "05_deadlock: %s\n", error.text), 1;
        printf("%s, %d workers, %s%s: ", pmlp_schedule_kind_name(desc.kind), desc.workers,
               pmlp_transport_name(cases[n].transport), cases[n].in_order ? ", in order" : "");
        good = watch(lists, cases[n].transport, cases[n].stops) && good;
        pmlp_schedule_destroy(lists);
    }
    printf(good ? "all as expected\n" : "NOT AS EXPECTED\n");
    return good ? 0 : 1;
}
