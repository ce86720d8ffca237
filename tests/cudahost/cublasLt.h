// cublasLt.h - products with epilogues, described by attributes. The descriptors are plain
// structs; what they must fulfil is checked where cuBLASLt checks it: in the heuristic, so that a
// program has to have a second way, and again in the product.
#ifndef CUDAHOST_CUBLASLT_H
#define CUDAHOST_CUBLASLT_H
#include "cudahost_gemm.h"

enum cublasLtOrder_t { CUBLASLT_ORDER_COL = 0, CUBLASLT_ORDER_ROW = 1 };
enum cublasLtPointerMode_t {
    CUBLASLT_POINTER_MODE_HOST = 0,
    CUBLASLT_POINTER_MODE_DEVICE = 1
};
enum cublasLtReductionScheme_t {
    CUBLASLT_REDUCTION_SCHEME_NONE = 0,
    CUBLASLT_REDUCTION_SCHEME_INPLACE = 1,
    CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE = 2,
    CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE = 4,
    CUBLASLT_REDUCTION_SCHEME_MASK = 7
};
enum cublasLtMatrixLayoutAttribute_t {
    CUBLASLT_MATRIX_LAYOUT_TYPE = 0,
    CUBLASLT_MATRIX_LAYOUT_ORDER = 1,
    CUBLASLT_MATRIX_LAYOUT_ROWS = 2,
    CUBLASLT_MATRIX_LAYOUT_COLS = 3,
    CUBLASLT_MATRIX_LAYOUT_LD = 4
};
enum cublasLtMatmulDescAttributes_t {
    CUBLASLT_MATMUL_DESC_COMPUTE_TYPE = 0,
    CUBLASLT_MATMUL_DESC_SCALE_TYPE = 1,
    CUBLASLT_MATMUL_DESC_POINTER_MODE = 2,
    CUBLASLT_MATMUL_DESC_TRANSA = 3,
    CUBLASLT_MATMUL_DESC_TRANSB = 4,
    CUBLASLT_MATMUL_DESC_EPILOGUE = 7,
    CUBLASLT_MATMUL_DESC_BIAS_POINTER = 8,
    CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER = 11,
    CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD = 12,
    CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_BATCH_STRIDE = 13,
    CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE = 22,
    CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE = 26
};
enum cublasLtMatmulPreferenceAttributes_t {
    CUBLASLT_MATMUL_PREF_SEARCH_MODE = 0,
    CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES = 1,
    CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK = 3,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES = 5,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES = 6,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES = 7,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES = 8,
    CUBLASLT_MATMUL_PREF_MAX_WAVES_COUNT = 9
};
enum cublasLtEpilogue_t {
    CUBLASLT_EPILOGUE_DEFAULT = 1,
    CUBLASLT_EPILOGUE_RELU = 2,
    CUBLASLT_EPILOGUE_BIAS = 4,
    CUBLASLT_EPILOGUE_RELU_BIAS = 2 | 4,
    CUBLASLT_EPILOGUE_RELU_AUX = 2 | 128,
    CUBLASLT_EPILOGUE_RELU_AUX_BIAS = 2 | 4 | 128,
    CUBLASLT_EPILOGUE_DRELU = 8 | 128,
    CUBLASLT_EPILOGUE_DRELU_BGRAD = 8 | 16 | 128,
    CUBLASLT_EPILOGUE_GELU = 32,
    CUBLASLT_EPILOGUE_GELU_BIAS = 32 | 4,
    CUBLASLT_EPILOGUE_GELU_AUX = 32 | 128,
    CUBLASLT_EPILOGUE_GELU_AUX_BIAS = 32 | 4 | 128,
    CUBLASLT_EPILOGUE_DGELU = 64 | 128,
    CUBLASLT_EPILOGUE_DGELU_BGRAD = 64 | 16 | 128,
    CUBLASLT_EPILOGUE_BGRADA = 256,
    CUBLASLT_EPILOGUE_BGRADB = 512
};

