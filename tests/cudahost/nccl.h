// nccl.h - communicators between the stand-in's devices, as strict as NCCL may be: a send is done
// when its receive runs, what one communicator does is done in order even in different streams,
// and the first use of a peer blocks the host until the peer comes, too.
#ifndef CUDAHOST_NCCL_H
#define CUDAHOST_NCCL_H
#include "cuda_bf16.h"
#include "cudahost_wire.h"
#include <limits.h>

#define NCCL_MAJOR 2
#define NCCL_MINOR 28
#define NCCL_PATCH 9
#define NCCL_VERSION_CODE 22809
#define NCCL_VERSION(X, Y, Z)                                          \
    (((X) <= 2 && (Y) <= 8) ? (X) * 1000 + (Y) * 100 + (Z)             \
                            : (X) * 10000 + (Y) * 100 + (Z))
#define NCCL_UNIQUE_ID_BYTES 128
#define NCCL_COMM_NULL NULL
#define NCCL_CONFIG_UNDEF_INT INT_MIN
#define NCCL_CONFIG_UNDEF_PTR NULL

enum ncclResult_t {
    ncclSuccess = 0,
    ncclUnhandledCudaError = 1,
    ncclSystemError = 2,
    ncclInternalError = 3,
    ncclInvalidArgument = 4,
    ncclInvalidUsage = 5,
    ncclRemoteError = 6,
    ncclInProgress = 7,
    ncclNumResults = 8
};
enum ncclRedOp_t {
    ncclSum = 0,
    ncclProd = 1,
    ncclMax = 2,
    ncclMin = 3,
    ncclAvg = 4,
    ncclNumOps = 5
};
enum ncclDataType_t {
    ncclInt8 = 0, ncclChar = 0,
    ncclUint8 = 1,
    ncclInt32 = 2, ncclInt = 2,
    ncclUint32 = 3,
    ncclInt64 = 4,
    ncclUint64 = 5,
    ncclFloat16 = 6, ncclHalf = 6,
    ncclFloat32 = 7, ncclFloat = 7,
    ncclFloat64 = 8, ncclDouble = 8,
    ncclBfloat16 = 9,
    ncclNumTypes = 12
};
struct ncclUniqueId {
    char internal[NCCL_UNIQUE_ID_BYTES];
};
struct ncclConfig_t {
    size_t size;
    unsigned int magic, version;
    int blocking, cgaClusterSize, minCTAs, maxCTAs;
    const char *netName;
    int splitShare, trafficClass;
    const char *commName;
    int collnetEnable, CTAPolicy, shrinkShare, nvlsCTAs, nChannelsPerNetPeer, nvlinkCentricSched;
};
#define NCCL_CONFIG_INITIALIZER                                                              \
    {sizeof(ncclConfig_t), 0xcafebeef, NCCL_VERSION(NCCL_MAJOR, NCCL_MINOR, NCCL_PATCH),     \
     NCCL_CONFIG_UNDEF_INT, NCCL_CONFIG_UNDEF_INT, NCCL_CONFIG_UNDEF_INT,                    \
     NCCL_CONFIG_UNDEF_INT, NCCL_CONFIG_UNDEF_PTR, NCCL_CONFIG_UNDEF_INT,                    \
     NCCL_CONFIG_UNDEF_INT, NCCL_CONFIG_UNDEF_PTR, NCCL_CONFIG_UNDEF_INT,                    \
     NCCL_CONFIG_UNDEF_INT, NCCL_CONFIG_UNDEF_INT, NCCL_CONFIG_UNDEF_INT,                    \
     NCCL_CONFIG_UNDEF_INT, NCCL_CONFIG_UNDEF_INT}

// >>comms

