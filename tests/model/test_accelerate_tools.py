"""torch's own tools on an accelerated model: each does right by it or fails loudly."""

import copy
import threading
import warnings

import pytest
import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import livella
from livella import accelerate
from tests.model.zoo import ZOO, BasicBlock, shown_as_fused

EXACT = {"rtol": 1e-10, "atol": 1e-10}
BASIC = {"": "bn1 + relu, bn2 + residual + relu"}


def build(make=lambda: BasicBlock(3, 3)):
    """Give the same network twice, the second accelerated, and a batch."""
    torch.manual_seed(0)
    plain = make().double()
    return plain, accelerate(copy.deepcopy(plain)), torch.randn(4, 3, 16, 16).double()


def states_are_close(fast, plain):
    assert_close(dict(fast.state_dict()), dict(plain.state_dict()), **EXACT)


# Tools that replace, freeze or refresh batch norms


def test_convert_sync_batchnorm():
    plain, fast, x = build()
    fast, plain = (nn.SyncBatchNorm.convert_sync_batchnorm(model).eval() for model in (fast, plain))
    assert type(fast.bn1) is nn.SyncBatchNorm
    assert_close(fast(x), plain(x), **EXACT)


def test_update_bn_refreshes_the_averages():
    plain, fast, x = build(ZOO["ResNet"])
    for model in (plain, fast):
        update_bn([x, x + 1, 2 * x], model)
    assert fast.bn1.num_batches_tracked == 3
    states_are_close(fast, plain)


def test_freezing_by_a_loop():
    plain, fast, x = build(ZOO["ResNet"])
    before = copy.deepcopy(dict(fast.named_buffers()))
    for model in (plain, fast):
        for module in model.train().modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
                module.requires_grad_(False)
    assert_close(fast(x), plain(x), **EXACT)
    assert_close(dict(fast.named_buffers()), before, rtol=0, atol=0)


def test_fx_fusion_fails_loudly():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it defines a scripted module
        from torch.fx.experimental import optimization
    _, fast, _ = build(ZOO["ResNet"])
    with pytest.raises(fx.proxy.TraceError, match="control flow"):
        optimization.fuse(fast.eval())


def test_fx_can_trace_it_with_norms_as_leaves():
    class Tracer(fx.Tracer):
        def is_leaf_module(self, module, path):
            return isinstance(module, nn.BatchNorm2d) or super().is_leaf_module(module, path)

    plain, fast, x = build(ZOO["ResNet"])
    graph = Tracer().trace(fast)
    assert {"x"} == {node.name for node in graph.nodes if node.op == "placeholder"}
    targets = [node.target for node in graph.nodes]
    assert targets == [node.target for node in Tracer().trace(plain).nodes]
    assert_close(fx.GraphModule(fast, graph)(x), plain(x), **EXACT)


def test_fuse_conv_bn_eval_and_putting_the_result_in_place():
    plain, fast, x = build()
    expected = plain.eval()(x)
    fast.eval()
    fast.conv1 = fuse_conv_bn_eval(fast.conv1, fast.bn1)
    fast.bn1 = nn.Identity()
    assert_close(fast(x), expected, **EXACT)
    assert "bn2 + residual + relu" in shown_as_fused(fast)[""]


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
def test_quantization_fusion_fails_loudly():
    _, fast, _ = build()
    with pytest.raises((NotImplementedError, AssertionError), match=r"fuse modules|fuser method"):
        torch.ao.quantization.fuse_modules(fast.eval(), [["conv1", "bn1", "relu"]])


# Copies and wrappers


def test_averaged_models():
    plain, fast, x = build(ZOO["DenseNet"])
    averages = [AveragedModel(model, use_buffers=True) for model in (fast, plain)]
    for average, model in zip(averages, (fast, plain), strict=True):
        model(x)
        average.update_parameters(model)
    shown = {f"module.{path}".rstrip("."): text for path, text in shown_as_fused(fast).items()}
    assert shown_as_fused(averages[0]) == shown
    assert_close(*(average(x) for average in averages), **EXACT)


@pytest.mark.parametrize("reentrant", [False, True])
def test_inside_activation_checkpointing(reentrant):
    plain, fast, x = build()
    for model in (plain, fast):
        y = checkpoint(model, x.requires_grad_(), use_reentrant=reentrant)
        y.square().sum().backward()
    gradients = ({n: p.grad for n, p in model.named_parameters()} for model in (fast, plain))
    assert_close(*gradients, **EXACT)
    states_are_close(fast, plain)


def test_functional_call_uses_the_parameters_it_is_given():
    plain, fast, x = build()
    others = {name: 2 * p.detach() for name, p in plain.named_parameters()}
    got, wanted = (torch.func.functional_call(model, others, (x,)) for model in (fast, plain))
    assert_close(got, wanted, **EXACT)


def test_a_replica_uses_its_own_parts():
    plain, fast, x = build()
    replica = fast._replicate_for_data_parallel()
    for name, child in copy.deepcopy(plain).named_children():
        setattr(replica, name, child)
    states = copy.deepcopy(fast.state_dict())
    assert_close(replica(x), plain(x), **EXACT)
    assert_close(dict(fast.state_dict()), dict(states), rtol=0, atol=0)


def test_a_class_derived_from_the_fused_one():
    """`torch.distributed.fsdp.fully_shard` gives modules such a class."""
    plain, fast, x = build()
    fast.__class__ = type("Sharded", (type(fast),), {})
    assert_close(fast(x), plain(x), **EXACT)
    assert shown_as_fused(fast) == BASIC


def test_one_model_in_many_threads():
    plain, fast, x = build(ZOO["DenseNet"])
    plain.eval(), fast.eval()
    twins = [copy.deepcopy(fast) for _ in range(2)]
    expected, results = plain(x), []

    def call():
        results.extend(model(x) for model in (fast, *twins) for _ in range(3))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 36
    for result in results:
        assert_close(result, expected, **EXACT)


# Exporters of old


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_torchscript_takes_the_forward_as_written():
    plain, fast, x = build()
    traced = torch.jit.trace(fast.eval(), (x,))
    assert_close(traced(x), plain.eval()(x), **EXACT)
    assert [name for name, _ in traced.named_children()] == [n for n, _ in plain.named_children()]
    with pytest.raises(TypeError, match="before torch"):
        accelerate(traced)


def test_nothing_but_norms_and_their_users_changes_class():
    plain, fast, _ = build(ZOO["U-Net"])
    classes = zip(plain.modules(), fast.named_modules(), strict=True)
    changed = {path for old, (path, new) in classes if type(new) is not type(old)}
    norms = {path for path, module in fast.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert changed == norms | set(shown_as_fused(fast))
    assert type(fast.up) is nn.ModuleList
    assert type(fast.inc.norm1) is livella.nn.BatchNorm2d
