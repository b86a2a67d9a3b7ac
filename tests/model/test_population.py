"""The statistics of the training set: against all data at once, and what a failure leaves."""

import copy
import dataclasses
import warnings
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.optim.swa_utils import update_bn as torch_update_bn

import livella
from livella.model.measure import Record
from livella.model.passes import Estimator
from livella.model.population import estimate_population, update_bn
from livella.model.progress import Bar
from livella.model.sites import looks_on
from livella.moments import Moments
from tests.model.populations import MEASURED, data, estimate, furthest, hard, truth
from tests.model.zoo import ZOO
from tests.processes import in_processes


def state(model: nn.Module) -> dict[str, object]:
    """All that an estimation could change."""
    return {
        **{f"tensor {name}": tensor.clone() for name, tensor in model.state_dict().items()},
        **{f"memory {name}": tensor.data_ptr() for name, tensor in model.named_buffers()},
        **{f"mode {name}": module.training for name, module in model.named_modules()},
        **{f"momentum {n}": getattr(m, "momentum", 0) for n, m in model.named_modules()},
        **{f"hooks {n}": len(m._forward_pre_hooks) for n, m in model.named_modules()},
        **{f"after {n}": len(m._forward_hooks) for n, m in model.named_modules()},
        **{f"own {n}": sorted(vars(m)) for n, m in model.named_modules()},
    }


def assert_untouched(model: nn.Module, before: dict[str, object]) -> None:
    after = state(model)
    assert after.keys() == before.keys()
    for name, value in before.items():
        same = (
            torch.equal(value, after[name]) if isinstance(value, Tensor) else value == after[name]
        )
        assert same, name


def test_sorted_data_with_a_ragged_end_give_the_truth():
    model, x = hard(), data()
    before = state(model)
    found = estimate(model, list(x.split(100)))  # the last batch has one sample
    assert furthest(found, truth(model, x)) < 1e-5
    assert_untouched(model, before)
    assert found.left == {"frozen": "frozen"}
    assert found.passes == 5  # b1; b2 with b3; the shared layer's two calls; last


@pytest.mark.parametrize("cut", ["one batch", "single samples", "shuffled"])
def test_any_other_split_gives_the_same(cut):
    model, x = hard(), data()
    wanted = {
        name: (layer.mean, layer.variance)
        for name, layer in estimate(model, list(x.split(100))).layers.items()
    }
    shuffled = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(2))]
    batches = {"one batch": [x], "single samples": x.split(1), "shuffled": shuffled.split(37)}
    assert furthest(estimate(model, list(batches[cut])), wanted) < 1e-6


