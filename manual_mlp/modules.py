"""Modules that hold parameters and call the functions: no formula lives here."""

import math
import operator
from collections.abc import Iterable
from typing import Any, SupportsIndex, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import init

from manual_mlp.activations import IDENTITY, Activation, get, to_module
from manual_mlp.checks import (
    check_class_weight,
    check_options,
    check_rows,
    check_smoothing,
    check_tensor,
    ignored_class,
    network_fits,
)
from manual_mlp.dropout import Mask, draw_seed, drop
from manual_mlp.formulas.layer import Layer
from manual_mlp.layer import dense
from manual_mlp.losses import LOSSES, Criterion
from manual_mlp.network import network
from manual_mlp.output import dense_squared_error, linear_cross_entropy, loss_of_output
from manual_mlp.precision import autocasting
from manual_mlp.transforms import called_as_it_is, caller, has_class, has_hooks, modules_are_watched, traced

Known: TypeAlias = str | nn.Module | Activation | None


class Linear(nn.Linear):
    """Replace ``nn.Linear``: the same parameters and the same answers, with gradients written by hand.

    Shape:
        - Input: :math:`(*, D_{in})`
        - Output: :math:`(*, D_{out})`
    """

    def forward(self, input: Tensor) -> Tensor:
        return dense(input, self.weight, self.bias)


