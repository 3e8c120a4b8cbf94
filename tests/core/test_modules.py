"""Linear, Dense and MLP as drop-ins for torch's own modules."""

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.utils import parametrizations, parametrize, prune

from manual_mlp import MLP, Activation, Dense, DenseSquaredError, Linear, LinearCrossEntropyLoss, activations

Draw = Callable[..., Tensor]


def pair(bias: bool = True) -> tuple[nn.Linear, Linear]:
    torch.manual_seed(1)
    theirs = nn.Linear(4, 7, bias)
    torch.manual_seed(1)
    return theirs, Linear(4, 7, bias)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_and_dense_draw_the_parameters_that_nn_linear_draws(bias: bool) -> None:
    theirs, ours = pair(bias)
    torch.manual_seed(1)
    dense = Dense(4, 7, "relu", bias)
    for module in (ours, dense):
        assert list(module.state_dict()) == list(theirs.state_dict())
        for name, value in theirs.state_dict().items():
            assert torch.equal(module.state_dict()[name], value)
    assert isinstance(ours, nn.Linear)
    assert not isinstance(dense, nn.Linear)


def test_linear_computes_and_differentiates_as_nn_linear(device: str) -> None:
    theirs, ours = (m.to(device) for m in pair())
    x = torch.randn(2, 5, 4, device=device)
    for module in (theirs, ours):
        module(x).square().sum().backward()
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    torch.testing.assert_close(ours.bias.grad, theirs.bias.grad)


@pytest.mark.parametrize("activation", [None, "gelu", nn.LeakyReLU(0.2), activations.sin(30.0)], ids=repr)
def test_dense_loads_an_nn_linears_state_and_applies_the_activation(device: str, activation: object) -> None:
    linear = nn.Linear(4, 7).to(device)
    dense = Dense(4, 7, activation, device=device)
    dense.load_state_dict(linear.state_dict())
    x = torch.randn(5, 4, device=device)
    torch.testing.assert_close(dense(x), activations.get(activation).f(linear(x)))


def test_device_dtype_and_meta_are_honoured(device: str) -> None:
    dense = Dense(4, 7, device=device, dtype=torch.float64)
    assert {(p.device.type, p.dtype) for p in dense.parameters()} == {(device, torch.float64)}
    assert Dense(4, 7, device="meta").weight.is_meta
    mlp = MLP([4, 7, 3], dtype=torch.bfloat16, device=device)
    assert {(p.device.type, p.dtype) for p in mlp.parameters()} == {(device, torch.bfloat16)}
    assert mlp.half()(torch.randn(5, 4, device=device).half()).dtype == torch.float16
    assert mlp.to(torch.float64)(torch.randn(5, 4, device=device).double()).dtype == torch.float64


def test_layers_without_inputs_or_outputs_are_made_without_a_warning() -> None:
    assert Dense(0, 3)(torch.randn(5, 0)).shape == (5, 3)
    assert Dense(3, 0)(torch.randn(5, 3)).shape == (5, 0)
    assert MLP([3, 0, 2])(torch.randn(5, 3)).shape == (5, 2)


def test_the_repr_names_sizes_activation_and_dropout() -> None:
    assert repr(Dense(4, 7, activations.leaky_relu(0.2), bias=False)) == (
        "Dense(in_features=4, out_features=7, activation=leaky_relu(0.2), bias=False)"
    )
    assert repr(Linear(4, 7)) == "Linear(in_features=4, out_features=7, bias=True)"
    assert "dropout=(0.5,)" in repr(MLP([4, 7, 3], dropout=0.5))
    assert "dropout" not in repr(MLP([4, 7, 3]))


@pytest.mark.parametrize("make", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_a_copy_computes_the_same_from_parameters_of_its_own(make: Callable[[nn.Module], nn.Module]) -> None:
    mlp = MLP([4, 7, 3], activations.softplus(2.0), dropout=0.25)
    twin = make(mlp)
    x = torch.randn(5, 4)
    assert torch.equal(twin.eval()(x), mlp.eval()(x))
    assert repr(twin) == repr(mlp)
    assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in mlp.parameters()}


