"""The operators as torch's tools see them: schema, shapes without data, graphs.

None of it depends on the instruction set.
"""

import itertools

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch.testing import assert_close

from livella import native
from livella.functional import batch_norm
from livella.operators import TOLD_BY_OUTPUT
from tests.test_operators import LAYOUTS, averages, normal, parameters

if not native.loaded:
    pytest.skip(f"needs the kernels; the path in use: {native.path()}", allow_module_level=True)

# The compiler itself makes an instance, and warns of it.
compiles = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


def kept_for(activation, y, residual):
    """What the gradient is told an activation's derivative by, beside x."""
    if residual is None or activation is None:
        return None
    return y if activation in TOLD_BY_OUTPUT else residual


# What torch asks of an operator


# Tracing it with free shapes takes most of the time: once for each kind of graph is enough.
QUICK = ("test_schema", "test_autograd_registration", "test_faketensor")
COMBINATIONS = [
    (None, False, "NCHW", True),
    (None, True, "(N, C)", False),
    ("relu", True, "channels last", True),
    ("silu", True, "NCHW", True),
    ("silu", False, "channels last", False),
]


@pytest.mark.parametrize(("activation", "with_residual", "layout", "training"), COMBINATIONS)
def test_opcheck(activation, with_residual, layout, training):
    x, residual, dy = (LAYOUTS[layout](normal(4, 3, 5, 2, seed=k)) for k in range(3))
    leaves = (x, *parameters(), residual if with_residual else None)
    leaves = [t if t is None else t.requires_grad_() for t in leaves]
    plain = [t if t is None else t.detach() for t in leaves]
    opcheck, livella = torch.library.opcheck, torch.ops.livella

    settings = (*averages(), torch.tensor(2), training, 0.1, 1e-5, activation)
    opcheck(livella.batch_norm.default, (*leaves, *settings))
    y, statistics = livella.batch_norm(*plain, *settings)
    evaluation = (x, *averages(), *leaves[1:], 1e-5, activation)
    opcheck(livella.batch_norm_inference.default, evaluation, test_utils=QUICK)
    saved = kept_for(activation, y, plain[3])
    backward = (dy, plain[0], statistics, *plain[1:3], saved, activation, training)
    for wanted in itertools.product((True, False), repeat=3):
        opcheck(livella.batch_norm_backward.default, (*backward, *wanted), test_utils=QUICK)


@pytest.mark.parametrize(
    ("ghost_size", "limits", "rows"), [(3, None, 4), (2, None, 6), (None, (3.0, 5.0), 4)]
)
def test_opcheck_of_parts_and_limits(ghost_size, limits, rows):
    x, stats = normal(7, 3), averages()
    limits = limits if limits is None else torch.tensor(limits, dtype=torch.float64)
    opcheck, livella = torch.library.opcheck, torch.ops.livella
    settings = (*stats, None, True, 0.1, 1e-5, "silu", ghost_size, limits)
    given = (x, *parameters(), None, *settings)
    opcheck(livella.batch_norm.default, given, test_utils=QUICK)
    _, statistics = livella.batch_norm(*given)
    assert statistics.shape == (rows, 3)
    backward = (x, x, statistics, *parameters(), None, "silu", True, True, True, True, ghost_size)
    opcheck(livella.batch_norm_backward.default, backward, test_utils=QUICK)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_opcheck_of_other_dtypes_and_without_options(dtype):
    x = normal(6, 3, 2, dtype=dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    opcheck, livella = torch.library.opcheck, torch.ops.livella
    for weight in (None, normal(3, dtype=wide), normal(3, dtype=dtype)):
        forward = (x, weight, None, None, None, None, None, True, 0.1, 1e-5, None)
        opcheck(livella.batch_norm.default, forward, test_utils=QUICK)
        _, statistics = livella.batch_norm(*forward)
        backward = (x, x, statistics, weight, None, None, None, True, True, True, True)
        opcheck(livella.batch_norm_backward.default, backward, test_utils=QUICK)


# Graphs


def graphs_of(function, *arguments):
    """Give the value of a compiled function, its forward graph and its backward graph as code."""
    forward, backward = [], []

    def into(seen):
        def compiler(graph, _):
            seen.append(graph.code)
            return make_boxed_func(graph.forward)

        return compiler

    torch._dynamo.reset()
    backend = aot_autograd(fw_compiler=into(forward), bw_compiler=into(backward))
    value = torch.compile(function, backend=backend, fullgraph=True)(*arguments)
    if value.requires_grad:
        value.sin().sum().backward()
    return value, "\n".join(forward), "\n".join(backward)


@compiles
@pytest.mark.parametrize(("activation", "with_residual"), [(None, False), ("relu", True)])
def test_a_compiled_graph_in_training_holds_the_operators(activation, with_residual):
    def leaves():
        given = [normal(4, 3, 5), *parameters(), normal(4, 3, 5, seed=1)]
        return [t.requires_grad_() for t in given]

    def run(x, weight, bias, residual, mean, var):
        residual = residual if with_residual else None
        options = {"activation": activation, "residual": residual}
        return batch_norm(x, mean, var, weight, bias, True, **options)

    ours, theirs, stats, expected_stats = leaves(), leaves(), averages(), averages()
    y, forward, backward = graphs_of(run, *ours, *stats)
    assert "livella.batch_norm" in forward
    assert "livella.batch_norm_backward" in backward
    assert "native_batch_norm" not in forward + backward
    expected = run(*theirs, *expected_stats)
    expected.sin().sum().backward()
    assert_close((y, *stats), (expected, *expected_stats))
    for one, other in zip(ours, theirs, strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None:
            assert_close(one.grad, other.grad)


@compiles
@pytest.mark.parametrize("needs_gradient", [False, True])
def test_a_compiled_graph_in_evaluation_holds_operators_of_torch_alone(needs_gradient):
    weight, bias = parameters()

    def run(x, mean, var):
        return batch_norm(x, mean, var, weight, bias, activation="relu")

    x, stats = normal(4, 3, 5).requires_grad_(needs_gradient), averages()
    y, forward, backward = graphs_of(run, x, *stats)
    assert forward
    assert bool(backward) == needs_gradient
    assert "livella" not in forward + backward
    assert_close(y, run(x, *stats))


class _Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        for name, tensor in zip(("mean", "var"), averages(), strict=True):
            self.register_buffer(name, tensor)
        self.weight, self.bias = map(torch.nn.Parameter, parameters())

    def forward(self, x):
        given = (self.mean, self.var, self.weight, self.bias)
        return batch_norm(x, *given, self.training, activation="hardswish")


@pytest.mark.parametrize("training", [False, True])
def test_an_exported_graph_runs_without_livella(training):
    layer, x = _Layer().train(training), normal(4, 3, 5)
    program = torch.export.export(layer, (x,))
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert any("batch_norm" in target for target in targets)
    assert not any("livella" in target for target in targets)
    assert_close(program.module()(x), layer(x))
