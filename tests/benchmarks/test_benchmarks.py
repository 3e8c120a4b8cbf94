import ast
import gc
import json
import re
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import command, harness, layers, machine, memory, second_order
from benchmarks import dense as dense_command
from benchmarks import output as output_command
from benchmarks.__main__ import main
from manual_mlp import dense
from manual_mlp.losses import CrossEntropy

N, D_IN, D_OUT = 5, 7, 4
FLOAT = 4  # bytes


def leaves(*, input_grad: bool = True) -> dict[str, Tensor]:
    tensors, _ = dense_command.Case(N, D_IN, D_OUT, input_grad).tensors(torch.device("cpu"), torch.float32)
    return tensors


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut every wait, and keep torch's global settings as they were."""
    monkeypatch.setattr(harness, "BLOCK_SECONDS", 1e-5)
    monkeypatch.setattr(harness, "WARMUP_SECONDS", 0.0)
    monkeypatch.setattr(harness, "MIN_ROUNDS", 3)
    fixed = {"gflops": 1.0, "copy_gbs": 1.0, "empty_call_us": 1.0}
    monkeypatch.setattr(machine, "ceilings", lambda device, dtype, threads: fixed)
    monkeypatch.setattr(machine, "MALLOCS", {"default": machine._tuning(dict(machine.os.environ))})
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


BRIEF = ["--seconds", "0.001", "--threads", "1", "--malloc", "default", "--device", "cpu", "--case", "5x7x4"]


def test_percentile_is_linear_between_neighbours():
    samples = torch.arange(11, dtype=torch.float64)[torch.randperm(11)]
    assert [harness.percentile(samples, p) for p in (20, 50, 80, 25)] == pytest.approx([2, 5, 8, 2.5])


def test_paired_ratio_cancels_drift_that_both_share():
    drift = torch.linspace(1, 10, 101, dtype=torch.float64)
    assert harness.paired_ratio(3 * drift, 2 * drift) == pytest.approx((1.5, 1.5, 1.5))
    assert harness.paired_difference(drift, drift + 4) == pytest.approx((4, 4, 4))


