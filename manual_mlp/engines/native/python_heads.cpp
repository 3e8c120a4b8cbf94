// The functions of a layer with its loss that Python calls. Each returns None where the plain engine is to compute.
#include "head.h"
#include "python_losses.h"

namespace manual_mlp {
namespace {

// Below so many logits all rows are one tile, and nobody is asked.
constexpr int64_t kFewLogits = 230000;

// Whether a layer is as usual, and its operands fit together.
bool take_head(PyObject* const* given, Head& to) {
  return !functions_are_overridden() && take(given[0], to.h) && take(given[1], to.w) && take(given[2], to.b) &&
      to.h.is_cpu() && products_dtype(to.h, to.w, to.b) && (to.f = take_activation(given[3]));
}

}  // namespace

bool take_constant(PyObject* object, Tensor& to) {
  return object == Py_None || (take(object, to) && to.is_cpu() && !to.requires_grad());
}

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

bool take_int(PyObject* object, int64_t& to) {
  if (object == Py_None) return true;
  if (!PyLong_CheckExact(object)) return false;
  int overflow = 0;
  to = PyLong_AsLongLongAndOverflow(object, &overflow);
  return !overflow;
}

bool take_share(PyObject* object, double& to) {
  if (!PyFloat_CheckExact(object)) return false;
  to = PyFloat_AS_DOUBLE(object);
  return to >= 0 && to <= 1;
}

bool fits(const Tensor& target, const Head& head, bool of_classes) {
  if (!target.defined() || target.dim() != head.h.dim() - of_classes) return false;
  const auto sizes = target.sizes(), rows = head.h.sizes().slice(0, head.h.dim() - 1);
  return sizes.slice(0, rows.size()) == rows && (of_classes || sizes.back() == head.w.size(0));
}

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

static bool is_narrow_fast() {
  static int known = -1;  // not guarded: Python may let other threads in meanwhile
  if (known < 0) known = ask({"bfloat16_is_fast", {}, {}, {}}).cast<bool>();
  return known;
}

at::ScalarType product_dtype(at::ScalarType dtype) {
  if (dtype == at::kDouble || dtype == at::kFloat) return dtype;
  return dtype == at::kBFloat16 && is_narrow_fast() ? dtype : at::kFloat;
}

namespace {

bool dtypes_fit(const Head& head, const Loss& loss, bool autocast) {
  const auto fits = [&](const Tensor& t) {
    const auto dtype = t.defined() ? t.scalar_type() : head.h.scalar_type();
    return autocast ? is_float(dtype) && dtype != at::kDouble : dtype == head.h.scalar_type();
  };
  return (loss.of_classes() || fits(loss.target)) && fits(loss.weight) && fits(loss.pos_weight);
}

// The loss, of a layer and a target that fit together; None where the dtypes or the options do not.
PyObject* compute(Head head, Loss loss, PyObject* reduction, PyObject* chunk_rows) {
  const auto products = products_dtype(head.h, head.w, head.b);
  const bool autocast = at::autocast::is_autocast_enabled(at::kCPU);
  Plan plan{std::move(loss), Reduction::mean, 0, at::kFloat, autocast ? products : std::nullopt};
  if (!products || !dtypes_fit(head, plan.loss, autocast) || !take_reduction(reduction, plan.reduction)) Py_RETURN_NONE;
  if (chunk_rows != Py_None && (!take_int(chunk_rows, plan.rows) || plan.rows < 1)) Py_RETURN_NONE;
  plan.products = product_dtype(*products);
  const int64_t v = head.w.size(0), n = head.h.numel() / head.w.size(1);
  if (chunk_rows == Py_None) {
    plan.rows = n * v < kFewLogits
        ? n
        : ask({"rows_of_loss", {flat(head.h)}, {v, int64_t(plan.products)}, {}}).cast<int64_t>();
  }
  if (is_recorded(head) && keeps_more(head, plan)) Py_RETURN_NONE;
  Tensor& target = plan.loss.target;
  target = plan.loss.of_classes() ? (target.dim() == 1 ? target : target.reshape(-1)) : flat(target);
  Tensor value;
  {
    py::gil_scoped_release released;
    value = loss_of(std::move(head), std::move(plan));
  }
  return THPVariable_Wrap(std::move(value));
}

// (input, weight, bias, activation, target, weight of classes, ignore_index, label_smoothing, reduction, chunk_rows)
PyObject* cross_entropy(PyObject*, PyObject* const* given, Py_ssize_t) {
  HANDLE_TH_ERRORS
  Head head;
  Loss loss{Loss::cross_entropy};
  if (!take_head(given, head) || !take_constant(given[4], loss.target) || !take_constant(given[5], loss.weight) ||
      !take_int(given[6], loss.ignore_index) || !take_share(given[7], loss.label_smoothing)) {
    Py_RETURN_NONE;
  }
  if (loss.target.defined() && loss.target.scalar_type() == at::kByte) loss.target = loss.target.to(at::kLong);
  const bool of_classes = loss.target.defined() && loss.target.scalar_type() == at::kLong;
  if (!fits(loss.target, head, of_classes) || (!of_classes && loss.ignore_index >= 0)) Py_RETURN_NONE;
  if (loss.weight.defined() && (loss.weight.dim() != 1 || loss.weight.size(0) != head.w.size(0))) Py_RETURN_NONE;
  return compute(std::move(head), std::move(loss), given[8], given[9]);
  END_HANDLE_TH_ERRORS
}

// (input, weight, bias, activation, target, weight of entries, pos_weight, reduction, chunk_rows)
PyObject* binary_cross_entropy(PyObject*, PyObject* const* given, Py_ssize_t) {
  HANDLE_TH_ERRORS
  Head head;
  Loss loss{Loss::binary_cross_entropy};
  if (!take_head(given, head) || !take_constant(given[4], loss.target) || !take_constant(given[5], loss.weight) ||
      !take_constant(given[6], loss.pos_weight) || !fits(loss.target, head, false) ||
      !spread(loss.weight, loss.target) || !spread(loss.pos_weight, loss.target)) {
    Py_RETURN_NONE;
  }
  return compute(std::move(head), std::move(loss), given[7], given[8]);
  END_HANDLE_TH_ERRORS
}

// (input, weight, bias, activation, target, reduction, chunk_rows)
PyObject* squared_error(PyObject*, PyObject* const* given, Py_ssize_t) {
  HANDLE_TH_ERRORS
  Head head;
  Loss loss{Loss::squared_error};
  if (!take_head(given, head) || !take_constant(given[4], loss.target) || !fits(loss.target, head, false)) {
    Py_RETURN_NONE;
  }
  return compute(std::move(head), std::move(loss), given[5], given[6]);
  END_HANDLE_TH_ERRORS
}

}  // namespace

PyMethodDef kHeadDoors[] = {
    {"linear_cross_entropy", (PyCFunction)(void*)cross_entropy, METH_FASTCALL, nullptr},
    {"linear_binary_cross_entropy", (PyCFunction)(void*)binary_cross_entropy, METH_FASTCALL, nullptr},
    {"dense_squared_error", (PyCFunction)(void*)squared_error, METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace manual_mlp
