"""The switches of a layer, each by itself and together, against what they are said to do."""

import copy
import pickle

import pytest
import torch
from torch import nn

import livella
from livella.nn import BatchNorm1d, BatchNorm2d


def make(seed: int = 0, **options) -> tuple[BatchNorm1d, torch.Tensor]:
    """A layer with averages and parameters of its own, and a batch far from them."""
    g = torch.Generator().manual_seed(seed)
    layer = BatchNorm1d(3, dtype=torch.float64, **options)
    with torch.no_grad():
        for tensor in (layer.weight, layer.bias, layer.running_mean):
            tensor.copy_(torch.randn(3, generator=g, dtype=torch.float64))
        layer.running_var.copy_(torch.rand(3, generator=g, dtype=torch.float64) + 0.5)
    return layer, 2 + 3 * torch.randn(8, 3, 5, generator=g, dtype=torch.float64)


def by(layer, x, mean, var):
    """The definition, in full."""
    shape = (1, -1, 1)
    centred = (x - mean.view(shape)) / (var + layer.eps).sqrt().view(shape)
    return centred * layer.weight.view(shape) + layer.bias.view(shape)


def of_batch(x):
    values = x.movedim(1, 0).flatten(1)
    return values.mean(1), values.var(1, unbiased=False), values.var(1)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("normalize_by", [None, "batch", "running"])
@pytest.mark.parametrize("update", [True, False])
def test_each_combination(training, normalize_by, update):
    layer, x = make()
    layer.train(training)
    layer.normalize_by, layer.update_running = normalize_by, update
    mean, var = layer.running_mean.clone(), layer.running_var.clone()
    batch_mean, biased, unbiased = of_batch(x)
    by_batch = normalize_by == "batch" or (normalize_by is None and training)
    expected = by(layer, x, batch_mean, biased) if by_batch else by(layer, x, mean, var)
    torch.testing.assert_close(layer(x), expected)
    if training and update:
        mean, var = mean.lerp(batch_mean, 0.1), var.lerp(unbiased, 0.1)
    torch.testing.assert_close(layer.running_mean, mean)
    torch.testing.assert_close(layer.running_var, var)
    assert layer.num_batches_tracked == int(training and update)


def test_a_mask_counts_in_running_normalization_too():
    layer, x = make()
    layer.normalize_by = "running"
    mask = torch.rand(8, 5, generator=torch.Generator().manual_seed(3)) > 0.4
    before = layer.running_mean.clone()
    y = layer(torch.where(mask[:, None], x, torch.nan), mask=mask)
    assert torch.equal(y == 0, ~mask[:, None].expand_as(y))
    valid = x.movedim(1, 0)[:, mask]
    torch.testing.assert_close(layer.running_mean, before.lerp(valid.mean(1), 0.1))
    torch.testing.assert_close(layer(x, mask=torch.zeros_like(mask)), torch.zeros_like(x))
    assert layer.num_batches_tracked == 1


@pytest.mark.parametrize("normalize_by", ["batch", "running"])
def test_gradients_of_first_and_second_order(normalize_by):
    layer, x = make()
    layer.normalize_by, layer.momentum = normalize_by, 0.0
    x = x[:3, :, :2].clone().requires_grad_()
    residual = torch.randn_like(x).requires_grad_()
    call = lambda x, r: layer(x, residual=r, activation="silu")  # noqa: E731
    assert torch.autograd.gradcheck(call, (x, residual))
    assert torch.autograd.gradgradcheck(call, (x, residual))


def test_the_affine_part_trains_or_not():
    layer, x = make()
    layer.train_affine = False
    assert not layer.train_affine
    x.requires_grad_()
    layer(x).square().sum().backward()
    assert layer.weight.grad is None
    assert x.grad is not None
    layer.train_affine = True
    assert layer.weight.requires_grad
    assert layer.bias.requires_grad
    assert not BatchNorm1d(3, affine=False).train_affine


def test_what_cannot_be_set():
    layer, _ = make()
    with pytest.raises(ValueError, match="expected normalize_by to be one of"):
        layer.normalize_by = "sample"
    with pytest.raises(ValueError, match="expected update_policy to be one of"):
        layer.update_policy = "strict"
    assert layer._switches is None
    bare = BatchNorm1d(3, track_running_stats=False)
    bare.normalize_by = "running"
    with pytest.raises(ValueError, match="no running statistics; build the layer with"):
        bare(torch.ones(2, 3))


def test_copies_and_files_keep_the_switches_and_state_dict_does_not_show_them():
    layer, _ = make()
    keys = list(layer.state_dict())
    layer.normalize_by, layer.update_running = "running", False
    layer.update_policy = "guarded"
    assert list(layer.state_dict()) == keys == list(nn.BatchNorm1d(3).state_dict())
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.normalize_by == "running"
        assert not other.update_running
        assert other.update_policy == "guarded"
    assert "normalize_by=running, update_running=False, update_policy=guarded" in str(layer)
    layer.normalize_by, layer.update_running, layer.update_policy = None, True, "torch"
    assert str(layer) == str(make()[0])
    assert not hasattr(layer, "skipped_batches")


# The compiler itself makes an instance of autograd.Function, and warns of it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("switch", [{"normalize_by": "running"}, {"update_policy": "guarded"}])
def test_a_compiled_layer_does_the_same(switch):
    torch.compiler.reset()
    layer = BatchNorm2d(3)
    for name, value in switch.items():
        setattr(layer, name, value)
    twin = copy.deepcopy(layer)
    x = torch.randn(4, 3, 5, 5)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), twin(x))
    torch.testing.assert_close(layer.running_var, twin.running_var)
    assert layer.num_batches_tracked == twin.num_batches_tracked == 1


def test_an_activation_and_a_sibling_with_one():
    layer = BatchNorm2d(3, activation="relu")
    layer.normalize_by = "running"
    x = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(layer(x), torch.relu(x / (1 + 1e-5) ** 0.5))
    assert isinstance(layer, livella.nn.BatchNormAct2d)
