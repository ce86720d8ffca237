// cuda_runtime.h - the runtime API, as far as a training program needs it. The synchronous calls
// that use the NULL stream, cudaMemcpy() and its like, are left out on purpose.
#ifndef CUDAHOST_RUNTIME_H
#define CUDAHOST_RUNTIME_H
#include "cudahost_dialect.h"

// >>errors

inline const char *cudaGetErrorString(cudaError_t error) {
    switch (error) {
#define CUDAHOST_ERROR(name, value, text) case name: return text;
        CUDAHOST_ERRORS(CUDAHOST_ERROR)
#undef CUDAHOST_ERROR
    }
    return "unrecognized error code";
}

inline const char *cudaGetErrorName(cudaError_t error) {
    switch (error) {
#define CUDAHOST_ERROR(name, value, text) case name: return #name;
        CUDAHOST_ERRORS(CUDAHOST_ERROR)
#undef CUDAHOST_ERROR
    }
    return "unrecognized error code";
}

inline cudaError_t cudaPeekAtLastError() { return cudahost::self.host.last_error; }

inline cudaError_t cudaGetLastError() {
    cudaError_t error = cudahost::self.host.last_error;
    cudahost::self.host.last_error = cudaSuccess;
    return error;
}

// >>devices

inline cudaError_t cudaGetDeviceCount(int *count) {
    *count = cudahost::device_count();
    if (cudahost::planned("cudaGetDeviceCount")) return cudahost::failed(cudaErrorUnknown);
    return *count ? cudaSuccess : cudahost::failed(cudaErrorNoDevice);
}

inline cudaError_t cudaDriverGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudahost::planned("cudaDriverGetVersion") ? cudahost::failed(cudaErrorUnknown)
                                                     : cudaSuccess;
}

inline cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudahost::planned("cudaRuntimeGetVersion") ? cudahost::failed(cudaErrorUnknown)
                                                      : cudaSuccess;
}

namespace cudahost {

// As enter(), for calls that name a device and do not care about its health.
inline cudaError_t enter_device(const char *api, int ordinal) {
    if (planned(api)) return failed(cudaErrorUnknown);
    if (device_count() == 0) return failed(cudaErrorNoDevice);
    if (ordinal < 0 || ordinal >= device_count()) return failed(cudaErrorInvalidDevice);
    return cudaSuccess;
}

inline cudaDeviceProp properties(int ordinal) {
    cudaDeviceProp p = {};
    snprintf(p.name, sizeof p.name, "cudahost");
    p.uuid.bytes[0] = (char)(ordinal + 1);
    p.totalGlobalMem = state().settings.memory;
    p.sharedMemPerBlock = SHARED_DEFAULT;
    p.regsPerBlock = 65536;
    p.warpSize = WARP;
    p.maxThreadsPerBlock = p.maxThreadsDim[0] = p.maxThreadsDim[1] = MOST_THREADS;
    p.maxThreadsDim[2] = 64;
    p.maxGridSize[0] = 0x7fffffff;
    p.maxGridSize[1] = p.maxGridSize[2] = 65535;
    p.major = 9;
    p.multiProcessorCount = state().settings.multiprocessors;
    p.canMapHostMemory = p.concurrentKernels = p.ECCEnabled = p.unifiedAddressing = 1;
    p.pciBusID = ordinal + 1;
    p.asyncEngineCount = 3;
    p.memoryBusWidth = 5120;
    p.l2CacheSize = 50 << 20;
    p.maxThreadsPerMultiProcessor = THREADS_PER_SM;
    p.streamPrioritiesSupported = p.cooperativeLaunch = 1;
    p.sharedMemPerMultiprocessor = SHARED_PER_SM;
    p.sharedMemPerBlockOptin = SHARED_MOST;
    p.reservedSharedMemPerBlock = SHARED_RESERVED;
    p.maxBlocksPerMultiProcessor = BLOCKS_PER_SM;
    return p;
}

inline bool attribute(const cudaDeviceProp &p, cudaDeviceAttr which, int *value) {
    switch (which) {
    case cudaDevAttrMaxThreadsPerBlock: *value = p.maxThreadsPerBlock; return true;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = (int)p.sharedMemPerBlock; return true;
    case cudaDevAttrWarpSize: *value = p.warpSize; return true;
    case cudaDevAttrClockRate: *value = 1980000; return true;
    case cudaDevAttrMultiProcessorCount: *value = p.multiProcessorCount; return true;
    case cudaDevAttrConcurrentKernels: *value = p.concurrentKernels; return true;
    case cudaDevAttrPciBusId: *value = p.pciBusID; return true;
    case cudaDevAttrPciDeviceId: *value = p.pciDeviceID; return true;
    case cudaDevAttrMemoryClockRate: *value = 2619000; return true;
    case cudaDevAttrL2CacheSize: *value = p.l2CacheSize; return true;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
        *value = p.maxThreadsPerMultiProcessor;
        return true;
    case cudaDevAttrAsyncEngineCount: *value = p.asyncEngineCount; return true;
    case cudaDevAttrUnifiedAddressing: *value = p.unifiedAddressing; return true;
    case cudaDevAttrPciDomainId: *value = p.pciDomainID; return true;
    case cudaDevAttrComputeCapabilityMajor: *value = p.major; return true;
    case cudaDevAttrComputeCapabilityMinor: *value = p.minor; return true;
    case cudaDevAttrStreamPrioritiesSupported: *value = p.streamPrioritiesSupported; return true;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        *value = (int)p.sharedMemPerMultiprocessor;
        return true;
    case cudaDevAttrCooperativeLaunch: *value = p.cooperativeLaunch; return true;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = (int)p.sharedMemPerBlockOptin;
        return true;
    case cudaDevAttrMaxBlocksPerMultiprocessor: *value = p.maxBlocksPerMultiProcessor; return true;
    case cudaDevAttrReservedSharedMemoryPerBlock:
        *value = (int)p.reservedSharedMemPerBlock;
        return true;
    case cudaDevAttrMemoryPoolsSupported: *value = 0; return true;
    }
    return false;
}

} // namespace cudahost

