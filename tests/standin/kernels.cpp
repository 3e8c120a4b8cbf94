// Every operation that torch has a CUDA kernel for, computed by the CPU's kernel in the same memory.
#include <ATen/ATen.h>
#include <ATen/core/Generator.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/cuda/CUDAFunctions.h>
#include <dlfcn.h>
#include <torch/library.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

// Operations computed so far: a GPU launches about as many kernels.
extern "C" {
std::atomic<uint64_t> standin_launches{0};
}

namespace {
using at::Tensor;
using c10::IValue;
using torch::jit::Stack;
using Names = std::unordered_set<std::string>;

// Views, and what allocates alone: torch's own code launches nothing there.
const Names KEPT = {"as_strided", "view", "_reshape_alias", "unfold", "empty", "empty_strided", "resize_", "set_",
                    "record_stream", "is_pinned", "_pin_memory", "_efficientzerotensor", "view_as_real",
                    "view_as_complex", "is_set_to", "_indices", "_values", "sparse_dim", "dense_dim", "_nnz",
                    "is_coalesced", "_coalesced_", "_dimI", "_dimV", "sparse_resize_", "sparse_resize_and_clear_",
                    "_sparse_coo_tensor_with_dims", "_sparse_coo_tensor_with_dims_and_tensors"};
// Their operands may be on two devices.
const Names ACROSS = {"copy_", "index", "_unsafe_index", "index_put_", "_index_put_impl_", "_unsafe_index_put"};
// The host waits for what they find.
const Names WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2",
                       "unique_dim", "unique_consecutive", "repeat_interleave", "bincount"};
const Names INDEXED = {"index", "_unsafe_index", "index_put_", "_index_put_impl_", "_unsafe_index_put"};
// CUDA has no product of integers.
const Names PRODUCTS = {"mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_", "addmv", "addmv_", "dot"};

// A call of a captured graph: what to call again, and the memory in which its results are looked for.
struct Call {
  c10::OperatorHandle operation;
  Stack arguments;
  std::vector<std::pair<size_t, Tensor>> results;
};

struct Graph {
  std::vector<Call> calls;
  // What the calls write to, and what was there: a capture runs nothing.
  std::vector<std::pair<Tensor, Tensor>> before;
  std::unordered_set<const void*> noted;
};
std::unique_ptr<Graph> capture;

Tensor in_host_memory(const Tensor& t) {
  if (t.is_sparse())
    return at::_sparse_coo_tensor_unsafe(in_host_memory(t._indices()), in_host_memory(t._values()), t.sizes(),
                                         t.options().device(c10::kCPU), t.is_coalesced());
  const auto& storage = t.storage();
  c10::DataPtr memory(const_cast<void*>(storage.data()), c10::Device(c10::kCPU));
  c10::Storage same(c10::Storage::use_byte_size_t(), storage.nbytes(), std::move(memory), nullptr, false);
  const c10::DispatchKeySet cpu(c10::DispatchKey::CPU);
  auto host = at::detail::make_tensor<c10::TensorImpl>(std::move(same), cpu, t.dtype());
  host.unsafeGetTensorImpl()->set_sizes_and_strides(t.sizes(), t.strides(), t.storage_offset());
  host._set_conj(t.is_conj());
  host._set_neg(t.is_neg());
  return host;
}

Tensor on_gpu(const Tensor& t) {
  const auto options = t.options().device(c10::Device(c10::kCUDA, 0));
  if (t.is_sparse())
    return at::_sparse_coo_tensor_unsafe(on_gpu(t._indices()), on_gpu(t._values()), t.sizes(), options,
                                         t.is_coalesced());
  auto made = at::empty_strided(t.sizes(), t.strides(), options);
  if (t.numel()) in_host_memory(made).copy_(t);
  return made;
}

// A generator of the host's, for the next numbers of a GPU's.
at::Generator on_host(const IValue& given) {
  auto gpu = given.isNone() ? at::globalContext().defaultGenerator(c10::Device(c10::kCUDA, 0)) : given.toGenerator();
  TORCH_CHECK(gpu.device().is_cuda(), "Expected a 'cuda' device type for generator but found 'cpu'");
  std::lock_guard<std::mutex> guard(gpu.mutex());
  static uint64_t captured = 0;
  auto* state = gpu.unsafeGetGeneratorImpl();
  const uint64_t offset = capture ? captured : state->get_offset();
  if (capture) captured += 4;
  else state->set_offset(offset + 4);
  return at::detail::createCPUGenerator(gpu.current_seed() * 1000003 + offset);
}