namespace cudahost {

// What a handle stands for; operations in streams keep it alive.
struct Comm {
    Mesh mesh;
    bool blocking = true, finalized = false;
    Relaxed<int> result;           // what ncclCommGetAsyncError() tells
    char order = 0;                // published when a background job is done
    std::mutex lock;
    std::condition_variable changed;
    uint64_t issued = 0, finished = 0;  // operations, which take turns
    int busy = 0;                  // operations and host calls that are under way
    char text[256] = "";           // of the last error
    std::thread job;               // what a non-blocking call left to do
    bool joined = false;           // the mesh is complete
};

inline ncclResult_t comm_error(Comm &comm, ncclResult_t result, const char *text) {
    Quiet quiet;
    {
        std::lock_guard<std::mutex> hold(comm.lock);
        snprintf(comm.text, sizeof comm.text, "rank %d of %s: %s", comm.mesh.rank,
                 comm.mesh.name.c_str(), text);
    }
    say(1, "NCCL: %s", comm.text);
    comm.result.set(result);
    return result;
}

inline bool starts_with(const char *text, const char *start) {
    return strncmp(text, start, strlen(start)) == 0;
}

// Which error a text of the mesh stands for.
inline ncclResult_t mesh_result(const char *text) {
    if (starts_with(text, "the other rank") || starts_with(text, "a rank went"))
        return ncclRemoteError;
    if (starts_with(text, "nothing moved") || starts_with(text, "not all")) return ncclSystemError;
    return starts_with(text, "aborted") ? ncclInternalError : ncclInvalidUsage;
}

// NCCL forbids two threads to issue work for one device at once.
class OneThread {
    int device;
    static Relaxed<int> &inside(int device) {
        static Relaxed<int> counts[64];
        return counts[device & 63];
    }

  public:
    bool alone;
    explicit OneThread(int on) : device(on), alone(inside(on).add(1) == 0) {
        if (!alone) say(1, "NCCL: two threads issue calls for device %d at once", device);
    }
    ~OneThread() { inside(device).add(-1); }
};

} // namespace cudahost

struct ncclComm {
    cudahost::Ref<cudahost::Comm> comm;
};
typedef ncclComm *ncclComm_t;

// >>calls