def test_bootstrap_interval_has_the_width_that_theory_gives_a_median():
    samples = torch.randn(400, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    value, low, high = harness.bootstrap_median(samples)
    # A normal median's standard error is sqrt(π/2)/√n.
    assert high - low == pytest.approx(2 * 1.96 * (torch.pi / 2 / 400) ** 0.5, rel=0.35)
    assert low < value < high
    assert value == samples.quantile(0.5).item()


def test_bootstrap_interval_covers_the_true_median_about_95_times_in_100():
    draw = torch.Generator().manual_seed(2)
    intervals = [
        harness.bootstrap_median(torch.randn(31, dtype=torch.float64, generator=draw), 200) for _ in range(200)
    ]
    assert 0.89 <= sum(low <= 0 <= high for _, low, high in intervals) / 200 <= 0.99


def test_summary_gives_times_in_microseconds_and_the_ratio_baseline_over_provider():
    rounds = torch.linspace(1e-3, 2e-3, 21, dtype=torch.float64)
    summary = harness.summarise(harness.Timing({"torch": rounds, "ours": rounds / 2}, number=1), "torch")
    assert summary["ours"]["median_us"] == pytest.approx(750)
    assert (summary["ours"]["p20_us"], summary["ours"]["p80_us"]) == pytest.approx((600, 900))
    assert summary["ours"]["ratio"] == pytest.approx([2, 2, 2])
    assert summary["ours"]["extra_us"][0] == pytest.approx(-750)
    assert summary["torch"]["ratio"] == [1, 1, 1]


@pytest.mark.usefixtures("brief")
def test_every_provider_has_its_turn_in_every_round_in_changing_order(monkeypatch):
    turns: list[str] = []
    steps = {name: lambda name=name: turns.append(name) for name in "abc"}
    monkeypatch.setattr(harness, "now", lambda: 1e-6 * len(turns))  # a call takes a µs
    timing = harness.time_rounds(steps, seconds=0.01)
    assert timing.number == 16
    assert timing.seconds["a"].tolist() == pytest.approx([1e-6] * 209)
    calls = turns[-timing.number * 3 * len(timing.seconds["a"]) :: timing.number]
    rounds = ["".join(calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert len(rounds) >= harness.MIN_ROUNDS
    assert {"".join(sorted(turn)) for turn in rounds} == {"abc"}
    assert len(set(rounds)) > 1


def test_autorange_doubles_until_a_block_is_long_enough(monkeypatch):
    monkeypatch.setattr(harness, "time_block", lambda step, number: 4e-6)
    number = harness.autorange(lambda: None)
    assert number * 4e-6 >= harness.BLOCK_SECONDS > number * 2e-6
    assert number & (number - 1) == 0


def test_a_block_runs_without_the_collector_and_restores_it():
    seen = []
    harness.time_block(lambda: seen.append(gc.isenabled()), 3)
    assert seen == [False] * 3
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("layer", "kept"),
    [
        (lambda h, w, b: F.linear(h, w, b), {"input": N * D_IN, "weight": D_OUT * D_IN}),
        (
            lambda h, w, b: torch.relu(F.linear(h, w, b)),
            {"input": N * D_IN, "weight": D_OUT * D_IN, "output": N * D_OUT},
        ),
        (lambda h, w, b: F.gelu(F.linear(h, w, b)), {"input": N * D_IN, "weight": D_OUT * D_IN, "other": N * D_OUT}),
        (lambda h, w, b: h * h, {"input": N * D_IN}),
        (lambda h, w, b: b.exp(), {"output": D_OUT}),
        (lambda h, w, b: h[0] * b.new_ones(D_IN), {"other": D_IN}),
        (lambda h, w, b: w[0] * w[1], {"weight": D_OUT * D_IN}),
    ],
    ids=["linear", "linear-relu", "linear-gelu", "same-twice", "exp", "constant", "view-counts-whole"],
)
def test_kept_bytes_are_exact(layer, kept):
    counts = memory.kept_bytes(layer, leaves())
    assert {name: size for name, size in counts.items() if size and name != "total"} == {
        name: FLOAT * size for name, size in kept.items()
    }
    assert counts["total"] == FLOAT * sum(kept.values())


def test_tensors_hung_on_the_context_are_counted_too():
    class Hoarder(Function):
        @staticmethod
        def forward(ctx, h):
            ctx.hoard = {"copies": [h.clone()]}
            return h * 2

        @staticmethod
        def backward(ctx, dy):
            return dy * 2

    counts = memory.kept_bytes(lambda h, w, b: torch.relu(Hoarder.apply(h)), leaves())
    assert counts["attributes"] == FLOAT * N * D_IN
    assert counts["total"] == counts["output"] == FLOAT * N * D_IN


def test_peak_bytes_are_those_of_output_gradients_and_temporaries():
    tensors = {"h": torch.randn(300, 7, requires_grad=True)}
    step = harness.training_step(torch.neg, tensors, torch.ones(300, 7))
    assert memory.peak_bytes(step, tensors.values(), torch.device("cpu")) == 2 * FLOAT * 300 * 7


@pytest.mark.parametrize("input_grad", [True, False])
@pytest.mark.parametrize(
    ("activation", "beyond"),
    [
        ("relu", {"output": N * D_OUT}),
        ("tanh", {"output": N * D_OUT}),
        ("sigmoid", {"output": N * D_OUT}),
        ("gelu", {"other": N * D_OUT}),
        ("silu", {"other": N * D_OUT}),
        ("identity", {}),
        (None, {}),
    ],
)
def test_dense_keeps_input_weight_and_at_most_one_tensor_more(activation, beyond, input_grad):
    counts = memory.kept_bytes(lambda h, w, b: dense(h, w, b, activation), leaves(input_grad=input_grad))
    attributes = counts.pop("attributes")
    del counts["total"]
    expected = {"input": N * D_IN} | ({"weight": D_OUT * D_IN} if input_grad else {}) | beyond
    assert {name: size for name, size in counts.items() if size} == {k: FLOAT * v for k, v in expected.items()}
    assert attributes <= FLOAT * D_OUT, "no more than a reference to the bias"


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [(2.9e-6, False), (3.1e-6, True), (float("inf"), True), (float("nan"), True)],
)
def test_wrong_means_more_than_twice_the_baselines_error_plus_1e_6(ours, verdict):
    assert harness.wrong({"output": 0.0, "dw": ours}, {"output": 0.0, "dw": 1e-6}) is verdict


def test_a_missing_misshapen_or_nan_result_has_infinite_error():
    truth = torch.zeros(3, dtype=torch.float64)
    for result in (None, torch.zeros(1, 3), torch.tensor([0.0, float("nan"), 0.0])):
        assert harness.largest_error(result, truth) == float("inf")
    assert harness.largest_error(torch.tensor([0.0, -0.5, 0.25]), truth) == 0.5


@pytest.mark.parametrize("activation", layers.ACTIVATIONS)
@pytest.mark.parametrize("provider", layers.PROVIDERS)
def test_every_provider_computes_every_activation(provider, activation):
    tensors, cotangent = dense_command.Case(N, D_IN, D_OUT).tensors(torch.device("cpu"), torch.float64)
    reference = harness.gradients(layers.PROVIDERS["torch"](activation), tensors, cotangent)
    results = harness.gradients(layers.PROVIDERS[provider](activation), tensors, cotangent)
    assert max(harness.errors(results, reference).values()) < 1e-12


@pytest.mark.usefixtures("brief")
def test_a_wrong_gradient_is_marked_and_fails_the_command(monkeypatch, capsys):
    class WithoutSlope(Function):
        @staticmethod
        def forward(ctx, h, w, b):
            ctx.save_for_backward(h, w)
            return torch.relu(F.linear(h, w, b))

        @staticmethod
        def backward(ctx, dy):
            h, w = ctx.saved_tensors
            return dy @ w, dy.mT @ h, dy.sum(0)

    monkeypatch.setitem(layers.PROVIDERS, "manual_mlp", lambda activation: WithoutSlope.apply)
    assert main(["dense", *BRIEF, "--activation", "relu"]) == 1
    assert "WRONG manual_mlp" in capsys.readouterr().out


BRIEF_SECOND = ["second-order", *BRIEF[:-2], "--width", "5"]


@pytest.mark.usefixtures("brief")
def test_every_second_order_row_is_right_and_documented(tmp_path, capsys):
    assert main([*BRIEF_SECOND, "--dtype", "float64", "--json", "--results", str(tmp_path)]) == 0
    (path,) = tmp_path.iterdir()
    rows = json.loads(path.read_text())["second-order"]["rows"]
    assert [row["case"] for row in rows] == list(second_order.KINDS)
    documented = set(re.findall(r"\w+", second_order.__doc__))
    for row in rows:
        assert row.keys() <= documented
        assert row["providers"].keys() == set(second_order.PROVIDERS)
        for provider in row["providers"].values():
            assert provider.keys() <= documented
            assert max(provider["error"].values()) < 1e-9
            # A derivative by the input does not feel the last bias.
            names = {"output", "dinput", *(f"d{kind}{k}" for kind in ("weight", "bias") for k in range(5))}
            unfelt = {"hvp": {"dinput"}, "pinn": {"dbias4"}, "poisson": {"dbias4"}}.get(row["case"], set())
            assert provider["error"].keys() == names - unfelt


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("kind", ["pinn", "hvp"])
def test_a_second_derivative_that_forgets_z_is_marked_and_fails_the_command(monkeypatch, capsys, kind):
    class ConstantZ(Function):
        @staticmethod
        def forward(ctx, h, w, b):
            z = F.linear(h, w, b)
            ctx.slope = 1 - torch.tanh(z) ** 2
            ctx.save_for_backward(h, w)
            return torch.tanh(z)

        @staticmethod
        def backward(ctx, dy):
            h, w = ctx.saved_tensors
            delta = dy * ctx.slope
            return delta @ w, delta.mT @ h, delta.sum(0)

    def wrong(kind):
        return lambda h, w, b, last: F.linear(h, w, b) if last else ConstantZ.apply(h, w, b)

    monkeypatch.setitem(second_order.PROVIDERS, "manual_mlp", wrong)
    assert main([*BRIEF_SECOND, "--kind", kind]) == 1
    assert "WRONG manual_mlp" in capsys.readouterr().out


@pytest.mark.usefixtures("brief")
def test_json_has_the_documented_fields(tmp_path, capsys):
    assert main(["dense", *BRIEF, "5x7x4-first", "--json", "--results", str(tmp_path)]) == 0
    (path,) = tmp_path.iterdir()
    assert re.fullmatch(r"[a-z0-9-]+-\d{4}-\d\d-\d\d\.json", path.name)
    run = json.loads(path.read_text())["dense"]
    assert run.keys() == {"date", "machine", "settings", "load", "ceilings", "rows"}
    assert {"device", "cpu", "cores", "python", "torch"} <= run["machine"].keys()
    assert run["ceilings"]["default"]["1"].keys() == {"gflops", "copy_gbs", "empty_call_us"}
    assert [(row["case"], row["activation"]) for row in run["rows"]] == [
        (case, f) for case in ("5×7→4", "5×7→4 first") for f in ("relu", "gelu")
    ]
    documented = set(re.findall(r"\w+", dense_command.__doc__))
    for row in run["rows"]:
        assert row["providers"].keys() == set(layers.PROVIDERS)
        assert row.keys() <= documented
        for provider in row["providers"].values():
            assert provider.keys() <= documented
            assert provider["wrong"] is False
            assert provider["error"].keys() == {"output", "dweight", "dbias"} | (
                {"dinput"} if row["input_grad"] else set()
            )
            assert provider["kept_bytes"].keys() == {
                "input",
                "weight",
                "bias",
                "output",
                "other",
                "total",
                "attributes",
            }
            assert len(provider["ratio"]) == len(provider["extra_us"]) == 3
    text = path.read_text()
    assert str(tmp_path) not in text
    assert machine.platform.node() not in text
    assert "torch/ours" in capsys.readouterr().out


CPU = torch.device("cpu")
OUTPUT = ["output", *BRIEF[:-1]]
OUTPUT_CASES = ["5x7x4-bias-float64", "600x8x500", "600x8x500-bfloat16", "600x8x500-saturated"]


def output_rows(folder: Path, *cases: str, status: int = 0) -> list[dict]:
    assert main([*OUTPUT, *cases, "--json", "--results", str(folder)]) == status
    (path,) = folder.iterdir()
    return json.loads(path.read_text())["output"]["rows"]


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the providers that are not torch's or ours, which need not run here."""
    for name in ("Liger-Kernel", "cut-cross-entropy"):
        monkeypatch.delitem(output_command.PROVIDERS, name)


@pytest.mark.usefixtures("brief", "alone")
def test_every_output_row_is_right_and_documented(tmp_path, capsys):
    rows = output_rows(tmp_path, *OUTPUT_CASES)
    assert [row["case"] for row in rows] == [str(output_command.read_case(text)) for text in OUTPUT_CASES]
    documented = set(re.findall(r"\w+", output_command.__doc__))
    for row in rows:
        assert row.keys() <= documented
        assert {"torch", "manual_mlp"} <= row["providers"].keys() <= set(output_command.PROVIDERS)
        for provider in row["providers"].values():
            assert provider.keys() <= documented
            assert provider["error"].keys() == {"output", "dinput", "dweight"} | ({"dbias"} if row["bias"] else set())
            assert ("peak_bytes" in provider) is not row["saturated"]
            assert ("over_usual" in provider) is row["saturated"]
        assert max(row["providers"]["manual_mlp"]["error"].values()) < {"float64": 1e-12, "float32": 1e-4}.get(
            row["dtype"], 0.1
        )
        assert ("chunk_errors" in row) is (row["dtype"] == "bfloat16")
    assert rows[0]["least_bytes"] == 8 * (5 * 7 + 4 * 7 + 4)
    assert rows[2]["least_bytes"] == 2 * 8 * (600 + 500) + 4 * 8 * 500
    printed = capsys.readouterr().out
    assert "torch/ours [95 %]" in printed
    assert "left out" not in printed or not hasattr(torch.nn, "LinearCrossEntropyOptions")


@pytest.mark.usefixtures("brief", "alone")
def test_a_saturated_row_is_compared_with_the_usual_one_of_its_kind(tmp_path, capsys):
    usual, saturated = output_rows(tmp_path, "5x7x4", "5x7x4-saturated")
    for name, provider in saturated["providers"].items():
        expected = provider["median_us"] / usual["providers"][name]["median_us"]
        assert provider["over_usual"] == pytest.approx(expected, rel=1e-3)
    assert f"{saturated['providers']['torch']['over_usual']:.1f}x" in capsys.readouterr().out


@pytest.mark.usefixtures("brief", "alone")
def test_the_usual_rows_of_another_dtype_are_no_twin(tmp_path, capsys):
    _, saturated = output_rows(tmp_path, "5x7x4-float64", "5x7x4-saturated")
    assert "over_usual" not in saturated["providers"]["torch"]
    assert "saturated logits" not in capsys.readouterr().out


@pytest.mark.usefixtures("brief", "alone")
def test_products_in_too_few_digits_are_marked_and_fail_the_command(monkeypatch, capsys):
    def rounded(chunk_rows=None):
        def loss(h, w, target, b):
            return F.cross_entropy(F.linear(h, w.bfloat16().float(), b), target)

        return loss

    monkeypatch.setitem(output_command.PROVIDERS, "manual_mlp", rounded)
    assert main([*OUTPUT, "600x8x500"]) == 1
    assert "WRONG manual_mlp" in capsys.readouterr().out


@pytest.mark.usefixtures("brief", "alone")
def test_another_provider_that_is_wrong_is_marked_but_does_not_fail_the_command(monkeypatch, capsys):
    monkeypatch.setitem(
        output_command.PROVIDERS, "torch chunked", lambda: lambda h, w, y, b: 1.01 * F.cross_entropy(h @ w.mT, y)
    )
    assert main([*OUTPUT, "5x7x4"]) == 0
    assert "WRONG torch chunked" in capsys.readouterr().out


@pytest.mark.usefixtures("brief")
def test_a_provider_that_does_not_run_is_left_out_in_one_line(monkeypatch, tmp_path, capsys):
    def no_package():
        raise ImportError("no such package")

    def no_driver():
        def loss(h, w, target, b):
            if h.dtype == torch.float32:
                raise RuntimeError("0 active drivers\nand more")
            return F.cross_entropy(F.linear(h, w, b), target)

        return loss

    monkeypatch.setitem(output_command.PROVIDERS, "torch chunked", no_package)
    monkeypatch.setitem(output_command.PROVIDERS, "Liger-Kernel", no_driver)
    monkeypatch.delitem(output_command.PROVIDERS, "cut-cross-entropy")
    single, double = output_rows(tmp_path, "5x7x4", "5x7x4-float64")
    assert list(single["providers"]) == ["torch", "manual_mlp"]
    assert list(double["providers"]) == ["torch", "manual_mlp", "Liger-Kernel"]
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert line == (
        "left out: torch chunked (no such package); left out of 5×7→4 float32: Liger-Kernel (0 active drivers)"
    )


def test_the_error_of_many_chunks_is_found(monkeypatch):
    def narrow_sum(chunk_rows=None):
        def loss(h, w, target, b):
            # Each chunk reads its own w, so that the chunks' shares of dw are added in w's dtype.
            parts = zip(h.split(chunk_rows), target.split(chunk_rows), strict=True)
            losses = [F.cross_entropy(F.linear(a, w).float(), t, reduction="sum") for a, t in parts]
            return sum(losses) / len(h)

        return loss

    monkeypatch.setitem(output_command.PROVIDERS, "torch chunked", narrow_sum)
    names = ("torch", "manual_mlp", "torch chunked")
    tensors, target = output_command.Case(256, 16, 64, "bfloat16").tensors(CPU)
    layer = output_command.layers_of(names, target)["torch"]
    exact = harness.gradients(layer, harness.in_float64(tensors), torch.ones((), dtype=torch.float64))["dweight"]
    found = output_command.chunk_errors(names, tensors, target, exact)
    ours, narrow = ([found[name][str(count)] for count in output_command.CHUNK_COUNTS] for name in names[1:])
    assert max(ours) <= 1.05 * min(ours)
    assert narrow[-1] > 2 * narrow[0]
    table = output_command.chunks_table([{"case": "a case", "chunk_errors": found}])
    assert [line.split()[:3] for line in table.splitlines()[1:]] == [["a", "case", name] for name in ("ours", "torch")]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [(5, 7, 4), (600, 8, 3000)])
