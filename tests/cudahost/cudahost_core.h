// cudahost_core.h - what every part of the stand-in rests on: how it stays out of the thread
// sanitizer's sight, settings, counted and planned failures, waits that cannot hang, devices and
// their memory, and the list of what is alive.
#ifndef CUDAHOST_CORE_H
#define CUDAHOST_CORE_H
#include "cudahost_types.h"
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string>
#include <string.h>
#include <thread>
#include <unistd.h>
#include <vector>

#if defined(__SANITIZE_THREAD__)
#define CUDAHOST_TSAN 1
#elif defined(__SANITIZE_ADDRESS__)
#define CUDAHOST_ASAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define CUDAHOST_TSAN 1
#elif __has_feature(address_sanitizer)
#define CUDAHOST_ASAN 1
#endif
#endif

#ifdef CUDAHOST_TSAN
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char *file, int line);
void AnnotateIgnoreReadsEnd(const char *file, int line);
void AnnotateIgnoreWritesBegin(const char *file, int line);
void AnnotateIgnoreWritesEnd(const char *file, int line);
void AnnotateIgnoreSyncBegin(const char *file, int line);
void AnnotateIgnoreSyncEnd(const char *file, int line);
}
#define CUDAHOST_UNSEEN __attribute__((no_sanitize("thread"), noinline))
#else
#define CUDAHOST_UNSEEN __attribute__((noinline))
#endif

namespace cudahost {

// >>order
// The thread sanitizer must see the order that CUDA promises and no other. If it saw the locks of
// the queues below, every stream would seem to be ordered after every other, and a missing event
// would look fine. So all bookkeeping happens inside a Quiet scope, where the sanitizer looks
// away, and each promise of CUDA is stated by hand: publish() before, observe() after.

class Quiet {
  public:
#ifdef CUDAHOST_TSAN
    Quiet() {
        AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
        AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
        AnnotateIgnoreSyncBegin(__FILE__, __LINE__);
    }
    ~Quiet() {
        AnnotateIgnoreSyncEnd(__FILE__, __LINE__);
        AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
        AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
    }
#else
    Quiet() {}
    ~Quiet() {}
#endif
    Quiet(const Quiet &) = delete;
    Quiet &operator=(const Quiet &) = delete;
};

// What this thread did so far happens before everything that follows observe() of the same place.
inline void publish(const void *place) {
#ifdef CUDAHOST_TSAN
    __tsan_release(const_cast<void *>(place));
#else
    (void)place;
#endif
}

inline void observe(const void *place) {
#ifdef CUDAHOST_TSAN
    __tsan_acquire(const_cast<void *>(place));
#else
    (void)place;
#endif
}

// A mutex held quietly. The order of the members matters: the lock is given back before the
// sanitizer looks again.
class Locked {
    Quiet quiet;

