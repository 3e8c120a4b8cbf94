// Who calls, and with what? What a door asks in one call, and the guards and the way back that a node needs.
#pragma once
#include <ATen/autocast_mode.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/custom_function.h>

#include "formulas.h"

namespace manual_mlp {
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Dtypes are chosen here, and not by autocast.
struct WithoutAutocast {
  c10::impl::ExcludeDispatchKeyGuard guard{c10::autocast_dispatch_keyset};
};
// Below autograd, views and autocast: derivatives are written here.
struct Below : WithoutAutocast {
  at::AutoDispatchBelowADInplaceOrView guard;
};

// Whether nothing but eager autograd sees what is done to a tensor: no transform, mode, subclass or lazy bit, no
// tangent, and its entries lie in the memory of a CPU or of CUDA.
bool is_plain(const Tensor& t);
inline bool absent_or_plain(const Tensor& t) { return !t.defined() || is_plain(t); }

// The dtype of a layer's products, if its operands fit together and none is empty.
std::optional<at::ScalarType> products_dtype(const Tensor& input, const Tensor& weight, const Optional& bias);
// Whether a layer fits an input of this width, on its device and in its dtype, and is not empty; mixed allows all
// dtypes that autocast turns into another.
bool layer_fits(const Tensor& input, int64_t width, const Tensor& weight, const Optional& bias, bool mixed = false);
bool is_float(at::ScalarType dtype);
// float32 for half precision.
inline at::ScalarType widened(at::ScalarType dtype) { return dtype == at::kDouble ? dtype : at::kFloat; }

// View (*, D) as (N, D); and, where entries are walked through, contiguous.
inline Tensor flat(const Tensor& t) {
  return t.dim() == 2 ? t : t.reshape({t.numel() / t.size(-1), t.size(-1)});
}
inline Tensor rows(const Tensor& t) { return flat(t).contiguous(); }
// Rows (N, D), or a number of each (N,), with the leading dimensions of an input; undefined stays so.
inline Tensor like_rows_of(const Tensor& flat, const Tensor& input) {
  if (input.dim() == 2 || !flat.defined()) return flat;
  auto shape = input.sizes().vec();
  shape.pop_back();
  if (flat.dim() == 2) shape.push_back(flat.size(1));
  return flat.view(shape);
}

inline Optional some(const Tensor& t) { return t.defined() ? Optional(t) : std::nullopt; }

// What Python's plain engine computes, in every mode: by name, from tensors, an activation and what is needed.
struct Question {
  const char* name;
  variable_list tensors;
  std::vector<int64_t> numbers;
  std::vector<bool> needed;
  std::vector<double> dropout = {};
};
variable_list ask_plain(const Question& question);

}  // namespace manual_mlp
