/* Random trainings for as long as one likes: networks, schedules, optimizers, cuts, slots, ragged
   batches by lot, in one trainer or over several ranks, in one go or saved amid an epoch and
   resumed by another trainer. Synchronous ones and PipeDream-2BW must have the bits of one worker,
   PipeDream those of the same lists run by one thread; one that diverges must stop at the same
   weights. In every third something fails at a random point: an allocation, an operation of the
   back end, a hand-off. The call must say so, all ranks return, and nothing may be left. The first
   case that goes wrong ends it, with the line that repeats it.

       build/endure [--seconds N] [--seed FIRST]      default 3600 s from a seed by the clock
       build/endure --seed N --seconds 0              the one case N, and what it is              */
#define PIPEMLP_IMPLEMENTATION
#include "../pipemlp.h"
#include "test.h"
#include "faulty.h"

#include <sys/resource.h>
#include <time.h>

enum { WIDEST = 40, MOST_ROWS = 48, EPOCH_ROWS = 2 * MOST_ROWS, DEEPEST = 12, RANKS = 4 };
enum fault { NO_FAULT, MEMORY, BACK_END, EDGE, FAULTS };
static float x[EPOCH_ROWS * WIDEST];
static int labels[EPOCH_ROWS];
static char state_file[64];

static struct {
    long cases, steps, synchronous, asynchronous, ranks, resumed, diverged, refused,
        failed[FAULTS];
} seen;

static int lot(uint64_t *state, int low, int high) {
    return low + (int)(test_random(state) % (uint64_t)(high - low + 1));
}
static bool one_in(uint64_t *state, int n) { return lot(state, 1, n) == 1; }

/* What one rank trains, and what came of it. */
typedef struct job {
    const pmlp_model_desc *net;
    pmlp_trainer_desc how, then; /* then: another trainer goes on */
    uint64_t seed;               /* of the rows of each step */
    bool epochs;                 /* or steps */
    int units, unit;             /* epochs or steps: how many, how many are done */
    int pause;                   /* steps before the other trainer goes on; 0: none does */
    long steps;
    pmlp_result result;
    uint64_t word; /* of the weights */
    pmlp_error error;
    pthread_t thread;
} job;

static bool go_on(const pmlp_stats *stats, void *user) {
    (void)stats;
    return ++((job *)user)->steps != ((job *)user)->pause;
}

/* The rest of the training, or CANCELLED where it is to pause. */
static pmlp_result train(job *j, pmlp_trainer *trainer) {
    for (; j->unit < j->units; j->unit++) {
        uint64_t state = j->seed + (uint64_t)j->unit;
        pmlp_data data = {0};
        pmlp_result result;
        data.x = x, data.labels = labels;
        data.rows = (size_t)lot(&state, 1, j->epochs ? EPOCH_ROWS : (int)j->how.batch);
        result = j->epochs ? pmlp_trainer_epoch(trainer, &data, NULL)
                           : pmlp_trainer_step(trainer, &data, NULL);
        if (result != PMLP_OK) return j->error = *pmlp_trainer_error(trainer), result;
        if (!j->epochs && !go_on(NULL, j)) return j->unit++, PMLP_ERROR_CANCELLED;
    }
    return PMLP_OK;
}

/* A new model and trainer, which may have to load what another one saved, and to save. */
static pmlp_result life(job *j, const pmlp_trainer_desc *how, bool loads) {
    pmlp_model *model = NULL;
    pmlp_trainer *trainer = NULL;
    bool saves = false;
    pmlp_result result = pmlp_model_create(j->net, &model, &j->error);
    if (result == PMLP_OK) result = pmlp_trainer_create(model, how, &trainer, &j->error);
    if (result == PMLP_OK && loads) result = pmlp_trainer_load(trainer, state_file);
    if (result == PMLP_OK) result = train(j, trainer);
    if (result == PMLP_ERROR_CANCELLED)
        saves = true, result = pmlp_trainer_save(trainer, state_file);
    if (result != PMLP_OK && trainer) j->error = *pmlp_trainer_error(trainer);
    pmlp_trainer_destroy(trainer);
    if (result == PMLP_OK) result = pmlp_model_hash(model, &j->word, &j->error);
    else if (result == PMLP_ERROR_NUMBER) pmlp_model_hash(model, &j->word, NULL);
    pmlp_model_destroy(model);
    return saves && result == PMLP_OK ? PMLP_ERROR_CANCELLED : result;
}

static void *job_main(void *argument) {
    job *j = argument;
    j->how.progress = j->then.progress = go_on, j->how.progress_user = j->then.progress_user = j;
    j->result = life(j, &j->how, false);
    if (j->result == PMLP_ERROR_CANCELLED) j->result = life(j, &j->then, true);
    return NULL;
}

/* --- one case --------------------------------------------------------------------------------- */