  public:
    std::unique_lock<std::mutex> lock;
    explicit Locked(std::mutex &mutex) : lock(mutex) {}
};

// A number that several threads may look at, which orders nothing.
template <class T> class Relaxed {
    std::atomic<T> value;

  public:
    Relaxed(T first = T()) : value(first) {}
    T get() const { return value.load(std::memory_order_relaxed); }
    void set(T next) { value.store(next, std::memory_order_relaxed); }
    T add(T step) { return value.fetch_add(step, std::memory_order_relaxed); }
    bool change(T from, T to) {
        return value.compare_exchange_strong(from, to, std::memory_order_relaxed);
    }
};

// What several owners share. Unlike std::shared_ptr its count orders nothing, so that who drops
// it last is not ordered after the others.
template <class T> class Ref {
    struct Box {
        Relaxed<int> owners{1};
        T value;
    };
    Box *box = nullptr;

  public:
    static Ref make() {
        Quiet quiet;
        Ref ref;
        ref.box = new Box;
        return ref;
    }
    Ref() {}
    Ref(const Ref &other) : box(other.box) {
        if (box) box->owners.add(1);
    }
    Ref(Ref &&other) noexcept : box(other.box) { other.box = nullptr; }
    Ref &operator=(Ref other) {
        std::swap(box, other.box);
        return *this;
    }
    ~Ref() {
        if (!box || box->owners.add(-1) != 1) return;
        Quiet quiet;
        delete box;
    }
    T *operator->() const { return &box->value; }
    T &operator*() const { return box->value; }
    explicit operator bool() const { return box != nullptr; }
    bool operator==(const Ref &other) const { return box == other.box; }
};

// >>settings
// Read once from the environment; README.md says what each means.

inline const char *setting(const char *name, const char *otherwise) {
    const char *text = getenv(name);
    return text && *text ? text : otherwise;
}

struct Settings {
    int devices = atoi(setting("CUDAHOST_DEVICES", "2"));
    int multiprocessors = atoi(setting("CUDAHOST_SMS", "4"));
    int verbose = atoi(setting("CUDAHOST_VERBOSE", "1"));
    bool leaks = atoi(setting("CUDAHOST_LEAKS", "0")) != 0;
    bool counts = atoi(setting("CUDAHOST_COUNTS", "0")) != 0;
    bool peers = atoi(setting("CUDAHOST_PEERS", "1")) != 0;
    double watchdog = atof(setting("CUDAHOST_WATCHDOG", "30"));
    uint64_t jitter = strtoull(setting("CUDAHOST_JITTER", "0"), nullptr, 10);
    size_t memory = (size_t)atoll(setting("CUDAHOST_MEMORY_MB", "8192")) << 20;
    std::string fail = setting("CUDAHOST_FAIL", "");
    std::atomic<long> slow{atol(setting("CUDAHOST_SLOW", "0"))};  // may be changed at any time
};

// >>state

enum Kind {
    DeviceMemory, PinnedMemory, Streams, Events, Graphs, GraphExecs,
    BlasHandles, LtHandles, LtObjects, Comms, KINDS
};

inline const char *kind_name(int kind) {
    static const char *const names[KINDS] = {
        "device allocation", "pinned allocation", "stream", "event", "graph",
        "graph executable", "cuBLAS handle", "cuBLASLt handle", "cuBLASLt descriptor",
        "NCCL communicator"};
    return names[kind];
}

struct Allocation {
    size_t bytes;
    int device;  // where it lies, or for pinned memory what was current when it was allocated
    bool pinned;
};

struct Device {
    int ordinal = 0;
    Relaxed<int> fault;     // a cudaError_t that stays until cudaDeviceReset(), or 0
    std::set<int> peers;    // devices whose memory this one may touch
    size_t used = 0;
    std::set<Stream *> streams;
};

struct Patience;

struct State {
    Settings settings;
    std::mutex lock;  // guards all but the relaxed members and what has a lock of its own
    std::vector<std::unique_ptr<Device>> devices;
    std::map<uintptr_t, Allocation> memory;
    std::map<const void *, int> handles;  // every live handle and its Kind
    std::set<Patience *> waiting;
    std::map<std::string, long> calls, planned;  // so far; the one that is to fail
    std::map<const void *, int> shared_limit;    // of kernels that asked for more shared memory
    Relaxed<uint64_t> progress, given_up;  // operations finished; times that the watchdog bit
    State();
};

void at_exit();
void plan_failures(State &state, const char *list);

inline State::State() {
    for (int i = 0; i < settings.devices; i++) {
        devices.emplace_back(new Device);
        devices.back()->ordinal = i;
    }
    plan_failures(*this, settings.fail.c_str());
    if (settings.leaks || settings.counts) atexit(at_exit);
}

// Never destroyed: threads of streams that nobody closed may look at it until the very end.
inline State &state() {
    static State *one = [] {
        Quiet quiet;
        return new State;
    }();
    return *one;
}

class Crew;
struct Fiber;

// What belongs to one thread: of a host thread the current device and its last error, as in CUDA;
// of a stream's thread what it runs for, and the CUDA thread whose turn it is.
struct HostThread {
    int device = 0;
    cudaError_t last_error = cudaSuccess;
};
struct Runner {
    int device = 0;
    Crew *crew = nullptr;
};
struct Self {
    HostThread host;
    Runner runner;
    Fiber *current = nullptr, *starting = nullptr;
    uint3 thread = {0, 0, 0}, block = {0, 0, 0};  // what kernels see as threadIdx, blockIdx,
    dim3 threads, blocks;                         // blockDim and gridDim
    char *shared = nullptr;                       // where the __shared__ variables are,
    size_t shared_bytes = 0;                      // see >>shared
};
inline thread_local Self self;

__attribute__((format(printf, 2, 3))) inline void say(int level, const char *format, ...) {
    if (state().settings.verbose < level) return;
    Quiet quiet;
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    fprintf(stderr, "cudahost: %s\n", text);
}

// >>failures
// Every call is counted under its name. A plan "cudaMalloc:3,launch:7,any:20" makes the third
// cudaMalloc, the seventh kernel launch and the twentieth call of all fail.

inline void plan_failures(State &state, const char *list) {
    std::string text = list ? list : "";
    state.planned.clear();
    for (size_t at = 0; at < text.size();) {
        size_t end = text.find(',', at), colon = text.find(':', at);
        if (end == std::string::npos) end = text.size();
        if (colon != std::string::npos && colon < end)
            state.planned[text.substr(at, colon - at)] = atol(text.c_str() + colon + 1);
        at = end + 1;
    }
}

// Starts counting afresh and replaces the plan; NULL or "": nothing fails.
inline void fail(const char *list) {
    State &s = state();
    Locked hold(s.lock);
    s.calls.clear();
    plan_failures(s, list);
}

// How often the API was called since the start or the last fail(); "any" counts them all.
inline long calls(const char *api) {
    State &s = state();
    Locked hold(s.lock);
    auto found = s.calls.find(api);
    return found == s.calls.end() ? 0 : found->second;
}

inline std::map<std::string, long> all_calls() {
    State &s = state();
    Locked hold(s.lock);
    return s.calls;
}

// Counts a call; true if this one was planned to fail.
inline bool planned(const char *api) {
    State &s = state();
    bool fails = false;
    {
        Locked hold(s.lock);
        for (const char *name : {api, "any"}) {
            long count = ++s.calls[name];
            auto plan = s.planned.find(name);
            fails |= plan != s.planned.end() && plan->second == count;
        }
    }
    if (fails) say(1, "%s fails as planned", api);
    return fails;
}

// >>alive

inline void born(const void *handle, Kind kind) {
    State &s = state();
    Locked hold(s.lock);
    s.handles[handle] = kind;
}

// False if there is no such thing, which is then left alone.
inline bool dies(const void *handle, Kind kind) {
    State &s = state();
    Locked hold(s.lock);
    auto found = s.handles.find(handle);
    if (found == s.handles.end() || found->second != kind) return false;
    s.handles.erase(found);
    return true;
}

inline bool alive(const void *handle, Kind kind) {
    State &s = state();
    Locked hold(s.lock);
    auto found = s.handles.find(handle);
    return found != s.handles.end() && found->second == kind;
}

// What was created and not yet destroyed, by kind.
struct Live {
    long count[KINDS] = {};
    long total() const {
        long sum = 0;
        for (long one : count) sum += one;
        return sum;
    }
};

inline Live live() {
    State &s = state();
    Locked hold(s.lock);
    Live sum;
    for (auto &entry : s.handles) sum.count[entry.second]++;
    return sum;
}

inline void at_exit() {
    if (state().settings.counts)
        for (auto &entry : all_calls())
            fprintf(stderr, "cudahost: calls %s %ld\n", entry.first.c_str(), entry.second);
    Live left = live();
    if (!state().settings.leaks || left.total() == 0) return;
    for (int kind = 0; kind < KINDS; kind++)
        if (left.count[kind])
            fprintf(stderr, "cudahost: leak: %ld x %s\n", left.count[kind], kind_name(kind));
    fflush(nullptr);
    _exit(3);
}

// >>patience
// A wait that gives up when nothing at all has moved for settings.watchdog seconds, or when
// another wait found so. Whoever finds it names every operation that is blocked.

typedef std::chrono::steady_clock Clock;

struct Patience {
    std::string what;
    uint64_t progress = state().progress.get(), given_up = state().given_up.get();
    Clock::time_point since = Clock::now();