namespace cudahost {

// A step of an operation: messages that move together, and what is computed then.
struct CommStep {
    std::vector<Part> parts;
    std::function<void()> then;
};

struct CommCall {
    Ref<Comm> comm;
    Stream *stream;
    std::string text;
    bool collective;
    bool send;                   // of one message:
    int peer;
    const void *from;
    void *to;
    size_t bytes;
    std::function<void(std::vector<CommStep> &)> plan;  // of a collective
};

struct Initialization {
    Ref<Comm> comm;
    ncclComm_t *handle;
};

struct CommGroup {
    int depth = 0;
    ncclResult_t error = ncclSuccess;
    std::vector<CommCall> calls;
    std::vector<Initialization> starts;
};

inline CommGroup &comm_group() {
    static thread_local CommGroup group;
    return group;
}

inline void rest_until_aborted(Comm &comm) {
    Patience patience("a failed operation of NCCL, until it is aborted");
    while (!comm.mesh.aborted.get() && !patience.lost()) {
        Quiet quiet;
        usleep(1000);
    }
}

// As on the device: an operation that cannot go on blocks its stream until somebody aborts.
inline void run_steps(Comm &comm, std::vector<CommStep> &steps, const std::string &text) {
    for (CommStep &step : steps) {
        int result = comm.result.get();  // once: it may change from "in progress" to success now
        const char *wrong = result != ncclSuccess && result != ncclInProgress
                                ? "an earlier operation failed"
                                : comm.mesh.move(step.parts, text);
        if (!wrong && step.then) step.then();
        if (!wrong) continue;
        if (!starts_with(wrong, "aborted") && !starts_with(wrong, "an earlier"))
            comm_error(comm, mesh_result(wrong), (text + ": " + wrong).c_str());
        if (!comm.mesh.aborted.get()) rest_until_aborted(comm);
        return;
    }
}

// Messages of a rank to itself are copied; they pair up in order.
inline void copy_own(const std::vector<CommCall> &calls, int rank) {
    std::vector<const CommCall *> sends, receives;
    for (const CommCall &call : calls)
        if (!call.collective && call.peer == rank) (call.send ? sends : receives).push_back(&call);
    for (size_t i = 0; i < sends.size(); i++)
        if (sends[i]->bytes) memmove(receives[i]->to, sends[i]->from, sends[i]->bytes);
}

inline std::vector<CommStep> plan_steps(const std::vector<CommCall> &calls, int rank) {
    std::vector<CommStep> steps(1);
    for (const CommCall &call : calls) {
        if (call.collective) call.plan(steps);
        else if (call.peer != rank)
            steps[0].parts.push_back(part(call.send, call.peer, call.send ? call.from : call.to,
                                          call.bytes, 0));
    }
    return steps;
}

inline bool good_buffers(const std::vector<CommCall> &calls) {
    for (const CommCall &call : calls) {
        int device = call.comm->mesh.device;
        const char *wrong = nullptr;
        if (call.from && call.bytes) wrong = wrong_memory(device, call.from, call.bytes);
        if (call.to && call.bytes && !wrong) wrong = wrong_memory(device, call.to, call.bytes);
        if (!wrong) continue;
        say(1, "%s: the buffer is %s", call.text.c_str(), wrong);
        return false;
    }
    return true;
}

inline bool take_turn(Comm &comm, uint64_t ticket, const std::string &text) {
    Locked hold(comm.lock);
    comm.busy++;
    return wait_until(hold.lock, comm.changed, "the turn of " + text,
                      [&] { return comm.finished == ticket || comm.mesh.aborted.get(); });
}

inline void end_turn(Comm &comm) {
    Locked hold(comm.lock);
    comm.busy--;
    comm.finished++;
    comm.changed.notify_all();
}

// All calls of one group for one communicator, as one operation in one stream.
inline void run_calls(const std::vector<CommCall> &calls, uint64_t ticket) {
    Comm &comm = *calls[0].comm;
    std::string text = "rank " + std::to_string(comm.mesh.rank) + ": " + calls[0].text;
    if (calls.size() > 1) text += " and " + std::to_string(calls.size() - 1) + " more";
    if (!good_buffers(calls)) {
        device_fault(self.runner.device, cudaErrorIllegalAddress, text.c_str());
        comm_error(comm, ncclUnhandledCudaError, "a buffer is gone");
    }
    if (take_turn(comm, ticket, text)) {
        std::vector<CommStep> steps = plan_steps(calls, comm.mesh.rank);
        copy_own(calls, comm.mesh.rank);
        run_steps(comm, steps, text);
    } else if (!comm.mesh.aborted.get()) {
        device_fault(self.runner.device, cudaErrorLaunchTimeout, text.c_str());
    }
    end_turn(comm);
}

// >>issuing

// Which handshakes the calls need before the stream may have them: 's' and 'r' for the two ends
// of a direction, 'c' for collectives.
inline bool connect_peers(const std::vector<CommCall> &calls) {
    for (int turn = 0; turn < 2; turn++)
        for (const CommCall &call : calls) {
            Comm &comm = *call.comm;
            for (int peer = 0; peer < comm.mesh.count; peer++) {
                if (peer == comm.mesh.rank || (!call.collective && peer != call.peer)) continue;
                char mine = call.collective ? 'c' : call.send ? 's' : 'r';
                char other = call.collective ? 'c' : call.send ? 'r' : 's';
                bool good = turn ? comm.mesh.hear_from(peer, other,
                                                       call.text + " (host, first use of rank " +
                                                           std::to_string(peer) + ")")
                                 : comm.mesh.say_to(peer, mine);
                if (good) continue;
                comm_error(comm, comm.mesh.aborted.get() ? ncclInternalError : ncclRemoteError,
                           "no connection to the other rank");
                return false;
            }
        }
    return true;
}

// Several streams in one group: all meet before the operation and go on after it.
inline void submit_calls(const std::vector<CommCall> &calls) {
    Comm &comm = *calls[0].comm;
    Stream *stream = calls[0].stream;
    std::set<Stream *> others;
    uint64_t ticket;
    {
        Locked hold(comm.lock);
        ticket = comm.issued++;
    }
    for (const CommCall &call : calls)
        if (call.stream != stream) others.insert(call.stream);
    for (Stream *other : others) {
        Ref<Record> before = Ref<Record>::make();
        int device = stream->device;
        other->submit("stream of an NCCL group", [before] { before->finish(); }, true);
        stream->submit("NCCL group", [device, before] { wait_in_stream(device, before); }, true);
    }
    Ref<Record> after = Ref<Record>::make();
    stream->submit("NCCL operation", [calls, ticket] { run_calls(calls, ticket); }, true);
    stream->submit("NCCL group", [after] { after->finish(); }, true);
    for (Stream *other : others) {
        int device = other->device;
        other->submit("NCCL group", [device, after] { wait_in_stream(device, after); }, true);
    }
}

// In order of first appearance, all calls of each communicator.
inline std::vector<std::vector<CommCall>> by_comm(const std::vector<CommCall> &calls) {
    std::vector<std::vector<CommCall>> sorted;
    for (const CommCall &call : calls) {
        bool found = false;
        for (auto &list : sorted)
            if (list[0].comm == call.comm && !found) {
                list.push_back(call);
                found = true;
            }
        if (!found) sorted.emplace_back(1, call);
    }
    return sorted;
}

// Sends of a rank to itself need a receive of the same size in the same group.
inline bool own_pairs(const std::vector<CommCall> &calls) {
    std::vector<size_t> sends, receives;
    for (const CommCall &call : calls)
        if (!call.collective && call.peer == call.comm->mesh.rank)
            (call.send ? sends : receives).push_back(call.bytes);
    return sends == receives;
}

inline ncclResult_t issue_calls(const std::vector<CommCall> &calls) {
    if (!connect_peers(calls)) {
        for (const CommCall &call : calls)
            if (call.comm->result.get() > ncclSuccess && call.comm->result.get() != ncclInProgress)
                return (ncclResult_t)call.comm->result.get();
        return ncclRemoteError;
    }
    for (auto &list : by_comm(calls)) submit_calls(list);
    return ncclSuccess;
}

// Keeps the communicators from being freed while a host thread is inside.
inline void enter_comms(const std::vector<CommCall> &calls, int step) {
    for (const CommCall &call : calls) {
        Locked hold(call.comm->lock);
        call.comm->busy += step;
        call.comm->changed.notify_all();
    }
}

inline bool all_blocking(const std::vector<CommCall> &calls) {
    for (const CommCall &call : calls)
        if (!call.comm->blocking) return false;
    return true;
}

inline void join_job(Comm &comm) {
    Quiet quiet;
    if (comm.job.joinable()) comm.job.join();
}

// Ends a background job: others may see that it is over.
inline void settle(Comm &comm, ncclResult_t result) {
    publish(&comm.order);
    comm.result.change(ncclInProgress, result);
}

inline ncclResult_t start_calls(const std::vector<CommCall> &calls) {
    for (auto &list : by_comm(calls)) {
        if (own_pairs(list)) continue;
        say(1, "NCCL: a rank's messages to itself do not pair up in their group");
        return ncclInvalidUsage;
    }
    OneThread rule(calls[0].comm->mesh.device);
    if (!rule.alone) return ncclInvalidUsage;
    if (all_blocking(calls)) {
        enter_comms(calls, 1);
        ncclResult_t result = issue_calls(calls);
        enter_comms(calls, -1);
        return result;
    }
    for (const CommCall &call : calls) call.comm->result.change(ncclSuccess, ncclInProgress);
    enter_comms(calls, 1);
    join_job(*calls[0].comm);
    calls[0].comm->job = std::thread([calls] {
        issue_calls(calls);
        for (const CommCall &call : calls) settle(*call.comm, ncclSuccess);
        enter_comms(calls, -1);
    });
    return ncclInProgress;
}

// >>initialization

inline ncclResult_t join_mesh(Comm &comm) {
    const char *wrong = comm.mesh.join();
    if (wrong) return comm_error(comm, mesh_result(wrong), wrong);
    comm.joined = true;
    return ncclSuccess;
}

inline ncclResult_t start_blocking(const std::vector<Initialization> &starts) {
    std::vector<std::thread> threads;
    std::vector<ncclResult_t> results(starts.size());
    for (size_t i = 0; i < starts.size(); i++)
        threads.emplace_back([&results, &starts, i] { results[i] = join_mesh(*starts[i].comm); });
    ncclResult_t first = ncclSuccess;
    for (size_t i = 0; i < starts.size(); i++) {
        threads[i].join();
        if (!first) first = results[i];
    }
    for (size_t i = 0; i < starts.size() && first; i++) {
        dies(*starts[i].handle, Comms);
        delete *starts[i].handle;
        *starts[i].handle = nullptr;
    }
    return first;
}

inline ncclResult_t start_comms(const std::vector<Initialization> &starts) {
    std::vector<Initialization> blocking;
    for (const Initialization &start : starts) {
        Ref<Comm> comm = start.comm;
        if (comm->blocking) {
            blocking.push_back(start);
            continue;
        }
        comm->result.set(ncclInProgress);
        comm->job = std::thread([comm] {
            ncclResult_t result = join_mesh(*comm);
            settle(*comm, result);
        });
    }
    ncclResult_t result = blocking.empty() ? ncclSuccess : start_blocking(blocking);
    return !result && blocking.size() < starts.size() ? ncclInProgress : result;
}

inline ncclResult_t end_group() {
    CommGroup &group = comm_group();
    std::vector<CommCall> calls;
    std::vector<Initialization> starts;
    calls.swap(group.calls);
    starts.swap(group.starts);
    ncclResult_t error = group.error;
    group.error = ncclSuccess;
    if (error) return error;
    ncclResult_t first = starts.empty() ? ncclSuccess : start_comms(starts);
    if (calls.empty() || (first && first != ncclInProgress)) return first;
    ncclResult_t second = start_calls(calls);
    return second ? second : first;
}

inline ncclResult_t group_error(ncclResult_t error) {
    CommGroup &group = comm_group();
    if (group.depth && error && !group.error) group.error = error;
    return error;
}

// The start of a call on a communicator.
inline ncclResult_t enter_comm(const char *api, ncclComm_t handle) {
    if (planned(api)) return group_error(ncclInternalError);
    if (!alive(handle, Comms)) return group_error(ncclInvalidArgument);
    return ncclSuccess;
}

inline ncclResult_t check_call(const char *api, ncclComm_t handle, Stream *stream, int peer) {
    ncclResult_t error = enter_comm(api, handle);
    if (error) return error;
    Comm &comm = *handle->comm;
    if (!usable(api, stream) || stream->device != comm.mesh.device || peer < 0 ||
        peer >= comm.mesh.count)
        return group_error(ncclInvalidArgument);
    if (is_capturing(stream)) {
        say(1, "%s in a captured stream is not part of the stand-in", api);
        return group_error(ncclInvalidUsage);
    }
    int result = comm.result.get();
    if (result == ncclInProgress) {
        say(1, "%s before the previous call on this communicator was finished", api);
        return group_error(ncclInvalidArgument);
    }
    if (result || comm.finalized) return group_error(result ? (ncclResult_t)result
                                                            : ncclInvalidUsage);
    return fault_of(stream->device) ? group_error(ncclUnhandledCudaError) : ncclSuccess;
}

inline ncclResult_t add_call(CommCall call) {
    if (!good_buffers(std::vector<CommCall>(1, call))) return group_error(ncclInvalidArgument);
    CommGroup &group = comm_group();
    group.calls.push_back(std::move(call));
    return group.depth ? ncclSuccess : end_group();
}

inline size_t size_of(ncclDataType_t type) {
    static const size_t sizes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};
    return type >= 0 && type <= ncclBfloat16 ? sizes[type] : 0;
}

} // namespace cudahost

