"""Batches of few classes, in runs; shuffled ones are tested with the trials that draw them."""

import itertools

import pytest
import torch

from livella.study import batches

PART = (torch.arange(120), torch.arange(120) % 6)


def drawn(size, run, classes, count, seed=0):
    return list(itertools.islice(batches.of_few_classes(PART, size, run, classes, seed), count))


@pytest.mark.parametrize(("size", "run", "classes"), [(16, 16, 2), (32, 8, 2), (12, 4, 1)])
def test_every_run_has_as_many_classes_in_equal_numbers(size, run, classes):
    for x, y in drawn(size, run, classes, 20):
        assert len(x) == size
        assert torch.equal(y, x % 6)
        for part in y.split(run):
            counts = part.unique(return_counts=True)[1]
            assert counts.tolist() == [run // classes] * classes


def test_a_whole_batch_of_enough_runs_has_every_class():
    assert all(len(y.unique()) == 6 for _, y in drawn(24, 8, 2, 10))


def test_every_example_comes_once_before_any_comes_again():
    seen = torch.cat([x for x, _ in drawn(24, 8, 2, 5)])
    assert torch.equal(seen.sort().values, PART[0])


def test_a_run_that_is_no_multiple_is_filled_as_far_as_it_goes():
    for _, y in drawn(10, 5, 2, 5):
        for part in y.split(5):
            assert sorted(part.unique(return_counts=True)[1].tolist()) == [2, 3]


def test_seeds_draw_otherwise_and_the_same_seed_alike():
    one, again, other = (drawn(16, 16, 2, 3, seed) for seed in (0, 0, 1))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(one, again, strict=True))
    assert not all(torch.equal(a[0], b[0]) for a, b in zip(one, other, strict=True))
