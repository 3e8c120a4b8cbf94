// How the objects of a loss are taken.
#pragma once
#include "head.h"
#include "python.h"

namespace manual_mlp {

bool take_reduction(PyObject* object, Reduction& to);
// A loss for what a layer makes of its input, from its name, target, weight, pos_weight, row_weight, ignore_index,
// label_smoothing and z_loss.
bool take_loss(PyObject* const* given, const Head& head, Loss& to);
// The dtype of products of narrow operands: float32 where that is no slower.
at::ScalarType product_dtype(at::ScalarType dtype);

}  // namespace manual_mlp