    explicit Patience(std::string text) : what(std::move(text)) {
        Locked hold(state().lock);
        state().waiting.insert(this);
    }
    ~Patience() {
        Locked hold(state().lock);
        state().waiting.erase(this);
    }
    Patience(const Patience &) = delete;
    Patience &operator=(const Patience &) = delete;

    bool lost() {
        if (given_up != state().given_up.get()) return true;
        uint64_t now = state().progress.get();
        if (now != progress) {
            progress = now;
            since = Clock::now();
            return false;
        }
        std::chrono::duration<double> still = Clock::now() - since;
        if (still.count() <= state().settings.watchdog) return false;
        give_up();
        return true;
    }

  private:
    void give_up() {
        State &s = state();
        std::vector<std::string> blocked;
        {
            Locked hold(s.lock);
            if (!s.given_up.change(given_up, given_up + 1)) return;
            for (Patience *one : s.waiting) blocked.push_back(one->what);
        }
        say(1, "nothing moved for %.3g s; blocked:", s.settings.watchdog);
        for (auto &one : blocked) say(1, "    %s", one.c_str());
    }
};

inline void progress() { state().progress.add(1); }

// Waits on a condition variable; false if patience was lost. Call inside a Quiet scope.
template <class Ready>
bool wait_until(std::unique_lock<std::mutex> &lock, std::condition_variable &changed,
                const std::string &what, Ready ready) {
    if (ready()) return true;
    lock.unlock();
    Patience patience(what);
    lock.lock();
    while (!ready()) {
        // the system clock, because the thread sanitizer of gcc 12 does not know the other wait
        changed.wait_until(lock, std::chrono::system_clock::now() + std::chrono::milliseconds(20));
        if (ready()) return true;
        lock.unlock();
        bool lost = patience.lost();
        lock.lock();
        if (lost) return ready();
    }
    return true;
}

// >>chance
// One step of splitmix64: the delays of a seed, and other choices that should vary, repeatably.
inline uint64_t scramble(uint64_t z) {
    z += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

// Sleeps now and then, if CUDAHOST_JITTER is set: long enough for other streams to overtake.
inline void jitter(uint64_t who, uint64_t when) {
    uint64_t seed = state().settings.jitter;
    if (!seed) return;
    uint64_t random = scramble(scramble(seed * 1000003 + who) + when);
    if (random % 3 == 0) {
        Quiet quiet;
        usleep((useconds_t)(random >> 32) % 3000);
    }
}

// What an operation takes at least, if CUDAHOST_SLOW is set.
inline void take_time() {
    long slow = state().settings.slow.load(std::memory_order_relaxed);
    if (!slow) return;
    Quiet quiet;
    usleep((useconds_t)slow);
}

// >>devices

inline int device_count() { return (int)state().devices.size(); }
inline Device &device(int ordinal) { return *state().devices[(size_t)ordinal]; }

inline cudaError_t failed(cudaError_t error) {
    if (error != cudaSuccess && error != cudaErrorNotReady) self.host.last_error = error;
    return error;
}

// What a kernel or copy did wrong is told by every later call on its device.
inline void device_fault(int ordinal, cudaError_t error, const char *text) {
    if (device(ordinal).fault.change(cudaSuccess, error)) say(1, "device %d: %s", ordinal, text);
}

inline cudaError_t fault_of(int ordinal) { return (cudaError_t)device(ordinal).fault.get(); }

// >>memory

// The allocation that holds the byte p points to.
inline bool find_memory(const void *p, uintptr_t *start, Allocation *found) {
    State &s = state();
    Locked hold(s.lock);
    auto next = s.memory.upper_bound((uintptr_t)p);
    if (next == s.memory.begin()) return false;
    --next;
    if ((uintptr_t)p >= next->first + next->second.bytes) return false;
    *start = next->first;
    *found = next->second;
    return true;
}

// NULL if a device may touch these bytes, else what is wrong with them.
inline const char *wrong_memory(int ordinal, const void *p, size_t bytes) {
    uintptr_t start;
    Allocation found;
    if (!find_memory(p, &start, &found)) return "not memory of any device";
    if ((uintptr_t)p - start + bytes > found.bytes) return "more than was allocated";
    if (found.pinned || found.device == ordinal) return nullptr;
    Locked hold(state().lock);
    return device(ordinal).peers.count(found.device) ? nullptr : "memory of another device";
}

// Fresh memory reads as NaN, in fp32, fp64 and bf16.
inline cudaError_t allocate(void **p, size_t bytes, bool pinned) {
    State &s = state();
    Device &here = device(self.host.device);
    Quiet quiet;
    {
        Locked hold(s.lock);
        if (!pinned && (bytes > s.settings.memory || here.used + bytes > s.settings.memory))
            return cudaErrorMemoryAllocation;
    }
    void *block = nullptr;
    if (posix_memalign(&block, 256, bytes)) return cudaErrorMemoryAllocation;
    memset(block, 0xFF, bytes);
    Locked hold(s.lock);
    s.memory[(uintptr_t)block] = Allocation{bytes, self.host.device, pinned};
    s.handles[block] = pinned ? PinnedMemory : DeviceMemory;
    if (!pinned) here.used += bytes;
    *p = block;
    return cudaSuccess;
}

// Forgets the allocation first: what still uses it then fails or is seen by the sanitizers.
inline cudaError_t release(void *p, bool pinned) {
    State &s = state();
    {
        Locked hold(s.lock);
        auto found = s.memory.find((uintptr_t)p);
        if (found == s.memory.end() || found->second.pinned != pinned)
            return cudaErrorInvalidValue;
        if (!pinned) device(found->second.device).used -= found->second.bytes;
        s.memory.erase(found);
        s.handles.erase(p);
    }
    free(p);
    return cudaSuccess;
}

} // namespace cudahost
#endif
