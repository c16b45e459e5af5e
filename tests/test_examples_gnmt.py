import itertools
import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

pytest.importorskip("sentencepiece")
from examples.gnmt import debian
from examples.gnmt.data import Corpus, Pairs, batches, in_order
from examples.gnmt.model import BOS, EOS, GNMT, PAD
from examples.gnmt.translate import highest, translate

ROOT = Path(__file__).parents[1]


# ---------------------------------------------------------------------- model


def test_the_full_model_has_the_size_and_the_names_of_nvidias():
    with torch.device("meta"):
        model = GNMT(32320)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    h = 1024
    expected = {"encoder.embedder.weight": (32320, h)}

    def lstm(name, inputs, suffix=""):
        expected[f"{name}.weight_ih_l0{suffix}"] = (4 * h, inputs)
        expected[f"{name}.weight_hh_l0{suffix}"] = (4 * h, h)
        expected[f"{name}.bias_ih_l0{suffix}"] = expected[f"{name}.bias_hh_l0{suffix}"] = (4 * h,)

    for i, inputs in enumerate((h, 2 * h, h, h)):
        lstm(f"encoder.rnn_layers.{i}", inputs)
    lstm("encoder.rnn_layers.0", h, "_reverse")
    lstm("decoder.att_rnn.rnn", h)
    for i in range(3):
        lstm(f"decoder.rnn_layers.{i}", 2 * h)
    attention = "decoder.att_rnn.attn"
    expected |= {f"{attention}.linear_{x}.weight": (h, h) for x in "qk"}
    expected |= {f"{attention}.{x}": (h,) for x in ("linear_att", "normalize_bias")}
    expected[f"{attention}.normalize_scalar"] = (1,)
    expected["decoder.classifier.classifier.weight"] = (32320, h)
    expected["decoder.classifier.classifier.bias"] = (32320,)
    assert shapes == expected
    # The decoder has the encoder's embedding under a name of its own, as in the published files.
    assert set(model.state_dict()) == set(expected) | {"decoder.embedder.weight"}
    assert model.decoder.embedder.weight is model.encoder.embedder.weight


@pytest.fixture
def tiny():
    torch.manual_seed(3)
    model = GNMT(8, hidden=8).eval()
    for parameter in model.parameters():  # larger, so that words differ
        parameter.data.mul_(6)
    return model


def pairs_of(*sentences):
    return Pairs([s[0] for s in sentences], [s[1] for s in sentences], [""] * len(sentences))


def test_padding_changes_nothing(tiny):
    pairs = pairs_of(([4, 5, 6], [5, 6]), ([5], [7, 6, 5, 4]), ([6, 6, 4, 7, 5], [4]))
    sources, lengths, targets = pairs.batch([0, 1, 2])
    together = tiny(sources, lengths, targets[:, :-1])
    for row in range(3):
        alone = pairs.batch([row])
        logits = tiny(*alone[:2], alone[2][:, :-1])[0]
        torch.testing.assert_close(together[row, : len(logits)], logits)


