"""The kernels against definitions in long double and float64, on one instruction set.

`LIVELLA_ISA` names another than the widest.

Then what only kernels can get wrong: tails, alignment, rounding, size, threads.
"""

import math
import mmap
import os
import sys
from contextlib import suppress

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from livella import native
from livella.functional import batch_norm

if not native.loaded:
    pytest.skip(f"needs the kernels; the path in use: {native.path()}", allow_module_level=True)

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ACTIVATIONS = {
    None: lambda z: z,
    "relu": lambda z: np.maximum(z, 0),
    "relu6": lambda z: np.clip(z, 0, 6),
    "leaky_relu": lambda z: np.where(z > 0, z, z / 100),
    "silu": lambda z: z / (1 + np.exp(-z)),
    "hardswish": lambda z: z * np.clip(z + 3, 0, 6) / 6,
}
TORCHS = {
    None: lambda z: z,
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "silu": F.silu,
    "hardswish": F.hardswish,
}
KINKS = torch.tensor([-3.0, 0.0, 3.0, 6.0], dtype=torch.float64)
EPS = 1e-3


def normal(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def wide(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def place(t, dtype, last=False, offset=0):
    """Give t in a dtype and a layout, some elements into its storage."""
    t = t.movedim(1, -1) if last else t
    memory = torch.empty(offset + t.numel(), dtype=dtype)
    placed = memory[offset:].view(t.shape).copy_(t)
    return placed.movedim(-1, 1) if last else placed


def by_channel(t):
    """Give t with a row for each channel."""
    return t.detach().movedim(1, 0).reshape(t.shape[1], -1)


def exact(t):
    """Give t in long double, a row for each channel."""
    return by_channel(t).double().numpy().astype("longdouble")


def moments(t):
    """Give the mean and the biased variance by their definition: two passes, in long double."""
    values = exact(t)
    mean = values.mean(1, keepdims=True)
    return mean[:, 0], np.square(values - mean).mean(1)


def define(x, mean, var, weight, bias, residual, activation, eps=EPS):
    """Give y by its definition in long double, a row for each channel."""
    mean, var = (np.asarray(each, "longdouble")[:, None] for each in (mean, var))
    z = (exact(x) - mean) / np.sqrt(var + eps)
    if weight is not None:
        weight, bias = (t.detach().double().numpy()[:, None] for t in (weight, bias))
        z = z * weight + bias
    return ACTIVATIONS[activation](z if residual is None else z + exact(residual))


def differentiate(x, weight, bias, residual, mean, var, activation, training, dy):
    """Give the gradients that autograd takes of the formula written out, in float64.

    Where z is near a kink, its rounding decides the derivative: dy is made zero there, in place.
    """
    leaves = [t if t is None else t.detach().double().requires_grad_() for t in (x, weight, bias)]
    leaves.append(residual if residual is None else residual.detach().double().requires_grad_())
    x, weight, bias, residual = leaves
    across = (1, -1, *[1] * (x.dim() - 2))
    if training:
        dims = [d for d in range(x.dim()) if d != 1]
        mean, var = x.mean(dims), x.var(dims, unbiased=False)
    z = (x - mean.double().view(across)) / (var.double().view(across) + EPS).sqrt()
    if weight is not None:
        z = z * weight.view(across) + bias.view(across)
    if residual is not None:
        z = z + residual
    if activation is not None:
        dy.masked_fill_((z.detach().unsqueeze(-1) - KINKS).abs().amin(-1) < 0.1, 0)
    wanted = [t for t in leaves if t is not None]
    return torch.autograd.grad(TORCHS[activation](z), wanted, dy.double())


def near(ours, expected, name, scale, rounded=0.0):
    """Allow one rounding of the result and of a number `rounded`, and `scale` of the computing."""
    expected = torch.as_tensor(np.asarray(expected, "float64"))
    own, computing = torch.finfo(ours.dtype), torch.finfo(wide(ours.dtype))
    allowed = own.eps * (expected.abs() + rounded) + own.tiny + computing.eps * scale
    excess = ((ours.detach().double() - expected).abs() / allowed).max()
    assert excess <= 1, f"{name}: {excess:.3g} times the error allowed"


def make(case):
    """Give x, weight, bias, residual, the running averages and dy of a case."""
    shape, dtype, seed = case["shape"], case["dtype"], case["seed"]
    how = (dtype, case.get("last", False), case.get("offset", 0))
    parameter = dtype if case.get("narrow") else wide(dtype)
    x, residual, dy = (place(2 * normal(shape, seed + k) + 1, *how) for k in range(3))
    weight, bias, mean, var = (normal(shape[1], seed + k).to(parameter) for k in range(3, 7))
    if not case.get("affine", True):
        weight = bias = None
    leaves = x, weight, bias, residual if case["residual"] else None
    leaves = [t if t is None else t.requires_grad_() for t in leaves]
    return leaves, mean, var.square() + 0.1, dy


def check(case):
    """Compare all that a call and its backward give with the definitions."""
    (x, weight, bias, residual), *before, dy = make(case)
    training, activation = case["training"], case["activation"]
    after = [t.clone() for t in before]
    y = batch_norm(
        x, *after, weight, bias, training, 0.25, EPS, activation=activation, residual=residual
    )
    assert (y.dtype, y.shape) == (x.dtype, x.shape)
    mean, var = moments(x) if training else (t.double().numpy() for t in before)
    y_defined = define(x, mean, var, weight, bias, residual, activation)
    near(by_channel(y), y_defined, "y", 160)
    count = x.numel() // x.shape[1]
    for old, new, batch in zip(before, after, (mean, var * count / max(1, count - 1)), strict=True):
        share = 0.25 if training else 0
        near(new, (1 - share) * old.double().numpy() + share * batch, "a running average", 32)

    expected = differentiate(x, weight, bias, residual, *before, activation, training, dy)
    wanted = [t for t in (x, weight, bias, residual) if t is not None]
    # dz, which is the gradient of the residual, is read again from where it was written.
    rounded = expected[0].abs().max() if residual is not None and activation else 0
    for leaf, ours, theirs in zip(
        wanted, torch.autograd.grad(y, wanted, dy), expected, strict=True
    ):
        assert ours.dtype == leaf.dtype
        scale = 400 + (0 if leaf.dim() > 1 else 16 * count)
        near(ours, theirs, f"gradient of shape {tuple(leaf.shape)}", scale, rounded)


@pytest.fixture
def threads():
    """Give the function that sets their number, and set it back."""
    number = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(number)


# Against the definition


SHAPES = st.integers(2, 5).flatmap(
    lambda dims: st.tuples(
        st.integers(2, 9), st.integers(1, 70), *[st.sampled_from([1, 2, 3, 7, 19])] * (dims - 2)
    )
)
CASES = st.fixed_dictionaries(
    {
        "shape": SHAPES,
        "dtype": st.sampled_from(DTYPES),
        "last": st.booleans(),
        "offset": st.integers(0, 3),
        "activation": st.sampled_from(list(ACTIVATIONS)),
        "residual": st.booleans(),
        "training": st.booleans(),
        "affine": st.booleans(),
        "narrow": st.booleans(),
        "seed": st.integers(0, 9999),
    }
)


def test_the_instruction_set_is_the_one_asked_for():
    wanted = os.environ.get("LIVELLA_ISA")
    assert native.path() == f"native ({wanted or torch.ops.livella.instruction_set()})"


@settings(max_examples=150)
@given(CASES)
def test_any_call_agrees_with_the_definition(case):
    check(case)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_in_every_dtype(activation, with_residual, training, last):
    for seed, dtype in enumerate(DTYPES):
        check(
            {
                "shape": (3, 5, 4, 9), "dtype": dtype, "last": last, "offset": seed, "seed": seed,
                "activation": activation, "residual": with_residual, "training": training,
            }
        )  # fmt: skip


# Lengths from one value to one more than two of the widest vectors, and such a tail behind each
# size at which the kernels take another way: a row of its own, a piece of a row, a unit of samples.
TAILS = range(1, 34)
SIZED = {
    "channels": lambda n: (3, n),
    "samples": lambda n: (n + 1, 5),
    "positions": lambda n: (2, 3, n),
    "samples of rows": lambda n: (n + 1, 3, 2),
    "rows": lambda n: (2, 2, 255 + n),
    "pieces": lambda n: (2, 1, 8191 + n),
}


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sized", SIZED)
def test_every_tail(sized, dtype, last):
    for n in TAILS:
        check(
            {
                "shape": SIZED[sized](n), "dtype": dtype, "last": last, "offset": n % 4, "seed": n,
                "activation": (None, "relu")[n % 2], "residual": n % 3 == 0,
                "training": n % 5 > 0,
            }
        )  # fmt: skip


CUT_INTO_PARTS = {
    "long rows": ((4, 3, 300, 300), False),
    "many channels": ((64, 40, 14, 14), False),
    "short rows": ((128, 512, 7, 7), False),
    "rows of many samples": ((300, 2, 15, 15), False),
    "channels last": ((8, 64, 60, 60), True),
    "no positions": ((5000, 130), False),
}


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("name", ["rows of many samples", "no positions"])
def test_large_shapes_agree_with_the_definition(name, number, threads):
    threads(number)
    shape, last = CUT_INTO_PARTS[name]
    check(
        {
            "shape": shape, "dtype": torch.float32, "last": last, "seed": 0, "activation": "relu6",
            "residual": True, "training": True,
        }
    )  # fmt: skip


@pytest.mark.parametrize("name", CUT_INTO_PARTS)
def test_threads_and_repetition_change_no_bit(name, threads):
    shape, last = CUT_INTO_PARTS[name]
    generator = torch.Generator().manual_seed(0)
    x, dy = (place(torch.randn(shape, generator=generator), torch.float32, last) for _ in range(2))
    x.requires_grad_()
    weight, bias = (normal(shape[1], k).float().requires_grad_() for k in (1, 2))

    def run(training):
        mean, var = torch.zeros(shape[1]), torch.ones(shape[1])
        y = batch_norm(x, mean, var, weight, bias, training, activation="relu")
        return y.detach(), mean, var, *torch.autograd.grad(y, (x, weight, bias), dy)

    for training in (True, False):
        threads(1)
        first = run(training)
        for number in (1, 2, 3):
            threads(number)
            assert all(map(torch.equal, run(training), first)), (number, training)


@pytest.mark.parametrize("dtype", DTYPES)
def test_running_averages_may_lie_anywhere(dtype):
    x, memory = normal((4, 3, 5)).to(dtype), normal((3, 8), 1).abs().to(wide(dtype))
    before, apart = memory.clone(), [memory[:, k].clone() for k in (2, 5)]
    y = batch_norm(x, memory[:, 2], memory[:, 5], training=True)
    assert torch.equal(y, batch_norm(x, *apart, training=True))
    assert torch.equal(memory[:, [2, 5]], torch.stack(apart, 1))
    others = [0, 1, 3, 4, 6, 7]
    assert torch.equal(memory[:, others], before[:, others])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0, 3, 4), (2, 3, 0), (2, 0, 4), (0, 3, 2, 2)])
