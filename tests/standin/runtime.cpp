// What torch asks of CUDA's runtime, of one device whose memory is the host's. Preloaded, it stands before libcudart.
#include <cuda_runtime_api.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

extern "C" {
// Set by kernels.cpp.
void (*standin_begin_capture)() = nullptr;
void* (*standin_end_capture)() = nullptr;
void (*standin_replay)(void*) = nullptr;
void (*standin_forget)(void*) = nullptr;
}

namespace {
std::mutex lock;
std::map<char*, std::pair<size_t, cudaMemoryType>> blocks;
bool capturing = false;

cudaError_t take(void** to, size_t bytes, cudaMemoryType type) {
  bytes = (bytes + 511) / 512 * 512 + 512;
  *to = aligned_alloc(512, bytes);
  if (!*to) return cudaErrorMemoryAllocation;
  memset(*to, 0xFF, bytes);  // NaN, until it is written
  std::lock_guard<std::mutex> guard(lock);
  blocks[static_cast<char*>(*to)] = {bytes, type};
  return cudaSuccess;
}

cudaError_t give(void* at) {
  std::lock_guard<std::mutex> guard(lock);
  if (at && !blocks.erase(static_cast<char*>(at))) return cudaErrorInvalidValue;
  free(at);
  return cudaSuccess;
}

struct Event {
  std::chrono::steady_clock::time_point at = std::chrono::steady_clock::now();
};
cudaError_t made(cudaEvent_t* e) { *e = reinterpret_cast<cudaEvent_t>(new Event); return cudaSuccess; }
cudaError_t noted(cudaEvent_t e) { reinterpret_cast<Event*>(e)->at = std::chrono::steady_clock::now(); return cudaSuccess; }
cudaError_t streamed(cudaStream_t* s) { *s = reinterpret_cast<cudaStream_t>(malloc(8)); return cudaSuccess; }
}  // namespace

#define OK(name, ...) cudaError_t name(__VA_ARGS__) { return cudaSuccess; }
extern "C" {
cudaError_t cudaGetDeviceCount(int* n) { *n = 1; return cudaSuccess; }
cudaError_t cudaGetDevice(int* n) { *n = 0; return cudaSuccess; }
cudaError_t cudaSetDevice(int n) { return n == 0 ? cudaSuccess : cudaErrorInvalidDevice; }
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
  for (int k = 0; k < 3; k++) { p->maxThreadsDim[k] = 1024; p->maxGridSize[k] = 65535; }
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* v, cudaDeviceAttr a, int) {
  *v = a == cudaDevAttrComputeCapabilityMajor ? 9 : a == cudaDevAttrMultiProcessorCount ? 132 : a == cudaDevAttrWarpSize ? 32 : 0;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* v) { *v = 13000; return cudaSuccess; }
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* most) { *least = 0; *most = -5; return cudaSuccess; }
cudaError_t cudaDeviceCanAccessPeer(int* v, int, int) { *v = 0; return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
OK(cudaDeviceSynchronize)
OK(cudaProfilerStart)
OK(cudaProfilerStop)
cudaError_t cudaMemGetInfo(size_t* free_, size_t* total) { *free_ = size_t(6) << 30; *total = size_t(8) << 30; return cudaSuccess; }

cudaError_t cudaMalloc(void** to, size_t bytes) { return take(to, bytes, cudaMemoryTypeDevice); }
cudaError_t cudaFree(void* at) { return give(at); }
cudaError_t cudaHostAlloc(void** to, size_t bytes, unsigned) { return take(to, bytes, cudaMemoryTypeHost); }
cudaError_t cudaFreeHost(void* at) { return give(at); }
OK(cudaHostRegister, void*, size_t, unsigned)
OK(cudaHostUnregister, void*)
cudaError_t cudaMemcpy(void* to, const void* from, size_t n, cudaMemcpyKind) { memmove(to, from, n); return cudaSuccess; }
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t n, cudaMemcpyKind, cudaStream_t) { memmove(to, from, n); return cudaSuccess; }
cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t n, cudaStream_t) { memmove(to, from, n); return cudaSuccess; }
cudaError_t cudaMemset(void* at, int v, size_t n) { memset(at, v, n); return cudaSuccess; }
cudaError_t cudaMemsetAsync(void* at, int v, size_t n, cudaStream_t) { memset(at, v, n); return cudaSuccess; }
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* a, const void* at) {
  std::lock_guard<std::mutex> guard(lock);
  memset(a, 0, sizeof *a);
  auto it = blocks.upper_bound(static_cast<char*>(const_cast<void*>(at)));
  a->type = cudaMemoryTypeUnregistered;
  if (it != blocks.begin() && (--it)->first + it->second.first > at) {
    a->type = it->second.second;
    a->devicePointer = a->hostPointer = const_cast<void*>(at);
  }
  return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t* s) { return streamed(s); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned) { return streamed(s); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned, int) { return streamed(s); }
