/* 08: over processes and machines. Each rank that mpirun starts, here or elsewhere, has its share
   of the pipeline's workers; with --replicas R there are R pipelines, which share the rows of each
   batch. Rank 0 then trains in one process, alone: the weights get the same bits, or, with
   --allreduce 1, which adds up in another order, nearly the same. The exit status is 0 if they do.

   What the library has to know of MPI is a table of functions, pmlp_group. It is the first part of
   this file, to be copied; the second is an ordinary training in which all ranks make the same
   calls.

       mpicc -O3 -std=c99 08_mpi.c -o 08_mpi -pthread -lm
       mpirun -n 4 08_mpi [--replicas R] [--workers P] [--microbatches M] [--batch B] [--slots N]
                          [--schedule NAME] [--allreduce 1] [--deadline SECONDS] [--epochs E]     */
#define PIPEMLP_IMPLEMENTATION
#include "../pipemlp.h"

#include <limits.h>
#include <math.h>
#include <mpi.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- a group of ranks over MPI, to be copied ----------------------------------------------------

   MPI has no deadlines and need not say that a rank is gone, so nothing here blocks in MPI: what
   was begun (Isend, Irecv) is asked for (Test) until it is done, it is too late, or a rank gives
   alarm, by a message with a tag of its own. Everything goes from one rank to another, so that it
   is known who has not answered; MPI's collectives, faster with many ranks, would not tell.     */

enum { ALARM, COLLECTIVE, FIRST_TAG }; /* then edges and workers' sums take turns */
enum { WORDS = 256, PIECE = 16384 };

typedef struct mpi_group {
    pmlp_group table; /* for pmlp_trainer_desc.group */
    pmlp_edges edges;
    MPI_Comm comm;
    MPI_Request *sends; /* [ranks], of mpi_gather() */
    char alarm[WORDS]; /* that this rank gives */
    pthread_mutex_t mutex; /* of what follows */
    bool failed;
    char why[WORDS + 64];
    bool *has_given; /* [ranks]: who has given alarm; so many */
    int alarms;
} mpi_group;

typedef struct mpi_edge {
    mpi_group *group;
    int peer, tag, slots, next;
    MPI_Request receiving, sending[]; /* [slots]: what was sent and may still be read by MPI */
} mpi_edge;

/* The first failure is the one that is told. */
static pmlp_result fail(mpi_group *g, int rank, const char *what, const char *more) {
    pthread_mutex_lock(&g->mutex);
    if (!g->failed) snprintf(g->why, sizeof g->why, "rank %d %s%s", rank, what, more);
    g->failed = true;
    pthread_mutex_unlock(&g->mutex);
    return PMLP_ERROR_RANK;
}

/* Receives an alarm if there is one: who gave it, or -1. The mutex is held. */
static int take_alarm(mpi_group *g, char words[WORDS]) {
    MPI_Status status;
    int given = 0;
    MPI_Iprobe(MPI_ANY_SOURCE, ALARM, g->comm, &given, &status);
    if (!given) return -1;
    MPI_Recv(words, WORDS, MPI_CHAR, status.MPI_SOURCE, ALARM, g->comm, MPI_STATUS_IGNORE);
    g->has_given[status.MPI_SOURCE] = true;
    g->alarms++;
    return status.MPI_SOURCE;
}

/* PMLP_OK unless this group has failed or another rank gives alarm. */
static pmlp_result listen_for_alarm(mpi_group *g) {
    char words[WORDS];
    int rank = -1;
    bool failed;
    pthread_mutex_lock(&g->mutex);
    failed = g->failed;
    if (!failed) rank = take_alarm(g, words);
    pthread_mutex_unlock(&g->mutex);
    if (rank >= 0) return fail(g, rank, "has failed: ", words);
    return failed ? PMLP_ERROR_RANK : PMLP_OK;
}

/* What MPI said to a message from or to this rank. */
static pmlp_result outcome(mpi_group *g, int rank, int code) {
    char text[MPI_MAX_ERROR_STRING];
    int length;
    if (code == MPI_SUCCESS) return PMLP_OK;
    MPI_Error_string(code, text, &length);
    return fail(g, rank, "cannot be reached: ", text);
}

