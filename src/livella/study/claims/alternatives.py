"""The alternatives side by side: batch, layer, instance, group, RMS, and what needs no batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from livella.study import exhibits
from livella.study.claim import Claim, Done, Evidence, Scope
from livella.study.models import Network
from livella.study.results import Paper
from livella.study.sweep import Contender, by_validation
from livella.study.trial import Trial

STANDARDIZED, THRESHOLDED = "group, standardized weights", "filter response"
KINDS = {
    "none": "none",
    "batch": "batch",
    "layer": "layer",
    "instance": "instance",
    "group": "group",
    "rms": "rms",
    STANDARDIZED: "group",
    THRESHOLDED: "filter_response",
    "dynamic tanh": "dynamic_tanh",
}
"""By name, the kind of `make_norm`."""
RATES = (0.1, 0.3)
STEPS = 100
BATCH = 32
MARGIN = 0.5


def _has_space(scope: Scope) -> bool:
    return scope.instance_possible if scope.model else scope.is_image


def _contenders(scope: Scope) -> list[Contender]:
    def contender(name: str) -> Contender:
        own: dict[str, Any] = {"kind": "cnn", "width": 16} if scope.is_image else {}
        network = Network(
            norm=KINDS[name],
            activation="identity" if name == THRESHOLDED else "relu",  # it has a threshold itself
            weights="standardized" if name == STANDARDIZED else "",
            **own,
        )
        trial = scope.trial(network, STEPS, batch=BATCH, momentum=0.9, evaluations=5)
        return Contender(name, trial, scope.rates(RATES), scope.seeds)

    with_space = (THRESHOLDED, "instance")
    return [contender(k) for k in KINDS if k not in with_space or _has_space(scope)]


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
        if _has_space(scope)
        else " Instance and filter response norm are left out: a layer here has one value a "
        "channel to normalize over."
    )
    return (
        f"{scope.network_in_words(own)}, {scope.steps or STEPS} steps of {BATCH} examples; only "
        "the kind of normalization is exchanged. Each runs at its best rate out of "
        f"{scope.rates_in_words(RATES)} (validation, two seeds). Layer and RMS "
        "norm take all channels and positions of an example together; filter response norm has its "
        f"learned threshold in the place of the ReLU.{instance}"
    )


CLAIM = Claim(
    name="alternatives",
    title="The alternatives",
    question="How do the other kinds of normalization compare with batch norm?",
    papers=(
        Paper(
            "ResNet-50 on ImageNet at 32 images a worker, error: batch norm 23.6, group 24.1, "
            "layer 25.3, instance 28.4 %.",
            "Wu & He 2018, Group Normalization, section 4.1, table 1",
        ),
        Paper(
            "Filter response norm with its thresholded unit is 0.7 to 1.0 points ahead of batch "
            "norm on ImageNet with large batches.",
            "Singh & Krishnan 2020, Filter Response Normalization Layer, abstract",
        ),
        Paper(
            "In transformers dynamic tanh does as well as layer norm or better; in the place of "
            "batch norm ResNet-50 falls with it from 76.2 to 68.9 %.",
            "Zhu et al. 2025, Transformers without Normalization, on its limitations",
        ),
    ),
    plan=_plan,
    assess=_assess,
    method=_method,
    against="A short budget favours what learns fast, and batches are large and independent here. "
    "Small or related batches, recurrent networks and transformers are where the other kinds were "
    "made for.",
)
