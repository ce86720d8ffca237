#include "network.hpp"

namespace {

const std::vector<float> points = {0, 0, 1, 0, 1, 0, 1, 0, .5f, 1, 1, 0, .25f, 1, 1};
const std::vector<int> labels = {0, 1, 1, 0, 1};

pmlp_data examples() {
    pmlp_data data = {};
    data.rows = labels.size();
    data.x = points.data();
    data.labels = labels.data();
    return data;
}

} // namespace

Network::Network(const std::vector<int> &sizes) {
    pmlp_model_desc desc = {};
    pmlp_model *model;
    pmlp_error error;
    desc.layers = static_cast<int>(sizes.size()) - 1;
    desc.sizes = sizes.data();
    if (pmlp_model_create(&desc, &model, &error) != PMLP_OK) throw Failure(error);
    model_.reset(model);
}

pmlp_trainer_desc Network::pipeline(const pmlp_backend *backend) const {
    pmlp_trainer_desc how = {};
    how.workers = 2;
    how.batch = labels.size();
    how.optimizer = PMLP_ADAM;
    how.backend = backend;
    how.logger.user = &log_;
    how.logger.log = [](pmlp_log_level, const char *text, void *log) {
        static_cast<std::vector<std::string> *>(log)->push_back(text);
    };
    return how;
}

void Network::compare(const pmlp_backend *backend, int steps) const {
    const pmlp_trainer_desc how = pipeline(backend);
    const pmlp_data data = examples();
    pmlp_verify_report report;
    pmlp_error error;
    if (pmlp_verify(model_.get(), &how, &data, steps, &report, &error) != PMLP_OK)
        throw Failure(error);
    if (!report.identical) throw std::logic_error(report.text);
}

void Network::train(const pmlp_backend *backend, int epochs) {
    const pmlp_trainer_desc how = pipeline(backend);
    const pmlp_data data = examples();
    pmlp_trainer *created;
    pmlp_stats stats;
    pmlp_error error;
    if (pmlp_trainer_create(model_.get(), &how, &created, &error) != PMLP_OK) throw Failure(error);
    const std::unique_ptr<pmlp_trainer, Destroy> trainer(created);
    for (int i = 0; i < epochs; i++)
        if (pmlp_trainer_epoch(created, &data, &stats) != PMLP_OK)
            throw Failure(*pmlp_trainer_error(created));
    if (pmlp_trainer_sync(created) != PMLP_OK) throw Failure(*pmlp_trainer_error(created));
}

int Network::right_answers() const {
    std::vector<float> y(2 * labels.size());
    pmlp_error error;
    int right = 0;
    if (pmlp_model_predict(model_.get(), points.data(), labels.size(), y.data(), &error) != PMLP_OK)
        throw Failure(error);
    for (std::size_t i = 0; i < labels.size(); i++)
        right += (y[2 * i + 1] > y[2 * i]) == (labels[i] == 1);
    return right;
}

Backends::Backends() {
    options_.gemm = PMLP_CUDA_GEMM_TEACHING;
    pmlp_cuda_backend_with(&options_, &teaching_);
}

std::vector<const pmlp_backend *> Backends::all() const {
    return {pmlp_cpu_backend(), pmlp_cuda_backend(), &teaching_};
}
