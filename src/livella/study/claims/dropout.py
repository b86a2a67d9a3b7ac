"""Dropout before batch norm: a variance in training that inference does not have."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from livella.study import exhibits
from livella.study.claim import Claim, Done, Evidence, Scope
from livella.study.models import Network
from livella.study.results import Axis, Estimate, Figure, Finding, Paper, Series
from livella.study.sweep import Contender, grid
from livella.study.trial import Outcome, Trial
from livella.study.verdict import estimate, judge_ratio

DROPOUT = 0.5
DEPTH = 4
RATES = (0.1, 0.3, 1.0)
EXAMPLES = 300
STEPS = 300
MARGIN = 0.5
RATIO_MARGIN = 1.1


def _contenders(scope: Scope) -> tuple[Contender, ...]:
    def contender(name: str, dropout: float, last: bool = False) -> Contender:
        network = Network(norm="batch", depth=DEPTH, dropout=dropout, dropout_last=last)
        trial = scope.trial(
            network, STEPS, batch=30, examples=EXAMPLES, evaluations=10,
            probe="variance+population",
        )  # fmt: skip
        return Contender(name, trial, scope.rates(RATES), scope.seeds)

    return (
        contender("no dropout", 0.0),
        contender("before batch norm", DROPOUT),
        contender("behind the last", DROPOUT, last=True),
    )


def _untrained(scope: Scope) -> list[Trial]:
    network = Network(norm="batch", depth=DEPTH, dropout=DROPOUT)
    trial = scope.trial(network, 0, examples=EXAMPLES, evaluations=1, probe="variance")
    return grid(trial, (0.0,), scope.seeds)


def _plan(scope: Scope, done: Done) -> Sequence[Trial]:
    trained = [trial for contender in _contenders(scope) for trial in contender.tuned(done)]
    return _untrained(scope) + trained


def ratio(outcome: Outcome) -> float | None:
    """The variance with dropout over that without: the median of the layers behind a dropout."""
    layers = outcome.variance[-1][1:] if outcome.variance else ()
    return median(layers) if layers else None


def _assess(scope: Scope, done: Done) -> Evidence:
    none, before, behind = (contender.chosen(done) for contender in _contenders(scope))
    first = [done.get(trial, Outcome()) for trial in _untrained(scope)]
    findings = (
        _shift("At initialization", first),
        _shift("After training", before.outcomes),
        exhibits.fewer_errors(
            "Does dropout before batch norm end with more errors than behind the last one?",
            before, behind, MARGIN,
        ),
        exhibits.fewer_errors(
            "Do population statistics, taken without dropout, make up for some of it?",
            before, before.by_population(), MARGIN,
        ),
    )  # fmt: skip
    shown = [none, before, before.by_population(), behind]
    figures = (
        _figure({"at initialization": first, "after training": before.outcomes}),
        exhibits.error_bars("Test error by where dropout is", "dropout", shown),
    )
    return Evidence(findings, exhibits.error_table(shown), figures)


def _shift(when: str, outcomes: Sequence[Outcome]) -> Finding:
    effect = estimate([ratio(outcome) for outcome in outcomes])
    return Finding(
        question=f"{when}, is the variance that batch norm meets larger in training than in "
        "inference?",
        verdict=judge_ratio(effect, RATIO_MARGIN),
        effect=effect,
        effect_name="variance with dropout / without",
        unit="×",
        rule=f"Confirmed where the whole interval of the ratio is above {RATIO_MARGIN}, "
        f"contradicted below 1/{RATIO_MARGIN}, not seen between the two.",
        summary=f"At dropout {DROPOUT:g}, median over the layers behind it: {_times(effect)}; for "
        f"values whose mean is zero it would be {1 / (1 - DROPOUT):g}.",
    )


def _times(value: Estimate | None) -> str:
    return "–" if value is None else f"{value.median:.2f}"


def _layers(outcomes: Sequence[Outcome]) -> dict[str, Estimate | None]:
    seen = [outcome.variance[-1] for outcome in outcomes if outcome.variance]
    layers = zip(*seen, strict=True)
    return {f"layer {k}": estimate(layer) for k, layer in enumerate(layers, start=1)}


def _figure(outcomes: dict[str, Sequence[Outcome]]) -> Figure:
    by_time = {name: _layers(found) for name, found in outcomes.items()}
    said = (f"{name}: {', '.join(map(_times, es.values()))}" for name, es in by_time.items())
    return Figure(
        title=f"Variance of the input of batch norm with dropout {DROPOUT:g} over that without",
        kind="bar",
        x=Axis("layer"),
        y=Axis("ratio", "×"),
        series=tuple(Series.of(name, layers) for name, layers in by_time.items()),
        text="Ratio of the variances by layer, of which the first has no dropout before it. "
        f"{'; '.join(said)}.",
    )


CLAIM = Claim(
    name="dropout",
    title="Dropout before batch norm",
    question="Does dropout before batch norm give it statistics that do not hold in inference?",
    papers=(
        Paper(
            "Dropout that keeps a share q of the values makes their variance in training 1/q times "
            "that in inference. Dropout 0.5 in every bottleneck: CIFAR-100 accuracy falls from "
            "77.4 to 68.6 %; behind the last batch norm it does no harm.",
            "Li et al. 2018, Understanding the Disharmony between Dropout and Batch "
            "Normalization by Variance Shift",
        ),
    ),
    plan=_plan,
    assess=_assess,
    method=lambda scope: (
        f"A network of {DEPTH} × 100 ReLU units with batch norm and He initialization learns from "
        f"{EXAMPLES} training examples, drawn anew by each seed, in {scope.steps or STEPS} steps "
        f"of plain SGD with batches of 30, at its best rate out of {scope.rates_in_words(RATES)} "
        f"(validation, two seeds). Dropout {DROPOUT:g} follows each activation, or the last alone, "
        "which no batch norm follows. The variance of each unit is measured on the same examples "
        "with dropout and without, all else as in training."
    ),
    against="Wide layers average the noise of single values, so the shift is smaller there; and "
    "how much dropout a network bears depends on its width. Of values behind a ReLU the mean is "
    "not zero, which raises the ratio at first; a network that learns makes it smaller.",
    left_out=lambda scope: (
        "the study places the dropout, and it cannot know where in a given network that belongs"
        if scope.model
        else ""
    ),
)