def test_the_rows_of_a_chunk_are_those_that_ours_takes(monkeypatch, size, dtype):
    seen, values = [], CrossEntropy.values

    def spy(self, z, *rest):
        seen.append(len(z))
        return values(self, z, *rest)

    monkeypatch.setattr(CrossEntropy, "values", spy)
    case = output_command.Case(*size, dtype)
    tensors, target = case.tensors(CPU)
    harness.gradients(output_command.layers_of(["manual_mlp"], target)["manual_mlp"], tensors, torch.ones(()))
    assert max(seen, default=0) == output_command.chosen_rows(case, CPU)


def test_bare_products_are_the_three_of_a_step():
    case = output_command.Case(5, 7, 4)
    tensors, _ = case.tensors(CPU)
    with FlopCounterMode(display=False) as counter:
        output_command.bare_products(tensors)()
    assert counter.get_total_flops() == case.flops
    assert output_command.bare_us(tensors, 0.001) > 0


def test_rows_of_every_malloc_share_the_checks_of_the_first():
    rows = [
        {"providers": {"torch": {"median_us": 1.0, "error": {"output": 2.0}}}},
        {"providers": {"torch": {"median_us": 3.0}}},
    ]
    command.share_checks(rows, 2)
    assert rows[1]["providers"]["torch"] == {"median_us": 3.0, "error": {"output": 2.0}}


