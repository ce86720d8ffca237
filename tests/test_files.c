/* Models and trainings in files: what is saved comes back bit by bit, in any trainer; a training
   that was stopped after any step and resumed elsewhere ends in the bits of one that never stopped;
   files that are cut, changed or made up are refused in a sentence that names them; a write that
   fails leaves the old file; no memory is lost, and none asked for by a file's word.

       cc -std=c99 -I. tests/test_files.c -o test_files -pthread -lm                              */
#define _XOPEN_SOURCE 700 /* setrlimit, symlink */
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>
static ssize_t real_write(int file, const void *bytes, size_t size) {
    return write(file, bytes, size);
}
static ssize_t disk_write(int file, const void *bytes, size_t size);
static int disk_fsync(int file);
static int disk_close(int file);
static int disk_rename(const char *from, const char *to);
#define write disk_write /* to the end of this file, as back ends have an entry of that name */
#define fsync disk_fsync
#define close disk_close
#define rename disk_rename
#define PIPEMLP_IMPLEMENTATION
#include "../pipemlp.h"
#undef fsync
#undef close
#undef rename
#include "test.h"
#include "networks.h"

#include <dirent.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>

enum { ROWS = 75, BATCH = 16, STEPS = 5, EPOCHS = 2, MANY = 65536 + 100 };

/* clang-format off */
static const network small_net = {
    "small", 4, {5, 40, 7, 6, 3}, {PMLP_TANH, PMLP_GELU, PMLP_SIGMOID, PMLP_LINEAR},
    PMLP_LOSS_XENT, false};
static const network other_net = {"other", 1, {3, 2}, {PMLP_SIGMOID}, PMLP_LOSS_MSE, false};
static const network tiny_net = {
    "tiny", 2, {2, 2, 2}, {PMLP_RELU, PMLP_LINEAR}, PMLP_LOSS_XENT, false};
/* clang-format on */

static float data_x[MANY * 5];
static int data_labels[MANY];
static char folder[200];

static const char *path_of(const char *name) {
    static char paths[4][600];
    static int next;
    next = (next + 1) % 4;
    snprintf(paths[next], sizeof paths[next], "%s/%s", folder, name);
    return paths[next];
}

static pmlp_data some_data(const network *net, size_t rows) {
    pmlp_data data = {0};
    data.rows = rows, data.x = data_x, data.labels = data_labels;
    for (size_t r = 0; r < rows; r++)
        data_labels[r] = (int)((r * r + 3 * r) % (size_t)net->sizes[net->layers]);
    return data;
}

/* --- files ------------------------------------------------------------------------------------ */

typedef struct bytes {
    unsigned char *data;
    size_t size;
} bytes;

static bytes read_bytes(const char *name) {
    bytes b = {NULL, 0};
    FILE *file = fopen(path_of(name), "rb");
    if (!CHECK(file != NULL, "%s cannot be opened", name)) return b;
    b.data = malloc(1 << 20);
    if (!b.data) exit(1);
    b.size = fread(b.data, 1, 1 << 20, file);
    fclose(file);
    return b;
}

static void write_bytes(const char *name, bytes b) {
    FILE *file = fopen(path_of(name), "wb");
    if (!file || fwrite(b.data, 1, b.size, file) != b.size || fclose(file) != 0)
        printf("%s: cannot write\n", path_of(name)), exit(1);
}

static bool same_files(const char *a, const char *b) {
    bytes x = read_bytes(a), y = read_bytes(b);
    const bool same = x.data && y.data && x.size == y.size && memcmp(x.data, y.data, x.size) == 0;
    free(x.data);
    free(y.data);
    return same;
}

/* How many files there are in the folder. */
static int count_files(void) {
    DIR *dir = opendir(folder);
    struct dirent *entry;
    int count = 0;
    while (dir && (entry = readdir(dir)) != NULL) count += entry->d_name[0] != '.';
    if (dir) closedir(dir);
    return count;
}

static void empty_folder(void) {
    DIR *dir = opendir(folder);
    struct dirent *entry;
    while (dir && (entry = readdir(dir)) != NULL)
        if (entry->d_name[0] != '.') remove(path_of(entry->d_name));
    if (dir) closedir(dir);
}

static void refused(const char *what, pmlp_result got, pmlp_result want, const pmlp_error *error,
                    const char *thing) {
    CHECK(got == want, "%s: %s: %s", what, pmlp_result_name(got), error->text);
    CHECK(error->result == got, "%s: the error holds %s", what, pmlp_result_name(error->result));
    CHECK(strlen(error->text) > 8 && !strpbrk(error->text, "\n\r\t"), "%s: says \"%s\"", what,
          error->text);
    CHECK(strstr(error->text, thing) != NULL, "%s: \"%s\" does not say \"%s\"", what, error->text,
          thing);
}

static uint64_t word_of(const pmlp_model *model) {
    uint64_t word = 0;
    pmlp_error error = {0};
    CHECK(pmlp_model_hash(model, &word, &error) == PMLP_OK, "no weights word: %s", error.text);
    return word;
}

/* --- trainers --------------------------------------------------------------------------------- */

typedef struct way {
    int workers, virtual_stages, microbatches;
    pmlp_schedule_kind schedule;
    bool no_threads;
} way;
static const way ways[] = {
    {1, 1, 1, PMLP_SCHEDULE_SEQUENTIAL, true}, {2, 1, 4, PMLP_SCHEDULE_1F1B, false},
    {3, 1, 2, PMLP_SCHEDULE_GPIPE, true},      {2, 2, 4, PMLP_SCHEDULE_INTERLEAVED, true},
    {2, 2, 5, PMLP_SCHEDULE_ZB_V, false},      {4, 1, 7, PMLP_SCHEDULE_ZB_H1, true},
    {1, 1, 3, PMLP_SCHEDULE_1F1B, true},
};
enum { WAYS = sizeof ways / sizeof ways[0] };

static pmlp_trainer_desc how_of(const way *w, pmlp_optimizer optimizer) {
    pmlp_trainer_desc how = {0};
    how.workers = w->workers, how.virtual_stages = w->virtual_stages;
    how.microbatches = w->microbatches, how.schedule = w->schedule, how.no_threads = w->no_threads;
    how.optimizer = optimizer, how.batch = BATCH, how.seed = 5, how.weight_decay = 0.01f;
    return how;
}

typedef struct run {
    pmlp_model *model;
    pmlp_trainer *trainer;
} run;

static run begin(const network *net, uint64_t seed, const pmlp_trainer_desc *how) {
    run r = {make_model(net, seed), NULL};
    pmlp_error error = {0};
    CHECK(pmlp_trainer_create(r.model, how, &r.trainer, &error) == PMLP_OK, "%s", error.text);
    return r;
}

static void end(run *r) {
    pmlp_trainer_destroy(r->trainer);
    pmlp_model_destroy(r->model);
}

static bool fine(const run *r, pmlp_result result) {
    return CHECK(result == PMLP_OK, "%s: %s", pmlp_result_name(result),
                 pmlp_trainer_error(r->trainer)->text);
}

/* Saves, from the callback, when so many steps are done, and stops. */
typedef struct stopper {
    pmlp_trainer *trainer;
    uint64_t at;
    const char *name;
    pmlp_result saved;
} stopper;

static bool stop_at(const pmlp_stats *stats, void *user) {
    stopper *s = user;
    if (stats->step != s->at) return true;
    s->saved = pmlp_trainer_save(s->trainer, path_of(s->name));
    return false;
}

/* --- models ----------------------------------------------------------------------------------- */

static void same_model(const char *what, const pmlp_model *a, const pmlp_model *b) {
    const pmlp_model_desc x = pmlp_model_query_desc(a), y = pmlp_model_query_desc(b);
    bool same = x.layers == y.layers && x.loss == y.loss;
    for (int l = 0; same && l < x.layers; l++)
        same = x.activations[l] == y.activations[l] && x.sizes[l] == y.sizes[l];
    CHECK(same && x.sizes[x.layers] == y.sizes[x.layers], "%s: another network", what);
    CHECK(word_of(a) == word_of(b), "%s: other weights", what);
}

TEST(round_trips) {
    const network *const nets[] = {&small_net, &other_net, &tiny_net};
    for (int n = 0; n < 3; n++) {
        pmlp_model *model = make_model(nets[n], 3), *loaded = NULL, *parsed = NULL;
        pmlp_model *taken = make_model(nets[n], 4);
        pmlp_error error = {0};
        for (int again = 0; again < 2; again++)
            CHECK(pmlp_model_save(model, path_of("m"), &error) == PMLP_OK, "%s", error.text);
        if (CHECK(pmlp_model_load(path_of("m"), NULL, &loaded, &error) == PMLP_OK, "%s",
                  error.text))
            same_model("loaded", model, loaded);
        CHECK(pmlp_model_load_weights(taken, path_of("m"), &error) == PMLP_OK, "%s", error.text);
        same_model("weights", model, taken);
        bytes b = read_bytes("m");
        unsigned char *odd = malloc(b.size + 1); /* at every alignment */
        memcpy(odd + 1, b.data, b.size);
        if (CHECK(pmlp_model_parse(odd + 1, b.size, NULL, &parsed, &error) == PMLP_OK, "%s",
                  error.text))
            same_model("parsed", model, parsed);
        CHECK(pmlp_model_save(parsed, path_of("again"), &error) == PMLP_OK, "%s", error.text);
        CHECK(same_files("m", "again"), "%s: another file of the same model", nets[n]->name);
        char word[20];
        snprintf(word, sizeof word, "%016llx", (unsigned long long)word_of(model));
        b.data[b.size - 1] = 0;
        CHECK(strstr((char *)b.data + 8, word) != NULL, "the file does not hold its weights word");
        CHECK(count_files() == 2, "%d files are left", count_files());
        free(odd);
        free(b.data);
        pmlp_model_destroy(model), pmlp_model_destroy(loaded), pmlp_model_destroy(parsed);
        pmlp_model_destroy(taken);
    }
    empty_folder();
    SAY("models: saved, loaded, parsed, saved again: the same bits, the same files");
}

/* --- resuming --------------------------------------------------------------------------------- */

