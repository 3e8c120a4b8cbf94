// The function that Python calls for a step without a graph. It returns None where the plain engine is to compute.
#include "backprop.h"
#include "python_losses.h"

namespace manual_mlp {
namespace {

bool take_step(PyObject* const* given, Step& to) {
  if (functions_are_overridden() || !take(given[0], to.input) || !to.input.is_cpu()) return false;
  const bool mixed = at::autocast::is_autocast_enabled(at::kCPU);
  if (!take_layers(given[1], to.input, mixed, to.layers) || !any_requires_grad(to.input, to.layers)) return false;
  for (const auto& layer : to.layers) {
    if (!layer.w.is_leaf() || (layer.b && !layer.b->is_leaf())) return false;
  }
  to.tiling = take_tiling(given[2], to.input.numel() / to.input.size(-1));
  to.output = mixed ? at::autocast::get_autocast_dtype(at::kCPU) : to.input.scalar_type();
  to.products = product_dtype(to.output);
  to.return_output = given[3] == Py_True;
  return true;
}

PyObject* wrap(const Left& left, py::object value) {
  py::list gradients;
  for (const auto& [p, grad] : left.gradients) gradients.append(py::make_tuple(wrapped(p), wrapped(grad)));
  return py::make_tuple(std::move(value), wrapped(left.output), wrapped(left.dh), gradients).release().ptr();
}

// backprop_by(input, chain, tiling, return_output, of_tile): of_tile(y, start, free) makes the gradient by rows y.
PyObject* backprop_by(PyObject*, PyObject* const* given, Py_ssize_t) {
  HANDLE_TH_ERRORS
  Step step;
  if (!take_step(given, step)) Py_RETURN_NONE;
  step.tiling.workers = 1;
  const py::handle of_tile(given[4]);
  const auto outside = c10::impl::tls_local_dispatch_key_set();
  const auto objective = [&](const Tile& tile, bool free) {
    c10::impl::ForceDispatchKeyGuard as_outside(outside);
    const auto dy = of_tile(wrapped(tile.y), tile.start, free);
    return Tensor(THPVariable_Unpack(dy.ptr())).contiguous();
  };
  return wrap(backprop(step, objective), py::none());
  END_HANDLE_TH_ERRORS
}

// What comes back for the value: a number, or a tensor of its shape.
bool take_upstream(PyObject* gradient, const Step& step, const Loss& loss, Reduction reduction, Upstream& to) {
  if (gradient == Py_None || PyFloat_CheckExact(gradient) || PyLong_CheckExact(gradient)) {
    to.scale = gradient == Py_None ? 1.0 : PyFloat_AsDouble(gradient);
    if (PyErr_Occurred()) {
      PyErr_Clear();
      return false;
    }
    return reduction != Reduction::none;
  }
  Tensor g;
  if (!take(gradient, g) || !g.is_cpu() || !is_float(g.scalar_type())) return false;
  if (reduction != Reduction::none) {
    if (g.dim()) return false;
    to.scale = g.item<double>();
    return true;
  }
  auto shape = step.input.sizes().vec();
  shape.pop_back();
  if (loss.by_entry()) shape.push_back(step.layers.back().w.size(0));
  if (g.sizes() != at::IntArrayRef(shape)) return false;
  to.g = (loss.by_entry() ? flat(g) : g.reshape(-1)).detach();
  return true;
}

// backprop(input, chain, tiling, return_output, loss, target, weight, pos_weight, row_weight, ignore_index,
// label_smoothing, z_loss, reduction, gradient) -> (value, output, dh, gradients that are not added) or None
PyObject* backprop_door(PyObject*, PyObject* const* given, Py_ssize_t) {
  HANDLE_TH_ERRORS
  Step step;
  Loss loss{Loss::cross_entropy};
  Reduction reduction;
  Upstream upstream;
  if (!take_step(given, step) || !take_loss(given + 4, {step.input, step.layers.back().w, {}, nullptr}, loss) ||
      !take_reduction(given[12], reduction) ||
      !take_upstream(given[13], step, loss, reduction, upstream)) {
    Py_RETURN_NONE;
  }
  const auto dtype = at::autocast::is_autocast_enabled(at::kCPU) ? at::kFloat : step.output;
  Tensor value;
  Left left;
  {
    py::gil_scoped_release released;
    left = backprop(step, loss, reduction, upstream, value);
    value = cast(value, dtype);
    if (value.dim()) {
      auto shape = step.input.sizes().vec();
      shape.pop_back();
      if (value.dim() == 2) shape.push_back(value.size(1));
      value = value.reshape(shape);
    }
  }
  return wrap(left, wrapped(value));
  END_HANDLE_TH_ERRORS
}

}  // namespace

PyMethodDef kStepDoors[] = {
    {"backprop", (PyCFunction)(void*)backprop_door, METH_FASTCALL, nullptr},
    {"backprop_by", (PyCFunction)(void*)backprop_by, METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace manual_mlp
