/* A back end and edges of the CPU's in which a chosen call fails: include it after test.h. */
#ifndef PMLP_TEST_FAULTY_H
#define PMLP_TEST_FAULTY_H

enum { MOST_WORKERS = 8, MOST_EDGES = 64 }; /* of a trainer */

/* --- a back end ---------------------------------------------------------------------------------- */

enum entry {
    OPEN, ALLOC, LAYER_CREATE, WRITE, READ, INPUT_ROWS, FORWARD, BACKWARD_INPUT, BACKWARD_WEIGHT, LOSS,
    SQUARES, UPDATE, SYNC, ENTRIES
};
static const char *const entry_names[ENTRIES] = {
    "open", "alloc", "layer_create", "write", "read", "input", "forward", "backward_input",
    "backward_weight", "loss", "gradient_squares", "update", "synchronize"};

/* A back end of a CPU and a plan of what fails. Each worker's tally belongs to its thread. */
typedef struct faulty {
    pmlp_backend table;
    const pmlp_backend *inner;
    int worker;      /* that fails; -1: none */
    long fail_at;    /* its operation, from 1 */
    bool dead;       /* and all after it */
    int failed;      /* the entry that failed first, or -1 */
    struct { long calls, by[ENTRIES], contexts, buffers, layers; } tally[MOST_WORKERS];
    void (*hook)(void *user); /* called by worker 0's first forward */
    void *hook_user;
} faulty;

typedef struct shim {
    void *inner;
    faulty *plan;
    int worker;
} shim;

static inline bool fails(shim *s, enum entry entry) {
    faulty *plan = s->plan;
    long call = ++plan->tally[s->worker].calls;
    plan->tally[s->worker].by[entry]++;
    if (s->worker != plan->worker) return false;
    bool hit = call == plan->fail_at || (plan->dead && call > plan->fail_at);
    if (hit && plan->failed < 0) plan->failed = (int)entry;
    return hit;
}

static inline pmlp_result shim_open(const pmlp_backend *self, const pmlp_backend_desc *desc,
                                    void **context, pmlp_error *error) {
    faulty *plan = (faulty *)(uintptr_t)self->user;
    shim *s = malloc(sizeof *s);
    *context = NULL;
    if (!s) return PMLP_ERROR_MEMORY;
    s->plan = plan, s->worker = desc->worker;
    pmlp_result result = PMLP_ERROR_BACKEND; /* without a sentence: the library must find one */
    if (!fails(s, OPEN)) result = plan->inner->open(plan->inner, desc, &s->inner, error);
    if (result != PMLP_OK) return free(s), result;
    plan->tally[s->worker].contexts++;
    *context = s;
    return PMLP_OK;
}

static inline void shim_close(void *context) {
    shim *s = context;
    s->plan->tally[s->worker].contexts--;
    s->plan->inner->close(s->inner);
    free(s);
}

/* `return PASS(...)` in a function whose first argument is `context`. */
#define PASS(entry, call)                                                                      \
    (fails(context, entry) ? PMLP_ERROR_BACKEND : ((shim *)context)->plan->inner->call)
#define INNER (((shim *)context)->inner)
#define TALLY (((shim *)context)->plan->tally[((shim *)context)->worker])

