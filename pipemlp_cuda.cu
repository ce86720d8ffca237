/* pipemlp_cuda.cu - the CUDA back end of pipemlp.h. MIT-0 or public domain, see LICENSE.

       nvcc -O3 main.c pipemlp_cuda.cu -lcublas -lcublasLt -lnccl

   and in main.c, which stays plain C: `desc.backend = pmlp_cuda_backend();`. NCCL is used if the
   compiler finds nccl.h and PMLP_NO_NCCL is not defined; without it leave out -lnccl.

   The file reads from top to bottom:

      >>kernels      what runs on the GPU, each with its launcher below it
      >>context      a worker's stream, memory and error text
      >>products     matrix products: ours, cuBLAS's and cuBLASLt's
      >>operations   a layer's operations, made of the two above
      >>queue        operations are noted, then issued together, as a graph if seen before
      >>wires        communicators of NCCL, and waits that end
      >>entries      what the trainer calls
      >>edges        hand-off between stages
      >>group        ranks in other processes: how they meet, and what all of them do together
      >>tables       of back end and edges, and the functions that everybody else sees

   It knows nothing of schedules. Two ideas carry it:

   A worker is a stream. What the trainer calls is only noted, in a list of commands, until
   something needs the order of several streams or the end of all work: a hand-off, or the end of a
   step. Then the list is issued. A list that comes again, with the same layers, buffers and numbers
   of rows, is recorded as a CUDA graph, and from then on one launch replays it: for a training step
   on one worker, one launch of the host for the whole step. What changes from step to step, such as
   the learning rate or which rows of the data are meant, lies in device memory and is copied there
   just before.
   Within a list, dW is made by a second stream, beside the layers below; see >>queue.

   The host never waits inside a step. Between streams, events order the work: the sender of a
   hand-off records one, the receiver's stream waits for it. As each stream does its commands in the
   order of the calls, and a message is received in the program only after it was sent, the streams
   are ordered in the very way in which the CPU's threads would be.

   Shapes: rows are samples; x [rows][n_in], y and dz [rows][n_out], w and dw [n_out][n_in]. A row
   of a matrix begins at a multiple of 64 bytes; `pitch` is the distance of two rows in elements. T
   is float, or bf16 for activations and their gradients. */
#include "pipemlp.h"

#include <cublasLt.h>
#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#if !defined(PMLP_NO_NCCL) && defined(__has_include)
#  if __has_include(<nccl.h>)
#    include <nccl.h>
#    if NCCL_VERSION_CODE < NCCL_VERSION(2, 18, 0)
#      error "pipemlp_cuda.cu wants NCCL 2.18 or newer; with -DPMLP_NO_NCCL it does without"
#    endif
#    define PMLP__NCCL 1
#    include <arpa/inet.h>
#    include <errno.h>
#    include <fcntl.h>
#    include <netdb.h>
#    include <netinet/in.h>
#    include <netinet/tcp.h>
#    include <poll.h>
#    include <pthread.h>
#    include <sys/socket.h>
#    include <unistd.h>
#  endif
#endif

#include <atomic>
#include <chrono>
#include <limits.h>
#include <math.h>
#include <mutex>
#include <new>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <thread>

typedef __nv_bfloat16 pmlp__bf16;

#ifndef CUDAHOST
/* The type of a kernel's parameter, which arguments are converted to. */
template <class T> struct pmlp__as { typedef T type; };

/* kernel<<<grid, block, bytes, stream>>>(...), with the result of this launch, not of whatever
   failed on this thread before. */
template <class... P>
static cudaError_t pmlp__launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t bytes,
                                cudaStream_t stream, typename pmlp__as<P>::type... a) {
    void *arguments[] = {(void *)&a...};
    return cudaLaunchKernel((const void *)kernel, grid, block, arguments, bytes, stream);
}

/* clang-format off */
#  define PMLP__LAUNCH(kernel, ...) pmlp__launch((kernel), __VA_ARGS__)
#else /* tests on machines without a GPU: a header of the name of CUDA's runs kernels on the CPU */
#  define PMLP__LAUNCH(kernel, ...) cudahost::launch(#kernel, (kernel), __VA_ARGS__)
#endif
/* clang-format on */

/*============================================================================================*/
/* >>kernels                                                                                  */
/*============================================================================================*/

static const unsigned PMLP__WARP = 32, PMLP__ALL_LANES = 0xffffffffu;

static unsigned pmlp__blocks(size_t items, size_t per_block, size_t most) {
    const size_t blocks = (items + per_block - 1) / per_block;
    return (unsigned)(blocks < 1 ? 1 : blocks < most ? blocks : most);
}

__device__ static float pmlp__get(const float *p) {
    return *p;
}
__device__ static float pmlp__get(const pmlp__bf16 *p) {
    return __bfloat162float(*p);
}
__device__ static void pmlp__set(float *p, float v) {
    *p = v;
}
__device__ static void pmlp__set(pmlp__bf16 *p, float v) {
    *p = __float2bfloat16(v);
}

/* --- activations ------------------------------------------------------------------------------ */

__device__ static float pmlp__normal_cdf(float z) {
    return 0.5f * erfcf(-z * 0.70710678f);
}

__device__ static float pmlp__activated(pmlp_activation f, float z) {
    switch (f) {
    case PMLP_RELU: return z < 0.0f ? 0.0f : z; /* a NaN stays a NaN */
    case PMLP_SIGMOID: return 1.0f / (1.0f + expf(-z));
    case PMLP_TANH: return tanhf(z);
    case PMLP_GELU: return z * pmlp__normal_cdf(z);
    default: return z;
    }
}

/* f'(z), from y = f(z) where that is enough, and from z for GELU, which keeps it beside y. */
__device__ static float pmlp__slope(pmlp_activation f, float y, float z) {
    switch (f) {
    case PMLP_RELU: return y > 0.0f ? 1.0f : 0.0f;
    case PMLP_SIGMOID: return y * (1.0f - y);
    case PMLP_TANH: return 1.0f - y * y;
    case PMLP_GELU: return pmlp__normal_cdf(z) + z * 0.39894228f * expf(-0.5f * z * z);
    default: return 1.0f;
    }
}

/* A thread for each element of a matrix of rows: a warp has neighbours in a row. */
typedef struct pmlp__elements {
    dim3 grid, block;
} pmlp__elements;

static pmlp__elements pmlp__elements_of(size_t rows, size_t n) {
    pmlp__elements e;
    e.block = dim3(PMLP__WARP, 8);
    e.grid = dim3(pmlp__blocks(n, e.block.x, 65535), pmlp__blocks(rows, e.block.y, 65535));
    return e;
}

/* The loops of such a kernel over row r and column j. */
/* clang-format off */
#define PMLP__FOR_ELEMENTS(r, j, rows, n)                                                          \
    for (size_t r = (size_t)blockIdx.y * blockDim.y + threadIdx.y; r < (rows);                     \
         r += (size_t)gridDim.y * blockDim.y)                                                      \
        for (size_t j = (size_t)blockIdx.x * blockDim.x + threadIdx.x; j < (n);                    \
             j += (size_t)gridDim.x * blockDim.x)
/* clang-format on */

/* y [rows][n] holds W x, or W x + b if b is NULL; becomes f(W x + b), with z `keep` elements
   further for GELU. */
template <class T>
__global__ static void pmlp__k_activate(pmlp_activation f, size_t rows, size_t n, const T *b, T *y,
                                        size_t pitch, size_t keep) {
    PMLP__FOR_ELEMENTS(r, j, rows, n) {
        T *const at = y + r * pitch + j;
        const float z = pmlp__get(at) + (b ? pmlp__get(b + j) : 0.0f);
        if (f == PMLP_GELU) pmlp__set(at + keep, z);
        pmlp__set(at, pmlp__activated(f, z));
    }
}

template <class T>
static cudaError_t pmlp__launch_activate(cudaStream_t stream, pmlp_activation f, size_t rows,
                                         size_t n, const T *b, T *y, size_t pitch, size_t keep) {
    const pmlp__elements e = pmlp__elements_of(rows, n);
    return PMLP__LAUNCH(pmlp__k_activate<T>, e.grid, e.block, 0, stream, f, rows, n, b, y, pitch,
                        keep);
}

/* d [rows][n] *= f'(z), from the outputs y, which have the same pitch. */
template <class T>
__global__ static void pmlp__k_derive(pmlp_activation f, size_t rows, size_t n, const T *y, T *d,
                                      size_t pitch, size_t keep) {
    PMLP__FOR_ELEMENTS(r, j, rows, n) {
        const size_t at = r * pitch + j;
        const float z = f == PMLP_GELU ? pmlp__get(y + at + keep) : 0.0f;
        pmlp__set(d + at, pmlp__get(d + at) * pmlp__slope(f, pmlp__get(y + at), z));
    }
}

template <class T>
static cudaError_t pmlp__launch_derive(cudaStream_t stream, pmlp_activation f, size_t rows,
                                       size_t n, const T *y, T *d, size_t pitch, size_t keep) {
    const pmlp__elements e = pmlp__elements_of(rows, n);
    if (f == PMLP_LINEAR) return cudaSuccess;
    return PMLP__LAUNCH(pmlp__k_derive<T>, e.grid, e.block, 0, stream, f, rows, n, y, d, pitch,
                        keep);
}

/* --- input ------------------------------------------------------------------------------------ */

/* Where the user's data is on the device. It lies in device memory itself, so that a recorded graph
   can be used for other data. */
typedef struct pmlp__source {
    const float *x;       /* [..][n_in] */
    const int *labels;    /* or NULL */
    const float *targets; /* [..][n_out], or NULL */
} pmlp__source;

/* x [rows][n] = rows index[0 .. rows-1] of the data; a block per row. */
template <class T>
__global__ static void pmlp__k_input(size_t rows, size_t n, const pmlp__source *source,
                                     const uint32_t *index, T *x, size_t pitch) {
    const float *const data = source->x;
    for (size_t r = blockIdx.x; r < rows; r += gridDim.x) {
        const float *const from = data + index[r] * n;
        for (size_t i = threadIdx.x; i < n; i += blockDim.x) pmlp__set(x + r * pitch + i, from[i]);
    }
}

template <class T>
static cudaError_t pmlp__launch_input(cudaStream_t stream, size_t rows, size_t n,
                                      const pmlp__source *source, const uint32_t *index, T *x,
                                      size_t pitch) {
    return PMLP__LAUNCH(pmlp__k_input<T>, pmlp__blocks(rows, 1, 65535), 256, 0, stream, rows, n,
                        source, index, x, pitch);
}

/* --- loss ------------------------------------------------------------------------------------- */

typedef struct pmlp__loss_kernel_args {
    pmlp_loss loss;
    pmlp_activation f; /* of the last layer */
    size_t rows, n, pitch, keep;
    const pmlp__source *source;
    const uint32_t *index; /* [rows]: of the source */
    float scale;
    double *row_loss;       /* [rows] */
    unsigned char *row_hit; /* [rows] */
} pmlp__loss_kernel_args;

/* Each lane gets what all lanes would get by adding in the same tree. */
__device__ static double pmlp__warp_sum(double v) {
    for (unsigned i = PMLP__WARP / 2; i > 0; i /= 2) v += __shfl_xor_sync(PMLP__ALL_LANES, v, i);
    return v;
}

/* The largest value of the lanes, and its place: the first one, if several are equal. */
__device__ static void pmlp__warp_max(float *value, unsigned *place) {
    for (unsigned i = PMLP__WARP / 2; i > 0; i /= 2) {
        const float v = __shfl_xor_sync(PMLP__ALL_LANES, *value, i);
        const unsigned p = __shfl_xor_sync(PMLP__ALL_LANES, *place, i);
        if (v > *value || (v == *value && p < *place)) *value = v, *place = p;
    }
}

/* Loss of each row and dz, the derivative by the last layer's z; a warp per row, whose lanes share
   the outputs. With p = softmax(y) and t the one-hot row of the label:
        cross-entropy   loss = log sum e^(y - max) - (y[label] - max),   dy = p - t
        squared error   loss = sum 1/2 (y - t)^2,                        dy = y - t   */
template <class T>
__global__ static void pmlp__k_loss(pmlp__loss_kernel_args a, const T *y, T *dz) {
    const unsigned lane = threadIdx.x % PMLP__WARP, warps = blockDim.x / PMLP__WARP;
    const pmlp__source from = *a.source;
    for (size_t r = (size_t)blockIdx.x * warps + threadIdx.x / PMLP__WARP; r < a.rows;
         r += (size_t)gridDim.x * warps) {
        const T *const row = y + r * a.pitch;
        const unsigned label = from.labels ? (unsigned)from.labels[a.index[r]] : 0;
        const float *const target = from.targets ? from.targets + a.index[r] * a.n : NULL;
        float max = -INFINITY, at_label = 0.0f;
        unsigned best = lane < a.n ? lane : 0;
        double sum = 0.0, shift = 0.0;
        for (unsigned j = lane; j < a.n; j += PMLP__WARP) {
            const float v = pmlp__get(row + j);
            if (v > max) max = v, best = j;
        }
        pmlp__warp_max(&max, &best);
        if (a.loss == PMLP_LOSS_XENT) {
            for (unsigned j = lane; j < a.n; j += PMLP__WARP)
                sum += (double)expf(pmlp__get(row + j) - max);
            sum = pmlp__warp_sum(sum);
            at_label = pmlp__get(row + label);
            shift = log(sum) - ((double)at_label - (double)max);
        }
        for (unsigned j = lane; j < a.n; j += PMLP__WARP) {
            const float v = pmlp__get(row + j);
            const float t = target ? target[j] : from.labels && j == label ? 1.0f : 0.0f;
            float d;
            if (a.loss == PMLP_LOSS_XENT) {
                d = (float)((double)expf(v - max) / sum) - t;
            } else {
                d = v - t;
                shift += 0.5 * (double)d * (double)d;
            }
            if (!dz) continue;
            const float z = a.f == PMLP_GELU ? pmlp__get(row + a.keep + j) : 0.0f;
            pmlp__set(dz + r * a.pitch + j, d * a.scale * pmlp__slope(a.f, v, z));
        }
        if (a.loss != PMLP_LOSS_XENT) shift = pmlp__warp_sum(shift);
        if (lane == 0) {
            a.row_loss[r] = shift;
            a.row_hit[r] = from.labels && best == label;
        }
    }
}

template <class T>
static cudaError_t pmlp__launch_loss(cudaStream_t stream, const pmlp__loss_kernel_args *a,
                                     const T *y, T *dz) {
    return PMLP__LAUNCH(pmlp__k_loss<T>, pmlp__blocks(a->rows, 4, 65535), 4 * PMLP__WARP, 0, stream,
                        *a, y, dz);
}

/* --- bias gradients and norms ----------------------------------------------------------------- */

/* Of several layers in one launch. */
enum { PMLP__MANY = 16 };

typedef struct pmlp__bias_gradient {
    const void *dz; /* [rows][n] */
    float *db;      /* [n] */
    size_t rows, n, pitch;
    bool accumulate;
} pmlp__bias_gradient;

typedef struct pmlp__bias_gradients {
    pmlp__bias_gradient at[PMLP__MANY];
} pmlp__bias_gradients;

/* db (+)= column sums of dz. A block has blockDim.x columns and blockDim.y threads for each, one of
   which takes every so many rows; then their sums are added from the first to the last. With
   blockDim.y = 1 a column is one chain of additions in the order of the rows, the CPU's. */
template <class T> __global__ static void pmlp__k_bias_gradients(pmlp__bias_gradients all) {
    __shared__ float part[64][32 + 1];
    const pmlp__bias_gradient a = all.at[blockIdx.y];
    const T *const dz = (const T *)a.dz;
    const size_t stride = (size_t)gridDim.x * blockDim.x;
    for (size_t first = (size_t)blockIdx.x * blockDim.x; first < a.n; first += stride) {
        const size_t j = first + threadIdx.x;
        float sum = 0.0f;
        if (j < a.n) {
            if (threadIdx.y == 0 && a.accumulate) sum = a.db[j];
            for (size_t r = threadIdx.y; r < a.rows; r += blockDim.y)
                sum += pmlp__get(dz + r * a.pitch + j);
        }
        part[threadIdx.y][threadIdx.x] = sum;
        __syncthreads();
        if (threadIdx.y == 0 && j < a.n) {
            for (unsigned i = 1; i < blockDim.y; i++) sum += part[i][threadIdx.x];
            a.db[j] = sum;
        }
        __syncthreads();
    }
}

template <class T>
static cudaError_t pmlp__launch_bias_gradients(cudaStream_t stream, const pmlp__bias_gradients *all,
                                               int count, size_t widest, bool in_order) {
    const dim3 block(in_order ? 32 : 8, in_order ? 1 : 64);
    const dim3 grid(pmlp__blocks(widest, block.x, 1024), (unsigned)count);
    return PMLP__LAUNCH(pmlp__k_bias_gradients<T>, grid, block, 0, stream, *all);
}

/* squares[o] = sum of dw[o][..]^2 + db[o]^2, in double; a block per output. */
__global__ static void pmlp__k_squares(size_t n_in, const float *dw, size_t pitch, const float *db,
                                       double *squares) {
    __shared__ double part[256 / 32];
    const float *const row = dw + blockIdx.x * pitch;
    double sum = 0.0;
    for (size_t i = threadIdx.x; i < n_in; i += blockDim.x) sum += (double)row[i] * (double)row[i];
    sum = pmlp__warp_sum(sum);
    if (threadIdx.x % PMLP__WARP == 0) part[threadIdx.x / PMLP__WARP] = sum;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (unsigned i = 1; i < blockDim.x / PMLP__WARP; i++) sum += part[i];
    squares[blockIdx.x] = sum + (double)db[blockIdx.x] * (double)db[blockIdx.x];
}

static cudaError_t pmlp__launch_squares(cudaStream_t stream, size_t n_in, size_t n_out,
                                        const float *dw, size_t pitch, const float *db,
                                        double *squares) {
    return PMLP__LAUNCH(pmlp__k_squares, (unsigned)n_out, 256, 0, stream, n_in, dw, pitch, db,
                        squares);
}

/* --- optimizers ------------------------------------------------------------------------------- */

/* The numbers of a step, which lie in device memory. */
typedef struct pmlp__step {
    float lr, momentum, beta1, beta2, epsilon, decay, scale;
    float rate, keep; /* Adam: lr / (1 - beta1^step); AdamW: 1 - lr decay */
    double fix2;      /* 1 - beta2^step */
} pmlp__step;

/* A layer's parameters and what belongs to them, each [n_out][pitch] and then [n_out] biases. */
typedef struct pmlp__parameters {
    const float *from;
    float *to;
    pmlp__bf16 *rounded; /* of `to`, for products in bf16; or NULL */
    const float *gradient;
    float *moment1, *moment2; /* NULL if the optimizer has none */
    size_t weights, count;    /* the biases come behind the weights, and are not decayed */
    const pmlp__step *step;
} pmlp__parameters;

typedef struct pmlp__many_parameters {
    pmlp__parameters at[PMLP__MANY];
} pmlp__many_parameters;

/* One parameter. What is added to a product of two floats is fused with it, so it rounds once, as
   on the CPU. */
__device__ static float pmlp__updated(pmlp_optimizer optimizer, const pmlp__step &s, float decay,
                                      float w, float gradient, float *m1, float *m2) {
    const float d = fmaf(optimizer == PMLP_ADAMW ? 0.0f : decay, w, s.scale * gradient);
    switch (optimizer) {
    case PMLP_MOMENTUM: *m1 = fmaf(s.momentum, *m1, d); return fmaf(-s.lr, *m1, w);
    case PMLP_NESTEROV:
        *m1 = fmaf(s.momentum, *m1, d);
        return fmaf(-s.lr, fmaf(s.momentum, *m1, d), w);
    case PMLP_ADAM:
    case PMLP_ADAMW:
        *m1 = fmaf(s.beta1, *m1, (1.0f - s.beta1) * d);
        *m2 = fmaf(s.beta2, *m2, (1.0f - s.beta2) * (d * d));
        return (optimizer == PMLP_ADAMW && decay > 0.0f ? s.keep : 1.0f) * w -
               s.rate * *m1 / (sqrtf((float)((double)*m2 / s.fix2)) + s.epsilon);
    default: return fmaf(-s.lr, d, w);
    }
}

/* All parameters of several layers; blockIdx.y is the layer. */
__global__ static void pmlp__k_update(pmlp_optimizer optimizer, pmlp__many_parameters all) {
    const pmlp__parameters p = all.at[blockIdx.y];
    const pmlp__step s = *p.step;
    const size_t stride = (size_t)gridDim.x * blockDim.x;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < p.count; i += stride) {
        float m1 = p.moment1 ? p.moment1[i] : 0.0f, m2 = p.moment2 ? p.moment2[i] : 0.0f;
        const float w = pmlp__updated(optimizer, s, i < p.weights ? s.decay : 0.0f, p.from[i],
                                      p.gradient[i], &m1, &m2);
        p.to[i] = w;
        if (p.moment1) p.moment1[i] = m1;
        if (p.moment2) p.moment2[i] = m2;
        if (p.rounded) p.rounded[i] = __float2bfloat16(w);
    }
}

static cudaError_t pmlp__launch_update(cudaStream_t stream, pmlp_optimizer optimizer,
                                       const pmlp__many_parameters *all, int count,
                                       size_t largest) {
    const dim3 grid(pmlp__blocks(largest, 256, 1024), (unsigned)count);
    return PMLP__LAUNCH(pmlp__k_update, grid, 256, 0, stream, optimizer, *all);
}

__global__ static void pmlp__k_round(size_t n, const float *from, pmlp__bf16 *to) {
    const size_t stride = (size_t)gridDim.x * blockDim.x;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride)
        to[i] = __float2bfloat16(from[i]);
}

static cudaError_t pmlp__launch_round(cudaStream_t stream, size_t n, const float *from,
                                      pmlp__bf16 *to) {
    return PMLP__LAUNCH(pmlp__k_round, pmlp__blocks(n, 256, 4096), 256, 0, stream, n, from, to);
}

/* --- the teaching product --------------------------------------------------------------------- */

/* C [m][n] = P Q, or C += P Q, where P(r, k) = p[r * p_r + k * p_k] and Q(k, c) = q[k * q_k + c *
   q_c]: strides, so that one kernel does all three products of a layer without a transposition.

        forward            y  [rows][n_out]  = x [rows][n_in]   w^T      k runs over inputs
        backward input     dx [rows][n_in]   = dz [rows][n_out] w        k runs over outputs
        backward weight    dw [n_out][n_in] += dz^T [n_out][rows] x      k runs over rows

   A block computes a TILE x TILE square of C. It walks over k in steps of STEP: its threads load
   TILE x STEP of P and STEP x TILE of Q into shared memory together, so that each number comes from
   global memory once per block and not once per element of C; then each thread multiplies. A thread
   has EACH x EACH elements of C in registers: for 2 EACH numbers that it reads from shared memory
   it does EACH^2 multiply-adds, and arithmetic, not memory, is what takes the time.

            Q     . . # # . .          thread (tx, ty) of SIDE x SIDE has rows ty, ty + SIDE, ...
                  . . # # . .          and columns tx, tx + SIDE, ...: neighbouring threads
        P  . .                         read neighbouring numbers, and store neighbouring results
           # #    . . C C . .
           # #    . . C C . .

   Every element is one chain of fused multiply-adds over ascending k, which continues where C was
   when accumulating: its bits depend neither on the tiles nor on how rows are cut into calls. */
template <class TP, class TQ, class TC>
__global__ static void pmlp__k_product(size_t m, size_t n, size_t k, const TP *p, size_t p_r,
                                       size_t p_k, const TQ *q, size_t q_k, size_t q_c, TC *c,
                                       size_t c_r, bool accumulate) {
    enum { TILE = 64, STEP = 16, SIDE = 16, EACH = TILE / SIDE };
    __shared__ float ps[STEP][TILE + 1], qs[STEP][TILE + 1]; /* + 1: other banks for each row */
    const unsigned tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
    const size_t row = (size_t)blockIdx.y * TILE, column = (size_t)blockIdx.x * TILE;
    float sum[EACH][EACH];
    for (unsigned i = 0; i < EACH; i++)
        for (unsigned j = 0; j < EACH; j++) {
            const size_t r = row + ty + i * SIDE, s = column + tx + j * SIDE;
            sum[i][j] = accumulate && r < m && s < n ? pmlp__get(c + r * c_r + s) : 0.0f;
        }
    for (size_t first = 0; first < k; first += STEP) {
        for (unsigned i = threadIdx.x; i < STEP * TILE; i += SIDE * SIDE) {
            /* which of the two indices runs fastest in memory decides who loads what */
            const unsigned pk = p_k == 1 ? i % STEP : i / TILE, pr = p_k == 1 ? i / STEP : i % TILE;
            const unsigned qk = q_k == 1 ? i % STEP : i / TILE, qc = q_k == 1 ? i / STEP : i % TILE;
            ps[pk][pr] = first + pk < k && row + pr < m
                             ? pmlp__get(p + (row + pr) * p_r + (first + pk) * p_k)
                             : 0.0f;
            qs[qk][qc] = first + qk < k && column + qc < n
                             ? pmlp__get(q + (first + qk) * q_k + (column + qc) * q_c)
                             : 0.0f;
        }
        __syncthreads();
        const unsigned steps = k - first < STEP ? (unsigned)(k - first) : (unsigned)STEP;
        for (unsigned s = 0; s < steps; s++) {
            float a[EACH], b[EACH];
            for (unsigned i = 0; i < EACH; i++) a[i] = ps[s][ty + i * SIDE];
            for (unsigned j = 0; j < EACH; j++) b[j] = qs[s][tx + j * SIDE];
            for (unsigned i = 0; i < EACH; i++)
                for (unsigned j = 0; j < EACH; j++) sum[i][j] = fmaf(a[i], b[j], sum[i][j]);
        }
        __syncthreads();
    }
    for (unsigned i = 0; i < EACH; i++)
        for (unsigned j = 0; j < EACH; j++) {
            const size_t r = row + ty + i * SIDE, s = column + tx + j * SIDE;
            if (r < m && s < n) pmlp__set(c + r * c_r + s, sum[i][j]);
        }
}

