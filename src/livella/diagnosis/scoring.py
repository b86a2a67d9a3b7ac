"""How good outputs are, in [0, 1] a sample: by labels, or by their likeness to trusted outputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from livella.diagnosis import targets
from livella.diagnosis.labels import Numbers
from livella.diagnosis.likeness import Likeness, Scales
from livella.diagnosis.targets import AUTO, Auto, Found, Place, Target
from livella.model import feeding, given

__all__ = ["AUTO", "Auto", "Judge", "Loss", "Target"]

Loss = Callable[[Any, Any], Tensor]
"""loss(output, batch): a scalar, the mean over the samples of the batch."""


@dataclass
class Judge:
    """Says how good outputs are, in the same way for every batch.

    With labels, the merit of a sample is its share right; without, its likeness to trusted outputs
    (`livella.diagnosis.likeness`). A loss of the user's is told and gives gradients.

    Attributes:
        counted: what the score is of: "class numbers", "positions", "pixels", "one-hot labels",
            "soft labels", "binary labels", "multi-label", "numbers"; empty without labels.
        labels: where they are: "batch[1]", "batch['labels']", "batch.y", "target="; empty without.
        unread: tensors of the batch that are neither given to the model nor understood as labels.

    """

    loss: Loss | None = None
    found: Found | None = None
    unread: tuple[str, ...] = ()
    guessed: bool = False
    """Whether nobody said where the labels are."""
    likeness: Likeness | None = None
    scales: Scales = field(default_factory=Scales, repr=False)
    batches: int = 0
    """How many different batches were met, to name one in an error."""
    last: Any = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        output: Any,
        batch: Any,
        *,
        loss: Loss | None = None,
        target: Target | Auto = AUTO,
        model: nn.Module | None = None,
    ) -> Judge:
        """Decide by the first batch.

        Labels are looked for by name (`livella.model.feeding.LABELS`; "mask", "masks",
        "segmentation" where they are of pixels), then among the last items of a tuple, then among
        all tensors that the model was not given. Of several that fit, those by which this output
        is best are meant.

        Args:
            output: of the model, best by each batch's own statistics.
            batch: what it was called on.
            loss: of the user's. Default: that of the labels.
            target: where the labels are: a key, an index, a function of the batch; None says that
                there are none. Default: they are looked for.
            model: to know which tensors it is given. Default: the first one is its input.

        Raises:
            TypeError: a loss that is called as loss(output, labels).
            ValueError: a target that is not there, or fits no output.

        """
        found, unread = targets.found(output, batch, target, model)
        guessed = isinstance(target, Auto)
        if loss is not None:
            where = str(found) if found is not None and isinstance(found.place, Place) else ""
            given.check_loss(loss, "loss", where or "batch[1]")
            unread = ()
        return cls(loss, found, unread, guessed=guessed)

    @property
    def counted(self) -> str:
        """What the score is of."""
        return "" if self.found is None else self.found.reading.counted

    @property
    def has_scale(self) -> bool:
        """Whether scores hang on a scale, which `see` takes in: those of numbers do."""
        return self.found is None or isinstance(self.found.reading, Numbers)

    @property
    def labels(self) -> str:
        """Where they are."""
        return "" if self.found is None else str(self.found)

    def without_labels(self, why: str) -> Judge:
        """Give one that goes without, and names them with the reason as not understood."""
        told = f"{self.labels}, which {why}"
        return Judge(self.loss, None, (*self.unread, told))

    def see(self, output: Any, batch: Any) -> None:
        """Take in the scale of numbers from a further batch, before anything is scored.

        Of regression that is the variance of the labels, without labels that of the outputs. It
        need not be called: then it is the first batch's, and each batch's.
        """
        if self.found is None:
            self.scales.take_in(output, feeding.samples_in(batch))
        elif isinstance(self.found.reading, Numbers):
            _, labels = self._read(output, batch)
            values = labels.cpu().double()
            self.scales.take_in(values, len(values))
            variance = self.scales.variance(0, values)
            reading = replace(self.found.reading, variance=variance)
            self.found = replace(self.found, reading=reading)

    def merit(self, output: Any, batch: Any, beside: Any) -> Tensor:
        """Give the merit of each sample in [0, 1], (N,), float64 on the CPU.

        Args:
            output: to be judged; where it is NaN or infinite the merit is 0.
            batch: its labels count, where there are any.
            beside: outputs of the same batch by statistics that are trusted; they count where
                there are no labels.

        Raises:
            ValueError: a label that is none, or a batch without labels.

        """
        if self.found is not None:
            scores, labels = self._read(output, batch)
            right = self.found.reading.right(scores, labels)
            finite = scores.isfinite() | (scores == -math.inf)  # a logarithm of nothing
            merit = right * finite.reshape(len(scores), -1).all(1).cpu()
            return merit.nan_to_num(nan=0.0).clamp(0, 1)
        self.likeness = self.likeness or Likeness.of(beside, self.scales)
        return self.likeness.merit(output, beside, feeding.samples_in(batch))

    def loss_of(self, output: Any, batch: Any) -> Tensor | None:
        """Give the loss of a batch, with its graph; none where there is none. It may be NaN.

        Raises:
            ValueError: as `merit`; a loss that is not one number.

        """
        if self.loss is not None:
            return given.number(self.loss(output, batch), "loss", "return the mean over the batch")
        if self.found is None:
            return None
        scores, labels = self._read(output, batch, graph=True)
        return self.found.reading.loss(scores, labels)

    def _read(self, output: Any, batch: Any, graph: bool = False) -> tuple[Tensor, Tensor]:
        """Give scores and labels of a batch, checked."""
        assert self.found is not None
        if batch is not self.last:
            self.batches, self.last = self.batches + 1, batch
        scores = self.found.output(output)
        scores = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
        labels = self._labels_in(batch).to(scores.device)
        reading = self.found.reading
        expected = reading.expected(scores.detach())
        try:
            wrong = reading.wrong(scores.detach(), labels)
            fits = len(labels) == len(scores)
        except (RuntimeError, IndexError, TypeError):  # of another shape
            fits = False
        if not fits:
            raise ValueError(
                f"labels {self.labels}: expected {expected}, for outputs of shape "
                f"{tuple(scores.shape)}, got shape {tuple(labels.shape)} in batch {self._number}"
            )
        if bool(wrong.any()):
            raise ValueError(
                f"labels {self.labels}: expected {expected}, got {_bad(labels, wrong)} of batch "
                f"{self._number}; mend the data, or {targets.WAY_OUT}, with loss= for what they are"
            )
        return (scores if graph else scores.detach()), labels

    def _labels_in(self, batch: Any) -> Tensor:
        assert self.found is not None
        place = self.found.place
        try:
            got = place.of(batch) if isinstance(place, Place) else place(batch)
        except LookupError:
            got = None
        if got is None:
            raise ValueError(
                f"labels {self.labels}: batch {self._number} has none, where the first has some; "
                f"expected them in every batch: {targets.WAY_OUT}"
            )
        return targets.read(got, self.labels)

    @property
    def _number(self) -> int:
        return self.batches - 1


def _bad(labels: Tensor, wrong: Tensor) -> str:
    """Name the first label that is none, and where it is."""
    at = [int(k) for k in wrong.nonzero()[0]]
    value = labels[tuple(at)].item()
    told = f"{value:g}" if isinstance(value, float) else str(value)
    more = int(wrong.sum()) - 1
    return f"{told} at {at}" + (f" (and {more} more)" if more else "")
