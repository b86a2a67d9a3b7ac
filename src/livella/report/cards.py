"""What an inspection found, as cards: what says the same is one, what comes of it is told there."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from livella.diagnosis.records import Finding, Level, Record, Seen
from livella.report import wording

NAMED = 4
"""Layers of a card that are named before the rest is counted."""
THE_MODEL = "the model"
_TOTALS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "constant_channels": (("channels",), "are dead: they never vary"),
    "silent_channels": (("off", "low"), "are silent: γ is 0, or β far below it"),
    "large_eps": (("channels",), "are damped by ε"),
    "negative_variance": (("channels",), "have a negative running variance"),
}
"""Of checks that count channels: the figures to add up, and what these channels are."""


@dataclass(frozen=True)
class Card:
    """Findings of one sentence, and what comes of them.

    Attributes:
        findings: of the same check, with the same remedy and the same figures; the worst first.
        seen: where they were found.
        comes: what comes of them, as cards of its own.
        causes: what they come of themselves and is ignored, by key.

    """

    findings: tuple[Finding, ...]
    seen: Seen
    comes: tuple[Card, ...] = ()
    causes: tuple[str, ...] = ()

    @property
    def first(self) -> Finding:
        """The finding that stands for the others."""
        return self.findings[0]

    @property
    def level(self) -> Level:
        """The level of the cause itself."""
        return max((each.level for each in self.findings), key=lambda level: level.rank)

    @property
    def main(self) -> tuple[Finding, ...]:
        """Those of that level."""
        return tuple(each for each in self.findings if each.level is self.level)

    @property
    def worst(self) -> Level:
        """The highest level in it, of cause or consequence."""
        levels = (self.level, *(each.level for each in self.comes))
        return max(levels, key=lambda level: level.rank)

    @property
    def title(self) -> str:
        """Where, and what check."""
        return f"{self.where}: {self.first.check}"

    @property
    def where(self) -> str:
        """The layer, or how many of how many."""
        if len(self.main) == 1:
            return self.first.layer or THE_MODEL
        return f"{len(self.main)} of {wording.counted(len(self.seen.layers), 'layer')}"

    @property
    def total(self) -> str:
        """What the whole network has of it, in a sentence; empty where one layer is all."""
        if len(self.main) == 1:
            return ""
        if self.first.check in _TOTALS:
            count, are = sum(map(_channels, self.main)), _TOTALS[self.first.check][1]
            channels = sum(layer.features for layer in self.seen.layers)
            return f"{count:,.0f} of {channels:,} channels in {self.where} {are}."
        if self.share >= 0.01:
            return f"Together they answer for {100 * self.share:.0f} % of the gap."
        return ""

    @property
    def share(self) -> float:
        """What these layers answer for of the gap."""
        return sum(f.share for f in self.main if f.share is not None)

    @property
    def message(self) -> str:
        """What is the case, of one layer, named where there are several."""
        if len(self.main) == 1:
            return self.first.message
        return f"{self.first.layer}: {self.first.message}"

    @property
    def alike(self) -> tuple[str, ...]:
        """The other layers, with what they answer for."""
        return tuple(self._named(each) for each in self.main[1:])

    @property
    def likewise(self) -> str:
        """Some of the other layers in a sentence; empty without any."""
        return f"Likewise {_some(self.alike)}." if self.alike else ""

    @property
    def lesser(self) -> str:
        """Where it matters less, in a sentence; empty where it does nowhere."""
        rest = [each for each in self.findings if each.level is not self.level]
        if not rest:
            return ""
        levels = " or ".join(dict.fromkeys(each.level.value for each in rest))
        named = _some([self._named(each) for each in rest])
        return f"As a {levels} also in {wording.counted(len(rest), 'layer')}: {named}."

    @property
    def accepted(self) -> str:
        """What is ignored and brought it about, in a sentence; empty without."""
        return f"It comes of what is ignored: {_some(self.causes)}." if self.causes else ""

    @property
    def line(self) -> str:
        """The card in one line, the check apart: the total, or what one layer has."""
        if len(self.main) == 1:
            return f"{self.where}: {self.message}"
        if self.first.check in _TOTALS:
            return self.total
        return " ".join(filter(None, (f"in {self.where}.", self.total, self.message)))

    def _named(self, finding: Finding) -> str:
        name = finding.layer or THE_MODEL
        if _channels(finding):
            return f"{name} ({_channels(finding):,.0f} of {self._features(finding):,})"
        if finding.share is None or finding.share < 0.005:
            return name
        return f"{name} ({wording.share(finding.share, self._error(finding))})"

    def _features(self, finding: Finding) -> int:
        return sum(each.features for each in self.seen.layers if each.name == finding.layer)

    def _error(self, finding: Finding) -> float | None:
        """Half the interval of its share, where that is the share of its layer."""
        errors = {(layer.name, layer.share): layer.share_error for layer in self.seen.layers}
        return errors.get((finding.layer, finding.share))


def _some(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return f"{', '.join(names[:NAMED])} and {more} more" if more > 0 else ", ".join(names)


def of(record: Record) -> tuple[Card, ...]:
    """Give what was found as cards: what matters most first, causes with what comes of them.

    Of those that matter alike, what answers for more of the gap comes first.
    """
    roots = _roots(record.findings)
    told: dict[object, list[Finding]] = {}
    for finding in record.findings:
        told.setdefault(_kind(roots[finding.key]), []).append(finding)
    cards = [_card(record, roots, findings) for findings in told.values()]
    return tuple(sorted(cards, key=lambda card: (-card.worst.rank, -round(card.share, 2))))


def accepted(record: Record) -> tuple[Card, ...]:
    """Give what is ignored as cards, in its order."""
    return tuple(_alike(record.ignored, record.seen))


def _card(record: Record, roots: Mapping[str, Finding], told: Sequence[Finding]) -> Card:
    own = [each for each in told if roots[each.key].key == each.key]
    rest = [each for each in told if roots[each.key].key != each.key]
    ignored = {each.key for each in record.ignored}
    causes = tuple(dict.fromkeys(each.because for each in own if each.because in ignored))
    return Card(_worst_first(own), record.seen, tuple(_alike(rest, record.seen)), causes)


def _alike(findings: Iterable[Finding], seen: Seen) -> Iterator[Card]:
    kinds: dict[object, list[Finding]] = {}
    for finding in findings:
        kinds.setdefault(_kind(finding), []).append(finding)
    for alike in kinds.values():
        yield Card(_worst_first(alike), seen)


def _worst_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    def place(each: Finding) -> tuple[float, ...]:
        return -each.level.rank, -(each.share or 0.0), -_channels(each)

    return tuple(sorted(findings, key=place))


def _channels(finding: Finding) -> float:
    """How many channels a check counted; none where it counts something else."""
    names = _TOTALS.get(finding.check, ((), ""))[0]
    return sum(finding.numbers.get(name, 0.0) for name in names)


def _kind(finding: Finding) -> object:
    """What findings of one sentence share: the same figures are of the same sentence."""
    return finding.check, finding.remedy, tuple(sorted(finding.numbers))


def _roots(findings: Sequence[Finding]) -> dict[str, Finding]:
    """Give the first cause of each finding, by its key: itself where none was made."""
    by_key = {finding.key: finding for finding in reversed(findings)}

    def root(finding: Finding) -> Finding:
        cause, passed = finding, {finding.key}
        while cause.because in by_key:
            if cause.because in passed:
                return finding  # they go round: none is the first
            cause = by_key[cause.because]
            passed.add(cause.key)
        return cause

    return {key: root(finding) for key, finding in by_key.items()}


@dataclass(frozen=True)
class Way:
    """What to do about a card: in words, as a command, or both; neither where nothing is to do."""

    text: str = ""
    command: str = ""


SAME = "The same command mends it."


def ways(cards: Iterable[Card], record: Record, command: str) -> Iterator[Way]:
    """Say of each card what to do: the command that does it where one is given and does it.

    A command is told once, and not of notes, as it leaves as it is what costs nothing. It writes
    statistics: settings, which no file of weights holds, are told in words besides.
    """
    told = False
    for card in cards:
        advice = record.remedies.get(card.first.remedy)
        if advice is None:
            yield Way()
        elif not command or advice.safety != "statistics" or card.worst is Level.NOTE:
            yield Way(advice.text)
        else:
            words = "" if card.first.remedy == "measure_statistics" else advice.text
            if told:
                yield Way(" ".join(filter(None, (words, SAME))))
            else:
                yield Way(words, command)
            told = True


def folded(command: str, width: int) -> str:
    """Break a command between its options, as a shell reads it."""
    lines: list[str] = []
    for part in _parts(command):
        if lines and len(lines[-1]) + 1 + len(part) + 2 <= width:
            lines[-1] += f" {part}"
        else:
            lines.append(part if not lines else f"    {part}")
    return " \\\n".join(lines)


def _parts(command: str) -> Iterator[str]:
    part: list[str] = []
    for word in shlex.split(command):
        if word.startswith("--") and part:
            yield shlex.join(part)
            part = []
        part.append(word)
    if part:
        yield shlex.join(part)
