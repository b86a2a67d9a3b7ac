"""A small network to write forwards around, and whether two such networks behave alike."""

import copy

import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves

from livella.model.accelerate import accelerate


class Net(nn.Module):
    """A convolution, a norm and an activation, for forwards to be written with."""

    def __init__(self, forward=None, **parts):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.bn = nn.BatchNorm2d(3)
        self.act = nn.ReLU()
        for name, part in parts.items():
            setattr(self, name, part)


def net(forward, **parts):
    """Make a network of a class of its own, with this forward."""
    torch.manual_seed(0)
    return type("Made", (Net,), {"forward": forward})(**parts).double()


def inputs(*shapes):
    generator = torch.Generator().manual_seed(1)
    shapes = shapes or [(4, 3, 5, 5)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def history(model, *args, **kwargs):
    """All that can be seen of a call: outputs, changed arguments, gradients, buffers."""
    given = [copy.deepcopy(value) for value in args]
    leaves = [v.requires_grad_() for v in tensors_in(given)]
    working = [[v * 1 for v in x] if isinstance(x, list) else x for x in given]
    working = [x * 1 if isinstance(x, Tensor) else x for x in working]
    result = model(*working, **kwargs)
    out = sum(value.square().sum() for value in tensors_in(result))
    sources = [*leaves, *model.parameters()]
    gradients = torch.autograd.grad(out, sources, allow_unused=True) if out.requires_grad else []
    return [result, working, *gradients, *(b.clone() for b in model.buffers())]


def tensors_in(value):
    leaves = tree_leaves(value)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def assert_same(plain, fast, *args, **kwargs):
    args = args or inputs()
    for training in (True, False, True):
        got = history(fast.train(training), *args, **kwargs)
        wanted = history(plain.train(training), *args, **kwargs)
        assert type(got[0]) is type(wanted[0])
        # What cancels to nothing leaves the rounding of what it was made of.
        largest = max((float(v.detach().abs().max()) for v in tensors_in(wanted)), default=1.0)
        assert_close(got, wanted, rtol=1e-10, atol=1e-11 * max(largest, 10.0))


def accelerated(model):
    return accelerate(copy.deepcopy(model))
