"""The records of an inspection: plain numbers and texts, with no torch behind them.

`measure` fills them, checks read them, reports draw them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

MATTERS = 0.02
"""Of the score: from here on a loss matters."""


class Level(str, Enum):
    """How much a finding matters."""

    NOTE = "note"
    """Worth knowing; nothing needs to be done."""
    WARNING = "warning"
    """It costs something now, or will once something usual is done."""
    ERROR = "error"
    """The network is wrong in use."""

    @property
    def rank(self) -> int:
        """Higher is worse."""
        return list(Level).index(self)


@dataclass(frozen=True)
class Measured:
    """What a layer met in the batches; each layer before it normalized by the batch itself.

    Attributes:
        calls: how often a pass calls it.
        samples: how many samples it met.
        batches: in how many batches.
        values: values a channel in a usual batch, N·H·W.
        mean: μ of all values, by channel.
        variance: their unbiased variance, by channel.
        error: half the width of the 95 % interval of μ or σ, the larger, in σ.
        noise: how far the mean of a usual batch is from μ, in σ (standard deviation).
        effective: how many independent values would scatter so: what a batch is worth, which is
            less than `values`, as positions of a map resemble each other.
        excess: how much more batches differ than chance allows, in variance; 1 where not.
        apart: how far the calls of a pass are from each other, in σ; 0 for one call.
        dropout: the variance with dropout over that without, median over the channels.
        gradient: the norm of the loss gradient at its output, over the root of its size.

    """

    calls: int
    samples: int
    batches: int
    values: float
    mean: tuple[float, ...]
    variance: tuple[float, ...]
    error: float
    noise: float
    effective: float
    excess: float
    apart: float
    dropout: float | None = None
    gradient: float | None = None


@dataclass(frozen=True)
class Distance:
    """How far statistics are from those of the data.

    Attributes:
        offset: root mean square over the channels of the means' distance, in σ of the data.
        ratio: the median over the channels of variance over that of the data.
        divergence: nats a channel from the normal distribution of the data to that assumed,
            ½·(ln(s²/σ²) + (σ² + (m − μ)²)/s² − 1), with ε added to both variances.
        amplified: the root mean square over the channels of −½·ln(s²/σ²), where that is above 0:
            how much too large outputs become.

    """

    offset: float
    ratio: float
    divergence: float
    amplified: float = 0.0


@dataclass(frozen=True)
class Layer:
    """A normalization as it stands in the model.

    Attributes:
        name: in the model; empty for the model itself.
        kind: its class.
        also: further names of the same layer.
        family: "batch", "instance" or "group".
        mode: "train" or "eval".
        frozen: whether `livella.freeze` or a switch holds its statistics.
        trains: whether γ or β ask for a gradient.
        tracks: whether batches of training go into running statistics.
        statistics_dtype: of the running statistics; empty where there are none.
        counter: batches counted; none where there is no counter.
        running_mean: and `running_var`, γ as `weight`, β as `bias`: by channel; none without.
        source: the module whose output it is given, where that is known: name and class.
        source_bias: whether that adds a bias by channel.
        decay: the optimizer's weight decay on γ and β, if an optimizer was given.
        positions: values a channel and sample in the first call, H·W; none without data.
        measured: what it met; none without data.
        off: its running statistics against the data.
        shifted: the data of training against those in deployment.
        share: the share of the gap that its statistics answer for; none where there is none.
        share_error: half the width of its 95 % interval; zero where it is exact.

    """

    name: str
    kind: str
    family: str
    features: int
    eps: float
    momentum: float | None
    mode: str
    frozen: bool
    trains: bool
    tracks: bool
    statistics_dtype: str = ""
    counter: int | None = None
    running_mean: tuple[float, ...] | None = None
    running_var: tuple[float, ...] | None = None
    weight: tuple[float, ...] | None = None
    bias: tuple[float, ...] | None = None
    also: tuple[str, ...] = ()
    source: str = ""
    source_kind: str = ""
    source_bias: bool = False
    decay: float | None = None
    positions: int | None = None
    measured: Measured | None = None
    off: Distance | None = None
    shifted: Distance | None = None
    share: float | None = None
    share_error: float | None = None


@dataclass(frozen=True)
class Trio:
    """One figure by the running statistics, by those of the data, and by each batch's own."""

    running: float
    population: float
    batch: float


