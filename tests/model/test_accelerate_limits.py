"""What is left alone and named, what is refused, and a failure half-way."""

import contextlib
import cProfile
import functools
import gc
import sys

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from livella.model.accelerate import accelerate
from tests.model.small import Net, accelerated, assert_same, inputs, net
from tests.model.zoo import shown_as_fused


def fused(self, x):
    return self.act(self.bn(self.conv(x)))


# Layers and modules left alone


class Mine(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) + 100


def test_other_classes_are_left_alone_and_named():
    model = nn.ModuleDict(
        {
            "mine": Mine(3),
            "lazy": nn.LazyBatchNorm2d(),
            "sync": nn.SyncBatchNorm(3),
            "instance": nn.InstanceNorm2d(3),
            "plain": nn.BatchNorm2d(3),
            "group": nn.GroupNorm(1, 3),
        }
    )
    kinds = {name: type(layer) for name, layer in model.items()}
    with pytest.warns(UserWarning, match="left alone") as caught:
        accelerate(model)
    (warning,) = caught
    assert warning.filename == __file__
    for named in ("mine (Mine)", "lazy (LazyBatchNorm2d)", "sync (SyncBatchNorm)"):
        assert named in str(warning.message)
    assert "instance" not in str(warning.message)
    assert "plain" not in str(warning.message)
    changed = {name for name, layer in model.items() if type(layer) is not kinds[name]}
    assert changed == {"plain"}


def test_a_subclass_is_not_fused():
    plain = net(fused, bn=Mine(3))
    with pytest.warns(UserWarning, match=r"bn \(Mine\)"):
        fast = accelerated(plain)
    assert_same(plain, fast)


def test_a_lazy_layer_is_taken_once_it_is_a_norm():
    model = nn.Sequential(nn.LazyBatchNorm1d(), nn.ReLU())
    with pytest.warns(UserWarning, match="LazyBatchNorm1d"):
        accelerate(model)
    model(torch.randn(4, 3))
    assert shown_as_fused(accelerate(model)) == {"": "0 + relu"}


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_a_parametrized_norm_is_left_alone_and_named():
    plain = net(fused)
    nn.utils.parametrize.register_parametrization(plain.bn, "weight", Doubled())
    with pytest.warns(UserWarning, match=r"bn \(ParametrizedBatchNorm2d\)"):
        fast = accelerate(plain)
    assert shown_as_fused(fast) == {}
    assert_close(fast.bn.weight, 2 * torch.ones(3).double())


def test_a_norm_parametrized_later():
    plain = net(fused)
    fast = accelerated(plain)
    for model in (plain, fast):
        nn.utils.parametrize.register_parametrization(model.bn, "weight", Doubled())
    assert_same(plain, fast)
    for model in (plain, fast):
        nn.utils.parametrize.remove_parametrizations(model.bn, "weight")
    assert_same(plain, fast)


def test_a_forward_of_the_object_is_kept():
    model = net(fused)
    model.forward = functools.partial(lambda model, x: model.bn(x) - 1, model)
    before = model.forward
    accelerate(model)
    assert model.forward is before
    assert shown_as_fused(model) == {}

    patched = net(fused)
    patched.bn.forward = lambda x: x + 1
    with pytest.warns(UserWarning, match=r"bn \(BatchNorm2d\)"):
        accelerate(patched)
    assert type(patched.bn) is nn.BatchNorm2d
    assert_close(patched.bn(torch.zeros(1, 3, 1, 1)), torch.ones(1, 3, 1, 1))


def test_a_norm_with_another_method_of_its_own_is_left_alone():
    model = net(fused)
    model.bn._check_input_dim = lambda x: None
    with pytest.warns(UserWarning, match=r"bn \(BatchNorm2d\)"):
        accelerate(model)
    assert type(model.bn) is nn.BatchNorm2d


class Registering(nn.Module):
    made = ()

    def __init_subclass__(cls):
        Registering.made += (cls,)


def test_classes_that_watch_their_subclasses_are_left_alone():
    class Watched(Registering, Net):
        forward = fused

    made = Registering.made
    assert shown_as_fused(accelerate(Watched())) == {}
    assert Registering.made == made


def test_a_profiler_goes_on():
    def python_profiler(*_):
        pass

    profiler = cProfile.Profile()
    profiler.enable()
    fast = accelerate(net(fused))
    fast(*inputs())
    profiler.disable()
    assert shown_as_fused(fast) == {"": "bn + relu"}
    names = {entry.code.co_name for entry in profiler.getstats() if hasattr(entry.code, "co_name")}
    assert {"accelerate", "batch_norm"} <= names

    sys.setprofile(python_profiler)
    try:
        accelerate(net(fused))
        assert sys.getprofile() is python_profiler
    finally:
        sys.setprofile(None)


# Errors


@pytest.mark.parametrize("wrong", [None, torch.zeros(3), nn.BatchNorm2d])
def test_what_is_no_module_is_refused(wrong):
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got"):
        accelerate(wrong)


def test_a_failure_half_way_leaves_the_model_as_it_was(monkeypatch):
    model = nn.Sequential(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()), Mine(3))
    model.append(model[0])
    kinds = [type(module) for module in model.modules()]
    shown, attributes = repr(model), [set(vars(module)) for module in model.modules()]
    # Warnings are errors here, and the one about Mine comes last of all.
    with pytest.raises(UserWarning, match="left alone"):
        accelerate(model)
    assert [type(module) for module in model.modules()] == kinds
    assert [set(vars(module)) for module in model.modules()] == attributes
    assert repr(model) == shown


def test_errors_are_those_of_the_original():
    plain = net(fused)
    fast = accelerated(plain)
    for wrong in (torch.zeros(4, 5, 5, 5).double(), torch.zeros(4, 3, 5).long()):
        with pytest.raises(RuntimeError) as wanted:
            plain(wrong)
        with pytest.raises(RuntimeError) as got:
            fast(wrong)
        assert str(got.value) == str(wanted.value)


def test_a_collection_of_garbage_in_between_is_no_part_of_the_model():
    def caught(phase, info):
        with contextlib.suppress(ValueError):
            phase.upper()

    gc.callbacks.append(caught)
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        model = accelerate(net(fused))
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(caught)
    assert gc.isenabled()
    assert shown_as_fused(model)
