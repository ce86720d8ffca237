/* What one would write instead of a pipeline, with pipemlp's own operations on the CPU: the threads
   share the rows of each batch, and one set of weights. Barriers that spin.

       --split rows       each thread takes its rows through all layers, forward and backward; then
                          the gradients are added up, and each thread updates its part of the
                          weights: data parallelism as the word is used (default)
       --split gradients  each thread takes its rows forward and backward to the inputs, but
                          computes the gradients of its part of the outputs, from all rows, and
                          updates these weights in the same pass; so nothing need be added up, and
                          the bits are those of serial training
       --split outputs    the same, and of the first layer, the largest, it computes these outputs
                          forward, too, so that their weights stay with its processor */
#define PIPEMLP_IMPLEMENTATION
#include "pipemlp.h"
#include "peer.h"

#define L PEER_LAYERS
#define MOST_THREADS 64
#define SPINS 20000 /* before a thread that waits sleeps */

typedef struct worker {
    int index;
    void *context;
    pmlp__cpu_layer *layers[L]; /* whole layers; the weights are the first worker's */
    pmlp__cpu_layer *parts[L];  /* its part of the outputs, of the same weights; NULL: none */
    double loss;
    pthread_t thread;
} worker;

static struct {
    const pmlp_backend *backend;
    const pmlp__isa *isa;
    peer_images images;
    size_t batch, first;
    int threads;
    bool by_outputs;       /* gradients and updates */
    bool first_by_outputs; /* the first layer forward */
    worker workers[MOST_THREADS];
    float *x[L + 1], *dz[L + 1]; /* [batch][row] */
    size_t row[L + 1];
    double *row_loss;
    unsigned char *row_hit;

    pmlp__atomic arrived, meetings, sleepers;
    pthread_mutex_t mutex;
    pthread_cond_t cond;
} team = {.mutex = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER};

static void must(pmlp_result result) {
    if (result != PMLP_OK) peer_fail("pipemlp", pmlp_result_text(result));
}

/* All threads meet. Whoever waits long sleeps; the last one to come wakes it. */
static void meet(void) {
    const int before = pmlp__load(&team.meetings);
    int spins = 0;
    if (pmlp__add(&team.arrived, 1) == team.threads - 1) {
        pmlp__store(&team.arrived, 0);
        pmlp__add(&team.meetings, 1);
        if (pmlp__load(&team.sleepers) > 0) {
            pthread_mutex_lock(&team.mutex);
            pthread_cond_broadcast(&team.cond);
            pthread_mutex_unlock(&team.mutex);
        }
        return;
    }
    while (pmlp__load(&team.meetings) == before && ++spins < SPINS) pmlp__pause();
    if (spins < SPINS) return;
    pthread_mutex_lock(&team.mutex);
    pmlp__add(&team.sleepers, 1);
    while (pmlp__load(&team.meetings) == before) pthread_cond_wait(&team.cond, &team.mutex);
    pmlp__add(&team.sleepers, -1);
    pthread_mutex_unlock(&team.mutex);
}

/* Where part `index` of n things begins, in multiples of `unit`. */
static size_t part(size_t n, size_t unit, int index) {
    const size_t units = (n + unit - 1) / unit;
    const size_t at = units * (size_t)index / (size_t)team.threads * unit;
    return at < n ? at : n;
}

static size_t size_of(int l) { return (size_t)peer_sizes[l]; }

/* --- updates ---------------------------------------------------------------------------------- */

/* The transpose of inputs i0 .. i1 and outputs o0 .. o1, which backward_input reads. */
static void transpose(pmlp__cpu_layer *layer, size_t i0, size_t i1, size_t o0, size_t o1) {
    const size_t n_in = layer->desc.n_in, n_out = layer->desc.n_out, width = team.isa->width;
    const float *w = layer->w[PMLP_TENSOR_PARAMS];
    size_t i, o;
    if (!layer->transposed) return;
    for (i = i0; i < i1; i += width)
        for (o = o0; o < o1; o += width)
            team.isa->transpose(i1 - i < width ? i1 - i : width, o1 - o < width ? o1 - o : width,
                                w + o * n_in + i * width, width,
                                layer->transposed + i * n_out + o * width, width);
}

