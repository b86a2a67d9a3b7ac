"""Conversion between kinds: there and back, what lives on, and what a failure leaves."""

import copy
import pickle
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune

import livella
from livella.model.joint import Joint
from livella.model.kinds import KINDS

QUIET = pytest.mark.filterwarnings("ignore:convert.*:UserWarning")
pytestmark = QUIET


def convert(model, to, **options):
    return livella.convert(model, to, **{"progress": False, **options})


def network(kind="torch"):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8, eps=1e-3, momentum=0.02), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
        )  # fmt: skip
        for layer in (model[1], model[4]):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
            layer.weight.data.uniform_(0.5, 2)
            layer.bias.data.normal_()
    if kind != "torch":
        convert(model, kind)
    return model.eval()


def images(n=64):
    return torch.randn(n, 3, 10, 10, generator=torch.Generator().manual_seed(1))


def whole(model):
    """All that a conversion could change."""
    return {
        **{f"tensor {name}": tensor.clone() for name, tensor in model.state_dict().items()},
        **{f"class {name}": type(module) for name, module in model.named_modules()},
        **{f"own {n}": sorted(vars(m)) for n, m in model.named_modules()},
        **{f"mode {n}": m.training for n, m in model.named_modules()},
        **{f"parameter {n}": id(p) for n, p in model.named_parameters()},
        **{f"hooks {n}": len(m._forward_pre_hooks) for n, m in model.named_modules()},
    }


def assert_same(before, model):
    after = whole(model)
    assert before.keys() == after.keys()
    for name, value in before.items():
        same = (
            torch.equal(value, after[name]) if isinstance(value, Tensor) else value == after[name]
        )
        assert same, name


# There and back


@pytest.mark.parametrize("there", KINDS)
@pytest.mark.parametrize("here", KINDS)
def test_there_and_back(here, there):
    model, x = network(here), images(8)
    before, wanted = model.state_dict(), model(x)
    before = {name: tensor.clone() for name, tensor in before.items()}
    convert(model, there)
    assert model(x).shape == wanted.shape
    convert(model, here)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(model(x), wanted)


def test_batch_norms_of_all_kinds_compute_the_same_in_evaluation():
    model, x = network(), images()
    wanted = model(x)
    for kind in ("batch", "ghost", "renorm", "sync", "torch_sync", "torch"):
        convert(model, kind)
        torch.testing.assert_close(model(x), wanted)


def test_settings_parameters_and_hooks_live_on():
    model = network().double()
    seen = []
    model[4].register_forward_hook(lambda *_: seen.append(1))
    model[4].mine = "kept"
    weight, layer = model[4].weight, model[4]
    convert(model, "group", num_groups=2)
    assert model[4] is layer
    assert type(layer) is nn.GroupNorm
    assert layer.weight is weight
    assert (layer.eps, layer.num_groups, layer.mine) == (1e-3, 2, "kept")
    model(images(2).double())
    assert seen == [1]
    convert(model, "ghost", ghost_size=4)
    assert (layer.momentum, layer.ghost_size, layer.weight.dtype) == (0.02, 4, torch.float64)
    assert layer.running_mean.dtype == torch.float64
    assert not layer.training


def test_a_shared_layer_stays_shared():
    norm = nn.BatchNorm1d(4)
    model = nn.Sequential(nn.Linear(4, 4), norm, nn.Linear(4, 4), norm)
    conversion = convert(model, "group")
    assert model[1] is model[3]
    assert list(conversion.layers) == ["1"]


def test_what_was_trained_meanwhile_is_kept_on_the_way_back():
    model = network()
    convert(model, "group")
    with torch.no_grad():
        model[1].weight.fill_(3)
    convert(model, "torch")
    assert model[1].weight.tolist() == [3] * 8


def test_gamma_and_beta_that_were_never_there_do_not_appear():
    model = nn.Sequential(nn.BatchNorm2d(4, affine=False), livella.nn.BatchNorm2d(4, bias=False))
    convert(model, "group")
    assert model[0].weight is None
    assert model[1].weight is not None
    assert model[1].bias is None
    assert model(images(2)[:, :1].expand(2, 4, 10, 10)).isfinite().all()


