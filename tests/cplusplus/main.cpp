// Trains on each back end, after a comparison with one worker: every bit has to be equal. Says in a
// line that there is no GPU, or where it has trained; the exit status is 1 if something is wrong.
#include "network.hpp"

#include <iostream>

static void learn(const pmlp_backend *backend) {
    Network network({3, 40, 20, 2});
    network.compare(backend, 20);
    network.train(backend, 100);
    if (network.right_answers() != 5) throw std::logic_error("it has learned nothing");
    if (network.log().empty() || network.log().back().find(backend->name) == std::string::npos)
        throw std::logic_error("the log does not name the back end");
}

int main() {
    const Backends backends;
    std::string trained;
    try {
        for (const pmlp_backend *backend : backends.all()) {
            learn(backend);
            trained += std::string(" ") + backend->name;
        }
        std::cout << "trained:" << trained << "\n";
    } catch (const Failure &failure) {
        std::cout << failure.what() << "\n";
        return failure.result == PMLP_ERROR_UNSUPPORTED && trained == " cpu" ? 0 : 1;
    } catch (const std::exception &failure) {
        std::cout << failure.what() << "\n";
        return 1;
    }
}
