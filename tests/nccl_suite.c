/* Ranks over NCCL: how they meet, what they do together, trainings, failures. Each rank is a thread
   of this process with a GPU of its own; tests/test_nccl.sh has them as processes, too. Runs on the
   stand-in of tests/cudahost.

   ./nccl_suite [NAME ...]       all tests, or those named */
#define _DEFAULT_SOURCE
#define PIPEMLP_IMPLEMENTATION
#include "../pipemlp.h"
#include "test.h"
#include "networks.h"
#include "shapes.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/socket.h>

/* tests/cudahost/control.cpp */
extern void cudahost_fail(const char *api, long nth);
extern long cudahost_calls(const char *api);
extern long cudahost_live(void);
extern void cudahost_slow(long microseconds);

enum { MOST = 4, ROWS = 48, BATCH = 12, WIDTH = 12 };

static const network net = {
    "mixed", 6, {6, 12, 7, 9, 5, 8, 4},
    {PMLP_TANH, PMLP_GELU, PMLP_RELU, PMLP_SIGMOID, PMLP_TANH, PMLP_LINEAR},
    PMLP_LOSS_XENT, false};

static bool tiny(void) { return getenv("PMLP_TEST_TINY") != NULL; }

static float data_x[ROWS * WIDTH];
static int data_labels[ROWS];

static pmlp_data make_data(void) {
    pmlp_data data = {0};
    uint64_t rng = 11;
    for (size_t i = 0; i < ROWS * (size_t)net.sizes[0]; i++)
        data_x[i] = (float)test_uniform(&rng, -1, 1);
    for (size_t r = 0; r < ROWS; r++) data_labels[r] = (int)(test_random(&rng) % 4);
    data.rows = ROWS, data.x = data_x, data.labels = data_labels;
    return data;
}

/* --- ranks as threads ------------------------------------------------------------------------- */

typedef struct rank_of {
    pmlp_launch launch;
    pmlp_cuda_options options;
    pmlp_trainer_desc desc;
    int steps; /* 0: no trainer */
    void (*then)(struct rank_of *rank); /* with the group, if it is there */
    int argument;
    /* what came of it */
    pmlp_group group;
    pmlp_result result;
    pmlp_error error;
    uint64_t hash;
    double loss, norm, seconds;
    bool wrong;
} rank_of;

static rank_of ranks[MOST];
static pmlp_data data;

/* A port that nobody has had here. */
static int next_port(void) {
    static int count;
    return 20000 + (int)((getpid() * 37 + count++) % 20000);
}

static void train(rank_of *r, pmlp_group *group, const pmlp_backend *backend) {
    pmlp_trainer *trainer = NULL;
    pmlp_stats stats = {0};
    pmlp_model *model = NULL;
    pmlp_model_desc of = {0};
    of.layers = net.layers, of.sizes = net.sizes, of.activations = net.act;
    of.loss = net.loss, of.seed = 5;
    r->desc.group = group, r->desc.backend = backend;
    r->result = pmlp_model_create(&of, &model, &r->error);
    if (r->result == PMLP_OK)
        r->result = pmlp_trainer_create(model, &r->desc, &trainer, &r->error);
    for (int i = 0; r->result == PMLP_OK && i < r->steps; i++) {
        pmlp_data batch = rows_of(&net, &data, (size_t)(3 * i % 20), i % 3 ? BATCH : BATCH - 4);
        r->result = pmlp_trainer_step(trainer, &batch, &stats);
    }
    if (r->result == PMLP_OK) r->result = pmlp_trainer_epoch(trainer, &data, &stats);
    r->norm = stats.gradient_norm;
    if (r->result == PMLP_OK) r->result = pmlp_trainer_eval(trainer, &data, &stats);
    r->loss = stats.loss;
    if (r->result == PMLP_OK) r->result = pmlp_trainer_sync(trainer);
    if (r->result == PMLP_OK) r->result = pmlp_model_hash(model, &r->hash, NULL);
    else if (trainer) r->error = *pmlp_trainer_error(trainer);
    pmlp_trainer_destroy(trainer);
    pmlp_model_destroy(model);
}

