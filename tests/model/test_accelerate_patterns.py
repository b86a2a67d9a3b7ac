"""Which calls are fused, and which would come out wrong if they were."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  the usual name
from torch import nn

import livella.nn
from tests.model.small import Net, accelerated, assert_same, net
from tests.model.zoo import shown_as_fused

# Patterns, and their limits


def fused(self, x):
    return self.act(self.bn(self.conv(x)))


def fused_method(self, x):
    return self.bn(self.conv(x)).relu_()


def fused_sum(self, x):
    return self.act(x + self.bn(self.conv(x)))


def fused_plain_sum(self, x):
    return torch.add(self.bn(self.conv(x)), x)


def fused_sum_in_place(self, x):
    y = self.bn(self.conv(x))
    y += x
    return F.hardtanh(y, 0.0, 6.0)


def fused_sum_by_method(self, x):
    return F.silu(self.bn(self.conv(x)).add_(x))


def fused_two_norms(self, x):
    return F.hardswish(self.bn(self.conv(x)) + self.bn2(x))


def fused_through_identity(self, x):
    return self.act(self.drop(self.bn(x)))


def fused_sequence(self, x):
    return self.act(self.path(x) + x)


def fused_method_of_its_own(self, x):
    return self.finish(self.bn(x))


Net.finish = lambda self, x: self.act(x)

CHAIN = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))


@pytest.mark.parametrize(
    ("forward", "parts", "expected"),
    [
        (fused, {}, "bn + relu"),
        (fused, {"act": nn.LeakyReLU()}, "bn + leaky_relu"),
        (fused, {"act": nn.Hardtanh(0, 6)}, "bn + relu6"),
        (fused, {"act": nn.SiLU(inplace=True)}, "bn + silu"),
        (fused, {"act": nn.Hardswish()}, "bn + hardswish"),
        (fused_method, {}, "bn + relu"),
        (fused_sum, {}, "bn + residual + relu"),
        (fused_plain_sum, {}, "bn + residual"),
        (fused_sum_in_place, {}, "bn + residual + relu6"),
        (fused_sum_by_method, {}, "bn + residual + silu"),
        (fused_two_norms, {"bn2": nn.BatchNorm2d(3)}, "bn2 + residual + hardswish"),
        (fused_through_identity, {"drop": nn.Identity()}, "bn + relu"),
        (fused_sequence, {"path": CHAIN}, "path.1.1 + residual + relu"),
        (fused_method_of_its_own, {}, "bn + relu"),
    ],
)
def test_what_is_fused(forward, parts, expected):
    plain = net(forward, **parts)
    fast = accelerated(plain)
    assert shown_as_fused(fast) == {"": expected}
    assert_same(plain, fast)


def reads_it_twice(self, x):
    y = self.bn(x)
    return self.act(y) + y


def returns_it_too(self, x):
    y = self.bn(x)
    return self.act(y), y


def adds_it_to_itself(self, x):
    y = self.bn(x)
    return self.act(y + y)


def adds_with_a_factor(self, x):
    return torch.add(self.bn(x), x, alpha=2)


def adds_into_the_residual(self, x):
    x += self.bn(self.conv(x))
    return self.act(x)


def adds_into_the_residual_by_method(self, x):
    return self.act(x.add_(self.bn(self.conv(x))))


def activates_in_place_what_others_read(self, x):
    y = self.bn(x)
    z = y.view(-1)
    return torch.relu_(y), z


def changes_the_input_between(self, x):
    y = self.bn(x)
    x.mul_(2)
    return self.act(y + x)


def changes_the_input_between_by_an_operator(self, x):
    z = x * 1
    y = self.bn(z)
    z *= 2
    return self.act(y + z)


def changes_a_new_input_between(self, x):
    z = self.conv(x)
    y = self.bn(z)
    z.mul_(2)
    return self.act(y + z)


def changes_the_input_between_by_a_layer(self, x):
    y = self.bn(x)
    return self.act(y + self.side(x))


def changes_an_alias_of_the_input_between(self, x):
    z = self.alias(x)
    y = self.bn(z)
    x.mul_(2)
    return self.act(y + x)


def changes_the_input_between_by_an_operator_by_name(self, x):
    z = x * 1
    y = self.bn(z)
    torch.ops.aten.mul_.Scalar(z, 2)
    return self.act(y + z)


def calls_the_norm_between(self, x):
    y = self.bn(self.conv(x))
    return self.act(y + self.bn(x + 1).square())


def reads_the_averages_between(self, x):
    y = self.bn(self.conv(x))
    scale = self.bn.running_var.sum() * 1
    return self.act(y + x * scale)


def passes_more(self, x):
    return self.act(self.bn(x, mask=x[:, 0] > 0) + x)


class Opaque(nn.Module):
    def forward(self, x):
        return F.relu_(x).square()


@pytest.mark.parametrize(
    ("forward", "parts"),
    [
        (reads_it_twice, {}),
        (returns_it_too, {}),
        (adds_it_to_itself, {}),
        (adds_with_a_factor, {}),
        (adds_into_the_residual, {}),
        (adds_into_the_residual_by_method, {}),
        (activates_in_place_what_others_read, {}),
        (changes_the_input_between, {}),
        (changes_the_input_between_by_an_operator, {}),
        (changes_the_input_between_by_an_operator_by_name, {}),
        (changes_a_new_input_between, {}),
        (changes_the_input_between_by_a_layer, {"side": nn.ReLU(inplace=True)}),
        (changes_the_input_between_by_a_layer, {"side": nn.Sequential(nn.ReLU(inplace=True))}),
        (changes_the_input_between_by_a_layer, {"side": Opaque()}),
        (changes_an_alias_of_the_input_between, {"alias": nn.Flatten(3)}),
        (passes_more, {"bn": livella.nn.BatchNorm2d(3)}),
        (calls_the_norm_between, {}),
        (reads_the_averages_between, {}),
        (fused, {"act": nn.LeakyReLU(0.2)}),
        (fused, {"act": nn.Hardtanh()}),
        (fused, {"act": nn.GELU()}),
        (fused, {"act": nn.PReLU()}),
    ],
)
def test_what_is_not_fused(forward, parts):
    plain = net(forward, **parts)
    fast = accelerated(plain)
    assert shown_as_fused(fast) == {}
    with torch.no_grad():  # some change in place what a backward pass would need
        assert_same(plain, fast)


def shares_the_norm(self, x):
    return self.act(self.bn(self.act(self.bn(x)) - 1))


def test_a_shared_norm_stays_one_layer():
    plain = net(shares_the_norm)
    plain.again = plain.bn
    fast = accelerated(plain)
    assert fast.again is fast.bn
    assert shown_as_fused(fast) == {"": "bn + relu"}
    assert_same(plain, fast)
