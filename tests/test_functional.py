"""`batch_norm`: gradients of both orders, masks, odd inputs, errors, tracing and autocast.

Agreement with torch over dtypes, layouts and options is tested through the layers.
"""

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from livella.checks import Call
from livella.functional import (
    backward_from_statistics,
    batch_norm,
    contributions,
    forward_with_statistics,
)
from livella.reference import ACTIVATIONS

EVERY_ACTIVATION = [None, *ACTIVATIONS]


def normal(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def averages(channels=3, dtype=torch.float64):
    return torch.full((channels,), 0.3, dtype=dtype), torch.full((channels,), 1.7, dtype=dtype)


def parameters(channels=3, dtype=torch.float64):
    return 1 + normal(channels, seed=8, dtype=dtype) / 4, normal(channels, seed=9, dtype=dtype)


def some_valid(*shape, seed=5):
    mask = normal(*shape, seed=seed) > -0.4
    mask.view(-1)[:2] = True
    return mask


# Both orders of gradient


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("activation", EVERY_ACTIVATION)
def test_gradients_of_both_orders(activation, training, with_residual, masked):
    x, residual = normal(4, 2, 3), normal(4, 2, 3, seed=1) if with_residual else None
    weight, bias = parameters(2)
    mask = some_valid(4, 3) if masked else None

    def run(x, weight, bias, residual):
        options = {"activation": activation, "residual": residual, "mask": mask}
        return batch_norm(x, *averages(2), weight, bias, training, **options)

    inputs = [t if t is None else t.requires_grad_() for t in (x, weight, bias, residual)]
    with torch.no_grad():
        z = batch_norm(x, *averages(2), weight, bias, training, residual=residual, mask=mask)
    kinks = torch.tensor([-3.0, 0.0, 3.0, 6.0]).double()
    on_valid = z if mask is None else z.movedim(1, -1)[mask]
    assert (on_valid.unsqueeze(-1) - kinks).abs().min() > 1e-4, "pick data away from the kinks"
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("has_weight", "has_bias"), [(True, False), (False, True), (False, False)])
def test_gradients_without_weight_or_bias(has_weight, has_bias, training):
    weight, bias = parameters()

    def run(x, weight, bias):
        return batch_norm(x, *averages(), weight, bias, training, activation="silu")

    inputs = (normal(5, 3), weight if has_weight else None, bias if has_bias else None)
    inputs = [t if t is None else t.requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)
    plain = inputs[0].detach()
    expected = F.silu(F.batch_norm(plain, *averages(), *inputs[1:], training=training))
    assert_close(run(*inputs), expected)


@pytest.mark.parametrize("training", [False, True])
def test_second_order_agrees_with_torch(training):
    def penalty(function):
        x, (weight, bias) = normal(6, 3, 4).requires_grad_(), parameters()
        weight.requires_grad_()
        y = function(x, *averages(), weight, bias, training)
        (slope,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), (x, weight))

    assert_close(penalty(batch_norm), penalty(F.batch_norm))


# The mask


@pytest.mark.parametrize("activation", [None, "silu"])
@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 9999))
def test_a_masked_batch_equals_its_valid_elements_alone(activation, n, length, seed):
    x, residual = normal(n, 3, length, seed=seed), normal(n, 3, length, seed=seed + 1)
    mask, dy = some_valid(n, length, seed=seed + 2), normal(n, 3, length, seed=seed + 3)

    def run(x, residual, dy, mask):
        leaves = [t.clone().requires_grad_() for t in (x, *parameters(), residual)]
        mean, var = averages()
        y = batch_norm(
            leaves[0], mean, var, *leaves[1:3], True,
            activation=activation, residual=leaves[3], mask=mask,
        )  # fmt: skip
        return y, mean, var, *torch.autograd.grad(y, leaves, dy)

    def gather(t):
        return t.movedim(1, -1)[mask]

    if mask.sum() < 2:
        return
    y, mean, var, dx, dweight, dbias, dr = run(x, residual, dy, mask)
    alone = run(gather(x), gather(residual), gather(dy), None)
    assert_close((gather(y), mean, var, gather(dx), dweight, dbias, gather(dr)), alone)
    for outside in (y, dx, dr):
        assert (outside.movedim(1, -1)[~mask] == 0).all()