def test_groups_divide_the_channels():
    model = nn.Sequential(*(nn.BatchNorm1d(c) for c in (6, 7, 64, 96)))
    convert(model, "group")
    assert [layer.num_groups for layer in model] == [3, 1, 32, 32]


def test_switches_go_along_and_are_told_where_they_have_no_place():
    model = nn.Sequential(livella.nn.BatchNorm2d(4))
    livella.set_update_policy(model, "guarded")
    convert(model, "ghost")
    assert model[0].update_policy == "guarded"
    assert int(model[0].skipped_batches) == 0
    conversion = convert(model, "group")
    assert "skipped_batches" in conversion.dropped["0"]
    assert any(each.startswith("_switches") for each in conversion.dropped["0"])
    convert(model, "ghost")
    assert model[0].update_policy == "guarded"


def test_what_has_no_place_is_named():
    model = network()
    model[1].momentum = 0.3
    dropped = convert(model, "rms").dropped
    averages = {"running_mean", "running_var", "num_batches_tracked"}
    assert set(dropped["1"]) == {"bias", *averages, "momentum=0.3"}
    assert "no place for: 1: bias" in str(convert(network(), "rms"))


def test_copies_and_pickles_remember():
    model, x = network(), images(4)
    wanted = model(x)
    convert(model, "group")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        convert(other, "torch")
        assert torch.equal(other(x), wanted)


def test_moving_averages_begin_with_the_mean_square():
    model = network()
    mean, var = model[1].running_mean.clone(), model[1].running_var.clone()
    convert(model, "moving_average")
    torch.testing.assert_close(model[1].running_square, var + mean.square())


# What is left


class Mine(nn.BatchNorm2d):
    pass


def test_what_cannot_be_converted_is_left_and_named():
    own = nn.BatchNorm2d(4)
    own.forward = lambda x: x
    frozen = livella.freeze(nn.BatchNorm2d(4))
    fused = livella.nn.BatchNorm2d(4, activation="relu")
    rest = [Mine(4), own, frozen, fused, nn.LayerNorm(4), nn.LazyBatchNorm2d()]
    model = nn.Sequential(nn.BatchNorm2d(4), *rest)
    before = [type(each) for each in rest]
    with pytest.warns(UserWarning, match="left as they are: 1: a Mine, whose own code"):
        conversion = convert(model, "group")
    assert list(conversion.layers) == ["0"]
    assert list(conversion.left) == ["1", "2", "3", "4", "5", "6"]
    assert [type(each) for each in rest] == before
    reasons = list(conversion.left.values())
    for reason, words in zip(
        reasons,
        ["own code", "methods", "frozen", "'relu'", "other dimensions", "lazy"],
        strict=True,
    ):
        assert words in reason
    convert(model, "ghost", layers=["4"])
    assert model[4].activation == "relu"


def test_layers_already_of_the_kind_stay():
    model = network("group")
    before = whole(model)
    assert not convert(model, "group").layers
    assert_same(before, model)
    assert list(convert(model, "group", num_groups=2).layers) == ["1", "4"]


def test_an_accelerated_model_computes_the_same_as_a_plain_one():
    plain, fast = network(), livella.accelerate(network())
    x = images(4)
    fast(x)
    for kind in ("group", "batch"):
        convert(plain, kind)
        convert(fast, kind)
        torch.testing.assert_close(fast(x), plain(x))


# Optimizers


