import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import dense, harness, left_out, machine, memory, network, output, second_order, shares, transforms
from benchmarks.__main__ import main
from benchmarks.network import cases, goals, providers, studies
from benchmarks.network.cases import Case, read_case
from briefly import BRIEF
from manual_mlp import MLP, backprop

CPU, META = torch.device("cpu"), torch.device("meta")
ODD = Case((5, 7, 3, 6, 4), 9, "tanh", "squared_error", "float64")
CHEAP = ["torch", "manual_mlp", providers.AUTOGRAD, "checkpoint", "checkpoint segments"]
COMPILER = shutil.which("g++") or shutil.which("clang++")


pytestmark = pytest.mark.usefixtures("brief")


@pytest.fixture
def run(tmp_path):
    """Run the command briefly; return its JSON."""

    def of(*arguments: str, status: int = 0) -> dict:
        given = ["network", *BRIEF[:-2], "--json", "--results", str(tmp_path), *arguments]
        assert main(given) == status
        (path,) = tmp_path.glob("*.json")
        assert machine.platform.node() not in path.read_text()
        return json.loads(path.read_text())["network"]

    return of


@pytest.mark.parametrize("name", [name for name in providers.PROVIDERS if "compile" not in name])
@pytest.mark.parametrize("loss", cases.LOSSES)
def test_every_provider_computes_the_loss_and_its_gradients(name, loss):
    if name == "cuda graph" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    problem = ODD._replace(loss=loss).problem(torch.device("cuda") if name == "cuda graph" else CPU)
    expected = by_definition(problem)
    found = providers.outcome(providers.step_of(name, problem), problem)
    assert found.keys() == expected.keys()
    for part, value in expected.items():
        torch.testing.assert_close(found[part], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("loss", cases.LOSSES)
def test_a_capture_is_asked_of_a_problem_on_the_gpu(monkeypatch, loss):
    asked, problem = [], Case.problem
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(Case, "problem", lambda self, device: asked.append(device) or problem(self, META))
    with pytest.raises(RuntimeError, match=r"^it needs CUDA$"):
        test_every_provider_computes_the_loss_and_its_gradients("cuda graph", loss)
    assert asked == [torch.device("cuda")]


def by_definition(problem):
    """Return the loss and its gradients, and nothing of their graph: a capture could not run its nodes."""
    output = problem.sequential()(problem.input)
    of = {
        "squared_error": lambda: 0.5 * (output - problem.target).square().mean(),
        "cross_entropy": lambda: -output.log_softmax(1).gather(1, problem.target[:, None]).mean(),
        "binary_cross_entropy": lambda: F.binary_cross_entropy(output.sigmoid(), problem.target),
    }
    loss = of[problem.case.loss]()
    gradients = torch.autograd.grad(loss, list(problem.mlp.parameters()))
    names = [f"d{parameter}" for parameter in problem.parameters()]
    return {"loss": loss.detach(), **dict(zip(names, gradients, strict=True))}


@pytest.mark.parametrize("case", [*cases.CASES, ODD, *(ODD._replace(loss=loss) for loss in cases.LOSSES)])
def test_a_problem_lies_on_the_device_that_is_asked_for(case):
    problem = case.problem(META)
    for part in (problem, problem.double()):
        assert {t.device for t in (part.input, part.target, *part.mlp.parameters())} == {META}
    step = providers.by_autograd(problem, providers.GRAPHS["torch"](problem))
    assert {t.device for t in providers.outcome(step, problem).values()} == {META}


@pytest.mark.parametrize(
    "made",
    [
        dense.Case(9, 5, 7).tensors(META, torch.float32),
        output.Case(9, 5, 7, bias=True).tensors(META),
        second_order.Case("sdf-sine", 5).tensors(META, torch.float32),
        transforms.Case("grad", (5, 7), "tanh").tensors(META, torch.float32),
    ],
    ids=["dense", "output", "second_order", "transforms"],
)
def test_tensors_of_the_other_commands_do_too(made):
    tensors = [t for part in tree_leaves(made) for t in (part.parameters() if isinstance(part, MLP) else [part])]
    assert {t.device for t in tensors} == {META}


def test_a_step_on_a_cpu_is_not_captured():
    with pytest.raises(RuntimeError, match=r"^it needs CUDA$"):
        providers.step_of("cuda graph", ODD.problem(CPU))


@pytest.mark.skipif(COMPILER is None, reason="inductor needs a C++ compiler")
def test_the_compiled_provider_computes_the_same():
    problem = ODD.problem(CPU)
    exact = providers.outcome(providers.step_of("torch", problem), problem)
    steps, missing = providers.steps_of(["torch", "manual_mlp", providers.AUTOGRAD, "compile"], problem)
    assert missing == {}
    assert max(harness.errors(providers.outcome(steps["compile"], problem), exact).values()) < 1e-12
    torch.compiler.reset()


def test_a_step_begins_without_the_gradients_of_the_one_before():
    problem = ODD.problem(CPU)
    for name in CHEAP:
        step = providers.step_of(name, problem)
        once, twice = (providers.outcome(step, problem) for _ in range(2))
        assert all(torch.equal(once[key], twice[key]) for key in once), name


def test_in_bfloat16_the_products_are_narrow_but_for_the_float32_peer(device):
    case = Case((5, 7, 4), 9, "relu", "cross_entropy", "bfloat16")
    problem = case.problem(torch.device(device))
    exact = providers.outcome(providers.step_of("torch", problem.double()), problem.double())
    names = ("torch", "manual_mlp", providers.FLOAT32, *(["cuda graph"] if device == "cuda" else []))
    found = {name: providers.outcome(providers.step_of(name, problem), problem)["loss"].double() for name in names}
    assert abs(found[providers.FLOAT32] - exact["loss"]) < 1e-6 < abs(found["torch"] - exact["loss"]) < 0.1
    for name in found.keys() - {"torch", providers.FLOAT32}:
        assert abs(found[name] - exact["loss"]) < 0.1
    if device == "cuda":
        assert abs(found["cuda graph"] - exact["loss"]) > 1e-6


def test_flops_are_those_of_the_products():
    problem = ODD.problem(CPU)
    with FlopCounterMode(display=False) as counter:
        providers.step_of("torch", problem)()
    assert counter.get_total_flops() == ODD.flops


@pytest.mark.parametrize("case", [*cases.CASES, ODD, Case((3, 4), 5, "silu", "binary_cross_entropy")])
def test_a_case_is_read_as_it_is_typed(case):
    typed = f"{'-'.join(map(str, case.sizes))}x{case.rows}-{case.activation}-{case.loss}-{case.dtype}"
    assert read_case(typed) == case


def test_a_case_is_written_as_the_issue_has_it():
    assert str(cases.FIELD) == "32→128×3→1, 65536 rows, relu"
    assert str(cases.BFLOAT16) == "784→512→10, 128 rows, relu, bfloat16"
    assert read_case("64-64x8-gelu") == Case((64, 64), 8, "gelu")


def test_every_row_is_right_and_documented(run, capsys):
    found = run("--case", "5-7-3-6-4x9-tanh-float64", "5-7-4x9-cross_entropy", "--providers", *CHEAP)
    documented = set(re.findall(r"\w+", network.__doc__))
    assert found.keys() == {"command", "date", "machine", "settings", "load", "ceilings", "rows", "goals"}
    assert [row["case"] for row in found["rows"]] == ["5→7→3→6→4, 9 rows, tanh, float64", "5→7→4, 9 rows, relu"]
    for row in found["rows"]:
        assert row.keys() <= documented
        assert (row["providers"].keys() == set(CHEAP)) is (len(row["sizes"]) == 5)
        layers = len(row["sizes"]) - 1
        for name, provider in row["providers"].items():
            assert provider.keys() <= documented
            assert provider["wrong"] is False
            assert provider["error"].keys() == {
                "loss",
                *(f"d{p}{k}" for p in ("weight", "bias") for k in range(layers)),
            }
            assert provider["relative_error"] < (1e-12 if row["dtype"] == "float64" else 1e-5)
            assert ("kept_bytes" in provider) is (name != "manual_mlp")
            assert ("ratios" in provider) is (name in ("manual_mlp", providers.AUTOGRAD))
            assert sum(provider.get("shares", {"all": 1}).values()) == pytest.approx(1, abs=1e-4)
        assert "compile" not in row["providers"]["manual_mlp"]["ratios"]
        assert {"torch", providers.AUTOGRAD} <= row["providers"]["manual_mlp"]["ratios"].keys()
    printed = capsys.readouterr().out
    assert "torch/ours [95 %]" in printed
    assert "left out" not in printed


@pytest.mark.parametrize("provider", ["manual_mlp", providers.AUTOGRAD])
def test_a_wrong_gradient_is_marked_and_fails_the_command(run, monkeypatch, capsys, provider):
    right = providers.step_of

    def without_last_bias(name, problem):
        step = right(name, problem)

        def wrong():
            loss = step()
            if name == provider:
                problem.mlp.layers[-1].bias.grad.mul_(1.001)
            return loss

        return wrong

    monkeypatch.setattr(providers, "step_of", without_last_bias)
    found = run("--case", "5-7-4x9", "--providers", providers.AUTOGRAD, status=1)
    assert [name for name, p in found["rows"][0]["providers"].items() if p["wrong"]] == [provider]
    assert f"WRONG {provider}" in capsys.readouterr().out


def test_a_provider_that_does_not_run_is_left_out_in_one_line(run, monkeypatch, capsys):
    def no_compiler(problem):
        if problem.case.activation == "relu":
            raise RuntimeError("no C++ compiler\nand more")
        return providers.GRAPHS["torch"](problem)

    monkeypatch.setitem(providers.GRAPHS, "compile", no_compiler)
    some, all_ = run("--case", "5-7-4x9", "5-7-4x9-gelu", "--providers", "compile", "checkpoint")["rows"]
    assert list(some["providers"]) == ["torch", "manual_mlp", "checkpoint"]
    assert list(all_["providers"]) == ["torch", "manual_mlp", "compile", "checkpoint"]
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert line == "left out of 5→7→4, 9 rows, relu: compile (no C++ compiler)"


def test_ours_that_does_not_run_is_an_error():
    def broken():
        raise ValueError("of ours")

    with pytest.raises(ValueError, match="of ours"):
        left_out.runnable({"manual_mlp": lambda: broken}, ("manual_mlp",))


def row_of(case: Case, malloc: str, threads: int, ratio: float) -> dict:
    ours = {
        "ratios": {peer: [ratio, ratio - 0.1, ratio + 0.1] for peer in ("torch", "compile")},
        "shares": {"python": 1},
    }
    peers = {name: {} for name in ("torch", "compile")}
    providers_ = {**peers, "manual_mlp": ours, providers.AUTOGRAD: ours}
    return {"case": str(case), "malloc": malloc, "threads": threads, "providers": providers_}


def test_a_goal_in_time_is_reached_from_its_value_on_and_a_missed_one_says_where_the_time_goes():
    rows = [row_of(cases.NARROW, "tuned", threads, 1.7) for threads in (1, 2)]
    found = [goal for goal in goals.of_times(rows, amx=True) if goal["ours"] == "manual_mlp"]
    assert [(g["threads"], g["at_least"], g["reached"]) for g in found] == [(2, 1.6, True), (1, 1.9, False)]
    assert ["limit" in goal for goal in found] == [False, True]
    assert found[1]["limit"] == {"python": 1}
    assert found[1]["value"] == pytest.approx([1.7, 1.6, 1.8])
    assert [goals.describe(goal)[-2] for goal in found] == ["reached", "missed"]
    assert json.loads(json.dumps(found)) == found


def test_the_goals_are_those_of_the_table():
    eager = {
        (g.case, g.malloc, g.threads): g.at_least for g in goals.GOALS if (g.ours, g.against) == ("manual_mlp", "torch")
    }
    assert eager[cases.NARROW, "default", 2] == 2.8
    assert eager[cases.NARROW_GELU, "tuned", 1] == 1.6
    assert eager[cases.WIDE, "tuned", 1] == 1.0
    assert len(eager) == 3 * 8
    assert {goal.case for goal in goals.GOALS} <= set(cases.CASES)


def test_goals_in_bytes_compare_resident_and_kept_bytes():
    by_batch = [
        {
            "case": "large",
            "rows": rows,
            "providers": {"torch": {"resident_bytes": 210}, "manual_mlp": {"resident_bytes": b}},
        }
        for rows, b in ((1 << 10, 210), (1 << 17, 10), (1 << 20, 20))
    ]
    kept = [{"case": "gelu", "providers": {"torch": 100, providers.AUTOGRAD: ours}} for ours in (50, 60)]
    found = goals.of_bytes(by_batch, kept)
    assert [goal["reached"] for goal in found] == [True, False, True, False]
    assert found[0]["value"] == [21.0]


@pytest.mark.parametrize("rows", [9, 5000])
def test_the_tile_of_a_row_is_the_one_that_ours_takes(monkeypatch, rows):
    module, taken = sys.modules[backprop.__module__], []
    # Natively, all rows at once are a tiling that is None.
    for name in ("tiling_of", "shared_tiling"):
        choose = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *given, choose=choose, **named: taken.append(choose(*given, **named)) or taken[-1]
        )
    problem = Case((64, 64, 64, 64), rows).problem(CPU)
    providers.by_hand(problem)()
    assert [tiling.rows if tiling else rows for tiling in taken] == [studies.chosen_rows(problem)]


