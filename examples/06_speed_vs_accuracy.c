/* 06: "pipelining buys speed with accuracy", put to the test on images. A network is trained
   serially and by two workers, in three groups in which everybody makes equally many updates from
   equally many rows at the same learning rate, which falls to 0: one update for each 256 rows
   (serial, GPipe, 1F1B, ZB-H1, PipeDream-2BW); the same at a quarter of the rate, since 2BW wants
   a lower one; and one for each 64 rows, at that quarter, too (serial, PipeDream with and without
   weight stashing). Within a group only the schedule differs. The runs take turns, epoch by epoch,
   so that a busy machine is unfair to none; three seeds show by how much accuracy varies anyway.
   Distance is |w - w'| / |w'| from the weights w' of the group's serial run; staleness, of both
   stages, and torn, of the first, are measured, see pmlp_stage_info; the weights word is the last
   seed's. The exit status is 0 if the synchronous schedules end with the word of the serial run for
   every seed, and the asynchronous ones for none.

       cc -O3 -std=c99 06_speed_vs_accuracy.c -o 06_speed_vs_accuracy -pthread -lm
       ./06_speed_vs_accuracy [DIRECTORY OF MNIST'S FILES [EPOCHS [LEARNING RATE]]]

   The directory is build/data if none is given.                                                  */
#define PIPEMLP_IMPLEMENTATION
#include "../pipemlp.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { ROWS = 8192, MADE_UP = 4096, INPUTS = 64 }; /* the last two: without files */
enum { BATCH = 256, SMALL = 64, PARTS = 4, LAYERS = 5, SEEDS = 3, MOST_EPOCHS = 50 };

static struct run {
    const char *name;
    pmlp_schedule_kind schedule;
    int workers, rows; /* rows: to an update */
    float slower;      /* divides the learning rate */
    int serial;        /* the run that begins the group */
    bool no_stashing;
    pmlp_model *model;
    pmlp_trainer *trainer;
    double seconds[SEEDS * MOST_EPOCHS], accuracy[SEEDS], distance;
    int epochs, same; /* same: seeds for which the weights word is the serial one */
    uint64_t weights;
} runs[] = {
    {"serial", PMLP_SCHEDULE_1F1B, 1, BATCH, 1, .serial = 0},
    {"gpipe", PMLP_SCHEDULE_GPIPE, 2, BATCH, 1, .serial = 0},
    {"1f1b", PMLP_SCHEDULE_1F1B, 2, BATCH, 1, .serial = 0},
    {"zb-h1", PMLP_SCHEDULE_ZB_H1, 2, BATCH, 1, .serial = 0},
    {"pipedream-2bw", PMLP_SCHEDULE_PIPEDREAM_2BW, 2, BATCH, 1, .serial = 0},
    {"serial", PMLP_SCHEDULE_1F1B, 1, BATCH, 4, .serial = 5},
    {"pipedream-2bw", PMLP_SCHEDULE_PIPEDREAM_2BW, 2, BATCH, 4, .serial = 5},
    {"serial", PMLP_SCHEDULE_1F1B, 1, SMALL, 4, .serial = 7},
    {"pipedream", PMLP_SCHEDULE_PIPEDREAM, 2, SMALL, 4, .serial = 7},
    {"  no stashing", PMLP_SCHEDULE_PIPEDREAM, 2, SMALL, 4, .serial = 7, .no_stashing = true},
};
enum { RUNS = sizeof runs / sizeof runs[0] };

static bool complain(const char *text) {
    return fprintf(stderr, "06_speed_vs_accuracy: %s\n", text), false;
}

/* The files of one part of the data set; false, with a sentence, if they cannot be read. */
static bool load(const char *directory, const char *part, size_t rows, pmlp_images *images,
                 pmlp_data *data) {
    char pixels[512], labels[512];
    pmlp_error error = {0};
    snprintf(pixels, sizeof pixels, "%s/%s-images-idx3-ubyte", directory, part);
    snprintf(labels, sizeof labels, "%s/%s-labels-idx1-ubyte", directory, part);
    if (pmlp_images_load(pixels, labels, rows, NULL, images, &error) != PMLP_OK)
        return printf("%s; instead, points that the program makes up:\n", error.text), false;
    *data = (pmlp_data){.rows = images->rows, .x = images->x, .labels = images->labels};
    return true;
}

/* Points around ten centres, for want of images. */
static void make_up(pmlp_data *data, float (*x)[INPUTS], int *labels, uint32_t random) {
    for (int r = 0; r < MADE_UP; r++) {
        labels[r] = r % 10;
        for (int n = 0; n < INPUTS; n++) {
            random = random * 1664525u + 1013904223u;
            x[r][n] = (float)((labels[r] + 3) * (n + 5) % 11) / 22 + (float)(random >> 8) / 3e7f;
        }
    }
    *data = (pmlp_data){.rows = MADE_UP, .x = &x[0][0], .labels = labels};
}

static bool begin(struct run *r, size_t inputs, uint64_t seed) {
    const int sizes[LAYERS + 1] = {(int)inputs, 256, 384, 384, 256, 10}; /* two halves alike */
    const pmlp_model_desc net = {.layers = LAYERS, .sizes = sizes, .seed = seed};
    const pmlp_trainer_desc how = {
        .workers = r->workers,
        .microbatches = r->workers > 1 ? PARTS : 1,
        .batch = r->workers == 1 ? (size_t)r->rows : BATCH,
        .schedule = r->schedule,
        .no_stashing = r->no_stashing,
        .optimizer = PMLP_MOMENTUM,
        .seed = seed,
    };
    pmlp_error error = {0};
    return (pmlp_model_create(&net, &r->model, &error) == PMLP_OK &&
            pmlp_trainer_create(r->model, &how, &r->trainer, &error) == PMLP_OK) ||
           complain(error.text);
}

