"""The record of an activation."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from os.path import basename
from typing import Any

from torch import Tensor

from manual_mlp.activations.check import check
from manual_mlp.activations.traced import traced

Map = Callable[[Tensor], Tensor]


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
        kernel2: ``(dy, q, kept) -> dy ⊙ f′, q ⊙ f′, q ⊙ dy ⊙ c`` with c = f″, or f″/f′ where ``kept`` is y. It may
            overwrite q, and is given float32 or float64. For the speed of second-order gradients alone.
        name: shown by ``repr``; without one, which function f is.
        params: the arguments that made it, shown by ``repr``.
        by_z: the same function, whose layer keeps z in any case.
        maker: the factory that made it, by which it is copied and pickled; not to be given.
        traced: f for a compiler, with the derivative that the record says; likewise.
        spelled: what ``activations.registry.of_spelled`` finds it again by; "" if that is not known.
        native: its number in the engine in C++, -1 if that does not know it, and None before it is asked; likewise.

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
    kernel2: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]] | None = None
    name: str = ""
    params: tuple[Any, ...] = ()
    by_z: "Activation" = field(init=False, repr=False)
    maker: "Callable[..., Activation] | None" = field(default=None, init=False)
    traced: Map = field(init=False, repr=False)
    spelled: str = field(default="", init=False, repr=False)
    native: int | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("f", "df", "d2f", "df_y", "d2f_y", "kernel", "kernel2"):
            given = getattr(self, name)
            if not (callable(given) or (given is None and name not in ("f", "df", "d2f"))):
                raise TypeError(f"expected {name} to be a function of tensors, got {given!r}")
        if not (isinstance(self.name, str) and self.name.isprintable()):
            raise ValueError(f"expected a name that can be printed, got {self.name!r}")
        if (self.df_y is None) != (self.d2f_y is None):
            raise ValueError("expected both of df_y and d2f_y, or neither: f″ would be taken of the wrong variable")
        object.__setattr__(self, "traced", partial(traced, self.f, self.df))
        by_y: dict[str, Any] = dict.fromkeys(("df_y", "d2f_y", "kernel", "kernel2"))
        object.__setattr__(self, "by_z", self if self.df_y is None else replace(self, **by_y))

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
