/* The networks that tests train: include it after test.h. */
#ifndef PMLP_TEST_NETWORKS_H
#define PMLP_TEST_NETWORKS_H

enum { MAX_LAYERS = 12 }; /* of a network */

typedef struct network {
    const char *name;
    int layers, sizes[MAX_LAYERS + 1];
    pmlp_activation act[MAX_LAYERS];
    pmlp_loss loss;
    bool targets;
} network;

static inline pmlp_data rows_of(const network *net, const pmlp_data *all, size_t first,
                                size_t rows) {
    pmlp_data part = *all;
    part.rows = rows, part.x += first * (size_t)net->sizes[0];
    if (part.labels) part.labels += first;
    if (part.targets) part.targets += first * (size_t)net->sizes[net->layers];
    return part;
}

static inline pmlp_model *make_model(const network *net, uint64_t seed) {
    pmlp_model_desc desc = {0};
    pmlp_model *model = NULL;
    pmlp_error error = {0};
    desc.layers = net->layers, desc.sizes = net->sizes, desc.activations = net->act;
    desc.loss = net->loss, desc.seed = seed;
    CHECK(pmlp_model_create(&desc, &model, &error) == PMLP_OK, "%s: %s", net->name, error.text);
    return model;
}

#endif
