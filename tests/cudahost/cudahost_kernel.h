// cudahost_kernel.h - runs kernels. The threads of a block take turns on the stream's thread. A
// CUDA thread that never waits is a plain call; one that does gets a fiber to wait on.
#ifndef CUDAHOST_KERNEL_H
#define CUDAHOST_KERNEL_H
#include "cudahost_stream.h"
#include <link.h>
#include <tuple>
#include <type_traits>

namespace cudahost {

enum {
    WARP = 32,
    MOST_THREADS = 1024,
    THREADS_PER_SM = 2048,
    BLOCKS_PER_SM = 32,
    SHARED_DEFAULT = 48 << 10,  // what a kernel may have without asking
    SHARED_MOST = 227 << 10,
    SHARED_RESERVED = 1 << 10,
    SHARED_PER_SM = 228 << 10
};

// >>shared
// __shared__ variables are thread-local ones, because one operating system thread runs a whole
// block. clang puts them into a section of their own, whose ends the linker names, in the image
// that each thread's copy is made from; the same distance into this thread's copy they lie. gcc
// does not, for templates, so there all that the program has of thread-local variables is taken
// for shared, except for our own: the threads of streams run nothing but kernels.

extern "C" char __start_cudahost_shared[] __attribute__((weak));
extern "C" char __stop_cudahost_shared[] __attribute__((weak));

inline int find_shared(struct dl_phdr_info *module, size_t, void *) {
    for (int i = 0; i < module->dlpi_phnum; i++) {
        const ElfW(Phdr) &segment = module->dlpi_phdr[i];
        char *copy = (char *)module->dlpi_tls_data;
        uintptr_t own = (uintptr_t)&self - (uintptr_t)copy;
        if (segment.p_type != PT_TLS || own >= segment.p_memsz) continue;  // another library's
#ifdef __clang__
        char *image = (char *)module->dlpi_addr + segment.p_vaddr;
        self.shared = copy + (__start_cudahost_shared - image);
        self.shared_bytes = (size_t)(__stop_cudahost_shared - __start_cudahost_shared);
#else
        self.shared = copy;
        self.shared_bytes = segment.p_memsz;
#endif
        return 1;
    }
    return 0;
}

// Calls visit(start, bytes) for each stretch of shared variables.
template <class Visit> void each_shared(Visit visit) {
    if (!self.shared) dl_iterate_phdr(find_shared, nullptr);
    char *end = self.shared + self.shared_bytes, *own = (char *)&self;
    asm("" : "+r"(own));  // the compiler need not know that we leave the object
    if (own < self.shared || own >= end) {
        visit(self.shared, self.shared_bytes);
        return;
    }
    visit(self.shared, (size_t)(own - self.shared));
    visit(own + sizeof self, (size_t)(end - own) - sizeof self);
}

// As fresh memory, they read as NaN when a block begins.
inline void fill_shared() {
    each_shared([](char *start, size_t bytes) {
        if (bytes) memset(start, 0xFF, bytes);
    });
}

inline bool touched_shared() {
    bool touched = false;
    each_shared([&touched](char *start, size_t bytes) {
        for (size_t i = 0; i < bytes; i++) touched |= start[i] != (char)0xFF;
    });
    return touched;
}

// >>blocks

struct Grid;

// Threads that wait for each other, and two places for order, used in turn: nobody comes to the
// next but one meeting before all have left this one.
struct Meeting {
    std::vector<Fiber *> waiting;
    unsigned arrived = 0, generation = 0;
    char order[2] = {0, 0};
};

enum WarpCall { NoCall, SyncWarp, Shuffle, Vote };

// Several calls may be under way in one warp, with different masks.
struct WarpMeeting {
    WarpCall call = NoCall;
    unsigned mask = 0, arrived = 0;
    Meeting meeting;
};

struct Warp {
    unsigned alive = 0;              // lanes that have not returned
    unsigned under_way = 0;          // meetings that somebody waits in
    WarpMeeting meetings[WARP];
    uint64_t value[WARP], result[WARP];
    int source[WARP];                // whose value a lane asked for; -1: its own
};

struct Block {
    uint3 index;
    dim3 threads, blocks;
    unsigned count = 0, alive = 0, started = 0, first = 0;
    Grid *grid = nullptr;
    char *dynamic = nullptr;
    std::vector<Warp> warps;
    Meeting barrier;
    int votes = 0, verdict = 0;      // of __syncthreads_count() and its like
    bool at_grid_barrier = false;
    std::deque<Fiber *> ready;
    Context scheduler;
    Crew *crew = nullptr;
    size_t crew_start = 0, crew_size = 0, crew_next = 0;  // its part of the crew; used in turn
    const std::function<void()> *body = nullptr;
    cudaError_t error = cudaSuccess;
    const char *error_text = "";
};

// All blocks of one launch.
struct Grid {
    const char *name;
    dim3 blocks, threads;
    size_t bytes;
    bool cooperative;
    std::mutex lock;                 // of the grid barrier
    std::condition_variable changed;
    unsigned count = 0, arrived = 0, ended = 0, generation = 0;  // blocks
    bool failed = false;
    char order[2] = {0, 0};
    char begin = 0, end = 0;         // published before the first and after each thread
    bool chained = false;            // each block comes after the one before it
};

inline uint3 unravel(unsigned i, dim3 size) {
    return uint3{i % size.x, i / size.x % size.y, i / size.x / size.y};
}

// Makes the CUDA thread on this fiber the one that threadIdx and the like speak of.
inline void become(Fiber *fiber) {
    self.current = fiber;
    self.thread = unravel(fiber->rank, fiber->block->threads);
}

// >>waiting
// All of it is bookkeeping, which threads of a block share without order: Quiet, but for the
// promises of the barriers.

enum Arrival { GoOn, Wait, Fail };

inline void release_all(Block *block, Meeting &meeting) {
    for (Fiber *fiber : meeting.waiting) block->ready.push_back(fiber);
    meeting.waiting.clear();
    meeting.arrived = 0;
    meeting.generation++;
}

inline Arrival fail_block(Block *block, cudaError_t error, const char *text) {
    Quiet quiet;
    block->error = error;
    block->error_text = text;
    return Fail;
}

// Gives the turn to others. A thread of a block that has failed never comes back.
inline void act_on(Arrival arrival) {
    if (arrival == GoOn) return;
    Fiber *fiber = self.current;
    fiber->leave();
    Quiet quiet;
    become(fiber);
}

// Ends the whole kernel with an error.
[[noreturn]] inline void die(cudaError_t error, const char *text) {
    act_on(fail_block(self.current->block, error, text));
    abort();
}

// The last thread of a block to come here waits for the other blocks, and its block with it.
// False if they do not come.
inline bool meet_blocks(Grid &grid) {
    std::unique_lock<std::mutex> hold(grid.lock);
    unsigned mine = grid.generation;
    if (++grid.arrived == grid.count) {
        grid.arrived = 0;
        grid.generation++;
        grid.changed.notify_all();
        return true;
    }
    if (grid.arrived + grid.ended == grid.count) grid.failed = true;
    grid.changed.notify_all();
    bool came = wait_until(hold, grid.changed, std::string("grid barrier of ") + grid.name,
                           [&] { return grid.failed || grid.generation != mine; });
    return came && !grid.failed;
}

inline Arrival complete_barrier(Block *block) {
    bool whole_grid = block->at_grid_barrier;
    block->verdict = block->votes;
    block->votes = 0;
    block->at_grid_barrier = false;
    if (whole_grid && !meet_blocks(*block->grid))
        return fail_block(block, cudaErrorLaunchTimeout,
                          "not every block came to the grid barrier");
    release_all(block, block->barrier);
    return GoOn;
}

inline Arrival come_to_barrier(Block *block, bool vote, bool whole_grid) {
    Quiet quiet;
    block->votes += vote;
    block->at_grid_barrier |= whole_grid;
    if (++block->barrier.arrived == block->alive) return complete_barrier(block);
    block->barrier.waiting.push_back(self.current);
    return Wait;
}

inline char *place(char *order, const unsigned &generation) {
    Quiet quiet;
    return order + (generation & 1);
}

// __syncthreads(): waits for all threads of the block that have not returned.
inline int block_barrier(bool vote = false) {
    Block *block = self.current->block;
    char *order = place(block->barrier.order, block->barrier.generation);
    publish(order);
    act_on(come_to_barrier(block, vote, false));
    observe(order);
    Quiet quiet;
    return block->verdict;
}

inline void grid_barrier() {
    Block *block = self.current->block;
    Grid *grid = block->grid;
    if (!grid->cooperative)
        die(cudaErrorLaunchFailure, "grid barrier in a kernel that was not launched for it");
    char *order = place(grid->order, grid->generation);
    publish(order);
    act_on(come_to_barrier(block, false, true));
    observe(order);
}

// >>warps

inline unsigned lane_of(const Fiber *fiber) { return fiber->rank % WARP; }
inline Warp &warp_of(const Fiber *fiber) { return fiber->block->warps[fiber->rank / WARP]; }

// Everybody who is expected has come: works out what each gets.
inline void complete_warp(Block *block, Warp &warp, WarpMeeting &meeting) {
    unsigned ballot = 0;
    for (unsigned lane = 0; lane < WARP; lane++)
        if (meeting.arrived >> lane & 1 && warp.value[lane]) ballot |= 1u << lane;
    for (unsigned lane = 0; lane < WARP; lane++) {
        if (!(meeting.arrived >> lane & 1)) continue;
        int source = warp.source[lane];
        if (meeting.call == Vote) warp.result[lane] = ballot;
        else if (source < 0) warp.result[lane] = warp.value[lane];
        else if (meeting.arrived >> source & 1) warp.result[lane] = warp.value[source];
        else warp.result[lane] = ~(uint64_t)0;  // that lane takes no part: undefined
    }
    meeting.call = NoCall;
    meeting.arrived = 0;
    warp.under_way--;
    release_all(block, meeting.meeting);
}

// The meeting with this mask that is under way, or a free one. There are enough: each that is
// under way has a lane waiting in it.
inline WarpMeeting *warp_meeting(Warp &warp, unsigned mask) {
    Quiet quiet;
    WarpMeeting *unused = nullptr;
    for (WarpMeeting &meeting : warp.meetings) {
        if (meeting.call != NoCall && meeting.mask == mask) return &meeting;
        if (meeting.call == NoCall && !unused) unused = &meeting;
    }
    return unused;
}

inline Arrival come_to_warp(WarpMeeting &meeting, WarpCall call, unsigned mask) {
    Quiet quiet;
    Block *block = self.current->block;
    Warp &warp = warp_of(self.current);
    if (!(mask >> lane_of(self.current) & 1))
        return fail_block(block, cudaErrorLaunchFailure,
                          "a thread is not in the mask of its own warp call");
    if (meeting.call != NoCall && meeting.call != call)
        return fail_block(block, cudaErrorLaunchFailure,
                          "threads of a warp meet in different calls");
    if (meeting.call == NoCall) warp.under_way++;
    meeting.call = call;
    meeting.mask = mask;
    meeting.arrived |= 1u << lane_of(self.current);
    if (meeting.arrived == (mask & warp.alive)) {
        complete_warp(block, warp, meeting);
        return GoOn;
    }
    meeting.meeting.waiting.push_back(self.current);
    return Wait;
}

// __syncwarp(), which orders memory; the other calls of a warp do not.
inline void warp_barrier(unsigned mask) {
    WarpMeeting *meeting = warp_meeting(warp_of(self.current), mask);
    char *order = place(meeting->meeting.order, meeting->meeting.generation);
    publish(order);
    act_on(come_to_warp(*meeting, SyncWarp, mask));
    observe(order);
}

// A call that the lanes named in the mask make together, each with a value.
inline uint64_t meet_warp(WarpCall call, unsigned mask, uint64_t value, int source) {
    Warp &warp = warp_of(self.current);
    unsigned lane = lane_of(self.current);
    {
        Quiet quiet;
        warp.value[lane] = value;
        warp.source[lane] = source;
    }
    act_on(come_to_warp(*warp_meeting(warp, mask), call, mask));
    Quiet quiet;
    return warp.result[lane];
}

template <class T> T shuffle(unsigned mask, T value, int source) {
    static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle moves up to eight bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = meet_warp(Shuffle, mask, bits, source);
    memcpy(&value, &bits, sizeof value);
    return value;
}

// The lane `to` if it is in the same section of `width` lanes and in range, else -1.
inline int same_section(int to, int width) {
    int lane = (int)lane_of(self.current);
    return to / width == lane / width && to >= 0 && to < WARP ? to : -1;
}

// >>threads

// A thread that returns may be the one that others waited for.
inline void thread_returns(Fiber *fiber) {
    Quiet quiet;
    Block *block = fiber->block;
    Warp &warp = warp_of(fiber);
    warp.alive &= ~(1u << lane_of(fiber));
    block->alive--;
    if (block->alive && block->barrier.arrived == block->alive) complete_barrier(block);
    for (unsigned i = 0; i < WARP && warp.under_way; i++) {
        WarpMeeting &one = warp.meetings[i];
        if (one.arrived && one.arrived == (one.mask & warp.alive)) complete_warp(block, warp, one);
    }
}

// Takes the next thread that has not begun; false if there is none. Blocks differ in where they
// begin, so that nobody relies on the order.
inline bool take_thread(Fiber *fiber) {
    Quiet quiet;
    Block *block = fiber->block;
    if (block->started == block->count) return false;
    fiber->rank = (block->first + block->started++) % block->count;
    become(fiber);
    return true;
}

inline void run_thread(Block *block) {
    Grid *grid = block->grid;
    observe(&grid->begin);
    if (grid->chained) observe(&grid->end);
    (*block->body)();
    publish(&grid->end);
}

// Runs one thread; and, unless each has to be a thread to the sanitizer, all that follow on the
// same stack until one has to wait.
inline void fiber_runs_threads(Fiber *fiber) {
    while (take_thread(fiber)) {
        run_thread(fiber->block);
        thread_returns(fiber);
#ifdef CUDAHOST_TSAN
        break;
#endif
    }
    Quiet quiet;
    fiber->broken = false;
}

// The next fiber to continue: one that may go on, or one for a thread that has not begun.
inline Fiber *next_fiber(Block *block) {
    if (!block->ready.empty()) {
        Fiber *fiber = block->ready.front();
        block->ready.pop_front();
        return fiber;
    }
    if (block->started == block->count) return nullptr;
    Fiber *fiber = block->crew->get(block->crew_start + block->crew_next++ % block->crew_size);
    fiber->block = block;
    fiber->broken = true;  // until it has come to its end
    fiber->entry = fiber_runs_threads;
    fiber->touched = nullptr;
    fiber->fenced = false;
    return fiber;
}

// The threads that a failed kernel leaves in the middle have come to their end, too.
inline void abandon_fibers(Block *block) {
#ifdef CUDAHOST_TSAN
    for (size_t i = 0; i < block->crew_size; i++) {
        Fiber *fiber = block->crew->peek(block->crew_start + i);
        if (!fiber->broken) continue;
        __tsan_switch_to_fiber(fiber->own.tsan, __tsan_switch_to_fiber_no_sync);
        publish(&block->grid->end);
        __tsan_switch_to_fiber(block->scheduler.tsan, __tsan_switch_to_fiber_no_sync);
    }
#else
    (void)block;
#endif
}

inline void run_fibers(Block *block) {
    Quiet quiet;
#ifdef CUDAHOST_TSAN
    block->scheduler.tsan = __tsan_get_current_fiber();
#endif
    while (block->alive && !block->error) {
        Fiber *fiber = next_fiber(block);
        if (fiber) {
            self.starting = fiber;
            fiber->resume(&block->scheduler);
        } else {
            block->error = cudaErrorLaunchTimeout;
            block->error_text = "a barrier or warp call waits for threads that do not come";
        }
    }
    self.current = nullptr;
    if (block->error) abandon_fibers(block);
}

// >>launch

inline std::string geometry(const Grid &grid) {
    char text[96];
    snprintf(text, sizeof text, " <<<(%u, %u, %u), (%u, %u, %u), %zu>>>", grid.blocks.x,
             grid.blocks.y, grid.blocks.z, grid.threads.x, grid.threads.y, grid.threads.z,
             grid.bytes);
    return grid.name + std::string(text);
}

inline void set_up(Block *block, Grid &grid, unsigned number) {
    block->grid = &grid;
    block->index = unravel(number, grid.blocks);
    block->threads = grid.threads;
    block->blocks = grid.blocks;
    block->count = block->alive = grid.threads.x * grid.threads.y * grid.threads.z;
    block->first = number * 7 % block->count;
    block->warps.resize((block->count + WARP - 1) / WARP);
    for (unsigned i = 0; i < block->count; i++) block->warps[i / WARP].alive |= 1u << i % WARP;
    if (posix_memalign((void **)&block->dynamic, 256, grid.bytes ? grid.bytes : 1)) abort();
    memset(block->dynamic, 0xFF, grid.bytes);
    fill_shared();
}

inline void tear_down(Block *block, Grid &grid) {
    free(block->dynamic);
    if (touched_shared()) grid.chained = !grid.cooperative;
    if (block->error) device_fault(self.runner.device, block->error,
                                   (geometry(grid) + ": " + block->error_text).c_str());
    if (!grid.cooperative) return;
    std::lock_guard<std::mutex> hold(grid.lock);
    grid.ended++;
    // who has ended will not come to the barrier that all others wait at
    if (block->error || (grid.arrived && grid.arrived + grid.ended == grid.count))
        grid.failed = true;
    grid.changed.notify_all();
}

// Runs one block, with a part of the crew; false if the kernel has failed.
inline bool run_block(Grid &grid, unsigned number, const std::function<void()> &body, Crew *crew,
                      size_t crew_start, size_t crew_size) {
    Quiet quiet;
    std::unique_ptr<Block> block(new Block);
    set_up(block.get(), grid, number);
    block->body = &body;
    block->crew = crew;
    block->crew_start = crew_start;
    block->crew_size = crew_size;
#ifdef CUDAHOST_TSAN
    // not the same fiber for the same thread in the next block: it would hide races between them
    if (!grid.cooperative) block->crew_next = number;
#endif
    self.block = block->index;
    self.threads = block->threads;
    self.blocks = block->blocks;
    run_fibers(block.get());
    progress();
    tear_down(block.get(), grid);
    return !block->error;
}

// All blocks at once, each on a thread.
inline void run_together(Grid &grid, const std::function<void()> &body, size_t threads) {
    Runner outer = self.runner;
    std::vector<std::thread> workers;
    for (unsigned i = 0; i < grid.count; i++)
        workers.emplace_back([&grid, &body, outer, threads, i] {
            change_runner(outer);
            publish(&grid.begin);
            run_block(grid, i, body, outer.crew, i * threads, threads);
        });
    Quiet quiet;
    for (auto &worker : workers) worker.join();
}

// What a launch holds until it runs, or as long as its graph lives.
struct Kernel {
    const char *name = nullptr;
    dim3 blocks, threads;
    size_t bytes = 0;
    bool cooperative = false;
    std::function<void()> body;
    std::vector<const void *> pointers;
};

inline bool may_touch(const Kernel &kernel) {
    for (const void *pointer : kernel.pointers) {
        const char *wrong = pointer ? wrong_memory(self.runner.device, pointer, 1) : nullptr;
        if (!wrong) continue;
        char text[256];
        snprintf(text, sizeof text, "%s: argument %p is %s", kernel.name, pointer, wrong);
        device_fault(self.runner.device, cudaErrorIllegalAddress, text);
        return false;
    }
    return true;
}

// Blocks run one after the other, unless the launch is cooperative. To the thread sanitizer they
// are in no order, except in a kernel that uses __shared__ variables: those of the next block lie
// where those of the last one were.
inline void run_kernel(const Kernel &kernel) {
    if (!may_touch(kernel)) return;
    unsigned count = kernel.blocks.x * kernel.blocks.y * kernel.blocks.z;
    size_t threads = kernel.threads.x * kernel.threads.y * kernel.threads.z;
    size_t fibers = kernel.cooperative ? count * threads : threads + 1;
    if (!self.runner.crew->grow(fibers)) {
        device_fault(self.runner.device, cudaErrorLaunchOutOfResources,
                     "more fibers than the thread sanitizer can follow");
        return;
    }
    std::unique_ptr<Grid> grid(new Grid{});
    grid->name = kernel.name;
    grid->blocks = kernel.blocks;
    grid->threads = kernel.threads;
    grid->bytes = kernel.bytes;
    grid->cooperative = kernel.cooperative;
    grid->count = count;
    publish(&grid->begin);
    if (kernel.cooperative) run_together(*grid, kernel.body, threads);
    for (unsigned i = 0; i < count && !kernel.cooperative; i++)
        if (!run_block(*grid, i, kernel.body, self.runner.crew, 0, fibers)) break;
    observe(&grid->end);
}

inline int blocks_per_multiprocessor(int threads, size_t bytes) {
    if (threads <= 0 || threads > MOST_THREADS) return 0;
    int whole_warps = (threads + WARP - 1) / WARP * WARP;
    int by_threads = THREADS_PER_SM / whole_warps;
    int by_memory = (int)(SHARED_PER_SM / (bytes + SHARED_RESERVED));
    int least = by_threads < by_memory ? by_threads : by_memory;
    return least < BLOCKS_PER_SM ? least : BLOCKS_PER_SM;
}

inline cudaError_t wrong_launch(const void *function, const Kernel &kernel) {
    dim3 b = kernel.blocks, t = kernel.threads;
    size_t threads = (size_t)t.x * t.y * t.z, blocks = (size_t)b.x * b.y * b.z;
    if (threads == 0 || threads > MOST_THREADS || t.z > 64) return cudaErrorInvalidConfiguration;
    if (blocks == 0 || b.x > 0x7fffffff || b.y > 65535 || b.z > 65535)
        return cudaErrorInvalidConfiguration;
    size_t limit = SHARED_DEFAULT;
    {
        Locked hold(state().lock);
        auto found = state().shared_limit.find(function);
        if (found != state().shared_limit.end()) limit = (size_t)found->second;
    }
    if (kernel.bytes > limit) return cudaErrorInvalidValue;
    size_t together = (size_t)state().settings.multiprocessors *
                      (size_t)blocks_per_multiprocessor((int)threads, kernel.bytes);
    if (kernel.cooperative && blocks > together) return cudaErrorCooperativeLaunchTooLarge;
    return cudaSuccess;
}

inline cudaError_t submit_kernel(const void *function, const Kernel &kernel, Stream *stream) {
    cudaError_t error = enter_stream("launch", stream);
    if (error) return error;
    if (stream->device != self.host.device) return failed(cudaErrorInvalidResourceHandle);
    error = wrong_launch(function, kernel);
    if (error) {
        say(1, "%s: %u threads, %zu bytes of shared memory: cannot be launched", kernel.name,
            kernel.threads.x * kernel.threads.y * kernel.threads.z, kernel.bytes);
        return failed(error);
    }
    stream->submit(kernel.name, [kernel] { run_kernel(kernel); });
    return cudaSuccess;
}

// >>arguments
// Pointers are checked before the kernel runs. For a struct passed by value, a function
//     template <class Visit> void cudahost_pointers(const the_struct &s, Visit visit)
// beside the struct may call visit(s.pointer) for each pointer in it; without one nothing in it
// is checked.

template <class T, class Visit, class = void> struct HasPointers : std::false_type {};
template <class T, class Visit>
struct HasPointers<T, Visit,
                   std::void_t<decltype(cudahost_pointers(std::declval<const T &>(),
                                                          std::declval<Visit &>()))>>
    : std::true_type {};

template <class T, class Visit> void visit_pointers(const T &value, Visit &visit) {
    if constexpr (std::is_pointer<T>::value) visit((const void *)value);
    else if constexpr (std::is_class<T>::value && HasPointers<T, Visit>::value)
        cudahost_pointers(value, visit);
}

template <class... P> Kernel bind_kernel(void (*function)(P...), const P &...values) {
    Kernel kernel;
    std::tuple<P...> arguments(values...);
    kernel.body = [function, arguments] { std::apply(function, arguments); };
    auto visit = [&kernel](const void *pointer) { kernel.pointers.push_back(pointer); };
    (visit_pointers(values, visit), ...);
    (void)visit;
    return kernel;
}

// Keeps the arguments out of template deduction, so that they convert as in a call.
template <class T> struct AsParameter {
    typedef T type;
};

template <class... P>
cudaError_t launch(const char *name, void (*function)(P...), dim3 blocks, dim3 threads,
                   size_t bytes, Stream *stream, typename AsParameter<P>::type... values) {
    Kernel kernel = bind_kernel<P...>(function, values...);
    kernel.name = name;
    kernel.blocks = blocks;
    kernel.threads = threads;
    kernel.bytes = bytes;
    return submit_kernel((const void *)function, kernel, stream);
}

template <class... P>
cudaError_t launch_cooperative(const char *name, void (*function)(P...), dim3 blocks,
                               dim3 threads, size_t bytes, Stream *stream,
                               typename AsParameter<P>::type... values) {
    Kernel kernel = bind_kernel<P...>(function, values...);
    kernel.name = name;
    kernel.blocks = blocks;
    kernel.threads = threads;
    kernel.bytes = bytes;
    kernel.cooperative = true;
    return submit_kernel((const void *)function, kernel, stream);
}

// What `extern __shared__` is in CUDA: the block's dynamic shared memory.
inline void *dynamic_shared() { return self.current->block->dynamic; }

} // namespace cudahost
#endif