/* w -= rate (g0 + g1 + ...), n floats. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
__attribute__((target_clones("avx512f", "avx2", "default")))
#endif
static void update(size_t n, float *restrict w, const float *const *gradients) {
    const float *restrict g0 = gradients[0], *restrict g1 = gradients[team.threads > 1];
    size_t i;
    int t;
    if (team.threads == 1) {
        for (i = 0; i < n; i++) w[i] -= PEER_RATE * g0[i];
        return;
    }
    for (i = 0; i < n; i++) w[i] -= PEER_RATE * (g0[i] + g1[i]);
    for (t = 2; t < team.threads; t++)
        for (i = 0; i < n; i++) w[i] -= PEER_RATE * gradients[t][i];
}

/* The threads' gradients added up, for inputs i0 .. i1 of all panels. */
static void update_from_all(const worker *me, int l) {
    const size_t width = team.isa->width, n_in = size_of(l), n_out = size_of(l + 1);
    const size_t i0 = part(n_in, width, me->index), i1 = part(n_in, width, me->index + 1);
    pmlp__cpu_layer *layer = me->layers[l];
    const float *gradients[MOST_THREADS];
    size_t o;
    int t;
    for (o = 0; o < n_out; o += width) {
        const size_t at = o * n_in + i0 * width;
        for (t = 0; t < team.threads; t++)
            gradients[t] = team.workers[t].layers[l]->w[PMLP_TENSOR_GRADIENTS] + at;
        update((i1 - i0) * width, layer->w[PMLP_TENSOR_PARAMS] + at, gradients);
        transpose(layer, i0, i1, o, o + width < n_out ? o + width : n_out);
    }
    if (me->index != 0) return;
    for (t = 0; t < team.threads; t++)
        gradients[t] = team.workers[t].layers[l]->b[PMLP_TENSOR_GRADIENTS];
    update(layer->pad_out, layer->b[PMLP_TENSOR_PARAMS], gradients);
}

/* Gradient and update of the worker's outputs in one pass. */
static void update_part(const worker *me, int l) {
    pmlp__cpu_layer *some = me->parts[l];
    const pmlp_update_args args = {.optimizer = PMLP_SGD,
                                   .learning_rate = PEER_RATE,
                                   .gradient_scale = 1,
                                   .step = 1,
                                   .anew = true,
                                   .rows = team.batch,
                                   .x = team.x[l],
                                   .dz = team.dz[l + 1]};
    if (!some) return;
    must(team.backend->update(me->context, some, &args));
    transpose(me->layers[l], 0, size_of(l), some->desc.first_out,
              some->desc.first_out + some->desc.n_out);
}

/* --- a step ----------------------------------------------------------------------------------- */

static void forward(worker *me, size_t from, size_t to) {
    const pmlp_backend *b = team.backend;
    const pmlp_data data = {.rows = team.images.rows, .x = team.images.x};
    int l;
    must(b->input(me->context, to - from, team.images.width, &data, NULL, team.first + from,
                  team.x[0] + from * team.row[0]));
    if (team.first_by_outputs) {
        meet();
        if (me->parts[0])
            must(b->forward(me->context, me->parts[0], 0, team.batch, team.x[0], team.x[1]));
        meet();
    }
    for (l = team.first_by_outputs; l < L; l++)
        must(b->forward(me->context, me->layers[l], 0, to - from,
                        team.x[l] + from * team.row[l], team.x[l + 1] + from * team.row[l + 1]));
}

static void find_loss(worker *me, size_t from, size_t to) {
    const pmlp_data data = {
        .rows = team.images.rows, .x = team.images.x, .labels = team.images.labels};
    const pmlp_loss_args args = {.loss = PMLP_LOSS_XENT,
                                 .rows = to - from,
                                 .y = team.x[L] + from * team.row[L],
                                 .data = &data,
                                 .first = team.first + from,
                                 .scale = 1.0f / (float)team.batch,
                                 .dz = team.dz[L] + from * team.row[L],
                                 .row_loss = team.row_loss + from,
                                 .row_hit = team.row_hit + from};
    size_t i;
    must(team.backend->loss(me->context, me->layers[L - 1], &args));
    for (me->loss = 0, i = from; i < to; i++) me->loss += team.row_loss[i];
}

static void backward(const worker *me, size_t from, size_t to) {
    int l;
    for (l = L - 1; l >= 0; l--) {
        const float *dz = team.dz[l + 1] + from * team.row[l + 1];
        const float *x = team.x[l] + from * team.row[l];
        if (l > 0)
            must(team.backend->backward_input(me->context, me->layers[l], 0, to - from, dz, x,
                                              team.dz[l] + from * team.row[l]));
        if (!team.by_outputs)
            must(team.backend->backward_weight(me->context, me->layers[l], to - from, x, dz,
                                               false));
    }
}

static void take_part(worker *me) {
    const size_t from = part(team.batch, 1, me->index), to = part(team.batch, 1, me->index + 1);
    int l;
    meet();
    forward(me, from, to);
    find_loss(me, from, to);
    backward(me, from, to);
    meet();
    for (l = L - 1; l >= 0; l--) {
        if (team.by_outputs) update_part(me, l);
        else update_from_all(me, l);
    }
    meet();
}

static void *run_worker(void *self) {
    for (;;) take_part(self);
    return NULL;
}

static double step(void *self, size_t first) {
    double loss = 0;
    int t;
    (void)self;
    team.first = first;
    take_part(team.workers);
    for (t = 0; t < team.threads; t++) loss += team.workers[t].loss;
    return loss / (double)team.batch;
}

/* --- beginning and end ------------------------------------------------------------------------ */