struct cublasLtMatmulDescOpaque_t {
    int32_t compute, scale, pointers, op_a, op_b;
    uint32_t epilogue;
    void *bias, *aux;
    int64_t aux_ld, aux_batch_stride;
    int32_t aux_type, bias_type;
};
struct cublasLtMatrixLayoutOpaque_t {
    uint32_t type;
    int32_t order;
    uint64_t rows, columns;
    int64_t ld;
};
struct cublasLtMatmulPreferenceOpaque_t {
    uint64_t workspace;
    uint32_t search, reduction, alignment[4];  // of A, B, C, D
    float waves;
};
// What the heuristic promised and assumed; data[0] of an algorithm that came from elsewhere is 0.
struct cublasLtMatmulAlgo_t {
    uint64_t data[8];
};
struct cublasLtMatmulHeuristicResult_t {
    cublasLtMatmulAlgo_t algo;
    size_t workspaceSize;
    cublasStatus_t state;
    float wavesCount;
    int reserved[4];
};
struct cublasLtContext {
    int device;
};
typedef cublasLtContext *cublasLtHandle_t;
typedef cublasLtMatmulDescOpaque_t *cublasLtMatmulDesc_t;
typedef cublasLtMatrixLayoutOpaque_t *cublasLtMatrixLayout_t;
typedef cublasLtMatmulPreferenceOpaque_t *cublasLtMatmulPreference_t;

// >>objects

inline const char *cublasLtGetStatusName(cublasStatus_t status) {
    return cudahost::status_name(status);
}
inline const char *cublasLtGetStatusString(cublasStatus_t status) {
    return cudahost::status_name(status);
}
inline size_t cublasLtGetVersion() { return 130000; }

