"""Reading the data as often as an estimate needs: levels, early ends, and other processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from livella.model import feeding
from livella.model.estimate import LayerEstimate, estimates_of
from livella.model.feeding import Forward
from livella.model.levels import Dependencies, Site, circles_of, levels, observe, pooled
from livella.model.measure import Pass, Record, Statistics, unasked
from livella.model.progress import Bar, length_of

ROUND = 8
"""Batches between two looks of all processes at whether the tolerance is met, at the start; later
one more for every eight read. One process alone begins by looking after each batch."""
Calls = tuple[Site, ...]
Records = dict[Site, Record]
Settle = Callable[[LayerEstimate], tuple[Tensor, Tensor]]


@dataclass
class Report:
    """What one process tells the others."""

    error: str = ""
    finished: bool = False
    records: Records = field(default_factory=dict)
    patterns: dict[Calls, Dependencies] = field(default_factory=dict)


@dataclass
class Estimator:
    """One estimation: the model, its layers, the data, and what is known so far."""

    model: nn.Module
    layers: Mapping[str, _NormBase]
    batches: Iterable[Any]
    forward: Forward
    samples: int | None
    tolerance: float | None
    group: dist.ProcessGroup | None
    progress: bool | None
    settle: Settle
    """From what a layer's calls were given to what it normalizes by afterwards."""
    caller: str
    alone: bool = False
    """Whether other processes have nothing to do with it."""
    passes: int = 0
    patterns: dict[Calls, Dependencies] = field(default_factory=dict)
    """The sequences of calls met so far, each with what depends on what in it."""

    def single_pass(self) -> dict[str, LayerEstimate]:
        """Measure every layer at once, each normalizing by the mini-batch."""
        with self._bar() as bar:
            return self._estimates(self._read("all layers", self._by_batch, None, bar))

    def sequential(self) -> dict[str, LayerEstimate]:
        """Measure level by level, with all levels before in inference mode."""
        self._explore()
        with self._bar() as bar:
            known: Records = {}
            while True:
                graph = self._graph()
                order = levels(graph)
                level = len({order[site] for site in known})
                wanted = {site for site, at in order.items() if at == level}
                if not wanted:
                    return self._estimates(known)
                what = f"level {level + 1} of {max(order.values()) + 1}"
                statistics = self._in_inference(known, graph)
                found = self._read(what, statistics, wanted, bar)
                if not found:
                    these = ", ".join(sorted({repr(name) for name, _ in wanted}))
                    raise ValueError(
                        f"{self.caller}: pass {self.passes} over the data gave no samples to "
                        f"{these}; pass a loader or a list that yields some each time it is read"
                    )
                # Calls that no batch before had made may come before those thought to be first.
                known = known | found if levels(self._graph()) == order else {}

    # Levels

    def _graph(self) -> Dependencies:
        """All calls met so far, with all they depend on in any batch."""
        union: Dependencies = {}
        for dependencies in self.patterns.values():
            for site, others in dependencies.items():
                union[site] = union.get(site, frozenset()) | others
        return pooled(union)

    def _explore(self) -> None:
        """Follow the first batch, so that the first pass has calls to expect."""
        own = Report()
        try:
            for batch in self.batches:
                own.patterns = self._observed(batch)
                break
        except Exception as error:
            self._agree(Report(error=_in_words(error)))
            raise
        for report in self._agree(own):
            self.patterns |= report.patterns
        if not self.patterns:
            raise ValueError(f"{self.caller}: got no batches; pass a loader that yields some")

    def _observed(self, batch: Any) -> dict[Calls, Dependencies]:
        batch = feeding.to_device(batch, feeding.device_of(self.model))
        known = [*self.model.parameters(), *self.model.buffers(), *feeding.tensors_in(batch)]
        with Pass(self.model, {}, unasked) as watching:
            seen: list[Dependencies] = []
            watching.run(
                lambda: seen.append(
                    observe(lambda: self.forward(self.model, batch), self.layers, known)
                )
            )
        return {tuple(seen[0]): seen[0]}

    # What layers normalize by

    def _by_batch(self, reading: Pass, site: Site, values: int) -> Statistics:
        own = self._own(site)
        if values > 1:
            return of_batch(reading.met, own)
        so_far = reading.records.get(site)
        return own if so_far is None else self._of({site: so_far.settle()}, [site])

    def _in_inference(
        self, known: Records, graph: Dependencies
    ) -> Callable[[Pass, Site, int], Statistics]:
        """By the population statistics of all calls; in a circle not yet measured, of this call."""
        circles = circles_of(graph)
        made: dict[Site, Statistics] = {}
        for site in known:
            complete = all(other in known for other in graph if other[0] in circles[site[0]])
            together = [other for other in known if other[0] == site[0]] if complete else [site]
            made[site] = self._of(known, together)
        return lambda _reading, site, _values: made.get(site) or self._own(site)

    def _of(self, records: Records, together: list[Site]) -> Statistics:
        name = together[0][0]
        mean, variance = self._own(together[0])
        assert isinstance(mean, Tensor), "only layers with averages are measured"
        assert isinstance(variance, Tensor)
        found = self.settle(
            LayerEstimate(name, self.layers[name], tuple(records[site] for site in together))
        )
        return found[0].to(mean), found[1].to(variance)

    def _own(self, site: Site) -> Statistics:
        return self._originals[site[0]]

    def __post_init__(self) -> None:
        self._originals: dict[str, Statistics] = {
            name: (layer.running_mean, layer.running_var) for name, layer in self.layers.items()
        }

    # One pass over the data

    def _read(
        self,
        what: str,
        statistics: Callable[[Pass, Site, int], Statistics],
        wanted: set[Site] | None,
        bar: Bar,
    ) -> Records:
        self.passes += 1
        bar.begin(what)
        reading = Pass(
            self.model,
            self.layers,
            lambda site, values: statistics(reading, site, values),
            wanted,
            lambda calls: self._is_enough(calls, wanted),
        )
        batches = self._limited(bar)
        read, first = 0, 1 if self._world() == 1 else ROUND
        while True:
            own = Report()
            most = None if self.tolerance is None else max(first, read // 8)
            try:
                with reading:
                    now = self._read_some(islice(batches, most), reading, wanted)
                read, own.finished = read + now, most is None or now < most
                own.records, own.patterns = reading.records, self.patterns
            except Exception as error:
                self._agree(Report(error=_in_words(error)))
                raise
            reports = self._agree(own)
            merged = self._merged(reports)
            if all(report.finished for report in reports) or self._is_tight(merged, wanted):
                return merged

    def _read_some(self, batches: Iterator[Any], reading: Pass, wanted: set[Site] | None) -> int:
        """Read these batches; gives how many there were."""
        read = 0
        for batch in batches:
            read += 1
            reading.run(lambda batch=batch: self.forward(self.model, batch))  # type: ignore[misc]
            if wanted is not None and not self._is_foreseen(reading.calls):
                reading.paused = True
                self.patterns |= self._observed(batch)
                reading.paused = False
        return read

    def _limited(self, bar: Bar) -> Iterator[Any]:
        limit = None if self.samples is None else -(-self.samples // self._world())
        seen = 0
        for batch in feeding.on_device(self.model, self.batches):
            yield batch
            bar.advance()
            seen += feeding.samples_in(batch)
            if limit is not None and seen >= limit:
                return

    def _is_foreseen(self, calls: Calls) -> bool:
        return any(pattern[: len(calls)] == calls for pattern in self.patterns)

    def _is_enough(self, calls: Calls, wanted: set[Site] | None) -> bool:
        """Whether every known pass that begins so makes no more of the calls wanted.

        Not while the data are read for the first time, as other ways to go on may turn up.
        """
        if wanted is None or self.passes < 2:
            return False
        ways = [pattern for pattern in self.patterns if pattern[: len(calls)] == calls]
        return bool(ways) and all(wanted.isdisjoint(way[len(calls) :]) for way in ways)

    def _is_tight(self, records: Records, wanted: set[Site] | None) -> bool:
        if self.tolerance is None:
            return False
        return all(
            site in records
            and (scatter := records[site].scatter) is not None
            and scatter.samples >= SAMPLES_AT_LEAST
            and scatter.batches >= BATCHES_AT_LEAST
            and LayerEstimate(site[0], self.layers[site[0]], (records[site],)).error
            <= self.tolerance
            for site in (records if wanted is None else wanted)
        )

    def _estimates(self, records: Records) -> dict[str, LayerEstimate]:
        if not records:
            raise ValueError(f"{self.caller}: no batch reached a batch norm to measure")
        estimates = estimates_of(self.layers, records)
        for estimate in estimates.values():
            self.settle(estimate)  # says what is wrong with it, if anything is
        return estimates

    # Other processes

    def _world(self) -> int:
        if self.alone or not (dist.is_available() and dist.is_initialized()):
            return 1
        return dist.get_world_size(self.group)

    def _agree(self, own: Report) -> list[Report]:
        """Give the reports of all processes, in the order of their ranks."""
        if self._world() == 1:
            return [own]
        own.records = {site: record.cpu() for site, record in own.records.items()}
        reports: list[Report] = [own] * self._world()
        dist.all_gather_object(reports, own, group=self.group)
        for rank, report in enumerate(reports):
            if report.error and not own.error:
                raise RuntimeError(f"{self.caller}: rank {rank} failed: {report.error}")
        return reports

    def _merged(self, reports: list[Report]) -> Records:
        merged: Records = {}
        for report in reports:
            self.patterns |= report.patterns
            for site, record in report.records.items():
                merged[site] = merged[site].merge(record) if site in merged else record
        return merged

    def _bar(self) -> Bar:
        first = self._world() == 1 or dist.get_rank(self.group) == 0
        total = length_of(self.batches)
        return Bar(self.caller, self.progress if first else False, total)


SAMPLES_AT_LEAST = 64
BATCHES_AT_LEAST = 8
"""Before which a tolerance is not believed: intervals of few samples are intervals of luck."""


def of_batch(met: Tensor | None, own: Statistics) -> Statistics:
    """The moments of the batch itself; averages of low precision could not hold them."""
    mean, variance = own
    exact = (torch.float32, torch.float64)
    if met is None or mean is None or variance is None or mean.dtype not in exact:
        return None, None
    return met[1].to(mean), (met[2] / met[0]).to(variance)


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
