#include "head.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/scalar_tensor.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/variable.h>

#include "sweep.h"

namespace manual_mlp {
namespace {
using torch::autograd::Function;

// Passes over the rows of a layer with its loss.
class Pass {
 public:
  Pass(const Plan& plan, const Head& head) : plan_(plan), head_(head), h_(flat(head.h)) {}

  Made forward(Needed needed, double* scale) {
    const int64_t n = h_.size(0), v = head_.w.size(0);
    // Raised before anything is computed.
    const Mean mean = mean_of(plan_.loss, v);
    const bool each = plan_.reduction == Reduction::none, divides = plan_.reduction == Reduction::mean;
    const auto wide = h_.options().dtype(widened(plan_.products));
    if (each) values_.each = at::empty(plan_.loss.by_entry() ? at::IntArrayRef{n, v} : at::IntArrayRef{n}, wide);
    if (plan_.stats) values_.logsumexp = at::empty({n}, wide), values_.correct = at::empty({n}, wide.dtype(at::kBool));
    *scale = upstream_.scale = divides ? mean.scale : 1;
    Made made;
    if (plan_.rows >= n) {
      made.delta = all(needed.any());
    } else {
      made.three = swept(needed);
    }
    const auto dtype = plan_.region ? widened(plan_.products) : head_.h.scalar_type();
    made.logsumexp = like_rows_of(values_.logsumexp, head_.h), made.correct = like_rows_of(values_.correct, head_.h);
    made.value = each ? like_rows_of(cast(values_.each, dtype), head_.h)
                      : at::scalar_tensor(sum_ / (divides ? mean.count : 1), wide.dtype(dtype));
    return made;
  }

  // dh, dw and db for an upstream gradient g of each row or entry.
  Three again(const Tensor& g, Needed needed) {
    upstream_.g = g;
    return swept(needed);
  }

 private:
  // δ of all rows, or the values alone.
  Tensor all(bool need_delta) {
    const Act& f = *head_.f;
    const auto dtype = plan_.products;
    const Tensor z = z_of(cast(h_, dtype), cast(head_.w, dtype), cast(head_.b, dtype));
    const bool linear = f.kind == Kind::identity, apart = !linear && !f.by_y;
    const Tensor y = apart ? at::empty_like(z) : z;
    if (!linear) y_into(y, z, f);
    // What f′ is taken from is not to be overwritten.
    const Tensor dy = !need_delta ? Tensor() : linear || apart ? y : at::empty_like(z);
    sum_ = loss_and_delta(plan_.loss, y, 0, upstream_, values_, dy);
    return need_delta ? delta_of(dy, z, f, dy) : dy;
  }

  Three swept(Needed needed) {
    const auto dtype = plan_.products;
    Sweep sweep({{cast(head_.w, dtype), cast(head_.b, dtype), head_.f, 0}}, h_, {plan_.rows, 1}, std::nullopt);
    Tensor beside;
    const auto dy_of = [&](const Tile& tile, bool free) {
      if (!free && needed.any() && !beside.defined()) beside = at::empty_like(tile.y);
      const Tensor dy = beside.defined() ? beside.narrow(0, 0, tile.n) : tile.y;
      const Tensor g = upstream_.g.defined() ? upstream_.g.narrow(0, tile.start, tile.n) : Tensor();
      const Tensor to = needed.any() ? dy : Tensor();
      sum_ += loss_and_delta(plan_.loss, tile.y, tile.start, {upstream_.scale, g}, values_, to);
      return dy;
    };
    Three found;
    found.dh = sweep.backward(dy_of, {{needed.dw, needed.db}}, needed.dh ? -1 : !needed.any(), false);
    if (needed.dh) found.dh = found.dh.view(head_.h.sizes());
    if (needed.dw) found.dw = sweep.dw(0);
    if (needed.db) found.db = sweep.db(0, widened(dtype));
    return found;
  }

