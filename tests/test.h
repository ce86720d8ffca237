/* The harness of all tests: include it after pipemlp.h.
       TEST(sum) { CHECK(1 + 1 == 2, "got %d", 1 + 1); SAY("sums, %s", test_count(1)); }
       int main(void) { test_begin("arithmetic"); RUN(sum); return test_end(); }
   prints `ok   arithmetic: sums, 1`, then `1 passed, 0 failed`. Exit status 1: a check failed, a
   test checked nothing or hung, or nothing ran. PMLP_TEST_QUICK=1 in the environment asks for
   smaller loops (sanitizers, valgrind). */
#ifndef PMLP_TEST_H
#define PMLP_TEST_H
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

#ifdef _WIN32 /* mingw: no alarm(); whoever runs the tests there has a limit of his own */
#  define TEST_FORMAT __MINGW_PRINTF_FORMAT
enum { SIGALRM = SIGABRT };
static inline unsigned alarm(unsigned seconds) { return seconds; }
#else
#  define TEST_FORMAT printf
#endif

enum { TEST_PRINTED = 8, TEST_HANG_SECONDS = 600 }; /* failures shown per test; longest test */
static struct {
    const char *file, *name;
    char said[256];
    long checks, bad, passed, failed;
} test_run;

#define TEST(name) static void test_##name(void)
#define RUN(name) test_one(#name, test_##name)
/* In a main(argc, argv): only the tests whose names are given, or all. */
#define RUN_IF_ASKED(name) do if (test_asked(argc, argv, #name)) RUN(name); while (0)
/* Counts; prints file, line and the format's values if cond is false. Its value is cond. */
#define CHECK(cond, ...) test_check(!!(cond), __FILE__, __LINE__, #cond, __VA_ARGS__)
/* What the test checked, for its line of output. */
#define SAY(...) ((void)snprintf(test_run.said, sizeof test_run.said, __VA_ARGS__))
static inline bool test_asked(int argc, char **argv, const char *name) {
    bool found = argc < 2;
    for (int i = 1; i < argc; i++) found = found || strcmp(argv[i], name) == 0;
    return found;
}
static inline bool test_quick(void) {
    const char *quick = getenv("PMLP_TEST_QUICK");
    return quick && *quick && *quick != '0';
}
static inline double test_seconds(void) { /* gettimeofday: strict C99 hides clock_gettime */
    struct timeval now;
    return gettimeofday(&now, NULL), (double)now.tv_sec + 1e-6 * (double)now.tv_usec;
}
static inline const char *test_count(long n) { /* "1,234"; up to 8 of them in one SAY */
    static char text[8][32];
    static unsigned next;
    char *out = text[next++ & 7];
    if (n < 1000) return snprintf(out, 32, "%ld", n), out;
    if (n < 1000000) return snprintf(out, 32, "%ld,%03ld", n / 1000, n % 1000), out;
    return snprintf(out, 32, "%ld,%03ld,%03ld", n / 1000000, n / 1000 % 1000, n % 1000), out;
}
__attribute__((format(TEST_FORMAT, 5, 6))) /* gcc and clang; nothing else builds the tests */
static inline bool test_check(bool ok, const char *file, int line, const char *cond,
                              const char *format, ...) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* checks of several threads */
    pthread_mutex_lock(&lock);
    test_run.checks++;
    bool silent = ok || test_run.bad++ >= TEST_PRINTED;
    pthread_mutex_unlock(&lock);
    if (silent) return ok;
    va_list args;
    va_start(args, format);
    printf("%s:%d: not (%s): ", file, line, cond);
    vprintf(format, args);
    printf("\n");
    return va_end(args), ok;
}
static inline void test_hangs(int sig) { /* only what a signal handler may call */
    ssize_t written = write(2, "FAIL: this test hangs: ", 23);
    written += write(2, test_run.name, strlen(test_run.name));
    _exit(written + write(2, "\n", 1) > 0 ? 1 : sig);
}
static inline void test_begin(const char *file) {
    test_run.file = file, signal(SIGALRM, test_hangs);
    setvbuf(stdout, NULL, _IOLBF, BUFSIZ); /* a crash must not swallow what came before it */
}
static inline void test_one(const char *name, void (*body)(void)) {
    test_run.name = name, test_run.checks = test_run.bad = 0, SAY("%s", name);
    alarm(TEST_HANG_SECONDS);
    body();
    alarm(0);
    bool ok = test_run.bad == 0 && test_run.checks > 0;
    *(ok ? &test_run.passed : &test_run.failed) += 1;
    printf("%s %s: %s", ok ? "ok  " : "FAIL", test_run.file, test_run.said);
    if (!ok) printf(" [%s: %ld of %ld checks failed]", name, test_run.bad, test_run.checks);
    printf("\n");
}
static inline int test_end(void) {
    const char *set = test_quick() ? " (quick set)" : "";
    printf("%ld passed, %ld failed%s\n", test_run.passed, test_run.failed, set);
    return test_run.failed > 0 || test_run.passed == 0;
}
/* splitmix64: the same numbers on every machine; the state is any number. */
static inline uint64_t test_random(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
static inline double test_uniform(uint64_t *state, double low, double high) {
    return low + (high - low) * ((double)(test_random(state) >> 11) / 9007199254740992.0);
}
/* An allocator that counts and can fail; set it up with test_memory_init(). */
typedef struct test_memory {
    pmlp_allocator allocator;    /* hand this out */
    pthread_mutex_t lock;
    long calls, blocks, fail_at; /* alloc() so far; blocks alive; call (from 1) that fails, or 0 */
    bool fail_on;                /* all calls after it fail too */
    size_t bytes, peak;          /* alive; most ever */
} test_memory;
typedef union test_block { size_t bytes; long double align[2]; } test_block; /* before each */
static inline void *test_alloc(size_t bytes, void *user) {
    test_memory *m = user;
    test_block *block = malloc(sizeof *block + bytes);
    pthread_mutex_lock(&m->lock);
    m->calls++;
    bool fail = !block || m->calls == m->fail_at || (m->fail_on && m->calls > m->fail_at);
    if (!fail) m->blocks++, m->bytes += bytes, m->peak = m->bytes > m->peak ? m->bytes : m->peak;
    pthread_mutex_unlock(&m->lock);
    if (fail) return free(block), NULL;
    block->bytes = bytes;
    return memset(block + 1, 0xA5, bytes); /* so that nobody relies on zeros */
}
static inline void test_free(void *pointer, void *user) {
    test_memory *m = user;
    test_block *block = (test_block *)pointer - 1;
    pthread_mutex_lock(&m->lock);
    m->blocks--, m->bytes -= block->bytes;
    pthread_mutex_unlock(&m->lock);
    free(block);
}
static inline void test_memory_init(test_memory *m, long fail_at) {
    memset(m, 0, sizeof *m);
    m->fail_at = fail_at, m->allocator.user = m;
    m->allocator.alloc = test_alloc, m->allocator.free = test_free;
    pthread_mutex_init(&m->lock, NULL);
}
#endif
