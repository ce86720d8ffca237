// dlib's dnn module as a contestant, on the CPU with whatever BLAS dlib was built for; the layers'
// own functions instead of dnn_trainer, whose thread would take a processor of its own.
#include <dlib/dnn.h>
#include <dlib/revision.h>

#include "peer.h"

extern "C" char *openblas_get_corename(void);
extern "C" char *openblas_get_config(void);

using namespace dlib;

using network = loss_multiclass_log<fc<10, relu<fc<128, relu<fc<256, relu<fc<512,
                input<matrix<float>>>>>>>>>>;

namespace {

struct training {
    network net;
    std::vector<sgd> solvers;
    std::vector<matrix<float>> x;
    std::vector<unsigned long> labels;
    resizable_tensor batch;
    size_t rows;
};

double step(void *self, size_t first) {
    auto &t = *static_cast<training *>(self);
    const auto at = t.x.begin() + static_cast<std::ptrdiff_t>(first);
    const auto rows = static_cast<std::ptrdiff_t>(t.rows);
    t.net.to_tensor(at, at + rows, t.batch);
    const double loss =
        t.net.compute_loss(t.batch, t.labels.begin() + static_cast<std::ptrdiff_t>(first));
    t.net.compute_parameter_gradients(
        t.batch, t.labels.begin() + static_cast<std::ptrdiff_t>(first));
    t.net.update_parameters(t.solvers, static_cast<double>(PEER_RATE));
    return loss;
}

// dlib keeps a layer's weights as [n_in][n_out] and the biases behind them.
template <unsigned long index>
void initialise(network &net, int l, const float *&from) {
    auto &tensor = layer<index>(net).layer_details().get_layer_params();
    const auto n_in = static_cast<size_t>(peer_sizes[l]);
    const auto n_out = static_cast<size_t>(peer_sizes[l + 1]);
    if (tensor.size() != (n_in + 1) * n_out) peer_fail("dlib", "keeps other parameters");
    float *to = tensor.host();
    for (size_t o = 0; o < n_out; o++)
        for (size_t i = 0; i < n_in; i++) to[i * n_out + o] = *from++;
    for (size_t o = 0; o < n_out; o++) to[n_in * n_out + o] = *from++;
}

} // namespace

int main(int argc, char **argv) {
    const peer_options o = peer_read_options(argc, argv, " ");
    const peer_images images = peer_load_images(&o);
    const float *weights = peer_load_weights(o.weights);
    training t;
    peer p = {};

    t.rows = static_cast<size_t>(o.batch);
    t.solvers.assign(network::num_computational_layers, sgd(0, 0));
    t.labels.assign(images.labels, images.labels + images.rows);
    t.x.reserve(images.rows);
    for (size_t i = 0; i < images.rows; i++)
        t.x.push_back(mat(images.x + i * images.width, 28, 28));
    t.net.to_tensor(t.x.begin(), t.x.begin() + 1, t.batch);
    t.net.forward(t.batch); // makes the parameters
    initialise<7>(t.net, 0, weights);
    initialise<5>(t.net, 1, weights);
    initialise<3>(t.net, 2, weights);
    initialise<1>(t.net, 3, weights);

    p.self = &t;
    p.step = step;
    p.rows = images.rows;
    p.batch = t.rows;
    snprintf(p.version, sizeof p.version, "dlib %d.%d, %.16s %s", DLIB_MAJOR_VERSION,
             DLIB_MINOR_VERSION, openblas_get_config(), openblas_get_corename());
    return peer_serve(&p);
}
