"""Batch normalization for PyTorch, done completely."""

from livella import functional as functional
from livella import nn as nn
from livella.model.accelerate import accelerate as accelerate
from livella.moments import Moments as Moments
from livella.study import StudyError as StudyError
from livella.study import study as study
