"""Dependence on the batch size: test error by the number of examples normalized together."""

from __future__ import annotations

from collections.abc import Sequence

from livella.study import exhibits
from livella.study.claim import Claim, Done, Evidence, Scope
from livella.study.models import Network
from livella.study.results import Axis, Estimate, Figure, Paper, Series
from livella.study.sweep import Chosen, Contender
from livella.study.trial import Trial

RATES = (0.03, 0.1, 0.3, 1.0)
BATCH = 32
SIZES = (32, 16, 8, 4, 2)
STEPS = 300
MARGIN = 1.0


def _contenders(scope: Scope) -> tuple[list[Contender], list[Contender]]:
    """Batch norm at each size, and those that do not look at the batch."""

    def contender(name: str, norm: str, norm_batch: int) -> Contender:
        network = Network(norm=norm, norm_batch=norm_batch)
        trial = scope.trial(network, STEPS, batch=BATCH, evaluations=10)
        return Contender(name, trial, scope.rates(RATES), scope.seeds)

    sized = [contender(f"batch of {size}", "batch", size % BATCH) for size in SIZES]
    return sized, [contender(kind, kind, 0) for kind in ("group", "none")]


def _plan(scope: Scope, done: Done) -> Sequence[Trial]:
    sized, others = _contenders(scope)
    return [trial for contender in sized + others for trial in contender.tuned(done)]


def _assess(scope: Scope, done: Done) -> Evidence:
    sized, others = ([c.chosen(done) for c in group] for group in _contenders(scope))
    findings = (
        exhibits.fewer_errors(
            f"Does batch norm get worse from batches of {SIZES[0]} to batches of {SIZES[-1]}?",
            sized[-1],
            sized[0],
            MARGIN,
        ),
        exhibits.fewer_errors(
            f"At batches of {SIZES[-1]}, does group norm do better than batch norm?",
            sized[-1],
            others[0],
            MARGIN,
        ),
    )
    table = exhibits.error_table([*sized, *others])
    return Evidence(findings, table, (_figure(sized, others),))


def _figure(sized: Sequence[Chosen], others: Sequence[Chosen]) -> Figure:
    lines = [("batch", [c.error for c in sized])]
    lines += [(c.name, [c.error] * len(SIZES)) for c in others]
    said = ", ".join(
        f"{size}: {exhibits.percent(c.error)}" for size, c in zip(SIZES, sized, strict=True)
    )
    return Figure(
        title="Test error by the batch that is normalized together",
        kind="line",
        x=Axis("examples normalized together", log=True),
        y=Axis("test error", "%"),
        series=tuple(_line(name, errors) for name, errors in lines),
        text=f"Test error of batch norm by size, {said}. "
        + "Group norm and no normalization do not depend on it: "
        + ", ".join(f"{c.name} {exhibits.percent(c.error)}" for c in others)
        + ".",
    )


def _line(name: str, errors: Sequence[Estimate | None]) -> Series:
    return Series(
        name,
        x=tuple(float(size) for size in SIZES),
        y=tuple(e.median if e else None for e in errors),
        low=tuple(e.low if e else None for e in errors),
        high=tuple(e.high if e else None for e in errors),
    )


CLAIM = Claim(
    name="batch_size",
    title="Dependence on the batch size",
    question="Do very small batches give batch norm poor statistics?",
    papers=(
        Paper(
            "ResNet-50 on ImageNet, error at 32 / 16 / 8 / 4 / 2 images a worker: batch norm "
            "23.6 / 23.7 / 24.8 / 27.3 / 34.7 %, group norm 24.1 / 24.2 / 24.0 / 24.2 / 24.1 %.",
            "Wu & He 2018, Group Normalization, section 4.1, table 2",
        ),
    ),
    plan=_plan,
    assess=_assess,
    method=lambda scope: (
        scope.network_in_words("A network of 3 × 100 ReLU units with He initialization, plain SGD")
        + f", {scope.steps or STEPS} steps of {BATCH} examples. Batch norm takes "
        "part of each batch together at a time, as gradient accumulation does, while the "
        "optimizer's batch stays the same; running averages are used in inference. The rate is "
        f"the best out of {scope.rates_in_words(RATES)} (validation, two seeds)."
    ),
    against="In a convolution every position of a map counts, so maps of some size hide the "
    "effect; here each unit has one value an example. Independent examples are also the mildest "
    "case: related ones in a batch do harm at larger sizes.",
)
