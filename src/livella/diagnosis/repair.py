"""Mending what was found, on a copy, with proof."""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from livella.diagnosis.inspection import Inspection, inspect
from livella.diagnosis.records import Gap
from livella.diagnosis.remedies import REMEDIES, Means, wanted
from livella.diagnosis.scoring import Loss
from livella.model import feeding
from livella.model.feeding import Forward
from livella.report import inspection_html
from livella.report.files import beside

WORSE = 0.01
"""By how much of itself the loss may grow, and 0.01 points the accuracy fall, to be the same."""


@dataclasses.dataclass(frozen=True, eq=False)
class Repair:
    """A repaired copy of a model, with what was seen before and after.

    Attributes:
        model: the copy; the model given is as it was.
        before: the inspection of the model given.
        after: that of the copy.
        applied: the layers each remedy was applied to, by its id.

    """

    model: nn.Module
    before: Inspection
    after: Inspection
    applied: dict[str, tuple[str, ...]]

    @property
    def worse(self) -> str:
        """In what the copy is worse than the model; empty where it is not."""
        then, now = self.before.seen.gap, self.after.seen.gap
        if then is None or now is None:
            return ""
        return _worse(then, now)

    def to_html(self) -> str:
        """Give a page of what was seen before and after."""
        return inspection_html.render(self.before, self.after)

    def write(self, path: str | Path) -> Path:
        """Write the copy's `state_dict` as safetensors: whole or not at all.

        Raises:
            ValueError: the copy got worse.
            OSError: the file cannot be written.

        """
        if self.worse:
            raise ValueError(f"repair: refused to write what got worse: {self.worse}")
        from safetensors.torch import save_file

        path = Path(path)
        tensors = {k: v.detach().clone().contiguous() for k, v in self.model.state_dict().items()}
        with beside(path) as place:
            save_file(tensors, place)
        return path

    def __str__(self) -> str:
        """Say what was done and what it brought."""
        lines = [f"{name}: {', '.join(layers)}" for name, layers in self.applied.items()]
        lines = lines or ["nothing was found that a repair may change"]
        then, now = self.before.seen.gap, self.after.seen.gap
        if then is not None and now is not None and self.applied:
            lines.append(f"{then.unit}: {then.running:.4g} → {now.running:.4g}")
            if then.accuracy is not None and now.accuracy is not None:
                lines.append(f"accuracy: {then.accuracy[0]:.2%} → {now.accuracy[0]:.2%}")
        left = [f for f in self.after.findings if f.level.rank > 0]
        lines += [f"left: {f.layer or 'the model'}: {f.check} ({_advice(f.remedy)})" for f in left]
        return "\n".join(lines)


def repair(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    deploy: Iterable[Any] | None = None,
    loss: Loss | None = None,
    changing: bool = False,
    forward: Forward | None = None,
    progress: bool | None = None,
) -> Repair:
    """Mend what `inspect` finds wrong, on a copy, and inspect that again.

    Applied are remedies that keep the function in use (`Safety.EXACT`), and statistics measured on
    the batches, which need no labels (`Safety.STATISTICS`); with `changing` also those that change
    the function by intent (`livella.adapt` to the deployment data). Labels, where the batches have
    them, only tell loss and accuracy before and after. See `livella.diagnosis.remedies.REMEDIES`.

    Args:
        model: as in `inspect`; it is left bit for bit as it was.
        batches: of training.
        deploy: of the data met in use.
        loss: as in `inspect`.
        changing: apply what changes the function too. Default: false.
        forward: as in `inspect`.
        progress: show a bar. Default: if standard error is a terminal.

    Returns:
        The repair: `.model`, `.before`, `.after`, `.applied`, `.worse`, `.write(path)`; `print` it.

    Raises:
        ValueError: what `inspect` and `estimate_population` raise.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
        >>> batches = [2 + torch.randn(64, 4) for _ in range(8)]
        >>> repair(model.eval(), batches, progress=False).applied
        {'measure_statistics': ('1',)}

    """
    model = feeding.unwrap(model)
    options: dict[str, Any] = {
        "deploy": deploy, "loss": loss, "forward": forward, "progress": progress,
    }  # fmt: skip
    before = inspect(model, batches, **options)
    mended = copy.deepcopy(model)
    means = Means(batches, deploy, forward or feeding.feed, progress)
    applied: dict[str, tuple[str, ...]] = {}
    with warnings.catch_warnings():  # what they warn of was found already
        warnings.simplefilter("ignore", UserWarning)
        for name, layers in wanted(before.findings, changing).items():
            act = REMEDIES[name].act
            assert act is not None
            chosen = tuple(layer for layer in before.seen.layers if layer.name in layers)
            act(mended, chosen, means)
            applied[name] = tuple(layer.name for layer in chosen)
    after = inspect(mended, batches, **options) if applied else before
    return Repair(mended, before, after, applied)


def _worse(then: Gap, now: Gap) -> str:
    if math.isfinite(then.running) and not now.running <= then.running * (1 + WORSE) + 1e-9:
        return f"{then.unit} {then.running:.4g} → {now.running:.4g}"
    if then.accuracy is None or now.accuracy is None:
        return ""
    before, after = then.accuracy[0], now.accuracy[0]
    return f"accuracy {before:.2%} → {after:.2%}" if after < before - WORSE else ""


def _advice(remedy: str) -> str:
    return REMEDIES[remedy].advice if remedy in REMEDIES else "nothing to do"
