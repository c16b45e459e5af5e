"""Speech from the synthesisers of Debian packages: a corpus that needs no recordings.

Sentences are those of the English-German corpus of examples.gnmt, spoken by many voices of espeak-ng, flite and
festival. "dev" has other sentences of the same voices. Two sets are held out: "variants", spoken by variants of
espeak-ng that training never hears, and "speaker", spoken by one person whose voice two of the engines have and
training does not. Variants of one engine are not new speakers: only the last says how well a network does on somebody
it has not heard.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import resample_poly
from tqdm import tqdm

from examples.jasper.features import RATE

CORPUS = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gspattern" / "speech"
PACKAGES = (
    "espeak-ng", "flite", "festival", "festvox-kallpc16k", "festvox-kdlpc16k", "festvox-us-slt-hts",
)  # fmt: skip

ACCENTS = (
    "en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029",
    "en-us-nyc",
)  # fmt: skip
FLITE, FESTIVAL = ("kal16", "awb", "rms"), ("kal_diphone", "ked_diphone")
UNSEEN = ("flite", "slt"), ("festival", "cmu_us_slt_arctic_hts")
SHARES = {"espeak": 0.7, "flite": 0.2, "festival": 0.1}  # of the engines, in training
VARIANTS_HELD = 5  # one of so many variants of espeak-ng is not heard in training
LENGTHS = range(3, 13)  # words of a sentence
SECONDS = (0.5, 12.0)


@dataclass(frozen=True)
class Voice:
    """Who speaks, and how.

    Attributes
    ----------
    engine : str
        "espeak", "flite" or "festival".
    name : str
        Of the voice, as the engine knows it.
    speed : int
        Words per minute; of espeak-ng alone, like `pitch`.
    pitch : int
        0 to 99.
    """

    engine: str
    name: str
    speed: int = 0
    pitch: int = 0

    def command(self, text: str, file: Path) -> list[str]:
        """What writes the text, spoken, into a file."""
        if self.engine == "espeak":
            tune = ["-s", str(self.speed), "-p", str(self.pitch)]
            return ["espeak-ng", "-v", self.name, *tune, "-w", str(file), text]
        if self.engine == "flite":
            return ["flite", "-voice", self.name, "-t", text, "-o", str(file)]
        source = file.with_suffix(".txt")
        source.write_text(text)
        return ["text2wave", "-eval", f"(voice_{self.name})", "-o", str(file), str(source)]


def prepare(out: Path, count: int, tests: int, texts: Path) -> None:
    """Speak `count` sentences for training and `tests` for each of the other sets; write wav files and manifests.

    A second call goes on where the first was stopped.
    """
    missing = [p for p in ("espeak-ng", "flite", "text2wave") if shutil.which(p) is None]
    if missing:
        raise SystemExit(
            f"{', '.join(missing)} not found: apt-get install {' '.join(PACKAGES)}\n"
            "or give recordings of your own with --data: a folder of manifests"
        )
    if not (texts / "train.en").exists():
        raise SystemExit(
            f"{texts / 'train.en'} has the sentences to speak, and is made by\n"
            "    python -m examples.gnmt.data prepare"
        )
    seen, held = variants()
    sentences = list(spoken_texts(texts / "train.en"))
    order = np.random.default_rng(0).permutation(len(sentences))
    if len(order) < count + 3 * tests:
        raise SystemExit(f"{len(order)} sentences are too few for {count} and three times {tests}")
    voices: dict[str, Callable[[int], Voice]] = {
        "train": lambda i: training_voice(i, seen),
        "dev": lambda i: training_voice(count + i, seen),
        "variants": lambda i: espeak_voice(i, held),
        "speaker": lambda i: Voice(*UNSEEN[i % len(UNSEEN)]),
    }
    start = 0
    for name, voice_of in voices.items():
        stop = start + (count if name == "train" else tests)
        lines, start = [sentences[i] for i in order[start:stop]], stop
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            jobs = [
                pool.submit(speak, text, voice_of(i), folder / f"{i:06d}.wav")
                for i, text in enumerate(lines)
            ]
            found = [
                {
                    "transcript": text,
                    "files": [{"fname": f"{name}/{i:06d}.wav", "sample_rate": RATE, "speed": 1}],
                    "original_duration": seconds,
                }
                for i, (text, job) in enumerate(
                    zip(lines, tqdm(jobs, desc=name, unit="sentence"), strict=True)
                )
                if SECONDS[0] <= (seconds := job.result()) <= SECONDS[1]
            ]
        (out / f"{name}.json").write_text(json.dumps(found, indent=0), "utf-8")
        hours = sum(float(row["original_duration"]) for row in found) / 3600  # type: ignore[arg-type]
        print(f"{name}: {len(found):,} sentences, {hours:.1f} hours")


def variants() -> tuple[list[str], list[str]]:
    """The variants of espeak-ng that training hears, and those that it does not."""
    listed = subprocess.run(
        ["espeak-ng", "--voices=variant"], capture_output=True, text=True, check=True
    ).stdout.splitlines()[1:]
    names = sorted({match[1] for line in listed if (match := re.search(r"!v/(\S+)", line))})
    return (
        [name for i, name in enumerate(names) if i % VARIANTS_HELD],
        [name for i, name in enumerate(names) if not i % VARIANTS_HELD],
    )


def espeak_voice(number: int, names: list[str]) -> Voice:
    """Some accent, variant, speed and pitch, by the number alone."""
    draw = np.random.default_rng((1, number))
    accent, variant = ACCENTS[draw.integers(len(ACCENTS))], names[draw.integers(len(names))]
    speed, pitch = int(draw.integers(120, 221)), int(draw.integers(20, 81))
    return Voice("espeak", f"{accent}+{variant}", speed, pitch)


def training_voice(number: int, names: list[str]) -> Voice:
    """Some voice of any engine, by the number alone."""
    draw = np.random.default_rng((2, number))
    engine = draw.choice(list(SHARES), p=list(SHARES.values()))
    if engine == "espeak":
        return espeak_voice(number, names)
    voices = FLITE if engine == "flite" else FESTIVAL
    return Voice(str(engine), voices[draw.integers(len(voices))])


def spoken_texts(file: Path) -> Iterator[str]:
    """Sentences that are words alone, in lower case, each once; names and numbers would be spoken as who knows what."""
    known = set()
    for line in file.read_text("utf-8").splitlines():
        text = (
            re.sub(r"[.,;:!?\"]+(?=\s|$)", "", line)
            .replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
            .lower()
        )
        fair = re.fullmatch(r"[a-z']+(?: [a-z']+)*", text) and line[1:] == line[1:].lower()
        if fair and len(text.split()) in LENGTHS and text not in known:
            known.add(text)
            yield text


def speak(text: str, voice: Voice, file: Path) -> float:
    """Write a spoken sentence at 16 kHz, if it is not there; returns its seconds, 0 if the engine gave none."""
    if not file.exists():
        with tempfile.TemporaryDirectory() as folder:
            raw = Path(folder, "raw.wav")
            done = subprocess.run(voice.command(text, raw), capture_output=True, text=True)
            if done.returncode or not raw.exists():
                raise SystemExit(f"{voice} cannot speak {text!r}: {done.stderr.strip()}")
            sound, rate = soundfile.read(raw, dtype="float32")
        if rate != RATE:
            common = np.gcd(rate, RATE)
            sound = resample_poly(sound, RATE // common, rate // common)
        # Some voices are ten times as loud as others.
        sound = 0.5 * sound / max(float(np.abs(sound).max(initial=0)), 1e-3)
        new = file.with_suffix(".new.wav")
        soundfile.write(new, sound, RATE, subtype="PCM_16")
        new.replace(file)
    return float(soundfile.info(file).duration)