// >>api

inline ncclResult_t ncclGetVersion(int *version) {
    *version = NCCL_VERSION_CODE;
    return cudahost::planned("ncclGetVersion") ? ncclInternalError : ncclSuccess;
}

inline const char *ncclGetErrorString(ncclResult_t result) {
    static const char *const texts[] = {
        "no error", "unhandled cuda error", "unhandled system error", "internal error",
        "invalid argument", "invalid usage", "remote process exited or there was a network error",
        "NCCL operation in progress"};
    return result >= 0 && result < ncclNumResults ? texts[result] : "unknown result code";
}

inline const char *ncclGetLastError(ncclComm_t handle) {
    return cudahost::alive(handle, cudahost::Comms) ? handle->comm->text : "";
}

inline ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    static cudahost::Relaxed<int> count;
    if (cudahost::planned("ncclGetUniqueId")) return ncclInternalError;
    memset(id, 0, sizeof *id);
    snprintf(id->internal, sizeof id->internal, "cudahost-%ld-%d-%llx", (long)getpid(),
             count.add(1), (unsigned long long)clock64());
    return ncclSuccess;
}

inline ncclResult_t ncclGroupStart() {
    if (cudahost::planned("ncclGroupStart")) return ncclInternalError;
    cudahost::comm_group().depth++;
    return ncclSuccess;
}

