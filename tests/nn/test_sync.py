"""Synchronized layers: several processes against one with the joined batch."""

import copy
import os
import pickle
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import livella.nn as lnn
from livella.nn import SyncBatchNorm, SyncBatchNormAct
from tests.processes import in_processes

CASES: dict[str, dict[str, Any]] = {
    "unequal": {"sizes": (5, 3)},
    "one sample": {"sizes": (1, 1)},
    "empty": {"sizes": (8, 0)},
    "empty first": {"sizes": (0, 4)},
    "three": {"sizes": (2, 0, 3)},
    "masked": {"sizes": (5, 3), "masked": True},
    "all masked in one": {"sizes": (5, 3), "masked": "second"},
    "channels_last": {"sizes": (5, 3), "last": True},
    "features": {"sizes": (5, 3), "shape": ()},
    "fused": {"sizes": (5, 3), "activation": "silu", "residual": True},
    "cumulative": {"sizes": (5, 3), "momentum": None},
    "guarded": {"sizes": (5, 3), "policy": "guarded"},
    "float32": {"sizes": (5, 3), "dtype": torch.float32},
    "no statistics": {"sizes": (5, 3), "track": False},
}


def inputs(case: dict[str, Any]) -> dict[str, Tensor | None]:
    g = torch.Generator().manual_seed(0)
    n, shape = sum(case["sizes"]), case.get("shape", (2, 3))
    dtype = case.get("dtype", torch.float64)
    x, residual, dy = (torch.randn(n, 4, *shape, generator=g, dtype=torch.float64) for _ in "abc")
    mask = torch.rand(n, *shape, generator=g) > 0.4 if case.get("masked") else None
    if case.get("masked") == "second":
        mask[case["sizes"][0] :] = False
    x = (3 * x + 2).to(dtype)
    if case.get("last"):
        x = x.contiguous(memory_format=torch.channels_last)
    residual = residual.to(dtype) if case.get("residual") else None
    return {"x": x, "residual": residual, "mask": mask, "dy": dy.to(dtype)}


def layer_of(kind: Any, case: dict[str, Any]) -> Any:
    layer = kind(
        4, momentum=case.get("momentum", 0.1), track_running_stats=case.get("track", True),
        activation=case.get("activation"), dtype=case.get("dtype", torch.float64),
    )  # fmt: skip
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(0.5, 2, 4))
        layer.bias.copy_(torch.linspace(-1, 1, 4))
    layer.update_policy = case.get("policy", "torch")
    return layer


