"""Measured evidence of what normalization buys a network, claim by claim of the literature."""

from livella.study.claims import CLAIMS as CLAIMS
from livella.study.errors import StudyError as StudyError
from livella.study.study import study as study