@dataclass(frozen=True)
class Gap:
    """How the network does by which statistics.

    Attributes:
        score: the mean over the examples of a score in [0, 1]: the share right where there are
            labels, else how far outputs agree with those by the data's statistics.
        lost: what the running statistics lose of the score against those of the data.
        error: half the width of the 95 % interval of `lost`, example by example; without labels
            with what statistics of so few data leave to chance.
        beyond: what the data's statistics lose against each batch's own.
        beyond_error: half the width of its 95 % interval, batch by batch.
        examples: how many were scored.
        counted: what the score is of: "class numbers", "pixels", …; empty without labels.
        labels: what was used as labels: "batch[1]", "batch['mask']", "target="; empty without.
        loss: the loss, where there is one.
        unread: what the batches hold besides and nobody understood, each with its shape.

    """

    score: Trio
    lost: float
    error: float
    beyond: float
    examples: int
    counted: str = ""
    labels: str = ""
    loss: Trio | None = None
    unread: tuple[str, ...] = ()
    beyond_error: float = 0.0

    @property
    def is_share(self) -> bool:
        """Whether the score is a share right, as of all labels but numbers."""
        return bool(self.counted) and not self.is_of_numbers

    @property
    def is_of_numbers(self) -> bool:
        """Whether the score is of numbers, which are never just right or wrong."""
        return self.counted == "numbers"

    @property
    def is_open(self) -> bool:
        """Whether much may be lost that so few data cannot tell from chance."""
        return MATTERS < self.lost <= self.error


@dataclass(frozen=True)
class Seen:
    """All that was read and measured, without judgement.

    Attributes:
        model: the class of the model.
        layers: in the order of their calls, or of the model where there were no data.
        training: whether the model is in training mode.
        samples: how many were measured.
        batch: the usual number of samples a batch.
        processes: of the process group, if there is one.
        unequal: the layers whose statistics differ among processes.
        unreached: the layers that no batch reached.
        deployed: how many samples of deployment data were measured.
        dropout: names of the dropout modules that are at work in training.
        gap: how the model does by which statistics; none without data.

    """

    model: str
    layers: tuple[Layer, ...]
    training: bool
    samples: int = 0
    batch: int = 0
    processes: int = 1
    unequal: tuple[str, ...] = ()
    unreached: tuple[str, ...] = ()
    deployed: int = 0
    dropout: tuple[str, ...] = ()
    gap: Gap | None = None


@dataclass(frozen=True)
class Finding:
    """What one check found at one layer.

    Attributes:
        check: its name.
        level: how much it matters.
        layer: the layer to blame; empty for the model as a whole.
        message: what is the case, in one or two sentences with their figures.
        remedy: the id of what would mend it, a key of `livella.diagnosis.remedies.REMEDIES`.
        share: the share of the gap that it answers for; none where it cannot be told.
        numbers: the figures by name.
        because: the finding that this one comes of, as "check" or "check@layer"; empty where none
            was made.

    """

    check: str
    level: Level
    layer: str
    message: str
    remedy: str = ""
    share: float | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)
    because: str = ""

    @property
    def key(self) -> str:
        """What `because` and `ignore` call it: "check@layer", or "check" for the model."""
        return f"{self.check}@{self.layer}" if self.layer else self.check


@dataclass(frozen=True)
class Advice:
    """A remedy in words: what it may change ("exact", "statistics", "changing", "advice")."""

    safety: str
    text: str


@dataclass(frozen=True)
class Record:
    """An inspection: what was seen, and what was found, the worst first.

    Attributes:
        checks: what each check looks for, by its name.
        remedies: those that findings name.
        ignored: what was found and accepted: it is shown, and counts for nothing.

    """

    seen: Seen
    findings: tuple[Finding, ...]
    checks: Mapping[str, str] = field(default_factory=dict)
    remedies: Mapping[str, Advice] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[Finding, ...] = ()

    @property
    def worst(self) -> Level | None:
        """The highest level among the findings."""
        return max((f.level for f in self.findings), key=lambda level: level.rank, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Give the record as JSON-ready values; levels are their texts."""
        return dataclasses.asdict(self)
