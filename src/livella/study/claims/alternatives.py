"""The alternatives side by side: batch, layer, instance, group, RMS, and none."""

from __future__ import annotations

from collections.abc import Sequence

from livella.study import exhibits
from livella.study.claim import Claim, Done, Evidence, Scope
from livella.study.models import Network
from livella.study.results import Paper
from livella.study.sweep import Contender, by_validation
from livella.study.trial import Trial

KINDS = ("none", "batch", "layer", "instance", "group", "rms")
RATES = (0.03, 0.1, 0.3, 1.0)
STEPS = 200
BATCH = 32
MARGIN = 0.5


def _instance_possible(scope: Scope) -> bool:
    return scope.instance_possible if scope.model else scope.is_image


def _contenders(scope: Scope) -> list[Contender]:
    def contender(kind: str) -> Contender:
        network = (
            Network("cnn", norm=kind, width=16) if scope.is_image else Network("mlp", norm=kind)
        )
        trial = scope.trial(network, STEPS, batch=BATCH, momentum=0.9, evaluations=10)
        return Contender(kind, trial, scope.rates(RATES), scope.seeds)

    return [contender(k) for k in KINDS if k != "instance" or _instance_possible(scope)]


def _plan(scope: Scope, done: Done) -> Sequence[Trial]:
    return [trial for contender in _contenders(scope) for trial in contender.tuned(done)]


def _assess(scope: Scope, done: Done) -> Evidence:
    chosen = [contender.chosen(done) for contender in _contenders(scope)]
    none, batch, *others = chosen
    findings = (
        exhibits.fewer_errors(
            "Does batch norm end with fewer errors than no normalization?", none, batch, MARGIN
        ),
        exhibits.fewer_errors(
            "Does batch norm end with fewer errors than the best of the other kinds?",
            by_validation(others),
            batch,
            MARGIN,
        ),
    )
    figures = (
        exhibits.error_bars("Test error by kind of normalization", "kind", chosen),
        exhibits.learning_curves(chosen),
    )
    return Evidence(findings, exhibits.error_table(chosen), figures)


def _method(scope: Scope) -> str:
    own = (
        "Three 3×3 convolutions of 16, 32 and 32 channels with ReLU and He initialization, SGD "
        "with momentum 0.9"
        if scope.is_image
        else "A network of 3 × 100 ReLU units with He initialization, SGD with momentum 0.9"
    )
    instance = (
        ""
        if _instance_possible(scope)
        else " Instance norm is left out: a layer here has one value a channel to normalize over."
    )
    return (
        f"{scope.network_in_words(own)}, {scope.steps or STEPS} steps of {BATCH} examples; only "
        "the kind of normalization is exchanged. Each runs at its best rate out of "
        f"{scope.rates_in_words(RATES)} (validation, two seeds). Layer and RMS "
        f"norm take all channels and positions of an example together.{instance}"
    )


CLAIM = Claim(
    name="alternatives",
    title="The alternatives",
    question="How do layer, instance, group and RMS norm compare with batch norm?",
    papers=(
        Paper(
            "ResNet-50 on ImageNet at 32 images a worker, error: batch norm 23.6, group 24.1, "
            "layer 25.3, instance 28.4 %.",
            "Wu & He 2018, Group Normalization, section 4.1, table 1",
        ),
    ),
    plan=_plan,
    assess=_assess,
    method=_method,
    against="A short budget favours what learns fast, and batches are large and independent here. "
    "Small or related batches, recurrent networks and transformers are where the other kinds were "
    "made for.",
)
