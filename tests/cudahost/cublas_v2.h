// cublas_v2.h - handles and single products, column-major as in BLAS. Only host alpha and beta.
#ifndef CUDAHOST_CUBLAS_H
#define CUDAHOST_CUBLAS_H
#include "cudahost_gemm.h"

#define CUBLAS_VERSION 130000
enum cublasMath_t {
    CUBLAS_DEFAULT_MATH = 0,
    CUBLAS_PEDANTIC_MATH = 2,
    CUBLAS_TF32_TENSOR_OP_MATH = 3,
    CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION = 16
};
enum cublasGemmAlgo_t {
    CUBLAS_GEMM_DFALT = -1,
    CUBLAS_GEMM_DEFAULT = -1,
    CUBLAS_GEMM_DEFAULT_TENSOR_OP = 99
};

struct cublasContext {
    int device;
    cudahost::Stream *stream;
    void *workspace;
    size_t workspace_bytes;
    int math;
    cublasPointerMode_t pointers;
};
typedef cublasContext *cublasHandle_t;

// >>handles

inline const char *cublasGetStatusName(cublasStatus_t status) {
    return cudahost::status_name(status);
}
inline const char *cublasGetStatusString(cublasStatus_t status) {
    return cudahost::status_name(status);
}

inline cublasStatus_t cublasCreate(cublasHandle_t *handle) {
    if (cudahost::planned("cublasCreate")) return CUBLAS_STATUS_ALLOC_FAILED;
    if (cudahost::device_count() == 0) return CUBLAS_STATUS_NOT_INITIALIZED;
    *handle = new cublasContext{cudahost::self.host.device, nullptr, nullptr, 0,
                                CUBLAS_DEFAULT_MATH, CUBLAS_POINTER_MODE_HOST};
    cudahost::born(*handle, cudahost::BlasHandles);
    return CUBLAS_STATUS_SUCCESS;
}

namespace cudahost {

inline cublasStatus_t enter_handle(const char *api, cublasHandle_t handle) {
    if (planned(api)) return CUBLAS_STATUS_INTERNAL_ERROR;
    return alive(handle, BlasHandles) ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_INITIALIZED;
}

} // namespace cudahost

inline cublasStatus_t cublasDestroy(cublasHandle_t handle) {
    bool fails = cudahost::planned("cublasDestroy");
    if (!cudahost::dies(handle, cudahost::BlasHandles)) return CUBLAS_STATUS_NOT_INITIALIZED;
    delete handle;
    return fails ? CUBLAS_STATUS_INTERNAL_ERROR : CUBLAS_STATUS_SUCCESS;
}

inline cublasStatus_t cublasGetVersion(cublasHandle_t, int *version) {
    *version = CUBLAS_VERSION;
    return cudahost::planned("cublasGetVersion") ? CUBLAS_STATUS_INTERNAL_ERROR
                                                 : CUBLAS_STATUS_SUCCESS;
}

// As in the real one, this forgets the workspace.
inline cublasStatus_t cublasSetStream(cublasHandle_t handle, cudaStream_t stream) {
    cublasStatus_t status = cudahost::enter_handle("cublasSetStream", handle);
    if (status) return status;
    if (!cudahost::usable("cublasSetStream", stream) || stream->device != handle->device)
        return CUBLAS_STATUS_INVALID_VALUE;
    handle->stream = stream;
    handle->workspace = nullptr;
    handle->workspace_bytes = 0;
    return CUBLAS_STATUS_SUCCESS;
}

inline cublasStatus_t cublasSetWorkspace(cublasHandle_t handle, void *workspace, size_t bytes) {
    cublasStatus_t status = cudahost::enter_handle("cublasSetWorkspace", handle);
    if (status) return status;
    if ((uintptr_t)workspace % 256) return CUBLAS_STATUS_INVALID_VALUE;
    handle->workspace = workspace;
    handle->workspace_bytes = bytes;
    return CUBLAS_STATUS_SUCCESS;
}

inline cublasStatus_t cublasSetMathMode(cublasHandle_t handle, cublasMath_t math) {
    cublasStatus_t status = cudahost::enter_handle("cublasSetMathMode", handle);
    if (!status) handle->math = math;
    return status;
}

