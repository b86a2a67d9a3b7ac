"""What people do to the statistics of a network, each at several strengths."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor, nn

from evaluation import data
from evaluation.data import Data, Part
from evaluation.networks import norms_of
from evaluation.recipe import (
    Recipe,
    Trained,
    averages,
    build,
    put_statistics,
    steps,
    trained,
    with_batch,
)

Strength = float | str
STALE = frozenset({"stale_statistics"})


@dataclass(frozen=True)
class Sick:
    """A network as it is handed to the inspector.

    Attributes:
        model: as it is; the mode is part of it.
        train: of the distribution that it is for, in the order in which they are stored.
        held_out: of the same distribution.
        deploy: of another one that it is used on, with the same labels as `held_out`.

    """

    model: nn.Module
    train: Part
    held_out: Part
    deploy: Part | None = None


@dataclass(frozen=True)
class Healthy:
    """What a fault is planted into."""

    trained: Trained
    given: Data
    random: Generator

    def sick(self, **changed: object) -> Sick:
        """The same with what has changed."""
        own = Sick(copy.deepcopy(self.trained.model), self.given.train, self.given.held_out)
        return dataclasses.replace(own, **changed)  # type: ignore[arg-type]

    def pick(self, many: int) -> int:
        return int(torch.randint(many, (), generator=self.random))


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        plant: gives the sick network.
        strengths: what it takes, the weakest first.
        causes: the checks that are right to say why, where it costs something.
        told: those among them that may say so where it costs nothing: it is the case all the same.
        before: changes the recipe, where it goes wrong in training.

    """

    plant: Callable[[Healthy, Strength], Sick]
    strengths: tuple[Strength, ...]
    causes: frozenset[str] = STALE
    told: frozenset[str] = frozenset()
    before: Callable[[Recipe, Strength], Recipe] | None = field(default=None)


def none(healthy: Healthy, _strength: Strength) -> Sick:
    """Nothing."""
    return healthy.sick()


def momentum(healthy: Healthy, strength: Strength) -> Sick:
    """A momentum that takes in next to nothing, or keeps nothing."""
    sick = healthy.sick()
    put_statistics(sick.model, averages(healthy.trained.history, float(strength)))
    for norm in norms_of(sick.model).values():
        norm.momentum = float(strength)
    return sick


def never_updated(healthy: Healthy, strength: Strength) -> Sick:
    """Statistics as they were made, or with a few batches taken in since."""
    sick = healthy.sick()
    for norm in norms_of(sick.model).values():
        norm.reset_running_stats()
    passes(sick.model, healthy, healthy.given.train[0], int(strength))
    return sick


def one_reset(healthy: Healthy, strength: Strength) -> Sick:
    """One layer, or two, whose statistics are as they were made."""
    sick = healthy.sick()
    norms = list(norms_of(sick.model).values())
    for _ in range(int(strength)):
        norms[healthy.pick(len(norms))].reset_running_stats()
    return sick


def without_buffers(healthy: Healthy, strength: Strength) -> Sick:
    """A checkpoint of parameters alone, for the first part of the network or all of it."""
    sick = healthy.sick()
    norms = list(norms_of(sick.model).values())
    for norm in norms[: round(float(strength) * len(norms))]:
        norm.reset_running_stats()
    return sick


def weights_averaged(healthy: Healthy, strength: Strength) -> Sick:
    """The mean of the last weights, with the statistics of the last ones (Izmailov 2018)."""
    sick = healthy.sick()
    last = healthy.trained.weights[-int(strength) :]
    load(sick.model, {name: torch.stack([w[name] for w in last]).mean(0) for name in last[0]})
    return sick


def polluted(healthy: Healthy, strength: Strength) -> Sick:
    """Passes in train() over another domain, with no step taken."""
    sick = healthy.sick()
    domains = (lambda x: x + 1.5, lambda x: -x, lambda x: 0.3 * x, lambda x: 2 * x - 0.5)
    other = domains[healthy.pick(len(domains))](healthy.given.train[0])
    passes(sick.model, healthy, other, int(strength))
    return sick


def one_class_last(healthy: Healthy, strength: Strength) -> Sick:
    """The last batches of one class."""
    sick = healthy.sick()
    x, y = healthy.given.train
    passes(sick.model, healthy, x[y == healthy.pick(healthy.given.classes)], int(strength))
    return sick


