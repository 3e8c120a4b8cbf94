// The losses at the end of a network, for rows of its output: values and δ in one pass, as formulas/losses.py and
// formulas/cross_entropy.py have them.
#pragma once
#include "formulas.h"

namespace manual_mlp {

// What rows are compared with: classes (N,), or numbers (N, V) of any floating dtype.
struct Loss {
  enum Kind { cross_entropy, binary_cross_entropy, squared_error };
  Kind kind;
  Tensor target;
  Tensor weight;      // of the classes (V,), or of entries (N or 1, V or 1); or undefined
  Tensor pos_weight;  // of entries, likewise
  Tensor row_weight;  // of rows (N,), of any real dtype; or undefined. A row of weight 0 does not count
  int64_t ignore_index = -100;
  double label_smoothing = 0, z_loss = 0;
  bool by_entry() const { return kind != cross_entropy; }
  bool of_classes() const { return kind == cross_entropy && !target.is_floating_point(); }
};

// What a mean divides the sum of the values by, and what it multiplies their gradient by: 0 where no row counts.
struct Mean {
  double count, scale;
};
// Raises torch's IndexError for a class that is none of so many: to be asked before anything is computed.
Mean mean_of(const Loss& loss, int64_t classes);

// What comes back for the values: a factor, and one for each of the rows (n,) or entries (n, V) if it is defined.
struct Upstream {
  double scale = 1;
  Tensor g;
};

// The values of all rows (N,) or entries (N, V); and of rows ln Σeᶻ, and whether the first of the largest z is the
// target's. Numbers are of z's dtype, but float32 at least; what is undefined is not asked for.
struct Values {
  Tensor each, logsumexp, correct;
};

// Returns the sum of the values of rows from start on, whose output is z (n, V), contiguous, on a CPU. It fills in what
// of these rows is asked for, and, if it is defined, dy (n, V), which may be z: the gradient by z.
double loss_and_delta(const Loss& loss, const Tensor& z, int64_t start, const Upstream& upstream, const Values& values,
                      const Tensor& dy);

}  // namespace manual_mlp
