// selftest.cu - what the stand-in promises, and that it finds what it is there to find.
//
//     g++ -std=c++17 -O1 -x c++ -Itests/cudahost tests/cudahost/selftest.cu -o selftest -pthread
//
//     selftest              every feature; prints `ok   cudahost: ...` lines
//     selftest NAME         the one test of that name
//     selftest fault NAME   a program with a planted mistake; 0: nothing was wrong with the result
//     selftest rank R FILE  one of two processes with a communicator, see test_processes()
//
// nvcc compiles it, too (tests/test_cudahost.sh does, if it is there), so the kernels and calls in
// here are CUDA as the real compiler knows it. It is not meant to run on a real device.
#include <cublasLt.h>
#include <cublas_v2.h>
#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <mutex>
#include <nccl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <string>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <vector>

#ifdef CUDAHOST
#define LAUNCH(kernel, blocks, threads, bytes, stream, ...) \
    cudahost::launch(#kernel, kernel, blocks, threads, bytes, stream, ##__VA_ARGS__)
#define LAUNCH_TOGETHER(kernel, blocks, threads, bytes, stream, ...) \
    cudahost::launch_cooperative(#kernel, kernel, blocks, threads, bytes, stream, ##__VA_ARGS__)
#define DYNAMIC_SHARED(type, name) type *name = (type *)cudahost::dynamic_shared()
#else
#define LAUNCH(kernel, blocks, threads, bytes, stream, ...) \
    (kernel<<<blocks, threads, bytes, stream>>>(__VA_ARGS__), cudaGetLastError())
template <class... P, class... A>
cudaError_t launch_together(void (*kernel)(P...), dim3 blocks, dim3 threads, size_t bytes,
                            cudaStream_t stream, A... arguments) {
    void *list[] = {(void *)&arguments...};
    return cudaLaunchCooperativeKernel(kernel, blocks, threads, list, bytes, stream);
}
#define LAUNCH_TOGETHER(kernel, blocks, threads, bytes, stream, ...) \
    launch_together(kernel, blocks, threads, bytes, stream, ##__VA_ARGS__)
#define DYNAMIC_SHARED(type, name) extern __shared__ __align__(16) unsigned char name##_bytes[]; \
    type *name = (type *)name##_bytes
#endif

// >>harness

static struct {
    const char *name;
    char said[256];
    int checks, bad, passed, failed;
} run;
static std::mutex run_lock; // checks may come from several threads

#define CHECK(cond, ...) check(!!(cond), __LINE__, #cond, __VA_ARGS__)
#define GOOD(call) check_call((int)(call), 0, __LINE__, #call)
#define GIVES(call, result) check_call((int)(call), (int)(result), __LINE__, #call)
#define SAY(...) ((void)snprintf(run.said, sizeof run.said, __VA_ARGS__))

__attribute__((format(printf, 4, 5))) static bool check(bool good, int line, const char *cond,
                                                        const char *format, ...) {
    std::lock_guard<std::mutex> hold(run_lock);
    run.checks++;
    if (good || run.bad++ >= 8) return good;
    va_list args;
    va_start(args, format);
    printf("selftest.cu:%d: not (%s): ", line, cond);
    vprintf(format, args);
    printf("\n");
    va_end(args);
    return good;
}

static bool check_call(int got, int wanted, int line, const char *text) {
    return check(got == wanted, line, text, "gave %d, not %d", got, wanted);
}

static float uniform(unsigned i) { // the same numbers everywhere, -1 .. 1
    unsigned z = i * 2654435761u;
    z = (z ^ z >> 15) * 2246822519u;
    z ^= z >> 13;
    return (float)(int)(z >> 8) / (float)(1 << 23) - 1;
}

static std::vector<float> numbers(size_t count, unsigned seed) {
    std::vector<float> all(count);
    for (size_t i = 0; i < count; i++) all[i] = uniform(seed * 1000003u + (unsigned)i);
    return all;
}

// A stream of the current device, and memory that goes with it.
struct Workbench {
    cudaStream_t stream = nullptr;
    std::vector<void *> blocks;

    Workbench() { GOOD(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking)); }
    ~Workbench() {
        for (void *block : blocks) GOOD(cudaFree(block));
        GOOD(cudaStreamDestroy(stream));
    }
    template <class T> T *memory(size_t count) {
        void *p = nullptr;
        GOOD(cudaMalloc(&p, count * sizeof(T)));
        blocks.push_back(p);
        return (T *)p;
    }
    template <class T> T *put(const std::vector<T> &from) {
        T *p = memory<T>(from.size());
        GOOD(cudaMemcpyAsync(p, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice,
                             stream));
        return p;
    }
    template <class T> std::vector<T> get(const T *p, size_t count) {
        std::vector<T> to(count);
        GOOD(cudaMemcpyAsync(to.data(), p, count * sizeof(T), cudaMemcpyDeviceToHost, stream));
        GOOD(cudaStreamSynchronize(stream));
        return to;
    }
};

// >>kernels

__global__ void add(float *y, const float *x, float factor, int count) {
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < count) y[i] += factor * x[i];
}

__global__ void increment(float *y, int count) {
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < count) y[i] += 1;
}

template <class T, int N>
static __global__ void __launch_bounds__(N) block_sums(T *y, const T *__restrict__ x) {
    __shared__ T tile[N];
    int t = (int)threadIdx.x;
    tile[t] = __ldg(x + blockIdx.x * N + t);
    __syncthreads();
    for (int half = N / 2; half; half /= 2) {
        if (t < half) tile[t] += tile[t + half];
        __syncthreads();
    }
    if (t == 0) y[blockIdx.x] = tile[0];
}

static __global__ void reverse(int *y, int count) {
    DYNAMIC_SHARED(int, tile);
    int t = (int)threadIdx.x;
    tile[t] = y[t];
    __syncthreads();
    if (t < count) y[t] = tile[count - 1 - t];
}

__device__ static __forceinline__ float warp_sum(float value) {
    for (int by = 16; by; by /= 2) value += __shfl_xor_sync(0xffffffffu, value, by);
    return value;
}

static __global__ void warp_calls(float *sums, unsigned *votes, int *moved) {
    int t = (int)threadIdx.x, lane = t % 32;
    sums[t] = warp_sum((float)t);
    votes[t] = __ballot_sync(0xffffffffu, lane % 3 == 0);
    int flags = __any_sync(0xffffffffu, lane == 31) + 2 * __all_sync(0xffffffffu, lane < 31);
    moved[t] = __shfl_up_sync(0xffffffffu, t, 1) + 1000 * __shfl_down_sync(0xffffffffu, t, 2) +
               1000000 * __shfl_sync(0xffffffffu, lane, 5) + 100000000 * flags;
    if (lane < 8) sums[t] += __shfl_xor_sync(0x000000ffu, 1.0f, 4);
    __syncwarp();
}

// Threads that have returned are not waited for.
static __global__ void some_return(int *y) {
    int t = (int)threadIdx.x;
    if (t % 2) return;
    int votes = __syncthreads_count(t < 10);
    y[t] = __any_sync(0xffffffffu, 1) ? votes : -1;
}

struct Batch {
    const float *x;
    float *y;
    int count;
};
template <class Visit> void cudahost_pointers(const Batch &batch, Visit &visit) {
    visit(batch.x);
    visit(batch.y);
}
static __global__ void copy_batch(Batch batch, dim3 shape) {
    unsigned i = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    i += blockDim.x * blockDim.y * blockDim.z * (blockIdx.x + gridDim.x * blockIdx.y);
    if ((int)i < batch.count && shape.x == blockDim.x) batch.y[i] = batch.x[i];
}

// The block that comes last adds up what the others left.
static __global__ void last_block(float *partial, unsigned *arrived, float *total, int *largest) {
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = (float)(blockIdx.x + 1);
        atomicMax(largest, (int)blockIdx.x);
        __threadfence();
        if (atomicAdd(arrived, 1u) == gridDim.x - 1) {
            __threadfence();
            float sum = 0;
            for (unsigned i = 0; i < gridDim.x; i++) sum += partial[i];
            *total = sum;
        }
    }
    atomicAdd(total + 1, 0.5f);
}

// Each block reads what the others wrote in the step before.
static __global__ void grid_steps(float *a, float *b, int count, int steps, int skip) {
    for (int step = 0; step < steps; step++) {
        const float *from = step & 1 ? b : a;
        float *to = step & 1 ? a : b;
        for (int i = (int)(blockIdx.x * blockDim.x + threadIdx.x); i < count;
             i += (int)(gridDim.x * blockDim.x))
            to[count - 1 - i] = from[i] + 1;
        if (!skip) cooperative_groups::this_grid().sync();
    }
}

static __global__ void arithmetic(float *y) {
    float4 v = make_float4(1, 2, 3, 4);
    y[0] = rsqrtf(v.w) + __expf(0.0f) + fmaxf(v.x, v.y) + min(v.y, v.z) + (float)max(3, 7);
    y[1] = __fmaf_rn(v.x, v.y, v.z) + erff(0.0f) + tanhf(0.0f) + logf(1.0f) + __logf(1.0f);
    y[2] = __int_as_float(__float_as_int(v.w)) + (float)__popc(255u) + (float)warpSize;
}

static __global__ void to_bf16(__nv_bfloat16 *y, __nv_bfloat162 *pairs, const float *x, int n) {
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) y[i] = __float2bfloat16(x[i]);
    if (2 * i < n) pairs[i] = __floats2bfloat162_rn(x[2 * i], x[2 * i + 1]);
}

// >>runtime

static void test_errors() {
    GIVES(cudaSetDevice(99), cudaErrorInvalidDevice);
    GIVES(cudaPeekAtLastError(), cudaErrorInvalidDevice);
    GIVES(cudaGetLastError(), cudaErrorInvalidDevice);
    GIVES(cudaGetLastError(), cudaSuccess);
    CHECK(!strcmp(cudaGetErrorName(cudaErrorIllegalAddress), "cudaErrorIllegalAddress"), "name");
    CHECK(strlen(cudaGetErrorString(cudaErrorMemoryAllocation)) > 5, "text");
    SAY("errors have names, texts and a memory");
}