@pytest.mark.parametrize("training", [False, True])
@given(st.sampled_from([0.0, -7.0, 1e30, math.inf, math.nan]), st.integers(0, 999))
def test_the_value_of_padding_has_no_influence(training, padding, seed):
    x, mask = normal(3, 2, 4, seed=seed, dtype=torch.float32), some_valid(3, 4, seed=seed + 1)

    def run(padding):
        filled = torch.where(mask.unsqueeze(1), x, padding)
        residual = torch.where(mask.unsqueeze(1), 1 - x, padding)
        leaves = [filled, *parameters(2, torch.float32), residual]
        leaves = [t.requires_grad_() for t in leaves]
        stats = averages(2, torch.float32)
        y = batch_norm(
            leaves[0], *stats, *leaves[1:3], training,
            activation="silu", residual=leaves[3], mask=mask,
        )  # fmt: skip
        dy = torch.where(mask.unsqueeze(1), x.cos(), padding)
        first = torch.autograd.grad(y, leaves, dy, create_graph=True)
        penalty = sum(t.sin().sum() for t in first)
        return y, *stats, *first, *torch.autograd.grad(penalty, leaves)

    assert_close(run(padding), run(1.0), rtol=0, atol=0)


@given(st.integers(0, 6), st.integers(0, 999))
def test_the_amount_of_padding_has_no_influence(extra, seed):
    x, mask = normal(3, 2, 4, seed=seed), some_valid(3, 4, seed=seed + 1)
    padded = F.pad(x, (0, extra), value=math.nan)
    stats, wider_stats = averages(2), averages(2)
    y = batch_norm(x, *stats, training=True, mask=mask)
    wider = batch_norm(padded, *wider_stats, training=True, mask=F.pad(mask, (0, extra)))
    assert_close(wider, F.pad(y, (0, extra)))
    assert_close(wider_stats, stats)


@pytest.mark.parametrize("valid", [0, 1])
def test_fewer_than_two_valid_elements_leave_the_averages_and_stay_finite(valid):
    x = normal(3, 2, 4).requires_grad_()
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask.view(-1)[:valid] = True
    stats, (weight, bias) = averages(2), parameters(2)
    y = batch_norm(x, *stats, weight, bias, True, mask=mask)
    assert_close(stats, averages(2), rtol=0, atol=0)
    expected = torch.zeros_like(x)
    expected[0, :, 0] = bias if valid else 0  # a lone element is its own mean
    assert_close(y, expected)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert_close(dx, torch.zeros_like(x))


def test_masks_broadcast_from_the_right():
    x, stats = normal(4, 3, 2, 5), averages()
    rows = torch.tensor([True, False])
    expected = batch_norm(x, *averages(), training=True, mask=rows[:, None].expand(4, 2, 5))
    assert_close(batch_norm(x, *stats, training=True, mask=rows[:, None]), expected)
    samples = torch.tensor([True, False, True, True])
    kept = batch_norm(x[samples], None, None, training=True)
    assert_close(
        batch_norm(x, None, None, training=True, mask=samples[:, None, None])[samples], kept
    )
    assert_close(batch_norm(x[:, :, 0, 0], None, None, training=True, mask=samples)[samples],
                 batch_norm(x[samples, :, 0, 0], None, None, training=True))  # fmt: skip


# Odd inputs


def test_a_large_offset_costs_no_accuracy():
    x = (1e4 + 1e-2 * normal(4096, 8)).float()
    mean, var = torch.zeros(8), torch.ones(8)
    y = batch_norm(x, mean, var, training=True, momentum=1.0, eps=1e-12)
    exact = F.batch_norm(x.double(), None, None, training=True, eps=1e-12)
    assert_close(var, x.double().var(0).float(), rtol=1e-4, atol=0)
    # μ itself is known to half a unit in the last place: 5e-4, or 0.05 σ.
    assert_close(y.double(), exact, rtol=1e-3, atol=0.06)


