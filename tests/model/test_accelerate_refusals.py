"""Forwards that a trace does not show whole: not fused, and following them has no effect."""

import copy
import logging
import random
import types
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from livella.model.accelerate import accelerate
from tests.model.small import Net, accelerated, assert_same, history, inputs, net
from tests.model.zoo import shown_as_fused

FACTOR = 2.0
SEEN, LAST, CALLS = [], None, [0]


# Forwards that a trace does not show whole


def draws_from_python(self, x):
    y = self.bn(x)
    return self.act(y) if random.random() < 0.5 else y


def draws_from_numpy(self, x):
    y = self.bn(x)
    return self.act(y) if np.random.rand() < 0.5 else y


def draws_from_torch(self, x):
    y = self.bn(x)
    return self.act(y) if torch.rand(1).item() < 0.5 else y


def counts(self, x):
    self.count += 1
    return self.act(self.bn(x) * self.count)


def collects(self, x):
    self.seen.append(0)
    return self.act(self.bn(x) * len(self.seen))


def collects_outside(self, x):
    SEEN.append(0)
    return self.act(self.bn(x))


def sets_a_global(self, x):
    global LAST
    LAST = x
    return self.act(self.bn(x))


def tags_its_argument(self, x):
    x.tag = 1
    return self.act(self.bn(x))


def scales_by_a_global(self, x):
    return self.act(self.bn(x)) * FACTOR


def prints(self, x):
    print("here")
    return self.act(self.bn(x))


def without_gradients(self, x):
    with torch.no_grad():
        y = self.act(self.bn(self.conv(x)))
    return y + x


@torch.no_grad()
def decorated_without_gradients(self, x):
    return self.act(self.bn(self.conv(x)))


def without_autocast(self, x):
    with torch.autocast("cpu", enabled=False):
        return self.act(self.bn(self.conv(x)))


def checkpointed(self, x):
    return checkpoint(lambda x: self.act(self.bn(self.conv(x))), x, use_reentrant=False)


def catches(self, x):
    try:
        return self.act(self.bn(x))
    except ValueError:
        return x


def asks_for_gradient_mode(self, x):
    y = self.bn(x)
    return self.act(y) if torch.is_grad_enabled() else y


def asks_for_a_shape(self, x):
    y = self.bn(x)
    return self.act(y) if x.shape[0] > 4 else y


def asks_for_a_value(self, x):
    y = self.bn(x)
    return self.act(y) if x.sum() > 0 else y


def asks_for_a_computed_type(self, x):
    y = self.side(self.bn(x))
    return y[0] if isinstance(y, tuple) else self.act(y)


def asks_for_a_computed_none(self, x):
    y = self.maybe(x)
    return self.act(self.bn(x)) if y is None else self.bn(x)


def asks_for_an_exact_type(self, x):
    y = self.bn(x)
    return self.act(y) if type(x) == Tensor else y  # noqa: E721


def asks_for_a_gradient_function(self, x):
    y = self.bn(x)
    return self.act(y) if x.grad_fn is None else y


def makes_tensors(self, x):
    return self.act(self.bn(x)) * torch.arange(5.0)


def changes_its_buffer(self, x):
    self.total.add_(1)
    return self.act(self.bn(x)) * self.total


def gives_an_ordered_dict(self, x):
    return OrderedDict(out=self.act(self.bn(x)))


def calls_forward_directly(self, x):
    return self.act.forward(self.bn(x))


class Config:
    flag = True


SETTINGS = types.SimpleNamespace(flag=True)


def reads_a_class(self, x):
    return self.act(self.bn(x)) if Config.flag else x


def reads_a_namespace(self, x):
    return self.act(self.bn(x)) if SETTINGS.flag else x


def remembers(self, x, memory={}):  # noqa: B006
    memory["x"] = x
    return self.act(self.bn(x))


def looks_up_a_dtype(self, x):
    y = self.bn(x)
    return self.act(y) if x.dtype in {torch.float16, torch.float64} else y


def looks_up_a_size(self, x):
    y = self.act(self.bn(x))
    return y * 2 if x.shape[-1] in self.sizes else y


def looks_up_a_factor(self, x):
    return self.act(self.bn(x)) * {torch.float64: 3.0}.get(x.dtype, 1.0)


def looks_up_a_pair(self, x):
    y = self.bn(x)
    return self.act(y) if (x.dtype, x.ndim) in {(torch.float64, 4)} else y


def counts_sizes(self, x):
    return self.act(self.bn(x)) * len({x.shape[2], x.shape[3]})


def asks_for_text(self, x):
    return self.act(self.bn(x)) if "float64" in str(x.dtype) else x


