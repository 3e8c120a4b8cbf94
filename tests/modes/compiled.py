"""torch.compile, torch.export and ONNX."""

import importlib.util
import operator
import shutil
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modes.functorch import TRANSFORMS, ask
from modes.mode import Map, Mode, as_module, first_order, head, leaves, of_rows, second_order

Inputs = tuple[Tensor, ...]


def compiled(f: Callable[..., Any], backend: str = "aot_eager", **options: Any) -> Callable[..., Any]:
    torch.compiler.reset()
    return torch.compile(f, fullgraph=True, backend=backend, **options)


def static(backend: str, f: Map, inputs: Inputs) -> Any:
    return first_order(compiled(f, backend, dynamic=False), inputs)


def dynamic(compile: Callable[[Map], Map], f: Map, inputs: Inputs) -> Any:
    """Run three batch sizes; only the first may compile."""
    g = compile(f)
    results = [first_order(g, inputs)]
    with torch.compiler.set_stance("fail_on_recompile"):
        results += [first_order(g, of_rows(inputs, lambda t, n=n: t[:n])) for n in (4, 3)]
    return results


def of_module(f: Map, inputs: Inputs, compile: Callable[[Any], Any] = compiled) -> Any:
    return with_gradients(compile(as_module(f, inputs)), inputs[0])


def with_gradients(module: Any, h: Tensor) -> Any:
    (h,) = leaves((h,))
    y = module(h)
    return y, torch.autograd.grad(head(y), (h, *module.parameters()))


def exported(f: Map, inputs: Inputs, strict: bool) -> Any:
    """Export, and differentiate what came out. Whatever is not an aten operation is listed."""
    program = torch.export.export(as_module(f, inputs), inputs[:1], strict=strict)
    calls = {node.target for node in program.graph.nodes if node.op not in ("placeholder", "output")}
    # An operation of several outputs is followed by Python's own getitem.
    calls.discard(operator.getitem)
    foreign = sorted(str(call) for call in calls if getattr(call, "namespace", "") != "aten")
    return with_gradients(program.module(), inputs[0]), foreign


def not_exported(f: Map, inputs: Inputs) -> Any:
    return with_gradients(as_module(f, inputs), inputs[0]), []


def to_onnx(f: Map, inputs: Inputs) -> Any:
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "layer.onnx"))
        h = inputs[0].cpu()
        module = as_module(f, tuple(t.cpu() for t in inputs)).eval()
        with warnings.catch_warnings():
            # torch 2.11 asks Python to copy a class in a way that it has deprecated.
            warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec.` is deprecated", FutureWarning)
            torch.onnx.export(module, (h,), path, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (y,) = session.run(None, {session.get_inputs()[0].name: h.numpy()})
    return torch.from_numpy(y).to(inputs[0].device)


def output_of_module(f: Map, inputs: Inputs) -> Any:
    return as_module(f, inputs)(inputs[0]).detach().float()


def compiled_transform(name: str) -> Mode:
    def run(f: Map, inputs: Inputs) -> Any:
        return compiled(TRANSFORMS[name](f))(*inputs)

    return Mode(f"compile({name})", run, plain=ask(TRANSFORMS[name]), compiles=True)


COMPILE = [
    Mode("compile, static batch", partial(static, "aot_eager"), plain=first_order, compiles=True),
    Mode(
        "compile, dynamic batch",
        partial(dynamic, lambda f: compiled(f, dynamic=True)),
        plain=lambda f, inputs: [first_order(f, of_rows(inputs, lambda t, n=n: t[:n])) for n in (5, 4, 3)],
        compiles=True,
    ),
    Mode("compile of a module", of_module, plain=partial(of_module, compile=lambda m: m), compiles=True),
    *map(compiled_transform, ["grad", "grad(grad)", "vmap(grad) over rows", "jvp"]),
    Mode(
        "compile, then create_graph",
        lambda f, inputs: second_order(compiled(f), inputs),
        compiles=True,
        may_raise=True,
        instead=second_order,
    ),
    Mode("export, strict", partial(exported, strict=True), plain=not_exported, compiles=True),
    Mode("export, not strict", partial(exported, strict=False), plain=not_exported, compiles=True),
]
if shutil.which("g++") or shutil.which("clang++"):
    COMPILE.append(Mode("compile by inductor", partial(static, "inductor"), plain=first_order, compiles=True))
if all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime"))):
    COMPILE.append(
        Mode("ONNX in onnxruntime", to_onnx, plain=output_of_module, tolerance=1e-5, dtype=torch.float32, compiles=True)
    )
