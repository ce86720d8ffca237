/* pipemlp as a contestant: serial, pipelined with any schedule, or several trainings at once.

       peer_pipemlp --data DIR --weights FILE --batch B --threads WORKERS
           --schedule NAME      default 1f1b
           --microbatches M     default the library's
           --virtual V          stages per worker, default the library's
           --cut auto|layers    may a boundary fall inside the first layer; default auto
           --layers 512,256     hidden layers; weights then come from a seed, not from a file
           --copies N           N such trainings at once that share nothing: what the machine gives
           --backend cpu|cuda   with PMLP_CUDA defined and pipemlp_cuda.cu in the program; then also
           --math fp32|tf32|bf16, --gemm fused|plain|teaching, --graphs 0|1
       peer_pipemlp --write-weights FILE     writes the initial weights and ends

   The ready line has, besides the loss, the weights word after those steps. `ceiling` prints what
   pmlp_ceiling() says, counted and with costs measured in a few traced steps. */
#define PIPEMLP_IMPLEMENTATION
#include "pipemlp.h"
#include "peer.h"

#define MOST_LAYERS 64
#define MOST_COPIES 64
#define ASYNC_ROWS 8192 /* of a call, for schedules that do not stop between batches */

typedef struct training {
    const peer_images *images;
    pmlp_model *model;
    pmlp_trainer *trainer;
    pmlp_trainer_desc desc;
    size_t at, samples; /* of a copy */
    double seconds;
    pthread_t thread;
} training;

static training copies[MOST_COPIES];
static int copy_count = 1;

static pmlp_data rows_from(const training *t, size_t first, size_t rows) {
    const peer_images *i = t->images;
    const pmlp_data data = {.rows = rows,
                            .x = i->x + first * i->width,
                            .labels = i->labels + first,
                            .constant = true};
    return data;
}

static double step(void *self, size_t first) {
    training *t = self;
    const pmlp_data data = rows_from(t, first, t->desc.batch);
    pmlp_stats stats;
    if (pmlp_trainer_step(t->trainer, &data, &stats) != PMLP_OK)
        peer_fail("pipemlp", pmlp_trainer_error(t->trainer)->text);
    return stats.loss;
}

/* Whole batches, as many as make ASYNC_ROWS. */
static size_t async_rows(const training *t) {
    const size_t batch = t->desc.batch;
    return (ASYNC_ROWS + batch - 1) / batch * batch;
}

static double epoch_of(training *t, size_t first, size_t rows) {
    const pmlp_data data = rows_from(t, first, rows);
    pmlp_stats stats;
    if (pmlp_trainer_epoch(t->trainer, &data, &stats) != PMLP_OK)
        peer_fail("pipemlp", pmlp_trainer_error(t->trainer)->text);
    return stats.loss;
}

static double async_step(void *self, size_t first) {
    return epoch_of(self, first, async_rows(self));
}

static double async_check(void *self) {
    training *t = self;
    return epoch_of(t, 0, PEER_CHECK * t->desc.batch);
}

/* On a GPU the images stay where they are, all of them: steps are those of epochs. */
static double pass(void *self, size_t first) {
    const training *t = self;
    return epoch_of(self, first, t->images->rows / t->desc.batch * t->desc.batch);
}

/* PEER_CHECK steps in the order of peer_next(). */
static double pass_check(void *self) {
    const training *t = self;
    const size_t steps = t->images->rows / t->desc.batch;
    double loss = 0;
    size_t done, some;
    for (done = 0; done < PEER_CHECK; done += some) {
        some = PEER_CHECK - done < steps ? PEER_CHECK - done : steps;
        loss += epoch_of(self, 0, some * t->desc.batch) * (double)some / PEER_CHECK;
    }
    return loss;
}

#ifdef PMLP_CUDA
static int name_of(const char *option, const char *name, const char *const *names, int count) {
    int i;
    for (i = 0; i < count; i++)
        if (strcmp(name, names[i]) == 0) return i;
    peer_fail(option, "no such name");
}

static const pmlp_backend *cuda_backend(int argc, char **argv) {
    static const char *const math[] = {"fp32", "tf32", "bf16"};
    static const char *const gemm[] = {"fused", "plain", "teaching"};
    static pmlp_cuda_options options;
    static pmlp_backend table;
    options.math =
        (pmlp_cuda_math)name_of("--math", peer_option(argc, argv, "--math", "fp32"), math, 3);
    options.gemm =
        (pmlp_cuda_gemm)name_of("--gemm", peer_option(argc, argv, "--gemm", "fused"), gemm, 3);
    options.no_graphs = peer_number(argc, argv, "--graphs", "1") == 0;
    pmlp_cuda_backend_with(&options, &table);
    return &table;
}
#else
__attribute__((noreturn)) static const pmlp_backend *cuda_backend(int argc, char **argv) {
    (void)argc;
    (void)argv;
    peer_fail("--backend cuda", "this program was built without it");
}
#endif

