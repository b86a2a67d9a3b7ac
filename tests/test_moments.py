"""Moments against Python's `statistics` module, and the properties that make them mergeable."""

import math
import statistics

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from livella.moments import Moments
from tests.processes import in_processes

SHAPES = st.lists(st.integers(1, 4), min_size=2, max_size=5).map(tuple)
SEEDS = st.integers(0, 2**31 - 1)


def draw(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(shape, generator=generator, dtype=torch.float64) + 5).to(dtype)


def assert_same(actual: Moments, expected: Moments, **tolerance: float) -> None:
    assert_close(torch.as_tensor(actual.count), torch.as_tensor(expected.count))
    assert_close(actual.mean, expected.mean, **tolerance)
    assert_close(actual.m2, expected.m2, **tolerance)


@given(SHAPES, SEEDS, st.data())
def test_of_agrees_with_the_statistics_module(shape, seed, data):
    channel_dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = draw(shape, seed)
    moments = Moments.of(x, channel_dim)
    for channel, values in enumerate(x.movedim(channel_dim, 0).flatten(1).tolist()):
        assert moments.count == len(values)
        assert math.isclose(moments.mean[channel], statistics.fmean(values), rel_tol=1e-12)
        biased = moments.variance(unbiased=False)[channel].item()
        assert math.isclose(biased, statistics.pvariance(values), rel_tol=1e-9, abs_tol=1e-20)
        if len(values) > 1:
            unbiased = moments.variance(unbiased=True)[channel].item()
            assert math.isclose(unbiased, statistics.variance(values), rel_tol=1e-9)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=5), SEEDS, st.booleans())
def test_any_split_merges_into_the_moments_of_the_whole(sizes, seed, backwards):
    x = draw((sum(sizes), 3, 2), seed)
    parts = [Moments.of(part) for part in x.split(sizes)]
    if backwards:
        parts.reverse()
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    assert_same(merged, Moments.of(x), rtol=1e-10, atol=1e-12)


@given(st.integers(1, 6), st.integers(1, 6), SEEDS)
def test_masked_parts_merge_like_the_elements_they_hold(n, length, seed):
    x = draw((n, 3, length), seed)
    mask = draw((n, length), seed + 1) > 5
    merged = Moments.of(x, mask=mask).merge(Moments.of(x, mask=~mask))
    assert_same(merged, Moments.of(x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("far", [0.0, 1e3, 1e4, 1e6])
def test_merge_keeps_what_lies_between_the_parts(far):
    a, b = draw((7, 2), 1), draw((9, 2), 2) + far
    merged = Moments.of(a).merge(Moments.of(b))
    assert_close(merged.variance(unbiased=True), torch.cat([a, b]).var(0), rtol=1e-9, atol=0)


def test_merge_accepts_a_count_per_channel():
    few = Moments(torch.tensor([0, 1]), torch.tensor([0.0, 4.0]), torch.tensor([0.0, 0.0]))
    more = Moments(2, torch.tensor([1.0, 1.0]), torch.tensor([2.0, 2.0]))
    means, m2s = torch.tensor([[1.0, 2.0], [2.0, 8.0]], dtype=torch.float64)
    expected = Moments(torch.tensor([2, 3]), means, m2s)
    assert_same(few.merge(more), expected)
    assert_same(more.merge(few), expected)


@given(
    SHAPES.filter(lambda shape: len(shape) > 2), SEEDS, st.sampled_from([0.0, math.nan, math.inf])
)
def test_masked_elements_have_no_influence(shape, seed, padding):
    x = draw(shape, seed, torch.float32)
    mask = draw((shape[0], *shape[2:]), seed + 1) > 4
    filled = torch.where(mask.unsqueeze(1), x, padding)
    assert_same(Moments.of(filled, mask=mask), Moments.of(x, mask=mask), rtol=0, atol=0)
    gathered = x.movedim(1, -1)[mask]
    assert_same(Moments.of(x, mask=mask), Moments.of(gathered), rtol=1e-5, atol=1e-5)


def test_a_mask_broadcasts():
    x = draw((4, 3, 5), 0)
    whole_samples = torch.tensor([True, False, True, True])
    assert_same(Moments.of(x, mask=whole_samples[:, None]), Moments.of(x[whole_samples]))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(60, 8), (4096, 8), (64, 8, 9, 9), (2, 8, 30_000)])
