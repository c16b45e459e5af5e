"""English and German sentences that people translated, from Debian packages: a corpus that needs no other download.

Three sources: the help of LibreOffice (the same paragraphs of both languages have the same names), the descriptions of
packages, and the gettext catalogues of programs. Some programs are held out whole, so that the test is out of domain;
a second test is of descriptions.
"""

from __future__ import annotations

import hashlib
import html
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import polib
from tqdm import tqdm

Pair = tuple[str, str]

CORPUS = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gspattern" / "debian"

HELP = ("libreoffice-help-en-us", "libreoffice-help-de")
HELD_OUT = ("evolution-common", "vlc-l10n", "gnucash-common", "coreutils")
CATALOGUES = (
    "libreoffice-l10n-de", "gcc-12-locales", "libgphoto2-l10n", "util-linux-locales", "e2fsprogs-l10n",
    "claws-mail-i18n", "kile-l10n", "kdevelop-l10n", "gnumeric-common", "gnupg-l10n", "audacity-data",
    "lynx-common", "sylpheed-i18n", "ardour-data", "gnome-software-common", "postgresql-client-15",
    "tellico-data", "evolution-data-server-common", "amule-common", "libglib2.0-data", "gramps",
    "libgtk-3-common", "filezilla-common", "ktorrent-data", "shotwell-common", "cinnamon-l10n", "mutt", "git",
    "krita-l10n", "orca", "aptitude-common", "darktable", "pidgin-data",
)  # fmt: skip

LENGTHS = range(3, 41)  # words of a sentence, on both sides
RATIO = (0.5, 2.2)  # of characters, German to English
LETTERS = 0.8  # least share of letters and blanks
DESCRIPTIONS_HELD = 50  # one of so many paragraphs of descriptions is a test
DEV_HELD = 100  # one of so many other pairs is for development

MARKUP = re.compile(r"<[^>]*>")
HOLDERS = re.compile(r"%[\w(%'+\- .#*]|\{\w*\}|\$\w|\$\(|\$\{|\\[a-z]|&\w+;|https?:|www\.|@\w|\|")
ENDS = re.compile(r"(?<=[.!?])\s+(?=[A-ZÄÖÜ„\"(])")
WORDLESS = re.compile(r"[\W\d_]+")


def prepare(out: Path) -> None:
    """Write train, dev, test and descriptions, each with the endings .en and .de, into a folder."""
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise SystemExit(f"the corpus is made from Debian packages, and {program} is not there")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        catalogues: dict[str, list[Pair]] = {}
        for package in tqdm((*HELD_OUT, *CATALOGUES), desc="catalogues", unit="package"):
            unpacked = _unpacked(package, folder)
            catalogues[package] = [] if unpacked is None else list(catalogue_pairs(unpacked))
        pages = [_unpacked(package, folder) for package in tqdm(HELP, desc="help", unit="package")]
        help_ = [] if None in pages else list(help_pairs(*pages))  # type: ignore[arg-type]
        described = list(description_pairs(*_descriptions(folder)))
    sets = split(help_, described, catalogues)
    out.mkdir(parents=True, exist_ok=True)
    for name, pairs in sets.items():
        for side, language in enumerate(("en", "de")):
            text = "".join(f"{pair[side]}\n" for pair in pairs)
            (out / f"{name}.{language}").write_text(text, "utf-8")
    print(f"{out}: " + ", ".join(f"{name} {len(pairs):,}" for name, pairs in sets.items()))


def split(
    help_: Iterable[Pair], described: Iterable[Pair], catalogues: dict[str, list[Pair]]
) -> dict[str, list[Pair]]:
    """Clean pairs, each English sentence once, as train, dev, test and descriptions.

    No sentence of a test stands in the training set, even with other numbers or punctuation.
    """
    tests: dict[str, list[Pair]] = {"test": [], "descriptions": []}
    rest: list[Pair] = []
    for package in HELD_OUT:
        tests["test"] += clean(catalogues.get(package, []))
    for pair in clean(described):
        (tests["descriptions"] if _one_of(DESCRIPTIONS_HELD, pair) else rest).append(pair)
    rest += clean(help_)
    for package in sorted(catalogues.keys() - set(HELD_OUT)):
        rest += clean(catalogues[package])
    rest = _once(rest, set())
    sets = {
        "train": [pair for pair in rest if not _one_of(DEV_HELD, pair)],
        "dev": [pair for pair in rest if _one_of(DEV_HELD, pair)],
    }
    known = {_skeleton(pair[0]) for pair in rest}
    return sets | {name: _once(pairs, known) for name, pairs in tests.items()}


def _one_of(count: int, pair: Pair) -> bool:
    digest = hashlib.sha256(_skeleton(pair[0]).encode()).digest()
    return int.from_bytes(digest[:4]) % count == 0


def _skeleton(text: str) -> str:
    return WORDLESS.sub(" ", text).lower().strip()


def _once(pairs: Iterable[Pair], known: set[str]) -> list[Pair]:
    """Those whose English is new; `known` are skeletons."""
    known, found = set(known), []
    for pair in pairs:
        key = _skeleton(pair[0])
        if key not in known:
            known.add(key)
            found.append(pair)
    return found


# ---------------------------------------------------------------------- cleaning


def clean(pairs: Iterable[Pair]) -> Iterator[Pair]:
    """Plain sentences: without markup and mnemonics, of a fair length, and without places for values."""
    for english, german in pairs:
        texts = _plain(english), _plain(german)
        parts = [ENDS.split(text) for text in texts]
        if len(parts[0]) != len(parts[1]):
            parts = [[text] for text in texts]
        yield from (pair for pair in zip(*parts, strict=True) if _fair(*pair))


