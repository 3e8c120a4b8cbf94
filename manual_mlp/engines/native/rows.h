// Entries of a row, a vector at a time: computed in float32 where they are narrower, so that a result is rounded once.
#pragma once
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <type_traits>
#include <vector>

namespace manual_mlp {

template <class T>
using Wide = at::opmath_type<T>;
template <class T>
using Vec = at::vec::Vectorized<Wide<T>>;
template <class T>
constexpr int64_t kLanes = Vec<T>::size();
// Entries, or as much work, that one thread takes at least.
constexpr int64_t kGrain = 32768;

template <class T>
inline Vec<T> load(const T* p, int64_t n) {
  if constexpr (std::is_same_v<T, Wide<T>>) {
    return n == kLanes<T> ? Vec<T>::loadu(p) : Vec<T>::loadu(p, n);
  } else {
    Vec<T> v;
    if (n == kLanes<T>) {
      at::vec::load_to_float<T>(p, v);
    } else {
      v = std::get<0>(at::vec::convert_to_float<T>(at::vec::Vectorized<T>::loadu(p, n)));
    }
    return v;
  }
}

template <class T>
inline void store(const Vec<T>& v, T* p, int64_t n) {
  if constexpr (std::is_same_v<T, Wide<T>>) {
    n == kLanes<T> ? v.store(p) : v.store(p, n);
  } else {
    at::vec::convert_from_float<T>(v, v).store(p, n);
  }
}

// Calls do(i, m) for entries i to i + m: whole vectors, and then what is left of one.
template <class T, class Do>
inline void each(int64_t n, const Do& act) {
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) act(i, std::integral_constant<int64_t, kLanes<T>>{});
  if (i < n) act(i, n - i);
}

// The same for entries that several threads may share.
template <class T, class Do>
inline void each_shared(int64_t n, const Do& act) {
  if (n <= kGrain) return each<T>(n, act);
  at::parallel_for(0, n, kGrain, [&](int64_t from, int64_t to) {
    each<T>(to - from, [&](int64_t i, auto m) { act(from + i, m); });
  });
}

// Adds the columns of rows (n, w), of which row(i, j, m) makes vectors, to sums (w,): sixteen rows in their own width
// and then in float64, which is as quick as one running sum and far more accurate.
template <class T, class Row>
inline void add_columns(int64_t n, int64_t w, double* sums, const Row& row) {
  std::vector<Wide<T>> few(w + kLanes<T>);
  for (int64_t start = 0; start < n; start += 16) {
    std::fill(few.begin(), few.end(), Wide<T>(0));
    for (int64_t i = start; i < std::min(n, start + 16); ++i) {
      each<T>(w, [&](int64_t j, auto m) {
        (Vec<T>::loadu(few.data() + j) + row(i, j, m)).store(few.data() + j);
      });
    }
    for (int64_t j = 0; j < w; ++j) sums[j] += few[j];
  }
}

}  // namespace manual_mlp
