/* What one core of this machine can do: arithmetic from registers, and bytes to and from each level
   of memory. Everything that is measured here is a median of several tries. */
#ifndef PMLP_MACHINE_H
#define PMLP_MACHINE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static inline double machine_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static inline int machine_less(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Of v [n], which it sorts. */
static inline double machine_median(double *v, size_t n) {
    qsort(v, n, sizeof *v, machine_less);
    return n == 0 ? 0 : n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

/* --- loops: the widest instructions that this machine has ------------------------------------- */

/* fma: ACC chains of multiply-adds that never leave the registers. read: sums n floats. copy: reads
   n floats and writes n others. All n are multiples of 16 LANES. */
#define MACHINE_DEFINE(NAME, TARGET, VEC, LANES, ACC, SPLAT, LOAD, STORE, ADD, FMA)                \
    enum { machine_flops_##NAME = 2 * LANES * ACC };                                               \
    TARGET static float machine_fma_##NAME(long times) {                                           \
        const VEC a = SPLAT(0.999f), b = SPLAT(0.001f);                                            \
        VEC s[ACC];                                                                                \
        float out[LANES];                                                                          \
        MACHINE_UNROLL for (int i = 0; i < ACC; i++) s[i] = SPLAT((float)i);                       \
        for (; times > 0; times--) MACHINE_UNROLL for (int i = 0; i < ACC; i++)                    \
            s[i] = FMA(s[i], a, b);                                                                \
        MACHINE_UNROLL for (int i = 1; i < ACC; i++) s[0] = ADD(s[0], s[i]);                       \
        STORE(out, s[0]);                                                                          \
        return out[0];                                                                             \
    }                                                                                              \
    TARGET static float machine_read_##NAME(size_t n, const float *x) {                            \
        VEC s[8];                                                                                  \
        float out[LANES];                                                                          \
        MACHINE_UNROLL for (int i = 0; i < 8; i++) s[i] = SPLAT(0.0f);                             \
        for (size_t at = 0; at < n; at += 8 * LANES) MACHINE_UNROLL for (int i = 0; i < 8; i++)    \
            s[i] = ADD(s[i], LOAD(x + at + i * LANES));                                            \
        MACHINE_UNROLL for (int i = 1; i < 8; i++) s[0] = ADD(s[0], s[i]);                         \
        STORE(out, s[0]);                                                                          \
        return out[0];                                                                             \
    }                                                                                              \
    TARGET static void machine_copy_##NAME(size_t n, const float *x, float *y) {                   \
        for (size_t at = 0; at < n; at += 8 * LANES) MACHINE_UNROLL for (int i = 0; i < 8; i++)    \
            STORE(y + at + i * LANES, LOAD(x + at + i * LANES));                                   \
    }
#if defined(__clang__)
#  define MACHINE_UNROLL _Pragma("clang loop unroll(full)")
#else
#  define MACHINE_UNROLL _Pragma("GCC unroll 16")
#endif

#define MACHINE_SPLAT1(x) (x)
#define MACHINE_LOAD1(p) (*(p))
#define MACHINE_STORE1(p, v) (*(p) = (v))
#define MACHINE_ADD1(a, b) ((a) + (b))
#define MACHINE_FMA1(a, b, c) ((a) * (b) + (c))
MACHINE_DEFINE(plain, , float, 1, 16, MACHINE_SPLAT1, MACHINE_LOAD1, MACHINE_STORE1, MACHINE_ADD1,
               MACHINE_FMA1)
#if defined(__x86_64__)
#include <immintrin.h>
MACHINE_DEFINE(avx2, __attribute__((target("avx2,fma"))), __m256, 8, 12, _mm256_set1_ps,
               _mm256_loadu_ps, _mm256_storeu_ps, _mm256_add_ps, _mm256_fmadd_ps)
MACHINE_DEFINE(avx512, __attribute__((target("avx512f"))), __m512, 16, 16, _mm512_set1_ps,
               _mm512_loadu_ps, _mm512_storeu_ps, _mm512_add_ps, _mm512_fmadd_ps)
#elif defined(__aarch64__)
#include <arm_neon.h>
#define MACHINE_NEON_FMA(a, b, c) vfmaq_f32(c, a, b)
MACHINE_DEFINE(neon, , float32x4_t, 4, 16, vdupq_n_f32, vld1q_f32, vst1q_f32, vaddq_f32,
               MACHINE_NEON_FMA)
#endif

typedef struct machine_loops {
    const char *isa;
    double flops; /* of one turn of fma */
    float (*fma)(long times);
    float (*read)(size_t n, const float *x);
    void (*copy)(size_t n, const float *x, float *y);
} machine_loops;

