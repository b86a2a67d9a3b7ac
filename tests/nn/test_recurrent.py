"""Batch-normalized LSTM and GRU: against the naive oracle, against torch's interface, and abuse."""

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from livella.nn import BatchNorm1d, BatchNormGRU, BatchNormLSTM, cells, through_time
from tests.nn import naive

KINDS = {"lstm": BatchNormLSTM, "gru": BatchNormGRU}
NEAR = {"rtol": 1e-9, "atol": 1e-9}
both = pytest.mark.parametrize("kind", list(KINDS.values()), ids=list(KINDS))

CASES = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(sorted(KINDS)),
        "lengths": st.lists(st.integers(1, 5), min_size=2, max_size=5),
        "statistics": st.sampled_from(["per_step", "shared"]),
        "max_length": st.sampled_from([None, 1, 2, 7]),
        "num_layers": st.sampled_from([1, 2]),
        "bidirectional": st.booleans(),
        "bias": st.booleans(),
        "batch_first": st.booleans(),
        "state": st.booleans(),
        "seed": st.integers(0, 2**20),
    }
)


def made(kind=BatchNormLSTM, inputs=3, hidden=4, **options):
    """A layer whose parameters and running statistics are nothing special."""
    layer = kind(inputs, hidden, dtype=torch.float64, **options)
    with torch.no_grad():
        for name, p in layer.named_parameters():
            p.uniform_(0.3, 1.2) if name.startswith("gamma") else p.uniform_(-0.8, 0.8)
        for name, b in layer.named_buffers():
            if "mean" in name:
                b.normal_()
            elif "var" in name:
                b.uniform_(0.5, 2)
    return layer


def padded(sequences, steps=None, filling=0.0, batch_first=False):
    steps = steps or max(len(s) for s in sequences)
    whole = torch.full(
        (len(sequences), steps, sequences[0].shape[1]), filling, dtype=sequences[0].dtype
    )
    for row, s in zip(whole, sequences, strict=True):
        row[: len(s)] = s
    return whole if batch_first else whole.transpose(0, 1).contiguous()


def drawn(lengths, features=3, dtype=torch.float64):
    return [torch.randn(n, features, dtype=dtype) for n in lengths]


def tupled(state):
    return state if isinstance(state, tuple) else (state,)


def from_case(case):
    torch.manual_seed(case["seed"])
    limit = None if case["statistics"] == "shared" else case["max_length"]
    names = ("statistics", "num_layers", "bidirectional", "bias", "batch_first")
    layer = made(KINDS[case["kind"]], max_length=limit, **{n: case[n] for n in names})
    sequences = drawn(case["lengths"])
    slots = case["num_layers"] * (1 + case["bidirectional"])
    shape = (len(layer.states), slots, len(sequences), 4)
    state = tuple(torch.randn(shape, dtype=torch.float64)) if case["state"] else None
    return layer, sequences, state


def as_given(layer, state):
    return state[0] if state is not None and len(layer.states) == 1 else state


def loss(outputs, states):
    return sum((o.sin() * (1 + i)).sum() for i, o in enumerate([*outputs, *states]))


