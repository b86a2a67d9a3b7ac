"""What a claim declares, and the setting in which it is tried."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from livella.study.models import Network
from livella.study.results import ClaimResult, Figure, Finding, Paper, Table
from livella.study.trial import Outcome, Trial

Done = Mapping[Trial, Outcome]
"""The trials finished so far."""

USER_RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
USER_MOMENTUM = 0.9


@dataclass(frozen=True)
class Scope:
    """What the user asked the study to look at."""

    data: str
    shape: tuple[int, ...]
    model: str | None
    """The user's `module:function`; None for the study's own networks."""
    instance_possible: bool
    """Whether every normalized map has space to normalize over."""
    seeds: tuple[int, ...]
    steps: int | None = None
    """Replaces the budget of every claim."""
    version: str = ""
    sequences: bool = False
    """Whether examples are sequences of unequal lengths."""

    @property
    def is_image(self) -> bool:
        return len(self.shape) == 3 and min(self.shape[1:]) >= 4

    def trial(self, network: Network, steps: int, **settings: object) -> Trial:
        """A claim's trial in this scope; its rate and seed are still to be set.

        The user's network takes from the claim's only what concerns its normalization, and is
        trained with momentum 0.9.
        """
        trial = Trial(self.data, network, 0.0, 0, steps, version=self.version)
        trial = dataclasses.replace(trial, **settings)  # type: ignore[arg-type]
        if self.model is not None:
            users = Network(
                self.model, network.norm, network.norm_batch,
                noise=network.noise, weights=network.weights,
            )  # fmt: skip
            trial = dataclasses.replace(trial, network=users, momentum=USER_MOMENTUM)
        return dataclasses.replace(trial, steps=self.steps) if self.steps and steps else trial

    def rates(self, own: Sequence[float]) -> tuple[float, ...]:
        """The grid of learning rates: a claim's own, or the one for users' networks."""
        return tuple(own) if self.model is None else USER_RATES

    def network_in_words(self, own: str) -> str:
        return own if self.model is None else f"{self.model}, SGD with momentum {USER_MOMENTUM}"

    def rates_in_words(self, own: Sequence[float]) -> str:
        return ", ".join(f"{rate:g}" for rate in self.rates(own))


@dataclass(frozen=True)
class Evidence:
    """What a claim's trials showed."""

    findings: tuple[Finding, ...]
    table: Table
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Claim:
    """A sentence from the literature and the experiment that can confirm or contradict it.

    `plan` gives the trials wanted, given those finished; it is asked again until it wants
    nothing new, so a claim can choose a learning rate before it spends seeds on it.
    """

    name: str
    title: str
    question: str
    papers: tuple[Paper, ...]
    plan: Callable[[Scope, Done], Sequence[Trial]]
    assess: Callable[[Scope, Done], Evidence]
    method: Callable[[Scope], str]
    against: str
    left_out: Callable[[Scope], str] = lambda _scope: ""
    """Why the claim makes no sense in this scope; empty where it does."""
    for_sequences: bool = False
    """Whether it can be tried on sequences of unequal lengths."""

    def reason_against(self, scope: Scope) -> str:
        """Why the claim cannot be tried in this scope; empty where it can."""
        if scope.sequences and not self.for_sequences:
            return "its networks take examples of one size, and these are of unequal lengths"
        return self.left_out(scope)

    def result(self, scope: Scope, done: Done, seconds: Mapping[Trial, float]) -> ClaimResult:
        evidence = self.assess(scope, done)
        trials = set(self.plan(scope, done))
        return ClaimResult(
            name=self.name,
            title=self.title,
            question=self.question,
            findings=evidence.findings,
            table=evidence.table,
            figures=evidence.figures,
            papers=self.papers,
            method=self.method(scope),
            against=self.against,
            trials=len(trials),
            seconds=math.fsum(seconds.get(trial, 0.0) for trial in trials),
        )