static void *run_copy(void *self) {
    training *t = self;
    const peer p = {.rows = t->images->rows, .batch = t->desc.batch};
    const double begin = peer_now();
    t->samples = 0;
    do {
        step(t, peer_next(&p, &t->at));
        t->samples += t->desc.batch;
    } while (peer_now() - begin < t->seconds);
    return NULL;
}

static size_t run_copies(void *self, double seconds) {
    size_t samples = 0;
    int i;
    (void)self;
    for (i = 0; i < copy_count; i++) {
        copies[i].seconds = seconds;
        if (pthread_create(&copies[i].thread, NULL, run_copy, &copies[i]) != 0)
            peer_fail("no thread", "");
    }
    for (i = 0; i < copy_count; i++) {
        pthread_join(copies[i].thread, NULL);
        samples += copies[i].samples;
    }
    return samples;
}

static void initialise(pmlp_model *model, const char *path) {
    float *weights = peer_load_weights(path), *from = weights;
    pmlp_params p;
    int l;
    for (l = 0; l < PEER_LAYERS; l++) {
        pmlp_model_params(model, l, &p, NULL);
        memcpy(p.w, from, p.n_in * p.n_out * sizeof *from);
        from += p.n_in * p.n_out;
        memcpy(p.b, from, p.n_out * sizeof *from);
        from += p.n_out;
    }
    free(weights);
}

static void write_weights(const char *path) {
    const pmlp_model_desc desc = {.layers = PEER_LAYERS, .sizes = peer_sizes, .seed = 1};
    pmlp_model *model;
    pmlp_params p;
    bool good = true;
    int l;
    FILE *file = fopen(path, "wb");
    if (!file || pmlp_model_create(&desc, &model, NULL) != PMLP_OK)
        peer_fail(path, "cannot be written");
    for (l = 0; l < PEER_LAYERS; l++) {
        pmlp_model_params(model, l, &p, NULL);
        good = good && fwrite(p.w, sizeof(float), p.n_in * p.n_out, file) == p.n_in * p.n_out &&
               fwrite(p.b, sizeof(float), p.n_out, file) == p.n_out;
    }
    if (fclose(file) != 0 || !good) peer_fail(path, "cannot be written");
    pmlp_model_destroy(model);
}

/* Reads "512,256" between the inputs and the classes. */
static int read_layers(const char *text, int *sizes) {
    int count = 1;
    sizes[0] = peer_sizes[0];
    for (; count < MOST_LAYERS; count++) {
        char *end;
        const long n = strtol(text, &end, 10);
        if (end == text || n < 1 || n > 1 << 16) peer_fail("--layers", "wants 512,256 or the like");
        sizes[count] = (int)n;
        text = end + (*end == ',');
        if (*end == '\0') break;
        if (*end != ',') peer_fail("--layers", "wants 512,256 or the like");
    }
    if (count == MOST_LAYERS) peer_fail("--layers", "too many");
    sizes[count + 1] = peer_sizes[PEER_LAYERS];
    return count + 1;
}

static void create_model(training *t, const char *layers, const char *weights) {
    int sizes[MOST_LAYERS + 2];
    pmlp_model_desc desc = {.layers = PEER_LAYERS, .sizes = peer_sizes, .seed = 1};
    pmlp_error error;
    if (layers) {
        desc.layers = read_layers(layers, sizes);
        desc.sizes = sizes;
    }
    if (pmlp_model_create(&desc, &t->model, &error) != PMLP_OK) peer_fail("pipemlp", error.text);
    if (!layers) initialise(t->model, weights);
}

static void start(training *t) {
    pmlp_error error;
    if (pmlp_trainer_create(t->model, &t->desc, &t->trainer, &error) != PMLP_OK)
        peer_fail("pipemlp", error.text);
    t->desc = pmlp_trainer_query_desc(t->trainer);
}

/* On a copy of the model, so that tracing is not on while the speed is measured. */
static bool measured_ceiling(const training *t, pmlp_ceiling_report *report) {
    training copy = *t;
    pmlp_costs costs;
    pmlp_error error;
    const double begun = peer_now();
    bool good;
    int i;
    copy.desc.trace = PEER_CHECK;
    copy.desc.custom = NULL;
    if (pmlp_trainer_sync(t->trainer) != PMLP_OK ||
        pmlp_model_clone(t->model, &copy.model, &error) != PMLP_OK)
        return false;
    if (t->desc.schedule == PMLP_SCHEDULE_AUTO)
        copy.desc.custom = pmlp_trainer_schedule(t->trainer);
    good = pmlp_trainer_create(copy.model, &copy.desc, &copy.trainer, &error) == PMLP_OK;
    /* The last steps are traced: new threads may share a core at first. */
    for (i = 0; good && (i < PEER_CHECK || peer_now() - begun < 0.1); i++)
        if (pmlp_schedule_is_synchronous(pmlp_trainer_schedule(copy.trainer)))
            step(&copy, (size_t)(i % PEER_CHECK) * copy.desc.batch);
        else
            async_step(&copy, 0);
    good = good && pmlp_trainer_costs(copy.trainer, &costs) == PMLP_OK &&
           pmlp_ceiling(copy.model, &copy.desc, &costs, report, &error) == PMLP_OK;
    pmlp_trainer_destroy(copy.trainer);
    pmlp_model_destroy(copy.model);
    return good;
}