  const Plan& plan_;
  const Head& head_;
  Tensor h_;
  Values values_;
  Upstream upstream_;
  double sum_ = 0;
};

Tensor scaled(const Tensor& t, double g, bool own) {
  return !t.defined() || (own && g == 1) ? t : own ? t.mul_(g) : at::mul(t, g);
}

// dh, dw and db from δ of all rows, which is overwritten if it is own, for an upstream gradient.
Three products(Tensor delta, const Tensor& h, const Tensor& w, Needed needed, double g, bool own) {
  const auto dtype = delta.scalar_type();
  Three found;
  if (needed.db) {
    std::vector<double> db(delta.size(1));
    add_db(delta, db.data());
    found.db = scaled(rounded(db, delta.options().dtype(widened(dtype))), g, true);
  }
  // A narrow product is rounded once, and so δ takes its factor.
  const bool early = g != 1 && dtype != widened(dtype);
  if (early) delta = scaled(delta, g, own);
  if (needed.dh) found.dh = scaled(dh_of(delta, cast(w, dtype)), early ? 1 : g, true).view(h.sizes());
  if (needed.dw) found.dw = scaled(dw_of(delta, cast(flat(h), dtype)), early ? 1 : g, true);
  return found;
}

// Of an operand that torch would not keep: it is read again by create_graph alone, which finds out that it has changed.
int64_t version(const Tensor& t) { return t.is_inference() ? 0 : t._version(); }

// A copy that depends on what the tensor depends on now: torch lets a bias change before backward.
Tensor as_it_is(const Tensor& t) {
  using namespace torch::autograd;
  return t.requires_grad() ? make_variable(t.detach().clone(), impl::gradient_edge(t)) : t.clone();
}

// Whether no transform looks into what is done to a cotangent. A mode that watches each operation sees those of torch.
bool is_first_order(const Tensor& t) {
  using K = c10::DispatchKey;
  if (is_plain(t)) return true;
  if (!c10::impl::dispatch_mode_enabled() || t.key_set().has(K::Python)) return false;
  c10::impl::ExcludeDispatchKeyGuard modes(c10::DispatchKeySet({K::Python, K::PythonTLSSnapshot}));
  return is_plain(t);
}

// Inputs: h (*, D_in), w (D_out, D_in), b (D_out,) or none.
struct LossFunction : Function<LossFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& h, const Tensor& w, const Optional& b, const Head& head,
                        const Plan& plan, Made& made) {
    Below below;
    const Needed needed{h.requires_grad(), w.requires_grad(), b && b->requires_grad()};
    const bool again = plan.again(flat(h).size(0));
    double scale;
    made = Pass(plan, head).forward(again ? Needed{} : needed, &scale);
    const Loss& loss = plan.loss;
    auto& data = ctx->saved_data;
    data["plan"] = std::vector<int64_t>{loss.kind, int64_t(plan.reduction), head.f->number, plan.rows,
                                        int64_t(plan.products), plan.region ? int64_t(*plan.region) : -1,
                                        loss.ignore_index};
    data["scale"] = scale;
    if (loss.label_smoothing || loss.z_loss) data["shares"] = std::vector{loss.label_smoothing, loss.z_loss};
    ctx->save_for_backward({again || needed.dw ? h : Tensor(), again || needed.dh ? w : Tensor(),
                            again && b ? *b : Tensor(), loss.target, loss.weight, loss.pos_weight, loss.row_weight,
                            made.delta, made.three.dh, made.three.dw, made.three.db});
    if (again) return made.value;
    if (!needed.dw) data["h"] = h, data["version of h"] = version(h);
    if (!needed.dh) data["w"] = w, data["version of w"] = version(w);
    if (b) data["b"] = as_it_is(*b);
    return made.value;
  }

  static variable_list backward(AutogradContext* ctx, variable_list cotangents) {
    const auto saved = ctx->get_saved_variables();
    const Tensor& upstream = cotangents[0];
    auto& data = ctx->saved_data;
    const auto plan = read(data, saved);
    const bool biased = saved[2].defined() || data.count("b");
    const Needed needed{ctx->needs_input_grad(0), ctx->needs_input_grad(1), biased && ctx->needs_input_grad(2)};
    const bool last = !torch::autograd::get_current_graph_task_keep_graph();
    const bool plain = is_first_order(upstream), create = at::GradMode::is_enabled();
    variable_list found(6);
    Three made;
    if (plain) {
      at::AutoGradMode no_grad(false);
      Below below;
      made = first_order(plan, saved, upstream, needed, last, data);
    }
    if (create || !plain) {
      variable_list tensors{whole(saved[0], data, "h"), whole(saved[1], data, "w"),
                            biased && !saved[2].defined() ? data["b"].toTensor() : saved[2], upstream,
                            saved[3], saved[4], saved[5], saved[6], made.dh, made.dw, made.db};
      auto three = ask_plain({"loss_gradients", tensors, data["plan"].toIntVector(),
                              {needed.dh, needed.dw, needed.db}, {plan.loss.label_smoothing, plan.loss.z_loss}});
      std::copy(three.begin(), three.end(), found.begin());
    } else {
      found[0] = made.dh, found[1] = made.dw, found[2] = made.db;
    }
    if (last) {
      for (const char* name : {"h", "w", "b"}) data.erase(name);
    }
    return found;
  }