class Dense(nn.Module):
    """Apply a linear map and an activation in one layer.

    Names, shapes and initialisation of the parameters are those of ``nn.Linear``, whose state_dict it
    loads. It is not an ``nn.Linear``: tools that rewrite those (LoRA, quantizers) would lose the activation.

    Args:
        in_features: D_in.
        out_features: D_out.
        activation: a name among :func:`manual_mlp.activations.names`, an ``nn`` module, an
            :class:`~manual_mlp.Activation`, or None for the identity.
        bias: whether to add a learnt bias.

    Shape:
        - Input: :math:`(*, D_{in})`
        - Output: :math:`(*, D_{out})`

    Raises:
        ValueError: a size is negative, or the activation is not known.
        TypeError: a size is not an int, or the activation is of a wrong type.
    """

    weight: Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: Known = None,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = _check_size("in_features", in_features)
        self.out_features = _check_size("out_features", out_features)
        self.activation = get(activation)
        self.weight = nn.Parameter(torch.empty(self.out_features, self.in_features, device=device, dtype=dtype))
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(self.out_features, device=device, dtype=dtype)) if bias else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters as ``nn.Linear`` does: uniform within ±1/√D_in."""
        bound = 1 / math.sqrt(self.in_features) if self.in_features else 0.0
        if self.weight.numel():
            init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        return dense(input, self.weight, self.bias, self.activation)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"activation={self.activation}, bias={self.bias is not None}"
        )


class DenseSquaredError(Dense):
    """Apply a dense layer and compare its output with a target: the textbook's J = ½Σ(Y − Y*)².

    Args:
        in_features, out_features, activation, bias: as in :class:`Dense`, whose state_dict it has.
        reduction, chunk_rows: as in :func:`manual_mlp.dense_squared_error`.

    Shape:
        - Input: :math:`(*, D_{in})`
        - Target: :math:`(*, D_{out})`
        - Output: scalar; :math:`(*, D_{out})` if ``reduction`` is ``"none"``.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: Known = None,
        bias: bool = True,
        *,
        reduction: str = "sum",
        chunk_rows: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, activation, bias, device, dtype)
        check_options(reduction, chunk_rows)
        self.reduction, self.chunk_rows = reduction, chunk_rows

    def forward(self, input: Tensor, target: Tensor) -> Tensor:  # type: ignore[override]
        return dense_squared_error(
            input, self.weight, self.bias, target, self.activation, self.reduction, self.chunk_rows
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, reduction={self.reduction!r}, chunk_rows={self.chunk_rows}"


class LinearCrossEntropyLoss(nn.Module):
    """Hold the linear layer whose softmax is compared with classes: logits exist a few rows at a time.

    It takes torch's place: the same arguments (``chunk_rows`` for ``options``, no ``out_features``) and the same
    state_dict, with ``linear.weight``, ``linear.bias`` and, if it was given, ``weight``. Where ``linear`` was replaced,
    hooked or parametrised (an adapter, say), it is called as it is, and all logits exist at once.

    Args:
        in_features: D.
        num_classes: V.
        bias: whether the layer adds a learnt bias.
        reduction, weight, ignore_index, label_smoothing, chunk_rows: as in :func:`manual_mlp.linear_cross_entropy`;
            None for ignore_index is -100, as for torch.

    Shape:
        - Input: :math:`(*, D)`
        - Target: :math:`(*)`, or :math:`(*, V)` for probabilities
        - Output: scalar; :math:`(*)` if ``reduction`` is ``"none"``.

    Raises:
        ValueError: a size is negative, or an option is out of range.
        TypeError: a size is not an int.
    """

    weight: Tensor | None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        reduction: str = "mean",
        weight: Tensor | None = None,
        ignore_index: SupportsIndex | None = None,
        label_smoothing: float = 0.0,
        chunk_rows: int | None = None,
    ) -> None:
        super().__init__()
        check_options(reduction, chunk_rows)
        check_smoothing(label_smoothing)
        check_class_weight(weight, num_classes)
        self.linear = Linear(
            _check_size("in_features", in_features), _check_size("num_classes", num_classes), bias, device, dtype
        )
        self.register_buffer("weight", weight)
        self.ignore_index = ignored_class(ignore_index)
        self.reduction, self.label_smoothing = reduction, label_smoothing
        self.chunk_rows = chunk_rows

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        linear, reduction = self.linear, self.reduction
        options: dict[str, Any] = {
            "weight": self.weight,
            "ignore_index": self.ignore_index,
            "label_smoothing": self.label_smoothing,
        }
        if not (_is_linear(linear) and called_as_it_is(linear)) or modules_are_watched():
            return loss_of_output(linear(input), Criterion(LOSSES["cross_entropy"], target, reduction, options))
        options |= {"linear_bias": linear.bias, "reduction": reduction, "chunk_rows": self.chunk_rows}
        return linear_cross_entropy(input, linear.weight, target, **options)

    def extra_repr(self) -> str:
        return (
            f"reduction={self.reduction!r}, ignore_index={self.ignore_index}, "
            f"label_smoothing={self.label_smoothing}, chunk_rows={self.chunk_rows}"
        )


