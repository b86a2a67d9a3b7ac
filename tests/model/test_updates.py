"""When the averages take in a batch: what torch's layers get wrong, and the guarded ones right."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import livella
from livella.model.updates import pooled_updates, set_update_policy, skipped_updates, step
from tests.processes import in_processes


class Net(nn.Module):
    """Two batch norms, the second in a segment that may be checkpointed."""

    def __init__(self, how: str = "plain"):
        super().__init__()
        self.how = how
        self.first = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh())
        self.second = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh())

    def forward(self, x):
        if self.how == "plain":
            return self.second(self.first(x))
        if self.how == "nested":
            inner = lambda h: checkpoint(self.second, h, use_reentrant=False)  # noqa: E731
            return checkpoint(inner, self.first(x), use_reentrant=True)
        if self.how == "nested the other way":
            inner = lambda h: checkpoint(self.second, h, use_reentrant=True)  # noqa: E731
            return checkpoint(inner, self.first(x), use_reentrant=False)
        return checkpoint(self.second, self.first(x), use_reentrant=self.how == "reentrant")


CHECKPOINTS = ["reentrant", "not reentrant", "nested", "nested the other way"]


def net(how: str = "plain", policy: str = "guarded") -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return set_update_policy(Net(how), policy)


def batches(n: int = 3) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return [torch.randn(8, 3, generator=g) * (k + 1) for k in range(n)]


def run(model: nn.Module) -> dict[str, torch.Tensor]:
    for x in batches():
        model(x).square().sum().backward()
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a.keys() & b.keys())


@pytest.mark.parametrize("how", CHECKPOINTS)
def test_facts_4_6_checkpointed_training_leaves_the_averages_of_plain_training(how):
    assert same(run(net(how)), run(net("plain")))
    assert not same(run(net(how, "torch")), run(net("plain", "torch")))
    assert same(run(net("plain")), run(net("plain", "torch"))) or _close(net)


def _close(make) -> bool:
    """In float32 the guarded update may round otherwise than the kernel's."""
    ours, theirs = run(make("plain")), run(make("plain", "torch"))
    return all(torch.allclose(ours[n], theirs[n], rtol=1e-6, atol=1e-7) for n in theirs)


def test_facts_4_6_a_pass_without_gradients_leaves_them():
    guarded, plain = net(), net(policy="torch")
    for model in (guarded, plain):
        with torch.no_grad():
            model(batches()[0])
    assert guarded.first[1].num_batches_tracked == 0
    assert guarded.first[1].running_var.eq(1).all()
    assert plain.first[1].num_batches_tracked == 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_facts_4_6_a_batch_that_is_not_finite_leaves_them(value):
    guarded, theirs = net(), Net()
    run(guarded)
    before = {name: b.clone() for name, b in guarded.named_buffers() if "skipped" not in name}
    x = batches()[0]
    x[2, 1] = value
    theirs(x)
    assert not theirs.first[1].running_mean.isfinite().all()
    with pytest.warns(UserWarning, match="kept its running statistics") as warned:  # noqa: PT031
        guarded(x)
        guarded(x)
    assert len(warned) == 2  # once for each layer
    assert same(before, dict(guarded.named_buffers()))
    assert skipped_updates(guarded) == {"first.1": 2, "second.1": 2}
    run(guarded)
    assert all(buffer.isfinite().all() for buffer in guarded.buffers())


def test_facts_4_6_averages_of_a_bfloat16_model_arrive():
    x = torch.full((4, 3), 2.0, dtype=torch.bfloat16) + torch.tensor([0, 0, 1, -1])[:, None] / 8
    theirs = nn.BatchNorm1d(3, momentum=0.01).bfloat16()
    ours = set_update_policy(nn.Sequential(nn.BatchNorm1d(3, momentum=0.01)).bfloat16(), "guarded")
    again = set_update_policy(nn.Sequential(nn.BatchNorm1d(3, momentum=0.01)), "guarded").bfloat16()
    x = x.bfloat16()
    for layer in (theirs, ours, again):
        for _ in range(1500):
            layer(x)
    assert abs(float(theirs.running_mean[0]) - 2) > 0.2
    for model in (ours, again):
        assert model[0].running_mean.dtype == torch.float32
        assert model[0].weight.dtype == torch.bfloat16
        torch.testing.assert_close(model[0].running_mean, torch.full((3,), 2.0), atol=1e-5, rtol=0)
        assert model.eval()(x).dtype == torch.bfloat16
    assert ours.double()[0].running_mean.dtype == torch.float64