def _plain(text: str) -> str:
    text = MARKUP.sub("", html.unescape(text))
    text = re.sub(r"(?<!\w)[_~&](?=\w)|(?<=\w)[_~&](?=[a-zäöü])", "", text)
    return " ".join(text.replace("…", "...").split())


def _fair(english: str, german: str) -> bool:
    for text in (english, german):
        letters = sum(c.isalpha() or c == " " for c in text)
        if len(text.split()) not in LENGTHS or letters < LETTERS * len(text):
            return False
        if HOLDERS.search(text):
            return False
    return english != german and RATIO[0] <= len(german) / len(english) <= RATIO[1]


# ---------------------------------------------------------------------- packages


def _unpacked(package: str, folder: Path) -> Path | None:
    """The files of a package in a folder of its own, or None with a message."""
    archives = folder / f"{package}-archive"
    archives.mkdir()
    done = subprocess.run(
        ["apt-get", "download", "-q", package], cwd=archives, capture_output=True, text=True
    )
    if done.returncode:
        tqdm.write(f"{package} is left out, it cannot be fetched: {done.stderr.strip()}")
        return None
    for archive in archives.iterdir():
        subprocess.run(["dpkg-deb", "-x", archive, folder / package], check=True)
        archive.unlink()
    return folder / package


def catalogue_pairs(folder: Path) -> Iterator[Pair]:
    """The messages of all German catalogues under a folder."""
    for file in sorted(folder.rglob("de/LC_MESSAGES/*.mo")):
        for message in polib.mofile(str(file)):
            if not message.msgid_plural:
                yield message.msgid, message.msgstr


class Paragraphs(HTMLParser):
    """The text of every paragraph that has a name."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: dict[str, str] = {}
        self._name: str | None = None
        self._hidden = 0

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "p":
            self._name = dict(attributes).get("id")
            if self._name is not None:
                self.texts[self._name] = ""
        elif tag == "span" and (self._hidden or "hidden" in dict(attributes)):
            self._hidden += 1  # what other systems would show

    def handle_endtag(self, tag: str) -> None:
        if tag == "p":
            self._name, self._hidden = None, 0
        elif tag == "span" and self._hidden:
            self._hidden -= 1

    def handle_data(self, data: str) -> None:
        if self._name is not None and not self._hidden:
            self.texts[self._name] += data


def help_pairs(english: Path, german: Path) -> Iterator[Pair]:
    """Paragraphs of the same name in the same page."""
    roots = [
        next(iter(sorted(folder.rglob(f"help/{language}/text"))), None)
        for folder, language in ((english, "en-US"), (german, "de"))
    ]
    if roots[0] is None or roots[1] is None:
        return
    for page in sorted(roots[0].rglob("*.html")):
        other = roots[1] / page.relative_to(roots[0])
        if other.exists():
            texts = []
            for file in (page, other):
                parser = Paragraphs()
                parser.feed(file.read_text("utf-8"))
                texts.append(parser.texts)
            yield from ((texts[0][k], texts[1][k]) for k in texts[0] if k in texts[1])


def _descriptions(folder: Path) -> tuple[str, str]:
    """The texts of apt's lists of descriptions, in a private configuration that asks for both languages."""
    state = folder / "apt"
    (state / "lists" / "partial").mkdir(parents=True)
    (state / "cache" / "archives" / "partial").mkdir(parents=True)
    configuration = folder / "apt.conf"
    configuration.write_text(
        f'Dir::State "{state}";\nDir::State::status "/var/lib/dpkg/status";\n'
        f'Dir::Cache "{state / "cache"}";\n'
        '#clear Acquire::Languages;\nAcquire::Languages { "en"; "de"; };\n'
    )
    apt = ["apt-get", "-c", str(configuration)]
    done = subprocess.run([*apt, "update", "-q"], capture_output=True, text=True)
    if done.returncode:
        tqdm.write(f"descriptions are left out, apt-get update failed: {done.stderr.strip()}")
        return "", ""
    listed = subprocess.run(
        [*apt, "indextargets", "--format", "$(LANGUAGE) $(FILENAME)", "Created-By: Translations"],
        capture_output=True, text=True, check=True,
    ).stdout.split("\n")  # fmt: skip
    texts = {"en": "", "de": ""}
    for line in filter(None, listed):
        language, _, file = line.partition(" ")
        texts[language] += subprocess.run(
            ["/usr/lib/apt/apt-helper", "cat-file", file],
            capture_output=True, text=True, check=True, encoding="utf-8",
        ).stdout  # fmt: skip
    return texts["en"], texts["de"]


def description_pairs(english: str, german: str) -> Iterator[Pair]:
    """Paragraphs of the descriptions that both languages have, by the checksum of the English one."""
    other = dict(_paragraphs(german))
    for key, paragraphs in _paragraphs(english):
        if key in other and len(other[key]) == len(paragraphs):
            yield from zip(paragraphs, other[key], strict=True)


def _paragraphs(text: str) -> Iterator[tuple[str, list[str]]]:
    for entry in text.split("\n\n"):
        key = re.search(r"^Description-md5: (\w+)$", entry, re.M)
        body = re.search(r"^Description-\w\w(?:_\w\w)?: (.*)", entry, re.M | re.S)
        if key and body:
            title, _, rest = body[1].partition("\n")
            paragraphs = re.split(r"^ \.$", rest, flags=re.M)
            yield key[1], [title, *(" ".join(p.split()) for p in paragraphs)]