static bool train_epoch(struct run *r, const pmlp_data *data, float rate) {
    pmlp_stats stats = {0};
    if (pmlp_trainer_set_learning_rate(r->trainer, rate / r->slower) != PMLP_OK ||
        pmlp_trainer_epoch(r->trainer, data, &stats) != PMLP_OK)
        return complain(pmlp_trainer_error(r->trainer)->text);
    r->seconds[r->epochs++] = stats.seconds;
    return true;
}

/* Tests a trained network and holds its weights against the serial ones. */
static bool judge(struct run *r, const pmlp_data *test, int seed) {
    double difference = 0, length = 0;
    pmlp_stats stats = {0};
    if (pmlp_trainer_eval(r->trainer, test, &stats) != PMLP_OK ||
        pmlp_trainer_sync(r->trainer) != PMLP_OK)
        return complain(pmlp_trainer_error(r->trainer)->text);
    for (int l = 0; l < LAYERS; l++) {
        pmlp_params my = {0}, serial = {0};
        pmlp_model_params(r->model, l, &my, NULL);
        pmlp_model_params(runs[r->serial].model, l, &serial, NULL);
        for (size_t i = 0; i < my.n_in * my.n_out; i++) {
            difference += pow((double)my.w[i] - (double)serial.w[i], 2);
            length += pow((double)serial.w[i], 2);
        }
    }
    pmlp_model_hash(r->model, &r->weights, NULL);
    r->same += r->weights == runs[r->serial].weights;
    r->accuracy[seed] = 100 * stats.accuracy;
    r->distance += sqrt(difference / length) / SEEDS;
    return true;
}

static int ascending(const void *a, const void *b) {
    return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b);
}

/* A row of the table; true if the run is what its schedule promises. */
static bool show(struct run *r, float rate) {
    pmlp_stage_info first = {0}, last = {0};
    double mean = 0;

    if (r == &runs[r->serial])
        printf("\none update for each %d rows, learning rate from %g\n%-14s%s\n", r->rows,
               (double)(rate / r->slower), "",
               "epoch    test accuracy, %       distance  staleness   torn  weights");
    pmlp_trainer_stage(r->trainer, 0, &first);
    pmlp_trainer_stage(r->trainer, r->workers - 1, &last);
    qsort(r->seconds, (size_t)r->epochs, sizeof *r->seconds, ascending);
    qsort(r->accuracy, SEEDS, sizeof *r->accuracy, ascending);
    for (int s = 0; s < SEEDS; s++) mean += r->accuracy[s] / SEEDS;
    printf("%-14s%.3f s  %.2f (%.2f to %.2f)  %.4f    %.2f %.2f   %.2f  %016llx\n", r->name,
           r->seconds[r->epochs / 2], mean, r->accuracy[0], r->accuracy[SEEDS - 1], r->distance,
           first.staleness, last.staleness, first.torn, (unsigned long long)r->weights);
    return r->same == (pmlp_schedule_is_synchronous(pmlp_trainer_schedule(r->trainer)) ? SEEDS : 0);
}

int main(int argc, char **argv) {
    static float x[2][MADE_UP][INPUTS];
    static int labels[2][MADE_UP];
    const char *directory = argc > 1 ? argv[1] : "build/data";
    const int epochs = argc > 2 ? atoi(argv[2]) : 5;
    const float rate = argc > 3 ? (float)atof(argv[3]) : 0.05f;
    pmlp_images images[2] = {{0}, {0}};
    pmlp_data train = {0}, test = {0};
    size_t inputs = INPUTS;
    bool ok = true, good = true;

    if (epochs < 1 || epochs > MOST_EPOCHS || !(rate > 0 && rate < 100))
        return complain("usage: 06_speed_vs_accuracy [DIRECTORY [EPOCHS, at most 50 [RATE]]]"), 2;
    if (load(directory, "train", ROWS, &images[0], &train) &&
        load(directory, "t10k", 0, &images[1], &test)) {
        inputs = images[0].height * images[0].width;
    } else {
        make_up(&train, x[0], labels[0], 1);
        make_up(&test, x[1], labels[1], 2);
    }
    for (int seed = 0; seed < SEEDS && ok; seed++) {
        for (int n = 0; n < RUNS && ok; n++) ok = begin(&runs[n], inputs, (uint64_t)seed);
        for (int e = 0; e < epochs; e++)
            for (int n = 0; n < RUNS && ok; n++)
                ok = train_epoch(&runs[n], &train, rate * (float)(epochs - e) / (float)epochs);
        for (int n = 0; n < RUNS && ok; n++) ok = judge(&runs[n], &test, seed);
        for (int n = 0; n < RUNS; n++) {
            if (ok && seed == SEEDS - 1) good = show(&runs[n], rate) && good;
            pmlp_trainer_destroy(runs[n].trainer);
            pmlp_model_destroy(runs[n].model);
            runs[n].trainer = NULL;
            runs[n].model = NULL;
        }
    }
    pmlp_images_free(&images[0]);
    pmlp_images_free(&images[1]);
    if (ok) printf(good ? "\nsynchronous: the serial bits; asynchronous: others\n" : "\nNOT SO\n");
    return ok && good ? 0 : 1;
}
