"""The cases: which there are, and what comes of one."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

import livella
from evaluation import faults, loaders, oracle, recipe, scores
from evaluation.cache import kept
from evaluation.faults import FAULTS, Sick, Strength
from evaluation.loaders import Kind

EACH = 6
"""How many faults a network serves: none, and five others."""
ORACLE = ("data", "networks", "recipe", "faults", "oracle")


@dataclass(frozen=True)
class Pair:
    """A network, by the seed of its recipe, and a fault."""

    seed: int
    fault: str
    strength: Strength

    def __str__(self) -> str:
        return f"{self.seed}/{self.fault}/{self.strength}"


@dataclass(frozen=True)
class Case:
    """A pair, and the loader through which it is shown."""

    pair: Pair
    loader: Kind

    @property
    def key(self) -> str:
        return f"{self.pair}/{self.loader}"

    @classmethod
    def of(cls, key: str) -> Case:
        """Read a key."""
        seed, fault, strength, loader = key.split("/")
        known = {str(each): each for each in FAULTS[fault].strengths}
        return cls(Pair(int(seed), fault, known[strength]), Kind.of(loader))


def pairs(seeds: str, count: int) -> Iterator[list[Case]]:
    """Give the cases, those of one network together, for about so many pairs."""
    others = [name for name in FAULTS if name != "none"]
    for number in range(-(-count // EACH)):
        seed = 2 * number + (seeds == "odd")
        drawn = recipe.draw(seed)
        turn = [others[(number * (EACH - 1) + k) % len(others)] for k in range(len(others))]
        chosen = [name for name in turn if faults.can_have(drawn, name)][: EACH - 1]
        yield [case for name in ["none", *chosen] for case in _cases(seed, name)]


def _cases(seed: int, fault: str) -> Iterator[Case]:
    random = np.random.default_rng([seed, list(FAULTS).index(fault)])
    strengths = FAULTS[fault].strengths
    pair = Pair(seed, fault, strengths[int(random.integers(len(strengths)))])
    for kind in loaders.draw(random):
        yield Case(pair, kind)


def truth(pair: Pair, sick: Sick) -> dict[str, Any]:
    """What is the case, from an earlier run where there was one."""
    drawn = recipe.draw(pair.seed)
    parts = (sick.train, sick.held_out, sick.deploy)
    return kept(
        "truth",
        f"{pair} {drawn}",
        ORACLE,
        lambda: dataclasses.asdict(oracle.truth(sick.model, *parts, enough=scores.LOST)),
    )


def run(case: Case) -> tuple[dict[str, Any], Any]:
    """Ask about a case: the row of what is the case and what was said, and the repair."""
    pair, drawn = case.pair, recipe.draw(case.pair.seed)
    sick = faults.plant(drawn, pair.fault, pair.strength)
    row: dict[str, Any] = {
        "key": case.key, "family": drawn.family, "data": drawn.data, "fault": pair.fault,
        **dataclasses.asdict(case.loader), "truth": truth(pair, sick),
    }  # fmt: skip
    begun = time.perf_counter()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(pair.seed)  # by which loaders shuffle
            answer, found = _ask(case, sick)
    except Exception as error:  # whatever it is, it is an answer to judge
        return {**row, "error": f"{type(error).__name__}: {error}"}, None
    return {**row, **answer, "seconds": round(time.perf_counter() - begun, 2)}, found


def _ask(case: Case, sick: Sick) -> tuple[dict[str, Any], Any]:
    model = copy.deepcopy(sick.model)
    batches = loaders.make(case.loader, sick.train, case.pair.seed)
    more = {}
    if sick.deploy is not None:
        more["deploy"] = loaders.make(case.loader, sick.deploy, case.pair.seed)
    repair = livella.repair(model, batches, progress=False, **more)
    answer = {
        "said": said(repair.before),
        "after": said(repair.after)["worst"],
        "worse": str(repair.worse),
        "repaired": oracle.accuracy(repair.model, sick.held_out),
        "untouched": fingerprint(model) == fingerprint(sick.model),
    }
    return answer, repair


def said(inspection: Any) -> dict[str, Any]:
    """What an inspection says, in plain values."""
    worst = inspection.worst
    return {
        "worst": worst.value if worst is not None else None,
        "findings": [
            {"check": f.check, "level": f.level.value, "layer": f.layer, "share": f.share}
            for f in inspection.findings
        ],
        "shares": {each.name: each.share or 0.0 for each in inspection.measurements},
    }


def fingerprint(model: nn.Module) -> str:
    """A digest of every bit of a model that a caller can see."""
    found = hashlib.sha256()
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        found.update(f"{name} {value.dtype} {value.requires_grad}".encode())
        found.update(value.detach().reshape(-1).view(torch.uint8).numpy().tobytes())
    for name, module in model.named_modules():
        settings = [(k, v) for k, v in vars(module).items() if isinstance(v, (int, float, str))]
        hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
        found.update(f"{name} {type(module)} {settings} {hooks}".encode())
    return found.hexdigest()
