"""The checks: each reads what was seen and gives what it finds; this tuple is the list of them.

Causes stand before what may come of them: of findings that matter alike the earlier comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from livella.diagnosis.checks import settings, statistics, structure, values
from livella.diagnosis.records import Finding, Level, Seen

Check = Callable[[Seen], Iterator[Finding]]

CHECKS: tuple[Check, ...] = (
    values.not_finite,
    values.negative_variance,
    structure.instance_of_one,
    structure.one_value,
    statistics.deployment_shift,
    values.never_updated,
    settings.momentum,
    settings.low_precision,
    structure.shared_layer,
    structure.dropout_before,
    statistics.ordered_data,
    statistics.small_batch,
    settings.unequal_processes,
    statistics.stale_statistics,
    statistics.not_of_the_statistics,
    settings.frozen_in_name_only,
    settings.unsynchronized,
    settings.batch_statistics_in_evaluation,
    settings.counters,
    settings.weight_decay,
    structure.reused_layer,
    structure.unreached,
    structure.redundant_bias,
    statistics.gradient_flow,
    values.large_eps,
    values.constant_channels,
    values.silent_channels,
)

_OF_ONE = ("not_finite", "negative_variance", "never_updated", "momentum", "low_precision",
           "shared_layer")  # fmt: skip
"""Checks that say why the statistics of their layer are not those of the data."""
_FROM_THERE_ON = ("dropout_before",)
"""Those that say it of their layer and all that are called after it."""
_OF_ALL = ("ordered_data", "small_batch")
"""Those that say it of every layer."""


def findings_of(seen: Seen) -> tuple[Finding, ...]:
    """Run every check; the worst first, causes before what comes of them, large shares first.

    That statistics are not those of the data is told only where no other check says why.
    """
    found = [(place, finding) for place, check in enumerate(CHECKS) for finding in check(seen)]
    explained = set(_explained(seen, [finding for _, finding in found]))
    kept = [
        (place, finding)
        for place, finding in found
        if finding.check != "stale_statistics" or finding.layer not in explained
    ]
    kept.sort(key=lambda each: (-each[1].level.rank, each[0], -(each[1].share or 0.0)))
    return tuple(finding for _, finding in kept)


def _explained(seen: Seen, found: list[Finding]) -> Iterator[str]:
    names = [layer.name for layer in seen.layers]
    for finding in found:
        if finding.check in _OF_ONE:
            yield finding.layer
        elif finding.check in _FROM_THERE_ON:
            yield from names[names.index(finding.layer) :]
        elif finding.check in _OF_ALL and finding.level is not Level.NOTE:
            yield from names
