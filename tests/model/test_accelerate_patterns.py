"""Which calls are fused, and which would come out wrong if they were."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  the usual name
from torch import nn

import livella.nn
from tests.model.small import Net, accelerated, assert_same, inputs, net
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
    return F.hardtanh(y, 0.0, 6.0, inplace=True)


def fused_sum_by_method(self, x):
    return F.silu(self.bn(self.conv(x)).add_(x))


def fused_two_norms(self, x):
    return F.leaky_relu_(self.bn(self.conv(x)) + self.bn2(x))


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
        (fused_sum_by_method, {}, "bn + residual"),
        (fused_two_norms, {"bn2": nn.BatchNorm2d(3)}, "bn2 + residual + leaky_relu"),
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


def reads_the_averages_before(self, x):
    mean = self.bn.running_mean
    y = self.bn(self.conv(x))
    scale = mean.clone()
    return self.act(y + x * scale.view(1, -1, 1, 1))


def changes_the_input_between_by_a_number(self, x):
    z = x * 1
    y = self.bn(z)
    return self.act(y + F.elu(z, inplace=1))


class Reader(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.held = [norm]

    def forward(self, x):
        return x * self.held[0].running_mean.sum()


def calls_one_that_holds_the_norm_between(self, x):
    y = self.bn(self.conv(x))
    return self.act(y + self.reader(x))


def calls_a_norm_with_its_averages_between(self, x):
    y = self.bn(self.conv(x))
    return self.act(y + self.sibling(x).square())


def norms_of_one_average():
    bn, sibling = (nn.BatchNorm2d(3, dtype=torch.float64) for _ in range(2))
    sibling.running_mean = bn.running_mean
    return {"bn": bn, "sibling": sibling}


def norm_and_reader():
    bn = nn.BatchNorm2d(3)
    return {"bn": bn, "reader": Reader(bn)}


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
        (reads_the_averages_before, {}),
        (changes_the_input_between_by_a_number, {}),
        (calls_one_that_holds_the_norm_between, norm_and_reader()),
        (calls_a_norm_with_its_averages_between, norms_of_one_average()),
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


def takes_a_list(self, tensors):
    return self.act(self.bn(self.conv(torch.cat(tensors, 0))))


def test_a_sole_argument_may_be_a_list():
    plain = net(takes_a_list)
    fast = accelerated(plain)
    assert shown_as_fused(fast) == {"": "bn + relu"}
    for number in (2, 1, 3):
        assert_same(plain, fast, inputs(*[(4, 3, 5, 5)] * number))


def changes_the_sum_later(self, x):
    y = self.act(self.bn(self.conv(x)) + x)
    y += x
    return y


def changes_the_residual_later(self, x):
    z = self.conv(x)
    y = self.act(self.bn(x) + z)
    z.mul_(0.5)
    return y + z


@pytest.mark.parametrize("forward", [changes_the_sum_later, changes_the_residual_later])
@pytest.mark.parametrize("act", [nn.LeakyReLU(), nn.ReLU6(), nn.SiLU(), nn.Hardswish()])
def test_what_torch_does_not_keep_may_be_changed_later(forward, act):
    plain = net(forward, act=act)
    assert_same(plain, accelerated(plain))


def test_a_hook_on_the_layer_before_may_keep_and_change_its_output():
    kept = []

    def changes_what_was_kept(_, args):
        kept.pop().mul_(2)

    def forward(self, x):
        y = self.bn(self.conv(x))
        return self.act(y + self.pool(x))

    plain = net(forward, pool=nn.AvgPool2d(1))
    fast = accelerated(plain)
    for model in (plain, fast):
        model.conv.register_forward_hook(lambda _, args, output: kept.append(output.data))
        model.pool.register_forward_pre_hook(changes_what_was_kept)
    assert_same(plain, fast)


@pytest.mark.parametrize("last", [False, True])
def test_a_sum_lies_in_memory_as_its_first_part_does(last):
    def forward(self, x, y):
        return y + self.bn(x)

    plain = net(forward)
    fast = accelerated(plain)
    assert shown_as_fused(fast)
    x = torch.randn(4, 3, 5, 2, dtype=torch.float64)
    pair = x, x.contiguous(memory_format=torch.channels_last)
    pair = pair[::-1] if last else pair
    assert fast(*pair).stride() == plain(*pair).stride()


def shares_the_norm(self, x):
    return self.act(self.bn(self.act(self.bn(x)) - 1))


def test_a_shared_norm_stays_one_layer():
    plain = net(shares_the_norm)
    plain.again = plain.bn
    fast = accelerated(plain)
    assert fast.again is fast.bn
    assert shown_as_fused(fast) == {"": "bn + relu"}
    assert_same(plain, fast)