std::vector<Tensor> tensors_of(const IValue& value) {
  if (value.isTensor()) return {value.toTensor()};
  if (value.isTensorList()) return value.toTensorVector();
  std::vector<Tensor> found;
  if (value.isList())
    for (const IValue& item : value.toListRef())
      if (item.isTensor()) found.push_back(item.toTensor());
  return found;
}

template <typename Change>
IValue changed(const IValue& value, Change change) {
  if (value.isTensor()) return change(value.toTensor());
  if (value.isTensorList()) {
    c10::List<Tensor> list;
    for (const Tensor& t : value.toTensorVector()) list.push_back(change(t));
    return list;
  }
  if (value.isList() && value.toList().elementType()->kind() == c10::TypeKind::OptionalType) {
    c10::List<std::optional<Tensor>> list;
    for (const IValue& item : value.toListRef())
      list.push_back(item.isNone() ? std::nullopt : std::optional<Tensor>(change(item.toTensor())));
    return list;
  }
  return value;
}

bool waits(const std::string& name, const IValue* arguments) {
  if (WAITING.count(name)) return true;
  if (INDEXED.count(name))
    for (const Tensor& index : tensors_of(arguments[1]))
      if (index.defined() && (index.scalar_type() == at::kBool || index.scalar_type() == at::kByte)) return true;
  if (name != "copy_") return false;
  const auto self = arguments[0].toTensor(), source = arguments[1].toTensor();
  if (self.is_cuda() == source.is_cuda()) return false;
  const bool asked_not_to = arguments[2].toBool();
  return !(asked_not_to && (self.is_cuda() ? source : self).is_pinned());
}

void wait(const std::string& name) {
  TORCH_CHECK(!capture, "CUDA error: operation not permitted when stream is capturing, in ", name);
  if (c10::cuda::warning_state().get_sync_debug_mode() != c10::cuda::SyncDebugMode::L_DISABLED)
    c10::cuda::warn_or_error_on_sync();
}

void call(const c10::OperatorHandle& operation, Stack* stack, bool sparse) {
  c10::impl::ExcludeDispatchKeyGuard below(c10::autograd_dispatch_keyset_with_ADInplaceOrView);
  operation.redispatchBoxed(c10::DispatchKeySet(sparse ? c10::DispatchKey::SparseCPU : c10::DispatchKey::CPU), stack);
}