def formats(self, x):
    return self.act(self.bn(x)) if f"{x.ndim}" == "4" else x


def asks_for_representation(self, x):
    return self.act(self.bn(x)) if f"{x.dtype!r}" == "torch.float64" else x


def looks_up_a_head(self, x):
    y, head = self.act(self.bn(x)), str(x.shape[1])
    return self.heads[head](y) if head in self.heads else y


def names_its_result(self, x):
    return {f"out_{x.shape[0]}": self.act(self.bn(x))}


def matches_a_sequence(self, x):
    y = self.bn(x)
    match x.shape:
        case [_, _, _, _]:
            return self.act(y)
    return y


def matches_a_class(self, x):
    y = self.bn(x)
    match x.shape:
        case torch.Size():
            return self.act(y)
    return y


def compares_layers(self, x):
    y = self.bn(x)
    return self.act(y) if self.act == self.same else y


def looks_up_a_layer(self, x):
    y = self.bn(x)
    return self.act(y) if self.act in {self.same} else y


def may_have_more(self, x):
    return self.act(self.bn(x)) * getattr(self, "extra", 1.0)


class Scale:
    scale = 2.0
    history: list = []  # noqa: RUF012

    @classmethod
    def get(cls):
        return cls.scale


def calls_a_classmethod(self, x):
    return self.act(self.bn(x)) * Scale.get()


def reads_a_class_it_has(self, x):
    return self.act(self.bn(x)) * self.settings.scale


def reads_its_class(self, x):
    return self.act(self.bn(x)) * self.__class__.factor


def reads_its_class_by_name(self, x):
    return self.act(self.bn(x)) * getattr(self, "__class__").factor  # noqa: B009


def changes_its_class(self, x):
    self.__class__.history.append(1)
    return self.act(self.bn(x))


def passes_a_class(self, x):
    return scaled(self.act(self.bn(x)), Scale)


def scaled(y, settings):
    return y * settings.scale


def reads_a_class_by_default(self, x, settings=Scale):
    return self.act(self.bn(x)) * settings.scale


def closing_over(settings):
    def reads_a_class_around_it(self, x):
        return self.act(self.bn(x)) * settings.scale

    return reads_a_class_around_it


def counted(x, calls=CALLS):
    calls[0] += 1
    return x * calls[0]


def calls_a_function_that_remembers(self, x):
    return counted(self.act(self.bn(x)))


def calls_a_method_that_remembers(self, x):
    return self.remember(self.act(self.bn(x)))


def calls_an_attribute_that_remembers(self, x):
    return self.counted(self.act(self.bn(x)))


is_open_to_gradients = torch.is_grad_enabled


def asks_for_gradient_mode_by_another_name(self, x):
    y = self.act(self.bn(x))
    return y * 2 if is_open_to_gradients() else y


def asks_for_gradient_mode_by_an_attribute(self, x):
    y = self.act(self.bn(x))
    return y * 2 if self.asks() else y


def asks_whether_it_is_deterministic(self, x):
    y = self.act(self.bn(x))
    return y * 2 if torch.are_deterministic_algorithms_enabled() else y


def asks_for_a_flag_of_a_backend(self, x):
    y = self.act(self.bn(x))
    return y * 2 if torch.backends.cudnn.benchmark else y


class Doubling(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, dy):
        return 3 * dy


def has_its_own_gradient(self, x):
    return self.act(self.bn(Doubling.apply(x)))


class Nothing(nn.Module):
    def forward(self, x):
        return None


class Pair(nn.Module):
    def forward(self, x):
        return x, x


class Counting(Net):
    def __init__(self):
        super().__init__()
        self.count, self.seen = 0, []
        self.register_buffer("total", torch.zeros(()))
        self.side, self.maybe = Pair(), Nothing()
        self.same, self.heads = self.act, nn.ModuleDict({"3": nn.Tanh()})
        self.settings, self.counted, self.asks = Scale, counted, torch.is_grad_enabled

    sizes, factor = frozenset({5, 6}), 2.0
    history = Scale.history

    def remember(self, y, calls=CALLS):
        return counted(y, calls)


