// cudahost_fiber.h - threads of execution that take turns on one operating system thread, each
// with a stack of its own. Every CUDA thread that has to wait for another runs on one. To the
// thread sanitizer each fiber is a thread, and switching orders nothing: only barriers do.
#ifndef CUDAHOST_FIBER_H
#define CUDAHOST_FIBER_H
#include "cudahost_core.h"
#include <sys/mman.h>
#ifdef CUDAHOST_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__x86_64__) && !defined(CUDAHOST_UCONTEXT)
#define CUDAHOST_ASM 1
#else
#include <ucontext.h>
#endif

namespace cudahost {

// Where execution can be taken up again.
struct Context {
#ifdef CUDAHOST_ASM
    void *top = nullptr;
#else
    ucontext_t saved;
#endif
    Context *home = nullptr;      // of a fiber: the scheduler, which it goes back to
    const void *stack = nullptr;  // lowest address, and size
    size_t bytes = 0;
    void *fake = nullptr;         // the address sanitizer's
    void *tsan = nullptr;         // the thread sanitizer's
};

#ifdef CUDAHOST_ASM
// Saves what the calling convention wants kept, and continues on the other stack. swapcontext()
// would do, but asks the system for the signal mask twice.
extern "C" void cudahost_switch(void **save, void *load);
asm(R"(
    .pushsection .text
    .weak cudahost_switch
    .type cudahost_switch, @function
cudahost_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
    .size cudahost_switch, .-cudahost_switch
    .popsection
)");
#endif

// What the address sanitizer wants to hear on arrival; it tells where we came from.
inline void arrive(Context *here) {
#ifdef CUDAHOST_ASAN
    const void *stack;
    size_t bytes;
    __sanitizer_finish_switch_fiber(here->fake, &stack, &bytes);
    if (!here->home) return;
    here->home->stack = stack;
    here->home->bytes = bytes;
#else
    (void)here;
#endif
}

// Leaves `from`, which a later switch may come back to.
CUDAHOST_UNSEEN inline void switch_context(Context *from, Context *to) {
#ifdef CUDAHOST_ASAN
    __sanitizer_start_switch_fiber(&from->fake, to->stack, to->bytes);
#endif
#ifdef CUDAHOST_TSAN
    __tsan_switch_to_fiber(to->tsan, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef CUDAHOST_ASM
    cudahost_switch(&from->top, to->top);
#else
    swapcontext(&from->saved, &to->saved);
#endif
    arrive(from);
}

struct Block;

void fiber_main();

// One stack and, while a kernel runs, the CUDA thread that lives on it.
struct Fiber {
    enum { STACK = 256 << 10 };
    Context own;
    void (*entry)(Fiber *) = nullptr;
    Block *block = nullptr;
    unsigned rank = 0;              // of its CUDA thread in the block
    bool broken = false;            // it was left in the middle and cannot be used again
    const void *touched = nullptr;  // last atomic operand, for __threadfence()
    bool fenced = false;            // a fence since the last atomic

    Fiber();
    ~Fiber() {
#ifdef CUDAHOST_TSAN
        __tsan_destroy_fiber(own.tsan);
#endif
#ifdef CUDAHOST_ASAN
        __asan_unpoison_memory_region(own.stack, own.bytes);
#endif
        munmap(const_cast<void *>(own.stack), own.bytes);
    }
    Fiber(const Fiber &) = delete;
    Fiber &operator=(const Fiber &) = delete;

    // Runs the fiber until it waits or ends; called by the scheduler.
    void resume(Context *scheduler) {
        own.home = scheduler;
        switch_context(scheduler, &own);
    }
    // Back to the scheduler; called on the fiber.
    void leave() { switch_context(&own, own.home); }
};

// The first frame of every fiber, which is never left. It may find itself on another operating
// system thread each time round, so it keeps nothing thread-local.
CUDAHOST_UNSEEN inline void fiber_main() {
    Fiber *fiber = self.starting;
    arrive(&fiber->own);
    for (;;) {
        fiber->entry(fiber);
        fiber->leave();
    }
}

inline Fiber::Fiber() {
    void *memory = mmap(nullptr, STACK, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) abort();
    own.stack = memory;
    own.bytes = STACK;
#ifdef CUDAHOST_TSAN
    own.tsan = __tsan_create_fiber(0);
#endif
#ifdef CUDAHOST_ASM
    void **top = (void **)((char *)memory + STACK);
    *--top = nullptr;  // as if called, so that the stack is aligned and ends somewhere
    *--top = (void *)fiber_main;
    for (int saved = 0; saved < 6; saved++) *--top = nullptr;
    own.top = top;
#else
    getcontext(&own.saved);
    own.saved.uc_stack.ss_sp = memory;
    own.saved.uc_stack.ss_size = STACK;
    own.saved.uc_link = nullptr;
    makecontext(&own.saved, fiber_main, 0);
#endif
}

// The fibers of one stream. They are never lent to another stream: what a fiber has seen orders
// what it does next, and would order the streams.
class Crew {
    std::deque<std::unique_ptr<Fiber>> fibers;

  public:
    enum { MOST = 7500 };  // the thread sanitizer knows about 8,000 threads, fibers included
    static Relaxed<int> &everywhere() {
        static Relaxed<int> count;
        return count;
    }
    Crew() {}
    ~Crew() {
        Quiet quiet;
        everywhere().add(-(int)fibers.size());
        fibers.clear();
    }

    // False if that would be more fibers than the thread sanitizer can bear.
    bool grow(size_t count) {
        Quiet quiet;
#ifdef CUDAHOST_TSAN
        if (count > fibers.size() && everywhere().get() + (int)(count - fibers.size()) > MOST)
            return false;
#endif
        while (fibers.size() < count) {
            fibers.emplace_back(new Fiber);
            everywhere().add(1);
        }
        return true;
    }
    Fiber *peek(size_t i) { return fibers[i].get(); }
    // One that can start anew.
    Fiber *get(size_t i) {
        if (fibers[i]->broken) fibers[i].reset(new Fiber);
        return fibers[i].get();
    }
};

} // namespace cudahost
#endif