def test_an_optimizer_goes_on_where_parameters_live_on_and_is_told_where_not():
    model = network().train()
    groups = [
        {"params": [*model[0].parameters(), *model[1].parameters()], "lr": 0.1},
        {"params": [p for i in (3, 4, 8) for p in model[i].parameters()], "lr": 0.01},
    ]
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    model(images()).square().mean().backward()
    optimizer.step()
    gamma, beta = model[4].weight, model[4].bias
    momentum = optimizer.state[gamma]["momentum_buffer"].clone()
    before = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
    conversion = convert(model, "dynamic_tanh", optimizer=optimizer)
    assert list(conversion.new) == ["1.alpha", "4.alpha"]
    assert any(p is model[4].alpha for p in optimizer.param_groups[1]["params"])
    assert torch.equal(optimizer.state[gamma]["momentum_buffer"], momentum)
    second = convert(model, "rms", optimizer=optimizer)
    assert set(second.gone) == {"1.bias", "4.bias", "1.alpha", "4.alpha"}
    assert beta not in optimizer.state
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    second.revert()
    conversion.revert()
    assert [[id(p) for p in group["params"]] for group in optimizer.param_groups] == before
    assert torch.equal(optimizer.state[gamma]["momentum_buffer"], momentum)


def test_without_the_optimizer_it_is_told_what_is_gone():
    with pytest.warns(UserWarning, match=r"no longer parameters: 1\.bias, 4\.bias; pass opt"):
        convert(network(), "rms")


# Calibration


