// cudahost_types.h - the runtime API's types and constants, with the values they have in CUDA 13.
// Only what the stand-in understands is here, so that a program which needs more does not compile.
#ifndef CUDAHOST_TYPES_H
#define CUDAHOST_TYPES_H
#include <stddef.h>
#include <stdint.h>

#define CUDAHOST 1
#define CUDART_VERSION 13000

// Name, value, text. One list, so that the three cannot disagree.
#define CUDAHOST_ERRORS(X)                                                                    \
    X(cudaSuccess, 0, "no error")                                                             \
    X(cudaErrorInvalidValue, 1, "invalid argument")                                           \
    X(cudaErrorMemoryAllocation, 2, "out of memory")                                          \
    X(cudaErrorInitializationError, 3, "initialization error")                                \
    X(cudaErrorInvalidConfiguration, 9, "invalid configuration argument")                     \
    X(cudaErrorInvalidPitchValue, 12, "invalid pitch argument")                               \
    X(cudaErrorInvalidDevicePointer, 17, "invalid device pointer")                            \
    X(cudaErrorInvalidMemcpyDirection, 21, "invalid copy direction for memcpy")               \
    X(cudaErrorInsufficientDriver, 35, "CUDA driver version is insufficient")                 \
    X(cudaErrorInvalidDeviceFunction, 98, "invalid device function")                          \
    X(cudaErrorNoDevice, 100, "no CUDA-capable device is detected")                           \
    X(cudaErrorInvalidDevice, 101, "invalid device ordinal")                                  \
    X(cudaErrorPeerAccessUnsupported, 217, "peer access is not supported")                    \
    X(cudaErrorInvalidResourceHandle, 400, "invalid resource handle")                         \
    X(cudaErrorNotReady, 600, "device not ready")                                             \
    X(cudaErrorIllegalAddress, 700, "an illegal memory access was encountered")               \
    X(cudaErrorLaunchOutOfResources, 701, "too many resources requested for launch")          \
    X(cudaErrorLaunchTimeout, 702, "the launch timed out and was terminated")                 \
    X(cudaErrorPeerAccessAlreadyEnabled, 704, "peer access is already enabled")               \
    X(cudaErrorPeerAccessNotEnabled, 705, "peer access has not been enabled")                 \
    X(cudaErrorAssert, 710, "device-side assert triggered")                                   \
    X(cudaErrorLaunchFailure, 719, "unspecified launch failure")                              \
    X(cudaErrorCooperativeLaunchTooLarge, 720, "too many blocks in cooperative launch")       \
    X(cudaErrorNotSupported, 801, "operation not supported")                                  \
    X(cudaErrorStreamCaptureUnsupported, 900, "not permitted while the stream is captured")   \
    X(cudaErrorStreamCaptureInvalidated, 901, "a previous error invalidated the capture")     \
    X(cudaErrorStreamCaptureMerge, 902, "operation would merge two captures")                 \
    X(cudaErrorStreamCaptureUnmatched, 903, "the capture was not begun in this stream")       \
    X(cudaErrorStreamCaptureUnjoined, 904, "capturing stream has unjoined work")              \
    X(cudaErrorStreamCaptureIsolation, 905, "dependency created on uncaptured work")          \
    X(cudaErrorCapturedEvent, 907, "the event was last recorded in a capture")                \
    X(cudaErrorStreamCaptureWrongThread, 908, "the capture was begun by another thread")      \
    X(cudaErrorUnknown, 999, "unknown error")

enum cudaError_t {
#define CUDAHOST_ERROR(name, value, text) name = value,
    CUDAHOST_ERRORS(CUDAHOST_ERROR)
#undef CUDAHOST_ERROR
};
typedef enum cudaError_t cudaError;