def test_the_operators_refuse_nothing_at_all(shape, training):
    """To divide by how much there is would end the process."""
    x, mean, var = torch.ones(shape), torch.ones(shape[1]), torch.ones(shape[1])
    given = (x, None, None, x, mean, var, None, training, 0.5, EPS, "relu")
    with pytest.raises(RuntimeError, match="livella: expected an input of one value or more"):
        torch.ops.livella.batch_norm(*given)
    kept = torch.ones(2, shape[1]).double()
    for wanted in (True, False):
        with pytest.raises(RuntimeError, match="livella: expected an input of one value or more"):
            torch.ops.livella.batch_norm_backward(
                x, x, kept, None, None, x, "relu", training, wanted, True, wanted
            )


WRONG = {
    "rank": (torch.ones(3), {}),
    "strided input": (torch.ones(4, 3, 8)[..., ::2], {}),
    "overlapping input": (torch.ones(3).expand(4, 3), {}),
    "weight size": (torch.ones(4, 3), {"weight": torch.ones(2)}),
    "bias rank": (torch.ones(4, 3), {"bias": torch.ones(3, 1)}),
    "mean size": (torch.ones(4, 3), {"running_mean": torch.ones(4)}),
    "variance of no extent": (torch.ones(4, 3), {"running_var": torch.ones(1).expand(3)}),
    "mean alone": (torch.ones(4, 1), {"running_mean": torch.ones(1), "running_var": None}),
    "residual size": (torch.ones(4, 3), {"residual": torch.ones(4, 2)}),
    "residual layout": (torch.ones(4, 3), {"residual": torch.ones(3, 4).t()}),
    "residual dtype": (torch.ones(4, 3), {"residual": torch.ones(4, 3).double()}),
    "integers": (torch.ones(4, 3).long(), {}),
    "counter dtype": (torch.ones(4, 3), {"num_batches_tracked": torch.ones(())}),
}


