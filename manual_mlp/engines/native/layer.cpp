#include "layer.h"

#include <ATen/ops/add.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/sum.h>

namespace manual_mlp {
namespace {
using torch::autograd::Function;

Tensor z_in(at::ScalarType dtype, const Tensor& input, const Tensor& weight, const Optional& bias) {
  return z_of(cast(flat(input), dtype), cast(weight, dtype), cast(bias, dtype));
}

Tensor y_in_place(const Tensor& z, const Act& f) {
  if (f.kind != Kind::identity) y_into(z, z, f);
  return z;
}

// The layer. Inputs: h (*, D_in), w (D_out, D_in), b (D_out,) or none.
struct DenseFunction : Function<DenseFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& h, const Tensor& w, const Optional& b,
                               int64_t number, at::ScalarType products) {
    Below below;
    const Act& f = act_of(number);
    ctx->set_materialize_grads(false);
    ctx->saved_data["f"] = 2 * number + b.has_value();
    const Tensor z = z_in(products, h, w, b);
    // z is an output, which dense() hides: were it only saved, second derivatives would see a constant.
    const Tensor y = like_rows_of(f.by_y ? y_in_place(z, f) : at::empty_like(z), h);
    const Tensor for_dw = w.requires_grad() ? h : Tensor(), for_dh = h.requires_grad() ? w : Tensor();
    if (f.by_y) {
      ctx->save_for_backward({for_dw, for_dh, f.kind == Kind::identity ? Tensor() : y});
      return {y};
    }
    y_into(rows(y), z, f);
    const Tensor kept = like_rows_of(z, h);
    ctx->save_for_backward({for_dw, for_dh, kept});
    return {y, kept};
  }

  static variable_list backward(AutogradContext* ctx, variable_list cotangents) {
    const auto saved = ctx->get_saved_variables();
    const int64_t form = ctx->saved_data["f"].toInt();
    const Kept of{act_of(form / 2), saved[0], saved[1], saved[2]};
    const Needed needed{ctx->needs_input_grad(0), ctx->needs_input_grad(1),
                        form % 2 && ctx->needs_input_grad(2)};
    auto three = layer_backward(of, cotangents[0], cotangents.size() > 1 ? cotangents[1] : Tensor(), needed);
    return {three.dh, three.dw, three.db, {}, {}};
  }
};

// What backward computes, as a function of h, w, kept, dy and dz: create_graph asks for its derivatives. That z depends
// on h, w and b is left to the layer: r is the cotangent of what it kept, and goes on with whatever else reaches that.
struct GradientsFunction : Function<GradientsFunction> {
  static variable_list forward(AutogradContext* ctx, const Optional& h, const Optional& w, const Tensor& kept,
                               const Optional& dy, const Optional& dz, int64_t number, int64_t asked) {
    Below below;
    const auto of = [](const Optional& t) { return t.value_or(Tensor()); };
    ctx->set_materialize_grads(false);
    ctx->saved_data["f"] = number;
    ctx->saved_data["asked"] = asked;
    ctx->save_for_backward({of(h), of(w), kept, of(dy), of(dz)});
    const Needed needed{(asked & 1) != 0, (asked & 2) != 0, (asked & 4) != 0};
    auto three = gradients({act_of(number), of(h), of(w), kept}, of(dy), of(dz), needed);
    variable_list found;
    for (auto* t : {&three.dh, &three.dw, &three.db}) {
      if (t->defined()) found.push_back(*t);
    }
    return found;
  }

