"""What is exported with a dynamic batch serves every batch: the same answers, by torch's own operations."""

import operator
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

from manual_mlp import (
    MLP,
    Activation,
    Dense,
    DenseSquaredError,
    Linear,
    LinearCrossEntropyLoss,
    dense,
    dense_squared_error,
    linear_binary_cross_entropy,
    linear_cross_entropy,
)

# So many rows of these classes are more logits than torch's own operations are left with, and one row is fewer.
CLASSES, SIZES = 300, (1, 2, 9, 1000)


class Of(nn.Module):
    """Call a function of an input, a weight, a bias and perhaps a target, with options, some of them tensors."""

    def __init__(self, f: Callable[..., Tensor], d_out: int, **options: Any) -> None:
        super().__init__()
        self.f, self.linear = f, nn.Linear(8, d_out)
        self.options = {name: t for name, t in options.items() if not isinstance(t, Tensor)}
        self.held = [name for name in options if name not in self.options]
        for name in self.held:
            self.register_buffer(name, options[name])

    def forward(self, h: Tensor, target: Tensor | None = None) -> Tensor:
        given = self.options | {name: getattr(self, name) for name in self.held}
        return self.f(h, self.linear.weight, self.linear.bias, *([] if target is None else [target]), **given)


def of_classes(h: Tensor, w: Tensor, b: Tensor, target: Tensor, **options: Any) -> Tensor:
    return linear_cross_entropy(h, w, target, linear_bias=b, **options)


def of_answers(h: Tensor, w: Tensor, b: Tensor, target: Tensor, **options: Any) -> Tensor:
    return linear_binary_cross_entropy(h, w, target, linear_bias=b, **options)


def alone(n: int) -> tuple[Tensor, ...]:
    return (torch.randn(n, 8, dtype=torch.float64),)


def with_numbers(n: int) -> tuple[Tensor, ...]:
    return *alone(n), torch.randn(n, 5, dtype=torch.float64)


def with_classes(n: int) -> tuple[Tensor, ...]:
    return *alone(n), torch.randint(CLASSES, (n,))


def with_shares(n: int) -> tuple[Tensor, ...]:
    return *alone(n), torch.rand(n, CLASSES, dtype=torch.float64)


class Case(NamedTuple):
    make: Callable[[], nn.Module]
    args: Callable[[int], tuple[Tensor, ...]] = alone


def own() -> Activation:
    return Activation(lambda z: z**3, lambda z: 3 * z**2, lambda z: 6 * z)


def per_class() -> Tensor:
    return torch.linspace(0.5, 2, CLASSES)


CASES = {
    "Linear": Case(lambda: Linear(8, 5)),
    "Dense": Case(lambda: Dense(8, 5)),
    "Dense, no bias": Case(lambda: Dense(8, 5, "gelu", bias=False)),
    **{f"Dense, {name}": Case(lambda name=name: Dense(8, 5, name)) for name in ("relu", "silu", "tanh", "softplus")},
    "Dense, an activation of one's own": Case(lambda: Dense(8, 5, own())),
    "dense": Case(lambda: Of(dense, 5, activation="gelu")),
    "MLP": Case(lambda: MLP([8, 7, 6, 5], "gelu")),
    "MLP, 2 rows at once": Case(lambda: MLP([8, 7, 6, 5], "gelu", tile_rows=2)),
    "MLP, dropout": Case(lambda: MLP([8, 7, 6, 5], "tanh", dropout=0.3)),
    "MLP, dropout, no training": Case(lambda: MLP([8, 7, 6, 5], "tanh", dropout=0.3).eval()),
    "DenseSquaredError": Case(lambda: DenseSquaredError(8, 5, "tanh"), with_numbers),
    "dense_squared_error, none": Case(
        lambda: Of(dense_squared_error, 5, activation="gelu", reduction="none", chunk_rows=4), with_numbers
    ),
    "dense_squared_error, mean": Case(lambda: Of(dense_squared_error, 5, reduction="mean"), with_numbers),
    "LinearCrossEntropyLoss": Case(lambda: LinearCrossEntropyLoss(8, CLASSES), with_classes),
    "LinearCrossEntropyLoss, options": Case(
        lambda: LinearCrossEntropyLoss(
            8, CLASSES, bias=True, weight=per_class(), ignore_index=3, label_smoothing=0.1, chunk_rows=4
        ),
        with_classes,
    ),
    "linear_cross_entropy, none": Case(
        lambda: Of(of_classes, CLASSES, reduction="none", ignore_index=3, weight=per_class()), with_classes
    ),
    "linear_cross_entropy, sum": Case(lambda: Of(of_classes, CLASSES, reduction="sum", chunk_rows=4), with_classes),
    "LinearCrossEntropyLoss, soft cap": Case(
        lambda: LinearCrossEntropyLoss(8, CLASSES, softcap=3.0, z_loss=0.1), with_classes
    ),
    "linear_cross_entropy, soft cap": Case(lambda: Of(of_classes, CLASSES, softcap=2.5), with_classes),
    "linear_cross_entropy, shares": Case(lambda: Of(of_classes, CLASSES, label_smoothing=0.1), with_shares),
    "linear_binary_cross_entropy": Case(lambda: Of(of_answers, CLASSES, pos_weight=per_class()), with_shares),
    "linear_binary_cross_entropy, none": Case(
        lambda: Of(of_answers, CLASSES, weight=per_class(), reduction="none", chunk_rows=4), with_shares
    ),
}
every_case = pytest.mark.parametrize("name", CASES)


