"""Freezing that freezes, and gives back all there was."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import livella
from livella.model.freeze import freeze, is_frozen, unfreeze
from tests.model.test_population import assert_untouched, state
from tests.processes import in_processes


class Scaled(nn.BatchNorm2d):
    """A user's batch norm with a forward of its own."""

    def forward(self, x):
        return 2 * super().forward(x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, momentum=0.3))
        self.body = nn.Sequential(livella.nn.BatchNorm2d(4, activation="relu"), Scaled(4))
        self.head = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

    def forward(self, x):
        return self.head(self.body(self.stem(x)).mean((2, 3)))


def images() -> torch.Tensor:
    return torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)) + 1


def train(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model.train()(images()).square().sum().backward()
        optimizer.step()


def norms(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: tensor.clone()
        for name, tensor in model.state_dict().items()
        if name.startswith(("stem.1", "body", "head.1"))
    }


def test_facts_4_5_torchs_way_is_undone_by_train_and_this_one_is_not():
    theirs = Net()
    before = norms(theirs)
    for layer in theirs.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.eval()
    train(theirs)
    after = norms(theirs)
    assert not torch.equal(before["stem.1.running_mean"], after["stem.1.running_mean"])

    model = freeze(Net())
    before = norms(model)
    convolution = model.stem[0].weight.clone()
    train(model)
    after = norms(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(convolution, model.stem[0].weight)


def test_facts_4_5_statistics_switched_off_still_train_by_the_batch_in_torch():
    x = torch.randn(8, 4) + 3
    theirs, ours = nn.BatchNorm1d(4), livella.nn.BatchNorm1d(4)
    theirs.track_running_stats = False
    ours.normalize_by, ours.update_running = "running", False
    assert not torch.allclose(theirs.train()(x), theirs.eval()(x), atol=0.5)
    torch.testing.assert_close(ours.train()(x), ours.eval()(x))


def test_a_frozen_model_gives_in_training_what_it_gives_in_evaluation():
    model = Net()
    train(model)
    freeze(model)
    torch.testing.assert_close(model.train()(images()), model.eval()(images()))


def test_it_survives_state_dict_deepcopy_pickle_and_loading():
    model = freeze(Net())
    keys = list(Net().state_dict())
    assert list(model.state_dict()) == keys
    model.load_state_dict(Net().state_dict())
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        before = norms(other)
        train(other)
        after = norms(other)
        assert all(torch.equal(before[name], after[name]) for name in before)
        unfreeze(other)
        train(other)
        assert not torch.equal(norms(other)["body.1.running_mean"], before["body.1.running_mean"])


def test_unfreezing_gives_all_back():
    model = Net()
    model.head[1].bias.requires_grad_(False)
    kinds = [type(m) for m in model.modules()]
    before = state(model)
    grads = {name: p.requires_grad for name, p in model.named_parameters()}
    freeze(freeze(model, statistics=False), affine=False)
    assert not model.stem[1].weight.requires_grad
    assert is_frozen(model.body[1])
    model(images())
    unfreeze(model)
    assert [type(m) for m in model.modules()] == kinds
    assert {name: p.requires_grad for name, p in model.named_parameters()} == grads
    assert_untouched(model, before)
    unfreeze(model)
    assert_untouched(model, before)


def test_some_layers_by_name():
    model = freeze(Net(), ["stem", "body.1"])
    frozen = [name for name, m in model.named_modules() if is_frozen(m)]
    assert frozen == ["stem.1", "body.1"]
    unfreeze(model, "stem")
    assert not is_frozen(model.stem[1])
    assert is_frozen(model.body[1])
    with pytest.raises(ValueError, match="got 'steem'; did you mean 'stem"):
        freeze(model, ["head", "steem"])
    assert not is_frozen(model.head[1])


def test_a_layer_without_statistics_is_refused_before_any_change():
    model = Net()
    model.head[1] = nn.BatchNorm1d(4, track_running_stats=False)
    before = state(model)
    with pytest.raises(ValueError, match=r"got 'head\.1' without"):
        freeze(model)
    assert_untouched(model, before)
    freeze(model, statistics=False)
    assert not model.head[1].weight.requires_grad


def test_statistics_or_affine_alone():
    model = freeze(Net(), affine=False)
    before = norms(model)
    train(model)
    assert torch.equal(norms(model)["stem.1.running_var"], before["stem.1.running_var"])
    assert not torch.equal(norms(model)["stem.1.weight"], before["stem.1.weight"])
    model = freeze(Net(), statistics=False)
    before = norms(model)
    train(model)
    assert not torch.equal(norms(model)["stem.1.running_var"], before["stem.1.running_var"])
    assert torch.equal(norms(model)["stem.1.weight"], before["stem.1.weight"])


def test_a_failing_call_leaves_the_mode():
    model = freeze(Net())
    with pytest.raises(ValueError, match="expected 4D"):
        model.body[1](torch.ones(2, 4))
    assert model.body[1].training
    assert model.body[1].running_var.eq(1).all()


def _trained_frozen(rank, world):
    model = nn.parallel.DistributedDataParallel(freeze(Net()))
    before = norms(model.module)
    train(model)
    return before, norms(model.module)


def test_distributed_data_parallel(tmp_path):
    for before, after in in_processes(_trained_frozen, 2, tmp_path):
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_synchronized_layers_of_torch_are_frozen_too():
    model = nn.Sequential(nn.SyncBatchNorm(3))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    y = freeze(model).train()(torch.randn(4, 3))  # in training it refuses the CPU
    assert y.shape == (4, 3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model[0].training


def test_unfreezing_keeps_what_was_done_since():
    model = freeze(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    livella.set_update_policy(model, "guarded")
    unfreeze(model)
    assert type(model[1]) is livella.nn.BatchNorm1d
    assert model[1].update_policy == "guarded"
    assert model[1].normalize_by is None
    assert model[1].update_running

    model = freeze(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    livella.nn.SyncBatchNorm.convert(model)
    unfreeze(model)
    assert type(model[1]) is livella.nn.SyncBatchNorm
    livella.nn.SyncBatchNorm.revert(model)
    assert type(model[1]) is livella.nn.BatchNorm1d

    model = livella.nn.SyncBatchNorm.convert(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    livella.nn.SyncBatchNorm.revert(freeze(model))
    assert model[1].normalize_by == "running"  # still frozen, in a class that has the switch
    assert type(unfreeze(model)[1]) is livella.nn.BatchNorm1d

    model = livella.accelerate(freeze(nn.Sequential(nn.BatchNorm1d(2), nn.ReLU())))
    said = str(model)
    unfreeze(model)
    assert type(model[0]) is livella.nn.BatchNorm1d
    assert "(fused)" in said


@pytest.mark.parametrize("change", [freeze, livella.nn.SyncBatchNorm.convert])
def test_a_parametrized_layer_keeps_its_class(change):
    model = change(nn.Sequential(nn.BatchNorm1d(2)))
    torch.nn.utils.parametrize.register_parametrization(model[0], "weight", nn.Softplus())
    if change is freeze:
        unfreeze(model)
    else:
        with pytest.warns(UserWarning, match="left alone"):
            livella.nn.SyncBatchNorm.revert(model)
    assert model(torch.randn(4, 2)).shape == (4, 2)


@pytest.mark.parametrize(
    "kind", [livella.nn.BatchNormLSTM, livella.nn.BatchNormGRU, livella.nn.MovingAverageBatchNorm1d]
)
def test_what_averages_otherwise_is_frozen_too(kind):
    layer = kind(3) if "Moving" in kind.__name__ else kind(3, 5)
    x = torch.randn(6, 4, 3).transpose(1, 2) if "Moving" in kind.__name__ else torch.randn(6, 4, 3)
    out = lambda: layer(x) if "Moving" in kind.__name__ else layer(x)[0]  # noqa: E731
    model = livella.freeze(nn.ModuleList([layer])).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = out()
    assert_close(trained, (model.eval(), out())[1], rtol=0, atol=0)
    assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    asks = {name for name, p in layer.named_parameters() if p.requires_grad}
    assert asks == {n for n, _ in layer.named_parameters() if n.startswith(("weight_", "bias_"))}
    livella.unfreeze(model).train()
    out()
    assert all(p.requires_grad for p in layer.parameters())
    assert any(not torch.equal(v, before[k]) for k, v in model.state_dict().items())
