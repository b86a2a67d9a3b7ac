"""Micro-batches against the one big batch, and what a failure leaves."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import livella
from livella.model.accumulate import accumulate


class Net(nn.Module):
    """A residual branch, a layer called twice, an activation and a residual fused in, a mask."""

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.c2, self.b2 = nn.Conv2d(4, 4, 3, padding=1), livella.nn.BatchNorm2d(4, momentum=None)
        self.c3, self.b3 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.masked = livella.nn.BatchNorm2d(4, activation="silu")
        self.drop, self.linear, self.shared = (
            nn.Dropout(dropout),
            nn.Linear(4, 4),
            nn.BatchNorm1d(4),
        )
        self.frozen = nn.BatchNorm1d(4, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.b1(self.c1(x)).relu()
        h = self.b2(self.c2(h), residual=self.b3(self.c3(h)), activation="relu")
        h = self.masked(h, mask=x[:, 0] > -0.5).mean((2, 3))
        h = self.shared(self.linear(self.shared(self.drop(h)).tanh()))
        return self.linear(self.frozen(h))


def make(dtype: torch.dtype = torch.float64, **options) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Net(**options).to(dtype).train()
    model.frozen.eval()
    return model


def data(seed: int = 1, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(16, 1, 5, 5, generator=g, dtype=torch.float64).to(dtype)
    return x + torch.linspace(-1, 1, 16).to(dtype).view(-1, 1, 1, 1), torch.arange(16) % 4


def share(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(output, batch[1], reduction="sum") / 16


def of_whole(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return share(model(batch[0]), batch)


def parts(batch: tuple[Tensor, Tensor]) -> list[tuple[Tensor, Tensor]]:
    sizes = (5, 3, 1, 7)
    return list(zip(*(tensor.split(sizes) for tensor in batch), strict=True))


def assert_same(model: nn.Module, whole: nn.Module, near: float) -> None:
    near = {"rtol": near, "atol": near}
    for (name, p), q in zip(model.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, **near, msg=lambda m, n=name: f"{n}: {m}")
    for (name, p), q in zip(model.state_dict().items(), whole.state_dict().values(), strict=True):
        torch.testing.assert_close(p, q, **near, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("fast", [False, True])
def test_one_step_is_that_of_the_big_batch(fast):
    model, whole = make(), make()
    if fast:
        livella.accelerate(model)
    for _ in range(2):  # gradients add up, and averages go on
        total = accumulate(model, parts(data()), share)
        expected = of_whole(whole, data())
        expected.backward()
        torch.testing.assert_close(total, expected.detach())
    assert_same(model, whole, 1e-9)
    assert model.b2.num_batches_tracked == 2
    assert model.shared.num_batches_tracked == 4
    assert not [m for m in model.modules() if "forward" in vars(m)]


def test_facts_4_7_micro_batched_training_equals_full_batch_training():
    models = [make(torch.float32) for _ in range(3)]
    optimizers = [torch.optim.SGD(model.parameters(), 0.1, momentum=0.9) for model in models]
    for k in range(20):
        batch = data(k, torch.float32)
        for optimizer in optimizers:
            optimizer.zero_grad()
        accumulate(models[0], parts(batch), share)
        of_whole(models[1], batch).backward()
        for part in parts(batch)[:2] + parts(batch)[3:]:  # torch refuses a micro-batch of one
            of_whole(models[2], part).backward()
        for optimizer in optimizers:
            optimizer.step()
    exact, whole, plain = (torch.cat([p.flatten() for p in m.parameters()]) for m in models)
    torch.testing.assert_close(exact, whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(models[0].b1.running_var, models[1].b1.running_var)
    assert (plain - whole).abs().max() > 1e-2


def test_dropout_drops_the_same_in_each_pass():
    found = []
    for _ in range(2):
        model = make(dropout=0.5)
        torch.manual_seed(3)
        accumulate(model, parts(data()), share)
        found.append((model.linear.weight.grad.clone(), torch.rand(1)))
    assert torch.equal(found[0][0], found[1][0])
    torch.manual_seed(3)
    model = make(dropout=0.5)
    for layer in (model.b1, model.b2, model.b3, model.masked, model.shared):
        layer.eval()  # a sample by itself
    with torch.no_grad():
        for x, _ in parts(data()):
            model(x)
    assert torch.equal(torch.rand(1), found[0][1])  # as after one plain pass


def test_a_failure_at_any_call_leaves_everything_as_it_was():
    model = make(dropout=0.5)
    of_whole(model, data()).backward()
    before = copy.deepcopy(model.state_dict())
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    calls = 0

    def counted(call):
        def failing(*args):
            nonlocal calls
            calls += 1
            if calls == fail_at:
                raise RuntimeError("injected")
            return call(*args)

        return failing

    options = {"loss": counted(share), "forward": counted(lambda model, batch: model(batch[0]))}
    fail_at, rng = 0, torch.get_rng_state()
    accumulate(copy.deepcopy(model), parts(data()), **options)
    total = calls
    for at in (1, 2, 5, total // 2, total - 4, total - 3, total - 1, total):
        calls, fail_at = 0, at
        torch.set_rng_state(rng)
        with pytest.raises(RuntimeError, match="injected"):
            accumulate(model, parts(data()), **options)
        assert torch.equal(torch.get_rng_state(), rng)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name]), name
        for name, p in model.named_parameters():
            assert name not in grads or torch.equal(p.grad, grads[name])
        assert not [m for m in model.modules() if "forward" in vars(m)]


def test_bad_input():
    model = make()
    with pytest.raises(ValueError, match="got no micro-batches"):
        accumulate(model, [], share)
    for loss, said in [
        (lambda output, _: output, r"one number, got a tensor of shape \(5, 4\), float64"),
        (lambda output, _: float(output.detach().sum()), "one number, got a float"),
        (lambda *_: None, "one number, got None"),
    ]:
        with pytest.raises(ValueError, match=said):
            accumulate(model, parts(data()), loss)
    one = nn.Sequential(nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match="layer '0' expected more than one value"):
        accumulate(one, [torch.ones(1, 3)], lambda output, _: output.sum())

    class Own(nn.BatchNorm1d):
        def forward(self, x):
            return super().forward(x)

    with pytest.raises(TypeError, match=r"layer '0' \(Own\) has a forward of its own"):
        accumulate(nn.Sequential(Own(3)), [torch.ones(4, 3)], lambda output, _: output.sum())


def test_a_model_without_batch_norm_is_plain_accumulation():
    model = nn.Linear(3, 1)
    x = torch.randn(6, 3)
    total = accumulate(model, x.split(2), lambda output, _: output.sum())
    torch.testing.assert_close(model.weight.grad, x.sum(0, keepdim=True))
    torch.testing.assert_close(total, model(x).sum().detach())


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool):
        super().__init__()
        self.reentrant = reentrant
        self.first = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh())
        self.last = nn.Linear(4, 1)

    def forward(self, x):
        return self.last(checkpoint(self.net, self.first(x), use_reentrant=self.reentrant))


def test_activation_checkpoints():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Checkpointed(reentrant=False).double()
        x = torch.randn(8, 3, dtype=torch.float64)
    whole = copy.deepcopy(model)
    loss = lambda output, _: output.square().sum()  # noqa: E731
    loss(whole(x), x).backward()
    accumulate(model, x.split(3), loss)
    assert [int(b) for n, b in model.named_buffers() if n.endswith("tracked")] == [1, 1]
    for buffer, other in zip(model.buffers(), whole.buffers(), strict=True):
        other.copy_(buffer)  # torch's takes a checkpointed batch in twice
    assert_same(model, whole, 1e-10)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_reentrant_checkpoint_is_refused():
    model, x = Checkpointed(reentrant=True).double(), torch.randn(8, 3, dtype=torch.float64)
    loss = lambda output, _: output.square().sum()  # noqa: E731
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match=r"layer 'net.1' .*use_reentrant=False"):
        accumulate(model, x.split(3), loss)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_forward_replaced_on_the_layer_itself_is_refused():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[1].forward = lambda x: x
    with pytest.raises(TypeError, match=r"layer '1' .* forward of its own"):
        accumulate(model, [torch.randn(4, 2)], lambda output, _: output.sum())


@pytest.mark.parametrize("kind", ["moving_average", "lstm"])
def test_what_averages_otherwise_is_refused_unless_frozen(kind):
    lstm = livella.nn.BatchNormLSTM(3, 3)
    layer = lstm if kind == "lstm" else livella.nn.MovingAverageBatchNorm1d(3)
    model = nn.ModuleDict({"norm": nn.BatchNorm1d(3), "other": layer})

    def forward(model, x):
        y = model["norm"](x)
        return model["other"](y[None])[0] if kind == "lstm" else model["other"](y)

    def loss(output, _):
        return output.square().sum()

    micro = list(torch.randn(8, 3).split(4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(TypeError, match=r"layer 'other' .* takes in each micro-batch by itself"):
        livella.accumulate(model, micro, loss, forward=forward)
    assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    livella.freeze(model, ["other"])
    livella.accumulate(model, micro, loss, forward=forward)


OLD = [
    lambda model, batch: model(batch[0]).sum(),
    lambda m, batch: m(batch[0]).sum(),
    nn.CrossEntropyLoss(),
    nn.functional.cross_entropy,
]


@pytest.mark.parametrize("loss", OLD, ids=["by name", "by use", "module", "function"])
def test_a_loss_that_is_called_otherwise_is_told_how(loss):
    model = make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(TypeError, match=r"accumulate: expected .*loss=lambda output, batch"):
        accumulate(model, parts(data()), loss)
    assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)


def test_a_type_error_in_a_loss_is_its_own():
    with pytest.raises(TypeError, match="'int' object is not subscriptable"):
        accumulate(make(), parts(data()), lambda output, batch: len(batch)[0])


def test_micro_batches_in_other_forms():
    x, y = data()
    expected, named, whole = make(), make(), make()
    accumulate(expected, parts((x, y)), share)
    batches = [{"image": x, "label": y} for x, y in parts((x, y))]
    loss = lambda output, batch: share(output, (None, batch["label"]))  # noqa: E731
    accumulate(named, batches, loss)
    forward = lambda model, batch: model(batch["image"] + 0)  # noqa: E731
    accumulate(whole, batches, loss, forward=forward)
    for other in (named, whole):
        for p, q in zip(expected.parameters(), other.parameters(), strict=True):
            assert_close(p.grad, q.grad)