def test_a_large_offset_costs_no_accuracy(shape, masked):
    generator = torch.Generator().manual_seed(0)
    x = 1e4 + 1e-2 * torch.randn(shape, generator=generator)
    mask = torch.rand(shape[0], *shape[2:], generator=generator) > 0.2 if masked else None
    truth = Moments.of(x.double(), mask=mask)
    moments = Moments.of(x, mask=mask)
    assert moments.mean.dtype == torch.float32
    variance = truth.variance(unbiased=True).float()
    assert_close(moments.variance(unbiased=True), variance, rtol=1e-4, atol=0)
    assert_close(moments.mean, truth.mean.float(), rtol=1.2e-7, atol=0)


@pytest.mark.parametrize("value", [0.0, -2.5, 0.1, 1e4, 12345.678])
def test_a_constant_has_no_variance(value):
    moments = Moments.of(torch.full((77, 3), value))
    assert_close(moments.mean, torch.full((3,), value))
    assert (moments.m2 >= 0).all()
    assert_close(moments.m2, torch.zeros(3), rtol=0, atol=1e-9 * max(1.0, value**2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int16, torch.uint8])
def test_narrow_dtypes_are_accumulated_in_float32(dtype):
    x = torch.randint(0, 100, (5000, 2), generator=torch.Generator().manual_seed(0)).to(dtype)
    truth = Moments.of(x.double())
    moments = Moments.of(x)
    assert moments.mean.dtype == moments.m2.dtype == torch.float32
    assert_close(moments.mean, truth.mean.float())
    assert_close(moments.m2, truth.m2.float())


def test_variance_must_be_named_and_is_nan_where_undefined():
    one = Moments.of(torch.ones(1, 2))
    none = Moments.of(torch.ones(0, 2))
    masked = Moments.of(torch.ones(3, 2), mask=torch.zeros(3, dtype=torch.bool))
    with pytest.raises(TypeError, match="unbiased"):
        one.variance()
    nan, zero = torch.full((2,), math.nan), torch.zeros(2)
    assert_close(one.variance(unbiased=False), zero)
    assert_close(one.variance(unbiased=True), nan, equal_nan=True)
    for empty in (none, masked):
        assert_same(empty, Moments(0, zero, zero))
        assert_close(empty.variance(unbiased=False), nan, equal_nan=True)
        assert_close(empty.variance(unbiased=True), nan, equal_nan=True)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_shows(value):
    x = draw((6, 2), 0)
    x[2, 0] = value
    moments = Moments.of(x)
    assert_close(moments.mean[0], torch.tensor(value, dtype=x.dtype), equal_nan=True)
    assert moments.m2[0].isnan()
    assert_close(moments.mean[1], x[:, 1].mean())


