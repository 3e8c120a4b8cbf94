// What torch asks of CUDA's runtime and driver, for one device whose memory is the host's. It is preloaded before both.
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

// Handed over by kernels.cpp: what a captured graph is, and how it runs.
extern "C" {
void (*standin_begin_capture)() = nullptr;
void* (*standin_end_capture)() = nullptr;
void (*standin_replay)(void*) = nullptr;
void (*standin_forget)(void*) = nullptr;
}

namespace {
using Clock = std::chrono::steady_clock;

struct Block {
  size_t bytes;
  cudaMemoryType kind;
};
std::mutex lock;
std::map<const char*, Block> blocks;
bool capturing = false;

cudaError_t take(void** to, size_t bytes, cudaMemoryType kind) {
  bytes = (bytes / 512 + 2) * 512;
  *to = aligned_alloc(512, bytes);
  if (!*to) return cudaErrorMemoryAllocation;
  memset(*to, 0xFF, bytes);  // NaN, until it is written
  std::lock_guard<std::mutex> guard(lock);
  blocks[static_cast<char*>(*to)] = {bytes, kind};
  return cudaSuccess;
}

cudaError_t give_back(void* at) {
  std::lock_guard<std::mutex> guard(lock);
  if (at && !blocks.erase(static_cast<char*>(at))) return cudaErrorInvalidValue;
  free(at);
  return cudaSuccess;
}

template <typename Handle>
cudaError_t make(Handle* handle) {
  *handle = reinterpret_cast<Handle>(new Clock::time_point(Clock::now()));
  return cudaSuccess;
}
Clock::time_point& time_of(cudaEvent_t event) { return *reinterpret_cast<Clock::time_point*>(event); }
cudaError_t record(cudaEvent_t event) { time_of(event) = Clock::now(); return cudaSuccess; }
template <typename Handle>
cudaError_t destroy(Handle handle) { delete reinterpret_cast<Clock::time_point*>(handle); return cudaSuccess; }

template <typename T>
cudaError_t tell(T* to, T value) { *to = value; return cudaSuccess; }

CUresult not_there(...) { return CUDA_ERROR_NOT_SUPPORTED; }
CUresult described(CUresult, const char** text) { *text = "the stand-in has no driver for this"; return CUDA_SUCCESS; }
}  // namespace

#define DO(name, parameters, statement) \
  cudaError_t name parameters { statement; }
#define OK(name, ...) DO(name, (__VA_ARGS__), return cudaSuccess)

extern "C" {
// The device.
DO(cudaGetDeviceCount, (int* n), return tell(n, 1))
DO(cudaGetDevice, (int* n), return tell(n, 0))
DO(cudaSetDevice, (int n), return n == 0 ? cudaSuccess : cudaErrorInvalidDevice)
DO(cudaDriverGetVersion, (int* v), return tell(v, 13000))
DO(cudaDeviceCanAccessPeer, (int* v, int, int), return tell(v, 0))
DO(cudaDeviceGetStreamPriorityRange, (int* least, int* most), *most = -5; return tell(least, 0))
DO(cudaMemGetInfo, (size_t* left, size_t* all), *left = size_t(6) << 30; return tell(all, size_t(8) << 30))
OK(cudaDeviceSynchronize)
OK(cudaGetLastError)
OK(cudaPeekAtLastError)
OK(cudaProfilerStart)
OK(cudaProfilerStop)
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "stand-in");
  p->totalGlobalMem = size_t(8) << 30;
  p->major = 9;
  p->multiProcessorCount = 132;
  p->warpSize = 32;
  p->maxThreadsPerBlock = 1024;
  p->maxThreadsPerMultiProcessor = 2048;
  p->sharedMemPerBlock = 48 << 10;
  p->sharedMemPerBlockOptin = 227 << 10;
  p->regsPerMultiprocessor = 65536;
  p->l2CacheSize = 50 << 20;
  return cudaSuccess;
}
DO(cudaDeviceGetAttribute, (int* v, cudaDeviceAttr of, int),
   return tell(v, of == cudaDevAttrComputeCapabilityMajor ? 9 : of == cudaDevAttrMultiProcessorCount ? 132 : 0))

// Memory.
DO(cudaMalloc, (void** to, size_t bytes), return take(to, bytes, cudaMemoryTypeDevice))
DO(cudaHostAlloc, (void** to, size_t bytes, unsigned), return take(to, bytes, cudaMemoryTypeHost))
DO(cudaFree, (void* at), return give_back(at))
DO(cudaFreeHost, (void* at), return give_back(at))
OK(cudaHostRegister, void*, size_t, unsigned)
OK(cudaHostUnregister, void*)
DO(cudaMemcpy, (void* to, const void* from, size_t n, cudaMemcpyKind), memmove(to, from, n); return cudaSuccess)
DO(cudaMemcpyAsync, (void* to, const void* from, size_t n, cudaMemcpyKind, cudaStream_t), memmove(to, from, n);
   return cudaSuccess)