static inline pmlp_result shim_alloc(void *context, size_t bytes, void **buffer) {
    *buffer = NULL;
    pmlp_result result = PASS(ALLOC, alloc(INNER, bytes, buffer));
    TALLY.buffers += result == PMLP_OK;
    return result;
}
static inline void shim_free(void *context, void *buffer) {
    TALLY.buffers -= buffer != NULL;
    ((shim *)context)->plan->inner->free(INNER, buffer);
}
static inline size_t shim_row_floats(void *context, size_t n, pmlp_activation activation) {
    return ((shim *)context)->plan->inner->row_floats(INNER, n, activation);
}
static inline pmlp_result shim_layer_create(void *context, const pmlp_layer_desc *desc,
                                            void **layer) {
    *layer = NULL;
    pmlp_result result = PASS(LAYER_CREATE, layer_create(INNER, desc, layer));
    TALLY.layers += result == PMLP_OK;
    return result;
}
static inline void shim_layer_destroy(void *context, void *layer) {
    TALLY.layers -= layer != NULL;
    ((shim *)context)->plan->inner->layer_destroy(INNER, layer);
}
static inline pmlp_result shim_write(void *context, void *layer, pmlp_tensor tensor, const float *w,
                                     const float *b) {
    return PASS(WRITE, write(INNER, layer, tensor, w, b));
}
static inline pmlp_result shim_read(void *context, void *layer, pmlp_tensor tensor, float *w,
                                    float *b) {
    return PASS(READ, read(INNER, layer, tensor, w, b));
}
static inline pmlp_result shim_input(void *context, size_t rows, size_t n, const pmlp_data *data,
                                     const uint32_t *index, size_t first, float *x) {
    return PASS(INPUT_ROWS, input(INNER, rows, n, data, index, first, x));
}
static inline pmlp_result shim_forward(void *context, void *layer, int version, size_t rows,
                                       const float *x, float *y) {
    faulty *plan = ((shim *)context)->plan;
    if (plan->hook && ((shim *)context)->worker == 0) {
        void (*hook)(void *) = plan->hook;
        plan->hook = NULL;
        hook(plan->hook_user);
    }
    return PASS(FORWARD, forward(INNER, layer, version, rows, x, y));
}
static inline pmlp_result shim_backward_input(void *context, void *layer, int version, size_t rows,
                                              const float *dz, const float *x, float *dz_below) {
    return PASS(BACKWARD_INPUT, backward_input(INNER, layer, version, rows, dz, x, dz_below));
}
static inline pmlp_result shim_backward_weight(void *context, void *layer, size_t rows,
                                               const float *x, const float *dz, bool accumulate) {
    return PASS(BACKWARD_WEIGHT, backward_weight(INNER, layer, rows, x, dz, accumulate));
}
static inline pmlp_result shim_loss(void *context, void *layer, const pmlp_loss_args *args) {
    return PASS(LOSS, loss(INNER, layer, args));
}
static inline pmlp_result shim_squares(void *context, void *layer, double *squares) {
    return PASS(SQUARES, gradient_squares(INNER, layer, squares));
}
static inline pmlp_result shim_update(void *context, void *layer, const pmlp_update_args *args) {
    return PASS(UPDATE, update(INNER, layer, args));
}
static inline pmlp_result shim_gradient(void *context, void *layer, float **data, size_t *floats) {
    return ((shim *)context)->plan->inner->gradient(INNER, layer, data, floats);
}
static inline pmlp_result shim_synchronize(void *context) {
    return PASS(SYNC, synchronize(INNER));
}
static inline const char *shim_explain(void *context) {
    return ((shim *)context)->plan->dead ? "" : "the shim was told to fail";
}

static inline void faulty_make(faulty *plan, int worker, long fail_at, bool dead) {
    memset(plan, 0, sizeof *plan);
    plan->inner = pmlp_cpu_backend();
    plan->worker = worker, plan->fail_at = fail_at, plan->dead = dead, plan->failed = -1;
    pmlp_backend *t = &plan->table;
    *t = *plan->inner; /* abi, size, edges */
    t->name = "faulty", t->user = plan;
    t->open = shim_open, t->close = shim_close, t->alloc = shim_alloc, t->free = shim_free;
    t->row_floats = shim_row_floats, t->layer_create = shim_layer_create;
    t->layer_destroy = shim_layer_destroy, t->write = shim_write, t->read = shim_read;
    t->input = shim_input, t->forward = shim_forward, t->backward_input = shim_backward_input;
    t->backward_weight = shim_backward_weight, t->loss = shim_loss;
    t->gradient_squares = shim_squares, t->update = shim_update, t->gradient = shim_gradient;
    t->synchronize = shim_synchronize, t->explain = shim_explain;
}

static inline long faulty_total(const faulty *plan, enum entry entry) {
    long sum = 0;
    for (int w = 0; w < MOST_WORKERS; w++) sum += plan->tally[w].by[entry];
    return sum;
}

static inline bool faulty_balanced(const faulty *plan) {
    for (int w = 0; w < MOST_WORKERS; w++)
        if (plan->tally[w].contexts || plan->tally[w].buffers || plan->tally[w].layers) return false;
    return true;
}

/* --- edges --------------------------------------------------------------------------------------- */

