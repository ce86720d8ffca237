/* 02: the same weights from a pipeline. A network of four layers learns XOR of signs on a grid of
   points: first serially, then cut into stages on two, three and four workers that pass
   micro-batches along. Every run begins from the same seed and ends with the same loss and the
   same weights word, a hash over every bit of every weight. Then pmlp_verify() makes the same
   comparison after each step. The exit status is 0 if no bit differs.

       cc -O3 -std=c99 02_pipeline.c -o 02_pipeline -pthread -lm                                  */
#define PIPEMLP_IMPLEMENTATION
#include "../pipemlp.h"

#include <stdio.h>

enum { SIDE = 16, ROWS = SIDE * SIDE, LAYERS = 4, EPOCHS = 30 };

typedef struct outcome {
    double loss, accuracy;
    uint64_t weights;
} outcome;

/* Row (i, j) is a point of the square [-1, 1]^2; its class is 1 where the two signs differ. */
static void fill_grid(float *x, int *labels) {
    for (int i = 0; i < SIDE; i++)
        for (int j = 0; j < SIDE; j++) {
            const int row = i * SIDE + j;
            x[2 * row] = (float)(2 * i + 1 - SIDE) / SIDE;
            x[2 * row + 1] = (float)(2 * j + 1 - SIDE) / SIDE;
            labels[row] = (2 * i < SIDE) != (2 * j < SIDE);
        }
}

static void show_stages(const pmlp_trainer *trainer) {
    const int stages = pmlp_schedule_stages(pmlp_trainer_schedule(trainer));
    for (int s = 0; s < stages; s++) {
        pmlp_stage_info info;
        if (pmlp_trainer_stage(trainer, s, &info) != PMLP_OK) continue;
        printf("    stage %d on worker %d: layers %d to %d, %4.1f %% of the arithmetic\n", s,
               info.worker, info.first_layer + 1, info.first_layer + info.layers, 100 * info.cost);
    }
}

/* Trains a new model from the same seed as desc says; false, with a sentence, if a call fails. */
static bool train(const pmlp_model_desc *net, const pmlp_trainer_desc *how, const pmlp_data *data,
                  outcome *out) {
    pmlp_model *model = NULL;
    pmlp_trainer *trainer = NULL;
    pmlp_stats stats = {0};
    pmlp_error error = {0};

    if (pmlp_model_create(net, &model, &error) == PMLP_OK &&
        pmlp_trainer_create(model, how, &trainer, &error) == PMLP_OK) {
        for (int epoch = 0; epoch < EPOCHS && error.result == PMLP_OK; epoch++)
            if (pmlp_trainer_epoch(trainer, data, &stats) != PMLP_OK)
                error = *pmlp_trainer_error(trainer);
        printf("%d worker(s), %d micro-batch(es)\n", how->workers, how->microbatches);
        show_stages(trainer);
    }
    pmlp_trainer_destroy(trainer); /* the weights go back to the model */
    if (error.result == PMLP_OK) pmlp_model_hash(model, &out->weights, &error);
    pmlp_model_destroy(model);
    out->loss = stats.loss;
    out->accuracy = stats.accuracy;
    if (error.result != PMLP_OK) fprintf(stderr, "02_pipeline: %s\n", error.text);
    return error.result == PMLP_OK;
}

/* Pipeline against serial, step by step, on a model of its own. */
static bool verify(const pmlp_model_desc *net, const pmlp_trainer_desc *how,
                   const pmlp_data *data) {
    pmlp_model *model = NULL;
    pmlp_verify_report report = {0};
    pmlp_error error = {0};

    if (pmlp_model_create(net, &model, &error) == PMLP_OK)
        pmlp_verify(model, how, data, 40, &report, &error);
    pmlp_model_destroy(model);
    if (error.result != PMLP_OK) return fprintf(stderr, "02_pipeline: %s\n", error.text), false;
    if (report.identical)
        printf("pmlp_verify: %d steps, every bit equal\n", report.steps);
    else
        printf("pmlp_verify: step %d differs in the %s\n", report.at_step, report.what);
    return report.identical;
}

int main(void) {
    static const struct { int workers, microbatches; } runs[] = {{1, 1}, {2, 4}, {3, 8}, {4, 5}};
    const int sizes[LAYERS + 1] = {2, 24, 24, 24, 2};
    float x[ROWS * 2];
    int labels[ROWS];
    const pmlp_data data = {.rows = ROWS, .x = x, .labels = labels};
    const pmlp_model_desc net = {.layers = LAYERS, .sizes = sizes, .seed = 7};
    pmlp_trainer_desc how = {.batch = 32, .optimizer = PMLP_MOMENTUM, .seed = 7};
    outcome first = {0}, now = {0};
    bool same = true;

    fill_grid(x, labels);
    for (size_t r = 0; r < sizeof runs / sizeof runs[0]; r++) {
        how.workers = runs[r].workers;
        how.microbatches = runs[r].microbatches;
        if (!train(&net, &how, &data, &now)) return 1;
        printf("    loss %.9f, accuracy %.3f, weights %016llx\n", now.loss, now.accuracy,
               (unsigned long long)now.weights);
        if (r == 0) first = now;
        if (now.weights != first.weights || now.loss < first.loss || now.loss > first.loss)
            same = false;
    }
    same = verify(&net, &how, &data) && same;
    printf(same ? "one network, however it was cut\n" : "THE RUNS DIFFER\n");
    return same ? 0 : 1;
}
