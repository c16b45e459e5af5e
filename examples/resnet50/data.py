"""Images to train with: folders as of ImageNet, or rendered characters (see glyphs.py).

`python -m examples.resnet50.data prepare` fetches the fonts of the latter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import typer
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from examples.common.processes import prepare_worker
from examples.resnet50 import glyphs

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".webp")
MEAN, DEVIATION = (
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)  # of ImageNet, as every checkpoint expects

Batch = tuple[torch.Tensor, ...]
Key = tuple[int, int]  # epoch and number of an image


class Data(Protocol):
    """Images of a number of classes.

    Attributes
    ----------
    classes : int
    samples : int
        To train with.
    groups : int
        Of test samples, which belong together: scores are kept for each.
    same : Tensor of int64, [classes]
        For every class the one that it is taken for where twins are folded.
    """

    classes: int
    samples: int
    groups: int
    same: torch.Tensor

    def train(self, epoch: int, batches: list[list[int]]) -> Iterator[Batch]:
        """Images [N, 3, S, S] and labels [N] of these samples, as they are seen in an epoch."""

    def test(self, batches: list[list[int]]) -> Iterator[Batch]:
        """Images, labels and groups [N]."""

    def test_samples(self) -> int: ...


def order(samples: int, seed: int, epoch: int, batch: int, rank: int, ranks: int) -> list[list[int]]:  # fmt: skip
    """The samples of every batch of an epoch for one process of several; what does not fill a step is left out."""
    generator = np.random.default_rng((seed, epoch))
    steps = samples // (batch * ranks)
    chosen = generator.permutation(samples)[: steps * batch * ranks]
    return chosen.reshape(steps, ranks, batch)[:, rank].tolist()


def in_turn(samples: int, batch: int, rank: int, ranks: int) -> list[list[int]]:
    """All samples in order, in batches that processes take in turn."""
    starts = range(rank * batch, samples, ranks * batch)
    return [list(range(start, min(start + batch, samples))) for start in starts]


class GlyphData:
    """Rendered characters; a group is a design that training has not seen."""

    def __init__(self, size: int, fonts: Path | None, seed: int) -> None:
        self.classes = len(glyphs.CLASSES)
        self.same = glyphs.folded()
        self.seed = seed
        self._train, test = glyphs.load(size, fonts)
        self.samples = len(self._train.labels)
        self._labels = test.labels
        names, self._groups = test.designs.unique(return_inverse=True)
        self.groups = len(names)
        # The same for every seed, epoch and batch size.
        self._images = glyphs.jittered(test.images, torch.Generator().manual_seed(0))

    def train(self, epoch: int, batches: list[list[int]]) -> Iterator[Batch]:
        for rows in batches:
            # Of its own for each batch, whichever comes first: their first sample tells them apart.
            key = np.random.SeedSequence((self.seed, epoch, rows[0])).generate_state(1)[0]
            generator = torch.Generator().manual_seed(int(key))
            images = glyphs.jittered(self._train.images[rows], generator)
            yield glyphs.planes(images), self._train.labels[rows]

    def test(self, batches: list[list[int]]) -> Iterator[Batch]:
        for rows in batches:
            yield glyphs.planes(self._images[rows]), self._labels[rows], self._groups[rows]

    def test_samples(self) -> int:
        return len(self._labels)


class FolderData:
    """ImageNet's layout: ROOT/train/CLASS/*.jpg and ROOT/val/CLASS/*.jpg, with the usual augmentation."""

    groups = 1

    def __init__(self, root: Path, size: int, seed: int, workers: int) -> None:
        names = sorted(path.name for path in (root / "train").glob("*") if path.is_dir())
        if not names:
            raise SystemExit(
                f"{root} holds no folders train/CLASS/ with images; give --data a folder of that layout, "
                "or --data glyphs"
            )
        self.classes = len(names)
        self.same = torch.arange(self.classes)
        self._size, self._seed, self._workers = size, seed, workers
        self._train, self._test = (self._listed(root / side, names) for side in ("train", "val"))
        self.samples = len(self._train)

    @staticmethod
    def _listed(folder: Path, names: list[str]) -> list[tuple[Path, int]]:
        files = [
            (path, label)
            for label, name in enumerate(names)
            for path in sorted((folder / name).rglob("*"))
            if path.suffix.lower() in SUFFIXES
        ]
        if not files:
            raise SystemExit(f"{folder} holds no images in folders of the classes of train")
        return files

    def train(self, epoch: int, batches: list[list[int]]) -> Iterator[Batch]:
        keys = [[(epoch, index) for index in batch] for batch in batches]
        images = _Images(self._train, self._size, self._seed)
        return self._loader(images, keys)

    def test(self, batches: list[list[int]]) -> Iterator[Batch]:
        keys = [[(0, index) for index in batch] for batch in batches]
        for x, y in self._loader(_Images(self._test, self._size, None), keys):
            yield x, y, torch.zeros_like(y)

    def _loader(self, images: _Images, keys: list[list[Key]]) -> Iterator[Batch]:
        loader = DataLoader(
            images,
            batch_sampler=keys,
            num_workers=self._workers,
            worker_init_fn=prepare_worker,
            pin_memory=torch.cuda.is_available(),
        )
        return ((x, y) for x, y in loader)

    def test_samples(self) -> int:
        return len(self._test)


class _Images(Dataset[tuple[torch.Tensor, int]]):
    """Image files by epoch and number, augmented if there is a seed."""

    def __init__(self, files: list[tuple[Path, int]], size: int, seed: int | None) -> None:
        self.files, self.size, self.seed = files, size, seed

    def __getitem__(self, key: Key) -> tuple[torch.Tensor, int]:
        path, label = self.files[key[1]]
        with Image.open(path) as file:
            image = file.convert("RGB")
        if self.seed is None:
            array = centre(image, self.size)
        else:
            array = random_crop(image, self.size, np.random.default_rng((self.seed, *key)))
        x = (array.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(DEVIATION)
        return torch.from_numpy(x.transpose(2, 0, 1).copy()), label


def random_crop(image: Image.Image, size: int, generator: np.random.Generator) -> np.ndarray:
    """A part of 8 to 100 % of the area, sides 3:4 to 4:3, at `size`, mirrored every other time; uint8 [S, S, 3]."""
    width, height = image.size
    box = None
    for _ in range(10):
        area = generator.uniform(0.08, 1) * width * height
        ratio = math.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = generator.integers(width - w + 1), generator.integers(height - h + 1)
            box = (left, top, left + w, top + h)
            break
    array = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))
    return array[:, ::-1] if generator.integers(2) else array


def centre(image: Image.Image, size: int) -> np.ndarray:
    """The middle: the shorter side is made 8/7 of `size` (256 for 224), and the centre is cut out."""
    width, height = image.size
    side = min(width, height) * 7 / 8
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))


app = typer.Typer(add_completion=False)


@app.callback()
def _menu() -> None:
    """Data of the example."""


@app.command()
def prepare() -> None:
    """Fetch the fonts for --data glyphs into a cache."""
    glyphs.prepare()


if __name__ == "__main__":
    app()
