#include "kernels.h"

#include <ATen/ATen.h>

#include <deque>
#include <map>

namespace manual_mlp {
namespace {

using Params = std::vector<double>;

// Half precision in float32, so that a result is rounded once.
Tensor widen(const Tensor& t) { return t.scalar_type() == at::kDouble ? t : t.to(at::kFloat); }

// How torch computes an activation with its parameters: y into memory that is there, and dy ⊙ f′ from what is kept.
struct Aten {
  bool (*by_y)(const Params&);
  void (*y)(Tensor& y, const Tensor& z, const Params& p);
  Tensor (*delta)(const Tensor& dy, const Tensor& kept, const Params& p);
};

bool yes(const Params&) { return true; }
bool no(const Params&) { return false; }

// Those that torch has no kernel for, as f and f′ of numbers of float32 at least.
template <Tensor (*f)(const Tensor&), Tensor (*df)(const Tensor&)>
Aten composed() {
  return {no, [](Tensor& y, const Tensor& z, const Params&) { y.copy_(f(widen(z))); },
          [](const Tensor& dy, const Tensor& z, const Params&) {
            return (widen(dy) * df(widen(z))).to(z.scalar_type());
          }};
}

template <class Rates>
Aten exponential(const Rates&) {  // α, s, r of s z, or s α(exp(rz) − 1)
  return {no,
          [](Tensor& y, const Tensor& z, const Params& p) { auto [a, s, r] = Rates()(p); at::elu_out(y, z, a, s, r); },
          [](const Tensor& dy, const Tensor& z, const Params& p) {
            auto [a, s, r] = Rates()(p);
            return at::elu_backward(dy, a, s, r, false, z);
          }};
}
struct Rate { double alpha, scale, rate; };
struct OfElu { Rate operator()(const Params& p) const { return {p[0], 1, 1}; } };
struct OfCelu { Rate operator()(const Params& p) const { return {p[0], 1, 1 / p[0]}; } };
struct OfSelu { Rate operator()(const Params&) const { return {1.6732632423543772, 1.0507009873554805, 1}; } };

Tensor hardsigmoid(const Tensor& z) { return at::hardtanh(z + 3, 0, 6) / 6; }
Tensor hardsigmoid_df(const Tensor& z) { return ((z > -3).logical_and(z < 3)).to(z.scalar_type()) / 6; }
Tensor squared_relu(const Tensor& z) { return at::relu(z).square(); }
Tensor squared_relu_df(const Tensor& z) { return at::relu(z) * 2; }
Tensor logsigmoid(const Tensor& z) { return at::log_sigmoid(z); }
Tensor logsigmoid_df(const Tensor& z) { return at::sigmoid(-z); }
Tensor softsign(const Tensor& z) { return z / (z.abs() + 1); }
Tensor softsign_df(const Tensor& z) { return (z.abs() + 1).square().reciprocal(); }
constexpr double kA = 1.7159, kB = 2.0 / 3;
Tensor lecun_tanh(const Tensor& z) { return at::tanh(z * kB) * kA; }
Tensor lecun_tanh_df(const Tensor& z) { return (1 - at::tanh(z * kB).square()) * (kA * kB); }

#define Y [](Tensor & y, const Tensor& z, const Params& p)
#define DELTA [](const Tensor& dy, const Tensor& kept, const Params& p)
const std::map<std::string, Aten>& table() {
  static const std::map<std::string, Aten> by_name{
      {"identity", {yes, Y { y.copy_(z); }, DELTA { return dy; }}},
      {"relu", {yes, Y { at::clamp_min_out(y, z, 0); }, DELTA { return at::threshold_backward(dy, kept, 0); }}},
      {"sigmoid", {yes, Y { at::sigmoid_out(y, z); }, DELTA { return at::sigmoid_backward(dy, kept); }}},
      {"tanh", {yes, Y { at::tanh_out(y, z); }, DELTA { return at::tanh_backward(dy, kept); }}},
      {"softcap",
       {yes, Y { y.copy_((widen(z) / p[0]).tanh_().mul_(p[0])); },
        DELTA { return at::tanh_backward(widen(dy), widen(kept) / p[0]).to(kept.scalar_type()); }}},
      {"gelu", {no, Y { at::gelu_out(y, z, "none"); }, DELTA { return at::gelu_backward(dy, kept, "none"); }}},
      {"gelu_tanh", {no, Y { at::gelu_out(y, z, "tanh"); }, DELTA { return at::gelu_backward(dy, kept, "tanh"); }}},
      {"silu", {no, Y { at::silu_out(y, z); }, DELTA { return at::silu_backward(dy, kept); }}},
      {"mish", {no, Y { at::mish_out(y, z); }, DELTA { return at::mish_backward(dy, kept); }}},
      {"hardswish", {no, Y { at::hardswish_out(y, z); }, DELTA { return at::hardswish_backward(dy, kept); }}},
      {"softplus",
       {no, Y { at::softplus_out(y, z, p[0], p[1]); },
        DELTA { return at::softplus_backward(dy, kept, p[0], p[1]); }}},
      {"sin",
       {no, Y { y.copy_((widen(z) * p[0]).sin_()); },
        DELTA { return (widen(kept) * p[0]).cos_().mul_(dy).mul_(p[0]).to(kept.scalar_type()); }}},
      {"leaky_relu",
       {[](const Params& p) { return p[0] >= 0; }, Y { at::leaky_relu_out(y, z, p[0]); },
        DELTA { return at::leaky_relu_backward(dy, kept, p[0], p[0] >= 0); }}},
      {"relu6", {yes, Y { at::hardtanh_out(y, z, 0, 6); }, DELTA { return at::hardtanh_backward(dy, kept, 0, 6); }}},
      {"hardtanh",
       {no, Y { at::hardtanh_out(y, z, p[0], p[1]); },
        DELTA { return at::hardtanh_backward(dy, kept, p[0], p[1]); }}},
      {"elu", exponential(OfElu())},
      {"celu", exponential(OfCelu())},
      {"selu", exponential(OfSelu())},
      {"hardsigmoid", composed<hardsigmoid, hardsigmoid_df>()},
      {"squared_relu", composed<squared_relu, squared_relu_df>()},
      {"logsigmoid", composed<logsigmoid, logsigmoid_df>()},
      {"lecun_tanh", composed<lecun_tanh, lecun_tanh_df>()},
      {"softsign", composed<softsign, softsign_df>()},
  };
  return by_name;
}
#undef Y
#undef DELTA

const std::map<std::string, Kind> kKinds{
    {"identity", Kind::identity}, {"relu", Kind::relu}, {"sigmoid", Kind::sigmoid},   {"tanh", Kind::tanh},
    {"gelu", Kind::gelu},         {"silu", Kind::silu}, {"softplus", Kind::softplus}, {"sin", Kind::sin},
    {"softcap", Kind::softcap},
};

// Made at their first use, under the interpreter's lock, and never gone: nodes of a graph refer to them.
std::deque<Act>& acts() {
  static std::deque<Act> made;
  return made;
}

}  // namespace

const Act& act_of(int64_t number) { return acts()[number]; }

int64_t number_of(const std::string& name, const std::vector<double>& params) {
  auto& made = acts();
  const auto found = table().find(name);
  if (found == table().end()) return -1;
  const auto kind = kKinds.find(name);
  const int64_t number = made.size();
  const bool by_y = found->second.by_y(params);
  made.push_back({kind == kKinds.end() ? Kind::by_aten : kind->second, by_y, name, params, number});
  return number;
}

void aten_y_into(const Tensor& y, const Tensor& z, const Act& f) {
  Tensor out = y;
  table().at(f.name).y(out, z, f.params);
}

Tensor aten_delta_of(const Tensor& dy, const Tensor& kept, const Act& f) {
  return table().at(f.name).delta(dy, kept, f.params);
}

}  // namespace manual_mlp