@given(CASES)
def test_training_agrees_with_the_naive_formulae(case):
    layer, sequences, state = from_case(case)
    xs = [s.clone().requires_grad_() for s in sequences]
    outputs, states, met = naive.run(layer, xs, state)
    loss(outputs, states).backward()
    wanted = {n: p.grad.clone() for n, p in layer.named_parameters()}
    layer.zero_grad()

    x = padded(sequences, batch_first=case["batch_first"]).requires_grad_()
    y, last = layer(x, as_given(layer, state), lengths=case["lengths"])
    rows = y if case["batch_first"] else y.transpose(0, 1)
    ours = [row[:n] for row, n in zip(rows, case["lengths"], strict=True)]
    assert all((row[n:] == 0).all() for row, n in zip(rows, case["lengths"], strict=True))
    assert_close(ours, outputs, **NEAR)
    assert_close(list(tupled(last)), states, **NEAR)
    loss(ours, tupled(last)).backward()
    for name, p in layer.named_parameters():
        assert_close(p.grad, wanted[name], rtol=1e-6, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")
    dx = x.grad if case["batch_first"] else x.grad.transpose(0, 1)
    for found, s, n in zip(dx, xs, case["lengths"], strict=True):
        assert_close(found[:n], s.grad, rtol=1e-6, atol=1e-8)
        assert (found[n:] == 0).all()
    _check_running(layer, met)


def _check_running(layer, met):
    for suffix, norms in met.items():
        for name, norm in norms.items():
            mean = getattr(layer, f"running_mean_{name}{suffix}")
            wanted = naive.running(norm, len(mean), 0.1)
            assert_close(mean, wanted[0], **NEAR)
            assert_close(getattr(layer, f"running_var_{name}{suffix}"), wanted[1], **NEAR)
        rows, steps = len(mean), len(norms["hh"].met)
        assert rows == (1 if layer.statistics == "shared" else layer.max_length or steps)
        counter = getattr(layer, f"num_batches_tracked{suffix}")
        assert counter.tolist() == [int(t < steps) for t in range(rows)]


@given(CASES)
@settings(max_examples=20)
def test_evaluation_agrees_with_the_naive_formulae(case):
    layer, sequences, state = from_case(case)
    before = copy.deepcopy(layer.state_dict())
    layer.eval()
    outputs, states, _ = naive.run(layer, sequences, state, by_batch=False)
    with torch.no_grad():
        y, last = layer(
            padded(sequences, batch_first=case["batch_first"]), as_given(layer, state),
            lengths=torch.tensor(case["lengths"]),
        )  # fmt: skip
    rows = y if case["batch_first"] else y.transpose(0, 1)
    assert_close([row[:n] for row, n in zip(rows, case["lengths"], strict=True)], outputs, **NEAR)
    assert_close(list(tupled(last)), states, **NEAR)
    assert_close(layer.state_dict(), before, rtol=0, atol=0)


def test_the_oracle_notices_a_wrong_momentum():
    layer = made()
    _, _, met = naive.run(layer, drawn([3, 3]))
    layer.momentum = 0.2
    layer(padded(drawn([3, 3])))
    with pytest.raises(AssertionError):
        _check_running(layer, met)


def passed(layer, given, state=None, **options):
    """All that a training pass leaves behind."""
    layer = copy.deepcopy(layer)
    given = given.clone().requires_grad_() if isinstance(given, torch.Tensor) else given
    y, last = layer(given, state, **options)
    data = y.data if isinstance(y, PackedSequence) else y
    loss([data], tupled(last)).backward()
    grads = [p.grad for p in layer.parameters()]
    return y, [*tupled(last), *grads, *layer.buffers()], getattr(given, "grad", None)


@both
@pytest.mark.parametrize("statistics", ["per_step", "shared"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_padding_does_not_matter_bit_for_bit(kind, statistics, dtype):
    torch.manual_seed(0)
    layer = kind(3, 16, 2, bidirectional=True, statistics=statistics, dtype=dtype)
    lengths, sequences = [3, 7, 1, 7, 4], None
    sequences = drawn(lengths, dtype=dtype)
    y, rest, dx = passed(layer, padded(sequences), lengths=lengths)
    for steps, filling in ((7, float("nan")), (7, 1e30), (12, float("inf")), (29, 3.0)):
        more, *others = passed(layer, padded(sequences, steps, filling), lengths=lengths)
        assert torch.equal(more[:7], y)
        assert (more[7:] == 0).all()
        assert all(torch.equal(a, b) for a, b in zip(others[0], rest, strict=True))
        assert torch.equal(others[1][:7], dx)


@both
def test_all_forms_of_sequences_agree(kind):
    torch.manual_seed(0)
    lengths = [2, 5, 4, 5]
    layer, sequences = made(kind, num_layers=2, bidirectional=True), drawn(lengths)
    state = torch.randn(len(made(kind).states), 4, 4, 4, dtype=torch.float64)
    state = tuple(state) if len(state) > 1 else state[0]
    y, rest, _ = passed(layer, padded(sequences), state, lengths=lengths)
    packed, others, _ = passed(layer, pack_sequence(sequences, enforce_sorted=False), state)
    assert isinstance(packed, PackedSequence)
    again = pack_padded_sequence(y, torch.tensor(lengths), enforce_sorted=False)
    assert torch.equal(packed.data, again.data)
    assert torch.equal(packed.unsorted_indices, again.unsorted_indices)
    assert all(torch.equal(a, b) for a, b in zip(others, rest[: len(tupled(state))], strict=False))
    order = [1, 3, 2, 0]
    sorted_state = state[:, order] if kind is BatchNormGRU else tuple(s[:, order] for s in state)
    by_length, of_sorted, _ = passed(
        layer, pack_sequence([sequences[i] for i in order]), sorted_state
    )
    assert by_length.sorted_indices is None
    assert_close(by_length.data, packed.data, **NEAR)
    assert_close(of_sorted[0], rest[0][:, order], **NEAR)


@both
def test_full_lengths_are_no_lengths(kind):
    torch.manual_seed(0)
    layer, x = made(kind, bidirectional=True), padded(drawn([5] * 4))
    one, two = passed(layer, x), passed(layer, x, lengths=torch.full((4,), 5, dtype=torch.int32))
    assert_close(one, two, **NEAR)


@both
def test_shapes_are_those_of_torch(kind):
    theirs = {BatchNormLSTM: nn.LSTM, BatchNormGRU: nn.GRU}[kind]
    for options in ({}, {"bidirectional": True}, {"num_layers": 3}, {"batch_first": True}):
        ours, other = kind(3, 4, **options).eval(), theirs(3, 4, **options)
        for shape in ((5, 2, 3), (5, 1, 3), (1, 2, 3), (5, 3), (5, 0, 3), (1, 1, 3)):
            if 0 in shape and options.get("batch_first"):
                continue
            (y, s), (z, r) = ours(torch.randn(shape)), other(torch.randn(shape))
            assert y.shape == z.shape
            assert [a.shape for a in tupled(s)] == [a.shape for a in tupled(r)]


@both
def test_weights_move_from_torch(kind):
    theirs = {BatchNormLSTM: nn.LSTM, BatchNormGRU: nn.GRU}[kind]
    options = {"num_layers": 2, "bidirectional": True, "bias": True}
    other, ours = theirs(3, 4, **options), kind(3, 4, **options)
    found = ours.load_state_dict(other.state_dict(), strict=False)
    assert not found.unexpected_keys
    assert all(n.startswith(("gamma", "beta", "running", "num_")) for n in found.missing_keys)
    # Normalized by a mean of zero and a variance of one, and γ one, it is torch's (all but c).
    if kind is BatchNormGRU:
        for name, p in ours.named_parameters():
            if name.startswith("gamma"):
                nn.init.ones_(p)
        x, ours.eps = torch.randn(5, 2, 3), 1e-12
        assert_close(ours.eval()(x)[0], other(x)[0])


@both
def test_a_sequence_of_one_step_is_batch_norm(kind):
    torch.manual_seed(0)
    layer, x = made(kind), torch.randn(1, 6, 3, dtype=torch.float64)
    layer.reset_running_stats()
    norm = BatchNorm1d(layer.gates * 4, affine=False, dtype=torch.float64)
    for _ in range(3):
        layer(x)
        norm(x[0] @ layer.weight_ih_l0.t())
    assert_close(layer.running_mean_ih_l0[0], norm.running_mean, **NEAR)
    assert_close(layer.running_var_ih_l0[0], norm.running_var, **NEAR)
    assert layer.num_batches_tracked_l0.tolist() == [3]


@both
def test_cumulative_averages_count_each_step_by_itself(kind):
    torch.manual_seed(0)
    layer = made(kind, momentum=None)
    met = []
    for lengths in ([2, 2, 1], [4, 4], [3, 3, 3]):
        sequences = drawn(lengths)
        met.append(naive.run(layer, sequences)[2]["_l0"]["ih"].met)
        layer(padded(sequences), lengths=lengths)
    assert layer.num_batches_tracked_l0.tolist() == [3, 3, 2, 1]
    for t in range(4):
        means = [torch.stack(steps[t]).mean(0) for steps in met if t < len(steps)]
        assert_close(layer.running_mean_ih_l0[t], sum(means) / len(means), **NEAR)


@both
def test_statistics_grow_and_the_last_serve_beyond(kind):
    torch.manual_seed(0)
    layer = made(kind)
    layer(padded(drawn([3] * 4)))
    assert len(layer.running_mean_hh_l0) == 3
    before = layer.running_var_hh_l0[2].clone()
    layer(padded(drawn([5, 5])))
    assert len(layer.running_mean_hh_l0) == 5
    assert_close(naive.running(naive.Norm(layer, "hh_l0", True), 9, 0.1)[0][8],
                 layer.running_mean_hh_l0[4])  # fmt: skip
    assert not torch.equal(layer.running_var_hh_l0[4], before)
    layer(padded(drawn([2, 2])))  # leaves the later ones alone
    assert layer.num_batches_tracked_l0.tolist() == [3, 3, 2, 1, 1]
    x = torch.randn(40, 3, 3, dtype=torch.float64)
    assert layer.eval()(x)[0].isfinite().all()
    layer.reset_running_stats()
    assert layer.running_var_hh_l0.tolist() == [[1.0] * layer.gates * 4]


@both
def test_gradients_once_and_twice(kind):
    torch.manual_seed(0)
    for options in ({}, {"statistics": "shared", "bias": False}):
        check_gradients(made(kind, 1, 1, **options), [2, 1, 2, 2])
        # In full this takes eight times as long.
        check_gradients(made(kind, 2, 2, bidirectional="bias" in options, **options), [3, 2, 1, 3],
                        fast_mode=True)  # fmt: skip


def check_gradients(layer, lengths, **options):
    shape = (max(lengths), len(lengths), layer.input_size)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    shape = (len(layer.states), 1 + layer.bidirectional, len(lengths), layer.hidden_size)
    state = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    parameters = dict(layer.named_parameters())

    def run(x, state, *values):
        given = dict(zip(parameters, values, strict=True))
        arguments = (x, as_given(layer, tuple(state)))
        y, last = torch.func.functional_call(layer, given, arguments, {"lengths": lengths})
        return y, *tupled(last)

    inputs = (x, state, *parameters.values())
    assert torch.autograd.gradcheck(run, inputs, **options)
    assert torch.autograd.gradgradcheck(run, inputs, atol=1e-4, **options)


@both
def test_the_backward_pass_written_out_is_that_of_autograd(kind, monkeypatch):
    torch.manual_seed(0)
    layer = made(kind, num_layers=2)
    x, lengths = padded(drawn([4, 2, 4, 1])), [4, 2, 4, 1]
    wanted = passed(layer, x, lengths=lengths)
    monkeypatch.setattr(
        through_time,
        "run",
        lambda cell, xs, sizes, state: cells.unroll(cell.step, xs, sizes, state),
    )
    assert_close(passed(layer, x, lengths=lengths), wanted, **NEAR)


@both
def test_only_some_ask_for_a_gradient(kind):
    torch.manual_seed(0)
    for name in ("weight_hh_l0", "gamma_hh_l0", "bias_ih_l0", "weight_ih_l0"):
        layer = made(kind)
        layer.requires_grad_(False)
        parameter = layer.get_parameter(name).requires_grad_()
        for steps in (1, 3):
            y, _ = layer(torch.randn(steps, 4, 3, dtype=torch.float64))
            (g,) = torch.autograd.grad(y.square().sum(), parameter, create_graph=True)
            assert g.isfinite().all()
            g.square().sum().backward()


BAD = {
    "lengths too long": ({"lengths": [6, 1]}, ValueError, "from 1 to the 5 steps"),
    "lengths of zero": ({"lengths": [5, 0]}, ValueError, "from 1 to the 5 steps"),
    "negative lengths": ({"lengths": [5, -1]}, ValueError, "from 1 to the 5 steps"),
    "too few lengths": ({"lengths": [5]}, ValueError, "one length for each of 2"),
    "lengths of two dimensions": ({"lengths": [[5, 5]]}, ValueError, "one length for each of 2"),
    "lengths that are no integers": ({"lengths": torch.ones(2)}, TypeError, "integers"),
    "a mask as lengths": ({"lengths": torch.ones(2, dtype=torch.bool)}, TypeError, "integers"),
    "features": ({"input": torch.randn(5, 2, 4)}, ValueError, r"\(T, N, 3\)"),
    "dimensions": ({"input": torch.randn(5, 2, 4, 3)}, ValueError, r"\(T, N, 3\)"),
    "no steps": ({"input": torch.randn(0, 2, 3)}, ValueError, "one step or more"),
    "integers": ({"input": torch.ones(5, 2, 3, dtype=torch.long)}, TypeError, "floating"),
    "another dtype": ({"input": torch.randn(5, 2, 3).half()}, ValueError, "dtype of the weights"),
    "a list": ({"input": [1, 2]}, TypeError, "a tensor or a PackedSequence"),
    "one sequence": ({"input": torch.randn(5, 1, 3)}, ValueError, "two sequences or more"),
    "one without a batch": ({"input": torch.randn(5, 3)}, ValueError, "two sequences or more"),
    "lengths without a batch": (
        {"input": torch.randn(5, 3), "lengths": [4]}, ValueError, "without a batch",
    ),
    "packed features": ({"input": pack_sequence(drawn([2, 1], 4))}, ValueError, "3 features"),
    "packed with lengths": (
        {"input": pack_sequence(drawn([2, 1])), "lengths": [2, 1]}, ValueError, "leave them out",
    ),
}  # fmt: skip


@both
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_and_leaves_no_trace(kind, case):
    options, error, message = BAD[case]
    layer = kind(3, 4)
    layer(torch.randn(5, 2, 3))
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(error, match=message):
        layer(**{"input": torch.randn(5, 2, 3), **options})
    assert_close(layer.state_dict(), before, rtol=0, atol=0)


@both
@pytest.mark.parametrize(
    "bad",
    [
        torch.zeros(1, 3, 4),
        torch.zeros(2, 2, 4),
        torch.zeros(2, 4),
        torch.zeros(1, 2, 4).double(),
        3,
    ],
)
def test_a_bad_initial_state_is_told(kind, bad):
    layer = kind(3, 4)
    state = (torch.zeros(1, 2, 4), bad) if kind is BatchNormLSTM else bad
    with pytest.raises(ValueError, match="expected an initial state"):
        layer(torch.randn(5, 2, 3), state)
    assert layer.num_batches_tracked_l0.tolist() == [0]


def test_a_state_of_another_layer_is_told():
    with pytest.raises(ValueError, match="h and c"):
        BatchNormLSTM(3, 4)(torch.randn(5, 2, 3), (torch.zeros(1, 2, 4),))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"statistics": "all"}, "per_step"),
        ({"max_length": 0}, "max_length"),
        ({"max_length": 3, "statistics": "shared"}, "max_length"),
        ({"eps": 0.0}, "eps"),
        ({"dropout": 1.5}, "dropout"),
        ({"num_layers": 0}, "num_layers"),
        ({"hidden_size": 0}, "hidden_size"),
    ],
)
def test_bad_options_are_told(options, message):
    with pytest.raises(ValueError, match=message):
        BatchNormLSTM(**{"input_size": 3, "hidden_size": 4, **options})


