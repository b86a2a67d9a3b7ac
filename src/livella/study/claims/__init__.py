"""The claims of the study, one a file; this tuple is the list of them."""

from __future__ import annotations

from livella.study.claim import Claim
from livella.study.claims import (
    adaptation_harm,
    alternatives,
    batch_size,
    convergence,
    covariate_shift,
    dropout,
    gradient_flow,
    inference,
    learning_rate,
    non_iid,
    recurrent,
    regularization,
    shift,
)

CLAIMS: tuple[Claim, ...] = (
    convergence.CLAIM,
    learning_rate.CLAIM,
    covariate_shift.CLAIM,
    gradient_flow.CLAIM,
    regularization.CLAIM,
    dropout.CLAIM,
    batch_size.CLAIM,
    non_iid.CLAIM,
    inference.CLAIM,
    shift.CLAIM,
    adaptation_harm.CLAIM,
    recurrent.CLAIM,
    alternatives.CLAIM,
)
