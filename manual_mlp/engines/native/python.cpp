// The functions that Python calls. Each returns None where the plain engine is to compute.
#include <ATen/PythonTorchFunctionTLS.h>
#include <torch/csrc/PyInterpreter.h>

#include <set>
#include <thread>

#include "layer.h"
#include "network.h"
#include "python.h"

namespace manual_mlp {
namespace {

// What Python hands over when it loads this: the plain engine's functions, the classes that leave all to torch, the
// mode of a default device, what numbers a record, and what a question is put into.
struct Handed {
  py::dict plain;
  py::object tensor, parameter, device_mode, number, asked;
  py::object name = py::reinterpret_steal<py::object>(PyUnicode_InternFromString("native"));
};
const Handed* handed = nullptr;  // never destroyed, for the interpreter may be gone first

bool is_of(PyObject* object, const py::object& kind) { return (PyObject*)Py_TYPE(object) == kind.ptr(); }

}  // namespace

bool functions_are_overridden() {
  const int64_t depth = at::impl::PythonTorchFunctionTLS::stack_len();
  for (int64_t k = 0; k < depth; ++k) {
    const auto& mode = at::impl::PythonTorchFunctionTLS::get_stack_at(k);
    if (!is_of(mode->ptr(getPyInterpreter()), handed->device_mode)) return true;
  }
  return false;
}

bool take(PyObject* object, Tensor& to) {
  if (!is_of(object, handed->tensor) && !is_of(object, handed->parameter)) return false;
  to = THPVariable_Unpack(object);
  return is_plain(to);
}
bool take(PyObject* object, Optional& to) {
  if (object == Py_None) return true;
  Tensor t;
  if (!take(object, t)) return false;
  to = t;
  return true;
}

py::object wrapped(const Tensor& t) {
  return t.defined() ? py::reinterpret_steal<py::object>(THPVariable_Wrap(t)) : py::none();
}

const Act* take_activation(PyObject* record) {
  auto number = py::reinterpret_steal<py::object>(PyObject_GetAttr(record, handed->name.ptr()));
  if (!number) throw py::error_already_set();
  if (number.is_none()) number = handed->number(py::handle(record));
  const int64_t found = PyLong_AsLongLong(number.ptr());
  return found < 0 ? nullptr : &act_of(found);
}

namespace {

PyObject* dense_door(PyObject*, PyObject* const* given, Py_ssize_t) {
  HANDLE_TH_ERRORS
  Tensor input, weight;
  Optional bias;
  if (functions_are_overridden() || !take(given[0], input) || !take(given[1], weight) || !take(given[2], bias))
    Py_RETURN_NONE;
  const auto products = products_dtype(input, weight, bias);
  const Act* f = products ? take_activation(given[3]) : nullptr;
  // On CUDA autocast has two of them in float32.
  const bool wide = f && input.is_cuda() && (f->name == "softplus" || f->name == "squared_relu");
  if (!f || (wide && at::autocast::is_autocast_enabled(at::kCUDA))) Py_RETURN_NONE;
  Tensor y;
  {
    py::gil_scoped_release released;
    y = dense(input, weight, bias, *f, *products);
  }
  return THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

}  // namespace

bool take_layers(PyObject* chain, const Tensor& input, bool mixed, Layers& to) {
  if (!PyList_Check(chain) || !input.dim() || !input.numel()) return false;
  auto width = input.size(-1);
  for (Py_ssize_t k = 0; k < PyList_GET_SIZE(chain); ++k) {
    PyObject* item = PyList_GET_ITEM(chain, k);
    Layer layer;
    if (!take(PyTuple_GET_ITEM(item, 0), layer.w) || !take(PyTuple_GET_ITEM(item, 1), layer.b)) return false;
    layer.f = take_activation(PyTuple_GET_ITEM(item, 2));
    layer.dropout = PyFloat_AsDouble(PyTuple_GET_ITEM(item, 3));
    if (!layer.f || !layer_fits(input, width, layer.w, layer.b, mixed)) return false;
    width = layer.w.size(0);
    to.push_back(std::move(layer));
  }
  return true;
}

Tiling take_tiling(PyObject* pair, int64_t n) {
  if (pair == Py_None) return {n, 1};
  return {PyLong_AsLongLong(PyTuple_GET_ITEM(pair, 0)), PyLong_AsLongLong(PyTuple_GET_ITEM(pair, 1))};
}

namespace {

// network(input, chain, tiling or None) -> y or None
PyObject* network_door(PyObject*, PyObject* const* given, Py_ssize_t) {
  HANDLE_TH_ERRORS
  Tensor input;
  Layers layers;
  if (functions_are_overridden() || !take(given[0], input) ||
      at::autocast::is_autocast_enabled(input.device().type()) || !take_layers(given[1], input, false, layers))
    Py_RETURN_NONE;
  // Tiles and masks are those of a CPU.
  const bool drops = std::any_of(layers.begin(), layers.end(), [](const Layer& layer) { return layer.dropout > 0; });
  if (!input.is_cpu() && (drops || given[2] != Py_None)) Py_RETURN_NONE;
  const auto tiling = take_tiling(given[2], input.numel() / input.size(-1));
  Tensor y;
  {
    py::gil_scoped_release released;
    y = network(input, std::move(layers), tiling);
  }
  return THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

int64_t threads_of_a_region() {
  py::gil_scoped_release released;
  std::set<std::thread::id> seen;
  std::mutex lock;
  const int64_t threads = at::get_num_threads();
  at::parallel_for(0, threads, 1, [&](int64_t from, int64_t to) {
    std::lock_guard<std::mutex> held(lock);
    seen.insert(std::this_thread::get_id());
  });
  return seen.size();
}

PyMethodDef kDoors[] = {
    {"dense", (PyCFunction)(void*)dense_door, METH_FASTCALL, nullptr},
    {"network", (PyCFunction)(void*)network_door, METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

py::object ask(const Question& question) {
  py::tuple tensors(question.tensors.size());
  for (size_t k = 0; k < question.tensors.size(); ++k) tensors[k] = wrapped(question.tensors[k]);
  return handed->plain[question.name](handed->asked(tensors, question.numbers, question.needed, question.dropout));
}

variable_list ask_plain(const Question& question) {
  py::gil_scoped_acquire acquired;
  auto found = ask(question).cast<py::sequence>();
  variable_list made;
  for (auto item : found) made.push_back(item.is_none() ? Tensor() : THPVariable_Unpack(item.ptr()));
  return made;
}

}  // namespace manual_mlp

PYBIND11_MODULE(manual_mlp_native, m) {
  using namespace manual_mlp;
  m.def("hand_over", [](py::dict plain, py::object tensor, py::object parameter, py::object device_mode,
                        py::object number, py::object asked) {
    handed = new Handed{plain, tensor, parameter, device_mode, number, asked};
  });
  m.def("number_of", &number_of);
  m.def("threads", &threads_of_a_region);
  m.def("y_into", [](const Tensor& y, const Tensor& z, int64_t number) { y_into(y, z, act_of(number)); });
  m.def("second_of_delta", [](const Tensor& dy, const Tensor& q, const Tensor& kept, int64_t number) {
    const auto found = second_of_delta(dy, q, kept, act_of(number), false);
    return std::make_tuple(found.delta, found.dy_cotangent, found.r);
  });
  PyModule_AddFunctions(m.ptr(), kDoors);
  PyModule_AddFunctions(m.ptr(), kHeadDoors);
  PyModule_AddFunctions(m.ptr(), kStepDoors);
}