void compute(const c10::OperatorHandle& operation, Stack* stack) {
  ++standin_launches;
  const auto& schema = operation.schema();
  const auto name = operation.operator_name().name.substr(std::string("aten::").size());
  const size_t count = schema.arguments().size(), start = stack->size() - count;
  if (waits(name, &(*stack)[start])) wait(name);

  // Of the GPU, and the same for the host.
  std::vector<std::pair<Tensor, Tensor>> both;
  bool elsewhere = false, sparse = false;
  auto taken = [&](const Tensor& t) {
    if (!t.defined()) return t;
    if (!t.is_cuda()) {
      elsewhere |= t.dim() > 0 && !ACROSS.count(name);
      return t;
    }
    for (const auto& [gpu, host] : both)
      if (gpu.is_same(t)) return host;
    sparse |= t.is_sparse();
    // What an operation is to give its size is handed over empty.
    const bool grows = t.has_storage() && !t.storage().nbytes();
    const auto options = t.options().device(c10::kCPU);
    both.emplace_back(t, grows ? at::empty_strided(t.sizes(), t.strides(), options) : in_host_memory(t));
    return both.back().second;
  };
  for (size_t i = 0; i < count; i++) {
    IValue& value = (*stack)[start + i];
    value = changed(value, taken);
    if (value.isDevice()) value = c10::Device(c10::kCPU);
    if (schema.arguments()[i].type()->str().find("Generator") != std::string::npos) value = on_host(value);
  }
  TORCH_CHECK(both.empty() || !elsewhere, "Expected all tensors to be on the same device, but ", name,
              " found at least two devices, cuda:0 and cpu!");
  if (PRODUCTS.count(name) && !both.empty())
    TORCH_CHECK(!at::isIntegralType(both[0].first.scalar_type(), true), "\"", name, "_cuda\" not implemented for '",
                both[0].first.scalar_type(), "'");

  std::unique_ptr<Call> captured;
  if (capture) {
    captured = std::make_unique<Call>(Call{operation, Stack(stack->begin() + start, stack->end()), {}});
    for (size_t i = 0; i < count; i++)
      if (const auto* info = schema.arguments()[i].alias_info(); info && info->isWrite())
        for (const Tensor& t : tensors_of((*stack)[start + i]))
          if (capture->noted.insert(t.data_ptr()).second) capture->before.emplace_back(t, t.clone());
  }
  call(operation, stack, sparse);

  size_t number = 0;
  auto returned = [&](const Tensor& t) {
    const size_t at = number++;
    if (!t.defined()) return t;
    Tensor made;
    for (const auto& [gpu, host] : both) {
      if (!host.is_same(t)) continue;
      if (gpu.is_sparse() || gpu.sizes() == t.sizes()) return gpu;
      made = gpu.resize_(t.sizes());
      made.unsafeGetTensorImpl()->set_sizes_and_strides(t.sizes(), t.strides());
      in_host_memory(made).copy_(t);
    }
    if (!made.defined()) {
      if (name == "copy_") return t;
      for (const auto& [gpu, host] : both)
        if (t.has_storage() && host.has_storage() && t.storage().data() && t.storage().data() == host.storage().data())
          return gpu.as_strided(t.sizes(), t.strides(), t.storage_offset());
      made = on_gpu(t);
    }
    if (captured) captured->results.emplace_back(at, in_host_memory(made));
    return made;
  };
  for (size_t i = stack->size() - schema.returns().size(); i < stack->size(); i++)
    (*stack)[i] = changed((*stack)[i], returned);
  if (captured) capture->calls.push_back(std::move(*captured));
}

void begin_capture() { capture = std::make_unique<Graph>(); }

void* end_capture() {
  auto graph = std::move(capture);
  at::NoGradGuard none;
  for (auto it = graph->before.rbegin(); it != graph->before.rend(); ++it) it->first.copy_(it->second);
  graph->before.clear();
  return graph.release();
}

void replay(void* graph) {
  at::NoGradGuard none;
  for (const Call& captured : static_cast<Graph*>(graph)->calls) {
    Stack stack = captured.arguments;
    call(captured.operation, &stack, false);
    std::vector<Tensor> found;
    for (const IValue& value : stack)
      for (const Tensor& t : tensors_of(value)) found.push_back(t);
    for (const auto& [at, to] : captured.results) to.copy_(found[at]);
  }
}

void forget(void* graph) { delete static_cast<Graph*>(graph); }

template <typename Function>
void hand(const char* name, Function* function) {
  auto* place = reinterpret_cast<Function**>(dlsym(RTLD_DEFAULT, name));
  TORCH_CHECK(place, "the stand-in's runtime is not preloaded");
  *place = function;
}

void replace(c10::DispatchKey key) {
  // It stays until the process ends.
  auto* library = new torch::Library(torch::Library::IMPL, "aten", key, __FILE__, __LINE__);
  for (const auto& known : c10::Dispatcher::singleton().getAllOpNames()) {
    if (known.name.rfind("aten::", 0)) continue;
    const auto name = known.name.substr(std::string("aten::").size());
    const auto operation = c10::Dispatcher::singleton().findSchema(known);
    // A copy has one kernel for all devices.
    const bool copies = name == "copy_" && key == c10::DispatchKey::CUDA;
    if (operation && !KEPT.count(name) && (copies || operation->hasKernelForDispatchKey(key)))
      library->impl((known.name + (known.overload_name.empty() ? "" : "." + known.overload_name)).c_str(),
                    torch::CppFunction::makeFromBoxedFunction<&compute>());
  }
}

const bool started = [] {
  for (auto key : {c10::DispatchKey::CUDA, c10::DispatchKey::SparseCUDA}) replace(key);
  hand("standin_begin_capture", &begin_capture);
  hand("standin_end_capture", &end_capture);
  hand("standin_replay", &replay);
  hand("standin_forget", &forget);
  return true;
}();
}  // namespace
