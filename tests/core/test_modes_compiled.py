"""What is compiled first answers every mode as what is not, or raises as torch's own does; and the grid says so."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import grid
from modes import COLUMNS, MODES
from modes.compiled import judge_compiled
from modes.judge import Verdict
from modes.subjects import SUBJECTS, chain

ASKED = (
    "backward",
    "every frozen subset of inputs",
    "create_graph, second order",
    "checkpoint, non-reentrant",
    "no_grad",
    "expanded input",
    "autocast, backward inside, bf16",
)
KINDS = (
    "MLP",
    "Dense",
    "dense_squared_error, 2 rows at once",
    "linear_cross_entropy, 2 rows at once",
    "linear_cross_entropy with softcap, z_loss, row_weight, 2 rows at once",
    "linear_binary_cross_entropy, 2 rows at once",
)


@pytest.mark.product
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ASKED)
def test_what_is_compiled_first_gives_the_truth(mode: str, kind: str, device: str) -> None:
    ours, torchs = judge_compiled(MODES[mode], SUBJECTS[kind]("silu"), device)
    assert (ours.outcome, torchs.outcome) == ("equal", "equal"), (ours, torchs)


def composite(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return torch.tanh(F.linear(h, w, b))


def refusing(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        torch._dynamo.graph_break()
    return composite(h, w, b)


def changed(f: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """Compute something else, but only while it is compiled."""
    return lambda *t: f(composite(*t)) if torch.compiler.is_compiling() else composite(*t)


@pytest.mark.parametrize(
    ("ours", "torchs", "outcomes"),
    [
        (composite, composite, ("equal", "equal")),
        (changed(Tensor.detach), composite, ("detached", "equal")),
        (changed(lambda y: 1.01 * y), composite, ("WRONG", "equal")),
        (changed(lambda y: 1.01 * y), changed(lambda y: 1.01 * y), ("WRONG", "WRONG")),
        (refusing, composite, ("raises", "equal")),
        (composite, refusing, ("equal", "raises")),
        (refusing, refusing, ("equal", "equal")),
    ],
)
def test_the_judge_sees_what_only_the_compiler_is_given(ours, torchs, outcomes) -> None:
    subject = replace(SUBJECTS["dense"]("tanh"), ours=ours, torchs=torchs, truth=chain("tanh"))
    verdicts = judge_compiled(MODES["backward"], subject)
    assert tuple(verdict.outcome for verdict in verdicts) == outcomes
    if ours is torchs is refusing:
        assert verdicts[0].detail.startswith("both raise")


def test_the_columns_are_subjects_and_the_losses_in_chunks_are_among_them() -> None:
    assert set(KINDS) <= set(COLUMNS) <= set(SUBJECTS)
    columns = [subject.name for subject in grid.subjects(quick=True) if grid.is_compiled(subject)]
    assert sorted(columns) == sorted(COLUMNS)


def test_a_compiled_column_stands_beside_modes_that_compile_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "subjects", lambda quick: [SUBJECTS["Linear"](""), SUBJECTS["dense"]("tanh")])
    monkeypatch.setattr(grid, "fused", dict)
    rows = {name: grid.fill(name, True, "cpu") for name in ("backward", "compile, no_grad")}
    assert list(rows["backward"]) == [grid.OURS, grid.TORCHS, grid.COMPILED_OURS, grid.COMPILED_TORCHS]
    assert [case.subject for case in rows["backward"][grid.COMPILED_OURS]] == ["Linear"]
    assert {case.verdict for row in rows.values() for cases in row.values() for case in cases} == {Verdict("equal")}
    lines = grid.page(rows, True, "cpu").splitlines()
    assert "| backward | equal | equal | equal | equal |" in lines
    assert "| compile, no_grad | equal | equal | – | – |" in lines
