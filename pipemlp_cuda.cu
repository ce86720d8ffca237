/* pipemlp_cuda.cu - the CUDA back end of pipemlp.h. MIT-0 or public domain, see LICENSE.

       nvcc -O3 main.c pipemlp_cuda.cu -lcublas -lcublasLt

   and in main.c, which stays plain C: `desc.backend = pmlp_cuda_backend();`.

   The file reads from top to bottom:

      >>kernels      what runs on the GPU, each with its launcher below it
      >>context      a worker's stream, memory and error text
      >>products     matrix products: ours, cuBLAS's and cuBLASLt's
      >>operations   a layer's operations, made of the two above
      >>queue        operations are noted, then issued together, as a graph if seen before
      >>entries      what the trainer calls
      >>edges        hand-off between stages
      >>tables       of both, and the two functions that everybody else sees

   It knows nothing of schedules. Two ideas carry it:

   A worker is a stream. What the trainer calls is only noted, in a list of commands, until
   something needs the order of several streams or the end of all work: a hand-off, or the end of a
   step. Then the list is issued. A list that comes again, with the same layers, buffers and numbers
   of rows, is recorded as a CUDA graph, and from then on one launch replays it: for a training step
   on one worker, one launch of the host for the whole step. What changes from step to step, such as
   the learning rate or which rows of the data are meant, lies in device memory and is copied there
   just before.

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

#include <atomic>
#include <chrono>
#include <limits.h>
#include <math.h>
#include <new>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

/* y [rows][n] holds W x, or W x + b if b is NULL; becomes f(W x + b), with z `keep` elements
   further for GELU. A thread per element, neighbours in a row. */
template <class T>
__global__ static void pmlp__k_activate(pmlp_activation f, size_t rows, size_t n, const T *b, T *y,
                                        size_t pitch, size_t keep) {
    const size_t stride = (size_t)gridDim.x * blockDim.x, all = rows * n;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < all; i += stride) {
        T *const at = y + i / n * pitch + i % n;
        const float z = pmlp__get(at) + (b ? pmlp__get(b + i % n) : 0.0f);
        if (f == PMLP_GELU) pmlp__set(at + keep, z);
        pmlp__set(at, pmlp__activated(f, z));
    }
}

template <class T>
static cudaError_t pmlp__launch_activate(cudaStream_t stream, pmlp_activation f, size_t rows,
                                         size_t n, const T *b, T *y, size_t pitch, size_t keep) {
    return PMLP__LAUNCH(pmlp__k_activate<T>, pmlp__blocks(rows * n, 256, 4096), 256, 0, stream, f,
                        rows, n, b, y, pitch, keep);
}

/* d [rows][n] *= f'(z), from the outputs y, which have the same pitch. */
template <class T>
__global__ static void pmlp__k_derive(pmlp_activation f, size_t rows, size_t n, const T *y, T *d,
                                      size_t pitch, size_t keep) {
    const size_t stride = (size_t)gridDim.x * blockDim.x, all = rows * n;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < all; i += stride) {
        const size_t at = i / n * pitch + i % n;
        const float z = f == PMLP_GELU ? pmlp__get(y + at + keep) : 0.0f;
        pmlp__set(d + at, pmlp__get(d + at) * pmlp__slope(f, pmlp__get(y + at), z));
    }
}