def test_saving_keeps_what_other_commands_wrote(tmp_path):
    options = command.parser("dense", "").parse_args(["--results", str(tmp_path)])
    options.device = torch.device("cpu")
    command.save("dense", {"rows": [1]}, options)
    path = command.save("train", {"rows": [2]}, options)
    command.save("dense", {"rows": [3]}, options)
    assert json.loads(path.read_text()) == {"dense": {"rows": [3]}, "train": {"rows": [2]}}


def test_layout_is_json_to_five_digits_with_a_row_on_one_line():
    run = {"dense": {"empty": [], "ceilings": {"default": {1: 0.1234567}}, "rows": [{"a": [1, 2.0]}, {"b": None}]}}
    text = command.layout(run)
    expected = {"empty": [], "ceilings": {"default": {"1": 0.12346}}, "rows": [{"a": [1, 2.0]}, {"b": None}]}
    assert json.loads(text) == {"dense": expected}
    assert '{"a": [1, 2.0]},\n' in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [],
            "expected a command, one of dense, second-order, transforms, output, network, dropout, train, report, "
            "got nothing",
        ),
        (
            ["dens"],
            "expected a command, one of dense, second-order, transforms, output, network, dropout, train, report, "
            "got 'dens'",
        ),
        (["dense", "--threads", "0"], "expected a whole number from 1 up, got '0'"),
        (["dense", "--device", "cpu", "--threads", "100000"], "expected at most"),
        (["dense", "--seconds", "nan"], "expected a positive number of seconds, got 'nan'"),
        (["dense", "--case", "64x784"], "expected NxD_INxD_OUT or NxD_INxD_OUT-first, got '64x784'"),
        (["output", "--case", "64x784"], "expected NxDxV[-bias][-DTYPE][-saturated], got '64x784'"),
        (["output", "--case", "5x7x4-int8"], "expected NxDxV[-bias][-DTYPE][-saturated], got '5x7x4-int8'"),
        (["output", "--case", "5x0x4"], "expected NxDxV[-bias][-DTYPE][-saturated], got '5x0x4'"),
        (["output", "--dtype", "float64"], "unrecognized arguments: --dtype float64"),
        (["dense", "--activation", "rleu"], "invalid choice: 'rleu'"),
        (["dense", "--dtype", "int8"], "invalid choice: 'int8'"),
        (["dense", "--quik"], "unrecognized arguments: --quik"),
        (["dense", "--json", "--results", __file__], "expected a directory"),
        (["network", "--case", "64-64"], "expected SIZESxROWS[-ACTIVATION][-LOSS][-DTYPE]"),
        (["network", "--case", "64x32"], "got '64x32'"),
        (["network", "--case", "64-64x32-rleu"], "got '64-64x32-rleu'"),
        (["network", "--providers", "jax"], "invalid choice: 'jax'"),
        (["network", "--studies", "tiles"], "invalid choice: 'tiles'"),
        (["network", "--dtype", "float64"], "unrecognized arguments: --dtype float64"),
        (["train", "--optimiser", "Lion"], "invalid choice: 'Lion'"),
        (["transforms", "--transform", "vjp"], "invalid choice: 'vjp'"),
        (["report", "--results", "/nowhere"], "--results: expected a folder with *.json, got /nowhere"),
        (["report", "--readme", "/nowhere"], "--readme: expected a file, got /nowhere"),
        (["report", "--from", __file__, "--print"], "expected results as JSON, got"),
        (["report", "--chek"], "unrecognized arguments: --chek"),
    ],
)
def test_bad_arguments_give_one_clear_line_and_status_2(arguments, message, capsys):
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err