inline cublasStatus_t cublasSetPointerMode(cublasHandle_t handle, cublasPointerMode_t mode) {
    cublasStatus_t status = cudahost::enter_handle("cublasSetPointerMode", handle);
    if (status) return status;
    if (mode != CUBLAS_POINTER_MODE_HOST) return CUBLAS_STATUS_NOT_SUPPORTED;
    handle->pointers = mode;
    return CUBLAS_STATUS_SUCCESS;
}

// >>products

namespace cudahost {

// A column-major matrix as op() shows it.
inline Matrix column_major(const void *data, cudaDataType_t type, int ld, cublasOperation_t op) {
    Matrix x = {const_cast<void *>(data), type, 1, (size_t)ld};
    return op == CUBLAS_OP_N ? x : x.transposed();
}

inline bool good_sizes(cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k, int lda,
                       int ldb, int ldc) {
    int rows_a = op_a == CUBLAS_OP_N ? m : k, rows_b = op_b == CUBLAS_OP_N ? k : n;
    return m >= 0 && n >= 0 && k >= 0 && lda >= (rows_a > 1 ? rows_a : 1) &&
           ldb >= (rows_b > 1 ? rows_b : 1) && ldc >= (m > 1 ? m : 1);
}

} // namespace cudahost

inline cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t op_a,
                                   cublasOperation_t op_b, int m, int n, int k, const void *alpha,
                                   const void *a, cudaDataType a_type, int lda, const void *b,
                                   cudaDataType b_type, int ldb, const void *beta, void *c,
                                   cudaDataType c_type, int ldc, cublasComputeType_t compute,
                                   cublasGemmAlgo_t) {
    if (!cudahost::alive(handle, cudahost::BlasHandles)) return CUBLAS_STATUS_NOT_INITIALIZED;
    cublasStatus_t status = cudahost::enter_blas("cublasGemmEx", handle->stream);
    if (status) return status;
    if (!cudahost::good_sizes(op_a, op_b, m, n, k, lda, ldb, ldc) || !alpha || !beta)
        return CUBLAS_STATUS_INVALID_VALUE;
    cudahost::Gemm gemm;
    if (a_type != b_type || !cudahost::known_type(a_type) || !cudahost::known_type(c_type) ||
        (a_type == CUDA_R_32F && c_type != CUDA_R_32F) ||
        !cudahost::rounding_of(compute, a_type, &gemm.rounding))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (handle->math == CUBLAS_TF32_TENSOR_OP_MATH && a_type == CUDA_R_32F &&
        compute == CUBLAS_COMPUTE_32F)
        gemm.rounding = cudahost::ToTf32;
    gemm.m = (size_t)m, gemm.n = (size_t)n, gemm.k = (size_t)k;
    gemm.alpha = *(const float *)alpha, gemm.beta = *(const float *)beta;
    gemm.a = cudahost::column_major(a, a_type, lda, op_a);
    gemm.b = cudahost::column_major(b, b_type, ldb, op_b);
    gemm.c = gemm.d = cudahost::column_major(c, c_type, ldc, CUBLAS_OP_N);
    gemm.workspace = handle->workspace;
    gemm.workspace_bytes = handle->workspace_bytes < 4096 ? handle->workspace_bytes : 4096;
    return cudahost::submit_gemm("cublasGemmEx", gemm, handle->stream);
}

inline cublasStatus_t cublasSgemm(cublasHandle_t handle, cublasOperation_t op_a,
                                  cublasOperation_t op_b, int m, int n, int k, const float *alpha,
                                  const float *a, int lda, const float *b, int ldb,
                                  const float *beta, float *c, int ldc) {
    if (cudahost::planned("cublasSgemm")) return CUBLAS_STATUS_INTERNAL_ERROR;
    return cublasGemmEx(handle, op_a, op_b, m, n, k, alpha, a, CUDA_R_32F, lda, b, CUDA_R_32F,
                        ldb, beta, c, CUDA_R_32F, ldc, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
}
#endif
