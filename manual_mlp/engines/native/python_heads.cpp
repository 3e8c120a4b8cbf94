// The functions of a layer with its loss that Python calls. Each returns None where the plain engine is to compute.
#include "head.h"
#include "python_losses.h"

namespace manual_mlp {
namespace {

// Below so many logits all rows are one tile, and nobody is asked.
constexpr int64_t kFewLogits = 230000;

// What a loss compares with, of which nobody asks for the gradient; None leaves it undefined.
bool take_constant(PyObject* object, Tensor& to) {
  return object == Py_None || (take(object, to) && to.is_cpu() && !to.requires_grad());
}

bool take_int(PyObject* object, int64_t& to) {
  if (object == Py_None) return true;
  if (!PyLong_CheckExact(object)) return false;
  int overflow = 0;
  to = PyLong_AsLongLongAndOverflow(object, &overflow);
  return !overflow;
}

bool take_share(PyObject* object, double& to) {
  if (!PyFloat_CheckExact(object) && !PyLong_CheckExact(object)) return false;
  to = PyFloat_AsDouble(object);
  if (PyErr_Occurred()) throw py::error_already_set();
  return to >= 0 && to <= 1;
}

// Whether the target has as many rows as the input, and, unless it is classes, an entry for each of the output.
bool fits(const Tensor& target, const Head& head, bool of_classes) {
  if (!target.defined() || target.dim() != head.h.dim() - of_classes) return false;
  const auto sizes = target.sizes(), rows = head.h.sizes().slice(0, head.h.dim() - 1);
  return sizes.slice(0, rows.size()) == rows && (of_classes || sizes.back() == head.w.size(0));
}

// A weight of entries (N or 1, V or 1), if it broadcasts to the target; undefined stays so.
bool spread(Tensor& t, const Tensor& target) {
  if (!t.defined()) return true;
  const int64_t missing = target.dim() - t.dim();
  if (missing < 0) return false;
  for (int64_t k = 0; k < t.dim(); ++k) {
    if (t.size(k) != 1 && t.size(k) != target.size(k + missing)) return false;
  }
  const int64_t columns = t.dim() ? t.size(-1) : 1;
  if (t.numel() == columns) {
    t = t.reshape({1, columns});
  } else {
    auto shape = target.sizes().vec();
    shape.back() = columns;
    t = flat(t.expand(shape));
  }
  return true;
}

bool is_narrow_fast() {
  static int known = -1;  // not guarded: Python may let other threads in meanwhile
  if (known < 0) known = ask({"bfloat16_is_fast", {}, {}, {}}).cast<bool>();
  return known;
}

}  // namespace

bool take_reduction(PyObject* object, Reduction& to) {
  if (!PyUnicode_Check(object)) return false;
  for (const auto& [name, reduction] :
       {std::pair("mean", Reduction::mean), std::pair("sum", Reduction::sum), std::pair("none", Reduction::none)}) {
    if (PyUnicode_CompareWithASCIIString(object, name) == 0) {
      to = reduction;
      return true;
    }
  }
  return false;
}

at::ScalarType product_dtype(at::ScalarType dtype) {
  if (dtype == at::kDouble || dtype == at::kFloat) return dtype;
  return dtype == at::kBFloat16 && is_narrow_fast() ? dtype : at::kFloat;
}

bool take_loss(PyObject* const* given, const Head& head, Loss& to) {
  const auto is = [&](const char* name) { return PyUnicode_CompareWithASCIIString(given[0], name) == 0; };
  const auto dtype = head.h.scalar_type();
  const bool autocast = at::autocast::is_autocast_enabled(at::kCPU);
  to.kind = is("cross_entropy") ? Loss::cross_entropy
      : is("squared_error")     ? Loss::squared_error
                                : Loss::binary_cross_entropy;
  if ((to.kind == Loss::binary_cross_entropy && !is("binary_cross_entropy")) || !take_constant(given[1], to.target) ||
      !take_constant(given[2], to.weight) || !take_constant(given[3], to.pos_weight) ||
      !take_int(given[4], to.ignore_index) || !take_share(given[5], to.label_smoothing) || !to.target.defined()) {
    return false;
  }
  if (to.target.scalar_type() == at::kByte) to.target = to.target.to(at::kLong);
  const bool classes = to.kind == Loss::cross_entropy && to.target.scalar_type() == at::kLong;
  for (const Tensor* t : {&to.target, &to.weight, &to.pos_weight}) {
    if (!t->defined() || (classes && t == &to.target)) continue;
    const auto of_t = t->scalar_type();
    if (autocast ? !is_float(of_t) || of_t == at::kDouble : of_t != dtype) return false;
  }
  if (!fits(to.target, head, classes)) return false;
  if (to.kind != Loss::cross_entropy) {
    if (!spread(to.weight, to.target) || !spread(to.pos_weight, to.target)) return false;
  } else if ((!classes && to.ignore_index >= 0) ||
             (to.weight.defined() && (to.weight.dim() != 1 || to.weight.size(0) != head.w.size(0)))) {
    return false;
  }
  to.target = classes ? to.target.reshape(-1) : flat(to.target);
  return true;
}

namespace {

// head(input, weight, bias, activation, reduction, chunk_rows, loss, target, weight, pos_weight, ignore_index,
// label_smoothing) -> the loss or None
PyObject* head_door(PyObject*, PyObject* const* given, Py_ssize_t) {
  HANDLE_TH_ERRORS
  Head head;
  Plan plan;
  const bool autocast = at::autocast::is_autocast_enabled(at::kCPU);
  if (functions_are_overridden() || !take(given[0], head.h) || !take(given[1], head.w) || !take(given[2], head.b) ||
      !head.h.is_cpu()) {
    Py_RETURN_NONE;
  }
  const auto products = products_dtype(head.h, head.w, head.b);
  if (!products || !(head.f = take_activation(given[3])) || !take_reduction(given[4], plan.reduction) ||
      !take_int(given[5], plan.rows) || (given[5] != Py_None && plan.rows < 1) ||
      !take_loss(given + 6, head, plan.loss)) {
    Py_RETURN_NONE;
  }
  plan.products = product_dtype(*products);
  if (autocast) plan.region = products;
  const int64_t v = head.w.size(0), n = head.h.numel() / head.w.size(1);
  if (given[5] == Py_None) {
    const Question large{"rows_of_loss", {flat(head.h)}, {v, int64_t(plan.products)}, {}};
    plan.rows = n * v < kFewLogits ? n : ask(large).cast<int64_t>();
  }
  if (is_recorded(head) && keeps_more(head, plan)) Py_RETURN_NONE;
  Tensor value;
  {
    py::gil_scoped_release released;
    value = loss_of(std::move(head), std::move(plan));
  }
  return THPVariable_Wrap(std::move(value));
  END_HANDLE_TH_ERRORS
}

}  // namespace

PyMethodDef kHeadDoors[] = {
    {"head", (PyCFunction)(void*)head_door, METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace manual_mlp
