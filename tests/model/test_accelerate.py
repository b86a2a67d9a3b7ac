"""An accelerated model is the same model: same results, same objects, same life afterwards."""

import copy
import inspect
import io
import pickle

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  the usual name
from torch import nn
from torch.testing import assert_close

import livella
from livella import accelerate
from tests.model.zoo import ZOO, shown_as_fused
from tests.processes import in_processes

EXACT = {"rtol": 1e-10, "atol": 1e-10}

STEM = {"": "bn1 + relu"}
BASIC = "bn1 + relu, bn2 + residual + relu"
# With a downsampling, the two norms that are added come in the order of their calls.
NARROWED = "bn1 + relu, bn2 + relu, downsample.1 + residual + relu"
BOTTLENECK = "bn1 + relu, bn2 + relu, bn3 + residual + relu"
DOUBLE = "norm1 + relu, norm2 + relu"
FUSIONS = {
    "ResNet": STEM | {f"layer{i}.{j}": BASIC for i in (1, 2) for j in (0, 1)},
    "ResNet of bottlenecks": STEM
    | {f"layer{i}.0": NARROWED for i in (1, 2)}
    | {f"layer{i}.1": BOTTLENECK for i in (1, 2)},
    "DenseNet": {"": "features.norm0 + relu, features.norm5 + relu", "features": "norm0 + relu"}
    | {f"features.denseblock1.denselayer{i}": DOUBLE for i in (1, 2, 3)}
    | {f"features.denseblock2.denselayer{i}": DOUBLE for i in (1, 2)}
    | {"features.transition1": "norm + relu"},
    "MobileNetV2": {f"features.{i}": "1 + relu6" for i in (0, 6)}
    | {f"features.{i}": "conv.3 + residual" for i in (3, 5)}
    | {f"features.{i}.conv.0": "1 + relu6" for i in (1, 2, 3, 4, 5)}
    | {f"features.{i}.conv.1": "1 + relu6" for i in (2, 3, 4, 5)},
    "U-Net": {f"down.{i}.1": DOUBLE for i in (0, 1)}
    | {f"up.{i}": "norm + silu" for i in (0, 1)}
    | {f"up.{i}.conv": DOUBLE for i in (0, 1)}
    | {"inc": DOUBLE},
}

zoo = pytest.mark.parametrize("name", ZOO)


def build(name, seed=0, **options):
    """Give the same network twice, the second accelerated, and a batch."""
    torch.manual_seed(seed)
    plain = ZOO[name](**options).double()
    return plain, accelerate(copy.deepcopy(plain)), torch.randn(4, 3, 16, 16).double()


