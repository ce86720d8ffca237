/* 10: a pipeline by hand. Nobody pipelines the network for us: two threads have one of its two
   layers each, call its operations one by one (the table pmlp_cpu_backend(): forward, the halves of
   the backward, loss, update), and hand activations up and gradients down through channels that
   hold one message. They take the micro-batches one at a time, then in GPipe's order; both times
   the weights get the bits that the trainer gives them without a pipeline. How long a step takes is
   printed, too, and which share of it each thread waits for the other. The exit status is 0 if the
   bits are equal.

       cc -O3 -std=c99 10_by_hand.c -o 10_by_hand -pthread -lm                                    */
#define PIPEMLP_IMPLEMENTATION
#include "../pipemlp.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { BATCH = 512, PARTS = 4, PART = BATCH / PARTS, STEPS = 50 };
enum { INPUTS = 384, HIDDEN = 512, CLASSES = 256 }; /* 2 x 384 = 3 x 256: equally much to do */
static const int sizes[] = {INPUTS, HIDDEN, CLASSES};
static float inputs[BATCH][INPUTS];
static int labels[BATCH];
static const pmlp_data data = {.rows = BATCH, .x = &inputs[0][0], .labels = labels};

/* A message on its way. Who sends waits while it is there, who receives while it is not. */
typedef struct channel {
    pthread_mutex_t mutex;
    pthread_cond_t change;
    bool full;
    float message[PART * 2 * HIDDEN];
} channel;
static channel up = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false, {0}};
static channel down = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false, {0}};

/* One thread's layer, with buffers for a whole batch: what goes in and comes out, and the gradients
   of both; rows lie in_row and out_row floats apart. */
typedef struct stage {
    int number;
    bool gpipe;
    const pmlp_backend *cpu;
    void *context, *layer, *in, *out, *d_in, *d_out;
    size_t in_row, out_row;
    double seconds, waited;
} stage;

static void must(pmlp_result result) {
    if (result == PMLP_OK) return;
    fprintf(stderr, "10_by_hand: %s\n", pmlp_result_text(result));
    exit(1);
}

static double clock_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void hand_over(stage *s, channel *c, bool send, float *rows, size_t row) {
    const double begin = clock_seconds();
    pthread_mutex_lock(&c->mutex);
    while (c->full == send) pthread_cond_wait(&c->change, &c->mutex);
    s->waited += clock_seconds() - begin;
    memcpy(send ? c->message : rows, send ? rows : c->message, PART * row * sizeof *rows);
    c->full = send;
    pthread_cond_signal(&c->change);
    pthread_mutex_unlock(&c->mutex);
}

static void forward(stage *s, int j) {
    float *in = (float *)s->in + (size_t)(j * PART) * s->in_row;
    float *out = (float *)s->out + (size_t)(j * PART) * s->out_row;
    if (s->number == 1) hand_over(s, &up, false, in, s->in_row);
    must(s->cpu->forward(s->context, s->layer, 0, PART, in, out));
    if (s->number == 0) hand_over(s, &up, true, out, s->out_row);
}

static void backward(stage *s, int j) {
    float *in = (float *)s->in + (size_t)(j * PART) * s->in_row;
    float *out = (float *)s->out + (size_t)(j * PART) * s->out_row;
    float *d_in = (float *)s->d_in + (size_t)(j * PART) * s->in_row;
    float *d_out = (float *)s->d_out + (size_t)(j * PART) * s->out_row;
    if (s->number == 0) {
        hand_over(s, &down, false, d_out, s->out_row);
    } else {
        double loss[PART];
        unsigned char hit[PART];
        const pmlp_loss_args args = {.loss = PMLP_LOSS_XENT, .rows = PART, .y = out, .data = &data,
                                     .first = (size_t)(j * PART), .scale = 1.0f / BATCH,
                                     .dz = d_out, .row_loss = loss, .row_hit = hit};
        must(s->cpu->loss(s->context, s->layer, &args));
        must(s->cpu->backward_input(s->context, s->layer, 0, PART, d_out, in, d_in)); /* I */
        hand_over(s, &down, true, d_in, s->in_row);
    }
    must(s->cpu->backward_weight(s->context, s->layer, PART, in, d_out, j > 0)); /* W */
}

static void *work(void *argument) {
    stage *s = argument;
    const double begin = clock_seconds();
    for (int step = 1; step <= STEPS; step++) {
        const pmlp_update_args args = {.optimizer = PMLP_SGD, .learning_rate = 0.1f,
                                       .gradient_scale = 1, .step = (uint64_t)step};
        for (int j = 0; j < PARTS; j++) {
            forward(s, j);
            if (!s->gpipe) backward(s, j);
        }
        for (int j = 0; j < PARTS && s->gpipe; j++) backward(s, j);
        must(s->cpu->update(s->context, s->layer, &args));
    }
    s->seconds = clock_seconds() - begin;
    return NULL;
}