def test_dropout_of_one_layer_warns():
    with pytest.warns(UserWarning, match="between layers"):
        BatchNormGRU(3, 4, dropout=0.5)


@both
def test_an_empty_batch_gives_an_empty_output(kind):
    layer = kind(3, 4)
    y, last = layer(torch.randn(5, 0, 3))
    assert y.shape == (5, 0, 4)
    assert tupled(last)[0].shape == (1, 0, 4)
    assert layer.num_batches_tracked_l0.tolist() == [0]


@both
def test_nan_passes_on(kind):
    x = torch.randn(5, 3, 3)
    x[2, 1, 0] = float("nan")
    y, _ = kind(3, 4)(x)
    assert y[:2].isfinite().all()
    assert y[2:].isnan().all()


@both
def test_large_offsets_and_constant_features(kind):
    torch.manual_seed(0)
    layer = kind(3, 4)
    x = torch.randn(5, 16, 3)
    x[..., 1] = 1.0
    y, _ = copy.deepcopy(layer)(x.double().float())
    shifted = copy.deepcopy(layer)
    z, _ = shifted(x + 1e4)
    assert_close(z, y, rtol=1e-2, atol=1e-2)
    constant, _ = layer(torch.ones(5, 16, 3))
    constant.sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes(kind, dtype):
    torch.manual_seed(0)
    wide = kind(3, 8, gamma=0.5)
    layer, x = copy.deepcopy(wide).to(dtype), torch.randn(6, 16, 3)
    y, last = layer(x.to(dtype), lengths=[6] * 15 + [2])
    assert y.dtype == tupled(last)[0].dtype == dtype
    assert_close(y.float(), wide(x, lengths=[6] * 15 + [2])[0], rtol=0.1, atol=0.06)
    y.sum().backward()
    assert layer.weight_hh_l0.grad.dtype == dtype
    assert layer.eval()(x.to(dtype))[0].isfinite().all()