enum cudaMemcpyKind {
    cudaMemcpyHostToHost = 0,
    cudaMemcpyHostToDevice = 1,
    cudaMemcpyDeviceToHost = 2,
    cudaMemcpyDeviceToDevice = 3,
    cudaMemcpyDefault = 4
};
enum cudaMemoryType {
    cudaMemoryTypeUnregistered = 0,
    cudaMemoryTypeHost = 1,
    cudaMemoryTypeDevice = 2,
    cudaMemoryTypeManaged = 3
};
enum cudaStreamCaptureMode {
    cudaStreamCaptureModeGlobal = 0,
    cudaStreamCaptureModeThreadLocal = 1,
    cudaStreamCaptureModeRelaxed = 2
};
enum cudaStreamCaptureStatus {
    cudaStreamCaptureStatusNone = 0,
    cudaStreamCaptureStatusActive = 1,
    cudaStreamCaptureStatusInvalidated = 2
};
enum cudaFuncAttribute {
    cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
    cudaFuncAttributePreferredSharedMemoryCarveout = 9
};
enum cudaDeviceAttr {
    cudaDevAttrMaxThreadsPerBlock = 1,
    cudaDevAttrMaxSharedMemoryPerBlock = 8,
    cudaDevAttrWarpSize = 10,
    cudaDevAttrClockRate = 13,
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrConcurrentKernels = 31,
    cudaDevAttrPciBusId = 33,
    cudaDevAttrPciDeviceId = 34,
    cudaDevAttrMemoryClockRate = 36,
    cudaDevAttrL2CacheSize = 38,
    cudaDevAttrMaxThreadsPerMultiProcessor = 39,
    cudaDevAttrAsyncEngineCount = 40,
    cudaDevAttrUnifiedAddressing = 41,
    cudaDevAttrPciDomainId = 50,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76,
    cudaDevAttrStreamPrioritiesSupported = 78,
    cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
    cudaDevAttrCooperativeLaunch = 95,
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
    cudaDevAttrMaxBlocksPerMultiprocessor = 106,
    cudaDevAttrReservedSharedMemoryPerBlock = 111,
    cudaDevAttrMemoryPoolsSupported = 115
};

#define cudaHostAllocDefault 0x00
#define cudaHostAllocPortable 0x01
#define cudaHostAllocMapped 0x02
#define cudaHostAllocWriteCombined 0x04
#define cudaStreamDefault 0x00
#define cudaStreamNonBlocking 0x01
#define cudaGraphInstantiateFlagUseNodePriority 8
#define cudaEventDefault 0x00
#define cudaEventBlockingSync 0x01
#define cudaEventDisableTiming 0x02
#define cudaEventRecordDefault 0x00
#define cudaEventRecordExternal 0x01
#define cudaEventWaitDefault 0x00
#define cudaEventWaitExternal 0x01
#define cudaCpuDeviceId (-1)

struct dim3 {
    unsigned int x, y, z;
    constexpr dim3(unsigned int vx = 1, unsigned int vy = 1, unsigned int vz = 1)
        : x(vx), y(vy), z(vz) {}
};

struct uint3 {
    unsigned int x, y, z;
};

struct cudaUUID_t {
    char bytes[16];
};
struct cudaDeviceProp {
    char name[256];
    cudaUUID_t uuid;
    size_t totalGlobalMem, sharedMemPerBlock;
    int regsPerBlock, warpSize, maxThreadsPerBlock, maxThreadsDim[3], maxGridSize[3];
    int major, minor, multiProcessorCount, integrated, canMapHostMemory, concurrentKernels;
    int ECCEnabled, pciBusID, pciDeviceID, pciDomainID, asyncEngineCount, unifiedAddressing;
    int memoryBusWidth, l2CacheSize, maxThreadsPerMultiProcessor, streamPrioritiesSupported;
    size_t sharedMemPerMultiprocessor, sharedMemPerBlockOptin, reservedSharedMemPerBlock;
    int cooperativeLaunch, maxBlocksPerMultiProcessor;
};
struct cudaPointerAttributes {
    cudaMemoryType type;
    int device;
    void *devicePointer, *hostPointer;
};
struct cudaFuncAttributes {
    size_t sharedSizeBytes, constSizeBytes, localSizeBytes;
    int maxThreadsPerBlock, numRegs, ptxVersion, binaryVersion, maxDynamicSharedSizeBytes;
};

namespace cudahost {
struct Stream;
struct Event;
struct Graph;
struct GraphExec;
struct Node;
} // namespace cudahost
typedef cudahost::Stream *cudaStream_t;
typedef cudahost::Event *cudaEvent_t;
typedef cudahost::Graph *cudaGraph_t;
typedef cudahost::GraphExec *cudaGraphExec_t;
typedef cudahost::Node *cudaGraphNode_t;
typedef void (*cudaHostFn_t)(void *);
#define cudaStreamLegacy ((cudaStream_t)0x1)
#define cudaStreamPerThread ((cudaStream_t)0x2)
#endif