static void test_devices() {
    int count = 0, version = 0, value = 0, here = -1;
    cudaDeviceProp properties;
    GOOD(cudaGetDeviceCount(&count));
    GOOD(cudaDriverGetVersion(&version));
    GOOD(cudaRuntimeGetVersion(&version));
    CHECK(version >= 12000, "version %d", version);
    for (int i = 0; i < count; i++) {
        GOOD(cudaSetDevice(i));
        GOOD(cudaGetDevice(&here));
        GOOD(cudaGetDeviceProperties(&properties, i));
        GOOD(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, i));
        CHECK(here == i && value == properties.multiProcessorCount, "device %d", i);
    }
    GOOD(cudaSetDevice(0));
    GOOD(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&value, increment, 256, 0));
    CHECK(value >= 1 && value <= 32, "%d blocks", value);
    SAY("%d devices, their properties, occupancy", count);
}

static void test_memory() {
    float *p = nullptr, *pinned = nullptr;
    size_t before = 0, after = 0, total = 0;
    cudaPointerAttributes attributes;
    Workbench bench;
    GOOD(cudaMemGetInfo(&before, &total));
    GOOD(cudaMalloc(&p, 1000 * sizeof(float)));
    GOOD(cudaMemGetInfo(&after, &total));
    CHECK(before >= after + 4000, "%zu then %zu", before, after);
    for (float x : bench.get(p, 1000)) CHECK(x != x, "fresh memory reads as %g", x);
    GOOD(cudaPointerGetAttributes(&attributes, p + 3));
    CHECK(attributes.type == cudaMemoryTypeDevice && attributes.device == 0, "device memory");
    GOOD(cudaMallocHost(&pinned, 64));
    GOOD(cudaPointerGetAttributes(&attributes, pinned));
    CHECK(attributes.type == cudaMemoryTypeHost, "pinned memory");
    GOOD(cudaPointerGetAttributes(&attributes, &total));
    CHECK(attributes.type == cudaMemoryTypeUnregistered, "other memory");
    GOOD(cudaFree(p));
    GIVES(cudaFree(p), cudaErrorInvalidValue);
    GOOD(cudaFree(nullptr));
    GOOD(cudaFreeHost(pinned));
    GIVES(cudaMalloc(&p, (size_t)1 << 50), cudaErrorMemoryAllocation);
    (void)cudaGetLastError();
    SAY("memory: NaN when fresh, attributes, double free, too much");
}

static void test_copies() {
    Workbench bench;
    std::vector<float> x = numbers(600, 1), sent = x;
    float *a = bench.memory<float>(600), *b = bench.memory<float>(600);
    size_t row = 20 * sizeof(float);
    GOOD(cudaMemcpyAsync(a, sent.data(), 2400, cudaMemcpyHostToDevice, bench.stream));
    memset(sent.data(), 0, 2400); // pageable memory was read by the call
    GOOD(cudaMemsetAsync(b, 0, 2400, bench.stream));
    GOOD(cudaMemcpy2DAsync(b, 2 * row, a, 3 * row, row, 10, cudaMemcpyDeviceToDevice,
                           bench.stream));
    GOOD(cudaMemset2DAsync(a, row, 0, row / 2, 30, bench.stream));
    std::vector<float> y = bench.get(b, 600), z = bench.get(a, 600);
    for (size_t i = 0; i < 400; i++) {
        float wanted = i % 40 < 20 ? x[i / 40 * 60 + i % 40] : 0;
        CHECK(y[i] == wanted, "element %zu: %g", i, y[i]);
    }
    for (size_t i = 0; i < 600; i++) CHECK(z[i] == (i % 20 < 10 ? 0 : x[i]), "element %zu", i);
    GIVES(cudaMemcpyAsync(a, x.data(), 4, cudaMemcpyDeviceToDevice, bench.stream),
          cudaErrorInvalidValue);
    GIVES(cudaMemcpyAsync(a, x.data(), 2404, cudaMemcpyHostToDevice, bench.stream),
          cudaErrorInvalidValue);
    GIVES(cudaMemcpy2DAsync(a, 4, b, 8, 8, 2, cudaMemcpyDefault, bench.stream),
          cudaErrorInvalidPitchValue);
    (void)cudaGetLastError();
    SAY("copies: flat, 2D, fills; pageable memory is staged; wrong kinds and sizes are refused");
}

static void test_peers() {
    int can = 0;
    float *there = nullptr;
    std::vector<float> x = numbers(100, 2);
    Workbench bench;
    float *here = bench.put(x);
    GOOD(cudaDeviceCanAccessPeer(&can, 0, 1));
    CHECK(can == 1, "no access");
    GOOD(cudaSetDevice(1));
    GOOD(cudaMalloc(&there, 400));
    GOOD(cudaSetDevice(0));
    GOOD(cudaMemcpyPeerAsync(there, 1, here, 0, 400, bench.stream));
    GIVES(cudaMemcpyPeerAsync(there, 0, here, 1, 400, bench.stream), cudaErrorInvalidValue);
    CHECK(bench.get(there, 100) == x, "the copy differs");
    GOOD(cudaDeviceEnablePeerAccess(1, 0));
    GIVES(cudaDeviceEnablePeerAccess(1, 0), cudaErrorPeerAccessAlreadyEnabled);
    GOOD(LAUNCH(increment, 1, 128, 0, bench.stream, there, 100));
    CHECK(bench.get(there, 100)[7] == x[7] + 1, "a kernel on memory of a peer");
    GOOD(cudaDeviceDisablePeerAccess(1));
    GOOD(cudaFree(there));
    (void)cudaGetLastError();
    SAY("peers: copies, and kernels once access is enabled");
}

static void test_kernels() {
    Workbench bench;
    std::vector<float> x = numbers(2560, 3), y = numbers(2560, 4);
    float *dx = bench.put(x), *dy = bench.put(y), *sums = bench.memory<float>(10);
    int *order = bench.memory<int>(64), limit = 0;
    GOOD(LAUNCH(add, 10, 256, 0, bench.stream, dy, dx, 2, 2500));
    GOOD(LAUNCH((block_sums<float, 256>), 10, 256, 0, bench.stream, sums, dx));
    std::vector<float> z = bench.get(dy, 2560), s = bench.get(sums, 10);
    for (size_t i = 0; i < 2560; i++)
        CHECK(z[i] == (i < 2500 ? y[i] + 2 * x[i] : y[i]), "element %zu", i);
    for (size_t i = 0; i < 10; i++) {
        double sum = 0;
        for (size_t t = 0; t < 256; t++) sum += x[i * 256 + t];
        CHECK(fabs(s[i] - sum) <= 1e-4, "block %zu: %g, not %g", i, s[i], sum);
    }
    std::vector<int> ascending(64);
    for (int i = 0; i < 64; i++) ascending[(size_t)i] = i;
    GOOD(cudaMemcpyAsync(order, ascending.data(), 256, cudaMemcpyHostToDevice, bench.stream));
    GIVES(LAUNCH(reverse, 1, 64, 60000, bench.stream, order, 64), cudaErrorInvalidValue);
    GOOD(cudaFuncSetAttribute(reverse, cudaFuncAttributeMaxDynamicSharedMemorySize, 60000));
    GOOD(LAUNCH(reverse, 1, 64, 60000, bench.stream, order, 64));
    CHECK(bench.get(order, 64)[0] == 63, "dynamic shared memory");
    cudaFuncAttributes attributes;
    GOOD(cudaFuncGetAttributes(&attributes, reverse));
    limit = attributes.maxDynamicSharedSizeBytes;
    CHECK(limit == 60000, "limit %d", limit);
    GIVES(LAUNCH(increment, 1, 2048, 0, bench.stream, dy, 1), cudaErrorInvalidConfiguration);
    GIVES(LAUNCH(increment, 0, 32, 0, bench.stream, dy, 1), cudaErrorInvalidConfiguration);
    GOOD(LAUNCH(increment, 1, 32, 0, bench.stream, NULL, 0));
    (void)cudaGetLastError();
    SAY("kernels: templates, shared memory of both kinds, limits");
}

static void test_arguments() {
    Workbench bench;
    std::vector<float> x = numbers(96, 5);
    Batch batch = {bench.put(x), bench.memory<float>(96), 96};
    GOOD(LAUNCH(copy_batch, dim3(2, 2), dim3(4, 3, 2), 0, bench.stream, batch, dim3(4, 3, 2)));
    CHECK(bench.get(batch.y, 96) == x, "the copy differs");
    float *y = bench.memory<float>(3);
    GOOD(LAUNCH(arithmetic, 1, 1, 0, bench.stream, y));
    std::vector<float> z = bench.get(y, 3);
    CHECK(z[0] == 12.5f && z[1] == 5 && z[2] == 44, "%g %g %g", z[0], z[1], z[2]);
    SAY("arguments: structs by value, three dimensions, arithmetic");
}

static void test_warps() {
    Workbench bench;
    float *sums = bench.memory<float>(64);
    unsigned *votes = bench.memory<unsigned>(64);
    int *moved = bench.memory<int>(64), *counts = bench.memory<int>(48);
    GOOD(LAUNCH(warp_calls, 1, 64, 0, bench.stream, sums, votes, moved));
    GOOD(cudaMemsetAsync(counts, 0, 48 * sizeof(int), bench.stream));
    GOOD(LAUNCH(some_return, 1, 48, 0, bench.stream, counts));
    std::vector<float> s = bench.get(sums, 64);
    std::vector<unsigned> v = bench.get(votes, 64);
    std::vector<int> m = bench.get(moved, 64), c = bench.get(counts, 48);
    for (int t = 0; t < 64; t++) {
        int lane = t % 32, up = lane ? t - 1 : t, down = lane < 30 ? t + 2 : t;
        float sum = (t < 32 ? 496 : 1520) + (lane < 8 ? 1.0f : 0);
        CHECK(s[(size_t)t] == sum, "thread %d: sum %g", t, s[(size_t)t]);
        CHECK(v[(size_t)t] == 0x49249249u, "thread %d: votes %x", t, v[(size_t)t]);
        CHECK(m[(size_t)t] == up + 1000 * down + 5000000 + 100000000, "thread %d: %d", t,
              m[(size_t)t]);
    }
    for (int t = 0; t < 48; t++)
        CHECK(c[(size_t)t] == (t % 2 ? 0 : 5), "thread %d: %d votes", t, c[(size_t)t]);
    SAY("warps: shuffles, votes, parts of a warp, threads that have returned");
}