static pmlp_result begin(mpi_group *g, bool send, int rank, int tag, void *data, size_t bytes,
                         MPI_Request *request) {
    const int size = (int)bytes;
    if (bytes > INT_MAX) return fail(g, rank, "and this one would exchange more than 2 GB", "");
    return outcome(g, rank, send ? MPI_Isend(data, size, MPI_BYTE, rank, tag, g->comm, request)
                                 : MPI_Irecv(data, size, MPI_BYTE, rank, tag, g->comm, request));
}

/* Is it done, or was it never begun? PMLP_BUSY: not yet. */
static pmlp_result ask(mpi_group *g, int rank, MPI_Request *request) {
    int done = 0;
    pmlp_result result = listen_for_alarm(g);
    if (result == PMLP_OK) result = outcome(g, rank, MPI_Test(request, &done, MPI_STATUS_IGNORE));
    return result == PMLP_OK && !done ? PMLP_BUSY : result;
}

static pmlp_result await(mpi_group *g, int rank, MPI_Request *request, double seconds) {
    const double end = MPI_Wtime() + seconds;
    pmlp_result result;
    while ((result = ask(g, rank, request)) == PMLP_BUSY && MPI_Wtime() < end) sched_yield();
    return result == PMLP_BUSY ? fail(g, rank, "has not answered in time", "") : result;
}

/* Nothing may be received any more into memory that will soon be gone. */
static void give_up(MPI_Request *request) {
    if (*request == MPI_REQUEST_NULL) return;
    MPI_Cancel(request);
    MPI_Request_free(request);
}

static pmlp_result transfer(mpi_group *g, bool send, int rank, int tag, void *data, size_t bytes,
                            double seconds) {
    MPI_Request request = MPI_REQUEST_NULL;
    pmlp_result result = listen_for_alarm(g);
    if (result == PMLP_OK) result = begin(g, send, rank, tag, data, bytes, &request);
    if (result == PMLP_OK) result = await(g, rank, &request, seconds);
    give_up(&request);
    return result;
}

static pmlp_result mpi_broadcast(void *context, int from_rank, void *data, size_t bytes,
                                 double seconds) {
    mpi_group *g = context;
    pmlp_result result = PMLP_OK;
    if (from_rank != g->table.rank)
        return transfer(g, false, from_rank, COLLECTIVE, data, bytes, seconds);
    for (int r = 0; r < g->table.ranks && result == PMLP_OK; r++)
        if (r != from_rank) result = transfer(g, true, r, COLLECTIVE, data, bytes, seconds);
    return result;
}

/* Sends first, so that whoever is missing is one that has not come here. */
static pmlp_result mpi_gather(void *context, const void *mine, size_t bytes, void *all,
                              double seconds) {
    mpi_group *g = context;
    pmlp_result result = listen_for_alarm(g);
    for (int r = 0; r < g->table.ranks; r++) g->sends[r] = MPI_REQUEST_NULL;
    for (int r = 0; r < g->table.ranks && result == PMLP_OK; r++)
        if (r != g->table.rank)
            result = begin(g, true, r, COLLECTIVE, (void *)mine, bytes, &g->sends[r]);
    memcpy((char *)all + (size_t)g->table.rank * bytes, mine, bytes);
    for (int r = 0; r < g->table.ranks && result == PMLP_OK; r++)
        if (r != g->table.rank)
            result = transfer(g, false, r, COLLECTIVE, (char *)all + (size_t)r * bytes, bytes,
                              seconds);
    for (int r = 0; r < g->table.ranks; r++) {
        if (result == PMLP_OK) result = await(g, r, &g->sends[r], seconds);
        give_up(&g->sends[r]);
    }
    return result;
}

/* Goes from the first replica to the last, each of which adds its own, and back with the sum; in
   pieces, so that all are at work. Always in the same order, which MPI_Allreduce leaves open. */