def test_the_studies_are_documented_and_their_fields_too(run, monkeypatch):
    monkeypatch.setattr(studies, "QUICK_BATCHES", (64,))
    monkeypatch.setattr(studies, "KEPT", (Case((6, 6, 6, 6), 32, "gelu"),))
    monkeypatch.setattr(studies, "resident", lambda name, case, options: case.rows)
    found = run("--quick", "--case", "5-7-4x9", "--providers", providers.AUTOGRAD, "--studies", *network.STUDIES)
    documented = set(re.findall(r"\w+", network.__doc__))
    assert {"by_batch", "kept", "goals"} <= found.keys()
    for row in found["by_batch"]:
        assert row.keys() <= documented
        assert row["rows"] == row["providers"]["torch"]["resident_bytes"] == 64
    (kept,) = found["kept"]
    # Eager keeps z and y of two hidden layers, ours z alone.
    assert kept["providers"] == {"torch": 4 * 32 * 6 * 4, providers.AUTOGRAD: 2 * 32 * 6 * 4}
    assert (
        {"goal", "case", "ours", "against", "at_least", "value", "reached"} <= found["goals"][-1].keys() <= documented
    )


def hold(bytes_: int) -> tuple:
    return (lambda: None), (lambda: torch.ones(bytes_, dtype=torch.uint8)[0])


