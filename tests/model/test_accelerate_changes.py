"""What is given at a call or changed after accelerating: results are those of the original."""

import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  the usual name
from torch import Tensor, nn
from torch.testing import assert_close

from livella.model.accelerate import accelerate
from livella.model.plans import MOST
from tests.model.small import Net, accelerated, assert_same, inputs, net
from tests.model.zoo import shown_as_fused

CHAIN = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))


def fused(self, x):
    return self.act(self.bn(self.conv(x)))


def fused_sum(self, x):
    return self.act(x + self.bn(self.conv(x)))


def fused_sum_in_place(self, x):
    y = self.bn(self.conv(x))
    y += x
    return F.hardtanh(y, 0.0, 6.0)


def fused_two_norms(self, x):
    return F.hardswish(self.bn(self.conv(x)) + self.bn2(x))


def fused_sequence(self, x):
    return self.act(self.path(x) + x)


# The form of a call


def optional(self, x, residual=None, *, scale=1, flag=True):
    y = self.bn(x)
    if residual is not None:
        y = y + residual
    return self.act(y) * scale if flag else y


def test_arguments_may_be_left_out_or_given_in_any_form():
    plain = net(optional)
    fast = accelerated(plain)
    assert shown_as_fused(fast) == {"": "bn + relu"}
    x, residual = inputs((4, 3, 5, 5), (4, 3, 5, 5))
    assert_same(plain, fast, x)
    assert_same(plain, fast, x, residual)
    assert_same(plain, fast, x, None, flag=False)
    assert_same(plain, fast, x, residual, scale=2.5)
    assert_close(fast(residual=residual, x=x), plain(residual=residual, x=x))
    assert shown_as_fused(fast) == {"": "bn + relu, bn + residual + relu"}
    with pytest.raises(TypeError, match="missing 1 required"):
        fast()


def test_a_form_that_keeps_changing_is_given_up():
    plain = net(optional)
    fast = accelerated(plain)
    (x,) = inputs()
    for scale in range(2 * MOST):
        assert_close(fast(x, scale=scale), plain(x, scale=scale))
    assert sum(map(len, fast._livella_plans.by_form.values())) == MOST
    assert_same(plain, fast, x)


def of_many(self, xs):
    previous = [xs] if isinstance(xs, Tensor) else xs
    return self.act(self.bn(torch.cat(previous)))


def test_a_tensor_or_a_list_of_them():
    plain = net(of_many)
    fast = accelerated(plain)
    x, other = inputs((4, 3, 5, 5), (2, 3, 5, 5))
    for argument in (x, [x], [x, other], (x, other)):
        assert_same(plain, fast, argument)
    assert len(fast._livella_plans.by_form) == 4
    assert all(plan.run for plans in fast._livella_plans.by_form.values() for plan in plans)


class Labelled(Tensor):
    pass


def of_labelled(self, x):
    return self.bn(x) if isinstance(x, Labelled) else self.act(self.bn(x))


def test_other_arguments_run_as_written():
    plain = net(of_labelled)
    fast = accelerated(plain)
    (x,) = inputs()
    assert shown_as_fused(fast) == {"": "bn + relu"}
    for argument in (x, x.as_subclass(Labelled)):
        assert_close(fast(argument), plain(argument))

    taking = net(lambda self, x, options: self.act(self.bn(x)) * options["scale"])
    assert_close(accelerated(taking)(x, {"scale": 2}), taking(x, {"scale": 2}))


def same_object(self, x, y):
    return self.act(self.bn(x)) if x is y else self.bn(x)


def test_one_tensor_given_twice():
    plain = net(same_object)
    fast = accelerated(plain)
    (x,) = inputs()
    assert_close(fast(x, x), plain(x, x))
    assert_close(fast(x, x.clone()), plain(x, x.clone()))


# Later changes


def by_mode(self, x):
    y = self.bn(x)
    return F.relu6(y) if self.training else F.leaky_relu(y)


def test_each_mode_has_its_own():
    plain = net(by_mode)
    fast = accelerated(plain.eval())
    assert not fast.training
    assert shown_as_fused(fast) == {"": "bn + leaky_relu, bn + relu6"}
    assert_same(plain, fast)


def with_flag(self, x):
    y = self.bn(x)
    if self.flag:
        y = self.act(y)
    return y * self.scale * self.conv.padding[0]


class Flagged(Net):
    scale = 1
    forward = with_flag

    def __init__(self):
        super().__init__()
        self.flag = True


def _flag(model):
    model.flag = not model.flag


def _scale(model):
    model.scale = 3


def _scale_of_the_class(model):
    Flagged.scale = 5


def _attribute_of_a_child(model):
    model.conv.padding = (2, 2)


def _activation(model):
    model.act = nn.Tanh()


def _slope(model):
    model.act.negative_slope = 0.5


def _norm(model):
    model.bn = nn.Identity()


def _hook_on_the_norm(model):
    model.bn.register_forward_hook(lambda module, args, y: 2 * y)


def _hook_before_the_activation(model):
    model.act.register_forward_pre_hook(lambda module, args: (3 * args[0],))


def _backward_hook(model):
    model.bn.register_full_backward_hook(lambda module, gin, gout: (gout[0] * 1,))


def _forward_of_the_norm(model):
    model.bn.forward = lambda x: x + 1


def _forward_of_the_activation(model):
    model.act.forward = lambda x: x - 1


