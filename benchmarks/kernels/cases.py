"""What is timed: networks, each with the forms of its kernel that are weighed against each other."""

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import torch

from benchmarks.kernels.forms import Form, Shape, Task

REGISTERS = "sums in registers"
HALF_TILE = "sums in registers, 64 rows"
MEMORY = "sums in memory"
MEMORY_4 = "sums in memory, 4 warps"
NARROW = "narrow, sums in registers"
NARROW_MEMORY = "narrow, sums in memory"
FIELD = "64 rows, 8 warps"
FIELD_4 = "32 rows, 4 warps, sums in memory"
FIELD_KEPT = "64 rows, 8 warps, f′ and f″ kept"
FIELD_KEPT_32 = "32 rows, 8 warps, f′ and f″ kept, sums in memory"
CUT = "cut in two"

_WIDE, _NARROW = Form(), Form(tile=64, warps=4, left=False, hide=False)
# What a field says stands in benchmarks/kernels/forms.py.
FORMS = {
    REGISTERS: _WIDE,
    HALF_TILE: _WIDE._replace(tile=64),
    MEMORY: _WIDE._replace(tile=64, keep=0, registers=128, blocks=2),
    MEMORY_4: _WIDE._replace(tile=64, warps=4, hide=False, keep=0, blocks=2),
    "sums in registers, two blocks": _WIDE._replace(tile=64, registers=128, blocks=2),
    "weights on the right": _WIDE._replace(left=False, hide=False),
    "f′ kept": _WIDE._replace(again=False),
    "weights read again": _WIDE._replace(tile=64, resident=False),
    NARROW: _NARROW._replace(blocks=2),
    NARROW_MEMORY: _NARROW._replace(keep=0, registers=128, blocks=4),
    CUT: _WIDE._replace(tile=64, hide=False),  # of both parts
    "two blocks": Form(left=False, hide=False, stages=2, blocks=2),
    "three blocks": Form(left=False, hide=False, stages=2, blocks=3),
    "one block": Form(left=False, hide=False),
    FIELD: _WIDE._replace(tile=64),
    FIELD_4: _WIDE._replace(tile=32, warps=4, keep=0, blocks=2),
    FIELD_KEPT: _WIDE._replace(tile=64, again=False),
    "32 rows, 8 warps": _WIDE._replace(tile=32),
    FIELD_KEPT_32: _WIDE._replace(tile=32, again=False, keep=0),
}


# The dtypes of products. Triton's interpreter, which is NumPy's, has no bfloat16, and no product of tf32.
DTYPES = {
    "cuda": ("bfloat16", "float16", "tf32", "float32"),
    "cpu": ("float64", "float32", "float16"),
}
LEFT_OUT = {"cpu": {"bfloat16": "Triton's interpreter has none", "tf32": "Triton's interpreter computes in float32"}}


def captured_name(form: str) -> str:
    """Name the provider that is a kernel in a form as a CUDA graph."""
    return f"{form}, captured"


class Variant(NamedTuple):
    """A kernel (step, infer, field or backward) as it is compiled."""

    kernel: str
    shape: Shape
    task: Task
    form: Form


