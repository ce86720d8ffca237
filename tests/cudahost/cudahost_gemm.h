// cudahost_gemm.h - the matrix product under cublas_v2.h and cublasLt.h. An element of the result
// depends on the order of k alone, not on where it lies or how many there are; and that order is
// not the ascending one, so that nobody relies on it.
#ifndef CUDAHOST_GEMM_H
#define CUDAHOST_GEMM_H
#include "cuda_bf16.h"

enum cudaDataType_t {
    CUDA_R_32F = 0,
    CUDA_R_64F = 1,
    CUDA_R_16F = 2,
    CUDA_R_8I = 3,
    CUDA_R_32I = 10,
    CUDA_R_16BF = 14
};
typedef cudaDataType_t cudaDataType;

enum cublasStatus_t {
    CUBLAS_STATUS_SUCCESS = 0,
    CUBLAS_STATUS_NOT_INITIALIZED = 1,
    CUBLAS_STATUS_ALLOC_FAILED = 3,
    CUBLAS_STATUS_INVALID_VALUE = 7,
    CUBLAS_STATUS_ARCH_MISMATCH = 8,
    CUBLAS_STATUS_MAPPING_ERROR = 11,
    CUBLAS_STATUS_EXECUTION_FAILED = 13,
    CUBLAS_STATUS_INTERNAL_ERROR = 14,
    CUBLAS_STATUS_NOT_SUPPORTED = 15,
    CUBLAS_STATUS_LICENSE_ERROR = 16
};
enum cublasOperation_t { CUBLAS_OP_N = 0, CUBLAS_OP_T = 1, CUBLAS_OP_C = 2 };
enum cublasPointerMode_t { CUBLAS_POINTER_MODE_HOST = 0, CUBLAS_POINTER_MODE_DEVICE = 1 };
enum cublasComputeType_t {
    CUBLAS_COMPUTE_16F = 64,
    CUBLAS_COMPUTE_32F = 68,
    CUBLAS_COMPUTE_32F_PEDANTIC = 69,
    CUBLAS_COMPUTE_64F = 70,
    CUBLAS_COMPUTE_32I = 72,
    CUBLAS_COMPUTE_32F_FAST_16F = 74,
    CUBLAS_COMPUTE_32F_FAST_16BF = 75,
    CUBLAS_COMPUTE_32F_FAST_TF32 = 77
};

namespace cudahost {

inline const char *status_name(cublasStatus_t status) {
    switch (status) {
    case CUBLAS_STATUS_SUCCESS: return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED: return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_ALLOC_FAILED: return "CUBLAS_STATUS_ALLOC_FAILED";
    case CUBLAS_STATUS_INVALID_VALUE: return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_ARCH_MISMATCH: return "CUBLAS_STATUS_ARCH_MISMATCH";
    case CUBLAS_STATUS_MAPPING_ERROR: return "CUBLAS_STATUS_MAPPING_ERROR";
    case CUBLAS_STATUS_EXECUTION_FAILED: return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CUBLAS_STATUS_INTERNAL_ERROR: return "CUBLAS_STATUS_INTERNAL_ERROR";
    case CUBLAS_STATUS_NOT_SUPPORTED: return "CUBLAS_STATUS_NOT_SUPPORTED";
    case CUBLAS_STATUS_LICENSE_ERROR: return "CUBLAS_STATUS_LICENSE_ERROR";
    }
    return "unknown status";
}

// >>elements

// A vector or matrix in device memory: element (i, j) is i * down + j * right elements on.
struct Matrix {
    void *data = nullptr;
    cudaDataType_t type = CUDA_R_32F;
    size_t down = 1, right = 0;