static void *be_rank(void *argument) {
    rank_of *const r = argument;
    pmlp_backend backend;
    const double begin = test_seconds();
    r->result = pmlp_nccl_group_create(&r->launch, &r->options, NULL, &r->group, &backend,
                                       &r->error);
    if (r->result == PMLP_OK && r->then) r->then(r);
    if (r->result == PMLP_OK && r->steps > 0) train(r, &r->group, &backend);
    pmlp_nccl_group_destroy(&r->group);
    r->seconds = test_seconds() - begin;
    return NULL;
}

static void prepare(int count) {
    const int port = next_port();
    memset(ranks, 0, sizeof ranks);
    for (int i = 0; i < count; i++) {
        ranks[i].launch.rank = ranks[i].launch.local_rank = i;
        ranks[i].launch.ranks = count;
        ranks[i].launch.port = port;
        ranks[i].launch.seconds = 20;
        ranks[i].desc.batch = BATCH, ranks[i].desc.seed = 9, ranks[i].desc.workers = 4;
        ranks[i].desc.microbatches = 4;
    }
}

static void run_ranks(int count) {
    pthread_t threads[MOST];
    int started = 0;
    while (started < count &&
           pthread_create(&threads[started], NULL, be_rank, &ranks[started]) == 0)
        started++;
    for (int i = 0; i < started; i++) pthread_join(threads[i], NULL);
    CHECK(started == count, "only %d threads", started);
}

static bool all_fine(int count, const char *what) {
    bool fine = true;
    for (int i = 0; i < count; i++)
        fine = CHECK(ranks[i].result == PMLP_OK && !ranks[i].wrong, "%s: rank %d of %d: %s: %s",
                     what, i, count, pmlp_result_name(ranks[i].result), ranks[i].error.text) &&
               fine;
    return fine;
}

/* --- what all do together --------------------------------------------------------------------- */

static const size_t sizes[] = {1, 8, 48, 100003, 5000001};

static void collect(rank_of *r) {
    const pmlp_group *const g = &r->group;
    const size_t n = (size_t)g->ranks;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes - (tiny() ? 1 : 0); s++) {
        unsigned char *mine = malloc(sizes[s]), *all = malloc(n * sizes[s]);
        for (size_t i = 0; i < sizes[s]; i++) mine[i] = (unsigned char)(i * 7 + (size_t)g->rank);
        r->wrong |= g->gather(g->context, mine, sizes[s], all, 10) != PMLP_OK;
        for (size_t at = 0; !r->wrong && at < n * sizes[s]; at++)
            r->wrong = all[at] != (unsigned char)(at % sizes[s] * 7 + at / sizes[s]);
        for (int from = 0; from < g->ranks; from++) {
            for (size_t i = 0; i < sizes[s]; i++)
                mine[i] = from == g->rank ? (unsigned char)(i * 5 + (size_t)from) : 0;
            r->wrong |= g->broadcast(g->context, from, mine, sizes[s], 10) != PMLP_OK;
            for (size_t i = 0; !r->wrong && i < sizes[s]; i++)
                r->wrong = mine[i] != (unsigned char)(i * 5 + (size_t)from);
        }
        free(mine);
        free(all);
    }
    r->wrong |= g->rank != r->launch.rank || g->ranks != r->launch.ranks || g->host;
}

TEST(collectives) {
    for (int count = 1; count <= MOST; count++) {
        prepare(count);
        for (int i = 0; i < count; i++) ranks[i].then = collect;
        run_ranks(count);
        all_fine(count, "gather and broadcast");
    }
    SAY("gather and broadcast of 1 byte to %s, 1 to %d ranks", tiny() ? "100 KB" : "5 MB", MOST);
}

/* --- trainings -------------------------------------------------------------------------------- */

/* What one process gets with the same desc on one GPU. */
static rank_of alone(const rank_of *like) {
    static const int device = 0;
    rank_of r = *like;
    pmlp_backend backend;
    r.options.devices = &device, r.options.device_count = 1;
    r.desc.replicas = 0, r.desc.allreduce = false;
    pmlp_cuda_backend_with(&r.options, &backend);
    train(&r, NULL, &backend);
    CHECK(r.result == PMLP_OK, "alone: %s", r.error.text);
    return r;
}

