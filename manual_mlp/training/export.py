"""A trained network that takes pixels as they are: for Python, and in files for other programs."""

from __future__ import annotations

import argparse
import importlib.util
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from manual_mlp.activations import Activation, get
from manual_mlp.activations.registry import Entry, entry_of
from manual_mlp.modules import MLP, Dense
from manual_mlp.nearest import did_you_mean
from manual_mlp.training import checkpoint, files
from manual_mlp.training.errors import InputError, first_line

_DESCRIPTION = """\
Write the network of a run into a file that needs no manual_mlp. It takes pixels in [0, 1], float32 (N, height * width)
with any N, and returns a score for each class, (N, classes). The normalisation is part of its first layer; there is no
dropout.

  onnx          model.onnx, for onnxruntime: input "pixels", output "scores"
  torch-export  model.pt2, for torch.export.load
  sequential    model.pt, for torch.load: "code", Python text that builds an nn.Sequential, and its "state_dict"

A file of that name is overwritten once the new one is complete. The exit status is 2 if there is no run, or the file
cannot be written."""


def load_run(folder: Path | str, best: bool = False) -> MLP:
    """Read the network of a run back, on the CPU, with the normalisation of its images built into its first layer.

    Args:
        folder: of a run of train.py.
        best: whether to take the weights that were best on the validation images, not the last ones.

    Shape:
        - Input of the network: pixels in [0, 1], :math:`(*, height * width)`.
        - Output: a score for each class, :math:`(*, C)`.

    Raises:
        ValueError: there is no run, or its weights are missing or damaged.
        ImportError: the extra ``train`` is not installed.

    Example::

        model = load_run("runs/first")
        classes = model(images.flatten(1) / 255).argmax(1)  # images (N, 28, 28), from 0 to 255
    """
    folder = Path(folder)
    checkpoint.load_settings(folder)  # whether there is a run at all
    if importlib.util.find_spec("safetensors") is None:
        raise ImportError("expected the packages for training, got no safetensors: pip install '.[train]'")
    model = checkpoint.load_model(folder, best)
    mean, std = checkpoint.normalisation(folder)
    first = model.layers[0]
    assert isinstance(first, Dense)
    assert first.bias is not None
    with torch.no_grad():
        # (h - mean) / std wᵀ + b = h (w / std)ᵀ + b - mean Σ w / std, rounded once.
        weight = first.weight.double() / std
        first.bias.copy_(first.bias.double() - mean * weight.sum(1))
        first.weight.copy_(weight)
    return model


@dataclass(frozen=True)
class _Format:
    suffix: str
    needs: tuple[str, ...]
    usage: str  # with {path} in it


_FORMATS = {
    "onnx": _Format(
        ".onnx", ("onnx", "onnxscript"), 'onnxruntime.InferenceSession({path}).run(["scores"], {{"pixels": pixels}})'
    ),
    "torch-export": _Format(".pt2", (), "torch.export.load({path}).module()(pixels)"),
    "sequential": _Format(
        ".pt", (), 'torch.load({path}) gives "code", which builds the nn.Sequential, and its "state_dict"'
    ),
}


def export(folder: Path, to: str, output: Path | None = None, best: bool = False) -> Path:
    """Write the network of a run, as :func:`load_run` gives it but for dropout, into a file; return its path.

    Args:
        to: "onnx", "torch-export" or "sequential".
        output: the file; None: `model` with the format's suffix, in the folder of the run.

    Raises:
        InputError: the format is unknown, there is no run, it is damaged, or the file cannot be written.
        ImportError: a package that the format needs is not installed.
    """
    if to not in _FORMATS:
        raise InputError(f"expected --to among {', '.join(_FORMATS)}, got {to}{did_you_mean(to, _FORMATS)}")
    form = _FORMATS[to]
    path = folder / f"model{form.suffix}" if output is None else output
    if path.suffix != form.suffix:
        # Weights and settings of a run have other suffixes: no slip overwrites them.
        raise InputError(f"expected --output to end in {form.suffix} for --to {to}, got {path}")
    missing = [package for package in form.needs if importlib.util.find_spec(package) is None]
    if missing:
        raise ImportError(
            f"expected the packages for --to {to}, got no {', '.join(missing)}: pip install {' '.join(form.needs)}"
        )
    model = load_run(folder, best)
    model.dropout = (0.0,) * len(model.dropout)
    network, settings = model.to_sequential(), checkpoint.load_settings(folder)
    content = {"onnx": _onnx, "torch-export": _torch_export, "sequential": _sequential}[to]
    written = content(network, settings["sizes"][0], str(settings.get("dataset")))
    try:
        files.write(path, written)
    except OSError as error:
        raise InputError(f"expected an output file that can be written, got {path}: {error.strerror}") from None
    return path


def _own(module: nn.Module) -> Activation | None:
    """Return the activation of a module that is none of torch's."""
    return None if type(module).__module__.startswith("torch.") else get(module)


