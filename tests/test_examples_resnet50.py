"""The example resnet50 and the loop that all training scripts share: small runs, stopped and gone on with."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

for package in ("torch", "matplotlib", "rich", "tqdm", "typer", "PIL", "threadpoolctl"):
    pytest.importorskip(package, reason=f"the example needs {package}")

import matplotlib  # noqa: E402
import torch  # noqa: E402
from PIL import Image, ImageFont  # noqa: E402

import gspattern as gs  # noqa: E402

ROOT = Path(__file__).parents[1]

from examples.common import loop, options, outcome  # noqa: E402
from examples.common.processes import Processes  # noqa: E402
from examples.resnet50 import data, glyphs, train  # noqa: E402
from examples.resnet50.model import ResNet  # noqa: E402

TINY = {
    "size": 32, "depth": 10, "width": 16, "batch": 48, "lr": 1.0, "prune_lr": 0.5,
    "epochs": 1, "prune_epochs": 1, "threads": 1, "pattern": "gs(8,8)", "sparsity": 0.8,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads(), gs.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before[0])
    gs.set_num_threads(before[1])


@pytest.fixture(scope="module", autouse=True)
def fonts(tmp_path_factory):
    """A few that come with matplotlib; their renderings are kept in a folder of the tests."""
    cache = tmp_path_factory.mktemp("glyphs")
    (cache / "fonts").mkdir()
    for path in (Path(matplotlib.get_data_path()) / "fonts" / "ttf").glob("*.ttf"):
        if path.name.startswith(("DejaVu", "STIXGeneral")):
            shutil.copy(path, cache / "fonts")
    before, glyphs.CACHE = glyphs.CACHE, cache
    yield cache / "fonts"
    glyphs.CACHE = before


def tiny(out: Path, **changes) -> train.ResNetOptions:
    out.mkdir(exist_ok=True)
    return train.ResNetOptions(**{**TINY, "out": out, "fonts": glyphs.CACHE / "fonts", **changes})


# ---------------------------------------------------------------- the network


def torchvision_state() -> dict[str, tuple[int, ...]]:
    """Names and shapes of torchvision's resnet50, written down from its documentation."""

    def norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
        keys = ("weight", "bias", "running_mean", "running_var")
        return {f"{name}.{key}": (channels,) for key in keys} | {f"{name}.num_batches_tracked": ()}

    state = {"conv1.weight": (64, 3, 7, 7), **norm("bn1", 64)}
    inputs = 64
    for stage, (count, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), start=1):
        for i in range(count):
            name = f"layer{stage}.{i}"
            state |= {f"{name}.conv1.weight": (width, inputs, 1, 1), **norm(f"{name}.bn1", width)}
            state |= {f"{name}.conv2.weight": (width, width, 3, 3), **norm(f"{name}.bn2", width)}
            state |= {f"{name}.conv3.weight": (4 * width, width, 1, 1)}
            state |= norm(f"{name}.bn3", 4 * width)
            if i == 0:
                state |= {f"{name}.downsample.0.weight": (4 * width, inputs, 1, 1)}
                state |= norm(f"{name}.downsample.1", 4 * width)
            inputs = 4 * width
    return state | {"fc.weight": (1000, 2048), "fc.bias": (1000,)}


def test_names_and_shapes_of_torchvision(tmp_path):
    with torch.device("meta"):
        model = ResNet()
    assert {key: tuple(v.shape) for key, v in model.state_dict().items()} == torchvision_state()
    assert sum(p.numel() for p in model.parameters()) == 25_557_032
    # v1.5: the stride is in the 3 x 3 convolution.
    assert model.layer2[0].conv1.stride == (1, 1)
    assert model.layer2[0].conv2.stride == (2, 2)
    assert model(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 1000)
    with torch.device("meta"):
        assert sum(p.numel() for p in ResNet(18).parameters()) == 11_689_512
        assert ResNet(18, 16, 7)(torch.empty(1, 3, 45, 61)).shape == (1, 7)
    with pytest.raises(ValueError, match="depth must be one of 10, 18"):
        ResNet(20)


def test_weights_of_a_checkpoint(tmp_path):
    """Old checkpoints have no num_batches_tracked; another number of classes gives a new last layer."""
    torch.manual_seed(5)
    other = ResNet(10, 16, 62)
    state = {k: v for k, v in other.state_dict().items() if not k.endswith("tracked")}
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "a.pth")
    task = train.Classify(tiny(tmp_path, weights=tmp_path / "a.pth"))
    for key, value in task.initial().state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key
    torch.save(
        {**state, "fc.weight": torch.ones(7, 128), "fc.bias": torch.ones(7)}, tmp_path / "b.pt"
    )
    task = train.Classify(tiny(tmp_path, weights=tmp_path / "b.pt"))
    assert task.initial().fc.weight.shape == (62, 128)


