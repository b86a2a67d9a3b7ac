"""Let a trained model go with the data it meets in use."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from livella.model import feeding, given, measurable
from livella.model.adaptation import Adaptation, Settings
from livella.model.feeding import Forward
from livella.model.passes import Estimator
from livella.model.progress import Bar, length_of


def adapt(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    prior: float = 16,
    decay: float | None = None,
    entropy_rate: float | None = None,
    guard: bool = True,
    logits: Callable[[Any], Tensor] | None = None,
    forward: Forward | None = None,
    include_frozen: bool = False,
    progress: bool | None = None,
) -> Adaptation:
    """Draw the statistics of every batch norm towards those of data met in use, without labels.

    After n samples μ = N/(N + n)·μₛ + n/(N + n)·μₜ, and σ² likewise, with the running averages of
    training as source s, the data as target t (its biased variance) and N the prior, channel by
    channel (Schneider et al. 2020, "Improving robustness against common corruptions by covariate
    shift adaptation", section 2). Each layer is measured with those before it adapted. Read are

    - with `decay` None, `batches` as one set, in any order, as often as there are levels of
      dependent layers: the statistics of all of it (Li et al. 2016, "Revisiting Batch Normalization
      for Practical Domain Adaptation", section 3.2, where N = 0);
    - with a decay, `batches` as a stream, each once: moments and n fade by it from batch to batch,
      so that n → n_batch/(1 − decay). Go on with `.update(batch)`, which gives the outputs.

    Adaptation harms where the data are no fair sample of a shifted world: sorted by class, or
    correlated in time. So nothing calls this by default, and the guard watches what the model as
    it was trained is given, and what it predicts.

    - Of many classes, in batches that differ no more than chance lets them: it adapts all layers.
    - Of few classes, or in an order (which matters in a stream), and the second moment of the first
      layer's input about the mean of training is as in training, within what classes differ by: it
      declines. The model is as it was trained. So it is where a correction makes predictions less
      sure, and where a set seems of a single class whatever is corrected.
    - Else it corrects the first half of the layers alone, by what exceeds the spread between
      classes over the last 512 samples, and `.restrained` says so; the whole of them after 256
      samples in no order, unless a single class is left.

    Before 32 samples it does not adapt. It costs one forward pass more a batch; of a set one to
    three more over it, and where few classes are found a second measurement. On 27 networks that it
    was not made on, of 2 to 10 classes, it kept to 2 points of the model as it was trained in 161
    of 162 unshifted cases in any order (−0.1 points on average; −17.7 without it) and in 88 of 95
    that were shifted and in an order or of few classes (77 of 80 without inverted ones); and it
    kept most of the gain, and cost nothing, in 106 of 121 that were shifted and mixed; in 8 more it
    followed an adaptation that harms without it too.

    It cannot tell a choice of classes from another world where the one moves the first layer's
    input as the other would, which two classes may; where an input is inverted no statistics help,
    and it may cost. Where no class scores are found it goes by the layers alone, and adapts less.
    Classes that were uneven in training look like few: leave the guard out.

    The model's running averages are changed, and γ and β where they are tuned; `.revert()` puts
    back every bit. Torch's batch norms and Livella's, frozen ones left out. Each process adapts by
    itself.

    Args:
        model: any module; the one inside `DistributedDataParallel` or `torch.compile` is used.
        batches: of any form that `estimate_population` takes; labels are left out.
        prior: N, how many samples the statistics of training count as; 0 for the target alone,
            infinity for the source alone. Default: 16.
        decay: from 0, each batch by itself, to 1, nothing is forgotten. Default: one set.
        entropy_rate: also tune γ and β by a step of Adam at this rate a batch, down the entropy of
            the predictions (Wang et al. 2021, "Tent", section 3); 1e-3 is the paper's for small
            images. Default: they stay.
        guard: decline what would harm. Default: true.
        logits: finds the class scores, (N, K, ...), in what the model gives, for guard and entropy;
            of many positions the guard takes the class of most. Default: a tensor, an entry
            "logits" or "out", the first of several that is (N, K).
        forward: called as forward(model, batch) instead of the model.
        include_frozen: adapt frozen layers too. Default: false.
        progress: show a bar. Default: if standard error is a terminal.

    Returns:
        The adaptation: `.update(batch)`, `.revert()`, `.changes` by layer, `.declined`,
        `.restrained`, `.refusals`, `.left`; `print` it.

    Raises:
        ValueError: no batch norm with running statistics, no batches, NaN or infinity in a layer's
            input, another number of channels than it has, an option out of its range, parameters
            without values (on the meta device); layers are named. The model is then as before, as
            it is after any exception of the data's own.
        TypeError: no module, or a scripted one; a batch of no known form, an iterator without a
            decay, no scores of two classes or more where `logits` says or the tuning needs them.

    Warns:
        UserWarning: the guard declined, or adapts the first layers alone: why, and how many
            samples; or found no class scores. A stream of too few samples to judge by waits for
            more, as `.declined` tells.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
        >>> adaptation = adapt(model, [2 + torch.randn(64, 4)], guard=False)
        >>> adaptation.samples
        64
        >>> _ = adaptation.revert()

    """
    _check(batches, prior, decay)
    given.check_model(model, "adapt", runs=True)
    model = feeding.unwrap(model)
    layers, left = measurable.choose(model, include_frozen, "adapt")
    settings = Settings(prior, decay, entropy_rate, guard, logits, forward or feeding.feed)
    adaptation = Adaptation(model, layers, left, settings)
    estimator = Estimator(
        model,
        layers,
        batches,
        settings.forward,
        samples=None,
        tolerance=None,
        group=None,
        progress=progress,
        settle=adaptation.settle,
        caller="adapt",
        alone=True,
    )
    try:
        if decay is None:
            adaptation.take(estimator.sequential, batches)
        else:
            _follow(adaptation, batches, progress)
    except BaseException:
        adaptation.revert()
        raise
    _warn(adaptation)
    return adaptation


def _follow(adaptation: Adaptation, batches: Iterable[Any], progress: bool | None) -> None:
    total = length_of(batches)
    read = 0
    with Bar("adapt", progress, total) as bar:
        bar.begin("stream")
        for batch in batches:
            adaptation.update(batch)
            bar.advance()
            read += 1
    if not read:
        raise ValueError("adapt: got no batches; pass a loader or a stream that yields some")


def _check(batches: Iterable[Any], prior: float, decay: float | None) -> None:
    if not prior >= 0:
        raise ValueError(f"adapt: expected a prior of zero samples or more, got {prior}")
    if decay is not None and not 0 <= decay <= 1:
        raise ValueError(f"adapt: expected a decay between 0 and 1, got {decay}")
    if decay is None and isinstance(batches, Iterator):
        raise TypeError(
            "adapt: got an iterator, which can be read once, where a set as a whole is read for "
            "each level of layers; pass a loader or a list, or say decay=0.9 to follow a stream"
        )


def _warn(adaptation: Adaptation) -> None:
    if adaptation.restrained:
        warnings.warn(
            f"adapt corrected the first layers alone: {adaptation.restrained}", stacklevel=3
        )
    if adaptation.refusals:
        told = "; ".join(f"{reason} ({n:,} samples)" for reason, n in adaptation.refusals.items())
        now = adaptation.declined
        warnings.warn(
            f"adapt declined: {told}"
            + (f". The model is as it was trained now: {now}" if now else ""),
            stacklevel=3,
        )