DO(cudaMemset, (void* at, int v, size_t n), memset(at, v, n); return cudaSuccess)
DO(cudaMemsetAsync, (void* at, int v, size_t n, cudaStream_t), memset(at, v, n); return cudaSuccess)
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* of, const void* at) {
  std::lock_guard<std::mutex> guard(lock);
  memset(of, 0, sizeof *of);
  of->type = cudaMemoryTypeUnregistered;
  auto block = blocks.upper_bound(static_cast<const char*>(at));
  if (block == blocks.begin() || (--block)->first + block->second.bytes <= at) return cudaSuccess;
  of->type = block->second.kind;
  of->devicePointer = of->hostPointer = const_cast<void*>(at);
  return cudaSuccess;
}

// Streams, which run all at once, and events.
DO(cudaStreamCreate, (cudaStream_t* stream), return make(stream))
DO(cudaStreamCreateWithFlags, (cudaStream_t* stream, unsigned), return make(stream))
DO(cudaStreamCreateWithPriority, (cudaStream_t* stream, unsigned, int), return make(stream))
DO(cudaStreamDestroy, (cudaStream_t stream), return destroy(stream))
DO(cudaStreamGetPriority, (cudaStream_t, int* p), return tell(p, 0))
OK(cudaStreamQuery, cudaStream_t)
OK(cudaStreamSynchronize, cudaStream_t)
OK(cudaStreamWaitEvent, cudaStream_t, cudaEvent_t, unsigned)
DO(cudaStreamAddCallback, (cudaStream_t stream, cudaStreamCallback_t f, void* data, unsigned),
   f(stream, cudaSuccess, data); return cudaSuccess)
DO(cudaLaunchHostFunc, (cudaStream_t, cudaHostFn_t f, void* data), f(data); return cudaSuccess)
DO(cudaEventCreate, (cudaEvent_t* event), return make(event))
DO(cudaEventCreateWithFlags, (cudaEvent_t* event, unsigned), return make(event))
DO(cudaEventDestroy, (cudaEvent_t event), return destroy(event))
DO(cudaEventRecord, (cudaEvent_t event, cudaStream_t), return record(event))
DO(cudaEventRecordWithFlags, (cudaEvent_t event, cudaStream_t, unsigned), return record(event))
OK(cudaEventQuery, cudaEvent_t)
OK(cudaEventSynchronize, cudaEvent_t)
DO(cudaEventElapsedTime, (float* ms, cudaEvent_t from, cudaEvent_t to),
   return tell(ms, std::chrono::duration<float, std::milli>(time_of(to) - time_of(from)).count()))

// Graphs.
OK(cudaThreadExchangeStreamCaptureMode, cudaStreamCaptureMode*)
DO(cudaStreamIsCapturing, (cudaStream_t, cudaStreamCaptureStatus* status),
   return tell(status, capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone))
DO(cudaStreamGetCaptureInfo,
   (cudaStream_t stream, cudaStreamCaptureStatus* status, unsigned long long* id, cudaGraph_t*, const cudaGraphNode_t**,
    const cudaGraphEdgeData**, size_t*),
   if (id) *id = 1; return cudaStreamIsCapturing(stream, status))
DO(cudaStreamBeginCapture, (cudaStream_t, cudaStreamCaptureMode), capturing = true; standin_begin_capture();
   return cudaSuccess)
DO(cudaStreamEndCapture, (cudaStream_t, cudaGraph_t* graph), capturing = false;
   return tell(graph, static_cast<cudaGraph_t>(standin_end_capture())))
DO(cudaGraphInstantiateWithFlags, (cudaGraphExec_t* run, cudaGraph_t graph, unsigned long long),
   return tell(run, reinterpret_cast<cudaGraphExec_t>(graph)))
DO(cudaGraphGetNodes, (cudaGraph_t, cudaGraphNode_t*, size_t* n), return tell(n, size_t(1)))
DO(cudaGraphLaunch, (cudaGraphExec_t run, cudaStream_t), standin_replay(run); return cudaSuccess)
DO(cudaGraphExecDestroy, (cudaGraphExec_t run), standin_forget(run); return cudaSuccess)
OK(cudaGraphDestroy, cudaGraph_t)

// What the stand-in has not.
cudaError_t cudaLaunchKernel(const void*, dim3, dim3, void**, size_t, cudaStream_t) {
  fputs("stand-in: a kernel of CUDA's own was launched\n", stderr);
  return cudaErrorNotSupported;
}
CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned* flags, int* active) {
  *flags = 0;
  *active = 1;
  return CUDA_SUCCESS;
}
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** to, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* found) {
  *to = reinterpret_cast<void*>(&not_there);
  if (!strcmp(name, "cuDevicePrimaryCtxGetState")) *to = reinterpret_cast<void*>(&cuDevicePrimaryCtxGetState);
  if (!strcmp(name, "cuGetErrorString")) *to = reinterpret_cast<void*>(&described);
  if (found) *found = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
}