def test_the_default_is_torchs_to_the_bit():
    ours, theirs = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    set_update_policy(nn.Sequential(ours), "torch")
    assert type(ours) is livella.nn.BatchNorm1d
    assert ours._switches is None
    with torch.no_grad():
        for layer in (ours, theirs):
            layer(batches()[0])
    assert ours.num_batches_tracked == theirs.num_batches_tracked == 1
    torch.testing.assert_close(ours.running_var, theirs.running_var)


def test_other_classes_are_named():
    class Own(nn.BatchNorm1d):
        pass

    model = nn.Sequential(Own(3), nn.BatchNorm1d(3))
    with pytest.warns(UserWarning, match=r"left alone, being of another class: 0 \(Own\)"):
        set_update_policy(model, "guarded")
    assert model[1].update_policy == "guarded"
    with pytest.raises(ValueError, match=r"expected .torch. or .guarded., got 'safe'"):
        set_update_policy(model, "safe")


def test_facts_4_6_a_step_the_loss_scaler_skipped_is_taken_back():
    model = net("plain", "torch")
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)

    def train(factor: float) -> bool:
        """One step; whether the averages are as before."""
        before = {name: b.clone() for name, b in model.named_buffers()}
        with step(model, scaler):
            optimizer.zero_grad()
            loss = factor * model(batches()[0]).square().sum()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        return same(before, dict(model.named_buffers()))

    assert not train(1.0)
    assert train(math.inf)
    assert not train(1.0)


def test_a_step_can_be_taken_back_by_hand_and_by_an_exception():
    model = net("plain", "torch")
    before = {name: b.clone() for name, b in model.named_buffers()}
    with step(model) as begun:
        run(model)
        begun.take_back()
    assert same(before, dict(model.named_buffers()))
    with pytest.raises(KeyError), step(model):  # noqa: PT012
        run(model)
        raise KeyError
    assert same(before, dict(model.named_buffers()))


@pytest.mark.parametrize("momentum", [0.1, None, 0.0])
def test_pooled_updates_take_micro_batches_as_one(momentum):
    x = torch.randn(24, 3, 5, dtype=torch.float64).sort(0).values
    whole = nn.BatchNorm1d(3, momentum=momentum, dtype=torch.float64)
    pooled, plain = copy.deepcopy(whole), copy.deepcopy(whole)
    for _ in range(2):
        whole(x)
        with pooled_updates(pooled):
            for part in x.split([7, 1, 16]):
                pooled(part)
                plain(part)
    torch.testing.assert_close(pooled.running_mean, whole.running_mean)
    torch.testing.assert_close(pooled.running_var, whole.running_var)
    assert pooled.num_batches_tracked == whole.num_batches_tracked == 2
    if momentum != 0.0:
        assert not torch.allclose(plain.running_var, whole.running_var, rtol=0.05)


def test_pooled_updates_of_masked_frozen_checkpointed_and_failing_steps():
    layer = livella.nn.BatchNorm1d(3)
    mask = torch.arange(24) < 20
    x = torch.randn(24, 3, 1)
    with pooled_updates(layer):
        layer(x[:12], mask=mask[:12, None])
        layer(x[12:], mask=mask[12:, None])
    torch.testing.assert_close(layer.running_mean, 0.1 * x[:20, :, 0].mean(0))
    for how in CHECKPOINTS:
        models = [net(how, "torch"), net("plain", "torch")]
        for model in models:
            with pooled_updates(model):
                run(model)
        assert same(*(dict(model.named_buffers()) for model in models))
    frozen = livella.freeze(nn.Sequential(nn.BatchNorm1d(3)))
    with pooled_updates(frozen):
        frozen(x[:, :, 0])
    assert frozen[0].num_batches_tracked == 0
    before = layer.running_mean.clone()
    with pytest.raises(KeyError), pooled_updates(layer):  # noqa: PT012
        layer(x)
        raise KeyError
    assert torch.equal(layer.running_mean, before)
    assert not layer._forward_pre_hooks


