import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("soundfile")
import soundfile
from pytorch_optimizer import NovoGrad

from examples.jasper import speech
from examples.jasper.data import Manifest, batches, faster, in_order, read
from examples.jasper.decode import decode, encode, greedy, prefix_search
from examples.jasper.features import RATE, log_mel, masked, mel_bands
from examples.jasper.model import BLANK, CHARACTERS, Jasper

ROOT = Path(__file__).parents[1]


# ---------------------------------------------------------------------- model


def test_the_large_model_has_the_size_and_the_names_of_nvidias():
    with torch.device("meta"):
        model = Jasper("10x5")
    shapes = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    expected = {"decoder.layers.0.weight": (29, 1024, 1), "decoder.layers.0.bias": (29,)}

    def convolved(name, number, inputs, outputs, taps):
        expected[f"{name}.{number}.weight"] = (outputs, inputs, taps)
        for statistic in ("weight", "bias", "running_mean", "running_var"):
            expected[f"{name}.{number + 1}.{statistic}"] = (outputs,)
        expected[f"{name}.{number + 1}.num_batches_tracked"] = ()

    widths = [256, 256, 256, 384, 384, 512, 512, 640, 640, 768, 768]
    convolved("encoder.layers.0.conv", 0, 64, 256, 11)
    for i, taps in enumerate((11, 11, 13, 13, 17, 17, 21, 21, 25, 25), start=1):
        for repeat in range(5):
            inputs = widths[i - 1] if repeat == 0 else widths[i]
            # Between convolutions stand an activation and dropout.
            convolved(f"encoder.layers.{i}.conv", 4 * repeat, inputs, widths[i], taps)
        for pane in range(i):
            convolved(f"encoder.layers.{i}.res.{pane}", 0, widths[pane], widths[i], 1)
    convolved("encoder.layers.11.conv", 0, 768, 896, 29)
    convolved("encoder.layers.12.conv", 0, 896, 1024, 1)
    assert shapes == expected
    assert sum(p.numel() for p in model.parameters()) == 332_632_349


def test_padding_changes_nothing():
    torch.manual_seed(0)
    model = Jasper("tiny").eval()
    x, lengths = torch.randn(3, 64, 50), torch.tensor([50, 31, 40])
    together, frames = model(x, lengths)
    assert frames.tolist() == [25, 16, 20]
    for row, length in enumerate(lengths):
        alone, none = model(x[row : row + 1, :, :length])
        assert none is None
        torch.testing.assert_close(together[row, : frames[row]], alone[0])


# ---------------------------------------------------------------------- decoding


def text_of(path):
    return decode([c for c, _ in itertools.groupby(path) if c != BLANK])


def test_prefix_search_finds_the_likeliest_text_of_all():
    generator = np.random.default_rng(0)
    differ = 0
    for _ in range(20):
        chances = np.full((5, BLANK + 1), -np.inf, np.float32)
        classes = [1, 2, BLANK]
        chances[:, classes] = np.log(generator.dirichlet([0.8] * 3, 5))
        sums = {}
        for path in itertools.product(classes, repeat=5):
            value = np.exp(sum(chances[t, c].astype(float) for t, c in enumerate(path)))
            sums[text_of(path)] = sums.get(text_of(path), 0) + value
        best = max(sums, key=sums.get)
        assert prefix_search(chances, beam=1000, least=-1e9) == best
        differ += greedy(torch.from_numpy(chances)[None])[0] != best
    assert differ  # or the test would not tell the two apart


def test_greedy_joins_repeats_and_stops_at_the_length():
    path = [*encode("aab"), BLANK, *encode("b cc")]
    chances = torch.nn.functional.one_hot(torch.tensor([path, path]), BLANK + 1).float()
    assert greedy(chances, torch.tensor([8, 3])) == ["abb c", "ab"]
    assert encode("It's 5 O'Clock") == encode("it's  o'clock")
    assert decode(encode(CHARACTERS)) == CHARACTERS


