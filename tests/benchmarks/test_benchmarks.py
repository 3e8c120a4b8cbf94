"""The harness of the benchmarks: its statistics, its counts of bytes, its errors."""

import gc
import json
import re

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import Function

from benchmarks import dense as dense_command
from benchmarks import harness, layers, memory, second_order
from benchmarks.__main__ import main
from briefly import BRIEF, BRIEF_SECOND, D_IN, D_OUT, FLOAT, N, leaves
from manual_mlp import dense


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
    monkeypatch.setattr(harness, "time_block", lambda step, number: harness.Block(4e-6, 4e-6))
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
