"""Moving average batch norm against the paper's forward and backward, naively in float64 numpy."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.testing import assert_close

import livella
from livella.model import sites
from livella.nn import (
    MovingAverageBatchNorm1d,
    MovingAverageBatchNorm2d,
    MovingAverageBatchNorm3d,
    centre_weights,
)

KINDS = {2: MovingAverageBatchNorm1d, 3: MovingAverageBatchNorm1d}
KINDS |= {4: MovingAverageBatchNorm2d, 5: MovingAverageBatchNorm3d}
SHAPES = [(4, 3), (4, 3, 5), (2, 3, 4, 5), (2, 3, 2, 2, 3)]


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(kind, dtype=torch.float64, **options):
    layer = kind(3, dtype=dtype, **options)
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters()):
            parameter.copy_(1 + draw(*parameter.shape, seed=seed + 5) / 2)
    return layer


class Naive:
    """The method, step by step, with lists for histories."""

    def __init__(self, weight, bias, window, warm_up, r_max, r_warm_up, eps=1e-5, momentum=0.02):
        self.weight, self.bias, self.eps, self.momentum = weight, bias, eps, momentum
        self.window, self.warm_up, self.r_max, self.r_warm_up = window, warm_up, r_max, r_warm_up
        self.squares, self.gradients, self.ema = [], [], np.ones(len(weight))

    def step(self, x, dy, valid=None):
        """Output, and the gradients of x, γ and β, of arrays (values, C)."""
        rows = np.ones(len(x), bool) if valid is None else valid
        x = np.where(rows[:, None], x, 0)
        dy = np.where(rows[:, None], dy, 0)
        first = len(self.squares)
        self.squares.append((x**2).sum(0) / rows.sum())
        window = self.squares[-self.window :] if first >= self.warm_up else self.squares[-1:]
        chi2 = np.mean(window, axis=0)
        chi = np.sqrt(chi2 + self.eps)
        r = np.ones_like(chi)
        if first >= self.r_warm_up:
            r = np.clip(chi / np.sqrt(self.ema + self.eps), 1 / self.r_max, self.r_max)
        self.ema = (1 - self.momentum) * self.ema + self.momentum * chi2
        z = x / chi
        y = np.where(rows[:, None], self.weight * r * z + self.bias, 0)
        g = dy * self.weight * r
        self.gradients.append((g * z).sum(0) / rows.sum())
        window = self.gradients[-self.window :] if first >= self.warm_up else self.gradients[-1:]
        dx = (g - z * np.mean(window, axis=0)) / chi
        return y, np.where(rows[:, None], dx, 0), (dy * r * z).sum(0), dy.sum(0)


def flat(t):
    return t.detach().movedim(1, -1).reshape(-1, t.shape[1]).double().numpy()


def steps(layer, shape, count, dtype=torch.float64, scale=2.0, masked=False):
    """Run layer and naive method side by side; give pairs of what should agree."""
    naive = Naive(
        layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy(),
        layer.window, layer.warm_up, layer.r_max, layer.r_warm_up, layer.eps, layer.momentum,
    )  # fmt: skip
    for seed in range(count):
        x = (scale * draw(*shape, seed=seed) + 1).to(dtype)
        dy = draw(*shape, seed=seed + 50).to(dtype)
        mask = draw(shape[0], *shape[2:], seed=seed + 90) > -0.3 if masked else None
        given = x if mask is None else torch.where(mask[:, None], x, torch.nan)
        given = given.detach().requires_grad_()
        y = layer(given, mask=mask)
        found = torch.autograd.grad(y, (given, layer.weight, layer.bias), dy)
        valid = None if mask is None else mask.flatten().numpy()
        truth = naive.step(flat(x), flat(dy), valid)
        for got, wanted in zip((flat(y), flat(found[0]), *found[1:]), truth, strict=True):
            yield torch.as_tensor(got).double(), torch.from_numpy(wanted)
        yield layer.running_square.double(), torch.from_numpy(naive.ema)


OPTIONS = {
    "the window at once": {"window": 3, "warm_up": 0, "r_warm_up": 99},
    "after a warm-up": {"window": 3, "warm_up": 4, "r_warm_up": 99},
    "a window longer than the warm-up": {"window": 6, "warm_up": 2, "r_warm_up": 99},
    "corrected": {"window": 3, "warm_up": 2, "r_warm_up": 3, "momentum": 0.3},
    "corrected up to a limit": {"window": 2, "warm_up": 2, "r_warm_up": 0, "r_max": 1.1},
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
def test_forward_backward_and_averages(options, masked):
    layer = make(MovingAverageBatchNorm1d, **OPTIONS[options])
    for got, wanted in steps(layer, (4, 3, 5), 9, masked=masked):
        assert_close(got, wanted)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_number_of_dimensions(shape):
    layer = make(KINDS[len(shape)], **OPTIONS["corrected"])
    for got, wanted in steps(layer, shape, 6):
        assert_close(got, wanted)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("size", [1, 2, 3])  # of 7 samples: a ragged end too
def test_ghost_batches_are_batches_one_after_the_other(size, options, masked):
    one = make(MovingAverageBatchNorm1d, **OPTIONS[options])
    ghost = copy.deepcopy(one)
    ghost.ghost_size = size
    for seed in range(4):
        x, dy = draw(7, 3, 5, seed=seed).requires_grad_(), draw(7, 3, 5, seed=seed + 9)
        mask = draw(7, 5, seed=seed + 20) > -0.7 if masked else torch.ones(7, 5, dtype=torch.bool)
        wanted = []
        for part, valid, gradient in zip(*(t.split(size) for t in (x, mask, dy)), strict=True):
            wanted.append(one(part, mask=valid))
            wanted[-1].backward(gradient)
        dx, x.grad = x.grad, None
        y = ghost(x, mask=mask if masked else None)
        assert_close(y, torch.cat(wanted))
        y.backward(dy)
        assert_close(x.grad, dx)
    assert_close([p.grad for p in ghost.parameters()], [p.grad for p in one.parameters()])
    assert_close(ghost.state_dict(), one.state_dict())
    assert f"ghost_size={size}" in repr(ghost)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_inputs_are_summed_in_float32(dtype):
    layer = make(MovingAverageBatchNorm1d, torch.float32, **OPTIONS["corrected"])
    for got, wanted in steps(layer, (4, 3, 64), 5, dtype=dtype, scale=500):  # squares overflow
        assert_close(got, wanted, rtol=3e-2, atol=3e-2)


def test_evaluation_takes_the_exponential_average_and_keeps_everything():
    layer = make(MovingAverageBatchNorm2d, activation="relu")
    layer.running_square.copy_(torch.tensor([1.0, 4, 9]))
    layer.eval()
    before, x, residual = copy.deepcopy(layer.state_dict()), draw(4, 3, 2, 5), draw(4, 3, 2, 5)
    shape = (1, 3, 1, 1)
    z = x / (layer.running_square + 1e-5).sqrt().view(shape) * layer.weight.view(shape)
    expected = (z + layer.bias.view(shape) + residual).relu()
    assert_close(layer(x, residual=residual), expected)
    assert_close(layer.state_dict(), before, rtol=0, atol=0)


def test_residual_and_activation_in_training():
    plain = make(MovingAverageBatchNorm1d)
    fused = make(MovingAverageBatchNorm1d, activation="silu")
    x, r = draw(4, 3, 5).requires_grad_(), draw(4, 3, 5, seed=1).requires_grad_()
    y, expected = fused(x, residual=r), nn.functional.silu(plain(x) + r)
    assert_close(y, expected)
    dy = draw(4, 3, 5, seed=2)
    for got, wanted in zip(
        torch.autograd.grad(y, (x, r, fused.weight), dy),
        torch.autograd.grad(expected, (x, r, plain.weight), dy),
        strict=True,
    ):
        assert_close(got, wanted)


@pytest.mark.parametrize("options", [{"window": 1, "warm_up": 0}, {"warm_up": 1000}])
def test_where_a_batch_stands_for_itself_the_gradient_is_the_derivative(options):
    """A window of one batch, and the warm-up: only there does the method coincide with it."""
    layer = make(MovingAverageBatchNorm1d, r_warm_up=10**6, **options)
    x = draw(3, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,))
    layer.eval()
    assert torch.autograd.gradcheck(layer, (x,))
    assert torch.autograd.gradgradcheck(layer, (x,))


def test_the_second_derivative_holds_the_averages_constant():
    layer = make(MovingAverageBatchNorm1d, window=2, warm_up=0, r_warm_up=0)
    layer(draw(4, 3, seed=3).requires_grad_()).square().sum().backward()
    twin = copy.deepcopy(layer)
    x, dy = draw(4, 3).requires_grad_(), draw(4, 3, seed=1).requires_grad_()
    (dx,) = torch.autograd.grad(layer(x), x, dy, create_graph=True)
    found = torch.autograd.grad(dx.square().sum(), (x, dy))

    # Constants read off the twin after the same step; then the formula, left to autograd.
    own = (x.detach() ** 2).mean(0)
    chi = ((twin.square_history[-1] + own) / 2 + twin.eps).sqrt()
    r = (chi / (twin.running_square + twin.eps).sqrt()).clamp(1 / 5, 5)
    psi = layer.gradient_history.mean(0)
    g = dy * layer.weight * r
    formula = (g - x / chi * psi) / chi
    assert_close(dx, formula)
    expected = torch.autograd.grad(formula.square().sum(), (x, dy))
    for got, wanted in zip(found, expected, strict=True):
        assert_close(got, wanted)


def test_one_value_a_channel_will_do():
    layer = MovingAverageBatchNorm1d(3)
    assert_close(layer(torch.tensor([[2.0, -3, 4]])), torch.tensor([[1.0, -1, 1]]))
    assert layer.num_batches_tracked == 1


def test_batches_that_say_nothing_are_not_taken_in():
    layer = make(MovingAverageBatchNorm1d, torch.float32, window=2, warm_up=0)
    layer(draw(4, 3).float().requires_grad_()).sum().backward()
    before = copy.deepcopy(layer.state_dict())
    x = torch.full((4, 3), torch.nan, requires_grad=True)
    y = layer(x, mask=torch.zeros(4, dtype=torch.bool))
    assert_close(y, torch.zeros(4, 3))
    y.sum().backward()
    assert_close(x.grad, torch.zeros(4, 3))
    assert layer(torch.zeros(0, 3)).shape == (0, 3)
    assert layer(x).isnan().all()
    layer(torch.full((4, 3), torch.inf))
    y = layer.eval()(draw(4, 3).float())
    assert y.isfinite().all()
    assert_close(layer.state_dict(), before, rtol=0, atol=0)


def test_a_gradient_that_overflowed_is_seen_and_not_remembered():
    layer = MovingAverageBatchNorm1d(3, window=2, warm_up=0)
    for scale in (1.0, float("inf"), 1.0):
        x = draw(4, 3).float().requires_grad_()
        (layer(x) * scale).sum().backward()
        assert x.grad.isfinite().all() == (scale == 1.0)
    assert layer.gradient_history.isfinite().all()
    assert layer.num_gradients_tracked == 2


@pytest.mark.parametrize("through", ["state_dict", "pickle", "deepcopy"])
def test_training_goes_on_as_if_uninterrupted(through):
    layer = make(MovingAverageBatchNorm1d, **OPTIONS["corrected"])
    run = lambda layer, seeds: [  # noqa: E731
        torch.autograd.grad(layer(x), x, draw(4, 3, seed=seed + 9))[0]
        for seed in seeds
        for x in [draw(4, 3, seed=seed).requires_grad_()]
    ]
    run(layer, range(5))
    if through == "state_dict":
        file = io.BytesIO()
        torch.save(layer.state_dict(), file)
        file.seek(0)
        other = MovingAverageBatchNorm1d(3, dtype=torch.float64, **OPTIONS["corrected"])
        other.load_state_dict(torch.load(file, weights_only=True))
    else:
        other = copy.deepcopy(layer) if through == "deepcopy" else pickle.loads(pickle.dumps(layer))
    assert_close(run(other, range(5, 9)), run(layer, range(5, 9)), rtol=0, atol=0)


def test_two_passes_before_their_gradients():
    layer = make(MovingAverageBatchNorm1d, window=2, warm_up=0)
    xs = [draw(4, 3, seed=seed).requires_grad_() for seed in range(2)]
    sum(layer(x).square().sum() for x in xs).backward()
    assert all(x.grad.isfinite().all() for x in xs)
    assert layer.num_batches_tracked == layer.num_gradients_tracked == 2


def test_averages_stay_exact_in_a_narrow_layer():
    layer = make(MovingAverageBatchNorm1d).to(torch.bfloat16)
    assert layer.weight.dtype == torch.bfloat16
    assert layer.running_square.dtype == torch.float32
    assert layer(draw(4, 3).bfloat16()).dtype == torch.bfloat16
    assert MovingAverageBatchNorm1d(3, dtype=torch.float16).square_history.dtype == torch.float32
    meta = MovingAverageBatchNorm1d(3, device="meta")
    assert meta.running_square.is_meta
    assert meta.to_empty(device="cpu").weight.shape == (3,)


def test_layouts():
    x = draw(2, 3, 4, 6)
    last = x.contiguous(memory_format=torch.channels_last)
    layers = [make(MovingAverageBatchNorm2d) for _ in range(4)]
    y = layers[0](last)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_close(y, layers[1](x))
    assert_close(layers[2](x[..., ::2]), layers[3](x[..., ::2].contiguous()))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("masked", [False, True])
def test_compiled(masked):
    torch.compiler.reset()
    layer = make(MovingAverageBatchNorm1d, activation="relu", **OPTIONS["corrected"])
    twin = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for seed in range(6):
        mask = draw(4, 5, seed=seed) > 0 if masked else None
        seen = []
        for each in (compiled, twin):
            x = draw(4, 3, 5, seed=seed).requires_grad_()
            y = each(x, mask=mask)
            seen.append((y, *torch.autograd.grad(y, x, draw(4, 3, 5, seed=seed + 9))))
        assert_close(seen[0], seen[1])
        assert_close(layer.state_dict(), twin.state_dict())


@pytest.mark.parametrize("training", [True, False])
def test_exported(training):
    layer = make(MovingAverageBatchNorm1d).train(training)
    twin, x = copy.deepcopy(layer), draw(4, 3, 5)
    exported = torch.export.export(layer, (x,)).module()
    assert_close(exported(x), twin(x))
    assert_close(exported.running_square, twin.running_square)


def test_tools_for_batch_norms_pass_it_over_or_say_so():
    layer = MovingAverageBatchNorm2d(3)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), layer, nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    assert not isinstance(layer, _NormBase)
    assert not sites.is_batch_norm(layer)
    assert nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))[1].window == 16
    before = copy.deepcopy(layer.state_dict())
    estimate = livella.estimate_population(model, [torch.randn(8, 3, 5, 5)])
    assert [e.name for e in estimate] == ["3"]
    assert_close(layer.state_dict(), before, rtol=0, atol=0)
    livella.freeze(model, ["1"])  # which needs no batch norm, but averages
    x = torch.randn(8, 3, 5, 5)
    assert_close(model[:2].train()(x), copy.deepcopy(model[:2]).eval()(x), rtol=0, atol=0)
    assert_close(layer.state_dict(), before, rtol=0, atol=0)


def test_a_step_is_taken_back_and_pooled_updates_leave_it_alone():
    model = nn.Sequential(nn.Linear(4, 3), MovingAverageBatchNorm1d(3))
    before = copy.deepcopy(model.state_dict())
    with livella.step(model) as step:
        model(torch.randn(4, 4)).sum().backward()
        step.take_back()
    assert_close(model.state_dict(), before, rtol=0, atol=0)
    with livella.pooled_updates(model):
        model(torch.randn(4, 4)).sum().backward()
    assert model[1].num_batches_tracked == 1


def test_behind_centred_weights_a_shared_mean_of_the_inputs_is_gone():
    model = nn.Sequential(nn.Linear(16, 3, bias=False), MovingAverageBatchNorm1d(3)).double()
    centre_weights(model, ["0"])
    y = model(5 + draw(256, 16))
    assert_close(y.mean(0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=0.2)
    assert_close(y.square().mean(0), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-3)


def test_what_is_refused():
    for options, match in (
        ({"eps": 0}, "eps above zero"),
        ({"window": 0}, "window of one batch or more"),
        ({"r_max": 0.5}, "r_max of one or more"),
        ({"activation": "gelu"}, "unknown activation"),
        ({"ghost_size": 0}, "ghost_size of one sample or more"),
        ({"momentum": None}, "momentum from 0 to 1"),
        ({"momentum": 2.0}, "momentum from 0 to 1"),
        ({"eps": float("nan")}, "eps above zero"),
        ({"warm_up": -1}, "warm_up as a number of batches"),
        ({"window": 2.5}, "window as a number of batches"),
    ):
        with pytest.raises(ValueError, match=match):
            MovingAverageBatchNorm2d(3, **options)
    layer = MovingAverageBatchNorm2d(3)
    before = copy.deepcopy(layer.state_dict())
    for wrong in ((2, 3), (2, 4, 5, 5)):
        with pytest.raises(ValueError, match="expected 4D input of 3 channels"):
            layer(torch.zeros(wrong))
    with pytest.raises(NotImplementedError, match="floating"):
        layer(torch.ones(2, 3, 2, 2, dtype=torch.long))
    with pytest.raises(TypeError, match="boolean mask"):
        layer(torch.ones(2, 3, 2, 2), mask=torch.ones(2, 2, 2))
    with pytest.raises(ValueError, match="expected a residual"):
        layer(torch.ones(2, 3, 2, 2), residual=torch.ones(2, 3))
    assert_close(layer.state_dict(), before, rtol=0, atol=0)
    assert "window=16, warm_up=100" in repr(layer)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_are_refused(reentrant):
    x = draw(4, 3).requires_grad_()
    y = torch.utils.checkpoint.checkpoint(
        make(MovingAverageBatchNorm1d), x, use_reentrant=reentrant
    )
    with pytest.raises(RuntimeError, match="leave the layer out of the checkpoint"):
        y.sum().backward()


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_the_second_derivative_with_an_activation(activation):
    layer = make(MovingAverageBatchNorm1d, activation=activation, window=2, warm_up=0)
    x, residual = (2 * draw(4, 3)).requires_grad_(), draw(4, 3, seed=1).requires_grad_()
    dy, v = draw(4, 3, seed=7), draw(4, 3, seed=8)
    y = layer(x, residual=residual)
    dx = torch.autograd.grad(y, x, dy, create_graph=True)[0]
    found = torch.autograd.grad(dx, (x, residual), v, materialize_grads=True)

    inverse = (x.detach().square().mean(0) + layer.eps).rsqrt()
    scale = layer.weight.detach() * inverse
    act = getattr(nn.functional, activation)
    z = x * scale + layer.bias.detach() + residual
    g = dy * torch.autograd.grad(act(z).sum(), z, create_graph=True)[0]
    psi = (g * scale * x).mean(0).detach()
    plain = g * scale - x * psi * inverse.square()
    assert_close(dx, plain)
    expected = torch.autograd.grad(plain, (x, residual), v, materialize_grads=True)
    assert_close(found, expected)
