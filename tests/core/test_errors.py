"""Bad input: what was expected, and what came."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from manual_mlp import MLP, Dense, dense, dense_squared_error
from manual_mlp import linear_binary_cross_entropy as logistic
from manual_mlp import linear_cross_entropy as cross_entropy

H, W, B, T = torch.ones(5, 4), torch.ones(7, 4), torch.ones(7), torch.ones(5, 7)

LAYER = [
    ((torch.ones(32, 10), W, B), ValueError, r"expected input \(\*, 4\) for weight \(7, 4\), got \(32, 10\)"),
    ((torch.ones(()), W, B), ValueError, r"expected input \(\*, 4\) for weight \(7, 4\), got \(\)"),
    ((H, torch.ones(4), None), ValueError, r"expected weight \(D_out, D_in\), got \(4,\)"),
    ((H, torch.ones(1, 7, 4), None), ValueError, r"expected weight \(D_out, D_in\), got \(1, 7, 4\)"),
    ((H, W, torch.ones(1)), ValueError, r"expected bias \(7,\) for weight \(7, 4\), got \(1,\)"),
    ((H, W, torch.ones(1, 7)), ValueError, r"expected bias \(7,\) for weight \(7, 4\), got \(1, 7\)"),
    ((H, W, torch.ones(())), ValueError, r"expected bias \(7,\) for weight \(7, 4\), got \(\)"),
    ((H.double(), W, B), TypeError, "expected one dtype, got input torch.float64, weight torch.float32, bias torch.fl"),
    ((H, W, B.half()), TypeError, "expected one dtype, got .* weight torch.float32, bias torch.float16"),
    ((H.to("meta"), W, B), ValueError, "expected one device, got input meta, weight cpu, bias cpu"),
    ((H, W, B.to("meta")), ValueError, "expected one device, got input cpu, weight cpu, bias meta"),
    ((H.long(), W.long(), B.long()), TypeError, "expected input of a floating-point dtype, got torch.int64"),
    ((H, W.int(), B), TypeError, "expected weight of a floating-point dtype, got torch.int32"),
    ((H.cfloat(), W.cfloat(), None), TypeError, "expected input of a floating-point dtype, got torch.complex64"),
    ((H.to_sparse(), W, B), TypeError, "expected input of layout torch.strided, got torch.sparse_coo"),
    ((torch.zeros(0), W, B), ValueError, r"expected input \(\*, 4\) for weight \(7, 4\), got \(0,\)"),
    ((H, W, B.to_sparse()), TypeError, "expected bias of layout torch.strided, got torch.sparse_coo"),
    (([[1.0] * 4], W, B), TypeError, "expected input to be a tensor, got list"),
    ((H.numpy(), W, B), TypeError, "expected input to be a tensor, got ndarray"),
    ((H, W, 0.5), TypeError, "expected bias to be a tensor, got float"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "error", "message"), LAYER, ids=[m[:60] for _, _, m in LAYER])
@pytest.mark.parametrize(
    "call", [dense, lambda h, w, b: dense_squared_error(h, w, b, T)], ids=["dense", "squared error"]
)
def test_a_layer_refuses_what_does_not_fit(
    call: Callable[..., Tensor], given: tuple[object, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(*given)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_tensors_on_a_cpu_and_a_gpu_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected one device, got input cuda:0, weight cpu, bias cpu"):
        dense(H.cuda(), W, B)


def test_unknown_activations_and_reductions_are_told_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"expected an activation among identity.*got 'rleu'; did you mean relu\?$"):
        dense(H, W, B, "rleu")
    with pytest.raises(ValueError, match=r"expected an activation among identity.*, got 'nonesuch'$"):
        dense(H, W, B, "nonesuch")
    with pytest.raises(TypeError, match=r"expected a name, an nn.Module, an Activation or None, got function"):
        dense(H, W, B, torch.nn.functional.silu)
    with pytest.raises(ValueError, match=r"expected reduction 'none', 'mean' or 'sum', got 'avg'"):
        dense_squared_error(H, W, B, T, reduction="avg")


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (torch.ones(7), ValueError, r"expected target \(5, 7\), got \(7,\)"),
        (torch.ones(5, 1), ValueError, r"expected target \(5, 7\), got \(5, 1\)"),
        (T.cfloat(), TypeError, "expected target to be a tensor of real numbers, got torch.complex64"),
        (T.to("meta"), ValueError, "expected target on cpu, got meta"),
        (T.to_sparse(), TypeError, "expected target of layout torch.strided, got torch.sparse_coo"),
        (3, TypeError, "expected target to be a tensor of real numbers, got int"),
    ],
)
def test_a_target_that_does_not_fit_is_refused(target: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        dense_squared_error(H, W, B, target)


C, P = torch.ones(5, dtype=torch.int64), torch.ones(5, 7)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: cross_entropy(H, torch.ones(7, 3), C), ValueError, r"expected input \(\*, 3\) for weight \(7, 3\)"),
        (lambda: cross_entropy(H, W, C, linear_bias=torch.ones(1)), ValueError, r"expected bias \(7,\) for weight"),
        (lambda: cross_entropy(H, W, C[:3]), ValueError, r"expected target \(5,\) of classes, got \(3,\)"),
        (lambda: cross_entropy(H, W, P[:, 1:]), ValueError, r"expected target \(5, 7\), got \(5, 6\)"),
        (
            lambda: cross_entropy(H, W, C.int()),
            TypeError,
            "expected target .* int64 or uint8 classes, .* got torch.int32",
        ),
        (lambda: cross_entropy(H, W, [1] * 5), TypeError, "expected target .* int64 or uint8 classes, .* got list"),
        (lambda: cross_entropy(H, W, C.to("meta")), ValueError, "expected target on cpu, got meta"),
        (lambda: cross_entropy(H, W, C, weight=torch.ones(5)), ValueError, r"expected weight \(7,\), .* got \(5,\)"),
        (
            lambda: cross_entropy(H, W, C, weight=[1.0] * 7),
            TypeError,
            "expected weight to be a tensor of real.* got list",
        ),
        (lambda: cross_entropy(H, W, C, weight=B.to("meta")), ValueError, "expected weight on cpu, got meta"),
        (lambda: cross_entropy(H, W, C, reduction="avg"), ValueError, "'none', 'mean' or 'sum', got 'avg'"),
        (lambda: cross_entropy(H, W, C, label_smoothing=1.5), ValueError, "label_smoothing from 0 to 1, got 1.5"),
        (lambda: cross_entropy(H, W, P, ignore_index=3), ValueError, "no ignore_index for a target of probab.* got 3"),
        (
            lambda: cross_entropy(H, W, C, ignore_index="a"),
            TypeError,
            "expected ignore_index to be an int or None, got 'a'",
        ),
        (lambda: cross_entropy(H, W, C, chunk_rows=0), ValueError, "chunk_rows to be an int from 1 up, or None, got 0"),
        (lambda: cross_entropy(H, W, C, chunk_rows=2.0), ValueError, "chunk_rows to be an int .* got 2.0"),
        (lambda: logistic(H, W, C), TypeError, "expected target to be a floating-point tensor, got torch.int64"),
        (lambda: logistic(H, W, P[:3]), ValueError, r"expected target \(5, 7\), got \(3, 7\)"),
        (lambda: logistic(H, W, P, pos_weight=torch.ones(5)), ValueError, r"pos_weight to broadcast to \(5, 7\), got"),
        (lambda: logistic(H, W, P, weight=3), TypeError, "expected weight to be a tensor of real numbers, got int"),
        (lambda: logistic(H, W, P, weight=B.to("meta")), ValueError, "expected weight on cpu, got meta"),
        (lambda: logistic(H, W, P, reduction="avg"), ValueError, "'none', 'mean' or 'sum', got 'avg'"),
    ],
)
def test_a_loss_refuses_what_does_not_fit(call: Callable[[], Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Dense(-1, 3), ValueError, "expected in_features >= 0, got -1"),
        (lambda: Dense(3, -1), ValueError, "expected out_features >= 0, got -1"),
        (lambda: Dense(3.5, 1), TypeError, "expected in_features to be an int, got 3.5"),
        (lambda: Dense(3, 1, "rleu"), ValueError, "expected an activation among"),
        (lambda: MLP([]), ValueError, r"expected sizes \(D_in, ..., D_out\), got \[\]"),
        (lambda: MLP(784), TypeError, r"expected sizes \(D_in, ..., D_out\), got 784"),
        (lambda: MLP([4, 3], dropout=7.0), ValueError, r"expected a dropout within \[0, 1\] .* got 7.0"),
        (lambda: MLP([784]), ValueError, r"expected sizes \(D_in, ..., D_out\), got \[784\]"),
        (lambda: MLP([784, -5, 10]), ValueError, "expected out_features >= 0, got -5"),
        (lambda: MLP([4, 5, 3], "rleu"), ValueError, "expected an activation among"),
        (lambda: MLP([4, 5, 3], output_activation="rleu"), ValueError, "expected an activation among"),
        (lambda: MLP([4, 5, 3], dropout=1.5), ValueError, r"expected a dropout within \[0, 1\] .* got 1.5"),
        (lambda: MLP([4, 5, 3], dropout=[0.1, 0.2]), ValueError, "each of 1 hidden layers, got"),
        (lambda: MLP([4, 5, 3], dropout=float("nan")), ValueError, "expected a dropout within"),
    ],
)
def test_a_module_refuses_what_it_cannot_be(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