inline cudaError_t cudaSetDevice(int ordinal) {
    cudaError_t error = cudahost::enter_device("cudaSetDevice", ordinal);
    if (!error) cudahost::self.host.device = ordinal;
    return error;
}

inline cudaError_t cudaGetDevice(int *ordinal) {
    cudaError_t error = cudahost::enter_device("cudaGetDevice", 0);
    if (!error) *ordinal = cudahost::self.host.device;
    return error;
}

inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int ordinal) {
    cudaError_t error = cudahost::enter_device("cudaGetDeviceProperties", ordinal);
    *properties = error ? cudaDeviceProp{} : cudahost::properties(ordinal);
    return error;
}

inline cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr which, int ordinal) {
    cudaError_t error = cudahost::enter_device("cudaDeviceGetAttribute", ordinal);
    if (!error && !cudahost::attribute(cudahost::properties(ordinal), which, value))
        error = cudahost::failed(cudaErrorInvalidValue);
    return error;
}

inline cudaError_t cudaDeviceGetPCIBusId(char *text, int bytes, int ordinal) {
    cudaError_t error = cudahost::enter_device("cudaDeviceGetPCIBusId", ordinal);
    if (!error) snprintf(text, (size_t)bytes, "0000:%02X:00.0", ordinal + 1);
    return error;
}

inline cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    cudaError_t error = cudahost::enter("cudaDeviceGetStreamPriorityRange");
    *least = 0;
    *greatest = -5;
    return error;
}

inline cudaError_t cudaMemGetInfo(size_t *unused, size_t *total) {
    cudaError_t error = cudahost::enter("cudaMemGetInfo");
    if (error) return error;
    cudahost::Locked hold(cudahost::state().lock);
    *total = cudahost::state().settings.memory;
    *unused = *total - cudahost::device(cudahost::self.host.device).used;
    return cudaSuccess;
}

inline cudaError_t cudaDeviceCanAccessPeer(int *can, int ordinal, int peer) {
    cudaError_t error = cudahost::enter_device("cudaDeviceCanAccessPeer", ordinal);
    if (!error && (peer < 0 || peer >= cudahost::device_count()))
        error = cudahost::failed(cudaErrorInvalidDevice);
    if (!error) *can = ordinal != peer && cudahost::state().settings.peers;
    return error;
}

