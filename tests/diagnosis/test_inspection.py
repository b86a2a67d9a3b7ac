"""What an inspection finds in real networks, what it costs, and that it leaves no trace."""

import copy
import json

import pytest
import torch
from torch import nn

import livella
from livella.diagnosis.records import Level
from livella.study import data
from tests.diagnosis import faults


def inspect(model, batches=None, **options):
    return livella.inspect(model, batches, **{"progress": False, **options})


def whole(model):
    """All that an inspection could leave behind."""
    return {
        **{f"tensor {n}": (v.clone(), v.data_ptr()) for n, v in model.state_dict().items()},
        **{f"own {n}": sorted(vars(m)) for n, m in model.named_modules()},
        **{f"mode {n}": m.training for n, m in model.named_modules()},
        **{f"hooks {n}": (len(m._forward_hooks), len(m._forward_pre_hooks))
           for n, m in model.named_modules()},
        **{f"gradient {n}": (p.grad, p.requires_grad) for n, p in model.named_parameters()},
        "random": torch.get_rng_state(),
    }  # fmt: skip


def assert_untouched(before, model):
    after = whole(model)
    assert before.keys() == after.keys()
    for name, value in before.items():
        if name.startswith("tensor"):
            assert value[1] == after[name][1], name
            torch.testing.assert_close(value[0], after[name][0], rtol=0, atol=0, equal_nan=True)
        elif name == "random":
            assert torch.equal(value, after[name])
        else:
            assert value == after[name], name


def small(classes=5):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 8),
        nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, classes),
    )  # fmt: skip


def pairs(count=10, n=32, offset=0.0):
    generator = torch.Generator().manual_seed(3)
    return [
        (offset + torch.randn(n, 6, generator=generator),
         torch.randint(0, 5, (n,), generator=generator))
        for _ in range(count)
    ]  # fmt: skip


# Planted faults


@pytest.mark.parametrize("fault", faults.PLANTED)
def test_a_planted_fault_is_the_first_finding_at_its_layer(fault):
    plant, check, layers = faults.PLANTED[fault]
    model, given = plant()
    before = whole(model)
    found = inspect(model, **given)
    first = found.findings[0]
    assert first.check == check
    assert first.layer in layers
    assert first.level is not Level.NOTE
    assert_untouched(before, model)


def test_a_healthy_model_gives_nothing_above_a_note():
    model, given = faults.healthy()
    x, y = data.load("digits").test
    found = inspect(model, **given, deploy=list(zip(x.split(64), y.split(64), strict=True)))
    assert found.worst in (None, Level.NOTE)
    assert found.seen.gap.score.running > 0.9


# Attribution


def deep():
    return faults.trained("deep"), faults.separable()


def damage(model, places):
    names = [name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm1d)]
    damaged = [names[place] for place in places]
    for name in damaged:
        layer = model.get_submodule(name)
        layer.running_mean += 1.5 * layer.running_var.sqrt()
        layer.running_var *= 4
    return set(damaged)


@pytest.mark.parametrize("labels", [True, False])
def test_three_damaged_layers_of_twenty_get_the_gap_and_are_repaired(labels):
    model, batches = deep()
    right = inspect(model, batches).seen.gap.score.running
    damaged = damage(model, (3, 9, 15))
    given = batches if labels else [x for x, _ in batches]
    found = inspect(model, given)
    shares = {layer.name: layer.share or 0.0 for layer in found.measurements}
    assert sum(shares[name] for name in damaged) > 0.9
    blamed = {f.layer for f in found.findings if f.level is Level.ERROR and f.layer}
    assert blamed
    assert blamed <= damaged
    broken = inspect(model, batches).seen.gap.score.running
    assert right - broken > 0.2
    mended = livella.repair(model, given, progress=False)
    back = inspect(mended.model, batches).seen.gap.score.running
    assert back - broken >= 0.95 * (right - broken)


def examples_called(model, batches, **options):
    """How many examples an inspection gives to the model, in passes over the data."""
    called = []
    handle = model.register_forward_hook(lambda _m, args, _out: called.append(len(args[0])))
    inspect(model, batches, **options)
    handle.remove()
    return sum(called) / sum(len(x) for x, _ in batches)


class Residual(nn.Module):
    """So many layers with batch norm, each beside a way around it."""

    def __init__(self, layers):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU()) for _ in range(layers)
        )

    def forward(self, x):
        for block in self.blocks:
            x = x + 0.2 * block(x)
        return x


