"""Sequence-wise batch norm: statistics over batch and time, valid elements only."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.testing import assert_close

import livella
from livella.nn import BatchNorm1d, SequenceBatchNorm
from livella.nn.packing import pack, reversal

NEAR = {"rtol": 1e-9, "atol": 1e-9}
LENGTHS = st.lists(st.integers(1, 6), min_size=2, max_size=5)


def made(features=3, **options):
    layer = SequenceBatchNorm(features, dtype=torch.float64, **options)
    nn.init.uniform_(layer.norm.weight, 0.5, 2)
    nn.init.uniform_(layer.norm.bias, -1, 1)
    return layer


@given(LENGTHS, st.booleans(), st.booleans(), st.integers(0, 2**20))
def test_it_is_the_formula_over_all_valid_elements(lengths, batch_first, evaluate, seed):
    torch.manual_seed(seed)
    layer = made(batch_first=batch_first).train(not evaluate)
    x = torch.randn(len(lengths), max(lengths) + 1, 3, dtype=torch.float64)
    valid = [x[i, t] for i, n in enumerate(lengths) for t in range(n)]
    mean = sum(valid) / len(valid)
    square = sum((v - mean) ** 2 for v in valid)
    running = torch.zeros(3).double(), torch.ones(3).double()
    mu, var = running if evaluate else (mean, square / len(valid))
    wanted = torch.zeros_like(x)
    for i, n in enumerate(lengths):
        for t in range(n):
            wanted[i, t] = (
                layer.norm.weight * (x[i, t] - mu) / (var + 1e-5).sqrt() + layer.norm.bias
            )
    y = layer(x if batch_first else x.transpose(0, 1), lengths=lengths)
    assert_close(y if batch_first else y.transpose(0, 1), wanted, **NEAR)
    if not evaluate:
        assert_close(layer.norm.running_mean, 0.1 * mean, **NEAR)
        assert_close(layer.norm.running_var, 0.9 + 0.1 * square / (len(valid) - 1), **NEAR)


def test_padding_does_not_matter_bit_for_bit():
    torch.manual_seed(0)
    layer, lengths = SequenceBatchNorm(16, batch_first=True), [3, 9, 1, 9]
    x, found = torch.randn(4, 9, 16), []
    for more, filling in ((0, 0.0), (0, float("nan")), (20, float("inf")), (5, 1e30)):
        again = copy.deepcopy(layer)
        given = torch.full((4, 9 + more, 16), filling)
        for row, values, n in zip(given, x, lengths, strict=True):
            row[:n] = values[:n]
        y = again(given.requires_grad_(), lengths=torch.tensor(lengths))
        y[:, :9].sin().sum().backward()
        assert (y[:, 9:] == 0).all()
        found.append(
            [y[:, :9], given.grad[:, :9], *again.buffers(), *(p.grad for p in again.parameters())]
        )
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_packed_sequences_stay_packed():
    torch.manual_seed(0)
    layer, sequences = made(), [torch.randn(n, 3, dtype=torch.float64) for n in (2, 5, 4)]
    packed = pack_sequence(sequences, enforce_sorted=False)
    y = copy.deepcopy(layer)(packed)
    assert isinstance(y, PackedSequence)
    assert torch.equal(y.batch_sizes, packed.batch_sizes)
    assert torch.equal(y.data, copy.deepcopy(layer.norm)(packed.data))
    padded = nn.utils.rnn.pad_sequence(sequences)
    again = nn.utils.rnn.pad_packed_sequence(y)[0]
    assert torch.equal(layer(padded, lengths=[2, 5, 4]), again)


def test_whole_sequences_are_rows():
    torch.manual_seed(0)
    layer, x = made(), torch.randn(5, 2, 3, dtype=torch.float64)
    wanted = copy.deepcopy(layer.norm)(x.reshape(10, 3)).reshape(5, 2, 3)
    assert torch.equal(layer(x), wanted)
    assert layer(x[:, 0]).shape == (5, 3)
    assert made(batch_first=True)(x[:, 0]).shape == (5, 3)


def test_gradients_once_and_twice():
    torch.manual_seed(0)
    layer = made()
    x = torch.randn(4, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: layer(x, lengths=[1, 4, 2]), (x,))
    assert torch.autograd.gradgradcheck(lambda x: layer(x, lengths=[1, 4, 2]), (x,))


@pytest.mark.parametrize(
    ("shape", "lengths", "error"),
    [
        ((5, 2, 4), None, "expected data of shape"),
        ((0, 2, 3), None, "one step or more"),
        ((5, 2, 3), [5, 6], "from 1 to"),
        ((1, 1, 3), None, "more than one value"),
        ((5, 1, 3), [1], "more than one value"),
    ],
)
def test_bad_input_is_told_and_leaves_no_trace(shape, lengths, error):
    layer = SequenceBatchNorm(3)
    with pytest.raises(ValueError, match=error):
        layer(torch.randn(shape), lengths=lengths)
    assert layer.norm.num_batches_tracked == 0


def test_the_tools_for_batch_norms_meet_one():
    torch.manual_seed(0)
    layer, data = SequenceBatchNorm(3), [3 * torch.randn(5, 8, 3) + 1 for _ in range(4)]
    estimate = livella.estimate_population(layer, data)
    estimate.apply()
    whole = torch.cat(data).reshape(-1, 3)
    assert_close(layer.norm.running_mean, whole.mean(0))
    assert_close(layer.norm.running_var, whole.var(0))
    livella.freeze(layer)
    before = copy.deepcopy(layer.state_dict())
    layer.train()(data[0])
    assert_close(layer.state_dict(), before, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_idiom():
    layer = SequenceBatchNorm(3, batch_first=True, activation="relu")
    assert list(layer.state_dict()) == [f"norm.{n}" for n in BatchNorm1d(3).state_dict()]
    assert "batch_first=True" in str(layer)
    x = torch.randn(2, 5, 3)
    again = pickle.loads(pickle.dumps(layer))
    assert torch.equal(again(x), layer(x))
    assert (layer(x) >= 0).all()
    torch._dynamo.reset()
    compiled = torch.compile(again, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x), copy.deepcopy(layer)(x))


@given(LENGTHS)
def test_reversal_reverses_each_sequence(lengths):
    sequences = [torch.arange(n)[:, None] + 100.0 * i for i, n in enumerate(lengths)]
    packed = pack_sequence(sequences, enforce_sorted=False)
    order = reversal(packed.batch_sizes.tolist(), torch.device("cpu"))
    flipped = pack_sequence([s.flip(0) for s in sequences], enforce_sorted=False)
    assert torch.equal(packed.data[order], flipped.data)
    assert torch.equal(order[order], torch.arange(len(order)))


def test_packing_leaves_out_what_is_past_the_ends():
    x = torch.arange(12.0).reshape(3, 4, 1)
    packed = pack(x, [1, 3, 2, 2], 1, batch_first=False, layer="test")
    assert packed.sizes == (4, 3, 1)
    assert packed.sequences == 4
    back = packed.restore(packed.rows)
    assert back[:, 0, 0].tolist() == [0, 0, 0]
    assert back[:, 1, 0].tolist() == [1, 5, 9]
