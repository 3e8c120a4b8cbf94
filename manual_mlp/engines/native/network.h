// A whole network as a node of the graph.
#pragma once
#include "sweep.h"

namespace manual_mlp {

// y (*, D_out) of layers that fit the input, whose dtype they have. All rows are one tile if the tiling says so: then
// what backward needs is kept, and else nothing but the operands.
Tensor network(const Tensor& input, Layers layers, Tiling tiling);

}  // namespace manual_mlp
