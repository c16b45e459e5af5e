"""Score and time a network that train.py has written, dense or compact.

python -m examples.resnet50.evaluate build/resnet50/compact.safetensors
"""

import typer

from examples.common.outcome import evaluation
from examples.resnet50.train import Classify, ResNetOptions

evaluate = evaluation(Classify, ResNetOptions)

if __name__ == "__main__":
    typer.run(evaluate)
