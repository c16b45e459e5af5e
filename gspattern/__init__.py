"""Load-balanced gather-scatter (GS) patterns for sparse neural networks.

The names below stand in the order in which they are used:

    scores --choose--> mask --train--> weights --encode--> matrix --plan--> plan --multiply--> y
"""

__version__ = "0.1.0"

# errors
from gspattern._core import FormatError, PatternError

# isort: split
# choose
from gspattern.masks import (
    Check,
    Prices,
    Selection,
    Selections,
    Verdict,
    Violation,
    check,
    choose_mask,
    choose_masks,
    verify,
)
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

# isort: split
# encode
from gspattern.matrices import (
    BlockMatrix,
    CSRMatrix,
    GSMatrix,
    Matrix,
    SizeTable,
    as_matrix,
    encode,
    from_matrix,
    sizes,
)

# isort: split
# save and load
from gspattern.files import (
    load_file,
    read_joined,
    read_metadata,
    read_text,
    save_file,
    write_joined,
    write_text,
)

# isort: split
# plan, multiply
from gspattern.conv import conv1d, conv1d_lengths, conv2d
from gspattern.plans import (
    CpuInfo,
    Plan,
    backend,
    backends,
    cpu_info,
    get_num_threads,
    linear,
    multiply,
    plan_for,
    set_num_threads,
    use_backend,
)
from gspattern.recurrent import gru, gru_cell, lstm, lstm_cell

# isort: split
# explain
from gspattern.explain import Estimate, Explanation, LayerExplanation, explain

__all__ = [
    # errors
    "FormatError",
    "PatternError",
    # choose
    "GS",
    "NM",
    "Auto",
    "BankBalanced",
    "Block",
    "Check",
    "CpuGS",
    "Irregular",
    "Pattern",
    "Prices",
    "Selection",
    "Selections",
    "Verdict",
    "Violation",
    "check",
    "choose_mask",
    "choose_masks",
    "parse_pattern",
    "verify",
    # encode
    "BlockMatrix",
    "CSRMatrix",
    "GSMatrix",
    "Matrix",
    "SizeTable",
    "as_matrix",
    "encode",
    "from_matrix",
    "sizes",
    # save and load
    "load_file",
    "read_joined",
    "read_metadata",
    "read_text",
    "save_file",
    "write_joined",
    "write_text",
    # plan, multiply
    "CpuInfo",
    "Plan",
    "backend",
    "backends",
    "conv1d",
    "conv1d_lengths",
    "conv2d",
    "cpu_info",
    "get_num_threads",
    "gru",
    "gru_cell",
    "linear",
    "lstm",
    "lstm_cell",
    "multiply",
    "plan_for",
    "set_num_threads",
    "use_backend",
    # explain
    "Estimate",
    "Explanation",
    "LayerExplanation",
    "explain",
]
