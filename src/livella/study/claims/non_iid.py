"""Batches that are no fair sample: examples of few classes normalized together."""

from __future__ import annotations

from collections.abc import Sequence

from livella.study import exhibits
from livella.study.claim import Claim, Done, Evidence, Scope
from livella.study.models import Network
from livella.study.results import Paper
from livella.study.sweep import Contender
from livella.study.trial import Trial

RATES = (0.1, 0.3)
BATCH = 32
TOGETHER = 16
CLASSES = 2
STEPS = 200
MARGIN = 1.0


def _contenders(scope: Scope) -> tuple[Contender, ...]:
    def contender(name: str, classes: int, norm: str, momentum: float = 0.0) -> Contender:
        network = Network(norm=norm, norm_batch=TOGETHER, norm_momentum=momentum)
        trial = scope.trial(
            network, STEPS, batch=BATCH, evaluations=10, classes=classes,
            probe="population" if norm == "batch" else "",
        )  # fmt: skip
        return Contender(name, trial, scope.rates(RATES), scope.seeds)

    few = f"{CLASSES} classes"
    return (
        contender("batch, shuffled", 0, "batch"),
        contender(f"batch, {few}", CLASSES, "batch"),
        contender(f"renorm, {few}", CLASSES, "renorm", momentum=0.01),
        contender(f"group, {few}", CLASSES, "group"),
    )


def _plan(scope: Scope, done: Done) -> Sequence[Trial]:
    return [trial for contender in _contenders(scope) for trial in contender.tuned(done)]


def _assess(scope: Scope, done: Done) -> Evidence:
    shuffled, few, renorm, group = (c.chosen(done) for c in _contenders(scope))
    asked = (
        (f"Is batch norm worse where {CLASSES} classes are normalized together?", shuffled),
        ("Does batch renormalization do better there?", renorm),
        ("Does group norm do better there?", group),
    )
    findings = tuple(exhibits.fewer_errors(said, few, better, MARGIN) for said, better in asked)
    shown = [shuffled, few, few.by_population(), renorm, group]
    figures = (
        exhibits.error_bars("Test error by what is normalized together", "contender", shown),
        exhibits.learning_curves([shuffled, few, renorm, group]),
    )
    return Evidence(findings, exhibits.error_table(shown), figures)


CLAIM = Claim(
    name="non_iid",
    title="Batches that are no fair sample",
    question="What does it cost batch norm if the examples of a batch are alike?",
    papers=(
        Paper(
            "Inception-v3 on ImageNet, 16 images of 2 classes each normalized together: 67.0 % "
            "with batch norm, 78.5 % with batch renormalization.",
            "Ioffe 2017, Batch Renormalization",
        ),
    ),
    plan=_plan,
    assess=_assess,
    method=lambda scope: (
        scope.network_in_words("A network of 3 × 100 ReLU units with He initialization, plain SGD")
        + f", {scope.steps or STEPS} steps of {BATCH} examples, of which {TOGETHER} are normalized "
        f"together. They are drawn at random, or of {CLASSES} classes in equal numbers; the "
        "classes take turns, so that the optimizer sees all of them alike. Batch renormalization "
        "has its full limits from the start and momentum 0.01. The rate is the best out of "
        f"{scope.rates_in_words(RATES)} (validation, two seeds)."
    ),
    against="Two classes are an extreme case: frames of a video or crops of one image are alike in "
    "other ways. With batch norm the network can also use what else is in the batch as a hint to "
    "the class, which it then lacks in inference: no statistics repair that.",
)