typedef struct the_case {
    pmlp_model_desc net;
    int sizes[DEEPEST + 1];
    double costs[2][DEEPEST];
    job serial, jobs[RANKS];
    int ranks, victim; /* where something fails */
    enum fault fault;
    test_memory memory[RANKS];
    faulty back_end;
    wire_plan wires;
    bool asynchronous;
} the_case;

/* How a pipeline trains what `plain` says. */
static pmlp_trainer_desc pipeline(const job *plain, uint64_t *state, double *costs,
                                  bool asynchronous) {
    pmlp_trainer_desc how = plain->how;
    const int layers = plain->net->layers;
    how.workers = lot(state, 1, layers < 4 && !one_in(state, 8) ? layers : 4);
    how.microbatches = lot(state, 0, 12);
    how.no_threads = one_in(state, 4), how.trace = one_in(state, 8) ? lot(state, 1, 3) : 0;
    how.slots = one_in(state, 8) ? lot(state, 1, 4) : 0;
    for (int l = 0; l < DEEPEST; l++) costs[l] = test_uniform(state, 0.1, 1);
    if (one_in(state, 2)) how.layer_costs = costs;
    if (asynchronous) {
        how.schedule = one_in(state, 2) ? PMLP_SCHEDULE_PIPEDREAM : PMLP_SCHEDULE_PIPEDREAM_2BW;
        how.no_stashing = how.schedule == PMLP_SCHEDULE_PIPEDREAM && one_in(state, 3);
        return how;
    }
    how.schedule = (pmlp_schedule_kind)lot(state, 0, PMLP_SCHEDULE_PIPEDREAM - 1);
    how.virtual_stages = one_in(state, 4) ? lot(state, 1, 3) : 0;
    how.w_rows = (size_t)lot(state, 0, MOST_ROWS);
    how.keep_gradients = one_in(state, 4), how.measure_layers = one_in(state, 32);
    return how;
}

static void draw(the_case *c, uint64_t seed) {
    uint64_t state = seed;
    pmlp_trainer_desc plain = {0};
    job j = {0};
    memset(c, 0, sizeof *c);
    c->net.layers = lot(&state, 1, DEEPEST), c->net.sizes = c->sizes, c->net.seed = seed;
    for (int l = 0; l <= c->net.layers; l++) c->sizes[l] = lot(&state, 1, WIDEST);
    c->net.hidden = (pmlp_activation)lot(&state, 1, PMLP_ACTIVATION_COUNT - 1);
    for (int i = 0; i < EPOCH_ROWS * WIDEST; i++) x[i] = (float)test_uniform(&state, -1, 1);
    for (int i = 0; i < EPOCH_ROWS; i++) labels[i] = lot(&state, 0, c->sizes[c->net.layers] - 1);
    c->asynchronous = one_in(&state, 4);
    plain.batch = (size_t)lot(&state, 1, MOST_ROWS), plain.seed = seed, plain.deadline = 20;
    plain.optimizer = (pmlp_optimizer)lot(&state, 1, PMLP_OPTIMIZER_COUNT - 1);
    plain.weight_decay = one_in(&state, 2) ? 0.01f : 0;
    plain.clip_norm = !c->asynchronous && one_in(&state, 2) ? 0.5f : 0;
    plain.no_shuffle = one_in(&state, 4);
    j.net = &c->net, j.how = plain, j.seed = seed;
    j.epochs = one_in(&state, 2), j.units = lot(&state, 1, j.epochs ? 3 : 6);
    c->serial = j;
    j.how = pipeline(&c->serial, &state, c->costs[0], c->asynchronous);
    j.then = pipeline(&c->serial, &state, c->costs[1], c->asynchronous);
    if (j.how.schedule == PMLP_SCHEDULE_PIPEDREAM)
        c->serial.how = j.how, c->serial.how.no_threads = true;
    else if (c->asynchronous)
        c->serial.how.schedule = j.how.schedule, c->serial.how.microbatches = 1;
    c->ranks = one_in(&state, 8) ? lot(&state, 2, RANKS) : 1;
    if (c->ranks == 1 && !c->asynchronous && one_in(&state, 8)) j.pause = lot(&state, 1, 6);
    if (c->ranks % 2 == 0 && !c->asynchronous && one_in(&state, 2)) j.how.replicas = 2;
    c->victim = lot(&state, 0, c->ranks - 1);
    c->fault = one_in(&state, 3) ? (enum fault)lot(&state, 1, FAULTS - 1) : NO_FAULT;
    if (c->fault == EDGE && c->ranks > 1) c->fault = BACK_END; /* the edges are the group's */
    for (int r = 0; r < c->ranks; r++) {
        const bool fails = c->fault == MEMORY && r == c->victim;
        c->jobs[r] = j;
        test_memory_init(&c->memory[r], fails ? lot(&state, 1, 160) : 0);
        c->jobs[r].how.allocator = c->jobs[r].then.allocator = c->memory[r].allocator;
    }
    const int worker = lot(&state, 0, j.how.workers - 1), edge = lot(&state, 0, 2 * j.how.workers);
    faulty_make(&c->back_end, worker, lot(&state, 1, 200), one_in(&state, 2));
    const enum wire_entry entry = (enum wire_entry)lot(&state, 0, WIRE_ENTRIES - 1);
    wire_make(&c->wires, edge, entry, lot(&state, 1, 20));
    c->back_end.table.name = c->back_end.inner->name; /* all ranks must have the same */
    if (c->fault == BACK_END) c->jobs[c->victim].how.backend = &c->back_end.table;
    if (c->fault == EDGE) c->jobs[c->victim].how.edges = &c->wires.table;
    c->wires.busy = one_in(&state, 16);
}