@pytest.mark.parametrize("case", WRONG)
def test_the_operator_refuses_what_would_reach_outside_its_memory(case):
    x, changed = WRONG[case]
    given = {
        "weight": None, "bias": None, "residual": None, "running_mean": torch.ones(3),
        "running_var": torch.ones(3), "num_batches_tracked": torch.tensor(1), "training": True,
        "momentum": 0.1, "eps": EPS, "activation": None,
    } | changed  # fmt: skip
    with pytest.raises(RuntimeError, match="livella: expected"):
        torch.ops.livella.batch_norm(x, **given)
    for kept in ("running_mean", "running_var"):
        assert kept in changed or torch.equal(given[kept], torch.ones(3))
    assert given["num_batches_tracked"] == 1


# Values that are hard to sum


def errors(x, function):
    """Give the rms error of y, and the relative one of the variance, by `function`."""
    mean, var = torch.zeros(x.shape[1]), torch.ones(x.shape[1])
    y = function(x, mean, var, training=True, momentum=1.0, eps=1e-12)
    count = x.numel() // x.shape[1]
    mean_exact, var_exact = moments(x)
    defined = define(x, mean_exact, var_exact, None, None, None, None, eps=1e-12)
    unbiased = var_exact * count / (count - 1)
    return (
        float(np.sqrt(np.square(exact(y) - defined).mean())),
        float(np.sqrt(np.square(var.double().numpy() / unbiased - 1).mean())),
    )


