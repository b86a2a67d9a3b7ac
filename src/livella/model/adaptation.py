"""A model that goes with the data it meets: what it takes in and declines, and the way back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_map_only

from livella.model import feeding
from livella.model.blending import Blend, Change, averages
from livella.model.domains import check_still_used, used_by
from livella.model.entropy import EntropyTuner, affine_parts
from livella.model.estimate import AVERAGES, LayerEstimate
from livella.model.feeding import Forward
from livella.model.kept import Kept
from livella.model.levels import Site
from livella.model.measure import Pass, Record, Statistics
from livella.model.watch import ENOUGH, Look, Watch, votes_of


@dataclass(frozen=True)
class Settings:
    """How to adapt; the arguments of `adapt`."""

    prior: float
    decay: float | None
    entropy_rate: float | None
    guard: bool
    logits: Callable[[Any], Tensor]
    forward: Forward


class Adaptation:
    """The handle that `adapt` gives.

    Attributes:
        samples: how many the model is adapted to.
        declined: why the model is as it was trained; none while it is adapted.
        refusals: how many samples were declined, by reason.
        left: the batch norms that are not adapted, and why.

    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, _NormBase],
        left: Mapping[str, str],
        settings: Settings,
    ) -> None:
        self.left = left
        self._model, self._layers, self._settings = model, layers, settings
        self._source = self._keep()
        self._domains = used_by(layers)
        self._centres = {name: averages(layer)[0].double() for name, layer in layers.items()}
        self._begin()

    def _begin(self) -> None:
        self.samples = 0
        self.declined: str | None = None
        self.refusals: dict[str, int] = {}
        self._watch = Watch.of(self._layers)
        self._forget()

    def _forget(self) -> None:
        rate = self._settings.entropy_rate
        self._blend = Blend(self._layers, self._settings.prior)
        self._tuner = None if rate is None else EntropyTuner(self._layers, rate)

    def _keep(self) -> Kept:
        buffers = [(layer, name) for layer in self._layers.values() for name in AVERAGES]
        tuned = [] if self._settings.entropy_rate is None else affine_parts(self._layers)
        return Kept.of(tuned, buffers)

    # For the user

    def update(self, batch: Any) -> Any:
        """Take in one more batch of a stream, and give the model's output for it.

        That of the adapted model; where the guard declines, or has seen too little yet, that of
        the model as it was trained.

        Raises:
            ValueError: the adaptation is to a set as a whole (`decay` is None), the batch is empty,
                another domain is in use, or a layer met NaN or infinity. The model is then as
                before this batch, as after any exception.

        """
        if self._settings.decay is None:
            raise ValueError("update: this adaptation is to a set as a whole; adapt with decay=0.9")
        if not feeding.samples_in(batch):
            raise ValueError("update: got a batch of no samples; leave it out")
        check_still_used(self._layers, self._domains, "update")
        now, met = self._keep(), (self._blend.met, self.samples, self.declined)
        looks = self._watch.kept()
        steps = None if self._tuner is None else self._tuner.kept()
        try:
            return self._update(feeding.to_device(batch, feeding.device_of(self._model)))
        except BaseException:
            now.put_back()
            self._blend.met, self.samples, self.declined = met
            self._watch.looks = looks
            if self._tuner is not None and steps is not None:
                self._tuner.put_back(steps)
            raise

    def revert(self) -> Adaptation:
        """Put back what the model was before `adapt`, bit for bit; updates then begin anew."""
        self._source.put_back()
        self._begin()
        return self

    @property
    def changes(self) -> dict[str, Change]:
        """How far each layer is from what it was."""
        return self._blend.changes()

    def __str__(self) -> str:
        """Say how far each layer went, and what was declined."""
        rows = [("layer", "mean moved by", "variance ×")]
        rows += [(n, f"{c.offset:.2g} σ", f"{c.ratio:.3g}") for n, c in self.changes.items()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
                 for row in rows]  # fmt: skip
        lines += [f"declined {n:,} samples: {reason}" for reason, n in self.refusals.items()]
        lines += [f"not adapted: {name} ({why})" for name, why in self.left.items()]
        state = f"adapted to {self.samples:,} samples"
        if self.declined:
            state = f"as it was trained ({self.declined})"
        head = f"Adaptation, prior {self._settings.prior:g}: the model is {state}"
        return "\n".join([head, *lines])

    # One batch of a stream

    def _update(self, batch: Any) -> Any:
        samples = feeding.samples_in(batch)
        if not self._settings.guard:
            return self._go_along(batch, samples)
        of_source = self._look(batch, samples)
        if not self._watch.may_judge:
            self.declined = f"{self._watch.samples} samples are too few to judge by, of {ENOUGH}"
            return of_source
        if reason := self._watch.objection(in_order=True):
            return self._decline(reason, samples, of_source)
        output = self._go_along(batch, samples)
        self._see_adapted(output)
        if reason := self._watch.collapse():
            return self._decline(reason, samples, of_source)
        return output

    def _look(self, batch: Any, samples: int) -> Any:
        """Run the model as it was trained, and let the guard look on."""
        with self._source.in_place():
            output, records = self._run(batch, lambda _reading, site: self._blend.source[site[0]])
        self._watch.see(Look(samples, votes_of(self._scores(output)), None, records))
        return output

    def _see_adapted(self, output: Any) -> None:
        self._watch.see_adapted(votes_of(self._scores(output)))

    def _scores(self, output: Any) -> Tensor:
        scores = self._settings.logits(output)
        if scores.dim() < 2 or scores.shape[1] < 2:
            raise TypeError(
                f"adapt: expected scores of two classes or more, (N, K, ...), got shape "
                f"{tuple(scores.shape)}; of one score a sample make two: logits=lambda output: "
                "torch.cat([-output, output], 1) / 2"
            )
        return scores

    def _go_along(self, batch: Any, samples: int) -> Any:
        """Run the model by moments that take in this batch."""
        assert self._settings.decay is not None
        faded = {name: met.fading(self._settings.decay) for name, met in self._blend.met.items()}
        output, records = self._run(
            batch, lambda reading, site: self._blend.with_call(faded, reading, site, samples)
        )
        self._blend.after(faded, records, samples)
        self.declined, self.samples = None, self.samples + samples
        return output if self._tuner is None else self._tune(self._tuner, batch)

    def _tune(self, tuner: EntropyTuner, batch: Any) -> Any:
        def call() -> tuple[Any, Tensor]:
            output = self._settings.forward(self._model, batch)
            return output, self._scores(output)

        now = {name: averages(layer) for name, layer in self._layers.items()}
        with Pass(self._model, self._layers, lambda site, _: now[site[0]], wanted=()):
            output = tuner.step(self._model, call)
        return tree_map_only(Tensor, Tensor.detach, output)

    def _run(
        self, batch: Any, statistics: Callable[[Pass, Site], Statistics]
    ) -> tuple[Any, dict[Site, Record]]:
        outputs: list[Any] = []
        reading = Pass(
            self._model,
            self._layers,
            lambda site, _values: statistics(reading, site),
            centres=self._centres,
        )
        with reading:
            reading.run(lambda: outputs.append(self._settings.forward(self._model, batch)))
        if not reading.calls:
            raise ValueError("adapt: the batch reached no batch norm that can be adapted")
        return outputs[0], reading.records

    def _decline(self, reason: str, samples: int, output: Any) -> Any:
        self._source.put_back()
        self._forget()
        self.declined, self.samples = reason, 0
        kind = reason.split(":")[0]
        self.refusals[kind] = self.refusals.get(kind, 0) + samples
        return output

    # A set as a whole

    def settle(self, estimate: LayerEstimate) -> tuple[Tensor, Tensor]:
        """Give what a layer normalizes by, once this is known of its input."""
        return self._blend.settle(estimate)

    def take(self, estimates: Mapping[str, LayerEstimate], batches: Iterable[Any]) -> None:
        """Write what was measured over a whole set, tune, and let the guard judge by all of it."""
        self._blend.store({name: self.settle(each) for name, each in estimates.items()})
        for batch in feeding.on_device(self._model, batches) if self._tuner is not None else ():
            assert self._tuner is not None
            self._tune(self._tuner, batch)
        self._watch.window = None
        for batch in feeding.on_device(self._model, batches) if self._settings.guard else ():
            self._look(batch, feeding.samples_in(batch))
            now = {name: averages(layer) for name, layer in self._layers.items()}
            self._see_adapted(self._run(batch, lambda _, site, now=now: now[site[0]])[0])  # type: ignore[misc]
        self.samples = max(0 if r.scatter is None else r.scatter.samples
                           for each in estimates.values() for r in each.records)  # fmt: skip
        if self._settings.guard:
            self._judge()

    def _judge(self) -> None:
        if not self._watch.may_judge:
            reason: str | None = f"{self.samples} samples are too few to judge by, of {ENOUGH}"
        else:
            reason = self._watch.objection(in_order=False)
        if reason:
            self._decline(reason, self.samples, None)
        self._watch.looks.clear()