static bool wrong(uint64_t seed, const char *what, const job *j) {
    printf("FAIL endure: %s (%s: %s); again: build/endure --seed %llu --seconds 0\n", what,
           pmlp_result_name(j->result), j->error.text, (unsigned long long)seed);
    return false;
}

static bool run_ranks(the_case *c) {
    pmlp_group groups[RANKS];
    if (pmlp_thread_groups_create(c->ranks, NULL, groups, NULL) != PMLP_OK) return false;
    for (int r = 0; r < c->ranks; r++) {
        c->jobs[r].how.group = &groups[r];
        if (pthread_create(&c->jobs[r].thread, NULL, job_main, &c->jobs[r]) != 0) exit(2);
    }
    for (int r = 0; r < c->ranks; r++) pthread_join(c->jobs[r].thread, NULL);
    pmlp_thread_groups_destroy(groups);
    return true;
}

/* All went well but for the end, when the weights could not be fetched. */
static bool lost(const job *j) {
    return j->result == PMLP_ERROR_STATE && (j->unit == j->units || j->steps == j->pause);
}

/* More stages or fewer slots than can be. */
static bool is_refused(const job *j) {
    return (j->result == PMLP_ERROR_ARGUMENT || j->result == PMLP_ERROR_SHAPE ||
            j->result == PMLP_ERROR_DEADLOCK) &&
           (j->steps == 0 || j->steps == j->pause);
}

/* What the fault that was met must give; OK: none was, or only the copy of the model that auto
   measures with has lost its weights, which nobody fetches. */
static pmlp_result due(const the_case *c) {
    const job *victim = &c->jobs[c->victim];
    const bool spare = c->back_end.failed == READ &&
                       victim->how.schedule == PMLP_SCHEDULE_AUTO &&
                       (victim->result == PMLP_OK || is_refused(victim));
    if (c->fault == MEMORY && c->memory[c->victim].calls >= c->memory[c->victim].fail_at)
        return PMLP_ERROR_MEMORY;
    if (c->fault == BACK_END && c->back_end.failed >= 0 && !spare) return PMLP_ERROR_BACKEND;
    return c->fault == EDGE && c->wires.failed ? PMLP_ERROR_BACKEND : PMLP_OK;
}

/* Whether the result is that, or another rank refused before, or it was met behind the end. */
static bool is_due(const the_case *c, const job *victim) {
    bool refused = false;
    for (int r = 0; r < c->ranks; r++) refused = refused || is_refused(&c->jobs[r]);
    return victim->result == due(c) || (victim->result == PMLP_ERROR_RANK && refused) ||
           lost(victim) ||
           (victim->result == PMLP_ERROR_NUMBER && c->serial.result == PMLP_ERROR_NUMBER);
}

static bool one(uint64_t seed) {
    static the_case c; /* large */
    draw(&c, seed);
    const job *const j = &c.jobs[0], *const victim = &c.jobs[c.victim];
    job_main(&c.serial);
    if (c.serial.result != PMLP_OK && c.serial.result != PMLP_ERROR_NUMBER &&
        c.serial.how.workers < 2)
        return wrong(seed, "serial training fails", &c.serial);
    if (c.ranks == 1) job_main(&c.jobs[0]);
    else if (!run_ranks(&c)) return wrong(seed, "no group", j);
    for (int r = 0; r < c.ranks; r++) {
        const job *const of = &c.jobs[r];
        if (c.memory[r].blocks != 0) return wrong(seed, "memory is lost", of);
        pthread_mutex_destroy(&c.memory[r].lock);
        if (of->result != PMLP_OK && !of->error.text[0]) return wrong(seed, "no sentence", of);
        if ((of->result == PMLP_OK) != (j->result == PMLP_OK) && !lost(victim))
            return wrong(seed, "one rank fails and one does not", of);
    }
    if (!faulty_balanced(&c.back_end)) return wrong(seed, "contexts or buffers are lost", j);
    if (c.wires.living != 0) return wrong(seed, "edges are lost", j);
    seen.steps += j->steps;
    if (due(&c) != PMLP_OK) {
        if (!is_due(&c, victim)) return wrong(seed, "another failure than the one met", victim);
        return seen.failed[c.fault]++, true;
    }
    for (int r = 0; r < c.ranks; r++)
        if (is_refused(&c.jobs[r])) return seen.refused++, true;
    for (int r = 0; r < c.ranks; r++) {
        const job *const of = &c.jobs[r];
        if (of->result != c.serial.result) return wrong(seed, "another result than serially", of);
        if (of->word != c.serial.word && !(c.asynchronous && of->result != PMLP_OK))
            return wrong(seed, "other bits than serial training", of);
    }
    if (j->result != PMLP_OK) return seen.diverged++, true; /* as serially */
    seen.resumed += j->pause > 0 && j->steps > j->pause, seen.ranks += c.ranks > 1;
    return ++*(c.asynchronous ? &seen.asynchronous : &seen.synchronous), true;
}