template <class TP, class TQ, class TC>
static cudaError_t pmlp__launch_product(cudaStream_t stream, size_t m, size_t n, size_t k,
                                        const TP *p, size_t p_r, size_t p_k, const TQ *q,
                                        size_t q_k, size_t q_c, TC *c, size_t c_r,
                                        bool accumulate) {
    const dim3 grid((unsigned)((n + 63) / 64), (unsigned)((m + 63) / 64));
    return PMLP__LAUNCH((pmlp__k_product<TP, TQ, TC>), grid, 256, 0, stream, m, n, k, p, p_r, p_k,
                        q, q_k, q_c, c, c_r, accumulate);
}

/*============================================================================================*/
/* >>context: a worker's stream, its memory, and why it failed                                */
/*============================================================================================*/

static const size_t PMLP__ROW_BYTES = 64; /* a row begins at a multiple of these */
/* How many are kept per worker; a test has fewer. */
#ifndef PMLP__GRAPHS
#  define PMLP__GRAPHS 512
#  define PMLP__PLANS  256
#endif
#ifndef PMLP__MIRROR
#  define PMLP__MIRROR ((size_t)1 << 20) /* bytes; larger if a step needs more */
#endif

/* Pinned host memory and as much device memory, for what is copied between the two. Pieces are
   handed out one behind the other and are all free again at the next synchronize(). */
typedef struct pmlp__mirror {
    char *host, *device;
    size_t size, used;
    size_t begin; /* of the list of commands that is being noted */
    struct pmlp__mirror *before; /* the smaller one in whose place it came */
} pmlp__mirror;

/* The user's data that was promised to stay as it is, and its copy on the device. */
typedef struct pmlp__copy {
    const void *host;
    size_t bytes;
    void *device; /* NULL: there was no memory for it, and it comes batch by batch */
    struct pmlp__copy *next;
} pmlp__copy;

/* Where results go that the host gets at the next synchronize(). */
typedef struct pmlp__result_copy {
    size_t at, bytes; /* in the mirror */
    void *to;
} pmlp__result_copy;

/* A time that is asked for: when the event happened. */
typedef struct pmlp__stamp_wish {
    cudaEvent_t event;
    double *seconds;
} pmlp__stamp_wish;

typedef struct pmlp__cuda_layer {
    pmlp_layer_desc desc;
    size_t pitch, weights, count; /* of w, elements: of a row, of all rows, with the biases */
    float *memory;                /* all below */
    float *params;                /* [versions][count] */
    float *gradient, *moment1, *moment2; /* [count]; NULL if not needed */
    pmlp__bf16 *rounded;                 /* [versions][count], or NULL */
    int latest;
} pmlp__cuda_layer;

enum pmlp__op {
    PMLP__INPUT,
    PMLP__FORWARD,
    PMLP__BACKWARD_INPUT,
    PMLP__BACKWARD_WEIGHT,
    PMLP__LOSS,
    PMLP__SQUARES,
    PMLP__UPDATE
};

/* A noted operation. All bytes count: two lists of equal bytes do the same. */
typedef struct pmlp__command {
    int op, from, to; /* versions */
    int kind;         /* of loss or optimizer */
    int flag;         /* of W: accumulate */
    float scale;      /* of the loss */
    pmlp__cuda_layer *layer;
    size_t rows, n;
    const void *x, *y;
    void *out;
    size_t up, index, down; /* places in the mirrors */
} pmlp__command;
static_assert(sizeof(pmlp__command) == 6 * sizeof(int) + sizeof(pmlp__cuda_layer *) +
                                           3 * sizeof(void *) + 5 * sizeof(size_t),
              "a command has no padding, whose bytes would be anything");

typedef struct pmlp__graph {
    pmlp__command *commands;
    int count;
    uint64_t hash, used; /* used: when, for the one that gives way */
    bool refused;        /* it could not be recorded */
    cudaGraphExec_t exec;
} pmlp__graph;

/* A product whose algorithm is chosen. */
typedef struct pmlp__plan_key {
    int ta, tb, types, epilogue;
    size_t m, n, k, lda, ldb, ldc;
} pmlp__plan_key;

typedef struct pmlp__plan {
    pmlp__plan_key key;
    bool offered; /* cuBLASLt has one */
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t a, b, c;
    cublasLtMatmulAlgo_t algorithm;
} pmlp__plan;

typedef struct pmlp__cuda {
    pmlp_allocator allocator;
    pmlp_cuda_options options;
    int device;
    cudaStream_t stream;
    cudaStream_t beside; /* for dW, beside what `stream` does; see >>queue */
    cudaEvent_t fork, join;
    cudaStream_t loads; /* of data that stays on the device */
    cublasHandle_t blas;
    cublasLtHandle_t lt;
    void *workspace;       /* of the libraries' products, a half for each of the two streams */
    size_t workspace_size; /* of a half */
    pmlp__mirror up, down;
    pmlp__copy *copies;

    pmlp__command *commands; /* noted, not yet issued */
    int count, room;
    pmlp__graph graphs[PMLP__GRAPHS];
    int graph_count, graph_found; /* found: the last one */
    uint64_t turn;
    pmlp__plan *plans; /* [PMLP__PLANS] */
    int plan_count;

    pmlp__result_copy *results;
    int result_count, result_room;
    pmlp__stamp_wish *stamps;
    int stamp_count, stamp_room, stamp_events; /* the first so many have their event */
    cudaEvent_t origin;                        /* recorded when the clock read: */
    double origin_seconds;
    pmlp_result failed; /* issuing did; the next synchronize() says so at the latest */
    char why[256];

    struct pmlp__team *team; /* with whom it fails; NULL: it has no wires, see >>wires */
    double patience;         /* seconds that it waits for the other end of a wire; 0: has none */
    bool given_up;           /* its team has failed, and it waits for nobody any more */
    struct pmlp__adder *sum;   /* of its gradients over replicas, or NULL */
} pmlp__cuda;

/* --- host memory ------------------------------------------------------------------------------ */

static void *pmlp__host_new(const pmlp_allocator *allocator, size_t bytes) {
    void *const p = allocator->alloc ? allocator->alloc(bytes, allocator->user) : malloc(bytes);
    if (p) memset(p, 0, bytes);
    return p;
}

static void pmlp__host_delete(const pmlp_allocator *allocator, void *p) {
    if (!p) return;
    if (allocator->free)
        allocator->free(p, allocator->user);
    else
        free(p);
}

/* Room for one element more in an array that grows by doubling. */
template <class T>
static bool pmlp__host_grow(const pmlp_allocator *allocator, T **array, int count, int *room) {
    if (count < *room) return true;
    const int more = *room ? 2 * *room : 64;
    if (*room > INT_MAX / 2) return false;
    T *const grown = (T *)pmlp__host_new(allocator, (size_t)more * sizeof(T));
    if (!grown) return false;
    if (count > 0) memcpy((void *)grown, (const void *)*array, (size_t)count * sizeof(T));
    pmlp__host_delete(allocator, *array);
    *array = grown;
    *room = more;
    return true;
}

/* --- results ---------------------------------------------------------------------------------- */

static pmlp_result pmlp__cuda_failed(pmlp__cuda *c, const char *what, cudaError_t error) {
    snprintf(c->why, sizeof c->why, "%s on GPU %d: %s (%s)", what, c->device,
             cudaGetErrorString(error), cudaGetErrorName(error));
    cudaGetLastError(); /* said; nobody else shall take it for theirs */
    return error == cudaErrorMemoryAllocation ? PMLP_ERROR_MEMORY : PMLP_ERROR_BACKEND;
}

static pmlp_result pmlp__blas_failed(pmlp__cuda *c, const char *what, cublasStatus_t status) {
    snprintf(c->why, sizeof c->why, "%s on GPU %d: %s", what, c->device,
             cublasGetStatusString(status));
    return status == CUBLAS_STATUS_ALLOC_FAILED ? PMLP_ERROR_MEMORY : PMLP_ERROR_BACKEND;
}

static pmlp_result pmlp__no_host_memory(pmlp__cuda *c) {
    snprintf(c->why, sizeof c->why, "out of host memory");
    return PMLP_ERROR_MEMORY;
}

/* clang-format off */
#define PMLP__CUDA(c, what, ...)                                                                   \
    do {                                                                                           \
        const cudaError_t error_ = (__VA_ARGS__);                                                  \
        if (error_ != cudaSuccess) return pmlp__cuda_failed(c, what, error_);                      \
    } while (0)
/* The same for a call in which T is the type of activations. */
#define PMLP__TYPED(c, what, ...)                                                                  \
    do {                                                                                           \
        if (pmlp__is_bf16(c)) {                                                                    \
            typedef pmlp__bf16 T;                                                                  \
            PMLP__CUDA(c, what, __VA_ARGS__);                                                      \
        } else {                                                                                   \
            typedef float T;                                                                       \
            PMLP__CUDA(c, what, __VA_ARGS__);                                                      \
        }                                                                                          \
    } while (0)
#define PMLP__BLAS(c, what, call)                                                                  \
    do {                                                                                           \
        const cublasStatus_t status_ = (call);                                                     \
        if (status_ != CUBLAS_STATUS_SUCCESS) return pmlp__blas_failed(c, what, status_);          \
    } while (0)
#define PMLP__TRY(call)                                                                            \
    do {                                                                                           \
        const pmlp_result result_ = (call);                                                        \
        if (result_ != PMLP_OK) return result_;                                                    \
    } while (0)
/* clang-format on */

/* Every entry comes through here: calls come from several threads, each of which has a current
   device of its own. */
static pmlp_result pmlp__enter_device(pmlp__cuda *c) {
    PMLP__CUDA(c, "choosing the device", cudaSetDevice(c->device));
    return PMLP_OK;
}

static double pmlp__seconds(void) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

/* Who goes first where a GPU cannot do all at once: messages, which others wait for; then what leads
   to messages; then dW. */
enum pmlp__priority { PMLP__FIRST, PMLP__NEXT, PMLP__LAST };

static cudaError_t pmlp__new_stream(cudaStream_t *stream, enum pmlp__priority which) {
    int last = 0, first = 0; /* the first has the smaller number */
    const cudaError_t error = cudaDeviceGetStreamPriorityRange(&last, &first);
    const int next = last > first ? last - 1 : last;
    if (error != cudaSuccess) return error;
    return cudaStreamCreateWithPriority(stream, cudaStreamNonBlocking,
                                        which == PMLP__FIRST  ? first
                                        : which == PMLP__NEXT ? next
                                                              : last);
}

/* --- shapes ----------------------------------------------------------------------------------- */

static bool pmlp__is_bf16(const pmlp__cuda *c) {
    return c->options.math == PMLP_CUDA_BF16;
}

/* Of activations and their gradients. */
static size_t pmlp__element_size(const pmlp__cuda *c) {
    return pmlp__is_bf16(c) ? sizeof(pmlp__bf16) : sizeof(float);
}

/* Elements of n outputs, rounded up to whole pieces of a row. */
static size_t pmlp__padded(const pmlp__cuda *c, size_t n) {
    const size_t step = PMLP__ROW_BYTES / pmlp__element_size(c);
    return (n + step - 1) / step * step;
}

/* GELU's slope cannot be had from y, so z lies behind y in each row. */
static size_t pmlp__pitch(const pmlp__cuda *c, size_t n, pmlp_activation f) {
    return pmlp__padded(c, n) * (f == PMLP_GELU ? 2 : 1);
}

/* --- mirrors ---------------------------------------------------------------------------------- */

static void pmlp__mirror_free(pmlp__cuda *c, pmlp__mirror *mirror) {
    pmlp__mirror *const before = mirror->before;
    if (mirror->host) cudaFreeHost(mirror->host);
    if (mirror->device) cudaFree(mirror->device);
    memset(mirror, 0, sizeof *mirror);
    if (before) pmlp__mirror_free(c, before);
    pmlp__host_delete(&c->allocator, before);
}

/* One that was there stays until the end: to free memory can mean to wait for the whole GPU, and so
   for messages of other workers, amid a step. */
static pmlp_result pmlp__mirror_make(pmlp__cuda *c, pmlp__mirror *mirror, size_t bytes) {
    if (mirror->size > 0) {
        pmlp__mirror *const before = (pmlp__mirror *)pmlp__host_new(&c->allocator, sizeof *before);
        if (!before) return pmlp__no_host_memory(c);
        *before = *mirror;
        memset(mirror, 0, sizeof *mirror);
        mirror->before = before;
    }
    PMLP__CUDA(c, "allocating pinned memory", cudaMallocHost((void **)&mirror->host, bytes));
    PMLP__CUDA(c, "allocating", cudaMalloc((void **)&mirror->device, bytes));
    mirror->size = bytes;
    return PMLP_OK;
}

static pmlp_result pmlp__cuda_synchronize(void *context);

static void pmlp__forget_graphs(pmlp__cuda *c) {
    for (int i = 0; i < c->graph_count; i++) {
        if (c->graphs[i].exec) cudaGraphExecDestroy(c->graphs[i].exec);
        pmlp__host_delete(&c->allocator, c->graphs[i].commands);
    }
    c->graph_count = 0;
}

static size_t pmlp__piece(size_t bytes) {
    return (bytes + 15) / 16 * 16;
}

/* Makes room in a mirror. If there is too little, everything is waited for, and the mirror starts
   anew, larger if it must be: in the first steps only, since steps are alike. */
static pmlp_result pmlp__mirror_reserve(pmlp__cuda *c, pmlp__mirror *mirror, size_t bytes) {
    const size_t most = (size_t)64 << 20;
    size_t size = 2 * (mirror->used + bytes);
    if (mirror->used + bytes <= mirror->size) return PMLP_OK;
    PMLP__TRY(pmlp__cuda_synchronize(c));
    if (size > most) size = mirror->size > most ? mirror->size : most;
    if (size < bytes) size = bytes;
    if (size <= mirror->size) return PMLP_OK;
    pmlp__forget_graphs(c); /* they know the old addresses */
    return pmlp__mirror_make(c, mirror, size);
}

/* An operation reserves all that it needs before it takes its pieces. */
static pmlp_result pmlp__make_room(pmlp__cuda *c, size_t up, size_t down) {
    PMLP__TRY(pmlp__enter_device(c));
    PMLP__TRY(pmlp__mirror_reserve(c, &c->up, up));
    return pmlp__mirror_reserve(c, &c->down, down);
}

static size_t pmlp__mirror_take(pmlp__mirror *mirror, size_t bytes) {
    const size_t at = mirror->used;
    mirror->used += pmlp__piece(bytes);
    return at;
}

/* --- data that stays on the device ------------------------------------------------------------ */

/* Where `bytes` of the user's are on the device: in a copy that is there, or in one that is made
   now; NULL without memory for it. */
static pmlp_result pmlp__resident(pmlp__cuda *c, const void *host, size_t bytes, const void **at) {
    const uintptr_t wanted = (uintptr_t)host;
    pmlp__copy *copy = c->copies;
    for (; copy; copy = copy->next)
        if (wanted >= (uintptr_t)copy->host &&
            wanted - (uintptr_t)copy->host + bytes <= copy->bytes)
            break;
    if (!copy) {
        copy = (pmlp__copy *)pmlp__host_new(&c->allocator, sizeof *copy);
        if (!copy) return pmlp__no_host_memory(c);
        copy->host = host;
        copy->bytes = bytes;
        copy->next = c->copies;
        c->copies = copy;
        if (cudaMalloc(&copy->device, bytes) != cudaSuccess) {
            copy->device = NULL;
            cudaGetLastError();
        } else {
            /* not behind what the worker's stream waits for: it may block the host */
            cudaError_t error =
                cudaMemcpyAsync(copy->device, host, bytes, cudaMemcpyHostToDevice, c->loads);
            if (error == cudaSuccess) error = cudaStreamSynchronize(c->loads);
            if (error != cudaSuccess) { /* nobody shall take it for the data */
                cudaFree(copy->device);
                copy->device = NULL;
                return pmlp__cuda_failed(c, "copying the data", error);
            }
        }
    }
    *at = copy->device ? (const char *)copy->device + (wanted - (uintptr_t)copy->host) : NULL;
    return PMLP_OK;
}

/*============================================================================================*/
/* >>products: matrix products by cuBLASLt, cuBLAS or the kernel above                        */
/*                                                                                            */
/* Libraries think in columns. A row-major matrix [rows][n] is for them a column-major one of */
/* n x rows, so that they are asked for the transpose of what is wanted, c^T [n][m].          */
/*============================================================================================*/

/* c [m][n] = p q or c += p q, with p [m][k] and q [k][n] stored as they are or transposed. */
typedef struct pmlp__factors {
    size_t m, n, k;
    const void *p, *q;
    void *c;
    size_t p_pitch, q_pitch, c_pitch;
    bool p_transposed, q_transposed; /* stored [k][m], [n][k] */
    bool c_is_float;                 /* even in bf16: a gradient of weights */
    bool accumulate;
    bool beside; /* by the second stream */
} pmlp__factors;

enum { PMLP__NO_EPILOGUE, PMLP__WITH_BIAS, PMLP__WITH_BIAS_AND_RELU };

static cudaDataType_t pmlp__type(const pmlp__cuda *c) {
    return pmlp__is_bf16(c) ? CUDA_R_16BF : CUDA_R_32F;
}

static cudaDataType_t pmlp__type_of_c(const pmlp__cuda *c, const pmlp__factors *f) {
    return f->c_is_float ? CUDA_R_32F : pmlp__type(c);
}

static cublasComputeType_t pmlp__compute_type(const pmlp__cuda *c) {
    return c->options.math == PMLP_CUDA_TF32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
}

static cudaStream_t pmlp__stream_of(const pmlp__cuda *c, const pmlp__factors *f) {
    return f->beside ? c->beside : c->stream;
}

static void *pmlp__workspace_of(const pmlp__cuda *c, const pmlp__factors *f) {
    return (char *)c->workspace + (f->beside ? c->workspace_size : 0);
}

/* --- ours ------------------------------------------------------------------------------------- */

template <class T, class TC>
static cudaError_t pmlp__teaching(pmlp__cuda *c, const pmlp__factors *f) {
    return pmlp__launch_product(
        pmlp__stream_of(c, f), f->m, f->n, f->k, (const T *)f->p, f->p_transposed ? 1 : f->p_pitch,
        f->p_transposed ? f->p_pitch : 1, (const T *)f->q, f->q_transposed ? 1 : f->q_pitch,
        f->q_transposed ? f->q_pitch : 1, (TC *)f->c, f->c_pitch, f->accumulate);
}

/* --- cuBLAS ----------------------------------------------------------------------------------- */

static pmlp_result pmlp__blas_product(pmlp__cuda *c, const pmlp__factors *f) {
    const float one = 1.0f, beta = f->accumulate ? 1.0f : 0.0f;
    /* in this order: a new stream means another workspace */
    PMLP__BLAS(c, "a matrix product", cublasSetStream(c->blas, pmlp__stream_of(c, f)));
    PMLP__BLAS(c, "a matrix product",
               cublasSetWorkspace(c->blas, pmlp__workspace_of(c, f), c->workspace_size));
    PMLP__BLAS(c, "a matrix product",
               cublasGemmEx(c->blas, f->q_transposed ? CUBLAS_OP_T : CUBLAS_OP_N,
                            f->p_transposed ? CUBLAS_OP_T : CUBLAS_OP_N, (int)f->n, (int)f->m,
                            (int)f->k, &one, f->q, pmlp__type(c), (int)f->q_pitch, f->p,
                            pmlp__type(c), (int)f->p_pitch, &beta, f->c, pmlp__type_of_c(c, f),
                            (int)f->c_pitch, pmlp__compute_type(c), CUBLAS_GEMM_DEFAULT));
    return PMLP_OK;
}

/* --- cuBLASLt --------------------------------------------------------------------------------- */

static pmlp__plan_key pmlp__plan_key_of(const pmlp__cuda *c, const pmlp__factors *f, int epilogue) {
    pmlp__plan_key key;
    memset(&key, 0, sizeof key);
    key.ta = f->q_transposed;
    key.tb = f->p_transposed;
    key.types = (int)pmlp__type_of_c(c, f);
    key.epilogue = epilogue;
    key.m = f->n;
    key.n = f->m;
    key.k = f->k;
    key.lda = f->q_pitch;
    key.ldb = f->p_pitch;
    key.ldc = f->c_pitch;
    return key;
}

static void pmlp__plan_free(pmlp__plan *plan) {
    if (plan->product) cublasLtMatmulDescDestroy(plan->product);
    if (plan->a) cublasLtMatrixLayoutDestroy(plan->a);
    if (plan->b) cublasLtMatrixLayoutDestroy(plan->b);
    if (plan->c) cublasLtMatrixLayoutDestroy(plan->c);
    memset(plan, 0, sizeof *plan);
}

static cublasStatus_t pmlp__plan_layouts(const pmlp__cuda *c, pmlp__plan *plan,
                                         cudaDataType_t type_of_c) {
    const pmlp__plan_key *const k = &plan->key;
    const cudaDataType_t type = pmlp__type(c);
    cublasStatus_t status = cublasLtMatrixLayoutCreate(&plan->a, type, k->ta ? k->k : k->m,
                                                       k->ta ? k->m : k->k, (int64_t)k->lda);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = cublasLtMatrixLayoutCreate(&plan->b, type, k->tb ? k->n : k->k,
                                            k->tb ? k->k : k->n, (int64_t)k->ldb);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = cublasLtMatrixLayoutCreate(&plan->c, type_of_c, k->m, k->n, (int64_t)k->ldc);
    return status;
}

