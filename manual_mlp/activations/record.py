"""The record of an activation, and what the layers ask of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from os.path import basename
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from manual_mlp.activations.check import check

Map = Callable[[Tensor], Tensor]
FLOATS = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))  # what torch multiplies by itself


@dataclass(frozen=True, eq=False)
class Activation:
    """Hold an entrywise function with its first and second derivative.

    Every function here maps a tensor to another of the same shape and dtype, which it leaves as it is, and has no
    parameters that require grad: the layer would give them none. Derivatives of third order and above
    differentiate ``d2f`` by autograd.

    Attributes:
        f: the function, of the pre-activation z.
        df: f′, of z.
        d2f: f″, of z.
        df_y: f′ of the output y = f(z). Give it only where it is exact: the layer then keeps y,
            which the next layer keeps anyway, instead of z.
        d2f_y: the derivative of ``df_y`` by y, which is f″/f′; given with it, or not at all.
        kernel: ``(dy, kept) -> dy ⊙ f′(z)`` in one pass over memory, where ``kept`` is y if
            ``df_y`` is given, else z. For speed alone, where nothing differentiates the result.
        kernel_out: the same as ``kernel``, written over dy. For the speed of whole networks alone.
        f_out: ``(z, out) -> out``, with f(z) written into ``out``, which may be z. For the same.
        kernel2: ``(dy, q, kept) -> dy ⊙ f′, q ⊙ f′, q ⊙ dy ⊙ c`` with c = f″, or f″/f′ where ``kept`` is y. It may
            overwrite q, and is given float32 or float64. For the speed of second-order gradients alone.
        name: shown by ``repr``; without one, which function f is.
        params: the arguments that made it, shown by ``repr``.
        maker: the factory that made it, by which it is copied and pickled; not to be given.

    Raises:
        TypeError: what should be a function is none.
        ValueError: one of ``df_y`` and ``d2f_y`` is given without the other, or the name cannot be printed.

    Example::

        cubic = Activation(f=lambda z: z**3, df=lambda z: 3 * z**2, d2f=lambda z: 6 * z)
        mlp = manual_mlp.MLP([784, 128, 10], cubic)
    """

    f: Map
    df: Map
    d2f: Map
    df_y: Map | None = None
    d2f_y: Map | None = None
    kernel: Callable[[Tensor, Tensor], Tensor] | None = None
    kernel_out: Callable[[Tensor, Tensor], Tensor] | None = None
    f_out: Callable[[Tensor, Tensor], Tensor] | None = None
    kernel2: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]] | None = None
    name: str = ""
    params: tuple[Any, ...] = ()
    maker: "Callable[..., Activation] | None" = field(default=None, init=False)

    def __post_init__(self) -> None:
        for name in ("f", "df", "d2f", "df_y", "d2f_y", "kernel", "kernel_out", "f_out", "kernel2"):
            given = getattr(self, name)
            if not (callable(given) or (given is None and name not in ("f", "df", "d2f"))):
                raise TypeError(f"expected {name} to be a function of tensors, got {given!r}")
        if not (isinstance(self.name, str) and self.name.isprintable()):
            raise ValueError(f"expected a name that can be printed, got {self.name!r}")
        if (self.df_y is None) != (self.d2f_y is None):
            raise ValueError("expected both of df_y and d2f_y, or neither: f″ would be taken of the wrong variable")

    def __repr__(self) -> str:
        if self.name:
            return f"{self.name}({', '.join(map(repr, self.params))})"
        return f"Activation(f={_told(self.f)})"

    def check(self, z: Any = None) -> "Activation":
        """Compare what the record says with f and its differences, in float64, and return the record.

        f′ is held to central differences of f, f″ to those of f′, and ``df_y``, ``d2f_y`` and the kernels to both. At a
        kink any slope between those of the two sides is right. f has to be entrywise and finite, and no function may
        change what it is given, or have parameters that require grad.

        Args:
            z: the points, a tensor or numbers; None for 272 of them from -8 to 8. Give those where f changes its form.

        Raises:
            ValueError: one of the functions is wrong; it tells which, at which z, what was expected, and what came.

        Example::

            cubic = Activation(f=lambda z: z**3, df=lambda z: 3 * z**2, d2f=lambda z: 6 * z).check()
            step = Activation(torch.relu, lambda z: (z > 0).to(z.dtype), torch.zeros_like)
            step.check([-1.0, 0.0, 1.0])
        """
        check(self, z)
        return self

    def of_kept(self) -> tuple[Map, Map]:
        """Return f′ as a function of what a layer keeps, y or z, and the derivative of that."""
        if self.df_y is None or self.d2f_y is None:
            return self.df, self.d2f
        return self.df_y, self.d2f_y

    def __reduce__(self) -> Any:
        # One with a factory is made again by it, so pickle and deepcopy give the one object it is.
        # Another is its functions, which pickle by reference.
        if self.maker is not None:
            return self.maker, self.params
        return super().__reduce__()


def _told(f: Map) -> str:
    """Say in a word which function it is; of a lambda, where it stands."""
    f = getattr(f, "func", f)  # of a partial function
    name, code = getattr(f, "__name__", type(f).__name__), getattr(f, "__code__", None)
    return f"<lambda at {basename(code.co_filename)}:{code.co_firstlineno}>" if name == "<lambda>" and code else name


def value(z: Tensor, activation: Activation) -> Tensor:
    """Compute f(z), so that its derivative is the record's f′: some of torch's own have none in forward mode."""
    if torch.compiler.is_compiling():
        return activation.f(z)
    return _EntrywiseFunction.apply(z, activation.f, lambda t: slope(t, activation))  # type: ignore[no-any-return]


def slope(z: Tensor, activation: Activation) -> Tensor:
    """Compute f′(z), in float32 at least, so that its own derivative is the record's f″."""
    if torch.compiler.is_compiling():
        # A compiled graph has no second derivative, and the compiler refuses a Function that defines jvp.
        return activation.df(widen(z))
    return _EntrywiseFunction.apply(widen(z), activation.df, activation.d2f)  # type: ignore[no-any-return]