inline cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned int flags) {
    int here = cudahost::self.host.device;
    cudaError_t error = cudahost::enter("cudaDeviceEnablePeerAccess");
    if (error) return error;
    if (flags) return cudahost::failed(cudaErrorInvalidValue);
    if (peer < 0 || peer >= cudahost::device_count() || peer == here)
        return cudahost::failed(cudaErrorInvalidDevice);
    if (!cudahost::state().settings.peers)
        return cudahost::failed(cudaErrorPeerAccessUnsupported);
    cudahost::Locked hold(cudahost::state().lock);
    bool fresh = cudahost::device(here).peers.insert(peer).second;
    return fresh ? cudaSuccess : cudahost::failed(cudaErrorPeerAccessAlreadyEnabled);
}

inline cudaError_t cudaDeviceDisablePeerAccess(int peer) {
    cudaError_t error = cudahost::enter("cudaDeviceDisablePeerAccess");
    if (error) return error;
    cudahost::Locked hold(cudahost::state().lock);
    bool was = cudahost::device(cudahost::self.host.device).peers.erase(peer) != 0;
    return was ? cudaSuccess : cudahost::failed(cudaErrorPeerAccessNotEnabled);
}

namespace cudahost {

inline std::vector<Stream *> streams_of(int ordinal) {
    Locked hold(state().lock);
    return std::vector<Stream *>(device(ordinal).streams.begin(), device(ordinal).streams.end());
}

inline cudaError_t drain_device(int ordinal, const char *why) {
    for (Stream *stream : streams_of(ordinal))
        if (!stream->drain(why)) device_fault(ordinal, cudaErrorLaunchTimeout, why);
    return failed(fault_of(ordinal));
}

// Calls that would wait or allocate make a capture that is under way invalid.
inline cudaError_t unsafe(const char *api, Stream *stream = nullptr) {
    if (!spoils_capture(stream)) return cudaSuccess;
    say(1, "%s is not permitted during a capture", api);
    return failed(cudaErrorStreamCaptureUnsupported);
}

} // namespace cudahost

inline cudaError_t cudaDeviceSynchronize() {
    cudaError_t error = cudahost::enter("cudaDeviceSynchronize");
    if (!error) error = cudahost::unsafe("cudaDeviceSynchronize");
    if (error) return error;
    return cudahost::drain_device(cudahost::self.host.device, "cudaDeviceSynchronize");
}

// Forgives the device its fault. Unlike the real one it destroys nothing.
inline cudaError_t cudaDeviceReset() {
    cudaError_t error = cudahost::enter_device("cudaDeviceReset", cudahost::self.host.device);
    if (error) return error;
    for (cudahost::Stream *stream : cudahost::streams_of(cudahost::self.host.device))
        stream->drain("cudaDeviceReset");
    cudahost::device(cudahost::self.host.device).fault.set(cudaSuccess);
    return cudaSuccess;
}

// >>memory

namespace cudahost {

inline cudaError_t allocate_call(const char *api, void **p, size_t bytes, bool pinned) {
    *p = nullptr;
    if (planned(api)) return failed(cudaErrorMemoryAllocation);
    if (device_count() == 0) return failed(cudaErrorNoDevice);
    cudaError_t error = failed(fault_of(self.host.device));
    if (!error) error = unsafe(api);
    if (error || bytes == 0) return error;
    return failed(allocate(p, bytes, pinned));
}

// Frees even if it then tells of an error, as the real one does, which reports earlier faults.
inline cudaError_t release_call(const char *api, void *p, bool pinned) {
    bool fails = planned(api);
    if (!p) return fails ? failed(cudaErrorUnknown) : cudaSuccess;
    cudaError_t error = unsafe(api);
    if (error) return error;
    uintptr_t start;
    Allocation found;
    if (find_memory(p, &start, &found)) error = drain_device(found.device, api);
    cudaError_t wrong = release(p, pinned);
    if (wrong) return failed(wrong);
    return fails ? failed(cudaErrorUnknown) : error;
}

} // namespace cudahost

