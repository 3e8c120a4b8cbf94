// A layer as a node of the graph, and what its backward pass computes.
#pragma once
#include "door.h"

namespace manual_mlp {

// What a layer keeps: h for dw, w for dh, and z or y for f′, or nothing for each.
struct Kept {
  const Act& f;
  Tensor h, w, z_or_y;
};
struct Needed {
  bool dh, dw, db;
  bool any() const { return dh || dw || db; }
};
struct Three {
  Tensor dh, dw, db;
};

Tensor dense(const Tensor& input, const Tensor& weight, const Optional& bias, const Act& f, at::ScalarType products);
// dh, dw and db, each if it is needed, so that what differentiates them is right.
Three layer_backward(const Kept& of, const Tensor& dy, const Tensor& dz, Needed needed);
// The same where nothing differentiates them.
Three gradients(const Kept& of, const Tensor& dy, const Tensor& dz, Needed needed);

}  // namespace manual_mlp