@pytest.mark.parametrize("value", [0.0, 3.0, 1e4])
def test_a_constant_channel_comes_out_as_its_bias(value):
    x = torch.full((6, 3, 2), value, requires_grad=True)
    var = torch.ones(3)
    weight, bias = parameters(dtype=torch.float32)
    y = batch_norm(x, torch.zeros(3), var, weight, bias, True, momentum=1.0)
    assert_close(y, bias.view(-1, 1).expand_as(x))
    assert_close(var, torch.zeros(3), rtol=0, atol=1e-6)
    (dx,) = torch.autograd.grad(y.square().sum(), x)
    assert dx.isfinite().all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("training", [False, True])
def test_what_is_not_finite_spreads_as_in_torch(training, value):
    def run(function):
        x, stats = normal(5, 3, 2), averages()
        x[1, 0, 1] = value
        x.requires_grad_()
        y = function(x, *stats, *parameters(), training)
        return y, *stats, *torch.autograd.grad(y, x, normal(5, 3, 2, seed=1))

    assert_close(run(batch_norm), run(F.batch_norm), equal_nan=True)


SPECIAL = (math.nan, math.inf, -math.inf, -1e38, 1e38, -100, -90, 88, 3, -3, 0, 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_of_special_values_are_those_of_torch(activation, dtype):
    # Rows of each value, so that no processor takes a part of one another way.
    z = torch.tensor(SPECIAL, dtype=dtype).view(-1, 1, 1).expand(-1, 1, 64).contiguous()
    x, again = z.clone().requires_grad_(), z.clone().requires_grad_()
    wide = torch.promote_types(dtype, torch.float32)
    stats = torch.zeros(1, dtype=wide), torch.ones(1, dtype=wide)
    y = batch_norm(x, *stats, eps=0.0, activation=activation)
    expected = getattr(F, activation)(again)
    assert_close(y, expected, equal_nan=True)
    dx, wanted = (torch.autograd.grad(t.sum(), leaf)[0] for t, leaf in ((y, x), (expected, again)))
    if activation == "relu6":  # torch stops the gradient at NaN there; at relu it does not
        wanted = torch.where(again.isnan(), 1, wanted)
    assert_close(dx, wanted, equal_nan=True)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (2, 3, 0, 4), (0, 3, 2, 2, 2)])
def test_an_empty_batch_leaves_the_averages_alone(shape, training):
    x, stats = torch.zeros(shape, requires_grad=True), averages(dtype=torch.float32)
    weight, bias = (p.requires_grad_() for p in parameters(dtype=torch.float32))
    y = batch_norm(x, *stats, weight, bias, training, activation="relu")
    assert y.shape == shape
    dx, dweight, dbias = torch.autograd.grad(y.sum(), (x, weight, bias))
    assert dx.shape == shape
    assert_close((dweight, dbias), (torch.zeros(3), torch.zeros(3)))
    assert_close(stats, averages(dtype=torch.float32), rtol=0, atol=0)


@pytest.mark.parametrize("training", [False, True])
def test_the_memory_format_of_the_answer_is_that_of_torch(training):
    image, volume = normal(2, 3, 4, 5), normal(2, 3, 4, 5, 6)
    inputs = [
        normal(4, 3),
        normal(3, 4).t(),
        normal(8, 6)[::2, ::2],
        normal(2, 5, 3).transpose(1, 2),
        image,
        image.to(memory_format=torch.channels_last),
        image.transpose(2, 3),
        image[:, :, ::2],
        image[:, :, :1, :1],
        volume,
        volume.to(memory_format=torch.channels_last_3d),
        volume.transpose(0, 2).contiguous().transpose(0, 2),
    ]
    for x in inputs:
        expected = F.batch_norm(x, *averages(), training=training)
        residual = torch.ones(x.shape, dtype=x.dtype)
        for y in (
            batch_norm(x, *averages(), training=training),
            batch_norm(x, *averages(), training=training, residual=residual),
        ):
            assert y.stride() == expected.stride(), x.stride()


def test_momentum_may_be_a_tensor():
    x, stats, expected = normal(5, 3), averages(), averages()
    batch_norm(x, *stats, training=True, momentum=torch.tensor(0.25).double())
    F.batch_norm(x, *expected, training=True, momentum=0.25)
    assert_close(stats, expected)


# Errors