def _unwritten(network: nn.Sequential) -> list[str]:
    """List the activations whose text is not known: a user's own, registered without it or not at all."""
    entries = {repr(f): entry_of(f) for f in map(_own, network) if f is not None}
    return [shown for shown, entry in entries.items() if entry is None or entry.source is None]


@contextmanager
def _refusing(network: nn.Sequential, to: str) -> Iterator[None]:
    """Say in a line that a user's own activation does not let itself be written."""
    try:
        yield
    except Exception as error:
        own = _unwritten(network)
        if not own:
            raise
        cause = error.__cause__ or error  # of the ONNX exporter's own, which tells what to do next
        raise InputError(
            f"expected activations that --to {to} can write, got {', '.join(own)}: {first_line(cause)}"
        ) from error


def _onnx(network: nn.Sequential, inputs: int, dataset: str) -> bytes:
    with _refusing(network, "onnx"), warnings.catch_warnings():
        # torch 2.11 calls what it has itself deprecated.
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
        program = torch.onnx.export(
            network,
            (torch.zeros(2, inputs),),
            dynamo=True,
            verbose=False,
            input_names=["pixels"],
            output_names=["scores"],
            dynamic_shapes=({0: torch.export.Dim("N")},),
        )
    assert program is not None
    program.model.metadata_props.update(dataset=dataset, pixels="in [0, 1], row by row", scores="one for each class")
    return bytes(program.model_proto.SerializeToString())


def _torch_export(network: nn.Sequential, inputs: int, dataset: str) -> bytes:
    buffer = io.BytesIO()
    with _refusing(network, "torch-export"):
        program = torch.export.export(network, (torch.zeros(2, inputs),), dynamic_shapes=({0: torch.export.Dim("N")},))
    torch.export.save(program, buffer, extra_files={"dataset": dataset})
    return buffer.getvalue()


def _sequential(network: nn.Sequential, inputs: int, dataset: str) -> bytes:
    buffer = io.BytesIO()
    torch.save({"code": _code(network), "state_dict": dict(network.state_dict()), "dataset": dataset}, buffer)
    return buffer.getvalue()


def _code(network: nn.Sequential) -> str:
    """Write the Python text that builds a network, as `model`.

    Raises:
        InputError: the text of an activation is not known.
    """
    unknown = _unwritten(network)
    if unknown:
        raise InputError(
            f"expected activations of manual_mlp itself, or registered with their source, for --to sequential, "
            f"got {', '.join(unknown)}, whose text is not known: take --to onnx or --to torch-export"
        )
    classes: dict[str, str] = {}
    lines = []
    for module in network:
        activation = _own(module)
        if activation is None:
            lines.append(f"    nn.{module},\n")
        else:
            entry = entry_of(activation)
            assert entry is not None
            name = "".join(word[:1].upper() + word[1:] for word in activation.name.split("_"))
            while classes.setdefault(name, _class(name, entry)) != _class(name, entry):
                name += "_"  # of another with nearly the same name
            lines.append(f"    {name}({', '.join(map(repr, activation.params))}),\n")
    head = "import torch\nfrom torch import nn\n\n\n" if classes else "from torch import nn\n\n"
    built = f"# Takes pixels in [0, 1], (N, {network[0].in_features}).\nmodel = nn.Sequential(\n{''.join(lines)})\n"
    return head + "".join(classes.values()) + built


def _class(name: str, entry: Entry) -> str:
    """Write the class of an activation as a module: its arguments are attributes."""
    text = f"class {name}(nn.Module):\n"
    if entry.parameters:
        kept = "".join(f"        self.{name} = {name}\n" for name in entry.parameters)
        text += f"    def __init__(self, {', '.join(entry.parameters)}):\n        super().__init__()\n{kept}\n"
    given = "".join(f"        {name} = self.{name}\n" for name in entry.parameters)
    return f"{text}    def forward(self, z):\n{given}        return {entry.source}\n\n\n"


def add_command(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command and its options to those of ``python -m manual_mlp``."""
    parser = commands.add_parser(
        "export",
        help="write a trained network for onnxruntime, torch.export or plain torch",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("run_folder", type=Path, metavar="RUN", help="a folder written by train.py")
    add("--to", required=True, metavar="FORMAT", help=f"one of {', '.join(_FORMATS)}")
    add("--output", type=Path, metavar="FILE", help="default: model.onnx, model.pt2 or model.pt in RUN")
    add("--best", action="store_true", help="the weights that were best on the validation images, not the last ones")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the file, say in one line how to use it, and return the exit status.

    Raises:
        ValueError, ImportError: bad options, in words for a user.
    """
    path = export(options.run_folder, options.to, options.output, options.best)
    usage = _FORMATS[options.to].usage.format(path=repr(str(path)))
    print(f"wrote {path}, which takes pixels in [0, 1]: {usage}")
    return 0