namespace cudahost {

template <class T> cublasStatus_t create_lt(const char *api, T **object, Kind kind) {
    if (planned(api)) return CUBLAS_STATUS_ALLOC_FAILED;
    *object = new T();
    born(*object, kind);
    return CUBLAS_STATUS_SUCCESS;
}

template <class T> cublasStatus_t destroy_lt(const char *api, T *object, Kind kind) {
    bool fails = planned(api);
    if (!dies(object, kind)) return CUBLAS_STATUS_INVALID_VALUE;
    delete object;
    return fails ? CUBLAS_STATUS_INTERNAL_ERROR : CUBLAS_STATUS_SUCCESS;
}

// Attributes are copied, and of exactly the size they have.
template <class T> cublasStatus_t copy_in(T *field, const void *from, size_t bytes) {
    if (!from || bytes != sizeof *field) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(field, from, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

template <class T> cublasStatus_t copy_out(const T &field, void *to, size_t bytes, size_t *wrote) {
    if (wrote) *wrote = sizeof field;
    if (bytes == 0 && wrote) return CUBLAS_STATUS_SUCCESS;
    if (!to || bytes != sizeof field) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(to, &field, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

// Calls use(field) with the field that an attribute stands for.
template <class Use>
cublasStatus_t desc_field(cublasLtMatmulDescOpaque_t *desc, cublasLtMatmulDescAttributes_t which,
                          Use use) {
    switch (which) {
    case CUBLASLT_MATMUL_DESC_COMPUTE_TYPE: return use(&desc->compute);
    case CUBLASLT_MATMUL_DESC_SCALE_TYPE: return use(&desc->scale);
    case CUBLASLT_MATMUL_DESC_POINTER_MODE: return use(&desc->pointers);
    case CUBLASLT_MATMUL_DESC_TRANSA: return use(&desc->op_a);
    case CUBLASLT_MATMUL_DESC_TRANSB: return use(&desc->op_b);
    case CUBLASLT_MATMUL_DESC_EPILOGUE: return use(&desc->epilogue);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER: return use(&desc->bias);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER: return use(&desc->aux);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD: return use(&desc->aux_ld);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_BATCH_STRIDE: return use(&desc->aux_batch_stride);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE: return use(&desc->aux_type);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE: return use(&desc->bias_type);
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}

template <class Use>
cublasStatus_t layout_field(cublasLtMatrixLayoutOpaque_t *layout,
                            cublasLtMatrixLayoutAttribute_t which, Use use) {
    switch (which) {
    case CUBLASLT_MATRIX_LAYOUT_TYPE: return use(&layout->type);
    case CUBLASLT_MATRIX_LAYOUT_ORDER: return use(&layout->order);
    case CUBLASLT_MATRIX_LAYOUT_ROWS: return use(&layout->rows);
    case CUBLASLT_MATRIX_LAYOUT_COLS: return use(&layout->columns);
    case CUBLASLT_MATRIX_LAYOUT_LD: return use(&layout->ld);
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}

template <class Use>
cublasStatus_t preference_field(cublasLtMatmulPreferenceOpaque_t *preference,
                                cublasLtMatmulPreferenceAttributes_t which, Use use) {
    switch (which) {
    case CUBLASLT_MATMUL_PREF_SEARCH_MODE: return use(&preference->search);
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES: return use(&preference->workspace);
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK: return use(&preference->reduction);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES: return use(&preference->alignment[0]);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES: return use(&preference->alignment[1]);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES: return use(&preference->alignment[2]);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES: return use(&preference->alignment[3]);
    case CUBLASLT_MATMUL_PREF_MAX_WAVES_COUNT: return use(&preference->waves);
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}

} // namespace cudahost

inline cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) {
    if (cudahost::device_count() == 0) return CUBLAS_STATUS_NOT_INITIALIZED;
    cublasStatus_t status = cudahost::create_lt("cublasLtCreate", handle, cudahost::LtHandles);
    if (!status) (*handle)->device = cudahost::self.host.device;
    return status;
}

inline cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
    return cudahost::destroy_lt("cublasLtDestroy", handle, cudahost::LtHandles);
}

inline cublasStatus_t cublasLtMatmulDescInit(cublasLtMatmulDesc_t desc,
                                             cublasComputeType_t compute, cudaDataType_t scale) {
    *desc = cublasLtMatmulDescOpaque_t{};
    desc->compute = compute;
    desc->scale = scale;
    desc->epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    desc->aux_type = desc->bias_type = -1;
    return CUBLAS_STATUS_SUCCESS;
}

inline cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *desc,
                                               cublasComputeType_t compute, cudaDataType_t scale) {
    cublasStatus_t status =
        cudahost::create_lt("cublasLtMatmulDescCreate", desc, cudahost::LtObjects);
    return status ? status : cublasLtMatmulDescInit(*desc, compute, scale);
}

inline cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
    return cudahost::destroy_lt("cublasLtMatmulDescDestroy", desc, cudahost::LtObjects);
}

inline cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc,
                                                     cublasLtMatmulDescAttributes_t which,
                                                     const void *from, size_t bytes) {
    if (cudahost::planned("cublasLtMatmulDescSetAttribute")) return CUBLAS_STATUS_INTERNAL_ERROR;
    return cudahost::desc_field(
        desc, which, [=](auto *field) { return cudahost::copy_in(field, from, bytes); });
}

inline cublasStatus_t cublasLtMatmulDescGetAttribute(cublasLtMatmulDesc_t desc,
                                                     cublasLtMatmulDescAttributes_t which,
                                                     void *to, size_t bytes, size_t *wrote) {
    if (cudahost::planned("cublasLtMatmulDescGetAttribute")) return CUBLAS_STATUS_INTERNAL_ERROR;
    return cudahost::desc_field(
        desc, which, [=](auto *field) { return cudahost::copy_out(*field, to, bytes, wrote); });
}

inline cublasStatus_t cublasLtMatrixLayoutInit(cublasLtMatrixLayout_t layout, cudaDataType type,
                                               uint64_t rows, uint64_t columns, int64_t ld) {
    *layout = cublasLtMatrixLayoutOpaque_t{(uint32_t)type, CUBLASLT_ORDER_COL, rows, columns, ld};
    return CUBLAS_STATUS_SUCCESS;
}

inline cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType type,
                                                 uint64_t rows, uint64_t columns, int64_t ld) {
    cublasStatus_t status =
        cudahost::create_lt("cublasLtMatrixLayoutCreate", layout, cudahost::LtObjects);
    return status ? status : cublasLtMatrixLayoutInit(*layout, type, rows, columns, ld);
}

inline cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
    return cudahost::destroy_lt("cublasLtMatrixLayoutDestroy", layout, cudahost::LtObjects);
}

inline cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                       cublasLtMatrixLayoutAttribute_t which,
                                                       const void *from, size_t bytes) {
    if (cudahost::planned("cublasLtMatrixLayoutSetAttribute"))
        return CUBLAS_STATUS_INTERNAL_ERROR;
    return cudahost::layout_field(
        layout, which, [=](auto *field) { return cudahost::copy_in(field, from, bytes); });
}