@pytest.mark.parametrize("masked", [False, True])
def test_moments_can_be_differentiated_twice(masked):
    x = draw((5, 2, 3), 0).requires_grad_()
    mask = draw((5, 3), 1) > 4 if masked else None

    def measure(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        moments = Moments.of(x, mask=mask)
        return moments.mean, moments.variance(unbiased=True)

    assert torch.autograd.gradcheck(measure, x)
    assert torch.autograd.gradgradcheck(measure, x)


def test_nothing_is_neutral():
    x = draw((7, 3), 0)
    for merged in (
        Moments.empty(3).merge(Moments.of(x)),
        Moments.of(x).merge(Moments.empty(3)),
        Moments.of(x).merge(Moments.of(x[:0])),
    ):
        assert_same(merged, Moments.of(x), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"moments of \(3,\) channels, got \(2,\)"):
        Moments.empty(3).merge(Moments.empty(2))


def test_merging_is_exact_in_float64_for_float32_parts():
    x = 1e4 + 1e-2 * torch.randn(1000, 3, generator=torch.Generator().manual_seed(0))
    merged = Moments.empty(3)
    for part in x.split(1):
        merged = merged.merge(Moments.of(part))
    assert_close(merged.variance(unbiased=True), x.double().var(0), rtol=1e-9, atol=0)


def _reduced(rank, world):
    x = draw((9, 3), 0).float()
    part = (x[:0], x[:2], x[2:])[rank]
    moments = Moments.of(part).all_reduce()
    return int(moments.count[0]), moments.mean, moments.m2


def test_all_reduce_over_ranks_of_different_and_zero_counts(tmp_path):
    x = draw((9, 3), 0).float()
    results = in_processes(_reduced, 3, tmp_path)
    for count, mean, m2 in results:
        assert count == 9
        assert_close(mean, x.double().mean(0), rtol=1e-6, atol=0)
        assert_close(m2 / 8, x.double().var(0), rtol=1e-6, atol=0)
        assert torch.equal(mean, results[0][1])
    alone = Moments.of(x)
    assert alone.all_reduce() is alone


def test_blend_moves_mean_and_variance_between_the_two():
    a, b = Moments.of(draw((7, 2), 1)), Moments.of(draw((90, 2), 2) * 3 + 10)
    half = a.blend(b, 0.5)
    assert_close(half.mean, (a.mean + b.mean) / 2)
    variances = [m.variance(unbiased=False) for m in (a, b)]
    assert_close(half.variance(unbiased=False), (variances[0] + variances[1]) / 2)
    for share, end in ((0.0, a), (1.0, b)):
        assert_close(a.blend(b, share).mean, end.mean)
        assert_close(a.blend(b, share).variance(unbiased=False), end.variance(unbiased=False))
    with pytest.raises(ValueError, match=r"between 0 and 1, got 1\.5"):
        a.blend(b, 1.5)


def test_to_and_from_a_layer():
    layer = torch.nn.BatchNorm1d(3)
    moments = Moments.of(draw((20, 3), 0).float())
    moments.store_in(layer)
    assert_close(layer.running_mean, moments.mean)
    assert_close(layer.running_var, moments.variance(unbiased=True))
    back = Moments.of_layer(layer, count=20)
    assert_close(back.mean.float(), moments.mean)
    assert_close(back.m2.float(), moments.m2)
    before = layer.running_var.clone()
    for bad, words in (
        (Moments.of(torch.ones(1, 3)), "two values or more"),
        (Moments.of(torch.full((4, 3), math.nan)), "finite"),
        (Moments.of(torch.ones(4, 2)), "channels"),
    ):
        with pytest.raises(ValueError, match=words):
            bad.store_in(layer)
        assert torch.equal(layer.running_var, before)
    with pytest.raises(ValueError, match="count of two or more"):
        Moments.of_layer(layer, count=1)
    with pytest.raises(ValueError, match="expected a layer with running averages"):
        moments.store_in(torch.nn.BatchNorm1d(3, track_running_stats=False))


@pytest.mark.parametrize("count", [0, torch.tensor(0), torch.zeros(2)])
def test_an_empty_part_changes_no_infinite_mean(count):
    infinite = Moments.of(torch.tensor([[1.0, torch.inf], [2.0, 3.0]]))
    empty = Moments(count, torch.zeros(2), torch.zeros(2))
    for merged in (infinite.merge(empty), empty.merge(infinite)):
        assert merged.mean.tolist() == [1.5, torch.inf]


def test_all_reduce_asks_the_processes_of_its_group_alone(monkeypatch):
    group, asked = object(), []

    def all_gather(parts, own, group=None):
        asked.append(group)
        for part in parts:
            part.copy_(own)

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda of=None: 2 if of is group else 1)
    monkeypatch.setattr(dist, "all_gather", all_gather)
    x = draw((5, 3), 0)
    found = Moments.of(x).all_reduce(group)
    assert asked == [group]
    assert_same(Moments(int(found.count[0]), found.mean, found.m2), Moments.of(torch.cat([x, x])))
    assert Moments.of(x).all_reduce().count == 5