def times_slope(dy: Tensor, kept: Tensor, activation: Activation, plain: bool) -> Tensor:
    """Compute dy ⊙ f′ from what the layer kept: y where f′ comes from y, else z.

    ``plain`` allows the record's kernel, and a result that is a constant to further derivatives.
    """
    if plain and activation.kernel is not None and dy.dtype == kept.dtype:
        return activation.kernel(dy, kept)
    (df, d2f), wide = activation.of_kept(), widen(kept)
    return cast(widen(dy) * (df(wide) if plain else _EntrywiseFunction.apply(wide, df, d2f)), dy.dtype)


def times_slope_(dy: Tensor, kept: Tensor, activation: Activation) -> Tensor:
    """Compute dy ⊙ f′ where nothing differentiates it, over dy if there is a kernel for that."""
    if activation.kernel_out is not None and dy.dtype == kept.dtype:
        return activation.kernel_out(dy, kept)
    return times_slope(dy, kept, activation, plain=True)


def times_slope_and_curvature(
    dy: Tensor, q: Tensor, kept: Tensor, activation: Activation, plain: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute dy ⊙ f′, q ⊙ f′ and r, the cotangent of what the layer kept.

    r is q ⊙ dy ⊙ f″ for z, and q ⊙ dy ⊙ f″/f′ for y. ``plain`` allows the record's kernels, and q to be overwritten.
    """
    df, d2f = activation.of_kept()
    wide_dy, wide_q, wide = widen(dy), widen(q), widen(kept)
    if plain and activation.kernel2 is not None:
        dy_slope, q_slope, r = activation.kernel2(wide_dy, wide_q, wide)  # (B1, S3, S2)
        return cast(dy_slope, dy.dtype), cast(q_slope, q.dtype), cast(r, kept.dtype)
    if plain:
        dy_slope, q_slope = (times_slope(t, kept, activation, plain) for t in (dy, q))  # (B1, S3)
    else:
        slope = _EntrywiseFunction.apply(wide, df, d2f)
        dy_slope, q_slope = cast(wide_dy * slope, dy.dtype), cast(wide_q * slope, q.dtype)  # (B1, S3)
    # Zeros, and not None, where f″ is 0: torch's answer is no different, and what it reaches is not unused.
    r = torch.zeros_like(kept) if d2f is torch.zeros_like else cast(wide_q * wide_dy * d2f(wide), kept.dtype)  # (S2)
    return dy_slope, q_slope, r


def widen(t: Tensor) -> Tensor:
    """Turn half precision into float32, so that a result is rounded once, as in torch's own kernels."""
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def cast(t: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn a tensor into a dtype, and leave it alone if it is of that dtype."""
    return t if t.dtype == dtype else t.to(dtype)


class _EntrywiseFunction(Function):
    # f with the derivative it is given, whatever autograd would make of f.
    generate_vmap_rule = True

    @staticmethod
    def forward(t: Tensor, f: Map, df: Map) -> Tensor:
        y = f(t)
        return y.clone() if y is t else y

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        t, _, ctx.df = inputs
        ctx.save_for_backward(t)
        ctx.save_for_forward(t)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        (t,) = ctx.saved_tensors
        return cast(dy * ctx.df(widen(t)), t.dtype), None, None

    @staticmethod
    def jvp(ctx: Any, dt: Tensor, *_: None) -> Tensor:
        (t,) = ctx.saved_tensors
        return cast(dt * ctx.df(widen(t)), t.dtype)
