#include "backprop.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/scalar_tensor.h>
#include <torch/csrc/autograd/grad_mode.h>
#include <torch/csrc/autograd/variable.h>

namespace manual_mlp {
namespace {

// The dtype of the gradient that a user has asked for, where this torch lets one.
template <class T>
auto asked_dtype(const T& p, int) -> decltype(p.grad_dtype()) { return p.grad_dtype(); }
template <class T>
std::optional<at::ScalarType> asked_dtype(const T& p, long) { return p.scalar_type(); }

bool is_usual(const Tensor& p) {
  using namespace torch::autograd;
  return p.is_contiguous() && impl::hooks(p).empty() && !impl::post_acc_grad_hooks(p) &&
      asked_dtype(p, 0).value_or(p.scalar_type()) == p.scalar_type();
}

// Whether a gradient is there that can be added to in place.
bool is_addable(const Tensor& grad) {
  if (!is_plain(grad) || grad.layout() != at::kStrided || grad.is_inference() || grad.requires_grad()) return false;
  for (int64_t k = 0; k < grad.dim(); ++k) {
    if (grad.stride(k) == 0 && grad.size(k) > 1) return false;
  }
  return true;
}

// Adds to .grad; false where that is left to Python.
bool accumulate(const Tensor& p, const Tensor& found) {
  if (!is_usual(p)) return false;
  Tensor& grad = p.mutable_grad();
  if (!grad.defined()) {
    grad = cast(found, p.scalar_type());
  } else if (is_addable(grad)) {
    grad.add_(found);
  } else {
    return false;
  }
  return true;
}

}  // namespace

Left backprop(const Step& step, const Objective& objective) {
  at::NoGradGuard no_grad;
  const auto seed = draw_seed(step.layers);
  std::vector<Wanted> wanted;
  Layers layers;
  for (const auto& [w, b, f, dropout] : step.layers) {
    wanted.push_back({w.requires_grad(), b && b->requires_grad()});
    layers.push_back({cast(w, step.products), cast(b, step.products), f, dropout});
  }
  const auto first = std::find_if(wanted.begin(), wanted.end(), [](Wanted some) { return some.dw || some.db; });
  const int64_t lowest = step.input.requires_grad() ? -1 : first - wanted.begin();
  const Tensor h = flat(step.input);
  Left left;
  Sweep sweep(layers, h, step.tiling, seed);
  {
    Below below;
    if (step.return_output) left.output = at::empty({h.size(0), layers.back().w.size(0)}, layers[0].w.options());
    left.dh = sweep.backward(
        [&](const Tile& tile, bool free) {
          if (left.output.defined()) left.output.narrow(0, tile.start, tile.n).copy_(tile.y);
          return objective(tile, free);
        },
        wanted, lowest, false);
    if (left.dh.defined()) left.dh = cast(left.dh, step.input.scalar_type()).view(step.input.sizes());
    if (left.output.defined()) left.output = like_rows_of(cast(left.output, step.output), step.input);
  }
  const auto give = [&](const Tensor& p, const Tensor& found) {
    if (found.defined() && !accumulate(p, found)) left.gradients.emplace_back(p, found);
  };
  for (size_t k = 0; k < layers.size(); ++k) {
    const auto& [w, b, f, dropout] = step.layers[k];
    give(w, sweep.dw(k));
    if (b) give(*b, sweep.db(k, widened(b->scalar_type())));
  }
  return left;
}

Left backprop(const Step& step, const Loss& loss, Reduction reduction, const Upstream& upstream, Tensor& value) {
  const int64_t n = step.input.numel() / step.input.size(-1), v = step.layers.back().w.size(0);
  // A class that is none is an error before anything is computed.
  const Mean mean = mean_of(loss, v);
  const auto [count, scale] = reduction == Reduction::mean ? mean : Mean{1, 1};
  const auto options = at::TensorOptions().dtype(widened(step.input.scalar_type()));
  if (reduction == Reduction::none) {
    value = loss.by_entry() ? at::empty({n, v}, options) : at::empty({n}, options);
  }
  const double factor = scale * upstream.scale;
  std::vector<double> sums((n + step.tiling.rows - 1) / step.tiling.rows);
  auto left = backprop(step, [&](const Tile& tile, bool free) {
    Upstream here{factor, upstream.g.defined() ? upstream.g.narrow(0, tile.start, tile.n) : Tensor()};
    const Tensor dy = free ? tile.y : at::empty_like(tile.y);
    sums[tile.start / step.tiling.rows] = loss_and_delta(loss, tile.y, tile.start, here, {value}, dy);
    return dy;
  });
  if (reduction != Reduction::none) {
    double sum = 0;
    for (double each : sums) sum += each;
    value = at::scalar_tensor(sum / count, options.dtype(at::kDouble));
  }
  return left;
}

}  // namespace manual_mlp