# ---------------------------------------------------------------- the loop


def parameters(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([v.double().flatten() for v in model.state_dict().values()])


def run(chosen: train.ResNetOptions, stop_at: tuple[float, ...] = ()) -> loop.Trained:
    """Train; after so many epochs somebody presses Ctrl-C, and the run goes on later."""
    calls = 0

    class Pressed(train.Classify):
        def loss(self, model, batch):
            nonlocal calls
            calls += 1
            if calls in {round(epochs * self.steps(1)) for epochs in stop_at}:
                signal.raise_signal(signal.SIGINT)
            return super().loss(model, batch)

    stops = 0
    while True:
        try:
            trained = loop.train(Pressed(chosen), Processes(chosen))
            assert stops == len(stop_at)
            return trained
        except loop.StoppedError:
            stops += 1
            chosen = replace(chosen, resume=True)


@pytest.mark.parametrize(
    ("changes", "stop_at"),
    [
        ({}, (0.3, 1, 1.2, 1.6)),  # the last step of an epoch, too
        ({"schedule": "admm", "criterion": "movement", "pattern": "gs(8,1)+scatter"}, (1.3,)),
        ({"schedule": "iterative", "scope": "global", "amp": True, "pattern": "irregular"}, (1.7,)),
    ],
    ids=["cubic", "admm", "iterative"],
)
def test_a_run_goes_on_with_the_same_bits(tmp_path, changes, stop_at):
    whole = run(tiny(tmp_path / "whole", **changes))
    parts = run(tiny(tmp_path / "parts", **changes), stop_at)
    assert torch.equal(parameters(whole.model), parameters(parts.model))
    keys = whole.rows[0].keys() - {"seconds"}
    assert [[row[k] for k in keys] for row in whole.rows] == [
        [row[k] for k in keys] for row in parts.rows
    ]
    assert whole.report.sparsity == pytest.approx(0.8, abs=0.01)
    assert (tmp_path / "parts" / "log.csv").read_text().count("\n") == 3
    with pytest.raises(SystemExit, match="add --resume to go on with it"):
        run(tiny(tmp_path / "whole", **changes))
    with pytest.raises(SystemExit, match=r"holds another run: sparsity was 0\.8 and is 0\.5"):
        run(tiny(tmp_path / "whole", resume=True, **changes, **{"sparsity": 0.5}))


def test_what_cannot_be_is_said_at_once(tmp_path):
    """Before the epochs of dense training, not behind them."""
    for changes, message in (
        ({"pattern": "gs(99,99)"}, "99"),
        ({"sparsity": 90.0}, "did you mean 0.9"),
        ({"exclude": ["layer9*"]}, "layer9"),
    ):
        with pytest.raises(ValueError, match=message):
            run(tiny(tmp_path, epochs=10**6, **changes))


def test_a_loss_that_is_no_number_stops(tmp_path):
    with pytest.raises(SystemExit, match="the loss is nan: a smaller learning rate"):
        run(tiny(tmp_path, lr=1e30))


def test_from_training_to_tables(tmp_path, capsys):
    chosen = tiny(tmp_path, pattern="gs(cpu)", epochs=4, prune_epochs=2, tensorboard=False)
    outcome.main(train.Classify, chosen)
    shown = capsys.readouterr().out
    assert "gs(cpu), 80.0% of the pruned weights are zeros" in shown
    report = json.loads((tmp_path / "result.json").read_text())
    # The kernels round otherwise than torch does, which may turn one image of 248.
    scores = report["scores"]
    assert scores["compact"]["top1"] == pytest.approx(scores["masked"]["top1"], abs=0.41)
    assert scores["compact"]["test_loss"] == pytest.approx(scores["masked"]["test_loss"], rel=1e-4)
    assert scores["dense"]["top1"] == report["epochs"][3]["top1"] > 5
    assert scores["masked"]["top1"] == report["epochs"][5]["top1"]
    right, count = np.array(report["tallies"]["compact"]["by_group"]).sum(axis=1)
    assert scores["compact"]["top1"] == pytest.approx(100 * right / count)
    for kind, size in report["bytes"].items():
        assert size == (tmp_path / f"{kind}.safetensors").stat().st_size
        assert report["peak_memory"][kind] > 0
    assert report["latency"].keys() == {"dense", "dense, channels last", "compact", "fastest"}
    assert report["bytes"]["compact"] <= report["bytes"]["fastest"] < report["bytes"]["dense"]
    assert all(0 < t["best"] <= t["median"] <= t["p99"] for t in report["latency"].values())
    assert (report["pattern"], report["seed"]) == ("gs(cpu)", 0)
    assert report["machine"]["name"] == gs.cpu_info().name
    with (tmp_path / "log.csv").open() as file:
        assert [row["phase"] for row in csv.DictReader(file)] == ["dense"] * 4 + ["prune"] * 2
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    outcome.main(train.Classify, replace(chosen, resume=True))
    assert "this run has ended" in capsys.readouterr().out

    # Its weights are where another pattern begins: nothing is trained anew, and the dense score is the same.
    again = tiny(
        tmp_path / "next", weights=tmp_path / "dense.safetensors", epochs=0, prune_epochs=0,
        sparsity=0.5,
    )  # fmt: skip
    trained = run(again)
    assert trained.rows[0]["top1"] == scores["dense"]["top1"]
    assert trained.report.sparsity == pytest.approx(0.5, abs=0.01)

    from examples.resnet50 import evaluate

    evaluate.evaluate(tmp_path / "compact.safetensors", threads=1)
    assert f"{scores['compact']['top1']:.4f}" in capsys.readouterr().out


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trained = run(tiny(tmp_path, tensorboard=True, pattern="dense", epochs=2))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    values = [event.value for event in events.Scalars("top1")]
    assert values == pytest.approx([row["top1"] for row in trained.rows])
    assert trained.report is None


@pytest.mark.slow
def test_two_processes(tmp_path, fonts):
    """DistributedDataParallel, stopped on the way, and FSDP2 train the same; the first process finishes."""
    script = ROOT / "tests" / "torchrun" / "train_resnet50.py"
    (tmp_path / "options.json").write_text(json.dumps({**TINY, "fonts": str(fonts)}))
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
    environment = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path)}
    for parallel in ("ddp", "fsdp"):
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
             script, parallel, tmp_path, tmp_path / "options.json"],
            cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    ddp = torch.load(tmp_path / "ddp-0.pt")
    fsdp = torch.load(tmp_path / "fsdp" / "checkpoint.pt")["model"]
    for key, value in ddp.items():
        assert torch.allclose(value, fsdp[key], rtol=1e-3, atol=1e-5), key
        assert torch.equal(value == 0, fsdp[key] == 0), key
    report = json.loads((tmp_path / "fsdp" / "result.json").read_text())
    assert report["sparsity"] == pytest.approx(0.8, abs=0.01)
    assert len(report["epochs"]) == 2
    assert report["scores"]["masked"]["top1"] == report["epochs"][1]["top1"]
    assert report["scores"]["compact"]["top1"] == pytest.approx(
        report["epochs"][1]["top1"], abs=0.41
    )


