#include "formulas.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "dropout.h"
#include "kernels.h"

namespace manual_mlp {

// Calls act with pointers to the entries of tensors of one dtype.
template <class Do, class... Tensors>
static void with_entries(const Do& act, const Tensor& first, const Tensors&... rest) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, first.scalar_type(), "manual_mlp", [&] {
    TORCH_INTERNAL_ASSERT(first.is_contiguous() && (true && ... && rest.is_contiguous()));
    act(first.template data_ptr<scalar_t>(), rest.template data_ptr<scalar_t>()...);
  });
}

// Rows (n, w), which row(i, j, m) makes vectors of, are added to db by threads that each take the same rows every time.
template <class T, class Row>
static void add_columns_shared(int64_t n, int64_t w, double* db, const Row& row) {
  const int64_t threads = n * w <= kGrain || at::in_parallel_region() ? 1 : at::get_num_threads();
  if (threads == 1) return add_columns<T>(n, w, db, row);
  const int64_t few = (n + threads - 1) / threads;
  std::vector<double> parts(threads * w);
  at::parallel_for(0, threads, 1, [&](int64_t from, int64_t to) {
    for (int64_t t = from; t < to; ++t) {
      const int64_t start = t * few, count = std::min(few, n - start);
      if (count > 0) {
        add_columns<T>(count, w, parts.data() + t * w,
                       [&](int64_t i, int64_t j, auto m) { return row(start + i, j, m); });
      }
    }
  });
  for (int64_t k = 0; k < threads * w; ++k) db[k % w] += parts[k];
}

// Vectors vector(i, m) of all entries of rows, whose columns are added to db if it is there.
template <class T, class Vector>
static void rows_and_columns(const Tensor& like, double* db, const Vector& vector) {
  const int64_t n = like.size(0), w = like.size(1);
  if (db) {
    add_columns_shared<T>(n, w, db, [&](int64_t i, int64_t j, auto m) { return vector(i * w + j, m); });
  } else {
    each_shared<T>(n * w, [&](int64_t i, auto m) { vector(i, m); });
  }
}

void y_into(const Tensor& y, const Tensor& z, const Act& f) {
  if (!(f.vectors() && z.is_cpu())) return aten_y_into(y, z, f);
  with_formulas(f, [&](const auto& formulas) {
    with_entries(
        [&](auto* out, auto* in) {
          using T = std::remove_pointer_t<decltype(out)>;
          each_shared<T>(z.numel(), [&](int64_t i, auto m) {
            store<T>(formulas.f(load(in + i, m)), out + i, m);  // (F2)
          });
        },
        y, z);
  });
}

void y_and_slope(const Tensor& z, const Tensor& slope, const Act& f) {
  with_formulas_of_z(f, [&](const auto& formulas) {
    with_entries(
        [&](auto* zs, auto* slopes) {
          using T = std::remove_pointer_t<decltype(zs)>;
          each_shared<T>(z.numel(), [&](int64_t i, auto m) {
            const auto [y, df] = formulas.both(load(zs + i, m));
            store<T>(y, zs + i, m);
            store<T>(df, slopes + i, m);
          });
        },
        z, slope);
  });
}

void y_and_delta(const Tensor& y, const Tensor& delta, const Tensor& dy, const Tensor& z, const Act& f, double* db) {
  with_formulas_of_z(f, [&](const auto& formulas) {
    with_entries(
        [&](auto* ys, auto* deltas, auto* dys, auto* zs) {
          using T = std::remove_pointer_t<decltype(ys)>;
          rows_and_columns<T>(z, db, [&](int64_t i, auto m) {
            const auto [value, df] = formulas.both(load(zs + i, m));
            const auto found = load(dys + i, m) * df;
            store<T>(value, ys + i, m);
            store<T>(found, deltas + i, m);
            return found;
          });
        },
        y, delta, dy, z);
  });
}

