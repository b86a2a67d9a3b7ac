"""Whole training steps: their time, side by side, and the memory each takes in its own process."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812  the usual name
from torch import Tensor, nn

from livella.bench.contenders import COMPILE, EAGER, OURS
from livella.bench.measure import Call, rotating, sample
from livella.bench.networks import NETWORKS
from livella.bench.rows import Step, StepRow
from livella.model.accelerate import accelerate

ROUNDS = 5
_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclasses.dataclass(frozen=True)
class Contender:
    """A way to train a network."""

    name: str
    layout: str


def steps(*, quick: bool = False) -> tuple[Step, ...]:
    """The steps to measure; `quick` takes fewer and smaller images."""
    batch, size = (4, 96) if quick else (16, 224)
    return tuple(Step(network, batch, size) for network in NETWORKS)


def contenders(*, compiled: bool) -> tuple[Contender, ...]:
    """Everyone in both layouts, as which is the better one depends on the contender."""
    names = (OURS, EAGER, COMPILE) if compiled else (OURS, EAGER)
    return tuple(Contender(name, layout) for name in names for layout in _FORMATS)


def measure(step: Step, who: tuple[Contender, ...], rounds: int | None) -> Iterator[StepRow]:
    """Time a step of each contender once a round, in a rotating order, after one to warm up."""
    calls = {contender: build(step, contender) for contender in who}
    for call in calls.values():
        call()
    seconds: dict[Contender, list[float]] = {contender: [] for contender in who}
    for contender in rotating(who, rounds or ROUNDS):
        seconds[contender].append(sample(calls[contender], 1)[0])
    del calls
    for contender, took in seconds.items():
        peak = peak_of(step, contender)
        yield StepRow(step, contender.name, contender.layout, tuple(took), peak)


def build(step: Step, contender: Contender) -> Call:
    """A training step on random images, weights and images the same for all contenders."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = NETWORKS[step.network]()
        x = torch.randn(step.batch, 3, step.size, step.size)
        labels = torch.randint(1000, (step.batch,))
    layout = _FORMATS[contender.layout]
    model.to(memory_format=layout)  # type: ignore[call-overload]
    x = x.to(memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    train = _prepared(model, contender.name)

    def call() -> None:
        optimizer.zero_grad()
        F.cross_entropy(train(x), labels).backward()
        optimizer.step()

    return call


def _prepared(model: nn.Module, name: str) -> Callable[[Tensor], Tensor]:
    if name == OURS:
        return accelerate(model)
    if name == COMPILE:
        return torch.compile(model)
    return model


def peak_of(step: Step, contender: Contender) -> float | None:
    """The most memory in MB that a fresh process takes for two steps, if it can be known."""
    given = [
        dataclasses.asdict(step),
        dataclasses.asdict(contender),
        torch.get_num_threads(),
    ]
    program = "import sys; from livella.bench.training import main; main(sys.argv[1])"
    command = [sys.executable, "-c", program, json.dumps(given)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    return float(ended.stdout) if ended.returncode == 0 and ended.stdout.strip() else None


def main(given: str) -> None:
    """In the process of its own: take two steps and print the most memory they took, in MB."""
    step, contender, threads = json.loads(given)
    torch.set_num_threads(threads)
    call = build(Step(**step), Contender(**contender))
    call()
    call()
    peak = peak_so_far()
    print("" if peak is None else peak)


def peak_so_far() -> float | None:
    """The most memory this process has held, in MB; none where nobody counts it.

    Not `ru_maxrss` where there is better: on Linux it starts from the peak of the parent process.
    """
    status = Path("/proc/self/status")
    if status.exists():
        found = (line.split() for line in status.read_text().splitlines())
        return next((int(words[1]) / 1024 for words in found if words[0] == "VmHWM:"), None)
    if sys.platform == "win32":
        return None
    import resource

    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**20