@both
def test_autocast_computes_as_torch_does(kind):
    torch.manual_seed(0)
    layer, x = kind(3, 4, 2), torch.randn(5, 8, 3)
    wanted = copy.deepcopy(layer)(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        y, last = layer(x)
    assert y.dtype == tupled(last)[0].dtype == torch.bfloat16
    y.float().sum().backward()
    assert layer.weight_hh_l0.grad.dtype == layer.running_mean_hh_l0.dtype == torch.float32
    assert_close(y.float(), wanted, rtol=0.1, atol=0.05)


@both
def test_state_dict_adopts_what_was_seen(kind):
    layer = kind(3, 4, 2)
    layer(torch.randn(7, 2, 3))
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    fresh = kind(3, 4, 2)
    fresh(torch.randn(9, 2, 3))  # longer or shorter: the saved length counts
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert_close(fresh.state_dict(), layer.state_dict(), rtol=0, atol=0)
    x = torch.randn(12, 2, 3)
    assert torch.equal(fresh.eval()(x)[0], layer.eval()(x)[0])
    with pytest.raises(RuntimeError, match="size mismatch"):
        kind(3, 4, 2, max_length=5).load_state_dict(layer.state_dict())
    with pytest.raises(RuntimeError, match="size mismatch"):
        kind(3, 5, 2).load_state_dict(layer.state_dict())


@both
def test_copies_and_pickles(kind):
    layer = kind(3, 4, 2, bidirectional=True)
    layer(torch.randn(7, 2, 3))
    layer.normalize_by = "running"
    x = torch.randn(12, 2, 3)
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(again(x)[0], layer(x)[0])
        assert str(again) == str(layer)


def test_what_it_says_of_itself():
    assert str(BatchNormLSTM(3, 4)) == "BatchNormLSTM(3, 4)"
    layer = BatchNormGRU(3, 4, 2, batch_first=True, statistics="shared", gamma=1.0)
    assert str(layer) == (
        "BatchNormGRU(3, 4, num_layers=2, batch_first=True, statistics=shared, gamma=1.0)"
    )


def test_parameters_start_as_documented():
    layer = BatchNormLSTM(3, 16, gamma=0.3, dtype=torch.float64)
    assert (layer.gamma_hh_l0 == 0.3).all()
    assert (layer.gamma_c_l0 == 0.3).all()
    assert (layer.beta_c_l0 == 0).all()
    assert layer.weight_hh_l0.abs().max() <= 0.25
    assert {p.dtype for p in layer.parameters()} == {torch.float64}
    assert BatchNormLSTM(3, 4, device="meta").running_var_c_l0.is_meta
    assert not [n for n, _ in BatchNormLSTM(3, 4, bias=False).named_parameters() if "b" in n[:2]]


@both
def test_running_statistics_can_normalize_in_training(kind):
    torch.manual_seed(0)
    layer = made(kind, 3, 4)
    before = copy.deepcopy(layer.state_dict())
    layer.normalize_by = "running"
    x = torch.randn(5, 1, 3, dtype=torch.float64)
    y, _ = layer(x)
    assert torch.equal(y, copy.deepcopy(layer).eval()(x)[0])
    y.sum().backward()
    assert layer.weight_hh_l0.grad.abs().sum() > 0
    assert_close(layer.state_dict(), before, rtol=0, atol=0)
    layer.normalize_by = "layer"
    with pytest.raises(ValueError, match="normalize_by"):
        layer(x)


@both
def test_switches_of_updating_and_of_the_batch(kind):
    torch.manual_seed(0)
    layer, x = made(kind), torch.randn(5, 4, 3, dtype=torch.float64)
    before = copy.deepcopy(layer.state_dict())
    layer.update_running = False
    y, _ = layer(x)
    layer.normalize_by = "batch"
    assert torch.equal(layer.eval()(x)[0], y)
    assert_close(layer.state_dict(), before, rtol=0, atol=0)


@both
def test_dropout_acts_between_layers_in_training_only(kind):
    torch.manual_seed(0)
    layer, x = made(kind, num_layers=2, dropout=0.5), torch.randn(5, 4, 3, dtype=torch.float64)
    layer.update_running = False
    assert not torch.equal(layer(x)[0], layer(x)[0])
    layer.eval()
    assert torch.equal(layer(x)[0], layer(x)[0])


@both
def test_activation_checkpointing(kind):
    torch.manual_seed(0)
    layer, x = made(kind), torch.randn(5, 4, 3, dtype=torch.float64, requires_grad=True)
    other = copy.deepcopy(layer)
    checkpoint(lambda x: layer(x)[0], x, use_reentrant=False).square().sum().backward()
    other(x)[0].square().sum().backward()
    assert_close(layer.weight_hh_l0.grad, other.weight_hh_l0.grad, **NEAR)


@both
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_whole(kind):
    torch.manual_seed(0)
    torch._dynamo.reset()
    layer, x = made(kind), torch.randn(2, 4, 3, dtype=torch.float64)
    other = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for _ in range(2):  # the first grows the statistics
        y, z = compiled(x)[0], other(x)[0]
        assert_close(y, z, **NEAR)
        y.square().sum().backward()
        z.square().sum().backward()
    assert_close(dict(layer.named_buffers()), dict(other.named_buffers()), **NEAR)
    assert_close(layer.weight_hh_l0.grad, other.weight_hh_l0.grad, **NEAR)
    layer = made(kind, bidirectional=True).eval()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x)[0], layer(x)[0], **NEAR)


