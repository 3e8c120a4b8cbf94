#include "door.h"

#include <c10/core/impl/LocalDispatchKeySet.h>

namespace manual_mlp {

bool is_plain(const Tensor& t) {
  using K = c10::DispatchKey;
  static const auto usual = c10::autocast_dispatch_keyset |
      c10::DispatchKeySet({K::Dense, K::AutogradFunctionality, K::ADInplaceOrView, K::BackendSelect});
  const auto here = c10::impl::tls_local_dispatch_key_set();
  auto keys = (t.key_set() | here.included_) - here.excluded_;
  keys = keys.remove_backend(t.is_cuda() ? c10::BackendComponent::CUDABit : c10::BackendComponent::CPUBit);
  return (keys - usual).empty() && (t.is_cpu() || t.is_cuda()) && !t._fw_grad(0).defined();
}

bool is_float(at::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf;
}

static bool shapes_fit(const Tensor& input, int64_t width, const Tensor& weight, const Optional& bias) {
  const auto device = input.device();
  return weight.dim() == 2 && width == weight.size(1) && weight.device() == device && weight.numel() &&
      (!bias || (bias->dim() == 1 && bias->size(0) == weight.size(0) && bias->device() == device));
}

bool layer_fits(const Tensor& input, int64_t width, const Tensor& weight, const Optional& bias, bool mixed) {
  const auto dtype = input.scalar_type();
  const auto fits = [&](const Tensor& t) {
    return mixed ? is_float(t.scalar_type()) && t.scalar_type() != at::kDouble : t.scalar_type() == dtype;
  };
  const bool all = is_float(dtype) && fits(input) && fits(weight) && (!bias || fits(*bias));
  return all && shapes_fit(input, width, weight, bias);
}

std::optional<at::ScalarType> products_dtype(const Tensor& input, const Tensor& weight, const Optional& bias) {
  if (!input.dim() || !input.numel()) return {};
  const auto kind = input.device().type();
  const bool mixed = at::autocast::is_autocast_enabled(kind);
  if (!layer_fits(input, input.size(-1), weight, bias, mixed)) return {};
  return mixed ? at::autocast::get_autocast_dtype(kind) : input.scalar_type();
}

}  // namespace manual_mlp