/* Trains EPOCHS epochs, or what is left of them, and saves. */
static double train(run *r, const pmlp_data *data, const char *name) {
    pmlp_stats stats = {0};
    pmlp_position at = {0};
    fine(r, pmlp_trainer_position(r->trainer, &at));
    for (uint64_t e = at.epoch; e < EPOCHS; e++) {
        if (e > 0) pmlp_trainer_set_learning_rate(r->trainer, 0.003f);
        fine(r, pmlp_trainer_epoch(r->trainer, data, &stats));
        CHECK(stats.rows == ROWS && stats.total_rows == ROWS && stats.steps == STEPS,
              "stats of %d rows", (int)stats.rows);
        CHECK(stats.epoch == e + 1 && stats.step == (e + 1) * STEPS, "epoch %d, step %d",
              (int)stats.epoch, (int)stats.step);
    }
    fine(r, pmlp_trainer_save(r->trainer, path_of(name)));
    return stats.loss;
}

/* Stops the training of way a after so many steps, goes on with way b. */
static void stop_and_resume(const pmlp_data *data, pmlp_optimizer optimizer, const way *a,
                            const way *b, uint64_t steps, double loss) {
    stopper stop = {NULL, steps, "stopped", PMLP_OK};
    pmlp_trainer_desc how = how_of(a, optimizer);
    pmlp_position at = {0};
    how.progress = stop_at, how.progress_user = &stop;
    run first = begin(&small_net, 1, &how);
    stop.trainer = first.trainer;
    if (steps == 0) stop.saved = pmlp_trainer_save(first.trainer, path_of("stopped"));
    for (uint64_t e = 0; e * STEPS < steps; e++) {
        if (e > 0) pmlp_trainer_set_learning_rate(first.trainer, 0.003f);
        const pmlp_result result = pmlp_trainer_epoch(first.trainer, data, NULL);
        const bool stops = steps <= (e + 1) * STEPS;
        CHECK(result == (stops ? PMLP_ERROR_CANCELLED : PMLP_OK), "epoch %d: %s", (int)e,
              pmlp_result_name(result));
    }
    CHECK(stop.saved == PMLP_OK, "saving: %s", pmlp_trainer_error(first.trainer)->text);
    fine(&first, pmlp_trainer_save(first.trainer, path_of("behind")));
    CHECK(same_files("stopped", "behind"), "saved in the callback and behind it: other files");

    how = how_of(b, optimizer);
    run second = begin(&small_net, 2, &how); /* other weights, other threads, other cuts */
    fine(&second, pmlp_trainer_load(second.trainer, path_of("stopped")));
    CHECK(pmlp_trainer_position(second.trainer, &at) == PMLP_OK && at.step == steps &&
              at.epoch * STEPS + (at.rows + BATCH - 1) / BATCH == steps,
          "step %d, epoch %d, row %d", (int)at.step, (int)at.epoch, (int)at.rows);
    fine(&second, pmlp_trainer_save(second.trainer, path_of("behind")));
    CHECK(same_files("stopped", "behind"), "loaded and saved: another file");
    const double resumed = train(&second, data, "resumed");
    CHECK(memcmp(&loss, &resumed, sizeof loss) == 0, "loss %.17g, not %.17g", resumed, loss);
    CHECK(same_files("whole", "resumed"), "%s, stopped at step %d, %s to %s: another training",
          pmlp_optimizer_name(optimizer), (int)steps, pmlp_schedule_kind_name(a->schedule),
          pmlp_schedule_kind_name(b->schedule));
    end(&first), end(&second);
}

TEST(resuming) {
    const pmlp_data data = some_data(&small_net, ROWS);
    int next = 0, count = 0;
    for (int o = PMLP_SGD; o < PMLP_OPTIMIZER_COUNT; o++) {
        pmlp_trainer_desc how = how_of(&ways[0], (pmlp_optimizer)o);
        run whole = begin(&small_net, 1, &how);
        const double loss = train(&whole, &data, "whole");
        for (uint64_t steps = 0; steps <= STEPS * EPOCHS; steps++, count++, next++)
            stop_and_resume(&data, (pmlp_optimizer)o, &ways[next % WAYS],
                            &ways[(next / WAYS + 3 * next + 1) % WAYS], steps, loss);
        end(&whole);
    }
    empty_folder();
    SAY("stopped after every step of %d, resumed with other workers and schedules: %s times the "
        "same file",
        STEPS * EPOCHS, test_count(count));
}

/* The same trainer goes on, with steps of its owner in between. */
TEST(interrupting) {
    const pmlp_data data = some_data(&small_net, ROWS);
    pmlp_trainer_desc how = how_of(&ways[1], PMLP_ADAM);
    stopper stop = {NULL, 0, "stopped", PMLP_OK};
    pmlp_stats stats = {0};
    pmlp_position at = {0};
    run whole = begin(&small_net, 1, &how);
    train(&whole, &data, "whole");
    how.progress = stop_at, how.progress_user = &stop;
    run r = begin(&small_net, 1, &how);
    stop.trainer = r.trainer;
    for (stop.at = 1; stop.at <= STEPS; stop.at++) {
        CHECK(pmlp_trainer_epoch(r.trainer, &data, &stats) == PMLP_ERROR_CANCELLED, "not stopped");
        CHECK(stats.rows == (stop.at < STEPS ? stop.at * BATCH : ROWS) &&
                  stats.total_rows == ROWS && stats.steps == stop.at,
              "%d rows at step %d", (int)stats.rows, (int)stop.at);
        CHECK(pmlp_trainer_eval(r.trainer, &data, NULL) == PMLP_OK, "no evaluation in between");
    }
    pmlp_data fewer = data;
    fewer.rows--;
    refused("fewer rows", pmlp_trainer_epoch(r.trainer, &fewer, NULL), PMLP_ERROR_SHAPE,
            pmlp_trainer_error(r.trainer), "74 rows");
    stop.at = 0;
    fine(&r, pmlp_trainer_epoch(r.trainer, &data, &stats)); /* nothing is left of it */
    CHECK(stats.epoch == 1 && stats.step == STEPS && stats.rows == ROWS, "epoch %d, %d rows",
          (int)stats.epoch, (int)stats.rows);
    train(&r, &data, "parts");
    CHECK(same_files("whole", "parts"), "an epoch in parts: another training");

    stop.at = 2 * STEPS + 2;
    CHECK(pmlp_trainer_epoch(r.trainer, &data, NULL) == PMLP_ERROR_CANCELLED, "not stopped");
    CHECK(pmlp_trainer_position(r.trainer, &at) == PMLP_OK && at.rows == 2 * BATCH &&
              at.total_rows == ROWS && at.epoch == 2 && at.step == 12,
          "row %d", (int)at.rows);
    fine(&r, pmlp_trainer_restart_epoch(r.trainer));
    CHECK(pmlp_trainer_position(r.trainer, &at) == PMLP_OK && at.rows == 0 && at.total_rows == 0 &&
              at.step == 12,
          "after a restart row %d", (int)at.rows);
    fine(&r, pmlp_trainer_epoch(r.trainer, &data, &stats));
    CHECK(stats.rows == ROWS && stats.step == 3 * STEPS + 2 && stats.epoch == 3, "step %d",
          (int)stats.step);
    CHECK(pmlp_trainer_position(NULL, &at) == PMLP_ERROR_ARGUMENT &&
              pmlp_trainer_position(r.trainer, NULL) == PMLP_ERROR_ARGUMENT &&
              pmlp_trainer_restart_epoch(NULL) == PMLP_ERROR_ARGUMENT,
          "NULL");
    end(&whole), end(&r);
    empty_folder();
    SAY("an epoch in parts is the whole epoch, its stats too; restarted; refused other data");
}

/* PipeDream goes on as if never stopped; 2BW from one version, whatever the trainer did before. */
TEST(asynchronous) {
    const way dream = {2, 1, 4, PMLP_SCHEDULE_PIPEDREAM, true};
    const way two = {2, 1, 4, PMLP_SCHEDULE_PIPEDREAM_2BW, true};
    const pmlp_data data = some_data(&small_net, ROWS), many = some_data(&small_net, MANY);
    pmlp_trainer_desc how = how_of(&dream, PMLP_ADAM);
    stopper stop = {NULL, 65536 / BATCH, "stopped", PMLP_OK};

    how.progress = stop_at, how.progress_user = &stop;
    run whole = begin(&small_net, 1, &how), stopped, resumed;
    stop.trainer = whole.trainer; /* an epoch that drains once, and is stopped there */
    CHECK(pmlp_trainer_epoch(whole.trainer, &many, NULL) == PMLP_ERROR_CANCELLED, "not stopped");
    resumed = begin(&small_net, 2, &how);
    fine(&resumed, pmlp_trainer_load(resumed.trainer, path_of("stopped")));
    for (int i = 0; i < 2; i++) {
        run *r = i ? &resumed : &whole;
        fine(r, pmlp_trainer_epoch(r->trainer, &many, NULL));
        fine(r, pmlp_trainer_step(r->trainer, &(pmlp_data){BATCH, data_x, data_labels, NULL, false},
                                  NULL));
        fine(r, pmlp_trainer_save(r->trainer, path_of(i ? "resumed" : "whole")));
    }
    CHECK(same_files("whole", "resumed"), "pipedream: another training");
    end(&whole), end(&resumed);

    how = how_of(&two, PMLP_MOMENTUM);
    how.no_shuffle = true;
    stopped = begin(&small_net, 1, &how);
    fine(&stopped, pmlp_trainer_epoch(stopped.trainer, &data, NULL));
    fine(&stopped, pmlp_trainer_save(stopped.trainer, path_of("stopped")));
    resumed = begin(&small_net, 2, &how);
    run used = begin(&small_net, 3, &how);
    for (int i = 0; i < 3; i++) fine(&used, pmlp_trainer_epoch(used.trainer, &data, NULL));
    run *const both[] = {&resumed, &used};
    for (int i = 0; i < 2; i++) {
        fine(both[i], pmlp_trainer_load(both[i]->trainer, path_of("stopped")));
        fine(both[i], pmlp_trainer_epoch(both[i]->trainer, &data, NULL));
        fine(both[i], pmlp_trainer_save(both[i]->trainer, path_of(i ? "used" : "resumed")));
    }
    CHECK(same_files("resumed", "used"), "2bw: what the trainer had done before shows");
    /* its first batch reads what was loaded: so does a synchronous step, and the weights agree */
    fine(&used, pmlp_trainer_load(used.trainer, path_of("stopped")));
    how = how_of(&ways[0], PMLP_MOMENTUM);
    how.no_shuffle = true;
    run serial = begin(&small_net, 4, &how);
    fine(&serial, pmlp_trainer_load(serial.trainer, path_of("stopped")));
    const pmlp_data batch = {BATCH, data_x, data_labels, NULL, false};
    fine(&serial, pmlp_trainer_step(serial.trainer, &batch, NULL));
    fine(&used, pmlp_trainer_step(used.trainer, &batch, NULL));
    fine(&serial, pmlp_trainer_sync(serial.trainer));
    fine(&used, pmlp_trainer_sync(used.trainer));
    CHECK(word_of(serial.model) == word_of(used.model), "2bw: the first batch reads other weights");
    end(&stopped), end(&resumed), end(&used), end(&serial);
    empty_folder();
    SAY("pipedream resumed where it drained: the same file; 2bw resumed from one version");
}

