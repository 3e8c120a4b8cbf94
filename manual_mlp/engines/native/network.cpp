#include "network.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/sum.h>

#include "layer.h"

namespace manual_mlp {
namespace {
using torch::autograd::Function;

// A network without its tensors, which a node saves.
struct Form {
  // The count of layers, the rows of a tile, whether there is a seed, and that; then, a pair a layer, the number of the
  // activation and whether there is a bias; at last, how many layers from below have a constant input.
  std::vector<int64_t> numbers;
  std::vector<double> dropout;

  Form(const Layers& layers, Tiling tiling, std::optional<int64_t> seed)
      : numbers{int64_t(layers.size()), tiling.rows, tiling.workers, seed.has_value(), seed.value_or(0)} {
    for (const auto& layer : layers) {
      numbers.push_back(layer.f->number);
      numbers.push_back(layer.b.has_value());
      if (seed) dropout.push_back(layer.dropout);
    }
  }
  explicit Form(AutogradContext* ctx) : numbers(ctx->saved_data["form"].toIntVector()) {
    if (seed()) dropout = ctx->saved_data["dropout"].toDoubleVector(), numbers[4] = ctx->saved_data["seed"].toInt();
  }
  void save(AutogradContext* ctx) const {
    auto form = numbers;
    // Compiled autograd takes the numbers of a list for constants, and the seed is another at each step.
    if (seed()) ctx->saved_data["seed"] = std::exchange(form[4], 0), ctx->saved_data["dropout"] = dropout;
    ctx->saved_data["form"] = form;
  }
  int64_t size() const { return numbers[0]; }
  Tiling tiling() const { return {numbers[1], numbers[2]}; }
  std::optional<int64_t> seed() const { return numbers[3] ? std::optional(numbers[4]) : std::nullopt; }
  const Act& f(int64_t k) const { return act_of(numbers[5 + 2 * k]); }
  bool biased(int64_t k) const { return numbers[6 + 2 * k]; }
  std::optional<Mask> mask(int64_t k) const {
    return seed() && dropout[k] > 0 ? std::optional(Mask(*seed(), k, dropout[k], 0)) : std::nullopt;
  }
  Layers layers(at::TensorList operands) const {
    Layers made;
    for (int64_t k = 0, next = 1; k < size(); ++k) {
      const Tensor& w = operands[next++];
      made.push_back({w, biased(k) ? some(operands[next++]) : std::nullopt, &f(k), seed() ? dropout[k] : 0});
    }
    return made;
  }
  // What is needed of each layer, from what is needed of the operands: dh if anything below it is.
  template <class Need>
  std::vector<Needed> needed(const Need& need) const {
    std::vector<Needed> found;
    size_t next = 0;
    bool below = need(next++);
    for (int64_t k = 0; k < size(); ++k) {
      const bool dw = need(next++), db = biased(k) && need(next++);
      found.push_back({below, dw, db});
      below = found.back().any();
    }
    return found;
  }
  Question question(const char* name, variable_list tensors, const std::vector<Needed>& needed) const {
    std::vector<bool> asked{needed[0].dh};
    for (int64_t k = 0; k < size(); ++k) {
      asked.push_back(needed[k].dw);
      if (biased(k)) asked.push_back(needed[k].db);
    }
    return {name, std::move(tensors), numbers, std::move(asked), dropout};
  }
};

Tensor dropped(const Tensor& y, const std::optional<Mask>& mask, bool over) {
  if (!mask) return y;
  const Tensor to = over ? y : at::empty_like(y);
  drop(to, y, *mask);
  return to;
}

// All rows are one tile. What a layer keeps, z or y, is an output too, which network() hides: were it only saved,
// second derivatives would see a constant.
struct NetworkFunction : Function<NetworkFunction> {
  static variable_list forward(AutogradContext* ctx, at::TensorList operands, Form form) {
    Below below;
    const auto layers = form.layers(operands);
    const auto needed = form.needed([&](size_t k) { return operands[k].requires_grad(); });
    const int64_t count = form.size();
    variable_list inputs, kept, outputs(1), saved;
    Tensor h = operands[0];
    for (int64_t k = 0; k < count; ++k) {
      const Act& f = *layers[k].f;
      inputs.push_back(h);
      const Tensor z = z_of(h, layers[k].w, layers[k].b);
      const Tensor y = f.by_y ? z : at::empty_like(z);
      if (f.kind != Kind::identity) y_into(y, z, f);
      kept.push_back(f.kind == Kind::identity && k + 1 == count ? Tensor() : z);
      h = dropped(y, form.mask(k), !f.by_y);
    }
    inputs.push_back(h);
    outputs[0] = h;
    for (const auto& t : kept) {
      if (t.defined() && !t.is_same(h)) outputs.push_back(t);
    }
    form.numbers.push_back(std::count_if(needed.begin(), needed.end(), [](Needed some) { return !some.dh; }));
    form.save(ctx);
    ctx->set_materialize_grads(false);
    saved.push_back(needed[0].dw ? operands[0] : Tensor());
    for (int64_t k = 0; k < count; ++k) saved.push_back(needed[k].dh ? layers[k].w : Tensor());
    for (int64_t k = 0; k < count; ++k) {
      const bool slope = layers[k].f->kind != Kind::identity && needed[k].any();
      const bool next = k + 1 < count && needed[k + 1].dw;
      // Where no gradient goes further down, a layer's input is a constant, and is kept itself.
      const Tensor& t = k + 1 < count && !needed[k + 1].dh ? inputs[k + 1] : kept[k];
      saved.push_back(slope || next ? t : Tensor());
    }
    ctx->save_for_backward(saved);
    return outputs;
  }

