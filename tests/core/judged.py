"""What a call answers at every size: a value or an error."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from manual_mlp.sweep.tiling import Tiling

N, D, V = 5, 3, 4
Outcome = tuple[str, Any]


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.linspace(-2, 3, torch.Size(shape).numel()).sin().mul(3).view(shape).to(dtype)


def outcome(run: Callable[[], Tensor]) -> Outcome:
    try:
        return "value", run()
    # Any exception is an answer.
    except Exception as error:
        return "error", error


def at_every_size(f: Callable[..., Tensor]) -> dict[str, Outcome]:
    """Ask with few logits, in chunks, in one chunk, and as if there were many logits."""
    found = {f"chunk_rows={rows}": outcome(lambda rows=rows: f(chunk_rows=rows)) for rows in (None, 1, 2, 99)}
    many = mock.patch("manual_mlp.head.plan.few_logits", return_value=False)
    with many, mock.patch("manual_mlp.head.plan.tiling_of_loss", return_value=Tiling(2)):
        found["large"] = outcome(f)
    return found


def assert_alike(found: dict[str, Outcome], theirs: Outcome, stricter: bool) -> None:
    """See that every size answers alike, and as torch does; ``stricter`` where torch's answer is no answer."""
    first = found["chunk_rows=None"]
    for size, (kind, answer) in found.items():
        assert kind == first[0], f"{size}: {answer!r}, small: {first[1]!r}"
        if kind == "error":
            assert (type(answer), str(answer)) == (type(first[1]), str(first[1])), size
            continue
        assert answer.dtype == first[1].dtype, size
        tolerance = 1e-5 if answer.dtype in (torch.float32, torch.float64) else 4e-2
        torch.testing.assert_close(answer, first[1], rtol=tolerance, atol=tolerance, equal_nan=True, msg=size)
    if stricter or theirs[0] == "error":
        assert first[0] == "error", f"{first[1]!r}, where torch has {theirs[1]!r}"
    else:
        assert first[0] == "value", f"{first[1]!r}, where torch has {theirs[1]!r}"
        assert first[1].shape == theirs[1].shape
        tolerance = 1e-5 if first[1].dtype in (torch.float32, torch.float64) else 4e-2
        torch.testing.assert_close(
            first[1].double(), theirs[1].double(), rtol=tolerance, atol=tolerance, equal_nan=True
        )


CLASSES = torch.tensor([1, 0, 3, 2, 1])