template <class T> cudaError_t cudaMalloc(T **p, size_t bytes) {
    return cudahost::allocate_call("cudaMalloc", (void **)p, bytes, false);
}
template <class T> cudaError_t cudaMallocHost(T **p, size_t bytes, unsigned int = 0) {
    return cudahost::allocate_call("cudaMallocHost", (void **)p, bytes, true);
}
template <class T> cudaError_t cudaHostAlloc(T **p, size_t bytes, unsigned int) {
    return cudahost::allocate_call("cudaHostAlloc", (void **)p, bytes, true);
}
inline cudaError_t cudaFree(void *p) { return cudahost::release_call("cudaFree", p, false); }
inline cudaError_t cudaFreeHost(void *p) {
    return cudahost::release_call("cudaFreeHost", p, true);
}

inline cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *attributes, const void *p) {
    cudaError_t error = cudahost::enter("cudaPointerGetAttributes");
    if (error) return error;
    uintptr_t start;
    cudahost::Allocation found;
    *attributes = cudaPointerAttributes{cudaMemoryTypeUnregistered, -1, nullptr, nullptr};
    attributes->hostPointer = const_cast<void *>(p);
    if (!cudahost::find_memory(p, &start, &found)) return cudaSuccess;
    attributes->type = found.pinned ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
    attributes->device = found.device;
    attributes->devicePointer = const_cast<void *>(p);
    if (!found.pinned) attributes->hostPointer = nullptr;
    return cudaSuccess;
}

// >>copies

namespace cudahost {

// Rows of bytes, `pitch` apart on either side.
struct Copy {
    char *to;
    size_t to_pitch;
    const char *from;
    size_t from_pitch, width, height;
    bool to_device, from_device;      // else host memory, pinned or not
    std::vector<char> staged;         // if the source was pageable: what it held at the call
};

enum Place { Pageable, Pinned, OnDevice };

inline Place place_of(const void *p) {
    uintptr_t start;
    Allocation found;
    if (!find_memory(p, &start, &found)) return Pageable;
    return found.pinned ? Pinned : OnDevice;
}

inline size_t extent(size_t pitch, size_t width, size_t height) {
    return height ? (height - 1) * pitch + width : 0;
}

// Any device may be the source or target of a copy; kernels are stricter.
inline const char *wrong_side(const void *p, size_t bytes, bool on_device) {
    uintptr_t start;
    Allocation found;
    if (!find_memory(p, &start, &found))
        return on_device ? "is not memory of a device" : nullptr;
    if (on_device == found.pinned)
        return on_device ? "is host memory" : "is memory of a device";
    return (uintptr_t)p - start + bytes > found.bytes ? "is more than was allocated" : nullptr;
}

inline bool good_copy(const char *api, const Copy &copy) {
    const char *to = wrong_side(copy.to, extent(copy.to_pitch, copy.width, copy.height),
                                copy.to_device);
    const char *from = wrong_side(copy.from, extent(copy.from_pitch, copy.width, copy.height),
                                  copy.from_device);
    if (to) say(1, "%s: the target %s", api, to);
    if (from) say(1, "%s: the source %s", api, from);
    return !to && !from;
}

inline void run_copy(const char *api, const Copy &copy) {
    if (copy.staged.empty() && !good_copy(api, copy)) {
        device_fault(self.runner.device, cudaErrorIllegalAddress, api);
        return;
    }
    const char *from = copy.staged.empty() ? copy.from : copy.staged.data();
    for (size_t row = 0; row < copy.height; row++)
        memcpy(copy.to + row * copy.to_pitch, from + row * copy.from_pitch, copy.width);
}

inline bool is_capturing(Stream *stream) {
    Locked hold(state().lock);
    return (bool)stream->capture;
}

// A pageable source is read before the call returns, a pinned one when the copy runs; a copy to
// pageable memory has run when the call returns.
inline cudaError_t submit_copy(const char *api, Copy copy, Stream *stream) {
    if (copy.width == 0 || copy.height == 0) return cudaSuccess;
    if (!good_copy(api, copy)) return failed(cudaErrorInvalidValue);
    bool captured = is_capturing(stream);
    if (!captured && place_of(copy.from) == Pageable)
        copy.staged.assign(copy.from,
                           copy.from + extent(copy.from_pitch, copy.width, copy.height));
    bool wait = !captured && place_of(copy.to) == Pageable;
    if (wait) {
        cudaError_t error = unsafe(api);
        if (error) return error;
    }
    stream->submit(api, [api, copy] { run_copy(api, copy); });
    if (wait && !stream->drain(api))
        device_fault(stream->device, cudaErrorLaunchTimeout, api);
    return wait ? failed(fault_of(stream->device)) : cudaSuccess;
}

inline void set_sides(Copy *copy, cudaMemcpyKind kind) {
    copy->to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    copy->from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (kind != cudaMemcpyDefault) return;
    copy->to_device = place_of(copy->to) == OnDevice;
    copy->from_device = place_of(copy->from) == OnDevice;
}

inline void run_fill(void *to, size_t pitch, int value, size_t width, size_t height) {
    const char *wrong = wrong_memory(self.runner.device, to, extent(pitch, width, height));
    if (wrong) device_fault(self.runner.device, cudaErrorIllegalAddress, wrong);
    for (size_t row = 0; row < height && !wrong; row++)
        memset((char *)to + row * pitch, value, width);
}

inline cudaError_t submit_fill(const char *api, void *to, size_t pitch, int value, size_t width,
                               size_t height, Stream *stream) {
    cudaError_t error = enter_stream(api, stream);
    if (error || width == 0 || height == 0) return error;
    const char *wrong = wrong_memory(stream->device, to, extent(pitch, width, height));
    if (wrong) {
        say(1, "%s: the target is %s", api, wrong);
        return failed(cudaErrorInvalidValue);
    }
    stream->submit(api, [=] { run_fill(to, pitch, value, width, height); });
    return cudaSuccess;
}

} // namespace cudahost

inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                                   cudaStream_t stream) {
    cudaError_t error = cudahost::enter_stream("cudaMemcpyAsync", stream);
    if (error) return error;
    cudahost::Copy copy = {(char *)to, bytes, (const char *)from, bytes, bytes, 1, false, false,
                           {}};
    cudahost::set_sides(&copy, kind);
    return cudahost::submit_copy("cudaMemcpyAsync", copy, stream);
}

inline cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from,
                                     size_t from_pitch, size_t width, size_t height,
                                     cudaMemcpyKind kind, cudaStream_t stream) {
    cudaError_t error = cudahost::enter_stream("cudaMemcpy2DAsync", stream);
    if (error) return error;
    if (width > to_pitch || width > from_pitch) return cudahost::failed(cudaErrorInvalidPitchValue);
    cudahost::Copy copy = {(char *)to, to_pitch, (const char *)from, from_pitch,
                           width,      height,   false,              false,      {}};
    cudahost::set_sides(&copy, kind);
    return cudahost::submit_copy("cudaMemcpy2DAsync", copy, stream);
}

inline cudaError_t cudaMemcpyPeerAsync(void *to, int to_device, const void *from, int from_device,
                                       size_t bytes, cudaStream_t stream) {
    cudaError_t error = cudahost::enter_stream("cudaMemcpyPeerAsync", stream);
    if (error) return error;
    uintptr_t start;
    cudahost::Allocation at = {}, of = {};
    if (!cudahost::find_memory(to, &start, &at) || !cudahost::find_memory(from, &start, &of) ||
        at.pinned || of.pinned || at.device != to_device || of.device != from_device) {
        cudahost::say(1, "cudaMemcpyPeerAsync: memory of another device than the call says");
        return cudahost::failed(cudaErrorInvalidValue);
    }
    return cudahost::submit_copy(
        "cudaMemcpyPeerAsync",
        cudahost::Copy{(char *)to, bytes, (const char *)from, bytes, bytes, 1, true, true, {}},
        stream);
}

inline cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream) {
    return cudahost::submit_fill("cudaMemsetAsync", to, bytes, value, bytes, 1, stream);
}

inline cudaError_t cudaMemset2DAsync(void *to, size_t pitch, int value, size_t width,
                                     size_t height, cudaStream_t stream) {
    return cudahost::submit_fill("cudaMemset2DAsync", to, pitch, value, width, height, stream);
}

// >>streams