TEST(pipelines) {
    long runs = 0;
    for (int kind = PMLP_SCHEDULE_SEQUENTIAL; kind < PMLP_SCHEDULE_KIND_COUNT; kind++)
        for (int count = 2; count <= MOST; count++) {
            char what[80];
            if (kind == PMLP_SCHEDULE_AUTO || is_async((pmlp_schedule_kind)kind)) continue;
            if (is_v((pmlp_schedule_kind)kind) || is_looped((pmlp_schedule_kind)kind)) {
                if (count != 2 && test_quick()) continue; /* 2 workers: the network has 6 layers */
            } else if (test_quick() && (kind + 2 * count) % 5) {
                continue;
            }
            prepare(count);
            for (int i = 0; i < count; i++) {
                rank_of *const r = &ranks[i];
                r->desc.schedule = (pmlp_schedule_kind)kind, r->steps = tiny() ? 2 : 4;
                r->desc.workers = is_v(r->desc.schedule) || is_looped(r->desc.schedule)
                                      ? count < 3 ? 2 : 3
                                      : 4;
                if (r->desc.workers < count) r->desc.workers = count;
                r->desc.microbatches = r->desc.workers * (is_looped(r->desc.schedule) ? 1 : 2);
                r->desc.optimizer = kind % 2 ? PMLP_ADAM : PMLP_MOMENTUM;
                r->desc.clip_norm = count == 3 ? 0.1f : 0, r->desc.no_threads = kind % 3 == 0;
                r->desc.slots = count == 4 ? 1 : 0;
                r->options.math = kind % 2 ? PMLP_CUDA_BF16 : PMLP_CUDA_FP32;
                r->options.gemm = (pmlp_cuda_gemm)(kind % 3);
            }
            if (ranks[0].desc.workers * (is_v(ranks[0].desc.schedule) ||
                                         is_looped(ranks[0].desc.schedule) ? 2 : 1) > 6)
                continue;
            snprintf(what, sizeof what, "%s", pmlp_schedule_kind_name((pmlp_schedule_kind)kind));
            run_ranks(count);
            if (!all_fine(count, what)) continue;
            const rank_of one = alone(&ranks[0]);
            for (int i = 0; i < count; i++)
                CHECK(ranks[i].hash == one.hash && ranks[i].loss == one.loss,
                      "%s: rank %d of %d has other bits than one process", what, i, count);
            runs++;
        }
    CHECK(runs > 3, "%ld", runs);
    SAY("all synchronous schedules over 2 to %d ranks: the bits of one process, %ld pipelines",
        MOST, runs);
}

/* Several GPUs in each rank, which hand over by copies or NCCL, and by NCCL to the other rank. */
TEST(several_gpus) {
    static const int devices[2][2] = {{0, 1}, {2, 3}};
    for (int handoff = 0; handoff < 2; handoff++) {
        prepare(2);
        for (int i = 0; i < 2; i++) {
            ranks[i].options.devices = devices[i], ranks[i].options.device_count = 2;
            ranks[i].options.handoff = (pmlp_cuda_handoff)handoff, ranks[i].steps = 3;
        }
        run_ranks(2);
        if (!all_fine(2, "two GPUs each")) continue;
        const rank_of one = alone(&ranks[0]);
        CHECK(ranks[0].hash == one.hash && ranks[1].hash == one.hash, "other bits");
    }
    SAY("2 ranks of 2 GPUs, by copies and by NCCL: the bits of one GPU");
}

TEST(asynchronous) {
    for (int kind = 0; kind < 2; kind++) {
        prepare(3);
        for (int i = 0; i < 3; i++) {
            ranks[i].desc.schedule = kind ? PMLP_SCHEDULE_PIPEDREAM_2BW : PMLP_SCHEDULE_PIPEDREAM;
            ranks[i].desc.workers = 3, ranks[i].steps = 3;
        }
        run_ranks(3);
        if (!all_fine(3, "asynchronous")) continue;
        const rank_of one = alone(&ranks[0]);
        for (int i = 0; i < 3; i++)
            CHECK(ranks[i].hash == one.hash, "rank %d has other bits than one process", i);
    }
    SAY("PipeDream and PipeDream-2BW over 3 ranks: the bits of one process");
}

