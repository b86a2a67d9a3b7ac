"""Recurrent networks: batch norm inside an LSTM, by statistics of each step or of all together."""

from __future__ import annotations

from collections.abc import Sequence

from livella.study import exhibits
from livella.study.claim import Claim, Done, Evidence, Scope
from livella.study.models import Network
from livella.study.recurrence import LONGEST
from livella.study.results import Paper
from livella.study.sweep import Contender
from livella.study.trial import Trial

RATE = 0.02
BATCH = 32
UNITS = 32
STEPS = 60
MARGIN = 2.0
KINDS = (
    ("LSTM", "none", 0.0),
    ("batch, per step, γ₀ 0.1", "per_step", 0.1),
    ("batch, per step, γ₀ 1", "per_step", 1.0),
    ("batch, shared, γ₀ 0.1", "shared", 0.1),
    ("layer", "layer", 0.0),
)


def _contenders(scope: Scope) -> tuple[Contender, ...]:
    def contender(name: str, norm: str, gamma: float) -> Contender:
        network = Network("lstm", norm=norm, width=UNITS, gamma=gamma)
        trial = scope.trial(network, STEPS, batch=BATCH, evaluations=4, optimizer="adam")
        return Contender(name, trial, (RATE,), scope.seeds)

    return tuple(contender(*kind) for kind in KINDS)


def _plan(scope: Scope, done: Done) -> Sequence[Trial]:
    return [trial for contender in _contenders(scope) for trial in contender.tuned(done)]


def _assess(scope: Scope, done: Done) -> Evidence:
    chosen = [contender.chosen(done) for contender in _contenders(scope)]
    plain, per_step, from_one, shared, layer = chosen
    asked = (
        ("Does batch norm inside the recurrence end with fewer errors than a plain LSTM?", plain),
        ("Do γ that start at 0.1 do better than such that start at 1?", from_one),
        ("Do statistics of each step do better than such of all steps together?", shared),
        ("Does batch norm end with fewer errors than layer norm?", layer),
    )
    findings = tuple(exhibits.fewer_errors(said, worse, per_step, MARGIN) for said, worse in asked)
    figures = (
        exhibits.learning_curves(chosen, rates="all at the same rate"),
        exhibits.error_bars("Test error by kind of LSTM", "kind", chosen),
    )
    return Evidence(findings, exhibits.error_table(chosen, "rate"), figures)


def _reading(scope: Scope) -> str:
    if scope.sequences or len(scope.shape) == 2:
        return "step by step, each sequence up to its own end"
    if len(scope.shape) == 3 and scope.shape[1] * scope.shape[2] > LONGEST:
        return f"row by row, in {scope.shape[1]} steps"
    steps = scope.shape[0] if len(scope.shape) == 1 else scope.shape[1] * scope.shape[2]
    return f"value by value, in {steps} steps"


CLAIM = Claim(
    name="recurrent",
    title="Recurrent networks",
    question="Does batch norm help inside a recurrent network, and which statistics does it take?",
    papers=(
        Paper(
            "Sequential MNIST 99.0 % with batch norm in the LSTM, 98.9 % without; with the pixels "
            "permuted 95.4 and 90.2 %. Statistics are those of each time step, and γ starts at "
            "0.1, as from 1 the gradients vanish.",
            "Cooijmans et al. 2017, Recurrent Batch Normalization, sections 3 and 5",
        ),
        Paper(
            "Batch norm of the hidden-to-hidden product alone does not help.",
            "Laurent et al. 2016, Batch Normalized Recurrent Neural Networks",
        ),
    ),
    plan=_plan,
    assess=_assess,
    method=lambda scope: (
        f"One LSTM of {UNITS} units reads each example {_reading(scope)}, and a linear layer "
        "tells the class from its last state. Adam at the same rate "
        f"{RATE:g} for all, batches of {BATCH}, {scope.steps or STEPS} steps. The running "
        "statistics are used in inference."
    ),
    against="The budget is short: it shows how fast a network starts to learn, which need not be "
    "where it ends; give more by --steps. One rate for all may suit one kind more than another.",
    left_out=lambda scope: "the recurrent networks are the study's own" if scope.model else "",
    for_sequences=True,
)
