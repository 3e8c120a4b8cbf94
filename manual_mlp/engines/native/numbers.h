// What a loss does with vectors: exponentials, sums, and numbers that stand beside the entries of an output.
#pragma once
#include <ATen/core/Tensor.h>

#include "activations.h"

namespace manual_mlp {
using at::Tensor;

// The first m entries of a vector, and another number in place of the rest.
template <class V, class M>
inline V only(const V& v, M m, double rest = 0) {
  if constexpr (std::is_same_v<M, int64_t>) {
    return V::set(V(rest), v, m);
  } else {
    return v;
  }
}

// The sum of a vector in float64, by halves.
template <class V>
inline double added(const V& v) {
  constexpr int64_t size = V::size();
  alignas(64) typename V::value_type lanes[size];
  v.store(lanes);
  double sums[size];
  for (int64_t i = 0; i < size; ++i) sums[i] = lanes[i];
  for (int64_t half = size / 2; half; half /= 2) {
    for (int64_t i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return sums[0];
}

// e to the x, and 0 below e⁻⁶⁴: a product with denormal operands is up to 190 times slower.
template <class V>
inline V exp_of(const V& x) {
  if constexpr (std::is_same_v<typename V::value_type, double>) {
    return x.exp();
  } else {
    return select(x.exp(), V(0), x < V(-64));
  }
}

// ln(1 + e) of e from 0 to 1: twice the series of artanh(e / (2 + e)), ten times as quick as torch's in float32.
template <class V>
inline V log1p_of(const V& e) {
  if constexpr (std::is_same_v<typename V::value_type, double>) {
    return e.log1p();
  } else {
    const V s = e / (V(2) + e), square = s * s;
    V rest(2.f / 17);
    for (int k = 15; k > 1; k -= 2) rest = at::vec::fmadd(rest, square, V(2.f / k));
    return e - s * (e - square * rest);
  }
}

// Numbers, one an entry, in the dtype of the output or as wide as it is computed in.
template <class T>
struct Numbers {
  const T* narrow = nullptr;
  const Wide<T>* wide = nullptr;
  operator bool() const { return narrow || wide; }
  template <class M>
  Vec<T> at(int64_t i, M m) const {
    return narrow ? load(narrow + i, m) : load(wide + i, m);
  }
  double number(int64_t i) const { return narrow ? double(narrow[i]) : double(wide[i]); }
};

template <class T>
constexpr auto kWide = c10::CppTypeToScalarType<Wide<T>>::value;

// Those of a tensor, which is kept while they are used. One of another dtype is copied.
template <class T>
Numbers<T> numbers_of(Tensor& t) {
  if (!t.defined()) return {};
  if (t.scalar_type() != c10::CppTypeToScalarType<T>::value) t = t.to(kWide<T>);
  t = t.contiguous();
  if (t.scalar_type() == kWide<T>) return {nullptr, t.const_data_ptr<Wide<T>>()};
  return {t.const_data_ptr<T>(), nullptr};
}

}  // namespace manual_mlp
