"""Score and time a network that train.py has written, dense or compact.

python -m examples.jasper.evaluate build/jasper/compact.safetensors
"""

import typer

from examples.common.outcome import evaluation
from examples.jasper.train import JasperOptions, Transcribe

evaluate = evaluation(Transcribe, JasperOptions)

if __name__ == "__main__":
    typer.run(evaluate)
