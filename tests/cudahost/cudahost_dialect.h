// cudahost_dialect.h - the words that kernels are written in.
#ifndef CUDAHOST_DIALECT_H
#define CUDAHOST_DIALECT_H
#include "cudahost_kernel.h"
#include <math.h>

#define __global__ __attribute__((unused))
#define __device__ __attribute__((unused))
#define __host__ __attribute__((unused))
#define __constant__ __attribute__((unused))
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static thread_local __attribute__((section("cudahost_shared"), unused))

#define threadIdx (cudahost::self.thread)
#define blockIdx (cudahost::self.block)
#define blockDim (cudahost::self.threads)
#define gridDim (cudahost::self.blocks)
static const int warpSize = cudahost::WARP;

// >>vectors

struct alignas(8) float2 { float x, y; };
struct float3 { float x, y, z; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) double2 { double x, y; };
struct alignas(8) int2 { int x, y; };
struct int3 { int x, y, z; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned int x, y; };
struct alignas(16) uint4 { unsigned int x, y, z, w; };

inline float2 make_float2(float x, float y) { return float2{x, y}; }
inline float3 make_float3(float x, float y, float z) { return float3{x, y, z}; }
inline float4 make_float4(float x, float y, float z, float w) { return float4{x, y, z, w}; }
inline double2 make_double2(double x, double y) { return double2{x, y}; }
inline int2 make_int2(int x, int y) { return int2{x, y}; }
inline int3 make_int3(int x, int y, int z) { return int3{x, y, z}; }
inline int4 make_int4(int x, int y, int z, int w) { return int4{x, y, z, w}; }
inline uint2 make_uint2(unsigned int x, unsigned int y) { return uint2{x, y}; }
inline uint3 make_uint3(unsigned int x, unsigned int y, unsigned int z) { return uint3{x, y, z}; }
inline uint4 make_uint4(unsigned int x, unsigned int y, unsigned int z, unsigned int w) {
    return uint4{x, y, z, w};
}

// >>barriers

inline void __syncthreads() { cudahost::block_barrier(); }
inline int __syncthreads_count(int vote) { return cudahost::block_barrier(vote != 0); }
inline int __syncthreads_or(int vote) { return cudahost::block_barrier(vote != 0) != 0; }
inline int __syncthreads_and(int vote) { return cudahost::block_barrier(vote == 0) == 0; }
inline void __syncwarp(unsigned mask = 0xffffffffu) { cudahost::warp_barrier(mask); }
[[noreturn]] inline void __trap() { cudahost::die(cudaErrorLaunchFailure, "__trap()"); }
inline void __nanosleep(unsigned) {}
inline long long clock64() { return cudahost::Clock::now().time_since_epoch().count(); }

// >>warps

template <class T> T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    int lane = (int)cudahost::lane_of(cudahost::self.current);
    return cudahost::shuffle(mask, value, lane / width * width + (source & (width - 1)));
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
    int lane = (int)cudahost::lane_of(cudahost::self.current);
    return cudahost::shuffle(mask, value, cudahost::same_section(lane ^ bits, width));
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
    int lane = (int)cudahost::lane_of(cudahost::self.current);
    return cudahost::shuffle(mask, value, cudahost::same_section(lane - (int)by, width));
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
    int lane = (int)cudahost::lane_of(cudahost::self.current);
    return cudahost::shuffle(mask, value, cudahost::same_section(lane + (int)by, width));
}
inline unsigned __ballot_sync(unsigned mask, int vote) {
    return (unsigned)cudahost::meet_warp(cudahost::Vote, mask, vote != 0, -1);
}
inline int __any_sync(unsigned mask, int vote) { return __ballot_sync(mask, vote) != 0; }
inline int __all_sync(unsigned mask, int vote) { return __ballot_sync(mask, !vote) == 0; }
// Which lanes happen to run together is for nobody to rely on: here it is each alone.
inline unsigned __activemask() { return 1u << cudahost::lane_of(cudahost::self.current); }

// >>atomics
// Relaxed, as on the device. A fence before or after one makes it release or acquire.

namespace cudahost {

inline void before_atomic(const void *operand) {
    if (!self.current) return;
    if (self.current->fenced) publish(operand);
    self.current->fenced = false;
    self.current->touched = operand;
}

inline void fence() {
    if (!self.current) return;
    if (self.current->touched) observe(self.current->touched);
    self.current->fenced = true;
}

template <class T> struct BitsOf { typedef T type; };
template <> struct BitsOf<float> { typedef uint32_t type; };
template <> struct BitsOf<double> { typedef uint64_t type; };

// Replaces *p by change(*p); what it was before is returned.
template <class T, class Change> T atomic_change(T *p, Change change) {
    typedef typename BitsOf<T>::type Bits;
    Bits before, after;
    T value;
    before_atomic(p);
    before = __atomic_load_n((Bits *)p, __ATOMIC_RELAXED);
    do {
        memcpy(&value, &before, sizeof value);
        T next = change(value);
        memcpy(&after, &next, sizeof next);
    } while (!__atomic_compare_exchange_n((Bits *)p, &before, after, false, __ATOMIC_RELAXED,
                                          __ATOMIC_RELAXED));
    return value;
}

template <class T> T larger(T a, T b) { return b > a ? b : a; }
template <class T> T smaller(T a, T b) { return b < a ? b : a; }

} // namespace cudahost