  using Data = decltype(AutogradContext::saved_data);

  static Plan read(Data& data, const variable_list& saved) {
    const auto n = data["plan"].toIntVector();
    const auto shares = data.count("shares") ? data["shares"].toDoubleVector() : std::vector{0.0, 0.0};
    const Loss loss{Loss::Kind(n[0]), saved[3], saved[4], saved[5], saved[6], n[6], shares[0], shares[1]};
    return {loss, Reduction(n[1]), n[3], false, at::ScalarType(n[4]),
            n[5] < 0 ? std::nullopt : std::optional(at::ScalarType(n[5]))};
  }

  static Three first_order(const Plan& plan, const variable_list& saved, const Tensor& upstream, Needed needed,
                           bool last, Data& data) {
    const Tensor &h = saved[0], &w = saved[1], &target = plan.loss.target;
    const bool each = plan.reduction == Reduction::none;
    const int64_t n = target.size(0);
    // No upstream gradient, not even NaN, reaches the layer from a mean over no row.
    const double g = each || data["scale"].toDouble() == 0 ? 1 : upstream.item<double>();
    Three found;
    if (plan.again(n)) {
      const Head head{h, w, some(saved[2]), &act_of(data["plan"].toIntVector()[2])};
      found = Pass(plan, head).again(plan.loss.by_entry() ? upstream.reshape({n, -1}) : upstream.reshape({n}), needed);
    } else if (plan.rows >= n) {
      found = products(each ? weighed(saved[7], plan.loss, upstream, last) : saved[7], h, w, needed, g, last);
    } else {
      found.dh = scaled(needed.dh ? saved[8] : Tensor(), g, last);
      found.dw = scaled(needed.dw ? saved[9] : Tensor(), g, last);
      found.db = scaled(needed.db ? saved[10] : Tensor(), g, last);
    }
    return found;
  }

  // δ times an upstream gradient of each row or entry; a row that does not count stays 0.
  static Tensor weighed(const Tensor& delta, const Loss& loss, const Tensor& upstream, bool own) {
    Tensor g = upstream.reshape({delta.size(0), -1});
    if (loss.of_classes()) g = g.masked_fill((loss.target == loss.ignore_index).unsqueeze(1), 0);
    if (loss.row_weight.defined()) g = g.masked_fill((loss.row_weight == 0).unsqueeze(1), 0);
    Tensor to = own ? delta : at::empty_like(delta);
    return at::mul_out(to, delta, g);
  }

  // An operand that was saved, or that was only remembered, if it is as it was.
  static Tensor whole(const Tensor& saved, Data& data, const std::string& name) {
    if (saved.defined()) return saved;
    const Tensor t = data[name].toTensor();
    TORCH_CHECK(version(t) == data["version of " + name].toInt(), "expected that no operand of the loss was modified ",
                "by an inplace operation: create_graph reads it again");
    return t;
  }
};

}  // namespace

bool is_recorded(const Head& head) {
  return at::GradMode::is_enabled() &&
      (head.h.requires_grad() || head.w.requires_grad() || (head.b && head.b->requires_grad()));
}

bool keeps_more(const Head& head, const Plan& plan) {
  const bool dh = head.h.requires_grad(), dw = head.w.requires_grad();
  if (dh && dw) return false;
  const int64_t h = head.h.numel(), w = head.w.numel(), v = head.w.size(0), n = h / head.w.size(1), logits = n * v;
  if (plan.again(n)) return h * !dw + w * !dh + (head.b ? v : 0) > logits;
  // create_graph asks for h, whoever needs it besides; w, a parameter, is there in any case.
  return (plan.rows >= n ? logits : h * dh + w * dw) + h * !dw > logits;
}

Made loss_of(Head head, Plan plan, Needed needed) {
  Made made;
  if (!is_recorded(head)) {
    Below below;
    double scale;
    made = Pass(plan, head).forward(needed, &scale);
    if (made.delta.defined()) made.three = products(std::move(made.delta), head.h, head.w, needed, 1, true);
    return made;
  }
  // Copies of what torch does not keep, and so lets change before backward.
  if (plan.again(flat(head.h).size(0))) {
    if (!head.w.requires_grad()) head.h = head.h.clone();
    if (!head.h.requires_grad()) head.w = head.w.clone();
    if (head.b) head.b = head.b->clone();
  }
  if (plan.loss.label_smoothing && plan.loss.target.is_floating_point()) plan.loss.target = plan.loss.target.clone();
  made.value = LossFunction::apply(head.h, head.w, head.b, head, plan, made);
  return made;
}

}  // namespace manual_mlp