# ---------------------------------------------------------------------- optimiser


def test_novograd_is_that_of_the_paper():
    """Against NumPy in float64, with the betas of the recipe (arXiv 1905.11286, algorithm 1)."""
    generator = np.random.default_rng(0)
    first = [generator.standard_normal(shape) for shape in ((4, 3), (5,))]
    parameters = [torch.nn.Parameter(torch.from_numpy(w.copy())) for w in first]
    beta1, beta2, lr, decay = 0.95, 0.0, 0.01, 1e-3
    optimizer = NovoGrad(
        parameters, lr, betas=(beta1, beta2), weight_decay=decay, grad_averaging=False
    )
    weights, moments, norms = list(first), [0.0, 0.0], [0.0, 0.0]
    for step in range(6):
        for i, parameter in enumerate(parameters):
            g = generator.standard_normal(weights[i].shape)
            parameter.grad = torch.from_numpy(g.copy())
            square = (g**2).sum()
            norms[i] = square if step == 0 else beta2 * norms[i] + (1 - beta2) * square
            update = g / (np.sqrt(norms[i]) + 1e-8) + decay * weights[i]
            moments[i] = update if step == 0 else beta1 * moments[i] + update
            weights[i] = weights[i] - lr * moments[i]
        optimizer.step()
        for parameter, weight in zip(parameters, weights, strict=True):
            np.testing.assert_allclose(parameter.detach().numpy(), weight, rtol=1e-12)


# ---------------------------------------------------------------------- features


def test_bands_are_triangles_on_the_mel_scale():
    bands = mel_bands().double().numpy()
    assert bands.shape == (64, 257)
    mel = 2595 * np.log10(1 + np.arange(257) * RATE / 512 / 700)
    width = 2595 * np.log10(1 + RATE / 2 / 700) / 65
    for i in (0, 10, 40, 63):
        inside = np.abs(mel - (i + 1) * width) < width
        assert np.array_equal(bands[i] > 0, inside)
    assert np.all(bands.sum(axis=0)[3:240] <= 1 + 1e-6)  # neighbours add up to 1 between peaks
    np.testing.assert_allclose(bands.sum(axis=0)[10:240], 1, atol=1e-5)


def test_a_tone_is_loudest_in_its_band():
    time = torch.arange(RATE) / RATE
    frequency = 1000.0
    noise = 1e-3 * torch.randn(RATE, generator=torch.Generator().manual_seed(0))
    sound = torch.cat([noise, noise + torch.sin(2 * torch.pi * frequency * time)])
    x = log_mel(sound)
    assert x.shape == (64, 201)
    torch.testing.assert_close(x.mean(dim=1), torch.zeros(64), atol=1e-4, rtol=0)
    rise = x[:, 120:180].mean(dim=1) - x[:, 20:80].mean(dim=1)
    energies = mel_bands()[:, round(frequency * 512 / RATE)]
    assert energies[int(rise.argmax())] > 0


