"""The operators: gradients of both orders, layouts, dtypes, what is kept, bad input.

What does not depend on the instruction set, schema and graphs, stands in test_operators_graphs.
"""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch.testing import assert_close

from livella import native
from livella.functional import batch_norm
from livella.reference import ACTIVATIONS

if not native.loaded:
    pytest.skip(f"needs the kernels; the path in use: {native.path()}", allow_module_level=True)

EVERY_ACTIVATION = [None, *ACTIVATIONS]


def normal(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def averages(channels=3, dtype=torch.float32):
    return torch.full((channels,), 0.3, dtype=dtype), torch.full((channels,), 1.7, dtype=dtype)


def parameters(channels=3, dtype=torch.float32):
    return 1 + normal(channels, seed=8, dtype=dtype) / 4, normal(channels, seed=9, dtype=dtype)


LAYOUTS = {
    "(N, C)": lambda t: t[:, :, 0, 0].contiguous(),
    "NCHW": lambda t: t,
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last),
}


# Gradients


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", EVERY_ACTIVATION)
def test_gradients_of_both_orders(activation, layout):
    for training in (True, False):
        for with_residual in (False, True):
            x, residual = (LAYOUTS[layout](normal(4, 2, 2, 1, seed=k).double()) for k in (3, 4))
            weight, bias = parameters(2, torch.float64)

            def run(x, weight, bias, residual, training=training):
                stats = averages(2, torch.float64)
                options = {"activation": activation, "residual": residual}
                return batch_norm(x, *stats, weight, bias, training, **options)

            inputs = [x, weight, bias, residual if with_residual else None]
            inputs = [t if t is None else t.requires_grad_() for t in inputs]
            assert "BatchNorm" in type(run(*inputs).grad_fn).__name__, "the kernels are meant"
            assert torch.autograd.gradcheck(run, inputs)
            assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.parametrize("wanted", ["input", "weight", "bias", "residual"])
def test_a_gradient_of_one_alone(wanted):
    given = dict(zip(("weight", "bias"), parameters(), strict=True))
    given |= {"input": normal(4, 3, 5), "residual": normal(4, 3, 5, seed=1)}
    dy = normal(4, 3, 5, seed=2)

    def gradient(*names):
        leaves = {k: t.clone().requires_grad_(k in names) for k, t in given.items()}
        y = batch_norm(**leaves, running_mean=None, running_var=None, training=True,
                       activation="silu")  # fmt: skip
        return dict(zip(names, torch.autograd.grad(y, [leaves[n] for n in names], dy), strict=True))

    assert_close(gradient(wanted)[wanted], gradient(*given)[wanted], rtol=0, atol=0)


def test_statistics_have_no_gradient():
    settings = (None, *averages(), None, True, 0.1, 1e-5, None)
    y, statistics = torch.ops.livella.batch_norm(
        normal(4, 3).requires_grad_(), *parameters(), *settings
    )
    assert y.requires_grad
    assert not statistics.requires_grad


# Precision and memory


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_data_with_wide_parameters(dtype, training):
    leaves = [t.requires_grad_() for t in (normal(8, 3, 5, dtype=dtype), *parameters())]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    dy = normal(8, 3, 5, seed=2, dtype=dtype)
    stats, exact_stats = averages(), averages(dtype=torch.float64)
    y = batch_norm(leaves[0], *stats, *leaves[1:], training, activation="silu")
    expected = F.silu(F.batch_norm(exact[0], *exact_stats, *exact[1:], training))
    assert_close(y, expected.to(dtype))
    assert_close(stats, tuple(t.float() for t in exact_stats))
    gradients = torch.autograd.grad(y, leaves, dy)
    wanted = torch.autograd.grad(expected, exact, dy.double())
    assert [t.dtype for t in gradients] == [dtype, torch.float32, torch.float32]
    assert_close(gradients, tuple(t.to(g.dtype) for t, g in zip(wanted, gradients, strict=True)))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("activation", EVERY_ACTIVATION)
def test_the_graph_keeps_two_numbers_a_channel_of_its_own(activation, with_residual, training):
    x, residual = normal(4, 3, 5).requires_grad_(), normal(4, 3, 5, seed=1).requires_grad_()
    weight, bias = (t.requires_grad_() for t in parameters())
    residual = residual if with_residual else None
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = batch_norm(
            x, *averages(), weight, bias, training, activation=activation, residual=residual
        )
    held = {t.data_ptr() for t in (x, weight, bias, residual, y) if t is not None}
    own = [t for t in kept if t.data_ptr() not in held]
    assert sum(t.numel() for t in own) == 2 * 3
    assert len(kept) - len(own) <= 4


def test_an_output_changed_before_backward_is_noticed():
    def run(function):
        x, residual = normal(4, 3, 5).requires_grad_(), normal(4, 3, 5, seed=1)
        y = function(x, residual)
        y.mul_(2)
        y.sum().backward()

    def ours(x, residual):
        return batch_norm(x, None, None, training=True, activation="relu", residual=residual)

    for function in (ours, lambda x, residual: F.relu(x + residual)):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            run(function)


