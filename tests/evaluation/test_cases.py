"""What is drawn, and a few cases through all of it: networks of a second's training."""

import pytest
import torch
from evaluation.cases import Case
from evaluation.loaders import Kind
from evaluation.networks import FAMILIES, norms_of

from evaluation import cache, cases, faults, loaders, recipe, scores, table


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    """Nothing of an earlier run is read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "FOLDER", tmp_path_factory.mktemp("evaluation"))
        yield


def test_a_key_names_its_case():
    for network in cases.pairs("odd", 40):
        assert all(Case.of(case.key) == case for case in network)
        assert all(case.pair.seed % 2 == 1 for case in network)


def test_every_family_fault_and_strength_is_drawn():
    drawn = {case.pair for network in cases.pairs("odd", 300) for case in network}
    assert len(drawn) >= 300
    assert {recipe.draw(pair.seed).family for pair in drawn} == set(FAMILIES)
    known = {(name, s) for name, fault in faults.FAULTS.items() for s in fault.strengths}
    assert {(pair.fault, pair.strength) for pair in drawn} == known


@pytest.mark.parametrize("order", loaders.ORDERS)
@pytest.mark.parametrize("form", ["list", "read", "DataLoader"])
def test_a_loader_gives_the_same_examples_each_time(order, form):
    part = (torch.arange(90.0).reshape(90, 1), torch.arange(90) % 3)
    loader = loaders.make(Kind(order, 16, True, form), part, seed=4)
    seen = [torch.cat([100 * y + x[:, 0] for x, y in loader]) for _ in range(2)]
    assert torch.equal(seen[0].sort().values, seen[1].sort().values)
    assert len(seen[0].unique()) == 90
    assert bool((seen[0].diff() > 0).all()) == (order == "sorted")
    assert bool(((seen[0] % 100).diff() > 0).all()) == (order == "stored")


def test_no_example_comes_alone():
    part = (torch.arange(65.0).reshape(65, 1), torch.arange(65))
    given = list(loaders.make(Kind("stored", 64, False, "list"), part, seed=0))
    assert [len(batch) for batch in given] == [64]


def test_averages_are_those_that_torch_keeps():
    """A training by torch's own momentum ends with the statistics that are replayed."""
    drawn = recipe.draw(12)
    given = recipe.trained(drawn)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(drawn.seed + 1)
        model = recipe.build(drawn).train()
        for _ in recipe.steps(model, drawn, recipe.data.load(drawn.data).train):
            pass
    for name, norm in norms_of(model).items():
        own = norms_of(given.model)[name]
        torch.testing.assert_close(own.running_mean, norm.running_mean, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(own.running_var, norm.running_var, rtol=1e-3, atol=1e-4)


def test_a_digest_sees_every_bit_and_every_setting():
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
    seen = {cases.fingerprint(model)}
    model[0].running_mean[1] = -0.0
    seen.add(cases.fingerprint(model))
    model[0].momentum = 0.2
    seen.add(cases.fingerprint(model))
    model[0].weight.requires_grad_(False)
    seen.add(cases.fingerprint(model))
    model.eval()
    seen.add(cases.fingerprint(model))
    assert len(seen) == 5


CASES = (
    "12/none/*/shuffled-64-labels-DataLoader",
    "12/none/*/sorted-4-bare-read",
    "12/never-updated/0/shuffled-64-labels-list",
    "12/not-a-number/layer/stored-16-labels-read",
    "12/exchanged/2/sorted-16-labels-list",
    "14/other-scaling/0.5/shuffled-4-labels-DataLoader",
    "14/other-scaling/0.5/sorted-64-bare-list",
    "14/deployed-otherwise/raw/stored-128-labels-read",
    "16/momentum-too-small/0.003/sorted-64-labels-list",
    "16/checkpoint-without-buffers/1.0/stored-16-bare-DataLoader",
)
"""Far from every threshold of the scores, so that they hold on any processor."""


@pytest.mark.parametrize("key", CASES)
def test_the_inspector_is_right(key):
    row, _ = cases.run(Case.of(key))
    judged = scores.judge(row)
    assert [name for name, right in judged.items() if right is False] == [], table.figures(row)
    assert judged["quiet" if "none" in key else "cause"]
