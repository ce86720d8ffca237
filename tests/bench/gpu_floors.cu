/* What this GPU can do at best, for which the benchmark holds training steps against it:

       gpu_floors [ROUNDS]

   prints a line `gpu name="..." ...` about the device and then, in each round, a line `floor
   name=... unit=... value=...` for

       fma       multiply-adds of registers by all threads, fp32
       fp32      cuBLAS's product of two square matrices of SIDE rows, with sums in fp32
       tf32      the same of numbers rounded to TF32
       bf16      the same of bf16
       copy      bytes read and written by a copy within the device's memory
       read      bytes read by a kernel that adds them up
       launch    empty kernels launched one by one, each
       graph     empty kernels in a row in one CUDA graph, each
       trip      a graph of one empty kernel, from its launch until the host knows that it is done

   Exit status 3 and one sentence if there is no GPU that can be used, 1 if something fails. */
#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <chrono>
#include <stdio.h>
#include <stdlib.h>

static const int SIDE = 8192, CHAINS = 16, TURNS = 32768, TIMES = 4, EMPTY = 1000;
static const size_t BYTES = (size_t)1 << 30; /* less on a card that has little */
static bool quiet;                           /* in the first round, which warms up */

static void check(cudaError_t error, const char *what) {
    if (error == cudaSuccess) return;
    fprintf(stderr, "gpu_floors: %s: %s\n", what, cudaGetErrorString(error));
    exit(1);
}

static void check(cublasStatus_t status, const char *what) {
    if (status == CUBLAS_STATUS_SUCCESS) return;
    fprintf(stderr, "gpu_floors: %s: %s\n", what, cublasGetStatusString(status));
    exit(1);
}

static double now(void) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

static void say(const char *name, const char *unit, double value) {
    if (quiet) return;
    printf("floor name=%s unit=%s value=%.6g\n", name, unit, value);
    fflush(stdout);
}

/* --- kernels ---------------------------------------------------------------------------------- */

__global__ static void empty(void) {}

__global__ static void fused_multiply_adds(float a, float b, float *out) {
    float s[CHAINS], all = 0.0f;
#pragma unroll
    for (int i = 0; i < CHAINS; i++) s[i] = (float)(threadIdx.x + i);
    for (int turn = 0; turn < TURNS; turn++)
#pragma unroll
        for (int i = 0; i < CHAINS; i++) s[i] = fmaf(s[i], a, b);
#pragma unroll
    for (int i = 0; i < CHAINS; i++) all += s[i];
    if (all == 1.25f) *out = all; /* never, but the compiler cannot know */
}

__global__ static void add_up(size_t n, const float4 *x, float *out) {
    const size_t stride = (size_t)gridDim.x * blockDim.x;
    float all = 0.0f;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) {
        const float4 v = x[i];
        all += v.x + v.y + v.z + v.w;
    }
    if (all == 1.25f) *out = all;
}

/* -1 .. 1, from a hash of the place: a product of zeros takes less power than one of numbers. */
__device__ static float value_at(size_t i) {
    unsigned h = (unsigned)i * 2654435761u;
    h = (h ^ h >> 15) * 2246822519u;
    return (float)(int)(h ^ h >> 13) / 2147483648.0f;
}

__global__ static void fill(size_t n, float *x) {
    const size_t stride = (size_t)gridDim.x * blockDim.x;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride)
        x[i] = value_at(i);
}

__global__ static void fill(size_t n, __nv_bfloat16 *x) {
    const size_t stride = (size_t)gridDim.x * blockDim.x;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride)
        x[i] = __float2bfloat16(value_at(i));
}

/* --- what is measured ------------------------------------------------------------------------- */

typedef struct bench {
    cudaStream_t stream;
    cudaEvent_t begin, end;
    cublasHandle_t blas;
    cudaGraphExec_t many, one; /* graphs of empty kernels */
    char *memory;              /* [2 * bytes] */
    size_t bytes;
    int processors;
} bench;

/* Seconds by the device's clock of what `work` gives the stream. */
template <class Work>
static double device_seconds(bench *b, Work work) {
    float ms;
    check(cudaEventRecord(b->begin, b->stream), "timing");
    work();
    check(cudaEventRecord(b->end, b->stream), "timing");
    check(cudaEventSynchronize(b->end), "the work that was timed");
    check(cudaEventElapsedTime(&ms, b->begin, b->end), "timing");
    return 1e-3 * (double)ms;
}

static void multiply_adds(bench *b) {
    const int blocks = 8 * b->processors, threads = 256;
    const double seconds = device_seconds(b, [&] {
        fused_multiply_adds<<<blocks, threads, 0, b->stream>>>(0.999f, 0.001f, (float *)b->memory);
        check(cudaGetLastError(), "a kernel");
    });
    say("fma", "TFLOP/s", 2e-12 * CHAINS * TURNS * blocks * threads / seconds);
}

static void product(bench *b, const char *name, cudaDataType_t type, cublasComputeType_t compute) {
    const size_t element = type == CUDA_R_32F ? sizeof(float) : sizeof(__nv_bfloat16);
    size_t side = SIDE;
    while (3 * side * side * element > 2 * b->bytes) side /= 2;
    const size_t count = side * side;
    const int n = (int)side;
    const float one = 1.0f, zero = 0.0f;
    char *const p = b->memory, *const q = p + count * element, *const c = q + count * element;
    if (type == CUDA_R_32F)
        fill<<<4096, 256, 0, b->stream>>>(2 * count, (float *)p);
    else
        fill<<<4096, 256, 0, b->stream>>>(2 * count, (__nv_bfloat16 *)p);
    check(cudaGetLastError(), "a kernel");
    const double seconds = device_seconds(b, [&] {
        for (int i = 0; i < TIMES; i++)
            check(cublasGemmEx(b->blas, CUBLAS_OP_N, CUBLAS_OP_N, n, n, n, &one, p, type, n, q,
                               type, n, &zero, c, type, n, compute, CUBLAS_GEMM_DEFAULT),
                  "a matrix product");
    });
    say(name, "TFLOP/s", 2e-12 * TIMES * (double)count * (double)side / seconds);
}