/* What is not the same is refused with both values, and nothing is changed. */
TEST(mismatches) {
    const pmlp_data data = some_data(&small_net, ROWS);
    pmlp_trainer_desc how = how_of(&ways[1], PMLP_ADAM);
    run saved = begin(&small_net, 1, &how);
    fine(&saved, pmlp_trainer_epoch(saved.trainer, &data, NULL));
    fine(&saved, pmlp_trainer_save(saved.trainer, path_of("it")));
    network nets[5];
    for (int i = 0; i < 5; i++) nets[i] = small_net;
    nets[0].sizes[1] = 41, nets[1].layers = 3, nets[2].act[1] = PMLP_RELU;
    nets[3].loss = PMLP_LOSS_MSE, nets[4].sizes[0] = 4;
    const char *const nets_say[][2] = {
        {"[40][5]", "[41][5]"}, {"4 layers", "has 3"}, {"gelu", "relu"}, {"xent", "mse"},
        {"[40][5]", "[40][4]"}};
    const char *const says[][2] = {
        {"16", "17"}, {"adam", "adamw"}, {"5", "6"},        {"yes", "no"},      {"0.01", "0.02"},
        {"0", "2.5"}, {"0.9", "0.8"},    {"0.999", "0.99"}, {"1e-08", "1e-07"}, {"adam", "sgd"}};
    for (int i = 0; i < 15; i++) {
        const int net = i < 4 ? i : i == 14 ? 4 : -1;
        const char *const *say = net >= 0 ? nets_say[net] : says[i - 4];
        how = how_of(&ways[0], PMLP_ADAM);
        if (i == 4) how.batch = 17;
        if (i == 5) how.optimizer = PMLP_ADAMW;
        if (i == 6) how.seed = 6;
        if (i == 7) how.no_shuffle = true;
        if (i == 8) how.weight_decay = 0.02f;
        if (i == 9) how.clip_norm = 2.5f;
        if (i == 10) how.beta1 = 0.8f;
        if (i == 11) how.beta2 = 0.99f;
        if (i == 12) how.epsilon = 1e-7f;
        if (i == 13) how.optimizer = PMLP_SGD;
        run r = begin(net >= 0 ? &nets[net] : &small_net, 7, &how);
        fine(&r, pmlp_trainer_save(r.trainer, path_of("before")));
        refused(say[1], pmlp_trainer_load(r.trainer, path_of("it")),
                i < 2 || i == 14 ? PMLP_ERROR_SHAPE : PMLP_ERROR_ARGUMENT,
                pmlp_trainer_error(r.trainer), say[0]);
        CHECK(strstr(pmlp_trainer_error(r.trainer)->text, say[1]) != NULL, "\"%s\" lacks %s",
              pmlp_trainer_error(r.trainer)->text, say[1]);
        fine(&r, pmlp_trainer_save(r.trainer, path_of("after")));
        CHECK(same_files("before", "after"), "%s: the trainer has changed", say[1]);
        end(&r);
    }
    pmlp_error error = {0};
    pmlp_trainer *const t = saved.trainer;
    refused("a model under a trainer", pmlp_model_load_weights(saved.model, path_of("it"), &error),
            PMLP_ERROR_STATE, &error, "trainer");
    refused("weights elsewhere", pmlp_model_save(saved.model, path_of("m"), &error),
            PMLP_ERROR_STATE, &error, "sync");
    fine(&saved, pmlp_trainer_sync(t));
    CHECK(pmlp_model_save(saved.model, path_of("m"), &error) == PMLP_OK, "%s", error.text);
    refused("a model alone", pmlp_trainer_load(t, path_of("m")), PMLP_ERROR_PARSE,
            pmlp_trainer_error(t), "no training");
    refused("no file", pmlp_trainer_load(t, path_of("none")), PMLP_ERROR_FILE,
            pmlp_trainer_error(t), "No such file");
    refused("NULL", pmlp_trainer_load(t, NULL), PMLP_ERROR_ARGUMENT, pmlp_trainer_error(t), "path");
    refused("NULL", pmlp_trainer_save(t, NULL), PMLP_ERROR_ARGUMENT, pmlp_trainer_error(t), "path");
    refused("\"\"", pmlp_trainer_save(t, ""), PMLP_ERROR_ARGUMENT, pmlp_trainer_error(t), "empty");
    CHECK(pmlp_trainer_save(NULL, "x") == PMLP_ERROR_ARGUMENT &&
              pmlp_trainer_load(NULL, "x") == PMLP_ERROR_ARGUMENT,
          "no trainer");
    pmlp_model *model = NULL;
    CHECK(pmlp_model_load(path_of("it"), NULL, &model, &error) == PMLP_OK, "%s", error.text);
    same_model("the model of a training", saved.model, model);
    pmlp_model_destroy(model);
    CHECK(pmlp_model_load(NULL, NULL, &model, NULL) == PMLP_ERROR_ARGUMENT &&
              pmlp_model_load("x", NULL, NULL, NULL) == PMLP_ERROR_ARGUMENT &&
              pmlp_model_parse(NULL, 0, NULL, &model, NULL) == PMLP_ERROR_ARGUMENT &&
              pmlp_model_parse("x", 1, NULL, NULL, NULL) == PMLP_ERROR_ARGUMENT &&
              pmlp_model_load_weights(NULL, "x", NULL) == PMLP_ERROR_ARGUMENT &&
              pmlp_model_save(NULL, "x", NULL) == PMLP_ERROR_ARGUMENT &&
              pmlp_model_save(saved.model, NULL, NULL) == PMLP_ERROR_ARGUMENT,
          "NULL");
    pmlp_model *other = make_model(&other_net, 1);
    CHECK(pmlp_model_save(other, path_of("m"), NULL) == PMLP_OK, "not saved");
    refused("a single layer", pmlp_trainer_load(t, path_of("m")), PMLP_ERROR_SHAPE,
            pmlp_trainer_error(t), "has 1 layer, the model has 4");
    pmlp_model_destroy(other);
    end(&saved);
    empty_folder();
    SAY("15 settings that differ are refused with both values, and wrong calls; nothing changes");
}

/* A gradient of before the load is nobody's; loading into a trainer that has trained is loading. */
TEST(over_another) {
    const pmlp_data data = some_data(&small_net, ROWS);
    pmlp_trainer_desc how = how_of(&ways[1], PMLP_NESTEROV);
    float dw[40 * 5];
    how.keep_gradients = true;
    run a = begin(&small_net, 1, &how), b = begin(&small_net, 2, &how);
    fine(&a, pmlp_trainer_epoch(a.trainer, &data, NULL));
    fine(&a, pmlp_trainer_save(a.trainer, path_of("a")));
    for (int i = 0; i < 3; i++) fine(&b, pmlp_trainer_epoch(b.trainer, &data, NULL));
    fine(&b, pmlp_trainer_gradient(b.trainer, 0, dw, NULL));
    fine(&b, pmlp_trainer_load(b.trainer, path_of("a")));
    CHECK(pmlp_trainer_gradient(b.trainer, 0, dw, NULL) == PMLP_ERROR_STATE, "an old gradient");
    fine(&a, pmlp_trainer_sync(a.trainer));
    CHECK(word_of(b.model) == word_of(a.model), "the model has other weights after a load");
    fine(&a, pmlp_trainer_epoch(a.trainer, &data, NULL));
    fine(&b, pmlp_trainer_epoch(b.trainer, &data, NULL));
    fine(&a, pmlp_trainer_save(a.trainer, path_of("a")));
    fine(&b, pmlp_trainer_save(b.trainer, path_of("b")));
    CHECK(same_files("a", "b"), "what was there before shows");
    end(&a), end(&b);
    empty_folder();
    SAY("loaded into a trainer that had trained something else: nothing of that is left");
}

/* --- files that are not what they should be --------------------------------------------------- */

/* A header and so many bytes of data, 0, 1, 2, ..., as one file in a block of exactly its size. */
static bytes make_file(const char *header, size_t data) {
    const size_t length = strlen(header);
    bytes b = {malloc(8 + length + data), 8 + length + data};
    if (!b.data) exit(1);
    for (size_t i = 0; i < 8; i++) b.data[i] = (unsigned char)((uint64_t)length >> 8 * i);
    memcpy(b.data + 8, header, length);
    for (size_t i = 0; i < data; i++) b.data[8 + length + i] = (unsigned char)i;
    return b;
}

static pmlp_result parse(bytes b, pmlp_error *error) {
    test_memory memory;
    pmlp_model *model = (pmlp_model *)&memory;
    test_memory_init(&memory, 0);
    memset(error, 0, sizeof *error);
    const pmlp_result result = pmlp_model_parse(b.data, b.size, &memory.allocator, &model, error);
    CHECK((model != NULL) == (result == PMLP_OK), "a model in spite of %s",
          pmlp_result_name(result));
    pmlp_model_destroy(model);
    CHECK(memory.blocks == 0, "%ld blocks are lost", memory.blocks);
    CHECK(memory.peak < 1 << 16 || b.size > 1 << 12, "%ld bytes asked for", (long)memory.peak);
    return result;
}

/* clang-format off: a line for each case */
#define W(name, shape, at)                                                                         \
  "\"" name "\":{\"dtype\":\"F32\",\"shape\":" shape ",\"data_offsets\":" at "}"
#define GOOD_W W("0.weight", "[1,2]", "[0,8]")
#define GOOD_B W("0.bias", "[1]", "[8,12]")