def one_class_steps(healthy: Healthy, strength: Strength) -> Sick:
    """Training on, at a small rate, on examples of one class."""
    sick = healthy.sick()
    x, y = healthy.given.train
    one = y == healthy.pick(healthy.given.classes)
    train_on(sick.model.train(), healthy, (x[one], y[one]), int(strength), 0.01)
    sick.model.eval()
    return sick


def exchanged(healthy: Healthy, strength: Strength) -> Sick:
    """Statistics of two layers of one width in each other's place; strength: how many pairs."""
    sick = healthy.sick()
    norms = list(norms_of(sick.model).values())
    pairs = [
        (a, b)
        for k, a in enumerate(norms)
        for b in norms[k + 1 :]
        if a.num_features == b.num_features
    ]
    for _ in range(int(strength)):
        a, b = pairs[healthy.pick(len(pairs))]
        for name in ("running_mean", "running_var"):
            one, other = getattr(a, name), getattr(b, name)
            kept = one.clone()
            one.copy_(other)
            other.copy_(kept)
    return sick


def rounded(healthy: Healthy, strength: Strength) -> Sick:
    """Statistics on a grid of so many steps between 0 and the largest of the layer."""
    sick = healthy.sick()
    for norm in norms_of(sick.model).values():
        for value in (norm.running_mean, norm.running_var):
            step = value.abs().max() / float(strength)
            value.copy_((value / step).round() * step)
    return sick


def not_a_number(healthy: Healthy, strength: Strength) -> Sick:
    """NaN in one channel of one layer, or in all of them."""
    sick = healthy.sick()
    norms = list(norms_of(sick.model).values())
    norm = norms[healthy.pick(len(norms))]
    where = slice(None) if strength == "layer" else healthy.pick(norm.num_features)
    for value in (norm.running_mean, norm.running_var):
        value[where] = torch.nan
    return sick


def low_precision(healthy: Healthy, strength: Strength) -> Sick:
    """Averages that came to rest in bfloat16; handed over so, or in float32 again."""
    rate = 0.1 if healthy.pick(2) else 0.02
    left = averages(healthy.trained.history, rate, dtype=torch.bfloat16)
    sick = healthy.sick()
    put_statistics(sick.model, left)
    if strength == "cast back":
        return sick
    halved = [(x.bfloat16(), y) for x, y in (sick.train, sick.held_out)]
    return Sick(sick.model.bfloat16(), *halved)


def other_scaling(healthy: Healthy, strength: Strength) -> Sick:
    """Examples scaled otherwise than in training: what is in use, and what is at hand."""
    changed = [(_scaled(x, healthy.given, strength), y) for x, y in _parts(healthy.given)]
    return healthy.sick(train=changed[0], held_out=changed[1])


def deployed_otherwise(healthy: Healthy, strength: Strength) -> Sick:
    """Examples scaled otherwise in use, beside those of training."""
    x, y = healthy.given.held_out
    return healthy.sick(deploy=(_scaled(x, healthy.given, strength), y))


def frozen_in_name(healthy: Healthy, strength: Strength) -> Sick:
    """No gradient for γ and β, but train() all the same, while other data pass."""
    sick = polluted(healthy, strength)
    for norm in norms_of(sick.model).values():
        norm.requires_grad_(False)
    sick.model.train()
    return sick


def earlier_buffers(healthy: Healthy, strength: Strength) -> Sick:
    """Weights that were trained on, with the statistics of before; strength: of what share."""
    sick = healthy.sick()
    until = round(float(strength) * healthy.trained.recipe.steps)
    put_statistics(sick.model, averages(healthy.trained.history, 0.1, until))
    return sick


def tuned_in_eval(healthy: Healthy, strength: Strength) -> Sick:
    """Trained on in eval(), for other data: the weights have learnt what the statistics are."""
    changed = [(0.7 * x + 0.3, y) for x, y in _parts(healthy.given)]
    sick = healthy.sick(train=changed[0], held_out=changed[1])
    train_on(sick.model, healthy, changed[0], int(strength), 0.1)
    return sick


def in_training(healthy: Healthy, _strength: Strength) -> Sick:
    """Nothing more: it went wrong in training."""
    return healthy.sick()


def _parts(given: Data) -> tuple[Part, Part]:
    return given.train, given.held_out