inline ncclResult_t ncclGroupEnd() {
    cudahost::CommGroup &group = cudahost::comm_group();
    if (cudahost::planned("ncclGroupEnd")) cudahost::group_error(ncclInternalError);
    if (group.depth == 0) return ncclInvalidUsage;
    return --group.depth ? ncclSuccess : cudahost::end_group();
}

inline ncclResult_t ncclCommInitRankConfig(ncclComm_t *handle, int count, ncclUniqueId id,
                                           int rank, ncclConfig_t *config) {
    *handle = nullptr;
    if (cudahost::planned("ncclCommInitRank")) return cudahost::group_error(ncclSystemError);
    if (count < 1 || rank < 0 || rank >= count || cudahost::device_count() == 0)
        return cudahost::group_error(ncclInvalidArgument);
    if (config && (config->magic != 0xcafebeef || config->size != sizeof *config))
        return cudahost::group_error(ncclInvalidArgument);
    if (config && config->minCTAs > config->maxCTAs && config->maxCTAs != NCCL_CONFIG_UNDEF_INT)
        return cudahost::group_error(ncclInvalidArgument);
    *handle = new ncclComm;
    (*handle)->comm = cudahost::Ref<cudahost::Comm>::make();
    cudahost::Comm &comm = *(*handle)->comm;
    comm.blocking = !config || config->blocking != 0;
    comm.mesh.name.assign(id.internal, strnlen(id.internal, sizeof id.internal));
    comm.mesh.rank = rank;
    comm.mesh.count = count;
    comm.mesh.device = cudahost::self.host.device;
    cudahost::born(*handle, cudahost::Comms);
    cudahost::comm_group().starts.push_back({(*handle)->comm, handle});
    return cudahost::comm_group().depth ? ncclSuccess : cudahost::end_group();
}