def test_a_saved_state_loads_again() -> None:
    mlp, other, file = MLP([4, 7, 3]), MLP([4, 7, 3]), io.BytesIO()
    torch.save(mlp.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert list(mlp.state_dict()) == ["layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"]
    x = torch.randn(5, 4)
    assert torch.equal(mlp(x), other(x))


def test_forward_and_backward_hooks_run() -> None:
    mlp, seen = MLP([4, 7, 3]), []
    mlp.layers[0].register_forward_hook(lambda *_: seen.append("forward"))
    mlp.layers[0].register_full_backward_hook(lambda *_: seen.append("backward"))
    mlp.layers[0].weight.register_hook(lambda g: seen.append("weight"))
    mlp(torch.randn(5, 4, requires_grad=True)).sum().backward()
    assert sorted(seen) == ["backward", "forward", "weight"]


@pytest.mark.parametrize("cls", [Linear, Dense])
def test_parametrizations_and_pruning_work(cls: type[nn.Module]) -> None:
    x = torch.randn(5, 4)
    for change in (parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal):
        layer = change(cls(4, 7))
        layer(x).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
        torch.testing.assert_close(layer.eval()(x), x @ layer.weight.T + layer.bias)
    pruned = prune.random_unstructured(cls(4, 7), "weight", 0.5)
    pruned(x).sum().backward()
    assert not pruned.weight_orig.grad[pruned.weight == 0].any()


def test_an_mlp_is_its_layers_in_turn(device: str) -> None:
    mlp = MLP([4, 7, 6, 3], "tanh", "sigmoid", bias=False, device=device)
    assert [layer.activation.name for layer in mlp.layers] == ["tanh", "tanh", "sigmoid"]
    assert all(layer.bias is None for layer in mlp.layers)
    x = torch.randn(2, 5, 4, device=device)
    y = x
    for layer in mlp.layers:
        y = layer.activation.f(y @ layer.weight.T)
    torch.testing.assert_close(mlp(x), y)


def test_dropout_falls_on_hidden_layers_in_training_alone() -> None:
    mlp = MLP([4, 1000, 1000, 3], "identity", dropout=[0.25, 0.0])
    hidden: list[Tensor] = []
    mlp.layers[1].register_forward_pre_hook(lambda _, args: hidden.append(args[0]))
    mlp.layers[2].register_forward_pre_hook(lambda _, args: hidden.append(args[0]))
    x = torch.randn(8, 4)
    mlp(x)
    assert 0.2 < (hidden[0] == 0).float().mean() < 0.3
    assert not (hidden[1] == 0).any()
    assert torch.equal(mlp.eval()(x), mlp(x))


SEQUENTIALS = {
    "one layer": lambda: nn.Sequential(nn.Linear(4, 3)),
    "relu": lambda: nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 3)),
    "mixed": lambda: nn.Sequential(
        nn.Linear(4, 7, bias=False), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Linear(7, 6), nn.Linear(6, 5),
        nn.Dropout(0.1), nn.Linear(5, 3), nn.Softplus(2.0, 3.0),
    ),
    "ours": lambda: nn.Sequential(Linear(4, 7), nn.GELU("tanh"), Linear(7, 3, bias=False)),
    "no nn class": lambda: MLP([4, 7, 3], activations.sin(30.0), "lecun_tanh").to_sequential(),
}  # fmt: skip


@pytest.mark.parametrize("make", SEQUENTIALS.values(), ids=SEQUENTIALS)
def test_a_sequential_becomes_an_mlp_and_comes_back_over_the_same_parameters(make: Callable[[], nn.Sequential]) -> None:
    sequential = make()
    mlp = MLP.from_sequential(sequential)
    again = mlp.to_sequential()
    assert [id(p) for p in mlp.parameters()] == [id(p) for p in sequential.parameters()]
    assert [id(p) for p in again.parameters()] == [id(p) for p in sequential.parameters()]
    assert repr(again) == repr(sequential)
    assert all(type(module) is not Linear for module in again)
    x = torch.randn(5, 4)
    outputs = [model.eval()(x) for model in (sequential, mlp, again)]
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], rtol=0, atol=1e-6)
    assert torch.equal(outputs[0], outputs[2])
    grads = [torch.autograd.grad(m.eval()(x).square().sum(), list(m.parameters())) for m in (sequential, mlp)]
    torch.testing.assert_close(grads[0], grads[1])


