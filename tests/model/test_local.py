"""What stays with the client is told by what layers are."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import livella

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def keys(prefix, names):
    return {f"{prefix}{name}" for name in names}


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm2d(4), livella.nn.BatchNorm2d(4, activation="relu"), nn.SyncBatchNorm(4)]
)
def test_all_of_a_batch_norm_is_local_whatever_its_name(layer):
    model = nn.Sequential()
    model.add_module("conv_bn", nn.Conv2d(3, 4, 1))
    model.add_module("downsample", nn.Sequential(nn.Conv2d(4, 4, 1), layer))
    everything = keys("downsample.1.", ("weight", "bias", *STATISTICS))
    assert set(livella.local_parameters(model)) == everything
    statistics = livella.local_parameters(model, statistics_only=True)
    assert set(statistics) == keys("downsample.1.", STATISTICS)


def test_every_name_of_a_shared_layer_and_every_domain_is_local():
    norm = nn.BatchNorm1d(4)
    model = nn.ModuleDict({"first": norm, "second": norm})
    livella.add_domains(model, ["day"])
    names = (*STATISTICS, *keys("domains.day.", STATISTICS))
    expected = keys("first.", names) | keys("second.", names)
    assert set(livella.local_parameters(model, statistics_only=True)) == expected


def test_of_a_recurrent_layer_the_weights_are_shared():
    model = livella.nn.BatchNormLSTM(3, 4)
    local = livella.local_parameters(model)
    shared = model.state_dict().keys() - set(local)
    assert shared
    assert all(name.startswith(("weight_", "bias_")) for name in shared)
    assert any(name.startswith("gamma") for name in local)
    assert any(name.startswith("running") for name in local)


def test_a_parametrized_scale_and_a_layer_without_anything():
    model = nn.Sequential(
        parametrizations.weight_norm(nn.BatchNorm1d(4), dim=None),
        nn.BatchNorm1d(4, affine=False, track_running_stats=False),
    )
    assert set(livella.local_parameters(model)) == set(model.state_dict())


@pytest.mark.parametrize("layer", [nn.GroupNorm(2, 4), nn.LayerNorm(4), nn.Linear(4, 4)])
def test_what_keeps_nothing_of_the_data_is_shared(layer):
    assert livella.local_parameters(nn.Sequential(layer)) == ()


def test_a_batch_norm_alone_is_all_local():
    layer = nn.BatchNorm1d(4)
    assert livella.local_parameters(layer) == tuple(layer.state_dict())


def test_averaging_the_rest_leaves_each_client_its_own():
    clients = [nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)) for _ in range(2)]
    local = set(livella.local_parameters(clients[0]))
    for offset, client in enumerate(clients):
        client(10 * offset + torch.randn(32, 3))
    kept = [client[1].running_mean.clone() for client in clients]
    shared = [name for name in clients[0].state_dict() if name not in local]
    mean = {n: sum(c.state_dict()[n] for c in clients) / 2 for n in shared}
    for client in clients:
        client.load_state_dict(mean, strict=False)
    assert torch.equal(clients[0][0].weight, clients[1][0].weight)
    assert all(torch.equal(c[1].running_mean, m) for c, m in zip(clients, kept, strict=True))