enum wire_entry { CONNECT, RESET, SEND, RECEIVE, WIRE_ENTRIES };
static const char *const wire_names[WIRE_ENTRIES] = {"connect", "reset", "send", "receive"};

typedef struct wire_plan {
    pmlp_edges table;
    const pmlp_edges *inner;
    int edge;     /* in order of connect(); -1: none fails */
    enum wire_entry entry;
    long fail_at; /* of that edge and entry, from 1 */
    bool busy;    /* every message is BUSY at its first try, and nobody wakes */
    bool failed;
    int connects, living;
    long counts[MOST_EDGES][WIRE_ENTRIES];
    pmlp_edge_desc descs[MOST_EDGES];
} wire_plan;

typedef struct wire {
    void *inner;
    wire_plan *plan;
    int index;
    bool send_refused, receive_refused;
} wire;

/* Counts what succeeded; the one that fails is not attempted. */
static inline bool wire_fails(wire *w, enum wire_entry entry) {
    wire_plan *plan = w->plan;
    if (w->index != plan->edge || entry != plan->entry) return false;
    if (plan->counts[w->index][entry] + 1 != plan->fail_at) return false;
    return plan->failed = true;
}

static inline void nobody_wakes(void *worker) { (void)worker; }

static inline pmlp_result wire_connect(const pmlp_edges *self, const pmlp_edge_desc *desc,
                                       void **edge, pmlp_error *error) {
    wire_plan *plan = (wire_plan *)(uintptr_t)self->user;
    pmlp_edge_desc inner = *desc;
    wire *w = malloc(sizeof *w);
    *edge = NULL;
    if (!w || plan->connects >= MOST_EDGES) return free(w), PMLP_ERROR_MEMORY;
    w->plan = plan, w->index = plan->connects++, w->send_refused = w->receive_refused = false;
    plan->descs[w->index] = *desc;
    if (plan->busy) inner.wake = nobody_wakes;
    pmlp_result result = PMLP_ERROR_BACKEND;
    if (!wire_fails(w, CONNECT)) result = plan->inner->connect(plan->inner, &inner, &w->inner, error);
    if (result != PMLP_OK) return free(w), result;
    plan->living++, plan->counts[w->index][CONNECT]++;
    *edge = w;
    return PMLP_OK;
}

static inline void wire_disconnect(void *edge) {
    wire *w = edge;
    w->plan->living--;
    w->plan->inner->disconnect(w->inner);
    free(w);
}

static inline pmlp_result wire_reset(void *edge) {
    wire *w = edge;
    if (wire_fails(w, RESET)) return PMLP_ERROR_BACKEND;
    w->plan->counts[w->index][RESET]++;
    return w->plan->inner->reset(w->inner);
}

static inline pmlp_result wire_send(void *edge, int microbatch, const void *data, size_t bytes) {
    wire *w = edge;
    if (wire_fails(w, SEND)) return PMLP_ERROR_BACKEND;
    if (w->plan->busy && (w->send_refused = !w->send_refused)) return PMLP_BUSY;
    pmlp_result result = w->plan->inner->send(w->inner, microbatch, data, bytes);
    w->plan->counts[w->index][SEND] += result == PMLP_OK;
    return result;
}

static inline pmlp_result wire_receive(void *edge, int microbatch, void *data, size_t bytes) {
    wire *w = edge;
    if (wire_fails(w, RECEIVE)) return PMLP_ERROR_BACKEND;
    if (w->plan->busy && (w->receive_refused = !w->receive_refused)) return PMLP_BUSY;
    pmlp_result result = w->plan->inner->receive(w->inner, microbatch, data, bytes);
    w->plan->counts[w->index][RECEIVE] += result == PMLP_OK;
    return result;
}

static inline void wire_make(wire_plan *plan, int edge, enum wire_entry entry, long fail_at) {
    memset(plan, 0, sizeof *plan);
    plan->inner = pmlp_thread_edges();
    plan->edge = edge, plan->entry = entry, plan->fail_at = fail_at;
    plan->table = *plan->inner;
    plan->table.name = "faulty wires", plan->table.user = plan;
    plan->table.connect = wire_connect, plan->table.disconnect = wire_disconnect;
    plan->table.reset = wire_reset, plan->table.send = wire_send;
    plan->table.receive = wire_receive;
}

#endif
