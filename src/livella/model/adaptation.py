"""A model that goes with the data it meets: what it takes in and declines, and the way back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_map_only

from livella.model import feeding
from livella.model.blending import Blend, Change, averages
from livella.model.caution import Caution
from livella.model.domains import check_still_used, used_by
from livella.model.entropy import EntropyTuner, affine_parts
from livella.model.estimate import AVERAGES, LayerEstimate
from livella.model.feeding import Forward
from livella.model.kept import Kept
from livella.model.levels import Site
from livella.model.measure import Pass, Record, Statistics
from livella.model.scores import guessed, of_classes
from livella.model.watch import ENOUGH, Look, Verdict, Votes, Watch, Way, votes_of


@dataclass(frozen=True)
class Settings:
    """How to adapt; the arguments of `adapt`."""

    prior: float
    decay: float | None
    entropy_rate: float | None
    guard: bool
    logits: Callable[[Any], Tensor] | None
    forward: Forward


class Adaptation:
    """The handle that `adapt` gives.

    Attributes:
        samples: how many the model is adapted to.
        declined: why the model is as it was trained; none while it is adapted.
        restrained: why only its first layers are adapted; none where all are, or none is.
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
        self._without_scores = False
        self._begin()

    def _begin(self) -> None:
        self.samples = 0
        self.declined: str | None = None
        self.restrained: str | None = None
        self.refusals: dict[str, int] = {}
        self._watch = Watch.of(self._layers)
        self._blend = Blend(self._layers, self._settings.prior)
        self._caution = Caution(self._layers, self._blend.source, self._settings.prior)
        self._tuner = self._new_tuner()
        self._way = Way.WHOLE

    def _new_tuner(self) -> EntropyTuner | None:
        rate = self._settings.entropy_rate
        return None if rate is None else EntropyTuner(self._layers, rate)

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
        put_back = self._as_it_is()
        try:
            return self._update(feeding.to_device(batch, feeding.device_of(self._model)))
        except BaseException:
            put_back()
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
        if self.restrained:
            state += f", in its first layers alone ({self.restrained})"
        if self.declined:
            state = f"as it was trained ({self.declined})"
        head = f"Adaptation, prior {self._settings.prior:g}: the model is {state}"
        return "\n".join([head, *lines])

    def _as_it_is(self) -> Callable[[], None]:
        """Give what brings all of this back: the model, and what was met and seen."""
        now, met, past, watch = self._keep(), self._blend.met, self._caution.past, self._watch
        told = (self.samples, self.declined, self.restrained, dict(self.refusals))
        tuner, steps = self._tuner, None if self._tuner is None else self._tuner.kept()

        def put_back() -> None:
            now.put_back()
            self._blend.met, self._caution.past, self._watch = met, past, watch
            self.samples, self.declined, self.restrained, self.refusals = told
            self._tuner = tuner
            if tuner is not None and steps is not None:
                tuner.put_back(steps)

        return put_back

    # One batch of a stream

    def _update(self, batch: Any) -> Any:
        samples = feeding.samples_in(batch)
        if not self._settings.guard:
            return self._go_along(batch, samples, Way.WHOLE)
        of_source = self._look(batch, samples)
        verdict = self._watch.verdict(in_order=True)
        if verdict.way is not Way.WHOLE:
            self._source.put_back()
            self._tuner = self._new_tuner()
        output = self._go_along(batch, samples, verdict.way)
        self._watch = self._watch.with_adapted(self._votes(output), verdict.way, samples)
        if verdict.way is Way.WHOLE and (reason := self._watch.collapse()):
            self._blend.met, self._watch = {}, Watch.of(self._layers)
            verdict = Verdict(Way.SOURCE, reason)
        self._tell(verdict, samples)
        return of_source if verdict.way is Way.SOURCE else output

    def _look(self, batch: Any, samples: int) -> Any:
        """Run the model as it was trained, and let the guard look on."""
        with self._source.in_place():
            output, records = self._run(batch, lambda _reading, site: self._blend.source[site[0]])
        settled = {site: record.settle() for site, record in records.items()}
        self._watch = self._watch.with_look(Look(samples, self._votes(output), settled))
        return output

    def _go_along(self, batch: Any, samples: int, way: Way) -> Any:
        """Run the model by what it met, this batch with it; if it is to stay, only remember that.

        What it met is remembered for either way, as the other may be called for next.
        """
        assert self._settings.decay is not None
        met = {name: met.fading(self._settings.decay) for name, met in self._blend.met.items()}
        past = self._caution.faded(samples)
        if self._settings.guard:
            self._restrain()

        def statistics(reading: Pass, site: Site) -> Statistics:
            if way is Way.WHOLE:
                return self._blend.with_call(met, reading, site, samples)
            return self._caution.with_call(past, reading, site)

        output, records = self._run(batch, statistics)
        whole = self._blend.after(met, records, samples)
        first = self._caution.after(past, records) if self._settings.guard else {}
        if way is not Way.SOURCE:
            self._blend.store(whole if way is Way.WHOLE else first)
            self.samples += samples
        if way is Way.WHOLE and self._tuner is not None:
            return self._tune(self._tuner, batch)
        return output

    def _restrain(self) -> None:
        seen = self._watch.first
        self._caution.begin(
            (site[0] for site in self._watch.calls), 1.0 if seen is None else seen.concentration
        )

    def _tell(self, verdict: Verdict, samples: int) -> None:
        """Leave the model as it was trained where that is the verdict, and keep what is told."""
        self.declined, self.restrained = None, None
        if verdict.way is Way.FIRST:
            self.restrained = verdict.reason
        if verdict.way is not Way.SOURCE or verdict.reason is None:
            return
        self._source.put_back()
        self._tuner = self._new_tuner()
        self.declined, self.samples = verdict.reason, 0
        if self._watch.samples >= ENOUGH or verdict.reason.startswith("collapse"):
            kind = verdict.reason.split(":")[0]
            self.refusals[kind] = self.refusals.get(kind, 0) + samples

    def _tune(self, tuner: EntropyTuner, batch: Any) -> Any:
        def call() -> tuple[Any, Tensor]:
            output = self._settings.forward(self._model, batch)
            return output, of_classes((self._settings.logits or feeding.logits_in)(output))

        now = {name: averages(layer) for name, layer in self._layers.items()}
        with Pass(self._model, self._layers, lambda site, _: now[site[0]], wanted=()):
            output = tuner.step(self._model, call)
        return tree_map_only(Tensor, Tensor.detach, output)

    def _votes(self, output: Any) -> Votes | None:
        """What is predicted; none where no class scores are found, which is told once."""
        if self._settings.logits is not None:
            return votes_of(of_classes(self._settings.logits(output)))
        if self._without_scores:
            return None
        try:
            return votes_of(of_classes(guessed(output)))
        except TypeError as error:
            self._without_scores = True
            warnings.warn(f"{error}; without, the guard sees less and adapts less", stacklevel=2)
        return None

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

    # A set as a whole

    def settle(self, estimate: LayerEstimate) -> tuple[Tensor, Tensor]:
        """Give what a layer normalizes by, once this is known of its input."""
        if self._way is Way.WHOLE:
            return self._blend.settle(estimate)
        return self._caution.settle(estimate)

    def take(
        self, measure: Callable[[], Mapping[str, LayerEstimate]], batches: Iterable[Any]
    ) -> None:
        """Let the guard judge by a whole set, measure it, write what follows, and tune.

        Args:
            measure: measures the set, with `settle` for what layers normalize by.
            batches: the set.

        """
        verdict = self._judged(batches) if self._settings.guard else Verdict(Way.WHOLE)
        if verdict.way is Way.FIRST:
            self._restrain()
            self._adopt(measure, Way.FIRST)
            self._see_adapted(batches, Way.FIRST)
            verdict = self._watch.verdict(in_order=False)  # few classes may have been the shift's
            if verdict.way is Way.WHOLE:
                self._source.put_back()
        if verdict.way is Way.WHOLE:
            self._adopt(measure, Way.WHOLE)
            for batch in feeding.on_device(self._model, batches) if self._tuner is not None else ():
                assert self._tuner is not None
                self._tune(self._tuner, batch)
            if self._settings.guard and (reason := self._collapsed(batches)):
                verdict = Verdict(Way.SOURCE, reason)
        self._tell(verdict, self._watch.samples)
        self._watch = Watch.of(self._layers)

    def _judged(self, batches: Iterable[Any]) -> Verdict:
        self._watch = Watch.of(self._layers, window=None)
        for batch in feeding.on_device(self._model, batches):
            self._look(batch, feeding.samples_in(batch))
        return self._watch.verdict(in_order=False) if self._watch.looks else Verdict(Way.WHOLE)

    def _adopt(self, measure: Callable[[], Mapping[str, LayerEstimate]], way: Way) -> None:
        self._way = way
        estimates = measure()
        self._blend.store({name: self.settle(each) for name, each in estimates.items()})
        self.samples = max(0 if r.scatter is None else r.scatter.samples
                           for each in estimates.values() for r in each.records)  # fmt: skip

    def _collapsed(self, batches: Iterable[Any]) -> str | None:
        self._see_adapted(batches, Way.WHOLE)
        return self._watch.collapse()

    def _see_adapted(self, batches: Iterable[Any], way: Way) -> None:
        now = {name: averages(layer) for name, layer in self._layers.items()}
        for batch in feeding.on_device(self._model, batches):
            output, _ = self._run(batch, lambda _, site: now[site[0]])
            samples = feeding.samples_in(batch)
            self._watch = self._watch.with_adapted(self._votes(output), way, samples)
