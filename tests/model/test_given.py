"""What cannot be used is told in one line, by every public function that takes a model."""

import inspect

import pytest
import torch
from torch import nn

import livella
from livella.model import given

HOMES = ("livella.model.", "livella.diagnosis.")


def takers() -> list[str]:
    """Public functions with a model, or a layer, among their arguments."""
    found = []
    for home, names in livella._HOMES.items():
        for name in (each for each in names if home.startswith(HOMES)):
            function = getattr(livella, name)
            if inspect.isfunction(function):
                arguments = inspect.signature(function).parameters
                found += [name] * bool({"model", "layer"} & arguments.keys())
    return found


TAKERS = takers()
ARGUMENTS = {
    "adapt": {"batches": [torch.zeros(4, 3)]},
    "accumulate": {"batches": [torch.zeros(4, 3)], "loss": lambda output, _: output.sum()},
    "convert": {"to": "group", "calibrate": [torch.zeros(4, 3)]},
    "set_update_policy": {"policy": "guarded"},
    "update_bn": {"loader": [torch.zeros(4, 3)]},
    "estimate_population": {"batches": [torch.zeros(4, 3)]},
    "add_domains": {"names": ["a"]},
    "domain": {"name": "a"},
    "inspect": {"batches": [torch.zeros(4, 3)]},
    "repair": {"batches": [torch.zeros(4, 3)]},
}
RUNS = ("accumulate", "adapt", "convert", "estimate_population", "inspect", "repair", "update_bn")


def call(name: str, model: object) -> None:
    names = inspect.signature(getattr(livella, name)).parameters
    key = "model" if "model" in names else "layer"
    result = getattr(livella, name)(**{key: model}, **ARGUMENTS.get(name, {}))
    if name in ("domain", "pooled_updates", "step"):
        with result:
            pass


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))


def test_all_are_known():
    assert {"accelerate", "freeze", "unfreeze", "step", "local_parameters"} < set(TAKERS)
    assert len(TAKERS) >= 19


@pytest.mark.parametrize("name", TAKERS)
@pytest.mark.parametrize(
    ("model", "said"),
    [
        (net().state_dict(), "an OrderedDict of tensors; load it into the model"),
        ({"model": 1}, "a dict"),
        (None, "None"),
        ("net.pt", "a str"),
        (nn.BatchNorm2d, r"the class BatchNorm2d; pass an object of it, BatchNorm2d\("),
        (net, "the function net; pass what it returns"),
    ],
)
def test_no_module_is_told(name, model, said):
    with pytest.raises(TypeError, match=f"{name}: expected a torch.nn.Module, got {said}") as error:
        call(name, model)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", TAKERS)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_scripted_model_is_told(name):
    with pytest.raises(TypeError, match=f"{name}: .*scripted or traced one.*pass the original"):
        call(name, torch.jit.script(net()))


@pytest.mark.parametrize("name", RUNS)
def test_a_model_without_weights_is_told_where_it_is_to_run(name):
    with torch.device("meta"):
        model = net()
    with pytest.raises(ValueError, match=f"{name}: .*'0.weight' on the meta device.*load its"):
        call(name, model)
    livella.freeze(model)  # which runs nothing


def test_an_optimizer_of_another_model_is_told():
    model, other = net(), net()
    given.check_optimizer(model, None, "inspect")
    given.check_optimizer(model, torch.optim.SGD(model[1].parameters(), 0.1), "inspect")
    given.check_optimizer(nn.ReLU(), torch.optim.SGD(model.parameters(), 0.1), "inspect")
    with pytest.raises(ValueError, match=r"inspect: .* got one of 4 others; pass the one"):
        given.check_optimizer(model, torch.optim.SGD(other.parameters(), 0.1), "inspect")
    with pytest.raises(ValueError, match="an optimizer of the model's parameters, got one of"):
        livella.inspect(model, optimizer=torch.optim.SGD(other.parameters(), 0.1))
    with pytest.raises(
        TypeError, match=r"inspect: expected a torch.optim.Optimizer .* got a float"
    ):
        given.check_optimizer(model, 0.1, "inspect")


def test_a_loss_of_output_and_batch_is_right_whatever_it_is_called():
    class Callable:
        def __call__(self, output, batch):
            return output

    for loss in (lambda output, batch: output, lambda y, _: y, Callable(), max):
        given.check_loss(loss, "inspect")


def annotated(first: nn.Module, batch: object) -> object:
    return first(batch)


@pytest.mark.parametrize("loss", [lambda model, batch: model(batch), lambda net, x: 0, annotated])
def test_a_loss_of_a_model_is_told(loss):
    with pytest.raises(
        TypeError, match=r"expected loss\(output, batch\), got loss\(model, batch\)"
    ):
        given.check_loss(loss, "inspect")
