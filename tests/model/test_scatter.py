"""How samples scatter: the same however they are split, and whatever the centre."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from livella.functional import contributions
from livella.model.scatter import Scatter
from livella.moments import Moments


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 3


def scatter_of(x, sizes, centre, mask=None):
    masks = [None] * len(sizes) if mask is None else mask.split(sizes)
    parts = [contributions(a, centre, m) for a, m in zip(x.split(sizes), masks, strict=True)]
    return Scatter.of(torch.stack(parts), sizes, centre)


def shares(x, mask, centre):
    """k, Σ(x − r) and Σ(x − r)² of each sample and channel, one by one."""
    found = np.zeros((3, *x.shape[:2]))
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            values = x[n, c][mask[n]].numpy() - float(centre[c])
            found[:, n, c] = len(values), values.sum(), (values**2).sum()
    return found


def test_masked_samples_of_any_length():
    x, centre = draw(6, 2, 5), torch.tensor([3.0, 2.0]).double()
    mask = torch.arange(5) < torch.tensor([[5], [2], [0], [1], [4], [5]])
    x[~mask[:, None].expand_as(x)] = torch.nan
    found = contributions(x, centre, mask)
    expected = shares(x, mask, centre)
    valid = [x[:, c][mask].numpy() for c in range(2)]
    ends = np.array([[v.size, v.mean(), v.var() * v.size] for v in valid]).T
    torch.testing.assert_close(found[:3], torch.tensor(ends))
    torch.testing.assert_close(found[3:6], torch.tensor(expected.mean(1)))
    for c in range(2):
        products = np.cov(expected[:, :, c], ddof=0)[np.triu_indices(3)] * 6
        torch.testing.assert_close(found[6:, c], torch.tensor(products))


def test_nothing_valid_contributes_nothing():
    found = contributions(draw(3, 2, 4), torch.zeros(2).double(), torch.zeros(3, 4).bool())
    assert found.eq(0).all()


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.floats(-5, 5))
def test_splits_and_centres_make_no_difference(sizes, away):
    x = draw(sum(sizes), 3, 4)
    centre = torch.full((3,), 3.0).double()
    whole = scatter_of(x, [len(x)], centre)
    at_once = scatter_of(x, sizes, centre)
    merged = scatter_of(x[: sizes[0]], sizes[:1], centre)
    if sizes[1:]:
        merged = merged.merge(scatter_of(x[sizes[0] :], sizes[1:], centre + away))
    moments = Moments.of(x)
    for other in (at_once, merged):
        assert other.samples == whole.samples
        assert other.batches == len(sizes)
        torch.testing.assert_close(other.mean, whole.mean)
        torch.testing.assert_close(other.spread, whole.spread, rtol=1e-9, atol=1e-7)
    torch.testing.assert_close(merged.within, at_once.within, rtol=1e-9, atol=1e-7)
    if len(x) > 1:
        for a, b in zip(at_once.errors(moments), merged.errors(moments), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_independent_values_have_the_textbook_error_of_the_mean():
    x = draw(2000, 2)
    moments = Moments.of(x)
    error, _ = scatter_of(x, [2000], moments.mean).errors(moments)
    torch.testing.assert_close(error, 1.96 * x.std(0) / 2000**0.5, rtol=2e-3, atol=0)


@pytest.mark.parametrize("repeat", [1, 50])
def test_values_of_one_sample_that_resemble_each_other_tell_no_more_than_one(repeat):
    x = draw(500, 2, 1).expand(500, 2, repeat).contiguous()
    moments = Moments.of(x)
    error, _ = scatter_of(x, [500], moments.mean).errors(moments)
    torch.testing.assert_close(error, 1.96 * x[:, :, 0].std(0) / 500**0.5, rtol=5e-3, atol=0)


def test_the_excess_is_the_ratio_of_mean_squares_between_batches_and_overall():
    level = torch.tensor([-3.0, 1.0, -2.0, 4.0, 0.0]).double()
    x = (draw(5, 4) + level[:, None]).reshape(20, 1)
    moments = Moments.of(x)
    found = scatter_of(x, [4] * 5, moments.mean + 0.5).excess(moments)
    off = x.numpy()[:, 0] - x.numpy().mean()
    ratios = []
    for values in (off, off**2):
        means = values.reshape(5, 4).mean(1)
        between = 4 * np.square(means - values.mean()).sum() / 4
        ratios.append(between / values.var(ddof=1))
    assert found == pytest.approx(max(ratios), rel=1e-9)
    assert found > 4, "more than chance allows, or it would be one"
