"""Internal covariate shift: does batch norm reduce it, and is that why training is faster?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, median

from livella.study import exhibits
from livella.study.claim import Claim, Done, Evidence, Scope
from livella.study.claims import speed
from livella.study.results import Axis, Estimate, Figure, Finding, Paper, Series, Table, Verdict
from livella.study.sweep import Chosen
from livella.study.trial import Outcome, Trial
from livella.study.verdict import estimate, judge, judge_ratio, paired

MARGIN = 1.25
SHARE_MARGIN = 0.1


def _plan(scope: Scope, done: Done) -> Sequence[Trial]:
    return [trial for contender in speed.contenders(scope) for trial in contender.tuned(done)]


def shift(outcome: Outcome) -> float | None:
    """The mean over layers of the median shift over training, in σ; None without a measurement."""
    moves = [point for point in outcome.shift if point]
    return fmean(median(layer) for layer in zip(*moves, strict=True)) if moves else None


def _assess(scope: Scope, done: Done) -> Evidence:
    none, batch, noisy = (contender.chosen(done) for contender in speed.contenders(scope))
    chosen = (none, batch, noisy)
    race = speed.race(chosen)
    shifts = {c.name: [shift(o) for o in c.outcomes] for c in chosen}
    findings = (_less_shift(shifts), _explains_speed(race, shifts, chosen))
    table = Table(
        ("contender", "best rate", "shift (σ)", f"steps to {100 * race.target:.1f} %"),
        tuple(
            (c.name, (f"{c.rate:g}", estimate(shifts[c.name]), race.estimate(c.name)))
            for c in chosen
        ),
    )
    return Evidence(
        findings,
        table,
        (_shift_figure(chosen, findings[0]), exhibits.learning_curves(chosen, findings[1].summary)),
    )


def _less_shift(shifts: dict[str, list[float | None]]) -> Finding:
    effect = estimate(paired(lambda a, b: a / max(b, 1e-12), shifts["none"], shifts["batch"]))
    none, batch = (estimate(shifts[name]) for name in ("none", "batch"))
    return Finding(
        question="Does batch norm reduce the change of the layers' input distributions?",
        verdict=judge_ratio(effect, MARGIN),
        effect=effect,
        effect_name="shift without / with batch norm",
        unit="×",
        rule=f"Confirmed where the whole interval of the ratio is above {MARGIN}, contradicted "
        f"below 1/{MARGIN}, not seen between the two.",
        summary=f"Median shift between two points of the curve: none: {_sigma(none)}; "
        f"batch: {_sigma(batch)}.",
    )


def _sigma(value: Estimate | None) -> str:
    return "–" if value is None else f"{value.median:.2g} σ"


def _explains_speed(
    race: speed.Race, shifts: dict[str, list[float | None]], chosen: Sequence[Chosen]
) -> Finding:
    lost = [
        share_lost(*steps) for steps in zip(*(_filled(race, c.name) for c in chosen), strict=True)
    ]
    effect = estimate(lost)
    noise = estimate(shifts["batch + noise"])
    return Finding(
        question="Is it the reduced shift that makes training faster?",
        verdict=explanation(effect, race.ratio("none", "batch"), _raised(shifts)),
        effect=effect,
        effect_name="share of the speed-up lost to noise that brings the shift back",
        unit="",
        rule="Confirmed where the whole interval is above 0.6 (with the shift back, the speed-up "
        "goes), contradicted below 0.4, not seen where there is no speed-up of 1.25 to explain, "
        "inconclusive otherwise or where the noise leaves less shift than no normalization.",
        summary=f"With noise the shift is {_sigma(noise)}, and to {100 * race.target:.1f} % it "
        f"takes: {speed.in_words(race, chosen)}.",
    )


def _filled(race: speed.Race, name: str) -> list[float]:
    return [race.budget if s is None else s for s in race.steps[name]]


def share_lost(none: float, batch: float, noisy: float) -> float | None:
    """The share of the speed-up, in logarithms, that noise takes away; None without a speed-up."""
    gained = math.log(none / batch)
    return math.log(noisy / batch) / gained if gained > math.log(MARGIN) else None


def _raised(shifts: dict[str, list[float | None]]) -> bool:
    """Whether the noise brings back at least the shift of the network without normalization."""
    none, noisy = estimate(shifts["none"]), estimate(shifts["batch + noise"])
    return none is not None and noisy is not None and noisy.median >= none.median


def explanation(share: Estimate | None, speed_up: Estimate | None, raised: bool) -> Verdict:
    """The rule of the counter-experiment, in numbers alone."""
    faster = judge_ratio(speed_up, MARGIN)
    if faster in (Verdict.NOT_SEEN, Verdict.CONTRADICTED):
        return Verdict.NOT_SEEN
    if faster is Verdict.INCONCLUSIVE or share is None or not raised:
        return Verdict.INCONCLUSIVE
    centred = Estimate(share.median - 0.5, share.low - 0.5, share.high - 0.5, share.count)
    verdict = judge(centred, SHARE_MARGIN)
    return Verdict.INCONCLUSIVE if verdict is Verdict.NOT_SEEN else verdict


def _shift_figure(chosen: Sequence[Chosen], finding: Finding) -> Figure:
    return Figure(
        title="How far the layers' inputs move between two points of the curve",
        kind="line",
        x=Axis("training steps"),
        y=Axis("shift, mean over layers", "σ", log=True),
        series=tuple(_shift_curve(c) for c in chosen),
        text=f"Shift of the layers' input distributions over training. {finding.summary}",
    )


def _shift_curve(chosen: Chosen) -> Series:
    longest = max((o.steps for o in chosen.outcomes), key=len, default=())
    curves = [[fmean(p) if p else None for p in o.shift] for o in chosen.outcomes]
    points = [
        [c[k] for c in curves if k < len(c) and c[k] is not None] for k in range(1, len(longest))
    ]
    seen: list[tuple[int, list[float]]] = [
        (step, [v for v in values if v is not None])
        for step, values in zip(longest[1:], points, strict=True)
        if values
    ]
    return Series(
        chosen.name,
        x=tuple(float(step) for step, _ in seen),
        y=tuple(median(values) for _, values in seen),
        low=tuple(min(values) for _, values in seen),
        high=tuple(max(values) for _, values in seen),
    )


CLAIM = Claim(
    name="covariate_shift",
    title="Internal covariate shift",
    question="Does batch norm work by reducing internal covariate shift, the change of each "
    "layer's input distribution while the layers before it change?",
    papers=(
        Paper(
            "The inputs of the last sigmoid layer (15th, 50th and 85th percentile over training) "
            "are steadier with batch norm.",
            "Ioffe & Szegedy 2015, Batch Normalization, section 4.1, figure 1",
        ),
        Paper(
            "Noise after batch norm that brings the shift back leaves training as fast; what batch "
            "norm does is to smooth the loss.",
            "Santurkar et al. 2018, How Does Batch Normalization Help Optimization?, section 2",
        ),
    ),
    plan=_plan,
    assess=_assess,
    method=lambda scope: (
        speed.describe(scope)
        + "The shift is measured on one fixed batch in training mode, at the input of each "
        "nonlinearity: between two points of the learning curve, the distance of the two normal "
        "distributions with the unit's moments (2-Wasserstein) in standard deviations; median over "
        "units and time, mean over layers. In the counter-experiment every unit's distribution is "
        "moved anew at each step after batch norm, by up to half a standard deviation."
    ),
    against="There are other definitions of the shift (by gradients, by a single unit's "
    "percentiles); behind batch norm itself only γ and β move by this one, so that less of it is "
    "there almost by construction. Each network is measured at its own best rate, and "
    "the noise also regularizes. Shift and speed could be tied more closely in deeper networks.",
)
