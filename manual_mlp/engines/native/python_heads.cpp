// The functions of a layer with its loss that Python calls. Each returns None where the plain engine is to compute.
#include "head.h"
#include "python_losses.h"

namespace manual_mlp {
namespace {

// Below so many logits all rows are one tile, and nobody is asked.
constexpr int64_t kFewLogits = 230000;

// What a loss compares with, of which nobody asks for the gradient; None leaves it undefined.
bool take_constant(PyObject* object, Tensor& to) {
  return object == Py_None || (take(object, to) && to.is_cpu() && !(to.requires_grad() && at::GradMode::is_enabled()));
}

bool take_int(PyObject* object, int64_t& to) {
  if (object == Py_None) return true;
  if (!PyLong_CheckExact(object)) return false;
  int overflow = 0;
  to = PyLong_AsLongLongAndOverflow(object, &overflow);
  return !overflow;
}

bool take_number(PyObject* object, double most, double& to) {
  if (!PyFloat_CheckExact(object) && !PyLong_CheckExact(object)) return false;
  to = PyFloat_AsDouble(object);
  if (PyErr_Occurred()) throw py::error_already_set();
  return to >= 0 && to <= most;
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
      !take_constant(given[4], to.row_weight) || !take_int(given[5], to.ignore_index) ||
      !take_number(given[6], 1, to.label_smoothing) ||
      !take_number(given[7], std::numeric_limits<double>::max(), to.z_loss) || !to.target.defined()) {
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
  if (to.row_weight.defined()) {
    if (to.by_entry() || !fits(to.row_weight, head, true) || to.row_weight.is_complex()) return false;
    to.row_weight = to.row_weight.reshape(-1);
  }
  to.target = classes ? to.target.reshape(-1) : flat(to.target);
  return true;
}

namespace {

// From input, weight, bias, activation, reduction, chunk_rows, what take_loss takes, and return_stats.
bool take_head(PyObject* const* given, Head& head, Plan& plan) {
  if (functions_are_overridden() || !take(given[0], head.h) || !take(given[1], head.w) || !take(given[2], head.b) ||
      !head.h.is_cpu()) {
    return false;
  }
  const auto products = products_dtype(head.h, head.w, head.b);
  plan.stats = given[14] == Py_True;
  if (!products || !(head.f = take_activation(given[3])) || !take_reduction(given[4], plan.reduction) ||
      !take_int(given[5], plan.rows) || (given[5] != Py_None && plan.rows < 1) ||
      !take_loss(given + 6, head, plan.loss) || (plan.stats && plan.loss.by_entry())) {
    return false;
  }
  plan.products = product_dtype(*products);
  if (at::autocast::is_autocast_enabled(at::kCPU)) plan.region = products;
  const int64_t v = head.w.size(0), n = head.h.numel() / head.w.size(1);
  if (given[5] == Py_None) {
    const Question large{"rows_of_loss", {flat(head.h)}, {v, int64_t(plan.products)}, {}};
    plan.rows = n * v < kFewLogits ? n : ask(large).cast<int64_t>();
  }
  return true;
}

// head(the fifteen of take_head) -> None, the loss, or (loss, logsumexp, correct)
PyObject* head_door(PyObject*, PyObject* const* given, Py_ssize_t) {
  HANDLE_TH_ERRORS
  Head head;
  Plan plan;
  if (!take_head(given, head, plan) || (is_recorded(head) && keeps_more(head, plan))) Py_RETURN_NONE;
  const bool stats = plan.stats;
  Made made;
  {
    py::gil_scoped_release released;
    made = loss_of(std::move(head), std::move(plan));
  }
  py::object value = wrapped(made.value);
  if (stats) value = py::make_tuple(value, wrapped(made.logsumexp), wrapped(made.correct));
  return value.release().ptr();
  END_HANDLE_TH_ERRORS
}

// head_made(the same, need_dh, need_dw, need_db) -> None, or (loss, dh, dw, db) and then logsumexp and correct, if they
// are asked for: recorded nowhere, for a caller below autograd.
PyObject* head_made_door(PyObject*, PyObject* const* given, Py_ssize_t) {
  HANDLE_TH_ERRORS
  at::NoGradGuard no_grad;
  Head head;
  Plan plan;
  const Needed needed{given[15] == Py_True, given[16] == Py_True, given[17] == Py_True};
  if (!take_head(given, head, plan) || (needed.any() && plan.reduction == Reduction::none)) Py_RETURN_NONE;
  Made made;
  {
    py::gil_scoped_release released;
    made = loss_and_gradients(head, plan, needed);
  }
  py::list found;
  for (const Tensor& t : {made.value, made.three.dh, made.three.dw, made.three.db}) found.append(wrapped(t));
  if (plan.stats) found.append(wrapped(made.logsumexp)), found.append(wrapped(made.correct));
  return py::tuple(found).release().ptr();
  END_HANDLE_TH_ERRORS
}

}  // namespace

PyMethodDef kHeadDoors[] = {
    {"head", (PyCFunction)(void*)head_door, METH_FASTCALL, nullptr},
    {"head_made", (PyCFunction)(void*)head_made_door, METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace manual_mlp