Tensor delta_of(const Tensor& dy, const Tensor& kept, const Act& f, const Tensor& out, double* db) {
  if (f.kind == Kind::identity || !(f.vectors() && dy.is_cpu())) {
    const Tensor delta = f.kind == Kind::identity ? dy : aten_delta_of(dy, kept, f);
    if (db) add_db(delta, db);
    return delta;
  }
  const Tensor delta = out.defined() ? out : at::empty_like(dy);
  with_formulas(f, [&](const auto& formulas) {
    with_entries(
        [&](auto* to, auto* dys, auto* of) {
          using T = std::remove_pointer_t<decltype(to)>;
          rows_and_columns<T>(dy, db, [&](int64_t i, auto m) {
            const auto found = formulas.kernel(load(dys + i, m), load(of + i, m));  // (B1)
            store<T>(found, to + i, m);
            return found;
          });
        },
        delta, dy, kept);
  });
  return delta;
}

void delta_by_slope(const Tensor& dy, const Tensor& slope, double* db) {
  with_entries(
      [&](auto* dys, auto* slopes) {
        using T = std::remove_pointer_t<decltype(dys)>;
        rows_and_columns<T>(dy, db, [&](int64_t i, auto m) {
          const auto found = load(dys + i, m) * load(slopes + i, m);
          store<T>(found, dys + i, m);
          return found;
        });
      },
      dy, slope);
}

void add_db(const Tensor& delta, double* db) {
  with_entries(
      [&](auto* deltas) {
        using T = std::remove_pointer_t<decltype(deltas)>;
        rows_and_columns<T>(delta, db, [&](int64_t i, auto m) { return load(deltas + i, m); });  // (B4)
      },
      delta);
}

Second second_of_delta(const Tensor& dy, const Tensor& q, const Tensor& kept, const Act& f, bool over) {
  const Second found{at::empty_like(q), over ? q : at::empty_like(q), at::empty_like(q)};
  with_formulas(f, [&](const auto& formulas) {
    with_entries(
        [&](auto* dys, auto* qs, auto* of, auto* deltas, auto* cotangents, auto* rs) {
          using T = std::remove_pointer_t<decltype(dys)>;
          each_shared<T>(q.numel(), [&](int64_t i, auto m) {
            const auto of_dy = load(dys + i, m), of_q = load(qs + i, m), k = load(of + i, m);
            store<T>(formulas.kernel(of_dy, k), deltas + i, m);
            store<T>(of_q * of_dy * formulas.d2f(k), rs + i, m);     // (S2)
            store<T>(formulas.kernel(of_q, k), cotangents + i, m);  // (S3)
          });
        },
        dy, q, kept, found.delta, found.dy_cotangent, found.r);
  });
  return found;
}

// The factors of some columns of a row. A loop this plain becomes vectors.
template <class T>
static void factors_of(T* to, const uint32_t* of_column, int64_t n, uint32_t of_row, int32_t least, T kept) {
  for (int64_t j = 0; j < n; ++j) to[j] = int32_t(mix(of_row + of_column[j])) >= least ? kept : T(0);
}

void drop(const Tensor& to, const Tensor& from, const Mask& mask) {
  constexpr int64_t kFew = 256;
  const int64_t n = from.size(0), w = from.size(1);
  std::vector<uint32_t> of_column(w);
  for (int64_t j = 0; j < w; ++j) of_column[j] = mix(uint32_t(j));
  with_entries(
      [&](auto* out, auto* in) {
        using T = std::remove_pointer_t<decltype(out)>;
        const auto kept = Wide<T>(T(mask.factor));
        at::parallel_for(0, n, std::max<int64_t>(1, kGrain / 4 / w), [&](int64_t from_row, int64_t to_row) {
          Wide<T> factor[kFew];
          for (int64_t i = from_row; i < to_row; ++i) {
            const uint32_t of_row = mix(mask.key + uint32_t(mask.row + i));
            for (int64_t start = 0; start < w; start += kFew) {
              const int64_t few = std::min(kFew, w - start);
              factors_of(factor, of_column.data() + start, few, of_row, mask.least, kept);
              each<T>(few, [&](int64_t j, auto m) {
                const int64_t k = i * w + start + j;
                store<T>(load(in + k, m) * load(factor + j, m), out + k, m);
              });
            }
          }
        });
      },
      to, from);
}

Tensor rounded(const std::vector<double>& sums, const at::TensorOptions& options) {
  const Tensor found = at::empty({int64_t(sums.size())}, options);
  with_entries(
      [&](auto* to) {
        for (size_t k = 0; k < sums.size(); ++k) to[k] = static_cast<std::remove_pointer_t<decltype(to)>>(sums[k]);
      },
      found);
  return found;
}

}  // namespace manual_mlp
