// How the objects of a loss are taken.
#pragma once
#include "head.h"
#include "python.h"

namespace manual_mlp {

// What a loss compares with, of which nobody asks for the gradient; None leaves it undefined.
bool take_constant(PyObject* object, Tensor& to);
bool take_reduction(PyObject* object, Reduction& to);
bool take_int(PyObject* object, int64_t& to);
bool take_share(PyObject* object, double& to);
// Whether the target has as many rows as the input, and, unless it is classes, an entry for each of the output.
bool fits(const Tensor& target, const Head& head, bool of_classes);
// A weight of entries (N or 1, V or 1), if it broadcasts to the target; undefined stays so.
bool spread(Tensor& t, const Tensor& target);
// The dtype of products of narrow operands: float32 where that is no slower.
at::ScalarType product_dtype(at::ScalarType dtype);

}  // namespace manual_mlp
