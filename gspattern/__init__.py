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
from gspattern.matrices import (
    BlockMatrix,
    CSRMatrix,
    GSMatrix,
    Matrix,
    SizeTable,
    as_matrix,
    encode,
    from_csr,
    from_dense,
    from_matrix,
    sizes,
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

# encode
# plan, multiply
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
    "BlockMatrix",
    "CSRMatrix",
    "GSMatrix",
    "Matrix",
    "SizeTable",
    "as_matrix",
    "encode",
    "from_csr",
    "from_dense",
    "from_matrix",
    "sizes",
    # files
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
    "cpu_info",
    "get_num_threads",
    "linear",
    "multiply",
    "plan_for",
    "set_num_threads",
    "use_backend",
]