def test_resident_bytes_are_those_a_step_adds_in_a_fresh_process():
    found = machine.fresh("default", memory.resident_bytes, hold, 50_000_000)
    assert found["resident_bytes"] == pytest.approx(50e6, rel=0.3)
    assert found["seconds"] > 0


def test_a_huge_step_has_its_input_as_its_target():
    few, whole = studies.huge_step(Case((4, 4, 4), 1 << 17), CPU, 1)
    torch.testing.assert_close(few(), whole(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("step", "products", "tensors"),
    [
        (lambda a: (torch.mm(a, a), torch.addmm(a, a, a)), 0.2, 0.0),
        (lambda a: torch.exp(a), 0.0, 0.1),
        (lambda a: torch.bmm(a[None], a[None]).exp().exp(), 0.1, 0.2),
        (lambda a: sum(range(1000)), 0.0, 0.0),
    ],
    ids=["products", "entrywise", "both", "python"],
)
@pytest.mark.parametrize("seconds", [10e-6, 1.0], ids=["quick", "slow"])
def test_shares_see_the_products_and_the_python(monkeypatch, step, products, tensors, seconds):
    micros = {f"aten::{name}": 1e5 * seconds for name in ("mm", "addmm", "bmm", "exp")}  # a tenth of the step each

    def profile():
        profiler = memory.profile()
        averages = profiler.key_averages
        profiler.key_averages = lambda: [
            SimpleNamespace(key=event.key, self_cpu_time_total=event.count * micros.get(event.key, 0.0))
            for event in averages()
        ]
        return profiler

    monkeypatch.setattr(shares, "time_block", lambda step, number: harness.Block(seconds, seconds))
    monkeypatch.setattr(shares, "autorange", lambda step: 2)
    monkeypatch.setattr(shares, "profile", profile)
    a = torch.randn(3, 3)
    expected = {"products": products, "tensors": tensors, "python": 1 - products - tensors}
    assert shares.shares(lambda: step(a)) == pytest.approx(expected)


def test_no_file_of_the_benchmarks_is_long():
    for path in Path(network.__file__).parents[1].rglob("*.py"):
        if path.name != "output.py":
            assert len(path.read_text().splitlines()) <= 300, path.name