def exported(module: nn.Module, args: tuple[Tensor, ...], strict: bool = False) -> torch.export.ExportedProgram:
    rows = Dim("rows")
    return export(module, args, dynamic_shapes=tuple({0: rows} for _ in args), strict=strict)


def answers(module: nn.Module, args: tuple[Tensor, ...], params: list[Tensor]) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    y = module(*args)
    return y, *torch.autograd.grad(y.sin().sum(), params)


@every_case
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "not strict"])
def test_an_export_with_a_dynamic_batch_serves_and_trains_at_every_size(name: str, strict: bool) -> None:
    make, args_of = CASES[name]
    module = make().double()
    program = exported(module, args_of(5), strict)
    assert all(of.lower <= 1 and of.upper > 2**40 for of in program.range_constraints.values())
    calls = {node.target for node in program.graph.nodes if node.op == "call_function"} - {operator.getitem}
    assert {call.namespace for call in calls} == {"aten"}
    # A dropout in torch's own operations draws as nn.Dropout does.
    same = module.to_sequential() if isinstance(module, MLP) else module
    served = program.module()
    params = [[served.get_parameter(name) for name, _ in module.named_parameters()], list(same.parameters())]
    for n in SIZES:
        args = args_of(n)
        of_export, expected = (answers(m, args, p) for m, p in zip((served, same), params, strict=True))
        torch.testing.assert_close(of_export, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.processes
@pytest.mark.each_value
@pytest.mark.skipif(not shutil.which("g++"), reason="no g++")
@pytest.mark.parametrize("name", ["Dense, silu", "MLP", "LinearCrossEntropyLoss, options"])
def test_aot_inductor_serves_every_batch_size(name: str, tmp_path: Path) -> None:
    make, args_of = CASES[name]
    module = make().double().eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = torch._inductor.aoti_compile_and_package(
            exported(module, args_of(5)), package_path=str(tmp_path / "layer.pt2")
        )
        served = torch._inductor.aoti_load_package(path)
        for n in SIZES:
            args = args_of(n)
            torch.testing.assert_close(served(*args), module(*args), rtol=1e-9, atol=1e-9)


def narrow(args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(t.float() if t.is_floating_point() else t for t in args)


@pytest.mark.each_value
@pytest.mark.parametrize("name", [name for name in CASES if name != "MLP, dropout"])
def test_onnxruntime_answers_the_same_at_every_batch_size(name: str, tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    onnxruntime = pytest.importorskip("onnxruntime")
    make, args_of = CASES[name]
    module, path, rows = make().eval(), str(tmp_path / "layer.onnx"), Dim("rows")
    args = narrow(args_of(5))
    with warnings.catch_warnings():
        # torch 2.11 asks Python to copy a class in a way that it has deprecated.
        warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec.` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "# The axis name: rows will not be used", UserWarning)
        shapes = tuple({0: rows} for _ in args)
        torch.onnx.export(module, args, path, dynamo=True, verbose=False, dynamic_shapes=shapes)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    for n in SIZES:
        args = narrow(args_of(n))
        (y,) = session.run(None, {name: t.numpy() for name, t in zip(names, args, strict=True)})
        torch.testing.assert_close(torch.from_numpy(y), module(*args).detach(), rtol=1e-4, atol=1e-5)