class Case(NamedTuple):
    """A network and what is asked of it, in one or several forms.

    The kinds: step; infer; field, y with ∂y/∂x; backward, the same and then a backward of both; cut, a step of a
    network cut in two; sums, the programs' shares added up. ``compiles``: beside torch.compile.
    """

    kind: str
    shape: Shape
    forms: tuple[str, ...]
    task: Task = Task()
    compiles: bool = False
    tf32: bool = False  # products of float32 keep 10 bits

    def __str__(self) -> str:
        """Write the case as in ``step 64×6, relu, bfloat16``."""
        runs = [(width, len(list(run))) for width, run in groupby(self.shape.widths)]
        widths = "-".join(f"{width}×{count}" if count > 1 else str(width) for width, count in runs)
        loss = "" if self.task.loss == "squared_error" else f", {self.task.loss}"
        dropped = f", dropout {self.task.dropout}" if self.task.dropout else ""
        return f"{self.kind} {widths}, {self.shape.activation}{loss}{dropped}, {self.dtype}"

    @property
    def dtype(self) -> str:
        """Name the dtype of the products."""
        return "tf32" if self.tf32 else str(self.shape.dtype).removeprefix("torch.")

    def tiny(self, interpreted: bool) -> "Case":
        """Shrink the network to an eighth of its width; in the interpreter, in a dtype that it has."""
        widths = tuple(width // 8 if width > 16 else width for width in self.shape.widths)
        small = self._replace(shape=self.shape._replace(widths=widths))
        return small._replace(shape=small.shape._replace(dtype=torch.float32), tf32=False) if interpreted else small

    def form(self, name: str) -> Form:
        """Return one of the case's forms."""
        return FORMS[name]._replace(tf32=self.tf32)

    def variants(self, name: str) -> Iterator[Variant]:
        """List the kernels that run in one of the forms, in turn."""
        shape, task, form = self.shape, self.task, self.form(name)
        if self.kind == "cut":
            widths = shape.widths[: len(shape.widths) // 2 + 1]
            lower, upper = Shape(widths, shape.activation, shape.dtype, open=True), Shape(widths, *shape[1:])
            yield Variant("infer", lower, Task(), self.form("one block"))
            yield Variant("step", upper, task._replace(need_dx=True), form)
            yield Variant("step", lower, task._replace(loss="dy"), form)
        elif self.kind == "backward":
            yield Variant("field", shape, task, self.form(FIELD))
            yield Variant("backward", shape, task, form)
        elif self.kind != "sums":
            yield Variant(self.kind, shape, task, form)


_64, _32, _128, _POINTS = (Shape(widths) for widths in ((64,) * 6, (32,) * 6, (128,) * 5, (3, 64, 64, 64, 1)))
_SINE = _POINTS._replace(activation="sin")
_SINE_4 = _SINE._replace(widths=(3, 64, 64, 64, 64, 1))

# The first decides whether sums stay in registers or go to memory, and whether a block waits for its chain of products.
CASES = (
    Case("step", _64, (REGISTERS, HALF_TILE, MEMORY, MEMORY_4, "weights on the right", "f′ kept"), compiles=True),
    Case("step", _POINTS, (REGISTERS, "sums in registers, two blocks", MEMORY), compiles=True),
    Case("step", _32, (NARROW, NARROW_MEMORY)),
    Case("step", _64._replace(activation="gelu"), (REGISTERS, MEMORY)),
    Case("step", _64, (REGISTERS,), Task(dropout=0.1)),
    Case("step", Shape((*(64,) * 5, 10)), (REGISTERS,), Task("cross_entropy")),
    Case("step", Shape((64,) * 9), (HALF_TILE,)),
    Case("step", _64._replace(dtype=torch.float32), ("weights read again",), tf32=True),
    Case("step", Shape((64,) * 4, dtype=torch.float32), (HALF_TILE,), tf32=True),
    Case("cut", _128, (CUT,)),
    Case("sums", _64, (REGISTERS,)),
    Case("sums", _64, (MEMORY,)),
    Case("infer", _64, ("two blocks",), compiles=True),
    Case("infer", _32, ("three blocks",)),
    Case("infer", _128, ("one block",)),
    Case("infer", _POINTS, ("three blocks",)),
    Case("infer", _64._replace(dtype=torch.float32), ("one block",), tf32=True),
    Case("field", _SINE, (FIELD,)),
    Case("backward", _SINE, (FIELD, FIELD_4, FIELD_KEPT), compiles=True),
    Case("backward", _SINE._replace(activation="softplus"), (FIELD, FIELD_4)),
    Case("backward", _SINE._replace(activation="tanh"), (FIELD, FIELD_4)),
    Case("backward", _SINE_4, (FIELD, FIELD_4)),
    Case("backward", _SINE._replace(dtype=torch.float32), ("32 rows, 8 warps", FIELD_KEPT_32), tf32=True),
)
QUICK = tuple(next(case for case in CASES if case.kind == kind) for kind in dict.fromkeys(case.kind for case in CASES))
