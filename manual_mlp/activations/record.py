"""The record of an activation, and the list of those known by name."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any, ParamSpec

from torch import Tensor

Map = Callable[[Tensor], Tensor]
P = ParamSpec("P")


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
        name: shown by ``repr``.
        params: the arguments that made it, shown by ``repr``.
        by_z: the same function, whose layer keeps z in any case.

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
    name: str = "custom"
    params: tuple[Any, ...] = ()
    by_z: "Activation" = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("f", "df", "d2f", "df_y", "d2f_y", "kernel", "kernel_out", "f_out", "kernel2"):
            given = getattr(self, name)
            if not (callable(given) or (given is None and name not in ("f", "df", "d2f"))):
                raise TypeError(f"expected {name} to be a function of tensors, got {given!r}")
        if not (isinstance(self.name, str) and self.name.isprintable()):
            raise ValueError(f"expected a name that can be printed, got {self.name!r}")
        if (self.df_y is None) != (self.d2f_y is None):
            raise ValueError("expected both of df_y and d2f_y, or neither: f″ would be taken of the wrong variable")
        by_y: dict[str, Any] = dict.fromkeys(("df_y", "d2f_y", "kernel", "kernel_out", "kernel2"))
        object.__setattr__(self, "by_z", self if self.df_y is None else replace(self, **by_y))

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(map(repr, self.params))})"

    def made_here(self) -> bool:
        """Tell whether a factory of this package made it."""
        return any(made is self for made in _MADE.values())

    def of_kept(self) -> tuple[Map, Map]:
        """Return f′ as a function of what a layer keeps, y or z, and the derivative of that."""
        if self.df_y is None or self.d2f_y is None:
            return self.df, self.d2f
        return self.df_y, self.d2f_y

    def __reduce__(self) -> Any:
        # Ours is made again by name, so pickle and deepcopy give the one object it is.
        # A user's own is its functions, which pickle by reference.
        if self.made_here():
            return FACTORIES[self.name], self.params
        return super().__reduce__()


FACTORIES: dict[str, Callable[..., Activation]] = {}
_MADE: dict[tuple[str, tuple[Any, ...]], Activation] = {}


def register(make: Callable[P, Activation]) -> Callable[P, Activation]:
    """List a factory under its name, and let equal arguments give the same object."""
    name, signature = make.__name__, inspect.signature(make)

    @wraps(make)
    def factory(*args: P.args, **kwargs: P.kwargs) -> Activation:
        if not kwargs and (name, args) in _MADE:
            return _MADE[name, args]
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        params = tuple(bound.arguments.values())
        if (name, params) not in _MADE:
            _MADE[name, params] = replace(make(*args, **kwargs), name=name, params=params)
        return _MADE[name, params]

    FACTORIES[name] = factory
    return factory