/* Chains continue one sum from replica to replica, sums add up what each has. */
TEST(replicas) {
    for (int count = 2; count <= MOST; count += 2)
        for (int chain = 0; chain < 2; chain++) {
            uint64_t first = 0;
            for (int again = 0; again < 2 - chain; again++) {
                prepare(count);
                for (int i = 0; i < count; i++) {
                    ranks[i].desc.replicas = 2, ranks[i].steps = 4;
                    ranks[i].desc.workers = count == 2 ? 1 : 2;
                    ranks[i].desc.microbatches = 2, ranks[i].desc.optimizer = PMLP_ADAM;
                    ranks[i].desc.clip_norm = count == 2 ? 0.2f : 0;
                    ranks[i].desc.allreduce = !chain;
                    ranks[i].options.gemm = chain ? PMLP_CUDA_GEMM_TEACHING : PMLP_CUDA_GEMM_FUSED;
                }
                run_ranks(count);
                if (!all_fine(count, chain ? "chain" : "sum")) return;
                for (int i = 1; i < count; i++)
                    CHECK(ranks[i].hash == ranks[0].hash, "rank %d of %d: other bits", i, count);
                if (again) CHECK(ranks[0].hash == first, "%d ranks: other bits again", count);
                first = ranks[0].hash;
            }
            const rank_of one = alone(&ranks[0]);
            CHECK(fabs(ranks[0].loss / one.loss - 1) < 1e-4, "%d ranks: loss %g, not %g", count,
                  ranks[0].loss, one.loss);
            if (chain) CHECK(ranks[0].hash == one.hash, "%d ranks: not the bits of one", count);
            else CHECK(ranks[0].hash != one.hash, "%d ranks: sums have the bits of chains?", count);
        }
    SAY("2 replicas of 1 and 2 ranks: chains have the bits of one process, sums the same bits "
        "everywhere and again");
}

/* --- failures --------------------------------------------------------------------------------- */

/* All ranks but those of a mask must have failed with a text that has `word` in it, in time. */
static void all_failed(int count, unsigned but, const char *word, double seconds) {
    for (int i = 0; i < count; i++) {
        if (but >> i & 1) continue;
        CHECK(ranks[i].result != PMLP_OK && strstr(ranks[i].error.text, word),
              "rank %d: %s: '%s', not '%s'", i, pmlp_result_name(ranks[i].result),
              ranks[i].error.text, word);
        CHECK(ranks[i].seconds < seconds, "rank %d: %g s", i, ranks[i].seconds);
    }
    CHECK(cudahost_live() == 0, "%ld things are left", cudahost_live());
}

/* Something that is not a rank comes to the port and says something or nothing. */
static void *stray(void *argument) {
    const rank_of *const r = argument;
    for (int n = 0; n < 100; n++) {
        struct sockaddr_in at = {0};
        const int fd = socket(AF_INET, SOCK_STREAM, 0);
        at.sin_family = AF_INET, at.sin_port = htons((uint16_t)r->launch.port);
        at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        if (connect(fd, (struct sockaddr *)&at, sizeof at) == 0 && n % 3 < 2) {
            const ssize_t sent = send(fd, "GET / HTTP/1.1\r\n\r\n", n % 3 ? 18 : 3, MSG_NOSIGNAL);
            (void)sent;
        }
        usleep(2000);
        if (n % 3) close(fd);
    }
    return NULL;
}