/* A stage with memory and a layer whose weights are the model's. */
static void set_up(stage *s, const pmlp_params *from) {
    const pmlp_backend_desc desc = {.worker = s->number, .workers = 2};
    const pmlp_layer_desc layer = {
        .n_in = from->n_in, .n_out = from->n_out, .row_outs = from->n_out,
        .activation = from->activation, .below = s->number > 0 ? PMLP_RELU : PMLP_LINEAR,
        .optimizer = PMLP_SGD, .needs_input_gradient = s->number > 0, .versions = 1};
    s->cpu = pmlp_cpu_backend();
    must(s->cpu->open(s->cpu, &desc, &s->context, NULL));
    must(s->cpu->layer_create(s->context, &layer, &s->layer));
    must(s->cpu->write(s->context, s->layer, PMLP_TENSOR_PARAMS, from->w, from->b));
    s->in_row = s->cpu->row_floats(s->context, from->n_in, layer.below);
    s->out_row = s->cpu->row_floats(s->context, from->n_out, layer.activation);
    must(s->cpu->alloc(s->context, BATCH * s->in_row * sizeof(float), &s->in));
    must(s->cpu->alloc(s->context, BATCH * s->in_row * sizeof(float), &s->d_in));
    must(s->cpu->alloc(s->context, BATCH * s->out_row * sizeof(float), &s->out));
    must(s->cpu->alloc(s->context, BATCH * s->out_row * sizeof(float), &s->d_out));
    if (s->number == 0)
        must(s->cpu->input(s->context, BATCH, from->n_in, &data, NULL, 0, s->in));
}

static void tear_down(stage *s, const pmlp_params *to) {
    void *buffers[] = {s->in, s->out, s->d_in, s->d_out};
    must(s->cpu->read(s->context, s->layer, PMLP_TENSOR_PARAMS, to->w, to->b));
    for (int b = 0; b < 4; b++) s->cpu->free(s->context, buffers[b]);
    s->cpu->layer_destroy(s->context, s->layer);
    s->cpu->close(s->context);
}

/* Trains the model by two threads of ours; its weights word. */
static uint64_t by_hand(pmlp_model *model, bool gpipe) {
    stage stages[2] = {{.number = 0, .gpipe = gpipe}, {.number = 1, .gpipe = gpipe}};
    pmlp_params params[2];
    pthread_t thread;
    uint64_t word = 0;
    for (int n = 0; n < 2; n++) {
        must(pmlp_model_params(model, n, &params[n], NULL));
        set_up(&stages[n], &params[n]);
    }
    must(pthread_create(&thread, NULL, work, &stages[1]) == 0 ? PMLP_OK : PMLP_ERROR_THREAD);
    work(&stages[0]);
    pthread_join(thread, NULL);
    for (int n = 0; n < 2; n++) tear_down(&stages[n], &params[n]);
    must(pmlp_model_hash(model, &word, NULL));
    printf("%-18s %.3f ms a step; waiting: thread 0 %2.0f %%, thread 1 %2.0f %%; weights %016llx\n",
           gpipe ? "GPipe" : "one at a time", 1000 * stages[0].seconds / STEPS,
           100 * stages[0].waited / stages[0].seconds, 100 * stages[1].waited / stages[1].seconds,
           (unsigned long long)word);
    return word;
}

/* The same steps by the trainer. */
static uint64_t by_trainer(pmlp_model *model) {
    const pmlp_trainer_desc how = {.batch = BATCH, .learning_rate = 0.1f};
    pmlp_trainer *trainer = NULL;
    const double begin = clock_seconds();
    uint64_t word = 0;
    must(pmlp_trainer_create(model, &how, &trainer, NULL));
    for (int step = 0; step < STEPS; step++) must(pmlp_trainer_step(trainer, &data, NULL));
    pmlp_trainer_destroy(trainer);
    must(pmlp_model_hash(model, &word, NULL));
    printf("%-18s %.3f ms a step; %46s %016llx\n", "trainer, serially",
           1000 * (clock_seconds() - begin) / STEPS, "weights", (unsigned long long)word);
    return word;
}

int main(void) {
    const pmlp_model_desc net = {.layers = 2, .sizes = sizes};
    uint64_t words[3];
    for (int r = 0; r < BATCH; r++) {
        labels[r] = r * 7 % CLASSES;
        for (int n = 0; n < INPUTS; n++)
            inputs[r][n] = (float)((r + 1) * (n + 37) % 101) / 101 - 0.5f;
    }
    for (int n = 0; n < 3; n++) {
        pmlp_model *model = NULL;
        must(pmlp_model_create(&net, &model, NULL));
        words[n] = n == 0 ? by_trainer(model) : by_hand(model, n == 2);
        pmlp_model_destroy(model);
    }
    return words[0] == words[1] && words[0] == words[2] ? 0 : 1;
}
