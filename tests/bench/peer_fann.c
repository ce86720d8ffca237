/* FANN as a contestant. It has no softmax, no cross-entropy and no ReLU, so this is the nearest
   that it offers: the same layers and weights, its "linear piece" (a ReLU that ends at 1) in the
   hidden ones, a linear output, squared error against one-hot rows, and one update per batch. Its
   loss is another one, and a rate of 0.05 makes it jump, so it gets a tenth; what can be checked is
   that it falls. */
#include <fann.h>

#include "peer.h"

#define CHECK 6 /* steps; one takes long */

typedef struct training {
    struct fann *net;
    struct fann_train_data batch; /* points into what is below */
    fann_type **x, **targets;     /* [rows], each a row */
} training;

static double step(void *self, size_t first) {
    training *t = self;
    t->batch.input = t->x + first;
    t->batch.output = t->targets + first;
    return (double)fann_train_epoch(t->net, &t->batch);
}

/* Always the same rows, whose loss must fall. */
static double check(void *self) {
    double loss = 0, before = 1e30;
    int i;
    for (i = 0; i < CHECK; i++, before = loss) {
        loss = step(self, 0);
        if (!(loss < before)) peer_fail("FANN", "its loss does not fall");
    }
    return loss;
}

static void describe(void *self, char *text, size_t size) {
    (void)self;
    snprintf(text, size, "check=other");
}

/* FANN keeps, for each neuron, its inputs' weights and the bias behind them; the neuron behind a
   layer's last is that bias, and has none. */
static void initialise(struct fann *net, const float *from) {
    fann_type *to = net->weights;
    int l, o, i;
    for (l = 0; l < PEER_LAYERS; l++) {
        const int n_in = peer_sizes[l], n_out = peer_sizes[l + 1];
        const float *bias = from + n_in * n_out;
        for (o = 0; o < n_out; o++) {
            for (i = 0; i < n_in; i++) *to++ = *from++;
            *to++ = *bias++;
        }
        from = bias;
    }
    if (to != net->weights + net->total_connections) peer_fail("FANN", "keeps other weights");
}

int main(int argc, char **argv) {
    const peer_options o = peer_read_options(argc, argv, " ");
    const peer_images images = peer_load_images(&o);
    const int classes = peer_sizes[PEER_LAYERS];
    unsigned int sizes[PEER_LAYERS + 1];
    training t;
    peer p = {.self = &t, .step = step, .check = check, .describe = describe, .cold = true};
    float *target = peer_alloc(images.rows * (size_t)classes, sizeof *target);
    size_t i;

    for (i = 0; i <= PEER_LAYERS; i++) sizes[i] = (unsigned int)peer_sizes[i];
    t.net = fann_create_standard_array(PEER_LAYERS + 1, sizes);
    if (!t.net) peer_fail("FANN", "makes no network");
    initialise(t.net, peer_load_weights(o.weights));
    fann_set_activation_function_hidden(t.net, FANN_LINEAR_PIECE);
    fann_set_activation_function_output(t.net, FANN_LINEAR);
    fann_set_activation_steepness_hidden(t.net, 1);
    fann_set_activation_steepness_output(t.net, 1);
    fann_set_training_algorithm(t.net, FANN_TRAIN_BATCH);
    fann_set_train_error_function(t.net, FANN_ERRORFUNC_LINEAR);
    fann_set_learning_rate(t.net, PEER_RATE / 10);
    fann_set_learning_momentum(t.net, 0);

    t.x = peer_alloc(images.rows, sizeof *t.x);
    t.targets = peer_alloc(images.rows, sizeof *t.targets);
    for (i = 0; i < images.rows; i++) {
        t.x[i] = images.x + i * images.width;
        t.targets[i] = target + i * (size_t)classes;
        t.targets[i][images.labels[i]] = 1;
    }
    memset(&t.batch, 0, sizeof t.batch);
    t.batch.num_data = (unsigned int)o.batch;
    t.batch.num_input = (unsigned int)images.width;
    t.batch.num_output = (unsigned int)classes;
    p.rows = images.rows;
    p.batch = (size_t)o.batch;
    snprintf(p.version, sizeof p.version, "FANN 2.2");
    return peer_serve(&p);
}