def _forward_of_the_class(model):
    Flagged.forward = lambda self, x: self.bn(x) - 7


def _forward_of_the_model(model):
    model.forward = lambda x: x - 5


def _class_of_the_activation(model):
    model.act.__class__ = nn.GELU
    model.act.approximate = "none"


@pytest.mark.parametrize(
    "change",
    [
        _flag,
        _scale,
        _scale_of_the_class,
        _attribute_of_a_child,
        _activation,
        _slope,
        _norm,
        _hook_on_the_norm,
        _hook_before_the_activation,
        _backward_hook,
        _forward_of_the_norm,
        _forward_of_the_activation,
        _forward_of_the_class,
        _forward_of_the_model,
        _class_of_the_activation,
    ],
)
def test_a_change_made_later_counts(change, monkeypatch):
    monkeypatch.setattr(Flagged, "scale", 1)
    monkeypatch.setattr(Flagged, "forward", with_flag)
    torch.manual_seed(0)
    plain = Flagged().double()
    plain.act = nn.LeakyReLU()
    fast = accelerated(plain)
    assert shown_as_fused(fast) == {"": "bn + leaky_relu"}
    assert_same(plain, fast)
    unchanged = copy.deepcopy(plain)(*inputs())
    for model in (plain, fast):
        change(model)
    if change is not _backward_hook:
        assert not torch.equal(copy.deepcopy(plain)(*inputs()), unchanged)
    assert_same(plain, fast)


def test_a_change_taken_back_is_fused_again():
    fast = accelerate(net(fused))
    (plan,) = fast._livella_plans.by_form[(("tensor",), ())]
    assert plan.holds()
    handle = fast.bn.register_forward_hook(lambda *_: None)
    assert not plan.holds()
    for _ in range(3):
        fast(*inputs())
    handle.remove()
    assert plan.holds()
    assert len(fast._livella_plans.by_form[(("tensor",), ())]) == 2


def test_hooks_on_a_followed_sequence():
    plain = net(fused_sequence, path=CHAIN)
    for when in ("after", "before"):
        fast = accelerated(plain)
        assert shown_as_fused(fast) == (
            {"": "path.1.1 + residual + relu"} if when == "after" else {}
        )
        for model in (plain, fast):
            model.path[1].register_forward_hook(lambda module, args, y: 2 * y)
        assert_same(plain, fast)


def test_hooks_for_all_modules_see_every_call():
    fast, seen = accelerate(net(fused)), []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, *_: seen.append(type(module).__name__)
    )
    try:
        fast(*inputs())
    finally:
        handle.remove()
    assert seen == ["Conv2d", "BatchNorm2d", "ReLU", "Made"]


def iterates(self, x):
    for layer in self.layers:
        x = layer(x)
    return F.relu(self.bn(x))


@pytest.mark.parametrize("kind", [nn.Sequential, lambda *layers: nn.ModuleList(layers)])
def test_layers_added_later_are_called(kind):
    plain = net(iterates, layers=kind(nn.Conv2d(3, 3, 1)))
    fast = accelerated(plain)
    assert shown_as_fused(fast) == {"": "bn + relu"}
    for model in (plain, fast):
        model.layers.append(nn.Tanh().double())
    assert_same(plain, fast)
    for model in (plain, fast):
        del model.layers[0]
    assert_same(plain, fast)


def test_a_sequence_can_be_sliced_and_changed():
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4), nn.ReLU6()
    ).double()
    fast = accelerated(plain)
    assert_same(plain[:2], fast[:2])
    part = fast[1:4]
    assert_close(part(*inputs((2, 4, 3, 3))), plain[1:4](*inputs((2, 4, 3, 3))))
    assert shown_as_fused(part) == {"": "1 + relu"}
    for model in (plain, fast):
        model.insert(2, nn.BatchNorm2d(4).double())
        del model[-1]
    assert_same(plain, fast)


# The values added


def adds_given(self, x, residual):
    return self.act(self.bn(x) + residual)


@pytest.mark.parametrize(
    "residual",
    [
        torch.ones(3, 1, 1, dtype=torch.float64),
        torch.ones(2, 4, 3, 5, 5, dtype=torch.float64),
        torch.ones(4, 3, 5, 5, dtype=torch.float32),
        torch.ones(4, 3, 5, 5, dtype=torch.int64),
        torch.ones((), dtype=torch.float64),
    ],
)
def test_a_residual_of_another_shape_or_dtype(residual):
    plain = net(adds_given)
    fast = accelerated(plain)
    assert shown_as_fused(fast) == {"": "bn + residual + relu"}
    (x,) = inputs()
    for training in (True, False):
        got, wanted = fast.train(training)(x, residual), plain.train(training)(x, residual)
        assert got.dtype == wanted.dtype
        assert_close(got, wanted)


def adds_a_size(self, x):
    return self.act(self.bn(x) + x.size(0))


def test_a_number_may_be_added():
    plain = net(adds_a_size)
    assert_same(plain, accelerated(plain))


@pytest.mark.parametrize("forward", [fused_sum, fused_sum_in_place, fused_two_norms])
def test_under_autocast(forward):
    plain = net(forward, bn2=nn.BatchNorm2d(3)).float()
    fast = accelerated(plain)
    x = inputs()[0].float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, wanted = fast(x), plain(x)
    assert got.dtype == wanted.dtype
    assert_close(got, wanted, rtol=2e-2, atol=2e-2)