def test_conversion_keeps_training_mode_dtype_and_shared_parameters() -> None:
    shared = nn.Linear(4, 4).double()
    sequential = nn.Sequential(shared, nn.Tanh(), nn.Linear(4, 4).double())
    sequential[2].weight = shared.weight
    mlp = MLP.from_sequential(sequential.eval())
    assert not mlp.training
    assert mlp.layers[0].weight is mlp.layers[1].weight is mlp.to_sequential()[2].weight
    assert not mlp.to_sequential().training
    assert mlp(torch.randn(5, 4).double()).dtype == torch.float64


def test_modules_that_stand_in_a_sequential_twice_are_taken_twice() -> None:
    linear, activation = nn.Linear(4, 4), nn.Tanh()
    sequential = nn.Sequential(linear, activation, linear, activation)
    mlp = MLP.from_sequential(sequential)
    assert mlp.layers[0].weight is mlp.layers[1].weight
    x = torch.randn(5, 4)
    for model in (mlp, mlp.to_sequential()):
        torch.testing.assert_close(model(x), sequential(x))
    mlp.layers[1] = mlp.layers[0]
    torch.testing.assert_close(mlp.to_sequential()(x), mlp(x))


def test_a_sequential_with_a_life_of_its_own_is_refused() -> None:
    class Residual(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return input + super().forward(input)

    with pytest.raises(TypeError, match=r"expected the forward of nn.Sequential itself, got that of Residual"):
        MLP.from_sequential(Residual(nn.Linear(4, 4)))
    watched = nn.Sequential(nn.Linear(4, 4))
    watched.register_forward_hook(lambda *_: None)
    with pytest.raises(TypeError, match="got hooks on the whole"):
        MLP.from_sequential(watched)
    mixed = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.Linear(4, 4))
    mixed[1].eval()
    with pytest.raises(TypeError, match="all modules in training mode or all in evaluation mode"):
        MLP.from_sequential(mixed)


def with_forward_of_its_own(module: nn.Module) -> nn.Module:
    module.forward = lambda x: 10 * x  # type: ignore[method-assign]
    return module


def hooked() -> nn.Linear:
    linear = nn.Linear(4, 4)
    linear.register_forward_hook(lambda *_: None)
    return linear


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([nn.ReLU(), nn.Linear(4, 4)], "expected Linear first, got 0: ReLU"),
        ([nn.Linear(4, 4), nn.ReLU(), nn.Tanh()], "expected Linear, an activation and Dropout, in this order"),
        ([nn.Linear(4, 4), nn.Dropout(), nn.ReLU()], "expected"),
        ([nn.Linear(4, 4), nn.Dropout()], "expected no dropout after the last Linear"),
        ([nn.Linear(4, 5), nn.Linear(6, 4)], "expected Linear with in_features=5, got Linear"),
        ([nn.Linear(4, 4), nn.PReLU()], "expected an activation module among"),
        ([nn.Linear(4, 4), nn.Conv1d(1, 1, 1)], "expected an activation module among"),
        ([hooked()], "expected a module without hooks, got hooks on 0"),
        ([with_forward_of_its_own(nn.Linear(4, 4))], "with the forward of its class, got another for 0"),
        ([nn.Linear(4, 4), with_forward_of_its_own(nn.ReLU())], "with the forward of its class, got another for 1"),
        ([parametrizations.weight_norm(nn.Linear(4, 4))], "expected Linear first"),
    ],
)
def test_a_sequential_that_is_no_mlp_is_refused(modules: list[nn.Module], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        MLP.from_sequential(nn.Sequential(*modules))


def test_the_bounds_of_a_relu6_may_have_been_set() -> None:
    sequential = nn.Sequential(nn.Linear(4, 7), nn.ReLU6(), nn.Linear(7, 3))
    sequential[1].max_val = 0.2
    x = torch.randn(5, 4)
    torch.testing.assert_close(MLP.from_sequential(sequential)(x), sequential(x))


def test_what_was_put_in_the_place_of_every_linears_forward_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    loss, x, t = LinearCrossEntropyLoss(4, 3), torch.randn(5, 4), torch.tensor([0, 2, 1, 1, 0])
    loss.linear = nn.Linear(4, 3)
    forward = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: 2 * forward(self, x))
    torch.testing.assert_close(loss(x, t), F.cross_entropy(loss.linear(x), t))
    with pytest.raises(TypeError, match="expected Linear first"):
        MLP.from_sequential(nn.Sequential(nn.Linear(4, 3)))


