"""Normalization layers."""

from livella.nn.batch import BatchNorm1d as BatchNorm1d
from livella.nn.batch import BatchNorm2d as BatchNorm2d
from livella.nn.batch import BatchNorm3d as BatchNorm3d
from livella.nn.batch import BatchNormAct1d as BatchNormAct1d
from livella.nn.batch import BatchNormAct2d as BatchNormAct2d
from livella.nn.batch import BatchNormAct3d as BatchNormAct3d
from livella.nn.factory import KINDS as KINDS
from livella.nn.factory import make_norm as make_norm
from livella.nn.ghost import GhostBatchNorm1d as GhostBatchNorm1d
from livella.nn.ghost import GhostBatchNorm2d as GhostBatchNorm2d
from livella.nn.ghost import GhostBatchNorm3d as GhostBatchNorm3d
from livella.nn.recurrent import BatchNormGRU as BatchNormGRU
from livella.nn.recurrent import BatchNormLSTM as BatchNormLSTM
from livella.nn.renorm import BatchRenorm1d as BatchRenorm1d
from livella.nn.renorm import BatchRenorm2d as BatchRenorm2d
from livella.nn.renorm import BatchRenorm3d as BatchRenorm3d
from livella.nn.rms import RMSNorm as RMSNorm
from livella.nn.sequence import SequenceBatchNorm as SequenceBatchNorm
from livella.nn.sync import SyncBatchNorm as SyncBatchNorm
from livella.nn.sync import SyncBatchNormAct as SyncBatchNormAct