  static variable_list backward(AutogradContext* ctx, variable_list cotangents) {
    const Form form(ctx);
    const auto saved = ctx->get_saved_variables();
    const auto needed = form.needed([&](size_t k) { return ctx->needs_input_grad(k); });
    variable_list found;
    if (at::GradMode::is_enabled() || !std::all_of(cotangents.begin(), cotangents.end(), absent_or_plain)) {
      auto tensors = saved;
      tensors.insert(tensors.end(), cotangents.begin(), cotangents.end());
      found = ask_plain(form.question("network_gradients", tensors, needed));
    } else {
      Below below;
      found = gradients(form, saved, cotangents, needed);
    }
    found.emplace_back();
    return found;
  }

  static variable_list gradients(const Form& form, const variable_list& saved, const variable_list& cotangents,
                                 const std::vector<Needed>& needed) {
    const int64_t count = form.size(), constants = form.numbers.back();
    const auto weight = [&](int64_t k) { return saved[1 + k]; };
    const auto kept = [&](int64_t k) { return saved[1 + count + k]; };
    const auto hidden = [&](int64_t k) {
      const bool there = k + 1 < int64_t(cotangents.size()) && cotangents[k + 1].defined();
      return there ? rows(cotangents[k + 1]) : Tensor();
    };
    std::vector<variable_list> by_layer(count);
    std::vector<double> db, of_next;
    Tensor dy = cotangents[0].defined() ? rows(cotangents[0]) : Tensor(), delta, dh;
    bool own = false, made = false;  // whether dy may be overwritten; whether the layer above has made δ already
    for (int64_t k = count - 1; k >= 0; --k) {
      const Act& f = form.f(k);
      Tensor dz = hidden(k);
      if (dz.defined() && f.by_y) {
        dy = dy.defined() ? dy + dz : dz;
        dz = Tensor();
        own = false;
      }
      if (!needed[k].any() || (!dy.defined() && !dz.defined())) {
        by_layer[k] = variable_list(1 + form.biased(k));
        dy = Tensor();
        continue;
      }
      if (!made) {
        db.assign(needed[k].db && !dz.defined() && dy.is_cpu() ? dy.size(1) : 0, 0.0);
        double* sums = db.empty() ? nullptr : db.data();
        delta = dy.defined() ? delta_of(dy, kept(k), f, own ? dy : Tensor(), sums) : Tensor();
        if (dz.defined()) delta = delta.defined() ? delta + dz : dz;
      }
      if (needed[k].db && db.empty() && delta.is_cpu()) {
        db.assign(delta.size(1), 0.0);
        add_db(delta, db.data());
      }
      Tensor h = k ? Tensor() : saved[0];
      made = false;
      if (needed[k].dh) {
        dy = dh_of(delta, weight(k));
        own = true;
        if (k && form.mask(k - 1)) drop(dy, dy, *form.mask(k - 1));
      }
      if (k && k < constants) {
        h = kept(k - 1);
      } else if (k && needed[k].dw) {
        const Act& below = form.f(k - 1);
        if (below.by_y) {
          h = dropped(kept(k - 1), form.mask(k - 1), false);
        } else {
          h = at::empty_like(kept(k - 1));
          made = below.vectors() && delta.is_cpu() && needed[k].dh && needed[k - 1].any() && !hidden(k - 1).defined();
          if (made) {
            of_next.assign(needed[k - 1].db ? h.size(1) : 0, 0.0);
            y_and_delta(h, dy, dy, kept(k - 1), below, of_next.empty() ? nullptr : of_next.data());
          } else {
            y_into(h, kept(k - 1), below);
          }
          h = dropped(h, form.mask(k - 1), true);
        }
      }
      by_layer[k].push_back(needed[k].dw ? dw_of(delta, h) : Tensor());
      if (form.biased(k)) {
        Tensor found = needed[k].db && !delta.is_cpu() ? at::sum(delta, {0}) : Tensor();
        by_layer[k].push_back(db.empty() ? found : rounded(db, delta.options()));
      }
      if (!needed[k].dh) dy = Tensor();
      if (k == 0 && needed[0].dh) dh = dy;
      if (made) {
        delta = dy;
        std::swap(db, of_next);
      }
    }
    variable_list found{dh};
    for (auto& few : by_layer) found.insert(found.end(), few.begin(), few.end());
    return found;
  }
};

// Forward keeps the input and the parameters; backward runs every tile forward once more.
struct TiledFunction : Function<TiledFunction> {
  static Tensor forward(AutogradContext* ctx, at::TensorList operands, const Form& form) {
    Below below;
    form.save(ctx);
    ctx->save_for_backward(operands.vec());
    return Sweep(form.layers(operands), operands[0], form.tiling(), form.seed()).forward();
  }