def test_another_forward_for_a_whole_class_is_honoured_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    mlp, x = MLP([4, 7, 3]), torch.randn(5, 4)
    expected = 4 * mlp(x).detach()
    forward = Dense.forward
    monkeypatch.setattr(Dense, "forward", lambda self, x: (1 + (self.in_features == 7)) * 2 * forward(self, x))
    torch.testing.assert_close(mlp(x), mlp.layers[1](mlp.layers[0](x)))
    assert not torch.allclose(mlp(x), expected)
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, x: 2 * x)
    with pytest.raises(TypeError, match="with the forward of its class, got another for ReLU"):
        MLP.from_sequential(nn.Sequential(nn.Linear(4, 3), nn.ReLU()))

    class Twice(MLP):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    with pytest.raises(TypeError, match="expected the forward of MLP itself, got that of Twice"):
        Twice([4, 3]).to_sequential()


def test_layers_that_compile_are_converted() -> None:
    mlp, x = MLP([4, 7, 3]), torch.randn(5, 4)
    mlp.compile(backend="eager")
    sequential = mlp.to_sequential()
    sequential[0].compile(backend="eager")
    torch.testing.assert_close(MLP.from_sequential(sequential)(x), sequential(x))


def test_an_empty_sequential_and_a_changed_mlp_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected sizes \(D_in, ..., D_out\), got \[\]"):
        MLP.from_sequential(nn.Sequential())
    mlp = MLP([4, 7, 3])
    mlp.layers[0] = nn.Linear(4, 7)
    with pytest.raises(TypeError, match="expected layer 0 to be Dense, got Linear"):
        mlp.to_sequential()
    mlp = MLP([4, 7, 3])
    with_forward_of_its_own(mlp.layers[0])
    with pytest.raises(TypeError, match="with the forward of its class, got another for 0"):
        mlp.to_sequential()
    mlp = MLP([4, 7, 3])
    parametrize.register_parametrization(mlp.layers[1], "weight", nn.Identity())
    with pytest.raises(TypeError, match="expected layer 1 to be Dense, got ParametrizedDense"):
        mlp.to_sequential()


def test_an_ensemble_by_stacked_state_gives_each_members_output() -> None:
    members = [MLP([4, 7, 3], "gelu") for _ in range(3)]
    params, buffers = stack_module_state(members)
    x = torch.randn(5, 4)
    ys = vmap(lambda p, b: functional_call(members[0], (p, b), (x,)))(params, buffers)
    torch.testing.assert_close(ys, torch.stack([member(x) for member in members]))


def test_a_compiled_mlp_trains_as_the_eager_one(device: str) -> None:
    torch.compiler.reset()
    mlp = MLP([4, 7, 3], "gelu").to(device)
    x = torch.randn(5, 4, device=device)
    eager = torch.autograd.grad(mlp(x).square().sum(), list(mlp.parameters()))
    compiled = torch.compile(mlp, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(x).square().sum(), list(mlp.parameters())), eager)


def test_two_steps_of_sgd_go_where_torch_goes(device: str) -> None:
    mlp = MLP([4, 7, 3], "tanh", device=device)
    twin = copy.deepcopy(mlp).to_sequential()
    x, t = torch.randn(9, 4, device=device), torch.randn(9, 3, device=device)
    for model in (mlp, twin):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(2):
            optimizer.zero_grad()
            (model(x) - t).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(list(mlp.parameters()), list(twin.parameters()))


