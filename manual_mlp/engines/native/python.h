// What the functions that Python calls share: how its objects are taken.
#pragma once
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include "door.h"
#include "sweep.h"

namespace manual_mlp {
namespace py = pybind11;

// Whether a mode other than that of a default device takes torch's functions by their names.
bool functions_are_overridden();
// A plain tensor of no class of its own; or, for the optional one, None.
bool take(PyObject* object, Tensor& to);
bool take(PyObject* object, Optional& to);
// None for what is undefined.
py::object wrapped(const Tensor& t);
// The activation that a record stands for; null for one that is not known here.
const Act* take_activation(PyObject* record);
// What a function of the plain engine answers; Python's lock is held.
py::object ask(const Question& question);

// The layers of a chain of (weight, bias, activation, dropout) that fit the input; in one dtype, or mixed for autocast.
bool take_layers(PyObject* chain, const Tensor& input, bool mixed, Layers& to);
// The rows of a tile and the workers, from a pair; None for all rows at once.
Tiling take_tiling(PyObject* pair, int64_t n);

extern PyMethodDef kHeadDoors[], kStepDoors[];

}  // namespace manual_mlp