TEST(meeting) {
    pthread_t thread;
    prepare(3);
    CHECK(pthread_create(&thread, NULL, stray, &ranks[0]) == 0, "no thread");
    usleep(1000);
    run_ranks(3);
    all_fine(3, "strangers at the door");
    pthread_join(thread, NULL);

    prepare(3);
    for (int i = 0; i < 3; i++) ranks[i].launch.seconds = 1;
    ranks[2].launch.ranks = 4;
    run_ranks(3);
    all_failed(3, 4, "missing: 2", 3);
    all_failed(3, 3, "rank 2 counts 4 ranks, rank 0 counts 3", 3);

    prepare(4);
    for (int i = 0; i < 4; i++) ranks[i].launch.seconds = 1, ranks[i].launch.ranks = 3;
    ranks[3].launch.rank = 1;
    run_ranks(4);
    int twice = (ranks[1].result != PMLP_OK) + (ranks[3].result != PMLP_OK);
    CHECK(twice == 1 && ranks[0].result == PMLP_OK && ranks[2].result == PMLP_OK, "%d", twice);
    const rank_of *const second = ranks[1].result != PMLP_OK ? &ranks[1] : &ranks[3];
    CHECK(strstr(second->error.text, "there is a rank 1 already") ||
              strstr(second->error.text, "rank 0 cannot be reached"),
          "%s", second->error.text);

    prepare(1);
    ranks[0].launch.ranks = 2, ranks[0].launch.rank = 1, ranks[0].launch.seconds = 0.5;
    run_ranks(1);
    all_failed(1, 0, "rank 0 cannot be reached in 0.5 s: Connection refused", 2);
    prepare(2);
    ranks[0].launch.seconds = 0.5;
    run_ranks(1);
    all_failed(1, 0, "not all ranks have come to rank 0 in 0.5 s, missing: 1", 2);
    CHECK(strstr(ranks[0].error.text, "127.0.0.1 port"), "%s", ranks[0].error.text);

    prepare(1);
    ranks[0].launch.ranks = 2, ranks[0].launch.seconds = 0.5;
    strcpy(ranks[0].launch.address, "no.such.host.invalid");
    run_ranks(1);
    all_failed(1, 0, "address: 'no.such.host.invalid'", 20);
    SAY("strangers, other numbers of ranks, a rank that comes twice, one that stays away, nobody "
        "there: a sentence each, in time");
}

/* An HTTP server in rank 0's place. */
static void *impostor(void *argument) {
    const int listener = *(int *)argument;
    const int fd = accept(listener, NULL, NULL);
    char text[512];
    memset(text, 'x', sizeof text);
    const ssize_t sent = send(fd, text, sizeof text, MSG_NOSIGNAL);
    usleep(100000);
    close(fd);
    return (void *)sent;
}

TEST(impostors) {
    struct sockaddr_in at = {0};
    const int listener = socket(AF_INET, SOCK_STREAM, 0);
    pthread_t thread;
    prepare(2);
    at.sin_family = AF_INET, at.sin_port = htons((uint16_t)ranks[0].launch.port);
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(bind(listener, (struct sockaddr *)&at, sizeof at) == 0 && listen(listener, 8) == 0, "-");
    CHECK(pthread_create(&thread, NULL, impostor, (void *)&listener) == 0, "no thread");
    ranks[0].launch.seconds = ranks[1].launch.seconds = 2;
    run_ranks(2);
    pthread_join(thread, NULL);
    close(listener);
    all_failed(2, 2, "rank 0 cannot listen: Address already in use", 3);
    all_failed(2, 1, "what listens there is not rank 0", 3);
    SAY("something else on the port: both sides say so");
}

static void give_up(rank_of *r) {
    unsigned char byte = 1, all[MOST];
    if (r->launch.rank == r->argument) {
        usleep(100000);
        r->group.abort(r->group.context, "it rains");
    }
    r->result = r->group.gather(r->group.context, &byte, 1, all, 10);
    snprintf(r->error.text, sizeof r->error.text, "%s", r->group.explain(r->group.context));
}

TEST(aborts) {
    for (int count = 2; count <= 3; count++)
        for (int who = 0; who < count; who++) {
            char text[80];
            prepare(count);
            for (int i = 0; i < count; i++) ranks[i].then = give_up, ranks[i].argument = who;
            run_ranks(count);
            snprintf(text, sizeof text, "rank %d has failed: it rains", who);
            all_failed(count, 0, text, 5);
        }
    SAY("a rank that gives up: all others fail at once, with its number and its reason");
}

