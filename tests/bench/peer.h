/* What the contestants in C and C++ share: options, data, weights and the protocol.

       PROGRAM --data DIR --weights FILE --batch B --threads T [--rows N] [--wait 1] [others]

   loads the training images (the first N, if told), and if told to wait prints `loaded` and reads a
   line; starts from the weights in FILE, trains PEER_CHECK steps on rows 0, 1, 2, ... and prints
   `ready loss=... version="..."`. Then, for each line `run SECONDS` on standard input, it trains
   on, whole batches in the order of the rows and from the first row again when they end, for at
   least so long, and prints `samples=N seconds=T`. `quit` or the end of input ends it. */
#ifndef PEER_H
#define PEER_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PEER_CHECK 20 /* steps whose losses are compared */
#define PEER_RATE 0.05f
#define PEER_LAYERS 4
static const int peer_sizes[PEER_LAYERS + 1] = {784, 512, 256, 128, 10};

typedef struct peer_options {
    const char *data, *weights;
    int batch, threads, rows; /* rows 0: all */
    int wait;
} peer_options;

typedef struct peer_images {
    size_t rows, width;
    float *x;    /* [rows][width], 0 .. 1 */
    int *labels; /* [rows] */
} peer_images;

typedef struct peer {
    void *self;
    /* One step on rows first .. first + batch - 1; the mean loss of these. */
    double (*step)(void *self, size_t first);
    /* Instead of PEER_CHECK steps; or NULL. */
    double (*check)(void *self);
    /* Instead of steps in a row, for what does not work in turns; or NULL. Returns the rows. */
    size_t (*run)(void *self, double seconds);
    /* What else the ready line says, after the check; or NULL. */
    void (*describe)(void *self, char *text, size_t size);
    /* Any other line of input; prints one line. Or NULL. */
    void (*command)(void *self, const char *line);
    size_t rows, batch; /* of the data; of a call of step() */
    bool cold;          /* no step before the clock starts: for those that need seconds for one */
    char version[256];
} peer;

__attribute__((noreturn)) static void peer_fail(const char *what, const char *which) {
    fprintf(stderr, "%s: %s\n", what, which);
    exit(1);
}

static double peer_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void *peer_alloc(size_t count, size_t size) {
    void *p = NULL;
    if (posix_memalign(&p, 64, count * size + 64) != 0) peer_fail("out of memory", "");
    memset(p, 0, count * size + 64);
    return p;
}

/* The value behind option `name`, or `otherwise`. */
static const char *peer_option(int argc, char **argv, const char *name, const char *otherwise) {
    int i;
    for (i = 1; i + 1 < argc; i += 2)
        if (strcmp(argv[i], name) == 0) return argv[i + 1];
    return otherwise;
}

static int peer_number(int argc, char **argv, const char *name, const char *otherwise) {
    const char *text = peer_option(argc, argv, name, otherwise);
    char *end;
    const long n = strtol(text, &end, 10);
    if (*end != '\0' || end == text || n < 0 || n > 1 << 24)
        peer_fail(name, "wants a whole number");
    return (int)n;
}

/* Options come in pairs; `known` lists all names, each between blanks. */
static peer_options peer_read_options(int argc, char **argv, const char *known) {
    peer_options o;
    int i;
    for (i = 1; i < argc; i += 2) {
        char name[64];
        snprintf(name, sizeof name, " %s ", argv[i]);
        if (!strstr(known, name) &&
            !strstr(" --data --weights --batch --threads --rows --wait ", name))
            peer_fail(argv[i], "no such option");
        if (i + 1 == argc) peer_fail(argv[i], "wants a value");
    }
    o.data = peer_option(argc, argv, "--data", "build/data");
    o.weights = peer_option(argc, argv, "--weights", NULL);
    o.batch = peer_number(argc, argv, "--batch", "128");
    o.threads = peer_number(argc, argv, "--threads", "1");
    o.rows = peer_number(argc, argv, "--rows", "0");
    o.wait = peer_number(argc, argv, "--wait", "0");
    if (o.batch < 1 || o.threads < 1) peer_fail("--batch and --threads", "at least 1");
    return o;
}

static unsigned char *peer_read_file(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    unsigned char *bytes;
    long length;
    if (!file || fseek(file, 0, SEEK_END) != 0 || (length = ftell(file)) < 0)
        peer_fail(path, "cannot be read");
    rewind(file);
    bytes = (unsigned char *)peer_alloc((size_t)length, 1);
    if (fread(bytes, 1, (size_t)length, file) != (size_t)length) peer_fail(path, "cannot be read");
    fclose(file);
    *size = (size_t)length;
    return bytes;
}

