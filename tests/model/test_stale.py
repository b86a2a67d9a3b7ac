"""A network whose running statistics are wrong is told of where it is converted or made faster."""

import copy
import itertools
from contextlib import suppress

import pytest
import torch
from torch import Tensor, nn

import livella
from livella.model import stale
from tests.model import digits

LAYERS = ("1", "4")
TOLD = "more than 1 σ from those of the data to calibrate on"


@pytest.fixture
def data() -> Tensor:
    return digits.sorted_digits()[1][::2]


def network() -> nn.Sequential:
    return digits.sorted_digits()[0]


def convert(model: nn.Module, batches) -> livella.Conversion:
    return livella.convert(model, "group", num_groups=4, calibrate=batches, progress=False)


def split(x: Tensor, order: str) -> list[Tensor]:
    if order == "shuffled":
        x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    return list(x.split(4 if order == "sorted, of four" else 60))


ORDERS = ("shuffled", "sorted", "sorted, of four")


@pytest.mark.parametrize("order", ORDERS)
def test_a_healthy_network_is_converted_in_silence(data, order):
    convert(network(), split(data, order))  # a warning is an error here


FAULTS = {
    "means moved": lambda m: m.running_mean.add_(3 * m.running_var.sqrt()),
    "far too large": lambda m: m.running_var.mul_(25),
    "far too small": lambda m: m.running_var.mul_(0.01),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", LAYERS)
def test_the_layer_that_is_off_is_named_and_no_other(data, name, fault, order):
    model = network()
    FAULTS[fault](model.get_submodule(name))
    assert stale.far_off(model, split(data, order), lambda m, x: m(x), None) == (name,)


def far_by_the_whole(model: nn.Module, x: Tensor) -> list[str]:
    """What is off where all data are one batch, by which each layer normalizes."""
    found = []

    def look(name, layer, inputs):
        dims = [d for d in range(inputs.dim()) if d != 1]
        sigma, there = (
            (v + layer.eps).sqrt() for v in (inputs.var(dims, correction=0), layer.running_var)
        )
        moved = (layer.running_mean - inputs.mean(dims)).abs() / sigma
        each = torch.stack([moved, there / sigma - 1, sigma / there - 1]).amax(0).clamp(max=4)
        found.extend([name] if each.mean() > 1 else [])

    whole = copy.deepcopy(model).train()
    for name, layer in whole.named_modules():
        if isinstance(layer, nn.BatchNorm1d):
            layer.register_forward_pre_hook(lambda m, args, name=name: look(name, m, args[0]))
    whole(x)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_small_batches_in_an_order_name_no_layer_that_is_right(data, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = [64] + [16] * 6
        blocks = [
            nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU())
            for a, b in itertools.pairwise(sizes)
        ]
        model = nn.Sequential(nn.Flatten(), *blocks)
        with torch.no_grad():
            for _ in range(12):  # at a momentum of 0.1 the averages are on their way
                model(data)
    far = far_by_the_whole(model, data)
    assert list(stale.far_off(model.eval(), data.split(4), lambda m, x: m(x), None)) == far


def test_the_remedy_told_of_helps(data):
    model = network()
    model[1].reset_running_stats()
    FAULTS["means moved"](model[4])
    batches = split(data, "sorted")
    with pytest.warns(UserWarning, match=f"^convert: the .* of 1, 4 are {TOLD}") as caught:
        conversion = convert(model, batches)
    (message,) = (str(each.message) for each in caught)
    assert "\n" not in message
    assert "livella.estimate_population(model, batches).apply()" in message
    conversion.revert()
    livella.estimate_population(model, batches, progress=False).apply()
    convert(model, batches)


def test_one_dead_channel_does_not_speak_for_its_layer(data):
    model = network()
    with torch.no_grad():
        model[3].weight[0], model[3].bias[0] = 0, 0  # nothing comes through, and yet it was met
    convert(model, split(data, "shuffled"))


def test_frozen_layers_and_such_that_go_by_their_batches_are_not_measured(data):
    frozen, by_batch = network(), livella.accelerate(network())
    FAULTS["means moved"](frozen[4])
    livella.freeze(frozen, ["4"])
    assert stale.far_off(frozen, split(data, "sorted"), lambda m, x: m(x), None) == ()
    FAULTS["means moved"](by_batch[4])
    by_batch[4].normalize_by = "batch"
    assert stale.far_off(by_batch, split(data, "sorted"), lambda m, x: m(x), None) == ()


def test_the_model_and_the_random_numbers_stay_as_they_were(data):
    model = network()
    FAULTS["means moved"](model[1])
    before, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    assert stale.far_off(model, split(data, "sorted"), lambda m, x: m(x), False) == ("1",)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)
    assert not model.training


BROKEN = {
    "NaN": lambda m: m.running_mean[0:1].fill_(torch.nan),
    "infinity": lambda m: m.running_var[3:4].fill_(torch.inf),
    "negative": lambda m: m.running_var[3:4].fill_(-1e-3),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_what_is_no_number_is_told_by_both(data, fault):
    model = network()
    BROKEN[fault](model[4])
    told = r"the running statistics of 4 hold NaN, infinity or a negative variance.*estimate"
    with pytest.warns(UserWarning, match=f"^accelerate: {told}"):
        livella.accelerate(copy.deepcopy(model))
    with pytest.warns(UserWarning, match=f"^convert: {told}"), suppress(ValueError):
        convert(model, split(data, "sorted"))  # which meets NaN, in most cases


def test_new_networks_are_no_sick_ones():
    for model in (digits.network(), nn.BatchNorm1d(3), nn.LazyBatchNorm1d(),
                  nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)),
                  nn.BatchNorm1d(3, device="meta")):  # fmt: skip
        assert not list(stale.not_numbers(model))
    livella.accelerate(digits.network())


def test_many_layers_are_told_of_in_short():
    model = nn.Sequential(*(nn.BatchNorm1d(2) for _ in range(9)))
    for layer in model:
        layer.running_var.fill_(torch.nan)
    with pytest.warns(UserWarning, match=r"of 0, 1, 2, 3, 4 and 4 more hold"):
        livella.accelerate(model)