def test_speed_and_masks():
    time = torch.arange(RATE) / RATE
    tone = torch.sin(2 * torch.pi * 500 * time)
    quick = faster(tone, 1.25)
    assert len(quick) == RATE * 4 // 5
    spectrum = torch.fft.rfft(quick).abs()
    assert int(spectrum.argmax()) / len(quick) * RATE == pytest.approx(625, abs=2)
    x = torch.ones(64, 100)
    first, again = (masked(x, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again)
    assert 0 < int((first == 0).sum()) < x.numel()
    assert torch.equal(x, torch.ones(64, 100))


# ---------------------------------------------------------------------- data


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Letters as tones: a toy."""
    folder = tmp_path_factory.mktemp("tones")
    generator = np.random.default_rng(0)
    for name, count in (("train", 24), ("dev", 6), ("other", 4)):
        rows = []
        for i in range(count):
            text = "".join(generator.choice(list("abc "), generator.integers(3, 7))).strip() or "a"
            time = np.arange(RATE // 5) / RATE
            tones = [np.sin(2 * np.pi * 300 * (2 + "abc ".index(c)) * time) for c in text]
            file = f"{name}-{i}.wav"
            soundfile.write(folder / file, 0.3 * np.concatenate(tones), RATE)
            files = [{"fname": file, "speed": 1}]
            rows.append({"transcript": text, "files": files, "original_duration": 0.2 * len(text)})
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return folder


def test_a_manifest_gives_padded_batches(corpus):
    train = Manifest(corpus / "train.json")
    x, lengths, words, letters, rows = train.batch([3, 5, 7])
    assert x.shape[:2] == (3, 64)
    assert x.shape[2] % 16 == 0
    for i, row in enumerate(rows.tolist()):
        recording = train.recordings[row]
        assert torch.equal(x[i, :, : lengths[i]], log_mel(read(recording.files[0])))
        assert not x[i, :, lengths[i] :].any()
        assert decode(words[i, : letters[i]].tolist()) == recording.text
    once, again = (train.batch([3], epoch=4, seed=1)[0] for _ in range(2))
    assert torch.equal(once, again)
    assert not torch.equal(once, train.batch([3], epoch=5, seed=1)[0])
    found = [row for batch in batches(train, 5, 0, 0) for row in batch]
    assert len(found) == len(set(found)) == 20
    assert sorted(row for batch in in_order(train, 5) for row in batch) == list(range(24))
    assert all(r.seconds <= 0.9 for r in Manifest(corpus / "train.json", 0.9).recordings)


def test_bad_manifests_say_what_is_wrong(tmp_path):
    with pytest.raises(SystemExit, match=r"train\.json is not there; a corpus is a folder of"):
        Manifest(tmp_path / "train.json")
    (tmp_path / "train.json").write_text('[{"text": "a"}]')
    with pytest.raises(SystemExit, match="is no manifest: KeyError"):
        Manifest(tmp_path / "train.json")


def test_sentences_to_speak_are_words_alone(tmp_path):
    lines = ["Open the file menu.", "open the file menu", "Use GTK+ now please", "See page 5 of it"]
    (tmp_path / "train.en").write_text("\n".join([*lines, "Don't stop, go on!", "Two words"]))
    assert list(speech.spoken_texts(tmp_path / "train.en")) == [
        "open the file menu",
        "don't stop go on",
    ]


def test_no_training_voice_is_held_out():
    names = [f"v{i}" for i in range(50)]
    voices = {speech.training_voice(i, names) for i in range(3000)}
    assert {v.engine for v in voices} == {"espeak", "flite", "festival"}
    assert not {(v.engine, v.name) for v in voices} & set(speech.UNSEEN)
    assert speech.training_voice(7, names) == speech.training_voice(7, names)
    heard = {v.name.partition("+")[2] for v in voices if v.engine == "espeak"}
    assert heard == set(names)


# ---------------------------------------------------------------------- a run


def test_a_toy_run_goes_from_dense_to_compact(corpus, tmp_path):
    out = tmp_path / "run"
    command = [
        sys.executable, "-m", "examples.jasper.train", "--data", corpus, "--out", out, "--size", "tiny",
        "--epochs", "2", "--prune-epochs", "2", "--batch", "8", "--threads", "1",
        "--seconds", "0.5", "--pattern", "gs(8,8)", "--sparsity", "0.8",
    ]  # fmt: skip
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)
    report = json.loads((out / "result.json").read_text())
    scores = report["scores"]
    assert abs(report["sparsity"] - 0.8) < 0.01
    assert scores["compact"]["test_loss"] == pytest.approx(scores["masked"]["test_loss"], rel=1e-4)
    expected = {"wer", "test_loss", "wer_dev_greedy", "wer_other_greedy", "wer_other_beam"}
    assert expected <= set(scores["compact"])