/* One stays away from a collective, though it lives. */
static void stay_away(rank_of *r) {
    unsigned char byte = 1, all[MOST];
    const double begin = test_seconds();
    if (r->launch.rank == r->argument) {
        usleep(900000);
        return;
    }
    r->result = r->group.gather(r->group.context, &byte, 1, all, 0.5);
    snprintf(r->error.text, sizeof r->error.text, "%s", r->group.explain(r->group.context));
    r->wrong = test_seconds() - begin > 0.9;
}

TEST(deadlines) {
    for (int who = 0; who < 3; who++) {
        prepare(3);
        for (int i = 0; i < 3; i++) ranks[i].then = stay_away, ranks[i].argument = who;
        run_ranks(3);
        all_failed(3, 1u << who, "all 3 ranks: nothing has moved for 0.5 s", 5);
        for (int i = 0; i < 3; i++) CHECK(!ranks[i].wrong, "rank %d waits for too long", i);
    }
    SAY("a rank that stays away from a collective: the others fail when the time is over");
}

/* A step may take longer than the deadline, as long as something moves: on a slow device each
   message takes a small part of it, all together many times as long. */
TEST(long_steps) {
    double seconds;
    prepare(2);
    for (int i = 0; i < 2; i++) {
        ranks[i].steps = 1, ranks[i].desc.workers = 2;
        ranks[i].desc.batch = ROWS, ranks[i].desc.microbatches = ROWS;
        ranks[i].desc.schedule = PMLP_SCHEDULE_1F1B, ranks[i].desc.deadline = 1.0;
    }
    cudahost_slow(1500);
    run_ranks(2);
    cudahost_slow(0);
    seconds = ranks[0].seconds;
    all_fine(2, "a long step");
    CHECK(seconds > 3.0, "the steps took only %g s", seconds);
    SAY("steps that take longer than the deadline, with messages that do not: all is well");
}

/* Ends the connection of some rank to rank 0, but nothing else. */
static void cut_line(rank_of *r) {
    struct sockaddr_in at;
    socklen_t size = sizeof at;
    for (int fd = 3; r->launch.rank == 0 && fd < 200; fd++)
        if (getpeername(fd, (struct sockaddr *)&at, &size) == 0 && at.sin_family == AF_INET &&
            ntohs(at.sin_port) == r->launch.port) {
            shutdown(fd, SHUT_RDWR);
            return;
        }
}

TEST(cut_lines) {
    for (int n = 0; n < (test_quick() ? 2 : 20); n++) {
        prepare(3);
        for (int i = 0; i < 3; i++) ranks[i].then = cut_line, ranks[i].steps = 400;
        run_ranks(3);
        all_failed(3, 0, "is gone: its connection has ended", 10);
    }
    SAY("a connection that ends: all ranks say whose");
}

/* The n-th call of an API fails in some rank: nobody notices, or all fail; nothing is left. */
static long fault(const char *api, long nth, int replicas) {
    long failed = 0;
    prepare(2);
    for (int i = 0; i < 2; i++) {
        ranks[i].desc.workers = ranks[i].desc.microbatches = 2, ranks[i].steps = 2;
        ranks[i].desc.replicas = replicas, ranks[i].desc.allreduce = replicas > 1;
        ranks[i].launch.seconds = 1.5;
    }
    cudahost_fail(api, nth);
    run_ranks(2);
    const bool hit = cudahost_calls(api) >= nth;
    cudahost_fail(NULL, 0);
    for (int i = 0; i < 2; i++) {
        failed += ranks[i].result != PMLP_OK;
        CHECK(ranks[i].result == PMLP_OK || strlen(ranks[i].error.text) > 20, "%s %ld: '%s'", api,
              nth, ranks[i].error.text);
        CHECK(ranks[i].seconds < 9, "%s %ld: rank %d: %g s", api, nth, i, ranks[i].seconds);
    }
    CHECK(failed != 0 || ranks[0].hash == ranks[1].hash, "%s %ld: other bits", api, nth);
    CHECK(cudahost_live() == 0, "%s %ld: %ld things are left", api, nth, cudahost_live());
    return hit ? failed : -1;
}

