"""Batch normalization for PyTorch, done completely."""

from livella import functional as functional
from livella import nn as nn
from livella.model.accelerate import accelerate as accelerate
from livella.model.estimate import PopulationEstimate as PopulationEstimate
from livella.model.freeze import freeze as freeze
from livella.model.freeze import is_frozen as is_frozen
from livella.model.freeze import unfreeze as unfreeze
from livella.model.population import estimate_population as estimate_population
from livella.model.population import update_bn as update_bn
from livella.model.updates import pooled_updates as pooled_updates
from livella.model.updates import set_update_policy as set_update_policy
from livella.model.updates import skipped_updates as skipped_updates
from livella.model.updates import step as step
from livella.moments import Moments as Moments
from livella.study import StudyError as StudyError
from livella.study import study as study