REFUSED = {
    draws_from_python: "reads random.random, a variable from outside",
    draws_from_numpy: "reads np.random.rand, a variable from outside",
    draws_from_torch: "computes aten.rand.default",
    counts: "counts stores where others can see it",
    collects: "reads seen, a list",
    collects_outside: "reads SEEN, a variable from outside",
    sets_a_global: "stores where others can see it",
    tags_its_argument: "stores where others can see it",
    scales_by_a_global: "reads FACTOR, a variable from outside",
    prints: "prints calls print()",
    without_gradients: "enters a context",
    decorated_without_gradients: "torch.utils._contextlib changes how operations run",
    without_autocast: "enters a context",
    checkpointed: "changes how operations run",
    catches: "catches exceptions",
    asks_for_gradient_mode: "the surroundings: is_grad_enabled",
    asks_for_a_shape: "control flow",
    asks_for_a_value: "control flow",
    asks_for_a_computed_type: "asks for the type of a computed value",
    asks_for_a_computed_none: "asks whether a computed value is None",
    asks_for_an_exact_type: "calls type()",
    asks_for_a_gradient_function: "reads .grad_fn of a value",
    makes_tensors: "computes aten.arange",
    reads_a_class: "reads Config.flag, a variable from outside",
    reads_a_namespace: "reads SETTINGS, a variable from outside",
    remembers: "has a dict as a default",
    has_its_own_gradient: "torch.autograd.function changes how operations run",
    **dict.fromkeys(
        (
            looks_up_a_dtype,
            looks_up_a_size,
            looks_up_a_factor,
            looks_up_a_pair,
            counts_sizes,
            asks_for_text,
            formats,
            asks_for_representation,
            looks_up_a_head,
            names_its_result,
        ),
        "asks for more of a computed value",
    ),
    matches_a_sequence: "matches patterns",
    matches_a_class: "matches patterns",
    compares_layers: "compares a module",
    looks_up_a_layer: "compares a module",
    may_have_more: "reads extra, which it does not have",
    calls_a_classmethod: "get is given a class",
    reads_a_class_it_has: "reads settings, a type",
    reads_its_class: "reads __class__",
    reads_its_class_by_name: "reads __class__",
    changes_its_class: "reads __class__",
    passes_a_class: "scaled is given a class",
    reads_a_class_by_default: "is given a class",
    closing_over(Scale): "reads settings.scale, a variable from outside",
    calls_a_function_that_remembers: "counted has a list as a default",
    calls_a_method_that_remembers: "remember has a list as a default",
    calls_an_attribute_that_remembers: "counted has a list as a default",
    asks_for_gradient_mode_by_another_name: "the surroundings: is_grad_enabled",
    asks_for_gradient_mode_by_an_attribute: "reads asks, a builtin",
    asks_whether_it_is_deterministic: "the surroundings: are_deterministic",
    asks_for_a_flag_of_a_backend: "the surroundings: backends",
    gives_an_ordered_dict: "computes with a OrderedDict",
}


def surroundings():
    return (
        random.getstate(),
        np.random.get_state()[1].tobytes(),
        torch.get_rng_state().tolist(),
        list(SEEN),
        (list(Scale.history), list(CALLS)),
        LAST,
    )


@pytest.mark.parametrize("forward", REFUSED)
def test_a_forward_that_cannot_be_followed_runs_as_written(forward, caplog, capsys):
    torch.manual_seed(0)
    plain = type("Made", (Counting,), {"forward": forward})().double()
    fast = copy.deepcopy(plain)
    before = surroundings()
    with caplog.at_level(logging.DEBUG, logger="livella"):
        accelerate(fast)
    # Following it has no effect on anything, and says why it went no further.
    assert surroundings() == before
    assert (fast.count, fast.seen, capsys.readouterr().out) == (0, [], "")
    assert vars(fast).keys() == vars(plain).keys()
    assert "Made runs as written: " in caplog.text
    assert REFUSED[forward] in caplog.text
    assert shown_as_fused(fast) == {}
    for seed in range(3):
        for model in (plain, fast):
            random.seed(seed)
            CALLS[0] = seed
            np.random.seed(seed)
            torch.manual_seed(seed)
            model.result = history(model, *inputs())
        assert_close(fast.result, plain.result, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("forward", [changes_its_buffer, calls_forward_directly])
def test_what_can_be_followed_is_not_run(forward):
    plain = type("Made", (Counting,), {"forward": forward})().double()
    fast = accelerated(plain)
    assert_close(dict(fast.state_dict()), dict(plain.state_dict()), rtol=0, atol=0)
    assert fast.bn.num_batches_tracked == 0
    assert_same(plain, fast)


def changes_its_list(self, xs):
    if isinstance(xs, list):
        xs.append(xs[0])
        return self.act(self.bn(torch.cat(xs)))
    return self.act(self.bn(xs))


def test_a_list_that_is_changed_is_changed():
    plain = net(changes_its_list)
    fast = accelerated(plain)
    assert shown_as_fused(fast) == {"": "bn + relu"}
    for model in (plain, fast):
        xs = inputs()
        model(xs)
        assert len(xs) == 2
