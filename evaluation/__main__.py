"""`python -m evaluation`: judge the inspector, and say where it is wrong."""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import joblib
import torch

from evaluation import cases, scores, table
from evaluation.cache import FOLDER, HERE, digest, text_of
from evaluation.cases import Case


def main() -> int:
    """Run what the command line asks for; give its exit code."""
    asked = _arguments()
    if asked.case:
        return _show(Case.of(asked.case), asked.verbose)
    rows = _rows(asked)
    print("\n".join(table.lines(rows)))
    for what in ("fault", "family", "data"):
        print("\n" + "\n".join(table.by(rows, what)))
    print("\n" + "\n".join(table.misses(rows)))
    reached = [table.score(rows, name)[0] >= asked.at_least for name in scores.SCORES]
    return 0 if all(reached) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m evaluation", description=__doc__)
    parser.add_argument("--seeds", choices=("even", "odd"), default="even")
    parser.add_argument("--pairs", type=int, default=60, help="of a network and a fault")
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--out", type=Path, default=FOLDER, help="the folder of the results")
    parser.add_argument("--at-least", type=float, default=0.97, help="what every score has to be")
    parser.add_argument("--case", metavar="KEY", help="one case alone, as a miss names it")
    parser.add_argument("-v", "--verbose", action="store_true", help="and the whole inspection")
    return parser.parse_args()


def _rows(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Give the rows of all cases; those of an earlier run of the same code are read."""
    asked.out.mkdir(parents=True, exist_ok=True)
    path = asked.out / f"cases-{asked.seeds}-{_version()}.jsonl"
    known = _read(path)
    networks = list(cases.pairs(asked.seeds, asked.pairs))
    wanted = [case for network in networks for case in network]
    open_ = [[case for case in network if case.key not in known] for network in networks]
    jobs = [joblib.delayed(_run)(network) for network in open_ if network]
    print(f"{len(wanted)} cases, {len(known)} known: {path}", file=sys.stderr)
    begun = time.monotonic()
    parallel = joblib.Parallel(asked.jobs, return_as="generator_unordered", batch_size=1)
    with path.open("a", encoding="utf-8") as out:
        for number, rows in enumerate(parallel(jobs), start=1):
            for row in rows:
                known[row["key"]] = row
                print(json.dumps(row), file=out, flush=True)
            spent = time.monotonic() - begun
            print(f"\r{number} of {len(jobs)} networks, {spent:.0f} s", end="", file=sys.stderr)
    print(file=sys.stderr)
    return [known[case.key] for case in wanted]


def _run(network: list[Case]) -> list[dict[str, Any]]:
    """All cases of a network, in a process of its own."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    return [cases.run(case)[0] for case in network]


def _version() -> str:
    """A digest of the code that is judged and of that which judges."""
    own = ("data", "networks", "recipe", "faults", "oracle", "loaders", "cases")
    judged = (HERE.parent / "src" / "livella").rglob("*.py")
    return digest(text_of([*(HERE / f"{name}.py" for name in own), *judged]))


def _read(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    found = {}
    for line in path.read_text("utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # the end of a run that was stopped
            continue
        found[row["key"]] = row
    return found


def _show(case: Case, verbose: bool) -> int:
    torch.set_num_threads(1)
    row, repair = cases.run(case)
    judged = scores.judge(row)
    print(table.figures(row))
    for name, far in row["truth"]["distances"].items():
        share, told = row["truth"]["shares"].get(name, 0.0), row.get("said", {}).get("shares", {})
        print(f"  {name:24} {far:8.2f} σ   share {share:5.2f}, told {told.get(name, 0.0):5.2f}")
    for name, right in judged.items():
        print(f"  {name:10} {'–' if right is None else 'right' if right else 'MISSED'}")
    if repair is not None and verbose:
        print(repair.before, repair, sep="\n\n")
    return 0 if False not in judged.values() else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
