// A step without a graph: a network forward and backward with its loss, whose gradients are added to .grad.
#pragma once
#include "head.h"
#include "sweep.h"

namespace manual_mlp {

struct Step {
  Layers layers;  // of leaves
  Tensor input;   // (*, D_in)
  Tiling tiling;
  at::ScalarType products, output;  // the dtype of the products, and of the output
  bool return_output;
};

// What a step leaves to Python: the sum of the loss, the output, dh, and the gradients of those parameters that are
// not added to .grad as they are, an entry for each w and b.
struct Left {
  Tensor output, dh;
  std::vector<std::pair<Tensor, Tensor>> gradients;
};

Left backprop(const Step& step, const Objective& objective);
// The same with a loss that is known here, and its value: the sum, the mean, or the values apart.
Left backprop(const Step& step, const Loss& loss, Reduction reduction, const Upstream& upstream, Tensor& value);

}  // namespace manual_mlp
