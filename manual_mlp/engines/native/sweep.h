// All rows of a network, a tile of them at a time, forward and backward: some tiles on each thread.
#pragma once
#include <functional>

#include "door.h"
#include "dropout.h"

namespace manual_mlp {

// A layer: y = f(h wᵀ + b), of whose entries dropout zeroes a share.
struct Layer {
  Tensor w;
  Optional b;
  const Act* f;
  double dropout;
};
using Layers = std::vector<Layer>;
// A draw of what dropout's masks hash, as dropout.py makes it; none where nothing is dropped.
std::optional<int64_t> draw_seed(const Layers& layers);

bool any_requires_grad(const Tensor& h, const Layers& layers);
// Whether tiles would keep more than all rows at once: so they may where layers are frozen.
bool keeps_more(const Tensor& h, const Layers& layers);
// Copies those operands which torch does not keep, and so lets change before backward, and tiles read again.
void make_unchanging(Tensor& h, Layers& layers);

// The rows of a tile, and the threads that share the tiles.
struct Tiling {
  int64_t rows, workers;
};

// What is to be found for a layer's parameters, whose sums are in float32 at least.
struct Wanted {
  bool dw, db;
};

// A tile: which rows, and the output of these.
struct Tile {
  int64_t start, n;
  Tensor y;
};
// Makes the gradient by the output of a tile, which will be overwritten: in the memory of that if it is free.
using Objective = std::function<Tensor(const Tile&, bool free)>;

class Sweep {
 public:
  // Layers are in the dtype of the products.
  Sweep(Layers layers, Tensor h, Tiling tiling, std::optional<uint64_t> seed);
  // y (N, D_out).
  Tensor forward();
  // Adds up dw and db of what is wanted; returns dh if the lowest layer is -1, the input. again: nobody asks for y, and
  // a last identity gives its memory alone.
  Tensor backward(const Objective& objective, const std::vector<Wanted>& wanted, int64_t lowest, bool again);
  // What backward has found for a layer; undefined where it was not wanted.
  Tensor dw(int64_t layer) const { return spaces_[0].dw[layer]; }
  Tensor db(int64_t layer, at::ScalarType dtype) const;

 private:
  // The memory of a worker, an entry a layer: z, with y over it unless f′ is taken from z; beside it f′, or else y; y
  // after dropout where y itself must last; and the sums.
  struct Space {
    std::vector<Tensor> z, beside, dropped, dw;
    bool begun = false;  // whether the sums are there to be added to
    std::vector<std::vector<double>> db;
    Tensor first, second;  // dh of two layers in turn
  };
  Space space(bool backward, const std::vector<Wanted>& wanted) const;
  void each_tile(const std::function<void(Space&, int64_t start, int64_t n)>& work);
  // Runs the first layers on a tile; returns the output of the last of these.
  Tensor run(Space& space, int64_t start, int64_t n, bool backward, size_t count);
  void back(Space& space, int64_t start, Tensor dy, const std::vector<Wanted>& wanted, int64_t lowest,
            const Tensor& dh);
  // Whether f′ is made with y and kept beside it: in half precision that would round it once more.
  bool has_slope(size_t k) const;
  int64_t count() const { return (h_.size(0) + tiling_.rows - 1) / tiling_.rows; }
  void add_dw(Space& space, size_t k, const Tensor& delta, const Tensor& h) const;
  bool is_dropped(size_t k) const { return layers_[k].dropout > 0; }
  Mask mask(size_t k, int64_t start) const { return Mask(*seed_, k, layers_[k].dropout, start); }
  // What the layer above takes.
  const Tensor& output(const Space& space, size_t k) const;

  Layers layers_;
  Tensor h_;
  Tiling tiling_;
  std::optional<uint64_t> seed_;
  std::vector<Tensor> transposed_;
  std::vector<Space> spaces_;
};

}  // namespace manual_mlp
