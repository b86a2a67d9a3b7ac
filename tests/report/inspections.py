"""Inspections made by hand, as plain records, for the reports to draw."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from livella.diagnosis.checks import CHECKS
from livella.diagnosis.records import (
    Advice,
    Distance,
    Finding,
    Gap,
    Layer,
    Level,
    Measured,
    Record,
    Seen,
    Trio,
)

MARKUP = "<img src=x onerror=alert(1)>&'\""
COMMAND = (
    "livella repair mine.py:build --weights w.safetensors --data mine.py:loader "
    "--out mended.safetensors"
)
ADVICE = {
    "measure_statistics": Advice("statistics", "Measure them again: estimate_population(model)."),
    "momentum": Advice("statistics", "Set momentum to one minus it, and measure them again."),
    "freeze": Advice("exact", "livella.freeze(model, [layer])."),
    "larger_batch": Advice("advice", "Train with larger batches."),
    "prune": Advice("advice", "Prune the channels, with what feeds and reads them."),
    "no_bias": Advice("advice", "Build the layer before it with bias=False."),
}
GAP = Gap(
    Trio(0.304, 0.997, 0.971), 0.693, 0.024, 0.026, 1437, "class numbers", "batch[1]",
    Trio(2.08, 0.017, 0.09),
)  # fmt: skip
CLOSED = Gap(
    Trio(0.997, 0.997, 0.971), 0.0, 0.002, 0.026, 1437, "class numbers", "batch[1]",
    Trio(0.017, 0.017, 0.09),
)  # fmt: skip
UNLABELLED = Gap(
    Trio(0.61, 1.0, 0.98), 0.39, 0.03, -0.02, 640, unread=("batch['meta']: (64, 3) int64",)
)
NEAR = Distance(0.01, 1.0, 0.0001)
FAR = Distance(0.8, 0.5, 0.6)


def measured(
    mean: Sequence[float] = (0.0, 1.0), variance: Sequence[float] = (1.0, 2.0)
) -> Measured:
    return Measured(
        1, 640, 10, 64 * 49.0, tuple(mean), tuple(variance), 0.02, 0.05, 400.0, 1.0, 0.0
    )


def layer(name: str, **changed: object) -> Layer:
    usual: dict[str, object] = {
        "kind": "BatchNorm2d", "family": "batch", "features": 2, "eps": 1e-5, "momentum": 0.1,
        "mode": "eval", "frozen": False, "trains": True, "tracks": True,
        "statistics_dtype": "float32", "counter": 100, "running_mean": (0.0, 1.0),
        "running_var": (1.0, 2.0), "weight": (1.0, 0.9), "bias": (0.0, 0.1), "positions": 49,
        "measured": measured(), "off": NEAR, "share": None,
    }  # fmt: skip
    return Layer(name=name, **{**usual, **changed})


def record(
    layers: Sequence[Layer],
    findings: Sequence[Finding] = (),
    gap: Gap | None = CLOSED,
    **changed: object,
) -> Record:
    model = str(changed.pop("model", "Net"))
    samples = 1437 if gap is not None else 0
    return Record(
        Seen(model, tuple(layers), training=False, samples=samples, batch=64, gap=gap),
        tuple(findings),
        checks={check.__name__: check.__doc__ or "" for check in CHECKS},
        remedies=ADVICE,
        provenance={"livella": "0.1.0", "torch": "2.13.0"},
        **changed,
    )


def stale(name: str, share: float, because: str = "", level: Level = Level.ERROR) -> Finding:
    return Finding(
        "stale_statistics", level, name,
        "Its running statistics are not those of the data: means off by 0.8 σ, variances 0.5 "
        f"times as large. It answers for {share:.0%} of the gap.",
        "measure_statistics", share, {"offset": 0.8, "ratio": 0.5}, because,
    )  # fmt: skip


def the_gap(because: str) -> Finding:
    return Finding(
        "statistics_gap", Level.ERROR, "",
        "30.4% right by its running statistics, 99.7% by the statistics of the data.",
        "measure_statistics", None, {"lost": 0.693}, because,
    )  # fmt: skip


def dead(name: str, channels: int, of: int) -> Finding:
    return Finding(
        "constant_channels", Level.NOTE, name,
        f"{channels} of {of} channels never vary (variance below 1e-12): they give out β whatever "
        "comes in, and could be pruned.",
        "prune", None, {"channels": channels, "share": channels / of},
    )  # fmt: skip


SMALL = Finding(
    "small_batch", Level.WARNING, "2.bn",
    "A batch of 4 is worth 3.1 independent values here (of 4): its means scatter by 0.5 σ.",
    "larger_batch", None, {"noise": 0.5, "batch": 4},
)  # fmt: skip
BIAS = Finding("redundant_bias", Level.NOTE, "1.bn", "1.conv (Conv2d) before it adds a bias, which "
               "it takes away again.", "no_bias")  # fmt: skip
SHIFTED = Finding("deployment_shift", Level.ERROR, "0.bn", "Deployment data are not as in training "
                  "from here on: means 2 σ away.", "adapt", None, {"offset": 2.0})  # fmt: skip
HEALTHY = record([layer(f"{k}.bn") for k in range(4)])
SICK = record(
    [layer("0.bn", off=FAR, share=0.55, share_error=0.04, momentum=0.001),
     layer("1.bn", off=FAR, share=0.41, share_error=0.04, running_mean=(5.0, float("nan"))),
     layer("2.bn", share=0.04, share_error=0.02), layer("3.bn", share=0.0)],
    [stale("0.bn", 0.55), stale("1.bn", 0.41), the_gap("stale_statistics@0.bn"), SMALL, BIAS,
     dead("3.bn", 1, 2)],
    GAP,
)  # fmt: skip
MOMENTUM = [
    Finding("momentum", Level.ERROR, f"{k}.bn", "momentum = 0.99 is the share of each new batch "
            "here.", "momentum", share, {"momentum": 0.99}, "")
    for k, share in enumerate((0.55, 0.41))
]  # fmt: skip
CAUSED = record(
    SICK.seen.layers,
    [*MOMENTUM, stale("0.bn", 0.55, "momentum@0.bn"), stale("1.bn", 0.41, "momentum@1.bn"),
     the_gap("momentum@0.bn")],
    GAP,
)  # fmt: skip
STORED = record(
    [layer(f"{k}.bn", measured=None, off=None) for k in range(4)], [BIAS, dead("3.bn", 1, 2)], None
)
HOSTILE = record(
    [layer(MARKUP, kind=MARKUP, off=FAR, share=0.9)], [stale(MARKUP, 0.9)], GAP, model=MARKUP
)
IGNORING = dataclasses.replace(SICK, findings=SICK.findings[:3], ignored=(SMALL, BIAS))
NAMES = [f"backbone.layer{1 + k // 13}.{k % 13 // 3}.bn{1 + k % 3}" for k in range(52)]
DEEP = record(
    [layer(name, features=328, off=FAR if k < 31 else NEAR, share=0.03 if k < 31 else 0.002)
     for k, name in enumerate(NAMES)],
    [*(stale(name, 0.03) for name in NAMES[:31]), the_gap(f"stale_statistics@{NAMES[0]}"),
     *(dead(name, 10 + k % 3, 328) for k, name in enumerate(NAMES[:40]))],
    GAP,
)  # fmt: skip
LONG_NAMES = [
    f"model.backbone.features.denseblock{1 + k // 4}.denselayer{k % 4}.norm.normalization_module"
    for k in range(12)
]
LONG = record(
    [layer(name, off=FAR, share=1 / 12) for name in LONG_NAMES],
    [*(stale(name, 1 / 12) for name in LONG_NAMES), the_gap(f"stale_statistics@{LONG_NAMES[0]}")],
    GAP,
)