TEST(faults) {
    static const char *const apis[] = {
        "ncclGetUniqueId", "ncclCommInitRank", "ncclGroupStart", "ncclGroupEnd", "ncclSend",
        "ncclRecv", "ncclAllGather", "ncclAllReduce", "ncclBroadcast", "ncclCommGetAsyncError",
        "ncclCommFinalize", "ncclCommDestroy", "ncclCommAbort"};
    long tried = 0, failed = 0;
    for (size_t a = 0; a < sizeof apis / sizeof *apis; a++) {
        const long most = test_quick() ? 2 : 60;
        for (long nth = 1, got = 0; got >= 0 && nth < most; nth++) {
            got = fault(apis[a], nth, 1 + (int)((nth + (long)a) % 2));
            if (got < 0) break;
            tried++, failed += got > 0;
        }
    }
    CHECK(failed > tried / 2 && tried > 8, "%ld of %ld", failed, tried);
    SAY("each call of NCCL fails in turn, %ld of them: %ld trainings fail on all sides, none hangs",
        tried, failed);
}

/* --- the environment -------------------------------------------------------------------------- */

static const char *const variables[] = {
    "PMLP_RANK", "PMLP_RANKS", "PMLP_LOCAL_RANK", "PMLP_ADDRESS", "PMLP_PORT", "PMLP_SECONDS",
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE", "PMI_RANK",
    "PMI_SIZE", "MPI_LOCALRANKID", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID",
    "SLURM_STEP_ID", "SLURM_STEP_NODELIST"};

/* Sets "A=1 B=2" and nothing else. */
static pmlp_result launch_with(const char *list, pmlp_launch *launch, pmlp_error *error) {
    char text[512], *next = text;
    for (size_t i = 0; i < sizeof variables / sizeof *variables; i++) unsetenv(variables[i]);
    snprintf(text, sizeof text, "%s", list);
    for (char *word = strtok_r(text, " ", &next); word; word = strtok_r(NULL, " ", &next)) {
        char *value = strchr(word, '=');
        *value++ = '\0';
        setenv(word, value, 1);
    }
    return pmlp_launch_from_environment(launch, error);
}

TEST(environment) {
    static const struct {
        const char *list;
        int rank, ranks, local_rank, port;
        const char *address;
    } good[] = {
        {"", 0, 1, 0, 0, ""},
        {"PMLP_RANK=3 PMLP_RANKS=8 PMLP_LOCAL_RANK=1 PMLP_ADDRESS=h1 PMLP_PORT=1234", 3, 8, 1,
         1234, "h1"},
        {"PMLP_RANK=1 PMLP_RANKS=2 RANK=7 WORLD_SIZE=9", 1, 2, 1, 0, ""},
        {"RANK=5 WORLD_SIZE=6 LOCAL_RANK=2 MASTER_ADDR=10.0.0.1 MASTER_PORT=29500", 5, 6, 2, 29501,
         "10.0.0.1"},
        {"OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_RANK=1 "
         "OMPI_COMM_WORLD_LOCAL_SIZE=2 SLURM_PROCID=0 SLURM_NTASKS=4 SLURM_STEP_ID=0", 1, 2, 1, 0,
         ""},
        {"PMI_RANK=0 PMI_SIZE=3 MPI_LOCALRANKID=0", 0, 3, 0, 0, ""},
        {"SLURM_PROCID=2 SLURM_NTASKS=4 SLURM_LOCALID=0 SLURM_STEP_ID=0 "
         "SLURM_STEP_NODELIST=gpu[07-09,11],cpu1", 2, 4, 0, 0, "gpu07"},
        {"SLURM_PROCID=0 SLURM_NTASKS=2 SLURM_STEP_ID=1 SLURM_STEP_NODELIST=one,two", 0, 2, 0, 0,
         "one"},
        {"SLURM_PROCID=0 SLURM_NTASKS=2", 0, 1, 0, 0, ""}};
    static const char *const bad[][2] = {
        {"PMLP_RANK=1", "PMLP_RANKS: is not set"},
        {"WORLD_SIZE=4", "RANK: is not set"},
        {"RANK=4 WORLD_SIZE=4", "RANK: '4' is not a whole number from 0 to 3"},
        {"RANK=x WORLD_SIZE=4", "RANK: 'x' is not"},
        {"RANK=0 WORLD_SIZE=0", "WORLD_SIZE: '0' is not"},
        {"RANK=0 WORLD_SIZE=2 MASTER_PORT=65535", "MASTER_PORT: '65535' is not"},
        {"RANK=0 WORLD_SIZE=2 LOCAL_RANK=-1", "LOCAL_RANK: '-1' is not"},
        {"PMLP_PORT=0", "PMLP_PORT: '0' is not"},
        {"PMLP_SECONDS=soon", "PMLP_SECONDS: 'soon' is not a time"},
        {"OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_LOCAL_SIZE=2",
         "PMLP_ADDRESS: is not set"}};
    pmlp_launch launch;
    pmlp_error error;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        const pmlp_result result = launch_with(good[i].list, &launch, &error);
        CHECK(result == PMLP_OK, "%s: %s", good[i].list, error.text);
        CHECK(launch.rank == good[i].rank && launch.ranks == good[i].ranks &&
                  launch.local_rank == good[i].local_rank && launch.port == good[i].port &&
                  strcmp(launch.address, good[i].address) == 0,
              "%s: rank %d of %d, local %d, port %d, '%s'", good[i].list, launch.rank,
              launch.ranks, launch.local_rank, launch.port, launch.address);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        memset(&error, 0, sizeof error);
        CHECK(launch_with(bad[i][0], &launch, &error) == PMLP_ERROR_ARGUMENT, "%s", bad[i][0]);
        CHECK(strstr(error.text, bad[i][1]), "%s: '%s', not '%s'", bad[i][0], error.text,
              bad[i][1]);
    }
    launch_with("", &launch, &error);
    SAY("PMLP_*, torchrun, Open MPI, PMI and Slurm; what is wrong is said with the name");
}

