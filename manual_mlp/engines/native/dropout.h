// Which entries dropout zeroes, as dropout.py says: a hash of the seed, the layer, the row and the column.
#pragma once
#include <cstdint>
#include <limits>

#include "formulas.h"

namespace manual_mlp {

inline uint32_t mix(uint32_t u) {
  u = (u ^ (u >> 16)) * 0x7feb352du;
  return (u ^ (u >> 15)) * 0x846ca68bu;
}

// The mask of some rows of a layer's output: the key of the layer, the least hash that is kept, the factor of the kept.
struct Mask {
  uint32_t key;
  int32_t least;
  double factor;
  int64_t row;

  Mask(uint64_t seed, int64_t layer, double p, int64_t first_row)
      : key(mix(mix(uint32_t(seed) + 0x9e3779b9u * uint32_t(layer)) + uint32_t(seed >> 32))),
        least(p < 1 ? int32_t(int64_t(p * 4294967296.0) - 2147483648) : 0),
        factor(p < 1 ? 1 / (1 - p) : 0),
        row(first_row) {}
};

// from (n, w), contiguous on a CPU, times its mask, into to, which may be from.
void drop(const Tensor& to, const Tensor& from, const Mask& mask);

}  // namespace manual_mlp