cudaError_t cudaStreamDestroy(cudaStream_t s) { free(s); return cudaSuccess; }
cudaError_t cudaStreamGetPriority(cudaStream_t, int* p) { *p = 0; return cudaSuccess; }
OK(cudaStreamQuery, cudaStream_t)
OK(cudaStreamSynchronize, cudaStream_t)
OK(cudaStreamWaitEvent, cudaStream_t, cudaEvent_t, unsigned)
cudaError_t cudaStreamAddCallback(cudaStream_t s, cudaStreamCallback_t f, void* d, unsigned) { f(s, cudaSuccess, d); return cudaSuccess; }
cudaError_t cudaLaunchHostFunc(cudaStream_t, cudaHostFn_t f, void* d) { f(d); return cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t* e) { return made(e); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) { return made(e); }
cudaError_t cudaEventDestroy(cudaEvent_t e) { delete reinterpret_cast<Event*>(e); return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t) { return noted(e); }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t, unsigned) { return noted(e); }
OK(cudaEventQuery, cudaEvent_t)
OK(cudaEventSynchronize, cudaEvent_t)
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t a, cudaEvent_t b) {
  *ms = std::chrono::duration<float, std::milli>(reinterpret_cast<Event*>(b)->at - reinterpret_cast<Event*>(a)->at).count();
  return cudaSuccess;
}

OK(cudaThreadExchangeStreamCaptureMode, cudaStreamCaptureMode*)
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* s) {
  *s = capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus* s, unsigned long long* id, cudaGraph_t*,
                                     const cudaGraphNode_t**, const cudaGraphEdgeData**, size_t*) {
  *s = capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  if (id) *id = 1;
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
  capturing = true;
  if (standin_begin_capture) standin_begin_capture();
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* g) {
  capturing = false;
  *g = reinterpret_cast<cudaGraph_t>(standin_end_capture ? standin_end_capture() : malloc(8));
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* e, cudaGraph_t g, unsigned long long) { *e = reinterpret_cast<cudaGraphExec_t>(g); return cudaSuccess; }
cudaError_t cudaGraphGetNodes(cudaGraph_t, cudaGraphNode_t*, size_t* n) { *n = 1; return cudaSuccess; }
OK(cudaGraphDestroy, cudaGraph_t)
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e) { if (standin_forget) standin_forget(e); return cudaSuccess; }
cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t) { if (standin_replay) standin_replay(e); return cudaSuccess; }

#define NOT(name) cudaError_t name(...) { fprintf(stderr, "stand-in: " #name " was called\n"); return cudaErrorNotSupported; }
}
extern "C" cudaError_t cudaLaunchKernel(const void*, dim3, dim3, void**, size_t, cudaStream_t) {
  fprintf(stderr, "stand-in: a kernel was launched\n");
  if (getenv("PRETEND_ABORT")) abort();
  return cudaErrorNotSupported;
}
// The driver, which torch looks up by name in libcuda.so.1: this library bears that name too.
#include <cuda.h>
namespace {
CUresult not_there(...) { return CUDA_ERROR_NOT_SUPPORTED; }
CUresult context(CUdevice, unsigned* flags, int* active) { *flags = 0; *active = 1; return CUDA_SUCCESS; }
CUresult attribute(int* v, CUdevice_attribute, CUdevice) { *v = 0; return CUDA_SUCCESS; }
CUresult error_string(CUresult, const char** text) { *text = "the stand-in has no driver for this"; return CUDA_SUCCESS; }
}
extern "C" cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** to, unsigned, unsigned long long, cudaDriverEntryPointQueryResult* q) {
  void* found = reinterpret_cast<void*>(&not_there);
  if (!strcmp(name, "cuDevicePrimaryCtxGetState")) found = reinterpret_cast<void*>(&context);
  if (!strcmp(name, "cuDeviceGetAttribute")) found = reinterpret_cast<void*>(&attribute);
  if (!strcmp(name, "cuGetErrorString")) found = reinterpret_cast<void*>(&error_string);
  *to = found;
  if (q) *q = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
extern "C" CUresult cuDevicePrimaryCtxGetState(CUdevice d, unsigned* flags, int* active) { return context(d, flags, active); }