TEST(bad_calls) {
    pmlp_launch launch = {0};
    pmlp_group group;
    pmlp_backend backend;
    pmlp_error error = {0};
    CHECK(pmlp_nccl_group_create(NULL, NULL, NULL, &group, &backend, &error) ==
              PMLP_ERROR_ARGUMENT, "-");
    launch.ranks = 2, launch.rank = 2;
    CHECK(pmlp_nccl_group_create(&launch, NULL, NULL, &group, &backend, &error) ==
                  PMLP_ERROR_ARGUMENT && strstr(error.text, "there is no rank 2 of 2"),
          "%s", error.text);
    pmlp_nccl_group_destroy(&group);
    launch.rank = 0, launch.seconds = -1;
    CHECK(pmlp_nccl_group_create(&launch, NULL, NULL, &group, &backend, &error) ==
                  PMLP_ERROR_ARGUMENT && strstr(error.text, "seconds: -1"), "%s", error.text);
    launch.ranks = 1, launch.seconds = 0;
    CHECK(pmlp_nccl_group_create(&launch, NULL, NULL, &group, &backend, &error) == PMLP_OK, "%s",
          error.text);
    pmlp_nccl_group_destroy(&group);
    pmlp_nccl_group_destroy(&group);
    pmlp_nccl_group_destroy(NULL);
    CHECK(cudahost_live() == 0, "%ld things are left", cudahost_live());
    SAY("bad launches are refused");
}

int main(int argc, char **argv) {
    test_begin("nccl");
    data = make_data();
    RUN_IF_ASKED(environment);
    RUN_IF_ASKED(bad_calls);
    RUN_IF_ASKED(collectives);
    RUN_IF_ASKED(pipelines);
    RUN_IF_ASKED(several_gpus);
    RUN_IF_ASKED(asynchronous);
    RUN_IF_ASKED(replicas);
    RUN_IF_ASKED(meeting);
    RUN_IF_ASKED(impostors);
    RUN_IF_ASKED(aborts);
    RUN_IF_ASKED(deadlines);
    RUN_IF_ASKED(long_steps);
    RUN_IF_ASKED(cut_lines);
    RUN_IF_ASKED(faults);
    return test_end();
}
