"""Plain records of what an inspection sees, healthy unless said otherwise."""

from __future__ import annotations

from livella.diagnosis.records import Distance, Gap, Layer, Measured, Seen, Trio

NEAR = Distance(offset=0.01, ratio=1.0, divergence=0.0001)
FAR = Distance(offset=0.8, ratio=0.5, divergence=0.6)


def measured(**changed: object) -> Measured:
    usual: dict[str, object] = {
        "calls": 1, "samples": 640, "batches": 10, "values": 64 * 49.0, "mean": (0.0, 1.0),
        "variance": (1.0, 2.0), "error": 0.02, "noise": 0.05, "effective": 400.0, "excess": 1.0,
        "apart": 0.0, "gradient": 0.01,
    }  # fmt: skip
    return Measured(**{**usual, **changed})


def layer(name: str = "bn", met: Measured | None = None, **changed: object) -> Layer:
    usual: dict[str, object] = {
        "kind": "BatchNorm2d", "family": "batch", "features": 2, "eps": 1e-5, "momentum": 0.1,
        "mode": "eval", "frozen": False, "trains": True, "tracks": True,
        "statistics_dtype": "float32", "counter": 100, "running_mean": (0.0, 1.0),
        "running_var": (1.0, 2.0), "weight": (1.0, 0.9), "bias": (0.0, 0.1), "positions": 49,
        "measured": met or measured(), "off": NEAR, "share": 0.0,
    }  # fmt: skip
    return Layer(name=name, **{**usual, **changed})


def seen(*layers: Layer, **changed: object) -> Seen:
    usual: dict[str, object] = {
        "model": "Net", "training": False, "samples": 640, "batch": 64,
        "gap": gap(0.9, 0.9, 0.9),
    }  # fmt: skip
    return Seen(layers=layers or (layer(),), **{**usual, **changed})


def gap(running: float, population: float, batch: float, **changed: object) -> Gap:
    usual: dict[str, object] = {
        "score": Trio(running, population, batch), "lost": population - running, "error": 0.004,
        "beyond": batch - population, "examples": 640, "counted": "class numbers",
        "labels": "batch[1]",
    }  # fmt: skip
    return Gap(**{**usual, **changed})


BROKEN = gap(0.4, 0.9, 0.9)
