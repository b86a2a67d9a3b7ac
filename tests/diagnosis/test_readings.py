"""Labels that were only guessed count where they tell something, and every batch counts alike."""

import copy
from collections import UserDict
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import livella
from livella.diagnosis.records import Level
from tests.diagnosis import faults
from tests.diagnosis.test_inspection import assert_untouched, inspect, small, whole


def blobs(count=512):
    generator = torch.Generator().manual_seed(0)
    centres = 3 * torch.randn(5, 6, generator=generator)
    y = torch.randint(5, (count,), generator=generator)
    return centres[y] + torch.randn(count, 6, generator=generator), y


def mlp(outputs):
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(6, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 24), nn.BatchNorm1d(24),
        nn.ReLU(), nn.Linear(24, outputs),
    )  # fmt: skip


def trained(model, loss, steps=150):
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
    return model.eval()


def broken(model):
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean += 4 * module.running_var.sqrt()
            module.running_var *= 6
    return model


def in_batches(*tensors):
    return list(zip(*(tensor.split(64) for tensor in tensors), strict=True))


def assert_not_healthy_and_mended(model, batches, cost):
    """What is wrong is told, and the repair brings the cost back, counted in plain torch."""
    found = livella.repair(model, batches, progress=False)
    assert found.before.worst in (Level.WARNING, Level.ERROR)
    assert "statistics_gap" in {f.check for f in found.before.findings}
    assert found.before.seen.gap.counted == ""
    assert any("no better than chance" in each for each in found.before.seen.gap.unread)
    with torch.no_grad():
        assert cost(found.model.eval()) < 0.5 * cost(model)


def test_class_numbers_beside_an_autoencoder_are_not_its_labels():
    x, y = blobs()
    model = trained(mlp(6), lambda m: mse_loss(m(x), x))
    assert_not_healthy_and_mended(broken(model), in_batches(x, y), lambda m: mse_loss(m(x), x))


@pytest.mark.parametrize("how", ["permuted", "next"])
def test_labels_that_are_wrong_do_not_hide_a_sick_network(how):
    x, y = blobs()
    model = trained(mlp(5), lambda m: nn.functional.cross_entropy(m(x), y))
    wrong = (y + 1) % 5 if how == "next" else y[torch.randperm(len(y))]
    cost = lambda m: 1 - float((m(x).argmax(1) == y).double().mean())  # noqa: E731
    assert_not_healthy_and_mended(broken(model), in_batches(x, wrong), cost)


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp(4)

    def forward(self, a, b):
        return (self.net(a) - self.net(b)).square().sum(1)


def test_a_distance_is_not_read_as_the_score_of_alike():
    x, y = blobs()
    a, b, same = x[:256], x[256:], (y[:256] == y[256:]).float()
    cost = lambda m: (same * m(a, b) + (1 - same) * (2 - m(a, b)).clamp(min=0)).mean()  # noqa: E731
    model = trained(Siamese(), cost)
    assert_not_healthy_and_mended(broken(model), in_batches(a, b, same), cost)


def test_labels_that_mean_something_stay_what_is_counted():
    x, y = blobs()
    model = trained(mlp(5), lambda m: nn.functional.cross_entropy(m(x), y))
    for each in (model, broken(model)):
        assert inspect(each, in_batches(x, y)).seen.gap.counted == "class numbers"


def test_labels_that_somebody_names_are_counted_whatever_they_tell():
    x, y = blobs()
    found = inspect(mlp(5).eval(), in_batches(x, y[torch.randperm(len(y))]), target=1)
    assert found.seen.gap.counted == "class numbers"


def test_batches_that_alternate_favour_none_of_the_scores():
    """Easy and hard batches in turn: by every other one the scores would be of one kind alone."""
    model = faults.trained("healthy")
    x, y = faults.examples()
    hard = torch.where(torch.rand(len(y)) < 0.5, (y + 1) % 10, y)
    pairs = [(x[k : k + 16], (hard if k % 32 else y)[k : k + 16]) for k in range(0, 1600, 16)]
    pairs = [(a, b) for a, b in pairs if len(a)] * 2
    found = inspect(model, pairs).seen.gap
    with torch.no_grad():
        right = [float((model(a).argmax(1) == b).double().mean()) for a, b in pairs]
    assert found.score.running == pytest.approx(sum(right) / len(right), abs=0.06)
    assert abs(found.beyond) < 0.1


