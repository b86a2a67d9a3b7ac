"""RMSNorm against numbers worked out by hand and against torch's own where they meet."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from livella.nn import RMSNorm


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (2, 3, 4, 5), (2, 3, 2, 2, 3)])
def test_each_sample_by_hand(shape):
    layer = RMSNorm(3, eps=1e-3, dtype=torch.float64)
    nn.init.uniform_(layer.weight, -1, 1)
    x = draw(*shape)
    for sample, answer in zip(x, layer(x), strict=True):
        values = sample.flatten().tolist()
        scale = 1 / math.sqrt(math.fsum(v * v for v in values) / len(values) + 1e-3)
        for channel in range(3):
            assert_close(answer[channel], sample[channel] * scale * layer.weight[channel].item())


def test_on_features_it_is_torchs():
    ours, theirs = RMSNorm(6), nn.RMSNorm(6, eps=1e-5)
    nn.init.uniform_(theirs.weight)
    ours.load_state_dict(theirs.state_dict())
    x = draw(4, 6).float()
    assert_close(ours(x), theirs(x))


def test_gradients():
    layer, x = RMSNorm(3, dtype=torch.float64), draw(4, 3, 2).requires_grad_()
    assert torch.autograd.gradcheck(layer, x)
    assert torch.autograd.gradgradcheck(layer, x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_inputs_are_squared_in_float32(dtype):
    x = torch.full((2, 3), 3e4).to(dtype)  # its square overflows float16
    y = RMSNorm(3)(x)
    assert y.dtype == dtype
    assert_close(y, torch.ones(2, 3, dtype=dtype))


def test_without_gamma_and_with_it_reset():
    bare, layer = RMSNorm(3, affine=False), RMSNorm(3)
    assert bare.weight is None
    assert not list(bare.parameters())
    x = draw(4, 3).float()
    assert_close(bare(x), layer(x))
    nn.init.zeros_(layer.weight)
    layer.reset_parameters()
    bare.reset_parameters()
    assert_close(copy.deepcopy(layer)(x), bare(x))


@pytest.mark.parametrize("shape", [(3,), (4, 2), (4, 2, 3)])
def test_another_number_of_channels_is_refused(shape):
    with pytest.raises(ValueError, match=r"\(N, 3, \.\.\.\)"):
        RMSNorm(3)(torch.zeros(shape))


def test_integers_are_refused():
    with pytest.raises(NotImplementedError, match="int64"):
        RMSNorm(3)(torch.ones(2, 3, dtype=torch.int64))
