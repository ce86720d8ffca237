// 09: a pipeline inside somebody else's program, which is in C++, owns its threads, its memory and
// its log, and has its data from a stream rather than from a file. Training runs in the background;
// the main thread asks how far it is, and stops it when it is good enough. What was learned is saved,
// loaded again and put to the test. The exit status is 0 if the loaded network has the same weights
// and is right about at least 95 of 100 new points.
//
//     c++ -O3 -std=c++11 09_embed.cpp -o 09_embed -pthread
//     ./09_embed [FILE]        which the network is saved to; default spiral.safetensors
#define PIPEMLP_IMPLEMENTATION
#include "../pipemlp.h"

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

// Objects of the library destroy themselves, failures are exceptions here: how C++ likes it.
struct Destroy {
    void operator()(pmlp_model *model) const { pmlp_model_destroy(model); }
    void operator()(pmlp_trainer *trainer) const { pmlp_trainer_destroy(trainer); }
};
using Model = std::unique_ptr<pmlp_model, Destroy>;
using Trainer = std::unique_ptr<pmlp_trainer, Destroy>;

static void check(pmlp_result result, const pmlp_error &error) {
    if (result != PMLP_OK) throw std::runtime_error(error.text);
}

// Trains on a thread of its own until the source runs dry or somebody cancels.
class Training {
public:
    // Fills x [most][inputs] and labels [most]; returns how many rows there are, 0 at the end.
    using Source = std::function<std::size_t(float *x, int *labels, std::size_t most)>;
    struct Progress {
        std::uint64_t steps;
        double accuracy; // of the last hundred steps or so
    };

    Training(pmlp_model *model, const pmlp_trainer_desc &desc, Source source)
        : source_(std::move(source)), inputs_(pmlp_model_query_desc(model).sizes[0]) {
        pmlp_trainer *trainer;
        pmlp_error error;
        check(pmlp_trainer_create(model, &desc, &trainer, &error), error);
        trainer_.reset(trainer);
        thread_ = std::thread([this] { run(); });
    }
    ~Training() {
        cancel();
        if (thread_.joinable()) thread_.join();
    }

    void cancel() { cancelled_ = true; } // from any thread; the step that runs is finished
    Progress progress() {                // from any thread
        std::lock_guard<std::mutex> lock(mutex_);
        return progress_;
    }
    bool is_running() const { return running_; }
    void finish() { // waits; the weights are in the model then
        thread_.join();
        trainer_.reset();
        if (!failure_.empty()) throw std::runtime_error(failure_);
    }

private:
    void run() {
        const std::size_t batch = pmlp_trainer_query_desc(trainer_.get()).batch;
        std::vector<float> x(batch * static_cast<std::size_t>(inputs_));
        std::vector<int> labels(batch);
        while (!cancelled_) {
            pmlp_data data = {};
            pmlp_stats stats;
            data.rows = source_(x.data(), labels.data(), batch);
            data.x = x.data();
            data.labels = labels.data();
            if (data.rows == 0) break;
            if (pmlp_trainer_step(trainer_.get(), &data, &stats) != PMLP_OK) {
                failure_ = pmlp_trainer_error(trainer_.get())->text;
                break;
            }
            std::lock_guard<std::mutex> lock(mutex_);
            progress_.steps = stats.step;
            progress_.accuracy += (stats.accuracy - progress_.accuracy) / 100;
        }
        running_ = false;
    }

    Source source_;
    int inputs_;
    Trainer trainer_;
    std::mutex mutex_;
    Progress progress_ = {0, 0.0};
    std::atomic<bool> cancelled_{false}, running_{true};
    std::string failure_;
    std::thread thread_;
};

// The stream: points of three arms of a spiral, turned by some noise.
static std::size_t spiral(std::mt19937 &random, float *x, int *labels, std::size_t rows) {
    std::uniform_real_distribution<float> radius(0.1f, 1.0f), noise(-0.3f, 0.3f);
    for (std::size_t i = 0; i < rows; i++) {
        labels[i] = static_cast<int>(random() % 3);
        const float r = radius(random);
        const float angle = 4 * r + 2.0944f * static_cast<float>(labels[i]) + noise(random);
        x[2 * i] = r * std::cos(angle);
        x[2 * i + 1] = r * std::sin(angle);
    }
    return rows;
}

// The program's memory and log, handed to the library.
static std::atomic<long> blocks_in_use{0};
static void *counted_alloc(std::size_t bytes, void *) {
    blocks_in_use++;
    return std::malloc(bytes);
}
static void counted_free(void *pointer, void *) {
    blocks_in_use--;
    std::free(pointer);
}
static void to_log(pmlp_log_level, const char *text, void *) { std::printf("[log] %s\n", text); }

static int right_answers(const pmlp_model *model, std::mt19937 &random, std::size_t rows) {
    std::vector<float> x(2 * rows), y(3 * rows);
    std::vector<int> labels(rows);
    int right = 0;
    pmlp_error error;
    spiral(random, x.data(), labels.data(), rows);
    check(pmlp_model_predict(model, x.data(), rows, y.data(), &error), error);
    for (std::size_t i = 0; i < rows; i++) {
        const float *p = &y[3 * i];
        right += (p[1] > p[0] ? p[2] > p[1] ? 2 : 1 : p[2] > p[0] ? 2 : 0) == labels[i];
    }
    return right;
}

static bool learn(const char *path) {
    const int sizes[] = {2, 64, 64, 3};
    const pmlp_allocator memory = {counted_alloc, counted_free, nullptr};
    std::mt19937 random(1);
    pmlp_model_desc net = {};
    pmlp_trainer_desc how = {};
    pmlp_model *model;
    pmlp_error error;
    net.layers = 3;
    net.sizes = sizes;
    net.allocator = how.allocator = memory;
    how.workers = 2;
    how.batch = 64;
    how.optimizer = PMLP_ADAM;
    how.logger.log = to_log;

    check(pmlp_model_create(&net, &model, &error), error);
    const Model learned(model);
    Training training(learned.get(), how, [&random](float *x, int *labels, std::size_t most) {
        return spiral(random, x, labels, most);
    });
    while (training.is_running() && training.progress().accuracy < 0.97)
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    training.cancel();
    training.finish();
    std::printf("stopped after %llu steps\n",
                static_cast<unsigned long long>(training.progress().steps));

    std::uint64_t before, after;
    check(pmlp_model_save(learned.get(), path, &error), error);
    check(pmlp_model_load(path, &memory, &model, &error), error);
    const Model loaded(model);
    check(pmlp_model_hash(learned.get(), &before, &error), error);
    check(pmlp_model_hash(loaded.get(), &after, &error), error);
    const int right = right_answers(loaded.get(), random, 100);
    std::printf("saved and loaded: %s weights, %d of 100 new points right\n",
                before == after ? "the same" : "other", right);
    return before == after && right >= 95;
}

int main(int argc, char **argv) {
    bool good = false;
    try {
        good = learn(argc > 1 ? argv[1] : "spiral.safetensors");
    } catch (const std::exception &failure) {
        std::fprintf(stderr, "%s\n", failure.what());
    }
    std::printf("blocks of memory still in use: %ld\n", blocks_in_use.load());
    return good && blocks_in_use == 0 ? 0 : 1;
}
