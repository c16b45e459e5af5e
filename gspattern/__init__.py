"""Load-balanced gather-scatter (GS) patterns for sparse neural networks.

The names below stand in the order in which they are used:

    scores --choose--> mask --train--> weights --encode--> matrix --plan--> plan --multiply--> y
"""

# choose
from gspattern._core import FormatError, PatternError
from gspattern.files import (
    load_file,
    read_joined,
    read_metadata,
    read_text,
    save_file,
    write_joined,
    write_text,
)
from gspattern.masks import check, choose_mask, choose_masks, verify
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
    "check",
    "choose_mask",
    "choose_masks",
    "parse_pattern",
    "verify",
    # encode
    # files
    "load_file",
    "read_joined",
    "read_metadata",
    "read_text",
    "save_file",
    "write_joined",
    "write_text",
    # plan
    # multiply
]