#define CUDAHOST_ATOMIC(name, type, expression)                                     \
    inline type name(type *p, type v) {                                             \
        return cudahost::atomic_change(p, [v](type old) -> type { return expression; }); \
    }
CUDAHOST_ATOMIC(atomicAdd, float, old + v)
CUDAHOST_ATOMIC(atomicAdd, double, old + v)
CUDAHOST_ATOMIC(atomicAdd, int, (int)((unsigned)old + (unsigned)v))
CUDAHOST_ATOMIC(atomicAdd, unsigned, old + v)
CUDAHOST_ATOMIC(atomicAdd, unsigned long long, old + v)
CUDAHOST_ATOMIC(atomicSub, int, (int)((unsigned)old - (unsigned)v))
CUDAHOST_ATOMIC(atomicSub, unsigned, old - v)
CUDAHOST_ATOMIC(atomicMax, int, cudahost::larger(old, v))
CUDAHOST_ATOMIC(atomicMax, unsigned, cudahost::larger(old, v))
CUDAHOST_ATOMIC(atomicMin, int, cudahost::smaller(old, v))
CUDAHOST_ATOMIC(atomicMin, unsigned, cudahost::smaller(old, v))
CUDAHOST_ATOMIC(atomicAnd, unsigned, old & v)
CUDAHOST_ATOMIC(atomicOr, int, old | v)
CUDAHOST_ATOMIC(atomicOr, unsigned, old | v)
CUDAHOST_ATOMIC(atomicInc, unsigned, old >= v ? 0 : old + 1)
CUDAHOST_ATOMIC(atomicExch, float, ((void)old, v))
CUDAHOST_ATOMIC(atomicExch, int, ((void)old, v))
CUDAHOST_ATOMIC(atomicExch, unsigned, ((void)old, v))
#undef CUDAHOST_ATOMIC
inline int atomicCAS(int *p, int expected, int next) {
    return cudahost::atomic_change(p, [=](int old) { return old == expected ? next : old; });
}
inline unsigned atomicCAS(unsigned *p, unsigned expected, unsigned next) {
    return cudahost::atomic_change(p, [=](unsigned old) { return old == expected ? next : old; });
}
inline void __threadfence() { cudahost::fence(); }
inline void __threadfence_block() { cudahost::fence(); }
inline void __threadfence_system() { cudahost::fence(); }

// >>arithmetic

template <class T> T __ldg(const T *p) { return *p; }
template <class T> T __ldcg(const T *p) { return *p; }
template <class T> T __ldcs(const T *p) { return *p; }
template <class T> void __stcg(T *p, T value) { *p = value; }
template <class T> void __stcs(T *p, T value) { *p = value; }

inline int min(int a, int b) { return b < a ? b : a; }
inline int max(int a, int b) { return b > a ? b : a; }
inline unsigned min(unsigned a, unsigned b) { return b < a ? b : a; }
inline unsigned max(unsigned a, unsigned b) { return b > a ? b : a; }
inline long min(long a, long b) { return b < a ? b : a; }
inline long max(long a, long b) { return b > a ? b : a; }
inline unsigned long min(unsigned long a, unsigned long b) { return b < a ? b : a; }
inline unsigned long max(unsigned long a, unsigned long b) { return b > a ? b : a; }
inline long long min(long long a, long long b) { return b < a ? b : a; }
inline long long max(long long a, long long b) { return b > a ? b : a; }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) {
    volatile float product = x * y;  // keeps the compiler from fusing it with an addition
    return product;
}
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1 / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __saturatef(float x) { return x > 0 ? fminf(x, 1) : 0; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }

#define CUDAHOST_REINTERPRET(name, from, to) \
    inline to name(from value) {             \
        to bits;                             \
        memcpy(&bits, &value, sizeof bits);  \
        return bits;                         \
    }
CUDAHOST_REINTERPRET(__float_as_int, float, int)
CUDAHOST_REINTERPRET(__float_as_uint, float, unsigned)
CUDAHOST_REINTERPRET(__int_as_float, int, float)
CUDAHOST_REINTERPRET(__uint_as_float, unsigned, float)
#undef CUDAHOST_REINTERPRET
#endif
