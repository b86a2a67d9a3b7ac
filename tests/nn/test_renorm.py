"""Batch renormalization against its definition: Ioffe 2017, Algorithm 1, and its schedule."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.fx.proxy import TraceError
from torch.nn.modules.batchnorm import _BatchNorm
from torch.testing import assert_close

import livella
import livella.nn as lnn
from tests.nn.test_batch import LAYOUTS, NDIM_OF_INPUT, NEAR, normal

RENORM = {1: lnn.BatchRenorm1d, 2: lnn.BatchRenorm2d, 3: lnn.BatchRenorm3d}
PLAIN = {1: lnn.BatchNorm1d, 2: lnn.BatchNorm2d, 3: lnn.BatchNorm3d}
EXACT = {"rtol": 0, "atol": 0}
EPS = 1e-5


def naive(x, mean, var, r_max, d_max):
    """Give x̂ and the moments of the batch, channel by channel, in float64."""
    y, moments = np.empty_like(x), []
    for c in range(x.shape[1]):
        values = x[:, c]
        mu = sum(values.flat) / values.size
        m2 = sum((v - mu) ** 2 for v in values.flat)
        sigma_b, sigma = (m2 / values.size + EPS) ** 0.5, (var[c] + EPS) ** 0.5
        r = min(max(sigma_b / sigma, 1 / r_max), r_max)
        d = min(max((mu - mean[c]) / sigma, -d_max), d_max)
        y[:, c] = (values - mu) / sigma_b * r + d
        moments.append((mu, m2 / (values.size - 1)))
    return y, np.array(moments).T


CASES = st.fixed_dictionaries(
    {
        "shape": st.integers(2, 5).flatmap(
            lambda dims: st.tuples(
                st.integers(2, 6), st.integers(1, 4), *[st.integers(1, 3)] * (dims - 2)
            )
        ),
        "layout": st.sampled_from(sorted(LAYOUTS)),
        "dtype": st.sampled_from([torch.float64, torch.float32]),
        "momentum": st.sampled_from([0.1, 0.0, 1.0, None]),
        "r_max": st.sampled_from([1.0, 1.5, 3.0, 100.0]),
        "d_max": st.sampled_from([0.0, 0.5, 5.0, 100.0]),
        "scale": st.sampled_from([0.05, 1.0, 4.0]),
        "seed": st.integers(0, 2**31 - 1),
    }
)


@settings(max_examples=150)
@given(CASES)
def test_history_is_that_of_the_definition(case):
    shape, dtype, limits = case["shape"], case["dtype"], (case["r_max"], case["d_max"])
    layer = RENORM[NDIM_OF_INPUT[len(shape)]](
        shape[1], EPS, case["momentum"], dtype=dtype, r_max=limits[0], d_max=limits[1]
    )
    mean, var = np.zeros(shape[1]), np.ones(shape[1])
    for step in range(3):
        x = (case["scale"] * normal(*shape, seed=case["seed"] + step) + step).to(dtype)
        wanted, batch = naive(x.double().numpy(), mean, var, *limits)
        assert_close(
            layer(LAYOUTS[case["layout"]](x)).double(), torch.from_numpy(wanted), **NEAR[dtype]
        )
        share = 1 / (step + 1) if case["momentum"] is None else case["momentum"]
        mean, var = (a + share * (b - a) for a, b in zip((mean, var), batch, strict=True))
        assert_close(layer.running_mean.double(), torch.from_numpy(mean), **NEAR[dtype])
        assert_close(layer.running_var.double(), torch.from_numpy(var), **NEAR[dtype])
    plain = PLAIN[NDIM_OF_INPUT[len(shape)]](shape[1], EPS, dtype=dtype).eval()
    plain.load_state_dict(layer.state_dict())
    assert_close(layer.eval()(x), plain(x), **EXACT)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", list(NEAR))
@pytest.mark.parametrize("shape", [(32, 6), (5, 3, 7), (8, 4, 5, 5), (3, 2, 2, 3, 2)])
@pytest.mark.parametrize(
    "options", [{"r_max": 1, "d_max": 0}, {"warmup_steps": 2, "affine": False}]
)
def test_at_its_lowest_limits_it_is_batch_norm_bit_for_bit(shape, dtype, last, options):
    ndim, affine = NDIM_OF_INPUT[len(shape)], options.get("affine", True)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    layers = (
        RENORM[ndim](shape[1], dtype=wide, **options),
        PLAIN[ndim](shape[1], dtype=wide, affine=affine),
    )
    seen = []
    for layer in layers:
        x = LAYOUTS["channels last" if last else "contiguous"](normal(*shape).to(dtype) + 2)
        x = x.detach().requires_grad_()
        for _ in range(2):
            y = layer(x, activation="silu")
        dy = normal(*shape, seed=1).to(dtype)
        gradients = torch.autograd.grad(y, [x, *layer.parameters()], dy)
        seen.append([y, *gradients, *layer.buffers(), layer.eval()(x)])
        assert y.stride() == seen[0][0].stride()
    assert_close(*seen, **EXACT)


def test_within_wide_limits_training_gives_what_evaluation_does():
    layer = lnn.BatchRenorm2d(3, r_max=1e6, d_max=1e6, activation="relu").requires_grad_(False)
    for seed in range(3):
        x = 3 * normal(4, 3, 2, 2, seed=seed).float() - 1
        expected = copy.deepcopy(layer).eval()(x)
        assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_large_means_constant_channels_and_bad_numbers(offset):
    layer = lnn.BatchRenorm1d(4, momentum=1.0)
    x = torch.randn(64, 4) + offset
    x[:, 1] = offset
    layer(x)
    y = layer(x)
    assert_close(y[:, 0], ((x - x.mean(0)) / x.std(0))[:, 0], rtol=2e-2, atol=2e-2)
    assert_close(y[:, 1], torch.zeros(64))
    x[0, 2], x[0, 3] = torch.nan, torch.inf
    y = layer(x)
    assert y[:, 2:].isnan().any(0).all()
    assert y[:, :2].isfinite().all()


# Gradients


def written_out(x, weight, bias, residual, mean, var, r_max, d_max):
    """Algorithm 1 in differentiable operations of torch, with its stop-gradients."""
    shape, dims = (1, -1, *[1] * (x.dim() - 2)), [d for d in range(x.dim()) if d != 1]
    mu = x.mean(dims)
    sigma_b, sigma = (x.var(dims, unbiased=False) + EPS).sqrt(), (var + EPS).sqrt()
    r = (sigma_b / sigma).detach().clamp(1 / r_max, r_max)
    d = ((mu - mean) / sigma).detach().clamp(-d_max, d_max)
    hat = (x - mu.view(shape)) / sigma_b.view(shape) * r.view(shape) + d.view(shape)
    return nn.functional.silu(hat * weight.view(shape) + bias.view(shape) + residual)


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("limits", [(1.2, 0.1), (50.0, 50.0)])
def test_gradients_are_those_of_the_definition(limits, layout):
    layer = lnn.BatchRenorm2d(
        3, dtype=torch.float64, activation="silu", r_max=limits[0], d_max=limits[1]
    )
    layer(2 * normal(5, 3, 2, 2, seed=7) + 1)
    before = layer.running_mean.clone(), layer.running_var.clone()
    x, residual = (
        LAYOUTS[layout](normal(4, 3, 2, 5, seed=k)).detach().requires_grad_() for k in range(2)
    )
    weight, bias = (normal(3, seed=k).requires_grad_() for k in (3, 4))
    leaves, dy = (x, weight, bias, residual), normal(4, 3, 2, 5, seed=9)
    values = {"weight": weight, "bias": bias}
    y = torch.func.functional_call(layer, values, (x,), {"residual": residual})
    expected = written_out(*leaves, *before, *limits)
    assert_close(y, expected)
    # First order, then the gradient of a function of the first.
    firsts = [torch.autograd.grad(out, leaves, dy, create_graph=True) for out in (y, expected)]
    assert_close(*firsts)
    seconds = [torch.autograd.grad(sum(g.sin().sum() for g in first), leaves) for first in firsts]
    assert_close(*seconds)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("residual", [True, False])
def test_gradcheck_where_r_and_d_are_at_their_limits(residual, affine):
    # There r and d are constants, so that finite differences see what the gradient does.
    layer = lnn.BatchRenorm1d(
        2, momentum=0.0, affine=affine, dtype=torch.float64, activation="silu", r_max=1.1, d_max=0.2
    )
    layer.running_var.fill_(50)
    layer.running_mean.fill_(-30)
    extra = normal(4, 2, 3, seed=1).requires_grad_() if residual else None
    given = [normal(4, 2, 3).requires_grad_(), extra, *layer.parameters()]

    def run(x, extra, *_parameters):
        return layer(x, residual=extra)

    assert torch.autograd.gradcheck(run, given)
    assert torch.autograd.gradgradcheck(run, given)


def test_no_gradient_flows_through_the_correction():
    # With dy the same everywhere batch norm's input gets none; through d it would.
    layer = lnn.BatchRenorm1d(3, r_max=1e3, d_max=1e3, dtype=torch.float64)
    x = normal(8, 3).requires_grad_()
    (dx,) = torch.autograd.grad(layer(x).sum(), x)
    assert_close(dx, torch.zeros_like(dx))


# The schedule


def published(step, warmup, end, low, high):
    """As the paper words it: plain batch norm first, then gradually relaxed."""
    if step < warmup:
        return low
    return high if step >= end else low + (high - low) * (step - warmup) / (end - warmup)


@pytest.mark.parametrize("step", [0, 1, 4999, 5000, 5001, 15000, 24999, 25000, 39999, 40000, 10**6])
def test_the_published_schedule(step):
    layer = lnn.BatchRenorm2d(2, warmup_steps=5000, r_max_steps=40000, d_max_steps=25000)
    layer.num_batches_tracked.fill_(step)
    expected = published(step, 5000, 40000, 1, 3), published(step, 5000, 25000, 0, 5)
    assert layer.limits == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [(3, 5)] * 4),
        ({"warmup_steps": 2}, [(1, 0), (1, 0), (3, 5), (3, 5)]),
        ({"warmup_steps": 2, "d_max_steps": 1}, [(1, 0), (1, 0), (3, 5), (3, 5)]),
        ({"r_max_steps": 2}, [(1, 5), (2, 5), (3, 5), (3, 5)]),
        ({"warmup_steps": 1, "d_max_steps": 3}, [(1, 0), (3, 0), (3, 2.5), (3, 5)]),
    ],
)
def test_a_ramp_that_ends_with_the_warm_up_is_a_step(options, expected):
    layer = lnn.BatchRenorm1d(2, **options)
    for limits in expected:
        assert layer.limits == pytest.approx(limits)
        layer(torch.randn(3, 2))


def test_a_checkpoint_goes_on_where_it_was_and_evaluation_does_not_count():
    layer = lnn.BatchRenorm1d(2, warmup_steps=1, r_max_steps=5, d_max_steps=3)
    for _ in range(2):
        layer(torch.randn(3, 2))
    other = lnn.BatchRenorm1d(2, warmup_steps=1, r_max_steps=5, d_max_steps=3)
    other.load_state_dict(layer.state_dict())
    assert other.limits == layer.limits == pytest.approx((1.5, 2.5))
    x = torch.randn(3, 2)
    assert_close(other(x), layer(x), **EXACT)
    layer.eval()(x)
    assert layer.limits == pytest.approx((2, 5))


# Masks


def test_a_mask_makes_the_moments():
    layer, alone = (lnn.BatchRenorm1d(3, dtype=torch.float64) for _ in range(2))
    mask = normal(6, 4, seed=1) > -0.3
    for seed in range(2):
        x = normal(6, 3, 4, seed=seed) + 2
        y = layer(torch.where(mask[:, None], x, torch.nan), mask=mask, activation="relu")
        assert_close(y.movedim(1, -1)[mask], alone(x.movedim(1, -1)[mask], activation="relu"))
        assert (y.movedim(1, -1)[~mask] == 0).all()
    few = torch.zeros_like(mask)
    few[0, 0] = True
    assert layer(x, mask=few).isfinite().all()
    assert_close(dict(layer.state_dict()), dict(alone.state_dict()))


# Bad input


@pytest.mark.parametrize(
    "options",
    [{"r_max": 0.9}, {"r_max": float("nan")}, {"d_max": -1}, {"warmup_steps": -1},
     {"r_max_steps": -1}, {"d_max_steps": -2}, {"track_running_stats": False},
     {"activation": "gelu"}],
)  # fmt: skip
def test_what_cannot_be_built(options):
    with pytest.raises(ValueError, match=r"got|unknown activation"):
        lnn.BatchRenorm2d(3, **options)


def test_bad_batches_and_limits_change_nothing():
    layer = lnn.BatchRenorm1d(3)
    x, before = torch.randn(4, 3), copy.deepcopy(layer.state_dict())

    def refused(error, message, *args, **named):
        with pytest.raises(error, match=message):
            layer(*args, **named)
        assert_close(dict(layer.state_dict()), dict(before), **EXACT)

    refused(ValueError, "more than one value per channel", x[:1])
    refused(ValueError, "residual", x, residual=x[:, :2])
    refused(ValueError, "expected 2D or 3D", x[..., None, None])
    layer.r_max = 0.5
    refused(ValueError, "r_max of one or more.*got r_max=0.5", x)
    layer.r_max, layer.d_max = 3.0, -1.0
    refused(ValueError, "d_max not below zero.*d_max=-1.0", x)
    layer.d_max, layer.track_running_stats = 5.0, False
    refused(ValueError, "running averages", x)


@pytest.mark.parametrize(
    "changed",
    [{"limits": (0.5, 1.0)}, {"limits": torch.ones(3)}, {"ghost_size": 2},
     {"running_mean": None, "running_var": None}],
)  # fmt: skip
def test_the_function_refuses_the_same(changed):
    given = {"running_mean": torch.zeros(3), "running_var": torch.ones(3), "limits": (3.0, 5.0)}
    given |= {"training": True, **changed}
    with pytest.raises(ValueError, match="limits"):
        livella.functional.batch_norm(torch.randn(4, 3), **given)
    assert given["running_mean"] is None or not given["running_mean"].any()


# Switches


@pytest.mark.parametrize("policy", ["torch", "guarded"])
@pytest.mark.parametrize("switch", [{}, {"update_running": False}, {"normalize_by": "running"}])
def test_each_switch(switch, policy):
    layer, usual = lnn.BatchRenorm1d(3, r_max=1.5), lnn.BatchRenorm1d(3, r_max=1.5)
    for name, value in {**switch, "update_policy": policy}.items():
        setattr(layer, name, value)
    before = copy.deepcopy(layer.state_dict())
    x = 3 * torch.randn(5, 3) + 1
    y = layer(x)
    kept = copy.deepcopy(usual).eval()(x)
    corrected = usual(x)
    assert_close(y, kept if "normalize_by" in switch else corrected)
    expected = before if "update_running" in switch else usual.state_dict()
    assert_close(dict(layer.state_dict()), dict(expected))


def test_guarded_keeps_a_poisoned_batch_out():
    layer = lnn.BatchRenorm1d(2)
    layer.update_policy = "guarded"
    x = torch.randn(4, 2)
    layer(x)
    before = copy.deepcopy(layer.state_dict())
    x[0, 0] = torch.nan
    with pytest.warns(UserWarning, match="met NaN or infinity"):
        layer(x)
    assert_close(dict(layer.state_dict()), dict(before), **EXACT)
    assert layer.limits == (3, 5)


def test_frozen_it_normalizes_by_its_averages():
    layer = livella.freeze(lnn.BatchRenorm1d(3)).train()
    x = torch.randn(6, 3)
    assert_close(layer(x), lnn.BatchNorm1d(3).eval()(x))
    assert layer.num_batches_tracked == 0


# Torch's tools and ours


def test_copies_files_and_state():
    layer = lnn.BatchRenorm2d(
        3, 1e-3, None, r_max=2.0, warmup_steps=1, r_max_steps=4, activation="relu", bias=False
    )
    x = torch.randn(8, 3, 2, 2)
    layer(x)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    copies.append(torch.load(file, weights_only=False))
    y = layer(x)
    for other in copies:
        assert repr(other) == repr(layer)
        assert_close(other(x), y, **EXACT)
    assert repr(layer).endswith("relu, r_max=2.0, d_max=5.0, warmup_steps=1, r_max_steps=4)")
    assert list(lnn.BatchRenorm2d(3).state_dict()) == list(nn.BatchNorm2d(3).state_dict())
    meta = lnn.BatchRenorm3d(3, device="meta", dtype=torch.float64)
    assert (meta.weight.device.type, meta.running_var.dtype) == ("meta", torch.float64)
    assert lnn.make_norm("renorm", 4, 2, r_max=2.0).limits == (2, 5)


# The compiler itself makes an instance of autograd.Function, and warns of it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize(
    "options", [{}, {"warmup_steps": 1, "r_max_steps": 3, "activation": "relu"}]
)
@pytest.mark.parametrize("training", [True, False])
def test_it_compiles_as_one_graph_and_exports(training, options):
    eager = lnn.BatchRenorm2d(3, **options).train(training)
    layer, exported = copy.deepcopy(eager), copy.deepcopy(eager)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(4):
            x = 3 * torch.randn(5, 3, 2, 2) + step
            leaves = [x.clone().requires_grad_() for _ in range(2)]
            ys = compiled(leaves[0]), eager(leaves[1])
            assert_close(*ys)
            grads = [
                torch.autograd.grad(y.sin().sum(), a)[0] for y, a in zip(ys, leaves, strict=True)
            ]
            assert_close(*grads)
    assert_close(dict(layer.state_dict()), dict(eager.state_dict()))
    plain = copy.deepcopy(exported)
    program = torch.export.export(exported, (x,)).module()
    for _ in range(3):
        assert_close(program(x), plain(x))
    assert_close(program.running_var, plain.running_var)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchs_tools_leave_it_what_it_is():
    from torch.fx.experimental.optimization import fuse  # warns when imported

    model = nn.Sequential(nn.Conv2d(2, 3, 1), lnn.BatchRenorm2d(3))
    assert not isinstance(model[1], _BatchNorm)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert type(converted[1]) is lnn.BatchRenorm2d
    with pytest.raises(TraceError):
        fuse(copy.deepcopy(model).eval())
    before = copy.deepcopy(model.state_dict())
    torch.optim.swa_utils.update_bn([torch.randn(6, 2, 3, 3)], model)
    assert_close(dict(model.state_dict()), dict(before), **EXACT)


def test_livellas_tools_do_right_or_say_that_they_do_not():
    model = nn.Sequential(nn.Conv2d(2, 3, 1), lnn.BatchRenorm2d(3), nn.ReLU())
    x = torch.randn(8, 2, 3, 3)
    with pytest.warns(UserWarning, match=r"left alone.*1 \(BatchRenorm2d\)"):
        lnn.SyncBatchNorm.convert(model)
    assert type(model[1]) is lnn.BatchRenorm2d
    with pytest.raises(TypeError, match=r"BatchRenorm2d.*more than the moments of the whole batch"):
        livella.accumulate(model, [x], lambda output, _: output.sum())
    with livella.pooled_updates(model):
        model(x[:4])
        model(x[4:])
    values = model[0](x).movedim(1, 0).flatten(1)
    assert_close(model[1].running_var, 0.9 + 0.1 * values.var(1))
    assert model[1].num_batches_tracked == 1
    livella.estimate_population(model, [x[:4], x[4:]]).apply()
    assert_close(model[1].running_mean, values.mean(1), rtol=1e-4, atol=1e-5)
    twin = copy.deepcopy(model)
    assert_close(livella.accelerate(model)(x), twin(x))
    assert_close(dict(model.state_dict()), dict(twin.state_dict()))


def test_a_micro_batch_of_few_classes_trains_as_it_evaluates():
    """What it is for: batches that are no fair sample, where batch norm's two modes disagree."""
    gaps = {}
    for name, layer in (("renorm", lnn.BatchRenorm1d(4)), ("batch", lnn.BatchNorm1d(4))):
        for step in range(400):
            centre = torch.tensor([-2.0, 2.0])[step % 2]
            layer(centre + normal(8, 4, seed=step).float())
        x = 2 + normal(8, 4, seed=1000).float()
        gaps[name] = (copy.deepcopy(layer)(x) - layer.eval()(x)).abs().mean()
    assert gaps["renorm"] < 0.1 * gaps["batch"]


