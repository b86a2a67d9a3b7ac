"""Numbers read with the digits that their interval supports."""

import math

import pytest

from livella.report import wording
from livella.study.results import Estimate


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (0.3, "0.3"),
        (9.1666, "9.17"),
        (-4.5, "−4.5"),
        (1250.0, "1,250"),
        (999_999.6, "1,000,000"),
        (1.234e38, "1.23·10³⁸"),
        (-4.1e-5, "−4.10·10⁻⁵"),
        (math.nan, "–"),
        (None, "–"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert wording.number(value) == text


@pytest.mark.parametrize(
    ("estimate", "unit", "text"),
    [
        (Estimate(9.17, 7.08, 12.04, 5), "×", "9.2× [7.1, 12.0]"),
        (Estimate(1.2096, 1.2051, 1.2147, 5), "×", "1.210× [1.205, 1.215]"),
        (Estimate(4.8, 3.9, 5.5, 5), "points", "4.8 points [3.9, 5.5]"),
        (Estimate(-0.6, -1.6, 0.4, 5), "points", "−0.6 points [−1.6, 0.4]"),
        (Estimate(1100, 900, 1250, 5), "", "1,100 [900, 1,250]"),
        (Estimate(0.61, 0.60, 0.62, 5), "", "0.61 [0.60, 0.62]"),
        (Estimate(60.2, 21.0, 81.3, 5), "%", "60 % [21, 81]"),
        (Estimate(3.0, 3.0, 3.0, 5), "", "3 [3, 3]"),
        (Estimate(35.0, 2.1, 1234.0, 5), "×", "35× [2.1, 1,234]"),
        (Estimate(8.3e-5, 4.1e-5, 1.6e-4, 5), "", "8.3·10⁻⁵ [4.1·10⁻⁵, 1.6·10⁻⁴]"),
        (Estimate(9.0, 9.0, 9.0, 1), "×", "9×"),
        (Estimate(1500, 1500, 1500, 5, censored=True), "", "≥ 1,500 [1,500, ∞)"),
        (Estimate(10, 5, 100, 5, censored=True), "×", "≥ 10× [5, ∞)"),
        (Estimate(0.1, 0.1, 0.2, 5, capped=True), "×", "≤ 0.1× (0, 0.2]"),
        (Estimate(2.0, 1.0, math.inf, 5), "×", "2× [1, ∞)"),
        (Estimate(math.nan, math.nan, math.nan, 5), "×", "–"),
    ],
)
def test_estimates(estimate: Estimate, unit: str, text: str) -> None:
    assert str(wording.estimate(estimate, unit)).replace("\N{NO-BREAK SPACE}", " ") == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.42, "0.42 s"),
        (41.2, "41 s"),
        (59.7, "1 min 00 s"),
        (252, "4 min 12 s"),
        (3780, "1 h 03 min"),
        (math.nan, "– s"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert wording.duration(seconds) == text


def test_counts() -> None:
    assert wording.counted(1, "seed") == "1 seed"
    assert wording.counted(1200, "seed") == "1,200 seeds"
    assert wording.counted(2, "entry", "entries") == "2 entries"


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        (0.554, 0.041, "55 ± 4 %"),
        (0.554, None, "55 %"),
        (0.554, 0.004, "55 %"),
        (1.0, 0.0, "100 %"),
    ],
)
def test_a_share_has_its_interval(value, error, said):
    assert wording.share(value, error) == said
