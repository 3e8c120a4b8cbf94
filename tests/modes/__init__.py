"""Every way PyTorch has of asking for a derivative, as data."""

from manual_mlp import activations
from modes.classes import CLASSES
from modes.compiled import COMPILE
from modes.functorch import FUNC
from modes.mode import Mode
from modes.precision import AUTOCAST
from modes.reverse import DUAL, FUNCTIONAL, REVERSE
from modes.tools import LAYOUT, TOOLS

GROUPS: dict[str, list[Mode]] = {
    "Reverse mode": REVERSE,
    "torch.autograd.functional": FUNCTIONAL,
    "Dual numbers (torch.autograd.forward_ad)": DUAL,
    "torch.func": FUNC,
    "torch.compile, torch.export, ONNX": COMPILE,
    "Tensor subclasses, function modes, DTensor": CLASSES,
    "Around the layer": TOOLS,
    "Layouts, in-place changes, tensors without data": LAYOUT,
    "Autocast": AUTOCAST,
}
# What the suite runs every mode on: two that keep y, two that keep z.
FEW = "relu", "tanh", "gelu", "silu"
# What is compiled first, and then asked in every mode that compiles nothing itself; and what --quick compiles.
COLUMNS = (
    "Linear",
    "Dense",
    "MLP",
    "dense_squared_error",
    "dense_squared_error, 2 rows at once",
    "linear_cross_entropy",
    "linear_cross_entropy, 2 rows at once",
    "linear_cross_entropy of each row, smoothed and weighted, 2 rows at once",
    "linear_cross_entropy of probabilities, 2 rows at once",
    "linear_cross_entropy with softcap, z_loss, row_weight, 2 rows at once",
    "linear_binary_cross_entropy, 2 rows at once",
)
MODES = {mode.name: mode for modes in GROUPS.values() for mode in modes}

# Where ours raises and may: by mode, the activations, and the message. docs/limits.md says so too.
LIMITS: dict[str, tuple[tuple[str, ...], str]] = {
    "compile, then create_graph": (activations.names(), "does not currently support double backward"),
    "in-place change of the output": (("leaky_relu", "relu6"), "modified by an inplace operation"),
}
