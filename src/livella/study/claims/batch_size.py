"""Dependence on the batch size: test error by the number of examples normalized together."""

from __future__ import annotations

from collections.abc import Sequence

from livella.study import exhibits
from livella.study.claim import Claim, Done, Evidence, Scope
from livella.study.models import Network
from livella.study.results import Axis, Figure, Paper, Series
from livella.study.sweep import Chosen, Contender
from livella.study.trial import Trial

RATES = (0.1, 0.3)
BATCH = 32
SIZES = (32, 8, 2)
STEPS = 200
MARGIN = 1.0
RENORM_MOMENTUM = 0.01
BATCH_NORM, RENORM, MOVING = "batch", "renorm", "moving average"


def _contender(scope: Scope, name: str, network: Network, probe: str = "") -> Contender:
    trial = scope.trial(network, STEPS, batch=BATCH, evaluations=10, probe=probe)
    return Contender(name, trial, scope.rates(RATES), scope.seeds)


def _sized(scope: Scope, kind: str, size: int) -> Contender:
    """A kind that takes part of the batch together at a time; 32 is all of it."""
    part, name = size % BATCH, f"{kind} of {size}"
    if kind == BATCH_NORM:
        return _contender(scope, name, Network(norm="batch", norm_batch=part), "population")
    if kind == RENORM:
        network = Network(norm="renorm", norm_batch=part, norm_momentum=RENORM_MOMENTUM)
        return _contender(scope, name, network)
    network = Network(norm="moving_average", norm_batch=part, weights="centred")
    return _contender(scope, name, network)


_GRID = (
    *((BATCH_NORM, size) for size in SIZES),
    *((kind, size) for kind in (RENORM, MOVING) for size in (SIZES[0], SIZES[-1])),
)


def _contenders(scope: Scope) -> tuple[dict[tuple[str, int], Contender], list[Contender]]:
    """Those that depend on the batch, by kind and size, and those that do not look at it."""
    sized = {(kind, size): _sized(scope, kind, size) for kind, size in _GRID}
    return sized, [_contender(scope, kind, Network(norm=kind)) for kind in ("group", "none")]


def _plan(scope: Scope, done: Done) -> Sequence[Trial]:
    sized, others = _contenders(scope)
    return [trial for contender in (*sized.values(), *others) for trial in contender.tuned(done)]


def _assess(scope: Scope, done: Done) -> Evidence:
    contenders, others = _contenders(scope)
    sized = {key: contender.chosen(done) for key, contender in contenders.items()}
    group, none = (contender.chosen(done) for contender in others)
    large, small = sized[BATCH_NORM, SIZES[0]], sized[BATCH_NORM, SIZES[-1]]
    population = small.by_population()
    least = f"At batches of {SIZES[-1]}, "
    asked = (
        (f"Does batch norm get worse from batches of {SIZES[0]} to batches of {SIZES[-1]}?", large),
        (least + "do population statistics do better at inference than averages?", population),
        (least + "does batch renormalization do better?", sized[RENORM, SIZES[-1]]),
        (least + "do averages over batches do better (MABN)?", sized[MOVING, SIZES[-1]]),
        (least + "does group norm do better?", group),
    )
    findings = tuple(
        exhibits.fewer_errors(question, small, better, MARGIN) for question, better in asked
    )
    rows = [*list(sized.values())[: len(SIZES)], population, *list(sized.values())[len(SIZES) :]]
    table = exhibits.error_table([*rows, group, none])
    return Evidence(findings, table, (_figure(sized, [group, none]),))


def _figure(sized: dict[tuple[str, int], Chosen], others: Sequence[Chosen]) -> Figure:
    lines = [
        (kind, {size: c.error for (its, size), c in sized.items() if its == kind})
        for kind in (BATCH_NORM, RENORM, MOVING)
    ]
    lines += [(c.name, dict.fromkeys((SIZES[0], SIZES[-1]), c.error)) for c in others]
    said = "; ".join(
        f"{name} "
        + ", ".join(f"{size}: {exhibits.percent(error)}" for size, error in errors.items())
        for name, errors in lines
    )
    return Figure(
        title="Test error by the batch that is normalized together",
        kind="line",
        x=Axis("examples normalized together", log=True),
        y=Axis("test error", "%"),
        series=tuple(Series.of(name, errors) for name, errors in lines),
        text=f"Test error by examples normalized together, {said}. "
        "Group norm and no normalization do not depend on it.",
    )


CLAIM = Claim(
    name="batch_size",
    title="Dependence on the batch size",
    question="Do very small batches give batch norm poor statistics, and what holds there?",
    papers=(
        Paper(
            "ResNet-50 on ImageNet, error at 32 / 16 / 8 / 4 / 2 images a worker: batch norm "
            "23.6 / 23.7 / 24.8 / 27.3 / 34.7 %, group norm 24.1 / 24.2 / 24.0 / 24.2 / 24.1 %.",
            "Wu & He 2018, Group Normalization, section 4.1, table 2",
        ),
        Paper(
            "Inception-v3 on ImageNet at 4 images normalized together: 74.2 % with batch norm, "
            "76.5 % with batch renormalization.",
            "Ioffe 2017, Batch Renormalization",
        ),
        Paper(
            "ResNet-50 on ImageNet at 2 images normalized together, error: batch norm 35.22, batch "
            "renormalization 30.29, averages over the last batches in both passes (MABN) 23.67 %.",
            "Yan et al. 2020, Towards Stabilizing Batch Statistics in Backward Propagation of "
            "Batch Normalization",
        ),
    ),
    plan=_plan,
    assess=_assess,
    method=lambda scope: (
        scope.network_in_words("A network of 3 × 100 ReLU units with He initialization, plain SGD")
        + f", {scope.steps or STEPS} steps of {BATCH} examples. The layers take "
        "part of each batch together at a time, as gradient accumulation does, while the "
        "optimizer's batch stays the same (for batch norm these are ghost batches); running "
        "averages are used in inference, and for the population those of the whole training part. "
        f"Batch renormalization has its full limits from the start and momentum "
        f"{RENORM_MOMENTUM:g}; moving averages run over 16 batches, and the weights before them "
        f"are centred. The rate is the best out of {scope.rates_in_words(RATES)} (validation, two "
        "seeds)."
    ),
    against="In a convolution every position of a map counts, so maps of some size hide the "
    "effect; here each unit has one value an example. Independent examples are also the mildest "
    "case: related ones in a batch do harm at larger sizes.",
)
