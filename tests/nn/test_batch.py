"""The layers against torch's own, over all they share; then what only they have."""

import copy
import inspect
import io
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import livella.nn as lnn

OURS = {1: lnn.BatchNorm1d, 2: lnn.BatchNorm2d, 3: lnn.BatchNorm3d}
FUSED = {1: lnn.BatchNormAct1d, 2: lnn.BatchNormAct2d, 3: lnn.BatchNormAct3d}
TORCHS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
NDIM_OF_INPUT = {2: 1, 3: 1, 4: 2, 5: 3}

# Sums differ in their order; a narrow running average is rounded at every batch.
NEAR = {
    torch.float64: {"rtol": 1e-9, "atol": 1e-9},
    torch.float32: {"rtol": 1e-4, "atol": 1e-4},
    torch.float16: {"rtol": 1e-2, "atol": 1e-2},
    torch.bfloat16: {"rtol": 5e-2, "atol": 5e-2},
}


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "batch last": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "strided": lambda x: x.repeat_interleave(2, 0).repeat_interleave(2, -1)[::2, ..., ::2],
}

CASES = st.fixed_dictionaries(
    {
        "shape": st.integers(2, 5).flatmap(
            lambda dims: st.tuples(
                st.integers(3, 6), st.integers(1, 4), *[st.integers(1, 3)] * (dims - 2)
            )
        ),
        "layout": st.sampled_from(sorted(LAYOUTS)),
        "dtype": st.sampled_from(list(NEAR)),
        "narrow_parameters": st.booleans(),
        "momentum": st.sampled_from([0.1, 0.0, 1.0, None]),
        "affine": st.booleans(),
        "track": st.booleans(),
        "evaluate": st.booleans(),
        "eps": st.sampled_from([1e-5, 1e-3, 0.5]),
        "seed": st.integers(0, 2**31 - 1),
    }
)


def history(layer, case, dtype):
    """Two training batches and one more in the mode asked for; all that can be seen of it.

    The numbers are those of the case's dtype, whichever dtype they are given in.
    """
    seen = []
    for step in range(3):
        layer.train(step < 2 or not case["evaluate"])
        x = (2 * normal(*case["shape"], seed=case["seed"] + step) + 3).to(case["dtype"])
        x = LAYOUTS[case["layout"]](x.to(dtype)).detach().requires_grad_()
        y = layer(x)
        dy = normal(*case["shape"], seed=case["seed"] + 10 + step).to(case["dtype"]).to(dtype)
        seen += [y, *torch.autograd.grad(y, [x, *layer.parameters()], dy)]
        seen += [buffer.clone() for buffer in layer.buffers()]
    return seen


def build(classes, case, dtype):
    ndim, channels = NDIM_OF_INPUT[len(case["shape"])], case["shape"][1]
    layer = classes[ndim](
        channels, case["eps"], case["momentum"], case["affine"], case["track"], dtype=dtype
    )
    if case["affine"]:
        with torch.no_grad():
            layer.weight.copy_((1 + normal(channels, seed=case["seed"]) / 4).to(case["dtype"]))
            layer.bias.copy_(normal(channels, seed=case["seed"] + 1).to(case["dtype"]))
    return layer


@settings(max_examples=250)
@given(CASES)
def test_history_is_that_of_torch(case):
    dtype = case["dtype"]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    parameters = dtype if case["narrow_parameters"] else wide
    ours = history(build(OURS, case, parameters), case, dtype)
    theirs = history(build(TORCHS, case, parameters), case, dtype)
    # Torch rounds on its way through a narrow backward; in the wide dtype it shows the truth.
    truth = history(build(TORCHS, case, wide), case, wide)
    for got, form, wanted in zip(ours, theirs, truth, strict=True):
        assert (got.dtype, got.shape) == (form.dtype, form.shape)
        assert_close(got, wanted.to(got.dtype), **NEAR[dtype])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_over_narrow_inputs_are_taken_in_float32(dtype):
    x = (10 + normal(4096, 2)).to(dtype)
    layer = lnn.BatchNorm1d(2, momentum=1.0)
    y = layer(x)
    assert y.dtype == dtype
    assert_close(layer.running_mean, x.double().mean(0).float(), rtol=1e-6, atol=0)
    assert_close(layer.running_var, x.double().var(0).float(), rtol=1e-5, atol=0)