  static variable_list backward(AutogradContext* ctx, variable_list cotangents) {
    const Form form(ctx);
    auto saved = ctx->get_saved_variables();
    const auto needed = form.needed([&](size_t k) { return ctx->needs_input_grad(k); });
    const Tensor& dy = cotangents[0];
    if (at::GradMode::is_enabled() || !is_plain(dy)) {
      saved.push_back(dy);
      auto found = ask_plain(form.question("tiled_gradients", saved, needed));
      found.emplace_back();
      return found;
    }
    Below below;
    const auto layers = form.layers(saved);
    std::vector<Wanted> wanted;
    for (const auto& few : needed) wanted.push_back({few.dw, few.db});
    const auto first = std::find_if(wanted.begin(), wanted.end(), [](Wanted some) { return some.dw || some.db; });
    Sweep sweep(layers, saved[0], form.tiling(), form.seed());
    const Tensor whole = rows(dy);
    const auto of_tile = [&](const Tile& tile, bool free) {
      const Tensor here = whole.narrow(0, tile.start, tile.n);
      return free ? Tensor(tile.y).copy_(here) : here.clone();
    };
    const Tensor dh = sweep.backward(of_tile, wanted, needed[0].dh ? -1 : first - wanted.begin(), true);
    variable_list found{needed[0].dh ? dh : Tensor()};
    for (size_t k = 0; k < layers.size(); ++k) {
      const auto dtype = layers[k].w.scalar_type();
      found.push_back(wanted[k].dw ? cast(sweep.dw(k), dtype) : Tensor());
      if (form.biased(k)) found.push_back(sweep.db(k, dtype));
    }
    found.emplace_back();
    return found;
  }
};

}  // namespace

Tensor network(const Tensor& input, Layers layers, Tiling tiling) {
  const auto seed = draw_seed(layers);
  Tensor h = flat(input);
  if (!at::GradMode::is_enabled() || !any_requires_grad(h, layers)) {
    Below below;
    if (tiling.rows < h.size(0)) return like_rows_of(Sweep(layers, h, tiling, seed).forward(), input);
    for (size_t k = 0; k < layers.size(); ++k) {
      h = z_of(h, layers[k].w, layers[k].b);
      if (layers[k].f->kind != Kind::identity) y_into(h, h, *layers[k].f);
      if (layers[k].dropout > 0) drop(h, h, Mask(*seed, k, layers[k].dropout, 0));
    }
    return like_rows_of(h, input);
  }
  const bool one = tiling.rows >= h.size(0) || keeps_more(h, layers);
  if (!one) make_unchanging(h, layers);
  variable_list operands{h};
  for (const auto& layer : layers) {
    operands.push_back(layer.w);
    if (layer.b) operands.push_back(*layer.b);
  }
  const Form form(layers, tiling, seed);
  const Tensor y = one ? NetworkFunction::apply(at::TensorList(operands), form)[0]
                       : TiledFunction::apply(at::TensorList(operands), form);
  return input.dim() == 2 ? y : like_rows_of(y, input);
}

}  // namespace manual_mlp