@pytest.mark.parametrize(
    ("load_", "others", "threads", "busy"), [(1.9, 0.0, 2, False), (9e9, 0.0, 2, True), (0.0, 9e9, 1, True)]
)
def test_busy_is_load_beyond_the_runs_own(load_, others, threads, busy):
    assert machine.busy(load_, others, threads) is busy


def test_a_slug_names_the_cpu_and_its_cores(monkeypatch):
    monkeypatch.setattr(machine, "cpu_name", lambda: "Intel(R) Xeon(R) Processor @ 2.70GHz")
    monkeypatch.setattr(machine, "cores", lambda: 2)
    assert machine.slug(torch.device("cpu")) == "intel-xeon-2-cores"


def test_the_tuned_malloc_is_set_in_a_fresh_process():
    if "tuned" not in machine.mallocs():
        pytest.skip("needs glibc")
    before = dict(machine.os.environ)
    seen = machine.under_malloc("tuned", machine.os.getenv, "MALLOC_MMAP_MAX_")
    assert seen == "0"
    assert dict(machine.os.environ) == before


def test_the_package_runs_with_torch_and_manual_mlp_alone():
    imported = set()
    # Two commands train on MNIST, which torchvision reads.
    paths = set(Path(command.__file__).parent.rglob("*.py"))
    for path in (path for path in paths if path.stem not in ("time_to", "literature")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {name.name.split(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
    assert imported - set(sys.stdlib_module_names) <= {"benchmarks", "manual_mlp", "torch"}


def test_dropout_is_timed_alone_and_in_a_step(capsys):
    arguments = ["dropout", "--rows", "8", "--width", "16", "--sizes", "9", "7", "3", "--seconds", "0.01"]
    assert main([*arguments, "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    for row in ("forward", "backward", "step", "backprop"):
        assert row in printed
    with pytest.raises(SystemExit, match="2"):
        main(["dropout", "--sizes", "9"])
    assert "--sizes: expected two or more, got [9]" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["dropout", "--p", "1"])
    assert "--p: expected a share between 0 and 1, got 1.0" in capsys.readouterr().err
