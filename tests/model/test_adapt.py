"""Adaptation to data met in use: the right statistics, a guard, and the way back."""

import copy
import itertools
import pickle
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import livella
from tests.model.digits import sorted_digits
from tests.model.populations import MEASURED, data, hard, truth
from tests.model.test_population import assert_untouched, state
from tests.pretrained import mobilenet_v2, needs_mobilenet, photos


def adapt(model, batches, **options):
    return livella.adapt(model, batches, **{"guard": False, "progress": False, **options})


def small(dims=2, kind=None, channels=4):
    """A classifier with two batch norms, with statistics of its own."""
    conv = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims]
    extra = () if dims == 0 else (1,)
    ours = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    norm = kind or ours[dims]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            conv(channels, 6, *extra), norm(6), nn.ReLU(), conv(6, 6, *extra), norm(6), nn.ReLU()
        )
        model.extend([nn.Flatten(2) if dims else nn.Identity(), Mean(dims), nn.Linear(6, 5)])
        for layer in (model[1], model[4]):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return model.eval()


class Mean(nn.Module):
    def __init__(self, dims):
        super().__init__()
        self.dims = dims

    def forward(self, x):
        return x.mean(2) if self.dims else x


def images(n=64, dims=2, seed=0, offset=0.0, channels=4):
    g = torch.Generator().manual_seed(seed)
    return offset + torch.randn(n, channels, *(5,) * dims, generator=g)


def layers(model):
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


# A set as a whole


def test_without_a_prior_a_set_gives_its_own_statistics():
    model, x = hard(), data()
    with warnings.catch_warnings():
        adaptation = adapt(model, list(x.split(100)), prior=0)
    wanted = truth(model, x)
    for name in MEASURED:
        layer = model.get_submodule(name)
        values = wanted[name][1].numel()
        assert values == len(layer.running_mean)
        torch.testing.assert_close(
            layer.running_mean.double(), wanted[name][0], atol=2e-3, rtol=1e-3
        )
        # Biased, as a batch norm normalizes; the truth is unbiased: of 401 values 0.25 % more.
        torch.testing.assert_close(
            layer.running_var.double(), wanted[name][1], atol=1e-4, rtol=4e-3
        )
    assert adaptation.samples == 401
    assert adaptation.left == {"frozen": "frozen"}


