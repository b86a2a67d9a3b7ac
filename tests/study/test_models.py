"""The networks of the study, and a user's with its kind of normalization swapped."""

import copy

import pytest
import torch
from torch import nn

from livella.model import sites
from livella.nn.factory import KINDS
from livella.study import models
from livella.study.errors import StudyError
from livella.study.microbatch import MicroBatches
from livella.study.models import Network, ShiftNoise
from tests.study.worlds import users

SHAPE = (1, 6, 6)


def build(name, norm, **settings):
    return models.build(Network(users(name), norm=norm, **settings), SHAPE, 3)


def train_one_step(model, shape=SHAPE):
    x, y = torch.randn(6, *shape), torch.arange(6) % 3
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = nn.functional.cross_entropy(model.train()(x), y)
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["build", "shared", "grouped", "fused"])
def test_every_kind_can_be_swapped_into_a_users_network_and_trained(name, kind):
    built = build(name, kind)
    inside = set(built.model.modules())
    assert set(built.sites) <= inside
    assert any(map(sites.is_batch_norm, inside)) == (kind in ("batch", "ghost", "renorm", "sync"))
    train_one_step(built.model)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "none"])
def test_gamma_and_beta_are_carried_over_in_the_order_of_the_calls(kind):
    first, second = build("build", kind).sites
    for site, channels, gamma, beta in ((first, 6, 2.0, 0.5), (second, 8, 3.0, 0.25)):
        torch.testing.assert_close(site.weight.detach(), torch.full((channels,), gamma))
        if kind != "rms":
            torch.testing.assert_close(site.bias.detach(), torch.full((channels,), beta))


def test_a_network_keeps_its_own_batch_norm_for_batch():
    built = build("build", "batch")
    assert [type(site) for site in built.sites] == [nn.BatchNorm2d] * 2
    assert built.sites[1].momentum == 0.3


def test_other_norms_give_way_to_batch_norm():
    found = build("grouped", "batch").sites
    assert len(found) == 2
    assert all(isinstance(site, nn.BatchNorm2d) for site in found)


def test_an_activation_fused_into_the_normalization_stays_with_every_kind():
    x = torch.randn(6, 4, 4, 4)
    for kind in KINDS:
        (site,) = build("fused", kind).sites
        out = site(x)
        assert (out >= 0).all()
        assert (out > 0).any()


@pytest.mark.parametrize("name", ["build", "shared", "fused", "dense"])
def test_a_users_batch_norm_can_be_given_smaller_batches(name):
    built = build(name, "batch", norm_batch=2)
    assert all(isinstance(site, MicroBatches) for site in built.sites)
    train_one_step(built.model)


def test_a_shared_normalization_is_replaced_in_every_place():
    built = build("shared", "group")
    (site,) = built.sites
    assert [built.model[0][k] for k in (1, 4)] == [site, site]


def test_dense_layers_are_normalized_over_their_channels():
    train_one_step(build("dense", "layer").model)


@pytest.mark.parametrize("kind", ["none", "batch", "group"])
def test_noise_follows_the_normalization_and_vanishes_in_inference(kind):
    built = build("build", kind, noise=True)
    assert [type(site[1]) for site in built.sites] == [ShiftNoise] * 2
    x = torch.randn(6, *SHAPE)
    plain = build("build", kind).model
    weights = built.model.state_dict().values()
    plain.load_state_dict(dict(zip(plain.state_dict(), weights, strict=True)))
    torch.testing.assert_close(built.model.eval()(x), plain.eval()(x))
    built.model.train()
    assert not torch.equal(built.model(x), built.model(x))


def test_noise_moves_each_unit_as_the_paper_says():
    torch.manual_seed(0)
    noise = ShiftNoise()
    still = noise(torch.zeros(4000, 50))
    centre = still.mean(dim=0)
    assert centre.abs().max() < 0.5 + 0.01
    assert centre.std() == pytest.approx(1 / 12**0.5, rel=0.25)
    assert (still - centre).abs().max() < 0.1 + 0.02
    scales = (noise(torch.full((4000, 50), 1000.0)) / 1000).mean(dim=0)
    assert 1 - 0.01 < scales.min() < 1.1
    assert 1.15 < scales.max() < 1.25 + 0.01


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_model", "returned a str: expected a torch.nn.Module"),
        ("no_norm", "has no normalization to swap"),
        ("other_input", "failed on examples of shape (1, 6, 6): RuntimeError"),
        ("too_few_scores", "gave (2, 2) for 2 examples: expected (2, 3) scores"),
        ("maps_for_scores", "gave (2, 3, 4, 4) for 2 examples"),
        ("fails", "raised RuntimeError: no such disk"),
    ],
)
def test_a_network_that_cannot_be_used_is_refused_in_one_line(name, said):
    with pytest.raises(StudyError) as caught:
        models.users_model(users(name), SHAPE, 3)
    assert said in str(caught.value)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("network", "kind"),
    [("mlp", kind) for kind in KINDS if kind != "instance"] + [("cnn", kind) for kind in KINDS],
)
def test_the_studys_own_networks_train_with_every_kind_they_have_space_for(network, kind):
    built = models.build(Network(network, norm=kind, depth=4, width=8, dropout=0.1), SHAPE, 3)
    called = []
    for site in built.sites:
        site.register_forward_hook(lambda module, _args, _out: called.append(module))
    train_one_step(built.model)
    assert called == list(built.sites)
    assert len(called) == 4


@pytest.mark.parametrize(("init", "deviation"), [("he", (2 / 64) ** 0.5), ("normal:0.1", 0.1)])
def test_weights_start_with_the_deviation_asked_for(init, deviation):
    torch.manual_seed(0)
    enter = models.build(Network(init=init, width=400), (1, 8, 8), 10).model[1]
    assert float(enter.weight.detach().std()) == pytest.approx(deviation, rel=0.02)
    assert not enter.bias.any()


def test_an_unknown_initialization_is_refused():
    with pytest.raises(StudyError, match="expected 'he' or 'normal:STD'"):
        models.build(Network(init="xavier"), SHAPE, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_another_kind_takes_the_residual_of_the_layer_it_stands_for(kind):
    model = build("residual", kind).model.train()
    x = torch.randn(5, *SHAPE)
    z = model.conv(x)
    inner = model.norm if kind == "batch" else model.norm.norm
    inner = copy.deepcopy(inner)  # it moves on with every batch
    plain = inner(z) if kind != "batch" else nn.functional.batch_norm(z, None, None, training=True)
    expected = model.head(torch.relu(plain + z).mean((2, 3)))
    torch.testing.assert_close(model(x), expected)


def test_a_mask_has_no_meaning_to_another_kind():
    build("masked", "batch").model(torch.randn(5, *SHAPE))
    with pytest.raises(StudyError, match="called with a mask"):
        build("masked", "group").model(torch.randn(5, *SHAPE))