LAYOUTS = {
    "(N, C)": ((4096, 8), False),
    "NCHW": ((16, 8, 16, 16), False),
    "14×14": ((16, 8, 14, 14), False),
    "7×7": ((160, 8, 7, 7), False),
    "long rows": ((2, 8, 48, 48), False),
    "channels last": ((16, 8, 16, 16), True),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("offset", "deviation"), [(0.0, 1.0), (100.0, 1.0), (1e4, 1e-2)])
def test_the_error_is_no_larger_than_that_of_torch(layout, offset, deviation):
    shape, last = LAYOUTS[layout]
    x = place(offset + deviation * normal(shape), torch.float32, last)
    ours, theirs = errors(x, batch_norm), errors(x, F.batch_norm)
    for mine, torchs in zip(ours, theirs, strict=True):
        assert mine <= 1.5 * torchs + 2e-7
    if offset == 1e4 and layout in ("(N, C)", "channels last"):
        assert ours[0] < theirs[0] / 4
        assert ours[1] < theirs[1] / 4


@pytest.mark.parametrize("few", [4, 16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_outliers_in_front_cost_little(layout, few):
    shape, last = LAYOUTS[layout]
    values = normal(shape).movedim(1, -1).contiguous()
    values.view(-1, shape[1])[:few] += 1e4
    x = place(values.movedim(-1, 1), torch.float32, last)
    _, of_variance = errors(x, batch_norm)
    assert of_variance < 5e-6  # where the variance is made of the outliers alone


@pytest.mark.parametrize("shape", [(128, 8, 7, 7), (128, 8, 14, 14), (128, 8, 48)])
def test_one_sample_far_off_in_front_costs_little(shape):
    values = normal(shape)
    values[0] += 12345.678
    mean, var = torch.zeros(8), torch.ones(8)
    batch_norm(values.float(), mean, var, training=True, momentum=1.0)
    _, expected = moments(values.float())
    count = values.numel() // 8
    unbiased = (expected * count / (count - 1)).astype("float64")
    assert_close(var.double(), torch.tensor(unbiased), rtol=4e-6, atol=0)


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_at_a_large_mean(layout, activation):
    shape, last = LAYOUTS[layout]
    x = place(1e4 + normal(shape) / 8, torch.float32, last)
    dy = place(
        (x.detach().double() - 1e4) * 8 + normal(shape, 1), torch.float32, last
    )  # so that dγ is large
    weight, bias = normal(8, 2).float(), normal(8, 3).float()
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    y = batch_norm(x, None, None, weight, bias, True, eps=EPS, activation=activation)
    expected = differentiate(x, weight, bias, None, None, None, activation, True, dy)
    for ours, theirs in zip(torch.autograd.grad(y, leaves, dy), expected, strict=True):
        near(ours, theirs, f"gradient of shape {tuple(theirs.shape)}", 0, 32 * theirs.abs().max())


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("value", [0.0, 0.1, -3.7, 1e4 / 3, 1e15])
def test_a_constant_channel_has_no_variance_at_all(value, last):
    for shape in ((7, 3), (5, 3, 37), (2, 3, 300), (300, 3, 15, 15)):
        x = place(torch.full(shape, value), torch.float32, last)
        mean, var = torch.zeros(3), torch.ones(3)
        bias = torch.tensor([-1.0, 0.5, 2.0])
        y = batch_norm(x, mean, var, torch.ones(3), bias, training=True, momentum=1.0)
        assert torch.equal(var, torch.zeros(3)), shape
        assert_close(mean, x[0].reshape(3, -1)[:, 0], rtol=2e-7, atol=0)
        assert_close(y, bias.view(1, 3, *[1] * (x.dim() - 2)).expand(shape), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("shape", [(9, 19), (4, 19, 5), (2, 19, 301)])
def test_what_is_not_finite_stays_in_its_channel(shape, value, training, last):
    def run(spoilt):
        x = place(normal(shape), torch.float32, last)
        if spoilt:
            x[(1, 7, *[0] * (x.dim() - 2))] = value
        x.requires_grad_()
        stats = torch.zeros(19), torch.ones(19)
        y = batch_norm(x, *stats, torch.ones(19), torch.zeros(19), training, activation="silu")
        (dx,) = torch.autograd.grad(y, x, place(normal(shape, 1), torch.float32, last))
        return [exact(t) for t in (y, dx)] + [t.numpy() for t in stats]

    others = np.arange(19) != 7
    for spoilt, clean in zip(run(True), run(False), strict=True):
        np.testing.assert_array_equal(spoilt[others], clean[others])
    y, dx, mean, var = (each[7] for each in run(True))
    if training:
        assert np.isnan(y).all()
        assert np.isnan(dx).all()
        assert not np.isfinite([mean, var]).any()
    else:
        assert np.isfinite(y).sum() >= y.size - 1, "others in the channel are as they were"


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["first", "last", "one", "all"])
@pytest.mark.parametrize("shape", [(9, 19), (900, 19), (150, 3, 5), (150, 3, 130), (2, 3, 9001)])
def test_the_mean_of_what_is_infinite_is_infinite(shape, where, value, last):
    values = normal(shape).movedim(1, 0).contiguous()
    of_channel = values.flatten(1)[1]
    places = {"first": slice(1), "last": slice(-1, None), "one": slice(7, 8), "all": slice(None)}
    of_channel[places[where]] = value
    x = place(values.movedim(0, 1), torch.float32, last)
    mean, var = torch.zeros(shape[1]), torch.ones(shape[1])
    batch_norm(x, mean, var, training=True, momentum=1.0)
    assert_close(mean[1], torch.tensor(value), equal_nan=True)
    assert not var[1].isfinite()
    assert mean.isfinite().sum() == var.isfinite().sum() == shape[1] - 1


def test_panels_of_several_blocks():
    """More rows than 64 panels of 128 hold; the channels are alike, so that one tells of all."""
    of_one = torch.arange(8300).div(64, rounding_mode="floor").remainder(7).double()[:, None]
    x = of_one.repeat(1, 256).requires_grad_()
    weight, bias = (torch.full((256,), v).double().requires_grad_() for v in (0.5, 1.5))
    mean, var = torch.zeros(256).double(), torch.ones(256).double()
    y = batch_norm(x, mean, var, weight, bias, True, momentum=1.0)
    leaves = [t[..., :1].detach().requires_grad_() for t in (x, weight, bias)]
    expected = F.batch_norm(leaves[0], None, None, *leaves[1:], training=True)
    found = [mean, var, y, *torch.autograd.grad(y, (x, weight, bias), x.detach().cos())]
    wanted = torch.autograd.grad(expected, leaves, of_one.cos())
    for ours, theirs in zip(found, (of_one.mean(), of_one.var(), expected, *wanted), strict=True):
        assert_close(ours, theirs.expand(ours.shape), rtol=1e-9, atol=1e-9)


def test_an_infinite_mean_stays_infinite_through_the_blocks_of_a_panel():
    x, mean = torch.zeros(8300, 256), torch.zeros(256)
    x[0, 1] = torch.inf
    batch_norm(x, mean, torch.ones(256), training=True, momentum=1.0)
    assert mean[1] == torch.inf
    assert not mean[[0, *range(2, 256)]].any()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", [(9, 19), (4, 19, 5), (2, 19, 301)])
def test_in_evaluation_no_gradient_asks_for_the_input(shape, last):
    dy = place(normal(shape, 1), torch.float32, last)

    def run(value):
        x = place(normal(shape), torch.float32, last)
        x[:, 7] = value
        x.requires_grad_()
        y = batch_norm(x, torch.zeros(19), torch.ones(19), torch.full((19,), 3.0), eps=0.0)
        return torch.autograd.grad(y, x, dy)[0]

    for value in (torch.nan, torch.inf, 1.0):
        assert torch.equal(run(value), 3 * dy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_exponential_is_right_on_average_where_its_series_ends(dtype):
    # exp(z) = 2ⁿ·exp(r): the term left out is largest, and of one sign, at r = ½·ln 2.
    n = torch.arange(10, 74, dtype=torch.float64)
    z = -(n[:, None] * np.log(2) + torch.linspace(0.33, 0.345, 65).double()).to(dtype)
    y = batch_norm(z[:, None], *(t.to(dtype) for t in (torch.zeros(1), torch.ones(1))), eps=0.0,
                   activation="silu")  # fmt: skip
    expected = ACTIVATIONS["silu"](exact(z[:, None]))
    assert abs((exact(y) / expected - 1).mean()) < 0.2 * torch.finfo(dtype).eps


# Bits and sizes


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_number_of_two_bytes_comes_through(dtype, last):
    bits = torch.arange(-(2**15), 2**15).to(torch.int16)
    x = bits.view(dtype).view(64, 4, 256)
    x = x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x
    y = batch_norm(x, torch.zeros(4), torch.ones(4), eps=0.0)
    number = ~x.isnan()
    assert torch.equal(y.isnan(), x.isnan())
    assert torch.equal(y[number], x[number])
    signed = number & (x != 0)  # −0 − 0 + 0 is 0, in torch's as well
    assert torch.equal(
        y.contiguous().view(torch.int16)[signed], x.contiguous().view(torch.int16)[signed]
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_to_nearest_and_ties_to_even(dtype):
    numbers = torch.arange(2**15).to(torch.int16).view(dtype).float()
    numbers = numbers[numbers.isfinite()]
    between = numbers[1:] / 2 + numbers[:-1] / 2
    beyond = torch.tensor([65519.0, 65520.0, 65535.0, 1e6])
    weight = torch.cat([numbers, between, between * (1 + 1e-6), between * (1 - 1e-6), beyond])
    weight = torch.cat([weight, -weight])
    stats = torch.zeros(len(weight)), torch.ones(len(weight))
    y = batch_norm(torch.ones(1, len(weight), dtype=dtype), *stats, weight, eps=0.0)
    assert torch.equal(y[0], weight.to(dtype))


def test_the_stride_of_one_element_does_not_matter():
    x = torch.empty_strided((1, 3, 4), (99, 1, 3)).copy_(normal((1, 3, 4)))
    dense = x.clone(memory_format=torch.contiguous_format)
    assert_close(*(batch_norm(t, None, None, training=True) for t in (x, dense)))


BORDER = 2**31
BEYOND = BORDER + 2**20
LARGE = {
    "long rows": ((2049, 2, 2**19), False, None),
    "ghost batches": ((2049, 2, 2**19), False, 1),
    "short rows": ((1337, 32_790, 49), False, None),
    "channels last": ((2, 256, BEYOND // 512), True, None),
}


@pytest.fixture(scope="module")
def untouched():
    """Give zeros that take no memory: pages that nobody wrote to are all the same one."""
    if sys.maxsize < 2**32 or sys.platform != "linux":
        pytest.skip("needs addresses of 64 bits, and a page of zeros for all that is only read")
    flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0x4000)
    try:
        memory = mmap.mmap(-1, 2 * (BEYOND + 2**16), flags=flags)
    except OSError as error:
        pytest.skip(f"this machine grants no 4.3 GB of addresses: {error}")
    with suppress(OSError):  # where it has none
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.bfloat16)


@pytest.mark.parametrize("name", LARGE)
def test_more_elements_than_32_bits_can_count(name, untouched):
    shape, last, ghost_size = LARGE[name]
    count, channels = math.prod(shape), shape[1]
    assert BORDER < count <= len(untouched)
    values = {0: 1.0, BORDER - 1: 2.0, BORDER: 4.0, BORDER + 12_345: -3.0, count - 1: 5.0}
    by_channel = [[] for _ in range(channels)]
    for at, value in values.items():
        by_channel[at // (1 if last else math.prod(shape[2:])) % channels].append(value)
    x = untouched[:count]
    x = x.view(shape[0], -1, channels).movedim(-1, 1) if last else x.view(shape)
    statistics = (
        torch.tensor([[0.5], [2.0]]).double().repeat(shape[0] if ghost_size else 1, channels)
    )
    try:
        for at, value in values.items():
            untouched[at] = value
        _, dweight, dbias, _ = torch.ops.livella.batch_norm_backward(
            x, x, statistics, None, None, None, None, False, False, True, False, ghost_size
        )
        if name == "long rows":
            squares = torch.ops.livella.contributions(x, torch.zeros(2).double())[5]
            expected = [sum(v * v for v in each) for each in by_channel]
            assert (shape[0] * squares).tolist() == pytest.approx(expected)
    finally:
        untouched[list(values)] = 0
    assert dbias.tolist() == [sum(each) for each in by_channel]
    assert dweight.tolist() == [sum(2 * v * (v - 0.5) for v in each) for each in by_channel]


def test_an_output_of_more_bytes_than_32_bits_can_count(untouched):
    if os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 2**32:
        pytest.skip("needs 4 GB of free memory")
    values = {0: 1.0, BORDER // 2 - 1: 2.0, BORDER // 2: 4.0, BORDER // 2 + 12_345: -3.0}
    x = untouched[: 1025 * 2**20].view(1025, 2, 2**19)
    try:
        for at, value in values.items():
            untouched[at] = value
        y = batch_norm(x, None, None, training=True, eps=1.0)  # by a variance of next to nothing
    finally:
        untouched[list(values)] = 0
    y = y.view(-1)
    assert [float(y[at]) for at in values] == list(values.values())
    for between in (
        slice(1, 1000),
        slice(BORDER // 2 + 1, BORDER // 2 + 12_345),
        slice(-1000, None),
    ):
        assert y[between].abs().max() < 1e-6


# What samples contribute


def contributed(x: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """By numpy's mean and covariance, in float64."""
    values = x.double().flatten(2) if x.dim() > 2 else x.double()[:, :, None]
    n, channels, k = values.shape
    found = []
    for c in range(channels):
        of = values[:, c].numpy()
        shares = np.stack(
            [np.full(n, k), (of - float(centre[c])).sum(1), ((of - float(centre[c])) ** 2).sum(1)]
        )
        products = np.atleast_2d(np.cov(shares, ddof=0)) * n
        ends = [of.size, of.mean(), of.var() * of.size]
        found.append([*ends, *shares.mean(1), *products[np.triu_indices(3)]])
    return torch.tensor(np.array(found).T)


@pytest.mark.parametrize(
    "shape",
    [(1, 1), (7, 3), (40, 200), (1, 3, 2), (5, 2, 49), (3, 70, 5, 6), (2, 5, 20_001), (9, 1, 1, 1)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("last", [False, True])
def test_contributions_agree_with_the_definition(shape, dtype, last):
    x = (3 * normal(shape) + torch.arange(shape[1]).view(-1, *[1] * (len(shape) - 2))).to(dtype)
    if last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    centre = torch.arange(shape[1]).double() + 0.5
    found, expected = torch.ops.livella.contributions(x, centre), contributed(x, centre)
    near = 1e-11 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(found[:6], expected[:6], rtol=near, atol=near)
    # A mean off by δ moves each deviation by as much, and a product of two by δᵢ·dⱼ + δⱼ·dᵢ.
    off = near * (1 + expected[3:6].abs())
    spread = (len(x) * expected[[6, 9, 11]]).sqrt()
    pairs = [(i, j) for i in range(3) for j in range(i, 3)]
    allowed = [off[i] * spread[j] + off[j] * spread[i] + len(x) * off[i] * off[j] for i, j in pairs]
    assert ((found[6:] - expected[6:]).abs() <= near + 2 * torch.stack(allowed)).all()


@pytest.mark.parametrize("last", [False, True])
def test_contributions_far_from_zero_and_not_finite(last):
    x = (1e4 + 1e-2 * normal((6, 3, 500))).float()
    if last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    centre = x.double().mean((0, 2))
    found = torch.ops.livella.contributions(x, centre)
    variance = x.double().movedim(1, 0).flatten(1).var(1, unbiased=False)
    torch.testing.assert_close(found[2] / found[0], variance, rtol=1e-5, atol=0)
    for value in (torch.nan, torch.inf):
        x[4, 1, 7] = value
        again = torch.ops.livella.contributions(x, centre)
        assert torch.equal(again[:, [0, 2]], found[:, [0, 2]])
        assert not again[1:3, 1].isfinite().all()


@pytest.mark.parametrize("last", [False, True])
def test_contributions_of_a_constant_are_not_below_zero(last):
    values = torch.linspace(0.1, 7, 64)
    x = place(values[:, None].expand(5, 64, 49), torch.float32, last)
    found = torch.ops.livella.contributions(x, values.double() + 0.3)
    assert (found[2] >= 0).all()
    assert_close(found[2], torch.zeros(64).double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("x", "centre"),
    [
        (torch.ones(0, 3), torch.ones(3).double()),
        (torch.ones(4), torch.ones(1).double()),
        (torch.ones(2, 3).int(), torch.ones(3).double()),
        (torch.ones(2, 3, 4)[:, :, ::2], torch.ones(3).double()),
        (torch.ones(2, 3), torch.ones(2).double()),
        (torch.ones(2, 3), torch.ones(3)),
    ],
)
def test_contributions_refuse_what_is_not_theirs(x, centre):
    with pytest.raises(RuntimeError, match="livella: "):
        torch.ops.livella.contributions(x, centre)
