"""Modules that hold parameters and call the functions: no formula lives here."""

import math
import operator
from collections.abc import Iterable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling
from torch.nn import init

from manual_mlp.activations import IDENTITY, Activation, get
from manual_mlp.checks import check_rows, check_tensor, network_fits
from manual_mlp.dropout import Mask, draw_seed, drop
from manual_mlp.engines import native
from manual_mlp.formulas.layer import Layer
from manual_mlp.layer import compiled, dense
from manual_mlp.network import natively, network
from manual_mlp.precision import autocasting
from manual_mlp.sequential import Block, has_forward_of, is_as_written, linear_over, read, refuse_changed, write
from manual_mlp.transforms import called_as_it_is, caller, has_class, modules_are_watched, traced

ActivationLike: TypeAlias = str | nn.Module | Activation | None


class Linear(nn.Linear):
    """Replace ``nn.Linear``: the same parameters and the same answers, with gradients written by hand.

    Shape:
        - Input: :math:`(*, D_{in})`
        - Output: :math:`(*, D_{out})`

    Example::

        layer = Linear(784, 128)
        layer.load_state_dict(torch.nn.Linear(784, 128).state_dict())
        assert layer(torch.randn(64, 784)).shape == (64, 128)
    """

    def forward(self, input: Tensor) -> Tensor:
        if is_dynamo_compiling():
            return compiled(input, self.weight, self.bias, IDENTITY)
        return dense(input, self.weight, self.bias, IDENTITY)


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

    Example::

        layer = Dense(784, 128, "gelu")  # nn.Linear(784, 128) and nn.GELU() in one
        layer.load_state_dict(torch.nn.Linear(784, 128).state_dict())
        assert layer(torch.randn(64, 784)).shape == (64, 128)
    """

    weight: Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: ActivationLike = None,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = check_size("in_features", in_features)
        self.out_features = check_size("out_features", out_features)
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
        if is_dynamo_compiling():
            return compiled(input, self.weight, self.bias, self.activation)
        return dense(input, self.weight, self.bias, self.activation)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"activation={self.activation}, bias={self.bias is not None}"
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

    Example::

        mlp = MLP([784, 512, 256, 10], "relu", dropout=0.2)
        logits = mlp(torch.randn(64, 784))
        torch.nn.functional.cross_entropy(logits, torch.randint(10, (64,))).backward()
        assert mlp.layers[0].weight.grad.shape == (512, 784)
    """

    tile_rows: int | None = None

    def __init__(
        self,
        sizes: Iterable[int],
        activation: ActivationLike = "relu",
        output_activation: ActivationLike = None,
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
        if is_dynamo_compiling():
            y = input
            for layer, p in zip(self.layers, (*self.dropout, 0.0), strict=False):
                y = layer(y)
                if p:
                    y = F.dropout(y, p, self.training)
            return y
        check_rows("tile_rows", self.tile_rows)
        if native.doors is not None and not traced():
            layers = self.chain()
            whole = None if layers is None else natively(layers, input, self.tile_rows)
            if whole is not None:
                return whole
        check_tensor("input", input)
        who, seed = caller(input), None
        if self.training and any(self.dropout) and who in ("eager", "torch") and not traced():
            seed = draw_seed(input.device)
        if who == "eager":
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
        if not (has_forward_of(self, MLP) and is_as_written(Dense)) or modules_are_watched():
            return None
        found = []
        # Three times as quick as to ask a module for each of these.
        layers = vars(vars(self)["_modules"]["layers"])["_modules"].values()
        for layer, p in zip(layers, (*self.dropout, 0.0), strict=True):
            if type(layer) is not Dense or not called_as_it_is(layer):
                return None
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

        Example::

            theirs = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
            assert MLP.from_sequential(theirs).layers[0].weight is theirs[0].weight
        """
        blocks = read(sequential, (nn.Linear, Linear))
        widths = [block.linear.in_features for block in blocks[:1]] + [block.linear.out_features for block in blocks]
        mlp = cls(widths, None, dropout=[block.dropout for block in blocks[:-1]], device="meta")
        for layer, block in zip(mlp.layers, blocks, strict=True):
            assert isinstance(layer, Dense)
            layer.weight, layer.bias, layer.activation = block.linear.weight, block.linear.bias, block.activation
        return mlp.train(sequential.training)

    def to_sequential(self) -> nn.Sequential:
        """Build ``nn.Sequential(nn.Linear, activation, Dropout, …)`` from torch's own layers, over the same parameters.

        Raises:
            TypeError: a layer was replaced, or a module has hooks or a forward of its own.

        Example::

            mlp = MLP([4, 8, 3], "tanh")
            assert isinstance(mlp.to_sequential()[1], torch.nn.Tanh)
        """
        refuse_changed("the whole", self)
        if not has_forward_of(self, MLP):
            raise TypeError(f"expected the forward of MLP itself, got that of {type(self).__name__}")
        blocks = []
        for name, (layer, p) in enumerate(zip(self.layers, (*self.dropout, 0.0), strict=True)):
            refuse_changed(name, layer)
            if type(layer) is not Dense:
                raise TypeError(f"expected layer {name} to be Dense, got {type(layer).__name__}")
            blocks.append(Block(linear_over(layer.weight, layer.bias), layer.activation, p))
        return write(blocks).train(self.training)

    def extra_repr(self) -> str:
        told = {"dropout": self.dropout if any(self.dropout) else None, "tile_rows": self.tile_rows}
        return ", ".join(f"{name}={value}" for name, value in told.items() if value is not None)


def check_size(name: str, size: int) -> int:
    """Return a size as an int; raise TypeError if it is none, and ValueError if it is negative."""
    try:
        size = operator.index(size)
    except TypeError:
        raise TypeError(f"expected {name} to be an int, got {size!r}") from None
    if size < 0:
        raise ValueError(f"expected {name} >= 0, got {size}")
    return size
