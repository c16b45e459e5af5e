"""Pruning models of PyTorch, and running them with the kernels of gspattern."""

from gspattern.report import LayerReport, Report
from gspattern.torch.convert import convert
from gspattern.torch.modules import GSLinear, matrices
from gspattern.torch.pruner import Pruner, prune_
from gspattern.torch.recurrent import GSGRU, GSLSTM, GSGRUCell, GSLSTMCell
from gspattern.torch.schedules import Cubic, Schedule, cubic
from gspattern.torch.targets import PrunedWeight

__all__ = [
    "Cubic",
    "GSGRU",
    "GSGRUCell",
    "GSLSTM",
    "GSLSTMCell",
    "GSLinear",
    "LayerReport",
    "PrunedWeight",
    "Pruner",
    "Report",
    "Schedule",
    "convert",
    "cubic",
    "matrices",
    "prune_",
]