def test_the_first_layer_is_blended_by_hand():
    model, x = small(), images(48)
    mean, var = model[1].running_mean.double(), model[1].running_var.double()
    adapt(model, [x], prior=16)
    with torch.no_grad():
        met = model[0](x).double().transpose(0, 1).flatten(1)
    wanted = 0.25 * mean + 0.75 * met.mean(1), 0.25 * var + 0.75 * met.var(1, correction=0)
    torch.testing.assert_close(model[1].running_mean.double(), wanted[0], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(model[1].running_var.double(), wanted[1], atol=1e-6, rtol=1e-6)


@given(st.sets(st.integers(1, 39), max_size=4))
def test_a_set_cut_otherwise_gives_the_same(cuts):
    x = images(40)
    whole, cut = small().double(), small().double()
    edges = [0, *sorted(cuts), 40]
    adapt(whole, [x.double()])
    adapt(cut, [x.double()[a:b] for a, b in itertools.pairwise(edges)])
    for one, other in zip(layers(whole), layers(cut), strict=True):
        torch.testing.assert_close(one.running_mean, other.running_mean, atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(one.running_var, other.running_var, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("dims", [0, 1, 2, 3])
@pytest.mark.parametrize("ours", [False, True])
def test_all_dimensions_torchs_and_ours(dims, ours):
    model = small(dims)
    if ours:
        livella.accelerate(model)
    before = state(model)
    adaptation = adapt(model, [images(40, dims, offset=2.0)])
    assert all(change.offset > 0.01 for change in adaptation.changes.values())
    assert list(adaptation.changes) == ["1", "4"]
    adaptation.revert()
    assert_untouched(model, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions(dtype):
    model, x = small().to(dtype), images(64).to(dtype)
    adapt(model, [x], prior=0)
    with torch.no_grad():
        met = model[0](x).double().transpose(0, 1).flatten(1)
    close = {"atol": 2e-2, "rtol": 2e-2}
    torch.testing.assert_close(model[1].running_mean.double(), met.mean(1), **close)
    torch.testing.assert_close(model[1].running_var.double(), met.var(1, correction=0), **close)


def test_a_large_offset_keeps_the_variance():
    model = nn.Sequential(nn.BatchNorm1d(4))
    x = (1e4 + torch.randn(512, 4, dtype=torch.float64)).float()
    adapt(model, list(x.split(64)), prior=0)
    torch.testing.assert_close(
        model[0].running_var.double(), x.double().var(0, correction=0), rtol=1e-5, atol=0
    )


def test_constant_channels_and_memory_formats():
    model, x = small(), images(40)
    x[:, 1] = 3
    adapt(model, [x.to(memory_format=torch.channels_last)])
    other = small()
    adapt(other, [x[:, :, ::1]])
    torch.testing.assert_close(model[1].running_mean, other[1].running_mean)
    one = nn.Sequential(nn.BatchNorm1d(2))
    adapt(one, [torch.ones(40, 2)], prior=0)
    assert one[0].running_var.tolist() == [0, 0]
    assert one(torch.ones(3, 2)).isfinite().all()


def test_an_infinite_prior_changes_nothing():
    model = small()
    before = state(model)
    adapt(model, [images()], prior=float("inf"))
    assert_untouched(model, before)


# A stream


def test_a_decay_of_one_forgets_nothing():
    model, x = small(), images(40)
    stream, whole = small(), small()
    adapt(stream, list(x.split(7)), decay=1.0)
    adapt(whole, [x])
    torch.testing.assert_close(stream[1].running_mean, whole[1].running_mean)
    torch.testing.assert_close(stream[1].running_var, whole[1].running_var)
    assert not torch.equal(model[1].running_mean, stream[1].running_mean)


def test_a_decay_of_zero_takes_each_batch_by_itself():
    x = images(40)
    stream, last = small(), small()
    adapt(stream, list(x.split(8)), decay=0.0)
    adapt(last, [x[-8:]])
    torch.testing.assert_close(stream[1].running_mean, last[1].running_mean)
    torch.testing.assert_close(stream[4].running_var, last[4].running_var)


def test_fading_moments_by_hand():
    model, parts = small(), [images(8, seed=s) for s in range(3)]
    source = model[1].running_mean.double()
    with torch.no_grad():
        means = [model[0](x).double().mean((0, 2, 3)) for x in parts]
    adapt(model, parts, decay=0.5)
    weights = [2.0, 4.0, 8.0]  # 8·(½)², 8·½, 8
    met = sum(w * m for w, m in zip(weights, means, strict=True)) / 14
    wanted = (16 * source + 14 * met) / 30
    torch.testing.assert_close(model[1].running_mean.double(), wanted, atol=1e-6, rtol=1e-6)


def test_an_update_gives_the_output_of_the_model_as_it_then_is():
    model = small()
    adaptation = adapt(model, [images(16)], decay=0.9)
    x = images(16, seed=5)
    out = adaptation.update(x)
    torch.testing.assert_close(out, model(x))
    assert adaptation.samples == 32


def test_a_single_sample_and_an_empty_batch():
    model = small(0)
    adaptation = adapt(model, [images(1, 0)], decay=0.9)
    assert all(torch.isfinite(layer.running_var).all() for layer in layers(model))
    before = state(model)
    with pytest.raises(ValueError, match="no samples"):
        adaptation.update(images(0, 0))
    assert_untouched(model, before)


class Once:
    """Can be read once, but is no iterator."""

    def __init__(self, batches):
        self.rest = iter(batches)

    def __iter__(self):
        return self.rest


@pytest.mark.parametrize("batches", [[images(0)], Once([images(8), images(8)])])
def test_data_that_give_nothing_end_with_an_error(batches):
    model = small()
    before = state(model)
    with pytest.raises(ValueError, match=r"no samples|no batches"):
        adapt(model, batches)
    assert_untouched(model, before)


@pytest.mark.parametrize("change", [nn.Module.double, nn.Module.bfloat16])
def test_it_reverts_after_a_change_of_dtype(change):
    model = small()
    before = change(copy.deepcopy(model)).state_dict()
    adaptation = adapt(model, [images(offset=2.0)], entropy_rate=1e-2)
    change(model)
    adaptation.revert()
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_it_reverts_after_buffers_were_replaced():
    model = small()
    before = copy.deepcopy(model.state_dict())
    adaptation = adapt(model, [images(offset=2.0)])
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    adaptation.revert()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_iterator_is_a_stream_and_no_set():
    adapt(small(), iter([images()]), decay=0.9)
    with pytest.raises(TypeError, match="read once"):
        adapt(small(), iter([images()]))


# Entropy


def test_tuning_makes_predictions_more_certain_and_reverts():
    model, x = small(), images(64, offset=1.0)
    before = state(model)
    plain = adapt(model, [x] * 20, decay=0.9)
    entropy = _entropy(model(x))
    plain.revert()
    tuned = adapt(model, [x] * 20, decay=0.9, entropy_rate=1e-2)
    assert _entropy(model(x)) < entropy - 0.01
    assert not torch.equal(model[1].weight, torch.ones(6))
    tuned.revert()
    assert_untouched(model, before)


def test_tuning_leaves_gradients_and_their_wishes_alone():
    model = small()
    model[0].weight.requires_grad_(False)
    model[1].weight.grad = torch.full((6,), 7.0)
    adapt(model, [images()], entropy_rate=1e-3)
    assert not model[0].weight.requires_grad
    assert model[1].weight.requires_grad
    assert model[1].weight.grad.tolist() == [7.0] * 6
    assert model[1].bias.grad is None


def _entropy(scores):
    p = scores.detach().softmax(1)
    return float(-(p * p.log()).sum(1).mean())


def test_tuning_needs_something_to_tune():
    model = nn.Sequential(nn.BatchNorm1d(3, affine=False))
    with pytest.raises(ValueError, match="no batch norm has them"):
        adapt(model, [torch.randn(8, 3)], entropy_rate=1e-3)
    with pytest.raises(ValueError, match="entropy_rate above zero"):
        adapt(small(), [images()], entropy_rate=0.0)


def test_tuning_says_so_where_the_output_is_detached():
    model = small()
    before = state(model)
    with pytest.raises(ValueError, match="depend on γ and β"):
        adapt(model, [images()], entropy_rate=1e-3, forward=lambda m, x: m(x).detach())
    assert_untouched(model, before)


# The guard


@pytest.fixture
def trained():
    return sorted_digits()


@torch.no_grad()
def followed(model, x, y, **options):
    adaptation = livella.adapt(model, [x[:32]], decay=0.9, progress=False, **options)
    adaptation.revert()
    right = sum(
        int((adaptation.update(b).argmax(1) == t).sum())
        for b, t in zip(x.split(32), y.split(32), strict=True)
    )
    refusals = adaptation.refusals
    adaptation.revert()
    return right / len(x), refusals


@pytest.mark.filterwarnings("ignore:adapt declined")
def test_a_declined_batch_is_answered_by_the_network_as_it_was(trained):
    model, x, _ = trained
    with torch.no_grad():
        source = [model(b) for b in x.split(32)]
    adaptation = livella.adapt(model, [x[:32]], decay=0.9, progress=False)
    answers = [(adaptation.update(b), adaptation.declined) for b in x.split(32)]
    declined = [torch.equal(y, s) for (y, why), s in zip(answers, source, strict=True) if why]
    assert declined
    assert all(declined)


@pytest.mark.filterwarnings("ignore:adapt declined")
def test_a_stream_sorted_by_class_is_declined_and_costs_nothing(trained):
    model, x, y = trained
    source = float((model(x).argmax(1) == y).float().mean())
    guarded, refusals = followed(model, x, y)
    unguarded, _ = followed(model, x, y, guard=False, prior=0)
    assert guarded >= source - 0.02
    assert unguarded < source - 0.02
    assert set(refusals) <= {"few classes", "ordered"}
    assert sum(refusals.values()) > len(x) / 2


@pytest.mark.filterwarnings("ignore:adapt corrected the first")
def test_a_true_shift_keeps_its_gain(trained):
    model, x, y = trained
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = (x[order] + 0.5).repeat(2, 1, 1, 1), y[order].repeat(2)
    source = float((model(x).argmax(1) == y).float().mean())
    guarded, refusals = followed(model, x, y)
    unguarded, _ = followed(model, x, y, guard=False)
    assert unguarded > source + 0.2
    assert guarded - source >= 0.8 * (unguarded - source)
    assert not refusals


def test_a_set_of_one_class_is_declined_with_its_reason(trained):
    model, x, y = trained
    before = state(model)
    with pytest.warns(UserWarning, match=r"few classes: \d\d% of the predictions are class 3"):
        adaptation = livella.adapt(model, [x[y == 3]], progress=False)
    assert adaptation.declined.startswith("few classes")
    assert adaptation.samples == 0
    assert "as it was trained (few classes" in str(adaptation)
    assert_untouched(model, before)


def test_too_few_samples_wait_without_a_warning(trained):
    model, x, _ = trained
    before = state(model)
    adaptation = livella.adapt(model, [x[:8]], decay=0.9, progress=False)
    assert adaptation.declined.startswith("8 samples are too few")
    assert adaptation.refusals == {}
    assert_untouched(model, before)


def test_it_adapts_again_when_the_stream_is_mixed(trained):
    model, x, y = trained
    ones = x[y == 1].repeat(2, 1, 1, 1)[:64]
    with pytest.warns(UserWarning, match="few classes"):
        adaptation = livella.adapt(model, list(ones.split(32)), decay=0.9, progress=False)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    for batch in (x[order] + 0.5).split(32):
        adaptation.update(batch)
    assert adaptation.declined is None
    assert adaptation.samples > 0


# What goes wrong


def test_no_batch_norm_no_batches_no_class_scores():
    with pytest.raises(ValueError, match="adapt: expected a model with batch norms"):
        adapt(nn.Linear(2, 2), [torch.randn(4, 2)])
    for options in ({}, {"decay": 0.9}):
        model = small()
        before = state(model)
        with pytest.raises(ValueError, match="adapt: got no batches"):
            adapt(model, [], **options)
        assert_untouched(model, before)
    with pytest.raises(TypeError, match="class scores of shape"):
        adapt(small(), [images(40)], entropy_rate=1e-3, forward=lambda m, x: m(x).sum())


@pytest.mark.parametrize("decay", [None, 0.9])
@pytest.mark.parametrize(
    "output",
    [
        lambda scores: {"boxes": scores[:, :, None].expand(-1, -1, 4), "labels": scores},
        lambda scores: (scores[:, None, :, None], scores),
        lambda scores: scores[:, :1],
        lambda scores: scores.sum(),
    ],
)
def test_without_class_scores_the_way_to_them_is_told_once_and_it_adapts(output, decay):
    model, told = small(), []
    batches = [images(32, seed=k, offset=3.0) for k in range(10)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adaptation = adapt(
            model, batches, decay=decay, guard=True, forward=lambda m, x: output(m(x))
        )
        told = [str(w.message) for w in caught if "logits=" in str(w.message)]
    assert len(told) == 1
    assert "\n" not in told[0]
    assert adaptation.samples > 0
    assert adaptation.changes["1"].offset > 0.1


@pytest.mark.parametrize("options", [{"prior": -1}, {"decay": 1.5}, {"decay": -0.1}])
def test_options_out_of_range(options):
    with pytest.raises(ValueError, match=f"expected a {next(iter(options))}"):
        adapt(small(), [images()], **options)


@pytest.mark.parametrize("decay", [None, 0.9])
@pytest.mark.parametrize("entropy_rate", [None, 1e-3])
@pytest.mark.parametrize("bad", ["nan", "channels", "type", "raises", "interrupted"])
def test_a_failure_leaves_the_model_as_it_was(bad, decay, entropy_rate):
    model = small().train()
    before = state(model)

    def batches():
        yield images(16, offset=1.0)
        if bad == "raises":
            raise OSError("the disk is gone")
        if bad == "interrupted":
            raise KeyboardInterrupt
        yield {
            "nan": images(16) * float("nan"),
            "channels": images(16, channels=3),
            "type": 5,
        }[bad]

    class Loader:
        def __iter__(self):
            return batches()

    errors = {"raises": OSError, "interrupted": KeyboardInterrupt, "type": TypeError}
    with pytest.raises(errors.get(bad, (ValueError, RuntimeError))):
        adapt(model, Loader(), decay=decay, entropy_rate=entropy_rate)
    assert_untouched(model, before)


def test_nan_and_a_wrong_number_of_channels_name_the_layer():
    with pytest.raises(ValueError, match=r"layer '1'.*NaN"):
        adapt(small(), [images() * float("nan")])
    model = nn.Sequential(nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match=r"layer '0'.*\(N, 3, \.\.\.\), got \(40, 4\)"):
        adapt(model, [torch.randn(40, 4)])


def test_a_failed_update_leaves_the_state_before_it():
    model = small()
    adaptation = adapt(model, [images(16)], decay=0.9)
    before, samples = state(model), adaptation.samples
    with pytest.raises(ValueError, match="NaN"):
        adaptation.update(images(4) * float("nan"))
    assert_untouched(model, before)
    assert adaptation.samples == samples
    other = small()
    once = adapt(other, [images(16)], decay=0.9)
    x = images(16, seed=3)
    torch.testing.assert_close(adaptation.update(x), once.update(x))


def test_an_update_that_fails_late_takes_back_all_that_came_before():
    """The guard has looked, statistics and γ are written: the last look at the output fails."""
    model, fails = small(), []

    def logits(output):
        if fails and fails[0] == 0:
            raise RuntimeError("late")
        if fails:
            fails[0] -= 1
        return even(output)

    def even(output):
        return output - output.mean(0)  # predictions of every class

    def begun(model, logits):
        return livella.adapt(model, [images(64, seed=7)], decay=0.9, entropy_rate=1e-2,
                             logits=logits, progress=False)  # fmt: skip

    adaptation = begun(model, logits)
    before, samples = state(model), adaptation.samples
    for calls in (0, 1, 2):
        fails[:] = [calls]
        with pytest.raises(RuntimeError, match="late"):
            adaptation.update(images(16, seed=3))
        assert_untouched(model, before)
        assert (adaptation.samples, adaptation._watch.samples) == (samples, 64)
    fails.clear()
    other = small()
    once = begun(other, even)
    x = images(16, seed=4)
    torch.testing.assert_close(adaptation.update(x), once.update(x))
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.filterwarnings("ignore:adapt")
def test_one_score_a_sample_is_refused_and_made_two():
    model = small()
    model.append(nn.Linear(model(images(2)).shape[1], 1))
    model.eval()
    with pytest.raises(TypeError, match="two classes or more"):
        livella.adapt(model, [images()], logits=lambda output: output, progress=False)

    def two(output):
        return torch.cat([-output, output], 1) / 2

    livella.adapt(model, [images(offset=0.1)], logits=two, progress=False)


def test_tuning_leaves_what_freeze_froze():
    model = small()
    first, *_ = layers(model)
    livella.freeze(first, statistics=False)
    before = copy.deepcopy(model.state_dict())
    adapt(model, [images(offset=1.0)], entropy_rate=1e-1)
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    frozen = {f"{name}.weight" for name, layer in model.named_modules() if layer is first}
    tuned = {name for name in changed if name.endswith("weight")}
    assert tuned
    assert not tuned & frozen


def test_a_large_batch_is_judged_too():
    """Batches of a window each: whether they differ is still to be told."""
    model = small()
    x = [images(512, offset=3.0 * (-1) ** k, seed=k) for k in range(12)]
    with pytest.warns(UserWarning, match="ordered: batches differ"):
        adaptation = livella.adapt(model, x, decay=0.9, progress=False)
    assert adaptation.restrained or adaptation.declined
    assert adaptation.changes["4"].offset == 0


@pytest.mark.filterwarnings("ignore:adapt")
@pytest.mark.parametrize("size", [2, 16, 700])
def test_memory_does_not_grow(size):
    model = small()
    adaptation = livella.adapt(model, [images(32)], decay=0.9, progress=False)
    for k in range(min(400, 2100 // size)):
        adaptation.update(images(size, seed=k))
    assert len(adaptation._watch.looks) <= 18
    other = livella.adapt(model, [images(32, seed=k) for k in range(20)], progress=False)
    assert not other._watch.looks


@pytest.mark.filterwarnings("ignore:adapt")
def test_a_set_in_any_order_gives_the_same(trained):
    model, x, _ = trained
    found = []
    for seed in range(3):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        given = x + 0.5 if seed == 0 else x[order] + 0.5  # first sorted by class, then shuffled
        adaptation = livella.adapt(model, list(given.split(48)), progress=False)
        found.append([layer.running_mean.clone() for layer in layers(model)])
        assert adaptation.declined is None
        adaptation.revert()
    for one, other in itertools.pairwise(found):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_a_set_takes_no_updates():
    adaptation = adapt(small(), [images()])
    with pytest.raises(ValueError, match="adapt with decay"):
        adaptation.update(images())


def test_low_precision_that_overflows_is_told():
    model = nn.Sequential(nn.BatchNorm1d(2)).half()
    before = state(model)
    with pytest.raises(ValueError, match=r"layer '0'.*float16"):
        adapt(model, [torch.tensor([[3e4, 1], [-3e4, 2]] * 20).half()], prior=0)
    assert_untouched(model, before)


# A pretrained network, on photos at reduced contrast


@needs_mobilenet
@pytest.mark.parametrize("accelerated", [False, True])
def test_mobilenet_comes_back_bit_for_bit(accelerated):
    model = mobilenet_v2()
    if accelerated:
        livella.accelerate(model)
    x, before = photos(32, contrast=0.4), state(model)
    with torch.no_grad():
        wanted = model(x[:4])
        adaptation = adapt(model, list(x.split(16)), decay=0.9, entropy_rate=1e-4)
        changed = model(x[:4])
        assert len(adaptation.changes) == 52
        assert changed.isfinite().all()
        assert not torch.equal(changed, wanted)
        adaptation.revert()
        assert_untouched(model, before)
        assert torch.equal(model(x[:4]), wanted)


@needs_mobilenet
def test_mobilenet_stays_usable_when_its_stream_breaks_off():
    model = mobilenet_v2()
    x, before = photos(24, contrast=0.4), state(model)

    def stream():
        yield from x[:16].split(8)
        raise ConnectionError("the camera is gone")

    with pytest.raises(ConnectionError):
        adapt(model, stream(), decay=0.9)
    assert_untouched(model, before)
    adaptation = adapt(model, [x[:8]], decay=0.9)
    so_far = state(model)
    with pytest.raises(ValueError, match="met NaN"):
        adaptation.update(x[:8] * float("nan"))
    assert_untouched(model, so_far)
    assert adaptation.update(x[16:]).isfinite().all()
    adaptation.revert()
    assert_untouched(model, before)


@needs_mobilenet
@pytest.mark.filterwarnings("ignore:adapt")
def test_mobilenet_recognizes_its_photos_though_they_are_few():
    """Cuts of two photos at half their contrast are no sample of the world."""
    model, whole = mobilenet_v2(), photos(32, 160)
    with torch.no_grad():
        wanted = model(whole).argmax(1)
        x, before = photos(32, 160, contrast=0.5), state(model)

        def right():
            return float((model(x).argmax(1) == wanted).float().mean())

        source = right()
        unguarded = adapt(model, [x], decay=0.0)
        assert right() < source - 0.3
        unguarded.revert()
        adaptation = adapt(model, [x], decay=0.0, guard=True)
        assert right() > source - 0.1
        assert "few classes" in (adaptation.declined or adaptation.restrained)
        adaptation.revert()
    assert_untouched(model, before)


# In company


def test_a_copy_and_a_pickle_of_an_adapted_model_are_plain():
    model = small()
    adapt(model, [images(offset=1.0)])
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other(images()), model(images()))


@pytest.mark.filterwarnings("ignore:adapt")
def test_compiled_models_and_dicts():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small()

        def forward(self, pixels):
            return {"features": pixels, "logits": self.inner(pixels)}

    model = torch.compile(Named().eval(), backend="eager")
    batch = {"pixels": images(64, offset=1.0), "labels": torch.zeros(64)}
    adaptation = adapt(model, [batch], guard=True, entropy_rate=1e-3)
    assert list(adaptation.changes) == ["inner.1", "inner.4"]


def test_what_is_printed_names_layers_and_what_is_left():
    model = hard()
    told = str(adapt(model, list(data().split(100))))
    assert "adapted to 401 samples" in told
    assert "not adapted: frozen (frozen)" in told
    assert all(name in told for name in MEASURED)
