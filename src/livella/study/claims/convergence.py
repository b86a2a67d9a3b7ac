"""Faster convergence: steps of training until a given accuracy, with and without."""

from __future__ import annotations

from collections.abc import Sequence

from livella.study import exhibits
from livella.study.claim import Claim, Done, Evidence, Scope
from livella.study.claims import speed
from livella.study.results import Finding, Paper, Table
from livella.study.sweep import Contender
from livella.study.trial import Trial
from livella.study.verdict import judge_ratio

MARGIN = 1.25


def _contenders(scope: Scope) -> tuple[Contender, ...]:
    return speed.contenders(scope)[:2]


def _plan(scope: Scope, done: Done) -> Sequence[Trial]:
    return [trial for contender in _contenders(scope) for trial in contender.tuned(done)]


def _assess(scope: Scope, done: Done) -> Evidence:
    chosen = [contender.chosen(done) for contender in _contenders(scope)]
    race = speed.race(chosen)
    effect = race.ratio("none", "batch")
    percent = 100 * race.target
    finding = Finding(
        question="Does batch norm reach the same accuracy in fewer steps?",
        verdict=judge_ratio(effect, MARGIN),
        effect=effect,
        effect_name="steps without / steps with batch norm",
        unit="×",
        rule=f"Confirmed where the whole interval of the ratio is above {MARGIN}, contradicted "
        f"below 1/{MARGIN}, not seen between the two.",
        summary=f"To {percent:.1f} % on the test part: {speed.in_words(race, chosen)}.",
    )
    table = Table(
        ("contender", "best rate", f"steps to {percent:.1f} %", "test error at the end (%)"),
        tuple((c.name, (f"{c.rate:g}", race.estimate(c.name), c.error)) for c in chosen),
    )
    return Evidence((finding,), table, (exhibits.learning_curves(chosen, finding.summary),))


CLAIM = Claim(
    name="convergence",
    title="Faster convergence",
    question="Does a network with batch norm need fewer training steps to the same accuracy?",
    papers=(
        Paper(
            "Inception on ImageNet to 72.2 %: 31.0 million steps without, 13.3 million with batch "
            "norm alone (2.3×), 2.1 million with other changes besides (14×).",
            "Ioffe & Szegedy 2015, Batch Normalization, section 4.2.2, figure 3",
        ),
    ),
    plan=_plan,
    assess=_assess,
    method=lambda scope: (
        speed.describe(scope)
        + "Each contender runs at the rate with the highest mean validation accuracy over the "
        f"budget, chosen on two seeds. The target is {speed.NEAR:g} times the median best test "
        "accuracy of the better contender; a seed that never gets there counts with the whole "
        "budget."
    ),
    against="The gap is one of the initial weights too: small ones slow the plain sigmoid network "
    "down, well scaled ones or other units close most of it, and so may a momentum or adaptive "
    "optimizer. Steps are counted, to the nearest point of the curve, not seconds: a step with "
    "batch norm costs more. The two seeds that chose the rates are among those reported.",
)
