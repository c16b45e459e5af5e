"""Load-balanced gather-scatter (GS) patterns for sparse neural networks.

The names below stand in the order in which they are used:

    scores --choose--> mask --train--> weights --encode--> matrix --plan--> plan --multiply--> y
"""

# choose
from gspattern._core import FormatError, PatternError
from gspattern.patterns import (
    GS,
    NM,
    Auto,
    BankBalanced,
    Block,
    CpuGS,
    Irregular,
    Pattern,
    parse_pattern,
)

# encode

# plan

# multiply

__all__ = [
    # choose
    "GS",
    "NM",
    "Auto",
    "BankBalanced",
    "Block",
    "CpuGS",
    "FormatError",
    "Irregular",
    "Pattern",
    "PatternError",
    "parse_pattern",
    # encode
    # plan
    # multiply
]
