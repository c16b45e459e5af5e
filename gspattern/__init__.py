"""Load-balanced gather-scatter (GS) patterns for sparse neural networks."""