ERRORS_OF_TORCH = {
    "one value": ({"input": torch.zeros(1, 3), "training": True}, ValueError, "more than one"),
    "one pixel": ({"input": torch.zeros(1, 3, 1, 1), "training": True}, ValueError, "more than"),
    "eps in training": ({"eps": 0.0, "training": True}, ValueError, "eps"),
    "eps below zero": ({"eps": -1.0}, ValueError, "eps"),
    "no averages": ({"running_mean": None, "running_var": None}, RuntimeError, "evaluation"),
    "no variance": ({"running_var": None}, RuntimeError, "evaluation"),
    "mean alone": ({"running_var": None, "training": True}, ValueError, "one of"),
    "mean size": ({"running_mean": torch.zeros(4)}, RuntimeError, "running_mean of shape"),
    "var size": ({"running_var": torch.zeros(4)}, RuntimeError, "running_var of shape"),
    "weight size": ({"weight": torch.zeros(4)}, RuntimeError, "weight of shape"),
    "bias size": ({"bias": torch.zeros(4)}, RuntimeError, "bias of shape"),
    "weight dtype": ({"weight": torch.zeros(3).double()}, RuntimeError, "float32.*float64"),
    "narrow weight": ({"input": torch.zeros(4, 3).double()}, RuntimeError, "float64.*float32"),
    "integers": ({"input": torch.zeros(4, 3, dtype=torch.long)}, NotImplementedError, "int64"),
    "no channels": ({"input": torch.zeros(3), "training": True}, RuntimeError, "N, C"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS_OF_TORCH)
def test_errors_have_the_types_of_torch_and_say_more(case):
    changed, error, message = ERRORS_OF_TORCH[case]
    arguments = {
        "input": torch.zeros(4, 3),
        "running_mean": torch.zeros(3),
        "running_var": torch.ones(3),
        "weight": torch.ones(3),
    } | changed
    with pytest.raises(error):
        F.batch_norm(**arguments)
    with pytest.raises(error, match=message):
        batch_norm(**arguments)


@pytest.mark.parametrize(
    ("extra", "error", "message"),
    [
        ({"activation": "tanh"}, ValueError, "'tanh'.*'relu'"),
        ({"residual": torch.zeros(4, 1, 5)}, ValueError, "residual"),
        ({"mask": torch.ones(4, 5)}, TypeError, "boolean"),
        ({"mask": torch.ones(4, 3, 5, dtype=torch.bool)}, ValueError, "mask of shape"),
        ({"mask": torch.ones(4, dtype=torch.bool)}, ValueError, "mask of shape"),
        ({"mask": torch.ones(2, 5, dtype=torch.bool)}, ValueError, "mask of shape"),
    ],
)
def test_errors_of_the_new_keywords(extra, error, message):
    stats = averages(dtype=torch.float32)
    with pytest.raises(error, match=message):
        batch_norm(torch.zeros(4, 3, 5), *stats, training=True, **extra)
    assert_close(stats, averages(dtype=torch.float32), rtol=0, atol=0)


# Tracing and autocast


# The compiler itself makes an instance, and warns of it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize(("activation", "extras"), [(None, False), ("silu", True)])
@pytest.mark.parametrize("training", [False, True])
def test_it_compiles_as_one_graph(training, activation, extras):
    residual = normal(4, 3, 5, seed=1) if extras else None
    mask = some_valid(4, 5) if extras else None

    def run(x, mean, var, weight, bias):
        options = {"activation": activation, "residual": residual, "mask": mask}
        return batch_norm(x, mean, var, weight, bias, training, **options)

    def outcome(function):
        leaves = [t.requires_grad_() for t in (normal(4, 3, 5), *parameters())]
        stats = averages()
        y = function(leaves[0], *stats, *leaves[1:])
        return y, *stats, *torch.autograd.grad(y.sin().sum(), leaves)

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert_close(outcome(compiled), outcome(run))


class _Module(torch.nn.Module):
    def __init__(self, training, activation):
        super().__init__()
        self.normalizes_by_batch, self.activation = training, activation
        for name, tensor in zip(("mean", "var"), averages(), strict=True):
            self.register_buffer(name, tensor)

    def forward(self, x, residual=None, mask=None):
        return batch_norm(
            x, self.mean, self.var, training=self.normalizes_by_batch,
            activation=self.activation, residual=residual, mask=mask,
        )  # fmt: skip


@pytest.mark.parametrize(("activation", "extras"), [(None, False), ("relu6", True)])
@pytest.mark.parametrize("training", [False, True])
def test_it_exports_with_a_free_batch_size(training, activation, extras):
    def inputs(n):
        return (normal(n, 3, 5), *((normal(n, 3, 5, seed=1), some_valid(n, 5)) if extras else ()))

    module = _Module(training, activation)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(
        module, inputs(4), dynamic_shapes=tuple({0: batch} for _ in inputs(4))
    )
    exported = program.module()
    assert_close(exported(*inputs(7)), module(*inputs(7)))
    assert_close(dict(exported.named_buffers()), dict(module.named_buffers()))


@pytest.mark.parametrize("training", [False, True])
def test_autocast_on_cpu(training):
    weight = normal(3, 3, 1, dtype=torch.float32).requires_grad_()
    x = normal(4, 3, 6, dtype=torch.float32)

    def run(function):
        stats = averages(dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            y = function(F.conv1d(x, weight), *stats, *parameters(dtype=torch.float32), training)
        return y, *stats, *torch.autograd.grad(y.float().square().sum(), weight)

    ours, theirs = run(batch_norm), run(F.batch_norm)
    assert ours[0].dtype == torch.bfloat16
    assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


# The compiler itself makes an instance, and warns of it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_have_the_dtypes_of_what_they_belong_to(compiled):
    narrow = [normal(4, 3, dtype=torch.bfloat16), *parameters(dtype=torch.bfloat16)]
    leaves = [t.requires_grad_() for t in (*narrow, normal(4, 3, seed=1, dtype=torch.float16))]
    torch._dynamo.reset()
    run = torch.compile(batch_norm, backend="aot_eager", disable=not compiled)
    y = run(leaves[0], None, None, *leaves[1:3], training=True, residual=leaves[3])
    for leaf, gradient in zip(leaves, torch.autograd.grad(y.sum(), leaves), strict=True):
        assert gradient.dtype == leaf.dtype


def test_meta_tensors_pass_through():
    x = torch.empty(4, 3, 5, device="meta")
    stats = torch.empty(3, device="meta"), torch.empty(3, device="meta")
    y = batch_norm(x, *stats, training=True, mask=torch.empty(4, 5, device="meta").bool())
    assert (y.shape, y.device.type) == (x.shape, "meta")


# What only some callers ask for


@pytest.mark.parametrize("options", [{"ghost_size": 2}, {"limits": (3.0, 5.0)}])
def test_evaluation_knows_neither_ghost_batches_nor_limits(options):
    x = normal(5, 3, 2)
    expected = batch_norm(x, *averages(), *parameters())
    assert_close(batch_norm(x, *averages(), *parameters(), **options), expected, rtol=0, atol=0)


@pytest.mark.parametrize("batches", [0, 3])
def test_where_torch_runs_all_batches_have_the_same_share_too(batches):
    x, (mean, var), counter = normal(5, 3, 2), averages(), torch.tensor(batches)
    with torch.autograd.forward_ad.dual_level():
        batch_norm(x, mean, var, training=True, momentum=None, num_batches_tracked=counter)
    expected = averages()
    F.batch_norm(x, *expected, training=True, momentum=1 / (batches + 1))
    assert_close((mean, var), expected)
    assert counter == batches + 1


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dy", [normal(3, 5, seed=1).t(), normal(5, 3, seed=1).bfloat16()])
def test_a_gradient_may_come_in_any_layout_and_dtype_to_what_is_written_out(dy, training):
    x = normal(5, 3)
    weight, bias = parameters()
    call = Call(x, *averages(), weight, bias, training, 0.1, 1e-5, None, None, None, None)
    y, statistics = forward_with_statistics(call)
    leaves = [t.requires_grad_() for t in (x.clone(), weight, bias)]
    expected = F.batch_norm(leaves[0], *averages(), *leaves[1:], training)
    assert_close(y, expected)
    found = backward_from_statistics(dy, call, statistics)
    assert_close(tuple(found), torch.autograd.grad(expected, leaves, dy.double()))


def test_contributions_of_what_is_not_dense():
    x, centre = normal(4, 3, 8), torch.full((3,), 0.25).double()
    assert_close(contributions(x[..., ::2], centre), contributions(x[..., ::2].clone(), centre))