def test_two_dimensional_and_higher_layers_refuse_other_inputs():
    for ndim, wrong in ((1, (2, 3, 4, 5)), (2, (2, 3, 4)), (3, (2, 3, 4, 5))):
        with pytest.raises(ValueError, match=r"expected .*D input, got"):
            OURS[ndim](3)(torch.zeros(wrong))


@pytest.mark.parametrize("tracked", [True, False])
def test_one_value_per_channel_raises_and_changes_nothing(tracked):
    layer = lnn.BatchNorm1d(3, track_running_stats=tracked)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(ValueError, match=r"^BatchNorm1d\(3\): expected more than one value per ch"):
        layer(torch.zeros(1, 3))
    assert_close(dict(layer.state_dict()), dict(before), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4)])
def test_empty_batches_are_taken_as_in_torch(shape):
    ours, theirs = lnn.BatchNorm1d(3), nn.BatchNorm1d(3)
    assert_close(ours(torch.zeros(shape)), theirs(torch.zeros(shape)))
    assert_close(dict(ours.state_dict()), dict(theirs.state_dict()))


def test_tracking_can_be_turned_off_later():
    ours, theirs = lnn.BatchNorm1d(3), nn.BatchNorm1d(3)
    for layer in (ours, theirs):
        layer.track_running_stats = False
    x = normal(5, 3).float() + 2
    for training in (True, False):
        assert_close(ours.train(training)(x), theirs.train(training)(x))
        assert_close(dict(ours.state_dict()), dict(theirs.state_dict()), rtol=0, atol=0)


