"""How numbers, intervals, verdicts and times read, on the terminal and on the page alike."""

from __future__ import annotations

import math
from typing import NamedTuple

from livella.study.results import Estimate, Verdict

MISSING = "–"
_SPACE = "\N{NO-BREAK SPACE}"
SYMBOLS = {
    Verdict.CONFIRMED: "✓",
    Verdict.NOT_SEEN: "○",
    Verdict.CONTRADICTED: "✗",
    Verdict.INCONCLUSIVE: "?",
}
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_LARGE, _SMALL, _ORDERS_APART = 1e6, 1e-3, 100


class Wording(NamedTuple):
    """An estimate in words: the median, and its interval (empty where one seed gave none)."""

    median: str
    interval: str

    def __str__(self) -> str:
        return f"{self.median} {self.interval}".rstrip()


def number(value: float | None, digits: int = 3) -> str:
    """A lone number with so many significant digits, grouped: 1,250, 0.25, 1.2·10³⁸."""
    if value is None or not math.isfinite(value):
        return _not_finite(value)
    size = abs(value)
    if size and not _SMALL <= size < _LARGE:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        power = f"10{str(int(exponent)).translate(_SUPERSCRIPT)}"
        return _signed(power if mantissa == "1" else f"{mantissa}·{power}")
    text = _fixed(value, max(0, digits - 1 - _order(size)))
    return text.rstrip("0").rstrip(".") if "." in text else text


def estimate(value: Estimate, unit: str = "") -> Wording:
    """The median with its unit, and the interval, to the digits that the interval supports.

    A censored median is a lower bound: it reads "≥", and its interval has no upper end. A capped
    one, a ratio, is an upper bound: it reads "≤", and its interval begins at nothing.
    """
    if math.isnan(value.median):
        return Wording(MISSING, "")
    median, low, high = _to_the_same_digits(value)
    if value.censored:
        median, high = f"≥{_SPACE}{median}", "∞"
    if value.capped:
        median, low = f"≤{_SPACE}{median}", "0"
    start = "(" if value.capped else "["
    bracket = f"{start}{low},{_SPACE}{high}{')' if high == '∞' else ']'}"
    return Wording(_with_unit(median, unit), bracket if value.count > 1 else "")


def share(value: float, error: float | None = None) -> str:
    """A share in whole percent, with half its interval where that is worth telling: 55 ± 4 %."""
    around = round(100 * error) if error else 0
    return f"{100 * value:.0f} ± {around} %" if around else f"{100 * value:.0f} %"


def duration(seconds: float) -> str:
    """Seconds for people: 0.4 s, 41 s, 4 min 12 s, 1 h 03 min."""
    if not math.isfinite(seconds) or seconds < 10:
        return f"{number(seconds, 2)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def counted(count: int, one: str, many: str = "") -> str:
    """A number with its noun: 1 seed, 3 seeds, 2 entries."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _with_unit(text: str, unit: str) -> str:
    if not unit or unit == "×":
        return text + unit
    return f"{text}{_SPACE}{unit}"


def _to_the_same_digits(value: Estimate) -> tuple[str, str, str]:
    numbers = (value.median, value.low, value.high)
    sizes = [abs(each) for each in numbers if math.isfinite(each)]
    largest, smallest = max(sizes, default=0.0), min(sizes, default=0.0)
    spread = value.high - value.low
    apart = smallest > 0 and largest / smallest > _ORDERS_APART
    if not 0 < spread < math.inf:
        median, low, high = (number(each) for each in numbers)
    elif apart or not _SMALL <= largest < _LARGE:
        median, low, high = (number(each, digits=2) for each in numbers)
    else:
        # A spread of 4.9 is worth a decimal, one of 5.1 is not; and no more than four digits.
        places = max(0, min(math.ceil(math.log10(5 / spread)), 3 - _order(largest)))
        median, low, high = _without_common_zeros(*(_fixed(each, places) for each in numbers))
    return median, low, high


def _without_common_zeros(*texts: str) -> tuple[str, ...]:
    """0.610, 0.600 and 0.620 as 0.61, 0.60 and 0.62."""
    while all("." in text and text[-1] in "0." for text in texts):
        texts = tuple(text[:-1] for text in texts)
    return texts


def _order(size: float) -> int:
    return math.floor(math.log10(size)) if size else 0


def _fixed(value: float, places: int) -> str:
    if not math.isfinite(value):
        return _not_finite(value)
    text = f"{value:,.{places}f}"
    return _signed(text.lstrip("-") if not text.strip("-0.,") else text)


def _signed(text: str) -> str:
    return text.replace("-", "−")


def _not_finite(value: float | None) -> str:
    if value is None or math.isnan(value):
        return MISSING
    return "∞" if value > 0 else "−∞"
