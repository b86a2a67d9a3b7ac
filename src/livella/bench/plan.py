"""What to measure: the choice from the grid and the steps, and a guess at the time it takes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from livella.bench import cases, measure, memory, training
from livella.bench.cases import Case, Setting
from livella.bench.errors import BenchError
from livella.bench.rows import Step

# Guesses, for the time left alone.
BUILDING = 20.0
"""Seconds that torch.compile takes for a setting."""
_BUILDING_A_NETWORK, _STARTING = 120.0, 5.0
_BYTES_A_SECOND = 0.85e9
"""Of an input, through all contenders in turn on two cores."""


@dataclass(frozen=True)
class Plan:
    """What a run measures, and how."""

    cases: tuple[Case, ...]
    steps: tuple[Step, ...]
    threads: int
    runs: int | None
    compiled: bool
    compiled_steps: bool

    def describe(self) -> str:
        """What will be measured and how long that takes, in words: a guess."""
        counts = ((len(self.cases), "case"), (len(self.steps), "training step"))
        what = " and ".join(f"{n} {noun}{'s' * (n > 1)}" for n, noun in counts if n)
        minutes = math.ceil(self.seconds() / 60)
        time = f"about {minutes} min" if minutes > 1 else "less than a minute"
        return f"measuring {what} on {self.threads} thread{'s' * (self.threads > 1)}: {time}"

    def seconds(self) -> float:
        """A guess at the time it takes."""
        settings = dict.fromkeys(case.setting for case in self.cases)
        building = sum(BUILDING for setting in settings if self.compiled and setting.compiled)
        measuring = sum(map(self.case_seconds, self.cases)) + sum(
            map(self.step_seconds, self.steps)
        )
        return building + measuring

    def case_seconds(self, case: Case) -> float:
        """A guess at the time of a case in all kinds of memory."""
        a_round = 5e-4 + case.setting.bytes / _BYTES_A_SECOND
        rounds = self.runs or measure.rounds_for(a_round / 2)
        return len(memory_kinds(case.setting)) * a_round * (rounds + measure.WARM_UPS)

    def step_seconds(self, step: Step) -> float:
        """A guess at the time of one network's steps, in time and in memory."""
        who = len(training.contenders(compiled=self.compiled_steps))
        each = 3.0 * step.batch / 16 * (step.size / 224) ** 2
        building = 2 * _BUILDING_A_NETWORK if self.compiled_steps else 0.0
        return building + who * (each * ((self.runs or training.ROUNDS) + 3) + _STARTING)


def plan(
    *,
    quick: bool = False,
    models: bool = False,
    only: str = "",
    threads: int | None = None,
    runs: int | None = None,
    compiled: bool = True,
    compiled_steps: bool = False,
) -> Plan:
    """What to measure.

    Args:
        quick: a minute's worth of the grid, and small steps.
        models: whole training steps as well.
        only: words that the name of a case must hold, every one.
        threads: torch's, during the run. Default: as many as it has now.
        runs: rounds of each case, in place of as many as it takes.
        compiled: let torch.compile take part where the grid says so; never in a quick run.
        compiled_steps: let it take part in training steps.

    Raises:
        BenchError: no case has such a name, or a number is below one.

    """
    for name, count in (("runs", runs), ("threads", threads)):
        if count is not None and count < 1:
            raise BenchError(f"{name} is {count}: expected a whole number from 1")
    grid = cases.grid(quick=quick)
    steps = training.steps(quick=quick) if models else ()
    chosen = cases.choose([str(each) for each in (*grid, *steps)], only)
    return Plan(
        cases=tuple(itertools.compress(grid, chosen)),
        steps=tuple(itertools.compress(steps, chosen[len(grid) :])),
        threads=threads or torch.get_num_threads(),
        runs=runs,
        compiled=compiled and not quick,
        compiled_steps=compiled_steps,
    )


def memory_kinds(setting: Setting) -> Sequence[str]:
    """The kinds of memory to measure in; a small result lies in used memory anyway."""
    return memory.kinds() if setting.bound_by_memory else memory.kinds()[:1]