inline ncclResult_t ncclCommInitRank(ncclComm_t *handle, int count, ncclUniqueId id, int rank) {
    return ncclCommInitRankConfig(handle, count, id, rank, nullptr);
}

inline ncclResult_t ncclCommInitAll(ncclComm_t *handles, int count, const int *devices) {
    int before = cudahost::self.host.device;
    ncclUniqueId id;
    ncclResult_t result = ncclGetUniqueId(&id);
    if (!result) result = ncclGroupStart();
    if (result) return result;
    for (int i = 0; i < count; i++) {
        cudahost::self.host.device = devices ? devices[i] : i;
        ncclCommInitRank(handles + i, count, id, i);
    }
    cudahost::self.host.device = before;
    return ncclGroupEnd();
}

inline ncclResult_t ncclCommCount(const ncclComm_t handle, int *count) {
    ncclResult_t error = cudahost::enter_comm("ncclCommCount", handle);
    if (!error) *count = handle->comm->mesh.count;
    return error;
}

inline ncclResult_t ncclCommUserRank(const ncclComm_t handle, int *rank) {
    ncclResult_t error = cudahost::enter_comm("ncclCommUserRank", handle);
    if (!error) *rank = handle->comm->mesh.rank;
    return error;
}

inline ncclResult_t ncclCommCuDevice(const ncclComm_t handle, int *device) {
    ncclResult_t error = cudahost::enter_comm("ncclCommCuDevice", handle);
    if (!error) *device = handle->comm->mesh.device;
    return error;
}

inline ncclResult_t ncclCommGetAsyncError(ncclComm_t handle, ncclResult_t *result) {
    ncclResult_t error = cudahost::enter_comm("ncclCommGetAsyncError", handle);
    if (error) return error;
    *result = (ncclResult_t)handle->comm->result.get();
    if (*result != ncclInProgress) cudahost::observe(&handle->comm->order);
    return ncclSuccess;
}

inline ncclResult_t ncclSend(const void *from, size_t count, ncclDataType_t type, int peer,
                             ncclComm_t handle, cudaStream_t stream) {
    ncclResult_t error = cudahost::check_call("ncclSend", handle, stream, peer);
    if (error) return error;
    size_t bytes = count * cudahost::size_of(type);
    return cudahost::add_call({handle->comm, stream, "ncclSend to rank " + std::to_string(peer),
                               false, true, peer, from, nullptr, bytes, nullptr});
}

inline ncclResult_t ncclRecv(void *to, size_t count, ncclDataType_t type, int peer,
                             ncclComm_t handle, cudaStream_t stream) {
    ncclResult_t error = cudahost::check_call("ncclRecv", handle, stream, peer);
    if (error) return error;
    size_t bytes = count * cudahost::size_of(type);
    return cudahost::add_call({handle->comm, stream, "ncclRecv from rank " + std::to_string(peer),
                               false, false, peer, nullptr, to, bytes, nullptr});
}

// >>collectives

