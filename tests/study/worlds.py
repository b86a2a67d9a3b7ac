"""Planted worlds: outcomes of trials as plain numbers, in which the truth of a claim is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from livella.study import sources
from livella.study.claim import Scope
from livella.study.corruptions import CORRUPTIONS, METHODS, SIZES, Corrupted
from livella.study.models import Network
from livella.study.store import Row
from livella.study.trial import Outcome, Trial

USERS = Path(__file__).with_name("users.py")
STEPS = tuple(range(0, 1001, 100))
GROWN, EVEN = 1.5, 1.0
"""Growth of the gradient per layer that is far from, and at, the best there is."""


class World(dict):
    """As if every trial were finished, with the outcome that a function gives for it."""

    def __init__(self, outcome: Callable[[Trial], Outcome]) -> None:
        super().__init__()
        self._outcome = outcome

    def __missing__(self, trial: Trial) -> Outcome:
        return self._outcome(trial)

    def __contains__(self, trial: object) -> bool:
        return True

    def get(self, trial: Trial, default: Outcome | None = None) -> Outcome:
        return self._outcome(trial)


def users(name: str) -> str:
    """The spec of a function in `users.py`, as a user would write it."""
    return f"{USERS}:{name}"


def scope(seeds: int = 5, **changed: object) -> Scope:
    settings = {"data": "digits", "shape": (1, 8, 8), "model": None, "instance_possible": True}
    return Scope(**{**settings, "seeds": tuple(range(seeds)), **changed})


def trial(seed: int = 0, **settings: object) -> Trial:
    """A short training on digits that takes a few hundredths of a second."""
    usual = {"data": "digits", "network": Network(width=8, depth=1), "rate": 0.1, "steps": 4}
    one = Trial(**{**usual, "seed": seed, "evaluations": 2, **settings})
    kind = one.network.kind
    model = kind if sources.is_function(kind) else None
    return dataclasses.replace(one, version=sources.version(one.data, model))


def row(seed: int = 0, error: str = "") -> Row:
    outcome = Outcome(error=error) if error else climbing(at=200)
    return Row(trial(seed), outcome, 0.5, {"livella": "0.1.0"})


def climbing(at: float = 0, top: float = 0.9, validation: float | None = None) -> Outcome:
    """Chance until a step, from there on the top accuracy."""
    test = tuple(top if step >= at else 0.1 for step in STEPS)
    on_validation = test if validation is None else (validation,) * len(STEPS)
    losses = (None, *(1.0 for _ in STEPS[1:]))
    return Outcome(STEPS, losses, on_validation, test)


def _probed(outcome: Outcome, **probes: object) -> Outcome:
    return Outcome(outcome.steps, outcome.train_loss, outcome.validation, outcome.test, **probes)


# One world a claim: what a trial shows where the paper is right (1), the opposite holds (-1), or
# the kinds make no difference (0).


def _convergence(t: Trial, right: int) -> Outcome:
    return climbing(at=400 * 2 ** (-right if t.network.norm == "batch" else 0))


def _learning_rate(t: Trial, right: int) -> Outcome:
    highest = 1.0 * 10 ** (right if t.network.norm == "batch" else 0)
    return climbing(top=0.9 if t.rate <= highest else 0.2)


def _covariate_shift(t: Trial, right: int) -> Outcome:
    if t.network.noise:  # brings the shift back, and slows down only where that is what matters
        shift, at = 10.0, 800 if right == 1 else 200
    elif t.network.norm == "batch":
        shift, at = 5.0**-right, 200 if right else 800
    else:
        shift, at = 1.0, 800
    points = ((), *((shift,) * 3 for _ in STEPS[1:]))
    return _probed(climbing(at=at), shift=points)


def _gradient_flow(t: Trial, right: int) -> Outcome:
    with_norm, without = {1: (EVEN, GROWN), 0: (EVEN, EVEN), -1: (GROWN, EVEN)}[right]
    factor = with_norm if t.network.norm == "batch" else without
    layers = tuple(factor ** (19 - layer) for layer in range(20))
    if not t.steps:
        return Outcome((0,), (None,), (0.1,), (0.1,), gradients=(layers,))
    return _probed(climbing(), gradients=(layers,) * len(STEPS))


def _regularization(t: Trial, right: int) -> Outcome:
    alone = t.network.norm == "batch" and not t.network.dropout
    return climbing(top=0.9 + (0.05 * right if alone else 0))


def _batch_size(t: Trial, right: int) -> Outcome:
    """Batch norm at 2 alone is worse, and the population makes it good."""
    poor = (t.network.norm, t.network.norm_batch) == ("batch", 2)
    return _probed(climbing(top=0.9 - (0.05 * right if poor else 0)), population=((0.9, 0.9),))


def _non_iid(t: Trial, right: int) -> Outcome:
    return climbing(top=0.9 - (0.05 * right if t.classes and t.network.norm == "batch" else 0))


def _dropout(t: Trial, right: int) -> Outcome:
    before = t.network.dropout and not t.network.dropout_last
    test = climbing(top=0.9 - (0.05 * right if before else 0))
    variance = (1.0, *(2.0**right if before else 1.0 for _ in range(3)))
    if not t.steps:
        return Outcome((0,), (None,), (0.1,), (0.1,), variance=(variance,))
    return _probed(test, variance=(variance,), population=((0.9, 0.9),))


def _recurrent(t: Trial, right: int) -> Outcome:
    network = t.network
    theirs = (network.norm, network.gamma) == ("per_step", 0.1)
    return climbing(top=0.9 + (0.05 * right if theirs else 0))


def _alternatives(t: Trial, right: int) -> Outcome:
    return climbing(top=0.9 + (0.05 * right if t.network.norm == "batch" else 0))


def _inference(t: Trial, right: int) -> Outcome:
    """The population is ahead of the running averages and of the mini-batch alike."""
    points = ((0.85 + 0.05 * right, 0.85),) * len(STEPS)
    return _probed(climbing(top=0.85), inference=points)


def _shift(t: Trial, right: int) -> Outcome:
    """A corruption costs accuracy; many examples, a blend of few, and tuning win some back."""
    source, step = 0.8 - 0.05 * right, 0.05 * right
    adapted = {("adapted", 64): source + step, ("tuned", 64): source + 2 * step}
    adapted |= {("blended", 1): source + step, ("blended", 4): source + step}
    found = Corrupted(
        0.8,
        dict.fromkeys(CORRUPTIONS, source),
        {
            (c, method, size): adapted.get((method, size), source)
            for c in CORRUPTIONS
            for method in METHODS
            for size in SIZES
        },
    )
    return _probed(climbing(), corrupted=(found.to_tuple(),))


def _adaptation_harm(t: Trial, right: int) -> Outcome:
    """Sorted by class, adaptation harms unless guarded; shifted, it helps all the same."""
    step = 0.05 * right
    return _probed(climbing(), streams=((0.9, 0.9 - step, 0.9, 0.8, 0.8 + step, 0.8 + step),))


PAPER: dict[str, Callable[[Trial, int], Outcome]] = {
    "convergence": _convergence,
    "learning_rate": _learning_rate,
    "covariate_shift": _covariate_shift,
    "gradient_flow": _gradient_flow,
    "regularization": _regularization,
    "dropout": _dropout,
    "batch_size": _batch_size,
    "non_iid": _non_iid,
    "recurrent": _recurrent,
    "alternatives": _alternatives,
    "inference": _inference,
    "shift": _shift,
    "adaptation_harm": _adaptation_harm,
}
"""By claim, the outcome of a trial in a world where its paper is right by so much."""
