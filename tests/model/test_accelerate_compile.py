"""Accelerated models under `torch.compile` and `torch.export`: one graph, fused, and right."""

import copy
import shutil

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  the usual name
from torch import nn
from torch.testing import assert_close

from livella import accelerate
from tests.model.zoo import ZOO, BasicBlock

EXACT = {"rtol": 1e-10, "atol": 1e-10}

pytestmark = [
    # The compiler itself makes an instance of autograd.Function, and warns of it.
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning"),
    pytest.mark.usefixtures("compiling"),
]


@pytest.fixture
def compiling():
    """Forget what was compiled before, so that the limit on recompilations is not met."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def build(make=lambda: BasicBlock(3, 3)):
    """Give the same network twice, the second accelerated, and a batch."""
    torch.manual_seed(0)
    plain = make().double()
    return plain, accelerate(copy.deepcopy(plain)), torch.randn(4, 3, 8, 8).double()


SMALL = {
    "ResNet": {"layers": (1, 1)},
    "DenseNet": {"layers": (2, 1)},
    "MobileNetV2": {"settings": ((2, 4, 2, 1),)},
    "U-Net": {"depth": 1},
}


@pytest.mark.parametrize("name", SMALL)
def test_models_compile_as_one_graph(name):
    plain, fast, x = build(lambda: ZOO[name](**SMALL[name]))
    fast(x), plain(x)  # a list of tensors is proved in a first call
    backend = "aot_eager" if name == "ResNet" else "eager"
    compiled = torch.compile(fast, fullgraph=True, backend=backend)
    got, wanted = compiled(x), plain(x)
    assert_close(got, wanted, **EXACT)
    got.square().sum().backward()
    wanted.square().sum().backward()
    gradients = ({n: p.grad for n, p in model.named_parameters()} for model in (fast, plain))
    assert_close(*gradients, **EXACT)
    assert_close(dict(fast.state_dict()), dict(plain.state_dict()), **EXACT)


def calls_of(model, x):
    """Compile a model; give the functions that its graph calls."""
    seen = []

    def backend(graph, _):
        seen.extend(node.target for node in graph.graph.nodes if node.op == "call_function")
        return graph

    torch.compile(model, fullgraph=True, backend=backend)(x)
    return seen


def test_a_compiled_model_runs_fused():
    plain, fast, x = build()
    assert F.relu in calls_of(plain, x)
    assert F.relu not in calls_of(fast, x)
    assert F.relu not in calls_of(copy.deepcopy(fast), x)


@pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="inductor needs a compiler"
)
def test_the_default_compiler():
    plain, fast, x = build(lambda: nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()))
    assert_close(torch.compile(fast, fullgraph=True)(x), plain(x), **EXACT)


class Switched(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(3)
        self.act = nn.ReLU()
        self.sign = 1

    def forward(self, x, scale=1, bias=0.5, name="a", residual=None):
        y = self.bn(x)
        if residual is not None:
            y = y + residual
        return self.act(y) * scale * self.sign + bias + len(name)


def _negate(model):
    model.sign = -1


def _swap_activation(model):
    model.act = nn.Tanh()


def _swap_norm(model):
    model.bn = nn.Identity()


@pytest.mark.parametrize("change", [_negate, _swap_activation, _swap_norm])
def test_a_change_after_compiling_counts(change):
    plain, fast, x = build(Switched)
    compiled = torch.compile(fast, fullgraph=True, backend="eager")
    assert_close(compiled(x), plain(x), **EXACT)
    change(fast)
    change(plain)
    assert_close(compiled(x), plain(x), **EXACT)


def test_arguments_of_compiled_calls():
    plain, fast, x = build(Switched)
    compiled = torch.compile(fast, fullgraph=True, backend="eager")
    forms = ((2,), (3,), (4, 2.5, "bc", x))
    for arguments in forms[1:]:  # the first is not proved in a call before
        plain(x, *arguments), fast(x, *arguments)
    for arguments in forms:
        assert_close(compiled(x, *arguments), plain(x, *arguments), **EXACT)
    assert_close(compiled(x[:3], scale=5), plain(x[:3], scale=5), **EXACT)


@pytest.mark.parametrize(("strict", "training"), [(True, True), (False, False)])
def test_export(strict, training):
    plain, fast, x = build()
    fast.train(training), plain.train(training)
    exported = torch.export.export(fast, (x,), strict=strict).module()
    assert_close(exported(x), plain(x), **EXACT)