TEST(headers) {
    static const struct {
        const char *header;
        size_t data;
        pmlp_result result;
        const char *says;
    } cases[] = {
        {"{" GOOD_W "," GOOD_B "}", 12, PMLP_OK, ""},
        {" \t\r\n{ " GOOD_W " ,\n" GOOD_B " }  \n", 12, PMLP_OK, ""},
        {"{" GOOD_B "," GOOD_W ",\"__metadata__\":{}}", 12, PMLP_OK, ""},
        {"{\"__metadata__\":{\"a\\\"b\":\"\"}," GOOD_W "," GOOD_B "}", 12, PMLP_ERROR_PARSE,
         "escape"},
        {"{\"__metadata__\":{\"a\":\"\\u00e9\\n\\\\\"}," GOOD_W "," GOOD_B "}", 12, PMLP_OK, ""},
        {"{\"__metadata__\":{\"a\":\"\\u00g9\"}," GOOD_W "," GOOD_B "}", 12, PMLP_ERROR_PARSE,
         "escape"},
        {"{\"__metadata__\":{\"a\":\"\\x\"}," GOOD_W "," GOOD_B "}", 12, PMLP_ERROR_PARSE,
         "escape"},
        {"{\"__metadata__\":{\"a\":1}," GOOD_W "," GOOD_B "}", 12, PMLP_ERROR_PARSE,
         "expected '\"'"},
        {"{\"__metadata__\":{\"a\":{\"b\":{}}}," GOOD_W "," GOOD_B "}", 12, PMLP_ERROR_PARSE,
         "expected '\"'"},
        {"{\"__metadata__\":{\"a\":\"1\",\"a\":\"1\"}," GOOD_W "," GOOD_B "}", 12, PMLP_ERROR_PARSE,
         "twice"},
        {"{\"__metadata__\":{}," GOOD_W ",\"__metadata__\":{}," GOOD_B "}", 12, PMLP_ERROR_PARSE,
         "twice"},
        {"{\"__metadata__\":{\"a\":\"\n\"}," GOOD_W "," GOOD_B "}", 12, PMLP_ERROR_PARSE,
         "control"},
        {"{\"__metadata__\":{\"a\":\"\xc3\xa9\"}," GOOD_W "," GOOD_B "}", 12, PMLP_OK, ""},
        {"{\"__metadata__\":{\"a\":\"\xc3\"}," GOOD_W "," GOOD_B "}", 12, PMLP_ERROR_PARSE,
         "UTF-8"},
        {"{\"__metadata__\":{\"a\":\"\xed\xa0\x80\"}," GOOD_W "," GOOD_B "}", 12, PMLP_ERROR_PARSE,
         "UTF-8"},
        {"{\"__metadata__\":{\"a\":\"\xc0\x80\"}," GOOD_W "," GOOD_B "}", 12, PMLP_ERROR_PARSE,
         "UTF-8"},
        {"{\"__metadata__\":{\"a\":\"\xe0\xa0\x80\"}," GOOD_W "," GOOD_B "}", 12, PMLP_OK, ""},
        {"{\"__metadata__\":{\"a\":\"\xe0\x9f\xbf\"}," GOOD_W "," GOOD_B "}", 12, PMLP_ERROR_PARSE,
         "UTF-8"},
        {"{\"__metadata__\":{\"a\":\"\xed\x9f\xbf\"}," GOOD_W "," GOOD_B "}", 12, PMLP_OK, ""},
        {"{\"__metadata__\":{\"a\":\"\xf0\x90\x80\x80\"}," GOOD_W "," GOOD_B "}", 12, PMLP_OK, ""},
        {"{\"__metadata__\":{\"a\":\"\xf0\x8f\xbf\xbf\"}," GOOD_W "," GOOD_B "}", 12,
         PMLP_ERROR_PARSE, "UTF-8"},
        {"{\"__metadata__\":{\"a\":\"\xf4\x8f\xbf\xbf\"}," GOOD_W "," GOOD_B "}", 12, PMLP_OK, ""},
        {"{\"__metadata__\":{\"a\":\"\xf4\x90\x80\x80\"}," GOOD_W "," GOOD_B "}", 12,
         PMLP_ERROR_PARSE, "UTF-8"},
        {"{\"__metadata__\":{\"a\":\"\xe1\x80\x80\"}," GOOD_W "," GOOD_B "}", 12, PMLP_OK, ""},
        {"{\"__metadata__\":{\"a\":\"\xf1\x80\x80\x80\"}," GOOD_W "," GOOD_B "}", 12, PMLP_OK, ""},
        {"{\"__metadata__\":{\"a\":\"\xe2\x82", 0, PMLP_ERROR_PARSE, "UTF-8"}, /* cut here */
        {"{\"__metadata__\":{\"a\":\"\\", 0, PMLP_ERROR_PARSE, "escape"},
        {"{\"__metadata__\":{\"a\":\"\\u00", 0, PMLP_ERROR_PARSE, "escape"},
        {"{\"0.weight\":{\"dtype\":\"F32\",\"shape\":[1", 0, PMLP_ERROR_PARSE, "expected ']'"},
        {"{\"__metadata__\":{\"\":\"x\"}," GOOD_W "," GOOD_B "}", 12, PMLP_OK, ""},
        {"{\"__metadata__\":{\"activations\":\"tanh\",\"loss\":\"mse\"}," GOOD_W "," GOOD_B "}", 12,
         PMLP_OK, ""},
        {"{\"__metadata__\":{\"activations\":\"tanh,relu\"}," GOOD_W "," GOOD_B "}", 12,
         PMLP_ERROR_PARSE, "tanh,relu"},
        {"{\"__metadata__\":{\"activations\":\"\"}," GOOD_W "," GOOD_B "}", 12, PMLP_ERROR_PARSE,
         "activations"},
        {"{\"__metadata__\":{\"activations\":\"tanh,\"}," GOOD_W "," GOOD_B "}", 12,
         PMLP_ERROR_PARSE, "activations"},
        {"{\"__metadata__\":{\"loss\":\"hinge\"}," GOOD_W "," GOOD_B "}", 12, PMLP_ERROR_PARSE,
         "hinge"},
        {"{\"__metadata__\":{\"pipemlp\":\"2\"}," GOOD_W "," GOOD_B "}", 12, PMLP_ERROR_UNSUPPORTED,
         "version '2'"},
        {"{\"__metadata__\":{\"pipemlp\":\"1\"}," GOOD_W "," GOOD_B "}", 12, PMLP_ERROR_PARSE,
         "missing"},
        {"{\"__metadata__\":{\"pipemlp_checksum\":\"1\"}," GOOD_W "," GOOD_B "}", 12,
         PMLP_ERROR_PARSE, "checksum"},
        {"", 12, PMLP_ERROR_PARSE, "expected '{'"},
        {"{}", 0, PMLP_ERROR_PARSE, "no tensors"},
        {"{}", 4, PMLP_ERROR_PARSE, "no tensors"},
        {"[]", 0, PMLP_ERROR_PARSE, "expected '{'"},
        {"{" GOOD_W "," GOOD_B "} x", 12, PMLP_ERROR_PARSE, "end"},
        {"{" GOOD_W "," GOOD_B, 12, PMLP_ERROR_PARSE, "expected '}'"},
        {"{" GOOD_W "," GOOD_B ",}", 12, PMLP_ERROR_PARSE, "expected '\"'"},
        {"{" GOOD_W " " GOOD_B "}", 12, PMLP_ERROR_PARSE, "expected '}'"},
        {"{" GOOD_W "," GOOD_W "}", 8, PMLP_ERROR_PARSE, "twice"},
        {"{" GOOD_W "," GOOD_B "}", 13, PMLP_ERROR_PARSE, "promises 12 bytes"},
        {"{" GOOD_W "," GOOD_B "}", 11, PMLP_ERROR_PARSE, "promises 12 bytes"},
        {"{" GOOD_W "," W("0.bias", "[1]", "[4,8]") "}", 8, PMLP_ERROR_PARSE, "begins at byte 4"},
        {"{" GOOD_W "," W("0.bias", "[1]", "[12,16]") "}", 16, PMLP_ERROR_PARSE,
         "begins at byte 12"},
        {"{" GOOD_W "," W("0.bias", "[1]", "[0,4]") "}", 8, PMLP_ERROR_PARSE, "begins at byte 0"},
        {"{" GOOD_W "," W("0.bias", "[1]", "[12,8]") "}", 12, PMLP_ERROR_PARSE, "agree"},
        {"{" GOOD_W "," W("0.bias", "[2]", "[8,12]") "}", 12, PMLP_ERROR_PARSE, "agree"},
        {"{" W("0.weight", "[4294967296,4294967296]", "[0,0]") "}", 0, PMLP_ERROR_PARSE, "large"},
        {"{" W("0.weight", "[4611686018427387904]", "[0,0]") "}", 0, PMLP_ERROR_PARSE, "large"},
        {"{" W("0.weight", "[99999999999999999999]", "[0,0]") "}", 0, PMLP_ERROR_PARSE, "large"},
        {"{" W("0.weight", "[1,1]", "[18446744073709551612,18446744073709551616]") "}", 4,
         PMLP_ERROR_PARSE, "large"},
        {"{" W("0.weight", "[1,1]", "[18446744073709551611,18446744073709551615]") "}", 4,
         PMLP_ERROR_PARSE, "begins"},
        {"{" W("0.weight", "[1,268435456]", "[0,1073741824]") "," W("0.bias", "[1]",
                                                                    "[1073741824,1073741828]") "}",
         12, PMLP_ERROR_PARSE, "promises"},
        {"{" W("0.weight", "[01,2]", "[0,8]") "," GOOD_B "}", 12, PMLP_ERROR_PARSE, "whole number"},
        {"{" W("0.weight", "[-1,2]", "[0,8]") "," GOOD_B "}", 12, PMLP_ERROR_PARSE, "whole number"},
        {"{" W("0.weight", "[1.0,2]", "[0,8]") "," GOOD_B "}", 12, PMLP_ERROR_PARSE,
         "expected ']'"},
        {"{" W("0.weight", "[1,2,]", "[0,8]") "," GOOD_B "}", 12, PMLP_ERROR_PARSE, "whole number"},
        {"{" W("0.weight", "[[[1]],2]", "[0,8]") "," GOOD_B "}", 12, PMLP_ERROR_PARSE, "whole"},
        {"{" W("0.weight", "[1,2]", "[0,8,8]") "," GOOD_B "}", 12, PMLP_ERROR_PARSE,
         "expected ']'"},
        {"{" W("0.weight", "[1,2]", "[0]") "," GOOD_B "}", 12, PMLP_ERROR_PARSE, "expected ','"},
        {"{\"0.weight\":{\"dtype\":\"F32\",\"shape\":[1,2]}," GOOD_B "}", 12, PMLP_ERROR_PARSE,
         "each"},
        {"{\"0.weight\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[1,2],\"data_offsets\":[0,8]},"
         GOOD_B
         "}",
         12, PMLP_ERROR_PARSE, "each once"},
        {"{\"0.weight\":{\"dtype\":\"F32\",\"shape\":[1,2],\"data_offsets\":[0,8],\"x\":1}," GOOD_B
         "}",
         12, PMLP_ERROR_PARSE, "each once"},
        {"{\"0.weight\":{}," GOOD_B "}", 12, PMLP_ERROR_PARSE, "expected '\"'"},
        {"{\"0.weight\":[]," GOOD_B "}", 12, PMLP_ERROR_PARSE, "expected '{'"},
        {"{\"0.weight\":{\"dtype\":\"I64\",\"shape\":[1,2],\"data_offsets\":[0,16]}," GOOD_B "}",
         20, PMLP_ERROR_UNSUPPORTED, "'I64'"},
        {"{\"0\\u002eweight\":{\"dtype\":\"F32\",\"shape\":[1,2],\"data_offsets\":[0,8]}," GOOD_B
         "}",
         12, PMLP_ERROR_PARSE, "escape"},
        {"{" GOOD_W "}", 8, PMLP_ERROR_PARSE, "'0.bias' is missing"},
        {"{" W("7.bias", "[1]", "[0,4]") "}", 4, PMLP_ERROR_PARSE, "'7.weight' is missing"},
        {"{" GOOD_W "," GOOD_B "," W("1.weight", "[1,1]", "[12,16]") "}", 16, PMLP_ERROR_PARSE,
         "'1.bias' is missing"},
        {"{" GOOD_W "," GOOD_B "," W("0.weight.moment1", "[1,2]", "[12,20]") "}", 20,
         PMLP_ERROR_PARSE, "'0.bias.moment1' is missing"},
        {"{" GOOD_W "," GOOD_B "," W("0.weight.moment2", "[1,2]", "[12,20]") "}", 20,
         PMLP_ERROR_PARSE, "'0.weight.moment1' is missing"},
        {"{" W("00.weight", "[1,2]", "[0,8]") "," GOOD_B "}", 12, PMLP_ERROR_PARSE, "00.weight"},
        {"{" W("weight", "[1,2]", "[0,8]") "," GOOD_B "}", 12, PMLP_ERROR_PARSE, "'weight'"},
        {"{" W("x.weight", "[1,2]", "[0,8]") "," GOOD_B "}", 12, PMLP_ERROR_PARSE, "x.weight"},
        {"{" W("1234567890.weight", "[1,2]", "[0,8]") "," GOOD_B "}", 12, PMLP_ERROR_PARSE,
         "12345"},
        {"{" W("an.endless.name.of.a.tensor.that.no.sentence.has.room.for.as.it.goes.on.and.on.and."
               "on.and.on", "[1,2]", "[0,8]") "," GOOD_B "}", 12, PMLP_ERROR_PARSE,
         "has.room.for.as.it.goes.on.and.on.a' is"},
        {"{" W("0.running_mean", "[1,2]", "[0,8]") "," GOOD_B "}", 12, PMLP_ERROR_PARSE, "running"},
        {"{" W("a.0.weight", "[1,2]", "[0,8]") "," GOOD_B "}", 12, PMLP_ERROR_PARSE, "'0.bias'"},
        {"{" W("fc1.weight", "[1,2]", "[0,8]") "," W("fc1.bias", "[1]", "[8,12]") "}", 12, PMLP_OK,
         ""},
        {"{" W("0.weight", "[2]", "[0,8]") "," GOOD_B "}", 12, PMLP_ERROR_SHAPE, "is [2];"},
        {"{" W("0.weight", "[]", "[0,4]") "," W("0.bias", "[1]", "[4,8]") "}", 8, PMLP_ERROR_SHAPE,
         "single number"},
        {"{" W("0.weight", "[1,2,1]", "[0,8]") "," GOOD_B "}", 12, PMLP_ERROR_SHAPE, "[1][2]..."},
        {"{" W("0.weight", "[1,2,1,1,1]", "[0,8]") "," GOOD_B "}", 12, PMLP_ERROR_SHAPE,
         "[1][2]..."},
        {"{" W("fc10.weight", "[1,2]", "[0,8]") "," W("fc10.bias", "[1]", "[8,12]") "}", 12,
         PMLP_OK, ""},
        {"{" W("0.weight", "[0,2]", "[0,0]") "," W("0.bias", "[1]", "[0,4]") "}", 4,
         PMLP_ERROR_SHAPE, "[0][2]"},
        {"{" W("0.weight", "[1,0]", "[0,0]") "," W("0.bias", "[1]", "[0,4]") "}", 4,
         PMLP_ERROR_SHAPE, "[1][0]"},
        {"{" W("0.weight", "[0,9223372036854775807]", "[0,0]") "," W("0.bias", "[0]", "[0,0]") "}",
         0, PMLP_ERROR_SHAPE, "each in"},
        {"{" W("0.weight", "[2,1]", "[0,8]") "," GOOD_B "}", 12, PMLP_ERROR_SHAPE, "must be [2]"},
        {"{" GOOD_W "," W("0.bias", "[1,1]", "[8,12]") "}", 12, PMLP_ERROR_SHAPE, "must be [1]"},
        {"{" GOOD_W "," GOOD_B
         "," W("3.weight", "[1,2]", "[12,20]") "," W("3.bias", "[1]", "[20,24]") "}",
         24, PMLP_ERROR_SHAPE, "beside '0.weight' it must be [1][1]"},
    };
    /* clang-format on */
    const int count = (int)(sizeof cases / sizeof cases[0]);
    pmlp_error error;
    for (int i = 0; i < count; i++) {
        bytes b = make_file(cases[i].header, cases[i].data);
        const pmlp_result result = parse(b, &error);
        if (cases[i].result != PMLP_OK)
            refused(cases[i].header, result, cases[i].result, &error, cases[i].says);
        else
            CHECK(result == PMLP_OK, "%s: %s", cases[i].header, error.text);
        free(b.data);
    }
    static const unsigned char lengths[][9] = {
        {0}, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, {2}, {0, 0, 0, 0, 0, 0, 0, 0x80}};
    for (int i = 0; i < 4; i++) {
        unsigned char copy[9];
        memcpy(copy, lengths[i], 9);
        for (size_t size = 0; size <= 9; size++)
            refused("a length", parse((bytes){copy, size}, &error), PMLP_ERROR_PARSE, &error,
                    "file");
    }
    refused("torch.save", parse((bytes){(unsigned char *)"PK\3\4abcdefgh", 12}, &error),
            PMLP_ERROR_PARSE, &error, "save_file");
    SAY("%s headers: what is no safetensors, or no list of layers, is refused and said why",
        test_count(count));
}

