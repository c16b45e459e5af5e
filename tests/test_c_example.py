"""The C library and examples/c, built as their Makefiles say, against NumPy.

For another processor, GSPATTERN_CROSS holds the variables that make is given: CC, BUILD, and RUN for its programs.
"""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import gspattern as gs

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "c"
CROSS = shlex.split(os.environ.get("GSPATTERN_CROSS", ""))
VARIABLES = dict(word.split("=", 1) for word in CROSS)
LIB = ROOT / VARIABLES.get("BUILD", "build") / "lib"
RUN = VARIABLES.get("RUN", "").split()

spec = importlib.util.spec_from_file_location("export_arrays", EXAMPLE / "export_arrays.py")
assert spec is not None
assert spec.loader is not None
export_arrays = importlib.util.module_from_spec(spec)
spec.loader.exec_module(export_arrays)


def environment() -> dict[str, str]:
    """Make's own variables, which an outer make sets, would change the inner one; so would a preload."""
    inherited = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "LD_PRELOAD"}
    return {name: value for name, value in os.environ.items() if name not in inherited}


def make(*arguments: str) -> None:
    subprocess.run(["make", "-s", *CROSS, *arguments], check=True, cwd=ROOT, env=environment())


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("example") / "run_matrix"
    make("lib")
    flags = "CFLAGS=-O1 -Wall -Wextra -Werror"
    make("-C", str(EXAMPLE), f"OUT={path}", f"GSPATTERN={LIB}", flags)
    return path


def run(program: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RUN, program, folder], capture_output=True, text=True, env=environment(), timeout=60
    )


def matrix_of(pattern: str, dtype: str) -> gs.Matrix:
    rng = np.random.default_rng(7)
    weights = rng.standard_normal((19, 70)).astype(np.float32)
    sparsity = None if ":" in pattern else 0.75
    selection = gs.choose_mask(np.abs(weights), pattern, sparsity=sparsity)
    weights *= selection.mask
    if dtype == "int8":
        matrix = gs.encode(weights, pattern, mask=selection.mask, row_order=selection.row_order)
        return matrix.quantize("int8")
    typed = weights.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    return gs.encode(typed, pattern, mask=selection.mask, row_order=selection.row_order)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "int8"])
@pytest.mark.parametrize(
    "pattern",
    [
        "gs(16,16)",
        "gs(8,1)+scatter",
        "gs(8,4,contiguous)",
        "gs(cpu)",
        "irregular",
        "block(2,4)",
        "2:4",
    ],
)
def test_products(program: Path, tmp_path: Path, pattern: str, dtype: str) -> None:
    matrix = matrix_of(pattern, dtype)
    x = np.random.default_rng(8).standard_normal(70).astype(np.float32)
    export_arrays.export(matrix, x, tmp_path)
    done = run(program, tmp_path)
    assert done.returncode == 0, done.stderr
    got = np.array(done.stdout.split(), dtype=np.float64)

    dense = matrix.to_dense().astype(np.float64)
    if matrix.scales is not None and matrix.to_dense().dtype == np.int8:
        dense *= matrix.scales[:, None]
    eps = np.finfo(np.float64 if dtype == "float64" else np.float32).eps
    bound = 4 * 70 * eps * (np.abs(dense) @ np.abs(x.astype(np.float64)))
    assert got.shape == (19,)
    assert np.all(np.abs(got - dense @ x.astype(np.float64)) <= bound)


def test_a_used_folder(program: Path, tmp_path: Path) -> None:
    """Nothing of the matrix before stays: neither its row order nor its scales."""
    x = np.ones(70, np.float32)
    export_arrays.export(matrix_of("gs(8,1)+scatter", "int8"), x, tmp_path)
    matrix = matrix_of("gs(16,16)", "float32")
    export_arrays.export(matrix, x, tmp_path)
    done = run(program, tmp_path)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(
        np.array(done.stdout.split(), float), matrix.to_dense().astype(float).sum(1), atol=1e-4
    )


def export_script(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, EXAMPLE / "export_arrays.py", *words]
    path = {"PYTHONPATH": str(Path(gs.__file__).parents[1])}
    return subprocess.run(command, capture_output=True, text=True, env=environment() | path)


@pytest.mark.parametrize("pattern", ["2:4", "gs(16,1)+scatter", "gs(cpu)"])
def test_the_script_writes_what_the_program_reads(
    program: Path, tmp_path: Path, pattern: str
) -> None:
    written = export_script(tmp_path / "m", pattern)
    assert written.returncode == 0, written.stderr
    done = run(program, tmp_path / "m")
    assert done.returncode == 0, done.stderr
    expected = np.loadtxt(tmp_path / "m" / "y.txt")
    assert expected.shape == (256,)
    np.testing.assert_allclose(np.array(done.stdout.split(), float), expected, atol=1e-4)


