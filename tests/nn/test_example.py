"""Inference example weighing against second moments averaged in float64, example by example."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import livella
from livella.nn import BatchNorm1d, BatchNorm2d, BatchNorm3d, SyncBatchNorm

KINDS = {2: BatchNorm1d, 3: BatchNorm1d, 4: BatchNorm2d, 5: BatchNorm3d}
SHAPES = [(4, 3), (4, 3, 5), (4, 3, 2, 5), (3, 3, 2, 2, 3)]


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(kind, seed=9, dtype=torch.float64, **options):
    """A layer in evaluation with averages and parameters of its own."""
    layer = kind(3, dtype=dtype, **options)
    with torch.no_grad():
        for k, tensor in enumerate((layer.weight, layer.bias, layer.running_mean)):
            tensor.copy_(draw(3, seed=seed + k))
        layer.running_var.copy_(draw(3, seed=seed + 3).abs() + 0.5)
    return layer.eval()


def by_second_moments(layer, x, share, mask=None):
    """The paper's own words: E[x] and E[x²] are averaged with the example's."""
    x, out = x.detach().double().numpy(), np.zeros(x.shape)
    mean, var, weight, bias = (
        t.detach().double().numpy()
        for t in (layer.running_mean, layer.running_var, layer.weight, layer.bias)
    )
    for n in range(len(x)):
        valid = np.ones(x.shape[2:], bool) if mask is None else mask[n].numpy()
        for c in range(x.shape[1]):
            own, first, second = x[n, c][valid], mean[c], mean[c] ** 2 + var[c]
            if own.size:
                first = (1 - share) * first + share * own.mean()
                second = (1 - share) * second + share * (own**2).mean()
            y = (x[n, c] - first) / np.sqrt(second - first**2 + layer.eps) * weight[c] + bias[c]
            out[n, c] = np.where(valid, y, 0)
    return torch.from_numpy(out)


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_what_averaged_second_moments_give(shape, share):
    layer, x = make(KINDS[len(shape)], example_weight=share), 2 * draw(*shape) + 1
    assert_close(layer(x), by_second_moments(layer, x, share))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_mask_leaves_the_valid_elements_of_each_example(shape):
    layer, x = make(KINDS[len(shape)], example_weight=0.4), 2 * draw(*shape) + 1
    mask = draw(shape[0], *shape[2:], seed=3) > 0
    mask[1] = False
    expected = by_second_moments(layer, x, 0.4, mask)
    y = layer(torch.where(mask[:, None], x, torch.nan), mask=mask)
    assert_close(y, expected)


def test_an_example_without_a_valid_element_gets_the_running_ones():
    layer, x = make(BatchNorm1d, example_weight=0.4), draw(2, 3, 4)
    mask = torch.tensor([[True] * 4, [False] * 4])
    x[1] = torch.nan
    x.requires_grad_()
    residual = torch.where(mask[:, None], draw(2, 3, 4, seed=1), torch.nan).requires_grad_()
    layer(x, mask=mask, residual=residual, activation="silu").sum().backward()
    for tensor in (x, residual):
        assert tensor.grad.isfinite().all()
        assert not tensor.grad[1].any()
    assert layer.weight.grad.isfinite().all()


def test_residual_and_activation_follow():
    layer = make(BatchNorm2d, example_weight=0.3, activation="silu")
    x, residual = draw(4, 3, 2, 5), draw(4, 3, 2, 5, seed=1)
    z = by_second_moments(layer, x, 0.3) + residual
    assert_close(layer(x, residual=residual), torch.nn.functional.silu(z))


@pytest.mark.parametrize("shape", [(3, 3), (3, 3, 4)])
@pytest.mark.parametrize("masked", [True, False])
def test_gradients_of_first_and_second_order(shape, masked):
    layer = make(BatchNorm1d, example_weight=0.3)
    x, residual = draw(*shape).requires_grad_(), draw(*shape, seed=1).requires_grad_()
    mask = draw(shape[0], *shape[2:], seed=5) > -0.5 if masked else None

    def call(x, r, weight, bias):
        given = {"weight": weight, "bias": bias}
        named = {"residual": r, "mask": mask, "activation": "silu"}
        return torch.func.functional_call(layer, given, (x,), named)

    given = (x, residual, layer.weight, layer.bias)
    assert torch.autograd.gradcheck(call, given)
    assert torch.autograd.gradgradcheck(call, given)


def test_a_large_mean_loses_nothing_in_float32():
    exact, layer = make(BatchNorm2d), make(BatchNorm2d, dtype=torch.float32)
    x = (1e4 + draw(4, 3, 8, 8)).float()
    for each in (exact, layer):
        each.example_weight = 0.5
        each.running_mean.copy_((1e4 + draw(3, seed=7)).float())
        each.running_var.fill_(1)
    assert_close(layer(x).double(), exact(x.double()), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_inputs_are_summed_in_float32(dtype):
    layer = make(BatchNorm2d, dtype=torch.float32, example_weight=1.0)
    x = (300 * draw(2, 3, 32, 32) + 100).to(dtype)  # squares overflow float16
    y = layer(x)
    assert y.dtype == dtype
    expected = by_second_moments(layer, x, 1.0)
    assert_close(y.double(), expected, rtol=1e-2, atol=2e-2)


def test_training_on_the_batch_is_untouched_and_zero_is_what_it_was():
    weighed, plain = BatchNorm2d(3, example_weight=0.5), BatchNorm2d(3)
    assert plain._switches is None
    x = draw(4, 3, 5, 5).float()
    assert torch.equal(weighed(x), plain(x))
    assert torch.equal(weighed.running_var, plain.running_var)
    assert not torch.allclose(weighed.eval()(x), plain.eval()(x))
    weighed.example_weight = 0.0
    assert weighed._switches is None
    assert torch.equal(weighed(x), plain(x))


def test_the_same_whatever_else_is_in_the_batch():
    layer, x = make(BatchNorm2d, example_weight=0.5), draw(4, 3, 5, 5)
    assert_close(layer(x)[2:3], layer(x[2:3]), rtol=0, atol=0)
    assert layer(x[:0]).shape == (0, 3, 5, 5)


@pytest.mark.parametrize("layout", ["last", "strided"])
def test_layouts(layout):
    layer, x = make(BatchNorm2d, example_weight=0.5), draw(4, 3, 6, 6)
    other = x.contiguous(memory_format=torch.channels_last)
    if layout == "strided":
        x, other = x[..., ::2], other[..., ::2]
    assert_close(layer(other), layer(x.contiguous()))
    if layout == "last":
        assert layer(other).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_outside_zero_and_one_is_refused(share):
    with pytest.raises(ValueError, match="example_weight between 0 and 1"):
        BatchNorm1d(3, example_weight=share)
    layer = BatchNorm1d(3)
    with pytest.raises(ValueError, match="example_weight between 0 and 1"):
        layer.example_weight = share
    assert layer.example_weight == 0


def test_what_batch_norm_refuses_is_refused_here():
    layer = make(BatchNorm1d, example_weight=0.5)
    with pytest.raises(RuntimeError, match="build the layer for this number of channels"):
        layer(draw(4, 2))
    with pytest.raises(TypeError, match="boolean mask"):
        layer(draw(4, 3), mask=torch.ones(4))
    with pytest.raises(NotImplementedError, match="floating"):
        layer(torch.ones(4, 3, dtype=torch.long))


def test_copies_and_files_keep_it():
    layer = make(BatchNorm1d, example_weight=0.5)
    assert "example_weight=0.5" in repr(layer)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert_close(other(draw(4, 3)), layer(draw(4, 3)), rtol=0, atol=0)


# The compiler itself makes an instance of autograd.Function, and warns of it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("masked", [True, False])
def test_compiled_and_exported(masked):
    torch.compiler.reset()
    layer = make(BatchNorm1d, example_weight=0.5, activation="relu")
    x, mask = draw(4, 3, 5), draw(4, 5, seed=2) > 0 if masked else None
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x, mask=mask), layer(x, mask=mask))
    exported = torch.export.export(layer, (x,), {"mask": mask}).module()
    assert_close(exported(x, mask=mask), layer(x, mask=mask))


def test_synchronized_and_frozen_layers_have_it_too():
    layer = make(SyncBatchNorm, example_weight=0.3)
    x = draw(4, 3, 5)
    assert_close(layer(x), by_second_moments(layer, x, 0.3))
    frozen = livella.freeze(make(BatchNorm1d, example_weight=0.3))
    assert_close(frozen(x), by_second_moments(frozen, x, 0.3))


def test_a_frozen_layer_does_in_training_what_it_does_in_evaluation():
    layer = livella.nn.BatchNorm2d(3, example_weight=0.3)
    layer(torch.randn(8, 3, 4, 4) * 2 + 1)
    x = torch.randn(4, 3, 4, 4)
    layer.normalize_by, layer.update_running = "running", False
    assert_close(layer.train()(x), layer.eval()(x), rtol=0, atol=0)