static pmlp__cpu_layer *create_layer(const worker *me, int l, size_t from, size_t to) {
    const pmlp_layer_desc desc = {.n_in = size_of(l),
                                  .n_out = to - from,
                                  .first_out = from,
                                  .row_outs = size_of(l + 1),
                                  .activation = l < L - 1 ? PMLP_RELU : PMLP_LINEAR,
                                  .below = l > 0 ? PMLP_RELU : PMLP_LINEAR,
                                  .optimizer = PMLP_SGD,
                                  .needs_input_gradient = l > 0,
                                  .versions = 1};
    pmlp__cpu_layer *const boss = team.workers[0].layers[l];
    pmlp__cpu_layer *layer;
    void *made;
    must(team.backend->layer_create(me->context, &desc, &made));
    layer = made;
    if (boss) { /* its weights instead of those made here, which are left alone */
        layer->w[PMLP_TENSOR_PARAMS] = boss->w[PMLP_TENSOR_PARAMS] + from * desc.n_in;
        layer->b[PMLP_TENSOR_PARAMS] = boss->b[PMLP_TENSOR_PARAMS] + from;
        layer->transposed = boss->transposed;
    }
    layer->is_current[0] = true;
    return layer;
}

static void create_worker(worker *me, const float *weights) {
    int l;
    for (l = 0; l < L; l++) {
        const size_t n_in = size_of(l), n_out = size_of(l + 1);
        const size_t from = part(n_out, team.isa->width, me->index);
        const size_t to = part(n_out, team.isa->width, me->index + 1);
        me->layers[l] = create_layer(me, l, 0, n_out);
        if (to > from) me->parts[l] = create_layer(me, l, from, to);
        if (me->index != 0) continue;
        must(team.backend->write(me->context, me->layers[l], PMLP_TENSOR_PARAMS, weights,
                                 weights + n_in * n_out));
        weights += (n_in + 1) * n_out;
        transpose(me->layers[l], 0, n_in, 0, n_out);
        me->layers[l]->is_current[0] = true;
    }
}

/* FNV-1a over the weights, as pmlp_model_hash() computes it. */
static void describe(void *self, char *text, size_t size) {
    uint64_t word = 14695981039346656037u;
    float *w = peer_alloc(size_of(1) * (size_of(0) + 1), sizeof *w);
    const unsigned char *bytes = (const unsigned char *)w;
    size_t i;
    int l;
    (void)self;
    for (l = 0; l < L; l++) {
        const size_t n = size_of(l) * size_of(l + 1);
        must(team.backend->read(team.workers[0].context, team.workers[0].layers[l],
                                PMLP_TENSOR_PARAMS, w, w + n));
        for (i = 0; i < (n + size_of(l + 1)) * sizeof *w; i++)
            word = (word ^ bytes[i]) * 1099511628211u;
    }
    free(w);
    snprintf(text, size, "weights=%016llx", (unsigned long long)word);
}

static void create_team(const float *weights) {
    const pmlp_allocator none = {0};
    int l, t;
    for (t = 0; t < team.threads; t++) {
        worker *me = &team.workers[t];
        const pmlp_backend_desc desc = {t, team.threads, none};
        pmlp_error error;
        me->index = t;
        if (team.backend->open(team.backend, &desc, &me->context, &error) != PMLP_OK)
            peer_fail("pipemlp", error.text);
        create_worker(me, weights);
    }
    for (l = 0; l <= L; l++) {
        team.row[l] = team.backend->row_floats(team.workers[0].context, size_of(l),
                                               l > 0 && l < L ? PMLP_RELU : PMLP_LINEAR);
        team.x[l] = peer_alloc(team.batch * team.row[l], sizeof(float));
        team.dz[l] = peer_alloc(team.batch * team.row[l], sizeof(float));
    }
    for (t = 1; t < team.threads; t++)
        if (pthread_create(&team.workers[t].thread, NULL, run_worker, &team.workers[t]) != 0)
            peer_fail("no thread", "");
}

int main(int argc, char **argv) {
    const peer_options o = peer_read_options(argc, argv, " --split ");
    const char *split = peer_option(argc, argv, "--split", "rows");
    peer p = {.step = step, .describe = describe, .batch = (size_t)o.batch};

    if (o.threads > MOST_THREADS) peer_fail("--threads", "too many");
    team.first_by_outputs = strcmp(split, "outputs") == 0;
    team.by_outputs = team.first_by_outputs || strcmp(split, "gradients") == 0;
    if (!team.by_outputs && strcmp(split, "rows") != 0)
        peer_fail("--split", "rows, gradients or outputs");
    team.threads = o.threads;
    team.batch = (size_t)o.batch;
    team.backend = pmlp_cpu_backend();
    team.isa = team.backend->user;
    team.images = peer_load_images(&o);
    team.row_loss = peer_alloc(team.batch, sizeof *team.row_loss);
    team.row_hit = peer_alloc(team.batch, 1);
    create_team(peer_load_weights(o.weights));
    p.rows = team.images.rows;
    snprintf(p.version, sizeof p.version, "pipemlp %d.%d.%d, %s", PMLP_VERSION_MAJOR,
             PMLP_VERSION_MINOR, PMLP_VERSION_PATCH, team.isa->name);
    return peer_serve(&p);
}