#define MACHINE_LOOPS(NAME)                                                                        \
    {#NAME, machine_flops_##NAME, machine_fma_##NAME, machine_read_##NAME, machine_copy_##NAME}

static inline const machine_loops *machine_best(void) {
    static const machine_loops plain = MACHINE_LOOPS(plain);
#if defined(__x86_64__)
    static const machine_loops avx2 = MACHINE_LOOPS(avx2), avx512 = MACHINE_LOOPS(avx512);
    if (__builtin_cpu_supports("avx512f")) return &avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &avx2;
#elif defined(__aarch64__)
    static const machine_loops neon = MACHINE_LOOPS(neon);
    return &neon;
#endif
    return &plain;
}

/* --- what is measured ------------------------------------------------------------------------- */

enum { MACHINE_TRIES = 9, MACHINE_LEVELS = 4 };

/* FLOP/s of the multiply-adds of one core, about 2 ms of them. */
static inline double machine_flops_now(void) {
    const machine_loops *loops = machine_best();
    volatile float keep;
    double begin;
    long times = 1000;
    do { /* also warms up what runs slower at first */
        times *= 2;
        begin = machine_seconds();
        keep = loops->fma(times);
    } while (machine_seconds() - begin < 1e-3);
    begin = machine_seconds();
    keep = loops->fma(2 * times);
    (void)keep;
    return 2 * (double)times * loops->flops / (machine_seconds() - begin);
}

static inline double machine_peak(void) {
    double tries[MACHINE_TRIES];
    for (int i = 0; i < MACHINE_TRIES; i++) tries[i] = machine_flops_now();
    return machine_median(tries, MACHINE_TRIES);
}

typedef struct machine_level {
    const char *name;
    size_t size;  /* of the cache, bytes; of the memory, none */
    size_t bytes; /* that were used to measure: */
    double read, copy; /* bytes per second; copy counts what is read and what is written */
} machine_level;

/* A line of what Linux tells of the first core's caches; "" if it does not. */
static inline void machine_cache_text(int index, const char *name, char text[32]) {
    char path[96];
    FILE *file;
    text[0] = 0;
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/%s", index, name);
    if (!(file = fopen(path, "r"))) return;
    if (!fgets(text, 32, file)) text[0] = 0;
    fclose(file);
}

/* Bytes of the cache of a level, or a guess. */
static inline size_t machine_cache(int level) {
    const size_t guess[] = {32u << 10, 1u << 20, 16u << 20};
    char text[32], *unit;
    for (int index = 0; index < 8; index++) {
        machine_cache_text(index, "level", text);
        if (atoi(text) != level) continue;
        machine_cache_text(index, "type", text);
        if (text[0] == 'I') continue; /* for instructions */
        machine_cache_text(index, "size", text);
        const size_t size = strtoul(text, &unit, 10);
        if (size > 0) return size << (*unit == 'K' ? 10 : *unit == 'M' ? 20 : 0);
    }
    return guess[level - 1];
}

/* Bytes per second of reading, or of copying one half of the `bytes` over the other. */
static inline double machine_bytes_now(float *memory, size_t bytes, bool copy) {
    const machine_loops *loops = machine_best();
    const size_t n = bytes / sizeof *memory;
    volatile float keep = 0;
    long times = 1, i;
    for (;; times *= 2) { /* the first turn warms up */
        const double begin = machine_seconds();
        for (i = 0; i < times; i++) {
            if (copy) loops->copy(n / 2, memory, memory + n / 2);
            else keep = loops->read(n, memory);
        }
        const double seconds = machine_seconds() - begin;
        if (times > 1 && seconds > 2e-3) return (double)bytes * (double)times / seconds;
    }
    (void)keep;
}

/* Working sets of half a cache, but of the third not more than 8 times the second, since it may be
   shared by many; for the memory twice the last one, but not more than 512 MiB. False: not enough
   memory. */
static inline bool machine_levels(machine_level level[MACHINE_LEVELS]) {
    static const char *const names[MACHINE_LEVELS] = {"L1", "L2", "L3", "memory"};
    double tries[MACHINE_TRIES];
    float *memory;
    for (int i = 0; i < MACHINE_LEVELS; i++) {
        const size_t below = i > 0 ? level[i - 1].size : 0;
        level[i].name = names[i];
        level[i].size = i < 3 ? machine_cache(i + 1) : 0;
        level[i].bytes = i < 3 ? level[i].size / 2 : 2 * below;
        if (i == 2 && level[i].bytes > 8 * below) level[i].bytes = 8 * below;
        if (level[i].bytes > 512u << 20) level[i].bytes = 512u << 20;
        level[i].bytes &= ~(size_t)4095;
    }
    memory = (float *)aligned_alloc(4096, level[MACHINE_LEVELS - 1].bytes);
    if (!memory) return false;
    memset(memory, 0, level[MACHINE_LEVELS - 1].bytes);
    for (int i = 0; i < MACHINE_LEVELS; i++)
        for (int copy = 0; copy < 2; copy++) {
            for (int t = 0; t < MACHINE_TRIES; t++)
                tries[t] = machine_bytes_now(memory, level[i].bytes, copy == 1);
            *(copy ? &level[i].copy : &level[i].read) = machine_median(tries, MACHINE_TRIES);
        }
    free(memory);
    return true;
}

/* The machine-readable lines for both. */
static inline void machine_print(double peak, const machine_level level[MACHINE_LEVELS]) {
    printf("peak isa=%s gflops=%.1f\n", machine_best()->isa, 1e-9 * peak);
    for (int i = 0; i < MACHINE_LEVELS; i++)
        for (int copy = 0; copy < 2; copy++)
            printf("bandwidth level=%s op=%s bytes=%zu gb_per_s=%.1f\n", level[i].name,
                   copy ? "copy" : "read", level[i].bytes,
                   1e-9 * (copy ? level[i].copy : level[i].read));
}
#endif
