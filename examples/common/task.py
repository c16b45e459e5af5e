"""What an example brings to the training loop: model, data, loss, score, optimiser."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from safetensors.torch import load_file, load_model
from torch import nn

from examples.common.options import Options

Phase = Literal["dense", "prune"]
Tally = dict[str, torch.Tensor]  # sums over samples, float64, of any shape


class Task(ABC):
    """A model and how it is trained and scored; `loop.train` does the rest.

    Nothing here keeps a state that changes: a batch, its augmentation and the learning rate follow from seed, epoch
    and step alone, and so a run can go on at any step with the same bits. Workers of a DataLoader need
    `processes.prepare_worker`.

    Attributes
    ----------
    metric : str
        The one of `metrics` that is shown first.
    build : callable
        Makes the model without its weights mattering; a function or `functools.partial` that can be pickled, since
        peak memory is measured in a process of its own.
    clip : float or None
        The largest norm of the gradient.
    """

    metric: ClassVar[str]
    build: Callable[[], nn.Module]
    clip: float | None = None

    def __init__(self, options: Options) -> None:
        self.options = options

    def initial(self) -> nn.Module:
        """The model as training begins: from the seed, or from --weights."""
        torch.manual_seed(self.options.seed)
        model = self.build()
        weights = self.options.weights
        if weights is not None and weights.suffix == ".safetensors":
            load_model(model, weights)
        elif weights is not None:
            model.load_state_dict(read_weights(weights))
        return model

    def blocks(self, model: nn.Module) -> Iterable[nn.Module]:
        """The parts that FSDP2 shards one by one, in the order of the forward pass."""
        return ()

    @abstractmethod
    def optimizer(self, model: nn.Module, phase: Phase, ranks: int) -> torch.optim.Optimizer:
        """A new one, at the highest learning rates of a phase, when so many processes share a step."""

    @abstractmethod
    def rate(self, phase: Phase, step: int, steps: int) -> float:
        """The factor of the learning rates at a step of a phase of so many steps."""

    @abstractmethod
    def steps(self, ranks: int) -> int:
        """Steps of an epoch when so many processes share it."""

    @abstractmethod
    def batches(self, epoch: int, first: int, rank: int, ranks: int) -> Iterable[Any]:
        """The batches of an epoch from number `first` on, for one process of several.

        A batch is a tensor, or tuples, lists and dicts of tensors. Epochs of pruning come after those of dense
        training and go on counting.
        """

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """The loss of a batch, to be minimised."""

    @abstractmethod
    def test_batches(self, rank: int, ranks: int) -> Iterable[Any]:
        """The batches to score by, for one process of several."""

    @abstractmethod
    def tally(self, model: nn.Module, batch: Any) -> Tally:
        """Sums over a batch from which `metrics` follow, such as right answers and samples."""

    @abstractmethod
    def metrics(self, tally: Tally) -> dict[str, float]:
        """Figures by name, from the sums over all samples."""

    @abstractmethod
    def example(self) -> tuple[Any, ...]:
        """What the model is called with for one sample."""

    def call(self, model: nn.Module) -> Callable[[], Any]:
        """What is timed: the whole answer for one sample."""
        return partial(model, *self.example())

    def dense_forms(self, model: nn.Module) -> dict[str, Callable[[], Any]]:
        """`call` of the dense model by names, each a way in which torch may be fastest."""
        return {"dense": self.call(model)}

    def figures(self, model: nn.Module) -> dict[str, float]:
        """Scores that take too long to be computed after every epoch, by name."""
        return {}


def read_weights(path: Path) -> Mapping[str, torch.Tensor]:
    """A state_dict from a file of torch.save (alone or inside a checkpoint) or of safetensors."""
    if path.suffix == ".safetensors":
        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("state_dict", "model"):
        state = state.get(key, state)
    return {key.removeprefix("module."): value for key, value in state.items()}
