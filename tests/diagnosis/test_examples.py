"""Networks that eval() ruins are called wrong, whatever the loader, and are repaired."""

import copy

import pytest
import torch
from typer.testing import CliRunner

import livella
from livella.cli import app
from livella.diagnosis.records import Level
from tests.diagnosis import faults

NAMES = ("b1", "b2", "b3")


def too_slow():
    """The CNN on the digits, with the averages that a momentum of 0.001 leaves after an epoch."""
    model = faults.trained("healthy").train()
    for name in NAMES:
        norm = model.get_submodule(name)
        norm.reset_running_stats()
        norm.momentum = 0.001
    with torch.no_grad():
        for x, _ in faults.batches():
            model(x)
    return model.eval()


def exchanged():
    """Twenty layers of one width, the buffers of two in each other's place."""
    model = faults.trained("deep")
    one, other = model[7], model[22]
    for name in ("running_mean", "running_var"):
        a, b = getattr(one, name), getattr(other, name)
        kept = a.clone()
        a.copy_(b)
        b.copy_(kept)
    return model


def loader(examples, order, size, count=480):
    x, y = (part[:count] for part in examples)
    places = {
        "shuffled": torch.randperm(len(x), generator=torch.Generator().manual_seed(1)),
        "as stored": torch.arange(len(x)),
        "by class": y.argsort(stable=True),
    }[order]
    return [(x[part], y[part]) for part in places.split(size)]


def right(model, batches):
    with torch.no_grad():
        hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in batches)
    return hits / sum(len(y) for _, y in batches)


@pytest.mark.parametrize(
    ("order", "size", "labels"),
    [
        ("shuffled", 64, True), ("as stored", 64, True), ("by class", 64, True),
        ("as stored", 4, True), ("by class", 4, True), ("by class", 64, False),
        ("as stored", 4, False),
    ],
)  # fmt: skip
def test_statistics_that_hardly_moved_are_wrong_and_repaired(order, size, labels):
    model = too_slow()
    batches = loader(faults.examples(), order, size)
    well = right(faults.trained("healthy"), batches)
    sick = right(model, batches)
    assert well - sick > 0.3
    before = copy.deepcopy(model.state_dict())
    given = batches if labels else [x for x, _ in batches]
    done = livella.repair(model, given, progress=False)
    found = done.before
    assert found.worst is (Level.ERROR if labels else found.worst)
    assert found.worst.rank >= Level.WARNING.rank
    assert {f.check for f in found.findings} >= {"stale_statistics", "statistics_gap"}
    first = next(f for f in found.findings if f.check not in ("ordered_data", "small_batch"))
    assert first.check == "stale_statistics"
    assert set(done.applied["measure_statistics"]) == set(NAMES)
    assert right(done.model, batches) >= well - 0.02
    assert done.left == ""
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("size", [2, 128])
def test_exchanged_buffers_are_named_in_batches_of_any_size(size):
    model = exchanged()
    x, y = (torch.cat(part) for part in zip(*faults.separable(), strict=True))
    batches = loader((x, y), "as stored", size)
    found = livella.inspect(model, batches, progress=False)
    assert found.worst is Level.ERROR
    blamed = {f.layer for f in found.findings if f.check == "stale_statistics"
              and f.level is Level.ERROR}  # fmt: skip
    assert blamed <= {"7", "22"}
    assert blamed
    named = {f.layer for f in found.findings if f.check == "stale_statistics"}
    assert named == {"7", "22"}


PROGRAM = """
import torch
from tests.diagnosis import faults, test_examples

def build():
    return test_examples.too_slow()

def as_stored():
    return test_examples.loader(faults.examples(), "as stored", 64)
"""


def test_the_commands_say_so_and_exit_accordingly(tmp_path, monkeypatch):
    program = tmp_path / "net.py"
    program.write_text(PROGRAM)
    run = CliRunner().invoke
    place = [f"{program}:build", "--data", f"{program}:as_stored"]
    told = run(app, ["inspect", *place])
    assert told.exit_code == 1
    assert told.stdout.startswith("Wrong in use")
    mended = run(app, ["repair", *place, "--out", str(tmp_path / "w.safetensors")])
    assert mended.exit_code == 0
    assert "measure_statistics" in mended.stdout
    weights = ["--weights", str(tmp_path / "w.safetensors")]
    again = run(app, ["inspect", *place, *weights])
    assert again.exit_code == 0
    nothing = run(app, ["repair", *place, *weights, "--out", str(tmp_path / "x.safetensors")])
    assert nothing.exit_code == 0
