// A project in C++ that has pipemlp.h and pipemlp_cuda.cu: what it makes of both.
#pragma once
#include "pipemlp.h"

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

class Failure : public std::runtime_error {
public:
    explicit Failure(const pmlp_error &error)
        : std::runtime_error(error.text), result(error.result) {}
    const pmlp_result result;
};

class Network {
public:
    explicit Network(const std::vector<int> &sizes);
    // Both in a pipeline of two workers. A comparison that fails throws std::logic_error.
    void compare(const pmlp_backend *backend, int steps) const;
    void train(const pmlp_backend *backend, int epochs);
    int right_answers() const;
    const std::vector<std::string> &log() const { return log_; }

private:
    struct Destroy {
        void operator()(pmlp_model *model) const { pmlp_model_destroy(model); }
        void operator()(pmlp_trainer *trainer) const { pmlp_trainer_destroy(trainer); }
    };
    pmlp_trainer_desc pipeline(const pmlp_backend *backend) const;

    std::unique_ptr<pmlp_model, Destroy> model_;
    mutable std::vector<std::string> log_;
};

// The back ends that this program offers, the CPU first.
class Backends {
public:
    Backends();
    std::vector<const pmlp_backend *> all() const;

private:
    pmlp_cuda_options options_ = {};
    pmlp_backend teaching_ = {};
};
