// The formulas of a layer, as formulas/layer.py has them: rows are (N, ·), weights (D_out, D_in), and all contiguous
// but for the weights. Each computes as it stands: grad mode and dispatch are the caller's care.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>

#include <optional>

#include "activations.h"

namespace manual_mlp {
using at::Tensor;
using Optional = std::optional<Tensor>;

// torch takes its time to find out that there is nothing to do.
inline Tensor cast(const Tensor& t, at::ScalarType dtype) { return t.scalar_type() == dtype ? t : t.to(dtype); }
inline Optional cast(const Optional& t, at::ScalarType dtype) { return t ? Optional(cast(*t, dtype)) : t; }

inline Tensor z_of(const Tensor& h, const Tensor& w, const Optional& b) {
  return b ? at::addmm(*b, h, w.t()) : at::mm(h, w.t());  // (F1)
}

// y, over z or in other memory.
void y_into(const Tensor& y, const Tensor& z, const Act& f);
// y over z, and f′ beside it, for kinds whose vectors are here: they share their exponentials.
void y_and_slope(const Tensor& z, const Tensor& slope, const Act& f);
// y once more, and δ, from the z that was kept; and db, if it is asked for.
void y_and_delta(const Tensor& y, const Tensor& delta, const Tensor& dy, const Tensor& z, const Act& f, double* db);

// δ from what the layer kept, into out (which may be dy) or new memory; on a CPU, its columns are added to db.
Tensor delta_of(const Tensor& dy, const Tensor& kept, const Act& f, const Tensor& out = {}, double* db = nullptr);
// δ from f′ itself, over dy.
void delta_by_slope(const Tensor& dy, const Tensor& slope, double* db);

inline Tensor dh_of(const Tensor& delta, const Tensor& w) { return at::mm(delta, w); }      // (B2)
inline Tensor dw_of(const Tensor& delta, const Tensor& h) { return at::mm(delta.t(), h); }  // (B3)
// The columns of δ, added to db.
void add_db(const Tensor& delta, double* db);

// What second order takes from dy, q and what the layer kept, in one pass.
struct Second {
  Tensor delta, dy_cotangent, r;
};
// over allows q to be overwritten.
Second second_of_delta(const Tensor& dy, const Tensor& q, const Tensor& kept, const Act& f, bool over);

// Sums in float64, rounded once.
Tensor rounded(const std::vector<double>& sums, const at::TensorOptions& options);

}  // namespace manual_mlp
