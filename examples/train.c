/* train: the main program. Trains a multilayer perceptron on image files of MNIST's format, or on
   digits that it draws itself, serially or as a pipeline, and can set the two side by side.
   Progress goes to standard error; standard output ends with one line for programs:

       result backend=cpu schedule=1f1b workers=2 virtual=1 microbatches=4 batch=128 epochs=10 ...

   The exit status is 0, or 2 for options that make no sense, or 1 for everything else that goes
   wrong, a difference found by --compare or --verify included; the reason is one sentence on
   standard error. (--compare does not hold a difference against an asynchronous schedule or
   --allreduce, which promise none.) Stopped by Ctrl-C or SIGTERM it finishes the step, saves if
   --save asks for it, and exits with 130 or 143.

       cc -O3 -std=c99 train.c -o train -pthread -lm

   With pipemlp_cuda.cu in the program, which PMLP_CUDA tells, it can compute on a GPU as well:

       nvcc -O3 -DPMLP_CUDA train.c ../pipemlp_cuda.cu -I.. -o train -lcublas -lcublasLt -lnccl

   and over several processes, one for each GPU, on one machine or more; rank 0 alone speaks:

       mpirun -n 4 train --backend cuda --workers 4
       torchrun --no-python --nproc-per-node 4 train --backend cuda --workers 4
       srun -n 4 train --backend cuda --workers 4                                                 */
#define PIPEMLP_IMPLEMENTATION
#include "../pipemlp.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#ifdef _WIN32
#  define lstat stat
#endif
#include <unistd.h>

enum { OK = 0, FAILED = 1, USAGE = 2 };        /* exit statuses */
enum { MOST_LAYERS = 64, MOST_WIDTH = 65536 }; /* what --layers takes */
enum { SIDE = 28, DIGITS = 10, DRAWN_TRAIN = 12000, DRAWN_TEST = 2000 };
enum { KEPT_STEPS = 32, KEPT_RUNS = 4 }; /* traced steps; asynchronous: runs of batches */
enum { MOST_DEVICES = 64, MOST_KEPT = 1000 };

/* One sentence on standard error; returns status, so that `return fail(...)` reads well. */
static int fail(int status, const char *format, ...) {
    va_list list;
    va_start(list, format);
    fputs("train: ", stderr);
    vfprintf(stderr, format, list);
    fputc('\n', stderr);
    va_end(list);
    return status;
}

/* The library's sentence. If it is about a field of a desc that an option fills, it becomes one
   about the option, and bad usage. */
static int fail_with(const pmlp_error *error, const char *what) {
    static const struct {
        const char *field, *option, *unit;
    } names[] = {
        {"workers", "workers", ""}, {"virtual_stages", "virtual", ""},
        {"batch", "batch", ""},     {"microbatches", "microbatches", ""},
        {"clip_norm", "clip", ""},  {"memory", "memory", " (in bytes)"},
        {"replicas", "replicas", ""}, {"seed", "seed", ""},
        {"optimizer", "optimizer", ""}, {"momentum", "momentum", ""},
        {"weight_decay", "weight-decay", ""}, {"loss", "loss", ""},
    };
    const size_t length = strcspn(error->text, ":");
    for (size_t n = 0; n < sizeof names / sizeof names[0]; n++)
        if (strlen(names[n].field) == length && memcmp(names[n].field, error->text, length) == 0)
            return fail(USAGE, "--%s%s%s", names[n].option, error->text + length, names[n].unit);
    return fail(FAILED, "%s: %s", what, error->text);
}

/*--- options --------------------------------------------------------------------------------*/

typedef struct options {
    const char *data, *layers, *schedule, *devices, *svg, *trace, *save, *load, *resume;
    long batch, epochs, workers, virtual_stages, microbatches, replicas, limit, verify, save_every,
        keep;
    unsigned long long seed;
    double lr, momentum, weight_decay, clip, memory; /* 0: the library's default */
    double save_seconds;
    int loss, optimizer, lr_decay, cut, backend;     /* places in their lists of names, from 1 */
    int math, gemm, handoff;                         /* likewise; 0: not given */
    bool compare, no_threads, no_stashing, allreduce, quiet, help;
} options;

enum { MOMENTUM = 2, NESTEROV, LINEAR_DECAY = 1, INSIDE_LAYERS = 1, ON_CPU = 1, ON_CUDA };

typedef enum option_kind { TEXT, COUNT, SEED, NUMBER, CHOICE, FLAG } option_kind;

/* One option: where its value goes, what values it takes, what --help says. `initial` goes through
   the same reader as the command line; a default that is not a value stands in `otherwise`. */
typedef struct option {
    const char *name;
    option_kind kind;
    size_t offset;
    const char *argument; /* of a CHOICE, all its names */
    double low, high;     /* of a COUNT or a NUMBER */
    const char *initial, *otherwise;
    const char *help;
} option;

#define AT(field) offsetof(options, field)
static const option option_table[] = {
    {"data", TEXT, AT(data), "DIR", 0, 0, NULL, "digits drawn by the program",
     "directory with MNIST's four files, unpacked: train-images-idx3-ubyte, ..."},
    {"layers", TEXT, AT(layers), "N,N,...", 0, 0, "512,256,128", NULL,
     "sizes of the hidden layers; inputs and classes come from the data"},
    {"loss", CHOICE, AT(loss), "xent|mse", 0, 0, "xent", NULL,
     "softmax cross-entropy, or mean squared error against one-hot targets"},
    {"batch", COUNT, AT(batch), "N", 1, 1e6, "128", NULL, "rows per optimizer step"},
    {"epochs", COUNT, AT(epochs), "N", 1, 1e6, "10", NULL, "passes over the training images"},
    {"optimizer", CHOICE, AT(optimizer), "sgd|momentum|nesterov|adam|adamw", 0, 0, "momentum", NULL,
     "how weights are updated"},
    {"lr", NUMBER, AT(lr), "X", 1e-9, 1e3, NULL, "0.1 sgd, 0.05 momentum, 0.001 adam",
     "learning rate of the first epoch"},
    {"lr-decay", CHOICE, AT(lr_decay), "linear|none", 0, 0, "linear", NULL,
     "whether the learning rate falls from epoch to epoch, in equal steps towards 0"},
    {"momentum", NUMBER, AT(momentum), "X", 1e-6, 0.999999, NULL, "0.9",
     "of the optimizers momentum and nesterov"},
    {"weight-decay", NUMBER, AT(weight_decay), "X", 0, 1, "0", NULL, "of weights, not of biases"},
    {"clip", NUMBER, AT(clip), "X", 0, 1e9, "0", NULL,
     "longest gradient of the whole network, longer ones are scaled; 0: off"},
    {"seed", SEED, AT(seed), "N", 0, 0, "1", NULL, "of initial weights, shuffling, drawn digits"},
    {"limit", COUNT, AT(limit), "N", 1, 1e9, NULL, "all", "use the first N training images"},
    {"workers", COUNT, AT(workers), "P", 1, 256, NULL, "1; 2 with --compare and --verify",
     "threads that the layers are cut over"},
    {"virtual", COUNT, AT(virtual_stages), "V", 1, 256, NULL, "what the schedule needs: 1 or 2",
     "stages per worker"},
    {"microbatches", COUNT, AT(microbatches), "M", 1, 65536, NULL,
     "2 per worker; 1 for one worker with one stage", "parts that a batch is cut into"},
    {"replicas", COUNT, AT(replicas), "R", 1, 256, NULL, "1",
     "pipelines of so many workers side by side, each with its share of a batch's rows"},
    {"allreduce", FLAG, AT(allreduce), "", 0, 0, NULL, NULL,
     "add the replicas' gradients up, instead of continuing one sum from replica to replica:\n"
     "        nobody waits for a turn, but the weights are not those of serial training"},
    {"schedule", TEXT, AT(schedule), "NAME|FILE", 0, 0, "1f1b", NULL,
     "sequential, gpipe, 1f1b, eager-1f1b, interleaved, looped-bfs, zb-h1, zb-h2, zb-v,\n"
     "        dualpipe-v; auto: found by search for costs measured here; pipedream,\n"
     "        pipedream-2bw: asynchronous, other weights than serial training;\n"
     "        or a file in the text form (0F0,0F1,0B0,...)"},
    {"memory", NUMBER, AT(memory), "X", 1e-6, 1e9, NULL, "no limit",
     "auto: most MiB of activations and gradients that a worker may hold at once"},
    {"no-stashing", FLAG, AT(no_stashing), "", 0, 0, NULL, NULL,
     "asynchronous: keep one version of the weights, so that a backward may see others than\n"
     "        its forward did"},
    {"cut", CHOICE, AT(cut), "auto|layers", 0, 0, "auto", NULL,
     "may a cut fall inside the first layer, or only between whole layers"},
    {"backend", CHOICE, AT(backend), "cpu|cuda", 0, 0, "cpu", NULL,
     "where to compute; cuda needs the program that `make cuda` builds"},
    {"math", CHOICE, AT(math), "fp32|tf32|bf16", 0, 0, NULL, "fp32",
     "cuda: products in full precision, of numbers rounded to 10 bits behind the point, or\n"
     "        of activations in bf16; sums, weights and the optimizer are always fp32"},
    {"gemm", CHOICE, AT(gemm), "fused|plain|teaching", 0, 0, NULL, "fused",
     "cuda: products by cuBLASLt with bias and ReLU, by cuBLAS, or by the kernel that is\n"
     "        there to be read"},
    {"devices", TEXT, AT(devices), "N,N,...", 0, 0, NULL, "all",
     "cuda: which GPUs, in the order of the stages; with several processes, of the workers of\n"
     "        this machine"},
    {"handoff", CHOICE, AT(handoff), "copies|nccl", 0, 0, NULL, "copies",
     "cuda: how GPUs of one process hand over; several processes always use NCCL"},
    {"no-threads", FLAG, AT(no_threads), "", 0, 0, NULL, NULL, "run all workers on one thread"},
    {"compare", FLAG, AT(compare), "", 0, 0, NULL, NULL,
     "train serially and pipelined, print both times and whether the weights agree"},
    {"verify", COUNT, AT(verify), "K", 1, 1e6, NULL, "off",
     "train nothing: compare K steps, pipelined and serial, bit by bit"},
    {"svg", TEXT, AT(svg), "FILE.svg", 0, 0, NULL, NULL,
     "draw a step of the pipeline as it ran, over its simulation with the costs measured"},
    {"trace", TEXT, AT(trace), "FILE.json", 0, 0, NULL, NULL,
     "write the last steps as they ran, for ui.perfetto.dev"},
    {"save", TEXT, AT(save), "FILE", 0, 0, NULL, NULL,
     "write the training at its end, and when it is stopped, in the format safetensors:\n"
     "        weights as PyTorch has them, and what --resume needs to go on"},
    {"save-every", COUNT, AT(save_every), "K", 1, 1e9, NULL, "only at the end",
     "write --save also every K steps (asynchronous: about every 65,536 rows at most)"},
    {"save-seconds", NUMBER, AT(save_seconds), "S", 0.001, 1e9, NULL, "not by time",
     "write --save also behind the first step that ends S seconds of training after the last"},
    {"keep", COUNT, AT(keep), "N", 1, MOST_KEPT, NULL, "none",
     "what is saved on the way is also kept as FILE.STEP, the last N of these"},
    {"load", TEXT, AT(load), "FILE", 0, 0, NULL, NULL,
     "begin with the weights of a file, ours or PyTorch's, that has the same layers"},
    {"resume", TEXT, AT(resume), "FILE", 0, 0, NULL, NULL,
     "go on where --save stopped, with the same options, on any number of workers, stages\n"
     "        and micro-batches; --epochs counts those that are done"},
    {"quiet", FLAG, AT(quiet), "", 0, 0, NULL, NULL, "nothing on standard error but errors"},
    {"help", FLAG, AT(help), "", 0, 0, NULL, NULL, "show this and exit"},
};
enum { OPTION_COUNT = sizeof option_table / sizeof option_table[0] };