def _scaled(x: Tensor, given: Data, strength: Strength) -> Tensor:
    """`raw`: not standardized; `bytes`: pixels of 0 to 255 standardized as if of 0 to 1."""
    if strength == "raw":
        return x * given.std + given.mean
    if strength == "bytes":
        return (255 * (x * given.std + given.mean) - given.mean) / given.std
    return float(strength) * x


@torch.no_grad()
def passes(model: nn.Module, healthy: Healthy, x: Tensor, times: int) -> None:
    """Batches go through in train(); only statistics change."""
    training = model.training
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(healthy.trained.recipe.seed)
        model.train()
        for _ in range(times):
            drawn = torch.randint(len(x), (healthy.trained.recipe.batch,), generator=healthy.random)
            model(x[drawn])
        model.train(training)


def train_on(model: nn.Module, healthy: Healthy, part: Part, count: int, slower: float) -> None:
    """Take further steps in the mode it is in, at a part of the rate."""
    recipe = healthy.trained.recipe
    more = dataclasses.replace(recipe, rate=slower * recipe.rate, steps=count, cosine=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        for _ in steps(model, more, part):
            pass


@torch.no_grad()
def load(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Write the parameters, and nothing else."""
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])


NEW = frozenset({"never_updated"})
FAULTS: dict[str, Fault] = {
    "none": Fault(none, ("*",), frozenset()),
    "momentum-too-small": Fault(momentum, (0.01, 0.003, 0.001), STALE | {"momentum"},
                                frozenset({"momentum"})),
    "momentum-of-the-old": Fault(momentum, (0.9, 0.99), STALE | {"momentum"},
                                 frozenset({"momentum"})),
    "never-updated": Fault(never_updated, (0,), NEW, NEW),
    "few-updates": Fault(never_updated, (12, 5, 1)),
    "one-layer-reset": Fault(one_reset, (1, 2), NEW, NEW),
    "checkpoint-without-buffers": Fault(without_buffers, (0.5, 1.0), NEW, NEW),
    "weights-averaged": Fault(weights_averaged, (3, 6, 10)),
    "polluted": Fault(polluted, (1, 4, 15)),
    "one-class-last": Fault(one_class_last, (1, 4, 15)),
    "trained-on-one-class": Fault(one_class_steps, (4, 15)),
    "exchanged": Fault(exchanged, (1, 2)),
    "rounded": Fault(rounded, (31, 7, 3)),
    "not-a-number": Fault(not_a_number, ("channel", "layer"), frozenset({"not_finite"}),
                          frozenset({"not_finite"})),
    "low-precision": Fault(low_precision, ("in bfloat16", "cast back"), STALE | {"low_precision"},
                           frozenset({"low_precision"})),
    "dropout-in-front": Fault(in_training, (0.3, 0.5), STALE | {"dropout_before"},
                              frozenset({"dropout_before"}),
                              lambda recipe, share: dataclasses.replace(recipe, dropout=share)),
    "small-batches": Fault(in_training, (4, 2), STALE | {"small_batch"},
                           frozenset({"small_batch"}),
                           lambda recipe, batch: with_batch(recipe, int(batch))),
    "other-scaling": Fault(other_scaling, (0.5, "raw", "bytes")),
    "deployed-otherwise": Fault(deployed_otherwise, (0.5, "raw", "bytes"),
                                frozenset({"deployment_shift"}), frozenset({"deployment_shift"})),
    "frozen-in-name": Fault(frozen_in_name, (4, 15), STALE | {"frozen_in_name_only"},
                            frozenset({"frozen_in_name_only"})),
    "earlier-buffers": Fault(earlier_buffers, (0.8, 0.5, 0.2)),
    "tuned-in-eval": Fault(tuned_in_eval, (30, 100)),
}  # fmt: skip


def can_have(recipe: Recipe, fault: str) -> bool:
    """Whether a network can have this fault: two layers of one width are needed for an exchange."""
    if fault != "exchanged":
        return True
    widths = [norm.num_features for norm in norms_of(build(recipe)).values()]
    return len(set(widths)) < len(widths)


def plant(recipe: Recipe, fault: str, strength: Strength) -> Sick:
    """Give the sick network: trained by this recipe, and struck by the fault then or before."""
    found = FAULTS[fault]
    if found.before is not None:
        recipe = found.before(recipe, strength)
    random = torch.Generator().manual_seed(recipe.seed)
    return found.plant(Healthy(trained(recipe), data.load(recipe.data), random), strength)
