"""Ghost batch norm against loops over its parts, written from Hoffer et al. 2017, Algorithm 1."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.fx.proxy import TraceError
from torch.nn.modules.batchnorm import _BatchNorm
from torch.testing import assert_close

import livella
import livella.nn as lnn
from tests.nn.test_batch import LAYOUTS, NDIM_OF_INPUT, NEAR, normal

GHOST = {1: lnn.GhostBatchNorm1d, 2: lnn.GhostBatchNorm2d, 3: lnn.GhostBatchNorm3d}
PLAIN = {1: lnn.BatchNorm1d, 2: lnn.BatchNorm2d, 3: lnn.BatchNorm3d}
EXACT = {"rtol": 0, "atol": 0}


def cut(x, size):
    """Cut a batch into its parts; one value a channel is no part."""
    parts = [x[start : start + size] for start in range(0, len(x), size)]
    if len(parts) > 1 and parts[-1][:, 0].size == 1:
        parts[-2:] = [np.concatenate(parts[-2:])]
    return parts


class Naive:
    """The layer by its definition, channel by channel, in float64."""

    def __init__(self, channels, size, momentum, eps=1e-5):
        self.mean, self.var, self.count = np.zeros(channels), np.ones(channels), 0
        self.size, self.momentum, self.eps = size, momentum, eps

    def train(self, x):
        y = [np.empty_like(part) for part in cut(x, self.size)]
        for out, part in zip(y, cut(x, self.size), strict=True):
            self.count += 1
            share = 1 / self.count if self.momentum is None else self.momentum
            for c in range(x.shape[1]):
                values = part[:, c]
                mean = sum(values.flat) / values.size
                m2 = sum((v - mean) ** 2 for v in values.flat)
                out[:, c] = (values - mean) / (m2 / values.size + self.eps) ** 0.5
                self.mean[c] += share * (mean - self.mean[c])
                self.var[c] += share * (m2 / (values.size - 1) - self.var[c])
        return np.concatenate(y)

    def evaluate(self, x):
        shape = (1, -1, *[1] * (x.ndim - 2))
        return (x - self.mean.reshape(shape)) / np.sqrt(self.var.reshape(shape) + self.eps)


CASES = st.fixed_dictionaries(
    {
        "shape": st.integers(2, 5).flatmap(
            lambda dims: st.tuples(
                st.integers(2, 11), st.integers(1, 4), *[st.integers(1, 3)] * (dims - 2)
            )
        ),
        "size": st.integers(2, 12),
        "layout": st.sampled_from(sorted(LAYOUTS)),
        "dtype": st.sampled_from([torch.float64, torch.float32]),
        "momentum": st.sampled_from([0.1, 0.0, 1.0, None]),
        "offset": st.sampled_from([0.0, 3.0, 1e4]),
        "seed": st.integers(0, 2**31 - 1),
    }
)
RAGGED = {
    "layout": "contiguous",
    "momentum": None,
    "dtype": torch.float64,
    "offset": 3.0,
    "seed": 0,
}


@settings(max_examples=150)
@given(CASES)
@example({"shape": (9, 3), "size": 4, **RAGGED})
@example({"shape": (9, 3, 2, 2), "size": 4, **RAGGED})
def test_history_is_that_of_the_definition(case):
    shape, dtype = case["shape"], case["dtype"]
    layer = GHOST[NDIM_OF_INPUT[len(shape)]](
        shape[1], case["size"], momentum=case["momentum"], dtype=dtype
    )
    naive = Naive(shape[1], case["size"], case["momentum"])
    near = NEAR[dtype] if case["offset"] < 10 else {"rtol": 2e-2, "atol": 2e-2}
    for step in range(3):
        x = (2 * normal(*shape, seed=case["seed"] + step) + case["offset"]).to(dtype)
        layer.train(step < 2)
        wanted = (naive.train if step < 2 else naive.evaluate)(x.double().numpy())
        y = layer(LAYOUTS[case["layout"]](x))
        assert_close(y.double(), torch.from_numpy(wanted), **near)
        assert_close(layer.running_mean.double(), torch.from_numpy(naive.mean), **near)
        assert_close(layer.running_var.double(), torch.from_numpy(naive.var), **near)
        assert layer.num_batches_tracked == naive.count


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", list(NEAR))
@pytest.mark.parametrize("shape", [(32, 6), (5, 3, 7), (8, 4, 5, 5), (3, 2, 2, 3, 2), (1, 3, 4, 4)])
def test_one_part_is_batch_norm_bit_for_bit(shape, dtype, last):
    ndim = NDIM_OF_INPUT[len(shape)]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    layers = [kinds[ndim](shape[1], dtype=wide) for kinds in (GHOST, PLAIN)]
    seen = []
    for layer in layers:
        x = LAYOUTS["channels last" if last else "contiguous"](normal(*shape).to(dtype) + 2)
        x = x.detach().requires_grad_()
        y = layer(x, activation="silu")
        gradients = torch.autograd.grad(
            y, [x, *layer.parameters()], normal(*shape, seed=1).to(dtype)
        )
        seen.append([y, *gradients, *layer.buffers(), layer.eval()(x)])
        assert y.stride() == seen[0][0].stride()
    assert_close(*seen, **EXACT)


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("size", [2, 3, 4])
def test_parts_are_batch_norm_called_on_each_bit_for_bit(size, layout):
    x, dy, residual = (LAYOUTS[layout](normal(8, 3, 5, 4, seed=k).float()) for k in range(3))
    ghost, plain = lnn.GhostBatchNorm2d(3, size), lnn.BatchNorm2d(3)
    leaves = [(x.detach().requires_grad_(), residual.detach().requires_grad_()) for _ in range(2)]
    y = ghost(leaves[0][0], residual=leaves[0][1], activation="relu")
    pairs = zip(leaves[1][0].split(size), leaves[1][1].split(size), strict=True)
    parts = torch.cat([plain(a, residual=b, activation="relu") for a, b in pairs])
    assert_close(y, parts, **EXACT)
    assert_close(dict(ghost.state_dict()), dict(plain.state_dict()), **EXACT)
    for wanted, got in zip(
        torch.autograd.grad(parts, [*leaves[1], *plain.parameters()], dy),
        torch.autograd.grad(y, [*leaves[0], *ghost.parameters()], dy),
        strict=True,
    ):
        assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def written_out(x, weight, bias, residual, size):
    """The formula in differentiable operations of torch."""
    shape = (1, -1, *[1] * (x.dim() - 2))
    dims = [d for d in range(x.dim()) if d != 1]
    y = []
    for part, extra in zip(x.split(size), residual.split(size), strict=True):
        mean, var = part.mean(dims, keepdim=True), part.var(dims, unbiased=False, keepdim=True)
        z = (part - mean) / (var + 1e-5).sqrt() * weight.view(shape) + bias.view(shape)
        y.append(torch.nn.functional.silu(z + extra))
    return torch.cat(y)


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_gradients_of_first_and_second_order(layout):
    layer = lnn.GhostBatchNorm1d(2, 2, dtype=torch.float64, activation="silu")
    x, residual = (
        LAYOUTS[layout](normal(5, 2, 3, seed=k)).detach().requires_grad_() for k in range(2)
    )
    weight, bias = (normal(2, seed=k).requires_grad_() for k in (3, 4))

    def ours(x, weight, bias, residual):
        values = {"weight": weight, "bias": bias}
        return torch.func.functional_call(layer, values, (x,), {"residual": residual})

    leaves = (x, weight, bias, residual)
    assert_close(ours(*leaves), written_out(*leaves, 2))
    dy = normal(5, 2, 3, seed=9)
    grads = [torch.autograd.grad(f, leaves, dy) for f in (ours(*leaves), written_out(*leaves, 2))]
    assert_close(*grads)
    assert torch.autograd.gradcheck(ours, leaves)
    assert torch.autograd.gradgradcheck(ours, leaves)


@pytest.mark.parametrize("whole", [False, True])
def test_a_mask_counts_in_each_part(whole):
    x = normal(7, 3, 4) + 2
    mask = torch.tensor([True, True, False, True]) if whole else normal(7, 4, seed=3) > 0
    layer, plain = (
        kind(3, dtype=torch.float64) for kind in (lnn.GhostBatchNorm1d, lnn.BatchNorm1d)
    )
    layer.ghost_size = 3
    poisoned = torch.where(mask.expand(7, 4)[:, None], x, torch.nan)
    y = layer(poisoned, mask=mask, residual=x)
    masks = mask.expand(7, 4).split(3)
    each = zip(poisoned.split(3), masks, x.split(3), strict=True)
    assert_close(y, torch.cat([plain(a, mask=m, residual=r) for a, m, r in each]))
    assert_close(dict(layer.state_dict()), dict(plain.state_dict()))


def test_evaluation_without_averages_takes_the_batch_as_a_whole():
    layer = lnn.GhostBatchNorm1d(3, 2, track_running_stats=False)
    x = normal(6, 3).float()
    assert_close(layer.eval()(x), nn.BatchNorm1d(3)(x))
    assert_close(layer.train()(x), torch.cat([nn.BatchNorm1d(3)(part) for part in x.split(2)]))


# Bad input


def untouched(layer, error, message, *args, **named):
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(error, match=message):
        layer(*args, **named)
    assert_close(dict(layer.state_dict()), dict(before), **EXACT)


@pytest.mark.parametrize(
    ("size", "error"), [(0, ValueError), (-3, ValueError), (2.0, TypeError), (True, TypeError)]
)
def test_a_ghost_size_is_a_whole_number_of_samples(size, error):
    with pytest.raises(error, match=r"ghost_size.*got"):
        lnn.GhostBatchNorm2d(3, size)
    layer = lnn.GhostBatchNorm1d(3)
    layer.ghost_size = size
    untouched(layer, error, "ghost_size", torch.randn(4, 3))


def test_bad_batches_are_refused_and_change_nothing():
    x, one = torch.randn(4, 3), lnn.GhostBatchNorm1d(3, 1)
    untouched(one, ValueError, "each ghost batch.*ghost_size=1", x)
    untouched(one, ValueError, r"more than one value per channel.*\(1, 3\)", x[:1])
    assert one(torch.randn(4, 3, 2)).shape == (4, 3, 2)  # two values a channel in each
    two = lnn.GhostBatchNorm1d(3, 2)
    for policy in ("torch", "guarded"):
        two.update_policy = policy
        untouched(two, ValueError, "residual", x, residual=torch.randn(3, 3))
        untouched(two, ValueError, "mask of shape", x, mask=torch.ones(3, dtype=torch.bool))
        untouched(two, TypeError, "boolean mask", x, mask=torch.ones(4))
    untouched(two, ValueError, "expected 2D or 3D", torch.randn(4, 3, 2, 2))
    untouched(two, RuntimeError, r"shape \(2,\)", torch.randn(4, 2))
    layer = lnn.GhostBatchNorm1d(3, 2)
    assert layer(torch.randn(0, 3)).shape == (0, 3)


def test_nan_stays_in_its_part():
    layer = lnn.GhostBatchNorm1d(2, 2)
    x = torch.randn(6, 2)
    x[2, 0] = torch.nan
    y = layer(x)
    assert y[2:4, 0].isnan().all()
    assert y[[0, 1, 4, 5]].isfinite().all()
    assert y[:, 1].isfinite().all()


# Switches


def test_guarded_keeps_a_poisoned_part_out_and_takes_the_others():
    layer, plain = lnn.GhostBatchNorm1d(2, 2), lnn.BatchNorm1d(2)
    layer.update_policy = "guarded"
    x = torch.randn(6, 2)
    x[2, 0] = torch.nan
    with pytest.warns(UserWarning, match="met NaN or infinity"):
        layer(x)
    plain(x[:2])
    plain(x[4:])
    assert_close(dict(layer.state_dict()), dict(plain.state_dict()))
    assert livella.skipped_updates(layer) == {"": 1}
    with torch.no_grad():
        layer(x)
    assert layer.num_batches_tracked == 2


@pytest.mark.parametrize("switch", [{}, {"update_running": False}, {"normalize_by": "running"}])
@pytest.mark.parametrize("policy", ["torch", "guarded"])
def test_each_switch(switch, policy):
    layer, parts = lnn.GhostBatchNorm1d(3, 2), lnn.BatchNorm1d(3)
    for name, value in {**switch, "update_policy": policy}.items():
        setattr(layer, name, value)
    x = torch.randn(5, 3) + 1
    y = layer(x)
    kept = copy.deepcopy(parts).eval()(x)
    each = torch.cat([parts(part) for part in (x[:2], x[2:])])
    assert_close(y, kept if "normalize_by" in switch else each)
    expected = lnn.BatchNorm1d(3) if "update_running" in switch else parts
    assert_close(dict(layer.state_dict()), dict(expected.state_dict()))
    layer.eval().normalize_by = "batch"
    assert_close(layer(x), each)


def test_frozen_it_normalizes_by_its_averages():
    layer = livella.freeze(lnn.GhostBatchNorm1d(3, 2)).train()
    x = torch.randn(6, 3)
    assert_close(layer(x), lnn.BatchNorm1d(3).eval()(x))
    assert livella.unfreeze(layer)(x).shape == x.shape
    assert layer.num_batches_tracked == 3


# Torch's tools and ours


def test_copies_files_and_state():
    layer = lnn.GhostBatchNorm2d(3, 4, 1e-3, None, activation="relu", bias=False, device="cpu")
    x = torch.randn(8, 3, 2, 2)
    layer(x)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        assert repr(other) == repr(layer)
        assert_close(other.eval()(x), copy.deepcopy(layer).eval()(x), **EXACT)
        assert_close(dict(other.state_dict()), dict(layer.state_dict()))
    assert repr(layer).endswith("activation=relu, ghost_size=4)")
    assert list(lnn.GhostBatchNorm2d(3).state_dict()) == list(nn.BatchNorm2d(3).state_dict())
    meta = lnn.GhostBatchNorm3d(3, device="meta", dtype=torch.float64)
    assert (meta.weight.device.type, meta.running_var.dtype) == ("meta", torch.float64)
    assert lnn.make_norm("ghost", 4, 2, ghost_size=8).ghost_size == 8


# The compiler itself makes an instance of autograd.Function, and warns of it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("options", [{}, {"momentum": None, "activation": "relu"}])
@pytest.mark.parametrize("training", [True, False])
def test_it_compiles_as_one_graph_and_exports(training, options):
    eager = lnn.GhostBatchNorm2d(3, 2, **options).train(training)
    layer, exported = copy.deepcopy(eager), copy.deepcopy(eager)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for n in (5, 7):
        x = torch.randn(n, 3, 2, 2)
        leaves = [x.clone().requires_grad_() for _ in range(2)]
        ys = compiled(leaves[0]), eager(leaves[1])
        assert_close(*ys)
        assert_close(
            *(torch.autograd.grad(y.sin().sum(), a)[0] for y, a in zip(ys, leaves, strict=True))
        )
    assert_close(dict(layer.state_dict()), dict(eager.state_dict()))
    if options.get("momentum", 0.1) is not None:
        plain = copy.deepcopy(exported)
        program = torch.export.export(exported, (x,)).module()
        assert_close(program(x), plain(x))
        assert_close(program.running_var, plain.running_var)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchs_tools_leave_it_what_it_is():
    from torch.fx.experimental.optimization import fuse  # warns when imported

    model = nn.Sequential(nn.Conv2d(2, 3, 1), lnn.GhostBatchNorm2d(3, 4), nn.BatchNorm2d(3))
    assert not isinstance(model[1], _BatchNorm)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert type(converted[1]) is lnn.GhostBatchNorm2d
    assert isinstance(converted[2], nn.SyncBatchNorm)
    x = torch.randn(6, 2, 3, 3)
    with pytest.raises(TraceError):
        fuse(model.eval())
    alone = nn.Sequential(nn.Conv2d(2, 3, 1), lnn.GhostBatchNorm2d(3, 4))
    before = copy.deepcopy(alone.state_dict())
    torch.optim.swa_utils.update_bn([x], alone)
    assert_close(dict(alone.state_dict()), dict(before), **EXACT)


def test_livellas_tools_do_right_or_say_that_they_do_not():
    model = nn.Sequential(nn.Conv2d(2, 3, 1), lnn.GhostBatchNorm2d(3, 4), nn.ReLU())
    x = torch.randn(9, 2, 3, 3)
    with pytest.warns(UserWarning, match=r"left alone.*1 \(GhostBatchNorm2d\)"):
        lnn.SyncBatchNorm.convert(model)
    assert type(model[1]) is lnn.GhostBatchNorm2d
    with pytest.raises(
        TypeError, match=r"GhostBatchNorm2d.*more than the moments of the whole batch"
    ):
        livella.accumulate(model, [x], lambda output, _: output.sum())
    with livella.pooled_updates(model):
        model(x)
    values = model[0](x).movedim(1, 0).flatten(1)
    assert_close(model[1].running_var, 0.9 + 0.1 * values.var(1))
    assert model[1].num_batches_tracked == 1
    livella.estimate_population(model, [x[:4], x[4:]]).apply()
    assert_close(model[1].running_mean, values.mean(1), rtol=1e-4, atol=1e-5)
    twin = copy.deepcopy(model)
    assert_close(livella.accelerate(model)(x), twin(x))
    assert_close(dict(model.state_dict()), dict(twin.state_dict()))
