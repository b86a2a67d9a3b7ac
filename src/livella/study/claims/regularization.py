"""Regularization: does batch norm keep a network from overfitting, and spare it dropout?"""

from __future__ import annotations

from collections.abc import Sequence

from livella.study import exhibits
from livella.study.claim import Claim, Done, Evidence, Scope
from livella.study.models import Network
from livella.study.results import Paper
from livella.study.sweep import Contender, by_validation
from livella.study.trial import Trial

RATES = (0.1, 0.3, 1.0)
EXAMPLES = 300
STEPS = 300
MARGIN = 0.5


def _contenders(scope: Scope) -> tuple[Contender, ...]:
    def contender(name: str, norm: str, dropout: float) -> Contender:
        network = Network(norm=norm, depth=4, dropout=dropout)
        trial = scope.trial(network, STEPS, batch=30, examples=EXAMPLES, evaluations=10)
        return Contender(name, trial, scope.rates(RATES), scope.seeds)

    return (
        contender("none", "none", 0.0),
        contender("dropout 0.2", "none", 0.2),
        contender("dropout 0.5", "none", 0.5),
        contender("batch", "batch", 0.0),
        contender("batch + dropout 0.2", "batch", 0.2),
    )


def _plan(scope: Scope, done: Done) -> Sequence[Trial]:
    return [trial for contender in _contenders(scope) for trial in contender.tuned(done)]


def _assess(scope: Scope, done: Done) -> Evidence:
    chosen = [contender.chosen(done) for contender in _contenders(scope)]
    none, *dropouts, batch, _both = chosen
    findings = (
        exhibits.fewer_errors(
            "Does batch norm lower the test error of a network with little data?",
            none,
            batch,
            MARGIN,
        ),
        exhibits.fewer_errors(
            "Does batch norm alone do better than dropout alone?",
            by_validation(dropouts),
            batch,
            MARGIN,
        ),
    )
    figures = (
        exhibits.error_bars(f"Test error after {EXAMPLES} training examples", "contender", chosen),
        exhibits.learning_curves(chosen),
    )
    return Evidence(findings, exhibits.error_table(chosen), figures)


CLAIM = Claim(
    name="regularization",
    title="Regularization",
    question="Does batch norm regularize, so that less dropout is needed?",
    papers=(
        Paper(
            "Removing dropout from the network with batch norm made it train faster without more "
            "overfitting.",
            "Ioffe & Szegedy 2015, Batch Normalization, section 4.2.1",
        ),
        Paper(
            "Dropout 0.5 before batch norm in every bottleneck: CIFAR-100 accuracy falls from "
            "77.4 to 68.6 %, because the variance differs between training and inference.",
            "Li et al. 2018, Understanding the Disharmony between Dropout and Batch "
            "Normalization by Variance Shift",
        ),
    ),
    plan=_plan,
    assess=_assess,
    method=lambda scope: (
        f"A network of 4 × 100 ReLU units with He initialization learns from {EXAMPLES} training "
        f"examples, drawn anew by each seed, in {scope.steps or STEPS} steps of plain SGD with "
        f"batches of 30, at its best rate out of {scope.rates_in_words(RATES)} (validation, "
        "two seeds). Dropout follows each activation."
    ),
    against="The noise of the batch statistics is what regularizes, so a larger batch weakens it. "
    "A few hundred examples and one architecture say little of large networks, where weight decay "
    "and augmentation regularize more. Whether batch norm goes better with dropout or without is "
    "not judged.",
    left_out=lambda scope: (
        "the study places the dropout that it compares with, and it cannot know where in a given "
        "network that belongs"
        if scope.model
        else ""
    ),
)
