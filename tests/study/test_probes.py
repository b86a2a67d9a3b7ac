"""What is measured besides accuracy, against closed forms and gradients worked out by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from livella.moments import Moments
from livella.study import models, probes
from livella.study.data import Dataset
from livella.study.models import Built, Network

UNITS, EXAMPLES = 5, 40


def part(examples=EXAMPLES, units=UNITS):
    drawn = torch.Generator().manual_seed(0)
    return torch.randn(examples, units, generator=drawn), torch.arange(examples) % 3


def make(kinds, built, given=None):
    given = given or part()
    return probes.make(kinds, built, Dataset("planted", given, given, given), batch=10)


def moments(mean, deviation, count=100):
    mean, deviation = torch.tensor([mean]), torch.tensor([deviation])
    return Moments(count, mean, deviation.square() * count)


@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(0.1, 5), st.floats(0.1, 5))
def test_a_shift_is_the_distance_of_two_normals_in_deviations_of_the_first(m, n, s, t):
    expected = ((m - n) ** 2 + (s - t) ** 2) ** 0.5 / s
    assert probes.distance(moments(m, s), moments(n, t)) == pytest.approx(expected, abs=1e-4)


def test_a_shift_agrees_with_the_transport_of_sorted_samples():
    drawn = torch.Generator().manual_seed(0)
    before, now = (torch.randn(100_000, 3, generator=drawn, dtype=torch.double) for _ in range(2))
    before = before * 2 + 1
    now = now * torch.tensor([1.0, 3.0, 2.5]) + torch.tensor([4.0, 1.0, -1.0])
    moved = (before.sort(dim=0).values - now.sort(dim=0).values).square().mean(dim=0).sqrt() / 2
    found = probes.distance(Moments.of(before), Moments.of(now))
    assert found == pytest.approx(float(moved.median()), rel=0.02)


def test_what_did_not_move_has_no_shift_also_where_it_is_constant():
    still = Moments.of(torch.cat([part()[0], torch.ones(EXAMPLES, 1)], dim=1))
    assert probes.distance(still, still) == 0


def test_the_shift_is_that_of_each_layers_outputs_between_two_calls():
    built = models.build(Network(width=4, depth=2), (UNITS,), 3)
    first = built.model[1]
    probe = make("shift", built)["shift"]
    assert probe() == ()
    with torch.no_grad():
        before = first(part()[0])
        first.bias += 2.0
        expected = probes.distance(Moments.of(before), Moments.of(before + 2.0))
    near, far = probe()
    assert near == pytest.approx(expected, rel=1e-4)
    assert far > 0
    assert probe() == (0.0, 0.0)


def test_an_activation_in_place_does_not_change_what_is_measured():
    def shifts(in_place):
        torch.manual_seed(0)
        linear, site = nn.Linear(UNITS, 4), nn.Identity()
        model = nn.Sequential(linear, site, nn.ReLU(inplace=in_place), nn.Linear(4, 3))
        probe = make("shift", Built(model, (site,)))["shift"]
        probe()
        with torch.no_grad():
            linear.bias -= 1.0
        return probe()

    assert shifts(in_place=True) == shifts(in_place=False)


@pytest.mark.parametrize("site", [nn.Identity(), nn.BatchNorm1d(4)], ids=["none", "batch"])
def test_gradient_norms_are_those_worked_out_by_hand(site):
    torch.manual_seed(0)
    enter, leave = nn.Linear(UNITS, 4), nn.Linear(4, 3)
    model = nn.Sequential(enter, site, nn.ReLU(), leave)
    x, y = part()
    (found,) = make("gradients", Built(model, (site,)), (x, y))["gradients"]()
    with torch.no_grad():
        before = enter(x)
        if isinstance(site, nn.BatchNorm1d):
            before = (before - before.mean(0)) / (before.var(0, unbiased=False) + site.eps).sqrt()
        scores = before.clamp(min=0) @ leave.weight.T + leave.bias
        slope = (scores.exp() / scores.exp().sum(1, keepdim=True) - torch.eye(3)[y]) / len(x)
        expected = ((slope @ leave.weight) * (before > 0)).norm()
    assert found == pytest.approx(float(expected), rel=1e-4)


def test_gradients_come_layer_by_layer_from_the_input():
    torch.manual_seed(0)
    built = models.build(Network(depth=12, activation="sigmoid", init="normal:0.1"), (UNITS,), 3)
    gradients = make("gradients", built)["gradients"]()
    assert len(gradients) == 12
    assert list(gradients) == sorted(gradients), "they vanish towards the input"


class _Fails(nn.Module):
    failing = False

    def forward(self, x):
        if self.failing:
            raise RuntimeError("planted")
        return x


@pytest.mark.parametrize("failing", [False, True])
@pytest.mark.parametrize("kind", ["shift", "gradients", "variance"])
def test_a_probe_leaves_the_network_as_it_was_also_on_failure(kind, failing):
    norm, last = nn.BatchNorm1d(4), _Fails()
    model = nn.Sequential(nn.Linear(UNITS, 4), norm, nn.Dropout(0.5), nn.Linear(4, 3), last).eval()
    model[2].train()
    probe = make(kind, Built(model, (norm,)))[kind]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    last.failing = failing
    state = torch.get_rng_state()
    if failing:
        with pytest.raises(RuntimeError, match="planted"):
            probe()
    else:
        probe()
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert not norm._forward_hooks
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_dropout_before_a_normalization_raises_the_variance_by_as_much_as_is_known():
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(4)
    model = nn.Sequential(nn.Dropout(0.5), norm, nn.Linear(4, 3))
    constant = torch.where(torch.arange(256)[:, None] % 2 == 0, 1.0, 3.0).repeat(1, 4)
    probe = make("variance", Built(model, (norm,)), (constant, part(256)[1]))["variance"]
    ratios = [probe()[0] for _ in range(200)]
    # Of two values 1 and 3 the variance is 1, and with half of them dropped and doubled it is
    # E[2·x²] − 4 = 6.
    assert sum(ratios) / 200 == pytest.approx(6, rel=0.05)


def test_several_probes_are_measured_side_by_side():
    built = models.build(Network(norm="batch", width=4, depth=2), (UNITS,), 3)
    found = {name: probe() for name, probe in make("variance+population+shift", built).items()}
    assert found["variance"] == pytest.approx((1, 1))  # nothing is dropped
    assert len(found["population"]) == 2
    assert found["shift"] == ()


def test_no_probe_is_made_where_none_is_asked_for():
    assert make("", models.build(Network(), (UNITS,), 3)) == {}