def test_a_users_own_activation_in_a_module(device: str) -> None:
    cubic = Activation(f=lambda z: z**3, df=lambda z: 3 * z**2, d2f=lambda z: 6 * z, name="cubic")
    mlp = MLP([4, 7, 3], cubic, device=device, dtype=torch.float64)
    assert "activation=cubic()" in repr(mlp)
    x = torch.randn(5, 4, device=device, dtype=torch.float64)
    assert torch.autograd.gradcheck(mlp, (x.requires_grad_(),))
    assert MLP.from_sequential(mlp.to_sequential()).layers[0].activation is cubic


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_the_cross_entropy_module_has_torchs_parameters_and_answers(device: str, bias: bool, weighted: bool) -> None:
    options = {"bias": bias, "weight": torch.rand(7) if weighted else None, "ignore_index": 3, "label_smoothing": 0.1}
    torch.manual_seed(1)
    ours = LinearCrossEntropyLoss(4, 7, **options, chunk_rows=2).to(device)
    torch.manual_seed(1)
    linear, own = nn.Linear(4, 7, bias).to(device), options["weight"]
    state = {f"linear.{name}": t for name, t in linear.state_dict().items()} | ({"weight": own} if weighted else {})
    if hasattr(nn, "LinearCrossEntropyLoss"):
        theirs = nn.LinearCrossEntropyLoss(4, 7, **options)
        assert set(theirs.state_dict()) == set(state)
        ours.load_state_dict(theirs.state_dict())
        ours.load_state_dict(state)
    assert set(ours.state_dict()) == set(state)
    for name, t in ours.state_dict().items():
        assert torch.equal(t, state[name].to(device))
    h, t = torch.randn(5, 4, device=device, requires_grad=True), torch.tensor([0, 6, 3, 2, 2], device=device)
    weight = None if own is None else own.to(device)
    expected = F.cross_entropy(linear(h), t, weight, ignore_index=3, label_smoothing=0.1)
    torch.testing.assert_close(ours(h, t), expected)
    torch.testing.assert_close(
        torch.autograd.grad(ours(h, t), (h, *ours.parameters())),
        torch.autograd.grad(expected, (h, *linear.parameters())),
    )


def test_the_cross_entropy_module_is_copied_pickled_and_moved() -> None:
    module = LinearCrossEntropyLoss(4, 7, bias=True, weight=torch.rand(7), reduction="none", chunk_rows=2)
    h, t = torch.randn(5, 4), torch.tensor([0, 6, 3, 2, 2])
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(h, t), module(h, t))
    assert module.double()(h.double(), t).dtype == torch.float64
    assert "reduction='none', ignore_index=-100, label_smoothing=0.0, chunk_rows=2" in repr(module)


def test_the_squared_error_module_is_a_dense_layer_with_a_target(device: str) -> None:
    layer = Dense(4, 7, "tanh").to(device)
    module = DenseSquaredError(4, 7, "tanh", reduction="mean", chunk_rows=2).to(device)
    module.load_state_dict(layer.state_dict())
    h, t = torch.randn(5, 4, device=device), torch.randn(5, 7, device=device)
    expected = 0.5 * F.mse_loss(layer(h), t)
    torch.testing.assert_close(module(h, t), expected)
    torch.testing.assert_close(
        torch.autograd.grad(module(h, t), list(module.parameters())),
        torch.autograd.grad(expected, list(layer.parameters())),
    )
    assert "activation=tanh(), bias=True, reduction='mean', chunk_rows=2" in repr(module)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: LinearCrossEntropyLoss(4, 7, reduction="avg"),
            "expected reduction 'none', 'mean' or 'sum', got 'avg'",
        ),
        (lambda: LinearCrossEntropyLoss(4, 7, label_smoothing=2.0), "expected label_smoothing from 0 to 1, got 2.0"),
        (lambda: LinearCrossEntropyLoss(4, 7, weight=torch.ones(4)), r"expected weight \(7,\), .* got \(4,\)"),
        (lambda: LinearCrossEntropyLoss(-4, 7), "expected in_features >= 0, got -4"),
        (lambda: LinearCrossEntropyLoss(4, 7, chunk_rows=0), "expected chunk_rows to be an int from 1 up.* got 0"),
        (lambda: DenseSquaredError(4, 7, reduction="avg"), "expected reduction 'none', 'mean' or 'sum', got 'avg'"),
        (lambda: DenseSquaredError(4, 7, chunk_rows=-1), "expected chunk_rows to be an int from 1 up.* got -1"),
    ],
)
def test_a_loss_module_refuses_options_when_it_is_made(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