class MLP(nn.Module):
    """Chain :class:`Dense` layers, ``layers.0``, ``layers.1``, …

    Args:
        sizes: D_in, the hidden widths, D_out.
        activation: of the hidden layers, as in :class:`Dense`.
        output_activation: of the last layer.
        bias: whether the layers add a learnt bias.
        dropout: probability of zeroing an entry of a hidden layer's output in training; one for all
            hidden layers, or one for each.
        tile_rows: the rows to compute at once, as in :func:`manual_mlp.backprop`. With several tiles nothing is kept
            for backward but the input, and each tile is run forward once more.

    Shape:
        - Input: :math:`(*, D_{in})`
        - Output: :math:`(*, D_{out})`

    Raises:
        ValueError: fewer than two sizes, a negative size, a wrong number of dropouts, a dropout
            outside [0, 1], or an unknown activation.
        TypeError: a size is not an int, or an activation is of a wrong type.
    """

    tile_rows: int | None = None

    def __init__(
        self,
        sizes: Iterable[int],
        activation: Known = "relu",
        output_activation: Known = None,
        bias: bool = True,
        dropout: float | Iterable[float] = 0.0,
        tile_rows: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_rows("tile_rows", tile_rows)
        if not isinstance(sizes, Iterable):
            raise TypeError(f"expected sizes (D_in, ..., D_out), got {sizes!r}")
        sizes = list(sizes)
        if len(sizes) < 2:
            raise ValueError(f"expected sizes (D_in, ..., D_out), got {sizes}")
        hidden = len(sizes) - 2
        given = list(dropout) if isinstance(dropout, Iterable) else [dropout]
        each = given if isinstance(dropout, Iterable) else given * hidden
        if len(each) != hidden or not all(0 <= p <= 1 for p in given):
            raise ValueError(f"expected a dropout within [0, 1] for each of {hidden} hidden layers, got {dropout}")
        self.dropout, self.tile_rows = tuple(map(float, each)), tile_rows
        activations = [activation] * hidden + [output_activation]
        self.layers = nn.ModuleList(
            Dense(d_in, d_out, activation, bias, device, dtype)
            for d_in, d_out, activation in zip(sizes, sizes[1:], activations, strict=False)
        )

    def forward(self, input: Tensor) -> Tensor:
        check_tensor("input", input)
        who, seed = caller(input), None
        if self.training and any(self.dropout) and who in ("eager", "no grad", "torch") and not traced():
            seed = draw_seed(input.device)
        if who in ("eager", "no grad"):
            layers = None if autocasting(input) else self.chain()
            if layers is not None and network_fits(layers, input):
                whole = network(layers, input, self.tile_rows, seed)
                if whole is not None:
                    return whole
        y = input
        for k, (layer, p) in enumerate(zip(self.layers, (*self.dropout, 0.0), strict=True)):
            y = layer(y)
            if p and self.training:
                y = F.dropout(y, p) if seed is None or has_class(y) else drop(y, Mask(seed, k, p))
        return y

    def chain(self) -> list[Layer] | None:
        """List the layers as one network may compute them; None if a module was replaced, hooked or parametrised."""
        if not (_has_forward_of(self, MLP) and _is_as_written(Dense)) or modules_are_watched():
            return None
        found = []
        for layer, p in zip(self.layers, (*self.dropout, 0.0), strict=True):
            if type(layer) is not Dense or not called_as_it_is(layer):
                return None
            # Three times as quick as to ask the module for each of them.
            parameters = vars(layer)["_parameters"]
            if "weight" not in parameters or "bias" not in parameters:
                return None  # FSDP puts a tensor in their place
            found.append(Layer(parameters["weight"], parameters["bias"], layer.activation, p if self.training else 0.0))
        return found

    @classmethod
    def from_sequential(cls, sequential: nn.Sequential) -> "MLP":
        """Build the MLP of ``nn.Sequential(Linear, activation, Dropout, Linear, …)``, over the same parameters.

        Activations and dropouts may be missing. ``nn.Identity`` and ``nn.Dropout(0)``, which do nothing,
        do not come back in :meth:`to_sequential`.

        Raises:
            TypeError: a module is not one of these, stands where an MLP has none, has hooks or a forward of its own, or
                is not in the training mode of the others.
        """
        if not isinstance(sequential, nn.Sequential):
            raise TypeError(f"expected nn.Sequential, got {type(sequential).__name__}")
        _refuse_changed("the whole", sequential)
        if not _has_forward_of(sequential, nn.Sequential) or not called_as_it_is(sequential):
            raise TypeError(f"expected the forward of nn.Sequential itself, got that of {type(sequential).__name__}")
        if len({module.training for module in sequential.modules()}) > 1:
            raise TypeError("expected all modules in training mode or all in evaluation mode, got both")
        blocks: list[list[nn.Module]] = []
        for name, module in enumerate(sequential):
            _refuse_changed(name, module)
            if _is_linear(module):
                blocks.append([module])
            elif blocks:
                blocks[-1].append(module)
            else:
                raise TypeError(f"expected Linear first, got {name}: {module}")
        parsed = [_parse(block) for block in blocks]
        if parsed and parsed[-1][2]:
            raise TypeError(f"expected no dropout after the last Linear, got {blocks[-1][-1]}")
        linears = [linear for linear, _, _ in parsed]
        widths = [linear.in_features for linear in linears[:1]] + [linear.out_features for linear in linears]
        mlp = cls(widths, None, dropout=[p for _, _, p in parsed[:-1]], device="meta")
        for layer, (linear, activation, _) in zip(mlp.layers, parsed, strict=True):
            assert isinstance(layer, Dense)
            if layer.in_features != linear.in_features:
                raise TypeError(f"expected Linear with in_features={layer.in_features}, got {linear}")
            layer.weight, layer.bias, layer.activation = linear.weight, linear.bias, activation
        return mlp.train(sequential.training)

    def to_sequential(self) -> nn.Sequential:
        """Build ``nn.Sequential(nn.Linear, activation, Dropout, …)`` from torch's own layers, over the same parameters.

        Raises:
            TypeError: a layer was replaced, or a module has hooks or a forward of its own.
        """
        _refuse_changed("the whole", self)
        if not _has_forward_of(self, MLP):
            raise TypeError(f"expected the forward of MLP itself, got that of {type(self).__name__}")
        modules: list[nn.Module] = []
        for name, (layer, p) in enumerate(zip(self.layers, (*self.dropout, 0.0), strict=True)):
            _refuse_changed(name, layer)
            if type(layer) is not Dense:
                raise TypeError(f"expected layer {name} to be Dense, got {type(layer).__name__}")
            linear = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
            linear.weight = layer.weight
            linear.register_parameter("bias", layer.bias)
            modules.append(linear)
            if layer.activation is not IDENTITY:
                modules.append(to_module(layer.activation))
            if p:
                modules.append(nn.Dropout(p))
        return nn.Sequential(*modules).train(self.training)

    def extra_repr(self) -> str:
        told = {"dropout": self.dropout if any(self.dropout) else None, "tile_rows": self.tile_rows}
        return ", ".join(f"{name}={value}" for name, value in told.items() if value is not None)


def _parse(block: list[nn.Module]) -> tuple[nn.Linear, Activation, float]:
    """Read (Linear), (Linear, activation), (Linear, Dropout) or (Linear, activation, Dropout)."""
    linear, *rest = block
    assert isinstance(linear, nn.Linear)
    p = 0.0
    if rest and type(rest[-1]) is nn.Dropout:
        p = rest.pop().p  # type: ignore[assignment]
    module = rest.pop() if rest else None
    activation = get(module)
    if module is not None and not _is_as_written(type(module)):
        raise TypeError(f"expected a module with the forward of its class, got another for {module}")
    if rest:
        raise TypeError(f"expected Linear, an activation and Dropout, in this order, got {nn.Sequential(*block)}")
    return linear, activation, p


def _is_as_written(kind: type[nn.Module]) -> bool:
    """Tell whether nobody put another forward in the place of the one that stands beside a class."""
    return kind.forward.__module__ == kind.__module__


def _has_forward_of(module: nn.Module, kind: type[nn.Module]) -> bool:
    return type(module).forward is kind.forward and _is_as_written(kind)


def _is_linear(module: nn.Module) -> bool:
    return type(module) in (nn.Linear, Linear) and _is_as_written(type(module))


def _refuse_changed(name: int | str, module: nn.Module) -> None:
    if has_hooks(module):
        raise TypeError(f"expected a module without hooks, got hooks on {name}: {module}")
    if "forward" in vars(module):
        raise TypeError(f"expected a module with the forward of its class, got another for {name}: {module}")


def _check_size(name: str, size: int) -> int:
    try:
        size = operator.index(size)
    except TypeError:
        raise TypeError(f"expected {name} to be an int, got {size!r}") from None
    if size < 0:
        raise ValueError(f"expected {name} >= 0, got {size}")
    return size
