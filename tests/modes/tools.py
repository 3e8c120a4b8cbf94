"""What stands around a layer: memory tools, hooks, threads, layouts, tensors without data."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import grad
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from modes.mode import (
    Map,
    Mode,
    Run,
    as_module,
    backward,
    cotangent,
    first_order,
    head,
    heads,
    leaves,
    second_order,
    within,
)

Inputs = tuple[Tensor, ...]


def checkpointed(run: Run, **options: Any) -> Run:
    return lambda f, inputs: run(lambda *t: checkpoint(f, *t, **options), inputs)


def checkpointed_by_backward(f: Map, inputs: Inputs) -> Any:
    # The reentrant kind serves backward() alone.
    return backward(lambda *t: checkpoint(f, *t, use_reentrant=True), inputs)


def save_products(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    products = torch.ops.aten.addmm.default, torch.ops.aten.mm.default
    return CheckpointPolicy.MUST_SAVE if op in products else CheckpointPolicy.PREFER_RECOMPUTE


def tensor_hooks(f: Map, inputs: Inputs) -> Any:
    t = leaves(inputs)
    for x in t:
        x.register_hook(lambda g: 2 * g)
    y = f(*t)
    y.register_hook(lambda g: 3 * g)
    y.grad_fn.register_prehook(lambda dys: tuple(None if dy is None else 5 * dy for dy in dys))
    head(y).backward()
    return [x.grad for x in t]


def accumulation_hooks(f: Map, inputs: Inputs) -> Any:
    t, seen = leaves(inputs), {}

    def take(k: int, x: Tensor) -> None:
        seen[k], x.grad = x.grad, None

    for k, x in enumerate(t):
        x.register_post_accumulate_grad_hook(partial(take, k))
    head(f(*t)).backward()
    return [seen.get(k) for k in range(len(t))], [x.grad is None for x in t]


def module_hooks(f: Map, inputs: Inputs) -> Any:
    module, (h,), seen = as_module(f, inputs), leaves(inputs[:1]), []
    module.register_forward_pre_hook(lambda _, args: (args[0] * 2,))
    module.register_forward_hook(lambda _, args, y: y * 3)
    module.register_full_backward_pre_hook(lambda _, dy: (dy[0] * 5,))
    module.register_full_backward_hook(lambda _, dh, dy: seen.append((dh, dy)) or (dh[0] * 7,))
    head(module(h)).backward()
    return h.grad, [p.grad for p in module.parameters()], seen


def without_grad(context: Callable[[], Any], f: Map, inputs: Inputs) -> Any:
    t = leaves(inputs)
    with context():
        y = f(*t)
    return y, y.requires_grad, y.is_inference()


def grad_inside_no_grad(f: Map, inputs: Inputs) -> Any:
    with torch.no_grad(), torch.enable_grad():
        return second_order(f, inputs)


def inference_weights(f: Map, inputs: Inputs, inference: bool = True) -> Any:
    with torch.inference_mode(inference):
        rest = [x.clone() for x in inputs[1:]]
    (h,) = leaves(inputs[:1])
    return grad(head(f(h, *rest)), h)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "expanded": lambda t: t[:1].expand_as(t),
    "transposed": lambda t: t.mT.contiguous().mT if t.dim() > 1 else t,
    "sliced": lambda t: torch.cat([t, t], -1)[..., ::2],
}


def laid_out(k: int, layout: str, run: Run) -> Run:
    """Give input k another layout in memory; a 1 stands for the weights: every matrix but the first input."""

    def changed(f: Map) -> Map:
        def g(*t: Tensor) -> Tensor:
            return f(*(LAYOUTS[layout](x) if (i > 0 and x.dim() > 1 if k else i == 0) else x for i, x in enumerate(t)))

        return g

    return lambda f, inputs: run(changed(f), inputs)


def laid_out_dy(layout: str, f: Map, inputs: Inputs) -> Any:
    t = leaves(inputs)
    y = f(*t)
    dy = cotangent(y.detach())
    dy = LAYOUTS[layout](dy) if dy.dim() else dy
    before = dy.clone()
    first = grad(y, t, dy, create_graph=True)
    return first, grad(heads(first) + head(y), t), torch.equal(dy, before)


def changed_in_place(k: int, f: Map, inputs: Inputs, create_graph: bool = False, change: bool = True) -> Any:
    """Change input k, or the output if k is −1, between forward and backward."""
    t = leaves(inputs)
    y = f(*t)
    z = head(y)
    if change:
        with torch.no_grad():
            (y if k < 0 else t[k]).mul_(2)
    first = grad(z if k >= 0 else y, t, None if k >= 0 else torch.ones_like(y), create_graph=create_graph)
    return (first, grad(heads(first), t)) if create_graph else first


def in_place(what: str, k: int, create_graph: bool = False) -> Mode:
    run = partial(changed_in_place, k, create_graph=create_graph)
    # Who does not raise has to be right about the values before the change.
    return Mode(f"in-place change of the {what}", run, may_raise=True, instead=partial(run, change=False))


def described(f: Map, inputs: Inputs) -> Any:
    """Describe the results on tensors without data."""
    results = first_order(f, inputs)
    return [(tuple(t.shape), t.dtype, t.device.type, t.stride()) for t in (results[0], *results[1])]


def on_meta(f: Map, inputs: Inputs) -> Any:
    return described(f, tuple(t.to("meta") for t in inputs))


def on_fake(f: Map, inputs: Inputs) -> Any:
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        return described(f, tuple(fake.from_tensor(t) for t in inputs))


def in_two_threads(f: Map, inputs: Inputs) -> Any:
    """Let two threads share a module, each with inputs of its own."""
    module = as_module(f, inputs)
    params = list(module.parameters())

    def work(scale: float) -> Any:
        results = []
        for _ in range(5):
            t = leaves((scale * inputs[0],)) + tuple(params)
            first = grad(head(module(t[0])), t, create_graph=True)
            results.append((first, grad(heads(first), t)))
        return results

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(work, (1.0, -0.5)))


def backward_in_another_thread(f: Map, inputs: Inputs) -> Any:
    t = leaves(inputs)
    y = head(f(*t))
    with ThreadPoolExecutor(2) as pool:
        work = [pool.submit(grad, y, t, retain_graph=True) for _ in range(2)]
        return y, [each.result() for each in work]


TOOLS = [
    Mode("checkpoint, reentrant", checkpointed_by_backward),
    Mode("checkpoint, non-reentrant", checkpointed(first_order, use_reentrant=False)),
    Mode("checkpoint, non-reentrant, create_graph", checkpointed(second_order, use_reentrant=False)),
    Mode(
        "checkpoint, selective",
        checkpointed(
            first_order,
            use_reentrant=False,
            context_fn=partial(create_selective_checkpoint_contexts, save_products),
        ),
    ),
    Mode("save_on_cpu", within(torch.autograd.graph.save_on_cpu, first_order)),
    Mode("save_on_cpu, create_graph", within(torch.autograd.graph.save_on_cpu, second_order)),
    Mode("anomaly mode", within(partial(torch.autograd.set_detect_anomaly, True), first_order)),
    Mode("anomaly mode, create_graph", within(partial(torch.autograd.set_detect_anomaly, True), second_order)),
    Mode("hooks on tensors and nodes", tensor_hooks),
    Mode("post-accumulate-grad hooks", accumulation_hooks),
    Mode("module hooks, full backward", module_hooks),
    Mode("no_grad", partial(without_grad, torch.no_grad)),
    Mode("inference_mode", partial(without_grad, torch.inference_mode)),
    Mode("enable_grad inside no_grad", grad_inside_no_grad),
    Mode(
        "weights made in inference_mode",
        inference_weights,
        may_raise=True,
        instead=partial(inference_weights, inference=False),
    ),
    Mode("two threads at once", in_two_threads),
    Mode("backward in other threads", backward_in_another_thread),
]

LAYOUT = [
    *(Mode(f"{layout} input", laid_out(0, layout, second_order)) for layout in LAYOUTS),
    *(Mode(f"{layout} weight", laid_out(1, layout, second_order)) for layout in LAYOUTS),
    *(Mode(f"{layout} dy", partial(laid_out_dy, layout)) for layout in LAYOUTS),
    in_place("input", 0),
    in_place("weight", 1),
    in_place("bias", 2),
    in_place("bias, create_graph", 2, create_graph=True),
    in_place("output", -1),
    Mode("meta tensors", on_meta),
    Mode("fake tensors", on_fake),
]