namespace cudahost {

enum { BROADCAST = 1, REDUCTION = 2, GATHERING = 3 };  // and the operator and type, so that all ranks agree

// Root sends, all others receive.
inline CommStep broadcast_step(const Mesh &mesh, int root, const void *from, void *to,
                               size_t bytes, uint32_t operation) {
    CommStep step;
    for (int other = 0; other < mesh.count; other++)
        if (mesh.rank == root && other != root)
            step.parts.push_back(part(true, other, from, bytes, operation));
    if (mesh.rank != root) step.parts.push_back(part(false, root, to, bytes, operation));
    return step;
}

template <class T> T combine(ncclRedOp_t op, T a, T b) {
    switch (op) {
    case ncclProd: return (T)(a * b);
    case ncclMax: return b > a ? b : a;
    case ncclMin: return b < a ? b : a;
    default: return (T)(a + b);
    }
}

// From the last rank to the first, so that nobody relies on the obvious order.
template <class T>
void reduce(ncclRedOp_t op, const std::vector<std::vector<char>> &inputs, void *to, size_t count) {
    T *out = (T *)to;
    for (size_t i = 0; i < count; i++) {
        T sum = ((const T *)inputs.back().data())[i];
        for (size_t rank = inputs.size() - 1; rank-- > 0;)
            sum = combine<T>(op, sum, ((const T *)inputs[rank].data())[i]);
        out[i] = op == ncclAvg ? (T)(sum / (T)(float)inputs.size()) : sum;
    }
}

inline bool reduce_any(ncclDataType_t type, ncclRedOp_t op,
                       const std::vector<std::vector<char>> &inputs, void *to, size_t count) {
    switch (type) {
    case ncclFloat32: reduce<float>(op, inputs, to, count); return true;
    case ncclFloat64: reduce<double>(op, inputs, to, count); return true;
    case ncclBfloat16: reduce<__nv_bfloat16>(op, inputs, to, count); return true;
    case ncclInt32: reduce<int32_t>(op, inputs, to, count); return true;
    case ncclUint32: reduce<uint32_t>(op, inputs, to, count); return true;
    case ncclInt64: reduce<int64_t>(op, inputs, to, count); return true;
    case ncclUint64: reduce<uint64_t>(op, inputs, to, count); return true;
    default: return false;
    }
}

// All send to rank 0, which adds up and sends the result to all.
inline void plan_reduction(const Mesh &mesh, const void *from, void *to, size_t count,
                           ncclDataType_t type, ncclRedOp_t op, std::vector<CommStep> &steps) {
    size_t bytes = count * size_of(type);
    uint32_t operation = REDUCTION | (uint32_t)op << 4 | (uint32_t)type << 8;
    CommStep gather;
    if (mesh.rank != 0) {
        gather.parts.push_back(part(true, 0, from, bytes, operation));
    } else {
        auto inputs = Ref<std::vector<std::vector<char>>>::make();
        inputs->resize((size_t)mesh.count);
        for (int rank = 0; rank < mesh.count; rank++) {
            std::vector<char> &input = (*inputs)[(size_t)rank];
            if (rank == 0) input.assign((const char *)from, (const char *)from + bytes);
            else input.resize(bytes);
            if (rank) gather.parts.push_back(part(false, rank, input.data(), bytes, operation));
        }
        gather.then = [=] { reduce_any(type, op, *inputs, to, count); };
    }
    steps.push_back(gather);
    steps.push_back(broadcast_step(mesh, 0, to, to, bytes, operation));
}

// Everybody sends his part to all others. In place if it lies where it belongs.
inline void plan_gathering(const Mesh &mesh, const void *from, void *to, size_t bytes,
                           std::vector<CommStep> &steps) {
    CommStep step;
    char *own = (char *)to + (size_t)mesh.rank * bytes;
    for (int other = 0; other < mesh.count; other++) {
        char *place = (char *)to + (size_t)other * bytes;
        if (other == mesh.rank) continue;
        step.parts.push_back(part(true, other, from, bytes, GATHERING));
        step.parts.push_back(part(false, other, place, bytes, GATHERING));
    }
    if (from != own && bytes) step.then = [=] { memmove(own, from, bytes); };
    steps.push_back(step);
}

} // namespace cudahost

inline ncclResult_t ncclAllReduce(const void *from, void *to, size_t count, ncclDataType_t type,
                                  ncclRedOp_t op, ncclComm_t handle, cudaStream_t stream) {
    ncclResult_t error = cudahost::check_call("ncclAllReduce", handle, stream, 0);
    if (error) return error;
    if (!cudahost::size_of(type) || type == ncclFloat16 || op >= ncclNumOps)
        return cudahost::group_error(ncclInvalidArgument);
    cudahost::Comm *comm = &*handle->comm;
    auto plan = [=](std::vector<cudahost::CommStep> &steps) {
        cudahost::plan_reduction(comm->mesh, from, to, count, type, op, steps);
    };
    return cudahost::add_call({handle->comm, stream, "ncclAllReduce", true, false, 0, from, to,
                               count * cudahost::size_of(type), plan});
}

