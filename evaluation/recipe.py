"""How a network is made and trained; and the training, with what faults are made of later."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from evaluation import data, networks
from evaluation.cache import kept
from evaluation.networks import norms_of

Moments = tuple[Tensor, Tensor]
"""Means and variances."""


@dataclass(frozen=True)
class Recipe:
    """All that decides a trained network."""

    seed: int
    family: str
    data: str
    width: int
    depth: int
    optimizer: str
    rate: float
    decay: float
    batch: int
    steps: int
    cosine: bool
    dropout: float = 0.0
    momentum: float = 0.1


@dataclass(frozen=True)
class Trained:
    """A trained network.

    Attributes:
        model: in evaluation mode, with running statistics of momentum 0.1.
        weights: the parameters at ten times of the training, the last ones at the end.
        history: by norm the moments of every batch of the training, (steps, channels) each.

    """

    recipe: Recipe
    model: nn.Module
    weights: list[dict[str, Tensor]]
    history: dict[str, Moments]


def draw(seed: int) -> Recipe:
    """Draw a recipe; the same for the same seed."""
    random = np.random.default_rng(seed)
    families = list(networks.FAMILIES)
    family = families[(seed // 2) % len(families)]
    known = {"mlp": (*data.TABLES, "digits"), "sequence": data.SEQUENCES,
             "conv_gru": (*data.SEQUENCES, "digits")}  # fmt: skip
    adam = random.random() < 0.5
    return Recipe(
        seed=seed,
        family=family,
        data=str(random.choice(known.get(family, data.IMAGES))),
        width=int(random.choice([6, 8, 10, 12, 16])),
        depth=int(random.integers(1, 5)),
        optimizer="adam" if adam else "sgd",
        rate=float(10 ** random.uniform(-3, -2) if adam else 10 ** random.uniform(-1.7, -0.7)),
        decay=float(random.choice([0, 1e-4, 5e-4])),
        batch=int(random.choice([16, 32, 64, 128])),
        steps=int(random.integers(200, 400)),
        cosine=bool(random.random() < 0.5),
    )


def build(recipe: Recipe) -> nn.Module:
    """The network before its training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        given = data.load(recipe.data)
        make = networks.FAMILIES[recipe.family]
        model = make(given.shape, given.classes, recipe.width, recipe.depth)
    if recipe.dropout:
        networks.put_dropout(model, recipe.seed, recipe.dropout)
    return model


def trained(recipe: Recipe) -> Trained:
    """The network after its training, from an earlier run where there was one."""
    made_by = ("data", "networks", "recipe")
    weights, history = kept("trained", repr(recipe), made_by, lambda: _train(recipe))
    model = build(recipe)
    model.load_state_dict(weights[-1], strict=False)
    put_statistics(model, averages(history, recipe.momentum))
    for norm in norms_of(model).values():
        norm.num_batches_tracked.fill_(recipe.steps)
    return Trained(recipe, model.eval(), weights, history)


def _train(recipe: Recipe) -> tuple[list[dict[str, Tensor]], dict[str, Moments]]:
    """Train with a momentum of 1, by which the running statistics are those of the last batch.

    What a network learns does not depend on the momentum, and what the running statistics would be
    by any other follows from the batches'.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed + 1)
        model = build(recipe).train()
        norms = norms_of(model)
        for norm in norms.values():
            norm.momentum = 1.0
        means: dict[str, list[Tensor]] = {name: [] for name in norms}
        variances: dict[str, list[Tensor]] = {name: [] for name in norms}
        weights = []
        for step in steps(model, recipe, data.load(recipe.data).train):
            for name, norm in norms.items():
                means[name].append(norm.running_mean.clone())
                variances[name].append(norm.running_var.clone())
            if (step + 1) * 10 // recipe.steps > step * 10 // recipe.steps:
                weights.append({k: v.detach().clone() for k, v in model.named_parameters()})
    return weights, {n: (torch.stack(means[n]), torch.stack(variances[n])) for n in norms}


def steps(model: nn.Module, recipe: Recipe, part: data.Part) -> Iterator[int]:
    """Train step by step, the model in the mode it is in; give the number of each step."""
    x, y = part
    optimizer: torch.optim.Optimizer
    if recipe.optimizer == "adam":
        optimizer = torch.optim.Adam(model.parameters(), recipe.rate, weight_decay=recipe.decay)
    else:
        optimizer = torch.optim.SGD(
            model.parameters(), recipe.rate, momentum=0.9, weight_decay=recipe.decay
        )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
    for step in range(recipe.steps):
        drawn = torch.randint(len(x), (recipe.batch,))
        loss = nn.functional.cross_entropy(model(x[drawn]), y[drawn])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if recipe.cosine:
            schedule.step()
        yield step


def averages(
    history: dict[str, Moments],
    momentum: float,
    until: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Moments]:
    """The running statistics that a training leaves behind, by norm.

    Args:
        history: of the training.
        momentum: of the averages.
        until: the number of steps after which they were left alone. Default: all.
        dtype: in which they are kept between steps. Default: float32.

    """
    left = {}
    for name, (means, variances) in history.items():
        batches = torch.stack([means, variances], 1)[:until]
        value = torch.stack([torch.zeros_like(means[0]), torch.ones_like(means[0])])
        for batch in batches:
            value = ((1 - momentum) * value + momentum * batch).to(dtype).float()
        left[name] = (value[0], value[1])
    return left


@torch.no_grad()
def put_statistics(model: nn.Module, statistics: dict[str, Moments]) -> None:
    """Write running statistics into the norms that are named."""
    norms = norms_of(model)
    for name, (mean, variance) in statistics.items():
        norms[name].running_mean.copy_(mean)
        norms[name].running_var.copy_(variance)


def with_batch(recipe: Recipe, batch: int) -> Recipe:
    """The same with batches of this size, and so more steps at a smaller rate."""
    smaller = recipe.rate * (batch / recipe.batch) ** 0.5
    return dataclasses.replace(
        recipe, batch=batch, rate=smaller, steps=4 * recipe.steps, cosine=True
    )