static pmlp_result mpi_sum(void *context, int worker, int replicas, void *backend_context,
                           float *data, size_t floats, double seconds) {
    mpi_group *g = context;
    const int apart = g->table.ranks / replicas, tag = FIRST_TAG + 2 * worker + 1;
    const int neighbours[2] = {g->table.rank - apart, g->table.rank + apart};
    float others[PIECE];
    pmlp_result result = PMLP_OK;
    (void)backend_context; /* the CPU's memory is the host's */
    for (int back = 0; back < 2; back++)
        for (size_t at = 0, n; at < floats && result == PMLP_OK; at += n) {
            const int from = neighbours[back], to = neighbours[!back];
            float *piece = data + at;
            n = floats - at < PIECE ? floats - at : PIECE;
            if (from >= 0 && from < g->table.ranks) {
                result = transfer(g, false, from, tag, back ? piece : others, n * sizeof *piece,
                                  seconds);
                for (size_t i = 0; i < n && !back; i++) piece[i] = others[i] + piece[i];
            }
            if (to >= 0 && to < g->table.ranks && result == PMLP_OK)
                result = transfer(g, true, to, tag, piece, n * sizeof *piece, seconds);
        }
    return result;
}

/* Whoever is well hears this alarm and gives one, too; whoever does not is the one that is gone.
   The rank that was waited for in vain need not be: it may have waited for another. */
static void mpi_abort(void *context, const char *why) {
    mpi_group *g = context;
    const int ranks = g->table.ranks;
    const double end = MPI_Wtime() + 0.5;
    char words[WORDS];
    MPI_Request request;
    pthread_mutex_lock(&g->mutex);
    g->failed = true;
    snprintf(g->alarm, sizeof g->alarm, "%s", why);
    for (int r = 0; r < ranks; r++)
        if (r != g->table.rank)
            MPI_Isend(g->alarm, WORDS, MPI_CHAR, r, ALARM, g->comm, &request);
    while (g->alarms < ranks - 1 && MPI_Wtime() < end) take_alarm(g, words);
    for (int r = 0, length = 0; r < ranks && length < WORDS; r++)
        if (g->alarms < ranks - 1 && r != g->table.rank && !g->has_given[r])
            length += snprintf(g->why + length, (size_t)(WORDS - length), "%s rank %d",
                               length > 0 ? "," : "no word from", r);
    pthread_mutex_unlock(&g->mutex);
}

static const char *mpi_explain(void *context) {
    mpi_group *g = context;
    const char *why;
    pthread_mutex_lock(&g->mutex);
    why = g->failed ? g->why : NULL;
    pthread_mutex_unlock(&g->mutex);
    return why;
}

static pmlp_result mpi_connect(const pmlp_edges *self, const pmlp_edge_desc *desc, void **edge,
                               pmlp_error *error) {
    mpi_group *g = (mpi_group *)self->user;
    mpi_edge *e = malloc(sizeof *e + (size_t)desc->slots * sizeof *e->sending);
    if (e == NULL) {
        error->result = PMLP_ERROR_MEMORY;
        snprintf(error->text, sizeof error->text, "mpi: out of memory for an edge");
        return PMLP_ERROR_MEMORY;
    }
    e->group = g;
    e->peer = desc->from_rank == g->table.rank ? desc->to_rank : desc->from_rank;
    e->tag = FIRST_TAG + 2 * desc->channel;
    e->slots = desc->slots;
    e->next = 0;
    e->receiving = MPI_REQUEST_NULL;
    for (int i = 0; i < e->slots; i++) e->sending[i] = MPI_REQUEST_NULL;
    *edge = e;
    return PMLP_OK;
}

static void mpi_disconnect(void *edge) {
    mpi_edge *e = edge;
    for (int i = 0; i < e->slots; i++) await(e->group, e->peer, &e->sending[i], 1);
    give_up(&e->receiving);
    free(e);
}

/* Messages with one tag do not overtake each other: passes cannot be mixed up. */
static pmlp_result mpi_reset(void *edge) {
    (void)edge;
    return PMLP_OK;
}

