"""Characters rendered from the fonts of Debian packages: a data set of 62 classes that needs no download.

Fonts are split into training and test by design, not by name: families of which two files look alike (Debian has
clones of many) come to the same side. A clean rendering of every character is made once, at 64 x 64, and kept; every
epoch sees it turned, scaled, moved and with noise.
"""

from __future__ import annotations

import hashlib
import os
import string
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch.nn.functional import affine_grid, grid_sample, interpolate
from tqdm import tqdm

CLASSES = string.digits + string.ascii_uppercase + string.ascii_lowercase
# Characters that many fonts draw alike: a prediction of one for another of the same set counts as right when folded.
TWINS = ("0Oo", "1Il", "Cc", "Ss", "Vv", "Ww", "Xx", "Zz", "Pp", "Kk", "Uu")

PACKAGES = Path(__file__).with_name("fonts.txt").read_text().split()


CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gspattern" / "glyphs"
INSTALLED = Path("/usr/share/fonts")

SIZE = 64  # of clean renderings, which other sizes are made from
ALIKE = 0.95  # cosine between the renderings of two files above which their families are one design
LEGIBLE = 0.5  # share of a font's glyphs that must look most like the median of their own class
TEST_SHARE = 0.2  # of the font files
LEAST_DESIGNS = 20  # in training and test together, unless fonts are named


@dataclass(frozen=True)
class Font:
    """Clean renderings of one file.

    Attributes
    ----------
    family : str
    design : int
        Families that look alike have the same number.
    glyphs : ndarray of uint8, [62, 64, 64]
        255 is ink.
    """

    family: str
    design: int
    glyphs: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Glyphs:
    """Renderings of one side of the split: uint8 [samples, size, size], their classes and their designs."""

    images: torch.Tensor
    labels: torch.Tensor
    designs: torch.Tensor


def prepare() -> None:
    """Fetch the font packages with apt-get and unpack them into the cache; nothing is installed."""
    fonts = CACHE / "fonts"
    fonts.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for package in tqdm(PACKAGES, desc="packages"):
            done = subprocess.run(
                ["apt-get", "download", "-q", package], cwd=folder, capture_output=True, text=True
            )
            if done.returncode:
                print(f"{package} cannot be fetched: {done.stderr.strip()}", file=sys.stderr)
        for file in Path(folder).glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", file, fonts / file.stem], check=True)
    print(f"{len(font_files(fonts))} font files in {fonts}")


def font_files(folder: Path) -> list[Path]:
    """Every TrueType and OpenType file below a folder, once."""
    files = {path.resolve() for path in folder.rglob("*") if path.is_file()}
    return sorted(path for path in files if path.suffix.lower() in (".ttf", ".otf"))


def load(size: int, fonts: Path | None) -> tuple[Glyphs, Glyphs]:
    """Training and test renderings, by default from the cache of `prepare`, or else from what is installed.

    Raises
    ------
    SystemExit
        If there are too few fonts, with the packages that have them.
    """
    folder = fonts or (CACHE / "fonts" if (CACHE / "fonts").exists() else INSTALLED)
    all_ = designs(read_fonts(folder))
    count = len({font.design for font in all_})
    least = 2 if fonts else LEAST_DESIGNS
    if count < least:
        raise SystemExit(
            f"--data glyphs needs fonts of at least {least} designs, and {folder} has {count}. Run\n"
            "    python -m examples.resnet50.data prepare\n"
            "which fetches Debian packages into a cache without installing them, or install them:\n"
            f"    apt-get install {' '.join(PACKAGES)}\n"
            "or name a folder of fonts with --fonts"
        )
    test = held_out(all_)
    sides = [
        [font for font in all_ if (font.design in test) == is_test] for is_test in (False, True)
    ]
    return _glyphs(sides[0], size), _glyphs(sides[1], size)


def _glyphs(fonts: list[Font], size: int) -> Glyphs:
    images = torch.from_numpy(np.concatenate([font.glyphs for font in fonts]))
    if size != SIZE:
        scaled = interpolate(images[:, None], (size, size), mode="bilinear", antialias=True)
        images = scaled[:, 0]
    return Glyphs(
        images,
        torch.arange(len(CLASSES)).repeat(len(fonts)),
        torch.tensor([font.design for font in fonts]).repeat_interleave(len(CLASSES)),
    )


# ---------------------------------------------------------------------- rendering


def read_fonts(folder: Path) -> list[tuple[str, npt.NDArray[np.uint8]]]:
    """Family and glyphs of every legible font file in a folder; kept in the cache, since it takes a while."""
    files = font_files(folder)
    key = hashlib.sha256("\n".join(f"{f} {f.stat().st_size}" for f in files).encode()).hexdigest()
    cache = CACHE / f"{key[:16]}.npz"
    if cache.exists():
        with np.load(cache) as arrays:
            return list(zip(arrays["families"].tolist(), arrays["glyphs"], strict=True))
    found = []
    for file in tqdm(files, desc="rendering fonts", unit="font"):
        try:
            font = ImageFont.truetype(file, round(0.8 * SIZE))
            glyphs = render(font)
        except OSError:
            continue  # no outlines, or none that FreeType reads
        family = font.getname()[0] or file.stem
        # A font in which characters are missing, or all the same, is a font of something else.
        if glyphs.any(axis=(1, 2)).all() and len(np.unique(glyphs, axis=0)) > len(CLASSES) - 15:
            found.append((family, glyphs))
    found = _legible(found)
    if found:
        CACHE.mkdir(parents=True, exist_ok=True)
        families, glyphs = zip(*found, strict=True)
        new = cache.with_suffix(f".{os.getpid()}.npz")
        np.savez(new, families=np.array(families), glyphs=np.stack(glyphs))
        new.replace(cache)
    return found


