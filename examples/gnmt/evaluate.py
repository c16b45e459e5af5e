"""Score and time a network that train.py has written, dense or compact.

python -m examples.gnmt.evaluate build/gnmt/compact.safetensors
"""

import typer

from examples.common.outcome import evaluation
from examples.gnmt.train import GNMTOptions, Translate

evaluate = evaluation(Translate, GNMTOptions)

if __name__ == "__main__":
    typer.run(evaluate)