def _share(rank: int, world: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Rank 0 of three reads nothing, the others read parts of unequal size."""
    x = data()
    cuts = {1: [401], 2: [301, 100], 3: [0, 150, 251]}[world]
    part = x.split(cuts)[rank]
    found = estimate(hard(), list(part.split(60)) if len(part) else [])
    return {name: (layer.mean, layer.variance) for name, layer in found.layers.items()}


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_that_read_different_data_give_the_same(world, tmp_path):
    results = in_processes(_share, world, tmp_path)
    found = estimate(hard(), list(data().split(100)))
    for result in results:
        assert isinstance(result, dict), result
        assert furthest(found, result) < 1e-6
        for name in MEASURED:
            assert torch.equal(result[name][1], results[0][name][1])


def _one_fails(rank: int, world: int) -> object:
    class Broken(list):
        def __iter__(self):
            yield from list.__iter__(self)
            if rank == 1:
                raise RuntimeError("disk is full")

    return estimate(hard(), Broken(data().split(100)))


def test_a_process_that_fails_is_named_to_all(tmp_path):
    results = in_processes(_one_fails, 2, tmp_path)
    assert results[1] == "RuntimeError: disk is full"
    assert "rank 1 failed" in results[0]
    assert "disk is full" in results[0]


@pytest.mark.parametrize(("mean", "sigma"), [(1000.0, 0.1), (1e4, 1e-2)])
@pytest.mark.parametrize("layout", [(4000, 3), (100, 3, 8, 8)])
def test_a_large_mean_costs_no_accuracy(mean, sigma, layout):
    x = mean + sigma * torch.randn(layout, generator=torch.Generator().manual_seed(0))
    layer = (nn.BatchNorm1d if x.dim() == 2 else nn.BatchNorm2d)(3)
    found = estimate_population(nn.Sequential(layer), list(x.split(64)))
    truth = x.double().movedim(1, 0).flatten(1).var(1)
    assert float((found.layers["0"].variance / truth - 1).abs().max()) < 1e-4


@pytest.mark.parametrize("method", ["sequential", "single_pass"])
def test_an_error_at_any_batch_leaves_the_model_as_it_was(method):
    model, parts = hard(), data(61).split(20)
    before = state(model)
    calls = 0

    def forward(model, batch):
        nonlocal calls
        calls += 1
        if calls == fail_at:
            model.b1(model.c1(batch))
            raise RuntimeError("injected")
        model(batch)

    fail_at = 0
    estimate(model, parts, forward=forward, method=method)
    total = calls
    assert total >= 4
    for at in range(1, total + 1):
        calls, fail_at = 0, at
        with pytest.raises(RuntimeError, match="injected"):
            estimate(model, parts, forward=forward, method=method)
        assert_untouched(model, before)


def test_apply_and_revert():
    model, x = hard(), data()
    before = state(model)
    found = estimate(model, list(x.split(100)))
    found.apply().apply()
    for name in MEASURED:
        layer = model.get_submodule(name)
        assert torch.equal(layer.running_mean, found.layers[name].mean.float())
        assert torch.equal(layer.running_var, found.layers[name].variance.float())
        assert layer.num_batches_tracked == 0
    found.revert().revert()
    assert_untouched(model, before)


def test_single_pass_measures_behind_the_mini_batch():
    model, x = hard(), data()
    shuffled = x[torch.randperm(401, generator=torch.Generator().manual_seed(2))]
    exact = estimate(model, list(shuffled.split(100)))
    found = estimate(model, list(shuffled.split(100)), method="single_pass")
    assert found.passes == 1
    assert torch.allclose(found.layers["b1"].variance, exact.layers["b1"].variance, rtol=1e-9)
    off = found.layers["b2"].variance / exact.layers["b2"].variance - 1
    assert 1e-6 < float(off.abs().max()) < 0.2
    whole = estimate(model, [x], method="single_pass").layers["b3"]
    assert torch.allclose(whole.variance, exact.layers["b3"].variance, rtol=1e-3)


def test_a_shared_layer_tells_its_calls():
    with pytest.warns(UserWarning, match="calls of one layer see different data: shared"):
        found = estimate_population(hard(), list(data().split(100)))
    pooled = found.layers["shared"]
    assert len(pooled.calls) == 2
    first, second = pooled.calls
    assert torch.allclose(first.merge(second).m2, pooled.moments.m2)
    assert [layer.calls_differ for layer in found.layers.values()].count(True) == 1


class Named(NamedTuple):
    image: Tensor
    label: int


@dataclasses.dataclass
class Example:
    x: Tensor
    labels: Tensor


@dataclasses.dataclass
class Photo:
    image: Tensor


FORMS = {
    "tensor": lambda x: x,
    "pair": lambda x: (x, torch.zeros(len(x))),
    "list": lambda x: [x, torch.zeros(len(x))],
    "named tuple": lambda x: Named(x, 3),
    "dict": lambda x: {"x": x, "labels": torch.zeros(len(x)), "name": "a"},
    "dict in a tuple": lambda x: ({"x": x}, torch.zeros(len(x))),
    "dataclass": lambda x: Example(x, torch.zeros(len(x))),
}


@pytest.mark.parametrize("form", FORMS)
def test_batches_in_every_form(form):
    x = data(101)
    wanted = estimate(hard(), list(x.split(25)))
    found = estimate(hard(), [FORMS[form](part) for part in x.split(25)])
    assert torch.equal(found.layers["last"].variance, wanted.layers["last"].variance)


def test_batches_of_no_known_form_say_what_to_do():
    batches = [Photo(part) for part in data(101).split(25)]
    found = estimate(hard(), batches, forward=lambda model, batch: model(batch.image))
    assert found.layers["b1"].samples == 101
    two = nn.Bilinear(4, 4, 4)
    model = nn.ModuleList([two, nn.BatchNorm1d(4)])
    model.forward = lambda a, b: model[1](two(a, b))
    both = (torch.randn(9, 4), torch.randn(9, 4), torch.zeros(9))
    assert estimate_population(model, [both]).layers["1"].samples == 9
    with pytest.raises(TypeError, match=r"called with \(a, b\), got .*forward="):
        estimate_population(model, [{"image": both[0]}])


class TestBadInput:
    def test_no_batches(self):
        with pytest.raises(ValueError, match="no batches"):
            estimate_population(hard(), [])

    def test_an_iterator(self):
        with pytest.raises(TypeError, match="can be read once"):
            estimate_population(hard(), iter(data().split(100)))
        found = estimate(hard(), iter(data().split(100)), method="single_pass")
        assert found.layers["b1"].samples == 401

    def test_nothing_to_measure(self):
        with pytest.raises(ValueError, match=r"Linear .none in it"):
            estimate_population(nn.Linear(2, 2), [torch.ones(2, 2)])
        layer = nn.BatchNorm1d(2, track_running_stats=False)
        with pytest.raises(ValueError, match="keeps no running statistics"):
            estimate_population(nn.Sequential(layer), [torch.ones(2, 2)])

    def test_one_value_in_all(self):
        with pytest.raises(ValueError, match="layer '0' met fewer than two values"):
            estimate_population(nn.Sequential(nn.BatchNorm1d(2)), [torch.ones(1, 2)])

    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_what_is_not_finite(self, value):
        x = data(101)
        x[50, 0, 3, 3] = value
        model = hard()
        before = state(model)
        with pytest.raises(ValueError, match=r"layer 'b1' .BatchNorm2d. met NaN or infinity"):
            estimate(model, list(x.split(25)))
        assert_untouched(model, before)

    def test_options_out_of_range(self):
        x = [torch.ones(2, 2)]
        model = nn.Sequential(nn.BatchNorm1d(2))
        with pytest.raises(ValueError, match="expected method of"):
            estimate_population(model, x, method="fast")
        with pytest.raises(ValueError, match="samples of one or more"):
            estimate_population(model, x, samples=0)
        with pytest.raises(ValueError, match="tolerance above zero"):
            estimate_population(model, x, tolerance=0)

    def test_a_layer_no_batch_reaches(self):
        model = nn.Sequential(nn.BatchNorm1d(2))
        model.unused = nn.BatchNorm1d(3)
        model.forward = lambda x: model[0](x)
        with pytest.warns(UserWarning, match="no batch reached unused"):
            found = estimate_population(model, [torch.randn(9, 2)])
        assert found.left == {"unused": "no batch reached it"}


def test_frozen_layers_are_measured_if_asked():
    found = estimate(hard(), list(data().split(100)), include_frozen=True)
    assert set(found.layers) == {*MEASURED, "frozen"}
    model = hard().eval()  # in evaluation as a whole, nothing is frozen by it
    assert set(estimate(model, list(data().split(100))).layers) == {*MEASURED, "frozen"}


def test_samples_stops_early():
    x = torch.randn(400, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    found = estimate_population(nn.Sequential(nn.BatchNorm2d(1)), list(x.split(10)), samples=95)
    assert found.layers["0"].samples == 100


def test_data_in_an_order_are_told():
    model = nn.Sequential(nn.BatchNorm2d(1))
    with pytest.warns(UserWarning, match="seem to be in an order"):
        found = estimate_population(model, list(data().split(10)), tolerance=0.5)
    shuffled = data()[torch.randperm(401, generator=torch.Generator().manual_seed(0))]
    mixed = estimate_population(model, list(shuffled.split(10)), tolerance=0.5)
    assert found.layers["0"].error > 2 * mixed.layers["0"].error


def draws(seed: int, n: int) -> Tensor:
    """Maps of related positions, skewed values: mean 1, variance 0.25 + 2·0.16."""
    g = torch.Generator().manual_seed(seed)
    level = 1 + 0.5 * torch.randn(n, 4, 1, generator=g)
    gamma = torch.distributions.Exponential(1.0)
    torch.manual_seed(seed)
    return level + 0.4 * (gamma.sample((n, 4, 6)) + gamma.sample((n, 4, 6)) - 2)


def test_tolerance_stops_early_and_its_intervals_hold_the_truth():
    model = nn.Sequential(nn.BatchNorm1d(4))
    held_mean, held_variance, used = [], [], []
    with torch.random.fork_rng():
        for seed in range(200):
            found = estimate_population(model, draws(seed, 1500).split(100), tolerance=0.05)
            layer = found.layers["0"]
            (low, high), (below, above) = layer.mean_interval, layer.variance_interval
            held_mean.append((low <= 1) & (high >= 1))
            held_variance.append((below <= 0.57) & (above >= 0.57))
            used.append(layer.samples)
            assert layer.error <= 0.05
    assert max(used) < 1500
    assert 0.93 <= float(torch.stack(held_mean).double().mean()) <= 0.97
    assert 0.93 <= float(torch.stack(held_variance).double().mean()) <= 0.97


def test_averaged_weights_get_statistics_of_their_own():
    model, x = hard(), data()
    averaged = AveragedModel(model)
    found = estimate(averaged, [(part, 0) for part in x.split(100)])
    wanted = estimate(model, list(x.split(100)))
    assert torch.equal(found.layers["module.last"].variance, wanted.layers["last"].variance)


def small() -> nn.Sequential:
    model = nn.Sequential(nn.BatchNorm1d(5, momentum=0.3), nn.Dropout(), nn.BatchNorm1d(5))
    model[2].eval()
    return model


def test_facts_4_2_update_bn_takes_the_place_of_torchs():
    x = torch.randn(401, 5, generator=torch.Generator().manual_seed(0)).sort(0).values
    ours, theirs = small(), small()
    truth = x.double().var(0)
    # Torch's: a batch of one ends it half-way, and a dict at once.
    with pytest.raises(ValueError, match="Expected more than 1 value"):
        torch_update_bn(x.split(100), theirs)
    assert theirs[0].momentum is None
    theirs = small()
    theirs[2].running_mean.fill_(5)
    torch_update_bn(x.split(100)[:-1], theirs)
    assert theirs[0].running_var.double().div(truth).max() < 0.5
    assert not theirs[2].running_mean.eq(5).all()  # frozen, and reset all the same
    ours[2].running_mean.fill_(5)
    update_bn(list(x.split(100)), ours)
    assert torch.allclose(ours[0].running_var.double(), truth, rtol=1e-6)
    assert ours[2].running_mean.eq(5).all()
    assert ours[0].momentum == 0.3
    model = nn.Sequential(nn.BatchNorm1d(5))
    with pytest.raises(AttributeError, match="'dict' object"):
        torch_update_bn([{"input": x}], model)
    update_bn([{"input": x}], model)
    assert torch.allclose(model[0].running_var.double(), truth, rtol=1e-6)


def test_facts_4_3_a_large_mean_spoils_means_of_squares_and_not_this():
    g = torch.Generator().manual_seed(0)
    batches = [1000 + 0.1 * torch.randn(64, 4, generator=g) for _ in range(10)]
    truth = torch.cat(batches).double().var(0)
    # As other tools do, from layers at momentum one: E[x²] − E[x]², in the buffers' dtype.
    layer, squares, means = nn.BatchNorm1d(4, momentum=1.0), 0, 0
    for batch in batches:
        layer(batch)
        squares = squares + (layer.running_mean.square() + layer.running_var * 63 / 64) / 10
        means = means + layer.running_mean / 10
    assert ((squares - means.square()) / truth - 1).abs().max() > 0.5
    found = estimate_population(nn.Sequential(nn.BatchNorm1d(4)), batches).layers["0"].variance
    assert torch.allclose(found, truth, rtol=1e-9)


def test_update_bn_takes_what_torchs_takes():
    x = torch.randn(100, 5, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.BatchNorm1d(5))
    update_bn((part for part in x.split(25)), model)
    assert torch.allclose(model[0].running_var, x.var(0), rtol=1e-5)
    update_bn(x.split(25), nn.Linear(5, 5))  # nothing to do
    update_bn(x.split(25), livella.freeze(nn.Sequential(nn.BatchNorm1d(5))))


def test_an_estimate_that_a_dtype_cannot_hold_is_refused():
    model = nn.Sequential(nn.BatchNorm1d(2)).half()
    found = estimate_population(model, [500 * torch.randn(64, 2).half()])
    before = state(model)
    with pytest.raises(ValueError, match=r"torch\.float16 can hold"):
        found.apply()
    assert_untouched(model, before)


def test_calls_that_differ_are_not_taken_for_data_in_an_order():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x):
            return self.norm(x) + self.norm(2 * x + 5)

    x = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="calls of one layer"):
        found = estimate_population(Twice(), x.split(50), samples=2000).layers["norm"]
    assert not found.ordered
    assert found.error < 0.06


def test_an_accelerated_and_a_compiled_model():
    x = data(101)
    wanted = estimate(hard(), list(x.split(25)))
    model = livella.accelerate(hard())
    found = estimate(model, list(x.split(25)))
    for name in MEASURED:
        torch.testing.assert_close(
            found.layers[name].variance, wanted.layers[name].variance, rtol=1e-5, atol=0
        )
    compiled = torch.compile(hard(), backend="eager")
    again = estimate(compiled, list(x.split(25)))
    assert torch.equal(again.layers["b3"].variance, wanted.layers["b3"].variance)


@pytest.mark.parametrize("method", ["sequential", "single_pass"])
@pytest.mark.parametrize("name", sorted(ZOO))
def test_fused_networks_stay_fused_while_they_are_measured(name, method):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = ZOO[name]().double().eval()
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)).double()
    fast = livella.accelerate(copy.deepcopy(plain))
    batches = [x + k for k in range(3)]
    wanted = estimate_population(plain, batches, method=method)
    activations = []
    for layer in fast.modules():
        if isinstance(layer, nn.BatchNorm2d):
            hook = looks_on(lambda _layer, _args, named: activations.append(named))
            layer.register_forward_pre_hook(hook, with_kwargs=True)
    found = estimate_population(fast, batches, method=method)
    assert any("activation" in named for named in activations)
    assert found.passes == wanted.passes
    for layer in wanted.layers:
        for kind in ("mean", "variance"):
            got, expected = (getattr(e.layers[layer], kind) for e in (found, wanted))
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8)


def test_masks_count_valid_elements_only():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = livella.nn.BatchNorm1d(3)

        def forward(self, x, mask):
            return self.norm(x, mask=mask)

    x = torch.randn(40, 3, 7, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(7) < torch.randint(
        1, 8, (40, 1), generator=torch.Generator().manual_seed(1)
    )
    x = torch.where(mask[:, None], x, torch.nan)
    batches = list(zip(x.split(9), mask.split(9), strict=True))
    found = estimate_population(Masked(), batches).layers["norm"]
    valid = x.movedim(1, 0)[:, mask].double()
    torch.testing.assert_close(found.variance, valid.var(1), rtol=1e-6, atol=0)
    assert int(found.moments.count) == int(mask.sum())


def test_calls_that_only_some_batches_make():
    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

        def forward(self, x, *, deep):
            h = self.first(x)
            return self.second(h) if deep else h

    x = 2 * torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    batches = [(part, k % 2 == 1) for k, part in enumerate(x.split(10))]
    forward = lambda model, batch: model(batch[0], deep=batch[1])  # noqa: E731
    found = estimate_population(Routed(), batches, forward=forward)
    assert found.layers["second"].samples == 30
    deep = torch.cat([part for part, is_deep in batches if is_deep]).double()
    scale = 1 / (x.double().var(0) + 1e-5)
    torch.testing.assert_close(
        found.layers["second"].variance, deep.var(0) * scale, rtol=1e-6, atol=0
    )


def test_print_says_how_far_off_the_averages_are():
    text = str(estimate(hard(), list(data().split(100))))
    assert "sequential, 5 passes over the data" in text
    assert "not measured: frozen (frozen)" in text


# What only some data and models show


def test_an_empty_batch_changes_nothing():
    x, model = data(101), hard()
    found = estimate(model, [x[:50], x[:0], x[50:]])
    wanted = estimate(model, [x[:50], x[50:]])
    for name in MEASURED:
        assert torch.equal(found.layers[name].variance, wanted.layers[name].variance)


def test_a_record_of_nothing_takes_over_the_scatter_of_another():
    full = Record(Moments.empty(3))
    full.add(torch.randn(9, 3), None)
    full.settle()
    for merged in (Record(Moments.empty(3)).merge(full), full.merge(Record(Moments.empty(3)))):
        assert merged.scatter is full.scatter
        assert int(merged.moments.count) == 9


class TwoMasked(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = (livella.nn.BatchNorm1d(3).double() for _ in range(2))

    def forward(self, x, mask):
        return self.second(self.first(x, mask=mask), mask=mask)


@pytest.mark.parametrize("length", [1, 2])
def test_in_a_single_pass_a_lone_value_is_normalized_by_what_was_measured_so_far(length):
    x = 3 * torch.randn(30, 3, length, generator=torch.Generator().manual_seed(0)).double() + 1
    mask = torch.ones(30, length, dtype=torch.bool)
    lone = 5 + x[:1]
    batches = [(x, mask), (lone, torch.arange(length)[None] < 1)]
    if length == 1:
        batches = [(part, None) for part, _ in batches]
    found = estimate_population(TwoMasked(), batches, method="single_pass").layers["second"]
    values = x.movedim(1, 0).flatten(1)
    every = torch.cat([values, lone[:, :, 0].T], 1)
    ends = (lone[:, :, 0].T - every.mean(1, keepdim=True)) / (
        every.var(1, keepdim=True) + 1e-5
    ).sqrt()
    batch = values - values.mean(1, keepdim=True)
    batch = batch / (values.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(found.mean, torch.cat([batch, ends], 1).mean(1))
    torch.testing.assert_close(found.variance, torch.cat([batch, ends], 1).var(1))


def test_a_layer_set_to_its_batches_is_measured_as_in_use():
    def two():
        return nn.Sequential(livella.nn.BatchNorm1d(5), nn.BatchNorm1d(5))

    x = torch.randn(101, 5, generator=torch.Generator().manual_seed(0)).sort(0).values
    model = two()
    model[0].normalize_by = "batch"
    found = estimate_population(model, x.split(25)).layers["1"]
    wanted = estimate_population(two(), x.split(25)).layers["1"]
    assert torch.equal(found.variance, wanted.variance)
    assert model[0].normalize_by == "batch"


def test_averages_of_low_precision_do_not_hold_a_batch():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2)).half()
    x = 500 * torch.randn(64, 2, generator=torch.Generator().manual_seed(0)).half()
    found = estimate_population(model, [x], method="single_pass").layers["1"]
    torch.testing.assert_close(found.variance, torch.ones(2).double(), rtol=0.05, atol=0)


def test_calls_that_turn_out_to_come_first_are_measured_first():
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = (nn.BatchNorm1d(3).double() for _ in range(2))

        def forward(self, x, *, deep):
            return self.second(self.first(x) if deep else x)

    x = 2 * torch.randn(60, 3, generator=torch.Generator().manual_seed(0)).double() + 3
    batches = [(part, k > 0) for k, part in enumerate(x.split(10))]
    calls = []

    def forward(model, batch):
        calls.append(batch)
        assert len(calls) < 100, "it goes round in circles"
        model(batch[0], deep=batch[1])

    found = estimate_population(Late(), batches, forward=forward).layers
    torch.testing.assert_close(found["first"].variance, x[10:].var(0))
    deep = (x[10:] - x[10:].mean(0)) / (x[10:].var(0) + 1e-5).sqrt()
    torch.testing.assert_close(found["second"].variance, torch.cat([x[:10], deep]).var(0))


@pytest.mark.parametrize(("size", "least", "most"), [(1, 64, 80), (100, 800, 900)])
def test_a_tolerance_is_not_believed_of_few_samples_or_batches(size, least, most):
    x = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.BatchNorm1d(3))
    assert least <= estimate_population(model, x.split(size), tolerance=50.0).layers["0"].samples
    assert estimate_population(model, x.split(size), tolerance=50.0).layers["0"].samples <= most


def test_each_process_reads_its_share_of_the_samples_rounded_up(monkeypatch):
    monkeypatch.setattr(Estimator, "_world", lambda self: 2)
    model, x = nn.Sequential(nn.BatchNorm1d(3)), list(torch.randn(9, 3).split(1))
    layers = {"0": model[0]}
    own = Estimator(model, layers, x, None, 5, None, None, False, settle=None, caller="test")
    with Bar("test", False, None) as bar:
        bar.begin("reading")
        assert len(list(own._limited(bar))) == 3


def test_an_order_of_the_data_is_told_only_where_a_part_of_them_was_read():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert estimate_population(nn.Sequential(nn.BatchNorm2d(1)), data().split(10)).layers["0"]