# ---------------------------------------------------------------- data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of plain colours in ImageNet's layout: 9 images to train with, 5 to test with."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for side, count in (("train", 9), ("val", 5)):
        for i in range(count):
            name = root / side / ("blue", "red")[i % 2]
            name.mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 60, (40 + i, 50, 3), np.uint8)
            pixels[..., 2 if i % 2 == 0 else 0] += 180
            Image.fromarray(pixels).convert("L" if i == 8 else "RGB").save(name / f"{i}.png")
    return root


def test_folders_of_images(tmp_path, folder):
    chosen = tiny(
        tmp_path, data=str(folder), size=32, batch=4, workers=0, pattern="block(4,4)", epochs=3
    )
    task = train.Classify(chosen)
    assert (task.data.classes, task.data.samples, task.steps(1)) == (2, 9, 2)
    assert task.build().fc.out_features == 2
    batches = list(task.batches(0, 0, 0, 1))
    again = list(task.batches(0, 1, 0, 1))
    assert torch.equal(batches[1][0], again[0][0])
    assert batches[0][0].shape == (4, 3, 32, 32)
    assert not torch.equal(batches[0][0], next(iter(task.batches(1, 0, 0, 1)))[0])
    tests = list(task.test_batches(0, 1))
    assert [len(y) for _, y, _ in tests] == [4, 1]
    # Blue is the first class: its last plane is bright.
    for x, y, _ in tests:
        assert ((x[:, 2] > x[:, 0]).float().mean(dim=(1, 2)).round() == 1 - y).all()
    with_workers = data.FolderData(folder, 32, 0, workers=1)
    x, y = next(iter(with_workers.train(0, data.order(9, 0, 0, 4, 0, 1))))
    assert torch.equal(x, batches[0][0])
    assert torch.equal(y, batches[0][1])
    assert len(run(chosen).rows) == 4
    few = train.Classify(replace(chosen, test_images=2))
    assert [y.tolist() for _, y, _ in few.test_batches(0, 1)] == [[0, 0]]
    with pytest.raises(SystemExit, match="holds no folders train/CLASS/"):
        data.FolderData(tmp_path / "nothing", 32, 0, 0)