def test_an_output_that_is_not_kept_may_be_changed():
    x = normal(4, 3, 5).requires_grad_()
    y = batch_norm(x, None, None, training=True, activation="relu")
    (expected,) = torch.autograd.grad(2 * y.sum(), x, retain_graph=True)
    (dx,) = torch.autograd.grad(y.mul_(2).sum(), x)
    assert_close(dx, expected)


# Bad input


def bad(error, message, *, silent=False, **changed):
    """A fault, what torch raises of it (unless it is silent), and what our message says."""
    return changed, error, message, silent


META = torch.ones(3, device="meta")
UNSUPPORTED, RUNTIME = NotImplementedError, RuntimeError
BAD = {
    "rank": bad(RUNTIME, r"\(N, C\).*got \(3,\).*unsqueeze", input=torch.zeros(3)),
    "channels": bad(RUNTIME, r"\(5,\).*got \(3,\).*build", input=torch.zeros(4, 5, 2)),
    "integer": bad(UNSUPPORTED, "float.*int32.*convert", input=torch.ones(4, 3).int()),
    "bool": bad(UNSUPPORTED, "float.*bool.*convert", input=torch.ones(4, 3).bool()),
    "complex": bad(UNSUPPORTED, "float.*complex64.*convert", input=torch.ones(4, 3).cfloat()),
    "weight shape": bad(RUNTIME, r"weight of shape \(3,\).*\(2,\)", weight=torch.ones(2)),
    "weight rank": bad(
        RUNTIME, r"weight of shape \(3,\).*\(3, 1\)", weight=torch.ones(3, 1), silent=True
    ),
    "bias shape": bad(RUNTIME, r"bias of shape \(3,\).*\(4,\)", bias=torch.ones(4)),
    "weight dtype": bad(RUNTIME, "weight.*float32.*float16.*conv", weight=torch.ones(3).half()),
    "mean dtype": bad(RUNTIME, "running_mean.*float64", running_mean=torch.ones(3).double()),
    "weight device": bad(RUNTIME, "weight.*cpu.*meta.*move", weight=META),
    "bias device": bad(RUNTIME, "bias.*cpu.*meta.*move", bias=META),
    "mean device": bad(RUNTIME, "running_mean.*cpu.*meta.*move", running_mean=META),
    "one value": bad(ValueError, r"more than one.*\(1, 3\).*larger", input=torch.zeros(1, 3)),
    "overlap": bad(RUNTIME, "running_var.*clone", running_var=torch.ones(1).expand(3), silent=True),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_raises_what_torch_raises_and_changes_nothing(case):
    changed, error, message, silent = BAD[case]

    def arguments():
        stats = dict(zip(("running_mean", "running_var"), averages(), strict=True))
        plain = {"input": normal(4, 3, 2), "weight": torch.ones(3), "bias": torch.zeros(3)}
        return {**plain, **stats, "training": True, **changed}

    if not silent:
        with pytest.raises(error):
            F.batch_norm(**arguments())
    for graded in (False, True):
        given, counter = arguments(), torch.tensor(7)
        with torch.set_grad_enabled(graded), pytest.raises(error, match=message):
            batch_norm(**given, num_batches_tracked=counter)
        for name, before in zip(("running_mean", "running_var"), averages(), strict=True):
            if name not in changed:
                assert_close(given[name], before, rtol=0, atol=0)
        assert counter == 7


@pytest.mark.parametrize(
    ("extra", "error", "message"),
    [
        ({"residual": torch.zeros(4, 1, 2)}, ValueError, r"\(4, 3, 2\).*\(4, 1, 2\).*expand_as"),
        ({"residual": torch.zeros(4, 3)}, ValueError, r"\(4, 3, 2\).*\(4, 3\).*expand_as"),
        ({"activation": "gelu"}, ValueError, "'gelu'.*'relu'"),
        ({"momentum": None}, ValueError, "momentum=None.*num_batches_tracked"),
    ],
)
def test_bad_keywords_change_nothing(extra, error, message):
    stats = averages()
    with pytest.raises(error, match=message):
        batch_norm(normal(4, 3, 2), *stats, training=True, **extra)
    assert_close(stats, averages(), rtol=0, atol=0)


def test_averages_in_one_place_are_refused():
    both = torch.ones(3)
    with pytest.raises(RuntimeError, match=r"same memory.*own tensor"):
        batch_norm(normal(4, 3, 2), both, both, training=True)
    assert_close(both, torch.ones(3), rtol=0, atol=0)


def test_averages_that_overlap_in_part_are_refused():
    memory = torch.ones(5)
    with pytest.raises(RuntimeError, match="same memory"):
        batch_norm(normal(4, 3, 2), memory[:3], memory[2:], training=True)


@pytest.mark.parametrize("training", [False, True])
def test_a_residual_on_another_device_is_refused(training):
    stats = averages()
    residual = torch.zeros(4, 3, 2, device="meta")
    with pytest.raises(RuntimeError, match=r"residual.*cpu.*meta"):
        batch_norm(normal(4, 3, 2), *stats, training=training, residual=residual)
    assert_close(stats, averages(), rtol=0, atol=0)