    size_t at(size_t i, size_t j) const { return i * down + j * right; }
    float get(size_t i, size_t j) const {
        if (type == CUDA_R_32F) return ((const float *)data)[at(i, j)];
        return bf16_value(((const uint16_t *)data)[at(i, j)]);
    }
    void set(size_t i, size_t j, float value) const {
        if (type == CUDA_R_32F) ((float *)data)[at(i, j)] = value;
        else ((uint16_t *)data)[at(i, j)] = bf16_bits(value);
    }
    Matrix transposed() const { return Matrix{data, type, right, down}; }
};

inline size_t size_of(cudaDataType_t type) { return type == CUDA_R_16BF ? 2 : 4; }
inline bool known_type(cudaDataType_t type) { return type == CUDA_R_32F || type == CUDA_R_16BF; }

// What tensor cores see of an fp32 input.
enum Rounding { AsIs, ToTf32, ToBf16 };

inline float round_input(float value, Rounding rounding) {
    if (rounding == AsIs || !(fabsf(value) <= 3e38f)) return value;
    if (rounding == ToBf16) return bf16_value(bf16_bits(value));
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits = (bits + 0x1000) & ~0x1fffu;  // ten bits of mantissa are left
    memcpy(&value, &bits, sizeof bits);
    return value;
}

// >>product
// Eight rows of A at a time against one column of B, both packed so that k is contiguous.

typedef float Four __attribute__((vector_size(16)));
enum { PANEL = 8 };

#if defined(__clang__)
#define CUDAHOST_PRIVATE_DATA __attribute__((no_sanitize("address", "thread", "undefined")))
#else
#define CUDAHOST_PRIVATE_DATA                                                    \
    __attribute__((no_sanitize_address, no_sanitize_thread, no_sanitize_undefined))
#endif

// Four sums of every fourth product; `order` says how they are added up.
CUDAHOST_PRIVATE_DATA inline void dot_panel(const Four *a, const float *b, size_t k,
                                            unsigned order, Four *low, Four *high) {
    Four l0 = {0, 0, 0, 0}, l1 = l0, l2 = l0, l3 = l0, h0 = l0, h1 = l0, h2 = l0, h3 = l0;
    size_t p = 0;
    for (; p + 4 <= k; p += 4, a += 8) {
        l0 += a[0] * b[p], h0 += a[1] * b[p];
        l1 += a[2] * b[p + 1], h1 += a[3] * b[p + 1];
        l2 += a[4] * b[p + 2], h2 += a[5] * b[p + 2];
        l3 += a[6] * b[p + 3], h3 += a[7] * b[p + 3];
    }
    for (; p < k; p++, a += 2) l1 += a[0] * b[p], h1 += a[1] * b[p];
    *low = order ? l0 + (l1 + (l2 + l3)) : (l0 + l2) + (l1 + l3);
    *high = order ? h0 + (h1 + (h2 + h3)) : (h0 + h2) + (h1 + h3);
}

// Memory that starts where vectors may.
struct Packed {
    float *data = nullptr;
    explicit Packed(size_t count) {
        if (posix_memalign((void **)&data, 64, (count + 1) * sizeof(float))) abort();
    }
    ~Packed() { free(data); }
    Packed(const Packed &) = delete;
    Packed &operator=(const Packed &) = delete;
};

// Panels of `wide` rows, with zeros beyond the last row:
//     packed[(i / wide * k + p) * wide + i % wide] = from(i, p)
inline void pack(const Matrix &from, size_t rows, size_t k, size_t wide, Rounding rounding,
                 float *packed) {
    for (size_t start = 0; start < rows; start += wide)
        for (size_t p = 0; p < k; p++)
            for (size_t i = start; i < start + wide; i++)
                *packed++ = i < rows ? round_input(from.get(i, p), rounding) : 0;
}

CUDAHOST_PRIVATE_DATA inline void multiply(const float *a, const float *b, size_t m, size_t n,
                                           size_t k, unsigned order, float *out) {
    for (size_t j = 0; j < n; j++) {
        for (size_t i = 0; i < m; i += PANEL) {
            Four *to = (Four *)(out + j * m + i);
            dot_panel((const Four *)(a + i * k), b + j * k, k, order, to, to + 1);
        }
        if (j % 64 == 0) progress();
    }
}

// >>gemm

// What happens to an element between the product and memory, and what is computed on the side.
enum Activation { NoActivation, Relu, Gelu };
struct Epilogue {
    Activation forward = NoActivation, backward = NoActivation;
    bool add_bias = false, write_aux = false;
    bool sum_rows = false;      // bias gradient of D, along its columns
    bool sum_a = false, sum_b = false;  // of A or B, along k
    Matrix bias;                // or the bias gradient
    void *aux = nullptr;
    size_t aux_ld = 0;          // in bits for Relu, in elements for Gelu
};

// D = epilogue(alpha A B + beta C), with A m x k and B k x n as their steps show them.
struct Gemm {
    size_t m = 0, n = 0, k = 0;
    Matrix a, b, c, d;
    float alpha = 1, beta = 0;
    Rounding rounding = AsIs;
    unsigned order = 0;
    Epilogue epilogue;
    void *workspace = nullptr;
    size_t workspace_bytes = 0;
};

// The mask's layout is nobody's business, so it is not the obvious one.
inline bool mask_bit(const Epilogue &e, size_t i, size_t j) {
    const unsigned char *bytes = (const unsigned char *)e.aux + j * (e.aux_ld / 8);
    return bytes[i / 8] >> (7 - i % 8) & 1;
}

inline void set_mask_bit(const Epilogue &e, size_t i, size_t j, bool bit) {
    unsigned char *byte = (unsigned char *)e.aux + j * (e.aux_ld / 8) + i / 8;
    unsigned char one = (unsigned char)(1u << (7 - i % 8));
    *byte = (unsigned char)(bit ? *byte | one : *byte & ~one);
}

inline Matrix aux_matrix(const Gemm &g) {
    return Matrix{g.epilogue.aux, g.d.type, 1, g.epilogue.aux_ld};
}

inline float gelu(float x) {
    return 0.5f * x * (1 + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
}

inline float gelu_slope(float x) {
    float t = tanhf(0.7978845608f * (x + 0.044715f * x * x * x));
    float inner = 0.7978845608f * (1 + 3 * 0.044715f * x * x);
    return 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * inner;
}

inline float finish_element(const Gemm &g, size_t i, size_t j, float value) {
    const Epilogue &e = g.epilogue;
    if (e.add_bias) value += e.bias.get(i, 0);
    if (e.write_aux && e.forward == Relu) set_mask_bit(e, i, j, value > 0);
    if (e.write_aux && e.forward == Gelu) aux_matrix(g).set(i, j, value);
    if (e.forward == Relu) value = value > 0 || value != value ? value : 0;
    if (e.forward == Gelu) value = gelu(value);
    if (e.backward == Relu && !mask_bit(e, i, j)) value = 0;
    if (e.backward == Gelu) value *= gelu_slope(aux_matrix(g).get(i, j));
    return value;
}

// Sums over the second index of a matrix, four by four as in the product.
inline void sum_along(const Matrix &from, size_t rows, size_t columns, const Matrix &to) {
    for (size_t i = 0; i < rows; i++) {
        float sum[4] = {0, 0, 0, 0};
        for (size_t p = 0; p < columns; p++) sum[p % 4] += from.get(i, p);
        to.set(i, 0, (sum[0] + sum[2]) + (sum[1] + sum[3]));
    }
}

inline void finish(const Gemm &g, const float *product, size_t stride) {
    const Epilogue &e = g.epilogue;
    std::vector<float> sums(e.sum_rows ? g.m * 4 : 0);
    for (size_t j = 0; j < g.n; j++)
        for (size_t i = 0; i < g.m; i++) {
            float value = g.alpha * product[j * stride + i];
            if (g.beta != 0) value += g.beta * g.c.get(i, j);
            value = finish_element(g, i, j, value);
            g.d.set(i, j, value);
            if (e.sum_rows) sums[i * 4 + j % 4] += value;
        }
    for (size_t i = 0; i < g.m && e.sum_rows; i++) {
        const float *s = &sums[i * 4];
        e.bias.set(i, 0, (s[0] + s[2]) + (s[1] + s[3]));
    }
}

// Leaves its mark in the workspace, so that two streams which share one are seen.
inline void run_gemm(const Gemm &g) {
    size_t rows = (g.m + PANEL - 1) / PANEL * PANEL;
    Packed a(rows * g.k), b(g.n * g.k), product(rows * g.n);
    if (g.workspace_bytes) memset(g.workspace, 0xFF, g.workspace_bytes);
    if (g.alpha != 0) {
        pack(g.a, g.m, g.k, PANEL, g.rounding, a.data);
        pack(g.b.transposed(), g.n, g.k, 1, g.rounding, b.data);
        multiply(a.data, b.data, rows, g.n, g.k, g.order, product.data);
    } else {
        memset(product.data, 0, rows * g.n * sizeof(float));
    }
    if (g.epilogue.sum_a) sum_along(g.a, g.m, g.k, g.epilogue.bias);
    if (g.epilogue.sum_b) sum_along(g.b.transposed(), g.n, g.k, g.epilogue.bias);
    finish(g, product.data, rows);
}

// >>checks

// One piece of memory that a product reads or writes.
struct Operand {
    const char *name;
    const void *data;
    size_t bytes;
};

inline Operand operand(const char *name, const Matrix &x, size_t rows, size_t columns) {
    size_t last = rows && columns ? x.at(rows - 1, columns - 1) + 1 : 0;
    return Operand{name, x.data, last * size_of(x.type)};
}

inline std::vector<Operand> operands(const Gemm &g) {
    const Epilogue &e = g.epilogue;
    std::vector<Operand> all;
    all.push_back(operand("A", g.a, g.m, g.k));
    all.push_back(operand("B", g.b, g.k, g.n));
    if (g.beta != 0) all.push_back(operand("C", g.c, g.m, g.n));
    all.push_back(operand("D", g.d, g.m, g.n));
    if (e.add_bias || e.sum_rows || e.sum_a || e.sum_b)
        all.push_back(operand("the bias", e.bias, e.sum_b ? g.n : g.m, 1));
    if (e.write_aux || e.backward) {
        bool bits = e.forward == Relu || e.backward == Relu;
        size_t bytes = bits ? ((g.n - 1) * e.aux_ld + g.m + 7) / 8
                            : ((g.n - 1) * e.aux_ld + g.m) * size_of(g.d.type);
        all.push_back(Operand{"the auxiliary matrix", e.aux, bytes});
    }
    if (g.workspace_bytes) all.push_back(Operand{"the workspace", g.workspace, g.workspace_bytes});
    return all;
}

inline bool good_operands(const char *api, const Gemm &g, int ordinal) {
    for (const Operand &one : operands(g)) {
        const char *wrong = one.bytes ? wrong_memory(ordinal, one.data, one.bytes) : nullptr;
        if (!wrong) continue;
        say(1, "%s: %s is %s", api, one.name, wrong);
        return false;
    }
    return true;
}

inline cublasStatus_t submit_gemm(const char *api, const Gemm &g, Stream *stream) {
    if (g.m == 0 || g.n == 0) return CUBLAS_STATUS_SUCCESS;
    if (!good_operands(api, g, stream->device)) return CUBLAS_STATUS_INVALID_VALUE;
    stream->submit(api, [api, g] {
        if (good_operands(api, g, self.runner.device)) run_gemm(g);
        else device_fault(self.runner.device, cudaErrorIllegalAddress, api);
    });
    return CUBLAS_STATUS_SUCCESS;
}

// The start of a call that works in a stream.
inline cublasStatus_t enter_blas(const char *api, Stream *stream) {
    if (planned(api)) return CUBLAS_STATUS_INTERNAL_ERROR;
    if (!usable(api, stream)) return CUBLAS_STATUS_INVALID_VALUE;
    return fault_of(stream->device) ? CUBLAS_STATUS_EXECUTION_FAILED : CUBLAS_STATUS_SUCCESS;
}

// How a compute type rounds its inputs; false if it is not one of ours.
inline bool rounding_of(cublasComputeType_t compute, cudaDataType_t inputs, Rounding *rounding) {
    *rounding = AsIs;
    if (compute == CUBLAS_COMPUTE_32F || compute == CUBLAS_COMPUTE_32F_PEDANTIC) return true;
    if (inputs != CUDA_R_32F) return false;
    *rounding = compute == CUBLAS_COMPUTE_32F_FAST_TF32 ? ToTf32 : ToBf16;
    return compute == CUBLAS_COMPUTE_32F_FAST_TF32 || compute == CUBLAS_COMPUTE_32F_FAST_16BF;
}

} // namespace cudahost
#endif
