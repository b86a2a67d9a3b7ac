"""Batch norm over part of a batch, against the batch norm called on one part after the other."""

import copy

import pytest
import torch
from torch import nn

import livella
from livella.study.microbatch import MicroBatches

NORMS = {
    "plain": nn.BatchNorm2d(3),
    "ours": livella.nn.BatchNorm2d(3),
    "quick averages": nn.BatchNorm2d(3, momentum=0.7, eps=0.1),
    "cumulative averages": nn.BatchNorm2d(3, momentum=None),
    "no parameters": nn.BatchNorm2d(3, affine=False),
    "no averages": nn.BatchNorm2d(3, track_running_stats=False),
    "an activation": livella.nn.BatchNormAct2d(3, activation="relu"),
    "vectors": nn.BatchNorm1d(3),
    "renormalized": livella.nn.BatchRenorm2d(3),
}


def call(norm, x, size):
    """Output and gradients in training, one run of examples after the other."""
    x = x.clone().requires_grad_()
    out = norm(x) if isinstance(norm, MicroBatches) else torch.cat([norm(p) for p in x.split(size)])
    weights = torch.linspace(-1, 1, out.numel()).view_as(out)
    learned = list(norm.parameters())
    return out.detach(), *torch.autograd.grad((out * weights).sum(), [x, *learned])


@pytest.mark.parametrize("size", [2, 4, 12])
@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_it_does_what_one_call_a_run_does(norm, size):
    torch.manual_seed(size)
    shape = (12, 3) if isinstance(norm, nn.BatchNorm1d) else (12, 3, 4, 5)
    one, other = copy.deepcopy(norm), MicroBatches(copy.deepcopy(norm), size)
    for _step in range(2):
        x = 3 * torch.randn(shape) + 1
        torch.testing.assert_close(call(other, x, size), call(one, x, size), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(dict(other.norm.state_dict()), dict(one.state_dict()))
    torch.testing.assert_close(other.eval()(x), one.eval()(x))


def test_a_batch_that_is_no_multiple_is_refused():
    with pytest.raises(ValueError, match="expected a multiple of 4 examples, got 6"):
        MicroBatches(nn.BatchNorm1d(3), 4)(torch.randn(6, 3))