def run(layer: Any, given: dict[str, Tensor | None]) -> dict[str, Tensor]:
    """One step of a gradient penalty: everything first and second order that comes out."""
    x = given["x"].detach().requires_grad_()
    y = layer(x, residual=given["residual"], mask=given["mask"])
    parameters = (layer.weight, layer.bias)
    first = torch.autograd.grad(y, (x, *parameters), given["dy"], create_graph=True)
    second = torch.autograd.grad(first[0].square().sum(), (x, layer.weight))
    names = ("dx", "dweight", "dbias", "ddx", "ddweight")
    found = dict(zip(names, (*first, *second), strict=True)) | {"y": y}
    found |= {name: b for name, b in layer.named_buffers() if "skipped" not in name}
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def _all_cases(rank: int, world: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name, case in CASES.items():
        if len(case["sizes"]) != world:
            continue
        given = {
            key: None if value is None else value.split(case["sizes"])[rank]
            for key, value in inputs(case).items()
        }
        layer = layer_of(SyncBatchNorm, case)
        results[name] = run(layer, given)
        y = layer(given["x"], residual=given["residual"], mask=given["mask"])
        last = (
            given["x"].is_contiguous(memory_format=torch.channels_last) if y.dim() == 4 else False
        )
        results[name]["format"] = not last or y.is_contiguous(memory_format=torch.channels_last)
        results[name]["evaluation"] = layer.eval()(given["x"]).detach()
    return results


@pytest.mark.parametrize("world", [2, 3])
def test_processes_give_what_one_does_with_the_joined_batch(world, tmp_path):
    results = in_processes(_all_cases, world, tmp_path)
    assert all(isinstance(result, dict) for result in results), results
    cases = {name: case for name, case in CASES.items() if len(case["sizes"]) == world}
    assert results[0].keys() == cases.keys()
    for name, case in cases.items():
        expected = run(layer_of(lnn.BatchNorm2d if "shape" not in case else lnn.BatchNorm1d, case),
                       inputs(case))  # fmt: skip
        parts = [result[name] for result in results]
        near = {"rtol": 1e-5, "atol": 1e-5} if "dtype" in case else {"rtol": 1e-10, "atol": 1e-10}
        for key, value in expected.items():
            if key in ("y", "dx", "ddx"):
                found = torch.cat([part[key] for part in parts])
            elif key in ("dweight", "dbias", "ddweight"):
                found = torch.stack([part[key] for part in parts]).sum(0)
            else:
                found = parts[0][key]
                assert all(torch.equal(part[key], found) for part in parts), (name, key)
            torch.testing.assert_close(
                found, value, **near, msg=lambda m, n=name, k=key: f"{n} {k} {m}"
            )
        assert all(part["format"] for part in parts)


def _collectives(rank: int, world: int) -> list[str]:
    called: list[str] = []
    for name in [n for n in dir(dist) if n.startswith(("all_", "reduce", "gather", "broadcast"))]:
        real = getattr(dist, name)

        def counted(*args: Any, real: Any = real, name: str = name, **options: Any) -> Any:
            called.append(name)
            return real(*args, **options)

        setattr(dist, name, counted)
    layer = SyncBatchNorm(4)
    y = layer(torch.randn(5 - rank, 4, requires_grad=True))
    called.append("backward")
    y.square().sum().backward()
    layer.eval()(torch.randn(2, 4))
    return called


def test_one_collective_forward_and_one_backward(tmp_path):
    for called in in_processes(_collectives, 2, tmp_path):
        assert called == ["all_gather", "backward", "all_reduce"]


def _one_value(rank: int, world: int) -> None:
    SyncBatchNorm(4)(torch.randn(1 - rank, 4))


def test_one_value_over_all_processes_is_refused_by_all(tmp_path):
    for result in in_processes(_one_value, 2, tmp_path):
        assert "ValueError" in result
        assert "got one over all 2 processes" in result


def _trained(rank: int, world: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))
    model = SyncBatchNorm.convert(model).double()
    ddp = nn.parallel.DistributedDataParallel(model)
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    optimizer = torch.optim.SGD(ddp.parameters(), 0.1)
    for _ in range(5):
        optimizer.zero_grad()
        ddp(x.split(6)[rank]).square().mean().backward()
        optimizer.step()
    return model.state_dict()


def test_distributed_data_parallel_trains_as_one_process_does(tmp_path):
    results = in_processes(_trained, 2, tmp_path)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1)).double()
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(5):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    for name, tensor in model.state_dict().items():
        for result in results:
            torch.testing.assert_close(result[name], tensor, rtol=1e-9, atol=1e-9)


def _died(folder: Path, rank: int, world: int) -> None:
    layer = SyncBatchNorm(4)
    layer(torch.randn(3, 4))
    if rank == 1:
        os._exit(0)
    try:
        layer(torch.randn(3, 4))
    except RuntimeError as error:
        words = str(error)
    else:
        words = "no error"
    torch.save(words, folder / "words.pt")
    os._exit(0)


def test_a_process_that_dies_leaves_a_clear_error(tmp_path):
    with pytest.raises(FileNotFoundError):  # neither process ends in the usual way
        in_processes(partial(_died, tmp_path), 2, tmp_path)
    words = torch.load(tmp_path / "words.pt")
    assert words.startswith("SyncBatchNorm: rank 0 of 2 waited for the others in forward and got:")
    assert "Another process ended, or called the layer fewer times" in words