/* 100,000 brackets: no reader that calls itself for each of them survives. */
TEST(nesting) {
    enum { DEPTH = 100000 };
    char *header = malloc(DEPTH + 1);
    pmlp_error error;
    for (int c = 0; c < 2; c++) {
        memset(header, "{["[c], DEPTH), header[DEPTH] = '\0';
        bytes b = make_file(header, 0);
        refused("brackets", parse(b, &error), PMLP_ERROR_PARSE, &error, "byte");
        memcpy(b.data + 8, "{\"0.weight\":{\"shape\":", 21);
        refused("brackets", parse(b, &error), PMLP_ERROR_PARSE, &error, "byte");
        free(b.data);
    }
    free(header);
    SAY("%s brackets deep", test_count(DEPTH));
}

/* What is said about a file must be true of each of its bits. */
TEST(every_bit) {
    const pmlp_data data = some_data(&tiny_net, ROWS);
    pmlp_trainer_desc how = how_of(&ways[0], PMLP_ADAM);
    run r = begin(&tiny_net, 1, &how);
    fine(&r, pmlp_trainer_epoch(r.trainer, &data, NULL));
    fine(&r, pmlp_trainer_save(r.trainer, path_of("training")));
    fine(&r, pmlp_trainer_sync(r.trainer));
    CHECK(pmlp_model_save(r.model, path_of("model"), NULL) == PMLP_OK, "not saved");
    long flips = 0, cuts = 0;
    pmlp_error error = {0};
    for (int file = 0; file < 2; file++) {
        bytes b = read_bytes(file ? "training" : "model");
        const size_t bit_step = test_quick() ? 13 : 1;
        CHECK(parse(b, &error) == PMLP_OK, "the file as it is: %s", error.text);
        for (size_t bit = 0; bit < 8 * b.size; bit += bit_step, flips++) {
            b.data[bit / 8] ^= (unsigned char)(1u << bit % 8);
            CHECK(parse(b, &error) != PMLP_OK, "bit %d of byte %d is not missed", (int)(bit % 8),
                  (int)(bit / 8));
            if (file)
                CHECK(pmlp__trainer_parse(r.trainer, b.data, b.size, "file") != PMLP_OK,
                      "bit %d of byte %d is not missed by a trainer", (int)(bit % 8),
                      (int)(bit / 8));
            b.data[bit / 8] ^= (unsigned char)(1u << bit % 8);
        }
        for (size_t size = 0; size < b.size; size++, cuts++) {
            unsigned char *cut = malloc(size ? size : 1);
            memcpy(cut, b.data, size);
            const size_t data_at = 8 + b.data[0] + ((size_t)b.data[1] << 8);
            refused("cut", parse((bytes){cut, size}, &error), PMLP_ERROR_PARSE, &error,
                    size < 8         ? "too few"
                    : size < data_at ? "promises a header"
                                     : "bytes of data");
            free(cut);
        }
        unsigned char *longer = calloc(b.size + 1, 1);
        memcpy(longer, b.data, b.size);
        refused("longer", parse((bytes){longer, b.size + 1}, &error), PMLP_ERROR_PARSE, &error, "");
        free(longer);
        free(b.data);
    }
    fine(&r, pmlp_trainer_save(r.trainer, path_of("after")));
    CHECK(same_files("training", "after"), "a refused file has changed the trainer");
    end(&r);
    empty_folder();
    SAY("%s bits flipped, %s places to end: all refused", test_count(flips), test_count(cuts));
}

