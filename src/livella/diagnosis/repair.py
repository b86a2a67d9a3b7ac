"""Mending what was found, on a copy, with proof."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from livella.diagnosis import facts, held_out
from livella.diagnosis.checks.damage import of_beyond, of_model
from livella.diagnosis.inspection import Inspection, inspect
from livella.diagnosis.measure import Data, JudgeOf, output_by
from livella.diagnosis.records import Gap, Level
from livella.diagnosis.remedies import MEASURE, REMEDIES, Means, wanted
from livella.diagnosis.scoring import AUTO, Auto, Judge, Loss, Target
from livella.model import feeding, given
from livella.model.feeding import Forward
from livella.report import inspection_html
from livella.report.files import beside

WORSE, GROWN = 0.01, 0.05
"""By how much the score may fall, and by how much of itself the loss may grow where the score is no
better, to be the same."""
LOST = 0.005
"""What of the score has to be lost to statistics for them to be measured, where no finding asks."""


@dataclasses.dataclass(frozen=True, eq=False)
class Repair:
    """A repaired copy of a model, with what was seen before and after.

    Attributes:
        model: the copy; the model given is as it was.
        before: the inspection of the model given.
        after: that of the copy.
        applied: the layers that asked for each remedy, by its id; statistics are measured for all
            that are not frozen, as each layer's are those behind the others'.
        declined: why statistics were not measured though something spoke for it; empty otherwise.
        deployed: the score on the deployment data before and after an adaptation to them; none
            where there was none, or no labels tell it.

    """

    model: nn.Module
    before: Inspection
    after: Inspection
    applied: dict[str, tuple[str, ...]]
    declined: str = ""
    deployed: tuple[float, float] | None = None

    @property
    def worse(self) -> str:
        """In what the copy is worse than the model; empty where it is not.

        On the deployment data, if it was adapted to them: it is not to do well on others.
        """
        if "adapt" in self.applied:
            before, after = self.deployed or (0.0, 0.0)
            return _fallen(before, after, " on the deployment data")
        then, now = self.before.seen.gap, self.after.seen.gap
        if then is None or now is None:
            return ""
        return _worse(then, now)

    @property
    def left(self) -> str:
        """What gap stays between training and use, and why; empty where there is none."""
        gap = self.after.seen.gap
        if "adapt" in self.applied:  # it is not to do well on these data
            return ""
        if of_model(self.after.seen) is not Level.NOTE:
            reason = self.declined or "statistics measured on these data do not bring it back"
            assert gap is not None, "what is lost was measured"
            return f"{_percent(gap.lost)} of the score stay lost to statistics: {reason}"
        if of_beyond(gap) is not Level.NOTE:
            assert gap is not None, "what is lost was measured"
            return (
                f"{_percent(gap.beyond)} of the score are lost between the statistics of the data "
                "and those of each batch, which no statistics bring back: it was learnt from what "
                "else is in a batch; shuffle the data and train on"
            )
        return ""

    def to_html(self) -> str:
        """Give a page of what was seen before and after."""
        return inspection_html.render(self.before, self.after if self.applied else None)

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
            place.touch()
            mode = (
                place.stat().st_mode
            )  # as files are made here; safetensors' are the owner's alone
            save_file(tensors, place)
            place.chmod(mode)
        return path

    @property
    def done(self) -> str:
        """What was done, and what findings are left, a line each."""
        lines = [f"{name}: {', '.join(layers)}" for name, layers in self.applied.items()]
        if not lines:
            lines = ["nothing was changed" if self.left else "nothing to do: no gap was found"]
        left = [f for f in self.after.findings if f.level is not Level.NOTE]
        lines += [f"left: {f.layer or 'the model'}: {f.check} ({_advice(f.remedy)})" for f in left]
        return "\n".join(lines)

    def __str__(self) -> str:
        """Say what was done, what it brought, and what stays."""
        lines = [self.done]
        then, now = self.before.seen.gap, self.after.seen.gap
        if then is not None and now is not None and self.applied:
            lines += _brought(then, now)
        if self.deployed is not None:
            before, after = map(_percent, self.deployed)
            lines.append(f"score on the deployment data: {before} → {after}")
        lines += [f"a gap stays: {self.left}"] if self.left else []
        return "\n".join(lines)


def repair(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    deploy: Iterable[Any] | None = None,
    loss: Loss | None = None,
    target: Target | Auto = AUTO,
    changing: bool = False,
    forward: Forward | None = None,
    ignore: Sequence[str] = (),
    progress: bool | None = None,
) -> Repair:
    """Mend what is wrong with the normalization of a model, on a copy, and inspect that again.

    Statistics are measured on the batches, which needs no labels, wherever they do better than the
    running ones: whatever was found, and in whatever order the data come. That is tried before, on
    a quarter of the examples, by statistics of the other three. Besides, remedies are applied that
    keep the function in use (`Safety.EXACT`), and with `changing` also those that change it by
    intent (`livella.adapt` to the deployment data). See `livella.diagnosis.remedies.REMEDIES`.

    Args:
        model: as in `inspect`; it is left bit for bit as it was.
        batches: of training, in any order; of any size.
        deploy: of the data met in use.
        loss: as in `inspect`.
        target: as in `inspect`.
        changing: apply what changes the function too. Default: false.
        forward: as in `inspect`.
        ignore: as in `inspect`; what is ignored is not mended.
        progress: show a bar. Default: if standard error is a terminal.

    Returns:
        The repair: `.model`, `.before`, `.after`, `.applied`, `.worse`, `.left`, `.write(path)`;
        `print` it.

    Raises:
        ValueError: what `inspect` and `estimate_population` raise.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
        >>> batches = [2 + torch.randn(64, 4) for _ in range(8)]
        >>> repair(model.eval(), batches, progress=False).applied
        {'measure_statistics': ('1',)}

    """
    given.check_model(model, "repair", runs=True)
    model = feeding.unwrap(model)
    options: dict[str, Any] = {
        "deploy": deploy, "loss": loss, "target": target, "forward": forward, "ignore": ignore,
        "progress": progress,
    }  # fmt: skip
    before = inspect(model, batches, **options)
    data = Data(model, batches, forward or feeding.feed, progress)
    unread = before.seen.gap is None or not before.seen.gap.counted
    judge_of = functools.partial(
        Judge.of, loss=loss, target=None if unread else target, model=model
    )
    asked, declined = _asked(before, data, judge_of, changing)
    mended = copy.deepcopy(model)
    means = Means(batches, deploy, forward or feeding.feed, progress)
    applied: dict[str, tuple[str, ...]] = {}
    with warnings.catch_warnings():  # what they warn of was found already
        warnings.simplefilter("ignore", UserWarning)
        for name, layers in _of_all(asked).items():
            act = REMEDIES[name].act
            assert act is not None
            chosen = tuple(layer for layer in before.seen.layers if layer.name in layers)
            act(mended, chosen, means)
            applied[name] = tuple(layer.name for layer in chosen)
    after = inspect(mended, batches, **options) if applied else before
    deployed = None
    if deploy is not None and "adapt" in applied:
        on_deploy = dataclasses.replace(data, batches=deploy)
        deployed = _scores_on(on_deploy, dataclasses.replace(on_deploy, model=mended), judge_of)
    return Repair(mended, before, after, applied, declined, deployed)


def _scores_on(data: Data, mended: Data, judge_of: JudgeOf) -> tuple[float, float] | None:
    """Give the scores of two models on the same data, where labels tell them."""
    found: list[list[Tensor]] = [[], []]
    judge: Judge | None = None
    for batch in data:
        outputs = [output_by(each, batch, {}) for each in (data, mended)]
        judge = judge or judge_of(outputs[0], batch)
        if not judge.counted:
            return None
        for output, merits in zip(outputs, found, strict=True):
            merits.append(judge.merit(output, batch, output))
    before, after = (float(torch.cat(merits).mean()) for merits in found)
    return before, after


def _asked(
    before: Inspection, data: Data, judge_of: JudgeOf, changing: bool
) -> tuple[dict[str, list[str]], str]:
    """Give the remedies to apply, with their layers; and why statistics are not measured."""
    asked = wanted(before.findings, changing)
    asked.pop(MEASURE, None)
    layers = _to_measure(before)
    held_fast = [each.name for each in before.seen.layers if each.frozen and each.name in layers]
    layers = [name for name in layers if name not in held_fast]
    names = ", ".join(name or "the model itself" for name in held_fast)
    frozen = f"{names} is frozen: livella.unfreeze it first" if held_fast else ""
    if not layers:
        return asked, frozen
    held = held_out.gap(data, judge_of)
    if held.lost < -held.error or (held.lost <= 0 and not _is_broken(before)):
        return asked, (
            f"statistics measured on three quarters of the data do no better on the last one "
            f"({held.score.population:.3g} against {held.score.running:.3g}): the data are few, or "
            "not those of training"
        )
    return {**asked, MEASURE: layers}, frozen


def _to_measure(before: Inspection) -> list[str]:
    """Name the layers whose statistics are to be measured: those that findings say, or the gap.

    What is ignored says nothing.
    """
    gap, accepted = before.seen.gap, {f.layer for f in before.ignored if _asks(f.remedy)}
    asked = [f for f in before.findings if f.level is not Level.NOTE and _asks(f.remedy)]
    lost = "" not in accepted and gap is not None and gap.lost > max(gap.error, LOST)
    if not asked and not lost:
        return []
    named = [f.layer for f in asked if f.layer]
    shared = [layer.name for layer in before.seen.layers if layer.share and layer.name not in named]
    found = named + shared or [each.name for each in before.seen.layers if each.off is not None]
    return [name for name in found if name not in accepted]


def _of_all(asked: dict[str, list[str]]) -> dict[str, list[str]]:
    """Give what any process asks for, in the order of the table: measuring takes all of them."""
    everyones = [asked] * facts.processes()
    if len(everyones) > 1:
        dist.all_gather_object(everyones, asked)
    named = {n: [layer for each in everyones for layer in each.get(n, [])] for n in REMEDIES}
    return {name: list(dict.fromkeys(layers)) for name, layers in named.items() if layers}


def _asks(remedy: str) -> bool:
    return remedy == MEASURE or (remedy in REMEDIES and MEASURE in REMEDIES[remedy].also)


def _is_broken(before: Inspection) -> bool:
    """Whether what is stored is wrong by itself, whatever it scores."""
    return any(f.level is Level.ERROR and _asks(f.remedy) for f in before.findings)


def _brought(then: Gap, now: Gap) -> Iterator[str]:
    if then.loss is not None and now.loss is not None:
        yield f"loss: {then.loss.running:.4g} → {now.loss.running:.4g}"
    name = then.counted or "agreement with the outputs by the statistics of the data"
    yield f"score ({name}): {_percent(then.score.running)} → {_percent(now.score.running)}"


def _worse(then: Gap, now: Gap) -> str:
    before, after = then.score.running, now.score.running
    if fallen := _fallen(before, after):
        return fallen
    if after > before + WORSE or then.loss is None or now.loss is None:
        return ""
    old, new = then.loss.running, now.loss.running
    if math.isfinite(old) and not new <= old + GROWN * abs(old) + 1e-6:
        return f"loss {old:.4g} → {new:.4g}"
    return ""


def _fallen(before: float, after: float, where: str = "") -> str:
    if after >= before - WORSE:
        return ""
    return f"score{where} {_percent(before)} → {_percent(after)}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _advice(remedy: str) -> str:
    return REMEDIES[remedy].advice if remedy in REMEDIES else "nothing to do"