static void print_help(void) {
    printf("usage: train [OPTIONS]\n\n"
           "Trains a multilayer perceptron on images, serially or as a pipeline. Options:\n\n");
    for (const option *o = option_table; o < option_table + OPTION_COUNT; o++) {
        const char *standard = o->initial != NULL ? o->initial : o->otherwise;
        printf("  --%s %s\n        %s", o->name, o->argument, o->help);
        if (standard != NULL) printf(" (default: %s)", standard);
        printf("\n");
    }
    printf("\nThe last line of standard output is `result NAME=VALUE ...`; weights= is a hash\n"
           "over every bit of every weight, staleness= the updates that each stage's gradients\n"
           "were late, if the schedule is asynchronous. Exit status: 0, 2 for bad usage, 1 for\n"
           "other failures, 130 or 143 if it was stopped by Ctrl-C or SIGTERM, behind a step.\n"
           "\n"
           "--compare times the pipeline against the best serial run: one worker, whole batches.\n"
           "On the CPU the weights must be those of that run, too. On CUDA the bits of a sum\n"
           "depend on how many rows it goes over; there, but for --gemm teaching, the weights\n"
           "must be those of one more run, which is not timed: one worker, the same\n"
           "micro-batches.\n");
}

/* The place of `word` in "one|two|three", from 1; 0: it is none of them. */
static int find_name(const char *names, const char *word) {
    const size_t length = strlen(word);
    for (int place = 1;; place++) {
        const size_t here = strcspn(names, "|");
        if (here == length && memcmp(names, word, here) == 0) return place;
        if (names[here] == '\0') return 0;
        names += here + 1;
    }
}

/* Reads the whole of text as a number in [low, high]. */
static bool read_number(const char *text, double low, double high, double *value) {
    char *end = NULL;
    *value = strtod(text, &end);
    return end != text && *end == '\0' && *value >= low && *value <= high;
}

/* Reads the whole of text, digits only. */
static bool read_whole(const char *text, unsigned long long *value) {
    const size_t length = strlen(text);
    errno = 0;
    *value = strtoull(text, NULL, 10);
    return length > 0 && strspn(text, "0123456789") == length && errno == 0;
}

static int set_option(options *opt, const option *o, const char *value) {
    void *place = (char *)opt + o->offset;
    unsigned long long whole = 0;
    switch (o->kind) {
    case TEXT: *(const char **)place = value; return OK;
    case COUNT:
        if (!read_whole(value, &whole) || (double)whole < o->low || (double)whole > o->high)
            return fail(USAGE, "--%s %s: expected a whole number from %.0f to %.0f", o->name, value,
                        o->low, o->high);
        *(long *)place = (long)whole;
        return OK;
    case SEED:
        if (!read_whole(value, place))
            return fail(USAGE, "--%s %s: expected a whole number", o->name, value);
        return OK;
    case NUMBER:
        if (!read_number(value, o->low, o->high, place))
            return fail(USAGE, "--%s %s: expected a number from %g to %g", o->name, value, o->low,
                        o->high);
        return OK;
    case CHOICE:
        *(int *)place = find_name(o->argument, value);
        if (*(int *)place > 0) return OK;
        return fail(USAGE, "--%s %s: expected one of %s", o->name, value, o->argument);
    case FLAG: break;
    }
    *(bool *)place = true;
    return OK;
}

static const option *find_option(const char *name, size_t length) {
    for (const option *o = option_table; o < option_table + OPTION_COUNT; o++)
        if (strlen(o->name) == length && memcmp(o->name, name, length) == 0) return o;
    return NULL;
}

/* Takes `--name value`, `--name=value` or `--flag`; the first bad one ends it. */
static int read_options(options *opt, int argc, char **argv) {
    for (const option *o = option_table; o < option_table + OPTION_COUNT; o++)
        if (o->initial != NULL && set_option(opt, o, o->initial) != OK) return FAILED;

    for (int a = 1; a < argc; a++) {
        const char *word = argv[a];
        const size_t length = strcspn(word, "=");
        const char *value = word[length] == '=' ? word + length + 1 : NULL;
        const option *o = NULL;
        int status;
        if (strncmp(word, "--", 2) == 0) o = find_option(word + 2, length - 2);
        if (o == NULL) return fail(USAGE, "'%s' is not an option; --help lists them", word);
        if (o->kind == FLAG && value != NULL) return fail(USAGE, "--%s takes no value", o->name);
        if (o->kind != FLAG && value == NULL) value = argv[++a];
        if (o->kind != FLAG && (value == NULL || value[0] == '\0'))
            return fail(USAGE, "--%s: expected %s after it", o->name, o->argument);
        if ((status = set_option(opt, o, value)) != OK) return status;
    }
    return OK;
}

/*--- drawn digits ---------------------------------------------------------------------------*/

/* Strokes of the ten digits on a grid of 7 x 9: pairs of x and y, strokes separated by a blank. */
static const char *const glyphs[DIGITS] = {
    "204062664828060220", "123038",         "021050626308 0868", "0110506253345566581807",
    "400565 4048",        "600003436566481807", "5020020628486665441405", "006028",
    "344365674828070534230120404143", "184866624020020324546362",
};

