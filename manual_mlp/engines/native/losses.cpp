#include "losses.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/argmax.h>

#include <cmath>
#include <limits>

#include "numbers.h"

namespace manual_mlp {
namespace {

// Entries that are added up in their own width before float64 takes over, and those of one thread's share of rows.
constexpr int64_t kBlock = 256, kShare = 16384;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Rows from start on of what has a row for each, or one for all.
Tensor part(const Tensor& t, int64_t start, int64_t n) {
  return !t.defined() || t.size(0) == 1 ? t : t.narrow(0, start, n);
}
// The same of what has a column for each, or one for all.
Tensor part(const Tensor& t, int64_t start, const Tensor& z) {
  return t.defined() ? part(t, start, z.size(0)).expand_as(z) : t;
}

// Rows from start on of what is contiguous; null if it is undefined.
template <class T>
T* rows_of(const Tensor& t, int64_t start = 0) {
  return t.defined() ? t.data_ptr<T>() + start * t.stride(0) : nullptr;
}

// Calls act(k) for shares of the work, and returns the sum of its results, the same whoever computes them.
template <class Do>
double shared(int64_t shares, const Do& act) {
  if (shares == 1) return act(0);
  std::vector<double> found(shares);
  at::parallel_for(0, shares, 1, [&](int64_t from, int64_t to) {
    for (int64_t k = from; k < to; ++k) found[k] = act(k);
  });
  double sum = 0;
  for (double each : found) sum += each;
  return sum;
}

template <class V>
struct Entry {
  V value, dy;
};

// entry(z, i, m) makes the value and dy of entries i to i + m.
template <class T, class Make>
double by_entry(const Tensor& z, const Upstream& upstream, Wide<T>* values, const Tensor& dy, const Make& entry) {
  const T* from = z.const_data_ptr<T>();
  T* to = rows_of<T>(dy);
  Tensor of_each = upstream.g;
  const auto g = numbers_of<T>(of_each);
  const Vec<T> scale(upstream.scale);
  const int64_t n = z.numel();
  return shared((n + kShare - 1) / kShare, [&](int64_t k) {
    double sum = 0;
    for (int64_t start = k * kShare; start < std::min(n, (k + 1) * kShare); start += kBlock) {
      Vec<T> few(0);
      each<T>(std::min({n, start + kBlock, (k + 1) * kShare}) - start, [&](int64_t j, auto m) {
        const int64_t i = start + j;
        const auto [value, delta] = entry(load(from + i, m), i, m);
        few = few + only(value, m);
        if (values) store<Wide<T>>(value, values + i, m);
        if (to) store<T>(g ? delta * scale * g.at(i, m) : delta * scale, to + i, m);
      });
      sum += added(few);
    }
    return sum;
  });
}

template <class T>
double squared_error(const Loss& loss, const Tensor& z, int64_t start, const Upstream& upstream, const Values& values,
                     const Tensor& dy) {
  Tensor target = part(loss.target, start, z);
  const auto t = numbers_of<T>(target);
  return by_entry<T>(z, upstream, rows_of<Wide<T>>(values.each, start), dy, [&](const Vec<T>& y, int64_t i, auto m) {
    const Vec<T> error = y - t.at(i, m);  // (O1)
    return Entry<Vec<T>>{Vec<T>(0.5) * error * error, error};
  });
}

template <class T>
double binary_cross_entropy(const Loss& loss, const Tensor& z, int64_t start, const Upstream& upstream,
                            const Values& values, const Tensor& dy) {
  using V = Vec<T>;
  Tensor target = part(loss.target, start, z), weight = part(loss.weight, start, z);
  Tensor pos_weight = part(loss.pos_weight, start, z);
  const auto t = numbers_of<T>(target), v = numbers_of<T>(weight), rho = numbers_of<T>(pos_weight);
  const V one(1), zero(0);
  return by_entry<T>(z, upstream, rows_of<Wide<T>>(values.each, start), dy, [&](const V& y, int64_t i, auto m) {
    const V no = one - t.at(i, m), yes = rho ? rho.at(i, m) * t.at(i, m) : t.at(i, m), total = rho ? yes + no : one;
    // ln σ(z) = min(z, 0) − ln(1 + exp(−|z|)), and σ(z) is made of the same exponential.
    const V e = exp_of(y.abs().neg()), p = select(one, e, y < zero) / (one + e);
    const V value = (log1p_of(e) - at::vec::minimum(y, zero)) * total + no * y;
    const V delta = p * total - yes;  // (O3)
    return v ? Entry<V>{value * v.at(i, m), delta * v.at(i, m)} : Entry<V>{value, delta};
  });
}

// The target row a is hard at the class of the row, if it has one, and spread over all columns, if it is.
struct Hard {
  int64_t column = -1;
  double share = 0;
};
struct Unspread {};

// The largest of a row: as every other number of its softmax, it is not finite where one of these is NaN.
template <class T>
Wide<T> top_of(const T* z, int64_t v) {
  using V = Vec<T>;
  V most(-kInfinity);
  each<T>(v, [&](int64_t j, auto m) { most = at::vec::maximum(most, only(load(z + j, m), m, -kInfinity)); });
  return at::vec::vec_reduce_all<Wide<T>>([](V a, V b) { return at::vec::maximum(a, b); }, most);
}

// The value of a row, and ℓ = ln Σeᶻ.
struct OfRow {
  double value, lse;
};

// Those of logits z, whose largest is top; and δ times g, where dy is not null. e, with room for a row, may be dy.
template <class T, class Spread>
OfRow row_of_logits(const T* z, Wide<T> top, T* dy, Wide<T>* e, int64_t v, const Hard& hard, const Spread& spread,
                    double g, double zeta) {
  using V = Vec<T>;
  constexpr bool is_spread = !std::is_same_v<Spread, Unspread>;
  const double x_of_class = hard.column < 0 ? 0 : double(z[hard.column]) - double(top);
  double sum = 0, a = hard.share, ax = hard.share * x_of_class;
  for (int64_t start = 0; start < v; start += kBlock) {
    V few(0), few_a(0), few_ax(0);
    each<T>(std::min(v - start, kBlock), [&](int64_t i, auto m) {
      const int64_t j = start + i;
      const V x = load(z + j, m) - V(top), raised = exp_of(x);
      if (dy) store<Wide<T>>(raised, e + j, m);
      few = few + only(raised, m);
      if constexpr (is_spread) {
        const V of_j = only(spread(j, m), m);
        few_a = few_a + of_j;
        few_ax = few_ax + only(of_j * x, m);
      }
    });
    sum += added(few);
    if constexpr (is_spread) a += added(few_a), ax += added(few_ax);
  }
  const double lse = double(top) + std::log(sum);
  if (dy) {
    const double scale = (a + 2 * zeta * lse) * g / sum;  // (O5)
    const double e_of_class = hard.column < 0 ? 0 : double(e[hard.column]);
    // A share p below e⁻⁶⁴ is 0 too.
    const V least(std::is_same_v<Wide<T>, double> ? 0 : sum * std::exp(-64.0)), zero(0);
    Wide<T> rest = 0;
    each<T>(v, [&](int64_t j, auto m) {
      const V raised = load(e + j, m);
      V delta = select(raised, zero, raised < least) * V(scale);
      if constexpr (is_spread) delta = delta - spread(j, m) * V(g);  // (O2)
      store<T>(delta, dy + j, m);
    });
    if constexpr (is_spread) {
      if (hard.column >= 0) spread(hard.column, int64_t(1)).store(&rest, 1);
    }
    if (hard.column >= 0) dy[hard.column] = static_cast<T>(e_of_class * scale - (hard.share + rest) * g);
  }
  return {a * std::log(sum) - ax + zeta * lse * lse, lse};
}

int64_t checked(int64_t target, int64_t classes) {
  TORCH_CHECK_INDEX(target >= 0 && target < classes, "Target ", target, " is out of bounds.");
  return target;
}

template <class T>
double cross_entropy(const Loss& loss, const Tensor& z, int64_t start, const Upstream& upstream, const Values& values,
                     const Tensor& dy) {
  using W = Wide<T>;
  const int64_t n = z.size(0), v = z.size(1);
  const T* from = z.const_data_ptr<T>();
  T* to = rows_of<T>(dy);
  W *each = rows_of<W>(values.each, start), *sums = rows_of<W>(values.logsumexp, start);
  bool* correct = rows_of<bool>(values.correct, start);
  Tensor weight = loss.weight, of_target = loss.of_classes() ? Tensor() : part(loss.target, start, z);
  Tensor of_each = upstream.g, of_rows = part(loss.row_weight, start, n);
  const auto w = numbers_of<T>(weight), t = numbers_of<T>(of_target);
  const auto g = numbers_of<double>(of_each), rho = numbers_of<double>(of_rows);
  const Tensor of_classes = loss.of_classes() ? loss.target.contiguous()
      : correct                               ? at::argmax(of_target, 1)
                                              : Tensor();
  const int64_t* classes = rows_of<int64_t>(of_classes, t ? 0 : start);
  const double smoothing = loss.label_smoothing;
  const Vec<T> soft(smoothing / v), sharp(1 - smoothing);
  const auto weighed = [&](const Vec<T>& a, int64_t j, auto m) { return w ? a * w.at(j, m) : a; };
  const auto row = [&](int64_t i, W* space) -> double {
    const T* of_row = from + i * v;
    const W top = top_of(of_row, v);
    if (correct) {
      const int64_t k = t || classes[i] != loss.ignore_index ? classes[i] : -1;
      correct[i] = k >= 0 && W(of_row[k]) == top && std::find(of_row, of_row + k, of_row[k]) == of_row + k;
    }
    T* out = to ? to + i * v : nullptr;
    W* e = space;
    if constexpr (std::is_same_v<T, W>) e = out;
    const double share = rho ? rho.number(i) : 1;
    // No upstream gradient, not even NaN, reaches a row that does not count.
    const double scale = share ? upstream.scale * share * (g ? g.number(i) : 1) : 0;
    const auto value_of = [&](const Hard& hard, const auto& spread) {
      const auto [value, lse] = row_of_logits(of_row, top, out, e, v, hard, spread, scale, loss.z_loss);
      if (sums) sums[i] = lse;
      return share * value;
    };
    if (t) {
      return value_of(Hard(), [&](int64_t j, auto m) { return weighed(sharp * t.at(i * v + j, m) + soft, j, m); });
    }
    if (classes[i] == loss.ignore_index) {
      if (sums) sums[i] = row_of_logits<T, Unspread>(of_row, top, nullptr, nullptr, v, {}, {}, 0, 0).lse;
      if (to) std::fill_n(out, v, static_cast<T>(std::isfinite(top) ? 0 : NAN));
      return 0;
    }
    const int64_t column = checked(classes[i], v);
    const Hard hard{column, (1 - smoothing) * (w ? w.number(column) : 1)};
    if (!smoothing) return value_of(hard, Unspread());
    return value_of(hard, [&](int64_t j, auto m) { return weighed(soft, j, m); });
  };
  const int64_t few = std::max<int64_t>(1, kShare / v);
  return shared((n + few - 1) / few, [&](int64_t k) {
    std::vector<W> space(to && !std::is_same_v<T, W> ? v : 0);
    double sum = 0;
    for (int64_t i = k * few; i < std::min(n, (k + 1) * few); ++i) {
      const double value = row(i, space.data());
      if (each) each[i] = value;
      sum += value;
    }
    return sum;
  });
}

}  // namespace

Mean mean_of(const Loss& loss, int64_t classes) {
  if (loss.by_entry()) return {double(loss.target.numel()), 1.0 / loss.target.numel()};
  const Tensor target = loss.of_classes() ? loss.target.contiguous() : Tensor();
  Tensor weight = target.defined() ? loss.weight : Tensor(), row_weight = loss.row_weight;
  const int64_t* t = target.defined() ? target.const_data_ptr<int64_t>() : nullptr;
  const auto w = numbers_of<double>(weight), rho = numbers_of<double>(row_weight);
  double count = 0;
  bool any = false;
  for (int64_t i = 0; i < loss.target.size(0); ++i) {
    if (t && t[i] == loss.ignore_index) continue;
    const int64_t column = t ? checked(t[i], classes) : 0;
    const double share = rho ? rho.number(i) : 1;
    any = any || share;
    count += share * (w ? w.number(column) : 1);
  }
  return {count, any ? 1 / count : 0};
}

double loss_and_delta(const Loss& loss, const Tensor& z, int64_t start, const Upstream& upstream, const Values& values,
                      const Tensor& dy) {
  if (!z.numel()) return 0;
  double sum = 0;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, z.scalar_type(), "loss_and_delta", [&] {
    const auto compute = loss.kind == Loss::cross_entropy ? cross_entropy<scalar_t>
        : loss.kind == Loss::squared_error                ? squared_error<scalar_t>
                                                          : binary_cross_entropy<scalar_t>;
    sum = compute(loss, z, start, upstream, values, dy);
  });
  return sum;
}

}  // namespace manual_mlp