static size_t peer_big_endian(const unsigned char *p) {
    return (size_t)p[0] << 24 | (size_t)p[1] << 16 | (size_t)p[2] << 8 | (size_t)p[3];
}

/* Until it is this program's turn to use the processors. */
static void peer_wait(void) {
    char line[64];
    printf("loaded\n");
    fflush(stdout);
    if (!fgets(line, sizeof line, stdin)) exit(0);
}

static peer_images peer_load_images(const peer_options *o) {
    char path[4096];
    unsigned char *pixels, *labels;
    size_t size, label_size, i;
    peer_images images;
    snprintf(path, sizeof path, "%s/train-images-idx3-ubyte", o->data);
    pixels = peer_read_file(path, &size);
    snprintf(path, sizeof path, "%s/train-labels-idx1-ubyte", o->data);
    labels = peer_read_file(path, &label_size);
    if (size < 16 || label_size < 8) peer_fail(path, "too short");
    images.rows = peer_big_endian(pixels + 4);
    images.width = peer_big_endian(pixels + 8) * peer_big_endian(pixels + 12);
    if (size != 16 + images.rows * images.width || label_size != 8 + images.rows)
        peer_fail(path, "is no IDX file, or that of other images");
    if (o->rows && (size_t)o->rows < images.rows) images.rows = (size_t)o->rows;
    images.x = (float *)peer_alloc(images.rows * images.width, sizeof(float));
    images.labels = (int *)peer_alloc(images.rows, sizeof(int));
    for (i = 0; i < images.rows * images.width; i++)
        images.x[i] = (float)pixels[16 + i] / 255.0f;
    for (i = 0; i < images.rows; i++) images.labels[i] = labels[8 + i];
    free(pixels);
    free(labels);
    if (o->wait) peer_wait();
    return images;
}

/* For each layer w [n_out][n_in], then b [n_out]. */
static float *peer_load_weights(const char *path) {
    size_t want = 0, size;
    float *weights;
    int l;
    if (!path) peer_fail("--weights", "wants a file");
    weights = (float *)(void *)peer_read_file(path, &size);
    for (l = 0; l < PEER_LAYERS; l++)
        want += (size_t)(peer_sizes[l] + 1) * (size_t)peer_sizes[l + 1];
    if (size != want * sizeof(float)) peer_fail(path, "holds other weights");
    return weights;
}

/* Where the next step begins: the rows in order, then from the first again. */
static size_t peer_next(const peer *p, size_t *at) {
    const size_t first = *at + p->batch <= p->rows ? *at : 0;
    *at = first + p->batch;
    return first;
}

static void peer_run(const peer *p, double seconds, size_t *at) {
    size_t samples = 0;
    double begin, end;
    if (!p->cold) p->step(p->self, peer_next(p, at)); /* wakes threads, fills caches */
    begin = end = peer_now();
    if (p->run) {
        samples = p->run(p->self, seconds);
        end = peer_now();
    }
    while (!p->run && end - begin < seconds) {
        p->step(p->self, peer_next(p, at));
        samples += p->batch;
        end = peer_now();
    }
    printf("samples=%lu seconds=%.6f\n", (unsigned long)samples, end - begin);
}

/* Everything but the training. */
static int peer_serve(const peer *p) {
    char line[256], more[512] = "";
    size_t at = 0;
    double loss = 0;
    double seconds;
    int i;
    if (p->batch > p->rows) peer_fail("--batch", "more than the data has rows");
    for (i = 0; i < PEER_CHECK && !p->check; i++)
        loss += p->step(p->self, peer_next(p, &at)) / PEER_CHECK;
    if (p->check) loss = p->check(p->self);
    if (p->describe) p->describe(p->self, more, sizeof more);
    printf("ready loss=%.9g %s%sversion=\"%s\"\n", loss, more, *more ? " " : "", p->version);
    fflush(stdout);
    while (fgets(line, sizeof line, stdin) && strncmp(line, "quit", 4) != 0) {
        if (sscanf(line, "run %lf", &seconds) == 1) peer_run(p, seconds, &at);
        else if (p->command) p->command(p->self, line);
        else printf("what?\n");
        fflush(stdout);
    }
    return 0;
}

#endif
