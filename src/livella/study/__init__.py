"""Measured evidence of what normalization buys a network, claim by claim of the literature."""

from typing import TYPE_CHECKING

from livella.study.errors import StudyError as StudyError

if TYPE_CHECKING:
    from livella.study.claims import CLAIMS as CLAIMS
    from livella.study.run import study as study
else:

    def __getattr__(name):
        """Load what stands on torch when it is asked for: the command line passes here first."""
        if name == "CLAIMS":
            from livella.study.claims import CLAIMS

            return CLAIMS
        if name == "study":
            from livella.study.run import study

            return study
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
