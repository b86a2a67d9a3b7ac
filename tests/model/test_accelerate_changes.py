"""What is given at a call or changed after accelerating: results are those of the original."""

import copy
import sys
from collections import OrderedDict

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


def sees_the_sign(self, x, c):
    y = self.act(self.bn(x))
    return y * 2 if str(c).startswith("-") else y


def test_zero_and_minus_zero_are_two_arguments():
    plain = net(sees_the_sign)
    fast = accelerated(plain)
    for number in (0.0, -0.0, 0, 1, 1.0, True, -0.0):
        assert_same(plain, fast, *inputs(), c=number)


def flattens(self, x):
    y = self.act(self.bn(x))
    n, c, h, w = y.shape
    return y.view(n, c * h * w)


def test_a_shape_may_be_unpacked():
    plain = net(flattens)
    fast = accelerated(plain)
    assert_same(plain, fast)
    assert shown_as_fused(fast) == {"": "bn + relu"}


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


def test_a_layer_added_to_an_empty_list_is_called():
    plain = net(iterates, layers=nn.ModuleList())
    fast = accelerated(plain)
    assert shown_as_fused(fast) == {"": "bn + relu"}
    for model in (plain, fast):
        model.layers.append(nn.Tanh())
    assert_same(plain, fast)
    assert shown_as_fused(fast) == {"": "bn + relu"}


def test_an_activation_put_back_comes_last():
    plain = nn.Sequential(OrderedDict(bn=nn.BatchNorm2d(3), act=nn.ReLU(), last=nn.Softplus()))
    fast = accelerated(plain.double())
    for model in (plain, fast):
        act = model.act
        del model.act
        model.act = act
    assert shown_as_fused(fast) == {"": "bn + relu"}
    assert_same(plain, fast)


def scales_if_there_is_one(self, x):
    y = self.act(self.bn(x))
    if self.weight is not None:
        y = y * self.weight
    if self.total is not None:
        y = y + self.total
    return y


class Scaled(Net):
    forward = scales_if_there_is_one

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(3.0))
        self.register_buffer("total", torch.tensor(2.0))


@pytest.mark.parametrize("name", ["weight", "total"])
def test_a_tensor_taken_away_and_put_back(name):
    plain = Scaled().double()
    fast = accelerated(plain)
    tensors = {model: getattr(model, name) for model in (plain, fast)}
    for absent in (True, False):
        for model in (plain, fast):
            setattr(model, name, None if absent else tensors[model])
        assert_same(plain, fast)
    assert shown_as_fused(fast) == {"": "bn + relu"}


def calls_what_is_there(self, x):
    y = self.act(self.bn(x))
    return y if self.extra is None else self.extra(y)


def test_an_attribute_of_the_class_goes_before_a_child():
    plain = net(calls_what_is_there)
    type(plain).extra = None
    plain.extra = nn.Tanh()
    assert plain.extra is None
    fast = accelerated(plain)
    assert shown_as_fused(fast) == {"": "bn + relu"}
    assert_same(plain, fast)


def helper(y):
    return y * 2


def sign(y):
    return y * 3


HERE = sys.modules[__name__]


class Base(Net):
    def outermost(self, y):
        return y * 5


class Helped(Base):
    def forward(self, x):
        y = self.outermost(self.method(self.act(self.bn(x))))
        return sign(self.static(helper(y))) * max(2, 1)

    def method(self, y):
        return y + self.offset

    @staticmethod
    def static(y):
        return y * 7

    @property
    def offset(self):
        return 11

    def outermost(self, y):
        return super().outermost(y) + 13


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        (HERE, "helper", lambda y: y - 1),
        (HERE, "sign", torch.sign),
        (HERE, "max", min),
        (Helped, "method", lambda self, y: y - 2),
        (Helped, "static", staticmethod(lambda y: y - 3)),
        (Helped, "offset", 17),
        (Helped, "outermost", lambda self, y: y - 4),
        (Base, "outermost", lambda self, y: y - 5),
    ],
)
def test_a_function_defined_again_counts(owner, name, value, monkeypatch):
    torch.manual_seed(0)
    plain = Helped().double()
    fast = accelerated(plain)
    assert shown_as_fused(fast) == {"": "bn + relu"}
    assert_same(plain, fast)
    (plan,) = [p for plans in fast._livella_plans.by_form.values() for p in plans]
    monkeypatch.setattr(owner, name, value, raising=name != "max")
    assert not plan.holds()
    assert_same(plain, fast)
    monkeypatch.undo()
    assert plan.holds()
    assert_same(plain, fast)


def test_a_method_of_the_object_counts():
    plain = Helped().double()
    fast = accelerated(plain)
    for model in (plain, fast):
        model.method = lambda y: y - 6
    assert_same(plain, fast)


def test_an_inner_function_defined_again_counts():
    inner = torch.relu
    plain = net(lambda self, x: inner(self.act(self.bn(x))))
    fast = accelerated(plain)
    assert shown_as_fused(fast) == {"": "bn + relu"}
    assert_same(plain, fast)

    inner = torch.tanh
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