inline cublasStatus_t cublasLtMatrixLayoutGetAttribute(cublasLtMatrixLayout_t layout,
                                                       cublasLtMatrixLayoutAttribute_t which,
                                                       void *to, size_t bytes, size_t *wrote) {
    if (cudahost::planned("cublasLtMatrixLayoutGetAttribute"))
        return CUBLAS_STATUS_INTERNAL_ERROR;
    return cudahost::layout_field(
        layout, which, [=](auto *field) { return cudahost::copy_out(*field, to, bytes, wrote); });
}

inline cublasStatus_t cublasLtMatmulPreferenceInit(cublasLtMatmulPreference_t preference) {
    *preference = cublasLtMatmulPreferenceOpaque_t{
        0, 0, CUBLASLT_REDUCTION_SCHEME_MASK, {256, 256, 256, 256}, 0};
    return CUBLAS_STATUS_SUCCESS;
}

inline cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference) {
    cublasStatus_t status =
        cudahost::create_lt("cublasLtMatmulPreferenceCreate", preference, cudahost::LtObjects);
    return status ? status : cublasLtMatmulPreferenceInit(*preference);
}

inline cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
    return cudahost::destroy_lt("cublasLtMatmulPreferenceDestroy", preference,
                                cudahost::LtObjects);
}

inline cublasStatus_t
cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                     cublasLtMatmulPreferenceAttributes_t which, const void *from,
                                     size_t bytes) {
    if (cudahost::planned("cublasLtMatmulPreferenceSetAttribute"))
        return CUBLAS_STATUS_INTERNAL_ERROR;
    return cudahost::preference_field(
        preference, which, [=](auto *field) { return cudahost::copy_in(field, from, bytes); });
}

// >>problems

