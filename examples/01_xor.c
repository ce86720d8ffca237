/* 01: the smallest problem that a single layer cannot solve. A network of 2 inputs, 8 hidden units
   and 2 classes learns XOR from its four rows; no pipeline yet, one call for each step. The exit
   status is 0 if all four answers are right.

       cc -O3 -std=c99 01_xor.c -o 01_xor -pthread -lm                                            */
#define PIPEMLP_IMPLEMENTATION
#include "../pipemlp.h"

#include <stdio.h>

int main(void) {
    const int sizes[] = {2, 8, 2};
    const float x[] = {0, 0, /**/ 0, 1, /**/ 1, 0, /**/ 1, 1};
    const int labels[] = {0, 1, 1, 0};
    const pmlp_data xor_table = {.rows = 4, .x = x, .labels = labels};
    const pmlp_model_desc net = {.layers = 2, .sizes = sizes, .hidden = PMLP_TANH, .seed = 1};
    const pmlp_trainer_desc how = {.batch = 4, .learning_rate = 0.5f};
    pmlp_model *model = NULL;
    pmlp_trainer *trainer = NULL;
    pmlp_stats stats = {0};
    pmlp_error error = {0};
    float y[4 * 2] = {0}; /* [rows][classes], probabilities */
    int right = 0;

    if (pmlp_model_create(&net, &model, &error) == PMLP_OK &&
        pmlp_trainer_create(model, &how, &trainer, &error) == PMLP_OK) {
        do {
            if (pmlp_trainer_step(trainer, &xor_table, &stats) != PMLP_OK)
                error = *pmlp_trainer_error(trainer);
        } while (error.result == PMLP_OK && stats.loss > 0.01 && stats.step < 5000);
    }
    pmlp_trainer_destroy(trainer); /* the weights go back to the model */
    if (error.result == PMLP_OK) pmlp_model_predict(model, x, 4, y, &error);
    pmlp_model_destroy(model);
    if (error.result != PMLP_OK) return fprintf(stderr, "01_xor: %s\n", error.text), 1;

    for (int r = 0; r < 4; r++) {
        right += (y[2 * r + 1] > 0.5f) == (labels[r] == 1);
        printf("%.0f xor %.0f = %d   (probability of 1: %.3f)\n", (double)x[2 * r],
               (double)x[2 * r + 1], y[2 * r + 1] > 0.5f, (double)y[2 * r + 1]);
    }
    printf("loss %.4f after %d steps, %d of 4 right\n", stats.loss, (int)stats.step, right);
    return right == 4 ? 0 : 1;
}