def test_augmentation():
    image = Image.fromarray(
        np.arange(60 * 80 * 3, dtype=np.uint32).reshape(60, 80, 3).astype(np.uint8)
    )
    first, second, other = (
        data.random_crop(image, 24, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert first.shape == (24, 24, 3)
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)
    # A square of 224 from one of 256 is cut, not scaled.
    square = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    assert np.array_equal(data.centre(Image.fromarray(square), 224), square[16:240, 16:240])


@pytest.mark.parametrize("ranks", [1, 3])
def test_processes_share_an_epoch(ranks):
    shares = [data.order(50, 0, 7, 4, rank, ranks) for rank in range(ranks)]
    seen = [row for share in shares for batch in share for row in batch]
    assert len({len(share) for share in shares}) == 1
    assert len(seen) == len(set(seen)) == 50 // (4 * ranks) * 4 * ranks
    assert shares != [data.order(50, 0, 8, 4, rank, ranks) for rank in range(ranks)]
    turns = [data.in_turn(50, 4, rank, ranks) for rank in range(ranks)]
    assert sorted(row for share in turns for batch in share for row in batch) == list(range(50))


def test_glyphs(fonts):
    first, second = glyphs.load(64, fonts)
    assert first.images.shape[1:] == (64, 64)
    assert not set(first.designs.tolist()) & set(second.designs.tolist())
    assert torch.equal(first.labels[:62], torch.arange(62))
    small, _ = glyphs.load(32, fonts)
    assert small.images.shape == (*first.images.shape[:1], 32, 32)
    # o and O are drawn alike but for their size, on one baseline.
    font = ImageFont.truetype(fonts / "DejaVuSans.ttf", 40)
    drawn = dict(zip(glyphs.CLASSES, glyphs.render(font), strict=True))
    rows = {c: np.flatnonzero(drawn[c].max(axis=1) > 128) for c in "oOx"}
    assert rows["o"][0] > rows["O"][0] + 3
    assert abs(int(rows["o"][-1]) - int(rows["O"][-1])) <= 1
    same = glyphs.folded()
    assert same[glyphs.CLASSES.index("o")] == same[glyphs.CLASSES.index("0")]
    assert same[glyphs.CLASSES.index("a")] != same[glyphs.CLASSES.index("A")]


def test_clones_of_a_font_come_to_the_same_side():
    generator = np.random.default_rng(0)
    looks = (generator.random((12, 62, 64, 64)) < 0.2).astype(np.uint8) * 250
    found = [(f"family {i}", look) for i, look in enumerate(looks)]
    found += [("clone of 3", looks[3] // 2), ("family 5", looks[0]), ("clone of 5", looks[5])]
    fonts = glyphs.designs(found)
    design = {font.family: font.design for font in fonts}
    assert design["clone of 3"] == design["family 3"]
    assert design["clone of 5"] == design["family 5"] == design["family 0"]
    assert len(set(design.values())) == 11
    held = glyphs.held_out(fonts)
    assert 1 <= sum(font.design in held for font in fonts) <= 3


def test_missing_fonts_name_the_packages(tmp_path, monkeypatch):
    monkeypatch.setattr(glyphs, "CACHE", tmp_path)
    monkeypatch.setattr(glyphs, "INSTALLED", tmp_path)
    with pytest.raises(SystemExit) as error:
        glyphs.load(64, None)
    assert "examples.resnet50.data prepare" in str(error.value)
    assert "apt-get install fonts-3270 fonts-adf-accanthis" in str(error.value)
    assert len(glyphs.PACKAGES) == 45


# ---------------------------------------------------------------- the page


def test_commands_of_the_readme(monkeypatch):
    """They run as written: every flag exists and takes its value."""
    text = (ROOT / "examples" / "resnet50" / "README.md").read_text("utf-8")
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    commands = [
        shlex.split(line)
        for line in lines
        if "-m examples.resnet50.train" in line and line.startswith("    ")
    ]
    assert len(commands) >= 4
    for words in commands:
        given = []
        monkeypatch.setattr(sys, "argv", words[words.index("examples.resnet50.train") :])
        with pytest.raises(SystemExit) as done:
            options.run(given.append, train.ResNetOptions)
        assert done.value.code == 0
        assert isinstance(given[0], train.ResNetOptions)
