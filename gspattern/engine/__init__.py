"""A cycle model of the processor of GS patterns: a scratchpad in banks and an engine that gathers from it.

Nobody can buy it; here it can be studied. `simulate` runs a matrix or a layer bundle by bundle (csrc/engine) and counts
cycles; `estimate` is a formula for the same; `replay` runs any addresses. docs/ENGINE.md says what is modelled and what
is not. `gather_bench` measures what an ordinary CPU does instead.
"""

from gspattern.engine.banks import BankTimeline, BankView, view
from gspattern.engine.bundles import ConvLayer, LSTMLayer
from gspattern.engine.cycles import (
    Cycles,
    Replay,
    estimate,
    gather_cycles,
    replay,
    simulate,
    utilization,
)
from gspattern.engine.gathers import GatherBench, GatherRate, gather_bench, make_indices
from gspattern.engine.networks import LayerCycles, network_cycles, total_cycles
from gspattern.engine.processor import PRESETS, Engine
from gspattern.engine.streams import (
    IndexStream,
    SpatterReplay,
    SpatterRun,
    read_suite,
    replay_run,
    stream,
    write_suite,
)

__all__ = [
    "PRESETS",
    "BankTimeline",
    "BankView",
    "ConvLayer",
    "Cycles",
    "Engine",
    "GatherBench",
    "GatherRate",
    "IndexStream",
    "LSTMLayer",
    "LayerCycles",
    "Replay",
    "SpatterReplay",
    "SpatterRun",
    "estimate",
    "gather_bench",
    "gather_cycles",
    "make_indices",
    "network_cycles",
    "read_suite",
    "replay",
    "replay_run",
    "simulate",
    "stream",
    "total_cycles",
    "utilization",
    "view",
    "write_suite",
]
