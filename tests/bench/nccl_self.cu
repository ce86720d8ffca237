// One rank on one GPU sends to itself over NCCL, in a group: the least that NCCL can do. Prints how
// long a message of 16 KiB takes, and fails if what arrives is not what was sent.
//
//     nvcc tests/bench/nccl_self.cu -o nccl_self -lnccl
#include <cuda_runtime.h>
#include <nccl.h>

#include <stdio.h>

static int wrong(const char *what, int code) {
    printf("%s: %d\n", what, code);
    return 1;
}
#define TRY(call)                                                                                  \
    do {                                                                                           \
        const int code_ = (int)(call);                                                             \
        if (code_ != 0) return wrong(#call, code_);                                                \
    } while (0)

enum { FLOATS = 4096, TIMES = 100 };

static int exchange(ncclComm_t comm, cudaStream_t stream, const float *from, float *to) {
    TRY(ncclGroupStart());
    TRY(ncclSend(from, FLOATS, ncclFloat, 0, comm, stream));
    TRY(ncclRecv(to, FLOATS, ncclFloat, 0, comm, stream));
    TRY(ncclGroupEnd());
    return 0;
}

int main(void) {
    static float host[FLOATS];
    float *from = NULL, *to = NULL, ms = 0;
    cudaEvent_t begin, end;
    cudaStream_t stream;
    ncclUniqueId id;
    ncclComm_t comm;
    int bad = 0;
    for (int i = 0; i < FLOATS; i++) host[i] = (float)i;
    TRY(cudaSetDevice(0));
    TRY(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    TRY(cudaEventCreate(&begin));
    TRY(cudaEventCreate(&end));
    TRY(cudaMalloc((void **)&from, sizeof host));
    TRY(cudaMalloc((void **)&to, sizeof host));
    TRY(cudaMemcpyAsync(from, host, sizeof host, cudaMemcpyHostToDevice, stream));
    TRY(ncclGetUniqueId(&id));
    TRY(ncclCommInitRank(&comm, 1, id, 0));
    TRY(exchange(comm, stream, from, to));
    TRY(cudaEventRecord(begin, stream));
    for (int i = 0; i < TIMES; i++) TRY(exchange(comm, stream, from, to));
    TRY(cudaEventRecord(end, stream));
    for (int i = 0; i < FLOATS; i++) host[i] = -1;
    TRY(cudaMemcpyAsync(host, to, sizeof host, cudaMemcpyDeviceToHost, stream));
    TRY(cudaStreamSynchronize(stream));
    TRY(cudaEventElapsedTime(&ms, begin, end));
    for (int i = 0; i < FLOATS; i++) bad += host[i] != (float)i;
    TRY(ncclCommDestroy(comm));
    printf("16 KiB in %.1f us, %d wrong values\n", 1e3 * ms / TIMES, bad);
    return bad != 0;
}