@pytest.mark.parametrize(
    "words", [[], ["a", "gs(16,16)", "c"], ["a", "gs(3)"], ["a", "gs(1024,1024)"]]
)
def test_usage_is_one_line(words: list[str]) -> None:
    done = export_script(*words)
    assert done.returncode == 1
    assert re.fullmatch(r"usage: export_arrays\.py FOLDER \[PATTERN\].*\n", done.stderr)


def test_commands_of_the_readme(tmp_path: Path) -> None:
    commands = [
        line[4:] for line in (EXAMPLE / "README.md").read_text().splitlines() if line[:4] == "    "
    ]
    assert len(commands) == 4
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (tmp_path / "python").chmod(0o755)
    done = subprocess.run(
        ["bash", "-euc", "\n".join(commands)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment()
        | {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "PYTHONPATH": str(Path(gs.__file__).parents[1]),
        },
    )
    assert done.returncode == 0, done.stderr
    got = np.array(done.stdout.splitlines()[-256:], float)
    np.testing.assert_allclose(got, np.loadtxt(ROOT / "build" / "example" / "y.txt"), atol=1e-4)


def corrupt(folder: Path, name: str, change: str) -> None:
    path = folder / f"{name}.npy"
    if change == "missing":
        path.unlink()
    elif change == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif change == "long":
        path.write_bytes(path.read_bytes() + b"\0")
    elif change == "empty":
        path.write_bytes(b"")
    elif change == "order":
        np.save(path, np.asfortranarray(np.ones((3, 2), np.float32)))
    elif change == "big":
        np.save(path, np.load(path).astype(np.load(path).dtype.newbyteorder(">")))
    elif change == "value":
        array = np.load(path)
        array.flat[-1] = 10**9 if array.dtype.itemsize > 2 else 255
        np.save(path, array)
    else:
        path.write_bytes(path.read_bytes().replace(b"'shape': (", change.encode()))


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("values", "missing", "No such file"),
        ("values", "cut", "not as long"),
        ("values", "long", "not as long"),
        ("indices", "empty", "not a .npy file"),
        ("values", "order", "C order"),
        ("x", "big", "little-endian"),
        ("x", "'shape': (9,", "not as long"),
        ("x", "'shape': (-", "not made of sizes"),
        ("indptr", "value", "indptr"),
        ("row_order", "value", "row_order"),
        ("matrix", "value", "indices"),
    ],
)
def test_broken_files_are_refused(
    program: Path, tmp_path: Path, name: str, change: str, said: str
) -> None:
    export_arrays.export(matrix_of("gs(8,1)+scatter", "float32"), np.ones(70), tmp_path)
    assert run(program, tmp_path).returncode == 0
    corrupt(tmp_path, name, change)
    done = run(program, tmp_path)
    assert done.returncode == 1
    assert said in done.stderr


@pytest.mark.skipif(shutil.which("pkg-config") is None, reason="needs pkg-config")
def test_pkg_config(program: Path) -> None:
    """The folder of the library serves where it lies, by its pkg-config file."""
    done = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "--static", LIB / "gspattern.pc"],
        capture_output=True,
        text=True,
        check=True,
    )
    words = done.stdout.split()
    version = subprocess.run(
        ["pkg-config", "--modversion", LIB / "gspattern.pc"], capture_output=True, text=True
    ).stdout
    assert version.strip() == gs.__version__
    assert f"-I{LIB}/include" in words
    assert f"-L{LIB}" in words
    assert "-lgspattern" in words
    assert (LIB / "include" / "gspattern.h").exists()


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
def test_only_the_public_functions_are_exported(program: Path) -> None:
    done = subprocess.run(
        ["nm", "-D", "--defined-only", LIB / "libgspattern.so"],
        capture_output=True,
        text=True,
        check=True,
    )
    exported = {line.split()[-1] for line in done.stdout.splitlines()}
    header = (ROOT / "csrc" / "gspattern.h").read_text()
    assert exported
    for name in exported:
        assert f"{name}(" in header, f"{name} is exported and not in the header"
    declared = [
        line.split("(")[0].split()[-1] for line in header.splitlines() if "GSP_API " in line
    ]
    assert {
        name.lstrip("*") for name in declared if name.lstrip("*").startswith("gsp_")
    } <= exported
