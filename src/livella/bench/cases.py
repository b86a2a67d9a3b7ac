"""What is measured: the grid of operations, shapes, layouts and types, as plain data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from livella.bench.errors import BenchError

MAPS = (
    *((32, 64, 56, 56), (32, 256, 56, 56), (32, 512, 28, 28), (32, 1024, 14, 14), (32, 2048, 7, 7)),
    *((128, 64, 32, 32), (16, 32, 112, 112), (16, 96, 112, 112), (16, 144, 56, 56)),
    *((16, 24, 56, 56), (16, 960, 7, 7)),
)
"""(N, C, H, W) as ResNets, CIFAR networks and MobileNets have them."""
SMALL_MAPS = ((8, 64, 8, 8), (4, 16, 4, 4), (4, 4, 2, 2))
OTHER_RANKS = ((8, 32, 8, 28, 28), (32, 256, 128))
FEATURES = ((60, 100), (128, 1024), (1024, 256), (8192, 128), (4, 4))
"""(N, C)."""
SHAPES = (*MAPS, *SMALL_MAPS, *OTHER_RANKS, *FEATURES)

NARROW_SHAPES = (
    *((32, 64, 56, 56), (32, 512, 28, 28), (32, 2048, 7, 7), (16, 96, 112, 112)),
    *((16, 144, 56, 56), (8192, 128), (4, 16, 4, 4)),
)
"""Measured in bfloat16 as well."""
OTHER_TYPES_SHAPES = ((128, 64, 32, 32), (8, 64, 8, 8), (1024, 256))
"""Measured in float64 and float16 as well, without activations."""
OTHER_ACTIVATIONS_SHAPE = (16, 144, 56, 56)
COMPILED_SHAPES = ((32, 64, 56, 56), (32, 512, 28, 28))
"""Where torch.compile takes part, fused and in float32: a case costs it some 20 s to build."""
QUICK_SHAPES = ((32, 64, 56, 56), (32, 2048, 7, 7), (8192, 128), (4, 4, 2, 2))

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
OPERATIONS = ("forward", "backward", "evaluation")
OTHER_ACTIVATIONS = ("relu6", "leaky_relu", "silu", "hardswish")
SMALLEST_BOUND_BY_MEMORY = 2**17
"""Values in a tensor from which its time is that of memory; below, it is the cost of a call."""


@dataclass(frozen=True)
class Fusion:
    """What follows the normalization, in the same call of ours."""

    activation: str | None = None
    residual: bool = False

    def __str__(self) -> str:
        return "+".join(("bn", *["add"] * self.residual, *filter(None, [self.activation])))


PLAIN, RELU, ADD_RELU = Fusion(), Fusion("relu"), Fusion("relu", residual=True)


@dataclass(frozen=True)
class Setting:
    """Tensors and a function of them; its cases share both."""

    shape: tuple[int, ...]
    layout: str
    """"contiguous" or "channels_last" (of any rank: channels vary fastest in memory)."""
    dtype: str
    fusion: Fusion

    @property
    def size(self) -> int:
        """Values in the input."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.size * BYTES[self.dtype]

    @property
    def bound_by_memory(self) -> bool:
        return self.size >= SMALLEST_BOUND_BY_MEMORY

    @property
    def compiled(self) -> bool:
        """Whether torch.compile takes part."""
        return (
            self.shape in COMPILED_SHAPES
            and self.dtype == "float32"
            and self.fusion in (RELU, ADD_RELU)
        )

    @property
    def short(self) -> str:
        """Its name without what is usual: contiguous, float32."""
        words = str(self).split()
        return " ".join(word for word in words if word not in ("contiguous", "float32"))

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape))} {self.layout} {self.dtype}"


@dataclass(frozen=True)
class Case:
    """One thing to time: training forward, its backward, or evaluation forward."""

    operation: str
    setting: Setting

    @property
    def kind(self) -> str:
        """What is done, whatever it is done to: "forward bn+relu"."""
        return f"{self.operation} {self.setting.fusion}"

    def __str__(self) -> str:
        return f"{self.kind} {self.setting}"


def grid(*, quick: bool = False) -> tuple[Case, ...]:
    """All cases, those of a setting next to each other; `quick` leaves a minute's worth."""
    cases = tuple(_quick() if quick else _full())
    return tuple(dict.fromkeys(cases))


def choose(names: Sequence[str], only: str) -> list[bool]:
    """Which of the names hold every word of `only`.

    Raises:
        BenchError: none does.
    """
    words = only.split()
    chosen = [all(word in name for word in words) for name in names]
    if not any(chosen):
        raise BenchError(
            f"nothing to measure is named by --only {only!r}: expected words such as "
            f"those of {names[0]!r}"
        )
    return chosen


def _full() -> Iterator[Case]:
    yield from _float32(SHAPES)
    yield from _cases(NARROW_SHAPES, ["bfloat16"], [PLAIN, RELU, ADD_RELU])
    yield from _cases(OTHER_TYPES_SHAPES, ["float64", "float16"], [PLAIN])
    others = [Fusion(name) for name in OTHER_ACTIVATIONS]
    yield from _cases([OTHER_ACTIVATIONS_SHAPE], ["float32"], others)


def _quick() -> Iterator[Case]:
    yield from _float32(QUICK_SHAPES)
    yield from _cases(QUICK_SHAPES[:1], ["bfloat16"], [PLAIN, RELU])


def _float32(shapes: Iterable[tuple[int, ...]]) -> Iterator[Case]:
    yield from _cases(shapes, ["float32"], [PLAIN, RELU, ADD_RELU])


def _cases(
    shapes: Iterable[tuple[int, ...]], dtypes: Sequence[str], fusions: Sequence[Fusion]
) -> Iterator[Case]:
    for shape in shapes:
        for layout in layouts(shape):
            for dtype in dtypes:
                for fusion in fusions:
                    setting = Setting(shape, layout, dtype, fusion)
                    yield from (Case(name, setting) for name in operations(fusion))


def layouts(shape: tuple[int, ...]) -> tuple[str, ...]:
    """The layouts that differ for a shape."""
    return ("contiguous", "channels_last") if len(shape) > 2 else ("contiguous",)


def operations(fusion: Fusion) -> tuple[str, ...]:
    """Evaluation is measured with an activation and without a residual, as it is most deployed."""
    deployed = fusion.activation is not None and not fusion.residual
    return OPERATIONS if deployed else OPERATIONS[:2]