def everything(model, x):
    """Give the output, all gradients and all buffers of one call."""
    x = x.clone().requires_grad_()
    y = model(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    gradients = {n: p.grad for n, p in model.named_parameters()}
    model.zero_grad()
    return {"y": y, "x": x.grad, **gradients, **{n: b.clone() for n, b in model.named_buffers()}}


@zoo
def test_what_is_fused_is_shown(name):
    assert shown_as_fused(build(name)[1]) == FUSIONS[name]


@zoo
@pytest.mark.parametrize("training", [True, False])
def test_results_and_gradients_are_those_of_the_original(name, training):
    plain, fast, x = build(name)
    for model in (plain, fast):
        model(x + 1)  # so that the running averages are not those of a new layer
        model.train(training)
    assert_close(everything(fast, x), everything(plain, x), **EXACT)


def train(model, images, labels, steps):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for step in range(steps):
        take = torch.randperm(len(images), generator=torch.Generator().manual_seed(step))[:16]
        y = model(images[take])
        loss = F.cross_entropy(y if y.dim() == 2 else y.mean((2, 3)), labels[take])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@zoo
def test_training_curves_overlap(name):
    plain, fast, _ = build(name)
    torch.manual_seed(1)
    labels = torch.arange(32) % 2
    images = torch.randn(32, 3, 8, 8).double() + 2 * labels.view(-1, 1, 1, 1)
    curve = train(plain, images, labels, 50)
    assert curve[-5:].mean() < 0.7 * curve[0]
    assert_close(train(fast, images, labels, 50), curve, rtol=1e-6, atol=1e-6)
    assert_close(dict(fast.state_dict()), dict(plain.state_dict()), rtol=1e-5, atol=1e-6)


@zoo
def test_checkpoints_are_exchanged_with_the_original(name):
    plain, fast, x = build(name)
    other, _, _ = build(name, seed=7)
    assert list(fast.state_dict()) == list(plain.state_dict())
    fast.load_state_dict(other.state_dict())
    plain.load_state_dict(fast.state_dict())
    assert_close(fast(x), plain(x), **EXACT)


def by_pickle(model):
    return pickle.loads(pickle.dumps(model))


def by_torch(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@zoo
@pytest.mark.parametrize("duplicate", [copy.deepcopy, by_pickle, by_torch])
def test_copies_are_accelerated_and_independent(name, duplicate):
    plain, fast, x = build(name)
    twin = duplicate(fast)
    assert shown_as_fused(twin) == FUSIONS[name]
    assert [type(m) for m in twin.modules()] == [type(m) for m in fast.modules()]
    before = copy.deepcopy(fast.state_dict())
    assert_close(everything(twin, x), everything(plain, x), **EXACT)
    assert_close(dict(fast.state_dict()), dict(before), rtol=0, atol=0)


def test_old_pickle_protocols_work():
    _, fast, x = build("ResNet")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        twin = pickle.loads(pickle.dumps(fast.eval(), protocol))
        assert_close(twin(x), fast(x), rtol=0, atol=0)


# The same objects


def test_everything_keeps_its_identity():
    model = ZOO["ResNet"]().eval()
    model.layer1.train()
    model.layer1[0].bn1.anything = "mine"
    handle = model.bn1.register_forward_hook(lambda *_: None)
    before = {id(thing) for thing in (*model.modules(), *model.parameters(), *model.buffers())}
    modes = [module.training for module in model.modules()]

    assert accelerate(model) is model

    after = {id(thing) for thing in (*model.modules(), *model.parameters(), *model.buffers())}
    assert after == before
    assert [module.training for module in model.modules()] == modes
    assert model.layer1[0].bn1.anything == "mine"
    assert list(model.bn1._forward_hooks) == [handle.id]
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {type(norm) for norm in norms} == {livella.nn.BatchNorm2d}
    assert len(norms) == 10


def test_classes_stay_recognizable():
    plain, fast, _ = build("ResNet")
    for old, new in zip(plain.modules(), fast.modules(), strict=True):
        assert isinstance(new, type(old))
        assert type(new).__qualname__ == type(old).__qualname__
        assert inspect.signature(new.forward).parameters.keys() >= {
            *inspect.signature(old.forward).parameters
        }
    assert type(fast.layer1[0]).__module__ == type(plain.layer1[0]).__module__


def test_an_optimizer_made_before_goes_on():
    torch.manual_seed(0)
    plain = ZOO["ResNet"]().double()
    fast = copy.deepcopy(plain)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (plain, fast)]
    accelerate(fast)
    x = torch.randn(4, 3, 16, 16).double()
    for model, optimizer in zip((plain, fast), optimizers, strict=True):
        model(x).sum().backward()
        optimizer.step()
    assert_close(dict(fast.state_dict()), dict(plain.state_dict()), **EXACT)


def test_twice_is_once():
    _, fast, _ = build("DenseNet")
    classes = [type(module) for module in fast.modules()]
    shown = repr(fast)
    accelerate(fast)
    assert [type(module) for module in fast.modules()] == classes
    assert repr(fast) == shown


def test_livellas_own_layers_are_fused_too():
    model = nn.Sequential(livella.nn.BatchNorm1d(3), nn.ReLU())
    assert shown_as_fused(accelerate(model)) == {"": "0 + relu"}


@pytest.mark.parametrize(
    ("norm", "faster", "shape"),
    [
        (nn.BatchNorm1d, livella.nn.BatchNorm1d, (4, 3)),
        (nn.BatchNorm2d, livella.nn.BatchNorm2d, (4, 3, 2, 2)),
        (nn.BatchNorm3d, livella.nn.BatchNorm3d, (4, 3, 2, 2, 2)),
    ],
)
def test_the_root_may_be_a_norm(norm, faster, shape):
    layer = norm(3, momentum=None, affine=False)
    twin, x = copy.deepcopy(layer), torch.randn(shape)
    assert accelerate(layer) is layer
    assert type(layer) is faster
    assert_close(layer(x), twin(x))
    assert_close(dict(layer.state_dict()), dict(twin.state_dict()))


# Two processes


def _trained(rank, world):
    outcomes = []
    for model in build("ResNet")[:2]:
        wrapped = nn.parallel.DistributedDataParallel(model)
        optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
        for step in range(3):
            torch.manual_seed(10 * step + rank)
            loss = wrapped(torch.randn(4, 3, 16, 16).double()).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        outcomes.append(model.state_dict())
    return outcomes


def test_data_parallel_training_on_two_processes(tmp_path):
    (plain, fast), (_, other) = in_processes(_trained, 2, tmp_path)
    assert_close(dict(fast), dict(plain), **EXACT)
    weights = [name for name in fast if "running" not in name]
    assert_close({n: fast[n] for n in weights}, {n: other[n] for n in weights}, rtol=0, atol=0)