inline cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned int flags,
                                                int priority) {
    cudaError_t error = cudahost::enter("cudaStreamCreateWithPriority");
    if (error) return error;
    if (flags != cudaStreamNonBlocking) {
        cudahost::say(1, "a stream that waits for the NULL stream is refused");
        return cudahost::failed(cudaErrorInvalidValue);
    }
    int here = cudahost::self.host.device;
    *stream = new cudahost::Stream(here, priority);
    cudahost::born(*stream, cudahost::Streams);
    cudahost::Locked hold(cudahost::state().lock);
    cudahost::device(here).streams.insert(*stream);
    return cudaSuccess;
}

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned int flags) {
    if (cudahost::planned("cudaStreamCreateWithFlags"))
        return cudahost::failed(cudaErrorUnknown);
    return cudaStreamCreateWithPriority(stream, flags, 0);
}

// Unlike the real one it waits for what is in the stream.
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    bool fails = cudahost::planned("cudaStreamDestroy");
    if (!cudahost::usable("cudaStreamDestroy", stream) ||
        !cudahost::dies(stream, cudahost::Streams))
        return cudahost::failed(cudaErrorInvalidResourceHandle);
    {
        cudahost::Locked hold(cudahost::state().lock);
        cudahost::device(stream->device).streams.erase(stream);
    }
    cudahost::Quiet quiet;
    delete stream;
    return fails ? cudahost::failed(cudaErrorUnknown) : cudaSuccess;
}

inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    cudaError_t error = cudahost::enter_stream("cudaStreamSynchronize", stream);
    if (!error) error = cudahost::unsafe("cudaStreamSynchronize", stream);
    if (error) return error;
    if (!stream->drain("cudaStreamSynchronize"))
        cudahost::device_fault(stream->device, cudaErrorLaunchTimeout,
                               "cudaStreamSynchronize waited in vain");
    return cudahost::failed(cudahost::fault_of(stream->device));
}

inline cudaError_t cudaStreamQuery(cudaStream_t stream) {
    cudaError_t error = cudahost::enter_stream("cudaStreamQuery", stream);
    if (!error) error = cudahost::unsafe("cudaStreamQuery", stream);
    if (error) return error;
    return stream->idle() ? cudahost::failed(cudahost::fault_of(stream->device))
                          : cudaErrorNotReady;
}

inline cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority) {
    cudaError_t error = cudahost::enter_stream("cudaStreamGetPriority", stream);
    if (!error) *priority = stream->priority;
    return error;
}

inline cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data) {
    cudaError_t error = cudahost::enter_stream("cudaLaunchHostFunc", stream);
    if (!error) stream->submit("cudaLaunchHostFunc", [=] { function(data); });
    return error;
}

// >>events

inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned int flags) {
    cudaError_t error = cudahost::enter("cudaEventCreateWithFlags");
    if (error) return error;
    *event = new cudahost::Event{cudahost::self.host.device,
                                 !(flags & cudaEventDisableTiming), {}, {}, {}};
    cudahost::born(*event, cudahost::Events);
    return cudaSuccess;
}

inline cudaError_t cudaEventCreate(cudaEvent_t *event) {
    return cudaEventCreateWithFlags(event, cudaEventDefault);
}

inline cudaError_t cudaEventDestroy(cudaEvent_t event) {
    bool fails = cudahost::planned("cudaEventDestroy");
    if (!cudahost::dies(event, cudahost::Events))
        return cudahost::failed(cudaErrorInvalidResourceHandle);
    delete event;
    return fails ? cudahost::failed(cudaErrorUnknown) : cudaSuccess;
}

namespace cudahost {

inline cudaError_t enter_event(const char *api, Event *event) {
    if (planned(api)) return failed(cudaErrorUnknown);
    if (!alive(event, Events)) return failed(cudaErrorInvalidResourceHandle);
    return failed(fault_of(event->device));
}

// For calls that ask whether an event has happened.
inline cudaError_t enter_query(const char *api, Event *event) {
    cudaError_t error = enter_event(api, event);
    if (!error) error = unsafe(api);
    if (error) return error;
    Locked hold(state().lock);
    return event->capture ? failed(cudaErrorCapturedEvent) : cudaSuccess;
}

} // namespace cudahost