static void describe(void *self, char *text, size_t size) {
    const training *t = self;
    const pmlp_trainer_desc *d = &t->desc;
    uint64_t word;
    if (pmlp_trainer_sync(t->trainer) != PMLP_OK ||
        pmlp_model_hash(t->model, &word, NULL) != PMLP_OK)
        peer_fail("pipemlp", pmlp_trainer_error(t->trainer)->text);
    snprintf(text, size, "schedule=%s workers=%d microbatches=%d stages=%d weights=%016llx",
             pmlp_schedule_kind_name(d->schedule), d->workers, d->microbatches,
             pmlp_schedule_stages(pmlp_trainer_schedule(t->trainer)), (unsigned long long)word);
}

static const char *isa(void) {
    static const char *const names[] = {"avx512", "avx2", "sse2", "neon", "generic"};
    size_t i;
    for (i = 0; i < sizeof names / sizeof *names; i++)
        if (pmlp_cpu_backend_isa(names[i]) == pmlp_cpu_backend()) return names[i];
    return "?";
}

static void command(void *self, const char *line) {
    const training *t = self;
    pmlp_trainer_desc desc = t->desc;
    pmlp_ceiling_report report;
    pmlp_error error;
    if (strncmp(line, "ceiling", 7) != 0) {
        printf("what?\n");
        return;
    }
    if (desc.schedule == PMLP_SCHEDULE_AUTO) desc.custom = pmlp_trainer_schedule(t->trainer);
    if (pmlp_ceiling(t->model, &desc, NULL, &report, &error) != PMLP_OK)
        peer_fail("the ceiling", error.text);
    printf("ceiling counted=%.4f balance=%.4f fill=%.4f", report.schedule, report.balance,
           report.fill);
    if (measured_ceiling(t, &report)) printf(" measured=%.4f", report.speedup);
    printf(" binds=\"%s\"\n", report.binds);
}

int main(int argc, char **argv) {
    const peer_options o =
        peer_read_options(argc, argv, " --schedule --microbatches --virtual --cut --layers --copies"
                                      " --write-weights --backend --math --gemm --graphs ");
    const char *path = peer_option(argc, argv, "--write-weights", NULL);
    const char *name = peer_option(argc, argv, "--schedule", "1f1b");
    const char *cut = peer_option(argc, argv, "--cut", "auto");
    const char *where = peer_option(argc, argv, "--backend", "cpu");
    const bool cuda = strcmp(where, "cuda") == 0;
    training *t = copies;
    peer p = {.self = t, .step = step, .describe = describe, .command = command,
              .batch = (size_t)o.batch};
    bool synchronous;
    peer_images images;
    int i;

    if (path) return write_weights(path), 0;
    copy_count = peer_number(argc, argv, "--copies", "1");
    if (copy_count < 1 || copy_count > MOST_COPIES) peer_fail("--copies", "1 to 64");
    if (strcmp(cut, "auto") != 0 && strcmp(cut, "layers") != 0)
        peer_fail("--cut", "auto or layers");
    if (!cuda && strcmp(where, "cpu") != 0) peer_fail("--backend", "cpu or cuda");
    if (pmlp_schedule_kind_of(name) == PMLP_SCHEDULE_DEFAULT) peer_fail(name, "no such schedule");
    images = peer_load_images(&o);
    for (i = 0; i < copy_count; i++) {
        copies[i].images = &images;
        copies[i].at = images.rows / (size_t)copy_count * (size_t)i;
        copies[i].desc = (pmlp_trainer_desc){
            .workers = o.threads,
            .batch = (size_t)o.batch,
            .schedule = pmlp_schedule_kind_of(name),
            .microbatches = peer_number(argc, argv, "--microbatches", "0"),
            .virtual_stages = peer_number(argc, argv, "--virtual", "0"),
            .whole_layers = strcmp(cut, "layers") == 0,
            .measure_layers = true,
            .learning_rate = PEER_RATE,
            .no_shuffle = true,
            .backend = cuda ? cuda_backend(argc, argv) : NULL,
        };
        create_model(&copies[i], peer_option(argc, argv, "--layers", NULL), o.weights);
        start(&copies[i]);
    }
    synchronous = pmlp_schedule_is_synchronous(pmlp_trainer_schedule(t->trainer));
    p.rows = images.rows;
    if (copy_count > 1) p.run = run_copies;
    if (cuda) {
        p.batch = images.rows / t->desc.batch * t->desc.batch;
        p.step = pass;
        p.check = pass_check;
    } else if (!synchronous) {
        p.batch = async_rows(t);
        p.step = async_step;
        p.check = async_check;
    }
    snprintf(p.version, sizeof p.version, "pipemlp %d.%d.%d, %s", PMLP_VERSION_MAJOR,
             PMLP_VERSION_MINOR, PMLP_VERSION_PATCH, cuda ? "CUDA" : isa());
    return peer_serve(&p);
}