namespace cudahost {

struct EpilogueName {
    uint32_t value;
    const char *name;
};

inline const char *epilogue_name(uint32_t epilogue) {
    static const EpilogueName names[] = {
        {CUBLASLT_EPILOGUE_DEFAULT, "DEFAULT"},
        {CUBLASLT_EPILOGUE_RELU, "RELU"},
        {CUBLASLT_EPILOGUE_BIAS, "BIAS"},
        {CUBLASLT_EPILOGUE_RELU_BIAS, "RELU_BIAS"},
        {CUBLASLT_EPILOGUE_RELU_AUX, "RELU_AUX"},
        {CUBLASLT_EPILOGUE_RELU_AUX_BIAS, "RELU_AUX_BIAS"},
        {CUBLASLT_EPILOGUE_DRELU, "DRELU"},
        {CUBLASLT_EPILOGUE_DRELU_BGRAD, "DRELU_BGRAD"},
        {CUBLASLT_EPILOGUE_GELU, "GELU"},
        {CUBLASLT_EPILOGUE_GELU_BIAS, "GELU_BIAS"},
        {CUBLASLT_EPILOGUE_GELU_AUX, "GELU_AUX"},
        {CUBLASLT_EPILOGUE_GELU_AUX_BIAS, "GELU_AUX_BIAS"},
        {CUBLASLT_EPILOGUE_DGELU, "DGELU"},
        {CUBLASLT_EPILOGUE_DGELU_BGRAD, "DGELU_BGRAD"},
        {CUBLASLT_EPILOGUE_BGRADA, "BGRADA"},
        {CUBLASLT_EPILOGUE_BGRADB, "BGRADB"},
    };
    for (const EpilogueName &one : names)
        if (one.value == epilogue) return one.name;
    return nullptr;
}

// CUDAHOST_LT_EPILOGUES lists the epilogues that are on offer beside DEFAULT; unset: all.
inline bool offered(uint32_t epilogue) {
    const char *name = epilogue_name(epilogue), *list = getenv("CUDAHOST_LT_EPILOGUES");
    if (!name) return false;
    if (!list || epilogue == CUBLASLT_EPILOGUE_DEFAULT) return true;
    return ("," + std::string(list) + ",").find("," + std::string(name) + ",") !=
           std::string::npos;
}

struct LtProblem {
    cublasLtMatmulDescOpaque_t desc;
    cublasLtMatrixLayoutOpaque_t a, b, c, d;
};

inline bool good_layout(const cublasLtMatrixLayoutOpaque_t &x) {
    bool rows = x.order == CUBLASLT_ORDER_ROW;
    return (rows || x.order == CUBLASLT_ORDER_COL) && x.ld >= (int64_t)(rows ? x.columns : x.rows);
}

inline Matrix lt_matrix(const cublasLtMatrixLayoutOpaque_t &x, const void *data, int op) {
    Matrix m = {const_cast<void *>(data), (cudaDataType_t)x.type, 1, (size_t)x.ld};
    if (x.order == CUBLASLT_ORDER_ROW) m = m.transposed();
    return op == CUBLAS_OP_N ? m : m.transposed();
}

// The shape of the product; CUBLAS_STATUS_INVALID_VALUE if the matrices do not fit each other.
inline cublasStatus_t lt_shape(const LtProblem &p, Gemm *gemm) {
    if (!good_layout(p.a) || !good_layout(p.b) || !good_layout(p.c) || !good_layout(p.d))
        return CUBLAS_STATUS_INVALID_VALUE;
    bool ta = p.desc.op_a != CUBLAS_OP_N, tb = p.desc.op_b != CUBLAS_OP_N;
    gemm->m = p.d.rows, gemm->n = p.d.columns;
    gemm->k = ta ? p.a.rows : p.a.columns;
    bool fits = (ta ? p.a.columns : p.a.rows) == gemm->m &&
                (tb ? p.b.columns : p.b.rows) == gemm->k &&
                (tb ? p.b.rows : p.b.columns) == gemm->n && p.c.rows == gemm->m &&
                p.c.columns == gemm->n;
    return fits ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}

inline bool lt_types(const LtProblem &p, Gemm *gemm) {
    cudaDataType_t in = (cudaDataType_t)p.a.type, out = (cudaDataType_t)p.d.type;
    return p.b.type == p.a.type && p.c.type == p.d.type && p.c.order == p.d.order &&
           known_type(in) && known_type(out) && (in == CUDA_R_16BF || out == CUDA_R_32F) &&
           p.desc.scale == CUDA_R_32F && p.desc.pointers == CUBLASLT_POINTER_MODE_HOST &&
           rounding_of((cublasComputeType_t)p.desc.compute, in, &gemm->rounding);
}

// Reads the epilogue's bits: ReLU 2, bias 4, dReLU 8, bias gradient 16, GELU 32, dGELU 64, aux 128.
inline Epilogue lt_epilogue(const LtProblem &p) {
    uint32_t bits = p.desc.epilogue;
    Epilogue e;
    e.forward = bits & 2 ? Relu : bits & 32 ? Gelu : NoActivation;
    e.backward = bits & 8 ? Relu : bits & 64 ? Gelu : NoActivation;
    e.add_bias = (bits & 4) != 0;
    e.sum_rows = (bits & 16) != 0;
    e.write_aux = (bits & 128) && e.forward;
    e.sum_a = bits == CUBLASLT_EPILOGUE_BGRADA;
    e.sum_b = bits == CUBLASLT_EPILOGUE_BGRADB;
    e.bias.data = p.desc.bias;
    e.bias.type = p.desc.bias_type < 0 ? (cudaDataType_t)p.d.type
                                       : (cudaDataType_t)p.desc.bias_type;
    e.aux = p.desc.aux;
    e.aux_ld = (size_t)p.desc.aux_ld;
    return e;
}

inline bool needs_aux(const Epilogue &e) { return e.write_aux || e.backward; }
inline bool needs_bias(const Epilogue &e) {
    return e.add_bias || e.sum_rows || e.sum_a || e.sum_b;
}

// The rules for leading dimensions: a mask's is in bits, and a multiple of 128.
inline bool good_aux(const Epilogue &e, size_t m) {
    if (!needs_aux(e)) return true;
    bool mask = e.forward == Relu || e.backward == Relu;
    bool good = e.aux_ld >= m && e.aux_ld % (mask ? 128 : 8) == 0;
    if (!good)
        say(1, "cublasLt: an auxiliary matrix of %zu rows with leading dimension %zu", m, e.aux_ld);
    return good;
}

inline cublasStatus_t lt_gemm(const LtProblem &p, Gemm *gemm) {
    cublasStatus_t status = lt_shape(p, gemm);
    if (status) return status;
    if (!lt_types(p, gemm)) return CUBLAS_STATUS_NOT_SUPPORTED;
    gemm->epilogue = lt_epilogue(p);
    if (!good_aux(gemm->epilogue, gemm->m)) return CUBLAS_STATUS_INVALID_VALUE;
    if (needs_bias(gemm->epilogue) && !known_type(gemm->epilogue.bias.type))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    bool plain = p.desc.epilogue == CUBLASLT_EPILOGUE_DEFAULT;
    bool columns = p.a.order == CUBLASLT_ORDER_COL && p.b.order == CUBLASLT_ORDER_COL &&
                   p.d.order == CUBLASLT_ORDER_COL;
    return plain || columns ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

// >>algorithms
// There is one, in variants that the heuristic chooses by what it is told: which alignment it
// relies on, whether it wants a workspace, and whether it may add up in an order that varies.

enum { LT_MAGIC = 0x4c74, LT_WORKSPACE = 64 << 10 };

struct LtAlgo {
    bool varies;
    size_t workspace, alignment[4];
    uint64_t key;
};

// What an algorithm is for; using it for something else is an error.
inline uint64_t lt_key(const LtProblem &p) {
    return (uint64_t)p.desc.epilogue | (uint64_t)p.a.type << 12 | (uint64_t)p.d.type << 16 |
           (uint64_t)p.desc.op_a << 20 | (uint64_t)p.desc.op_b << 22 | (uint64_t)p.a.order << 24 |
           (uint64_t)p.b.order << 25 | (uint64_t)p.d.order << 26 | (uint64_t)p.desc.compute << 28;
}

// Sixteen bytes if pointer and leading dimension promise it, else one element.
inline size_t lt_alignment(const cublasLtMatrixLayoutOpaque_t &x, size_t promised) {
    size_t size = size_of((cudaDataType_t)x.type);
    return promised >= 16 && (size_t)x.ld * size % 16 == 0 ? 16 : size;
}

inline LtAlgo choose_algo(const LtProblem &p, const cublasLtMatmulPreferenceOpaque_t &wish) {
    LtAlgo algo = {};
    const cublasLtMatrixLayoutOpaque_t *layouts[4] = {&p.a, &p.b, &p.c, &p.d};
    for (int i = 0; i < 4; i++) algo.alignment[i] = lt_alignment(*layouts[i], wish.alignment[i]);
    algo.workspace = wish.workspace >= LT_WORKSPACE ? (size_t)LT_WORKSPACE : 0;
    algo.varies = (wish.reduction & CUBLASLT_REDUCTION_SCHEME_INPLACE) != 0;
    algo.key = lt_key(p);
    return algo;
}

inline cublasLtMatmulAlgo_t write_algo(const LtAlgo &algo) {
    cublasLtMatmulAlgo_t opaque = {{LT_MAGIC, algo.key, algo.workspace, algo.varies}};
    for (int i = 0; i < 4; i++) opaque.data[4 + i] = algo.alignment[i];
    return opaque;
}

inline bool read_algo(const cublasLtMatmulAlgo_t &opaque, LtAlgo *algo) {
    algo->key = opaque.data[1];
    algo->workspace = opaque.data[2];
    algo->varies = opaque.data[3] != 0;
    for (int i = 0; i < 4; i++) algo->alignment[i] = opaque.data[4 + i];
    return opaque.data[0] == LT_MAGIC;
}

inline bool aligned(const char *name, const void *p, size_t bytes) {
    if ((uintptr_t)p % bytes == 0) return true;
    say(1, "cublasLtMatmul: %s is not aligned to %zu bytes as the algorithm expects", name, bytes);
    return false;
}

inline bool good_pointers(const Gemm &g, const LtAlgo &algo) {
    return aligned("A", g.a.data, algo.alignment[0]) && aligned("B", g.b.data, algo.alignment[1]) &&
           (g.beta == 0 || aligned("C", g.c.data, algo.alignment[2])) &&
           aligned("D", g.d.data, algo.alignment[3]) &&
           (!needs_bias(g.epilogue) ||
            aligned("the bias", g.epilogue.bias.data, size_of(g.epilogue.bias.type))) &&
           (!needs_aux(g.epilogue) || aligned("the auxiliary matrix", g.epilogue.aux, 16));
}

} // namespace cudahost

// >>calls

// CUDAHOST_LT=0: nothing is on offer.
inline cublasStatus_t cublasLtMatmulAlgoGetHeuristic(
    cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
    cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
    cublasLtMatmulPreference_t preference, int wanted, cublasLtMatmulHeuristicResult_t results[],
    int *found) {
    *found = 0;
    if (cudahost::planned("cublasLtMatmulAlgoGetHeuristic")) return CUBLAS_STATUS_INTERNAL_ERROR;
    if (!cudahost::alive(handle, cudahost::LtHandles)) return CUBLAS_STATUS_NOT_INITIALIZED;
    if (wanted < 1) return CUBLAS_STATUS_INVALID_VALUE;
    cudahost::LtProblem problem = {*desc, *a, *b, *c, *d};
    cudahost::Gemm gemm;
    cublasStatus_t status = cudahost::lt_gemm(problem, &gemm);
    if (status) return status;
    if (!strcmp(cudahost::setting("CUDAHOST_LT", "1"), "0") || !cudahost::offered(desc->epilogue))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    cudahost::LtAlgo algo = cudahost::choose_algo(problem, *preference);
    results[0] = cublasLtMatmulHeuristicResult_t{
        cudahost::write_algo(algo), algo.workspace, CUBLAS_STATUS_SUCCESS, 1, {}};
    *found = 1;
    return CUBLAS_STATUS_SUCCESS;
}

inline cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                     const void *alpha, const void *a,
                                     cublasLtMatrixLayout_t a_layout, const void *b,
                                     cublasLtMatrixLayout_t b_layout, const void *beta,
                                     const void *c, cublasLtMatrixLayout_t c_layout, void *d,
                                     cublasLtMatrixLayout_t d_layout,
                                     const cublasLtMatmulAlgo_t *opaque, void *workspace,
                                     size_t workspace_bytes, cudaStream_t stream) {
    cublasStatus_t status = cudahost::enter_blas("cublasLtMatmul", stream);
    if (status) return status;
    if (!cudahost::alive(handle, cudahost::LtHandles)) return CUBLAS_STATUS_NOT_INITIALIZED;
    if (handle->device != stream->device || !alpha || !beta) return CUBLAS_STATUS_INVALID_VALUE;
    cudahost::LtProblem problem = {*desc, *a_layout, *b_layout, *c_layout, *d_layout};
    cudahost::Gemm gemm;
    status = cudahost::lt_gemm(problem, &gemm);
    if (status) return status;
    cublasLtMatmulPreferenceOpaque_t anything = {
        0, 0, CUBLASLT_REDUCTION_SCHEME_MASK, {1, 1, 1, 1}, 0};
    cudahost::LtAlgo algo = cudahost::choose_algo(problem, anything);
    if (opaque && (!cudahost::read_algo(*opaque, &algo) ||
                   algo.key != cudahost::lt_key(problem))) {
        cudahost::say(1, "cublasLtMatmul: the algorithm was chosen for another problem");
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    if (algo.workspace > workspace_bytes || (algo.workspace && (uintptr_t)workspace % 256)) {
        cudahost::say(1, "cublasLtMatmul: the algorithm wants %zu bytes of aligned workspace",
                      algo.workspace);
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    static cudahost::Relaxed<unsigned> count;
    gemm.order = algo.varies ? count.add(1) & 1 : 0;
    gemm.alpha = *(const float *)alpha, gemm.beta = *(const float *)beta;
    gemm.a = cudahost::lt_matrix(*a_layout, a, desc->op_a);
    gemm.b = cudahost::lt_matrix(*b_layout, b, desc->op_b);
    gemm.c = cudahost::lt_matrix(*c_layout, c, CUBLAS_OP_N);
    gemm.d = cudahost::lt_matrix(*d_layout, d, CUBLAS_OP_N);
    gemm.workspace = workspace;
    gemm.workspace_bytes = algo.workspace;
    if (!cudahost::good_pointers(gemm, algo)) return CUBLAS_STATUS_INVALID_VALUE;
    return cudahost::submit_gemm("cublasLtMatmul", gemm, stream);
}
#endif
