"""torch.compile, torch.export and ONNX."""

import importlib.util
import operator
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._dynamo import compiled_autograd

from modes.functorch import TRANSFORMS, ask
from modes.judge import Verdict, judge
from modes.mode import Map, Mode, as_module, backward, first_order, head, leaves, of_rows, second_order
from modes.reverse import asked_subsets, backward_twice, frozen_subsets
from modes.subjects import Subject
from modes.tools import without_grad

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


def often(f: Map) -> Map:
    """Compile what is called in more ways than the compiler would follow."""
    g = compiled(f)

    def call(*t: Tensor) -> Tensor:
        with unlimited():
            return g(*t)

    return call


def unlimited() -> Any:
    """Let one piece of code be compiled for every activation there is, one after another."""
    return torch._dynamo.config.patch(recompile_limit=1 << 12, accumulated_recompile_limit=1 << 12)


def around(run: Callable[[Map, Inputs], Any]) -> Callable[[Map, Inputs], Any]:
    """Ask what is compiled as one asks what is not."""
    return lambda f, inputs: run(often(f), inputs)


def of_batches(run: Callable[[Map, Inputs], Any], f: Map, inputs: Inputs) -> Any:
    """Ask with three batch sizes one after another, as the compiler finds best."""
    return [run(f, of_rows(inputs, lambda t, n=n: t[:n])) for n in (5, 4, 3)]


def autocast_within(f: Map, dtype: torch.dtype) -> Map:
    """Put the region of autocast into what is compiled; float64, the truth, is not cast."""

    def cast(*t: Tensor) -> Tensor:
        with torch.autocast(t[0].device.type, dtype):
            return f(*t)

    return cast


# Several draws of the inputs are asked of the same function.
@lru_cache(maxsize=8)
def compiled_once(f: Map, dtype: torch.dtype | None = None) -> Map:
    """Compile a function, within autocast if there is a dtype."""
    return torch.compile(autocast_within(f, dtype) if dtype else f, fullgraph=True, backend="aot_eager")


def autocast_inside(f: Map, inputs: Inputs, dtype: torch.dtype) -> Any:
    """Compile a region of autocast with what is in it."""
    with unlimited():
        return first_order(compiled_once(f, dtype), inputs)


def autocast_around(f: Map, inputs: Inputs, dtype: torch.dtype) -> Any:
    """Call what is compiled in a region of autocast."""
    t = leaves(inputs)
    with torch.autocast(inputs[0].device.type, dtype), unlimited():
        y = compiled_once(f)(*t)
    return y, torch.autograd.grad(head(y), t)


def backward_compiled(f: Map, inputs: Inputs) -> Any:
    """Let compiled autograd take the backward pass."""
    t = leaves(inputs)
    y = f(*t)
    with warnings.catch_warnings():
        # It looks at gradients of tensors of its own.
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
        with compiled_autograd._enable(torch.compile(backend="aot_eager"), dynamic=False):
            head(y).backward()
    return y, [x.grad for x in t]


def gradients_within(f: Map, inputs: Inputs, compile: Callable[[Any], Any] = compiled, **options: Any) -> Any:
    """Ask for the gradients, by autograd.grad, inside what is compiled."""
    t = leaves(inputs)

    def ask(*t: Tensor) -> Any:
        y = f(*t)
        return y, torch.autograd.grad(head(y), t, **options)

    return compile(ask)(*t)


def low(name: str, run: Callable[..., Any]) -> list[Mode]:
    return [
        Mode(f"{name}, {label}", partial(run, dtype=dtype), tolerance=None, dtype=torch.float32, compiles=True)
        for label, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16))
    ]


def column(subject: Subject) -> Subject:
    """Compile the candidate; torch's own way and the truth stay as they are."""
    return replace(subject, ours=often(subject.ours))


def judge_compiled(mode: Mode, subject: Subject, device: str = "cpu") -> tuple[Verdict, Verdict]:
    """Compare what compiled ours and compiled torch answer with the truth; that both raise the same is no fault."""
    ours, torchs = (judge(mode, column(each), device) for each in (subject, subject.of_torch()))
    if ours.outcome == torchs.outcome == "raises" and ours.detail[:40] == torchs.detail[:40]:
        ours = torchs = Verdict("equal", f"both raise: {ours.detail}")
    return ours, torchs


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
    Mode(
        "compile, batches one after another",
        around(partial(of_batches, first_order)),
        plain=partial(of_batches, first_order),
        compiles=True,
    ),
    Mode("compile, backward()", around(backward), plain=backward, compiles=True),
    Mode(
        "compile, backward twice",
        around(partial(backward_twice, retain_graph=True)),
        plain=partial(backward_twice, retain_graph=True),
        compiles=True,
    ),
    Mode(
        "compile, every frozen subset",
        around(partial(frozen_subsets, create_graph=False)),
        plain=partial(frozen_subsets, create_graph=False),
        compiles=True,
    ),
    Mode(
        "compile, every subset of gradients",
        around(partial(asked_subsets, create_graph=False)),
        plain=partial(asked_subsets, create_graph=False),
        compiles=True,
    ),
    Mode(
        "compile, no_grad",
        around(partial(without_grad, torch.no_grad)),
        plain=partial(without_grad, torch.no_grad),
        compiles=True,
    ),
    Mode(
        "compile, inference_mode",
        around(partial(without_grad, torch.inference_mode)),
        plain=partial(without_grad, torch.inference_mode),
        compiles=True,
    ),
    *low("compile, autocast inside", autocast_inside),
    *low("compile, autocast around", autocast_around),
    Mode("compile, compiled autograd", around(backward_compiled), plain=backward, compiles=True),
    Mode("eager, compiled autograd", backward_compiled, plain=backward, compiles=True),
    Mode(
        "compile of autograd.grad",
        gradients_within,
        compiles=True,
        may_raise=True,
        instead=partial(gradients_within, compile=lambda f: f),
    ),
    Mode(
        "compile of autograd.grad, create_graph",
        partial(gradients_within, create_graph=True),
        compiles=True,
        may_raise=True,
        instead=partial(gradients_within, compile=lambda f: f, create_graph=True),
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
