"""What tests/test_examples_resnet50.py runs under torchrun: the example with one of the ways of sharing a model.

torchrun --nproc-per-node 2 train_resnet50.py ddp|fsdp FOLDER OPTIONS.json

One way in one run: a second process group would find what the first left in torchrun's store.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch

from examples.common import loop, outcome
from examples.common.processes import Processes
from examples.resnet50 import train


class Pressed(train.Classify):
    """Somebody presses Ctrl-C, and the second process alone sees it."""

    calls = 0

    def loss(self, model, batch):
        self.calls += 1
        if self.calls == 1.5 * self.steps(2) // 1 and os.environ["RANK"] == "1":
            signal.raise_signal(signal.SIGINT)
        return super().loss(model, batch)


def main():
    parallel, folder = sys.argv[1], Path(sys.argv[2])
    given = json.loads(Path(sys.argv[3]).read_text())
    given |= {"fonts": Path(given["fonts"]), "out": folder / parallel, "parallel": parallel}
    options = train.ResNetOptions(**given)
    if parallel == "fsdp":
        outcome.main(train.Classify, options)
        return
    options.out.mkdir(exist_ok=True)
    with Processes(options) as processes:
        try:
            loop.train(Pressed(options), processes)
        except loop.StoppedError:
            trained = loop.train(train.Classify(replace(options, resume=True)), processes)
        torch.save(trained.model.state_dict(), folder / f"ddp-{processes.rank}.pt")


if __name__ == "__main__":
    main()
    # Threads of torch that are still there at the end may abort the process.
    sys.stdout.flush()
    os._exit(0)
