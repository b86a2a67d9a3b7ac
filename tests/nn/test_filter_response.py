"""Filter response normalization, sample by sample and channel by channel in plain numbers."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from livella.nn import FilterResponseNorm1d, FilterResponseNorm2d, FilterResponseNorm3d

KINDS = {2: FilterResponseNorm1d, 3: FilterResponseNorm1d, 4: FilterResponseNorm2d}
KINDS[5] = FilterResponseNorm3d
SHAPES = [(4, 3), (4, 3, 5), (2, 3, 4, 5), (2, 3, 2, 2, 3)]


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(kind, dtype=torch.float64, **options):
    layer = kind(3, dtype=dtype, **options)
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters()):
            parameter.copy_(draw(*parameter.shape, seed=seed + 5))
    return layer


def by_hand(layer, x):
    """Each channel of each sample in plain numbers, as the paper's formulae read."""
    eps, out = (
        abs(float(torch.as_tensor(layer.eps).detach())),
        torch.empty_like(x, dtype=torch.float64),
    )
    weight, bias, threshold = (
        [plain] * 3 if p is None else p.tolist()
        for p, plain in ((layer.weight, 1.0), (layer.bias, 0.0), (layer.threshold, -math.inf))
    )
    for n in range(x.shape[0]):
        for c in range(3):
            values = x[n, c].double().flatten().tolist()
            scale = math.sqrt(math.fsum(v * v for v in values) / len(values) + eps)
            made = [max(weight[c] * v / scale + bias[c], threshold[c]) for v in values]
            out[n, c] = torch.tensor(made, dtype=torch.float64).view(x.shape[2:])
    return out


@pytest.mark.parametrize(
    "options", [{}, {"affine": False}, {"thresholded": False}, {"learn_eps": True, "eps": 1e-4}]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_by_hand(shape, options):
    layer, x = make(KINDS[len(shape)], **options), 2 * draw(*shape) + 1
    assert_close(layer(x), by_hand(layer, x))
    assert_close(layer.eval()(x), layer.train()(x), rtol=0, atol=0)


@pytest.mark.parametrize("options", [{}, {"learn_eps": True, "eps": 1e-2}])
@pytest.mark.parametrize("shape", [(3, 3), (2, 3, 4)])
def test_gradients_of_first_and_second_order(shape, options):
    layer, x = make(KINDS[len(shape)], **options), draw(*shape).requires_grad_()
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def call(x, *given):
        return torch.func.functional_call(layer, dict(zip(names, given, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *parameters))
    assert torch.autograd.gradgradcheck(call, (x, *parameters))


def test_of_a_learned_epsilon_the_absolute_value_is_taken():
    layer, x = make(FilterResponseNorm2d, learn_eps=True), draw(2, 3, 4, 4) / 9
    with torch.no_grad():
        layer.eps.fill_(-0.3)
    assert_close(layer(x), by_hand(layer, x))


def test_it_starts_as_normalization_and_relu():
    x = draw(4, 3, 6, 6)
    y = FilterResponseNorm2d(3, dtype=torch.float64)(x)
    assert_close(y, by_hand(FilterResponseNorm2d(3), x))
    assert (y >= 0).all()
    bare = FilterResponseNorm2d(3, thresholded=False)
    assert [name for name, _ in bare.named_parameters()] == ["weight", "bias"]


def test_on_one_position_a_learned_epsilon_keeps_more_than_the_sign():
    x = torch.tensor([[0.01, 1.0, -3.0]])
    fixed = FilterResponseNorm1d(3, thresholded=False)
    assert_close(fixed(x), x.sign(), rtol=0, atol=0.01)
    learned = FilterResponseNorm1d(3, 1e-4, learn_eps=True)
    assert learned.eps.item() == pytest.approx(1e-4)
    learned(x).sum().backward()
    assert learned.eps.grad != 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_inputs_are_squared_in_float32(dtype):
    layer, x = FilterResponseNorm2d(3), (3e4 * draw(2, 3, 4, 4)).clamp(-6e4, 6e4).to(dtype)
    y = layer(x)
    assert y.dtype == dtype
    assert_close(y.double(), by_hand(layer, x), rtol=1e-2, atol=1e-3)


def test_constant_zero_empty_and_broken_inputs():
    layer = FilterResponseNorm2d(3)
    assert_close(layer(torch.zeros(2, 3, 4, 4)), torch.zeros(2, 3, 4, 4))
    assert_close(layer(torch.full((2, 3, 4, 4), 1e4)), torch.ones(2, 3, 4, 4))
    assert layer(torch.zeros(0, 3, 4, 4)).shape == (0, 3, 4, 4)
    assert layer(torch.zeros(2, 3, 0, 4)).shape == (2, 3, 0, 4)
    x = draw(2, 3, 4, 4).float()
    x[0, 1, 0, 0] = torch.nan
    y = layer(x)
    assert y[0, 1].isnan().all()
    assert_close(y[1], layer(x[1:])[0])


def test_layouts():
    layer, x = make(FilterResponseNorm2d), draw(2, 3, 4, 6)
    last = x.contiguous(memory_format=torch.channels_last)
    assert_close(layer(last), layer(x))
    assert layer(last).is_contiguous(memory_format=torch.channels_last)
    assert_close(layer(x[..., ::2]), layer(x[..., ::2].contiguous()))


def test_copies_files_and_resetting():
    layer, x = make(FilterResponseNorm2d, learn_eps=True), draw(2, 3, 4, 4)
    fresh = FilterResponseNorm2d(3, learn_eps=True, dtype=torch.float64)
    assert set(layer.state_dict()) == {"weight", "bias", "threshold", "eps"}
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert_close(other(x), layer(x), rtol=0, atol=0)
    assert "learn_eps=True" in repr(layer)
    layer.reset_parameters()
    assert_close(layer.state_dict(), fresh.state_dict())
    layer.load_state_dict(fresh.state_dict())
    meta = FilterResponseNorm2d(3, device="meta", dtype=torch.float64)
    assert (meta.threshold.device.type, meta.threshold.dtype) == ("meta", torch.float64)
    assert nn.utils.skip_init(FilterResponseNorm2d, 3).num_features == 3


def test_compiled_and_exported():
    torch.compiler.reset()
    layer, x = make(FilterResponseNorm2d, learn_eps=True), draw(2, 3, 4, 4)
    assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))
    assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))


def test_exported_for_any_number_of_samples():
    layer, x = make(FilterResponseNorm2d), draw(5, 3, 4, 4)
    sizes = ({0: torch.export.Dim("n", min=2, max=100)},)
    exported = torch.export.export(layer, (x,), dynamic_shapes=sizes).module()
    assert_close(exported(draw(9, 3, 4, 4)), layer(draw(9, 3, 4, 4)))


def test_what_is_refused():
    for kind, wrong in ((1, (3,)), (1, (2, 4)), (2, (2, 3)), (3, (2, 3, 4, 4))):
        layer = (FilterResponseNorm1d, FilterResponseNorm2d, FilterResponseNorm3d)[kind - 1](3)
        with pytest.raises(ValueError, match=r"expected an input of shape \(N, 3"):
            layer(torch.zeros(wrong))
    with pytest.raises(NotImplementedError, match="int64"):
        FilterResponseNorm1d(3)(torch.ones(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="eps above zero"):
        FilterResponseNorm1d(3, eps=0)
