"""Networks of the world: what is said of them is true, and repair keeps their outputs."""

import copy

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

import livella
from livella.diagnosis.records import Level
from tests import pretrained

NETWORKS = {
    "MobileNetV2": pytest.param(
        pretrained.mobilenet_v2_on_photos, marks=pretrained.needs_mobilenet
    ),
    "EfficientNet-Lite0": pytest.param(pretrained.efficientnet_lite0, marks=pretrained.needs_lite0),
    "legere": pytest.param(pretrained.legere, marks=pretrained.needs_legere),
}


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_a_pretrained_network_is_read_right_and_left_alone(network):
    model, batches = network()
    before = copy.deepcopy(model.state_dict())
    done = livella.repair(model, batches, progress=False)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    found = done.before
    norms = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    assert {layer.name for layer in found.measurements} == set(norms)
    assert found.worst is not Level.ERROR
    for finding in found.findings:
        if finding.layer:
            _is_true(finding, norms[finding.layer])
        else:
            assert (finding.check, finding.level) == ("statistics_gap", Level.WARNING)
    if done.applied:
        assert not done.worse
        assert done.after.seen.gap.score.running > found.seen.gap.score.running
    else:
        with torch.no_grad():
            assert all(torch.equal(done.model(x), model(x)) for x in batches)


def _is_true(finding, norm):
    """Count again what the finding says of the layer."""
    numbers, var = finding.numbers, norm.running_var
    if finding.check == "constant_channels":
        assert int((var < 1e-12).sum()) == numbers["channels"]
    elif finding.check == "silent_channels":
        weight, bias = norm.weight, norm.bias
        assert int((weight == 0).sum()) == numbers["off"]
        assert int(((weight != 0) & (bias < -4 * weight.abs())).sum()) == numbers["low"]
    elif finding.check == "large_eps":
        assert int(((var < norm.eps) & (var >= 1e-12)).sum()) == numbers["channels"]
    elif finding.check == "stale_statistics":
        assert finding.level is not Level.ERROR
        assert numbers["offset"] > 0.3 or abs(0.5 * torch.tensor(numbers["ratio"]).log()) > 0.3
    else:
        assert finding.check in ("counters", "small_batch", "ordered_data"), finding
        assert finding.message


@pretrained.needs_mobilenet
def test_what_is_damaged_in_a_pretrained_network_is_named_without_labels():
    model, batches = pretrained.mobilenet_v2_on_photos()
    livella.estimate_population(model, batches, progress=False, method="single_pass").apply()
    damaged = model.get_submodule("features.8.conv.1.1")
    damaged.running_mean += 2 * (damaged.running_var + damaged.eps).sqrt()
    found = livella.inspect(model, batches, progress=False)
    first = found.findings[0]
    assert (first.check, first.layer) == ("stale_statistics", "features.8.conv.1.1")
    assert first.level is Level.ERROR
