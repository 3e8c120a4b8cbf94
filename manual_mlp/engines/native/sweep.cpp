#include "sweep.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <torch/csrc/autograd/grad_mode.h>

namespace manual_mlp {
namespace {

// A product of half precision, of so many rows and entries or more, may be rounded before it is added to fewer than so
// many others: it loses no more than δ has lost. Of a small one, which is cheap, not even that is lost.
constexpr int64_t kRows = 64, kEntries = 65536, kTiles = 16;

}  // namespace

std::optional<int64_t> draw_seed(const Layers& layers) {
  if (std::none_of(layers.begin(), layers.end(), [](const Layer& layer) { return layer.dropout > 0; })) return {};
  return at::empty({}, at::kLong).random_().item<int64_t>();
}

static bool has_gradient(const Layer& layer) {
  return layer.w.requires_grad() || (layer.b && layer.b->requires_grad());
}

bool any_requires_grad(const Tensor& h, const Layers& layers) {
  return h.requires_grad() || std::any_of(layers.begin(), layers.end(), has_gradient);
}

bool keeps_more(const Tensor& h, const Layers& layers) {
  int64_t operands = h.numel(), kept = layers[0].w.requires_grad() ? h.numel() : 0;
  bool grows = h.requires_grad();
  for (size_t k = 0; k < layers.size(); ++k) {
    const auto& [w, b, f, p] = layers[k];
    operands += w.numel() + (b ? b->numel() : 0);
    kept += grows ? w.numel() : 0;
    grows = grows || has_gradient(layers[k]);
    const bool next = k + 1 < layers.size() && layers[k + 1].w.requires_grad();
    kept += next || (grows && f->kind != Kind::identity) ? h.size(0) * w.size(0) : 0;
  }
  return operands > kept;
}

void make_unchanging(Tensor& h, Layers& layers) {
  bool grows = h.requires_grad();  // whether the input of a layer requires grad, so that its weight is kept
  if (!layers[0].w.requires_grad()) h = h.clone();
  for (auto& layer : layers) {
    const bool learns = has_gradient(layer);
    if (!grows) layer.w = layer.w.clone();
    if (layer.b) layer.b = layer.b->clone();
    grows = grows || learns;
  }
}

Sweep::Sweep(Layers layers, Tensor h, Tiling tiling, std::optional<uint64_t> seed)
    : layers_(std::move(layers)), h_(std::move(h)), tiling_(tiling), seed_(seed) {
  for (const auto& layer : layers_) transposed_.push_back(layer.w.t());
}

bool Sweep::has_slope(size_t k) const {
  const auto dtype = layers_[k].w.scalar_type();
  return layers_[k].f->vectors() && !layers_[k].f->by_y && dtype == widened(dtype);
}

const Tensor& Sweep::output(const Space& space, size_t k) const {
  if (space.dropped[k].defined()) return space.dropped[k];
  return layers_[k].f->by_y || has_slope(k) ? space.z[k] : space.beside[k];
}

// dw of some rows, added to that of others if there are any, in the dtype of the sum.
void Sweep::add_dw(Space& space, size_t k, const Tensor& delta, const Tensor& h) const {
  Tensor& sum = space.dw[k];
  const auto narrow = delta.scalar_type(), dtype = widened(narrow);
  if (count() == 1 && narrow == dtype) {
    sum = dw_of(delta, cast(h, narrow));
  } else if (narrow != dtype && delta.size(0) >= kRows && sum.numel() >= kEntries && count() <= kTiles) {
    const Tensor part = dw_of(delta, cast(h, narrow));
    space.begun ? sum.add_(part) : sum.copy_(part);
  } else {
    const Tensor left = cast(delta, dtype).t(), right = cast(h, dtype);
    space.begun ? at::addmm_out(sum, sum, left, right) : at::mm_out(sum, left, right);  // (B3)
  }
}

Sweep::Space Sweep::space(bool backward, const std::vector<Wanted>& wanted) const {
  Space made;
  int64_t widest = 0;
  const auto options = layers_[0].w.options();
  for (size_t k = 0; k < layers_.size(); ++k) {
    const auto& [w, b, f, p] = layers_[k];
    const int64_t width = w.size(0);
    if (k + 1 < layers_.size()) widest = std::max(widest, width);
    const auto memory = [&](bool needed) { return needed ? at::empty({tiling_.rows, width}, options) : Tensor(); };
    made.z.push_back(memory(true));
    made.beside.push_back(memory(backward && !f->by_y));
    // Where relu's output is dropped, nothing comes back that would ask whether it was above 0.
    made.dropped.push_back(
        memory(backward && is_dropped(k) && f->by_y && f->kind != Kind::relu && f->kind != Kind::identity));
    if (!backward) continue;
    const auto dtype = widened(w.scalar_type());
    const bool fresh = count() == 1 && dtype == w.scalar_type();
    made.dw.push_back(wanted[k].dw && !fresh ? at::empty(w.sizes(), options.dtype(dtype)) : Tensor());
    made.db.emplace_back(wanted[k].db ? width : 0);
  }
  if (!backward || count() == 1) return made;
  if (layers_.size() > 1) made.first = at::empty({tiling_.rows * widest}, options);
  if (layers_.size() > 2) made.second = at::empty({tiling_.rows * widest}, options);
  return made;
}

// Deals the tiles out, always in the same way, so that sums come out the same. Modes do not reach other threads.
void Sweep::each_tile(const std::function<void(Space&, int64_t, int64_t)>& work) {
  const int64_t n = h_.size(0), workers = tiling_.workers;
  const auto part = [&](int64_t worker) {
    for (int64_t tile = worker; tile < count(); tile += workers) {
      const int64_t start = tile * tiling_.rows;
      work(spaces_[worker], start, std::min(tiling_.rows, n - start));
    }
  };
  if (workers == 1) return part(0);
  const bool inference = c10::InferenceMode::is_enabled();
  at::parallel_for(0, workers, 1, [&](int64_t from, int64_t to) {
    c10::InferenceMode mode(inference);
    at::NoGradGuard no_grad;
    Below below;
    for (int64_t worker = from; worker < to; ++worker) part(worker);
  });
}

Tensor Sweep::run(Space& space, int64_t start, int64_t n, bool backward, size_t count) {
  Tensor h = cast(h_.narrow(0, start, n), layers_[0].w.scalar_type());
  for (size_t k = 0; k < count; ++k) {
    const Act& f = *layers_[k].f;
    Tensor z = space.z[k].narrow(0, 0, n);
    if (layers_[k].b) {
      at::addmm_out(z, *layers_[k].b, h, transposed_[k]);
    } else {
      at::mm_out(z, h, transposed_[k]);  // (F1)
    }
    if (has_slope(k) && backward) {
      y_and_slope(z, space.beside[k].narrow(0, 0, n), f);
      h = z;
    } else {
      h = backward && !f.by_y ? space.beside[k].narrow(0, 0, n) : z;
      if (f.kind != Kind::identity) y_into(h, z, f);
    }
    if (is_dropped(k)) {
      const Tensor to = space.dropped[k].defined() ? space.dropped[k].narrow(0, 0, n) : h;
      drop(to, h, mask(k, start));
      h = to;
    }
  }
  return h;
}

Tensor Sweep::forward() {
  spaces_.clear();
  for (int64_t k = 0; k < tiling_.workers; ++k) spaces_.push_back(space(false, {}));
  Tensor y = at::empty({h_.size(0), layers_.back().w.size(0)}, layers_[0].w.options());
  each_tile([&](Space& space, int64_t start, int64_t n) {
    y.narrow(0, start, n).copy_(run(space, start, n, false, layers_.size()));
  });
  return y;
}

Tensor Sweep::backward(const Objective& objective, const std::vector<Wanted>& wanted, int64_t lowest, bool again) {
  spaces_.clear();
  for (int64_t k = 0; k < tiling_.workers; ++k) spaces_.push_back(space(true, wanted));
  const Tensor dh = lowest < 0 ? at::empty(h_.sizes(), layers_[0].w.options()) : Tensor();
  const Act& last = *layers_.back().f;
  const bool skips = again && last.kind == Kind::identity;
  each_tile([&](Space& space, int64_t start, int64_t n) {
    Tensor y = run(space, start, n, true, layers_.size() - skips);
    if (skips) y = space.z.back().narrow(0, 0, n);
    // What f′ is taken from is not to be overwritten.
    const bool free = last.kind == Kind::identity || !last.by_y;
    back(space, start, objective({start, n, y}, free), wanted, lowest, dh);
  });
  for (size_t t = 1; t < spaces_.size(); ++t) {
    for (size_t k = 0; k < layers_.size(); ++k) {
      if (wanted[k].dw) spaces_[0].dw[k].add_(spaces_[t].dw[k]);  // (T1)
      for (size_t j = 0; j < spaces_[0].db[k].size(); ++j) spaces_[0].db[k][j] += spaces_[t].db[k][j];
    }
  }
  return dh;
}

void Sweep::back(Space& space, int64_t start, Tensor dy, const std::vector<Wanted>& wanted, int64_t lowest,
                 const Tensor& dh) {
  const int64_t n = dy.size(0);
  const auto part = [&](const Tensor& t) { return t.narrow(0, 0, n); };
  for (int64_t k = layers_.size() - 1; k >= std::max<int64_t>(lowest, 0); --k) {
    double* db = wanted[k].db ? space.db[k].data() : nullptr;
    if (has_slope(k)) {
      delta_by_slope(dy, part(space.beside[k]), db);
    } else {
      dy = delta_of(dy, part(space.z[k]), *layers_[k].f, dy, db);
    }
    if (wanted[k].dw) add_dw(space, k, dy, k ? part(output(space, k - 1)) : h_.narrow(0, start, n));
    Tensor below;
    if (k > lowest) {
      const int64_t width = layers_[k].w.size(1);
      if (k && count() == 1) {
        below = dh_of(dy, layers_[k].w);
      } else {
        below = k ? (k % 2 ? space.first : space.second).narrow(0, 0, n * width).view({n, width})
                  : dh.narrow(0, start, n);
        at::mm_out(below, dy, layers_[k].w);  // (B2)
      }
      if (k && is_dropped(k - 1)) drop(below, below, mask(k - 1, start));
    }
    dy = below;
    // Of a single tile, nothing of this layer is asked for again.
    if (count() == 1) space.z[k] = space.beside[k] = space.dropped[k] = Tensor();
  }
  space.begun = true;
}

Tensor Sweep::db(int64_t layer, at::ScalarType dtype) const {
  const auto& sums = spaces_[0].db[layer];
  return sums.empty() ? Tensor() : rounded(sums, h_.options().dtype(dtype));
}

}  // namespace manual_mlp
