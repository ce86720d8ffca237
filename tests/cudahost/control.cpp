// What tests that are written in C ask of the stand-in.
#include <cuda_runtime.h>

extern "C" {
void cudahost_fail(const char *api, long nth);
long cudahost_calls(const char *api);
long cudahost_live(void);
void cudahost_slow(long microseconds);
}

// From now on the nth call of `api`, or of "any", fails, and calls are counted afresh; NULL: none.
void cudahost_fail(const char *api, long nth) {
    cudahost::fail(api ? (std::string(api) + ":" + std::to_string(nth)).c_str() : nullptr);
}

long cudahost_calls(const char *api) { return cudahost::calls(api); }

// Things that were created and not given back.
long cudahost_live(void) { return cudahost::live().total(); }

// What each operation of a stream takes at least from now on.
void cudahost_slow(long microseconds) { cudahost::state().settings.slow = microseconds; }
