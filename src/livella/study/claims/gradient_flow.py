"""Gradient flow: vanishing and exploding gradients by depth, at initialization and in training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from livella.study import exhibits
from livella.study.claim import Claim, Done, Evidence, Scope
from livella.study.models import Network
from livella.study.results import Axis, Figure, Finding, Paper, Series, Table
from livella.study.sweep import Chosen, Contender, grid
from livella.study.trial import Outcome, Trial
from livella.study.verdict import estimate, judge, judge_ratio, paired

DEPTH = 20
RATES = (0.1, 0.3, 1.0)
STEPS = 60
BATCH = 60
MARGIN = 1.05
"""Growth of the gradient per layer; over 20 layers it makes a factor of 2.5."""
SPREAD_MARGIN = 0.5
"""Decades between the largest and the smallest gradient over depth."""

RELU, SIGMOID = "ReLU", "sigmoid"


def _network(setting: str, norm: str) -> Network:
    if setting == RELU:
        return Network(norm=norm, depth=DEPTH)
    return Network(norm=norm, depth=DEPTH, activation="sigmoid", init="normal:0.1")


def _name(setting: str, norm: str) -> str:
    return f"{norm} ({setting})"


def _untrained(scope: Scope, setting: str, norm: str) -> list[Trial]:
    trial = scope.trial(_network(setting, norm), 0, evaluations=1, probe="gradients")
    return grid(trial, (0.0,), scope.seeds)


def _contender(scope: Scope, setting: str, norm: str) -> Contender:
    trial = scope.trial(
        _network(setting, norm), STEPS, batch=BATCH, evaluations=10, probe="gradients"
    )
    return Contender(_name(setting, norm), trial, scope.rates(RATES), scope.seeds)


_GRID = [(setting, norm) for setting in (RELU, SIGMOID) for norm in ("none", "batch")]


def _plan(scope: Scope, done: Done) -> Sequence[Trial]:
    untrained = [trial for pair in _GRID for trial in _untrained(scope, *pair)]
    return untrained + [t for pair in _GRID for t in _contender(scope, *pair).tuned(done)]


def growth(gradients: Sequence[float]) -> float | None:
    """The factor by which the gradient norm grows per layer from the last layer to the first."""
    if len(gradients) < 2 or not all(0 < g < math.inf for g in gradients):
        return None
    return float((gradients[0] / gradients[-1]) ** (1 / (len(gradients) - 1)))


def spread(outcome: Outcome) -> float | None:
    """Decades between the largest and the smallest gradient over depth; median over training.

    A gradient that is exactly 0 (or not finite) counts as the smallest float32 number.
    """
    decades = []
    for layers in outcome.gradients:
        sizes = [g if 1e-38 < g < math.inf else 1e-38 for g in layers]
        decades.append(math.log10(max(sizes) / min(sizes)))
    return median(decades) if decades else None


def _assess(scope: Scope, done: Done) -> Evidence:
    start = {
        pair: [done.get(trial, Outcome()) for trial in _untrained(scope, *pair)] for pair in _GRID
    }
    chosen = {pair: _contender(scope, *pair).chosen(done) for pair in _GRID}
    growths = {
        pair: [growth(o.gradients[0]) if o.gradients else None for o in outcomes]
        for pair, outcomes in start.items()
    }
    findings = (_at_start(growths), *(_in_training(s, chosen) for s in (SIGMOID, RELU)))
    table = Table(
        ("network", "growth per layer at start", "spread in training (decades)", "test error (%)"),
        tuple(
            (
                _name(*pair),
                (estimate(growths[pair]), estimate(_spreads(chosen[pair])), chosen[pair].error),
            )
            for pair in _GRID
        ),
    )
    at_start = _by_depth(
        "Gradient norm by depth at initialization",
        {_name(*pair): [o.gradients[0] for o in os if o.gradients] for pair, os in start.items()},
        findings[0].summary,
    )
    in_training = _by_depth(
        "Gradient norm by depth, half-way through training",
        {
            c.name: [o.gradients[len(o.gradients) // 2] for o in c.outcomes if o.gradients]
            for c in chosen.values()
        },
        " ".join(finding.summary for finding in findings[1:]),
    )
    return Evidence(findings, table, (at_start, in_training))


def _spreads(chosen: Chosen) -> list[float | None]:
    return [spread(outcome) for outcome in chosen.outcomes]


def _at_start(growths: dict[tuple[str, str], list[float | None]]) -> Finding:
    """How much closer to 1 batch norm brings the growth in a well-initialized ReLU network."""
    none, batch = growths[RELU, "none"], growths[RELU, "batch"]
    effect = estimate(paired(lambda a, b: _from_one(a) / _from_one(b), none, batch))
    said = "; ".join(
        f"{_name(*pair)}: {median(known):.2f}"
        for pair, values in growths.items()
        if (known := [v for v in values if v is not None])
    )
    return Finding(
        question="At initialization, does batch norm keep a deep ReLU network's gradients from "
        "growing or shrinking with depth?",
        verdict=judge_ratio(effect, MARGIN),
        effect=effect,
        effect_name="growth or decay per layer, without / with batch norm",
        unit="×",
        rule=f"Confirmed where the whole interval is above {MARGIN}, contradicted below "
        f"1/{MARGIN}, not seen between the two.",
        summary=f"Growth of the gradient norm per layer, from the output to the input: {said}.",
    )


def _from_one(factor: float) -> float:
    """Growth and decay alike as a factor of at least 1."""
    return max(factor, 1 / factor)


def _in_training(setting: str, chosen: dict[tuple[str, str], Chosen]) -> Finding:
    none, batch = chosen[setting, "none"], chosen[setting, "batch"]
    effect = estimate(paired(lambda a, b: a - b, _spreads(none), _spreads(batch)))
    return Finding(
        question=f"In training, are the gradients of a deep {setting} network more even over its "
        "depth with batch norm?",
        verdict=judge(effect, SPREAD_MARGIN),
        effect=effect,
        effect_name="decades between largest and smallest gradient, without − with batch norm",
        unit="decades",
        rule=f"Confirmed where the whole interval is above {SPREAD_MARGIN}, contradicted below "
        f"−{SPREAD_MARGIN}, not seen between the two.",
        summary=f"Decades: {_decades(none)} without and {_decades(batch)} with batch norm; "
        f"test error {exhibits.percent(none.error)} and {exhibits.percent(batch.error)}.",
    )


def _decades(chosen: Chosen) -> str:
    value = estimate(_spreads(chosen))
    return "–" if value is None else f"{value.median:.2g}"


def _by_depth(title: str, gradients: dict[str, list[tuple[float, ...]]], text: str) -> Figure:
    def line(name: str, seeds: list[tuple[float, ...]]) -> Series:
        layers = [[g for g in layer if 0 < g < math.inf] for layer in zip(*seeds, strict=True)]
        return Series(
            name,
            x=tuple(float(k + 1) for k in range(len(layers))),
            y=tuple(median(layer) if layer else None for layer in layers),
            low=tuple(min(layer, default=None) for layer in layers),
            high=tuple(max(layer, default=None) for layer in layers),
        )

    return Figure(
        title=title,
        kind="line",
        x=Axis("layer, from the input"),
        y=Axis("norm of the loss gradient", log=True),
        series=tuple(line(name, seeds) for name, seeds in gradients.items()),
        text=f"{title}, for each of the four networks. {text}",
    )


CLAIM = Claim(
    name="gradient_flow",
    title="Gradient flow",
    question="Does batch norm keep gradients stable, neither vanishing nor exploding?",
    papers=(
        Paper(
            "At initialization, deep networks with batch norm and no residual connections have "
            "exploding gradients: with ReLU the norm grows by √(π/(π−1)) = 1.21 a layer.",
            "Yang et al. 2019, A Mean Field Theory of Batch Normalization",
        ),
        Paper(
            "Batch norm makes the gradients less dependent on the scale of the parameters and lets "
            "saturating nonlinearities train: Inception with sigmoids reaches 69.8 % with it and "
            "stays at chance without.",
            "Ioffe & Szegedy 2015, Batch Normalization, sections 3.3 and 4.2.2",
        ),
    ),
    plan=_plan,
    assess=_assess,
    method=lambda scope: (
        f"Networks of {DEPTH} × 100 units, ReLU with He initialization and sigmoid with weights of "
        "standard deviation 0.1. The gradient of the loss with respect to each layer's "
        "pre-activation is measured on 256 training examples, before training and at 10 points of "
        f"{scope.steps or STEPS} steps of plain SGD (batches of {BATCH}), each at its best rate "
        f"out of {scope.rates_in_words(RATES)} (validation, two seeds)."
    ),
    against="Residual connections change both sides: with them gradients pass through plain deep "
    "networks too. The growth at initialization depends on the batch size (larger at small "
    "batches), and other nonlinearities have other factors. The sigmoid networks got no "
    "initialization that is fitted to them, which would help the one without batch norm.",
    left_out=lambda scope: (
        "it compares gradients over 20 equal layers; those of a given network are not alike"
        if scope.model
        else ""
    ),
)
