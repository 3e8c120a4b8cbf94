// A layer with its loss as a node of the graph: a network of one layer, run a tile of rows at a time.
#pragma once
#include "layer.h"
#include "losses.h"

namespace manual_mlp {

enum class Reduction { none, mean, sum };

// The last layer of a network, and its input (*, D_in).
struct Head {
  Tensor h, w;
  Optional b;
  const Act* f;
};

// How a loss is computed: in which tiles, beside what of its rows, with products in which dtype, and whether under
// autocast.
struct Plan {
  Loss loss{};
  Reduction reduction = Reduction::mean;
  int64_t rows = 0;
  bool stats = false;
  at::ScalarType products = at::kFloat;
  std::optional<at::ScalarType> region = {};
  // Whether backward makes the output once more: an upstream gradient of each row comes before the products.
  bool again(int64_t n) const { return rows < n && reduction == Reduction::none; }
};

// What is made of all rows: the loss, and of each what the plan asks for; and for an upstream gradient of 1 δ, where
// they are one tile and the products wait, or else dh, dw and db, each in the dtype that it was computed in.
struct Made {
  Tensor value, logsumexp, correct, delta;
  Three three;
};

// Whether a node of frozen operands keeps more than torch: the logits, h for dw and w for dh.
bool keeps_more(const Head& head, const Plan& plan);
// Whether the loss is to be differentiated.
bool is_recorded(const Head& head);
Made loss_of(Head head, Plan plan);
// The same and its gradients, where nothing is recorded; not for values that are not added up.
Made loss_and_gradients(const Head& head, const Plan& plan, Needed needed);

}  // namespace manual_mlp