@both
def test_exported_in_evaluation(kind):
    layer, x = made(kind).eval(), torch.randn(3, 4, 3, dtype=torch.float64)
    layer(x)
    exported = torch.export.export(layer, (x,)).module()
    assert_close(exported(x)[0], layer(x)[0], **NEAR)


@both
def test_what_looks_on_sees_torchs_operators(kind):
    torch.manual_seed(0)
    layer, x = made(kind), torch.randn(3, 4, 3, dtype=torch.float64)
    layer.update_running = False
    parameters = dict(layer.named_parameters())

    def energy(parameters):
        return torch.func.functional_call(layer, parameters, (x,))[0].square().sum()

    found = torch.func.grad(energy)(parameters)
    energy(parameters).backward()
    assert_close(found["weight_hh_l0"], layer.weight_hh_l0.grad, **NEAR)


def test_a_single_sequence_left_is_normalized_by_the_last_two():
    torch.manual_seed(0)
    layer = made()
    x = padded(drawn([3, 6]))
    y, _ = layer(x, lengths=[3, 6])
    assert len(layer.running_mean_hh_l0) == 3
    assert y[5, 1].isfinite().all()
    assert layer.num_batches_tracked_l0.tolist() == [1, 1, 1]


@both
def test_memory_is_given_back_with_the_graph(kind):
    layer = kind(3, 4)
    gc.collect()
    gc.disable()
    try:
        y, last = layer(torch.randn(5, 4, 3))
        node = weakref.ref(y.grad_fn.next_functions[0][0])
        del y, last
        assert node() is None
    finally:
        gc.enable()


@both
def test_second_derivatives_of_one_call_after_another(kind):
    torch.manual_seed(0)
    layer = made(kind)
    x1, x2 = torch.randn(2, 5, 3, 3, dtype=torch.float64)

    def gradients(*, create_graph):
        one = copy.deepcopy(layer)
        _, state = one(x1)
        output, _ = one(x2, state)
        weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
        loss = (output * weights).sum()
        return torch.autograd.grad(loss, list(one.parameters()), create_graph=create_graph)

    assert_close(gradients(create_graph=True), gradients(create_graph=False))


@both
def test_shapes_without_numbers(kind):
    layer = kind(3, 4, device="meta", bidirectional=True)
    assert layer(torch.empty(5, 2, 3, device="meta"))[0].shape == (5, 2, 8)
