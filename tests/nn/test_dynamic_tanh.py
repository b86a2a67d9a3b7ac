"""DynamicTanh, value by value."""

import copy
import math
import pickle

import pytest
import torch
from torch.testing import assert_close

from livella.nn import DynamicTanh


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(**options):
    layer = DynamicTanh(3, dtype=torch.float64, **options)
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters()):
            parameter.copy_(draw(*parameter.shape, seed=seed + 5))
    return layer


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (2, 3, 4, 5), (2, 3, 2, 2, 3)])
def test_value_by_value(shape, affine):
    layer, x = make(affine=affine), draw(*shape)
    weight = layer.weight.tolist() if affine else [1.0] * 3
    bias = layer.bias.tolist() if affine else [0.0] * 3
    y = layer(x)
    for channel in range(3):
        made = [
            weight[channel] * math.tanh(layer.alpha.item() * v) + bias[channel]
            for v in x[:, channel].flatten().tolist()
        ]
        assert_close(y[:, channel].flatten(), torch.tensor(made, dtype=torch.float64))


def test_gradients_of_first_and_second_order():
    layer, x = make(), draw(2, 3, 4).requires_grad_()

    def call(x, alpha, weight, bias):
        given = {"alpha": alpha, "weight": weight, "bias": bias}
        return torch.func.functional_call(layer, given, (x,))

    assert torch.autograd.gradcheck(call, (x, *layer.parameters()))
    assert torch.autograd.gradgradcheck(call, (x, *layer.parameters()))


def test_where_it_starts_and_resetting():
    layer = DynamicTanh(3)
    assert layer.alpha.shape == (1,)
    assert layer.alpha.item() == 0.5
    assert_close(layer(torch.tensor([[1.0, 0, -1]])), torch.tensor([[0.5, 0, -0.5]]).tanh())
    changed = copy.deepcopy(layer)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.fill_(7)
    changed.reset_parameters()
    assert_close(changed.state_dict(), layer.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_inputs_keep_their_dtype(dtype):
    y = DynamicTanh(3)(torch.full((2, 3), 6e4).to(dtype))
    assert_close(y, torch.ones(2, 3, dtype=dtype))


def test_layouts_copies_compiled_and_exported():
    torch.compiler.reset()
    layer, x = make(), draw(2, 3, 4, 4)
    last = x.contiguous(memory_format=torch.channels_last)
    assert_close(layer(last), layer(x))
    assert layer(last).is_contiguous(memory_format=torch.channels_last)
    assert layer(x[:0]).shape == (0, 3, 4, 4)
    assert_close(pickle.loads(pickle.dumps(layer))(x), layer(x), rtol=0, atol=0)
    assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))
    assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))
    assert repr(layer) == "DynamicTanh(3, alpha=0.5, affine=True)"


def test_what_is_refused():
    for wrong in ((3,), (4, 2), (4, 2, 3)):
        with pytest.raises(ValueError, match=r"\(N, 3, \.\.\.\)"):
            DynamicTanh(3)(torch.zeros(wrong))
    with pytest.raises(NotImplementedError, match="int64"):
        DynamicTanh(3)(torch.ones(2, 3, dtype=torch.long))