/* What says nonsense with a checksum that holds. */
/* The file with one text in its header replaced, of any length, and all lengths and sums right. */
static bytes replaced(bytes b, const char *from, const char *to) {
    const size_t a = strlen(from), z = strlen(to);
    bytes out = {malloc(b.size + z), 0};
    uint64_t length = 0;
    size_t at = 8;
    if (!out.data) exit(1);
    while (at + a < b.size && memcmp(b.data + at, from, a) != 0) at++;
    CHECK(at + a < b.size, "no %s", from);
    memcpy(out.data, b.data, at);
    memcpy(out.data + at, to, z);
    memcpy(out.data + at + z, b.data + at + a, b.size - at - a);
    out.size = b.size + z - a;
    for (size_t i = 0; i < 8; i++) length |= (uint64_t)b.data[i] << 8 * i;
    length += z - a;
    for (size_t i = 0; i < 8; i++) out.data[i] = (unsigned char)(length >> 8 * i);
    free(b.data);
    return out;
}

TEST(forged) {
    const pmlp_data data = some_data(&tiny_net, ROWS);
    static const struct {
        const char *from, *to;
        pmlp_result result;
        const char *says;
    } changes[] = {
        {"\"step\":\"5\"", "\"step\":\"x\"", PMLP_ERROR_PARSE, "sense"},
        {"\"epoch\":\"1\"", "\"epoch\":\"-\"", PMLP_ERROR_PARSE, "sense"},
        {"\"epoch_rows\":\"0\"", "\"epoch_rows\":\"9\"", PMLP_ERROR_PARSE, "sense"},
        {"\"epoch_hits\":\"0\"", "\"epoch_hits\":\"1\"", PMLP_ERROR_PARSE, "sense"},
        {"\"learning_rate\":\"0.001\"", "\"learning_rate\":\"-0.01\"", PMLP_ERROR_PARSE, "sense"},
        {"\"learning_rate\":\"0.001\"", "\"learning_rate\":\"  nan\"", PMLP_ERROR_PARSE, "sense"},
        {"\"epoch_loss\":\"0\"", "\"epoch_loss\":\"z\"", PMLP_ERROR_PARSE, "sense"},
        {"\"updates\":\"5\"", "\"updates\":\".\"", PMLP_ERROR_PARSE, "sense"},
        {"\"updates\"", "\"updetas\"", PMLP_ERROR_PARSE, "sense"},
        {"\"learning_rate\":\"0.001\"", "\"learning_rate\":\"\"", PMLP_ERROR_PARSE, "sense"},
        {"\"learning_rate\":\"0.001\"",
         "\"learning_rate\":\"0.00100000000000000000000000000000000000000\"", PMLP_ERROR_PARSE,
         "sense"},
        {"\"learning_rate\":\"0.001\"", "\"learning_rate\":\"0.002\"", PMLP_OK, ""},
        {"\"step\":\"5\"", "\"step\":\"9007199254740993\"", PMLP_ERROR_PARSE, "sense"},
        {"\"epoch_total_rows\":\"0\"", "\"epoch_total_rows\":\"3000000000\"", PMLP_ERROR_PARSE,
         "sense"},
        {"\"epoch_total_rows\":\"0\",\"epoch_rows\":\"0\"",
         "\"epoch_total_rows\":\"75\",\"epoch_rows\":\"5\"", PMLP_ERROR_PARSE, "sense"},
        {"\"epoch_total_rows\":\"0\",\"epoch_rows\":\"0\"",
         "\"epoch_total_rows\":\"75\",\"epoch_rows\":\"48\"", PMLP_OK, ""},
        {"\"epoch_rows\":\"0\"", "\"epoch_rows\":\"16\"", PMLP_ERROR_PARSE, "sense"},
        {"\"step\"", "\"stop\"", PMLP_ERROR_PARSE, "holds a model, but no training"},
        {"\"optimizer\"", "\"optimum\"", PMLP_ERROR_PARSE, "holds a model, but no training"},
        {"\"optimizer\":\"adam\"", "\"optimizer\":\"sgd\"", PMLP_ERROR_ARGUMENT,
         "sgd in the training"},
        {"\"seed\"", "\"seat\"", PMLP_ERROR_ARGUMENT, "seed: missing in the training"},
        {"\"loss\"", "\"lost\"", PMLP_OK, ""},
        {"\"activations\":\"relu,linear\"", "\"activations\":\"relu\"", PMLP_ERROR_PARSE,
         "its activations are 'relu', expected 2"},
        {"\"activations\"", "\"inactive\"", PMLP_OK, ""}};
    pmlp_trainer_desc how = how_of(&ways[0], PMLP_ADAM);
    run r = begin(&tiny_net, 1, &how);
    fine(&r, pmlp_trainer_epoch(r.trainer, &data, NULL));
    fine(&r, pmlp_trainer_save(r.trainer, path_of("it")));
    const int count = (int)(sizeof changes / sizeof changes[0]);
    for (int i = 0; i <= count; i++) {
        bytes b = read_bytes("it");
        pmlp__image image = {NULL, NULL, NULL, 0, NULL, 0, 0};
        const pmlp_allocator standard = {NULL, NULL, NULL};
        pmlp_error error = {0};
        if (i < count) b = replaced(b, changes[i].from, changes[i].to);
        image.allocator = &standard, image.bytes = b.data, image.size = b.size;
        CHECK(pmlp__image_seal(&image, &error) == PMLP_OK, "%s", error.text);
        const pmlp_result result = pmlp__trainer_parse(r.trainer, b.data, b.size, "the file");
        if (i < count && changes[i].result != PMLP_OK)
            refused(changes[i].to, result, changes[i].result, pmlp_trainer_error(r.trainer),
                    changes[i].says);
        else
            fine(&r, result);
        free(b.data);
    }
    end(&r);
    how = how_of(&ways[0], PMLP_SGD); /* one that claims to be of an optimizer with moments */
    r = begin(&tiny_net, 1, &how);
    fine(&r, pmlp_trainer_save(r.trainer, path_of("it")));
    end(&r);
    how.optimizer = PMLP_MOMENTUM;
    r = begin(&tiny_net, 1, &how);
    bytes b = replaced(read_bytes("it"), "\"optimizer\":\"sgd\"",
                       "\"momentum\":\"0.9\",\"optimizer\":\"momentum\"");
    pmlp__image image = {NULL, NULL, NULL, 0, NULL, 0, 0};
    const pmlp_allocator standard = {NULL, NULL, NULL};
    image.allocator = &standard, image.bytes = b.data, image.size = b.size;
    CHECK(pmlp__image_seal(&image, NULL) == PMLP_OK, "not sealed");
    refused("no moments", pmlp__trainer_parse(r.trainer, b.data, b.size, "the file"),
            PMLP_ERROR_PARSE, pmlp_trainer_error(r.trainer),
            "has 0 moments of each weight, momentum has 1");
    free(b.data);
    end(&r);
    empty_folder();
    SAY("%d made-up trainings with a checksum that holds: refused, or harmless", count);
}

/* --- other programs' files -------------------------------------------------------------------- */

/* The obvious way: sign, a power of two, and a number below 2. */
static float half_value(unsigned half) {
    const int exponent = (int)(half >> 10 & 31);
    const double rest = (double)(half & 1023) / 1024, sign = half >> 15 ? -1 : 1;
    if (exponent == 31) return half & 1023 ? NAN : (float)(sign * HUGE_VAL);
    return (float)(sign * (exponent ? ldexp(1 + rest, exponent - 15) : ldexp(rest, -14)));
}

TEST(types) {
    enum { N = 65536 };
    char header[400];
    unsigned char *numbers = malloc((size_t)N * 8);
    long seen = 0;
    for (int type = 0; type < PMLP__TYPE_COUNT; type++) {
        const size_t size = pmlp__types[type].size;
        const char *name = pmlp__types[type].name;
        pmlp_model *model = NULL;
        pmlp_params p = {0};
        pmlp_error error = {0};
        snprintf(header, sizeof header,
                 "{\"0.weight\":{\"dtype\":\"%s\",\"shape\":[1,%d],\"data_offsets\":[0,%d]},"
                 "\"0.bias\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[%d,%d]}}",
                 name, N, (int)(N * size), (int)(N * size), (int)(N * size + 4));
        bytes b = make_file(header, N * size + 4);
        unsigned char *at = b.data + b.size - N * size - 4;
        uint64_t rng = 1;
        for (unsigned i = 0; i < N; i++) {
            uint64_t bits = size == 2 ? i : test_random(&rng);
            const double wide = ldexp((double)test_random(&rng), (int)(i % 300) - 180);
            if (size == 8) memcpy(&bits, &wide, sizeof bits);
            for (size_t k = 0; k < size; k++) at[i * size + k] = (unsigned char)(bits >> 8 * k);
        }
        if (!CHECK(pmlp_model_parse(b.data, b.size, NULL, &model, &error) == PMLP_OK, "%s",
                   error.text))
            continue;
        pmlp_model_params(model, 0, &p, NULL);
        for (unsigned i = 0; i < N; i++, seen++) {
            float want = type == PMLP__F16 ? half_value(i) : 0;
            double wide;
            const uint32_t shifted = (uint32_t)i << 16;
            if (type == PMLP__F32) memcpy(&want, at + 4 * i, 4); /* this host is little-endian, */
            if (type == PMLP__F64) memcpy(&wide, at + 8 * i, 8), want = (float)wide;
            if (type == PMLP__BF16) memcpy(&want, &shifted, 4);
            CHECK(memcmp(&want, &p.w[i], 4) == 0 || (want != want && p.w[i] != p.w[i]),
                  "%s %u: %g, not %g", name, i, (double)p.w[i], (double)want);
        }
        pmlp_model_destroy(model);
        free(b.data);
    }
    free(numbers);
    SAY("F32, F64, F16, BF16: %s numbers, among them all of 16 bits", test_count(seen));
}

