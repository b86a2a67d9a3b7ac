"""The cases of the guard: networks, worlds that shift, and streams in any order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad

from evaluation import data, networks, recipe
from evaluation.cache import kept

LENGTH = 640
"""Samples of a stream; what is held out is read again where it is less."""
ORDERS = ("shuffled", "sorted", "pairs", "runs")
Values = Callable[[Tensor, float, torch.Generator], Tensor]


def _contrast(x: Tensor, by: float, _: torch.Generator) -> Tensor:
    return x.mean() + (x - x.mean()) * (1 - by)


def _brightness(x: Tensor, by: float, _: torch.Generator) -> Tensor:
    return x + by * 2 * x.std()


def _noise(x: Tensor, by: float, random: torch.Generator) -> Tensor:
    return x + by * x.std() * torch.randn(x.shape, generator=random)


def _invert(x: Tensor, by: float, _: torch.Generator) -> Tensor:  # noqa: ARG001
    return x.amax() + x.amin() - x


def _blur(x: Tensor, by: float, _: torch.Generator) -> Tensor:
    if x.dim() < 4:
        return x
    return (1 - by) * x + by * avg_pool2d(pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)


def _scaling(x: Tensor, by: float, random: torch.Generator) -> Tensor:
    """Each feature of a table, each channel of others, in another unit."""
    shape = (1, x.shape[1], *(1,) * (x.dim() - 2))
    return x * (1 + 2 * by * torch.rand(shape, generator=random))


SHIFTS: dict[str, Values] = {
    "contrast": _contrast, "brightness": _brightness, "noise": _noise, "invert": _invert,
    "blur": _blur, "scaling": _scaling,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """What a guard meets.

    Attributes:
        seed: of the network.
        shift: of the world; "none" where it is as in training.
        severity: from 0 to 1.
        order: of the classes.
        batch: the size of the batches.
        decay: of the stream; none for a set as a whole.

    """

    seed: int
    shift: str
    severity: float
    order: str
    batch: int
    decay: float | None

    @property
    def key(self) -> str:
        return "/".join(str(value) for value in dataclasses.astuple(self))

    @classmethod
    def of(cls, key: str) -> Case:
        """Read a key."""
        seed, shift, severity, order, batch, decay = key.split("/")
        fades = None if decay == "None" else float(decay)
        return cls(int(seed), shift, float(severity), order, int(batch), fades)


@dataclass(frozen=True)
class Network:
    """A trained network, and what it was not trained on."""

    model: nn.Module
    family: str
    name: str
    classes: int
    x: Tensor
    y: Tensor


def of(seed: int) -> list[Case]:
    """Draw the cases of a network: unshifted in every order, shifted in order and not, and sets."""
    random = np.random.default_rng([seed, 1])

    def batch() -> int:
        return int(random.choice([16, 64]))

    def decay() -> float:
        return float(random.choice([0.9, 0.9, 0.5, 0.97]))

    cases = [Case(seed, "none", 0, order, batch(), decay()) for order in ORDERS]
    known = [s for s in SHIFTS if s != "blur" or recipe.draw(seed).data in data.IMAGES]
    for shift in random.choice(known, 3, replace=False):
        severity = float(random.choice([0.5, 0.7, 0.85]))
        for order in ("shuffled", str(random.choice(ORDERS[1:]))):
            cases.append(Case(seed, str(shift), severity, order, batch(), decay()))
    for shift in ("none", str(random.choice(known))):
        for order in ("shuffled", "part"):
            cases.append(Case(seed, shift, 0.7 if shift != "none" else 0, order, batch(), None))
    return cases


def network(seed: int) -> Network:
    """Give the network of this seed, of two classes or of all, trained once."""
    given = recipe.draw(seed)
    given = dataclasses.replace(given, steps=400, cosine=True)
    world = data.load(given.data)
    random = np.random.default_rng([seed, 2])
    count = 2 if random.random() < 0.35 else world.classes
    wanted = np.sort(random.choice(world.classes, count, replace=False)).tolist()
    train, (x, y) = _only(world.train, wanted), _only(world.held_out, wanted)

    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            make = networks.FAMILIES[given.family]
            return make(world.shape, count, given.width, given.depth)

    def learn() -> dict[str, Tensor]:
        model = build().train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1)
            for _ in recipe.steps(model, given, train):
                pass
        return model.state_dict()

    model = build()
    key = f"{given} {wanted}"
    model.load_state_dict(kept("guarded", key, ("data", "networks", "recipe"), learn))
    return Network(model.eval(), given.family, given.data, count, x, y)


def _only(part: data.Part, wanted: list[int]) -> data.Part:
    x, y = part
    here = torch.isin(y, torch.tensor(wanted))
    return x[here], torch.searchsorted(torch.tensor(wanted), y[here])


def stream(case: Case, network: Network) -> tuple[Tensor, Tensor]:
    """What comes in, in its order, and its classes."""
    random = torch.Generator().manual_seed(case.seed)
    repeats = -(-LENGTH // len(network.x))
    drawn = torch.cat([torch.randperm(len(network.x), generator=random) for _ in range(repeats)])
    drawn = drawn[:LENGTH]
    y = network.y[drawn]
    x = network.x[drawn]
    if case.shift != "none":
        x = SHIFTS[case.shift](x, case.severity, random)
    order = torch.cat(list(_places(case.order, y, network.classes, random)))
    return x[order], y[order]


def _places(order: str, y: Tensor, classes: int, random: torch.Generator) -> Iterator[Tensor]:
    named = torch.randperm(classes, generator=random)
    of_class = [(y == c).nonzero()[:, 0] for c in named.tolist()]
    if order == "shuffled":
        yield torch.arange(len(y))
    elif order == "sorted":
        yield from of_class
    elif order == "part":  # a set of one class of two, or of two of more
        yield torch.cat(of_class[: 1 if classes == 2 else 2])
    elif order == "pairs":
        for k in range(0, classes, 2):
            both = torch.cat(of_class[k : k + 2])
            yield both[torch.randperm(len(both), generator=random)]
    else:  # runs, of a third of a class each
        runs = [run for places in of_class for run in places.split(-(-len(places) // 3))]
        for k in torch.randperm(len(runs), generator=random).tolist():
            yield runs[k]