@pytest.mark.parametrize("layers", [4, 52])
@pytest.mark.parametrize("count", [10, 64])
def test_without_a_gap_it_takes_about_five_passes(count, layers):
    model, batches = Residual(layers).eval(), pairs(count)
    livella.estimate_population(model, batches, method="single_pass", progress=False).apply()
    batches = [(x, model(x).argmax(1)) for x, _ in batches]
    assert examples_called(model, batches) <= 6.5


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("places", [(3,), (3, 20, 40), range(52)])
@pytest.mark.parametrize("size", [8, 32])
def test_a_deep_network_is_shared_out_within_eight_passes(places, size, labels):
    model, batches = Residual(52).eval(), pairs(64, size)
    livella.estimate_population(model, batches, method="single_pass", progress=False).apply()
    batches = [(x, model(x).argmax(1)) for x, _ in batches]
    damage(model, places)
    options = {} if labels else {"target": None}
    found = inspect(model, batches, **options)
    assert sum(layer.share or 0.0 for layer in found.measurements) == pytest.approx(1)
    assert examples_called(model, batches, **options) <= 8


# What it looks at


def test_without_data_it_reads_what_is_stored():
    model = small()
    model[1].running_var[2] = -1
    model[5].momentum = 0.99
    found = inspect(model.half())
    assert {f.check for f in found.findings} >= {"negative_variance", "momentum", "low_precision"}
    assert found.seen.samples == 0
    assert found.measurements[0].measured is None


def test_a_loss_of_ones_own_and_an_optimizer_are_used():
    model, batches = small(), pairs()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1e-2)
    called = []

    def loss(output, batch):
        called.append(1)
        return nn.functional.mse_loss(output[:, 0], batch[1].float())

    found = inspect(model, batches, loss=loss, optimizer=optimizer)
    assert called
    assert "weight_decay" in {f.check for f in found.findings}
    with torch.no_grad():
        expected = sum(float(loss(model.eval()(x), (x, y))) for x, y in batches) / 10
    assert found.seen.gap.loss.running == pytest.approx(expected, rel=1e-4)


def test_dropout_is_measured_where_it_acts_and_not_behind_a_norm():
    found = inspect(small(), pairs(40))
    first, second = found.measurements
    assert first.measured.dropout == pytest.approx(1)
    assert second.measured.dropout > 1.05


def test_sources_and_biases_are_told():
    found = inspect(small(), pairs())
    assert [(x.source, x.source_kind) for x in found.measurements] == [
        ("0", "Linear"), ("4", "Linear"),
    ]  # fmt: skip
    assert [f.check for f in found.findings].count("redundant_bias") == 2


def test_a_batch_is_worth_what_independent_values_would_be():
    """Maps that are constant over space: each sample is worth one value, not 25."""
    model = nn.Sequential(nn.BatchNorm2d(3))
    x = [torch.randn(64, 3, 1, 1).expand(64, 3, 5, 5) for _ in range(12)]
    (flat,) = inspect(model, x).measurements
    assert flat.measured.values == 64 * 25
    assert flat.measured.effective == pytest.approx(64, rel=0.15)
    assert flat.measured.noise == pytest.approx(1 / 8, rel=0.1)
    (full,) = inspect(model, [torch.randn(64, 3, 5, 5) for _ in range(12)]).measurements
    assert full.measured.effective == pytest.approx(64 * 25, rel=0.15)


def test_distances_by_hand():
    model = nn.Sequential(nn.BatchNorm1d(2, eps=0.0))
    model[0].running_mean.copy_(torch.tensor([1.0, 0.0]))
    model[0].running_var.copy_(torch.tensor([4.0, 4.0]))
    x = torch.randn(2048, 2, dtype=torch.float64)
    x = ((x - x.mean(0)) / x.std(0)).float()
    (found,) = inspect(model, list(x.split(512))).measurements
    assert found.off.offset == pytest.approx((1 / 2) ** 0.5, rel=1e-3)
    assert found.off.ratio == pytest.approx(4, rel=1e-3)
    expected = 0.5 * (torch.tensor(4.0).log() + (1 + 0.5) / 4 - 1)
    assert found.off.divergence == pytest.approx(float(expected), rel=1e-3)