static void test_atomics() {
    Workbench bench;
    float *partial = bench.memory<float>(20), *total = bench.memory<float>(2);
    unsigned *arrived = bench.memory<unsigned>(1);
    int *largest = bench.memory<int>(1);
    GOOD(cudaMemsetAsync(total, 0, 8, bench.stream));
    GOOD(cudaMemsetAsync(arrived, 0, 4, bench.stream));
    GOOD(cudaMemsetAsync(largest, 0, 4, bench.stream));
    GOOD(LAUNCH(last_block, 20, 32, 0, bench.stream, partial, arrived, total, largest));
    std::vector<float> sums = bench.get(total, 2);
    CHECK(sums[0] == 210 && sums[1] == 320, "%g %g", sums[0], sums[1]);
    CHECK(bench.get(largest, 1)[0] == 19, "atomicMax");
    SAY("atomics, and the last block that sees what all wrote");
}

static std::vector<float> steps_by_hand(std::vector<float> x, int steps) {
    for (int step = 0; step < steps; step++) {
        std::vector<float> y(x.size());
        for (size_t i = 0; i < x.size(); i++) y[x.size() - 1 - i] = x[i] + 1;
        x = y;
    }
    return x;
}

static void test_grids() {
    Workbench bench;
    std::vector<float> x = numbers(512, 6);
    float *a = bench.put(x), *b = bench.memory<float>(512);
    int count = 512, steps = 4, skip = 0;
    GOOD(LAUNCH_TOGETHER(grid_steps, 4, 64, 0, bench.stream, a, b, count, steps, skip));
    CHECK(bench.get(a, 512) == steps_by_hand(x, 4), "launched by macro");
    void *list[] = {&a, &b, &count, &steps, &skip};
    GOOD(cudaLaunchCooperativeKernel(grid_steps, dim3(3), dim3(32), list, 0, bench.stream));
    CHECK(bench.get(a, 512) == steps_by_hand(x, 8), "launched by list");
    GIVES(LAUNCH_TOGETHER(grid_steps, 1000, 1024, 0, bench.stream, a, b, count, steps, skip),
          cudaErrorCooperativeLaunchTooLarge);
    (void)cudaGetLastError();
    SAY("grids: barriers between blocks; as many as fit");
}

// >>order

static void test_events() {
    Workbench first, second;
    cudaEvent_t begin = nullptr, done = nullptr, fresh = nullptr;
    float *y = first.memory<float>(100), ms = -1;
    GOOD(cudaEventCreate(&begin));
    GOOD(cudaEventCreate(&done));
    GOOD(cudaEventCreateWithFlags(&fresh, cudaEventDisableTiming));
    GOOD(cudaEventQuery(fresh));
    GOOD(cudaStreamWaitEvent(first.stream, fresh, 0)); // never recorded: no wait
    GOOD(cudaEventRecord(begin, first.stream));
    GOOD(cudaMemsetAsync(y, 0, 400, first.stream));
    for (int turn = 0; turn < 20; turn++) {
        cudaStream_t here = turn % 2 ? second.stream : first.stream;
        cudaStream_t next = turn % 2 ? first.stream : second.stream;
        GOOD(LAUNCH(increment, 1, 128, 0, here, y, 100));
        GOOD(cudaEventRecord(done, here));
        GOOD(cudaStreamWaitEvent(next, done, 0));
    }
    GOOD(cudaEventRecord(done, first.stream));
    GOOD(cudaEventSynchronize(done));
    GOOD(cudaEventElapsedTime(&ms, begin, done));
    CHECK(ms >= 0, "%g ms", ms);
    CHECK(first.get(y, 100)[99] == 20, "lost increments");
    GIVES(cudaEventElapsedTime(&ms, begin, fresh), cudaErrorInvalidResourceHandle);
    GOOD(cudaStreamQuery(first.stream));
    GOOD(cudaSetDevice(1));
    cudaEvent_t other = nullptr;
    GOOD(cudaEventCreate(&other));
    GIVES(cudaEventRecord(other, first.stream), cudaErrorInvalidResourceHandle);
    GOOD(cudaSetDevice(0));
    for (cudaEvent_t event : {begin, done, fresh, other}) GOOD(cudaEventDestroy(event));
    (void)cudaGetLastError();
    SAY("events order two streams, and measure time");
}

// y = 0; then y += x in one stream beside z = 0 in another; then y += x.
static void capture_fork(Workbench &one, Workbench &two, cudaEvent_t fork, cudaEvent_t join,
                         float *y, float *z, const float *x) {
    GOOD(cudaStreamBeginCapture(one.stream, cudaStreamCaptureModeThreadLocal));
    GOOD(cudaMemsetAsync(y, 0, 400, one.stream));
    GOOD(cudaEventRecord(fork, one.stream));
    GOOD(cudaStreamWaitEvent(two.stream, fork, 0));
    GOOD(LAUNCH(add, 1, 128, 0, one.stream, y, x, 1, 100));
    GOOD(cudaMemsetAsync(z, 0, 400, two.stream));
    GOOD(cudaEventRecord(join, two.stream));
    GOOD(cudaStreamWaitEvent(one.stream, join, 0));
    GOOD(LAUNCH(add, 1, 128, 0, one.stream, y, x, 1, 100));
}

static void test_graphs() {
    Workbench one, two;
    cudaEvent_t fork = nullptr, join = nullptr;
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    cudaStreamCaptureStatus status;
    float *pinned = nullptr, *x = one.memory<float>(100), *y = one.memory<float>(100);
    float *z = one.memory<float>(100);
    size_t nodes = 0;
    GOOD(cudaEventCreateWithFlags(&fork, cudaEventDisableTiming));
    GOOD(cudaEventCreateWithFlags(&join, cudaEventDisableTiming));
    GOOD(cudaHostAlloc(&pinned, 400, cudaHostAllocDefault));
    capture_fork(one, two, fork, join, y, z, x);
    GOOD(cudaStreamIsCapturing(two.stream, &status));
    CHECK(status == cudaStreamCaptureStatusActive, "the fork is not captured");
    GOOD(cudaMemcpyAsync(x, pinned, 400, cudaMemcpyHostToDevice, one.stream));
    GOOD(cudaStreamEndCapture(one.stream, &graph));
    GOOD(cudaGraphGetNodes(graph, nullptr, &nodes));
    CHECK(nodes == 5, "%zu nodes", nodes);
    GOOD(cudaGraphInstantiate(&exec, graph, 0));
    GOOD(cudaGraphDestroy(graph));
    GOOD(cudaGraphUpload(exec, one.stream));
    for (int i = 0; i < 100; i++) pinned[i] = (float)i; // read when the graph runs
    for (int turn = 0; turn < 3; turn++) GOOD(cudaGraphLaunch(exec, one.stream));
    GOOD(cudaGraphExecDestroy(exec)); // may be asked for while it runs
    CHECK(one.get(y, 100)[7] == 14 && one.get(z, 100)[7] == 0, "%g", one.get(y, 100)[7]);
    GOOD(cudaEventDestroy(fork));
    GOOD(cudaEventDestroy(join));
    GOOD(cudaFreeHost(pinned));
    SAY("graphs: fork and join, replay reads pinned memory anew");
}

