"""A mixture holds examples evenly, whole, in the form they came in."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from livella.diagnosis import mixture
from livella.diagnosis.mixture import Mixture, UnmixableError
from tests.diagnosis.test_inspection import inspect


@dataclass
class Pair:
    x: Tensor
    y: Tensor


def numbered(start, n):
    return torch.arange(start, start + n).float()[:, None].expand(n, 3).clone()


def mixed(batches):
    shown = Mixture()
    for batch in batches:
        shown.show(batch)
    return shown.batches()


@pytest.mark.parametrize(
    "form",
    [
        lambda x, y: (x, y),
        lambda x, y: [x, {"y": y, "names": [str(int(v)) for v in y]}],
        lambda x, y: {"x": x, "y": y, "scale": 2.0},
        Pair,
        lambda x, y: ((x, None), y),
    ],
)
def test_examples_stay_whole_in_the_form_they_came_in(form):
    batches = mixed([form(numbered(k, 10), torch.arange(k, k + 10)) for k in range(0, 200, 10)])
    seen = []
    for batch in batches:
        x, y = mixture.feeding.tensors_in(batch)
        assert torch.equal(x[:, 0].long(), y)
        assert type(batch) is type(form(numbered(0, 2), torch.arange(2)))
        seen += y.tolist()
    assert sorted(seen) == list(range(200))
    assert max(map(mixture.feeding.samples_in, batches)) <= mixture.TOGETHER


def test_each_batch_stands_for_all_of_the_data():
    """Sorted in, mixed out: the mean of every batch is near that of the whole."""
    batches = mixed([numbered(k, 16) for k in range(0, 1024, 16)])
    assert len(batches) > 1
    for batch in batches:
        assert abs(float(batch.mean()) - 511.5) < 5 * 296 / len(batch) ** 0.5


def test_of_more_than_it_holds_every_part_is_in_it():
    count = 4 * mixture.MOST
    batches = mixed([numbered(k, 64) for k in range(0, count, 64)])
    values = torch.cat(batches)[:, 0]
    assert len(values) == mixture.MOST
    assert len(values.unique()) == mixture.MOST
    quarters = torch.histc(values, bins=4, min=0, max=count)
    expected = mixture.MOST / 4
    assert ((quarters - expected).abs() < 5 * expected**0.5).all()


def test_large_examples_are_held_within_the_memory_for_them():
    each = torch.zeros(1, mixture.BYTES // 4 // 40)
    batches = mixed([each.expand(4, -1)] * 20)
    assert sum(map(len, batches)) == 40


@pytest.mark.parametrize("batch", [torch.tensor(3.0), (torch.zeros(4, 2), torch.zeros(3)), {1}])
def test_what_cannot_be_taken_apart_is_told_or_left_whole(batch):
    with pytest.raises(UnmixableError):
        mixture.reversed_batch(batch)
    assert mixture.cut(batch, 1)[0] is batch
    assert mixed([batch]) == []


def test_random_state_is_left_alone():
    before = torch.get_rng_state()
    mixed([numbered(k, 64) for k in range(0, 4096, 64)])
    assert torch.equal(torch.get_rng_state(), before)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8),
        nn.ReLU(), nn.Linear(8, 3),
    ).eval()  # fmt: skip


def exact(x):
    """The batch norms with the statistics of all data at once, by torch."""
    model = network().train()
    norms = (model[1], model[4])
    for norm in norms:
        norm.momentum = None
    model(x)
    return norms


@pytest.mark.parametrize("size", [4, 16, 64])
@pytest.mark.parametrize("ordered", [False, True])
def test_statistics_are_the_same_in_any_order_and_size_of_batches(size, ordered):
    """Against the whole data as one batch, which is exact."""
    model = network()
    x = 3 + torch.randn(512, 4, generator=torch.Generator().manual_seed(1)) * 2
    x = x[x[:, 0].argsort()] if ordered else x
    found = inspect(model, list(x.split(size))).measurements
    for layer, norm in zip(found, exact(x), strict=True):
        sigma = norm.running_var.sqrt()
        mean, variance = (torch.tensor(v) for v in (layer.measured.mean, layer.measured.variance))
        assert ((mean - norm.running_mean).abs() / sigma).max() < 0.02
        assert (variance / norm.running_var).log().abs().max() < 0.05


class Whole(nn.Module):
    """Gives out what depends on the whole batch, so that nothing can be mixed."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x):
        return self.net(x).mean(0)


def test_batches_that_cannot_be_mixed_are_read_in_rounds():
    torch.manual_seed(0)
    model, x = Whole().eval(), 3 + torch.randn(512, 4) * 2
    found = inspect(model, list(x[x[:, 0].argsort()].split(32))).measurements
    for layer, norm in zip(found, exact(x), strict=True):
        sigma = norm.running_var.sqrt()
        assert ((torch.tensor(layer.measured.mean) - norm.running_mean).abs() / sigma).max() < 0.05