inline ncclResult_t ncclBroadcast(const void *from, void *to, size_t count, ncclDataType_t type,
                                  int root, ncclComm_t handle, cudaStream_t stream) {
    ncclResult_t error = cudahost::check_call("ncclBroadcast", handle, stream, root);
    if (error) return error;
    cudahost::Comm *comm = &*handle->comm;
    size_t bytes = count * cudahost::size_of(type);
    const void *source = comm->mesh.rank == root ? from : nullptr;
    auto plan = [=](std::vector<cudahost::CommStep> &steps) {
        steps.push_back(cudahost::broadcast_step(comm->mesh, root, source, to, bytes,
                                                 cudahost::BROADCAST | (uint32_t)root << 4));
        if (comm->mesh.rank == root && source != to && bytes)
            steps.back().then = [=] { memmove(to, source, bytes); };
    };
    return cudahost::add_call({handle->comm, stream, "ncclBroadcast", true, false, 0, source, to,
                               bytes, plan});
}

inline ncclResult_t ncclAllGather(const void *from, void *to, size_t count, ncclDataType_t type,
                                  ncclComm_t handle, cudaStream_t stream) {
    ncclResult_t error = cudahost::check_call("ncclAllGather", handle, stream, 0);
    if (error) return error;
    cudahost::Comm *comm = &*handle->comm;
    size_t bytes = count * cudahost::size_of(type);
    auto plan = [=](std::vector<cudahost::CommStep> &steps) {
        cudahost::plan_gathering(comm->mesh, from, to, bytes, steps);
    };
    return cudahost::add_call({handle->comm, stream, "ncclAllGather", true, false, 0, from, to,
                               bytes, plan});
}

// >>ends

namespace cudahost {

// Until all that was issued is done.
inline bool quiesce(Comm &comm, const char *api) {
    Locked hold(comm.lock);
    return wait_until(hold.lock, comm.changed, api, [&] {
        return comm.mesh.aborted.get() || comm.finished == comm.issued;
    });
}

// Until no thread is inside any more, after an abort.
inline void wait_empty(Comm &comm, const char *api) {
    Locked hold(comm.lock);
    wait_until(hold.lock, comm.changed, api, [&] { return comm.busy == 0; });
}

inline void free_comm(ncclComm_t handle) {
    join_job(*handle->comm);
    handle->comm->mesh.hang_up();
    delete handle;
}

} // namespace cudahost

inline ncclResult_t ncclCommFinalize(ncclComm_t handle) {
    ncclResult_t error = cudahost::enter_comm("ncclCommFinalize", handle);
    if (error) return error;
    cudahost::Ref<cudahost::Comm> comm = handle->comm;
    if (comm->finalized) return ncclInvalidArgument;
    comm->finalized = true;
    if (comm->blocking)
        return cudahost::quiesce(*comm, "ncclCommFinalize") ? ncclSuccess : ncclSystemError;
    comm->result.change(ncclSuccess, ncclInProgress);
    cudahost::join_job(*comm);
    comm->job = std::thread([comm] {
        bool good = cudahost::quiesce(*comm, "ncclCommFinalize");
        cudahost::settle(*comm, good ? ncclSuccess : ncclSystemError);
    });
    return ncclInProgress;
}

inline ncclResult_t ncclCommDestroy(ncclComm_t handle) {
    bool fails = cudahost::planned("ncclCommDestroy");
    if (!cudahost::alive(handle, cudahost::Comms)) return ncclInvalidArgument;
    bool good = cudahost::quiesce(*handle->comm, "ncclCommDestroy");
    if (!good) handle->comm->mesh.aborted.set(1);
    cudahost::wait_empty(*handle->comm, "ncclCommDestroy");
    cudahost::dies(handle, cudahost::Comms);
    cudahost::free_comm(handle);
    return fails ? ncclInternalError : good ? ncclSuccess : ncclSystemError;
}

// May come from another thread than the one that is stuck.
inline ncclResult_t ncclCommAbort(ncclComm_t handle) {
    bool fails = cudahost::planned("ncclCommAbort");
    if (!cudahost::alive(handle, cudahost::Comms)) return ncclInvalidArgument;
    handle->comm->mesh.aborted.set(1);
    cudahost::wait_empty(*handle->comm, "ncclCommAbort");
    cudahost::dies(handle, cudahost::Comms);
    cudahost::free_comm(handle);
    return fails ? ncclInternalError : ncclSuccess;
}
#endif