TEST(numbers) {
    uint64_t rng = 3;
    const int count = test_quick() ? 20000 : 200000;
    for (int i = 0; i < count; i++) {
        const uint64_t bits = test_random(&rng);
        const uint32_t low = (uint32_t)bits;
        char text[64] = "";
        pmlp__text out = {text, sizeof text, 0};
        pmlp__slice slice = {text, 0};
        double wide, back = 0;
        float narrow;
        memcpy(&wide, &bits, sizeof wide);
        memcpy(&narrow, &low, sizeof narrow);
        if (wide != wide || narrow != narrow) continue;
        pmlp__put_exact(&out, i % 2 ? wide : (double)narrow, i % 2 == 0);
        slice.length = out.length;
        CHECK(pmlp__read_exact(slice, &back), "'%s' is not read", text);
        const float single = (float)back;
        CHECK(i % 2 ? memcmp(&back, &wide, 8) == 0 : memcmp(&single, &narrow, 4) == 0,
              "'%s' reads as %.17g", text, back);
        uint64_t whole;
        out.length = 0;
        pmlp__put_whole(&out, bits);
        slice.length = out.length;
        CHECK(pmlp__read_whole(slice, UINT64_MAX, &whole) && whole == bits, "a whole number");
    }
    SAY("%s numbers as text and back: the same bits", test_count(count));
}

/* --- memory, and disks that fail -------------------------------------------------------------- */

/* One of five calls, with an allocator that fails. */
static pmlp_result one_call(int which, pmlp_model *model, pmlp_trainer *trainer,
                            const pmlp_allocator *allocator) {
    pmlp_model *loaded = NULL;
    pmlp_error error = {0};
    pmlp_result result = PMLP_OK;
    if (which == 0) result = pmlp_model_save(model, path_of("m"), &error);
    if (which == 1) result = pmlp_model_load(path_of("good"), allocator, &loaded, &error);
    if (which == 2) result = pmlp_model_load_weights(model, path_of("good"), &error);
    if (which == 3) result = pmlp_trainer_save(trainer, path_of("m"));
    if (which == 4) result = pmlp_trainer_load(trainer, path_of("good"));
    if (which == 3 || which == 4) error = *pmlp_trainer_error(trainer);
    CHECK(result == PMLP_OK || (result == PMLP_ERROR_MEMORY && strstr(error.text, "memory")),
          "call %d: %s: %s", which, pmlp_result_name(result), error.text);
    pmlp_model_destroy(loaded);
    return result;
}

TEST(allocations) {
    const pmlp_data data = some_data(&tiny_net, ROWS);
    long failures = 0;
    for (int which = 0; which < 5; which++) {
        test_memory memory;
        pmlp_model_desc desc = {0};
        pmlp_trainer_desc how = how_of(&ways[0], PMLP_ADAM);
        run r = {NULL, NULL};
        test_memory_init(&memory, 0);
        desc.layers = tiny_net.layers, desc.sizes = tiny_net.sizes;
        desc.allocator = how.allocator = memory.allocator;
        CHECK(pmlp_model_create(&desc, &r.model, NULL) == PMLP_OK, "no model");
        if (which >= 3) {
            CHECK(pmlp_trainer_create(r.model, &how, &r.trainer, NULL) == PMLP_OK, "no trainer");
            fine(&r, pmlp_trainer_save(r.trainer, path_of("good")));
            fine(&r, pmlp_trainer_epoch(r.trainer, &data, NULL));
            fine(&r, pmlp_trainer_save(r.trainer, path_of("before")));
        } else {
            CHECK(pmlp_model_save(r.model, path_of("good"), NULL) == PMLP_OK, "not saved");
        }
        write_bytes("m", (bytes){(unsigned char *)"old", 3});
        const long blocks = memory.blocks;
        for (long fail = 1;; fail++, failures++) {
            memory.calls = 0, memory.fail_at = fail;
            const pmlp_result result = one_call(which, r.model, r.trainer, &memory.allocator);
            memory.fail_at = 0;
            CHECK(memory.blocks == blocks, "call %d, allocation %ld: %ld blocks lost", which, fail,
                  memory.blocks - blocks);
            if (result == PMLP_OK) break;
            bytes old = read_bytes("m");
            CHECK(old.size == 3 && count_files() == (which >= 3 ? 3 : 2), "the old file is gone");
            free(old.data);
            if (which < 3) continue;
            fine(&r, pmlp_trainer_save(r.trainer, path_of("after")));
            CHECK(same_files("before", "after"), "call %d: the trainer has changed", which);
            remove(path_of("after"));
        }
        end(&r);
        CHECK(memory.blocks == 0, "%ld blocks lost", memory.blocks);
        empty_folder();
    }
    SAY("saving and loading survive %s failed allocations, one after the other",
        test_count(failures));
}

static void save_fails(const run *r, const char *path, const char *thing) {
    pmlp_error error = {0};
    const char *name = strlen(path) > 100 ? path + strlen(path) - 100 : path;
    refused(path, pmlp_trainer_save(r->trainer, path), PMLP_ERROR_FILE,
            pmlp_trainer_error(r->trainer), thing);
    refused(path, pmlp_model_save(r->model, path, &error), PMLP_ERROR_FILE, &error, thing);
    CHECK(strstr(error.text, name) != NULL, "\"%s\" does not name %s", error.text, path);
}

TEST(writes) {
    pmlp_trainer_desc how = how_of(&ways[0], PMLP_ADAM);
    struct rlimit limit;
    char old[300];
    run r = begin(&small_net, 1, &how);
    strcpy(old, path_of("old"));
    write_bytes("old", (bytes){(unsigned char *)"old", 3});
    const int files = count_files();
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &limit);
    for (rlim_t most = 0; most < 2400; most += 400) { /* the disk is full after so many bytes */
        const struct rlimit lower = {most, limit.rlim_max};
        setrlimit(RLIMIT_FSIZE, &lower);
        save_fails(&r, old, "File too large");
        CHECK(count_files() == files, "%d files, not %d", count_files(), files);
    }
    setrlimit(RLIMIT_FSIZE, &limit);
    save_fails(&r, path_of("no/such/folder"), "No such file");
    save_fails(&r, folder, "no regular file");
    save_fails(&r, "/dev/full", "no regular file");
    save_fails(&r, "/dev/null", "no regular file");
    CHECK(mkfifo(path_of("pipe"), 0600) == 0, "no pipe");
    save_fails(&r, path_of("pipe"), "no regular file");
    remove(path_of("pipe"));
    char longest[300];
    memset(longest, 'n', sizeof longest), longest[290] = 0;
    save_fails(&r, path_of(longest), "too long");
    bytes b = read_bytes("old");
    CHECK(b.size == 3 && memcmp(b.data, "old", 3) == 0, "the old file has changed");
    free(b.data);
    CHECK(symlink("old", path_of("link")) == 0, "no link");
    fine(&r, pmlp_trainer_save(r.trainer, path_of("link")));
    b = read_bytes("old");
    CHECK(b.size == 3, "what a link points to was written over");
    free(b.data);
    for (int n = 0; n < 3; n++) { /* left behind by one with this number that was killed */
        char left[300];
        snprintf(left, sizeof left, "old.%ld-%d.tmp", (long)getpid(), n);
        write_bytes(left, (bytes){(unsigned char *)"x", 1});
    }
    fine(&r, pmlp_trainer_save(r.trainer, old));
    CHECK(same_files("old", "link"), "two files of one state differ");
    fine(&r, pmlp_trainer_load(r.trainer, old));
    for (int n = 0; n < 1000; n++) { /* all names that it tries */
        char left[300];
        snprintf(left, sizeof left, "old.%ld-%d.tmp", (long)getpid(), n);
        write_bytes(left, (bytes){(unsigned char *)"x", 1});
    }
    save_fails(&r, old, "File exists");
    end(&r);
    empty_folder();
    SAY("a full disk, no folder, devices, pipes: refused with the reason, the old file is there");
}

/* A disk that fails at one of its calls. */
static enum {
    DISK_FINE, NOTHING_WRITTEN, INTERRUPTED, WRITE_FAILS, FSYNC_FAILS, CLOSE_FAILS, RENAME_FAILS,
    FOLDER_FAILS, FOLDER_CANNOT, DISK_FAULTS
} disk;
static int disk_syncs; /* of a file, then of its folder */

static ssize_t disk_write(int file, const void *bytes, size_t size) {
    const bool interrupted = disk == INTERRUPTED;
    if (interrupted) disk = DISK_FINE, errno = EINTR;
    if (disk == WRITE_FAILS) errno = ENOSPC;
    return disk == NOTHING_WRITTEN ? 0
           : interrupted || disk == WRITE_FAILS ? -1 : real_write(file, bytes, size);
}
static int disk_fsync(int file) {
    const bool folder_ = disk_syncs++ > 0;
    if (disk == (folder_ ? FOLDER_FAILS : FSYNC_FAILS)) return errno = EIO, -1;
    if (folder_ && disk == FOLDER_CANNOT) return errno = EINVAL, -1;
    return fsync(file);
}
static int disk_close(int file) {
    const int result = close(file);
    return disk == CLOSE_FAILS ? errno = EIO, -1 : result;
}
static int disk_rename(const char *from, const char *to) {
    return disk == RENAME_FAILS ? errno = EACCES, -1 : rename(from, to);
}

TEST(faulty_disk) {
    static const char *const says[DISK_FAULTS] = {
        "", "Input/output error", "", "No space left", "Input/output error", "Input/output error",
        "Permission denied", "Input/output error", ""};
    pmlp_model *model = make_model(&tiny_net, 1);
    for (int fault = 0; fault < DISK_FAULTS; fault++) {
        pmlp_error error = {0};
        write_bytes("it", (bytes){(unsigned char *)"old", 3});
        disk_syncs = 0, disk = fault;
        const pmlp_result result = pmlp_model_save(model, path_of("it"), &error);
        disk = DISK_FINE;
        if (*says[fault]) refused("a faulty disk", result, PMLP_ERROR_FILE, &error, says[fault]);
        else CHECK(result == PMLP_OK, "fault %d: %s", fault, error.text);
        const bytes b = read_bytes("it"); /* only what comes behind the renaming is too late */
        CHECK((b.size == 3) == (*says[fault] && fault != FOLDER_FAILS), "fault %d: %zu bytes",
              fault, b.size);
        CHECK(count_files() == 1, "fault %d: %d files", fault, count_files());
        free(b.data);
        empty_folder();
    }
    pmlp_model_destroy(model);
    SAY("a disk that fails at a write, a flush, a close, a rename: said, the old file is there");
}