def test_instance_and_group_norms_are_met_too():
    model = nn.Sequential(
        nn.InstanceNorm2d(3, track_running_stats=True), nn.GroupNorm(1, 3), nn.BatchNorm2d(3)
    ).eval()
    found = inspect(model, [torch.randn(8, 3, 1, 1) for _ in range(4)])
    assert ("instance_of_one", "0") in {(f.check, f.layer) for f in found.findings}
    assert [layer.family for layer in found.measurements] == ["instance", "group", "batch"]


def test_a_wrapped_model_is_looked_into():
    compiled = torch.compile(small(), backend="eager")
    assert inspect(compiled, pairs()).seen.model == "Sequential"


# No trace


@pytest.mark.parametrize("training", [True, False])
def test_it_leaves_no_trace(training):
    model = small().train(training)
    model[1].eval()
    before = whole(model)
    inspect(model, pairs(), deploy=pairs(offset=2.0))
    assert_untouched(before, model)


class StopsError(Exception):
    pass


@pytest.mark.parametrize("error", [StopsError, KeyboardInterrupt])
@pytest.mark.parametrize("place", range(0, 66, 5))
def test_nor_does_it_after_a_failure_anywhere(error, place):
    """The forward raises at its n-th call, whatever the inspection is at just then."""
    model = small()
    model[1].running_mean += 3  # a gap, so that it is shared out
    calls = []

    def forward(m, batch):
        calls.append(1)
        if len(calls) > place:
            raise error
        return m(batch[0])

    before = whole(model)
    with pytest.raises(error):
        inspect(model, pairs(), deploy=pairs(offset=2.0), forward=forward, target=None)
    assert_untouched(before, model)


def test_nor_after_a_loader_that_raises():
    def loader():
        yield from pairs(3)
        raise StopsError

    class Loader:
        def __iter__(self):
            return loader()

    model = small()
    before = whole(model)
    with pytest.raises(StopsError):
        inspect(model, Loader())
    assert_untouched(before, model)


# Bad input


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], ValueError, "got no batches"),
        (iter([torch.randn(8, 6)]), TypeError, "read once"),
        ([torch.full((8, 6), float("nan"))], ValueError, r"layer '1'.*NaN"),
        (["words"], TypeError, "expected a batch"),
    ],
)
def test_bad_batches_are_told(batches, error, message):
    model = small()
    before = whole(model)
    with pytest.raises(error, match=message):
        inspect(model, batches)
    assert_untouched(before, model)


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter([(x, y) for x, y in zip(*pairs(1, 96)[0], strict=True)])


def test_a_loader_without_a_length_is_read():
    loader = torch.utils.data.DataLoader(Stream(), batch_size=16)
    assert inspect(small(), loader).seen.samples == 96
    assert livella.repair(small(), loader, progress=False).before.seen.samples == 96


class Detector(nn.Module):
    """Takes a list of images, and gives a dict for each."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)

    def forward(self, images):
        out = self.norm(torch.stack(images)).flatten(1)
        return [{"boxes": each[:8].reshape(2, 4), "scores": each[8:10]} for each in out]


@pytest.mark.parametrize("images", [2, 3])
def test_a_detectors_lists_are_taken_apart_and_its_broken_statistics_found(images):
    model = Detector().eval()
    x = 5 + torch.randn(images * 40, 1, 4, 4)
    targets = [{"boxes": torch.zeros(k, 4), "labels": torch.ones(k)} for k in range(images)]
    found = inspect(model, [(list(part), targets) for part in x.split(images)])
    assert found.seen.samples == images * 40
    assert found.worst.rank >= Level.WARNING.rank
    assert "statistics_gap" in {f.check for f in found.findings}
    (layer,) = found.measurements
    assert layer.measured.mean[0] == pytest.approx(float(x.mean()), abs=1e-4)


def test_a_loss_that_is_nan_where_the_network_is_in_order_is_told():
    with pytest.raises(ValueError, match="got NaN by the statistics of the data"):
        inspect(small(), pairs(), loss=lambda output, _: output.sum() * float("nan"))


def test_a_model_without_normalization_and_deployment_without_training_are_told():
    with pytest.raises(ValueError, match="Linear with none"):
        inspect(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="pass both"):
        inspect(small(), deploy=pairs())


# What it gives


def test_the_record_is_plain():
    found = inspect(small(), pairs())
    values = json.loads(found.to_json())
    assert values["seen"]["layers"][0]["name"] == "1"
    assert {f["check"] for f in values["findings"]} == {f.check for f in found.findings}
    assert copy.deepcopy(found) == found
