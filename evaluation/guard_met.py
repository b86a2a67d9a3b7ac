"""Cases of the guard, each met by a network as it was trained, adapted, and adapted under guard."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import livella
from evaluation import guard_cases
from evaluation.cache import FOLDER, HERE, digest, text_of
from evaluation.guard_cases import Case, Network

Row = dict[str, Any]
_NAMES = ("guard_met", "guard_cases", "networks", "data", "recipe")
_JUDGED = sorted(Path(livella.__file__).parent.glob("model/*.py"))
VERSION = digest(text_of([*(HERE / f"{name}.py" for name in _NAMES), *_JUDGED]))
"""Of the code that runs the cases, and of that which is judged."""


def rows_of(seed: int) -> list[Row]:
    """All cases of a network; those of an earlier run of the same code are read."""
    torch.set_num_threads(1)
    path = FOLDER / "guard" / f"{seed}-{VERSION}.json"
    if not path.exists():
        rows = [run(case) for case in guard_cases.of(seed)]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows), "utf-8")
    rows = json.loads(path.read_text("utf-8"))
    print(f"network {seed}", file=sys.stderr)
    return rows


def run(case: Case) -> Row:
    """Meet a case in all three ways."""
    network = guard_cases.network(case.seed)
    x, y = guard_cases.stream(case, network)
    row = {**vars(case), "key": case.key, "score": score_of(case, network.classes)}
    row |= {"family": network.family, "data": network.name, "classes": network.classes}
    met = _met_as_stream if case.decay is not None else _met_as_set
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row["source"] = _right(network.model(x), y)
        row["unguarded"], _ = met(case, network, x, y, guard=False)
        row["guarded"], row["told"] = met(case, network, x, y, guard=True)
    return row


def _met_as_stream(
    case: Case, network: Network, x: Tensor, y: Tensor, *, guard: bool
) -> tuple[float, str]:
    batches = x.split(case.batch)
    adaptation = livella.adapt(
        network.model, batches[:1], decay=case.decay, guard=guard, progress=False
    ).revert()
    try:
        ways, outputs = "", []
        for batch in batches:
            outputs.append(adaptation.update(batch))
            ways += _way(adaptation)
        return _right(torch.cat(outputs), y), ways
    finally:
        adaptation.revert()


def _met_as_set(
    case: Case, network: Network, x: Tensor, y: Tensor, *, guard: bool
) -> tuple[float, str]:
    adaptation = livella.adapt(network.model, x.split(case.batch), guard=guard, progress=False)
    try:
        return _right(network.model(x), y), _way(adaptation)
    finally:
        adaptation.revert()


def _way(adaptation: livella.Adaptation) -> str:
    """A letter: as it was trained, the first layers alone, or all of them."""
    return "s" if adaptation.declined else "f" if adaptation.restrained else "W"


def _right(scores: Tensor, y: Tensor) -> float:
    return float((scores.argmax(1) == y).double().mean())


def score_of(case: Case, classes: int) -> str:
    """Which score a case counts for: a pair of classes of two is no order."""
    if case.shift == "none":
        return "harmless"
    fair = case.order == "shuffled" or (case.order == "pairs" and classes == 2)
    return "kept" if fair else "both"
