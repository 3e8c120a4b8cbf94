// The table of activations: f, f′ and f″ of a vector, each formula beside its name, as activations/*.py has them.
//
// What a layer keeps is y where f′ comes from y (by_y), else z; then d2f is f″/f′ where it is y. kernel is dy ⊙ f′.
#pragma once
#include <string>

#include "rows.h"

namespace manual_mlp {

enum class Kind { identity, relu, sigmoid, tanh, gelu, silu, softplus, sin, softcap, by_aten };

// An activation that has a number here: what Python's record of that number says.
struct Act {
  Kind kind;
  bool by_y;
  std::string name;
  std::vector<double> params;
  int64_t number;
  bool vectors() const { return kind != Kind::by_aten; }
};

template <class V>
inline V select(const V& no, const V& yes, const V& where) {
  return V::blendv(no, yes, where);
}

template <class V>
struct Both {
  V f, df;
};

// f′ is a factor; of a z that is kept, f and f′ are made at once, so that what they share is computed once.
template <class Self>
struct Smooth {
  const Self& self() const { return *static_cast<const Self*>(this); }
  template <class V> V kernel(V dy, V kept) const { return dy * self().df(kept); }
  template <class V> Both<V> both(V z) const { return {self().f(z), self().df(z)}; }
};

struct Relu {  // f′ is 1 at NaN, as torch has it
  template <class V> V f(V z) const { return at::vec::maximum(z, V(0)); }
  template <class V> V df(V y) const { return select(V(1), V(0), y <= V(0)); }
  template <class V> V d2f(V) const { return V(0); }
  template <class V> V kernel(V dy, V y) const { return select(dy, V(0), y <= V(0)); }
};

struct Sigmoid : Smooth<Sigmoid> {
  template <class V> V f(V z) const { return V(1) / (V(1) + z.neg().exp()); }
  template <class V> V df(V y) const { return y * (V(1) - y); }
  template <class V> V d2f(V y) const { return V(1) - V(2) * y; }
};

struct Tanh : Smooth<Tanh> {
  template <class V> V f(V z) const { return z.tanh(); }
  template <class V> V df(V y) const { return V(1) - y * y; }
  template <class V> V d2f(V y) const { return V(-2) * y; }
};

struct Softcap : Smooth<Softcap> {
  double cap;
  explicit Softcap(double c) : cap(c) {}
  template <class V> V f(V z) const { return V(cap) * (z / V(cap)).tanh(); }
  template <class V> V df(V y) const { return Tanh().df(y / V(cap)); }
  template <class V> V d2f(V y) const { return V(-2) * y / V(cap * cap); }
};

struct Gelu : Smooth<Gelu> {  // z Φ(z), with the density φ
  template <class V> V cdf(V z) const { return V(0.5) * (V(1) + (z * V(M_SQRT1_2)).erf()); }
  template <class V> V pdf(V z) const { return (z * z * V(-0.5)).exp() * V(M_2_SQRTPI * M_SQRT1_2 * 0.5); }
  template <class V> V f(V z) const { return z * cdf(z); }
  template <class V> V df(V z) const { return both(z).df; }
  template <class V> Both<V> both(V z) const {
    if constexpr (std::is_same_v<typename V::value_type, float>) {
      // erf of torch's own vectors (Abramowitz and Stegun 7.1.26), whose exponential is the density's.
      const V e = (z * z * V(-0.5f)).exp(), t = V(1) / at::vec::fmadd(V(0.3275911f * 0.70710678f), z.abs(), V(1));
      V s = at::vec::fmadd(V(1.061405429f), t, V(-1.453152027f));
      s = at::vec::fmadd(at::vec::fmadd(s, t, V(1.421413741f)), t, V(-0.284496736f));
      s = at::vec::fmadd(s, t, V(0.254829592f));
      const V tail = V(0.5f) * s * t * e, p = select(V(1) - tail, tail, z < V(0));
      return {z * p, at::vec::fmadd(z, e * V(0.39894228f), p)};
    } else {
      const V p = cdf(z);
      return {z * p, p + z * pdf(z)};
    }
  }
  template <class V> V d2f(V z) const { return pdf(z) * (V(2) - z * z); }
};

struct Silu : Smooth<Silu> {
  template <class V> V f(V z) const { return z / (V(1) + z.neg().exp()); }
  template <class V> V df(V z) const { return both(z).df; }
  template <class V> Both<V> both(V z) const {
    const V s = Sigmoid().f(z);
    return {z * s, s * (V(1) + z * (V(1) - s))};
  }
  template <class V> V d2f(V z) const {
    V s = Sigmoid().f(z);
    return s * (V(1) - s) * (V(2) + z * (V(1) - V(2) * s));
  }
};

struct Softplus : Smooth<Softplus> {
  double beta, threshold;
  Softplus(double b, double t) : beta(b), threshold(t) {}
  template <class V> V f(V z) const {
    V u = z * V(beta);
    return select(u.exp().log1p() / V(beta), z, u > V(threshold));
  }
  template <class V> V df(V z) const { V u = z * V(beta); return select(Sigmoid().f(u), V(1), u > V(threshold)); }
  template <class V> V d2f(V z) const {
    V u = z * V(beta), s = Sigmoid().f(u);
    return select(V(beta) * s * (V(1) - s), V(0), u >= V(threshold));
  }
};

struct Sin : Smooth<Sin> {
  double omega;
  explicit Sin(double o) : omega(o) {}
  template <class V> V f(V z) const { return (z * V(omega)).sin(); }
  template <class V> V df(V z) const { return V(omega) * (z * V(omega)).cos(); }
  template <class V> V d2f(V z) const { return V(-omega * omega) * (z * V(omega)).sin(); }
};

// Calls act with the formulas of a kind; what torch's own kernels compute is not among them.
template <class Do>
inline void with_formulas_of_z(const Act& a, const Do& act) {
  switch (a.kind) {
    case Kind::gelu: return act(Gelu());
    case Kind::silu: return act(Silu());
    case Kind::softplus: return act(Softplus(a.params[0], a.params[1]));
    case Kind::sin: return act(Sin(a.params[0]));
    default: TORCH_INTERNAL_ASSERT(false, a.name);
  }
}
template <class Do>
inline void with_formulas(const Act& a, const Do& act) {
  switch (a.kind) {
    case Kind::relu: return act(Relu());
    case Kind::sigmoid: return act(Sigmoid());
    case Kind::tanh: return act(Tanh());
    case Kind::softcap: return act(Softcap(a.params[0]));
    default: return with_formulas_of_z(a, act);
  }
}

// The activation of a number, and the number of a name with its parameters, or -1 if there is none.
const Act& act_of(int64_t number);
int64_t number_of(const std::string& name, const std::vector<double>& params);

}  // namespace manual_mlp
