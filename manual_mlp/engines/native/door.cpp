#include "door.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

namespace manual_mlp {

bool is_plain(const Tensor& t) {
  using K = c10::DispatchKey;
  static const auto usual = c10::DispatchKeySet({K::Dense, K::AutogradFunctionality, K::ADInplaceOrView, K::BackendSelect}) |
      c10::autocast_dispatch_keyset;
  const auto here = c10::impl::tls_local_dispatch_key_set();
  auto keys = (t.key_set() | here.included_) - here.excluded_;
  keys = keys.remove_backend(t.is_cuda() ? c10::BackendComponent::CUDABit : c10::BackendComponent::CPUBit);
  return (keys - usual).empty() && (t.is_cpu() || t.is_cuda()) && !t._fw_grad(0).defined();
}

bool is_float(at::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf;
}

std::optional<at::ScalarType> products_dtype(const Tensor& input, const Tensor& weight, const Optional& bias) {
  const auto device = input.device();
  if (weight.dim() != 2 || input.dim() < 1 || input.size(-1) != weight.size(1) || weight.device() != device ||
      !input.numel() || !weight.numel()) {
    return {};
  }
  if (bias && (bias->dim() != 1 || bias->size(0) != weight.size(0) || bias->device() != device)) return {};
  const auto dtype = input.scalar_type(), of_w = weight.scalar_type(), of_b = bias ? bias->scalar_type() : of_w;
  if (!is_float(dtype) || !is_float(of_w) || !is_float(of_b)) return {};
  if (at::autocast::is_autocast_enabled(device.type())) {
    // Autocast leaves float64 alone.
    if (dtype == at::kDouble || of_w == at::kDouble || of_b == at::kDouble) return {};
    return at::autocast::get_autocast_dtype(device.type());
  }
  return dtype == of_w && dtype == of_b ? std::optional(dtype) : std::nullopt;
}

}  // namespace manual_mlp
