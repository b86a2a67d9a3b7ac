"""Records of plain numbers: nothing here is measured."""

from livella.bench import cases, memory, training
from livella.bench.contenders import COMPILE, EAGER, LIMIT, OURS
from livella.bench.rows import Record, Row, StepRow

PROVENANCE = {
    "livella": "0.1.0",
    "commit": "0123456789ab+",
    "torch": "2.13.0",
    "processor": "A <fast> Processor",
    "threads": "2",
    "date": "2026-01-31T12:00:00+00:00",
    "kernels": "native (avx512)",
    "limit": "non-temporal stores",
}


def rows_of(case, kind=memory.REUSED, *, ours=1.25, eager=5.0, compiled=10.0):
    """The rows of a case whose limit takes a millisecond, given the others' multiples of it."""
    multiples = {OURS: ours, EAGER: eager, LIMIT: 1.0}
    if case.setting.compiled:
        multiples[COMPILE] = compiled
    for name, multiple in multiples.items():
        seconds = multiple / 1000
        yield Row(
            case=case,
            contender=name,
            memory=kind,
            seconds=seconds,
            p20=0.9 * seconds,
            p80=1.1 * seconds,
            rounds=15,
            faults=0.0 if kind == memory.REUSED else 6272.0,
            to_limit=multiple,
            to_ours=multiple / ours,
        )


def step_rows(step, *, ours=(2.0, 1.0), eager=(3.0, 1.5), peaks=(900.0, 1000.0)):
    """A step's rows, seconds in (contiguous, channels_last), peaks of (ours, eager)."""
    for name, seconds, peak in ((OURS, ours, peaks[0]), (EAGER, eager, peaks[1])):
        for layout, each in zip(("contiguous", "channels_last"), seconds, strict=True):
            yield StepRow(step, name, layout, (each, 1.1 * each, 0.9 * each), peak)


def record(*, steps=True, **multiples):
    """The whole grid, all cases alike."""
    rows = []
    for case in cases.grid():
        rows += rows_of(case, **multiples)
        if case.setting.bound_by_memory:
            rows += rows_of(case, memory.FRESH, **multiples)
    found = [row for step in training.steps() for row in step_rows(step)] if steps else []
    return Record(dict(PROVENANCE), rows, found)