def test_attention_is_that_of_the_papers(tiny):
    attention = tiny.decoder.att_rnn.attn
    context, lengths = torch.randn(2, 5, 8), torch.tensor([5, 3])
    memory = tiny.decoder.memory(context, lengths)
    queries = torch.randn(2, 4, 8)
    got, shares = attention(queries, memory)
    v = attention.linear_att.double()
    v = attention.normalize_scalar.double() * v / v.square().sum().sqrt()
    for n, t in itertools.product(range(2), range(4)):
        scores = [
            (v * torch.tanh(
                attention.linear_q.weight.double() @ queries[n, t].double()
                + attention.linear_k.weight.double() @ context[n, s].double()
                + attention.normalize_bias.double()
            )).sum()
            for s in range(lengths[n])
        ]  # fmt: skip
        weights = torch.stack(scores).softmax(0)
        torch.testing.assert_close(
            shares[n, t, : lengths[n]].double(), weights, rtol=1e-5, atol=1e-6
        )
        assert not shares[n, t, lengths[n] :].any()
        expected = weights @ context[n, : lengths[n]].double()
        torch.testing.assert_close(got[n, t].double(), expected, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------- beam search


@torch.no_grad()
def best_of_all(model, source, steps, length_norm, coverage):
    """Every translation of at most so many steps, scored by one forward pass each."""
    memory = model.remember(torch.tensor([source]), torch.tensor([len(source)]))
    found = []
    words = [w for w in range(8) if w not in (PAD, BOS, EOS)]
    for length in range(steps):
        for sentence in itertools.product(words, repeat=length):
            logits, shares, _ = model.decoder(torch.tensor([[BOS, *sentence]]), memory)
            chances = logits[0].double().log_softmax(1)
            total = sum(chances[i, w].item() for i, w in enumerate([*sentence, EOS]))
            covered = shares[0].double().sum(0).clamp(max=1).log().sum().item()
            norm = ((5 + length + 1) / 6) ** length_norm
            found.append((total / norm + coverage * covered, list(sentence)))
    return max(found)[1]


@pytest.mark.parametrize("words", [11, 1279, 1280, 5003])
def test_the_highest_are_those_of_topk(words):
    heights = torch.randn(5, words, generator=torch.Generator().manual_seed(words))
    heights[1, 3:] = -torch.inf
    top, places = highest(heights, 10)
    assert torch.equal(top, heights.topk(10, dim=1).values)
    assert torch.equal(heights.gather(1, places), top)
    assert all(len(set(row.tolist())) == 10 for row in places)


def test_a_beam_that_holds_all_finds_the_best_of_all(tiny):
    sources = [[4, 6, 5], [7], [5, 5, 4, 6]]
    pairs = pairs_of(*((s, [4]) for s in sources))
    batch, lengths, _ = pairs.batch([0, 1, 2])
    for norm, coverage in ((0.6, 0.1), (0.0, 0.0), (1.0, 2.0)):
        got = translate(tiny, batch, lengths, 700, norm, coverage, steps=4)
        exact = [best_of_all(tiny, [*s, EOS], 4, norm, coverage) for s in sources]
        assert got == exact


def test_a_beam_of_one_is_greedy_and_sentences_do_not_mix(tiny):
    pairs = pairs_of(([4, 6, 5], [4]), ([7], [4]), ([5, 5, 4, 6], [4]))
    batch, lengths, _ = pairs.batch([0, 1, 2])
    together = translate(tiny, batch, lengths, 3, steps=6)
    assert together == [translate(tiny, *pairs.batch([row])[:2], 3, steps=6)[0] for row in range(3)]
    greedy = []
    memory = tiny.remember(*pairs.batch([0])[:2])
    while len(greedy) < 5:
        logits, _, _ = tiny.decoder(torch.tensor([[BOS, *greedy]]), memory)
        logits[..., [PAD, BOS]] = -torch.inf
        word = int(logits[0, -1].argmax())
        if word == EOS:
            break
        greedy.append(word)
    assert translate(tiny, *pairs.batch([0])[:2], 1, steps=6) == [greedy]


# ---------------------------------------------------------------------- data


def test_batches_hold_every_pair_at_most_once_and_follow_from_seed_and_epoch():
    generator = np.random.default_rng(0)
    sentences = [([4] * int(n), [5] * int(n)) for n in generator.integers(1, 40, 1000)]
    pairs = pairs_of(*sentences)
    all_ = batches(pairs, 16, seed=1, epoch=2)
    assert all_ == batches(pairs, 16, seed=1, epoch=2) != batches(pairs, 16, seed=1, epoch=3)
    rows = [row for batch in all_ for row in batch]
    assert len(rows) == len(set(rows)) == 16 * len(all_) > 980
    spread = [np.ptp([len(pairs.sources[row]) for row in batch]) for batch in all_]
    assert np.mean(spread) < 3
    divided = [batches(pairs, 16, 1, 2, rank, 2) for rank in range(2)]
    assert len(divided[0]) == len(divided[1]) == len(all_) // 2
    assert [b for two in zip(*divided, strict=True) for b in two] == all_[: len(all_) // 2 * 2]
    assert sorted(row for batch in in_order(pairs, 7) for row in batch) == list(range(1000))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Numbers below a thousand, and the same in other words: a toy."""
    folder = tmp_path_factory.mktemp("corpus")
    english, german = (
        "zero one two three four five six seven eight nine",
        ("null eins zwei drei vier fuenf sechs sieben acht neun"),
    )
    generator = np.random.default_rng(0)
    for name, count in (("train", 400), ("dev", 40), ("other", 10)):
        digits = [generator.integers(0, 10, generator.integers(1, 6)) for _ in range(count)]
        for language, names in (("en", english), ("de", german)):
            lines = (" ".join(names.split()[d] for d in number) for number in digits)
            (folder / f"{name}.{language}").write_text("\n".join(lines) + "\n")
    return folder


def test_a_corpus_is_a_folder_of_parallel_lines(corpus, tmp_path):
    data = Corpus(corpus, "en", "de", 60, longest=100)
    assert len(data.train) == 400
    assert {name: len(pairs) for name, pairs in data.tests.items()} == {"dev": 40, "other": 10}
    assert data.pieces.decode(data.tests["dev"].targets[3]) == data.tests["dev"].texts[3]
    assert max(map(len, Corpus(corpus, "en", "de", 60, longest=9).train.targets)) <= 9
    (tmp_path / "train.en").write_text("one\ntwo\n")
    with pytest.raises(SystemExit, match=r"train\.de is not there"):
        Corpus(tmp_path, "en", "de", 60, 50)
    (tmp_path / "train.de").write_text("eins\n")
    with pytest.raises(SystemExit, match=r"2 lines and .* 1: line i"):
        Corpus(tmp_path, "en", "de", 60, 50)
    (tmp_path / "train.en").write_text("one\n")
    with pytest.raises(SystemExit, match="no vocabulary of 60 pieces"):
        Corpus(tmp_path, "en", "de", 60, 50)


# ---------------------------------------------------------------------- the Debian corpus


def test_cleaning_keeps_plain_sentences_of_a_fair_length():
    pairs = [
        ("<b>Open</b> the _file menu.", "Öffnen Sie das _Dateimenü jetzt."),
        ("Copy %s to the disk", "%s auf die Platte kopieren"),  # a place for a value
        ("Two words", "Zwei Wörter"),
        ("It is done. Close the window now.", "Es ist getan. Schließen Sie das Fenster."),
        ("same text on both sides", "same text on both sides"),
        ("much too short for it", "viel zu kurz " * 9),
        ("1 2 3 4 5 6 7 8", "8 7 6 5 4 3 2 1"),
    ]
    assert list(debian.clean(pairs)) == [
        ("Open the file menu.", "Öffnen Sie das Dateimenü jetzt."),
        ("It is done.", "Es ist getan."),
        ("Close the window now.", "Schließen Sie das Fenster."),
    ]


def test_no_test_sentence_is_in_the_training_set():
    def sentences(start, stop):
        names = [
            "alpha",
            "beta",
            "gamma",
            "delta",
            "epsilon",
            "zeta",
            "eta",
            "theta",
            "iota",
            "kappa",
        ]
        for i in range(start, stop):
            words = " ".join(names[int(d)] for d in f"{i:05d}")
            yield f"The {words} is here.", f"Das {words} ist hier."

    same = [("Alpha, beta: gamma 7!", "Alpha, Beta: Gamma 7!")]
    catalogues = {"mutt": [*sentences(0, 2000), *same], debian.HELD_OUT[0]: []}
    again = ("alpha beta gamma 12", "alpha beta gamma zwölf")  # the same but for a number
    catalogues[debian.HELD_OUT[0]] = [again, *sentences(1900, 2500)]
    sets = debian.split(sentences(3000, 4000), sentences(5000, 7000), catalogues)
    seen = [debian._skeleton(english) for pairs in sets.values() for english, _ in pairs]
    assert len(seen) == len(set(seen))
    assert len(sets["test"]) == 500
    assert again not in sets["test"]
    assert 20 < len(sets["descriptions"]) < 70
    assert 10 < len(sets["dev"]) < 80
    assert sum(map(len, sets.values())) == 2001 + 500 + 1000 + 2000


def test_sources_are_read(tmp_path):
    catalogue = tmp_path / "usr/share/locale/de/LC_MESSAGES/a.mo"
    catalogue.parent.mkdir(parents=True)
    messages = {"": "Content-Type: text/plain; charset=UTF-8\n", "menu\x04Open it": "Öffnen"}
    messages["one\0many"] = "eins\0viele"
    catalogue.write_bytes(binary_catalogue(messages))
    assert list(debian.catalogue_pairs(tmp_path)) == [("Open it", "Öffnen")]

    for language, text in (("en-US", "Save <b>it</b>"), ("de", "Speichern")):
        page = tmp_path / f"usr/help/{language}/text/a/b.html"
        page.parent.mkdir(parents=True)
        page.write_text(
            f'<p>x</p><p id="p1">{text}<span hidden="true">Mac <span>y</span></span>!</p>'
            f'<p id="{language}">alone</p>'
        )
    assert list(debian.help_pairs(tmp_path, tmp_path)) == [("Save it!", "Speichern!")]

    english = (
        "Package: a\nDescription-md5: 00ff\nDescription-en: A title\n First\n lines\n .\n Next\n\n"
        "Package: b\nDescription-md5: 11ff\nDescription-en: B\n\n"
    )
    german = "Package: a\nDescription-md5: 00ff\nDescription-de: Ein Titel\n Erste\n Zeilen\n .\n Weiter\n"
    assert list(debian.description_pairs(english, german)) == [
        ("A title", "Ein Titel"),
        ("First lines", "Erste Zeilen"),
        ("Next", "Weiter"),
    ]


def binary_catalogue(messages):
    """The bytes of a .mo file, little endian."""
    keys = sorted(key.encode() for key in messages)
    values = [messages[key.decode()].encode() for key in keys]
    place, tables, texts = 28 + 16 * len(keys), [], b""
    for text in (*keys, *values):
        tables += [len(text), place + len(texts)]
        texts += text + b"\0"
    head = struct.pack("<7I", 0x950412DE, 0, len(keys), 28, 28 + 8 * len(keys), 0, 0)
    return head + struct.pack(f"<{len(tables)}I", *tables) + texts


# ---------------------------------------------------------------------- a run


def test_a_toy_run_goes_from_dense_to_compact(corpus, tmp_path):
    out = tmp_path / "run"
    command = [
        sys.executable, "-m", "examples.gnmt.train", "--data", corpus, "--out", out, "--size", "tiny",
        "--words", "60", "--epochs", "1", "--prune-epochs", "1", "--batch", "40", "--threads", "1",
        "--pattern", "gs(16,16)", "--sparsity", "0.8", "--bleu", "5", "--seconds", "0.5",
    ]  # fmt: skip
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)
    report = json.loads((out / "result.json").read_text())
    scores = report["scores"]
    assert abs(report["sparsity"] - 0.8) < 0.01
    assert scores["compact"]["test_loss"] == pytest.approx(scores["masked"]["test_loss"], rel=1e-5)
    assert {"accuracy", "test_loss", "bleu_dev", "bleu_other"} <= set(scores["compact"])
    classifier = next(
        row for row in report["layers"] if row["name"] == "decoder.classifier.classifier.weight"
    )
    assert classifier["pattern"] is not None
    assert classifier["sparsity"] > 0.7
    # The embedding that both halves share is stored once.
    for file in ("dense", "compact"):
        with safe_open(out / f"{file}.safetensors", "pt") as tensors:
            assert len([key for key in list(tensors.keys()) if "embedder" in key]) == 1
    again = [
        *command[:5], "--out", tmp_path / "again", "--size", "tiny", "--words", "60", "--epochs", "0",
        "--prune-epochs", "0", "--weights", out / "dense.safetensors", "--bleu", "0", "--seconds", "0.1",
    ]  # fmt: skip
    subprocess.run(again, cwd=ROOT, check=True, timeout=300)
    first = json.loads((tmp_path / "again" / "result.json").read_text())["epochs"][0]
    assert first["test_loss"] == pytest.approx(scores["dense"]["test_loss"], rel=1e-5)