def test_calibration_brings_the_function_closer_and_reverts():
    model, x = network(), images(128)
    before, wanted = whole(model), model(x)
    copied = copy.deepcopy(model)
    convert(copied, "group")
    conversion = convert(model, "group", calibrate=list(x.split(32)))
    first, last = conversion.change
    assert last < first / 5
    found = float((model(x) - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum())
    assert found == pytest.approx(last, rel=1e-3)
    off = float((copied(x) - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum())
    assert off == pytest.approx(first, rel=1e-3)
    for each in conversion.layers.values():
        assert each.unexplained[1] <= each.unexplained[0]
    conversion.revert()
    assert_same(before, model)
    assert torch.equal(model(x), wanted)


def test_the_first_layer_is_the_least_squares_fit():
    model, x = network(), images(32)
    with torch.no_grad():
        y = model[:2](x).transpose(0, 1).flatten(1).double()
        h = nn.functional.group_norm(model[0](x), 4, eps=1e-5).transpose(0, 1).flatten(1).double()
    convert(model, "group", calibrate=[x])
    for channel in range(8):
        design = torch.stack([h[channel], torch.ones_like(h[channel])], 1)
        slope, intercept = torch.linalg.lstsq(design, y[channel]).solution
        assert float(model[1].weight[channel]) == pytest.approx(float(slope), abs=1e-4)
        assert float(model[1].bias[channel]) == pytest.approx(float(intercept), abs=1e-4)


def test_statistics_that_are_not_known_are_measured():
    model, x = network("group"), images(64)
    for layer in (model[1], model[4]):
        del layer._livella_formerly
    with pytest.raises(ValueError, match=r"layer '1' .GroupNorm.*say ndim=1, 2 or 3"):
        convert(model, "batch")
    with pytest.warns(UserWarning, match="no statistics of the data yet: 1, 4"):
        convert(copy.deepcopy(model), "batch", ndim=2)
    with torch.no_grad():
        h = model[0](x).transpose(0, 1).flatten(1)
    convert(model, "batch", calibrate=list(x.split(20)))
    assert type(model[1]) is livella.nn.BatchNorm2d
    torch.testing.assert_close(model[1].running_mean, h.mean(1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model[1].running_var, h.var(1), atol=1e-5, rtol=1e-5)


@given(st.integers(1, 30), st.integers(0, 2**31))
def test_joint_moments_of_any_parts_are_those_of_the_whole(cut, seed):
    g = torch.Generator().manual_seed(seed)
    x = 1e4 + torch.randn(31, 3, 2, generator=g, dtype=torch.float64)
    y = 2 * x + torch.randn(31, 3, 2, generator=g, dtype=torch.float64)
    one, parts = Joint.of(x, y), Joint.of(x[:cut], y[:cut]).merge(Joint.of(x[cut:], y[cut:]))
    torch.testing.assert_close(one.products, parts.products, rtol=1e-8, atol=1e-8)
    slope, intercept = parts.line()
    line = slope[:, None] * x.transpose(0, 1).flatten(1) + intercept[:, None]
    left = (y.transpose(0, 1).flatten(1) - line).square().sum()
    spread = (y - y.mean((0, 2), keepdim=True)).square().sum()
    assert parts.unexplained(slope, intercept) == pytest.approx(float(left / spread), rel=1e-4)


def test_a_channel_that_does_not_vary_gives_its_value():
    x, y = torch.zeros(4, 2, 3), torch.full((4, 2, 3), 5.0)
    slope, intercept = Joint.of(x, y).line()
    assert slope.tolist() == [0, 0]
    assert intercept.tolist() == [5, 5]
    assert Joint.of(x, y).unexplained(slope, intercept) == 0


# What goes wrong


def test_bad_requests():
    with pytest.raises(ValueError, match=r"expected a kind of torch.*got 'grup'"):
        convert(network(), "grup")
    with pytest.raises(ValueError, match=r"normalizations to convert, got Linear \(none in it\)"):
        convert(nn.Linear(2, 2), "group")
    with pytest.raises(TypeError, match="read once"):
        convert(network(), "group", calibrate=iter([images()]))
    for options, error, words in (
        ({"num_groups": 3}, ValueError, r"layer '1' \(BatchNorm2d\).*divisible"),
        ({"nonsense": 3}, TypeError, r"layer '1' \(BatchNorm2d\).*nonsense"),
    ):
        model = network()
        before = whole(model)
        with pytest.raises(error, match=words):
            convert(model, "group", **options)
        assert_same(before, model)


@pytest.mark.parametrize("bad", ["nan", "shape", "type", "raises", "interrupted", "empty"])
def test_a_failed_calibration_leaves_the_model_as_it_was(bad):
    model = network().train()
    before = whole(model)

    class Loader:
        reads = 0

        def __iter__(self):
            self.reads += 1
            if bad == "empty":
                return
            yield images(8)
            if self.reads < 4:
                return
            if bad in ("raises", "interrupted"):
                raise OSError if bad == "raises" else KeyboardInterrupt
            broken = {"nan": images(8) * float("nan"), "shape": images(8)[:, :2], "type": 5}
            yield broken[bad]

    wanted = {"raises": OSError, "interrupted": KeyboardInterrupt, "type": TypeError}
    with pytest.raises(wanted.get(bad, (ValueError, RuntimeError))):
        convert(model, "group", calibrate=Loader())
    assert_same(before, model)


def test_nan_in_calibration_names_the_layer():
    x = images(8)
    x[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"layer '1' \(GroupNorm\) met NaN"):
        convert(network(), "group", calibrate=[x])


# What happens to the model meanwhile


@pytest.mark.parametrize("back", ["convert", "revert"])
@pytest.mark.parametrize("kind", ["group", "none", "moving_average", "instance", "batch"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_change_of_dtype_meanwhile_reaches_what_lay_aside(dtype, kind, back):
    model, expected = network(), network().to(dtype)
    conversion = convert(model, kind)
    model.to(dtype)
    if back == "convert":
        convert(model, "torch")
    else:
        conversion.revert()
    x = images(4).to(dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert torch.equal(model(x), expected(x))
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
        assert model.state_dict()[name].dtype == value.dtype


def test_a_guarded_layer_that_lay_aside_keeps_its_precision():
    model = livella.set_update_policy(network("batch"), "guarded")
    mean = model[1].running_mean.clone()
    convert(model, "group")
    model.bfloat16()
    convert(model, "batch")
    assert model[1].running_mean.dtype == torch.float32
    assert model[1].weight.dtype == torch.bfloat16
    assert torch.equal(model[1].running_mean, mean)


def trained_as_group(optimizer=False):
    model = network()
    convert(model, "group")
    with torch.no_grad():
        model[3].weight.mul_(1.5)
    return model


@pytest.mark.filterwarnings("default")
def test_statistics_from_before_a_training_are_told_and_measured():
    with pytest.warns(UserWarning, match=r"trained since the running statistics of 1, 4"):
        livella.convert(trained_as_group(), "torch")
    model, data = trained_as_group(), [images(64)]
    livella.convert(model, "torch", calibrate=data, progress=False)
    estimate = livella.estimate_population(model, data, progress=False)
    for name in ("1", "4"):
        torch.testing.assert_close(
            model.get_submodule(name).running_var, estimate.layers[name].variance.float()
        )


def test_an_untrained_round_trip_warns_of_nothing():
    model = network()
    with warnings.catch_warnings():  # closer than the file's own filter
        warnings.simplefilter("error")
        for kind in ("group", "batch", "torch"):
            livella.convert(model, kind)


def test_a_pruned_layer_is_left():
    model = network()
    prune.l1_unstructured(model[1], "weight", 0.5)
    wanted = model(images(2))
    conversion = convert(model, "batch")
    assert "weight_mask" in conversion.left["1"]
    torch.testing.assert_close(model(images(2)), wanted)


class Lengths(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv1d(3, 8, 3, padding=1), nn.BatchNorm1d(8))

    def forward(self, x):
        return self.inner(x).transpose(1, 2)


def test_outputs_of_other_lengths_and_of_one_dimension_are_compared():
    model = Lengths().eval()
    data = [torch.randn(4, 3, length) for length in (10, 12)]
    assert convert(model, "group", calibrate=data).change[0] > 0
    flat = network()
    conversion = convert(flat, "group", calibrate=[images(32)],
                         forward=lambda m, x: m(x)[:, 0])  # fmt: skip
    assert conversion.change[0] > 0


@pytest.mark.parametrize("data", [[torch.zeros(0, 3, 10, 10)], "once"])
def test_no_samples_to_calibrate_on_is_an_error(data):
    class Once:
        rest = iter([images(8)])

        def __iter__(self):
            return self.rest

    model = network()
    before = whole(model)
    with pytest.raises(ValueError, match="convert: got no"):
        convert(model, "group", calibrate=Once() if data == "once" else data)
    assert_same(before, model)


def test_a_users_hooks_act_once_in_calibration():
    seen = []
    model = network()
    model[1].register_forward_pre_hook(lambda _layer, args: (args[0] * 3,))
    model[1].register_forward_hook(lambda _layer, _args, out: seen.append(1))
    plain = network()
    plain.insert(1, nn.Identity())
    plain[1].register_forward_hook(lambda _layer, _args, out: out * 3)
    data = [images(64)]
    hooked = convert(model, "instance", calibrate=data).change
    assert hooked == pytest.approx(convert(plain, "instance", calibrate=data).change)


def test_reverting_twice_and_with_more_groups_gives_the_optimizer_back():
    model = network().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)

    def train():
        optimizer.zero_grad()
        model(images(8)).square().mean().backward()
        optimizer.step()

    train()
    state = copy.deepcopy(optimizer.state_dict())
    conversion = convert(model, "group", optimizer=optimizer)
    train()
    extra = nn.Parameter(torch.zeros(1))
    optimizer.add_param_group({"params": [extra]})
    assert conversion.revert().revert() is conversion
    assert optimizer.param_groups.pop()["params"] == [extra]
    after = optimizer.state_dict()
    assert after["param_groups"] == state["param_groups"]
    for number, before in state["state"].items():
        assert all(torch.equal(before[k], after["state"][number][k]) for k in before)


def test_names_in_an_optimizer_follow_and_lbfgs_is_refused():
    model = network()
    optimizer = torch.optim.Adam(model.named_parameters())
    convert(model, "none", optimizer=optimizer)
    (group,) = optimizer.param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert group["param_names"] == [names[id(p)] for p in group["params"]]
    with pytest.raises(TypeError, match="LBFGS"):
        convert(network(), "rms", optimizer=torch.optim.LBFGS(network().parameters()))


@pytest.mark.filterwarnings("default")
def test_new_parameters_are_told():
    with pytest.warns(UserWarning, match=r"new parameters: 1\.alpha, 4\.alpha"):
        livella.convert(network(), "dynamic_tanh")


# What only some conversions meet


@pytest.mark.parametrize("read", range(1, 10))
def test_a_failure_at_any_read_leaves_the_model_as_it_was(read):
    class Loader:
        reads = 0

        def __iter__(self):
            self.reads += 1
            if self.reads == read:
                raise OSError
            yield images(8)

    model, loader = network(), Loader()
    before = whole(model)
    try:
        convert(model, "group", calibrate=loader).revert()
    except OSError:
        assert loader.reads == read
    else:
        assert loader.reads < read
    assert_same(before, model)


def test_data_without_positions_tell_the_class_of_the_layer():
    model = nn.Sequential(nn.Linear(4, 8), nn.GroupNorm(2, 8))
    convert(model, "batch", calibrate=[torch.randn(32, 4)])
    assert type(model[1]) is livella.nn.BatchNorm1d


@pytest.mark.parametrize("kind", ["rms", "dynamic_tanh"])
def test_an_optimizer_that_was_told_needs_no_warning(kind):
    model = network()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        livella.convert(model, kind, optimizer=torch.optim.SGD(model.parameters(), 0.1))


def test_group_norms_of_one_group_are_layer_norms():
    model = nn.Sequential(nn.GroupNorm(1, 8), nn.GroupNorm(2, 8))
    assert list(convert(model, "layer").layers) == ["1"]
    assert [layer.num_groups for layer in model] == [1, 1]


def test_the_networks_own_activation_stays_behind_filter_response_norms():
    model = network()
    convert(model, "filter_response")
    assert model[1].threshold is None
    assert (model[:2](images(4)) < 0).any()


def test_a_fit_that_makes_the_output_worse_is_taken_back(monkeypatch):
    def spoil(layer, pair):
        with torch.no_grad():
            layer.weight.fill_(100)

    monkeypatch.setattr("livella.model.calibrate._fit_line", spoil)
    model = network()
    gamma = model[1].weight.clone()
    first, last = convert(model, "group", calibrate=[images(16)]).change
    assert first == last
    assert torch.equal(model[1].weight, gamma)


def test_what_is_fitted_lies_before_the_activation():
    model, x = nn.Sequential(livella.nn.BatchNorm2d(3, activation="relu")).eval(), images(16)
    with torch.no_grad():
        model[0].running_mean.fill_(0.5)
        model[0].running_var.fill_(2.0)
        wanted = model(x)
    conversion = convert(model, "moving_average", calibrate=[x])
    assert conversion.layers["0"].unexplained[1] < 1e-10
    torch.testing.assert_close(model(x), wanted)


def test_without_a_bias_the_fit_goes_through_the_origin():
    model, x = nn.Sequential(nn.BatchNorm2d(3)).eval(), images(16)
    with torch.no_grad():
        model[0].running_mean.fill_(0.5)
        y = model(x).double()
    convert(model, "rms", calibrate=[x])
    with torch.no_grad():
        h = (model(x) / model[0].weight.view(3, 1, 1)).double()
    expected = (h * y).sum((0, 2, 3)) / h.square().sum((0, 2, 3))
    torch.testing.assert_close(model[0].weight.double(), expected, rtol=1e-5, atol=1e-6)


def test_outputs_of_each_length_have_a_spread_of_their_own():
    model = Lengths().eval()
    data = [torch.randn(4, 3, length) * length for length in (10, 12, 5)]
    with torch.no_grad():
        wanted = [model(x).double() for x in data]
        changed = copy.deepcopy(model)
        convert(changed, "group")
        squares = sum((changed(x) - z).square().sum() for x, z in zip(data, wanted, strict=True))
    spread = sum((z - z.mean((0, 2), keepdim=True)).square().sum() for z in wanted)
    found = convert(model, "group", calibrate=data).change[0]
    assert found == pytest.approx(float(squares / spread), rel=1e-5)


def test_buffers_that_are_not_saved_stay_so_in_another_kind():
    model = livella.set_update_policy(nn.Sequential(livella.nn.BatchNorm2d(4)), "guarded")
    keys = list(model.state_dict())
    for kind in ("ghost", "group", "batch"):
        convert(model, kind)
        assert "0.skipped_batches" not in model.state_dict()
    assert list(model.state_dict()) == keys
    assert int(model[0].skipped_batches) == 0