static cublasStatus_t pmlp__plan_product(const pmlp__cuda *c, pmlp__plan *plan, const void *bias) {
    const pmlp__plan_key *const k = &plan->key;
    const cublasOperation_t ta = k->ta ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasOperation_t tb = k->tb ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasLtEpilogue_t epilogue = k->epilogue == PMLP__WITH_BIAS ? CUBLASLT_EPILOGUE_BIAS
                                        : k->epilogue == PMLP__WITH_BIAS_AND_RELU
                                            ? CUBLASLT_EPILOGUE_RELU_BIAS
                                            : CUBLASLT_EPILOGUE_DEFAULT;
    cublasStatus_t status =
        cublasLtMatmulDescCreate(&plan->product, pmlp__compute_type(c), CUDA_R_32F);
    /* clang-format off */
#define PMLP__SET(name, value)                                                                     \
    if (status == CUBLAS_STATUS_SUCCESS)                                                           \
    status = cublasLtMatmulDescSetAttribute(plan->product, name, &(value), sizeof(value))
    /* clang-format on */
    PMLP__SET(CUBLASLT_MATMUL_DESC_TRANSA, ta);
    PMLP__SET(CUBLASLT_MATMUL_DESC_TRANSB, tb);
    PMLP__SET(CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
    if (bias) {
        PMLP__SET(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
    }
#undef PMLP__SET
    return status;
}

/* Asks for an algorithm that adds up in one fixed order. Sums may be cut into parts, or dW of many
   rows would keep few of the GPU's processors busy; then the parts are stored, and added in a
   second step. Without an answer plain cuBLAS does it. */
static cublasStatus_t pmlp__plan_choose(pmlp__cuda *c, pmlp__plan *plan) {
    const uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    /* outputs may begin at any place where layer 0 may be cut */
    const uint32_t alignment = (uint32_t)(PMLP_COLUMN_STEP * pmlp__element_size(c));
    cublasLtMatmulHeuristicResult_t found;
    cublasLtMatmulPreference_t wish = NULL;
    int count = 0;
    cublasStatus_t status = cublasLtMatmulPreferenceCreate(&wish);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
/* clang-format off */
#define PMLP__WISH(name, value)                                                                    \
    if (status == CUBLAS_STATUS_SUCCESS)                                                           \
        status = cublasLtMatmulPreferenceSetAttribute(wish, CUBLASLT_MATMUL_PREF_##name, &(value), \
                                                      sizeof(value))
    /* clang-format on */
    PMLP__WISH(MAX_WORKSPACE_BYTES, c->workspace_size);
    PMLP__WISH(REDUCTION_SCHEME_MASK, schemes);
    PMLP__WISH(MIN_ALIGNMENT_A_BYTES, alignment);
    PMLP__WISH(MIN_ALIGNMENT_B_BYTES, alignment);
    PMLP__WISH(MIN_ALIGNMENT_C_BYTES, alignment);
    PMLP__WISH(MIN_ALIGNMENT_D_BYTES, alignment);
#undef PMLP__WISH
    if (status == CUBLAS_STATUS_SUCCESS) {
        const cublasStatus_t answer = cublasLtMatmulAlgoGetHeuristic(
            c->lt, plan->product, plan->a, plan->b, plan->c, plan->c, wish, 1, &found, &count);
        plan->offered =
            answer == CUBLAS_STATUS_SUCCESS && count > 0 && found.state == CUBLAS_STATUS_SUCCESS;
        if (plan->offered) plan->algorithm = found.algo;
        if (answer == CUBLAS_STATUS_ALLOC_FAILED || answer == CUBLAS_STATUS_NOT_INITIALIZED ||
            answer == CUBLAS_STATUS_INTERNAL_ERROR)
            status = answer;
    }
    cublasLtMatmulPreferenceDestroy(wish);
    return status;
}

/* The plan for a product, chosen when it is first needed. */
static pmlp_result pmlp__plan_of(pmlp__cuda *c, const pmlp__factors *f, int epilogue,
                                 const void *bias, pmlp__plan **out) {
    const pmlp__plan_key key = pmlp__plan_key_of(c, f, epilogue);
    pmlp__plan *plan;
    for (int i = 0; i < c->plan_count; i++) {
        plan = &c->plans[i];
        if (memcmp(&plan->key, &key, sizeof key) == 0) return *out = plan, PMLP_OK;
    }
    if (c->plan_count == PMLP__PLANS) pmlp__plan_free(&c->plans[--c->plan_count]);
    plan = &c->plans[c->plan_count];
    plan->key = key;
    cublasStatus_t status = pmlp__plan_layouts(c, plan, pmlp__type_of_c(c, f));
    if (status == CUBLAS_STATUS_SUCCESS) status = pmlp__plan_product(c, plan, bias);
    if (status == CUBLAS_STATUS_SUCCESS) status = pmlp__plan_choose(c, plan);
    if (status != CUBLAS_STATUS_SUCCESS) {
        pmlp__plan_free(plan);
        return pmlp__blas_failed(c, "planning a matrix product", status);
    }
    c->plan_count++;
    *out = plan;
    return PMLP_OK;
}

/* *done: whether cuBLASLt offers it. */
static pmlp_result pmlp__lt_product(pmlp__cuda *c, const pmlp__factors *f, int epilogue,
                                    const void *bias, bool *done) {
    const float one = 1.0f, beta = f->accumulate ? 1.0f : 0.0f;
    pmlp__plan *plan = NULL;
    PMLP__TRY(pmlp__plan_of(c, f, epilogue, bias, &plan));
    *done = plan->offered;
    if (!plan->offered) return PMLP_OK;
    if (bias)
        PMLP__BLAS(c, "a matrix product",
                   cublasLtMatmulDescSetAttribute(plan->product, CUBLASLT_MATMUL_DESC_BIAS_POINTER,
                                                  &bias, sizeof bias));
    PMLP__BLAS(c, "a matrix product",
               cublasLtMatmul(c->lt, plan->product, &one, f->q, plan->a, f->p, plan->b, &beta, f->c,
                              plan->c, f->c, plan->c, &plan->algorithm,
                              pmlp__workspace_of(c, f), c->workspace_size,
                              pmlp__stream_of(c, f)));
    return PMLP_OK;
}

/* --- by wish ---------------------------------------------------------------------------------- */

/* *fused, which may be NULL: the epilogue was a part of it. It is tried only where it can be. */
static pmlp_result pmlp__multiply(pmlp__cuda *c, const pmlp__factors *f, int epilogue,
                                  const void *bias, bool *fused) {
    bool done = false;
    if (fused) *fused = false;
    if (c->options.gemm == PMLP_CUDA_GEMM_TEACHING) {
        const bool bf16 = pmlp__is_bf16(c);
        PMLP__CUDA(c, "a matrix product",
                   !bf16           ? pmlp__teaching<float, float>(c, f)
                   : f->c_is_float ? pmlp__teaching<pmlp__bf16, float>(c, f)
                                   : pmlp__teaching<pmlp__bf16, pmlp__bf16>(c, f));
        return PMLP_OK;
    }
    if (c->options.gemm == PMLP_CUDA_GEMM_FUSED) {
        if (epilogue != PMLP__NO_EPILOGUE) PMLP__TRY(pmlp__lt_product(c, f, epilogue, bias, &done));
        if (fused) *fused = done;
        if (!done) PMLP__TRY(pmlp__lt_product(c, f, PMLP__NO_EPILOGUE, NULL, &done));
    }
    return done ? PMLP_OK : pmlp__blas_product(c, f);
}

/*============================================================================================*/
/* >>operations: what a noted command becomes on the stream                                   */
/*============================================================================================*/

static float *pmlp__params(const pmlp__cuda_layer *layer, int version) {
    return layer->params + (size_t)version * layer->count;
}

static pmlp__bf16 *pmlp__rounded(const pmlp__cuda_layer *layer, int version) {
    return layer->rounded ? layer->rounded + (size_t)version * layer->count : NULL;
}

/* What products read: the weights, or their bf16 copy. */
static const void *pmlp__factor(const pmlp__cuda_layer *layer, int version) {
    return layer->rounded ? (const void *)pmlp__rounded(layer, version)
                          : (const void *)pmlp__params(layer, version);
}

static const uint32_t *pmlp__index_of(const pmlp__cuda *c, const pmlp__command *k) {
    return (const uint32_t *)(c->up.device + k->index);
}

static const pmlp__source *pmlp__source_of(const pmlp__cuda *c, const pmlp__command *k) {
    return (const pmlp__source *)(c->up.device + k->up);
}

static pmlp_result pmlp__do_input(pmlp__cuda *c, const pmlp__command *k) {
    const pmlp__source *const source = pmlp__source_of(c, k);
    const uint32_t *const index = pmlp__index_of(c, k);
    const size_t pitch = pmlp__pitch(c, k->n, PMLP_LINEAR);
    PMLP__TYPED(c, "the input",
                pmlp__launch_input(c->stream, k->rows, k->n, source, index, (T *)k->out, pitch));
    return PMLP_OK;
}

/* f(z) over the outputs of a layer, with the bias if the product has left it to us. */
template <class T>
static cudaError_t pmlp__finish_forward(pmlp__cuda *c, const pmlp__cuda_layer *layer, size_t rows,
                                        const T *params, T *y, bool has_bias) {
    const pmlp_layer_desc *const d = &layer->desc;
    return pmlp__launch_activate(c->stream, d->activation, rows, d->n_out,
                                 has_bias ? (const T *)NULL : params + layer->weights, y,
                                 pmlp__pitch(c, d->row_outs, d->activation),
                                 pmlp__padded(c, d->row_outs));
}

static pmlp_result pmlp__do_forward(pmlp__cuda *c, const pmlp__command *k) {
    const pmlp__cuda_layer *const layer = k->layer;
    const pmlp_layer_desc *const d = &layer->desc;
    const size_t size = pmlp__element_size(c);
    const void *const params = pmlp__factor(layer, k->from);
    const void *const bias = (const char *)params + layer->weights * size;
    char *const y = (char *)k->out + d->first_out * size;
    const bool relu = d->activation == PMLP_RELU;
    /* one output alone: some versions of cuBLASLt leave out the bias then */
    const int epilogue = d->n_out == 1 ? PMLP__NO_EPILOGUE
                         : relu        ? PMLP__WITH_BIAS_AND_RELU
                                       : PMLP__WITH_BIAS;
    pmlp__factors f;
    bool fused;
    memset(&f, 0, sizeof f);
    f.m = k->rows;
    f.n = d->n_out;
    f.k = d->n_in;
    f.p = k->x;
    f.p_pitch = pmlp__pitch(c, d->n_in, d->below);
    f.q = params;
    f.q_pitch = layer->pitch;
    f.q_transposed = true;
    f.c = y;
    f.c_pitch = pmlp__pitch(c, d->row_outs, d->activation);
    PMLP__TRY(pmlp__multiply(c, &f, epilogue, bias, &fused));
    if (fused && (relu || d->activation == PMLP_LINEAR)) return PMLP_OK;
    PMLP__TYPED(c, "an activation",
                pmlp__finish_forward(c, layer, k->rows, (const T *)params, (T *)(void *)y, fused));
    return PMLP_OK;
}

static pmlp_result pmlp__do_backward_input(pmlp__cuda *c, const pmlp__command *k) {
    const pmlp__cuda_layer *const layer = k->layer;
    const pmlp_layer_desc *const d = &layer->desc;
    const size_t pitch = pmlp__pitch(c, d->n_in, d->below), keep = pmlp__padded(c, d->n_in);
    pmlp__factors f;
    memset(&f, 0, sizeof f);
    f.m = k->rows;
    f.n = d->n_in;
    f.k = d->n_out;
    f.p = k->y;
    f.p_pitch = pmlp__pitch(c, d->row_outs, d->activation);
    f.q = pmlp__factor(layer, k->from);
    f.q_pitch = layer->pitch;
    f.c = k->out;
    f.c_pitch = pitch;
    PMLP__TRY(pmlp__multiply(c, &f, PMLP__NO_EPILOGUE, NULL, NULL));
    PMLP__TYPED(c, "a derivative",
                pmlp__launch_derive(c->stream, d->below, k->rows, d->n_in, (const T *)k->x,
                                    (T *)k->out, pitch, keep));
    return PMLP_OK;
}

/* dz of a layer that may have only some of the outputs. */
static const void *pmlp__own_dz(const pmlp__cuda *c, const pmlp__command *k) {
    const size_t size = pmlp__element_size(c);
    return (const char *)k->y + k->layer->desc.first_out * size;
}

/* dW, by the second stream. */
static pmlp_result pmlp__do_weight_product(pmlp__cuda *c, const pmlp__command *k) {
    const pmlp__cuda_layer *const layer = k->layer;
    const pmlp_layer_desc *const d = &layer->desc;
    pmlp__factors f;
    if (k->rows == 0) {
        PMLP__CUDA(c, "clearing a gradient",
                   cudaMemsetAsync(layer->gradient, 0, layer->weights * sizeof(float), c->beside));
        return PMLP_OK;
    }
    memset(&f, 0, sizeof f);
    f.beside = true;
    f.m = d->n_out;
    f.n = d->n_in;
    f.k = k->rows;
    f.p = pmlp__own_dz(c, k);
    f.p_pitch = pmlp__pitch(c, d->row_outs, d->activation);
    f.p_transposed = true;
    f.q = k->x;
    f.q_pitch = pmlp__pitch(c, d->n_in, d->below);
    f.c = layer->gradient;
    f.c_pitch = layer->pitch;
    f.c_is_float = true;
    f.accumulate = k->flag != 0;
    return pmlp__multiply(c, &f, PMLP__NO_EPILOGUE, NULL, NULL);
}

/* db of neighbouring commands in one launch. */
static pmlp_result pmlp__do_bias_gradients(pmlp__cuda *c, const pmlp__command *k, int count) {
    pmlp__bias_gradients all;
    size_t widest = 0;
    const bool in_order = c->options.gemm == PMLP_CUDA_GEMM_TEACHING;
    memset(&all, 0, sizeof all);
    for (int i = 0; i < count; i++) {
        const pmlp__cuda_layer *const layer = k[i].layer;
        const pmlp_layer_desc *const d = &layer->desc;
        pmlp__bias_gradient *const b = &all.at[i];
        b->dz = pmlp__own_dz(c, &k[i]);
        b->db = layer->gradient + layer->weights;
        b->rows = k[i].rows;
        b->n = d->n_out;
        b->pitch = pmlp__pitch(c, d->row_outs, d->activation);
        b->accumulate = k[i].flag != 0;
        if (d->n_out > widest) widest = d->n_out;
    }
    PMLP__TYPED(c, "a bias gradient",
                pmlp__launch_bias_gradients<T>(c->stream, &all, count, widest, in_order));
    return PMLP_OK;
}

static pmlp_result pmlp__do_loss(pmlp__cuda *c, const pmlp__command *k) {
    const pmlp_layer_desc *const d = &k->layer->desc;
    pmlp__loss_kernel_args a;
    memset(&a, 0, sizeof a);
    a.loss = (pmlp_loss)k->kind;
    a.f = d->activation;
    a.rows = k->rows;
    a.n = d->row_outs;
    a.pitch = pmlp__pitch(c, d->row_outs, d->activation);
    a.keep = pmlp__padded(c, d->row_outs);
    a.source = pmlp__source_of(c, k);
    a.index = pmlp__index_of(c, k);
    a.scale = k->scale;
    a.row_loss = (double *)(c->down.device + k->down);
    a.row_hit = (unsigned char *)(a.row_loss + k->rows);
    PMLP__TYPED(c, "the loss", pmlp__launch_loss(c->stream, &a, (const T *)k->y, (T *)k->out));
    return PMLP_OK;
}

static pmlp_result pmlp__do_squares(pmlp__cuda *c, const pmlp__command *k) {
    const pmlp__cuda_layer *const layer = k->layer;
    PMLP__CUDA(c, "the gradient's norm",
               pmlp__launch_squares(c->stream, layer->desc.n_in, layer->desc.n_out, layer->gradient,
                                    layer->pitch, layer->gradient + layer->weights,
                                    (double *)(c->down.device + k->down)));
    return PMLP_OK;
}

/* The updates of neighbouring commands in one launch. */
static pmlp_result pmlp__do_updates(pmlp__cuda *c, const pmlp__command *k, int count) {
    pmlp__many_parameters all;
    size_t largest = 0;
    memset(&all, 0, sizeof all);
    for (int i = 0; i < count; i++) {
        const pmlp__cuda_layer *const layer = k[i].layer;
        pmlp__parameters *const p = &all.at[i];
        p->from = pmlp__params(layer, k[i].from);
        p->to = pmlp__params(layer, k[i].to);
        p->rounded = pmlp__rounded(layer, k[i].to);
        p->gradient = layer->gradient;
        p->moment1 = layer->moment1;
        p->moment2 = layer->moment2;
        p->weights = layer->weights;
        p->count = layer->count;
        p->step = (const pmlp__step *)(c->up.device + k[i].up);
        if (layer->count > largest) largest = layer->count;
    }
    PMLP__CUDA(c, "an update",
               pmlp__launch_update(c->stream, (pmlp_optimizer)k->kind, &all, count, largest));
    return PMLP_OK;
}

/*============================================================================================*/
/* >>queue: commands are noted, then issued together                                          */
/*============================================================================================*/

/* How many commands from here on are W and U whose W may all be done first, then all U: no layer
   comes twice. */
static int pmlp__run_of_updates(const pmlp__command *k, int count) {
    int ws = 0, us = 0, i, j;
    for (i = 0; i < count && ws < PMLP__MANY && us < PMLP__MANY; i++) {
        if (k[i].op != PMLP__BACKWARD_WEIGHT && k[i].op != PMLP__UPDATE) break;
        for (j = 0; j < i; j++)
            if (k[j].layer == k[i].layer && !(k[j].op < k[i].op)) return i;
        if (k[i].op == PMLP__UPDATE)
            us++;
        else
            ws++;
    }
    return i;
}

static pmlp_result pmlp__do(pmlp__cuda *c, const pmlp__command *k) {
    switch (k->op) {
    case PMLP__INPUT: return pmlp__do_input(c, k);
    case PMLP__FORWARD: return pmlp__do_forward(c, k);
    case PMLP__BACKWARD_INPUT: return pmlp__do_backward_input(c, k);
    case PMLP__LOSS: return pmlp__do_loss(c, k);
    default: return pmlp__do_squares(c, k);
    }
}

/* --- dW beside the rest ---

   The dW of a layer needs its dz, and nobody needs dW before the update. So it is made by a second
   stream, from the moment when its dz is there, while the first one goes on to the layers below:

        stream   ... dz3  dz2     dz1     dz0  db        U
        beside           dW3  dW2     dW1         dW0  ^              */

static bool pmlp__overlap(const void *a, size_t a_bytes, const void *b, size_t b_bytes) {
    const uintptr_t p = (uintptr_t)a, q = (uintptr_t)b;
    return p < q + b_bytes && q < p + a_bytes;
}

/* Of `rows` rows of what a layer gets, or of what it makes. */
static size_t pmlp__bytes_in(const pmlp__cuda *c, const pmlp_layer_desc *d, size_t rows) {
    return rows * pmlp__pitch(c, d->n_in, d->below) * pmlp__element_size(c);
}
static size_t pmlp__bytes_out(const pmlp__cuda *c, const pmlp_layer_desc *d, size_t rows) {
    return rows * pmlp__pitch(c, d->row_outs, d->activation) * pmlp__element_size(c);
}

/* Whether W must come after an earlier command: that one writes what W reads, or is about the same
   gradient. */
static bool pmlp__comes_after(const pmlp__cuda *c, const pmlp__command *w, const pmlp__command *k) {
    const pmlp_layer_desc *const d = &w->layer->desc;
    size_t bytes = 0;
    switch (k->op) {
    case PMLP__INPUT:
        bytes = k->rows * pmlp__pitch(c, k->n, PMLP_LINEAR) * pmlp__element_size(c);
        break;
    case PMLP__BACKWARD_INPUT: bytes = pmlp__bytes_in(c, &k->layer->desc, k->rows); break;
    case PMLP__FORWARD:
    case PMLP__LOSS: bytes = pmlp__bytes_out(c, &k->layer->desc, k->rows); break;
    default: return k->layer == w->layer;
    }
    return pmlp__overlap(k->out, bytes, w->x, pmlp__bytes_in(c, d, w->rows)) ||
           pmlp__overlap(k->out, bytes, w->y, pmlp__bytes_out(c, d, w->rows));
}

/* The commands first .. next - 1, behind which come `run` commands W and U, whose W are begun as
   soon as they can. */
static pmlp_result pmlp__do_until(pmlp__cuda *c, int first, int next, int run) {
    int ready[2 * PMLP__MANY]; /* before which command a W can begin */
    for (int i = 0; i < run; i++) {
        const pmlp__command *const w = &c->commands[next + i];
        ready[i] = w->op == PMLP__BACKWARD_WEIGHT ? next : -1;
        while (ready[i] > first && !pmlp__comes_after(c, w, &c->commands[ready[i] - 1])) ready[i]--;
    }
    for (int at = first; at <= next; at++) {
        bool forked = false;
        for (int i = 0; i < run; i++) {
            if (ready[i] != at) continue;
            if (!forked) {
                PMLP__CUDA(c, "working on dW", cudaEventRecord(c->fork, c->stream));
                PMLP__CUDA(c, "working on dW", cudaStreamWaitEvent(c->beside, c->fork, 0));
            }
            forked = true;
            PMLP__TRY(pmlp__do_weight_product(c, &c->commands[next + i]));
        }
        if (at < next) PMLP__TRY(pmlp__do(c, &c->commands[at]));
    }
    return PMLP_OK;
}

/* What is left of a run of W and U whose dW have begun. */
static pmlp_result pmlp__do_run_of_updates(pmlp__cuda *c, const pmlp__command *k, int count) {
    pmlp__command some[2][PMLP__MANY];
    int ws = 0, us = 0;
    for (int i = 0; i < count; i++)
        if (k[i].op == PMLP__UPDATE)
            some[1][us++] = k[i];
        else
            some[0][ws++] = k[i];
    if (ws > 0) {
        PMLP__TRY(pmlp__do_bias_gradients(c, some[0], ws));
        PMLP__CUDA(c, "working on dW", cudaEventRecord(c->join, c->beside));
        PMLP__CUDA(c, "working on dW", cudaStreamWaitEvent(c->stream, c->join, 0));
    }
    return us > 0 ? pmlp__do_updates(c, some[1], us) : PMLP_OK;
}

static pmlp_result pmlp__issue(pmlp__cuda *c) {
    for (int first = 0; first < c->count;) {
        int next = first, run;
        while (!(run = pmlp__run_of_updates(c->commands + next, c->count - next)) &&
               next < c->count)
            next++;
        PMLP__TRY(pmlp__do_until(c, first, next, run));
        if (run > 0) PMLP__TRY(pmlp__do_run_of_updates(c, c->commands + next, run));
        first = next + run;
    }
    return PMLP_OK;
}

/* --- graphs ----------------------------------------------------------------------------------- */

static uint64_t pmlp__hash_of(const pmlp__command *commands, int count) {
    const size_t words = (size_t)count * sizeof *commands / sizeof(uint64_t);
    uint64_t hash = 14695981039346656037u, word;
    static_assert(sizeof *commands % sizeof word == 0, "a command is whole words");
    for (size_t i = 0; i < words; i++) {
        memcpy(&word, (const char *)commands + i * sizeof word, sizeof word);
        hash = (hash ^ word) * 1099511628211u;
        hash ^= hash >> 29;
    }
    return hash;
}

static pmlp__graph *pmlp__graph_of(pmlp__cuda *c, uint64_t hash) {
    const size_t bytes = (size_t)c->count * sizeof *c->commands;
    for (int i = 0; i < c->graph_count; i++) { /* lists come in the same order each time */
        const int at = (c->graph_found + 1 + i) % c->graph_count;
        pmlp__graph *const g = &c->graphs[at];
        if (g->hash == hash && g->count == c->count &&
            memcmp((const void *)g->commands, (const void *)c->commands, bytes) == 0) {
            c->graph_found = at;
            return g;
        }
    }
    return NULL;
}

/* A place for one more: a new one, or that of the one that was used the longest ago. */
static pmlp__graph *pmlp__graph_place(pmlp__cuda *c) {
    pmlp__graph *oldest = &c->graphs[0];
    if (c->graph_count < PMLP__GRAPHS) return &c->graphs[c->graph_count];
    for (int i = 1; i < PMLP__GRAPHS; i++)
        if (c->graphs[i].used < oldest->used) oldest = &c->graphs[i];
    if (oldest->exec) cudaGraphExecDestroy(oldest->exec);
    pmlp__host_delete(&c->allocator, oldest->commands);
    *oldest = c->graphs[--c->graph_count];
    return &c->graphs[c->graph_count];
}

/* Issues the commands into a graph. The products in it have been planned: the commands were issued
   before. */
static pmlp_result pmlp__record(pmlp__cuda *c, cudaGraphExec_t *exec) {
    cudaGraph_t graph = NULL;
    PMLP__CUDA(c, "recording", cudaStreamBeginCapture(c->stream, cudaStreamCaptureModeThreadLocal));
    const pmlp_result issued = pmlp__issue(c);
    const cudaError_t ended = cudaStreamEndCapture(c->stream, &graph);
    if (issued != PMLP_OK || ended != cudaSuccess) {
        if (graph) cudaGraphDestroy(graph);
        return issued != PMLP_OK ? issued : pmlp__cuda_failed(c, "recording", ended);
    }
    const cudaError_t made =
        cudaGraphInstantiateWithFlags(exec, graph, cudaGraphInstantiateFlagUseNodePriority);
    cudaGraphDestroy(graph);
    PMLP__CUDA(c, "making a graph", made);
    return PMLP_OK;
}

/* A list is recorded when it comes the second time: what comes once costs nothing more. The first
   time leaves only a note of it. */
static pmlp_result pmlp__issue_as_graph(pmlp__cuda *c) {
    const size_t bytes = (size_t)c->count * sizeof *c->commands;
    const uint64_t hash = pmlp__hash_of(c->commands, c->count);
    pmlp__graph *g = pmlp__graph_of(c, hash);
    if (!g) {
        PMLP__TRY(pmlp__issue(c));
        g = pmlp__graph_place(c);
        memset((void *)g, 0, sizeof *g);
        g->commands = (pmlp__command *)pmlp__host_new(&c->allocator, bytes);
        if (!g->commands) return pmlp__no_host_memory(c);
        memcpy((void *)g->commands, (const void *)c->commands, bytes);
        g->count = c->count;
        g->hash = hash;
        g->used = ++c->turn;
        c->graph_count++;
        return PMLP_OK;
    }
    g->used = ++c->turn;
    if (!g->exec && !g->refused && pmlp__record(c, &g->exec) != PMLP_OK) {
        cudaGetLastError(); /* nothing has run: commands can be issued one by one as well */
        g->refused = true;
        c->why[0] = '\0';
    }
    if (g->refused) return pmlp__issue(c);
    PMLP__CUDA(c, "launching a graph", cudaGraphLaunch(g->exec, c->stream));
    return PMLP_OK;
}

/* --- noting and issuing ----------------------------------------------------------------------- */

/* The numbers that the commands read, and the results that they leave: what there is of both since
   the last list. On the device each list begins at 0 again, so that equal lists have equal places;
   the order of the stream keeps them apart. */
static pmlp_result pmlp__copy_up(pmlp__cuda *c) {
    pmlp__mirror *const up = &c->up;
    if (up->used > up->begin)
        PMLP__CUDA(c, "copying a step's numbers",
                   cudaMemcpyAsync(up->device, up->host + up->begin, up->used - up->begin,
                                   cudaMemcpyHostToDevice, c->stream));
    up->begin = up->used;
    return PMLP_OK;
}

static pmlp_result pmlp__copy_down(pmlp__cuda *c) {
    pmlp__mirror *const down = &c->down;
    if (down->used > down->begin)
        PMLP__CUDA(c, "copying a step's results",
                   cudaMemcpyAsync(down->host + down->begin, down->device, down->used - down->begin,
                                   cudaMemcpyDeviceToHost, c->stream));
    down->begin = down->used;
    return PMLP_OK;
}

/* Issues what was noted. */
static pmlp_result pmlp__flush(pmlp__cuda *c) {
    if (c->failed != PMLP_OK || c->count == 0) return c->failed;
    c->failed = pmlp__copy_up(c);
    if (c->failed == PMLP_OK)
        c->failed =
            c->options.no_graphs || c->stamp_count > 0 ? pmlp__issue(c) : pmlp__issue_as_graph(c);
    if (c->failed == PMLP_OK) c->failed = pmlp__copy_down(c);
    c->count = 0;
    return c->failed;
}

static pmlp_result pmlp__note(pmlp__cuda *c, const pmlp__command *k) {
    if (!pmlp__host_grow(&c->allocator, &c->commands, c->count, &c->room))
        return pmlp__no_host_memory(c);
    c->commands[c->count++] = *k;
    return PMLP_OK;
}

static pmlp__command pmlp__command_of(enum pmlp__op op, void *layer, size_t rows) {
    pmlp__command k;
    memset(&k, 0, sizeof k);
    k.op = op;
    k.layer = (pmlp__cuda_layer *)layer;
    k.rows = rows;
    return k;
}

/* Bytes for the device, and where they will be there. */
static size_t pmlp__up(pmlp__cuda *c, const void *from, size_t bytes) {
    const size_t at = pmlp__mirror_take(&c->up, bytes);
    memcpy(c->up.host + at, from, bytes);
    return at - c->up.begin;
}

/* Which rows of the data are meant: index, or first, first + 1, ... */
static size_t pmlp__up_index(pmlp__cuda *c, size_t rows, const uint32_t *index, size_t first) {
    const size_t at = pmlp__mirror_take(&c->up, rows * sizeof *index);
    uint32_t *const to = (uint32_t *)(void *)(c->up.host + at);
    for (size_t i = 0; i < rows; i++) to[i] = index ? index[i] : (uint32_t)(first + i);
    return at - c->up.begin;
}

/* Rows of the user's data that is not on the device go up with the command; then the rows meant are
   0, 1, ... of these. Returns where they will be. */
static const void *pmlp__up_rows(pmlp__cuda *c, size_t rows, const void *data, size_t row_bytes,
                                 const uint32_t *index, size_t first) {
    const size_t at = pmlp__mirror_take(&c->up, rows * row_bytes);
    for (size_t i = 0; i < rows; i++)
        memcpy(c->up.host + at + i * row_bytes,
               (const char *)data + (index ? index[i] : first + i) * row_bytes, row_bytes);
    return c->up.device + (at - c->up.begin);
}

/* The result at `at` in the downward mirror gets to the host's `to` by the next synchronize(). */
static pmlp_result pmlp__down(pmlp__cuda *c, size_t at, size_t bytes, void *to) {
    if (!pmlp__host_grow(&c->allocator, &c->results, c->result_count, &c->result_room))
        return pmlp__no_host_memory(c);
    const pmlp__result_copy copy = {at, bytes, to};
    c->results[c->result_count++] = copy;
    return PMLP_OK;
}

#ifdef PMLP__NCCL
/*============================================================================================*/
/* >>wires: communicators of NCCL, and waits that end                                         */
/*                                                                                            */
/* A wire is this side's end of a communicator, with a stream of its own: that of an edge, of */
/* the sums of a worker's gradients over replicas, or of what all ranks tell each other. What */
/* one communicator does, it does in order, in whatever streams: a receive that waits for its */
/* message holds up a send behind it. Hence one for each direction.                           */
/*                                                                                            */
/* NCCL wants one thread at a time for each device, which takes its turn. Calls do not block: */
/* what takes long goes on in the background, and is asked for until it is done. That costs   */
/* (NCCL may start a thread for each group of calls), and it is what makes an abort safe;     */
/* NCCL_COMM_BLOCKING=1 in the environment shows how much, without the safety.                */
/*                                                                                            */
/* Several communicators are at work on a device at once, in no order that all ranks share.   */
/* That ends well as long as their kernels all fit beside each other, so each may take but a  */
/* few blocks of the GPU.                                                                     */
/*                                                                                            */
/* The wires of a trainer, or of all that a rank does, are a team, and fail together. Whoever */
/* notices a failure takes the turns of all devices, so that nobody is inside NCCL, and ends  */
/* all communicators in one group: one after the other, an abort could wait for a kernel that */
/* waits for the next. Then what hangs on the devices goes on, and the streams run dry.       */
/*============================================================================================*/

enum { PMLP__EDGE_BLOCKS = 4, PMLP__SUM_BLOCKS = 16 }; /* of a GPU that a communicator may take */
enum { PMLP__MARKS = 256 };
enum { PMLP__TURNS = 32 };
static const double PMLP__PATIENCE = 60.0; /* seconds, where nobody has said how many */

struct pmlp__watch;
struct pmlp__team;

typedef struct pmlp__wire {
    struct pmlp__team *team; /* NULL: not made */
    struct pmlp__wire *next; /* of the team */
    const void *owner;       /* the context or group that waits for it */
    int device;
    bool remote; /* the other end is at another rank */
    bool waits;  /* for what others do first: it receives, or sums */
    char text[96]; /* what it carries */
    ncclComm_t comm; /* NULL: not yet, or no more */
    cudaStream_t stream;
    /* One is recorded behind each operation: how far the device is. The host does not run ahead
       for more than all of them, as it would hang in a full queue of a device that waits for
       somebody dead. */
    cudaEvent_t marks[PMLP__MARKS];
    int64_t marked, reached;
} pmlp__wire;

typedef struct pmlp__team {
    pmlp_allocator allocator;
    std::mutex lock; /* of the list and of why */
    pmlp__wire *wires;
    std::atomic<int> failed; /* a pmlp_result; other than OK, it and why stay as they are */
    char why[256];
    double seconds; /* that another rank is waited for at most; 0: there is none */
    struct pmlp__watch *watch; /* NULL: no other ranks, or no connection to them */
    std::atomic<int> users;
} pmlp__team;

/* Who has been silent for long, as a part of a sentence; see >>group. */
static void pmlp__blame(struct pmlp__watch *watch, char *text, size_t size);

/* --- turns ------------------------------------------------------------------------------------ */

static std::mutex pmlp__turns[PMLP__TURNS];

static uint32_t pmlp__turn_of(int device) {
    return 1u << device % PMLP__TURNS;
}

/* Those of several devices, always in the same order, so that nobody waits in a ring. */
static void pmlp__take_turns(uint32_t devices) {
    for (int i = 0; i < PMLP__TURNS; i++)
        if (devices >> i & 1) pmlp__turns[i].lock();
}

static void pmlp__give_turns(uint32_t devices) {
    for (int i = 0; i < PMLP__TURNS; i++)
        if (devices >> i & 1) pmlp__turns[i].unlock();
}

struct pmlp__turn {
    const uint32_t devices;
    /* inline in earnest, so that no symbol is left of them */
    __attribute__((always_inline)) explicit pmlp__turn(uint32_t which) : devices(which) {
        pmlp__take_turns(devices);
    }
    __attribute__((always_inline)) ~pmlp__turn() { pmlp__give_turns(devices); }
};

/* A little while, and more if it has been long already: a few milliseconds. */
static void pmlp__rest(int round) {
    if (round < 2000)
        std::this_thread::yield();
    else
        std::this_thread::sleep_for(std::chrono::microseconds(round < 4000 ? 50 : 500));
}

/* --- teams ------------------------------------------------------------------------------------ */

static pmlp__team *pmlp__team_new(const pmlp_allocator *allocator) {
    void *const memory = pmlp__host_new(allocator, sizeof(pmlp__team));
    if (!memory) return NULL;
    pmlp__team *const team = new (memory) pmlp__team();
    team->allocator = *allocator;
    team->users.store(1);
    return team;
}

static void pmlp__team_leave(pmlp__team *team) {
    if (!team || team->users.fetch_sub(1) > 1) return;
    const pmlp_allocator allocator = team->allocator;
    team->~pmlp__team();
    pmlp__host_delete(&allocator, team);
}

/* The first failure stays; returns its result. */
static pmlp_result pmlp__team_fail(pmlp__team *team, pmlp_result result, const char *why) {
    std::lock_guard<std::mutex> hold(team->lock);
    if (team->failed.load() == PMLP_OK) {
        snprintf(team->why, sizeof team->why, "%s", why);
        team->failed.store(result);
    }
    return (pmlp_result)team->failed.load();
}

/* Why it has failed; "" if it has not. */
static const char *pmlp__team_reason(const pmlp__team *team) {
    return team && team->failed.load() != PMLP_OK ? team->why : "";
}

/* Not to be called by whoever has a turn. */
static void pmlp__team_abort(pmlp__team *team) {
    uint32_t devices = 0;
    {
        std::lock_guard<std::mutex> hold(team->lock);
        for (pmlp__wire *l = team->wires; l; l = l->next) devices |= pmlp__turn_of(l->device);
    }
    pmlp__turn mine(devices);
    std::lock_guard<std::mutex> hold(team->lock);
    const bool grouped = ncclGroupStart() == ncclSuccess;
    for (pmlp__wire *l = team->wires; l; l = l->next) {
        if (l->comm && devices & pmlp__turn_of(l->device)) {
            ncclCommAbort(l->comm);
            l->comm = NULL;
        }
    }
    if (grouped) ncclGroupEnd();
}

/* --- one wire --------------------------------------------------------------------------------- */

static void pmlp__wire_join(pmlp__wire *l, pmlp__team *team, const void *owner, int device) {
    std::lock_guard<std::mutex> hold(team->lock);
    l->team = team;
    l->owner = owner;
    l->device = device;
    l->next = team->wires;
    team->wires = l;
}

static void pmlp__wire_leave(pmlp__wire *l) {
    std::lock_guard<std::mutex> hold(l->team->lock);
    pmlp__wire **at = &l->team->wires;
    while (*at != l) at = &(*at)->next;
    *at = l->next;
}

/* NCCL failed. Where a rank is gone, the others know more, and say so in a moment. */
static pmlp_result pmlp__wire_failed(pmlp__wire *l, const char *doing, ncclResult_t result) {
    const char *const more = ncclGetLastError(l->comm);
    char why[256], blame[96] = "";
    pmlp__blame(l->team->watch, blame, sizeof blame);
    snprintf(why, sizeof why, "%s %s: %s%s%s%.*s", doing, l->text, ncclGetErrorString(result),
             blame, more && *more ? ": " : "", more ? (int)strcspn(more, "\n") : 0,
             more ? more : "");
    for (int i = 0; i < 300 && l->team->watch && l->team->failed.load() == PMLP_OK; i++)
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return pmlp__team_fail(l->team, l->remote ? PMLP_ERROR_RANK : PMLP_ERROR_BACKEND, why);
}

static pmlp_result pmlp__wire_late(pmlp__wire *l, const char *doing, double seconds) {
    char why[256], blame[96] = "";
    pmlp__blame(l->team->watch, blame, sizeof blame);
    snprintf(why, sizeof why, "%s %s: nothing has moved for %.3g s%s", doing, l->text, seconds,
             blame);
    return pmlp__team_fail(l->team, PMLP_ERROR_RANK, why);
}

static bool pmlp__bad(ncclResult_t result) {
    return result != ncclSuccess && result != ncclInProgress;
}

/* Until what was begun is done or, if it is for a stream, lies there. By whoever has the turn. */
static pmlp_result pmlp__wire_settle(pmlp__wire *l, const char *doing, double seconds) {
    const double begun = pmlp__seconds();
    for (int round = 0;; round++) {
        ncclResult_t state = ncclInProgress;
        const ncclResult_t asked = ncclCommGetAsyncError(l->comm, &state);
        if (asked != ncclSuccess) state = asked;
        if (state == ncclSuccess) return PMLP_OK;
        if (state != ncclInProgress) return pmlp__wire_failed(l, doing, state);
        if (l->team->failed.load() != PMLP_OK) return (pmlp_result)l->team->failed.load();
        if (pmlp__seconds() - begun > seconds) return pmlp__wire_late(l, doing, seconds);
        pmlp__rest(round);
    }
}

/* The shorter of what the team has and what is asked for, each if there is one. */
static double pmlp__seconds_of(const pmlp__team *team, double asked) {
    const double most = team->seconds > 0.0 ? team->seconds : PMLP__PATIENCE;
    return asked > 0.0 && asked < most ? asked : most;
}

/* Whether work has not ended: which is no error that a caller should find with cudaGetLastError(). */
static bool pmlp__goes_on(cudaError_t queried) {
    if (queried == cudaErrorNotReady) cudaGetLastError();
    return queried == cudaErrorNotReady;
}

/* How many of the marks the device has reached. */
static int64_t pmlp__wire_look(pmlp__wire *l) {
    while (l->reached < l->marked) {
        const cudaError_t queried = cudaEventQuery(l->marks[l->reached % PMLP__MARKS]);
        if (pmlp__goes_on(queried) || queried != cudaSuccess) break;
        l->reached++;
    }
    return l->reached;
}

static bool pmlp__wire_is_full(pmlp__wire *l) {
    return l->marked - l->reached == PMLP__MARKS && l->marked - pmlp__wire_look(l) == PMLP__MARKS;
}

static cudaError_t pmlp__wire_mark(pmlp__wire *l) {
    return cudaEventRecord(l->marks[l->marked++ % PMLP__MARKS], l->stream);
}

/* The stream and marks; the device is the current one. */
static cudaError_t pmlp__wire_make(pmlp__wire *l) {
    cudaError_t error = pmlp__new_stream(&l->stream, PMLP__FIRST);
    for (int i = 0; error == cudaSuccess && i < PMLP__MARKS; i++)
        error = cudaEventCreateWithFlags(&l->marks[i], cudaEventDisableTiming);
    return error;
}

/* --- several wires at once -------------------------------------------------------------------- */

static uint32_t pmlp__turns_of(pmlp__wire *const *wires, int count) {
    uint32_t devices = 0;
    for (int i = 0; i < count; i++) devices |= pmlp__turn_of(wires[i]->device);
    return devices;
}

/* Calls something for each wire in one group, so that one thread can be both ends of what waits for
   the other end, and until all is done. */
template <class Call>
static pmlp_result pmlp__wires_do(pmlp__wire *const *wires, int count, const char *doing,
                                  double seconds, Call call) {
    pmlp__turn mine(pmlp__turns_of(wires, count));
    if (wires[0]->team->failed.load() != PMLP_OK)
        return (pmlp_result)wires[0]->team->failed.load();
    ncclResult_t result = ncclGroupStart();
    if (pmlp__bad(result)) return pmlp__wire_failed(wires[0], doing, result);
    int at = 0;
    for (; at < count && !pmlp__bad(result); at++) result = call(at);
    const ncclResult_t ended = ncclGroupEnd();
    if (!pmlp__bad(result)) result = ended;
    if (pmlp__bad(result)) return pmlp__wire_failed(wires[at - 1], doing, result);
    const double most = pmlp__seconds_of(wires[0]->team, seconds);
    for (int i = 0; i < count; i++)
        if (wires[i]->comm) PMLP__TRY(pmlp__wire_settle(wires[i], doing, most));
    return PMLP_OK;
}

/* Makes them ends of one communicator of `of` ranks: wires[i] is rank first + i. */
static pmlp_result pmlp__wires_connect(pmlp__wire *const *wires, int count, int first, int of,
                                       const ncclUniqueId *id, int blocks, double seconds) {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    config.minCTAs = 1;
    config.maxCTAs = blocks;
    return pmlp__wires_do(wires, count, "connecting", seconds, [&](int i) {
        if (cudaSetDevice(wires[i]->device) != cudaSuccess) return ncclUnhandledCudaError;
        return ncclCommInitRankConfig(&wires[i]->comm, of, *id, first + i, &config);
    });
}

/* The end of communicators with which all is well: what they still have to send is sent first. */
static void pmlp__wires_finish(pmlp__wire *const *wires, int count) {
    const pmlp_result result = pmlp__wires_do(
        wires, count, "ending", 0.0, [&](int i) { return ncclCommFinalize(wires[i]->comm); });
    if (result != PMLP_OK) return;
    pmlp__turn mine(pmlp__turns_of(wires, count));
    const bool grouped = ncclGroupStart() == ncclSuccess;
    for (int i = 0; i < count; i++) {
        ncclCommDestroy(wires[i]->comm);
        wires[i]->comm = NULL;
    }
    if (grouped) ncclGroupEnd();
}

/* All that the wires have, whether they are complete or not. */
static void pmlp__wires_close(pmlp__wire *const *wires, int count) {
    bool whole = true;
    for (int i = 0; i < count; i++) whole = whole && wires[i]->comm;
    if (whole) pmlp__wires_finish(wires, count);
    for (int i = 0; i < count; i++) {
        pmlp__wire *const l = wires[i];
        if (!l->comm) continue;
        pmlp__team_fail(l->team, PMLP_ERROR_BACKEND, "a connection was not completed");
        pmlp__team_abort(l->team);
    }
    for (int i = 0; i < count; i++) {
        pmlp__wire *const l = wires[i];
        cudaSetDevice(l->device);
        if (l->stream) cudaStreamSynchronize(l->stream);
        if (l->stream) cudaStreamDestroy(l->stream);
        for (int m = 0; m < PMLP__MARKS; m++)
            if (l->marks[m]) cudaEventDestroy(l->marks[m]);
        pmlp__wire_leave(l);
    }
}

/* --- waiting ---------------------------------------------------------------------------------- */

/* What the owner's wires are doing: how much has moved, one that has not done all it has to, best
   one that waits for others, and whether one has failed. */
static pmlp_result pmlp__wires_look(pmlp__team *team, const void *owner, int device,
                                    int64_t *moved, pmlp__wire **late) {
    pmlp__turn mine(pmlp__turn_of(device));
    pmlp__wire *wrong = NULL;
    ncclResult_t state = ncclSuccess;
    {
        std::lock_guard<std::mutex> hold(team->lock);
        *moved = 0;
        *late = NULL;
        for (pmlp__wire *l = team->wires; l && !wrong; l = l->next) {
            if (l->owner != owner || !l->comm) continue;
            if (ncclCommGetAsyncError(l->comm, &state) != ncclSuccess) state = ncclInternalError;
            if (pmlp__bad(state)) wrong = l;
            *moved += pmlp__wire_look(l);
            if (pmlp__goes_on(cudaStreamQuery(l->stream))) {
                ++*moved; /* one that becomes idle has moved, too */
                if (!*late || l->waits) *late = l;
            }
        }
    }
    return wrong ? pmlp__wire_failed(wrong, "working on", state)
                 : (pmlp_result)team->failed.load();
}

/* Until the owner's stream is done; *status is then its, unless the team has failed. A deadline
   counts only while a wire is at work, from when something has moved last. */
static pmlp_result pmlp__await(pmlp__team *team, const void *owner, int device, cudaStream_t stream,
                               double seconds, cudaError_t *status) {
    double since = pmlp__seconds();
    int64_t before = -1, moved = 0;
    pmlp__wire *late = NULL;
    for (int round = 0; pmlp__goes_on(*status = cudaStreamQuery(stream)); round++) {
        if (team->failed.load() != PMLP_OK) return (pmlp_result)team->failed.load();
        if (round % 16 == 15) {
            PMLP__TRY(pmlp__wires_look(team, owner, device, &moved, &late));
            if (!late || moved != before) since = pmlp__seconds();
            before = moved;
            if (seconds > 0.0 && late && pmlp__seconds() - since > seconds)
                return pmlp__wire_late(late, "waiting for", seconds);
        }
        pmlp__rest(round);
    }
    return (pmlp_result)team->failed.load(); /* an abort ends a stream, too */
}

/* What fails one worker fails all. Then its stream runs dry. */
static pmlp_result pmlp__give_up(pmlp__cuda *c, pmlp_result result) {
    result = pmlp__team_fail(c->team, result, c->why);
    pmlp__team_abort(c->team);
    snprintf(c->why, sizeof c->why, "%s", c->team->why);
    c->given_up = true;
    const double begun = pmlp__seconds();
    for (int round = 0; pmlp__goes_on(cudaStreamQuery(c->stream)); round++) {
        if (pmlp__seconds() - begun > PMLP__PATIENCE) return result;
        pmlp__rest(round);
    }
    cudaStreamSynchronize(c->beside);
    return result;
}

/* The wait at the end of a step, or in it, of a worker with wires. `flushed`: what came of issuing;
   an earlier failure has left its reason. */
static pmlp_result pmlp__wait_for_all(pmlp__cuda *c, pmlp_result flushed) {
    pmlp_result result = flushed == PMLP_OK && c->why[0] ? PMLP_ERROR_BACKEND : flushed;
    cudaError_t status = cudaSuccess;
    if (result == PMLP_OK)
        result = pmlp__await(c->team, c, c->device, c->stream, c->patience, &status);
    if (result == PMLP_OK && status != cudaSuccess)
        result = pmlp__cuda_failed(c, "the work of a step", status);
    return result == PMLP_OK ? result : pmlp__give_up(c, result);
}

/* --- sums over replicas ----------------------------------------------------------------------- */

/* Of a worker's gradients. They are added up by the wire's stream, behind the work that makes them;
   the worker's own stream waits for all of them when one is wanted. */
typedef struct pmlp__adder {
    pmlp__wire wire;
    cudaEvent_t ready, done; /* of the last one, and so of all before */
    bool open;               /* the worker's stream has not waited for that */
} pmlp__adder;

/* Before anything that reads or changes a gradient. */
static pmlp_result pmlp__sum_wanted(pmlp__cuda *c) {
    if (!c->sum || !c->sum->open) return PMLP_OK;
    PMLP__TRY(pmlp__enter_device(c));
    PMLP__TRY(pmlp__flush(c));
    c->sum->open = false;
    PMLP__CUDA(c, "a sum over replicas", cudaStreamWaitEvent(c->stream, c->sum->done, 0));
    return PMLP_OK;
}

static void pmlp__sum_close(pmlp__cuda *c) {
    pmlp__adder *const s = c->sum;
    if (!s) return;
    pmlp__wire *const wire = &s->wire;
    pmlp__wires_close(&wire, 1);
    if (s->ready) cudaEventDestroy(s->ready);
    if (s->done) cudaEventDestroy(s->done);
    pmlp__host_delete(&c->allocator, s);
    c->sum = NULL;
}
#else
/* Without NCCL there are no teams. */
static pmlp_result pmlp__wait_for_all(pmlp__cuda *, pmlp_result flushed) { return flushed; }
static pmlp_result pmlp__sum_wanted(pmlp__cuda *) { return PMLP_OK; }
static const char *pmlp__team_reason(const struct pmlp__team *) { return ""; }
static void pmlp__team_leave(struct pmlp__team *) {}
static void pmlp__sum_close(pmlp__cuda *) {}
#endif /* PMLP__NCCL */


/*============================================================================================*/
/* >>entries: what the trainer calls                                                          */
/*============================================================================================*/

/* --- contexts --------------------------------------------------------------------------------- */

static void pmlp__cuda_close(void *context) {
    pmlp__cuda *const c = (pmlp__cuda *)context;
    const pmlp_allocator allocator = c->allocator;
    pmlp__sum_close(c);
    if (c->stream) cudaSetDevice(c->device);
    if (c->stream) cudaStreamSynchronize(c->stream);
    if (c->beside) cudaStreamSynchronize(c->beside);
    pmlp__forget_graphs(c);
    for (int i = 0; c->plans && i < c->plan_count; i++) pmlp__plan_free(&c->plans[i]);
    for (int i = 0; i < c->stamp_events; i++) cudaEventDestroy(c->stamps[i].event);
    if (c->origin) cudaEventDestroy(c->origin);
    if (c->join) cudaEventDestroy(c->join);
    if (c->fork) cudaEventDestroy(c->fork);
    while (c->copies) {
        pmlp__copy *const copy = c->copies;
        c->copies = copy->next;
        if (copy->device) cudaFree(copy->device);
        pmlp__host_delete(&allocator, copy);
    }
    pmlp__mirror_free(c, &c->up);
    pmlp__mirror_free(c, &c->down);
    if (c->lt) cublasLtDestroy(c->lt);
    if (c->blas) cublasDestroy(c->blas);
    if (c->workspace) cudaFree(c->workspace);
    if (c->loads) cudaStreamDestroy(c->loads);
    if (c->beside) cudaStreamDestroy(c->beside);
    if (c->stream) cudaStreamDestroy(c->stream);
    pmlp__host_delete(&allocator, c->plans);
    pmlp__host_delete(&allocator, c->commands);
    pmlp__host_delete(&allocator, c->results);
    pmlp__host_delete(&allocator, c->stamps);
    pmlp__team_leave(c->team);
    pmlp__host_delete(&allocator, c);
}

static pmlp_result pmlp__check_options(pmlp__cuda *c) {
    const pmlp_cuda_options *const o = &c->options;
    const char *const what =
        (int)o->math < 0 || o->math >= PMLP_CUDA_MATH_COUNT            ? "math"
        : (int)o->gemm < 0 || o->gemm >= PMLP_CUDA_GEMM_COUNT          ? "gemm"
        : (int)o->handoff < 0 || o->handoff >= PMLP_CUDA_HANDOFF_COUNT ? "handoff"
                                                                       : NULL;
#ifndef PMLP__NCCL
    if (!what && o->handoff == PMLP_CUDA_NCCL) {
        snprintf(c->why, sizeof c->why,
                 "pmlp_cuda_options.handoff: this program was built without NCCL");
        return PMLP_ERROR_UNSUPPORTED;
    }
#endif
    if (!what) return PMLP_OK;
    snprintf(c->why, sizeof c->why, "pmlp_cuda_options.%s: is not a value of its type", what);
    return PMLP_ERROR_ARGUMENT;
}

/* The device of a worker: neighbours share one or have neighbouring ones. */
static pmlp_result pmlp__choose_device(pmlp__cuda *c, const pmlp_backend_desc *desc) {
    const pmlp_cuda_options *const o = &c->options;
    int there = 0, driver = 0;
    const cudaError_t error = cudaGetDeviceCount(&there);
    const bool has_driver = cudaDriverGetVersion(&driver) == cudaSuccess && driver > 0;
    const int count = o->devices ? o->device_count : there;
    if (error != cudaSuccess || there == 0) {
        snprintf(c->why, sizeof c->why, "no CUDA device can be used: %s",
                 !has_driver            ? "no NVIDIA driver is installed"
                 : error != cudaSuccess ? cudaGetErrorString(error)
                                        : "none is there");
        cudaGetLastError();
        return PMLP_ERROR_UNSUPPORTED;
    }
    if (count < 1) {
        snprintf(c->why, sizeof c->why, "device_count: %d devices cannot hold a worker", count);
        return PMLP_ERROR_ARGUMENT;
    }
    const int at = desc->workers <= count ? desc->worker
                                          : (int)((int64_t)desc->worker * count / desc->workers);
    c->device = o->devices ? o->devices[at] : at;
    if (c->device < 0 || c->device >= there) {
        snprintf(c->why, sizeof c->why, "devices: there is no GPU %d; this machine has 0 .. %d",
                 c->device, there - 1);
        return PMLP_ERROR_ARGUMENT;
    }
    return PMLP_OK;
}

/* With workspaces of the size that NVIDIA recommends for the GPU. */
static pmlp_result pmlp__open_libraries(pmlp__cuda *c) {
    int major = 0;
    PMLP__CUDA(c, "asking for the GPU's generation",
               cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, c->device));
    c->workspace_size = (size_t)(major >= 9 ? 32 : 4) << 20;
    PMLP__CUDA(c, "allocating", cudaMalloc(&c->workspace, 2 * c->workspace_size));
    PMLP__BLAS(c, "starting cuBLAS", cublasCreate(&c->blas));
    PMLP__BLAS(c, "starting cuBLASLt", cublasLtCreate(&c->lt));
    return PMLP_OK;
}

static pmlp_result pmlp__open_device(pmlp__cuda *c) {
    PMLP__TRY(pmlp__enter_device(c));
    PMLP__CUDA(c, "making a stream", pmlp__new_stream(&c->stream, PMLP__NEXT));
    PMLP__CUDA(c, "making a stream", pmlp__new_stream(&c->beside, PMLP__LAST));
    PMLP__CUDA(c, "making a stream", cudaStreamCreateWithFlags(&c->loads, cudaStreamNonBlocking));
    PMLP__CUDA(c, "making an event", cudaEventCreateWithFlags(&c->fork, cudaEventDisableTiming));
    PMLP__CUDA(c, "making an event", cudaEventCreateWithFlags(&c->join, cudaEventDisableTiming));
    PMLP__CUDA(c, "making an event", cudaEventCreate(&c->origin));
    PMLP__TRY(pmlp__mirror_make(c, &c->up, PMLP__MIRROR));
    PMLP__TRY(pmlp__mirror_make(c, &c->down, PMLP__MIRROR));
    c->plans = (pmlp__plan *)pmlp__host_new(&c->allocator, PMLP__PLANS * sizeof *c->plans);
    if (!c->plans) return pmlp__no_host_memory(c);
    return c->options.gemm == PMLP_CUDA_GEMM_TEACHING ? PMLP_OK : pmlp__open_libraries(c);
}

static pmlp_result pmlp__cuda_open(const pmlp_backend *self, const pmlp_backend_desc *desc,
                                   void **context, pmlp_error *error) {
    pmlp__cuda *const c = (pmlp__cuda *)pmlp__host_new(&desc->allocator, sizeof *c);
    pmlp_result result;
    if (!c) return PMLP_ERROR_MEMORY;
    c->allocator = desc->allocator;
    if (self->user) c->options = *(const pmlp_cuda_options *)self->user;
    result = pmlp__check_options(c);
    if (result == PMLP_OK) result = pmlp__choose_device(c, desc);
    if (result == PMLP_OK) result = pmlp__open_device(c);
    if (result == PMLP_OK) {
        *context = c;
        return PMLP_OK;
    }
    if (error) {
        error->result = result;
        snprintf(error->text, sizeof error->text, "worker %d: %s", desc->worker, c->why);
    }
    pmlp__cuda_close(c);
    return result;
}

static const char *pmlp__cuda_explain(void *context) {
    const pmlp__cuda *const c = (const pmlp__cuda *)context;
    return c->why[0] ? c->why : pmlp__team_reason(c->team);
}

/* --- memory ----------------------------------------------------------------------------------- */

static pmlp_result pmlp__device_new(pmlp__cuda *c, size_t bytes, void **memory) {
    *memory = NULL;
    PMLP__CUDA(c, "allocating", cudaMalloc(memory, bytes ? bytes : 1));
    cudaError_t error = cudaMemsetAsync(*memory, 0, bytes, c->stream);
    if (error == cudaSuccess) error = cudaStreamSynchronize(c->stream); /* others may use it next */
    if (error == cudaSuccess) return PMLP_OK;
    cudaFree(*memory);
    *memory = NULL;
    return pmlp__cuda_failed(c, "clearing memory", error);
}

static pmlp_result pmlp__cuda_alloc(void *context, size_t bytes, void **buffer) {
    pmlp__cuda *const c = (pmlp__cuda *)context;
    PMLP__TRY(pmlp__enter_device(c));
    return pmlp__device_new(c, bytes, buffer);
}

static void pmlp__cuda_free(void *context, void *buffer) {
    cudaSetDevice(((pmlp__cuda *)context)->device);
    cudaFree(buffer);
}

static size_t pmlp__cuda_row_floats(void *context, size_t n, pmlp_activation activation) {
    const pmlp__cuda *const c = (const pmlp__cuda *)context;
    const size_t size = pmlp__element_size(c);
    return pmlp__pitch(c, n, activation) * size / sizeof(float);
}

static void pmlp__cuda_layer_destroy(void *context, void *layer_) {
    pmlp__cuda *const c = (pmlp__cuda *)context;
    pmlp__cuda_layer *const layer = (pmlp__cuda_layer *)layer_;
    if (!layer) return;
    cudaSetDevice(c->device);
    pmlp__forget_graphs(c); /* they know the layer by its address, which another may have next */
    if (layer->memory) cudaFree(layer->memory);
    pmlp__host_delete(&c->allocator, layer);
}

static int pmlp__moments_of(pmlp_optimizer optimizer) {
    if (optimizer == PMLP_ADAM || optimizer == PMLP_ADAMW) return 2;
    return optimizer == PMLP_MOMENTUM || optimizer == PMLP_NESTEROV ? 1 : 0;
}

/* One piece of memory: parameters of each version, gradient, moments, rounded parameters. Each
   begins at a multiple of 256 bytes. */
static pmlp_result pmlp__layer_memory(pmlp__cuda *c, pmlp__cuda_layer *layer) {
    const size_t versions = (size_t)layer->desc.versions;
    const size_t moments = (size_t)pmlp__moments_of(layer->desc.optimizer);
    const size_t tensors = versions + 1 + moments + (pmlp__is_bf16(c) ? versions : 0);
    void *memory;
    if (layer->count > SIZE_MAX / sizeof(float) / tensors) return PMLP_ERROR_MEMORY;
    PMLP__TRY(pmlp__device_new(c, tensors * layer->count * sizeof(float), &memory));
    layer->memory = layer->params = (float *)memory;
    layer->gradient = layer->params + versions * layer->count;
    if (moments > 0) layer->moment1 = layer->gradient + layer->count;
    if (moments > 1) layer->moment2 = layer->moment1 + layer->count;
    if (pmlp__is_bf16(c))
        layer->rounded = (pmlp__bf16 *)(void *)(layer->gradient + (1 + moments) * layer->count);
    return PMLP_OK;
}

static pmlp_result pmlp__cuda_layer_create(void *context, const pmlp_layer_desc *desc, void **out) {
    pmlp__cuda *const c = (pmlp__cuda *)context;
    pmlp__cuda_layer *layer;
    *out = NULL;
    if (desc->n_in > INT_MAX - 64 || desc->row_outs > INT_MAX / 2 - 64) {
        snprintf(c->why, sizeof c->why, "a layer of %.0f x %.0f is too large for cuBLAS",
                 (double)desc->n_in, (double)desc->row_outs);
        return PMLP_ERROR_UNSUPPORTED;
    }
    layer = (pmlp__cuda_layer *)pmlp__host_new(&c->allocator, sizeof *layer);
    if (!layer) return pmlp__no_host_memory(c);
    layer->desc = *desc;
    layer->pitch = pmlp__padded(c, desc->n_in);
    layer->weights = desc->n_out * layer->pitch;
    layer->count = (layer->weights + desc->n_out + 127) / 128 * 128;
    pmlp_result result = pmlp__enter_device(c);
    if (result == PMLP_OK) result = pmlp__layer_memory(c, layer);
    if (result == PMLP_OK)
        *out = layer;
    else
        pmlp__cuda_layer_destroy(c, layer);
    return result;
}

/* Before weights are read or written. They can be had even if the team has failed. */
static pmlp_result pmlp__at_rest(pmlp__cuda *c) {
    const bool given_up = c->given_up;
    const pmlp_result result = pmlp__cuda_synchronize(c);
    return c->given_up && !given_up ? pmlp__cuda_synchronize(c) : result;
}

/* The tensor's device memory, or NULL if the layer has none of that kind. */
static float *pmlp__tensor_of(const pmlp__cuda_layer *layer, pmlp_tensor tensor) {
    switch (tensor) {
    case PMLP_TENSOR_PARAMS: return pmlp__params(layer, layer->latest);
    case PMLP_TENSOR_GRADIENTS: return layer->gradient;
    case PMLP_TENSOR_MOMENT1: return layer->moment1;
    case PMLP_TENSOR_MOMENT2: return layer->moment2;
    default: return NULL;
    }
}

static pmlp_result pmlp__cuda_write(void *context, void *layer_, pmlp_tensor tensor, const float *w,
                                    const float *b) {
    pmlp__cuda *const c = (pmlp__cuda *)context;
    const pmlp__cuda_layer *const layer = (const pmlp__cuda_layer *)layer_;
    float *const to = pmlp__tensor_of(layer, tensor);
    const size_t row = layer->desc.n_in * sizeof *w;
    if (!to) return PMLP_OK;
    PMLP__TRY(pmlp__at_rest(c));
    if (w)
        PMLP__CUDA(c, "copying weights",
                   cudaMemcpy2DAsync(to, layer->pitch * sizeof *to, w, row, row, layer->desc.n_out,
                                     cudaMemcpyHostToDevice, c->stream));
    if (b)
        PMLP__CUDA(c, "copying biases",
                   cudaMemcpyAsync(to + layer->weights, b, layer->desc.n_out * sizeof *b,
                                   cudaMemcpyHostToDevice, c->stream));
    if (tensor == PMLP_TENSOR_PARAMS && layer->rounded)
        PMLP__CUDA(
            c, "rounding weights",
            pmlp__launch_round(c->stream, layer->count, to, pmlp__rounded(layer, layer->latest)));
    return pmlp__at_rest(c);
}

static pmlp_result pmlp__cuda_read(void *context, void *layer_, pmlp_tensor tensor, float *w,
                                   float *b) {
    pmlp__cuda *const c = (pmlp__cuda *)context;
    const pmlp__cuda_layer *const layer = (const pmlp__cuda_layer *)layer_;
    const float *const from = pmlp__tensor_of(layer, tensor);
    const size_t n_in = layer->desc.n_in, n_out = layer->desc.n_out, row = n_in * sizeof *w;
    if (!from) {
        if (w) memset(w, 0, n_out * row);
        if (b) memset(b, 0, n_out * sizeof *b);
        return PMLP_OK;
    }
    PMLP__TRY(pmlp__at_rest(c));
    if (w)
        PMLP__CUDA(c, "copying weights",
                   cudaMemcpy2DAsync(w, row, from, layer->pitch * sizeof *from, row, n_out,
                                     cudaMemcpyDeviceToHost, c->stream));
    if (b)
        PMLP__CUDA(c, "copying biases",
                   cudaMemcpyAsync(b, from + layer->weights, n_out * sizeof *b,
                                   cudaMemcpyDeviceToHost, c->stream));
    return pmlp__at_rest(c);
}

/* --- operations, noted ------------------------------------------------------------------------ */

static pmlp_result pmlp__cuda_input(void *context, size_t rows, size_t n, const pmlp_data *data,
                                    const uint32_t *index, size_t first, float *x) {
    pmlp__cuda *const c = (pmlp__cuda *)context;
    const size_t row = n * sizeof *data->x;
    const size_t most = pmlp__piece(rows * row) + pmlp__piece(rows * sizeof *index) +
                        pmlp__piece(sizeof(pmlp__source));
    pmlp__command k = pmlp__command_of(PMLP__INPUT, NULL, rows);
    pmlp__source source = {NULL, NULL, NULL};
    const void *at = NULL;
    PMLP__TRY(pmlp__enter_device(c));
    /* a list ends where a step does, so that a pass of many steps is short lists that come again */
    if (c->count > 0 && c->commands[c->count - 1].op == PMLP__UPDATE) PMLP__TRY(pmlp__flush(c));
    if (data->constant) PMLP__TRY(pmlp__resident(c, data->x, data->rows * row, &at));
    PMLP__TRY(pmlp__make_room(c, most, 0));
    source.x = (const float *)(at ? at : pmlp__up_rows(c, rows, data->x, row, index, first));
    k.n = n;
    k.out = x;
    k.index = pmlp__up_index(c, rows, at ? index : NULL, at ? first : 0);
    k.up = pmlp__up(c, &source, sizeof source);
    return pmlp__note(c, &k);
}

static pmlp_result pmlp__cuda_forward(void *context, void *layer, int version, size_t rows,
                                      const float *x, float *y) {
    pmlp__command k = pmlp__command_of(PMLP__FORWARD, layer, rows);
    k.from = version;
    k.x = x;
    k.out = y;
    return pmlp__note((pmlp__cuda *)context, &k);
}

static pmlp_result pmlp__cuda_backward_input(void *context, void *layer, int version, size_t rows,
                                             const float *dz, const float *x, float *dz_below) {
    pmlp__command k = pmlp__command_of(PMLP__BACKWARD_INPUT, layer, rows);
    k.from = version;
    k.x = x;
    k.y = dz;
    k.out = dz_below;
    return pmlp__note((pmlp__cuda *)context, &k);
}

static pmlp_result pmlp__cuda_backward_weight(void *context, void *layer, size_t rows,
                                              const float *x, const float *dz, bool accumulate) {
    pmlp__command k = pmlp__command_of(PMLP__BACKWARD_WEIGHT, layer, rows);
    PMLP__TRY(pmlp__sum_wanted((pmlp__cuda *)context));
    k.x = x;
    k.y = dz;
    k.flag = accumulate;
    return pmlp__note((pmlp__cuda *)context, &k);
}

/* Labels and targets: where they are on the device, if all of them are there; or they go up with
   the command, which has made room for them. */
static pmlp_result pmlp__answers(pmlp__cuda *c, const pmlp_loss_args *args, size_t target,
                                 pmlp__command *k) {
    const pmlp_data *const data = args->data;
    const size_t rows = args->rows;
    pmlp__source source = {NULL, NULL, NULL};
    const void *labels = NULL, *targets = NULL;
    bool resident = data->constant;
    if (resident && data->labels)
        PMLP__TRY(pmlp__resident(c, data->labels, data->rows * sizeof(int), &labels));
    if (resident && data->targets)
        PMLP__TRY(pmlp__resident(c, data->targets, data->rows * target, &targets));
    resident = resident && (labels || !data->labels) && (targets || !data->targets);
    if (!resident && data->labels)
        labels = pmlp__up_rows(c, rows, data->labels, sizeof(int), args->index, args->first);
    if (!resident && data->targets)
        targets = pmlp__up_rows(c, rows, data->targets, target, args->index, args->first);
    source.labels = (const int *)labels;
    source.targets = (const float *)targets;
    k->index = pmlp__up_index(c, rows, resident ? args->index : NULL, resident ? args->first : 0);
    k->up = pmlp__up(c, &source, sizeof source);
    return PMLP_OK;
}

static pmlp_result pmlp__cuda_loss(void *context, void *layer, const pmlp_loss_args *args) {
    pmlp__cuda *const c = (pmlp__cuda *)context;
    const size_t rows = args->rows, losses = rows * sizeof *args->row_loss;
    pmlp__command k = pmlp__command_of(PMLP__LOSS, layer, rows);
    const size_t target = k.layer->desc.row_outs * sizeof(float);
    const size_t most = pmlp__piece(rows * sizeof(int)) + pmlp__piece(rows * sizeof(uint32_t)) +
                        (args->data->targets ? pmlp__piece(rows * target) : 0) +
                        pmlp__piece(sizeof(pmlp__source));
    size_t at;
    PMLP__TRY(pmlp__make_room(c, most, pmlp__piece(losses + rows)));
    PMLP__TRY(pmlp__answers(c, args, target, &k));
    k.kind = (int)args->loss;
    k.y = args->y;
    k.out = args->dz;
    k.scale = args->scale;
    at = pmlp__mirror_take(&c->down, losses + rows);
    k.down = at - c->down.begin;
    PMLP__TRY(pmlp__down(c, at, losses, args->row_loss));
    PMLP__TRY(pmlp__down(c, at + losses, rows, args->row_hit));
    return pmlp__note(c, &k);
}

static pmlp_result pmlp__cuda_gradient_squares(void *context, void *layer, double *squares) {
    pmlp__cuda *const c = (pmlp__cuda *)context;
    pmlp__command k = pmlp__command_of(PMLP__SQUARES, layer, 0);
    const size_t bytes = k.layer->desc.n_out * sizeof *squares;
    size_t at;
    PMLP__TRY(pmlp__sum_wanted(c));
    PMLP__TRY(pmlp__make_room(c, 0, pmlp__piece(bytes)));
    at = pmlp__mirror_take(&c->down, bytes);
    k.down = at - c->down.begin;
    PMLP__TRY(pmlp__down(c, at, bytes, squares));
    return pmlp__note(c, &k);
}

static pmlp_result pmlp__cuda_gradient(void *context, void *layer_, float **data, size_t *floats) {
    pmlp__cuda_layer *const layer = (pmlp__cuda_layer *)layer_;
    (void)context;
    *data = layer->gradient;
    *floats = layer->count;
    return PMLP_OK;
}

static pmlp_result pmlp__cuda_update(void *context, void *layer_, const pmlp_update_args *args) {
    pmlp__cuda *const c = (pmlp__cuda *)context;
    pmlp__cuda_layer *const layer = (pmlp__cuda_layer *)layer_;
    pmlp__command k = pmlp__command_of(PMLP__UPDATE, layer, 0);
    pmlp__step step;
    PMLP__TRY(pmlp__sum_wanted(c));
    PMLP__TRY(pmlp__make_room(c, pmlp__piece(sizeof step), 0));
    if (args->rows > 0 || args->anew)
        PMLP__TRY(pmlp__cuda_backward_weight(c, layer, args->rows, args->x, args->dz, !args->anew));
    memset(&step, 0, sizeof step);
    step.lr = args->learning_rate;
    step.momentum = args->momentum;
    step.beta1 = args->beta1;
    step.beta2 = args->beta2;
    step.epsilon = args->epsilon;
    step.decay = args->weight_decay;
    step.scale = args->gradient_scale;
    step.rate =
        (float)((double)args->learning_rate / (1.0 - pow((double)args->beta1, (double)args->step)));
    step.keep = (float)(1.0 - (double)args->learning_rate * (double)args->weight_decay);
    step.fix2 = 1.0 - pow((double)args->beta2, (double)args->step);
    k.up = pmlp__up(c, &step, sizeof step);
    k.kind = (int)args->optimizer;
    k.from = args->from;
    k.to = args->to;
    layer->latest = args->to;
    return pmlp__note(c, &k);
}

/* --- time ------------------------------------------------------------------------------------- */

/* The moment that times are counted from, anew in each pass: the device counts in floats. */
static pmlp_result pmlp__set_origin(pmlp__cuda *c) {
    PMLP__CUDA(c, "timing", cudaEventRecord(c->origin, c->stream));
    if (c->team && !c->given_up)
        PMLP__TRY(pmlp__wait_for_all(c, PMLP_OK));
    else
        PMLP__CUDA(c, "timing", cudaEventSynchronize(c->origin));
    c->origin_seconds = pmlp__seconds();
    return PMLP_OK;
}

static pmlp_result pmlp__cuda_stamp(void *context, double *seconds) {
    pmlp__cuda *const c = (pmlp__cuda *)context;
    PMLP__TRY(pmlp__enter_device(c));
    PMLP__TRY(pmlp__flush(c));
    if (c->stamp_count == 0) PMLP__TRY(pmlp__set_origin(c));
    if (!pmlp__host_grow(&c->allocator, &c->stamps, c->stamp_count, &c->stamp_room))
        return pmlp__no_host_memory(c);
    pmlp__stamp_wish *const wish = &c->stamps[c->stamp_count];
    if (c->stamp_count == c->stamp_events) {
        PMLP__CUDA(c, "timing", cudaEventCreate(&wish->event));
        c->stamp_events++;
    }
    PMLP__CUDA(c, "timing", cudaEventRecord(wish->event, c->stream));
    wish->seconds = seconds;
    c->stamp_count++;
    return PMLP_OK;
}

static pmlp_result pmlp__read_stamps(pmlp__cuda *c) {
    const int count = c->stamp_count;
    c->stamp_count = 0;
    for (int i = 0; i < count; i++) {
        float ms = 0.0f;
        PMLP__CUDA(c, "timing", cudaEventElapsedTime(&ms, c->origin, c->stamps[i].event));
        *c->stamps[i].seconds = c->origin_seconds + 1e-3 * (double)ms;
    }
    return PMLP_OK;
}

/* --- the end of a step ------------------------------------------------------------------------ */

/* Whatever happens, nothing is outstanding afterwards. */
static pmlp_result pmlp__wait(pmlp__cuda *c) {
    pmlp_result flushed = pmlp__flush(c);
    if (flushed == PMLP_OK) flushed = pmlp__sum_wanted(c);
    if (c->team && !c->given_up) return pmlp__wait_for_all(c, flushed);
    const cudaError_t waited = cudaStreamSynchronize(c->stream);
    if (flushed != PMLP_OK) cudaStreamSynchronize(c->beside); /* perhaps they had not joined */
    if (flushed != PMLP_OK) return flushed;
    PMLP__CUDA(c, "the work of a step", waited);
    return PMLP_OK;
}

static pmlp_result pmlp__cuda_synchronize(void *context) {
    pmlp__cuda *const c = (pmlp__cuda *)context;
    pmlp_result result = pmlp__enter_device(c);
    if (result == PMLP_OK) result = pmlp__wait(c);
    for (int i = 0; result == PMLP_OK && i < c->result_count; i++) {
        const pmlp__result_copy *const r = &c->results[i];
        memcpy(r->to, c->down.host + r->at, r->bytes);
    }
    if (result == PMLP_OK) result = pmlp__read_stamps(c);
    c->count = c->result_count = c->stamp_count = 0;
    c->up.used = c->up.begin = c->down.used = c->down.begin = 0;
    c->failed = PMLP_OK;
    return result;
}

/*============================================================================================*/
/* >>edges: hand-off between stages                                                           */
/*                                                                                            */
/* An event per slot says that a message is there. On one GPU that is all: both stages work   */
/* in one buffer. Between two, the message is copied by a stream of the edge into a slot on   */
/* the receiver's GPU, while both ends compute; a second event says that it has arrived, and  */
/* a third that the receiver has taken it out, so that the slot may be used again. With NCCL  */
/* each end has a stream, one for ncclSend and one for ncclRecv, and all else is the same;    */
/* the ends may then be at two ranks, each of which has its half of the edge.                 */
/*============================================================================================*/

enum pmlp__passing { PMLP__SHARED, PMLP__COPIED, PMLP__BY_NCCL };

typedef struct pmlp__cuda_slot {
    cudaEvent_t full, arrived, taken;
    void *memory; /* on the receiver's GPU */
} pmlp__cuda_slot;

typedef struct pmlp__cuda_edge {
    pmlp_edge_desc desc;
    pmlp__cuda *from, *to; /* NULL: at another rank */
    enum pmlp__passing handoff;
    cudaStream_t stream; /* of the copies */
#ifdef PMLP__NCCL
    pmlp__wire ends[2]; /* the sender's, the receiver's */
#endif
    pmlp__cuda_slot *slots;
    std::atomic<int> sent, received; /* each written by one end only */
} pmlp__cuda_edge;

/* One that is in this process. */
static pmlp__cuda *pmlp__edge_end(const pmlp__cuda_edge *e) {
    return e->to ? e->to : e->from;
}

#ifdef PMLP__NCCL
/* --- by NCCL ---------------------------------------------------------------------------------- */

/* One end makes an id, which the other, at another rank, gets; see >>group. */
static pmlp_result pmlp__group_share_id(const void *group, int from_rank, int to_rank, int tag,
                                        ncclUniqueId *id, double seconds);

/* The workers at both ends fail together. Edges come in the order of the stages, so that two ends
   that have a team have the same one. */
static pmlp_result pmlp__edge_team(pmlp__cuda_edge *e) {
    pmlp__cuda *const ends[2] = {e->from, e->to};
    pmlp__team *team = e->from && e->from->team ? e->from->team : e->to ? e->to->team : NULL;
    const bool is_new = !team;
    if (is_new) team = pmlp__team_new(&e->desc.allocator);
    if (!team) return pmlp__no_host_memory(pmlp__edge_end(e));
    for (int i = 0; i < 2; i++) {
        if (!ends[i] || ends[i]->team) continue;
        ends[i]->team = team;
        team->users.fetch_add(1);
    }
    if (is_new) pmlp__team_leave(team);
    return PMLP_OK;
}

static void pmlp__edge_texts(pmlp__cuda_edge *e) {
    const pmlp_edge_desc *const d = &e->desc;
    const char *const what = d->gradient ? "gradients" : "activations";
    for (int end = 0; end < 2; end++) {
        pmlp__wire *const l = &e->ends[end];
        l->remote = !e->from || !e->to;
        l->waits = end == 1;
        if (!l->remote)
            snprintf(l->text, sizeof l->text, "%s of stage %d for stage %d", what, d->from_stage,
                     d->to_stage);
        else if (end == 0)
            snprintf(l->text, sizeof l->text, "%s of stage %d for rank %d", what, d->from_stage,
                     d->to_rank);
        else
            snprintf(l->text, sizeof l->text, "%s of stage %d from rank %d", what, d->from_stage,
                     d->from_rank);
    }
}

/* The ends that are here; returns how many. */
static int pmlp__edge_wires(pmlp__cuda_edge *e, pmlp__wire **wires) {
    int count = 0;
    if (e->from) wires[count++] = &e->ends[0];
    if (e->to) wires[count++] = &e->ends[1];
    return count;
}

/* The first use of a connection takes long and blocks: a message of nothing. */
static pmlp_result pmlp__edge_first_use(pmlp__cuda_edge *e, double seconds) {
    pmlp__wire *wires[2];
    const int count = pmlp__edge_wires(e, wires);
    PMLP__TRY(pmlp__wires_do(wires, count, "connecting", seconds, [&](int i) {
        pmlp__wire *const l = wires[i];
        return l == &e->ends[0] ? ncclSend(e->from->down.device, 4, ncclInt8, 1, l->comm, l->stream)
                                : ncclRecv(e->slots->memory, 4, ncclInt8, 0, l->comm, l->stream);
    }));
    for (int i = 0; i < count; i++) {
        pmlp__wire *const l = wires[i];
        cudaError_t status = cudaSuccess;
        PMLP__TRY(pmlp__await(l->team, l->owner, l->device, l->stream, seconds, &status));
        PMLP__CUDA(pmlp__edge_end(e), "connecting", status);
    }
    return PMLP_OK;
}

static pmlp_result pmlp__edge_join(pmlp__cuda_edge *e, const void *group) {
    const double seconds = pmlp__seconds_of(pmlp__edge_end(e)->team, e->desc.seconds);
    pmlp__wire *wires[2];
    const int count = pmlp__edge_wires(e, wires);
    ncclUniqueId id;
    pmlp__edge_texts(e);
    if (e->desc.slots > PMLP__MARKS) { /* else the proof of the schedule would not hold */
        pmlp__cuda *const c = pmlp__edge_end(e);
        snprintf(c->why, sizeof c->why, "slots: %d are more than the %d that NCCL's edges have",
                 e->desc.slots, (int)PMLP__MARKS);
        return PMLP_ERROR_UNSUPPORTED;
    }
    for (int i = 0; i < count; i++) {
        pmlp__cuda *const c = wires[i] == &e->ends[0] ? e->from : e->to;
        c->patience = seconds;
        PMLP__TRY(pmlp__enter_device(c));
        pmlp__wire_join(wires[i], c->team, c, c->device);
        PMLP__CUDA(c, "making a stream", pmlp__wire_make(wires[i]));
    }
    if (count < 2) {
        PMLP__TRY(pmlp__group_share_id(group, e->desc.from_rank, e->desc.to_rank, e->desc.channel,
                                       &id, seconds));
    } else {
        const ncclResult_t result = ncclGetUniqueId(&id);
        if (result != ncclSuccess) return pmlp__wire_failed(wires[0], "connecting", result);
    }
    PMLP__TRY(pmlp__wires_connect(wires, count, e->from ? 0 : 1, 2, &id, PMLP__EDGE_BLOCKS,
                                  seconds));
    return pmlp__edge_first_use(e, seconds);
}

static void pmlp__edge_part(pmlp__cuda_edge *e) {
    pmlp__wire *wires[2];
    int count = 0;
    for (int end = 0; end < 2; end++)
        if (e->ends[end].team) wires[count++] = &e->ends[end];
    if (count > 0) pmlp__wires_close(wires, count);
}

/* Where sending or receiving ends if the team has failed; says why. */
static pmlp_result pmlp__edge_failed(pmlp__cuda *c, pmlp_result result) {
    if (result == PMLP_OK || !c->team || c->team->failed.load() == PMLP_OK) return result;
    pmlp__team_abort(c->team);
    snprintf(c->why, sizeof c->why, "%s", c->team->why);
    return (pmlp_result)c->team->failed.load();
}

/* Whether an end may not do more, as its device is far behind. */
static bool pmlp__edge_is_full(pmlp__cuda_edge *e, int end) {
    return e->handoff == PMLP__BY_NCCL && pmlp__wire_is_full(&e->ends[end]);
}

static pmlp_result pmlp__edge_nccl_send(pmlp__cuda_edge *e, const pmlp__cuda_slot *slot,
                                        const void *data, size_t bytes) {
    pmlp__wire *const l = &e->ends[0];
    PMLP__CUDA(e->from, "a hand-off", cudaStreamWaitEvent(l->stream, slot->full, 0));
    PMLP__TRY(pmlp__wires_do(&l, 1, "sending", e->from->patience, [&](int) {
        return ncclSend(data, bytes, ncclInt8, 1, l->comm, l->stream);
    }));
    PMLP__CUDA(e->from, "a hand-off", pmlp__wire_mark(l));
    return PMLP_OK;
}

static pmlp_result pmlp__edge_nccl_receive(pmlp__cuda_edge *e, const pmlp__cuda_slot *slot,
                                           bool used, size_t bytes) {
    pmlp__wire *const l = &e->ends[1];
    if (used) PMLP__CUDA(e->to, "a hand-off", cudaStreamWaitEvent(l->stream, slot->taken, 0));
    PMLP__TRY(pmlp__wires_do(&l, 1, "receiving", e->to->patience, [&](int) {
        return ncclRecv(slot->memory, bytes, ncclInt8, 0, l->comm, l->stream);
    }));
    PMLP__CUDA(e->to, "a hand-off", cudaEventRecord(slot->arrived, l->stream));
    PMLP__CUDA(e->to, "a hand-off", pmlp__wire_mark(l));
    return PMLP_OK;
}

/* What was sent may still lie in the sender's memory, which the next pass will write. */
static pmlp_result pmlp__edge_settle(pmlp__cuda_edge *e) {
    pmlp__wire *const l = &e->ends[0];
    cudaError_t status = cudaSuccess;
    if (!e->from || e->handoff != PMLP__BY_NCCL) return PMLP_OK;
    PMLP__TRY(pmlp__enter_device(e->from));
    PMLP__TRY(
        pmlp__await(l->team, l->owner, l->device, l->stream, e->from->patience, &status));
    PMLP__CUDA(e->from, "a hand-off", status);
    return PMLP_OK;
}
#else
/* No edge becomes one of that kind. */
static pmlp_result pmlp__edge_team(pmlp__cuda_edge *) { return PMLP_OK; }
static pmlp_result pmlp__edge_join(pmlp__cuda_edge *, const void *) {
    return PMLP_ERROR_UNSUPPORTED;
}
static void pmlp__edge_part(pmlp__cuda_edge *) {}
static pmlp_result pmlp__edge_failed(pmlp__cuda *, pmlp_result result) { return result; }
static bool pmlp__edge_is_full(pmlp__cuda_edge *, int) { return false; }
static pmlp_result pmlp__edge_settle(pmlp__cuda_edge *) { return PMLP_OK; }
static pmlp_result pmlp__edge_nccl_send(pmlp__cuda_edge *, const pmlp__cuda_slot *, const void *,
                                        size_t) {
    return PMLP_OK;
}
static pmlp_result pmlp__edge_nccl_receive(pmlp__cuda_edge *, const pmlp__cuda_slot *, bool,
                                           size_t) {
    return PMLP_OK;
}
#endif

/* --- of all kinds ----------------------------------------------------------------------------- */

static void pmlp__edge_disconnect(void *edge) {
    pmlp__cuda_edge *const e = (pmlp__cuda_edge *)edge;
    const pmlp_allocator allocator = e->desc.allocator;
    pmlp__edge_part(e);
    cudaSetDevice(pmlp__edge_end(e)->device);
    if (e->stream) {
        cudaStreamSynchronize(e->stream);
        cudaStreamDestroy(e->stream);
    }
    for (int i = 0; e->slots && i < e->desc.slots; i++) {
        if (e->slots[i].full) cudaEventDestroy(e->slots[i].full);
        if (e->slots[i].arrived) cudaEventDestroy(e->slots[i].arrived);
        if (e->slots[i].taken) cudaEventDestroy(e->slots[i].taken);
        if (e->slots[i].memory) cudaFree(e->slots[i].memory);
    }
    pmlp__host_delete(&allocator, e->slots);
    e->~pmlp__cuda_edge();
    pmlp__host_delete(&allocator, e);
}

static pmlp_result pmlp__edge_event(pmlp__cuda *c, cudaEvent_t *event) {
    PMLP__TRY(pmlp__enter_device(c));
    PMLP__CUDA(c, "making an event", cudaEventCreateWithFlags(event, cudaEventDisableTiming));
    return PMLP_OK;
}

/* Lets one GPU read the other's memory without a detour, where the machine can. */
static void pmlp__enable_peer(int reader, int owner) {
    int can = 0;
    if (reader != owner && cudaDeviceCanAccessPeer(&can, reader, owner) == cudaSuccess && can &&
        cudaSetDevice(reader) == cudaSuccess)
        cudaDeviceEnablePeerAccess(owner, 0);
    cudaGetLastError(); /* it was so already; if not, copies take the detour */
}

static pmlp_result pmlp__edge_slot(pmlp__cuda_edge *e, pmlp__cuda_slot *slot) {
    const size_t bytes = e->desc.max_rows * e->desc.row_bytes;
    if (e->from) PMLP__TRY(pmlp__edge_event(e->from, &slot->full));
    if (e->handoff == PMLP__SHARED || !e->to) return PMLP_OK;
    PMLP__TRY(pmlp__edge_event(e->to, &slot->arrived));
    PMLP__TRY(pmlp__edge_event(e->to, &slot->taken));
    PMLP__CUDA(e->to, "allocating", cudaMalloc(&slot->memory, bytes));
    return PMLP_OK;
}

static pmlp_result pmlp__edge_make(pmlp__cuda_edge *e) {
    e->slots = (pmlp__cuda_slot *)pmlp__host_new(&e->desc.allocator,
                                                 (size_t)e->desc.slots * sizeof *e->slots);
    if (!e->slots) return pmlp__no_host_memory(pmlp__edge_end(e));
    for (int i = 0; i < e->desc.slots; i++) PMLP__TRY(pmlp__edge_slot(e, &e->slots[i]));
    if (e->handoff != PMLP__COPIED) return PMLP_OK;
    pmlp__enable_peer(e->to->device, e->from->device);
    PMLP__TRY(pmlp__enter_device(e->to));
    PMLP__CUDA(e->to, "making a stream",
               cudaStreamCreateWithFlags(&e->stream, cudaStreamNonBlocking));
    return PMLP_OK;
}

static enum pmlp__passing pmlp__edge_handoff(const pmlp_edges *self, const pmlp__cuda_edge *e) {
    if (!e->from || !e->to) return PMLP__BY_NCCL;
    if (self->shared) return PMLP__SHARED;
    return e->from->options.handoff == PMLP_CUDA_NCCL && e->from->device != e->to->device
               ? PMLP__BY_NCCL
               : PMLP__COPIED;
}

static pmlp_result pmlp__edge_complete(const pmlp_edges *self, pmlp__cuda_edge *e) {
    pmlp__cuda *const c = pmlp__edge_end(e);
    pmlp_result result = PMLP_OK;
    e->handoff = pmlp__edge_handoff(self, e);
    if (e->handoff != PMLP__SHARED && c->options.handoff == PMLP_CUDA_NCCL)
        result = pmlp__edge_team(e);
    if (result == PMLP_OK) result = pmlp__edge_make(e);
    if (result == PMLP_OK && e->handoff == PMLP__BY_NCCL) result = pmlp__edge_join(e, self->user);
    return pmlp__edge_failed(c, result);
}

static pmlp_result pmlp__edge_connect(const pmlp_edges *self, const pmlp_edge_desc *desc,
                                      void **edge, pmlp_error *error) {
    void *const memory = pmlp__host_new(&desc->allocator, sizeof(pmlp__cuda_edge));
    pmlp__cuda_edge *e;
    pmlp_result result;
    if (!memory) return PMLP_ERROR_MEMORY;
    e = new (memory) pmlp__cuda_edge();
    e->desc = *desc;
    e->from = (pmlp__cuda *)desc->from_context;
    e->to = (pmlp__cuda *)desc->to_context;
    result = pmlp__edge_complete(self, e);
    if (result == PMLP_OK) {
        *edge = e;
        return PMLP_OK;
    }
    if (error) {
        const pmlp__cuda *const c = e->to && e->to->why[0] ? e->to : e->from ? e->from : e->to;
        error->result = result;
        snprintf(error->text, sizeof error->text, "the edge from stage %d to stage %d: %s",
                 desc->from_stage, desc->to_stage, c->why);
    }
    pmlp__edge_disconnect(e);
    return result;
}

static pmlp_result pmlp__edge_reset(void *edge) {
    pmlp__cuda_edge *const e = (pmlp__cuda_edge *)edge;
    e->sent.store(0);
    e->received.store(0);
    return pmlp__edge_failed(pmlp__edge_end(e), pmlp__edge_settle(e));
}

/* The copy of a message into its slot, by the edge's own stream: when the message is complete, and
   the one before it in this slot has been taken out. */
static pmlp_result pmlp__edge_copy(pmlp__cuda_edge *e, const pmlp__cuda_slot *slot, bool used,
                                   const void *data, size_t bytes) {
    pmlp__cuda *const c = e->from; /* whose thread this is */
    PMLP__CUDA(c, "a hand-off", cudaSetDevice(e->to->device));
    PMLP__CUDA(c, "a hand-off", cudaStreamWaitEvent(e->stream, slot->full, 0));
    if (used) PMLP__CUDA(c, "a hand-off", cudaStreamWaitEvent(e->stream, slot->taken, 0));
    PMLP__CUDA(c, "a hand-off",
               cudaMemcpyAsync(slot->memory, data, bytes, cudaMemcpyDefault, e->stream));
    PMLP__CUDA(c, "a hand-off", cudaEventRecord(slot->arrived, e->stream));
    return PMLP_OK;
}

static pmlp_result pmlp__edge_put(pmlp__cuda_edge *e, int sent, const void *data, size_t bytes) {
    const pmlp__cuda_slot *const slot = &e->slots[sent % e->desc.slots];
    PMLP__TRY(pmlp__enter_device(e->from));
    PMLP__TRY(pmlp__flush(e->from));
    PMLP__CUDA(e->from, "a hand-off", cudaEventRecord(slot->full, e->from->stream));
    switch (e->handoff) {
    case PMLP__COPIED: return pmlp__edge_copy(e, slot, sent >= e->desc.slots, data, bytes);
    case PMLP__BY_NCCL: return pmlp__edge_nccl_send(e, slot, data, bytes);
    default: return PMLP_OK;
    }
}

static pmlp_result pmlp__edge_send(void *edge, int microbatch, const void *data, size_t bytes) {
    pmlp__cuda_edge *const e = (pmlp__cuda_edge *)edge;
    const int sent = e->sent.load();
    pmlp_result result = PMLP_OK;
    (void)microbatch;
    if (e->to && sent - e->received.load() >= e->desc.slots) return PMLP_BUSY;
    if (pmlp__edge_is_full(e, 0)) return pmlp__edge_failed(e->from, PMLP_BUSY);
    if (bytes > 0) result = pmlp__edge_failed(e->from, pmlp__edge_put(e, sent, data, bytes));
    if (result != PMLP_OK) return result;
    e->sent.store(sent + 1);
    if (e->to) e->desc.wake(e->desc.to_wake);
    return PMLP_OK;
}

static pmlp_result pmlp__edge_take(pmlp__cuda_edge *e, int received, void *data, size_t bytes) {
    pmlp__cuda *const c = e->to;
    const pmlp__cuda_slot *const slot = &e->slots[received % e->desc.slots];
    PMLP__TRY(pmlp__enter_device(c));
    PMLP__TRY(pmlp__flush(c));
    if (e->handoff == PMLP__BY_NCCL)
        PMLP__TRY(pmlp__edge_nccl_receive(e, slot, received >= e->desc.slots, bytes));
    const bool apart = e->handoff != PMLP__SHARED;
    PMLP__CUDA(c, "a hand-off",
               cudaStreamWaitEvent(c->stream, apart ? slot->arrived : slot->full, 0));
    if (!apart) return PMLP_OK;
    PMLP__CUDA(c, "a hand-off",
               cudaMemcpyAsync(data, slot->memory, bytes, cudaMemcpyDeviceToDevice, c->stream));
    PMLP__CUDA(c, "a hand-off", cudaEventRecord(slot->taken, c->stream));
    return PMLP_OK;
}

static pmlp_result pmlp__edge_receive(void *edge, int microbatch, void *data, size_t bytes) {
    pmlp__cuda_edge *const e = (pmlp__cuda_edge *)edge;
    const int received = e->received.load();
    pmlp_result result = PMLP_OK;
    (void)microbatch;
    if (e->from && e->sent.load() == received) return PMLP_BUSY;
    if (pmlp__edge_is_full(e, 1)) return pmlp__edge_failed(e->to, PMLP_BUSY);
    if (bytes > 0) result = pmlp__edge_failed(e->to, pmlp__edge_take(e, received, data, bytes));
    if (result != PMLP_OK) return result;
    e->received.store(received + 1);
    if (e->from) e->desc.wake(e->desc.from_wake);
    return PMLP_OK;
}

/* Shared if all workers use one GPU. */
static const pmlp_edges pmlp__one_gpu = {PMLP_EDGES_ABI,       (uint32_t)sizeof(pmlp_edges),
                                         "CUDA, one GPU",
                                         /* .user = */ NULL,
                                         /* .shared = */ true, PMLP_TRANSPORT_SLOTS,
                                         pmlp__edge_connect,   pmlp__edge_disconnect,
                                         pmlp__edge_reset,     pmlp__edge_send,
                                         pmlp__edge_receive};
static const pmlp_edges pmlp__several_gpus = {PMLP_EDGES_ABI,        (uint32_t)sizeof(pmlp_edges),
                                              "CUDA, several GPUs",
                                              /* .user = */ NULL,
                                              /* .shared = */ false, PMLP_TRANSPORT_SLOTS,
                                              pmlp__edge_connect,    pmlp__edge_disconnect,
                                              pmlp__edge_reset,      pmlp__edge_send,
                                              pmlp__edge_receive};

/*============================================================================================*/
/* >>group: ranks in other processes                                                          */
/*============================================================================================*/

static void pmlp__set_variable(const char *name, const char *value) {
#ifdef _WIN32
    if (!getenv(name)) _putenv_s(name, value);
#else
    setenv(name, value, 0);
#endif
}

/* Settings that can only be made before the process's first call of CUDA, and have no effect behind
   it. Streams that share a queue of the device wait for one another: a message that has not come
   would hold up the work behind it. And NCCL shall make all connections when it is told to connect,
   not when a sum first takes another way, amid a step. */
static void pmlp__set_environment(void) {
    pmlp__set_variable("CUDA_DEVICE_MAX_CONNECTIONS", "32");
    pmlp__set_variable("NCCL_RUNTIME_CONNECT", "0");
}

/* --- who we are ------------------------------------------------------------------------------- */

enum { PMLP__PORT = 29517 };

static pmlp_result pmlp__refuse(pmlp_error *error, pmlp_result result, const char *format, ...) {
    va_list list;
    if (!error) return result;
    memset(error, 0, sizeof *error);
    error->result = result;
    error->worker = error->stage = error->microbatch = -1;
    va_start(list, format);
    vsnprintf(error->text, sizeof error->text, format, list);
    va_end(list);
    return result;
}

static const char *pmlp__variable(const char *name) {
    const char *const text = getenv(name);
    return text && *text ? text : NULL;
}

static pmlp_result pmlp__read_variable(const char *name, int low, int high, int *value,
                                       pmlp_error *error) {
    const char *const text = pmlp__variable(name);
    char *end = NULL;
    const long n = text ? strtol(text, &end, 10) : 0;
    if (!text) return pmlp__refuse(error, PMLP_ERROR_ARGUMENT, "%s: is not set", name);
    if (*end || n < low || n > high)
        return pmlp__refuse(error, PMLP_ERROR_ARGUMENT,
                            "%s: '%.60s' is not a whole number from %d to %d", name, text, low,
                            high);
    *value = (int)n;
    return PMLP_OK;
}

/* Who may have launched us. `also`: without it the other variables say nothing, as Slurm sets them
   for the script, too, from which srun is called. */
typedef struct pmlp__launcher {
    const char *rank, *ranks, *local_rank, *also;
} pmlp__launcher;

static const pmlp__launcher pmlp__launchers[] = {
    {"PMLP_RANK", "PMLP_RANKS", "PMLP_LOCAL_RANK", NULL},
    {"RANK", "WORLD_SIZE", "LOCAL_RANK", NULL},
    {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", NULL},
    {"PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", NULL},
    {"SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_STEP_ID"}};

static const pmlp__launcher *pmlp__find_launcher(void) {
    for (const pmlp__launcher &l : pmlp__launchers)
        if ((pmlp__variable(l.rank) || pmlp__variable(l.ranks)) &&
            (!l.also || pmlp__variable(l.also)))
            return &l;
    return NULL;
}

/* The first machine of "node[01-04,7],other": node01. */
static void pmlp__first_host(const char *list, char *host, size_t size) {
    const size_t stem = strcspn(list, "[,");
    const char *const number = list[stem] == '[' ? list + stem + 1 : "";
    snprintf(host, size, "%.*s%.*s", (int)stem, list, (int)strcspn(number, "-,]"), number);
}

static pmlp_result pmlp__read_address(const pmlp__launcher *by, pmlp_launch *launch,
                                      pmlp_error *error) {
    const char *const given = pmlp__variable("PMLP_ADDRESS");
    const char *const torch = pmlp__variable("MASTER_ADDR");
    const char *const slurm = pmlp__variable("SLURM_STEP_NODELIST");
    const char *const local = pmlp__variable("OMPI_COMM_WORLD_LOCAL_SIZE");
    const char *const address = given ? given : torch;
    if (address && strlen(address) >= sizeof launch->address)
        return pmlp__refuse(error, PMLP_ERROR_ARGUMENT, "%s: is too long",
                            given ? "PMLP_ADDRESS" : "MASTER_ADDR");
    if (address)
        snprintf(launch->address, sizeof launch->address, "%s", address);
    else if (slurm && strcmp(by->rank, "SLURM_PROCID") == 0)
        pmlp__first_host(slurm, launch->address, sizeof launch->address);
    else if (local && atoi(local) != launch->ranks && strncmp(by->rank, "OMPI", 4) == 0)
        return pmlp__refuse(error, PMLP_ERROR_ARGUMENT,
                            "PMLP_ADDRESS: is not set; with several machines it must say where "
                            "rank 0 is");
    return PMLP_OK;
}

static pmlp_result pmlp__read_port(pmlp_launch *launch, pmlp_error *error) {
    if (pmlp__variable("PMLP_PORT"))
        return pmlp__read_variable("PMLP_PORT", 1, 65535, &launch->port, error);
    if (!pmlp__variable("MASTER_PORT")) return PMLP_OK;
    PMLP__TRY(pmlp__read_variable("MASTER_PORT", 1, 65534, &launch->port, error));
    launch->port++;
    return PMLP_OK;
}

static pmlp_result pmlp__read_seconds(pmlp_launch *launch, pmlp_error *error) {
    const char *const text = pmlp__variable("PMLP_SECONDS");
    char *end = NULL;
    if (!text) return PMLP_OK;
    launch->seconds = strtod(text, &end);
    if (!*end && launch->seconds > 0.0 && launch->seconds < 1e6) return PMLP_OK;
    return pmlp__refuse(error, PMLP_ERROR_ARGUMENT, "PMLP_SECONDS: '%.60s' is not a time", text);
}

extern "C" pmlp_result pmlp_launch_from_environment(pmlp_launch *launch, pmlp_error *error) {
    const pmlp__launcher *const by = pmlp__find_launcher();
    if (!launch) return pmlp__refuse(error, PMLP_ERROR_ARGUMENT, "launch: is NULL");
    memset(launch, 0, sizeof *launch);
    launch->ranks = 1;
    if (by) {
        PMLP__TRY(pmlp__read_variable(by->ranks, 1, 65536, &launch->ranks, error));
        PMLP__TRY(pmlp__read_variable(by->rank, 0, launch->ranks - 1, &launch->rank, error));
        if (pmlp__variable(by->local_rank))
            PMLP__TRY(
                pmlp__read_variable(by->local_rank, 0, 65535, &launch->local_rank, error));
        else
            launch->local_rank = launch->rank;
        PMLP__TRY(pmlp__read_address(by, launch, error));
    }
    PMLP__TRY(pmlp__read_port(launch, error));
    PMLP__TRY(pmlp__read_seconds(launch, error));
    return PMLP_OK;
}

#ifdef PMLP__NCCL
/* --- sockets ---------------------------------------------------------------------------------- */

/* All sockets do not block: a wait has an end. */
static bool pmlp__wait_for(int fd, short events, double until) {
    for (;;) {
        const double left = until - pmlp__seconds();
        struct pollfd one = {fd, events, 0};
        const int ready = poll(&one, 1, left > 0.0 ? (int)(left * 1e3) + 1 : 0);
        if (ready > 0) return true;
        if ((ready == 0 || errno != EINTR) && pmlp__seconds() >= until) return false;
    }
}

static bool pmlp__write_all(int fd, const void *data, size_t bytes, double until) {
    for (size_t at = 0; at < bytes;) {
        const ssize_t n = send(fd, (const char *)data + at, bytes - at, MSG_NOSIGNAL);
        if (n > 0) at += (size_t)n;
        else if (n < 0 && errno == EINTR) continue;
        else if (n == 0 || errno != EAGAIN || !pmlp__wait_for(fd, POLLOUT, until)) return false;
    }
    return true;
}

/* What there is for a message of a fixed size, of which *got bytes are there; false: the other side
   is gone. */
static bool pmlp__read_some(int fd, void *data, size_t bytes, size_t *got) {
    while (*got < bytes) {
        const ssize_t n = recv(fd, (char *)data + *got, bytes - *got, 0);
        if (n > 0) *got += (size_t)n;
        else if (n < 0 && errno == EINTR) continue;
        else return n < 0 && errno == EAGAIN;
    }
    return true;
}

static void pmlp__shut(int *fd) {
    if (*fd >= 0) close(*fd);
    *fd = -1;
}

static int pmlp__socket(const struct addrinfo *a) {
    const int one = 1;
    const int fd = socket(a->ai_family, SOCK_STREAM, 0);
    if (fd < 0) return -1;
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

/* --- meeting ---------------------------------------------------------------------------------- */

static const uint32_t PMLP__MAGIC = 0x706d6c70, PMLP__PROTOCOL = 1;

/* What a rank says first. */
typedef struct pmlp__hello {
    uint32_t magic, protocol, rank, ranks;
} pmlp__hello;

/* And what rank 0 says when all have come, or when it does not want that one. */
typedef struct pmlp__welcome {
    uint32_t magic, refused;
    char text[248]; /* why */
    ncclUniqueId id;
} pmlp__welcome;

/* Somebody who has come to rank 0, and has not said who he is. */
typedef struct pmlp__guest {
    int fd;
    size_t got;
    pmlp__hello hello;
} pmlp__guest;
enum { PMLP__GUESTS = 64 };

typedef struct pmlp__lobby {
    const pmlp_launch *launch;
    double until;
    int *lines; /* [ranks], of rank 0: -1: not there; of the others: only [0] */
    pmlp__guest guests[PMLP__GUESTS];
    int guest_count;
} pmlp__lobby;

static void pmlp__turn_away(int *fd, const char *text) {
    pmlp__welcome w;
    memset(&w, 0, sizeof w);
    w.magic = PMLP__MAGIC;
    w.refused = 1;
    snprintf(w.text, sizeof w.text, "%s", text);
    pmlp__write_all(*fd, &w, sizeof w, pmlp__seconds() + 0.1);
    pmlp__shut(fd);
}

/* A guest has said who he is. */
static void pmlp__admit(pmlp__lobby *m, pmlp__guest *guest) {
    const pmlp__hello *const h = &guest->hello;
    const uint32_t ranks = (uint32_t)m->launch->ranks;
    char text[200] = "";
    if (h->magic != PMLP__MAGIC) {
        pmlp__shut(&guest->fd); /* a stray */
        return;
    }
    if (h->protocol != PMLP__PROTOCOL)
        snprintf(text, sizeof text, "rank %u is of another version of pipemlp than rank 0",
                 h->rank);
    else if (h->ranks != ranks)
        snprintf(text, sizeof text, "rank %u counts %u ranks, rank 0 counts %u", h->rank, h->ranks,
                 ranks);
    else if (h->rank == 0 || h->rank >= ranks)
        snprintf(text, sizeof text, "there is no place for a rank %u beside rank 0 of %u", h->rank,
                 ranks);
    else if (m->lines[h->rank] >= 0)
        snprintf(text, sizeof text, "there is a rank %u already", h->rank);
    if (text[0]) {
        pmlp__turn_away(&guest->fd, text);
    } else {
        m->lines[h->rank] = guest->fd;
        guest->fd = -1;
    }
}

/* Takes whoever comes; if there are too many, the one that has said nothing for the longest time
   goes. */
static void pmlp__answer_door(pmlp__lobby *m, int door) {
    const int fd = accept(door, NULL, NULL);
    if (fd < 0) return;
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    if (m->guest_count == PMLP__GUESTS) {
        pmlp__shut(&m->guests[0].fd);
        memmove(&m->guests[0], &m->guests[1], (PMLP__GUESTS - 1) * sizeof m->guests[0]);
        m->guest_count--;
    }
    pmlp__guest *const guest = &m->guests[m->guest_count++];
    memset(guest, 0, sizeof *guest);
    guest->fd = fd;
}

static void pmlp__hear_guests(pmlp__lobby *m) {
    int kept = 0;
    for (int i = 0; i < m->guest_count; i++) {
        pmlp__guest *const guest = &m->guests[i];
        if (!pmlp__read_some(guest->fd, &guest->hello, sizeof guest->hello, &guest->got))
            pmlp__shut(&guest->fd);
        else if (guest->got == sizeof guest->hello ||
                 (guest->got >= sizeof guest->hello.magic && guest->hello.magic != PMLP__MAGIC))
            pmlp__admit(m, guest);
        if (guest->fd >= 0) m->guests[kept++] = *guest;
    }
    m->guest_count = kept;
}

/* Lets a rank go that has died meanwhile, and may come anew; returns how many are missing, and puts
   the first of them into a text. */
static int pmlp__missing(pmlp__lobby *m, char *text, size_t size) {
    int missing = 0;
    text[0] = '\0';
    for (int r = 1; r < m->launch->ranks; r++) {
        char byte;
        if (m->lines[r] >= 0 && recv(m->lines[r], &byte, 1, MSG_PEEK) == 0)
            pmlp__shut(&m->lines[r]);
        if (m->lines[r] >= 0) continue;
        const size_t used = strlen(text);
        if (missing++ < 8) snprintf(text + used, size - used, "%s%d", used ? ", " : "", r);
    }
    return missing;
}

static bool pmlp__is_number(const char *address) {
    unsigned char number[sizeof(struct in6_addr)];
    return inet_pton(AF_INET, address, number) == 1 || inet_pton(AF_INET6, address, number) == 1;
}

/* Where rank 0 listens: at its address; if that is not one of this machine, or a name, at all of
   them, since a machine's own name often means its loopback. */
static int pmlp__open_door(const struct addrinfo *found, bool everywhere, pmlp_error *error) {
    const int one = 1;
    int fd = -1, reason = 0;
    for (const struct addrinfo *a = found; a && fd < 0; a = a->ai_next) {
        struct sockaddr_storage at;
        fd = pmlp__socket(a);
        if (fd < 0) {
            reason = errno;
            continue;
        }
        memcpy(&at, a->ai_addr, a->ai_addrlen);
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        int bound = everywhere ? -1 : bind(fd, (struct sockaddr *)&at, a->ai_addrlen);
        if (everywhere || (bound != 0 && errno == EADDRNOTAVAIL)) {
            if (at.ss_family == AF_INET6)
                ((struct sockaddr_in6 *)&at)->sin6_addr = in6addr_any;
            else
                ((struct sockaddr_in *)&at)->sin_addr.s_addr = htonl(INADDR_ANY);
            bound = bind(fd, (struct sockaddr *)&at, a->ai_addrlen);
        }
        if (bound == 0 && listen(fd, 128) == 0) return fd;
        reason = errno;
        pmlp__shut(&fd);
    }
    pmlp__refuse(error, PMLP_ERROR_RANK, "rank 0 cannot listen: %s", strerror(reason));
    return -1;
}

/* Rank 0: until all are there. */
static pmlp_result pmlp__receive_ranks(pmlp__lobby *m, int door, pmlp_error *error) {
    char missing[128], text[200];
    while (pmlp__missing(m, missing, sizeof missing) > 0) {
        struct pollfd all[PMLP__GUESTS + 1];
        if (pmlp__seconds() > m->until) {
            snprintf(text, sizeof text, "not all ranks have come to rank 0 in %.3g s, missing: %s",
                     m->launch->seconds, missing);
            for (int r = 1; r < m->launch->ranks; r++)
                if (m->lines[r] >= 0) pmlp__turn_away(&m->lines[r], text);
            return pmlp__refuse(error, PMLP_ERROR_RANK, "%s", text);
        }
        all[0].fd = door;
        for (int i = 0; i < m->guest_count; i++) all[i + 1].fd = m->guests[i].fd;
        for (int i = 0; i <= m->guest_count; i++) all[i].events = POLLIN;
        poll(all, (nfds_t)m->guest_count + 1, 20);
        pmlp__answer_door(m, door);
        pmlp__hear_guests(m);
    }
    return PMLP_OK;
}

static pmlp_result pmlp__host_meeting(pmlp__lobby *m, const struct addrinfo *found,
                                      pmlp__welcome *welcome, pmlp_error *error) {
    pmlp_result result = PMLP_ERROR_RANK;
    int door;
    const ncclResult_t made = ncclGetUniqueId(&welcome->id);
    if (made != ncclSuccess)
        return pmlp__refuse(error, PMLP_ERROR_BACKEND, "making an id: %s",
                            ncclGetErrorString(made));
    const char *const address = m->launch->address;
    const bool named = address[0] && !pmlp__is_number(address) && strcmp(address, "localhost") != 0;
    door = pmlp__open_door(found, named, error);
    if (door < 0) return result;
    result = pmlp__receive_ranks(m, door, error);
    pmlp__shut(&door);
    for (int i = 0; i < m->guest_count; i++) pmlp__shut(&m->guests[i].fd);
    for (int r = 1; result == PMLP_OK && r < m->launch->ranks; r++)
        if (!pmlp__write_all(m->lines[r], welcome, sizeof *welcome, m->until))
            result = pmlp__refuse(error, PMLP_ERROR_RANK, "rank %d went away", r);
    return result;
}

/* One attempt to reach rank 0; -1: errno says why not. */
static int pmlp__knock(const struct addrinfo *found, const pmlp__hello *hello, double until) {
    int fd = -1;
    for (const struct addrinfo *a = found; a; a = a->ai_next) {
        int wrong = 0;
        socklen_t size = sizeof wrong;
        fd = pmlp__socket(a);
        if (fd < 0) continue;
        if (connect(fd, a->ai_addr, a->ai_addrlen) != 0 && errno != EINPROGRESS) wrong = errno;
        if (wrong == 0 && !pmlp__wait_for(fd, POLLOUT, fmin(until, pmlp__seconds() + 2.0)))
            wrong = ETIMEDOUT;
        if (wrong == 0) getsockopt(fd, SOL_SOCKET, SO_ERROR, &wrong, &size);
        if (wrong == 0 && pmlp__write_all(fd, hello, sizeof *hello, until)) return fd;
        if (wrong == 0) wrong = errno;
        pmlp__shut(&fd);
        errno = wrong;
    }
    return fd;
}

/* Another rank: until rank 0 has answered. It may not be there yet, or start anew; and when its
   time is over, a moment after ours, it says who is missing. */
static pmlp_result pmlp__attend_meeting(pmlp__lobby *m, const struct addrinfo *found,
                                        pmlp__welcome *welcome, pmlp_error *error) {
    const pmlp_launch *const launch = m->launch;
    const pmlp__hello hello = {PMLP__MAGIC, PMLP__PROTOCOL, (uint32_t)launch->rank,
                               (uint32_t)launch->ranks};
    const char *why = "";
    while (pmlp__seconds() < m->until) {
        size_t got = 0;
        int fd = pmlp__knock(found, &hello, m->until);
        if (fd < 0) why = strerror(errno);
        while (fd >= 0 && got < sizeof *welcome && pmlp__wait_for(fd, POLLIN, m->until + 1.0)) {
            if (pmlp__read_some(fd, welcome, sizeof *welcome, &got)) continue;
            why = "it ended the connection";
            pmlp__shut(&fd);
        }
        m->lines[0] = fd;
        if (got == sizeof *welcome && welcome->magic != PMLP__MAGIC)
            return pmlp__refuse(error, PMLP_ERROR_RANK, "what listens there is not rank 0");
        if (got == sizeof *welcome && welcome->refused)
            return pmlp__refuse(error, PMLP_ERROR_RANK, "%.*s", (int)sizeof welcome->text - 1,
                                welcome->text);
        if (got == sizeof *welcome) return PMLP_OK;
        if (fd >= 0) why = "it did not answer";
        pmlp__shut(&m->lines[0]);
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return pmlp__refuse(error, PMLP_ERROR_RANK, "rank 0 cannot be reached in %.3g s: %s",
                        launch->seconds, why);
}

/* All ranks get to know each other, and one id. Connections stay in lines. */
static pmlp_result pmlp__meet(const pmlp_launch *launch, int *lines, double until, ncclUniqueId *id,
                              pmlp_error *error) {
    const char *const address = launch->address[0] ? launch->address : "127.0.0.1";
    const int number = launch->port ? launch->port : PMLP__PORT;
    struct addrinfo hints, *found = NULL;
    pmlp__welcome welcome;
    pmlp__lobby m;
    pmlp_error why;
    char port[8];
    memset(&hints, 0, sizeof hints);
    memset(&welcome, 0, sizeof welcome);
    memset(&m, 0, sizeof m);
    hints.ai_socktype = SOCK_STREAM;
    snprintf(port, sizeof port, "%d", number);
    int unknown = getaddrinfo(address, port, &hints, &found);
    while (unknown == EAI_AGAIN && pmlp__seconds() < until) { /* names may come late, too */
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
        unknown = getaddrinfo(address, port, &hints, &found);
    }
    if (unknown)
        return pmlp__refuse(error, PMLP_ERROR_ARGUMENT, "address: '%.100s': %s", address,
                            gai_strerror(unknown));
    m.launch = launch;
    m.until = until;
    m.lines = lines;
    welcome.magic = PMLP__MAGIC;
    const pmlp_result result = launch->rank == 0
                                   ? pmlp__host_meeting(&m, found, &welcome, &why)
                                   : pmlp__attend_meeting(&m, found, &welcome, &why);
    freeaddrinfo(found);
    if (result != PMLP_OK)
        return pmlp__refuse(error, result, "rank %d of %d, %.100s port %d: %.250s", launch->rank,
                            launch->ranks, address, number, why.text);
    *id = welcome.id;
    return PMLP_OK;
}

/* --- the watch -------------------------------------------------------------------------------- */

/* What a rank and rank 0 tell each other, on the connection that they have met over. */
enum pmlp__news { PMLP__BEAT, PMLP__FAILED, PMLP__BYE };

typedef struct pmlp__message {
    uint32_t kind, rank;
    uint32_t silent_rank, silent_ms; /* by rank 0: who has been silent for the longest time */
    char text[240];
} pmlp__message;

typedef struct pmlp__line {
    int fd; /* -1: none, or ended */
    bool left; /* in good order */
    double heard; /* when, last */
    pmlp__message in;
    size_t got;
} pmlp__line;

/* A thread that hears when another rank fails or dies, and tells the others that this one lives.
   Rank 0 hears all, and passes on what it hears. */
typedef struct pmlp__watch {
    pmlp__team *team;
    int rank, count; /* of lines: of rank 0 one for each rank, else one, to rank 0 */
    double period;   /* from beat to beat */
    pthread_t thread;
    bool runs;
    std::atomic<bool> stop;
    std::mutex lock; /* of all below */
    pmlp__line *lines;
    bool heard; /* of a failure */
    int silent_rank;
    double silent; /* seconds */
} pmlp__watch;

static int pmlp__rank_at(const pmlp__watch *w, const pmlp__line *line) {
    return (int)(line - w->lines);
}

/* To all lines but one. A message that does not fit is for somebody who has not read for long. */
static void pmlp__tell(pmlp__watch *w, const pmlp__message *message, const pmlp__line *but) {
    for (int i = 0; i < w->count; i++) {
        pmlp__line *const line = &w->lines[i];
        if (line == but || line->fd < 0) continue;
        const ssize_t n = send(line->fd, message, sizeof *message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n >= 0 && n != (ssize_t)sizeof *message) shutdown(line->fd, SHUT_WR);
    }
}

static void pmlp__tell_failure(pmlp__watch *w, int rank, const char *text, const pmlp__line *but) {
    pmlp__message message;
    memset(&message, 0, sizeof message);
    message.kind = PMLP__FAILED;
    message.rank = (uint32_t)rank;
    snprintf(message.text, sizeof message.text, "%.239s", text);
    pmlp__tell(w, &message, but);
}

/* A rank has failed, or is gone. */
static void pmlp__hear_failure(pmlp__watch *w, int rank, const char *text, const pmlp__line *from) {
    if (w->rank == 0) pmlp__tell_failure(w, rank, text, from);
    w->heard = true;
    pmlp__team_fail(w->team, PMLP_ERROR_RANK, text);
}

static void pmlp__hear(pmlp__watch *w, pmlp__line *line) {
    pmlp__message *const m = &line->in;
    line->heard = pmlp__seconds();
    line->got = 0;
    m->text[sizeof m->text - 1] = '\0';
    if (m->kind == PMLP__FAILED) pmlp__hear_failure(w, (int)m->rank, m->text, line);
    if (m->kind == PMLP__BYE) line->left = true;
    if (w->rank == 0) return;
    w->silent_rank = (int)m->silent_rank;
    w->silent = 1e-3 * (double)m->silent_ms;
}

static void pmlp__listen(pmlp__watch *w, pmlp__line *line) {
    while (line->fd >= 0) {
        if (!pmlp__read_some(line->fd, &line->in, sizeof line->in, &line->got)) {
            char text[64];
            const int rank = pmlp__rank_at(w, line);
            snprintf(text, sizeof text, "rank %d is gone: its connection has ended", rank);
            pmlp__shut(&line->fd);
            if (!line->left) pmlp__hear_failure(w, rank, text, line);
        } else if (line->got < sizeof line->in) {
            return;
        } else {
            pmlp__hear(w, line);
        }
    }
}

/* By rank 0: who has been silent for the longest time? */
static void pmlp__find_silent(pmlp__watch *w) {
    const double now = pmlp__seconds();
    w->silent = 0.0;
    for (int r = 1; r < w->count; r++) {
        if (w->lines[r].left || now - w->lines[r].heard <= w->silent) continue;
        w->silent = now - w->lines[r].heard;
        w->silent_rank = r;
    }
}

static void pmlp__beat(pmlp__watch *w) {
    pmlp__message message;
    memset(&message, 0, sizeof message);
    if (w->rank == 0) pmlp__find_silent(w);
    message.kind = PMLP__BEAT;
    message.rank = (uint32_t)w->rank;
    message.silent_rank = (uint32_t)w->silent_rank;
    message.silent_ms = (uint32_t)(w->silent * 1e3);
    pmlp__tell(w, &message, NULL);
}

static void *pmlp__watch_main(void *argument) {
    pmlp__watch *const w = (pmlp__watch *)argument;
    double beat = 0.0;
    bool aborted = false;
    struct pollfd *const all = (struct pollfd *)(void *)(w->lines + w->count);
    while (!w->stop.load()) {
        {
            std::lock_guard<std::mutex> hold(w->lock);
            for (int i = 0; i < w->count; i++) pmlp__listen(w, &w->lines[i]);
            if (pmlp__seconds() - beat > w->period) {
                pmlp__beat(w);
                beat = pmlp__seconds();
            }
            for (int i = 0; i < w->count; i++) {
                all[i].fd = w->lines[i].fd; /* negative ones are passed over */
                all[i].events = POLLIN;
            }
        }
        /* not only by whoever waits: it may be in a call of CUDA's that waits for the rank */
        if (!aborted && w->team->failed.load() != PMLP_OK) {
            pmlp__team_abort(w->team);
            aborted = true;
        }
        if (!w->stop.load()) poll(all, (nfds_t)w->count, (int)(w->period * 1e3));
    }
    return NULL;
}

static void pmlp__blame(pmlp__watch *w, char *text, size_t size) {
    if (!w) return;
    std::lock_guard<std::mutex> hold(w->lock);
    const double zero = w->rank == 0 ? 0.0 : pmlp__seconds() - w->lines[0].heard;
    if (w->rank == 0) pmlp__find_silent(w);
    const double silent = zero > 3.0 * w->period ? zero : w->silent;
    if (silent > 3.0 * w->period)
        snprintf(text, size, "; rank %d has been silent for %.2g s",
                 zero > 3.0 * w->period ? 0 : w->silent_rank, silent);
    for (int i = 0; i < w->count; i++)
        if (w->lines[i].left) snprintf(text, size, "; rank %d has left", i);
}

/* Takes the lines over. */
static pmlp_result pmlp__watch_start(pmlp__watch *w, const pmlp_launch *launch, pmlp__team *team,
                                     const int *fds) {
    const pmlp_allocator *const allocator = &team->allocator;
    w->team = team;
    w->rank = launch->rank;
    w->count = launch->rank == 0 ? launch->ranks : 1;
    w->period = fmin(fmax(team->seconds / 16.0, 0.02), 0.5);
    w->lines = (pmlp__line *)pmlp__host_new(
        allocator, (size_t)w->count * (sizeof *w->lines + sizeof(struct pollfd)));
    if (!w->lines) return PMLP_ERROR_MEMORY;
    for (int i = 0; i < w->count; i++) {
        w->lines[i].fd = fds[i];
        w->lines[i].heard = pmlp__seconds();
    }
    w->runs = pthread_create(&w->thread, NULL, pmlp__watch_main, w) == 0;
    team->watch = w->runs ? w : NULL;
    return w->runs ? PMLP_OK : PMLP_ERROR_THREAD;
}

/* Says good bye, or why not. */
static void pmlp__watch_stop(pmlp__watch *w) {
    pmlp__message message;
    memset(&message, 0, sizeof message);
    message.kind = PMLP__BYE;
    message.rank = (uint32_t)w->rank;
    if (w->runs) {
        {
            std::lock_guard<std::mutex> hold(w->lock);
            pmlp__tell(w, &message, NULL);
            w->stop.store(true);
            for (int i = 0; i < w->count; i++) /* so that its poll() returns */
                if (w->lines[i].fd >= 0) shutdown(w->lines[i].fd, SHUT_RDWR);
        }
        pthread_join(w->thread, NULL);
        w->team->watch = NULL;
    }
    for (int i = 0; w->lines && i < w->count; i++) pmlp__shut(&w->lines[i].fd);
    if (w->team) pmlp__host_delete(&w->team->allocator, w->lines);
}

/* --- the group -------------------------------------------------------------------------------- */

static const size_t PMLP__STAGING = (size_t)4 << 20; /* bytes that go through the GPU at once */

/* An id that has come for somebody else than who was waiting for his. */
typedef struct pmlp__parcel {
    int from, tag;
    ncclUniqueId id;
} pmlp__parcel;

typedef struct pmlp__nccl_group {
    pmlp_cuda_options options; /* the first field: the back end's `user` points here */
    pmlp_allocator allocator;
    pmlp__team *team;
    int rank, ranks, device;
    pmlp_edges edges;
    std::mutex lock; /* of all below: what all ranks tell each other is one thing at a time */
    pmlp__wire world;
    char *host, *memory; /* [PMLP__STAGING], pinned and on the device */
    pmlp__parcel *parcels;
    int parcel_count, parcel_room;
    pmlp__watch watch;
} pmlp__nccl_group;

/* A failure of CUDA, outside of any worker. */
static pmlp_result pmlp__group_failed(pmlp__nccl_group *g, const char *doing, cudaError_t error) {
    char why[256];
    snprintf(why, sizeof why, "%s on GPU %d: %s (%s)", doing, g->device, cudaGetErrorString(error),
             cudaGetErrorName(error));
    cudaGetLastError();
    return pmlp__team_fail(g->team, PMLP_ERROR_BACKEND, why);
}

/* Bytes [from, from + in) of the staging go to the GPU, `call` does something with them there, and
   [back, back + out) come back. */
template <class Call>
static pmlp_result pmlp__world_try(pmlp__nccl_group *g, const char *doing, double seconds,
                                   size_t from, size_t in, size_t back, size_t out, Call call) {
    pmlp__wire *const l = &g->world;
    cudaError_t error = cudaSetDevice(g->device);
    if (error == cudaSuccess && in > 0)
        error = cudaMemcpyAsync(g->memory + from, g->host + from, in, cudaMemcpyHostToDevice,
                                l->stream);
    if (error != cudaSuccess) return pmlp__group_failed(g, doing, error);
    PMLP__TRY(pmlp__wires_do(&l, 1, doing, seconds, [&](int) { return call(l); }));
    if (out > 0)
        error = cudaMemcpyAsync(g->host + back, g->memory + back, out, cudaMemcpyDeviceToHost,
                                l->stream);
    if (error == cudaSuccess)
        PMLP__TRY(pmlp__await(g->team, g, g->device, l->stream, seconds, &error));
    return error == cudaSuccess ? PMLP_OK : pmlp__group_failed(g, doing, error);
}

template <class Call>
static pmlp_result pmlp__world_do(pmlp__nccl_group *g, const char *doing, double seconds,
                                  size_t from, size_t in, size_t back, size_t out, Call call) {
    const pmlp_result result =
        g->team->failed.load() != PMLP_OK
            ? (pmlp_result)g->team->failed.load()
            : pmlp__world_try(g, doing, pmlp__seconds_of(g->team, seconds), from, in, back, out,
                              call);
    if (result != PMLP_OK) pmlp__team_abort(g->team);
    return result;
}

static pmlp_result pmlp__group_gather(void *context, const void *mine, size_t bytes, void *all,
                                      double seconds) {
    pmlp__nccl_group *const g = (pmlp__nccl_group *)context;
    const size_t ranks = (size_t)g->ranks, rank = (size_t)g->rank;
    const size_t most = PMLP__STAGING / ranks / 16 * 16;
    std::lock_guard<std::mutex> hold(g->lock);
    if (g->ranks == 1 && bytes > 0) memcpy(all, mine, bytes);
    for (size_t at = 0; g->ranks > 1 && at < bytes; at += most) {
        const size_t n = bytes - at < most ? bytes - at : most;
        memcpy(g->host + rank * n, (const char *)mine + at, n);
        PMLP__TRY(pmlp__world_do(g, "gathering from", seconds, rank * n, n, 0, ranks * n,
                                 [&](pmlp__wire *l) {
                                     return ncclAllGather(g->memory + rank * n, g->memory, n,
                                                          ncclInt8, l->comm, l->stream);
                                 }));
        for (size_t r = 0; r < ranks; r++)
            memcpy((char *)all + r * bytes + at, g->host + r * n, n);
    }
    return PMLP_OK;
}

static pmlp_result pmlp__group_broadcast(void *context, int from_rank, void *data, size_t bytes,
                                         double seconds) {
    pmlp__nccl_group *const g = (pmlp__nccl_group *)context;
    const bool mine = from_rank == g->rank;
    std::lock_guard<std::mutex> hold(g->lock);
    for (size_t at = 0; g->ranks > 1 && at < bytes; at += PMLP__STAGING) {
        const size_t n = bytes - at < PMLP__STAGING ? bytes - at : PMLP__STAGING;
        if (mine) memcpy(g->host, (const char *)data + at, n);
        PMLP__TRY(pmlp__world_do(g, "broadcasting to", seconds, 0, mine ? n : 0, 0, mine ? 0 : n,
                                 [&](pmlp__wire *l) {
                                     return ncclBroadcast(g->memory, g->memory, n, ncclInt8,
                                                          from_rank, l->comm, l->stream);
                                 }));
        if (!mine) memcpy((char *)data + at, g->host, n);
    }
    return PMLP_OK;
}

/* --- ids of further communicators ------------------------------------------------------------- */

static pmlp_result pmlp__send_id(pmlp__nccl_group *g, int to, int tag, const ncclUniqueId *id,
                                 double seconds) {
    pmlp__parcel parcel;
    std::lock_guard<std::mutex> hold(g->lock);
    memset(&parcel, 0, sizeof parcel);
    parcel.from = g->rank;
    parcel.tag = tag;
    parcel.id = *id;
    memcpy(g->host, &parcel, sizeof parcel);
    return pmlp__world_do(g, "connecting", seconds, 0, sizeof parcel, 0, 0, [&](pmlp__wire *l) {
        return ncclSend(g->memory, sizeof parcel, ncclInt8, to, l->comm, l->stream);
    });
}

static bool pmlp__take_parcel(pmlp__nccl_group *g, int from, int tag, ncclUniqueId *id) {
    for (int i = 0; i < g->parcel_count; i++) {
        if (g->parcels[i].from != from || g->parcels[i].tag != tag) continue;
        *id = g->parcels[i].id;
        g->parcels[i] = g->parcels[--g->parcel_count];
        return true;
    }
    return false;
}

/* Threads of several workers may wait for ids at once, which come in the order of the sender's
   threads. */
static pmlp_result pmlp__receive_id(pmlp__nccl_group *g, int from, int tag, ncclUniqueId *id,
                                    double seconds) {
    std::lock_guard<std::mutex> hold(g->lock);
    while (!pmlp__take_parcel(g, from, tag, id)) {
        pmlp__parcel *p;
        PMLP__TRY(pmlp__world_do(g, "connecting", seconds, 0, 0, 0, sizeof *p, [&](pmlp__wire *l) {
            return ncclRecv(g->memory, sizeof *p, ncclInt8, from, l->comm, l->stream);
        }));
        if (!pmlp__host_grow(&g->allocator, &g->parcels, g->parcel_count, &g->parcel_room))
            return pmlp__team_fail(g->team, PMLP_ERROR_MEMORY, "out of host memory");
        memcpy(&g->parcels[g->parcel_count++], g->host, sizeof *p);
    }
    return PMLP_OK;
}

static pmlp_result pmlp__group_share_id(const void *group, int from_rank, int to_rank, int tag,
                                        ncclUniqueId *id, double seconds) {
    pmlp__nccl_group *const g = (pmlp__nccl_group *)(uintptr_t)group;
    if (g->rank != from_rank) return pmlp__receive_id(g, from_rank, tag, id, seconds);
    const ncclResult_t result = ncclGetUniqueId(id);
    if (result != ncclSuccess) return pmlp__wire_failed(&g->world, "connecting", result);
    return pmlp__send_id(g, to_rank, tag, id, seconds);
}

/* --- sums ------------------------------------------------------------------------------------- */

/* The first replica's rank makes the id for the others: no rank both waits and is waited for. */
static pmlp_result pmlp__sum_id(pmlp__nccl_group *g, int tag, int replicas, ncclUniqueId *id,
                                double seconds) {
    const int n = g->ranks / replicas, first = g->rank % n;
    if (g->rank != first) return pmlp__receive_id(g, first, tag, id, seconds);
    const ncclResult_t result = ncclGetUniqueId(id);
    if (result != ncclSuccess) return pmlp__wire_failed(&g->world, "connecting", result);
    for (int j = 1; j < replicas; j++)
        PMLP__TRY(pmlp__send_id(g, first + j * n, tag, id, seconds));
    return PMLP_OK;
}

static ncclResult_t pmlp__sum_call(pmlp__adder *s, float *data, size_t floats) {
    return ncclAllReduce(data, data, floats, ncclFloat32, ncclSum, s->wire.comm, s->wire.stream);
}

static pmlp_result pmlp__sum_connect(pmlp__nccl_group *g, pmlp__cuda *c, int worker, int replicas,
                                     double seconds) {
    pmlp__adder *const s = (pmlp__adder *)pmlp__host_new(&c->allocator, sizeof *s);
    pmlp__wire *const wire = &s->wire;
    cudaError_t status = cudaSuccess;
    ncclUniqueId id;
    if (!s) return pmlp__no_host_memory(c);
    snprintf(wire->text, sizeof wire->text, "gradients of worker %d of %d replicas", worker,
             replicas);
    wire->remote = wire->waits = true;
    pmlp__wire_join(wire, c->team, c, c->device);
    c->sum = s;
    PMLP__TRY(pmlp__enter_device(c));
    PMLP__CUDA(c, "making a stream", pmlp__wire_make(wire));
    PMLP__CUDA(c, "making an event", cudaEventCreateWithFlags(&s->ready, cudaEventDisableTiming));
    PMLP__CUDA(c, "making an event", cudaEventCreateWithFlags(&s->done, cudaEventDisableTiming));
    PMLP__TRY(pmlp__sum_id(g, -1 - worker, replicas, &id, seconds));
    PMLP__TRY(pmlp__wires_connect(&wire, 1, g->rank / (g->ranks / replicas), replicas, &id,
                                  PMLP__SUM_BLOCKS, seconds));
    PMLP__TRY(pmlp__wires_do(&wire, 1, "connecting", seconds, [&](int) {
        return pmlp__sum_call(s, (float *)(void *)c->down.device, 1);
    }));
    PMLP__TRY(pmlp__await(c->team, c, c->device, wire->stream, seconds, &status));
    PMLP__CUDA(c, "connecting", status);
    return PMLP_OK;
}

static pmlp_result pmlp__sum_begin(pmlp__cuda *c, float *data, size_t floats) {
    pmlp__adder *const s = c->sum;
    pmlp__wire *const wire = &s->wire;
    PMLP__TRY(pmlp__enter_device(c));
    PMLP__TRY(pmlp__flush(c));
    PMLP__CUDA(c, "a sum over replicas", cudaEventRecord(s->ready, c->stream));
    PMLP__CUDA(c, "a sum over replicas", cudaStreamWaitEvent(s->wire.stream, s->ready, 0));
    PMLP__TRY(pmlp__wires_do(&wire, 1, "adding up", c->patience,
                             [&](int) { return pmlp__sum_call(s, data, floats); }));
    PMLP__CUDA(c, "a sum over replicas", pmlp__wire_mark(wire));
    PMLP__CUDA(c, "a sum over replicas", cudaEventRecord(s->done, s->wire.stream));
    s->open = true;
    return PMLP_OK;
}

static pmlp_result pmlp__group_sum(void *context, int worker, int replicas, void *backend_context,
                                   float *data, size_t floats, double seconds) {
    pmlp__nccl_group *const g = (pmlp__nccl_group *)context;
    pmlp__cuda *const c = (pmlp__cuda *)backend_context;
    pmlp_result result = PMLP_OK;
    if (replicas == 1) return PMLP_OK;
    c->patience = pmlp__seconds_of(g->team, seconds);
    if (!c->sum) result = pmlp__sum_connect(g, c, worker, replicas, c->patience);
    if (result == PMLP_OK && floats > 0) result = pmlp__sum_begin(c, data, floats);
    return result == PMLP_OK ? PMLP_OK : pmlp__give_up(c, result);
}

/* --- its table -------------------------------------------------------------------------------- */

static void pmlp__group_abort(void *context, const char *why) {
    pmlp__nccl_group *const g = (pmlp__nccl_group *)context;
    char text[256];
    snprintf(text, sizeof text, "rank %d has failed: %.200s", g->rank, why ? why : "");
    if (g->watch.runs) {
        std::lock_guard<std::mutex> hold(g->watch.lock);
        if (!g->watch.heard) pmlp__tell_failure(&g->watch, g->rank, text, NULL);
    }
    pmlp__team_fail(g->team, PMLP_ERROR_RANK, text);
    pmlp__team_abort(g->team);
}

static const char *pmlp__group_explain(void *context) {
    return pmlp__team_reason(((const pmlp__nccl_group *)context)->team);
}

static pmlp_result pmlp__group_open(const pmlp_backend *self, const pmlp_backend_desc *desc,
                                    void **context, pmlp_error *error) {
    const pmlp__nccl_group *const g = (const pmlp__nccl_group *)self->user;
    const pmlp_result result = pmlp__cuda_open(self, desc, context, error);
    if (result != PMLP_OK) return result;
    ((pmlp__cuda *)*context)->team = g->team;
    ((pmlp__cuda *)*context)->patience = g->team->seconds;
    g->team->users.fetch_add(1);
    return PMLP_OK;
}

static void pmlp__group_close(pmlp__nccl_group *g) {
    const pmlp_allocator allocator = g->allocator;
    pmlp__wire *const world = &g->world;
    if (world->team) {
        pmlp__wires_close(&world, 1);
        cudaSetDevice(g->device);
    }
    if (g->team) pmlp__watch_stop(&g->watch);
    if (g->host) cudaFreeHost(g->host);
    if (g->memory) cudaFree(g->memory);
    pmlp__host_delete(&allocator, g->parcels);
    pmlp__team_leave(g->team);
    g->~pmlp__nccl_group();
    pmlp__host_delete(&allocator, g);
}

/* The GPUs of this rank. */
static pmlp_result pmlp__group_device(pmlp__nccl_group *g, const pmlp_launch *launch,
                                      pmlp_error *error) {
    pmlp_cuda_options *const o = &g->options;
    int count = 0;
    const cudaError_t counted = cudaGetDeviceCount(&count);
    if (counted != cudaSuccess || count == 0) {
        cudaGetLastError();
        return pmlp__refuse(error, PMLP_ERROR_UNSUPPORTED,
                            "rank %d: no CUDA device can be used: %s", launch->rank,
                            counted == cudaSuccess ? "none is there" : cudaGetErrorString(counted));
    }
    g->device = o->devices && o->device_count > 0 ? o->devices[0] : launch->local_rank % count;
    if (!o->devices) {
        o->devices = &g->device;
        o->device_count = 1;
    }
    const cudaError_t chosen = cudaSetDevice(g->device);
    if (chosen == cudaSuccess) return PMLP_OK;
    cudaGetLastError();
    return pmlp__refuse(error, PMLP_ERROR_ARGUMENT, "rank %d, GPU %d: %s", launch->rank, g->device,
                        cudaGetErrorString(chosen));
}

static pmlp_result pmlp__check_launch(const pmlp_launch *l, pmlp_error *error) {
    if (l->ranks < 1 || l->rank < 0 || l->rank >= l->ranks)
        return pmlp__refuse(error, PMLP_ERROR_ARGUMENT, "rank: there is no rank %d of %d", l->rank,
                            l->ranks);
    if (l->local_rank < 0)
        return pmlp__refuse(error, PMLP_ERROR_ARGUMENT, "local_rank: %d is negative",
                            l->local_rank);
    if (l->port < 0 || l->port > 65535)
        return pmlp__refuse(error, PMLP_ERROR_ARGUMENT, "port: %d is none", l->port);
    if (!(l->seconds > 0.0 && l->seconds < 1e6))
        return pmlp__refuse(error, PMLP_ERROR_ARGUMENT, "seconds: %g is no time", l->seconds);
    if (!memchr(l->address, 0, sizeof l->address))
        return pmlp__refuse(error, PMLP_ERROR_ARGUMENT, "address: does not end");
    return PMLP_OK;
}

/* The id, and the watch over those who have it. */
static pmlp_result pmlp__group_meet(pmlp__nccl_group *g, const pmlp_launch *launch, double until,
                                    ncclUniqueId *id, pmlp_error *error) {
    const int count = launch->rank == 0 ? launch->ranks : 1;
    if (launch->id) {
        memcpy(id, launch->id, sizeof *id);
        return PMLP_OK;
    }
    int *lines = (int *)pmlp__host_new(&g->allocator, (size_t)count * sizeof *lines);
    if (!lines) return pmlp__refuse(error, PMLP_ERROR_MEMORY, "out of host memory");
    for (int i = 0; i < count; i++) lines[i] = -1;
    pmlp_result result = pmlp__meet(launch, lines, until, id, error);
    if (result == PMLP_OK) {
        result = pmlp__watch_start(&g->watch, launch, g->team, lines);
        if (result == PMLP_ERROR_MEMORY) pmlp__refuse(error, result, "out of host memory");
        if (result == PMLP_ERROR_THREAD) pmlp__refuse(error, result, "no thread could be started");
    }
    for (int i = 0; !g->watch.lines && i < count; i++) pmlp__shut(&lines[i]);
    pmlp__host_delete(&g->allocator, lines);
    return result;
}

/* The communicator of all ranks. */
static pmlp_result pmlp__group_connect(pmlp__nccl_group *g, double seconds,
                                       const ncclUniqueId *id) {
    pmlp__wire *const world = &g->world;
    cudaError_t error;
    snprintf(world->text, sizeof world->text, "all %d ranks", g->ranks);
    world->remote = world->waits = true;
    pmlp__wire_join(world, g->team, g, g->device);
    error = pmlp__wire_make(world);
    if (error == cudaSuccess) error = cudaMallocHost((void **)&g->host, PMLP__STAGING);
    if (error == cudaSuccess) error = cudaMalloc((void **)&g->memory, PMLP__STAGING);
    if (error != cudaSuccess) return pmlp__group_failed(g, "making a group", error);
    return pmlp__wires_connect(&world, 1, g->rank, g->ranks, id, PMLP__EDGE_BLOCKS, seconds);
}

static pmlp_result pmlp__group_make(pmlp__nccl_group *g, const pmlp_launch *launch,
                                    pmlp_error *error) {
    const double until = pmlp__seconds() + launch->seconds;
    ncclUniqueId id;
    g->team = pmlp__team_new(&g->allocator);
    if (!g->team) return pmlp__refuse(error, PMLP_ERROR_MEMORY, "out of host memory");
    g->team->seconds = launch->seconds;
    g->rank = launch->rank;
    g->ranks = launch->ranks;
    PMLP__TRY(pmlp__group_device(g, launch, error));
    if (g->ranks == 1) return PMLP_OK;
    PMLP__TRY(pmlp__group_meet(g, launch, until, &id, error));
    pmlp_result result = pmlp__group_connect(g, launch->seconds, &id);
    if (result == PMLP_OK) return PMLP_OK;
    pmlp__refuse(error, result, "rank %d of %d: %s", g->rank, g->ranks, g->team->why);
    pmlp__group_abort(g, g->team->why);
    return result;
}

static void pmlp__group_tables(pmlp__nccl_group *g, pmlp_group *group, pmlp_backend *backend);

extern "C" pmlp_result pmlp_nccl_group_create(const pmlp_launch *launch,
                                              const pmlp_cuda_options *options,
                                              const pmlp_allocator *allocator, pmlp_group *group,
                                              pmlp_backend *backend, pmlp_error *error) {
    static const pmlp_allocator standard = {NULL, NULL, NULL};
    if (!launch || !group || !backend)
        return pmlp__refuse(error, PMLP_ERROR_ARGUMENT, "%s: is NULL",
                            !launch ? "launch" : group ? "backend" : "group");
    pmlp_launch with = *launch;
    if (with.ranks == 0) with.ranks = 1;
    if (with.seconds == 0.0) with.seconds = PMLP__PATIENCE;
    memset(group, 0, sizeof *group);
    PMLP__TRY(pmlp__check_launch(&with, error));
    void *const memory =
        pmlp__host_new(allocator ? allocator : &standard, sizeof(pmlp__nccl_group));
    if (!memory) return pmlp__refuse(error, PMLP_ERROR_MEMORY, "out of host memory");
    pmlp__set_environment();
    pmlp__nccl_group *const g = new (memory) pmlp__nccl_group();
    g->allocator = allocator ? *allocator : standard;
    if (options) g->options = *options;
    const pmlp_result result = pmlp__group_make(g, &with, error);
    if (result == PMLP_OK)
        pmlp__group_tables(g, group, backend);
    else
        pmlp__group_close(g);
    return result;
}

extern "C" void pmlp_nccl_group_destroy(pmlp_group *group) {
    if (!group || !group->context) return;
    pmlp__group_close((pmlp__nccl_group *)group->context);
    memset(group, 0, sizeof *group);
}
#else
extern "C" pmlp_result pmlp_nccl_group_create(const pmlp_launch *, const pmlp_cuda_options *,
                                              const pmlp_allocator *, pmlp_group *group,
                                              pmlp_backend *, pmlp_error *error) {
    if (group) memset(group, 0, sizeof *group);
    return pmlp__refuse(error, PMLP_ERROR_UNSUPPORTED,
                        "several ranks: this program was built without NCCL");
}

extern "C" void pmlp_nccl_group_destroy(pmlp_group *) {}
#endif /* PMLP__NCCL */

/*============================================================================================*/
/* >>tables                                                                                   */
/*============================================================================================*/

#define PMLP__CUDA_BACKEND(EDGES)                                                                  \
  {                                                                                                \
    PMLP_BACKEND_ABI, (uint32_t)sizeof(pmlp_backend), "cuda", /* .user = */ NULL, EDGES,           \
        /* .exact = */ false, pmlp__cuda_open, pmlp__cuda_close, pmlp__cuda_alloc,                 \
        pmlp__cuda_free, pmlp__cuda_row_floats, pmlp__cuda_layer_create, pmlp__cuda_layer_destroy, \
        pmlp__cuda_write, pmlp__cuda_read, pmlp__cuda_input, pmlp__cuda_forward,                   \
        pmlp__cuda_backward_input, pmlp__cuda_backward_weight, pmlp__cuda_loss,                    \
        pmlp__cuda_gradient_squares, pmlp__cuda_update, pmlp__cuda_gradient,                       \
        pmlp__cuda_synchronize, pmlp__cuda_stamp, pmlp__cuda_explain                               \
  }

static const pmlp_backend pmlp__cuda_on_one = PMLP__CUDA_BACKEND(&pmlp__one_gpu);
static const pmlp_backend pmlp__cuda_on_several = PMLP__CUDA_BACKEND(&pmlp__several_gpus);

#ifdef PMLP__NCCL
static void pmlp__group_tables(pmlp__nccl_group *g, pmlp_group *group, pmlp_backend *backend) {
    g->edges = pmlp__several_gpus;
    g->edges.name = "NCCL";
    g->edges.user = g;
    group->abi = PMLP_GROUP_ABI;
    group->size = (uint32_t)sizeof *group;
    group->name = "NCCL";
    group->rank = g->rank;
    group->ranks = g->ranks;
    group->context = g;
    group->edges = &g->edges;
    group->gather = pmlp__group_gather;
    group->broadcast = pmlp__group_broadcast;
    group->sum = pmlp__group_sum;
    group->abort = pmlp__group_abort;
    group->explain = pmlp__group_explain;
    *backend = g->options.device_count > 1 ? pmlp__cuda_on_several : pmlp__cuda_on_one;
    backend->user = &g->options;
    backend->open = pmlp__group_open;
    backend->exact = g->options.gemm == PMLP_CUDA_GEMM_TEACHING;
}
#endif

extern "C" const pmlp_backend *pmlp_cuda_backend(void) {
    int count = 0;
    pmlp__set_environment();
    if (cudaGetDeviceCount(&count) != cudaSuccess) cudaGetLastError(); /* open() will say it */
    return count > 1 ? &pmlp__cuda_on_several : &pmlp__cuda_on_one;
}

extern "C" void pmlp_cuda_backend_with(const pmlp_cuda_options *options, pmlp_backend *table) {
    pmlp__set_environment();
    *table = options->devices
                 ? options->device_count > 1 ? pmlp__cuda_on_several : pmlp__cuda_on_one
                 : *pmlp_cuda_backend();
    table->user = options;
    table->exact = options->gemm == PMLP_CUDA_GEMM_TEACHING;
}