static pmlp_result mpi_send(void *edge, int microbatch, const void *data, size_t bytes) {
    mpi_edge *e = edge;
    MPI_Request *slot = &e->sending[e->next];
    const pmlp_result result = ask(e->group, e->peer, slot);
    (void)microbatch;
    if (result != PMLP_OK) return result;
    e->next = (e->next + 1) % e->slots;
    return begin(e->group, true, e->peer, e->tag, (void *)data, bytes, slot);
}

static pmlp_result mpi_receive(void *edge, int microbatch, void *data, size_t bytes) {
    mpi_edge *e = edge;
    pmlp_result result = listen_for_alarm(e->group);
    (void)microbatch;
    if (result == PMLP_OK && e->receiving == MPI_REQUEST_NULL)
        result = begin(e->group, false, e->peer, e->tag, data, bytes, &e->receiving);
    return result == PMLP_OK ? ask(e->group, e->peer, &e->receiving) : result;
}

/* All ranks of MPI. *g is all zero and must stay where it is. */
static void mpi_group_open(mpi_group *g) {
    const pmlp_edges edges = {PMLP_EDGES_ABI, sizeof edges, "mpi", g, false, PMLP_TRANSPORT_SLOTS,
                              mpi_connect, mpi_disconnect, mpi_reset, mpi_send, mpi_receive};
    pmlp_group table = {PMLP_GROUP_ABI, sizeof table, "mpi", 0, 0, g, true, &g->edges, mpi_gather,
                        mpi_broadcast, mpi_sum, mpi_abort, mpi_explain};
    MPI_Comm_dup(MPI_COMM_WORLD, &g->comm);
    MPI_Comm_set_errhandler(g->comm, MPI_ERRORS_RETURN);
    MPI_Comm_rank(g->comm, &table.rank);
    MPI_Comm_size(g->comm, &table.ranks);
    pthread_mutex_init(&g->mutex, NULL);
    g->sends = malloc((size_t)table.ranks * sizeof *g->sends);
    g->has_given = calloc((size_t)table.ranks, sizeof *g->has_given);
    if (g->sends == NULL || g->has_given == NULL) MPI_Abort(MPI_COMM_WORLD, 1);
    g->table = table;
    g->edges = edges;
}

static void mpi_group_close(mpi_group *g) {
    free(g->sends);
    free(g->has_given);
    pthread_mutex_destroy(&g->mutex);
    MPI_Comm_free(&g->comm);
}

/* --- a training ------------------------------------------------------------------------------- */

enum { LAYERS = 8, INPUTS = 32, CLASSES = 8, ROWS = 512 };
static const int sizes[LAYERS + 1] = {INPUTS, 128, 64, 64, 64, 64, 64, 64, CLASSES};
static float inputs[ROWS][INPUTS];
static int labels[ROWS];
static const pmlp_data data = {.rows = ROWS, .x = &inputs[0][0], .labels = labels};

/* The class is where the largest of the first inputs stands. Every rank has all rows. */
static void make_data(void) {
    for (int r = 0; r < ROWS; r++) {
        for (int n = 0; n < INPUTS; n++)
            inputs[r][n] = (float)((uint32_t)(r * INPUTS + n) * 2654435761u >> 8) / 8388608 - 1;
        for (int n = 1; n < CLASSES; n++)
            if (inputs[r][n] > inputs[r][labels[r]]) labels[r] = n;
    }
}

/* Every option has a number behind it, --schedule a name; false if one of these is not known. */
static bool read_options(int count, char **words, pmlp_trainer_desc *how, int *epochs) {
    int batch = 64, deadline = 60, allreduce = 0;
    const struct { const char *name; int *value; } options[] = {
        {"--replicas", &how->replicas}, {"--workers", &how->workers}, {"--batch", &batch},
        {"--microbatches", &how->microbatches}, {"--slots", &how->slots},
        {"--allreduce", &allreduce}, {"--deadline", &deadline}, {"--epochs", epochs}};
    const int all = (int)(sizeof options / sizeof options[0]);
    for (int i = 1, o; i < count; i += 2) {
        for (o = 0; o < all && strcmp(words[i], options[o].name) != 0;) o++;
        if (i + 1 == count || (o == all && strcmp(words[i], "--schedule") != 0)) return false;
        if (o < all) *options[o].value = atoi(words[i + 1]);
        else if (!(how->schedule = pmlp_schedule_kind_of(words[i + 1]))) return false;
    }
    how->batch = batch > 0 ? (size_t)batch : 0;
    how->deadline = deadline;
    how->allreduce = allreduce != 0;
    return true;
}