# Checkpoints, copies, devices, dtypes


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("ndim", OURS)
def test_state_dicts_go_both_ways(ndim, activation):
    theirs, ours = TORCHS[ndim](4), OURS[ndim](4, activation=activation)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs(normal(5, 4, *[2] * ndim).float() + 1)
    ours.load_state_dict(theirs.state_dict())
    assert_close(dict(ours.state_dict()), dict(theirs.state_dict()), rtol=0, atol=0)
    fresh = TORCHS[ndim](4)
    fresh.load_state_dict(ours.state_dict())
    assert_close(dict(fresh.state_dict()), dict(theirs.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize("activation", [None, "relu"])
def test_checkpoints_from_before_the_counter_load(activation):
    old = nn.BatchNorm1d(4).state_dict()
    del old["num_batches_tracked"]
    old._metadata[""]["version"] = 1
    layer = lnn.BatchNorm1d(4, activation=activation)
    layer.load_state_dict(old)
    assert layer.num_batches_tracked == 0
    old._metadata[""]["version"] = 2
    with pytest.raises(RuntimeError, match="num_batches_tracked"):
        layer.load_state_dict(old)


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("ndim", OURS)
def test_copies_and_pickles_are_the_same_layer(ndim, activation):
    layer = OURS[ndim](3, 1e-3, None, activation=activation, bias=False)
    x = normal(4, 3, *[2] * ndim).float()
    layer(x)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    copies = [
        copy.deepcopy(layer),
        copy.copy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(file, weights_only=False),
    ]
    layer.eval()
    for other in copies:
        assert type(other) is type(layer)
        assert repr(other) == repr(layer)
        assert_close(other.eval()(x), layer(x), rtol=0, atol=0)


def test_device_and_dtype_are_taken_by_position_and_by_name():
    for layer in (
        lnn.BatchNorm2d(3, 1e-5, 0.1, True, True, "meta", torch.float64),
        lnn.BatchNorm2d(3, device="meta", dtype=torch.float64),
        lnn.BatchNorm2d(3, device="meta", dtype=torch.float64, activation="relu"),
    ):
        for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
            assert (tensor.device.type, tensor.dtype) == ("meta", torch.float64)
        assert layer.num_batches_tracked.dtype == torch.long


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_layer_can_be_converted(dtype):
    layer = lnn.BatchNorm1d(3, activation="relu").to(dtype)
    y = layer(normal(5, 3).to(dtype))
    assert y.dtype == layer.running_mean.dtype == layer.weight.dtype == dtype
    assert layer.num_batches_tracked == 1


def test_bias_may_be_left_out():
    layer = lnn.BatchNorm1d(3, bias=False)
    assert layer.bias is None
    assert next(iter(layer.state_dict())) == "weight"
    x = normal(5, 3).float()
    assert_close(layer(x), nn.BatchNorm1d(3)(x))


# The activation


@pytest.mark.parametrize("ndim", OURS)
def test_plain_layers_are_torchs_and_fused_ones_are_not(ndim):
    plain, fused = OURS[ndim](3), OURS[ndim](3, activation="relu")
    assert type(plain) is OURS[ndim]
    assert isinstance(plain, TORCHS[ndim])
    assert type(fused) is FUSED[ndim]
    assert not isinstance(fused, _BatchNorm)
    assert "activation" not in repr(plain)
    assert repr(plain) == repr(TORCHS[ndim](3))
    assert repr(fused).endswith("activation=relu)")


def test_torchs_converter_keeps_fused_activations():
    model = nn.Sequential(lnn.BatchNorm2d(3), lnn.BatchNorm2d(3, activation="relu"))
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert isinstance(converted[0], nn.SyncBatchNorm)
    assert isinstance(converted[1], lnn.BatchNormAct2d)
    assert converted[1].activation == "relu"


def test_a_subclass_must_derive_from_the_fused_class():
    class Passed(lnn.BatchNorm2d):
        pass

    class Fixed(lnn.BatchNorm2d):
        def __init__(self, channels):
            super().__init__(channels, activation="relu")

    class Right(lnn.BatchNormAct2d):
        pass

    assert isinstance(Passed(3), nn.BatchNorm2d)
    for build in (lambda: Passed(3, activation="relu"), lambda: Fixed(3)):
        with pytest.raises(TypeError, match=r"derive it from livella\.nn\.BatchNormAct2d"):
            build()
    assert Right(3, activation="relu").activation == "relu"


def test_an_unknown_activation_is_refused_at_once():
    with pytest.raises(ValueError, match=r"'gelu'.*'relu'"):
        lnn.BatchNorm2d(3, activation="gelu")


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("training", [True, False])
def test_residual_and_activation(activation, training):
    x, r = normal(4, 3, 2, 2).float(), normal(4, 3, 2, 2, seed=1).float()
    layer = lnn.BatchNorm2d(3, activation=activation).train(training)
    expected = nn.BatchNorm2d(3).train(training)(x) + r
    assert_close(layer(x, residual=r), expected.relu() if activation else expected)


# The mask


@pytest.mark.parametrize("momentum", [0.1, None])
def test_masked_training_counts_what_it_takes_in(momentum):
    x = normal(6, 3, 4).float()
    mask = normal(6, 4, seed=1) > 0
    valid = x.movedim(1, -1)[mask]
    masked, alone = lnn.BatchNorm1d(3, momentum=momentum), nn.BatchNorm1d(3, momentum=momentum)
    for shift in (0, 2):
        y = masked(x + shift, mask=mask)
        assert_close(y.movedim(1, -1)[mask], alone(valid + shift), rtol=1e-4, atol=1e-5)
        # A batch with too little in it changes nothing, the counter included.
        few = torch.zeros_like(mask)
        few[0, 0] = bool(shift)
        assert masked(x, mask=few).isfinite().all()
    assert_close(dict(masked.state_dict()), dict(alone.state_dict()), rtol=1e-5, atol=1e-5)


def test_a_first_batch_without_valid_elements_is_harmless():
    layer = lnn.BatchNorm1d(3, momentum=None)
    y = layer(torch.full((5, 3), math.nan), mask=torch.zeros(5, dtype=torch.bool))
    assert_close(y, torch.zeros(5, 3))
    assert_close(dict(layer.state_dict()), dict(lnn.BatchNorm1d(3).state_dict()))


def test_one_valid_element_does_not_raise_under_a_mask():
    layer = lnn.BatchNorm1d(3)
    y = layer(torch.ones(1, 3), mask=torch.ones(1, dtype=torch.bool))
    assert_close(y, torch.zeros(1, 3))
    assert layer.num_batches_tracked == 0


def test_evaluation_masks_too():
    layer, x = lnn.BatchNorm1d(3).eval(), normal(4, 3, 5).float()
    mask = torch.arange(5) < 3
    y = layer(x, mask=mask)
    assert_close(y[..., :3], layer(x[..., :3]))
    assert_close(y[..., 3:], torch.zeros(4, 3, 2))


# Tracing


# The compiler itself makes an instance of autograd.Function, and warns of it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("activation", "momentum", "masked"), [(None, 0.1, False), ("relu", None, True)]
)
def test_layers_compile_as_one_graph(activation, momentum, masked, training):
    eager = lnn.BatchNorm1d(3, momentum=momentum, activation=activation).train(training)
    layer = copy.deepcopy(eager)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    mask = normal(4, 5, seed=1) > -0.5 if masked else None
    for seed in range(2):
        x = normal(4, 3, 5, seed=seed).float()
        assert_close(compiled(x, mask=mask), eager(x, mask=mask))
    assert_close(dict(layer.state_dict()), dict(eager.state_dict()))


@pytest.mark.parametrize("training", [True, False])
def test_layers_export(training):
    layer = lnn.BatchNorm2d(3, activation="hardswish").train(training)
    x = normal(4, 3, 5, 5).float()
    exported = torch.export.export(layer, (x,)).module()
    assert_close(exported(x), layer(x))
    assert_close(exported.running_mean, layer.running_mean)


def test_a_training_step_between_an_evaluation_and_its_backward_does_no_harm():
    layer = lnn.BatchNorm2d(3).eval()
    twin = copy.deepcopy(layer)
    x = torch.randn(4, 3, 5, 5, requires_grad=True)
    alone = x.detach().clone().requires_grad_()

    output = layer(x)
    layer.train()(x.detach() + 1)
    output.sum().backward()
    twin(alone).sum().backward()

    assert_close(x.grad, alone.grad)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_under_checkpointing_averages_and_counter_go_together(momentum, reentrant):
    ours = nn.Sequential(nn.Conv2d(3, 3, 1), lnn.BatchNorm2d(3, momentum=momentum))
    theirs = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, momentum=momentum))
    theirs.load_state_dict(ours.state_dict())
    for step in range(2):
        x = torch.randn(4, 3, 5, 5) + step
        for model in (ours, theirs):
            y = checkpoint(model, x.clone().requires_grad_(), use_reentrant=reentrant)
            y.pow(2).sum().backward()

    assert_close(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("ndim", OURS)
def test_the_signature_is_torchs_and_an_activation(ndim):
    shown = inspect.signature(OURS[ndim]).parameters
    assert set(shown) >= {*inspect.signature(TORCHS[ndim]).parameters, "activation"}
    assert nn.utils.skip_init(OURS[ndim], 3, device="cpu").num_features == 3


def test_an_activation_may_be_given_for_one_call():
    x = torch.randn(4, 3, 2, 2)
    layer, fused = lnn.BatchNorm2d(3), lnn.BatchNorm2d(3, activation="relu")
    assert_close(layer(x, activation="relu"), fused(x), rtol=0, atol=0)
    assert (layer(x) < 0).any()
    with pytest.raises(ValueError, match="give one of them"):
        fused(x, activation="silu")