def test_the_scores_of_numbers_hang_on_no_order():
    x, _ = blobs()
    target = x.sum(1, keepdim=True).sort(0).values
    x = x[x.sum(1).argsort()]
    model = trained(mlp(1), lambda m: mse_loss(m(x), target))
    pairs = in_batches(x, target)
    found = [inspect(model, each).seen.gap.score for each in (pairs, pairs[::-1])]
    assert found[0].batch == pytest.approx(found[1].batch, abs=1e-6)
    assert found[0].population == pytest.approx(found[1].population, abs=1e-2)


# What cannot be taken apart


class Pairs(nn.Module):
    """Takes two rows for one example, so that half a batch of six is none."""

    def __init__(self):
        super().__init__()
        self.net = mlp(3)

    def forward(self, x):
        return self.net(x).reshape(-1, 6)


def test_batches_that_are_not_mixed_stay_whole():
    model = broken(Pairs().eval())
    seen = []
    model.register_forward_pre_hook(lambda _m, args: seen.append(len(args[0])))
    inspect(model, [torch.randn(6, 6) for _ in range(40)])
    assert set(seen) == {6}


class Routed(nn.Module):
    """Its second layer is met in later batches alone."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.BatchNorm1d(6), nn.BatchNorm1d(6)

    def forward(self, x):
        return self.a(x) if float(x.mean()) < 0 else self.b(x)


def test_a_layer_that_is_first_called_later_is_inspected_too():
    batches = [torch.randn(8, 6) - 2] * 3 + [torch.randn(8, 6) + 2] * 3
    found = inspect(Routed().eval(), batches)
    assert {layer.name for layer in found.measurements if layer.measured} == {"a", "b"}


class Bag(nn.Module):
    """Takes one bag of examples at a time."""

    def __init__(self):
        super().__init__()
        self.net = mlp(3)

    def forward(self, x):
        assert len(x) == 1, "a bag at a time"
        return self.net(x.squeeze(0)).mean(0, keepdim=True)


def test_batches_of_one_are_mixed_only_where_two_are_as_good():
    inspect(Bag().eval(), [torch.randn(1, 9, 6) for _ in range(12)])


@dataclass
class Checked:
    x: torch.Tensor
    length: int = field(init=False)

    def __post_init__(self):
        if self.x.dim() != 2:
            raise ValueError("a batch has two dimensions")
        self.length = len(self.x)


class Attributes(UserDict):
    def __getattr__(self, name):
        try:
            return self.data[name]
        except KeyError as error:
            raise AttributeError(name) from error


@pytest.mark.parametrize("form", [Checked, lambda x: Attributes(x=x, y=torch.zeros(len(x)).long())])
def test_batches_of_classes_of_ones_own_are_read(form):
    batches = [form(torch.randn(16, 6)) for _ in range(8)]
    forward = lambda model, batch: model(batch.x)  # noqa: E731
    assert inspect(small().eval(), batches, forward=forward).seen.samples == 128


def test_an_empty_batch_in_the_middle_is_left_out():
    batches = [torch.randn(16, 6), torch.randn(0, 6), torch.randn(16, 6)]
    assert inspect(small().eval(), batches).seen.samples == 32


def test_what_is_spent_when_it_is_read_again_is_told():
    class Spent:
        def __init__(self):
            self.left = iter([torch.randn(16, 6)] * 4)

        def __iter__(self):
            return self.left

    with pytest.raises(ValueError, match="gave nothing when they were read again"):
        inspect(small().eval(), Spent())


def test_the_random_state_is_left_by_loaders_too():
    model = small().eval()
    data = torch.utils.data.TensorDataset(*blobs())
    before = whole(model)
    inspect(model, torch.utils.data.DataLoader(data, batch_size=32, shuffle=True))
    assert_untouched(before, model)
