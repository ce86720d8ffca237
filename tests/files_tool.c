/* For tests/test_files.sh and tests/files_torch.py: what the library makes of a file, in lines.

       cc -std=c99 -I. tests/files_tool.c -o files_tool -pthread -lm
       files_tool show FILE      sizes, activations, loss, weights word
       files_tool predict FILE   outputs for the four rows of inputs x[r][i] = sin(r + 0.7 i)
       files_tool copy FILE TO   loads and saves                                                  */
#define PIPEMLP_IMPLEMENTATION
#include "../pipemlp.h"

enum { ROWS = 4 };

static void show(const pmlp_model *model) {
    const pmlp_model_desc d = pmlp_model_query_desc(model);
    uint64_t word = 0;
    for (int l = 0; l <= d.layers; l++) printf(l > 0 ? "-%d" : "%d", d.sizes[l]);
    for (int l = 0; l < d.layers; l++)
        printf("%c%s", l > 0 ? ',' : ' ', pmlp_activation_name(d.activations[l]));
    pmlp_model_hash(model, &word, NULL);
    printf(" %s %016llx\n", pmlp_loss_name(d.loss), (unsigned long long)word);
}

static int predict(const pmlp_model *model) {
    const pmlp_model_desc d = pmlp_model_query_desc(model);
    const int n_in = d.sizes[0], n_out = d.sizes[d.layers];
    float *x = malloc(ROWS * (size_t)n_in * sizeof *x);
    float *y = malloc(ROWS * (size_t)n_out * sizeof *y);
    if (!x || !y) return 1;
    for (int r = 0; r < ROWS; r++)
        for (int i = 0; i < n_in; i++) x[r * n_in + i] = (float)sin(r + 0.7 * i);
    if (pmlp_model_predict(model, x, ROWS, y, NULL) != PMLP_OK) return 1;
    for (int i = 0; i < ROWS * n_out; i++) printf("%.9g\n", (double)y[i]);
    free(x);
    free(y);
    return 0;
}

int main(int argc, char **argv) {
    pmlp_model *model = NULL;
    pmlp_error error = {0};
    int status = 0;
    if (argc < 3) return 2;
    if (pmlp_model_load(argv[2], NULL, &model, &error) != PMLP_OK)
        return printf("%s: %s\n", pmlp_result_name(error.result), error.text), 1;
    if (strcmp(argv[1], "show") == 0) show(model);
    if (strcmp(argv[1], "predict") == 0) status = predict(model);
    if (strcmp(argv[1], "copy") == 0 && argc > 3 &&
        pmlp_model_save(model, argv[3], &error) != PMLP_OK)
        status = printf("%s\n", error.text) > 0;
    pmlp_model_destroy(model);
    return status;
}