inline cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream,
                                            unsigned int flags) {
    cudaError_t error = cudahost::enter_stream("cudaEventRecord", stream);
    if (error) return error;
    if (!cudahost::alive(event, cudahost::Events) || event->device != stream->device) {
        cudahost::say(1, "cudaEventRecord: not an event of the stream's device");
        return cudahost::failed(cudaErrorInvalidResourceHandle);
    }
    bool external = (flags & cudaEventRecordExternal) != 0;
    if (external && !cudahost::is_capturing(stream))
        return cudahost::failed(cudaErrorInvalidValue);
    cudahost::record_event(event, stream, external);
    return cudaSuccess;
}

inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    return cudaEventRecordWithFlags(event, stream, cudaEventRecordDefault);
}

inline cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event,
                                       unsigned int flags = 0) {
    cudaError_t error = cudahost::enter_stream("cudaStreamWaitEvent", stream);
    if (error) return error;
    if (!cudahost::alive(event, cudahost::Events))
        return cudahost::failed(cudaErrorInvalidResourceHandle);
    bool external = (flags & cudaEventWaitExternal) != 0;
    if (external && !cudahost::is_capturing(stream))
        return cudahost::failed(cudaErrorInvalidValue);
    return cudahost::failed(cudahost::wait_event(stream, event, external));
}

inline cudaError_t cudaEventQuery(cudaEvent_t event) {
    cudaError_t error = cudahost::enter_query("cudaEventQuery", event);
    if (error) return error;
    cudahost::Ref<cudahost::Record> record = cudahost::latest(event);
    return !record || record->finished() ? cudaSuccess : cudaErrorNotReady;
}

inline cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    cudaError_t error = cudahost::enter_query("cudaEventSynchronize", event);
    if (error) return error;
    cudahost::Ref<cudahost::Record> record = cudahost::latest(event);
    if (record && !record->wait("cudaEventSynchronize"))
        cudahost::device_fault(event->device, cudaErrorLaunchTimeout,
                               "cudaEventSynchronize waited in vain");
    return cudahost::failed(cudahost::fault_of(event->device));
}

inline cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t begin, cudaEvent_t end) {
    for (cudaEvent_t event : {begin, end}) {
        cudaError_t error = cudahost::enter_query("cudaEventElapsedTime", event);
        if (error) return error;
        if (!event->timed || !cudahost::latest(event))
            return cudahost::failed(cudaErrorInvalidResourceHandle);
        if (!cudahost::latest(event)->finished()) return cudaErrorNotReady;
    }
    cudahost::Quiet quiet;
    std::chrono::duration<float, std::milli> time = end->latest->time - begin->latest->time;
    *ms = time.count();
    return cudaSuccess;
}

// >>graphs

inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    cudaError_t error = cudahost::enter_stream("cudaStreamBeginCapture", stream);
    return error ? error : cudahost::failed(cudahost::begin_capture(stream, mode));
}

inline cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    bool fails = cudahost::planned("cudaStreamEndCapture");
    if (!cudahost::usable("cudaStreamEndCapture", stream))
        return cudahost::failed(cudaErrorInvalidResourceHandle);
    cudaError_t error = cudahost::end_capture(stream, graph);
    if (fails && *graph) {
        cudahost::dies(*graph, cudahost::Graphs);
        delete *graph;
        *graph = nullptr;
    }
    return cudahost::failed(fails ? cudaErrorUnknown : error);
}

inline cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status) {
    cudaError_t error = cudahost::enter_stream("cudaStreamIsCapturing", stream);
    if (error) return error;
    cudahost::Locked hold(cudahost::state().lock);
    *status = !stream->capture           ? cudaStreamCaptureStatusNone
              : stream->capture->invalid ? cudaStreamCaptureStatusInvalidated
                                         : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph,
                                        unsigned long long = 0) {
    cudaError_t error = cudahost::enter("cudaGraphInstantiate");
    if (error) return error;
    if (!cudahost::alive(graph, cudahost::Graphs)) return cudahost::failed(cudaErrorInvalidValue);
    *exec = new cudahost::GraphExec(*graph);
    cudahost::born(*exec, cudahost::GraphExecs);
    return cudaSuccess;
}