static void bandwidth(bench *b) {
    const size_t n = b->bytes / sizeof(float4);
    double seconds = device_seconds(b, [&] {
        check(cudaMemcpyAsync(b->memory + b->bytes, b->memory, b->bytes, cudaMemcpyDeviceToDevice,
                              b->stream),
              "a copy");
    });
    say("copy", "GB/s", 2e-9 * (double)b->bytes / seconds);
    seconds = device_seconds(b, [&] {
        add_up<<<32 * b->processors, 256, 0, b->stream>>>(n, (const float4 *)b->memory,
                                                          (float *)(b->memory + b->bytes));
        check(cudaGetLastError(), "a kernel");
    });
    say("read", "GB/s", 1e-9 * (double)b->bytes / seconds);
}

static void launches(bench *b) {
    double begin = now();
    for (int i = 0; i < EMPTY; i++) empty<<<1, 32, 0, b->stream>>>();
    check(cudaGetLastError(), "a kernel");
    check(cudaStreamSynchronize(b->stream), "empty kernels");
    say("launch", "us", 1e6 * (now() - begin) / EMPTY);
    begin = now();
    check(cudaGraphLaunch(b->many, b->stream), "a graph");
    check(cudaStreamSynchronize(b->stream), "a graph");
    say("graph", "us", 1e6 * (now() - begin) / EMPTY);
    begin = now();
    for (int i = 0; i < 100; i++) {
        check(cudaGraphLaunch(b->one, b->stream), "a graph");
        check(cudaStreamSynchronize(b->stream), "a graph");
    }
    say("trip", "us", 1e6 * (now() - begin) / 100);
}

/* --- what is needed for it -------------------------------------------------------------------- */

static cudaGraphExec_t graph_of(bench *b, int kernels) {
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    check(cudaStreamBeginCapture(b->stream, cudaStreamCaptureModeThreadLocal), "recording");
    for (int i = 0; i < kernels; i++) empty<<<1, 32, 0, b->stream>>>();
    check(cudaStreamEndCapture(b->stream, &graph), "recording");
    check(cudaGraphInstantiate(&exec, graph, 0), "making a graph");
    check(cudaGraphDestroy(graph), "making a graph");
    check(cudaGraphUpload(exec, b->stream), "making a graph");
    return exec;
}

static void begin(bench *b) {
    cudaDeviceProp device;
    int count = 0, driver = 0, runtime = 0, cublas = 0, clock = 0;
    size_t free_bytes = 0, all_bytes = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess || count == 0) {
        fprintf(stderr, "no CUDA device can be used: %s\n",
                error != cudaSuccess ? cudaGetErrorString(error) : "none is there");
        exit(3);
    }
    check(cudaGetDeviceProperties(&device, 0), "asking about the device");
    check(cudaDeviceGetAttribute(&clock, cudaDevAttrClockRate, 0), "asking about the device");
    check(cudaDriverGetVersion(&driver), "asking about the driver");
    check(cudaRuntimeGetVersion(&runtime), "asking about CUDA");
    check(cudaStreamCreateWithFlags(&b->stream, cudaStreamNonBlocking), "making a stream");
    check(cudaEventCreate(&b->begin), "making an event");
    check(cudaEventCreate(&b->end), "making an event");
    check(cublasCreate(&b->blas), "starting cuBLAS");
    check(cublasSetStream(b->blas, b->stream), "starting cuBLAS");
    check(cublasGetVersion(b->blas, &cublas), "starting cuBLAS");
    check(cudaMemGetInfo(&free_bytes, &all_bytes), "asking about memory");
    b->processors = device.multiProcessorCount;
    b->bytes = BYTES;
    while (b->bytes > free_bytes / 4) b->bytes /= 2;
    check(cudaMalloc((void **)&b->memory, 2 * b->bytes), "allocating");
    check(cudaMemset(b->memory, 0, 2 * b->bytes), "clearing memory");
    check(cudaDeviceSynchronize(), "clearing memory");
    b->many = graph_of(b, EMPTY);
    b->one = graph_of(b, 1);
    printf("gpu name=\"%s\" compute=%d.%d processors=%d clock_mhz=%d memory_gib=%.1f "
           "driver_cuda=%d.%d runtime=%d.%d cublas=%d.%d.%d\n",
           device.name, device.major, device.minor, device.multiProcessorCount, clock / 1000,
           (double)all_bytes / 1073741824.0, driver / 1000, driver % 1000 / 10, runtime / 1000,
           runtime % 1000 / 10, cublas / 10000, cublas / 100 % 100, cublas % 100);
}

int main(int argc, char **argv) {
    const int rounds = argc > 1 ? atoi(argv[1]) : 9;
    bench b = {};
    begin(&b);
    for (int round = 0; round <= rounds; round++) {
        quiet = round == 0;
        multiply_adds(&b);
        product(&b, "fp32", CUDA_R_32F, CUBLAS_COMPUTE_32F);
        product(&b, "tf32", CUDA_R_32F, CUBLAS_COMPUTE_32F_FAST_TF32);
        product(&b, "bf16", CUDA_R_16BF, CUBLAS_COMPUTE_32F);
        bandwidth(&b);
        launches(&b);
    }
    return 0;
}