class Own(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) + 1


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm1d(3), nn.BatchNorm2d(3), lnn.BatchNorm2d(3, activation="relu"),
        nn.SyncBatchNorm(3), Own(3),
    )  # fmt: skip


def _torchs(rank: int, world: int) -> None:
    nn.SyncBatchNorm(4)(torch.randn(3, 4))


def test_facts_4_7_torchs_refuses_the_cpu(tmp_path):
    for result in in_processes(_torchs, 2, tmp_path):
        assert "expected input tensor to be on GPU" in result


def test_facts_4_7_torchs_converter_drops_a_forward():
    x = torch.randn(4, 3, 2, 2)
    theirs = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(Own(3)).eval())
    ours = nn.Sequential(Own(3)).eval()
    with pytest.warns(UserWarning, match="left alone"):
        SyncBatchNorm.convert(ours)
    assert not torch.allclose(theirs(x), ours(x))
    torch.testing.assert_close(ours(x), Own(3).eval()(x))
    assert SyncBatchNorm(3)(x).shape == x.shape


def test_convert_and_revert_keep_everything():
    model = network()
    kinds, layers = [type(m) for m in model], list(model)
    tensors = [*model.parameters(), *model.buffers()]
    hook = model[1].register_forward_hook(lambda *_: None)
    model[0].eval()
    keys = list(model.state_dict())
    with pytest.warns(UserWarning, match=r"SyncBatchNorm.convert: left alone.*4 \(Own\)"):
        assert SyncBatchNorm.convert(model) is model
    assert [type(m) for m in model][:4] == [SyncBatchNorm] * 2 + [SyncBatchNormAct, SyncBatchNorm]
    assert all(a is b for a, b in zip(model, layers, strict=True))
    assert all(
        a is b for a, b in zip([*model.parameters(), *model.buffers()], tensors, strict=True)
    )
    assert list(model.state_dict()) == keys
    assert not model[0].training
    assert hook.id in model[1]._forward_hooks
    hook.remove()
    assert model[2].activation == "relu"
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model[:4]))):
        assert other[2](torch.randn(2, 3, 4, 4)).min() == 0
    with pytest.raises(ValueError, match="expected 4D input"):
        model[1](torch.randn(4, 3))
    assert SyncBatchNorm.revert(model) is model
    assert [type(m) for m in model] == kinds
    assert model[1](torch.randn(2, 3, 4, 4)).shape == (2, 3, 4, 4)


def test_layers_built_as_such():
    layer = SyncBatchNorm(3, activation="relu")
    assert type(layer) is SyncBatchNormAct
    assert not isinstance(layer, _BatchNorm)
    plain = SyncBatchNorm(3, process_group=None, dtype=torch.float64)
    assert isinstance(plain, _BatchNorm)
    assert not isinstance(plain, nn.SyncBatchNorm)
    x = torch.randn(4, 3, dtype=torch.float64)
    torch.testing.assert_close(plain(x), nn.BatchNorm1d(3, dtype=torch.float64)(x))
    assert type(SyncBatchNorm.revert(plain)) is nn.SyncBatchNorm
    with pytest.warns(UserWarning, match=r"revert: left alone.*SyncBatchNormAct"):
        SyncBatchNorm.revert(layer)
    assert isinstance(lnn.make_norm("sync", 3, 2), SyncBatchNorm)


# A group that is not that of all processes


