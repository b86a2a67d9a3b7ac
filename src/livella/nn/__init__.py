"""Normalization layers."""

from livella.nn.batch import BatchNorm1d as BatchNorm1d
from livella.nn.batch import BatchNorm2d as BatchNorm2d
from livella.nn.batch import BatchNorm3d as BatchNorm3d
from livella.nn.batch import BatchNormAct1d as BatchNormAct1d
from livella.nn.batch import BatchNormAct2d as BatchNormAct2d
from livella.nn.batch import BatchNormAct3d as BatchNormAct3d
from livella.nn.dynamic_tanh import DynamicTanh as DynamicTanh
from livella.nn.factory import KINDS as KINDS
from livella.nn.factory import make_norm as make_norm
from livella.nn.filter_response import FilterResponseNorm1d as FilterResponseNorm1d
from livella.nn.filter_response import FilterResponseNorm2d as FilterResponseNorm2d
from livella.nn.filter_response import FilterResponseNorm3d as FilterResponseNorm3d
from livella.nn.moving_average import MovingAverageBatchNorm1d as MovingAverageBatchNorm1d
from livella.nn.moving_average import MovingAverageBatchNorm2d as MovingAverageBatchNorm2d
from livella.nn.moving_average import MovingAverageBatchNorm3d as MovingAverageBatchNorm3d
from livella.nn.rms import RMSNorm as RMSNorm
from livella.nn.sync import SyncBatchNorm as SyncBatchNorm
from livella.nn.sync import SyncBatchNormAct as SyncBatchNormAct
from livella.nn.weights import centre_weights as centre_weights
from livella.nn.weights import restore_weights as restore_weights
from livella.nn.weights import standardize_weights as standardize_weights