@pytest.mark.parametrize("policy", ["torch", "guarded"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_that_would_give_another_gradient_are_refused(policy, reentrant):
    layer = lnn.BatchRenorm2d(3, dtype=torch.float64)
    layer.update_policy = policy
    x = (2 * torch.randn(4, 3, 2, 2, dtype=torch.float64) + 1).requires_grad_()
    w = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    plain = torch.autograd.grad((copy.deepcopy(layer)(x) * w).sum(), x)
    y = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=reentrant)
    if policy == "guarded" and reentrant:
        (y * w).sum().backward()
        assert_close(x.grad, *plain)
    else:
        with pytest.raises(RuntimeError, match="leave the layer out of the checkpoint"):
            (y * w).sum().backward()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("masked", [False, True])
def test_compiled_gradients_are_those_of_the_averages_as_they_were(masked):
    torch.manual_seed(0)
    torch.compiler.reset()
    layer = lnn.BatchRenorm2d(4, momentum=0.5)
    for _ in range(5):
        layer(torch.randn(4, 4, 3, 3))
    x, w = torch.randn(4, 4, 3, 3) * 4 + 2, torch.randn(4, 4, 3, 3)
    mask = torch.rand(4, 3, 3) > 0.3 if masked else None
    found = []
    for one in (copy.deepcopy(layer), torch.compile(copy.deepcopy(layer), backend="aot_eager")):
        given = x.clone().requires_grad_()
        loss = (one(given, mask=mask).tanh().square() * w).sum()
        found.append(torch.autograd.grad(loss, (given, *one.parameters())))
    assert_close(found[1], found[0], rtol=1e-3, atol=1e-5)


def test_limits_may_be_infinite():
    layer = lnn.BatchRenorm2d(3, r_max=float("inf"), d_max=float("inf"), warmup_steps=1)
    assert layer.limits == (1.0, 0.0)
    assert layer(torch.randn(4, 3, 2, 2)).isfinite().all()
    assert layer.limits == (float("inf"), float("inf"))
    assert layer(torch.randn(4, 3, 2, 2)).isfinite().all()