/* SplitMix64: small, and the same numbers everywhere. */
static uint64_t next_random(uint64_t *state) {
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

static float between(uint64_t *state, float low, float high) {
    return low + (high - low) * (float)(next_random(state) >> 40) / 16777216.0f;
}

/* A pen of the given radius, moved along a straight line over a canvas of SIDE x SIDE. */
static void draw_line(float *canvas, const float from[2], const float to[2], float radius) {
    const float dx = to[0] - from[0], dy = to[1] - from[1];
    const float square = dx * dx + dy * dy + 1e-6f, reach = radius + 1;
    const int left = (int)fmaxf(0, fminf(from[0], to[0]) - reach);
    const int right = (int)fminf(SIDE - 1, fmaxf(from[0], to[0]) + reach);
    const int top = (int)fmaxf(0, fminf(from[1], to[1]) - reach);
    const int bottom = (int)fminf(SIDE - 1, fmaxf(from[1], to[1]) + reach);

    for (int y = top; y <= bottom; y++)
        for (int x = left; x <= right; x++) {
            const float px = (float)x - from[0], py = (float)y - from[1];
            const float t = fmaxf(0, fminf(1, (px * dx + py * dy) / square));
            const float ex = px - t * dx, ey = py - t * dy;
            const float ink = radius + 0.5f - sqrtf(ex * ex + ey * ey);
            float *pixel = &canvas[y * SIDE + x];
            *pixel = fmaxf(*pixel, fminf(1, ink));
        }
}

/* One digit as if by hand: its points shaken, the whole slanted, stretched and shifted, a pen of
   some width, specks and noise. */
static void draw_digit(unsigned char *image, int digit, uint64_t *random) {
    float canvas[SIDE * SIDE] = {0};
    const float width = between(random, 1.4f, 2.9f), height = between(random, 1.5f, 2.6f);
    const float slant = between(random, -0.9f, 0.9f), tilt = between(random, -0.45f, 0.45f);
    const float middle_x = between(random, 10.5f, 16.5f), middle_y = between(random, 11, 16);
    const float radius = between(random, 0.3f, 1.6f), ink = between(random, 0.45f, 1);
    const float noise = between(random, 0, 0.35f);
    float from[2] = {0, 0}, to[2];
    bool pen_down = false;

    for (const char *g = glyphs[digit]; *g != '\0'; g += pen_down ? 2 : 1) {
        if (*g == ' ') {
            pen_down = false;
            continue;
        }
        const float u = (float)(g[0] - '3') + between(random, -0.6f, 0.6f);
        const float v = (float)(g[1] - '4') + between(random, -0.6f, 0.6f);
        to[0] = middle_x + width * u - slant * v;
        to[1] = middle_y + height * v + tilt * u;
        if (pen_down) draw_line(canvas, from, to, radius);
        memcpy(from, to, sizeof from);
        pen_down = true;
    }
    for (int p = 0; p < SIDE * SIDE; p++) {
        const float speck = next_random(random) % 64 == 0 ? between(random, 0, 1) : 0;
        const float value = fmaxf(ink * canvas[p], speck) + noise * between(random, -1, 1);
        image[p] = (unsigned char)(255 * fmaxf(0, fminf(1, value)) + 0.5f);
    }
}

/* Digits as the two files of a data set would hold them: magic number and sizes, big-endian, then
   one byte for each pixel, one for each label. */
static int draw_digits(pmlp_images *images, size_t rows, uint64_t seed) {
    const unsigned char count[4] = {0, 0, (unsigned char)(rows >> 8), (unsigned char)rows};
    const unsigned char image_head[16] = {0, 0, 8, 3, 0, 0, 0, 0, 0, 0, 0, SIDE, 0, 0, 0, SIDE};
    const unsigned char label_head[8] = {0, 0, 8, 1, 0, 0, 0, 0};
    const size_t image_size = sizeof image_head + rows * SIDE * SIDE;
    const size_t label_size = sizeof label_head + rows;
    unsigned char *image_bytes = malloc(image_size), *label_bytes = malloc(label_size);
    pmlp_error error = {PMLP_ERROR_MEMORY, 0, 0, 0, "", "out of memory"};

    if (image_bytes != NULL && label_bytes != NULL) {
        unsigned char *image = image_bytes + sizeof image_head;
        unsigned char *label = label_bytes + sizeof label_head;
        memcpy(image_bytes, image_head, sizeof image_head);
        memcpy(label_bytes, label_head, sizeof label_head);
        memcpy(image_bytes + 4, count, sizeof count);
        memcpy(label_bytes + 4, count, sizeof count);
        for (size_t r = 0; r < rows; r++, image += SIDE * SIDE) {
            label[r] = (unsigned char)(next_random(&seed) % DIGITS);
            draw_digit(image, label[r], &seed);
        }
        error.result = pmlp_images_parse(image_bytes, image_size, label_bytes, label_size, 0, NULL,
                                         images, &error);
    }
    free(image_bytes);
    free(label_bytes);
    if (error.result == PMLP_OK) return OK;
    return fail(FAILED, "the digits cannot be drawn: %s", error.text);
}

/*--- what is to be done: data, network, schedule --------------------------------------------*/

/* What is saved while a run trains. */
typedef struct saving {
    const char *path;
    uint64_t every; /* steps; 0: not by steps */
    double seconds; /* 0: not by time */
    uint64_t keep;  /* so many of PATH.<step> */
    bool removes;   /* those before them: rank 0 does */
    uint64_t next;  /* step; 0: to be found */
    double last;    /* when something was saved, in seconds of training */
    uint64_t kept[MOST_KEPT], count; /* the last `keep` steps, in turn */
} saving;

/* A model in training as one more rank of the run's group. */
typedef struct replica {
    pmlp_model *model;
    pmlp_trainer *trainer;
    struct run *of;
    saving save;
    pthread_t thread;
    bool has_thread;
} replica;

/* One model in training, with what has been measured so far. */
typedef struct run {
    const char *name;
    pmlp_model *model;
    pmlp_trainer *trainer;
    int replicas;                      /* this one and those: */
    replica *others;                   /* [replicas - 1], which do what this one does */
    pmlp_group *groups;                /* [replicas]; NULL if there are no others */
    int workers;
    float learning_rate;               /* of the first epoch */
    size_t rows;                       /* trained so far */
    double seconds;                    /* of training alone */
    double *epochs;                    /* [--epochs], seconds of each */
    double *waited;                    /* [workers], seconds of those */
    double train_loss, train_accuracy; /* of the last epoch */
    double test_loss, test_accuracy;
    unsigned long long weights;
    const struct call *call;           /* what the replicas are doing */
    saving save;                       /* how the replicas begin */
} run;

/* Something that all replicas do at once. */
typedef struct call {
    enum { CREATE, VERIFY, TRAIN, TEST, SYNC, SAVE, RESUME } what;
    pmlp_trainer_desc desc; /* CREATE, VERIFY */
    const pmlp_data *data;  /* all but CREATE and SYNC */
    float learning_rate;    /* TRAIN */
    int steps;              /* VERIFY */
    const char *path;       /* SAVE, RESUME */
} call;

typedef struct job {
    options opt;
    pmlp_images train, test;
    int layers, sizes[MOST_LAYERS + 2];
    pmlp_schedule_kind kind;
    pmlp_schedule *custom; /* from a file, or NULL */
    int stages;
    bool asynchronous; /* the schedule: its weights are its own, not those of serial training */
    pmlp_backend backend;
    pmlp_cuda_options cuda; /* --backend cuda */
    int devices[MOST_DEVICES];
    pmlp_group group; /* of the processes, if there are several */
    FILE *talk;       /* where progress goes: rank 0 alone speaks */
    run serial, pipeline;
    run same; /* a serial run with the pipeline's micro-batches, if the back end is not exact */
} job;

static int load_images(const char *dir, const char *set, size_t limit, pmlp_images *images) {
    enum { ROOM = 4096 };
    char image_path[ROOM], label_path[ROOM];
    pmlp_error error = {0};
    const int a = snprintf(image_path, ROOM, "%s/%s-images-idx3-ubyte", dir, set);
    const int b = snprintf(label_path, ROOM, "%s/%s-labels-idx1-ubyte", dir, set);

    if (a < 0 || b < 0 || a >= ROOM || b >= ROOM)
        return fail(USAGE, "--data: the name of the directory is too long");
    if (pmlp_images_load(image_path, label_path, limit, NULL, images, &error) != PMLP_OK)
        return fail(FAILED, "--data %s: %s", dir, error.text);
    if (images->rows == 0) return fail(FAILED, "--data: %s holds no images", image_path);
    return OK;
}

static int prepare_data(job *j) {
    const options *opt = &j->opt;
    size_t limit = (size_t)opt->limit;
    int status;

    if (opt->data == NULL) {
        if (limit == 0 || limit > DRAWN_TRAIN) limit = DRAWN_TRAIN;
        status = draw_digits(&j->train, limit, 2 * opt->seed);
        return status != OK ? status : draw_digits(&j->test, DRAWN_TEST, 2 * opt->seed + 1);
    }
    status = load_images(opt->data, "train", limit, &j->train);
    if (status == OK) status = load_images(opt->data, "t10k", 0, &j->test);
    if (status != OK) return status;
    if (j->train.height != j->test.height || j->train.width != j->test.width)
        return fail(FAILED, "--data %s: training images of %lux%lu, but test images of %lux%lu",
                    opt->data, (unsigned long)j->train.height, (unsigned long)j->train.width,
                    (unsigned long)j->test.height, (unsigned long)j->test.width);
    return OK;
}

/* Reads "3,1,2", at most `most` numbers from low to high; how many they are, or 0. */
static int read_list(const char *text, int most, long low, long high, int *list) {
    int count = 0;
    while (*text != '\0') {
        char *end = NULL;
        const long n = isdigit((unsigned char)*text) ? strtol(text, &end, 10) : -1;
        if (n < low || n > high || (*end != ',' && *end != '\0') ||
            (*end == ',' && end[1] == '\0') || count == most)
            return 0;
        list[count++] = (int)n;
        text = *end == ',' ? end + 1 : end;
    }
    return count;
}

/* --layers into j->sizes, from place 1; the ends are for the data to fill. */
static int prepare_layers(job *j) {
    const int count = read_list(j->opt.layers, MOST_LAYERS, 1, MOST_WIDTH, j->sizes + 1);
    if (count == 0)
        return fail(USAGE, "--layers %s: expected at most %d numbers from 1 to %d with commas "
                    "between them", j->opt.layers, MOST_LAYERS, MOST_WIDTH);
    j->layers = count + 1; /* and the one that gives the classes */
    return OK;
}

/* The CUDA back end, if it is in this program. */
static bool make_cuda_backend(const pmlp_cuda_options *cuda, pmlp_backend *table) {
#ifdef PMLP_CUDA
    pmlp_cuda_backend_with(cuda, table);
    return true;
#else
    (void)cuda;
    (void)table;
    return false;
#endif
}

/* --backend, and the options that only cuda has. */
static int prepare_backend(job *j) {
    const options *opt = &j->opt;
    const char *only_cuda = opt->math > 0           ? "math"
                            : opt->gemm > 0         ? "gemm"
                            : opt->devices != NULL  ? "devices"
                            : opt->handoff > 0      ? "handoff"
                                                    : NULL;
    j->backend = *pmlp_cpu_backend();
    if (opt->allreduce && opt->replicas < 2)
        return fail(USAGE, "--allreduce has a meaning only with --replicas 2 or more");
    if (opt->backend == ON_CPU && only_cuda != NULL)
        return fail(USAGE, "--%s has a meaning only with --backend cuda", only_cuda);
    if (opt->backend == ON_CPU) return OK;

    if (opt->math > 0) j->cuda.math = (pmlp_cuda_math)(opt->math - 1);
    if (opt->gemm > 0) j->cuda.gemm = (pmlp_cuda_gemm)(opt->gemm - 1);
    if (opt->handoff > 0) j->cuda.handoff = (pmlp_cuda_handoff)(opt->handoff - 1);
    if (opt->devices != NULL) {
        j->cuda.devices = j->devices;
        j->cuda.device_count = read_list(opt->devices, MOST_DEVICES, 0, 65535, j->devices);
        if (j->cuda.device_count == 0)
            return fail(USAGE, "--devices %s: expected at most %d numbers of GPUs, from 0, with "
                        "commas between them", opt->devices, MOST_DEVICES);
    }
    if (make_cuda_backend(&j->cuda, &j->backend)) return OK;
    return fail(FAILED, "--backend cuda: this program was built without CUDA; `make cuda` builds "
                "build/cuda/train, which has it");
}

#ifdef PMLP_CUDA
/* --devices lists those of all workers of this machine: each process takes as many as it has
   workers. */
static void take_devices(job *j, const pmlp_launch *launch) {
    const int count = j->cuda.device_count;
    const int replicas = j->opt.replicas > 1 ? (int)j->opt.replicas : 1;
    const int workers = (int)j->opt.workers * replicas;
    const int each = workers > launch->ranks ? workers / launch->ranks : 1;
    int mine[MOST_DEVICES];

    if (count == 0) return;
    for (int i = 0; i < each && i < MOST_DEVICES; i++)
        mine[i] = j->devices[(launch->local_rank * each + i) % count];
    memcpy(j->devices, mine, sizeof mine);
    j->cuda.device_count = each < MOST_DEVICES ? each : MOST_DEVICES;
}
#endif

/* Joins the other processes, if mpirun, torchrun or srun has started several. */
static int prepare_group(job *j) {
#ifdef PMLP_CUDA
    pmlp_launch launch;
    pmlp_error error = {0};

    if (j->opt.backend != ON_CUDA) return OK;
    if (pmlp_launch_from_environment(&launch, &error) != PMLP_OK)
        return fail(FAILED, "%s", error.text);
    if (launch.ranks == 1 && j->opt.replicas > 1)
        return fail(USAGE, "--replicas %ld: replicas in one program want --backend cpu; with cuda "
                    "start as many with mpirun, torchrun or srun", j->opt.replicas);
    if (launch.ranks == 1) return OK;
    if (j->opt.save_seconds > 0)
        return fail(USAGE, "--save-seconds: processes save together, by steps: --save-every K");
    take_devices(j, &launch);
    if (pmlp_nccl_group_create(&launch, &j->cuda, NULL, &j->group, &j->backend, &error) != PMLP_OK)
        return fail(FAILED, "%s", error.text);
    if (launch.rank == 0) return OK;
    j->opt.svg = j->opt.trace = NULL;
    j->talk = fopen("/dev/null", "w");
    if (j->talk == NULL || freopen("/dev/null", "w", stdout) == NULL)
        return fail(FAILED, "/dev/null cannot be written");
#else
    (void)j;
#endif
    return OK;
}

/* The whole file, in memory of its own; NULL if it cannot be read. */
static char *read_file(const char *path, size_t *size) {
    enum { CHUNK = 65536 };
    FILE *file = fopen(path, "rb");
    char *text = NULL;
    size_t got = CHUNK;
    bool good = file != NULL;

    *size = 0;
    while (good && got == CHUNK) {
        char *larger = realloc(text, *size + CHUNK);
        good = larger != NULL;
        if (!good) break;
        text = larger;
        got = fread(text + *size, 1, CHUNK, file);
        *size += got;
        good = !ferror(file);
    }
    if (file != NULL) fclose(file);
    if (good) return text;
    free(text);
    return NULL;
}

/* The most stages that one worker has. */
static int stages_per_worker(const pmlp_schedule *schedule) {
    int most = 0;
    for (int w = 0; w < pmlp_schedule_workers(schedule); w++) {
        int mine = 0;
        for (int s = 0; s < pmlp_schedule_stages(schedule); s++)
            mine += pmlp_schedule_stage_worker(schedule, s) == w;
        if (mine > most) most = mine;
    }
    return most;
}

/* A schedule from a file: read, proved, and not at odds with the other options. */
static int prepare_custom(job *j) {
    const options *opt = &j->opt;
    const char *path = opt->schedule;
    pmlp_error error = {0};
    size_t size = 0;
    char *text = read_file(path, &size);
    int workers, microbatches;

    if (text == NULL)
        return fail(USAGE, "--schedule %s: neither a schedule that --help lists nor a file that "
                    "can be read", path);
    if (pmlp_schedule_parse(text, size, NULL, &j->custom, &error) == PMLP_OK)
        pmlp_schedule_check(j->custom, 0, NULL, &error);
    free(text);
    if (error.result != PMLP_OK && error.worker >= 0 && strncmp(error.text, "row ", 4) != 0)
        return fail(FAILED, "--schedule %s: row %d: %s", path, error.worker + 1, error.text);
    if (error.result != PMLP_OK) return fail(FAILED, "--schedule %s: %s", path, error.text);

    workers = pmlp_schedule_workers(j->custom);
    microbatches = pmlp_schedule_microbatches(j->custom);
    if (opt->workers != 0 && opt->workers != workers)
        return fail(USAGE, "--workers %ld: the schedule in %s has %d", opt->workers, path, workers);
    if (opt->microbatches != 0 && opt->microbatches != microbatches)
        return fail(USAGE, "--microbatches %ld: the schedule in %s has %d", opt->microbatches, path,
                    microbatches);
    if (opt->virtual_stages != 0 && opt->virtual_stages != stages_per_worker(j->custom))
        return fail(USAGE, "--virtual %ld: the schedule in %s has %d", opt->virtual_stages, path,
                    stages_per_worker(j->custom));
    return OK;
}

/* A schedule by its name: can it have these numbers of workers, stages and micro-batches? */
static int prepare_kind(job *j) {
    const options *opt = &j->opt;
    const pmlp_schedule_desc desc = {
        .kind = j->kind,
        .workers = (int)opt->workers,
        .virtual_stages = (int)opt->virtual_stages,
        .microbatches = (int)(opt->microbatches != 0 ? opt->microbatches : 2 * opt->workers),
    };
    pmlp_schedule *schedule = NULL;
    pmlp_error error = {0};

    j->stages = (int)(opt->workers * (opt->virtual_stages != 0 ? opt->virtual_stages : 1));
    if (j->kind == PMLP_SCHEDULE_AUTO) return OK; /* it takes measuring to find that one */
    if (pmlp_schedule_create(&desc, &schedule, &error) != PMLP_OK)
        return fail_with(&error, "the schedule cannot be made");
    j->stages = pmlp_schedule_stages(schedule);
    j->asynchronous = !pmlp_schedule_is_synchronous(schedule);
    pmlp_schedule_destroy(schedule);
    return OK;
}

/* --schedule, and how many workers and stages that makes. */
static int prepare_schedule(job *j) {
    options *opt = &j->opt;
    int status;

    j->kind = pmlp_schedule_kind_of(opt->schedule);
    if (j->kind == PMLP_SCHEDULE_DEFAULT && (status = prepare_custom(j)) != OK) return status;
    if (j->custom != NULL) {
        opt->workers = pmlp_schedule_workers(j->custom);
        j->stages = pmlp_schedule_stages(j->custom);
    }
    if (opt->workers == 0) opt->workers = opt->compare || opt->verify != 0 ? 2 : 1;
    if (j->custom == NULL && (status = prepare_kind(j)) != OK) return status;
    if (opt->no_stashing && !j->asynchronous)
        return fail(USAGE, "--no-stashing has a meaning only with --schedule pipedream or "
                    "pipedream-2bw: %s updates all weights at once", opt->schedule);
    if (opt->replicas > 1 && j->asynchronous)
        return fail(USAGE, "--replicas %ld wants a synchronous schedule, which %s is not",
                    opt->replicas, opt->schedule);
    if (opt->memory > 0 && j->kind != PMLP_SCHEDULE_AUTO)
        return fail(USAGE, "--memory has a meaning only with --schedule auto");
    return OK;
}

/* Whether the network has enough places to be cut at. */
static int check_stages(const job *j) {
    const options *opt = &j->opt;
    /* May a cut fall inside the first layer? Where that would change bits the library says no. */
    const bool inside = opt->cut == INSIDE_LAYERS && j->backend.exact;
    const int columns = inside ? (j->sizes[1] - 1) / PMLP_COLUMN_STEP : 0;
    const int most = j->layers + columns;
    const char *layers = opt->layers;
    const char *cut = inside                      ? "--cut auto"
                      : opt->cut == INSIDE_LAYERS ? "--backend cuda, which cuts between layers"
                                                  : "--cut layers";

    if (j->stages <= most) return OK;
    if (j->custom != NULL)
        return fail(USAGE, "--schedule %s: its %d stages are too many for --layers %s and %s: "
                    "%d at most", opt->schedule, j->stages, layers, cut, most);
    return fail(USAGE, "--workers %ld: %d stages are too many for --layers %s and %s: %d at most",
                opt->workers, j->stages, layers, cut, most);
}

/* Can the file be written, once there is something to write? Nothing is left behind. */
static int check_path(const char *name, const char *path) {
    struct stat there;
    const bool is_new = path != NULL && lstat(path, &there) != 0;
    FILE *file = path != NULL ? fopen(path, "ab") : NULL;

    if (path == NULL) return OK;
    if (file == NULL)
        return fail(FAILED, "--%s %s: cannot be written: %s", name, path, strerror(errno));
    fclose(file);
    if (is_new) remove(path);
    return OK;
}

/* --save and its kin: what makes sense, and whether the file can be written. */
static int prepare_files(const options *opt) {
    const char *training_only = opt->save != NULL       ? "save"
                                : opt->resume != NULL ? "resume"
                                                        : NULL;
    struct stat there;

    if (opt->save == NULL && (opt->save_every != 0 || opt->save_seconds > 0 || opt->keep != 0))
        return fail(USAGE, "--%s wants to know where: --save FILE",
                    opt->keep != 0 ? "keep" : opt->save_every != 0 ? "save-every" : "save-seconds");
    if (opt->keep != 0 && opt->save_every == 0 && opt->save_seconds == 0)
        return fail(USAGE, "--keep wants to know when: --save-every K or --save-seconds S");
    if (opt->keep != 0 && strlen(opt->save) > 4000)
        return fail(USAGE, "--keep: --save %s: is too long for a number behind it", opt->save);
    if (opt->save_seconds > 0 && opt->replicas > 1)
        return fail(USAGE, "--save-seconds: replicas save together, by steps: --save-every K");
    if (opt->load != NULL && opt->resume != NULL)
        return fail(USAGE, "--load and --resume cannot be used together");
    if (training_only != NULL && (opt->compare || opt->verify != 0))
        return fail(USAGE, "--%s wants one training, which --%s is not", training_only,
                    opt->compare ? "compare" : "verify");
    if (opt->save != NULL && stat(opt->save, &there) == 0 && !S_ISREG(there.st_mode))
        return fail(FAILED, "--save %s: cannot be written: it is no regular file", opt->save);
    return check_path("save", opt->save);
}

/* Everything that can be refused before any work is done, then the data. */
static int prepare(job *j) {
    const options *opt = &j->opt;
    int classes = 2, status;

    if (opt->momentum > 0 && opt->optimizer != MOMENTUM && opt->optimizer != NESTEROV)
        return fail(USAGE, "--momentum has a meaning only with --optimizer momentum or nesterov");
    if (opt->compare && opt->verify != 0)
        return fail(USAGE, "--compare and --verify cannot be used together");
    if (opt->verify != 0 && (opt->svg != NULL || opt->trace != NULL))
        return fail(USAGE, "--%s wants a training, which --verify is not",
                    opt->svg != NULL ? "svg" : "trace");
    if (opt->svg != NULL && opt->trace != NULL && strcmp(opt->svg, opt->trace) == 0)
        return fail(USAGE, "--svg and --trace cannot both write %s", opt->svg);
    if ((status = prepare_backend(j)) != OK || (status = prepare_layers(j)) != OK ||
        (status = prepare_schedule(j)) != OK || (status = check_stages(j)) != OK ||
        (status = prepare_files(opt)) != OK || (status = check_path("svg", opt->svg)) != OK ||
        (status = check_path("trace", opt->trace)) != OK || (status = prepare_data(j)) != OK)
        return status;

    for (size_t r = 0; r < j->train.rows; r++)
        if (j->train.labels[r] >= classes) classes = j->train.labels[r] + 1;
    for (size_t r = 0; r < j->test.rows; r++)
        if (j->test.labels[r] >= classes) classes = j->test.labels[r] + 1;
    j->sizes[0] = (int)(j->train.height * j->train.width);
    j->sizes[j->layers] = classes;
    return prepare_group(j);
}

/*--- training -------------------------------------------------------------------------------*/

/* What the updating line on a terminal needs to know, and what is to be done behind a step. */
typedef struct progress {
    const run *who;
    bool drawing;
    saving save;
    pmlp_error save_error; /* what it failed of */
    long epoch, epochs;
    double rows_before, rows_in_all; /* of every run of this program */
    double rows_skipped;             /* of this epoch, done by another program */
    double seconds_before, drawn;    /* drawn: stats->seconds of the last drawing */
} progress;

static void draw_progress(const pmlp_stats *stats, progress *p) {
    const bool last = stats->rows == stats->total_rows;
    if (stats->seconds >= p->drawn + 0.1 || (last && p->drawn > 0)) {
        const double done = p->rows_before + (double)stats->rows - p->rows_skipped;
        const double left = (p->seconds_before + stats->seconds) * (p->rows_in_all - done) / done;
        const double percent = 100 * (double)stats->rows / (double)stats->total_rows;
        char line[128];
        snprintf(line, sizeof line,
                 "epoch %ld/%ld %s %3.0f %%  loss %.4f  accuracy %.4f  %.0f samples/s  ETA %.0f s",
                 p->epoch, p->epochs, p->who->name, percent, stats->loss, stats->accuracy,
                 stats->samples_per_second, left);
        fprintf(stderr, "\r%-79s", line);
        p->drawn = stats->seconds;
    }
}

/* The signal that asks for the end, or 0. */
static volatile sig_atomic_t stopped;

/* The first Ctrl-C ends the training behind a step, the second one at once. */
static void stop(int number) {
    stopped = number;
    signal(number, SIG_DFL);
}

static void catch_signals(void) {
    signal(SIGINT, stop);
    signal(SIGTERM, stop);
}

/* Whether it is time to save. */
static bool is_due(saving *s, uint64_t step, double now) {
    const bool by_time = s->seconds > 0 && now - s->last >= s->seconds;
    if (s->every > 0 && s->next == 0) s->next = ((step - 1) / s->every + 1) * s->every;
    if (!by_time && (s->every == 0 || step < s->next)) return false;
    if (s->every > 0) s->next = (step / s->every + 1) * s->every;
    s->last = now;
    return true;
}

/* Saves behind a step, if it is time. */
static pmlp_result save_step(saving *s, pmlp_trainer *t, uint64_t step, double now) {
    char path[4096];
    pmlp_result result;
    if (!is_due(s, step, now)) return PMLP_OK;
    result = pmlp_trainer_save(t, s->path);
    if (result != PMLP_OK || s->keep == 0) return result;
    snprintf(path, sizeof path, "%s.%llu", s->path, (unsigned long long)step);
    result = pmlp_trainer_save(t, path);
    snprintf(path, sizeof path, "%s.%llu", s->path,
             (unsigned long long)s->kept[s->count % s->keep]);
    if (result == PMLP_OK && s->removes && s->count >= s->keep) remove(path);
    s->kept[s->count++ % s->keep] = step;
    return result;
}

/* Behind each step. */
static bool after_step(const pmlp_stats *stats, void *user) {
    progress *p = user;
    if (p->drawing) draw_progress(stats, p);
    if (save_step(&p->save, p->who->trainer, stats->step, p->seconds_before + stats->seconds) !=
        PMLP_OK)
        p->save_error = *pmlp_trainer_error(p->who->trainer);
    return !stopped && p->save_error.result == PMLP_OK;
}

/* The same on the other replicas, which save together with the first. */
static bool follow_step(const pmlp_stats *stats, void *user) {
    replica *one = user;
    save_step(&one->save, one->trainer, stats->step, 0);
    return true;
}

/* How much is traced: as many steps as an epoch has, or KEPT_STEPS; 0 if nobody wants to see. */
static int steps_to_trace(const job *j) {
    const size_t batch = (size_t)j->opt.batch, steps = (j->train.rows + batch - 1) / batch;
    if (j->opt.svg == NULL && j->opt.trace == NULL) return 0;
    if (j->asynchronous) return KEPT_RUNS;
    return steps < KEPT_STEPS ? (int)steps : KEPT_STEPS;
}

static pmlp_trainer_desc trainer_desc(const job *j) {
    const options *opt = &j->opt;
    return (pmlp_trainer_desc){
        .workers = (int)opt->workers,
        .virtual_stages = (int)opt->virtual_stages,
        .microbatches = (int)opt->microbatches,
        .batch = (size_t)opt->batch,
        .schedule = j->kind,
        .custom = j->custom,
        .memory = ceil(opt->memory * 1048576),
        .no_stashing = opt->no_stashing,
        .optimizer = (pmlp_optimizer)opt->optimizer,
        .learning_rate = (float)opt->lr,
        .momentum = (float)opt->momentum,
        .weight_decay = (float)opt->weight_decay,
        .clip_norm = (float)opt->clip,
        .seed = opt->seed,
        .whole_layers = opt->cut != INSIDE_LAYERS,
        .measure_layers = !j->asynchronous, /* whose results depend on the cut */
        .no_threads = opt->no_threads,
        .replicas = (int)opt->replicas,
        .allreduce = opt->allreduce,
        .trace = steps_to_trace(j),
        .group = j->group.ranks > 1 ? (pmlp_group *)&j->group : NULL,
        .backend = &j->backend,
    };
}

/* The best serial run: one worker, the whole batch at once. */
static pmlp_trainer_desc serial_desc(const job *j) {
    pmlp_trainer_desc desc = trainer_desc(j);
    desc.workers = desc.virtual_stages = desc.microbatches = 1;
    desc.schedule = PMLP_SCHEDULE_SEQUENTIAL;
    desc.custom = NULL;
    desc.memory = 0;
    desc.no_stashing = false;
    desc.replicas = 1;
    desc.allreduce = false;
    desc.trace = 0;
    desc.group = NULL;
    return desc;
}

/* One worker that takes the batch in the pipeline's parts. */
static pmlp_trainer_desc same_desc(const job *j) {
    pmlp_trainer_desc desc = serial_desc(j);
    desc.microbatches = pmlp_schedule_microbatches(pmlp_trainer_schedule(j->pipeline.trainer));
    return desc;
}

static int create_model(const job *j, pmlp_model **model) {
    const pmlp_model_desc desc = {
        .layers = j->layers,
        .sizes = j->sizes,
        .loss = (pmlp_loss)j->opt.loss,
        .seed = j->opt.seed,
    };
    pmlp_error error = {0};
    if (pmlp_model_create(&desc, model, &error) != PMLP_OK)
        return fail(FAILED, "the network cannot be created: %s", error.text);
    if (j->opt.load == NULL || pmlp_model_load_weights(*model, j->opt.load, &error) == PMLP_OK)
        return OK;
    return fail(FAILED, "--load %s", error.text);
}

/* A call on one replica: rank 0 fills in stats or report, and says what went wrong. */
static pmlp_result call_one(const call *c, pmlp_model *model, pmlp_trainer **trainer,
                            pmlp_group *group, pmlp_stats *stats, pmlp_verify_report *report,
                            pmlp_error *error) {
    pmlp_trainer_desc desc = c->desc;
    pmlp_result result = PMLP_OK;

    if (group != NULL) desc.group = group;
    if (c->what == CREATE) return pmlp_trainer_create(model, &desc, trainer, error);
    if (c->what == VERIFY) return pmlp_verify(model, &desc, c->data, c->steps, report, error);
    if (c->what == TRAIN) result = pmlp_trainer_set_learning_rate(*trainer, c->learning_rate);
    if (result == PMLP_OK && c->what == TRAIN)
        result = pmlp_trainer_epoch(*trainer, c->data, stats);
    if (c->what == TEST) result = pmlp_trainer_eval(*trainer, c->data, stats);
    if (c->what == SYNC) result = pmlp_trainer_sync(*trainer);
    if (c->what == SAVE) result = pmlp_trainer_save(*trainer, c->path);
    if (c->what == RESUME) result = pmlp_trainer_load(*trainer, c->path);
    if (result != PMLP_OK) *error = *pmlp_trainer_error(*trainer);
    return result;
}

static void *call_replica(void *argument) {
    replica *one = argument;
    run *r = one->of;
    call own = *r->call;
    pmlp_verify_report report;
    pmlp_error error = {0};
    own.desc.progress = own.what == CREATE ? follow_step : NULL;
    own.desc.progress_user = one;
    call_one(&own, one->model, &one->trainer, &r->groups[one - r->others + 1], NULL, &report,
             &error); /* rank 0 hears of a failure, too */
    return NULL;
}

/* A call on all replicas at once: the others on threads of their own. */
static pmlp_result call_all(run *r, const call *c, pmlp_stats *stats, pmlp_verify_report *report,
                            pmlp_error *error) {
    pmlp_result result;
    r->call = c;
    for (int i = 0; i < r->replicas - 1; i++) {
        replica *one = &r->others[i];
        one->has_thread = pthread_create(&one->thread, NULL, call_replica, one) == 0;
        if (!one->has_thread) r->groups[i + 1].abort(r->groups[i + 1].context, "it has no thread");
    }
    result = call_one(c, r->model, &r->trainer, r->groups, stats, report, error);
    for (int i = 0; i < r->replicas - 1; i++)
        if (r->others[i].has_thread) pthread_join(r->others[i].thread, NULL);
    return result;
}

/* The models of all replicas, and the group that they are, unless they are processes. */
static int create_replicas(const job *j, int replicas, run *r) {
    pmlp_error error = {0};
    int status = create_model(j, &r->model);

    if (status != OK || replicas < 2 || j->group.ranks > 1) return status;
    r->others = calloc((size_t)replicas - 1, sizeof *r->others);
    r->groups = calloc((size_t)replicas, sizeof *r->groups);
    if (r->others == NULL || r->groups == NULL) return fail(FAILED, "out of memory");
    if (pmlp_thread_groups_create(replicas, NULL, r->groups, &error) != PMLP_OK)
        return fail(FAILED, "the replicas cannot be created: %s", error.text);
    r->replicas = replicas;
    for (int i = 0; status == OK && i < replicas - 1; i++) {
        r->others[i].of = r;
        r->others[i].save = r->save;
        r->others[i].save.removes = false;
        status = create_model(j, &r->others[i].model);
    }
    return status;
}

static int begin_run(const job *j, pmlp_trainer_desc desc, progress *shown, run *r) {
    call create = {.what = CREATE, .desc = desc};
    pmlp_error error = {0};
    int status;

    shown->drawing = !j->opt.quiet && isatty(fileno(j->talk));
    create.desc.progress = after_step;
    create.desc.progress_user = shown;
    r->save = shown->save;
    if ((status = create_replicas(j, desc.replicas, r)) != OK) return status;
    if (call_all(r, &create, NULL, NULL, &error) != PMLP_OK)
        return fail_with(&error, "the trainer cannot be created");
    r->workers = pmlp_schedule_workers(pmlp_trainer_schedule(r->trainer));
    r->learning_rate = pmlp_trainer_query_desc(r->trainer).learning_rate;
    r->waited = calloc((size_t)r->workers, sizeof *r->waited);
    r->epochs = calloc((size_t)j->opt.epochs, sizeof *r->epochs);
    return r->waited != NULL && r->epochs != NULL ? OK : fail(FAILED, "out of memory");
}

static void announce(const job *j) {
    if (j->opt.data == NULL && !j->opt.quiet)
        fprintf(j->talk, "no --data: training on %lu digits drawn by this program\n",
                (unsigned long)j->train.rows);
}

static void end_run(run *r) {
    pmlp_trainer_destroy(r->trainer);
    pmlp_model_destroy(r->model);
    for (int i = 0; i < r->replicas - 1; i++) {
        pmlp_trainer_destroy(r->others[i].trainer);
        pmlp_model_destroy(r->others[i].model);
    }
    pmlp_thread_groups_destroy(r->groups);
    free(r->others);
    free(r->groups);
    free(r->waited);
    free(r->epochs);
}

/* Loaded once and never changed. */
static pmlp_data data_of(const pmlp_images *images) {
    return (pmlp_data){
        .rows = images->rows, .x = images->x, .labels = images->labels, .constant = true};
}

/* --save, when the training is over or was stopped. */
static int save_run(const job *j, run *r) {
    const call save = {.what = SAVE, .path = j->opt.save};
    pmlp_error error = {0};
    if (save.path == NULL || call_all(r, &save, NULL, NULL, &error) == PMLP_OK) return OK;
    return fail(FAILED, "--save: %s", error.text);
}

/* --resume; *at becomes what is done. */
static int resume_run(const job *j, run *r, pmlp_position *at) {
    const char *path = j->opt.resume;
    const call resume = {.what = RESUME, .path = path};
    pmlp_error error = {0};

    if (path == NULL) return OK;
    if (call_all(r, &resume, NULL, NULL, &error) != PMLP_OK) return fail_with(&error, "--resume");
    pmlp_trainer_position(r->trainer, at);
    if (at->epoch >= (uint64_t)j->opt.epochs)
        return fail(USAGE, "--epochs %ld: the training in %s has done %lu", j->opt.epochs, path,
                    (unsigned long)at->epoch);
    if (!j->opt.quiet)
        fprintf(j->talk, "resuming %s: %lu steps, %lu epochs and %lu images are done\n", path,
                (unsigned long)at->step, (unsigned long)at->epoch, (unsigned long)at->rows);
    return OK;
}

/* An epoch that did not reach its end, and why. */
static int stopped_run(const job *j, run *r, const progress *shown, const pmlp_error *error) {
    int status;
    if (shown->save_error.result != PMLP_OK)
        return fail(FAILED, "--save: %s", shown->save_error.text);
    if (error->result == PMLP_ERROR_NUMBER)
        return fail(FAILED, "training diverged in epoch %ld, --lr must be smaller: %s",
                    shown->epoch, error->text);
    if (error->result != PMLP_ERROR_CANCELLED)
        return fail(FAILED, "training stopped: %s", error->text);
    if ((status = save_run(j, r)) != OK) return status;
    if (j->opt.save == NULL) return fail(128 + stopped, "stopped by a signal, nothing is saved");
    return fail(128 + stopped, "stopped by a signal and saved: go on with --resume %s",
                j->opt.save);
}

static int train_epoch(const job *j, run *r, progress *shown) {
    const pmlp_data data = data_of(&j->train);
    const float left = (float)(shown->epochs - shown->epoch + 1) / (float)shown->epochs;
    const float decay = j->opt.lr_decay == LINEAR_DECAY ? left : 1;
    const call train = {
        .what = TRAIN, .data = &data, .learning_rate = decay * r->learning_rate};
    pmlp_stats stats = {0};
    pmlp_position before = {0};
    pmlp_error error = {0};
    pmlp_result result;

    shown->who = r;
    shown->drawn = 0;
    pmlp_trainer_position(r->trainer, &before);
    shown->rows_skipped = (double)before.rows;
    result = call_all(r, &train, &stats, NULL, &error);
    if (shown->drawn > 0) fprintf(stderr, "\r%79s\r", "");
    if (result != PMLP_OK) return stopped_run(j, r, shown, &error);

    shown->rows_before += (double)(stats.rows - before.rows);
    shown->seconds_before += stats.seconds;
    r->rows += stats.rows - before.rows;
    r->seconds += stats.seconds;
    r->epochs[shown->epoch - 1] = stats.seconds;
    r->train_loss = stats.loss;
    r->train_accuracy = stats.accuracy;
    for (int w = 0; w < r->workers && w < stats.workers; w++)
        r->waited[w] += stats.idle[w] * stats.seconds;
    return OK;
}

static int test_run(const job *j, run *r) {
    const pmlp_data data = data_of(&j->test);
    const call test = {.what = TEST, .data = &data};
    pmlp_stats stats = {0};
    pmlp_error error = {0};
    if (call_all(r, &test, &stats, NULL, &error) != PMLP_OK)
        return fail(FAILED, "testing stopped: %s", error.text);
    r->test_loss = stats.loss;
    r->test_accuracy = stats.accuracy;
    return OK;
}

/* Test results and the weights word of a run that has trained all its epochs. */
static int finish_run(const job *j, run *r) {
    const call sync = {.what = SYNC};
    pmlp_error error = {0};
    uint64_t hash = 0;
    const int status = test_run(j, r);
    if (status != OK) return status;
    if (call_all(r, &sync, NULL, NULL, &error) != PMLP_OK ||
        pmlp_model_hash(r->model, &hash, &error) != PMLP_OK)
        return fail(FAILED, "the weights cannot be read: %s", error.text);
    r->weights = hash;
    return OK;
}

/*--- results --------------------------------------------------------------------------------*/

static pmlp_stage_info stage_of(const run *r, int stage) {
    pmlp_stage_info info = {0};
    pmlp_trainer_stage(r->trainer, stage, &info);
    return info;
}

/* The line for programs, without its end. */
static void print_result(const job *j, const run *r) {
    const pmlp_trainer_desc desc = pmlp_trainer_query_desc(r->trainer);
    const pmlp_schedule *schedule = pmlp_trainer_schedule(r->trainer);

    printf("result backend=%s schedule=", j->backend.name);
    for (const char *c = j->opt.schedule; *c != '\0'; c++)
        putchar(isspace((unsigned char)*c) ? '_' : *c);
    printf(" workers=%d virtual=%d microbatches=%d batch=%lu epochs=%ld", r->workers,
           stages_per_worker(schedule), pmlp_schedule_microbatches(schedule),
           (unsigned long)desc.batch, j->opt.epochs);
    printf(" seconds=%.3f samples_per_second=%.0f train_loss=%.4f test_accuracy=%.4f", r->seconds,
           (double)r->rows / r->seconds, r->train_loss, r->test_accuracy);
    printf(" weights=%016llx", r->weights);
    for (int s = 0; j->asynchronous && s < j->stages; s++)
        printf("%s%.2f", s > 0 ? "," : " staleness=", stage_of(r, s).staleness);
}

/* The end of that line. */
static void end_result(const job *j) {
    static const char *const math[] = {"fp32", "tf32", "bf16"};
    static const char *const gemm[] = {"fused", "plain", "teaching"};
    if (j->opt.backend == ON_CUDA)
        printf(" math=%s gemm=%s", math[j->cuda.math], gemm[j->cuda.gemm]);
    if (j->opt.replicas != 0) printf(" replicas=%ld", j->opt.replicas);
    printf("\n");
}

/* "784-512-10" */
static const char *network_name(const job *j, char *text, size_t size) {
    size_t length = 0;
    for (int l = 0; l <= j->layers && length < size; l++)
        length += (size_t)snprintf(text + length, size - length, l > 0 ? "-%d" : "%d", j->sizes[l]);
    return text;
}

static void print_network(const job *j) {
    char network[8 * (MOST_LAYERS + 2)];
    printf("network %s, batch %ld, %ld epoch%s of %lu images\n\n",
           network_name(j, network, sizeof network), j->opt.batch, j->opt.epochs,
           j->opt.epochs == 1 ? "" : "s", (unsigned long)j->train.rows);
}

static int ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The median epoch in seconds; sorts them. A pause of the machine spoils one of them, not this. */
static double median_epoch(const job *j, run *r) {
    const size_t n = (size_t)j->opt.epochs;
    qsort(r->epochs, n, sizeof *r->epochs, ascending);
    return (r->epochs[(n - 1) / 2] + r->epochs[n / 2]) / 2;
}

/* Training that does not promise the bits of serial training. */
static bool may_differ(const job *j) {
    return j->asynchronous || j->opt.allreduce;
}

static void print_table(const job *j, double serial_epoch, double parallel_epoch, bool identical) {
    const run *serial = &j->serial, *parallel = &j->pipeline;
    const char *verdict = identical ? "identical" : may_differ(j) ? "different" : "DIFFERENT";
    const bool against_serial = j->same.trainer == NULL;

    printf("                    regular           parallel\n"
           "  time              %-16.3f  %.3f s\n", serial->seconds, parallel->seconds);
    printf("  median epoch      %-16.3f  %.3f s\n", serial_epoch, parallel_epoch);
    printf("  samples/s         %-16.0f  %.0f\n", (double)j->train.rows / serial_epoch,
           (double)j->train.rows / parallel_epoch);
    printf("  training loss     %-16.4f  %.4f\n", serial->train_loss, parallel->train_loss);
    printf("  test accuracy     %-16.4f  %.4f\n", serial->test_accuracy, parallel->test_accuracy);
    printf("  weights           %016llx  %016llx  %s\n", serial->weights, parallel->weights,
           against_serial ? verdict : "of other micro-batches");
    if (!against_serial)
        printf("  one worker, the same micro-batches  %016llx  %s\n", j->same.weights, verdict);
    printf("\n");
    if (may_differ(j))
        printf("  accuracy %+.4f, loss %+.4f: %s need not agree\n\n",
               parallel->test_accuracy - serial->test_accuracy,
               parallel->train_loss - serial->train_loss,
               j->asynchronous ? "an asynchronous schedule" : "a sum of replicas");
    printf("  speedup           %.2fx, by the median epochs\n"
           "  improvement       %.1f %% of the regular time saved\n\n",
           serial_epoch / parallel_epoch, 100 * (1 - parallel_epoch / serial_epoch));
}

/* How many outputs of layer l the stage computes: all, but for a first layer that is cut inside. */
static double outputs_of(const job *j, const pmlp_stage_info *stage, int l) {
    return l == stage->first_layer ? (double)stage->columns : (double)j->sizes[l + 1];
}

/* Which layers ran where, and how long each worker waited. */
static void print_stages(const job *j, const run *r) {
    printf("  stage  worker  share of arithmetic  worker's idle time  layers\n");
    for (int s = 0; s < j->stages; s++) {
        const pmlp_stage_info info = stage_of(r, s);
        printf("  %5d  %6d  %17.1f %%  %16.1f %%  ", s, info.worker, 100 * info.cost,
               100 * r->waited[info.worker] / r->seconds);
        printf("%d", j->sizes[info.first_layer]);
        for (int l = info.first_layer; l < info.first_layer + info.layers; l++) {
            printf("-%d", j->sizes[l + 1]);
            if (outputs_of(j, &info, l) < j->sizes[l + 1])
                printf("[%lu..%lu]", (unsigned long)info.first_column,
                       (unsigned long)(info.first_column + info.columns - 1));
        }
        printf("\n");
    }
    printf("\n");
}

/* What an asynchronous schedule does to the weights: how old they are. */
static void print_staleness(FILE *out, const job *j, const run *r) {
    if (!j->asynchronous) return;
    fprintf(out, "  stage  worker  versions  staleness, mean  largest  backward saw others than "
            "forward\n");
    for (int s = 0; s < j->stages; s++) {
        const pmlp_stage_info info = stage_of(r, s);
        fprintf(out, "  %5d  %6d  %8d  %15.2f  %7d  %32.1f %%\n", s, info.worker, info.versions,
                info.staleness, info.most_stale, 100 * info.torn);
    }
    fprintf(out, "  (staleness: updates between the weights that a micro-batch's forward read and "
            "those\n  that its gradient changed)\n\n");
}

/*--- what the pipeline could reach, and how it ran ------------------------------------------*/

/* The ceiling of the schedule that was run; costs NULL: counted in multiply-adds. */
static int find_ceiling(const job *j, const run *r, const pmlp_costs *costs,
                        pmlp_ceiling_report *ceiling) {
    pmlp_trainer_desc desc = trainer_desc(j);
    pmlp_error error = {0};
    desc.cuts = pmlp_trainer_query_desc(r->trainer).cuts; /* not to be measured again */
    desc.replicas = 1; /* a pipeline's own */
    if (j->kind == PMLP_SCHEDULE_AUTO) desc.custom = pmlp_trainer_schedule(r->trainer);
    if (pmlp_ceiling(r->model, &desc, costs, ceiling, &error) == PMLP_OK) return OK;
    return fail(FAILED, "the ceiling cannot be found: %s", error.text);
}

/* Counted, and what share of it was reached; or measured in the last steps, which do not tell what
   all of them could reach: share is 0. */
static void print_ceiling(const job *j, const pmlp_ceiling_report *ceiling, double share) {
    const bool counted = share > 0;
    printf("  ceiling of %d worker%s%s, %s:\n", ceiling->workers, ceiling->workers == 1 ? "" : "s",
           j->opt.replicas > 1 ? " of one replica" : "",
           counted ? "counted in multiply-adds" : "with the costs of its last steps, measured");
    printf("    balance of the cut      %6.3fx", ceiling->balance);
    if (counted && ceiling->whole_layers > 0)
        printf("  (cuts between whole layers: %.3fx)", ceiling->whole_layers);
    printf("\n    fill and drain          %6.3fx  (of equal stages)\n"
           "    both together           %6.3fx\n",
           ceiling->fill, ceiling->schedule);
    if (counted && j->opt.replicas > 1)
        printf("    times %-3ld replicas      %6.3fx\n", j->opt.replicas,
               (double)j->opt.replicas * ceiling->schedule);
    if (counted) printf("    %.0f %% of that was reached\n", 100 * share);
    else printf("    with hand-offs          %6.3fx\n", ceiling->speedup);
    printf("    what binds: %s; %s\n\n", ceiling->binds, ceiling->advice);
}

/* What was traced, beside what the schedule would do at the costs measured. */
typedef struct traced {
    pmlp_timeline *step, *steps; /* the one of median length; the last ones */
    pmlp_timeline *simulated;
    pmlp_ceiling_report ceiling;
} traced;

static void free_traced(traced *seen) {
    pmlp_timeline_destroy(seen->step);
    pmlp_timeline_destroy(seen->steps);
    pmlp_timeline_destroy(seen->simulated);
}

/* With how many batches the timeline of an asynchronous schedule begins. */
static int batches_of(const pmlp_timeline *timeline, int microbatches) {
    int count = 0, last = 0;
    const pmlp_span *spans = pmlp_timeline_spans(timeline, 0, &count);
    for (int i = 0; i < count; i++)
        if (spans[i].microbatch > last) last = spans[i].microbatch;
    return last / microbatches + 1;
}

/* The lists that were traced, with W put off as the trainer does it: one batch, or those with which
   an asynchronous epoch begins. */
static pmlp_result traced_lists(const job *j, const run *r, const pmlp_timeline *step,
                                const pmlp_costs *costs, pmlp_schedule **lists,
                                pmlp_error *error) {
    const pmlp_trainer_desc desc = pmlp_trainer_query_desc(r->trainer);
    const pmlp_schedule_desc several = {
        .kind = desc.schedule,
        .workers = desc.workers,
        .virtual_stages = desc.virtual_stages,
        .microbatches = desc.microbatches,
        .batches = j->asynchronous ? batches_of(step, desc.microbatches) : 1,
    };
    const double rows = (double)desc.batch / desc.microbatches; /* of a micro-batch */
    const double together = fmin(ceil((double)desc.w_rows / rows), desc.microbatches);
    pmlp_schedule *schedule = NULL;
    pmlp_result result;

    if (!j->asynchronous)
        return pmlp_schedule_put_off(pmlp_trainer_schedule(r->trainer), costs, (int)together, lists,
                                     error);
    result = pmlp_schedule_create(&several, &schedule, error);
    if (result == PMLP_OK)
        result = pmlp_schedule_put_off(schedule, costs, (int)together, lists, error);
    pmlp_schedule_destroy(schedule);
    return result;
}

static int collect_traced(const job *j, const run *r, traced *seen) {
    const int steps = j->asynchronous ? 1 : KEPT_STEPS; /* as many as there are */
    pmlp_schedule *lists = NULL;
    pmlp_costs costs;
    pmlp_error error = {0};

    if (pmlp_trainer_timeline(r->trainer, 0, &seen->step) != PMLP_OK ||
        pmlp_trainer_timeline(r->trainer, steps, &seen->steps) != PMLP_OK ||
        pmlp_trainer_costs(r->trainer, &costs) != PMLP_OK)
        return fail(FAILED, "what was traced cannot be had: %s",
                    pmlp_trainer_error(r->trainer)->text);
    if (j->opt.no_threads) costs.latency = 0; /* that was the other workers' turns */
    if (traced_lists(j, r, seen->step, &costs, &lists, &error) == PMLP_OK)
        pmlp_schedule_timeline(lists, &costs, &seen->simulated, &error);
    pmlp_schedule_destroy(lists);
    if (error.result != PMLP_OK)
        return fail(FAILED, "the schedule cannot be simulated: %s", error.text);
    return find_ceiling(j, r, &costs, &seen->ceiling);
}

/* Writes --svg and --trace, and says so on `out`, which may be NULL. */
static int write_traced(const job *j, const run *r, const traced *seen, FILE *out) {
    const char *svg = j->opt.svg, *trace = j->opt.trace;
    const pmlp_trainer_desc desc = pmlp_trainer_query_desc(r->trainer);
    char network[8 * (MOST_LAYERS + 2)], title[8192];
    const pmlp_picture picture = {.title = title, .unit = "ms", .scale = 1000};
    pmlp_error error = {0};

    snprintf(title, sizeof title, "%s, %s, %d worker%s, %d micro-batch%s, batch %lu",
             network_name(j, network, sizeof network), j->opt.schedule, r->workers,
             r->workers == 1 ? "" : "s", desc.microbatches, desc.microbatches == 1 ? "" : "es",
             (unsigned long)desc.batch);
    if (svg != NULL &&
        pmlp_timeline_write_svg(seen->step, seen->simulated, &picture, svg, &error) != PMLP_OK)
        return fail(FAILED, "--svg: %s", error.text);
    if (trace != NULL &&
        pmlp_timeline_write_trace(seen->steps, seen->simulated, &picture, trace, &error) != PMLP_OK)
        return fail(FAILED, "--trace: %s", error.text);
    if (out != NULL)
        fprintf(out, "  wrote %s%s%s\n", svg != NULL ? svg : trace,
                svg != NULL && trace != NULL ? " and " : "",
                svg != NULL && trace != NULL ? trace : "");
    return OK;
}

/* What --svg and --trace ask for. */
static int show_traced(const job *j, const run *r, FILE *out) {
    traced seen = {0};
    int status;

    if (j->opt.svg == NULL && j->opt.trace == NULL) return OK;
    status = collect_traced(j, r, &seen);
    if (status == OK && j->opt.compare) print_ceiling(j, &seen.ceiling, 0);
    if (status == OK) status = write_traced(j, r, &seen, out);
    free_traced(&seen);
    return status;
}

/*--- the three things this program does -----------------------------------------------------*/

static int train_one(job *j) {
    run *r = &j->pipeline;
    progress shown = {.epochs = j->opt.epochs,
                      .save = {.path = j->opt.save,
                               .every = (uint64_t)j->opt.save_every,
                               .seconds = j->opt.save_seconds,
                               .keep = (uint64_t)j->opt.keep,
                               .removes = j->group.rank == 0}};
    pmlp_position done = {0};
    int status = begin_run(j, trainer_desc(j), &shown, r);

    if (status == OK) status = resume_run(j, r, &done);
    if (status == OK) announce(j);
    r->name = "training";
    shown.rows_in_all = (double)j->train.rows * (double)((uint64_t)j->opt.epochs - done.epoch) -
                        (double)done.rows;
    shown.epoch = (long)done.epoch + 1;
    for (; status == OK && shown.epoch <= shown.epochs; shown.epoch++) {
        status = train_epoch(j, r, &shown);
        if (status != OK || j->opt.quiet || (status = test_run(j, r)) != OK) continue;
        fprintf(j->talk, "epoch %ld/%ld  loss %.4f  accuracy %.4f  test accuracy %.4f  %.2f s\n",
                shown.epoch, shown.epochs, r->train_loss, r->train_accuracy, r->test_accuracy,
                r->seconds);
    }
    if (status != OK || (status = save_run(j, r)) != OK || (status = finish_run(j, r)) != OK)
        return status;
    if (!j->opt.quiet) print_staleness(j->talk, j, r);
    status = show_traced(j, r, j->opt.quiet ? NULL : j->talk);
    print_result(j, r);
    end_result(j);
    return status;
}

/* Serial and pipelined epochs take turns, and so does who begins, so that a machine that becomes
   slower or faster meanwhile is unfair to neither. The threads of the one that waits are asleep. */
static int train_both(job *j) {
    progress shown = {.epochs = j->opt.epochs};
    int status = begin_run(j, serial_desc(j), &shown, &j->serial);

    shown.rows_in_all = 2 * (double)j->train.rows * (double)j->opt.epochs;
    if (status == OK) status = begin_run(j, trainer_desc(j), &shown, &j->pipeline);
    if (status == OK) announce(j);
    for (shown.epoch = 1; status == OK && shown.epoch <= shown.epochs; shown.epoch++) {
        run *first = shown.epoch % 2 == 1 ? &j->serial : &j->pipeline;
        run *second = first == &j->serial ? &j->pipeline : &j->serial;
        status = train_epoch(j, first, &shown);
        if (status == OK) status = train_epoch(j, second, &shown);
        if (status != OK || j->opt.quiet) continue;
        fprintf(j->talk, "epoch %ld/%ld  loss %.4f  accuracy %.4f  serial %.2f s, pipelined %.2f s "
                "so far\n", shown.epoch, shown.epochs, j->pipeline.train_loss,
                j->pipeline.train_accuracy, j->serial.seconds, j->pipeline.seconds);
    }
    if (status == OK) status = finish_run(j, &j->serial);
    return status != OK ? status : finish_run(j, &j->pipeline);
}

/* What the pipeline's weights must be equal to, where whole batches have other bits. Not timed. */
static int train_same(job *j) {
    progress shown = {.epochs = j->opt.epochs};
    run *r = &j->same;
    int status;

    if (j->backend.exact || j->asynchronous) return OK;
    status = begin_run(j, same_desc(j), &shown, r);
    shown.rows_in_all = (double)j->train.rows * (double)j->opt.epochs;
    for (shown.epoch = 1; status == OK && shown.epoch <= shown.epochs; shown.epoch++)
        status = train_epoch(j, r, &shown);
    return status != OK ? status : finish_run(j, r);
}

static bool same_bits(double a, double b) {
    return memcmp(&a, &b, sizeof a) == 0;
}

static int compare(job *j) {
    const run *model = j->backend.exact || j->asynchronous ? &j->serial : &j->same;
    run *serial = &j->serial, *pipeline = &j->pipeline;
    pmlp_ceiling_report ceiling = {0};
    double serial_epoch, epoch, speedup;
    bool identical;
    int status = train_both(j);

    if (status == OK) status = train_same(j);
    if (status == OK) status = find_ceiling(j, pipeline, NULL, &ceiling);
    if (status != OK) return status;
    serial_epoch = median_epoch(j, serial);
    epoch = median_epoch(j, pipeline);
    speedup = serial_epoch / epoch;
    identical = model->weights == pipeline->weights &&
                same_bits(model->train_loss, pipeline->train_loss) &&
                same_bits(model->test_loss, pipeline->test_loss);

    print_network(j);
    print_table(j, serial_epoch, epoch, identical);
    print_stages(j, pipeline);
    print_staleness(stdout, j, pipeline);
    print_ceiling(j, &ceiling, speedup / ceiling.speedup / fmax(1, (double)j->opt.replicas));
    status = show_traced(j, pipeline, stdout);
    print_result(j, pipeline);
    printf(" speedup=%.2f identical=%s", speedup, identical ? "yes" : "no");
    end_result(j);
    return identical || may_differ(j) ? status : FAILED;
}

static int verify_bits(job *j) {
    const pmlp_data data = data_of(&j->train);
    call verify = {
        .what = VERIFY, .desc = trainer_desc(j), .data = &data, .steps = (int)j->opt.verify};
    pmlp_verify_report report = {0};
    pmlp_error error = {0};
    const int status = create_replicas(j, verify.desc.replicas, &j->pipeline);

    if (status != OK) return status;
    verify.desc.gradient_norm = true;
    if (call_all(&j->pipeline, &verify, NULL, &report, &error) != PMLP_OK)
        return fail_with(&error, "--verify");
    if (!report.identical) return fail(FAILED, "--verify: %s", report.text);
    printf("verify steps=%d identical=yes weights=%016llx\n", report.steps,
           (unsigned long long)report.hash);
    return OK;
}

int main(int argc, char **argv) {
    job j = {.talk = stderr,
             .serial = {.name = "serial"},
             .pipeline = {.name = "pipelined"},
             .same = {.name = "the same micro-batches, serial"}};
    int status = read_options(&j.opt, argc, argv);

    catch_signals();
    if (status == OK && j.opt.help) {
        print_help();
    } else if (status == OK && (status = prepare(&j)) == OK) {
        if (j.opt.verify != 0)
            status = verify_bits(&j);
        else
            status = j.opt.compare ? compare(&j) : train_one(&j);
    }
    end_run(&j.serial);
    end_run(&j.pipeline);
    end_run(&j.same);
#ifdef PMLP_CUDA
    pmlp_nccl_group_destroy(&j.group);
#endif
    pmlp_schedule_destroy(j.custom);
    pmlp_images_free(&j.train);
    pmlp_images_free(&j.test);
    if (j.talk != NULL && j.talk != stderr) fclose(j.talk);
    if (fflush(stdout) != 0 || ferror(stdout))
        status = fail(FAILED, "standard output cannot be written");
    return status;
}
