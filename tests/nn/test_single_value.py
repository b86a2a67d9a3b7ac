"""One value a channel in training: the error that says where, and normalizing all the same."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import livella
from livella.nn import BatchNorm1d, BatchNorm2d, SyncBatchNorm
from tests.processes import in_processes

WAYS_OUT = ("drop_last=True", "group norm", "livella.freeze", 'single_value to "running"')


class Net(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(4, 3), BatchNorm1d(3, **options))

    def forward(self, x):
        return self.stem(x)


def raised(call):
    with pytest.raises(ValueError, match="more than one value per channel in training") as caught:
        call()
    return str(caught.value)


def test_the_error_names_the_layer_and_the_ways_out():
    net = Net()
    message = raised(lambda: net(torch.ones(1, 4)))
    assert message.startswith("BatchNorm1d(3) 'stem.1' of Net: ")
    assert "(1, 3)" in message
    for way in WAYS_OUT:
        assert way in message


def test_by_the_name_it_has_in_the_outermost_model():
    model = nn.Sequential(nn.Identity(), Net())
    assert raised(lambda: model(torch.ones(1, 4))).startswith(
        "BatchNorm1d(3) '1.stem.1' of Sequential: "
    )
    assert raised(lambda: model[1].stem[1](torch.ones(1, 3))).startswith("BatchNorm1d(3): ")


def test_a_model_that_does_not_hold_the_layer_is_passed_over():
    class Borrower(nn.Module):
        def forward(self, x):
            return net(x)

    net = Net()
    assert raised(lambda: Borrower()(torch.ones(1, 4))).startswith(
        "BatchNorm1d(3) 'stem.1' of Net: "
    )


def test_the_function_has_no_layer_to_name():
    x = torch.ones(1, 3)
    message = raised(lambda: livella.functional.batch_norm(x, None, None, training=True))
    assert message.startswith("batch_norm: ")


def test_an_accelerated_model_names_it_too():
    net = livella.accelerate(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU()))
    assert "BatchNorm1d(3) '1' of " in raised(lambda: net(torch.ones(1, 4)))


def test_a_compiled_layer_still_raises():
    torch.compiler.reset()
    compiled = torch.compile(Net(), fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="more than one value per channel"):
        compiled(torch.ones(1, 4))


@pytest.mark.parametrize("options", [{}, {"activation": "relu"}])
@pytest.mark.parametrize(
    ("kind", "shape"), [(BatchNorm1d, (1, 3)), (BatchNorm2d, (1, 3, 1, 1)), (SyncBatchNorm, (1, 3))]
)
def test_by_running_statistics_if_asked(kind, shape, options):
    layer = kind(3, single_value="running", **options)
    layer.running_mean.fill_(2)
    layer.running_var.fill_(4)
    before = copy.deepcopy(layer.state_dict())
    x = torch.full(shape, 5.0, requires_grad=True)
    y = layer(x, residual=torch.ones(shape))
    y.sum().backward()
    assert_close(y, torch.full(shape, 3 / (4 + 1e-5) ** 0.5 + 1))
    assert_close(x.grad, torch.full(shape, (4 + 1e-5) ** -0.5))
    assert_close(layer.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("policy", ["torch", "guarded"])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_larger_batches_are_what_they_were(momentum, policy):
    usual, layer = BatchNorm1d(3, momentum=momentum), BatchNorm1d(3, momentum=momentum)
    layer.single_value = "running"
    usual.update_policy = layer.update_policy = policy
    for size in (4, 1, 2):
        x = torch.randn(size, 3, generator=torch.Generator().manual_seed(size))
        if size > 1:
            assert_close(layer(x), usual(x), rtol=0, atol=0)
        else:
            layer(x)
    assert_close(layer.state_dict(), usual.state_dict(), rtol=0, atol=0)


def test_it_holds_where_a_switch_asks_for_the_batch_in_evaluation():
    layer = BatchNorm1d(3, single_value="running").eval()
    layer.normalize_by = "batch"
    assert_close(layer(torch.ones(1, 3)), torch.full((1, 3), (1 + 1e-5) ** -0.5))


@pytest.mark.parametrize("valid", [0, 1, 2])
def test_under_a_mask_it_is_a_single_valid_element(valid):
    usual, layer = BatchNorm1d(3), BatchNorm1d(3, single_value="running")
    for each in (usual, layer):
        each.running_mean.fill_(2)
    x = 5 + torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(4).view(2, 2) < valid
    expected = usual(x, mask=mask)
    if valid == 1:
        expected = torch.where(mask[:, None], (x - 2) / (1 + 1e-5) ** 0.5, 0)
    x.requires_grad_()
    y = layer(torch.where(mask[:, None], x, torch.nan), mask=mask)
    y.sum().backward()
    assert_close(y, expected)
    assert x.grad.isfinite().all()
    assert_close(layer.state_dict(), usual.state_dict())


# The compiler itself makes an instance of autograd.Function, and warns of it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("masked", [True, False])
def test_compiled(size, masked):
    torch.compiler.reset()
    layer = BatchNorm1d(3, single_value="running")
    twin = copy.deepcopy(layer)
    x = torch.randn(size, 3)
    mask = torch.arange(size) < 1 if masked else None
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x, mask=mask), twin(x, mask=mask))
    assert_close(layer.state_dict(), twin.state_dict())


def test_what_cannot_be_set_or_done():
    with pytest.raises(ValueError, match="expected single_value to be one of"):
        BatchNorm1d(3, single_value="zero")
    layer = BatchNorm1d(3, single_value="running", track_running_stats=False)
    with pytest.raises(ValueError, match="single_value='running' and no running statistics"):
        layer(torch.ones(1, 3))
    assert "single_value=running" in repr(layer)


def _over_processes(rank, world):
    x = torch.full((1 - rank, 3), 5.0)
    try:
        SyncBatchNorm(3)(x)
    except ValueError as error:
        message = str(error)
    layer = SyncBatchNorm(3, single_value="running")
    return message, layer(x), int(layer.num_batches_tracked)


def test_of_all_processes_together(tmp_path):
    (message, y, counted), (_, empty, _) = in_processes(_over_processes, 2, tmp_path)
    assert message.startswith("SyncBatchNorm(3): expected more than one value per channel")
    assert "one over all 2 processes" in message
    assert_close(y, torch.full((1, 3), 5 * (1 + 1e-5) ** -0.5))
    assert empty.shape == (0, 3)
    assert counted == 0