/* A pipe says neither how long it is nor lets itself be read twice. */
TEST(pipes) {
    static const network big = {"big", 1, {300, 200}, {PMLP_LINEAR}, PMLP_LOSS_MSE, false};
    const network *const nets[] = {&tiny_net, &big};
    for (int i = 0; i < 2; i++) {
        pmlp_model *model = make_model(nets[i], 1), *loaded = NULL;
        pmlp_error error = {0};
        int status = 1;
        CHECK(pmlp_model_save(model, path_of("it"), NULL) == PMLP_OK, "not saved");
        CHECK(mkfifo(path_of("pipe"), 0600) == 0, "no pipe");
        const bytes b = read_bytes("it");
        const pid_t child = fork();
        if (child == 0) {
            FILE *pipe = fopen(path_of("pipe"), "wb");
            _exit(!pipe || fwrite(b.data, 1, b.size, pipe) != b.size || fclose(pipe) != 0);
        }
        CHECK(pmlp_model_load(path_of("pipe"), NULL, &loaded, &error) == PMLP_OK, "%s", error.text);
        waitpid(child, &status, 0);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "not all was read");
        if (loaded) same_model("from a pipe", model, loaded);
        free(b.data);
        pmlp_model_destroy(model), pmlp_model_destroy(loaded);
        empty_folder();
    }
    SAY("models from a pipe, short and long: as from a file");
}

static void fill(pmlp_model *model, float number) {
    pmlp_params p = {0};
    pmlp_model_params(model, 0, &p, NULL);
    for (size_t i = 0; i < p.n_in * p.n_out; i++) p.w[i] = number;
    for (size_t i = 0; i < p.n_out; i++) p.b[i] = number;
}

/* The number that a file holds, which must be everywhere in it; -1 if it is not whole. */
static float number_in_file(void) {
    pmlp_model *model = NULL;
    pmlp_params p = {0};
    pmlp_error error = {0};
    float number = -1;
    if (!CHECK(pmlp_model_load(path_of("it"), NULL, &model, &error) == PMLP_OK, "%s", error.text))
        return -1;
    pmlp_model_params(model, 0, &p, NULL);
    number = p.w[0];
    for (size_t i = 0; i < p.n_in * p.n_out; i++)
        if (p.w[i] != number || p.b[i / p.n_in] != number) number = -1;
    pmlp_model_destroy(model);
    return number;
}

/* What killed programs have left beside the file. */
static int remove_temporaries(void) {
    DIR *dir = opendir(folder);
    struct dirent *entry;
    int count = 0;
    while (dir && (entry = readdir(dir)) != NULL)
        if (strncmp(entry->d_name, "it.", 3) == 0) count += remove(path_of(entry->d_name)) == 0;
    if (dir) closedir(dir);
    return count;
}

/* kill -9 at any moment: the file is the old one or the new one. */
TEST(killed) {
    static const network big = {"big", 1, {300, 200}, {PMLP_LINEAR}, PMLP_LOSS_MSE, false};
    const int kills = test_quick() ? 60 : 400;
    pmlp_model *model = make_model(&big, 1);
    uint64_t rng = 5;
    float number = 0;
    int amid = 0, status = 0, k;
    fill(model, 0);
    CHECK(pmlp_model_save(model, path_of("it"), NULL) == PMLP_OK, "not saved");
    for (k = 0; k < kills && number >= 0; k++) {
        const float before = number;
        const pid_t child = fork();
        while (child == 0) { /* saves number after number until it is killed */
            fill(model, number += 1);
            if (pmlp_model_save(model, path_of("it"), NULL) != PMLP_OK) _exit(1);
        }
        const struct timespec pause = {0, (long)test_uniform(&rng, 2e5, 8e6)};
        nanosleep(&pause, NULL);
        kill(child, SIGKILL);
        waitpid(child, &status, 0);
        CHECK(WIFSIGNALED(status), "saving failed");
        number = number_in_file();
        CHECK(number >= before, "after %d kills the file holds %g, before it %g", k + 1,
              (double)number, (double)before);
        amid += remove_temporaries() > 0;
    }
    CHECK(number > 0 && amid > 0, "number %g, %d of %d kills amid a write", (double)number, amid,
          k);
    CHECK(count_files() == 1, "%d files are left", count_files());
    pmlp_model_destroy(model);
    empty_folder();
    SAY("kill -9 while saving, %d times, %d of them amid a write: the file is always whole", k,
        amid);
}

/* --- a back end that fails -------------------------------------------------------------------- */

static int fail_reads, fail_writes, fail_forwards; /* the call, from 1, that fails; 0: none */

static pmlp_result bad_read(void *context, void *layer, pmlp_tensor tensor, float *w, float *b) {
    if (fail_reads > 0 && --fail_reads == 0) return PMLP_ERROR_BACKEND;
    return pmlp_cpu_backend()->read(context, layer, tensor, w, b);
}
static pmlp_result bad_write(void *context, void *layer, pmlp_tensor tensor, const float *w,
                             const float *b) {
    if (fail_writes > 0 && --fail_writes == 0) return PMLP_ERROR_BACKEND;
    return pmlp_cpu_backend()->write(context, layer, tensor, w, b);
}
static pmlp_result bad_forward(void *context, void *layer, int version, size_t rows, const float *x,
                               float *y) {
    if (fail_forwards > 0 && --fail_forwards == 0) return PMLP_ERROR_BACKEND;
    return pmlp_cpu_backend()->forward(context, layer, version, rows, x, y);
}

TEST(back_ends) {
    const pmlp_data data = some_data(&small_net, ROWS);
    pmlp_backend bad = *pmlp_cpu_backend();
    pmlp_trainer_desc how = how_of(&ways[2], PMLP_ADAM);
    bad.read = bad_read, bad.write = bad_write, bad.forward = bad_forward;
    how.backend = &bad, how.keep_gradients = true;
    int saves = 0, loads = 0;
    run r = begin(&small_net, 1, &how);
    fine(&r, pmlp_trainer_epoch(r.trainer, &data, NULL));
    fine(&r, pmlp_trainer_save(r.trainer, path_of("good")));
    for (int call = 1;; call++, saves++) {
        fail_reads = call;
        const pmlp_result result = pmlp_trainer_save(r.trainer, path_of("m"));
        fail_reads = 0;
        if (result == PMLP_OK) break;
        refused("a read", result, PMLP_ERROR_BACKEND, pmlp_trainer_error(r.trainer), "reading");
        CHECK(count_files() == 1, "a file of what could not be read");
    }
    CHECK(same_files("good", "m"), "another file after failures");
    float dw[40 * 5];
    fail_reads = 1;
    refused("a gradient", pmlp_trainer_gradient(r.trainer, 0, dw, NULL), PMLP_ERROR_BACKEND,
            pmlp_trainer_error(r.trainer), "reading the gradient");
    fine(&r, pmlp_trainer_gradient(r.trainer, 0, dw, NULL));
    /* a step that fails before its updates leaves something worth saving */
    fail_forwards = 2;
    CHECK(pmlp_trainer_epoch(r.trainer, &data, NULL) == PMLP_ERROR_BACKEND, "no failure");
    fine(&r, pmlp_trainer_save(r.trainer, path_of("m")));
    CHECK(same_files("good", "m"), "another file after a step that failed");
    CHECK(pmlp_trainer_load(r.trainer, path_of("good")) == PMLP_ERROR_STATE, "loaded into a wreck");
    end(&r);
    for (int call = 1;; call++, loads++) {
        r = begin(&small_net, 2, &how);
        fail_writes = call;
        const pmlp_result result = pmlp_trainer_load(r.trainer, path_of("good"));
        fail_writes = 0;
        if (result == PMLP_OK) break;
        refused("a write", result, PMLP_ERROR_BACKEND, pmlp_trainer_error(r.trainer), "loaded");
        CHECK(pmlp_trainer_save(r.trainer, path_of("bad")) == PMLP_ERROR_STATE,
              "half a load saved");
        CHECK(pmlp_trainer_epoch(r.trainer, &data, NULL) == PMLP_ERROR_STATE,
              "half a load trained");
        pmlp_trainer_destroy(r.trainer), r.trainer = NULL;
        uint64_t word;
        CHECK(pmlp_model_hash(r.model, &word, NULL) == PMLP_ERROR_STATE, "lost weights are shown");
        CHECK(pmlp_model_load_weights(r.model, path_of("good"), NULL) == PMLP_OK &&
                  pmlp_model_hash(r.model, &word, NULL) == PMLP_OK,
              "and cannot be replaced");
        end(&r);
    }
    fine(&r, pmlp_trainer_save(r.trainer, path_of("m")));
    CHECK(same_files("good", "m"), "another file after a load");
    end(&r);
    CHECK(saves >= 12 && loads >= 12, "%d reads, %d writes", saves, loads);
    empty_folder();
    SAY("a back end that fails: %d saves leave no file, %d loads a trainer that says so", saves,
        loads);
}

int main(void) {
    const char *root = getenv("TMPDIR");
    uint64_t rng = 9;
    test_begin("files");
    for (size_t i = 0; i < sizeof data_x / sizeof data_x[0]; i++)
        data_x[i] = (float)test_uniform(&rng, -1, 1);
    snprintf(folder, sizeof folder, "%s/pmlp_files_%ld", root && *root ? root : "/tmp",
             (long)getpid());
    if (mkdir(folder, 0700) != 0) return printf("cannot make %s\n", folder), 1;
    RUN(round_trips);
    RUN(resuming);
    RUN(interrupting);
    RUN(asynchronous);
    RUN(mismatches);
    RUN(over_another);
    RUN(headers);
    RUN(nesting);
    RUN(every_bit);
    RUN(forged);
    RUN(types);
    RUN(numbers);
    RUN(allocations);
    RUN(writes);
    RUN(faulty_disk);
    RUN(pipes);
    RUN(killed);
    RUN(back_ends);
    rmdir(folder);
    return test_end();
}