inline cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *exec, cudaGraph_t graph,
                                                 unsigned long long flags = 0) {
    return cudaGraphInstantiate(exec, graph, flags);
}

inline cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    cudaError_t error = cudahost::enter_stream("cudaGraphLaunch", stream);
    if (error) return error;
    if (!cudahost::alive(exec, cudahost::GraphExecs))
        return cudahost::failed(cudaErrorInvalidValue);
    cudahost::launch_graph(exec, stream);
    return cudaSuccess;
}

inline cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t stream) {
    cudaError_t error = cudahost::enter_stream("cudaGraphUpload", stream);
    if (!error && !cudahost::alive(exec, cudahost::GraphExecs))
        error = cudahost::failed(cudaErrorInvalidValue);
    return error;
}

inline cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *count) {
    cudaError_t error = cudahost::enter("cudaGraphGetNodes");
    if (error) return error;
    if (!cudahost::alive(graph, cudahost::Graphs)) return cudahost::failed(cudaErrorInvalidValue);
    for (size_t i = 0; nodes && i < *count && i < graph->nodes.size(); i++)
        nodes[i] = &graph->nodes[i];
    *count = graph->nodes.size();
    return cudaSuccess;
}

inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    bool fails = cudahost::planned("cudaGraphDestroy");
    if (!cudahost::dies(graph, cudahost::Graphs)) return cudahost::failed(cudaErrorInvalidValue);
    delete graph;
    return fails ? cudahost::failed(cudaErrorUnknown) : cudaSuccess;
}

inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    bool fails = cudahost::planned("cudaGraphExecDestroy");
    if (!cudahost::dies(exec, cudahost::GraphExecs))
        return cudahost::failed(cudaErrorInvalidValue);
    delete exec;
    return fails ? cudahost::failed(cudaErrorUnknown) : cudaSuccess;
}

// >>functions

namespace cudahost {

template <class... P, size_t... I>
Kernel bind_array(void (*function)(P...), void **values, std::index_sequence<I...>) {
    (void)values;
    return bind_kernel<P...>(function, *(P *)values[I]...);
}

} // namespace cudahost

// The kernel is given as itself, not as a const void *: its parameters' types are needed.
template <class... P>
cudaError_t cudaLaunchCooperativeKernel(void (*function)(P...), dim3 blocks, dim3 threads,
                                        void **values, size_t bytes, cudaStream_t stream) {
    cudahost::Kernel kernel =
        cudahost::bind_array(function, values, std::index_sequence_for<P...>());
    kernel.name = "cooperative kernel";
    kernel.blocks = blocks;
    kernel.threads = threads;
    kernel.bytes = bytes;
    kernel.cooperative = true;
    return cudahost::submit_kernel((const void *)function, kernel, stream);
}

template <class F>
cudaError_t cudaFuncSetAttribute(F *function, cudaFuncAttribute attribute, int value) {
    cudaError_t error = cudahost::enter("cudaFuncSetAttribute");
    if (error || attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return error;
    if (value < 0 || value > cudahost::SHARED_MOST)
        return cudahost::failed(cudaErrorInvalidValue);
    cudahost::Locked hold(cudahost::state().lock);
    cudahost::state().shared_limit[(const void *)function] = value;
    return cudaSuccess;
}

template <class F> cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes, F *function) {
    cudaError_t error = cudahost::enter("cudaFuncGetAttributes");
    *attributes = cudaFuncAttributes{};
    if (error) return error;
    cudahost::Locked hold(cudahost::state().lock);
    auto found = cudahost::state().shared_limit.find((const void *)function);
    attributes->maxThreadsPerBlock = cudahost::MOST_THREADS;
    attributes->numRegs = 32;
    attributes->ptxVersion = attributes->binaryVersion = 90;
    attributes->maxDynamicSharedSizeBytes =
        found == cudahost::state().shared_limit.end() ? (int)cudahost::SHARED_DEFAULT
                                                      : found->second;
    return cudaSuccess;
}

template <class F>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, F *, int threads,
                                                          size_t bytes) {
    cudaError_t error = cudahost::enter("cudaOccupancyMaxActiveBlocksPerMultiprocessor");
    if (!error) *blocks = cudahost::blocks_per_multiprocessor(threads, bytes);
    return error;
}
#endif