def render(font: ImageFont.FreeTypeFont) -> npt.NDArray[np.uint8]:
    """All characters on one baseline, uint8 [62, 64, 64]: o and O differ in size only."""
    glyphs = np.zeros((len(CLASSES), SIZE, SIZE), np.uint8)
    for i, character in enumerate(CLASSES):
        image = Image.new("L", (SIZE, SIZE))
        ImageDraw.Draw(image).text(
            (SIZE / 2, 0.74 * SIZE), character, fill=255, font=font, anchor="ms"
        )
        glyphs[i] = np.asarray(image)
    return glyphs


def _legible(
    found: list[tuple[str, npt.NDArray[np.uint8]]],
) -> list[tuple[str, npt.NDArray[np.uint8]]]:
    """Those of which most glyphs lie nearest to the median image of their own class."""
    if not found:
        return []
    glyphs = np.stack([_coarse(own, 16) for _, own in found])
    median = np.median(glyphs, axis=0)
    kept = []
    for (family, own), flat in zip(found, glyphs, strict=True):
        distance = (flat**2).sum(1)[:, None] - 2 * flat @ median.T + (median**2).sum(1)
        if (distance.argmin(axis=1) == np.arange(len(CLASSES))).mean() >= LEGIBLE:
            kept.append((family, own))
    return kept


def _coarse(glyphs: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.float32]:
    """Renderings in fewer pixels, [62, size * size]: shapes count, not where an edge is exactly."""
    step = SIZE // size
    blocks = glyphs.reshape(-1, size, step, size, step)
    return blocks.mean(axis=(2, 4), dtype=np.float32).reshape(len(glyphs), -1)


# ---------------------------------------------------------------------- the split


def designs(found: list[tuple[str, npt.NDArray[np.uint8]]]) -> list[Font]:
    """Fonts with the number of their design: families are linked where two files look alike."""
    if not found:
        return []
    families = sorted({family for family, _ in found})
    root = {family: family for family in families}

    def top(family: str) -> str:
        while root[family] != family:
            family = root[family]
        return family

    flat = np.stack([_coarse(glyphs, 32).reshape(-1) for _, glyphs in found])
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    for i, j in np.argwhere(flat @ flat.T > ALIKE):
        first, second = sorted((top(found[i][0]), top(found[j][0])))
        root[second] = first
    numbers = {name: i for i, name in enumerate(sorted({top(family) for family in families}))}
    return [Font(family, numbers[top(family)], glyphs) for family, glyphs in found]


def held_out(fonts: list[Font]) -> set[int]:
    """The designs held out: in a fixed random order, as many as fit into a fifth of the files."""
    files = dict.fromkeys(sorted({font.design for font in fonts}), 0)
    for font in fonts:
        files[font.design] += 1
    order = sorted(files, key=lambda design: hashlib.sha256(f"{design}".encode()).digest())
    held: set[int] = set()
    left = TEST_SHARE * len(fonts)
    for design in order:
        if files[design] <= left:
            held.add(design)
            left -= files[design]
    return held or {min(files, key=lambda design: files[design])}


# ---------------------------------------------------------------------- batches


def jittered(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Renderings uint8 [N, S, S] turned, scaled, moved and with noise, as float32 [N, S, S]."""
    n = len(images)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.rand(n, *shape, generator=generator) * (high - low) + low

    angle, shear = uniform(-0.2, 0.2), uniform(-0.2, 0.2)
    scale = uniform(0.85, 1.2)
    matrix = torch.stack(
        [
            torch.stack([angle.cos() / scale, (shear - angle.sin()) / scale, uniform(-0.12, 0.12)], 1),
            torch.stack([angle.sin() / scale, angle.cos() / scale, uniform(-0.12, 0.12)], 1),
        ],
        dim=1,
    )  # fmt: skip
    x = images[:, None].float() / 255
    x = grid_sample(x, affine_grid(matrix, list(x.shape), align_corners=False), align_corners=False)
    noise = torch.randn(x.shape, generator=generator) * uniform(0, 0.15, 1, 1, 1)
    return (x * uniform(0.5, 1, 1, 1, 1) + noise)[:, 0]


def planes(x: torch.Tensor) -> torch.Tensor:
    """Images [N, S, S] centred, as [N, 3, S, S]: the network sees colours, and all are the same."""
    return ((x - 0.15) / 0.3)[:, None].expand(-1, 3, -1, -1).contiguous()


def folded() -> torch.Tensor:
    """The class that stands for each class when twins are folded, int64 [62]."""
    stands = list(range(len(CLASSES)))
    for twins in TWINS:
        for character in twins:
            stands[CLASSES.index(character)] = CLASSES.index(twins[0])
    return torch.tensor(stands)
