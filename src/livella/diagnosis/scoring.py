"""How good outputs are: by labels, by a loss, or by how far they agree with trusted outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from livella.diagnosis import agreement, targets
from livella.diagnosis.agreement import Agreement
from livella.diagnosis.targets import AUTO, Labels, Target
from livella.model import feeding

__all__ = ["AUTO", "Judge", "Loss", "Target"]

Loss = Callable[[Any, Any], Tensor]
"""loss(output, batch): a scalar, the mean over the samples of the batch."""


class Judge:
    """Says how good outputs are.

    Attributes:
        counted: what the score is of; empty without labels.
        labels: where the labels were found; empty without.
        unread: what of a batch is neither given to the model nor understood, each with its shape.

    """

    def __init__(self, labels: Labels | None, loss: Loss | None, unread: tuple[str, ...]) -> None:
        self.unread = unread
        self._labels, self._loss = labels, loss
        self._agreement: Agreement | None = None

    @property
    def counted(self) -> str:
        return "" if self._labels is None else self._labels.kind.counted

    @property
    def labels(self) -> str:
        return "" if self._labels is None else self._labels.text

    @classmethod
    def of(
        cls,
        output: Any,
        batch: Any,
        *,
        loss: Loss | None = None,
        target: Target = AUTO,
        model: nn.Module | None = None,
    ) -> Judge:
        """Choose by the first batch: its labels serve, if it has some.

        Raises:
            TypeError: a loss that is called otherwise.
            ValueError: `target` says where labels are, and none that fit are there.

        """
        _check_loss(loss)
        labels = targets.labels_of(_scores_in(output), batch, target, model)
        return cls(labels, loss, targets.unread(batch, labels, model))

    def trust(self, output: Any) -> None:
        """Take these outputs for what outputs are like: whether of classes, and how they vary."""
        self._agreement = agreement.like(output)

    def merit(self, output: Any, batch: Any, beside: Any) -> Tensor:
        """Give the score of each example in [0, 1], float64: with labels, the share right.

        Without, how far the output agrees with the one beside it. What is not finite counts as
        nothing. Examples without labels are left out.
        """
        if self._labels is None:
            if self._agreement is None:
                self.trust(beside)
            assert self._agreement is not None, "it was just set"
            return self._agreement.of(output, beside)
        scores = _scores_in(output)
        assert scores is not None, "the first output had scores"
        kind, labels = self._labels.kind, self._labels.read(batch)
        if bool(scores.isfinite().all()):
            return kind.merit(scores.detach().float(), labels).cpu()
        whole = kind.merit(scores.detach().float().nan_to_num(), labels).cpu()
        fine = scores.reshape(len(scores), -1).isfinite().all(1).cpu()
        return whole * fine if len(whole) == len(fine) else torch.zeros_like(whole)

    def loss_of(self, output: Any, batch: Any) -> Tensor | None:
        """Give the loss of a batch; none where it cannot be told.

        Raises:
            TypeError: the loss given cannot be called so.
            ValueError: it gives something else than one number.

        """
        if self._loss is not None:
            return _called(self._loss, output, batch)
        if self._labels is None:
            return None
        scores = _scores_in(output)
        assert scores is not None, "the first output had scores"
        return self._labels.kind.loss(scores.float(), self._labels.read(batch))


def _scores_in(output: Any) -> Tensor | None:
    """Find the scores in what a model gives: by name, or the first tensor of floating point."""
    if not isinstance(output, Tensor):
        for name in ("logits", "out"):
            found = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
            if isinstance(found, Tensor):
                return found
    found = (t for t in feeding.tensors_in(output) if t.is_floating_point() and t.dim() > 0)
    return next(found, None)


def _check_loss(loss: object) -> None:
    if isinstance(loss, nn.Module):
        raise TypeError(
            f"inspect: expected loss(output, batch), got a {type(loss).__name__}, which takes an "
            "output and labels; wrap it: loss=lambda output, batch: criterion(output, batch[1])"
        )
    if loss is not None and not callable(loss):
        raise TypeError(
            f"inspect: expected a function loss(output, batch), got a {type(loss).__name__}"
        )


def _called(loss: Loss, output: Any, batch: Any) -> Tensor:
    try:
        value = loss(output, batch)
    except (TypeError, AttributeError) as error:
        raise TypeError(
            f"inspect: the loss failed ({type(error).__name__}: {error}); it is called as "
            "loss(output, batch): for example loss=lambda output, batch: "
            "cross_entropy(output, batch[1])"
        ) from error
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"inspect: expected a loss of one number, a tensor, the mean over the batch, got "
            f"{got}; take its mean()"
        )
    return value.reshape(())