template <class T>
static cudaError_t pmlp__launch_derive(cudaStream_t stream, pmlp_activation f, size_t rows,
                                       size_t n, const T *y, T *d, size_t pitch, size_t keep) {
    if (f == PMLP_LINEAR) return cudaSuccess;
    return PMLP__LAUNCH(pmlp__k_derive<T>, pmlp__blocks(rows * n, 256, 4096), 256, 0, stream, f,
                        rows, n, y, d, pitch, keep);
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

/* Pinned host memory and as much device memory, for what is copied between the two. Pieces are
   handed out one behind the other and are all free again at the next synchronize(). */
typedef struct pmlp__mirror {
    char *host, *device;
    size_t size, used;
    size_t begin; /* of the list of commands that is being noted */
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
    cublasHandle_t blas;
    cublasLtHandle_t lt;
    void *workspace; /* of the libraries' products */
    size_t workspace_size;
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

static void pmlp__mirror_free(pmlp__mirror *mirror) {
    if (mirror->host) cudaFreeHost(mirror->host);
    if (mirror->device) cudaFree(mirror->device);
    memset(mirror, 0, sizeof *mirror);
}

static pmlp_result pmlp__mirror_make(pmlp__cuda *c, pmlp__mirror *mirror, size_t bytes) {
    pmlp__mirror_free(mirror);
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
            PMLP__CUDA(
                c, "copying the data",
                cudaMemcpyAsync(copy->device, host, bytes, cudaMemcpyHostToDevice, c->stream));
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

/* --- ours ------------------------------------------------------------------------------------- */

template <class T, class TC>
static cudaError_t pmlp__teaching(pmlp__cuda *c, const pmlp__factors *f) {
    return pmlp__launch_product(
        c->stream, f->m, f->n, f->k, (const T *)f->p, f->p_transposed ? 1 : f->p_pitch,
        f->p_transposed ? f->p_pitch : 1, (const T *)f->q, f->q_transposed ? 1 : f->q_pitch,
        f->q_transposed ? f->q_pitch : 1, (TC *)f->c, f->c_pitch, f->accumulate);
}

/* --- cuBLAS ----------------------------------------------------------------------------------- */

static pmlp_result pmlp__blas_product(pmlp__cuda *c, const pmlp__factors *f) {
    const float one = 1.0f, beta = f->accumulate ? 1.0f : 0.0f;
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
    const uint32_t alignment = (uint32_t)PMLP__ROW_BYTES;
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
        if (answer == CUBLAS_STATUS_ALLOC_FAILED || answer == CUBLAS_STATUS_NOT_INITIALIZED)
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
                              plan->c, f->c, plan->c, &plan->algorithm, c->workspace,
                              c->workspace_size, c->stream));
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

static pmlp_result pmlp__do_weight_product(pmlp__cuda *c, const pmlp__command *k) {
    const pmlp__cuda_layer *const layer = k->layer;
    const pmlp_layer_desc *const d = &layer->desc;
    pmlp__factors f;
    if (k->rows == 0) {
        PMLP__CUDA(c, "clearing a gradient",
                   cudaMemsetAsync(layer->gradient, 0, layer->weights * sizeof(float), c->stream));
        return PMLP_OK;
    }
    memset(&f, 0, sizeof f);
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

/* dW of each of some neighbouring commands, and db of all of them in one launch. */
static pmlp_result pmlp__do_backward_weights(pmlp__cuda *c, const pmlp__command *k, int count) {
    pmlp__bias_gradients all;
    size_t widest = 0;
    const bool in_order = c->options.gemm == PMLP_CUDA_GEMM_TEACHING;
    memset(&all, 0, sizeof all);
    for (int i = 0; i < count; i++) {
        const pmlp__cuda_layer *const layer = k[i].layer;
        const pmlp_layer_desc *const d = &layer->desc;
        pmlp__bias_gradient *const b = &all.at[i];
        PMLP__TRY(pmlp__do_weight_product(c, &k[i]));
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

static pmlp_result pmlp__do_run_of_updates(pmlp__cuda *c, const pmlp__command *k, int count) {
    pmlp__command some[PMLP__MANY];
    for (int op = PMLP__BACKWARD_WEIGHT; op <= PMLP__UPDATE; op++) {
        int found = 0;
        for (int i = 0; i < count; i++)
            if (k[i].op == op) some[found++] = k[i];
        if (found == 0) continue;
        PMLP__TRY(op == PMLP__UPDATE ? pmlp__do_updates(c, some, found)
                                     : pmlp__do_backward_weights(c, some, found));
    }
    return PMLP_OK;
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

static pmlp_result pmlp__issue(pmlp__cuda *c) {
    for (int i = 0; i < c->count;) {
        const int run = pmlp__run_of_updates(c->commands + i, c->count - i);
        if (run > 0)
            PMLP__TRY(pmlp__do_run_of_updates(c, c->commands + i, run));
        else
            PMLP__TRY(pmlp__do(c, c->commands + i));
        i += run > 0 ? run : 1;
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
    const cudaError_t made = cudaGraphInstantiateWithFlags(exec, graph, 0);
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

/*============================================================================================*/
/* >>entries: what the trainer calls                                                          */
/*============================================================================================*/

/* --- contexts --------------------------------------------------------------------------------- */

static void pmlp__cuda_close(void *context) {
    pmlp__cuda *const c = (pmlp__cuda *)context;
    const pmlp_allocator allocator = c->allocator;
    if (c->stream) cudaSetDevice(c->device);
    if (c->stream) cudaStreamSynchronize(c->stream);
    pmlp__forget_graphs(c);
    for (int i = 0; c->plans && i < c->plan_count; i++) pmlp__plan_free(&c->plans[i]);
    for (int i = 0; i < c->stamp_events; i++) cudaEventDestroy(c->stamps[i].event);
    if (c->origin) cudaEventDestroy(c->origin);
    while (c->copies) {
        pmlp__copy *const copy = c->copies;
        c->copies = copy->next;
        if (copy->device) cudaFree(copy->device);
        pmlp__host_delete(&allocator, copy);
    }
    pmlp__mirror_free(&c->up);
    pmlp__mirror_free(&c->down);
    if (c->lt) cublasLtDestroy(c->lt);
    if (c->blas) cublasDestroy(c->blas);
    if (c->workspace) cudaFree(c->workspace);
    if (c->stream) cudaStreamDestroy(c->stream);
    pmlp__host_delete(&allocator, c->plans);
    pmlp__host_delete(&allocator, c->commands);
    pmlp__host_delete(&allocator, c->results);
    pmlp__host_delete(&allocator, c->stamps);
    pmlp__host_delete(&allocator, c);
}

static pmlp_result pmlp__check_options(pmlp__cuda *c) {
    const pmlp_cuda_options *const o = &c->options;
    const char *const what = (int)o->math < 0 || o->math >= PMLP_CUDA_MATH_COUNT   ? "math"
                             : (int)o->gemm < 0 || o->gemm >= PMLP_CUDA_GEMM_COUNT ? "gemm"
                                                                                   : NULL;
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

/* With a workspace of the size that NVIDIA recommends for the GPU. */
static pmlp_result pmlp__open_libraries(pmlp__cuda *c) {
    int major = 0;
    PMLP__CUDA(c, "asking for the GPU's generation",
               cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, c->device));
    c->workspace_size = (size_t)(major >= 9 ? 32 : 4) << 20;
    PMLP__CUDA(c, "allocating", cudaMalloc(&c->workspace, c->workspace_size));
    PMLP__BLAS(c, "starting cuBLAS", cublasCreate(&c->blas));
    PMLP__BLAS(c, "starting cuBLAS", cublasSetStream(c->blas, c->stream));
    PMLP__BLAS(c, "starting cuBLAS", cublasSetWorkspace(c->blas, c->workspace, c->workspace_size));
    PMLP__BLAS(c, "starting cuBLASLt", cublasLtCreate(&c->lt));
    return PMLP_OK;
}

static pmlp_result pmlp__open_device(pmlp__cuda *c) {
    PMLP__TRY(pmlp__enter_device(c));
    PMLP__CUDA(c, "making a stream", cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking));
    PMLP__CUDA(c, "making an event", cudaEventCreate(&c->origin));
    PMLP__TRY(pmlp__mirror_make(c, &c->up, 4096));
    PMLP__TRY(pmlp__mirror_make(c, &c->down, 4096));
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
    return ((pmlp__cuda *)context)->why;
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
    PMLP__TRY(pmlp__cuda_synchronize(c));
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
    return pmlp__cuda_synchronize(c);
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
    PMLP__TRY(pmlp__cuda_synchronize(c));
    if (w)
        PMLP__CUDA(c, "copying weights",
                   cudaMemcpy2DAsync(w, row, from, layer->pitch * sizeof *from, row, n_out,
                                     cudaMemcpyDeviceToHost, c->stream));
    if (b)
        PMLP__CUDA(c, "copying biases",
                   cudaMemcpyAsync(b, from + layer->weights, n_out * sizeof *b,
                                   cudaMemcpyDeviceToHost, c->stream));
    return pmlp__cuda_synchronize(c);
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
    const pmlp_result flushed = pmlp__flush(c);
    const cudaError_t waited = cudaStreamSynchronize(c->stream);
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
/* >>edges: hand-off between stages of one process                                            */
/*                                                                                            */
/* An event per slot says that a message is there. On one GPU that is all: both stages work   */
/* in one buffer. Between two, the message is copied by a stream of the edge into a slot on   */
/* the receiver's GPU, while both ends compute; a second event says that it has arrived, and  */
/* a third that the receiver has taken it out, so that the slot may be used again.            */
/*============================================================================================*/

typedef struct pmlp__cuda_slot {
    cudaEvent_t full, arrived, taken;
    void *memory; /* on the receiver's GPU */
} pmlp__cuda_slot;

typedef struct pmlp__cuda_edge {
    pmlp_edge_desc desc;
    pmlp__cuda *from, *to;
    bool copies;
    cudaStream_t stream; /* of the copies */
    pmlp__cuda_slot *slots;
    std::atomic<int> sent, received; /* each written by one end only */
} pmlp__cuda_edge;

static void pmlp__edge_disconnect(void *edge) {
    pmlp__cuda_edge *const e = (pmlp__cuda_edge *)edge;
    const pmlp_allocator allocator = e->desc.allocator;
    cudaSetDevice(e->to->device);
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

static pmlp_result pmlp__edge_make(pmlp__cuda_edge *e) {
    const size_t bytes = e->desc.max_rows * e->desc.row_bytes;
    e->slots = (pmlp__cuda_slot *)pmlp__host_new(&e->desc.allocator,
                                                 (size_t)e->desc.slots * sizeof *e->slots);
    if (!e->slots) return pmlp__no_host_memory(e->to);
    if (e->copies) pmlp__enable_peer(e->to->device, e->from->device);
    for (int i = 0; i < e->desc.slots; i++) {
        PMLP__TRY(pmlp__edge_event(e->from, &e->slots[i].full));
        if (!e->copies) continue;
        PMLP__TRY(pmlp__edge_event(e->to, &e->slots[i].arrived));
        PMLP__TRY(pmlp__edge_event(e->to, &e->slots[i].taken));
        PMLP__CUDA(e->to, "allocating", cudaMalloc(&e->slots[i].memory, bytes));
    }
    PMLP__TRY(pmlp__enter_device(e->to));
    if (e->copies)
        PMLP__CUDA(e->to, "making a stream",
                   cudaStreamCreateWithFlags(&e->stream, cudaStreamNonBlocking));
    return PMLP_OK;
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
    e->copies = !self->shared;
    result = pmlp__edge_make(e);
    if (result == PMLP_OK) {
        *edge = e;
        return PMLP_OK;
    }
    if (error) {
        error->result = result;
        snprintf(error->text, sizeof error->text, "the edge from stage %d to stage %d: %s",
                 desc->from_stage, desc->to_stage, e->to->why[0] ? e->to->why : e->from->why);
    }
    pmlp__edge_disconnect(e);
    return result;
}

static pmlp_result pmlp__edge_reset(void *edge) {
    pmlp__cuda_edge *const e = (pmlp__cuda_edge *)edge;
    e->sent.store(0);
    e->received.store(0);
    return PMLP_OK;
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

static pmlp_result pmlp__edge_send(void *edge, int microbatch, const void *data, size_t bytes) {
    pmlp__cuda_edge *const e = (pmlp__cuda_edge *)edge;
    const int sent = e->sent.load();
    const pmlp__cuda_slot *const slot = &e->slots[sent % e->desc.slots];
    (void)microbatch;
    if (sent - e->received.load() >= e->desc.slots) return PMLP_BUSY;
    if (bytes > 0) {
        PMLP__TRY(pmlp__enter_device(e->from));
        PMLP__TRY(pmlp__flush(e->from));
        PMLP__CUDA(e->from, "a hand-off", cudaEventRecord(slot->full, e->from->stream));
        if (e->copies) PMLP__TRY(pmlp__edge_copy(e, slot, sent >= e->desc.slots, data, bytes));
    }
    e->sent.store(sent + 1);
    e->desc.wake(e->desc.to_wake);
    return PMLP_OK;
}

static pmlp_result pmlp__edge_receive(void *edge, int microbatch, void *data, size_t bytes) {
    pmlp__cuda_edge *const e = (pmlp__cuda_edge *)edge;
    pmlp__cuda *const c = e->to;
    const int received = e->received.load();
    const pmlp__cuda_slot *const slot = &e->slots[received % e->desc.slots];
    (void)microbatch;
    if (e->sent.load() == received) return PMLP_BUSY;
    if (bytes > 0) {
        PMLP__TRY(pmlp__enter_device(c));
        PMLP__TRY(pmlp__flush(c));
        PMLP__CUDA(c, "a hand-off",
                   cudaStreamWaitEvent(c->stream, e->copies ? slot->arrived : slot->full, 0));
        if (e->copies) {
            PMLP__CUDA(
                c, "a hand-off",
                cudaMemcpyAsync(data, slot->memory, bytes, cudaMemcpyDeviceToDevice, c->stream));
            PMLP__CUDA(c, "a hand-off", cudaEventRecord(slot->taken, c->stream));
        }
    }
    e->received.store(received + 1);
    e->desc.wake(e->desc.from_wake);
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
                                              "CUDA, peer copies",
                                              /* .user = */ NULL,
                                              /* .shared = */ false, PMLP_TRANSPORT_SLOTS,
                                              pmlp__edge_connect,    pmlp__edge_disconnect,
                                              pmlp__edge_reset,      pmlp__edge_send,
                                              pmlp__edge_receive};

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

extern "C" const pmlp_backend *pmlp_cuda_backend(void) {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess) cudaGetLastError(); /* open() will say it */
    return count > 1 ? &pmlp__cuda_on_several : &pmlp__cuda_on_one;
}

extern "C" void pmlp_cuda_backend_with(const pmlp_cuda_options *options, pmlp_backend *table) {
    *table = options->devices
                 ? options->device_count > 1 ? pmlp__cuda_on_several : pmlp__cuda_on_one
                 : *pmlp_cuda_backend();
    table->user = options;
    table->exact = options->gemm == PMLP_CUDA_GEMM_TEACHING;
}