  static variable_list backward(AutogradContext* ctx, variable_list given) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &h = saved[0], &w = saved[1], &kept = saved[2], &dy = saved[3], &dz = saved[4];
    const int64_t number = ctx->saved_data["f"].toInt(), asked = ctx->saved_data["asked"].toInt();
    variable_list tildes(3), cotangents(7);
    for (int64_t k = 0, next = 0; k < 3; ++k) {
      if (asked >> k & 1) tildes[k] = given[next++];
    }
    const Tensor &h_tilde = tildes[0], &w_tilde = tildes[1], &b_tilde = tildes[2];
    if (!h_tilde.defined() && !w_tilde.defined() && !b_tilde.defined()) return cotangents;
    // Edges are those of the tensors that are there.
    std::vector<bool> needed;
    for (size_t k = 0, edge = 0; k < saved.size(); ++k) {
      needed.push_back(saved[k].defined() && ctx->needs_input_grad(edge++));
    }
    if (at::GradMode::is_enabled() || !std::all_of(tildes.begin(), tildes.end(), absent_or_plain)) {
      variable_list tensors = saved;
      tensors.insert(tensors.end(), tildes.begin(), tildes.end());
      auto found = ask_plain({"second_gradients", tensors, {number}, needed});
      found.resize(7);
      return found;
    }
    Below below;
    const Tensor& like = dy.defined() ? dy : dz;
    const Tensor q = q_of({h, w}, {h_tilde, w_tilde, b_tilde}, like);
    Tensor delta, r;
    if (dy.defined()) {
      const Act& f = act_of(number);
      auto found = second_of_delta(rows(dy), q, rows(kept), f, !dz.defined());
      delta = dz.defined() ? at::add(found.delta, rows(dz)) : found.delta;
      if (needed[2]) cotangents[2] = found.r.view(kept.sizes());
      if (needed[3]) cotangents[3] = found.dy_cotangent.view(dy.sizes());
    } else {
      delta = rows(dz);
    }
    const auto in = [&](const Tensor& t) { return cast(t, delta.scalar_type()); };
    if (needed[0] && w_tilde.defined()) cotangents[0] = dh_of(delta, in(w_tilde)).view(h.sizes());  // (S4)
    if (needed[1] && h_tilde.defined()) cotangents[1] = dw_of(delta, in(flat(h_tilde)));            // (S5)
    if (needed[4]) cotangents[4] = q.view(dz.sizes());
    // No engine runs this node: compiled autograd does, and adds up whatever comes.
    for (size_t k = 0; k < saved.size() && !torch::autograd::get_current_node(); ++k) {
      if (needed[k] && !cotangents[k].defined()) cotangents[k] = at::zeros_like(saved[k]);
    }
    return cotangents;
  }

  struct Factors { Tensor h, w; };
  // q, the cotangent of δ (N, D_out), in memory of its own.
  static Tensor q_of(const Factors& of, const Three& tilde, const Tensor& like) {
    const auto dtype = like.scalar_type();
    const auto in = [&](const Tensor& t) { return cast(t, dtype); };
    const Optional b = tilde.db.defined() ? some(in(tilde.db)) : std::nullopt;
    Tensor q;
    if (tilde.dh.defined()) q = z_of(in(flat(tilde.dh)), in(of.w), b);
    if (tilde.dw.defined()) {
      const Tensor h = in(flat(of.h));
      q = q.defined() ? at::addmm_out(q, q, h, in(tilde.dw).t()) : z_of(h, in(tilde.dw), b);  // (S1)
    }
    return q.defined() ? q : b->expand({flat(like).size(0), like.size(-1)}).clone(at::MemoryFormat::Contiguous);
  }
};

}  // namespace

Three gradients(const Kept& of, const Tensor& dy, const Tensor& dz, Needed needed) {
  const Tensor kept = of.z_or_y.defined() ? rows(of.z_or_y) : Tensor();
  // In grad mode, torch's own operations are differentiated.
  const bool one_pass = needed.db && !dz.defined() && dy.is_cpu() && !at::GradMode::is_enabled();
  std::vector<double> db(one_pass ? dy.size(-1) : 0);
  Tensor delta;
  if (dy.defined()) delta = delta_of(rows(dy), kept, of.f, {}, one_pass ? db.data() : nullptr);
  if (dz.defined()) delta = delta.defined() ? at::add(delta, rows(dz)) : rows(dz);
  Three found;
  if (needed.dh) found.dh = dh_of(delta, cast(of.w, delta.scalar_type()));
  if (needed.dw) found.dw = dw_of(delta, cast(flat(of.h), delta.scalar_type()));
  if (needed.db) found.db = one_pass ? rounded(db, delta.options()) : at::sum(delta, {0});
  if (needed.dh && (dy.defined() ? dy : dz).dim() != 2) found.dh = like_rows_of(found.dh, dy.defined() ? dy : dz);
  return found;
}

Three layer_backward(const Kept& of, const Tensor& dy, const Tensor& dz, Needed needed) {
  if ((!dy.defined() && !dz.defined()) || !needed.any()) return {};
  const bool plain = absent_or_plain(dy) && absent_or_plain(dz), create = at::GradMode::is_enabled();
  if (plain && !create) {
    Below below;
    return gradients(of, dy, dz, needed);
  }
  if (plain && of.f.kind == Kind::identity) {
    WithoutAutocast wide;
    return gradients(of, dy, dz, needed);
  }
  if (plain && of.f.vectors() && (dy.defined() ? dy : dz).is_cpu()) {
    const int64_t asked = needed.dh + 2 * needed.dw + 4 * needed.db;
    auto found = GradientsFunction::apply(some(of.h), some(of.w), of.z_or_y, some(dy), some(dz), of.f.number, asked);
    auto next = found.begin();
    const auto take = [&](bool need) { return need ? *next++ : Tensor(); };
    return {take(needed.dh), take(needed.dw), take(needed.db)};
  }
  const std::vector<bool> asked{needed.dh, needed.dw, needed.db};
  auto found = ask_plain({"layer_gradients", {of.h, of.w, of.z_or_y, dy, dz}, {of.f.number}, asked});
  return {found[0], found[1], found[2]};
}

Tensor dense(const Tensor& input, const Tensor& weight, const Optional& bias, const Act& f, at::ScalarType products) {
  const bool recorded = at::GradMode::is_enabled() &&
      (input.requires_grad() || weight.requires_grad() || (bias && bias->requires_grad()));
  if (recorded) return DenseFunction::apply(input, weight, bias, f.number, products)[0];
  Below below;
  return like_rows_of(y_in_place(z_in(products, input, weight, bias), f), input);
}

}  // namespace manual_mlp
