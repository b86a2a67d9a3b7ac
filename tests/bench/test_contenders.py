"""The contenders do the same work, and the limit moves the bytes of that work."""

import math

import pytest
import torch
from torch.testing import assert_close

from livella.bench import contenders
from livella.bench.cases import ADD_RELU, PLAIN, RELU, Case, Fusion, Setting
from livella.bench.contenders import EAGER, LIMIT, OURS, Tensors

FUSIONS = [PLAIN, RELU, ADD_RELU, *map(Fusion, ("relu6", "leaky_relu", "silu", "hardswish"))]
NEAR = {
    "float64": {"rtol": 1e-9, "atol": 1e-9},
    "float32": {"rtol": 1e-4, "atol": 1e-4},
    "float16": {"rtol": 1e-2, "atol": 1e-2},
    "bfloat16": {"rtol": 5e-2, "atol": 5e-2},
}


def setting(fusion=PLAIN, layout="contiguous", dtype="float32", shape=(4, 3, 5, 2)):
    return Setting(shape, layout, dtype, fusion)


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("fusion", FUSIONS, ids=str)
def test_all_contenders_give_the_same(fusion, layout, dtype):
    given = setting(fusion, layout, dtype)
    tensors = Tensors.of(given)
    functions = contenders.norms(given)
    for operation in ("forward", "backward"):
        calls = contenders.calls(Case(operation, given), tensors, functions)
        found = {name: calls[name]() for name in functions}
        assert_close(found[OURS], found[EAGER], **NEAR[dtype])
    assert set(calls) == {OURS, EAGER, LIMIT}


def test_backward_gives_every_gradient_and_can_be_called_again():
    given = setting(ADD_RELU)
    tensors = Tensors.of(given)
    calls = contenders.calls(Case("backward", given), tensors, contenders.norms(given))
    for name in (OURS, EAGER):
        first, again = calls[name](), calls[name]()
        assert [g.shape for g in first] == [t.shape for t in tensors.differentiable]
        assert len(first) == 4
        assert_close(first, again, rtol=0, atol=0)


def test_evaluation_uses_the_running_averages_and_keeps_no_graph():
    given = setting(RELU)
    tensors = Tensors.of(given)
    seen = {}
    functions = {
        name: lambda *a, norm=norm, name=name: lambda: seen.update({name: norm(*a)()})
        for name, norm in contenders.norms(given).items()
    }
    for call in contenders.calls(Case("evaluation", given), tensors, functions).values():
        call()
    assert_close(seen[OURS], seen[EAGER])
    assert_close(seen[OURS], tensors.x.relu() / math.sqrt(1 + 1e-5), rtol=1e-4, atol=1e-4)
    assert not seen[OURS].requires_grad
    assert not seen[EAGER].requires_grad


def test_forward_records_a_graph_as_training_does():
    given = setting()
    calls = contenders.calls(Case("forward", given), Tensors.of(given), contenders.norms(given))
    assert calls[OURS]().requires_grad
    assert calls[EAGER]().requires_grad


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(4, 3, 5, 2), (4, 3, 2, 3, 2), (4, 3, 6), (4, 3)], ids=str)
def test_tensors_lie_in_memory_as_asked(shape, layout):
    x = Tensors.of(setting(layout=layout, shape=shape)).x
    assert x.shape == shape
    wanted = 1 if layout == "channels_last" else math.prod(shape[2:])
    assert x.stride(1) == wanted


MOVED = {
    # operation, fusion → tensors read and written
    ("forward", PLAIN): (1, 1),
    ("forward", ADD_RELU): (2, 1),
    ("evaluation", RELU): (1, 1),
    ("backward", PLAIN): (2, 1),
    ("backward", RELU): (2, 1),
    ("backward", ADD_RELU): (3, 2),
}


@pytest.mark.parametrize(("operation", "fusion"), MOVED, ids=str)
def test_the_limit_moves_the_bytes_of_the_case(operation, fusion, monkeypatch):
    read, written = [], []

    def copy(source, target):
        return lambda: (read.append(source), written.append(target))

    def two_to_one(a, b, target):
        return lambda: (read.extend([a, b]), written.append(target))

    monkeypatch.setattr(contenders, "_copy", copy)
    monkeypatch.setattr(contenders, "_two_to_one", two_to_one)
    given = setting(fusion, dtype="bfloat16")
    contenders.calls(Case(operation, given), Tensors.of(given), {})[LIMIT]()
    assert (len(read), len(written)) == MOVED[operation, fusion]
    assert all(each.nbytes == given.bytes for each in (*read, *written))
    assert len({each.data_ptr() for each in (*read, *written)}) == len(read) + len(written)


def test_the_streams_copy_and_add():
    a, b, out = torch.arange(4.0), torch.ones(4), torch.zeros(4)
    contenders._copy(a, out)()
    assert_close(out, a)
    contenders._two_to_one(a, b, out)()
    assert out.abs().sum() > 0
    assert_close(a, torch.arange(4.0))
