// f and δ by torch's own kernels: every activation of a GPU, and on a CPU those whose vectors are not in the table.
#pragma once
#include "formulas.h"

namespace manual_mlp {

void aten_y_into(const Tensor& y, const Tensor& z, const Act& f);
Tensor aten_delta_of(const Tensor& dy, const Tensor& kept, const Act& f);

}  // namespace manual_mlp