static void test_capture_errors() {
    Workbench one, two;
    cudaEvent_t event = nullptr;
    cudaGraph_t graph = nullptr;
    float *y = one.memory<float>(100), *p = nullptr;
    GOOD(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    GOOD(cudaStreamBeginCapture(one.stream, cudaStreamCaptureModeThreadLocal));
    GIVES(cudaStreamSynchronize(one.stream), cudaErrorStreamCaptureUnsupported);
    GIVES(cudaStreamEndCapture(one.stream, &graph), cudaErrorStreamCaptureInvalidated);
    GOOD(cudaStreamBeginCapture(one.stream, cudaStreamCaptureModeGlobal));
    GIVES(cudaMalloc(&p, 64), cudaErrorStreamCaptureUnsupported);
    GIVES(cudaStreamEndCapture(one.stream, &graph), cudaErrorStreamCaptureInvalidated);
    CHECK(graph == nullptr, "a graph all the same");
    GOOD(cudaStreamBeginCapture(one.stream, cudaStreamCaptureModeRelaxed));
    GOOD(cudaMalloc(&p, 64));
    GOOD(cudaEventRecord(event, one.stream));
    GOOD(cudaStreamWaitEvent(two.stream, event, 0));
    GOOD(LAUNCH(increment, 1, 128, 0, two.stream, y, 100));
    GIVES(cudaStreamEndCapture(one.stream, &graph), cudaErrorStreamCaptureUnjoined);
    GIVES(cudaEventSynchronize(event), cudaErrorCapturedEvent);
    GOOD(cudaEventRecord(event, two.stream));
    GOOD(cudaStreamBeginCapture(one.stream, cudaStreamCaptureModeThreadLocal));
    GIVES(cudaStreamWaitEvent(one.stream, event, 0), cudaErrorStreamCaptureIsolation);
    GIVES(cudaStreamEndCapture(one.stream, &graph), cudaErrorStreamCaptureInvalidated);
    GIVES(cudaStreamEndCapture(one.stream, &graph), cudaErrorStreamCaptureUnmatched);
    GOOD(cudaStreamBeginCapture(one.stream, cudaStreamCaptureModeThreadLocal));
    std::thread elsewhere([&] {
        GIVES(cudaStreamEndCapture(one.stream, &graph), cudaErrorStreamCaptureWrongThread);
    });
    elsewhere.join();
    GOOD(cudaStreamEndCapture(one.stream, &graph));
    GOOD(cudaGraphDestroy(graph));
    GOOD(cudaFree(p));
    GOOD(cudaEventDestroy(event));
    (void)cudaGetLastError();
    SAY("captures: waiting, allocating, loose ends and strange threads are errors");
}

static void test_external_events() {
    Workbench one, two;
    cudaEvent_t event = nullptr;
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    float *y = one.memory<float>(100);
    GOOD(cudaMemsetAsync(y, 0, 400, one.stream));
    GOOD(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    GOOD(cudaStreamBeginCapture(one.stream, cudaStreamCaptureModeThreadLocal));
    GOOD(LAUNCH(increment, 1, 128, 0, one.stream, y, 100));
    GOOD(cudaEventRecordWithFlags(event, one.stream, cudaEventRecordExternal));
    GOOD(cudaStreamEndCapture(one.stream, &graph));
    GOOD(cudaGraphInstantiate(&exec, graph, 0));
    for (int turn = 1; turn < 4; turn++) {
        GOOD(cudaGraphLaunch(exec, one.stream));
        GOOD(cudaStreamWaitEvent(two.stream, event, 0));
        CHECK(two.get(y, 100)[50] == (float)turn, "turn %d", turn);
    }
    GOOD(cudaGraphExecDestroy(exec));
    GOOD(cudaGraphDestroy(graph));
    GOOD(cudaEventDestroy(event));
    SAY("external events tell other streams of what a graph did");
}

// >>products

static void test_bf16() {
    Workbench bench;
    std::vector<float> x = {1.0f, 1.00390625f, 1.01171875f, -1.0039064f, 3e38f, 1e-40f, 0.1f,
                            -0.0f};
    unsigned short wanted[] = {0x3f80, 0x3f80, 0x3f82, 0xbf81, 0x7f62, 0x0001, 0x3dcd, 0x8000};
    __nv_bfloat16 *y = bench.memory<__nv_bfloat16>(8);
    __nv_bfloat162 *pairs = bench.memory<__nv_bfloat162>(4);
    GOOD(LAUNCH(to_bf16, 1, 32, 0, bench.stream, y, pairs, bench.put(x), 8));
    std::vector<__nv_bfloat16> z = bench.get(y, 8);
    std::vector<__nv_bfloat162> w = bench.get(pairs, 4);
    for (size_t i = 0; i < 8; i++) {
        unsigned short bits = __bfloat16_as_ushort(z[i]);
        unsigned short half = __bfloat16_as_ushort(i % 2 ? w[i / 2].y : w[i / 2].x);
        CHECK(bits == wanted[i] && half == bits, "%g gives %04x", x[i], bits);
    }
    for (unsigned bits = 0; bits < 65536; bits++) {
        float value = __bfloat162float(__ushort_as_bfloat16((unsigned short)bits));
        if (value == value)
            CHECK(__bfloat16_as_ushort(__float2bfloat16(value)) == bits, "%04x", bits);
    }
    SAY("bf16: ties to even, and back for all 65,536");
}

struct Shape {
    int m, n, k;
};

// The product in double; i, j and p as in D[i][j] = sum over p of A[i][p] B[p][j].
static double exact(const std::vector<float> &a, const std::vector<float> &b, Shape s, bool ta,
                    bool tb, int i, int j) {
    double sum = 0;
    for (int p = 0; p < s.k; p++)
        sum += (double)a[(size_t)(ta ? i * s.k + p : p * s.m + i)] *
               b[(size_t)(tb ? p * s.n + j : j * s.k + p)];
    return sum;
}

static void check_sgemm(Workbench &bench, cublasHandle_t handle, Shape s, bool ta, bool tb) {
    std::vector<float> a = numbers((size_t)(s.m * s.k), 7), b = numbers((size_t)(s.k * s.n), 8);
    std::vector<float> c = numbers((size_t)(s.m * s.n), 9);
    float alpha = 0.5f, beta = 2;
    float *dc = bench.put(c);
    GOOD(cublasSgemm(handle, ta ? CUBLAS_OP_T : CUBLAS_OP_N, tb ? CUBLAS_OP_T : CUBLAS_OP_N, s.m,
                     s.n, s.k, &alpha, bench.put(a), ta ? s.k : s.m, bench.put(b),
                     tb ? s.n : s.k, &beta, dc, s.m));
    std::vector<float> d = bench.get(dc, c.size());
    for (int j = 0; j < s.n; j++)
        for (int i = 0; i < s.m; i++) {
            size_t at = (size_t)(j * s.m + i);
            double wanted = alpha * exact(a, b, s, ta, tb, i, j) + beta * (double)c[at];
            CHECK(fabs(d[at] - wanted) <= 1e-5 * s.k, "%d %d: %g, not %g", i, j, d[at], wanted);
        }
}

static void test_cublas() {
    Workbench bench;
    cublasHandle_t handle = nullptr;
    float one = 1, zero = 0;
    Shape shapes[] = {{1, 1, 1}, {7, 5, 3}, {33, 10, 65}, {64, 17, 40}};
    GOOD(cublasCreate(&handle));
    std::vector<float> x = numbers(64 * 64, 10);
    float *a = bench.put(x), *c = bench.memory<float>(64 * 64);
    CHECK(cublasSgemm(handle, CUBLAS_OP_N, CUBLAS_OP_N, 64, 64, 64, &one, a, 64, a, 64, &zero, c,
                      64) != CUBLAS_STATUS_SUCCESS, "worked without a stream");
    GOOD(cublasSetStream(handle, bench.stream));
    GOOD(cublasSetWorkspace(handle, bench.memory<char>(1 << 16), 1 << 16));
    for (const Shape &shape : shapes)
        for (int ops = 0; ops < 4; ops++) check_sgemm(bench, handle, shape, ops & 1, ops & 2);
    GOOD(cublasSgemm(handle, CUBLAS_OP_N, CUBLAS_OP_N, 64, 64, 64, &one, a, 64, a, 64, &zero, c,
                     64));
    std::vector<float> whole = bench.get(c, 64 * 64);
    GOOD(cublasSgemm(handle, CUBLAS_OP_N, CUBLAS_OP_N, 33, 5, 64, &one, a, 64, a, 64, &zero, c,
                     64));
    std::vector<float> part = bench.get(c, 64 * 64);
    CHECK(whole == part, "a product's bits depend on its size"); // the rest is as before
    GOOD(cublasSetMathMode(handle, CUBLAS_TF32_TENSOR_OP_MATH));
    GOOD(cublasSgemm(handle, CUBLAS_OP_N, CUBLAS_OP_N, 64, 64, 64, &one, a, 64, a, 64, &zero, c,
                     64));
    double difference = 0;
    part = bench.get(c, 64 * 64);
    for (size_t i = 0; i < part.size(); i++)
        difference = fmax(difference, fabs((double)part[i] - whole[i]));
    CHECK(difference > 1e-5 && difference < 1e-2, "TF32 differs by %g", difference);
    CHECK(cublasSgemm(handle, CUBLAS_OP_N, CUBLAS_OP_N, 64, 64, 64, &one, a, 63, a, 64, &zero, c,
                      64) == CUBLAS_STATUS_INVALID_VALUE, "leading dimension");
    GOOD(cublasDestroy(handle));
    SAY("cuBLAS: all transposes against double; TF32; an element's bits depend on k alone");
}

// A product with an epilogue: descriptors, algorithm and memory.
struct LtPlan {
    cublasLtMatmulDesc_t desc = nullptr;
    cublasLtMatrixLayout_t a = nullptr, b = nullptr, d = nullptr;
    cublasLtMatmulPreference_t preference = nullptr;
    cublasLtMatmulHeuristicResult_t result = {};
    int found = 0;
    ~LtPlan() {
        if (preference) GOOD(cublasLtMatmulPreferenceDestroy(preference));
        for (cublasLtMatrixLayout_t layout : {a, b, d})
            if (layout) GOOD(cublasLtMatrixLayoutDestroy(layout));
        if (desc) GOOD(cublasLtMatmulDescDestroy(desc));
    }
};

template <class T>
static void set(LtPlan &plan, cublasLtMatmulDescAttributes_t which, T value) {
    GOOD(cublasLtMatmulDescSetAttribute(plan.desc, which, &value, sizeof value));
}

static void plan_layouts(LtPlan &plan, Shape s, bool ta, bool tb, cudaDataType_t in,
                         cudaDataType_t out, cublasComputeType_t compute) {
    size_t m = (size_t)s.m, n = (size_t)s.n, k = (size_t)s.k;
    GOOD(cublasLtMatmulDescCreate(&plan.desc, compute, CUDA_R_32F));
    set(plan, CUBLASLT_MATMUL_DESC_TRANSA, ta ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(plan, CUBLASLT_MATMUL_DESC_TRANSB, tb ? CUBLAS_OP_T : CUBLAS_OP_N);
    GOOD(cublasLtMatrixLayoutCreate(&plan.a, in, ta ? k : m, ta ? m : k, ta ? s.k : s.m));
    GOOD(cublasLtMatrixLayoutCreate(&plan.b, in, tb ? n : k, tb ? k : n, tb ? s.n : s.k));
    GOOD(cublasLtMatrixLayoutCreate(&plan.d, out, m, n, s.m));
    GOOD(cublasLtMatmulPreferenceCreate(&plan.preference));
}

static void plan_epilogue(LtPlan &plan, cublasLtEpilogue_t epilogue, void *bias, void *aux,
                          int64_t aux_ld) {
    set(plan, CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
    if (bias) set(plan, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
    if (aux) set(plan, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, aux);
    if (aux) set(plan, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, aux_ld);
}

static cublasStatus_t choose(cublasLtHandle_t handle, LtPlan &plan, size_t workspace,
                             uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_NONE) {
    GOOD(cublasLtMatmulPreferenceSetAttribute(plan.preference,
                                              CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                              &workspace, sizeof workspace));
    GOOD(cublasLtMatmulPreferenceSetAttribute(plan.preference,
                                              CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                              &reduction, sizeof reduction));
    return cublasLtMatmulAlgoGetHeuristic(handle, plan.desc, plan.a, plan.b, plan.d, plan.d,
                                          plan.preference, 1, &plan.result, &plan.found);
}

static cublasStatus_t multiply(cublasLtHandle_t handle, LtPlan &plan, const void *a, const void *b,
                               void *d, void *workspace, size_t bytes, cudaStream_t stream) {
    float one = 1, zero = 0;
    return cublasLtMatmul(handle, plan.desc, &one, a, plan.a, b, plan.b, &zero, d, plan.d, d,
                          plan.d, &plan.result.algo, workspace, bytes, stream);
}

// One layer of a network: y = relu(W x + b), then dx and db of the layer below, and dW's bias.
static void test_lt_epilogues() {
    Workbench bench;
    cublasLtHandle_t handle = nullptr;
    Shape s = {48, 20, 32};
    std::vector<float> w = numbers(48 * 32, 11), x = numbers(32 * 20, 12), bias = numbers(48, 13);
    float *dw = bench.put(w), *dx = bench.put(x), *dbias = bench.put(bias);
    float *y = bench.memory<float>(48 * 20), *sums = bench.memory<float>(48);
    void *mask = bench.memory<char>(128 / 8 * 20), *workspace = bench.memory<char>(1 << 20);
    GOOD(cublasLtCreate(&handle));
    LtPlan forward, backward, sum_a, sum_b;
    plan_layouts(forward, s, true, false, CUDA_R_32F, CUDA_R_32F, CUBLAS_COMPUTE_32F);
    plan_epilogue(forward, CUBLASLT_EPILOGUE_RELU_AUX_BIAS, dbias, mask, 128);
    GOOD(choose(handle, forward, 1 << 20));
    GOOD(multiply(handle, forward, dw, dx, y, workspace, 1 << 20, bench.stream));
    std::vector<float> z = bench.get(y, 48 * 20);
    std::vector<double> before(48 * 20);
    for (int j = 0; j < 20; j++)
        for (int i = 0; i < 48; i++) {
            size_t at = (size_t)(j * 48 + i);
            before[at] = exact(w, x, s, true, false, i, j) + (double)bias[(size_t)i];
            CHECK(fabs(z[at] - fmax(before[at], 0)) <= 1e-4, "%d %d: %g", i, j, z[at]);
        }
    plan_layouts(backward, s, true, false, CUDA_R_32F, CUDA_R_32F, CUBLAS_COMPUTE_32F);
    plan_epilogue(backward, CUBLASLT_EPILOGUE_DRELU_BGRAD, sums, mask, 128);
    GOOD(choose(handle, backward, 0));
    GOOD(multiply(handle, backward, dw, dx, y, nullptr, 0, bench.stream));
    z = bench.get(y, 48 * 20);
    std::vector<float> total = bench.get(sums, 48);
    for (int i = 0; i < 48; i++) {
        double sum = 0;
        for (int j = 0; j < 20; j++) {
            size_t at = (size_t)(j * 48 + i);
            double wanted = before[at] > 0 ? before[at] - (double)bias[(size_t)i] : 0;
            if (fabs(before[at]) > 1e-3) CHECK(fabs(z[at] - wanted) <= 1e-4, "%d %d", i, j);
            sum += z[at];
        }
        CHECK(fabs(total[(size_t)i] - sum) <= 1e-4, "row %d: %g, not %g", i, total[(size_t)i], sum);
    }
    plan_layouts(sum_a, s, true, false, CUDA_R_32F, CUDA_R_32F, CUBLAS_COMPUTE_32F);
    plan_epilogue(sum_a, CUBLASLT_EPILOGUE_BGRADA, sums, nullptr, 0);
    GOOD(choose(handle, sum_a, 0));
    GOOD(multiply(handle, sum_a, dw, dx, y, nullptr, 0, bench.stream));
    double first = 0;
    for (int p = 0; p < 32; p++) first += w[(size_t)p];
    CHECK(fabs(bench.get(sums, 48)[0] - first) <= 1e-4, "BGRADA");
    plan_layouts(sum_b, s, true, false, CUDA_R_32F, CUDA_R_32F, CUBLAS_COMPUTE_32F);
    plan_epilogue(sum_b, CUBLASLT_EPILOGUE_BGRADB, sums, nullptr, 0);
    GOOD(choose(handle, sum_b, 0));
    GOOD(multiply(handle, sum_b, dw, dx, y, nullptr, 0, bench.stream));
    first = 0;
    for (int p = 0; p < 32; p++) first += x[(size_t)p];
    CHECK(fabs(bench.get(sums, 20)[0] - first) <= 1e-4, "BGRADB");
    GOOD(cublasLtDestroy(handle));
    SAY("cuBLASLt: ReLU with mask and bias, its gradient, bias gradients");
}

static double gelu_by_hand(double x) {
    return 0.5 * x * (1 + tanh(0.7978845608 * (x + 0.044715 * x * x * x)));
}

// y = gelu(W x + b) and its slope; rows of row-major matrices.
static void test_lt_gelu_and_rows() {
    Workbench bench;
    cublasLtHandle_t handle = nullptr;
    Shape s = {16, 12, 8};
    std::vector<float> w = numbers(16 * 8, 17), x = numbers(8 * 12, 18), bias = numbers(16, 19);
    float *dw = bench.put(w), *dx = bench.put(x), *y = bench.memory<float>(16 * 12);
    float *aux = bench.memory<float>(16 * 12), *dbias = bench.put(bias);
    GOOD(cublasLtCreate(&handle));
    LtPlan forward, backward, rows;
    plan_layouts(forward, s, true, false, CUDA_R_32F, CUDA_R_32F, CUBLAS_COMPUTE_32F);
    plan_epilogue(forward, CUBLASLT_EPILOGUE_GELU_AUX_BIAS, dbias, aux, 16);
    GOOD(choose(handle, forward, 0));
    GOOD(multiply(handle, forward, dw, dx, y, nullptr, 0, bench.stream));
    std::vector<float> z = bench.get(y, 16 * 12), before = bench.get(aux, 16 * 12);
    plan_layouts(backward, s, true, false, CUDA_R_32F, CUDA_R_32F, CUBLAS_COMPUTE_32F);
    plan_epilogue(backward, CUBLASLT_EPILOGUE_DGELU, nullptr, aux, 16);
    GOOD(choose(handle, backward, 0));
    GOOD(multiply(handle, backward, dw, dx, y, nullptr, 0, bench.stream));
    std::vector<float> slopes = bench.get(y, 16 * 12);
    for (int j = 0; j < 12; j++)
        for (int i = 0; i < 16; i++) {
            size_t at = (size_t)(j * 16 + i);
            double product = exact(w, x, s, true, false, i, j);
            double in = product + (double)bias[(size_t)i];
            double slope = (gelu_by_hand(in + 1e-5) - gelu_by_hand(in - 1e-5)) / 2e-5;
            CHECK(fabs(before[at] - in) <= 1e-5, "%d %d: input %g", i, j, before[at]);
            CHECK(fabs(z[at] - gelu_by_hand(in)) <= 1e-5, "%d %d: %g", i, j, z[at]);
            CHECK(fabs(slopes[at] - product * slope) <= 1e-4, "%d %d: %g", i, j, slopes[at]);
        }
    // W [16][8] row-major times X [8][12] row-major: the same numbers, read along the other way
    GOOD(cublasLtMatmulDescCreate(&rows.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    GOOD(cublasLtMatrixLayoutCreate(&rows.a, CUDA_R_32F, 16, 8, 8));
    GOOD(cublasLtMatrixLayoutCreate(&rows.b, CUDA_R_32F, 8, 12, 12));
    GOOD(cublasLtMatrixLayoutCreate(&rows.d, CUDA_R_32F, 16, 12, 12));
    GOOD(cublasLtMatmulPreferenceCreate(&rows.preference));
    int32_t order = CUBLASLT_ORDER_ROW;
    for (cublasLtMatrixLayout_t layout : {rows.a, rows.b, rows.d})
        GOOD(cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_ORDER, &order,
                                              sizeof order));
    GOOD(choose(handle, rows, 0));
    GOOD(multiply(handle, rows, dw, dx, y, nullptr, 0, bench.stream));
    z = bench.get(y, 16 * 12);
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 12; j++) {
            double wanted = exact(w, x, s, true, true, i, j);
            float got = z[(size_t)(i * 12 + j)];
            CHECK(fabs(got - wanted) <= 1e-5, "row-major %d %d: %g, not %g", i, j, got, wanted);
        }
    GOOD(cublasLtDestroy(handle));
    SAY("cuBLASLt: GELU with its input kept, its slope; row-major matrices");
}

static void test_lt_rules() {
    Workbench bench;
    cublasLtHandle_t handle = nullptr;
    Shape s = {48, 20, 32};
    std::vector<float> x = numbers(4096, 14);
    float *a = bench.put(x), *y = bench.memory<float>(4096);
    void *mask = bench.memory<char>(4096), *workspace = bench.memory<char>(1 << 20);
    GOOD(cublasLtCreate(&handle));
    LtPlan plain, masked, loose;
    plan_layouts(plain, s, false, true, CUDA_R_32F, CUDA_R_32F, CUBLAS_COMPUTE_32F_FAST_TF32);
    GOOD(choose(handle, plain, 1 << 20));
    CHECK(plain.result.workspaceSize > 0, "no workspace wanted");
    GIVES(multiply(handle, plain, a, a, y, nullptr, 0, bench.stream), CUBLAS_STATUS_INVALID_VALUE);
    GIVES(multiply(handle, plain, a + 1, a, y, workspace, 1 << 20, bench.stream),
          CUBLAS_STATUS_INVALID_VALUE);
    GIVES(multiply(handle, plain, x.data(), a, y, workspace, 1 << 20, bench.stream),
          CUBLAS_STATUS_INVALID_VALUE);
    GIVES(multiply(handle, plain, a, a, y, workspace, 1 << 20, nullptr),
          CUBLAS_STATUS_INVALID_VALUE);
    GOOD(multiply(handle, plain, a, a, y, workspace, 1 << 20, bench.stream));
    plan_layouts(masked, s, false, true, CUDA_R_32F, CUDA_R_32F, CUBLAS_COMPUTE_32F);
    plan_epilogue(masked, CUBLASLT_EPILOGUE_RELU_AUX, nullptr, mask, 64);
    GIVES(choose(handle, masked, 0), CUBLAS_STATUS_INVALID_VALUE); // not a multiple of 128 bits
    set(masked, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, (int64_t)128);
    GOOD(choose(handle, masked, 0));
    setenv("CUDAHOST_LT_EPILOGUES", "BIAS,RELU", 1);
    GIVES(choose(handle, masked, 0), CUBLAS_STATUS_NOT_SUPPORTED);
    CHECK(masked.found == 0, "offered all the same");
    unsetenv("CUDAHOST_LT_EPILOGUES");
    setenv("CUDAHOST_LT", "0", 1);
    GIVES(choose(handle, plain, 0), CUBLAS_STATUS_NOT_SUPPORTED);
    unsetenv("CUDAHOST_LT");
    plan_layouts(loose, s, false, true, CUDA_R_32F, CUDA_R_32F, CUBLAS_COMPUTE_32F);
    GOOD(choose(handle, loose, 0, CUBLASLT_REDUCTION_SCHEME_MASK));
    GOOD(multiply(handle, loose, a, a, y, nullptr, 0, bench.stream));
    std::vector<float> first = bench.get(y, 48 * 20);
    GOOD(multiply(handle, loose, a, a, y, nullptr, 0, bench.stream));
    CHECK(bench.get(y, 48 * 20) != first, "the order should vary unless told not to");
    GOOD(cublasLtDestroy(handle));
    SAY("cuBLASLt: alignment, workspace, mask layout and what is not on offer");
}

static void test_lt_bf16() {
    Workbench bench;
    cublasLtHandle_t handle = nullptr;
    Shape s = {32, 16, 64};
    std::vector<float> w = numbers(32 * 64, 15), x = numbers(64 * 16, 16);
    std::vector<__nv_bfloat16> wh(w.size()), xh(x.size());
    for (size_t i = 0; i < w.size(); i++) w[i] = __bfloat162float(wh[i] = __float2bfloat16(w[i]));
    for (size_t i = 0; i < x.size(); i++) x[i] = __bfloat162float(xh[i] = __float2bfloat16(x[i]));
    __nv_bfloat16 *half = bench.memory<__nv_bfloat16>(32 * 16);
    float *full = bench.memory<float>(32 * 16);
    GOOD(cublasLtCreate(&handle));
    LtPlan to_half, to_full;
    plan_layouts(to_half, s, true, false, CUDA_R_16BF, CUDA_R_16BF, CUBLAS_COMPUTE_32F);
    plan_layouts(to_full, s, true, false, CUDA_R_16BF, CUDA_R_32F, CUBLAS_COMPUTE_32F);
    GOOD(choose(handle, to_half, 0));
    GOOD(choose(handle, to_full, 0));
    GOOD(multiply(handle, to_half, bench.put(wh), bench.put(xh), half, nullptr, 0, bench.stream));
    GOOD(multiply(handle, to_full, bench.put(wh), bench.put(xh), full, nullptr, 0, bench.stream));
    std::vector<__nv_bfloat16> h = bench.get(half, 32 * 16);
    std::vector<float> f = bench.get(full, 32 * 16);
    for (int j = 0; j < 16; j++)
        for (int i = 0; i < 32; i++) {
            size_t at = (size_t)(j * 32 + i);
            double wanted = exact(w, x, s, true, false, i, j);
            CHECK(fabs(f[at] - wanted) <= 1e-4, "%d %d: %g, not %g", i, j, f[at], wanted);
            CHECK(__bfloat162float(h[at]) == __bfloat162float(__float2bfloat16(f[at])), "rounding");
        }
    GOOD(cublasLtDestroy(handle));
    SAY("cuBLASLt: bf16 in, fp32 or bf16 out");
}

// >>communicators

static void on_each_rank(int count, void (*body)(int rank, ncclComm_t comm, Workbench &bench),
                         ncclResult_t (*end)(ncclComm_t) = ncclCommDestroy) {
    std::vector<ncclComm_t> comms((size_t)count);
    std::vector<std::thread> threads;
    GOOD(ncclCommInitAll(comms.data(), count, nullptr));
    for (int rank = 0; rank < count; rank++)
        threads.emplace_back([rank, body, end, &comms] {
            GOOD(cudaSetDevice(rank));
            Workbench bench;
            body(rank, comms[(size_t)rank], bench);
            GOOD(end(comms[(size_t)rank]));
        });
    for (auto &thread : threads) thread.join();
}

static void ping_pong(int rank, ncclComm_t comm, Workbench &bench) {
    float *y = bench.memory<float>(1000);
    GOOD(cudaMemsetAsync(y, 0, 4000, bench.stream));
    for (int turn = 0; turn < 10; turn++) {
        if (rank == turn % 2) GOOD(LAUNCH(increment, 4, 256, 0, bench.stream, y, 1000));
        if (rank == turn % 2) GOOD(ncclSend(y, 1000, ncclFloat, 1 - rank, comm, bench.stream));
        else GOOD(ncclRecv(y, 1000, ncclFloat, 1 - rank, comm, bench.stream));
    }
    CHECK(bench.get(y, 1000)[999] == 10, "rank %d has %g", rank, bench.get(y, 1000)[999]);
}

static void exchange(int rank, ncclComm_t comm, Workbench &bench) {
    std::vector<float> mine = numbers(500, 20 + (unsigned)rank);
    float *from = bench.put(mine), *to = bench.memory<float>(500), *own = bench.memory<float>(500);
    GOOD(ncclGroupStart());
    GOOD(ncclSend(from, 500, ncclFloat, 1 - rank, comm, bench.stream));
    GOOD(ncclRecv(to, 500, ncclFloat, 1 - rank, comm, bench.stream));
    GOOD(ncclSend(from, 500, ncclFloat, rank, comm, bench.stream));
    GOOD(ncclRecv(own, 500, ncclFloat, rank, comm, bench.stream));
    GOOD(ncclGroupEnd());
    CHECK(bench.get(to, 500) == numbers(500, 21 - (unsigned)rank), "rank %d: exchange", rank);
    CHECK(bench.get(own, 500) == mine, "rank %d: message to itself", rank);
    GIVES(ncclSend(from, 500, ncclFloat, rank, comm, bench.stream), ncclInvalidUsage);
}

static void collectives(int rank, ncclComm_t comm, Workbench &bench) {
    int size = 0, self = -1;
    GOOD(ncclCommCount(comm, &size));
    GOOD(ncclCommUserRank(comm, &self));
    CHECK(size == 2 && self == rank, "rank %d of %d", self, size);
    std::vector<float> mine = numbers(300, 30 + (unsigned)rank), a = numbers(300, 30),
                       b = numbers(300, 31);
    float *x = bench.put(mine);
    GOOD(ncclAllReduce(x, x, 300, ncclFloat, ncclSum, comm, bench.stream));
    std::vector<float> sum = bench.get(x, 300);
    for (size_t i = 0; i < 300; i++) CHECK(sum[i] == a[i] + b[i], "sum %zu: %g", i, sum[i]);
    GOOD(cudaMemcpyAsync(x, mine.data(), 1200, cudaMemcpyHostToDevice, bench.stream));
    GOOD(ncclBroadcast(x, x, 300, ncclFloat, 1, comm, bench.stream));
    CHECK(bench.get(x, 300) == b, "rank %d: broadcast", rank);
}

static void test_nccl() {
    int version = 0;
    GOOD(ncclGetVersion(&version));
    CHECK(version >= 22000, "version %d", version);
    on_each_rank(2, ping_pong);
    on_each_rank(2, exchange);
    on_each_rank(2, collectives);
    SAY("NCCL between threads: send and receive, groups, to itself, sum, broadcast");
}

static ncclResult_t until_settled(ncclComm_t comm) {
    ncclResult_t state = ncclInProgress;
    for (int i = 0; i < 20000 && state == ncclInProgress; i++) {
        GOOD(ncclCommGetAsyncError(comm, &state));
        usleep(500);
    }
    return state;
}

// One rank aborts while the other waits for it.
static void test_nccl_nonblocking() {
    ncclUniqueId id;
    GOOD(ncclGetUniqueId(&id));
    std::vector<std::thread> threads;
    for (int rank = 0; rank < 2; rank++)
        threads.emplace_back([rank, id] {
            ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
            ncclComm_t comm = nullptr;
            config.blocking = 0;
            config.maxCTAs = 2;
            GOOD(cudaSetDevice(rank));
            Workbench bench;
            float *y = bench.memory<float>(100);
            GIVES(ncclCommInitRankConfig(&comm, 2, id, rank, &config), ncclInProgress);
            GIVES(until_settled(comm), ncclSuccess);
            GOOD(cudaMemsetAsync(y, 0, 400, bench.stream));
            ncclResult_t state = rank ? ncclRecv(y, 100, ncclFloat, 0, comm, bench.stream)
                                      : ncclSend(y, 100, ncclFloat, 1, comm, bench.stream);
            CHECK(state == ncclInProgress || state == ncclSuccess, "rank %d: %d", rank, state);
            GIVES(until_settled(comm), ncclSuccess);
            GOOD(cudaStreamSynchronize(bench.stream));
            if (rank) {
                (void)ncclRecv(y, 100, ncclFloat, 0, comm, bench.stream);
                state = until_settled(comm);
                for (int i = 0; i < 20000 && !state; i++) {
                    GOOD(ncclCommGetAsyncError(comm, &state));
                    usleep(500);
                }
                GIVES(state, ncclRemoteError);
                CHECK(cudaStreamQuery(bench.stream) == cudaErrorNotReady, "still blocked");
            } else {
                usleep(50000);
            }
            GOOD(ncclCommAbort(comm));
            GOOD(cudaStreamSynchronize(bench.stream));
        });
    for (auto &thread : threads) thread.join();
    (void)cudaGetLastError();
    SAY("NCCL without blocking: progress, a rank that goes away, abort");
}

// >>processes

static void write_file(const char *name, const void *from, size_t bytes) {
    std::string draft = name + std::string(".tmp");
    FILE *file = fopen(draft.c_str(), "wb");
    if (!CHECK(file, "cannot write %s", draft.c_str())) return;
    CHECK(fwrite(from, 1, bytes, file) == bytes, "cannot write %s", draft.c_str());
    CHECK(fclose(file) == 0 && rename(draft.c_str(), name) == 0, "cannot write %s", name);
}

static bool read_file(const char *name, void *to, size_t bytes) {
    for (int i = 0; i < 5000; i++) {
        FILE *file = fopen(name, "rb");
        size_t got = file ? fread(to, 1, bytes, file) : 0;
        if (file) fclose(file);
        if (got == bytes) return true;
        usleep(2000);
    }
    return false;
}

// `rank 0 FILE` and `rank 1 FILE`: they exchange numbers; then rank 0 ends without a word.
static int rank_main(int rank, const char *file) {
    ncclUniqueId id;
    ncclComm_t comm = nullptr;
    ncclResult_t state = ncclSuccess;
    if (rank == 0 && ncclGetUniqueId(&id) == ncclSuccess) write_file(file, &id, sizeof id);
    if (!CHECK(read_file(file, &id, sizeof id), "no id")) return 1;
    GOOD(cudaSetDevice(rank));
    GOOD(ncclCommInitRank(&comm, 2, id, rank));
    Workbench bench;
    exchange(rank, comm, bench);
    collectives(rank, comm, bench);
    if (rank == 0) _exit(run.bad != 0);
    float *y = bench.memory<float>(100);
    (void)ncclRecv(y, 100, ncclFloat, 0, comm, bench.stream);
    for (int i = 0; i < 20000 && !state; i++) {
        GOOD(ncclCommGetAsyncError(comm, &state));
        usleep(500);
    }
    GIVES(state, ncclRemoteError);
    CHECK(strlen(ncclGetLastError(comm)) > 10, "no text");
    GOOD(ncclCommAbort(comm));
    GOOD(cudaStreamSynchronize(bench.stream));
    return run.bad != 0;
}

static std::string own_path;

static void test_processes() {
    char file[64];
    pid_t children[2];
    snprintf(file, sizeof file, "/tmp/cudahost-selftest-%ld", (long)getpid());
    for (int rank = 0; rank < 2; rank++) {
        std::string number = std::to_string(rank);
        children[rank] = fork();
        if (children[rank] == 0) {
            execl(own_path.c_str(), own_path.c_str(), "rank", number.c_str(), file, (char *)NULL);
            _exit(127);
        }
    }
    for (pid_t child : children) {
        int status = -1;
        CHECK(waitpid(child, &status, 0) == child, "no child");
        CHECK(status == 0, "status %d", status);
    }
    unlink(file);
    SAY("NCCL between processes; one that dies is an error for the other");
}

// >>faults
// What a program must not do, and how it learns of it. Only the stand-in is this strict.

#ifdef CUDAHOST

static void forgive(int device) {
    GOOD(cudaSetDevice(device));
    GOOD(cudaDeviceReset());
    (void)cudaGetLastError();
    GOOD(cudaSetDevice(0));
}

static void test_wrong_pointers() {
    Workbench bench;
    float *there = nullptr, on_stack[4] = {0};
    GOOD(cudaSetDevice(1));
    GOOD(cudaMalloc(&there, 400));
    GOOD(cudaSetDevice(0));
    GOOD(LAUNCH(increment, 1, 32, 0, bench.stream, there, 100));
    GIVES(cudaStreamSynchronize(bench.stream), cudaErrorIllegalAddress);
    float *p = nullptr;
    GIVES(cudaMalloc(&p, 4), cudaErrorIllegalAddress); // it stays
    forgive(0);
    GOOD(LAUNCH(increment, 1, 32, 0, bench.stream, on_stack, 4));
    GIVES(cudaStreamSynchronize(bench.stream), cudaErrorIllegalAddress);
    forgive(0);
    Batch batch = {there, there, 1};
    GOOD(LAUNCH(copy_batch, 1, 1, 0, bench.stream, batch, dim3(1)));
    GIVES(cudaStreamSynchronize(bench.stream), cudaErrorIllegalAddress);
    forgive(0);
    GOOD(cudaSetDevice(1));
    GOOD(cudaFree(there));
    GOOD(cudaSetDevice(0));
    SAY("wrong memory: another device's, the host's, in a struct; the error stays");
}

cudaStream_t no_stream = nullptr; // which the compiler must not know

static void test_null_stream() {
    float *p = nullptr;
    Workbench bench;
    GOOD(cudaMalloc(&p, 400));
    GIVES(LAUNCH(increment, 1, 32, 0, no_stream, p, 100), cudaErrorInvalidResourceHandle);
    GIVES(cudaMemsetAsync(p, 0, 4, no_stream), cudaErrorInvalidResourceHandle);
    GIVES(cudaStreamSynchronize(cudaStreamLegacy), cudaErrorInvalidResourceHandle);
    cudaStream_t stream = nullptr;
    GIVES(cudaStreamCreateWithFlags(&stream, cudaStreamDefault), cudaErrorInvalidValue);
    GOOD(cudaFree(p));
    (void)cudaGetLastError();
    SAY("the NULL stream is refused");
}

static __global__ void trap_at(int which) {
    if ((int)threadIdx.x == which) __trap();
}

static __global__ void divergent(float *y) {
    if (threadIdx.x < 16) __syncwarp();
    else y[threadIdx.x] = __shfl_sync(0xffffffffu, y[threadIdx.x], 0);
}

static void test_kernel_faults() {
    Workbench bench;
    float *y = bench.memory<float>(512), *z = bench.memory<float>(512);
    GOOD(LAUNCH(trap_at, 3, 64, 0, bench.stream, 40));
    GIVES(cudaStreamSynchronize(bench.stream), cudaErrorLaunchFailure);
    forgive(0);
    GOOD(LAUNCH(divergent, 1, 32, 0, bench.stream, y));
    GIVES(cudaStreamSynchronize(bench.stream), cudaErrorLaunchFailure);
    forgive(0);
    GOOD(LAUNCH(grid_steps, 4, 64, 0, bench.stream, y, z, 512, 2, 0));
    GIVES(cudaStreamSynchronize(bench.stream), cudaErrorLaunchFailure);
    forgive(0);
    GOOD(cudaMemsetAsync(y, 0, 2048, bench.stream));
    GOOD(LAUNCH(increment, 4, 128, 0, bench.stream, y, 512));
    CHECK(bench.get(y, 512)[511] == 1, "not usable after a fault");
    SAY("kernels that trap, diverge or miss a cooperative launch fail; then all works again");
}

// Both ranks receive first: nobody sends.
static void cyclic(int rank, ncclComm_t comm, Workbench &bench) {
    float *y = bench.memory<float>(100);
    GOOD(cudaMemsetAsync(y, 0, 400, bench.stream));
    GOOD(ncclGroupStart()); // connects, so that the stream blocks and not the host
    GOOD(ncclSend(y, 1, ncclFloat, 1 - rank, comm, bench.stream));
    GOOD(ncclRecv(y, 1, ncclFloat, 1 - rank, comm, bench.stream));
    GOOD(ncclGroupEnd());
    GOOD(ncclRecv(y, 100, ncclFloat, 1 - rank, comm, bench.stream));
    GOOD(ncclSend(y, 100, ncclFloat, 1 - rank, comm, bench.stream));
    GIVES(cudaStreamSynchronize(bench.stream), cudaErrorLaunchTimeout);
    GOOD(cudaDeviceReset());
    (void)cudaGetLastError();
}

static void test_watchdog() {
    double before = cudahost::state().settings.watchdog;
    cudahost::state().settings.watchdog = 2;
    on_each_rank(2, cyclic, ncclCommAbort);
    cudahost::state().settings.watchdog = before;
    SAY("a deadlock ends with an error, and names who waits");
}

// Everything a small program does, in order; how many calls gave an error.
static int small_program() {
    int errors = 0;
    cudaStream_t stream = nullptr;
    cudaEvent_t event = nullptr;
    cublasHandle_t blas = nullptr;
    float *p = nullptr, one = 1, out[16];
    errors += cudaSetDevice(0) != cudaSuccess;
    errors += cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) != cudaSuccess;
    errors += cudaEventCreateWithFlags(&event, cudaEventDisableTiming) != cudaSuccess;
    errors += cudaMalloc(&p, 64) != cudaSuccess;
    errors += cublasCreate(&blas) != CUBLAS_STATUS_SUCCESS;
    if (!errors) {
        errors += cublasSetStream(blas, stream) != CUBLAS_STATUS_SUCCESS;
        errors += cudaMemsetAsync(p, 0, 64, stream) != cudaSuccess;
        errors += LAUNCH(increment, 1, 32, 0, stream, p, 16) != cudaSuccess;
        errors += cublasSgemm(blas, CUBLAS_OP_N, CUBLAS_OP_N, 4, 4, 4, &one, p, 4, p, 4, &one, p,
                              4) != CUBLAS_STATUS_SUCCESS;
        errors += cudaEventRecord(event, stream) != cudaSuccess;
        errors += cudaMemcpyAsync(out, p, 64, cudaMemcpyDeviceToHost, stream) != cudaSuccess;
        errors += cudaStreamSynchronize(stream) != cudaSuccess;
    }
    if (blas) errors += cublasDestroy(blas) != CUBLAS_STATUS_SUCCESS;
    if (p) errors += cudaFree(p) != cudaSuccess;
    if (event) errors += cudaEventDestroy(event) != cudaSuccess;
    if (stream) errors += cudaStreamDestroy(stream) != cudaSuccess;
    return errors;
}

static void test_planned_failures() {
    long left = cudahost::live().total();
    cudahost::fail(nullptr);
    CHECK(small_program() == 0, "fails by itself");
    long all = cudahost::calls("any");
    CHECK(cudahost::calls("cudaMalloc") == 1 && cudahost::calls("launch") == 1, "wrong counts");
    for (long n = 1; n <= all; n++) {
        cudahost::fail(("any:" + std::to_string(n)).c_str());
        CHECK(small_program() > 0, "call %ld of %ld did not fail", n, all);
        CHECK(cudahost::live().total() == left, "call %ld: %ld leaks", n,
              cudahost::live().total() - left);
    }
    cudahost::fail("cudaMalloc:1");
    CHECK(small_program() == 1, "the plan by name");
    cudahost::fail(nullptr);
    (void)cudaGetLastError();
    SAY("each of %ld calls can be made to fail, and leaves nothing behind", all);
}

// >>planted
// Programs with a mistake. With the sanitizer for it each must be reported; without, the ones
// that say so must give a wrong result, sooner or later.

static __global__ void racy_sums(float *y, const float *x) {
    __shared__ float tile[64];
    int t = (int)threadIdx.x;
    tile[t] = x[t];
    y[t] = tile[63 - t]; // no barrier
}

static int fault_syncthreads() {
    Workbench bench;
    std::vector<float> x = numbers(64, 1);
    float *y = bench.memory<float>(64);
    GOOD(LAUNCH(racy_sums, 1, 64, 0, bench.stream, y, bench.put(x)));
    std::vector<float> z = bench.get(y, 64);
    for (size_t i = 0; i < 64; i++)
        if (!(z[i] == x[63 - i])) return 1;
    return 0;
}

static __global__ void dynamic_race(int *y) {
    DYNAMIC_SHARED(int, tile);
    tile[threadIdx.x] = (int)threadIdx.x;
    if (threadIdx.x == 0) y[0] = tile[1];
}

static int fault_dynamic() {
    Workbench bench;
    int *y = bench.memory<int>(1);
    GOOD(LAUNCH(dynamic_race, 1, 32, 256, bench.stream, y));
    return bench.get(y, 1)[0] != 1;
}

// The second stream does not wait for the first.
static int fault_event() {
    Workbench one, two;
    float *x = one.memory<float>(1000), *y = one.memory<float>(1000);
    GOOD(cudaMemsetAsync(y, 0, 4000, two.stream));
    GOOD(cudaMemsetAsync(x, 0, 4000, one.stream));
    GOOD(LAUNCH(increment, 4, 256, 0, one.stream, x, 1000));
    GOOD(LAUNCH(add, 4, 256, 0, two.stream, y, x, 1, 1000));
    return !(two.get(y, 1000)[999] == 1);
}

// As above, but long after: only the sanitizer can tell.
static int fault_late_event() {
    Workbench one, two;
    float *x = one.memory<float>(1000), *y = one.memory<float>(1000);
    GOOD(cudaMemsetAsync(y, 0, 4000, two.stream));
    GOOD(cudaMemsetAsync(x, 0, 4000, one.stream));
    GOOD(LAUNCH(increment, 4, 256, 0, one.stream, x, 1000));
    usleep(50000);
    GOOD(LAUNCH(increment, 4, 256, 0, one.stream, y, 0)); // takes the queue's lock after it
    GOOD(LAUNCH(add, 4, 256, 0, two.stream, y, x, 1, 1000));
    return !(two.get(y, 1000)[999] == 1);
}

static int fault_graph() {
    Workbench one, two;
    cudaEvent_t fork = nullptr, join = nullptr;
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    float *x = one.memory<float>(100), *y = one.memory<float>(100);
    GOOD(cudaMemsetAsync(x, 0, 400, one.stream));
    GOOD(cudaEventCreateWithFlags(&fork, cudaEventDisableTiming));
    GOOD(cudaEventCreateWithFlags(&join, cudaEventDisableTiming));
    capture_fork(one, two, fork, join, y, y, x); // both branches write y
    GOOD(cudaStreamEndCapture(one.stream, &graph));
    GOOD(cudaGraphInstantiate(&exec, graph, 0));
    GOOD(cudaGraphLaunch(exec, one.stream));
    return one.get(y, 100)[0] != 0;
}

static int fault_pinned() {
    Workbench bench;
    float *pinned = nullptr, *y = bench.memory<float>(100);
    GOOD(cudaMallocHost(&pinned, 400));
    for (int i = 0; i < 100; i++) pinned[i] = 1;
    GOOD(cudaMemsetAsync(y, 0, 400, bench.stream));
    GOOD(cudaMemcpyAsync(y, pinned, 400, cudaMemcpyHostToDevice, bench.stream));
    for (int i = 0; i < 100; i++) pinned[i] = 2; // the copy may not have run
    return bench.get(y, 100)[99] != 1;
}

static int fault_grid() {
    Workbench bench;
    std::vector<float> x = numbers(512, 6);
    float *a = bench.put(x), *b = bench.memory<float>(512);
    GOOD(LAUNCH_TOGETHER(grid_steps, 4, 64, 0, bench.stream, a, b, 512, 4, 1));
    return bench.get(a, 512) != steps_by_hand(x, 4);
}

static __global__ void same_element(float *y) { y[threadIdx.x] = (float)blockIdx.x; }

static int fault_blocks() {
    Workbench bench;
    float *y = bench.memory<float>(64);
    GOOD(LAUNCH(same_element, 2, 64, 0, bench.stream, y));
    GOOD(cudaStreamSynchronize(bench.stream));
    return 0;
}

static int fault_workspace() {
    Workbench one, two;
    cublasHandle_t handles[2];
    float *a = one.memory<float>(256), *c = one.memory<float>(512), alpha = 1, beta = 0;
    void *workspace = one.memory<char>(4096);
    GOOD(cudaMemsetAsync(a, 0, 1024, one.stream));
    GOOD(cudaStreamSynchronize(one.stream));
    for (int i = 0; i < 2; i++) {
        GOOD(cublasCreate(&handles[i]));
        GOOD(cublasSetStream(handles[i], i ? two.stream : one.stream));
        GOOD(cublasSetWorkspace(handles[i], workspace, 4096)); // the same for both
        GOOD(cublasSgemm(handles[i], CUBLAS_OP_N, CUBLAS_OP_N, 16, 16, 16, &alpha, a, 16, a, 16,
                         &beta, c + 256 * i, 16));
    }
    for (cublasHandle_t handle : handles) GOOD(cublasDestroy(handle));
    GOOD(cudaStreamSynchronize(two.stream));
    return 0;
}

static int fault_bounds() {
    Workbench bench;
    float *y = bench.memory<float>(100);
    GOOD(LAUNCH(increment, 1, 128, 0, bench.stream, y, 101));
    GOOD(cudaStreamSynchronize(bench.stream));
    return 0;
}

static __global__ void beyond_tile(float *y, int at) {
    __shared__ float tile[8];
    tile[at] = 1;
    y[0] = tile[at];
}

static int fault_tile() {
    Workbench bench;
    GOOD(LAUNCH(beyond_tile, 1, 1, 0, bench.stream, bench.memory<float>(1), 8));
    GOOD(cudaStreamSynchronize(bench.stream));
    return 0;
}

static int fault_freed() {
    Workbench bench;
    float *y = nullptr;
    GOOD(cudaMalloc(&y, 400));
    GOOD(cudaFree(y));
    GOOD(LAUNCH(increment, 1, 32, 0, bench.stream, y, 1));
    return cudaStreamSynchronize(bench.stream) == cudaErrorIllegalAddress;
}

static int fault_uninitialized() {
    Workbench bench;
    float *x = bench.memory<float>(100), *y = bench.memory<float>(100);
    GOOD(cudaMemsetAsync(y, 0, 400, bench.stream));
    GOOD(LAUNCH(add, 1, 128, 0, bench.stream, y, x, 1, 100)); // x was never written
    float z = bench.get(y, 100)[5];
    return !(fabsf(z) <= 1e30f);
}

static __global__ void read_tile(float *y) {
    __shared__ float tile[32];
    DYNAMIC_SHARED(float, more);
    if (threadIdx.x == 0) tile[0] = more[0] = 0;
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x] + more[threadIdx.x];
}

static int fault_uninitialized_shared() {
    Workbench bench;
    float *y = bench.memory<float>(32);
    GOOD(LAUNCH(read_tile, 1, 32, 128, bench.stream, y));
    std::vector<float> z = bench.get(y, 32);
    return z[0] == 0 && !(fabsf(z[31]) <= 1e30f);
}

static int fault_leak() {
    float *p = nullptr;
    cudaStream_t stream = nullptr;
    GOOD(cudaMalloc(&p, 64));
    GOOD(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    GOOD(cudaStreamDestroy(stream));
    return 0;
}

struct Fault {
    const char *name;
    int (*body)();
};

static int fault_main(const char *name) {
    static const Fault faults[] = {
        {"syncthreads", fault_syncthreads}, {"dynamic", fault_dynamic},
        {"event", fault_event},             {"late_event", fault_late_event},
        {"graph", fault_graph},             {"pinned", fault_pinned},
        {"grid", fault_grid},               {"blocks", fault_blocks},
        {"workspace", fault_workspace},     {"bounds", fault_bounds},
        {"tile", fault_tile},               {"freed", fault_freed},
        {"uninitialized", fault_uninitialized},
        {"uninitialized_shared", fault_uninitialized_shared},
        {"leak", fault_leak},
    };
    for (const Fault &fault : faults)
        if (!strcmp(fault.name, name)) return fault.body();
    fprintf(stderr, "no planted fault %s\n", name);
    return 2;
}

#else
static int fault_main(const char *) { return 2; }
#endif

// >>main

struct Test {
    const char *name;
    void (*body)();
};

static const Test tests[] = {
    {"errors", test_errors},
    {"devices", test_devices},
    {"memory", test_memory},
    {"copies", test_copies},
    {"peers", test_peers},
    {"kernels", test_kernels},
    {"arguments", test_arguments},
    {"warps", test_warps},
    {"atomics", test_atomics},
    {"grids", test_grids},
    {"events", test_events},
    {"graphs", test_graphs},
    {"capture_errors", test_capture_errors},
    {"external_events", test_external_events},
    {"bf16", test_bf16},
    {"cublas", test_cublas},
    {"lt_epilogues", test_lt_epilogues},
    {"lt_gelu_and_rows", test_lt_gelu_and_rows},
    {"lt_rules", test_lt_rules},
    {"lt_bf16", test_lt_bf16},
    {"nccl", test_nccl},
    {"nccl_nonblocking", test_nccl_nonblocking},
    {"processes", test_processes},
#ifdef CUDAHOST
    {"wrong_pointers", test_wrong_pointers},
    {"null_stream", test_null_stream},
    {"kernel_faults", test_kernel_faults},
    {"watchdog", test_watchdog},
    {"planned_failures", test_planned_failures},
#endif
};

static void run_test(const Test &test) {
    run.checks = run.bad = 0;
    SAY("%s", test.name);
    test.body();
#ifdef CUDAHOST
    CHECK(cudahost::live().total() == 0, "%ld things left", cudahost::live().total());
#endif
    bool good = run.bad == 0 && run.checks > 0;
    *(good ? &run.passed : &run.failed) += 1;
    printf("%s cudahost: %s", good ? "ok  " : "FAIL", run.said);
    if (!good) printf(" [%s: %d of %d checks failed]", test.name, run.bad, run.checks);
    printf("\n");
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
    char path[4096];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path);
    if (length > 0) own_path.assign(path, (size_t)length);
    if (argc == 3 && !strcmp(argv[1], "fault")) return fault_main(argv[2]);
    if (argc == 4 && !strcmp(argv[1], "rank")) return rank_main(atoi(argv[2]), argv[3]);
    for (const Test &test : tests)
        if (argc < 2 || !strcmp(test.name, argv[1])) run_test(test);
    printf("%d passed, %d failed\n", run.passed, run.failed);
    return run.failed > 0 || run.passed == 0;
}