static void describe(uint64_t seed) {
    static the_case c;
    draw(&c, seed);
    const job *const j = &c.jobs[0];
    printf("%d layers, batches of %d, %d %s, %s; %s, %d workers, %d stages each, %d micro-batches, "
           "%d slots, %d ranks, %d replicas%s; ",
           c.net.layers, (int)j->how.batch, j->units, j->epochs ? "epochs" : "steps",
           pmlp_optimizer_name(j->how.optimizer), pmlp_schedule_kind_name(j->how.schedule),
           j->how.workers, j->how.virtual_stages, j->how.microbatches, j->how.slots, c.ranks,
           j->how.replicas, j->how.no_threads ? ", no threads" : "");
    if (j->pause) printf("after %d steps by %s, %d workers; ", j->pause,
                         pmlp_schedule_kind_name(j->then.schedule), j->then.workers);
    if (c.fault == NO_FAULT) printf("nothing fails\n");
    else if (c.fault == MEMORY) printf("rank %d's allocation %ld fails\n", c.victim,
                                       c.memory[c.victim].fail_at);
    else if (c.fault == BACK_END) printf("rank %d's worker %d fails at operation %ld\n", c.victim,
                                         c.back_end.worker, c.back_end.fail_at);
    else printf("edge %d fails at %s %ld\n", c.wires.edge, wire_names[c.wires.entry],
                c.wires.fail_at);
}

static long megabytes(void) { /* the most so far */
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_maxrss / 1024;
}

int main(int argc, char **argv) {
    double seconds = 3600, begin = test_seconds();
    uint64_t seed = (uint64_t)time(NULL) << 20;
    char name[64];
    long early = 0, trained, failures;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--seed")) seed = strtoull(argv[i + 1], NULL, 10);
        else if (!strcmp(argv[i], "--seconds")) seconds = atof(argv[i + 1]);
        else return printf("endure: %s: expected --seed N or --seconds N\n", argv[i]), 2;
    }
    test_begin("endure");
    test_run.name = name;
    snprintf(state_file, sizeof state_file, "endure-%ld.state", (long)getpid());
    printf("seed %llu\n", (unsigned long long)seed);
    if (seconds <= 0) describe(seed);
    do {
        snprintf(name, sizeof name, "endure --seed %llu --seconds 0", (unsigned long long)seed);
        alarm(120);
        const bool good = one(seed++);
        remove(state_file);
        if (!good) return 1;
        if (++seen.cases == 2000) early = megabytes();
    } while (test_seconds() - begin < seconds);
    trained = seen.synchronous + seen.asynchronous;
    failures = seen.failed[MEMORY] + seen.failed[BACK_END] + seen.failed[EDGE];
    if (trained == 0 && seconds > 0) return printf("FAIL endure: nothing was trained\n"), 1;
    if (early > 0 && megabytes() > early + 16) {
        printf("FAIL endure: %ld MB after 2,000 cases, %ld at the end\n", early, megabytes());
        return 1;
    }
    printf("ok   endure: %s cases, %s steps: %s trainings with equal bits (%s asynchronous, "
           "%s over ranks, %s resumed)",
           test_count(seen.cases), test_count(seen.steps), test_count(trained),
           test_count(seen.asynchronous), test_count(seen.ranks), test_count(seen.resumed));
    printf(", %s failures (%s memory, %s back end, %s edges), %s diverged, %s refused; %ld MB\n",
           test_count(failures), test_count(seen.failed[MEMORY]), test_count(seen.failed[BACK_END]),
           test_count(seen.failed[EDGE]), test_count(seen.diverged), test_count(seen.refused),
           megabytes());
    printf("1 passed, 0 failed\n");
    return 0;
}