class Threads:
    """A group of threads in place of processes: whoever asks another group gets no answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
        self.size, self.own = size, threading.local()
        self.places: list[Any] = [None] * size
        self.meeting = threading.Barrier(size, timeout=60)
        for name, instead in {
            "is_initialized": lambda: True,
            "get_world_size": lambda group=None: group.size if group is self else 1,
            "get_rank": lambda group=None: self.own.rank if group is self else 0,
            "all_gather": lambda parts, own, group=None: self.gather(parts, own, group),
            "all_reduce": lambda total, group=None: self.reduce(total, group),
        }.items():
            monkeypatch.setattr(dist, name, instead)

    def exchange(self, own: Tensor, group: object) -> list[Tensor]:
        assert group is self
        self.places[self.own.rank] = own.detach().clone()
        self.meeting.wait()
        found = list(self.places)
        self.meeting.wait()
        return found

    def gather(self, parts: list[Tensor], own: Tensor, group: object) -> None:
        for part, each in zip(parts, self.exchange(own, group), strict=True):
            part.copy_(each)

    def reduce(self, total: Tensor, group: object) -> None:
        total.copy_(torch.stack(self.exchange(total, group)).sum(0))

    def run(self, work: Any) -> list[Any]:
        """Give what work(rank) gives in each thread."""
        results: list[Any] = [None] * self.size

        def one(rank: int) -> None:
            self.own.rank = rank
            try:
                results[rank] = work(rank)
            except Exception as error:
                results[rank] = error

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


@pytest.mark.parametrize("valid", [None, 0, 1, 2])
@pytest.mark.parametrize("size", [2, 3])
def test_a_group_normalizes_by_its_own_processes(size, valid, monkeypatch):
    case = {"sizes": (5, 3, 2)[:size], "activation": "silu", "residual": True}
    given = inputs(case)
    if valid is not None:
        given["mask"] = torch.zeros(len(given["x"]), 2, 3, dtype=torch.bool)
        given["mask"].view(-1)[-valid:] = valid > 0
    expected = run(layer_of(lnn.BatchNorm2d, case), given)
    group = Threads(monkeypatch, size)

    def work(rank: int) -> dict[str, Tensor]:
        layer = layer_of(SyncBatchNorm, case)
        layer.process_group = group
        split = {k: v if v is None else v.split(case["sizes"])[rank] for k, v in given.items()}
        return run(layer, split)

    parts = group.run(work)
    assert all(isinstance(part, dict) for part in parts), parts
    for key, value in expected.items():
        found = [part[key] for part in parts]
        if key in ("y", "dx", "ddx"):
            joined = torch.cat(found)
        else:
            joined = torch.stack(found).sum(0) if key.startswith("d") else found[-1]
        torch.testing.assert_close(joined, value, rtol=1e-10, atol=1e-10, msg=key)


def test_one_value_in_a_group_is_refused_or_normalized_by_the_averages(monkeypatch):
    group, x = Threads(monkeypatch, 2), torch.randn(1, 4)

    def work(single_value: str) -> list[Any]:
        layer = SyncBatchNorm(4, process_group=group, single_value=single_value)
        return group.run(lambda rank: layer(x[rank:]))

    for error in work("error"):
        assert "one over all 2 processes" in str(error)
    y, empty = work("running")
    torch.testing.assert_close(y, x / (1 + 1e-5) ** 0.5)
    assert empty.shape == (0, 4)


def test_by_running_statistics_no_other_process_is_asked(monkeypatch):
    group = Threads(monkeypatch, 2)
    monkeypatch.setattr(dist, "all_gather", lambda *_, **__: pytest.fail("another was asked"))
    layer = SyncBatchNorm(4, process_group=group)
    layer.normalize_by = "running"
    x = torch.randn(3, 4)
    torch.testing.assert_close(layer(x), x / (1 + 1e-5) ** 0.5)


def test_convert_and_revert_keep_the_group():
    group, other = object(), object()
    model = nn.Sequential(nn.SyncBatchNorm(3), nn.BatchNorm1d(3), lnn.BatchNorm1d(3))
    model[0].process_group = group
    SyncBatchNorm.convert(model)
    assert [layer.process_group for layer in model] == [group, None, None]
    SyncBatchNorm.revert(model)
    assert model[0].process_group is group
    SyncBatchNorm.convert(model, other)
    assert [layer.process_group for layer in model] == [other] * 3
    model[1].normalize_by = "running"
    SyncBatchNorm.revert(model)
    assert [type(layer) for layer in model] == [nn.SyncBatchNorm, *[lnn.BatchNorm1d] * 2]
    assert model[1].normalize_by == "running"
    for layer in model[1:]:
        assert not {"process_group", "input_dims", "_livella_converted_from"} & set(vars(layer))
