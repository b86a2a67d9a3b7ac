"""What depends on what, found by watching one pass."""

import pytest
import torch
from torch import nn

from livella.model.levels import levels, observe, pooled

A, B, C = ("a", 0), ("b", 0), ("c", 0)
NONE = frozenset()


def watch(forward) -> dict:
    """The dependencies of three layers in a forward of three inputs."""
    a, b, c = (nn.BatchNorm1d(2).eval() for _ in range(3))
    x = torch.randn(4, 2)
    with torch.no_grad():
        return observe(lambda: forward(a, b, c, x), {"a": a, "b": b, "c": c}, [x, a, b, c])


def test_a_chain_and_branches():
    assert watch(lambda a, b, c, x: c(b(a(x)))) == {A: NONE, B: {A}, C: {A, B}}
    assert watch(lambda a, b, c, x: c(a(x) + b(x))) == {A: NONE, B: NONE, C: {A, B}}
    assert watch(lambda a, b, c, x: (a(x), b(x), c(x))) == {A: NONE, B: NONE, C: NONE}


def test_views_and_changes_in_place_count():
    def in_place(a, b, c, x):
        out = torch.zeros(4, 2)
        out[:2] = a(x)[2:]
        b(out.t().contiguous().t())

    assert watch(in_place)[B] == {A}

    def copied(a, b, c, x):
        y = x.clone()
        y.copy_(a(x))
        b(y)

    assert watch(copied)[B] == {A}

    def through_data(a, b, c, x):
        b(a(x).detach().data * 2)

    assert watch(through_data)[B] == {A}


def test_what_is_not_certain_counts_as_everything_so_far():
    def by_number(a, b, c, x):
        scale = a(x).sum().item()
        b(x * scale)

    assert watch(by_number)[B] == {A}

    def through_numpy(a, b, c, x):
        b(torch.from_numpy(a(x).numpy() + 1))

    assert watch(through_numpy)[B] == {A}

    def decided(a, b, c, x):
        if a(x).sum() > -1e9:
            c(x)

    assert watch(decided)[C] == {A}


def test_levels_are_the_longest_way():
    assert levels({A: (), B: (A,), C: (A, B)}) == {A: 0, B: 1, C: 2}
    assert levels({A: (), B: (), C: (A, B)}) == {A: 0, B: 0, C: 1}
    assert levels({}) == {}
    with pytest.raises(ValueError, match="got a circle among a, b"):
        levels({A: (B,), B: (A,), C: ()})


def test_shared_layers_are_known_once_all_their_calls_are():
    again = ("a", 1)
    independent = {A: NONE, again: NONE, B: frozenset({A})}
    assert pooled(independent)[B] == {A, again}
    in_a_row = {A: NONE, again: frozenset({A}), B: frozenset({A, again})}
    assert pooled(in_a_row) == in_a_row
    interleaved = {A: NONE, B: frozenset({A}), again: frozenset({A, B})}
    assert pooled(interleaved) == interleaved


def test_what_is_written_to_a_named_place_and_not_given_back_counts():
    def named(a, b, c, x):
        out = torch.empty(4, 2)
        torch.ops.aten._foreach_mul.Scalar_out([a(x)], 2.0, out=[out])
        b(out)

    assert watch(named)[B] == {A}


@pytest.mark.parametrize("fails", [False, True])
def test_no_hook_stays_on_a_layer(fails):
    layer = nn.BatchNorm1d(2).eval()

    def run():
        layer(torch.randn(4, 2))
        if fails:
            raise RuntimeError("injected")

    if fails:
        with pytest.raises(RuntimeError, match="injected"):
            observe(run, {"a": layer})
    else:
        assert observe(run, {"a": layer}) == {A: NONE}
    assert not layer._forward_pre_hooks
    assert not layer._forward_hooks