/* The weights word; stops the program, with a sentence, if something fails. */
static uint64_t train(const pmlp_trainer_desc *how, int epochs, int rank, pmlp_stats *stats) {
    const pmlp_model_desc net = {.layers = LAYERS, .sizes = sizes, .hidden = PMLP_TANH};
    pmlp_model *model = NULL;
    pmlp_trainer *trainer = NULL;
    pmlp_error error = {0};
    uint64_t word = 0;
    if (pmlp_model_create(&net, &model, &error) == PMLP_OK &&
        pmlp_trainer_create(model, how, &trainer, &error) == PMLP_OK) {
        pmlp_result result = PMLP_OK;
        if (how->group && rank == 0)
            printf("ranks=%d replicas=%d workers=%d schedule=%s\n", how->group->ranks,
                   how->replicas, how->workers, pmlp_schedule_kind_name(how->schedule));
        fflush(stdout);
        for (int epoch = 0; epoch < epochs && result == PMLP_OK; epoch++)
            result = pmlp_trainer_epoch(trainer, &data, stats);
        if (result == PMLP_OK) pmlp_trainer_sync(trainer);
        error = *pmlp_trainer_error(trainer);
    }
    if (error.result != PMLP_OK) {
        const char *more = how->group ? how->group->explain(how->group->context) : NULL;
        if (more == NULL || strstr(error.text, more) != NULL) more = "";
        fprintf(stderr, "08_mpi: rank %d: %s%s%s\n", rank, error.text, *more ? "; " : "", more);
        _Exit(1); /* MPI_Finalize would wait for whoever is gone */
    }
    pmlp_trainer_destroy(trainer);
    pmlp_model_hash(model, &word, NULL);
    pmlp_model_destroy(model);
    return word;
}

int main(int argc, char **argv) {
    static mpi_group mpi;
    pmlp_trainer_desc how = {.group = &mpi.table, .replicas = 1,
                             .schedule = PMLP_SCHEDULE_1F1B};
    pmlp_stats stats = {0}, alone = {0};
    uint64_t word, least, most;
    int provided, epochs = 10, pipe;
    bool good;

    MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided);
    mpi_group_open(&mpi);
    good = read_options(argc, argv, &how, &epochs);
    pipe = mpi.table.ranks / (how.replicas > 0 ? how.replicas : 1);
    if (how.workers == 0) how.workers = pipe;
    if (!good || (how.workers > pipe && provided < MPI_THREAD_MULTIPLE)) {
        fprintf(stderr, good ? "08_mpi: this MPI permits one worker per rank only\n"
                             : "08_mpi: unknown option or schedule, or nothing behind it\n");
        MPI_Abort(MPI_COMM_WORLD, 2);
    }
    make_data();
    word = train(&how, epochs, mpi.table.rank, &stats);
    MPI_Allreduce(&word, &least, 1, MPI_UINT64_T, MPI_MIN, MPI_COMM_WORLD);
    MPI_Allreduce(&word, &most, 1, MPI_UINT64_T, MPI_MAX, MPI_COMM_WORLD);
    if (mpi.table.rank == 0) {
        const pmlp_trainer_desc serial = {.batch = how.batch};
        const uint64_t wanted = train(&serial, epochs, 0, &alone);
        const bool near = how.allreduce && fabs(stats.loss - alone.loss) < 1e-4;
        printf("loss=%.7f accuracy=%.3f, in one process loss=%.7f\n", stats.loss, stats.accuracy,
               alone.loss);
        printf("weights=%016llx everywhere=%s identical=%s\n", (unsigned long long)word,
               least == most ? "yes" : "no", word == wanted ? "yes" : "no");
        good = least == most && (word == wanted || near);
    }
    mpi_group_close(&mpi);
    MPI_Finalize();
    return good ? 0 : 1;
}
