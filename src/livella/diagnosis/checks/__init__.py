"""The checks: each reads what was seen and gives what it finds; this tuple is the list of them.

Causes stand before what may come of them: of findings that matter alike the earlier comes first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from livella.diagnosis.checks import settings, statistics, structure, values
from livella.diagnosis.records import Finding, Seen

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
    statistics.statistics_gap,
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

_OF_ONE = (values.not_finite, values.negative_variance, values.never_updated, settings.momentum,
           settings.low_precision, structure.shared_layer)  # fmt: skip
"""Checks that say why the statistics of their layer are not those of the data."""
_FROM_THERE_ON = (structure.dropout_before,)
"""Those that say it of their layer and all that are called after it."""
_OF_ALL = (statistics.ordered_data, statistics.small_batch)
"""Those that say it of every layer, if they matter at all."""


def findings_of(seen: Seen) -> tuple[Finding, ...]:
    """Run every check; the worst first, causes before what comes of them, large shares first.

    Nothing is left out because something else was found: `because` says what comes of what.
    """
    found = [
        (place, dataclasses.replace(each, check=check.__name__))
        for place, check in enumerate(CHECKS)
        for each in check(seen)
    ]
    causes = _causes(seen, [each for _, each in found])
    found = [(place, dataclasses.replace(each, because=causes.get(each.key, "")))
             for place, each in found]  # fmt: skip
    found.sort(key=lambda each: (-each[1].level.rank, each[0], -(each[1].share or 0.0)))
    return tuple(each for _, each in found)


def _causes(seen: Seen, found: list[Finding]) -> dict[str, str]:
    """Say of findings about statistics what they come of, by key."""
    stale = [each for each in found if each.check == statistics.stale_statistics.__name__]
    because = {}
    for each in stale:
        explained = [cause for cause in found if _explains(seen, cause, each.layer)]
        if explained:
            because[each.key] = max(explained, key=lambda cause: cause.level.rank).key
    gap = statistics.statistics_gap.__name__
    blame = max(stale, key=lambda each: (each.level.rank, each.share or 0.0), default=None)
    if blame is not None:
        because[gap] = because.get(blame.key, blame.key)
    return because


def _explains(seen: Seen, cause: Finding, layer: str) -> bool:
    """Whether a finding says why the statistics of a layer are not those of the data."""
    if cause.check in _named(_OF_ONE):
        return cause.layer == layer
    if cause.check in _named(_FROM_THERE_ON):
        names = [each.name for each in seen.layers]
        return layer in names[names.index(cause.layer) :]
    ordered = cause.check == statistics.ordered_data.__name__
    return cause.check in _named(_OF_ALL) and statistics.by_chance(seen, excess=ordered)


def _named(checks: tuple[Check, ...]) -> set[str]:
    return {check.__name__ for check in checks}