def test_pooled_updates_of_a_model_compiled_before():
    model = Net()
    wanted = copy.deepcopy(model)
    compiled = torch.compile(model, backend="eager")
    compiled(batches()[0])
    wanted(batches()[0])
    for each in (compiled, wanted):
        with pooled_updates(each):
            each(batches()[1]).sum().backward()
    for (name, buffer), other in zip(model.named_buffers(), wanted.buffers(), strict=True):
        torch.testing.assert_close(buffer, other, msg=name)


def test_a_batch_kept_out_stays_counted_when_its_step_is_taken_back():
    model = net()
    bad = batches()[0].fill_(math.nan)
    with step(model) as begun:
        with pytest.warns(UserWarning, match="met NaN"):
            model(bad)
        begun.take_back()
    assert set(skipped_updates(model).values()) == {1}
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with pooled_updates(model):
        model(bad)
    assert set(skipped_updates(model).values()) == {3}  # in the pass, and as the pool
    kept = [name for name in before if "skipped" not in name]
    assert all(torch.equal(model.get_buffer(name), before[name]) for name in kept)


def test_averages_stay_exact_when_a_state_of_less_precision_is_assigned():
    model = net()
    low = {n: t.bfloat16() if t.is_floating_point() else t for n, t in model.state_dict().items()}
    model.load_state_dict(low, assign=True)
    assert model.first[1].running_var.dtype == torch.float32
    assert model.first[1].weight.dtype == torch.bfloat16


def _pooled(rank: int, world: int) -> dict[str, torch.Tensor]:
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)) + torch.arange(8.0)[:, None]
    model = livella.nn.SyncBatchNorm.convert(nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3)))
    with pooled_updates(model):  # two micro-batches each; the second layer is not called
        for part in x.split((5, 3))[rank].split((3, 2) if rank == 0 else (2, 1)):
            model[0](part).sum().backward()
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def test_pooled_updates_of_synchronized_layers_are_those_of_all_processes(tmp_path):
    first, second = in_processes(_pooled, 2, tmp_path)
    assert isinstance(first, dict), first
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)) + torch.arange(8.0)[:, None]
    torch.testing.assert_close(first["0.running_mean"], 0.1 * x.mean(0))
    torch.testing.assert_close(first["0.running_var"], 0.9 + 0.1 * x.var(0))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_step_takes_back_what_a_recurrent_layer_has_learned_of_longer_sequences():
    layer = livella.nn.BatchNormLSTM(3, 5)
    layer(torch.randn(4, 6, 3))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with livella.step(layer) as step:
        layer(torch.randn(9, 6, 3))
        assert len(layer.num_batches_tracked_l0) == 9
        step.take_back()
    assert_close(dict(layer.state_dict()), before, rtol=0, atol=0)


def test_what_averages_otherwise_is_named():
    model = nn.Sequential(nn.BatchNorm1d(3), livella.nn.MovingAverageBatchNorm1d(3))
    with pytest.warns(UserWarning, match=r"left alone.*1 \(MovingAverageBatchNorm1d\)"):
        livella.set_update_policy(model, "guarded")
    with pytest.warns(UserWarning, match=r"1 \(MovingAverageBatchNorm1d\); each process keeps"):
        livella.nn.SyncBatchNorm.convert(model)
    estimate = livella.estimate_population(model, [torch.randn(8, 3)], progress=False)
    assert "MovingAverageBatchNorm1d" in estimate.left["1"]
