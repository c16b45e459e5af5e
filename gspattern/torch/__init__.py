"""Pruning models of PyTorch, and running them with the kernels of gspattern."""

from gspattern.report import Conversion, ConvertedLayer, DenseReport, LayerReport, Report
from gspattern.torch.convert import conversion, convert
from gspattern.torch.convolutions import GSConv1d, GSConv2d
from gspattern.torch.criteria import Context, Criterion, Magnitude, Movement, Snip, Taylor, Wanda
from gspattern.torch.modules import GSLinear, matrices
from gspattern.torch.pruner import Pruner, prune_
from gspattern.torch.rnn import GSGRU, GSLSTM, GSGRUCell, GSLSTMCell
from gspattern.torch.saving import Sizes, absorb_masks, load, repair, revert, save, sizes
from gspattern.torch.schedules import Schedule, admm, cubic, iterative, linear, one_shot
from gspattern.torch.targets import PrunedWeight

__all__ = [
    "Context",
    "Conversion",
    "ConvertedLayer",
    "Criterion",
    "DenseReport",
    "GSConv1d",
    "GSConv2d",
    "GSGRU",
    "GSGRUCell",
    "GSLSTM",
    "GSLSTMCell",
    "GSLinear",
    "LayerReport",
    "Magnitude",
    "Movement",
    "PrunedWeight",
    "Pruner",
    "Report",
    "Schedule",
    "Sizes",
    "Snip",
    "Taylor",
    "Wanda",
    "absorb_masks",
    "admm",
    "conversion",
    "convert",
    "cubic",
    "iterative",
    "linear",
    "load",
    "matrices",
    "one_shot",
    "prune_",
    "repair",
    "revert",
    "save",
    "sizes",
]
