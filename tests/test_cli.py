"""The command line, in this process and once in one of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays

pytest.importorskip("typer", reason="the extra `cli` is not installed")

from typer.testing import CliRunner

import gspattern as gs
from gspattern.cli import app


@pytest.fixture
def dense(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {
        "fc1.weight": rng.standard_normal((32, 48), dtype=np.float32),
        "fc1.bias": rng.standard_normal(32, dtype=np.float32),
        "conv.weight": rng.standard_normal((16, 16, 3, 3), dtype=np.float32),
        "half.weight": rng.standard_normal((16, 32)).astype(np.float16),
        "steps": np.array(7),
    }
    save_arrays(tensors, tmp_path / "dense.safetensors", metadata={"format": "pt"})
    return tmp_path / "dense.safetensors", tensors


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def pruned(dense, *options):
    source, _ = dense
    target = source.with_name("out.safetensors")
    result = run("prune", source, target, *options)
    assert result.exit_code == 0, result.output
    return target, result.stdout


def test_prune_to_a_compact_file(dense):
    target, output = pruned(dense, "-p", "gs(16,16)", "-s", 0.75, "--exclude", "conv*")
    loaded = gs.load_file(target)
    _, tensors = dense
    assert loaded.keys() == tensors.keys()
    for name, original in tensors.items():
        if name not in ("fc1.weight", "half.weight"):
            assert np.array_equal(loaded[name], original)
            continue
        matrix = loaded[name]
        assert str(matrix.pattern) == "gs(16,16)"
        assert matrix.dtype == original.dtype
        keep = round(0.25 * original.size)
        assert keep - 16 < matrix.nnz <= keep
        array = matrix.to_dense()
        assert np.array_equal(array[array != 0], original[array != 0])
        assert f"{matrix.nbytes:,}" in output
    assert f"{target.stat().st_size:,} bytes" in output
    # The best elements of each bank of a row, by brute force, keep the most.
    selection = gs.choose_mask(np.abs(tensors["fc1.weight"]), "gs(16,16)", sparsity=0.75)
    assert np.array_equal(loaded["fc1.weight"].to_dense() != 0, selection.mask)


def test_prune_to_dense_tensors(dense):
    target, _ = pruned(dense, "-p", "irregular", "-s", 0.9, "--dense", "--method", "greedy")
    loaded = load_arrays(target)
    _, tensors = dense
    assert loaded.keys() == tensors.keys()
    for name in ("fc1.weight", "conv.weight", "half.weight"):
        original = tensors[name]
        array = loaded[name]
        assert (array.shape, array.dtype) == (original.shape, original.dtype)
        assert np.count_nonzero(array) == round(0.1 * array.size)
        least = np.abs(array[array != 0]).min()
        assert np.abs(original[array == 0]).max() <= least
    assert np.array_equal(loaded["fc1.bias"], tensors["fc1.bias"])


def test_bfloat16_and_notes_are_kept(dense):
    source, tensors = dense
    brain = tensors["fc1.weight"].astype(ml_dtypes.bfloat16)
    save_arrays({"w": brain}, source, metadata={"format": "pt"})
    target, _ = pruned(dense, "-p", "irregular", "-s", 0.9, "--dense")
    loaded = gs.load_file(target)["w"]
    assert loaded.dtype == brain.dtype
    assert np.count_nonzero(loaded) == round(0.1 * brain.size)
    with safe_open(target, framework="np") as opened:
        assert opened.metadata() == {"format": "pt"}
    target, _ = pruned(dense, "-p", "irregular", "-s", 0.9, "--force")
    assert np.array_equal(gs.load_file(target)["w"].to_dense(), loaded)
    assert gs.read_metadata(target) == {"format": "pt"}
    gs.save_file({"w": brain}, source)  # one of ours, without notes
    target, _ = pruned(dense, "-p", "irregular", "-s", 0.9, "--dense", "--force")
    assert np.array_equal(gs.load_file(target)["w"], loaded)


def test_convolutions_are_pruned_in_the_matrix_view(dense):
    target, _ = pruned(dense, "-p", "gs(16,16)", "-s", 0.75, "--include", "conv.weight", "--dense")
    weight = load_arrays(target)["conv.weight"]
    view = weight.transpose(0, 2, 3, 1).reshape(16, -1)  # taps, then input channels
    assert gs.check(view != 0, "gs(16,16)")
    assert run("check", target, "-p", "gs(16,16)", "-t", "conv.weight").exit_code == 0


def test_nm_needs_no_sparsity(dense):
    target, _ = pruned(dense, "-p", "2:4", "--include", "fc1.weight")
    counts = (gs.load_file(target)["fc1.weight"].to_dense() != 0).reshape(32, 12, 4).sum(axis=2)
    assert (counts == 2).all()


def test_check(dense):
    target, _ = pruned(dense, "-p", "gs(16,1)+scatter", "-s", 0.75, "--include", "fc1.weight")
    good = run("check", target, "--pattern", "gs(16,1)+scatter", "--tensor", "fc1.*")
    assert (good.exit_code, good.stdout) == (0, "fc1.weight: valid, 75.0% zeros\n")
    bad = run("check", target, "--pattern", "block(1,16)", "--tensor", "fc1.*")
    assert bad.exit_code == 1
    mask = gs.load_file(target)["fc1.weight"].to_dense() != 0
    violations = gs.check(mask, "block(1,16)").violations
    assert f"fc1.weight: not block(1,16), 75.0% zeros, {len(violations)} violations" in bad.stdout
    assert len(bad.stdout.splitlines()) == 1 + min(len(violations), 11)
    source, _ = dense
    full = run("check", source, "--pattern", "gs(16,16)")
    assert full.exit_code == 0
    assert full.stdout.count(": valid, 0.0% zeros\n") == 3  # full rows of even banks


def test_check_goes_on_where_the_pattern_does_not_fit(tmp_path):
    file = tmp_path / "w.safetensors"
    ones = np.ones((16, 32), np.float32)
    save_arrays({"a": ones, "small": np.ones((7, 9), np.float32), "z": np.tril(ones)}, file)
    result = run("check", file, "-p", "gs(16,16)")
    assert result.exit_code == 1
    lines = [line for line in result.stdout.splitlines() if line[0] != " "]
    assert lines[0] == "a: valid, 0.0% zeros"
    assert re.fullmatch(r"small: not gs\(16,16\), 0\.0% zeros: .*the matrix has 9.*", lines[1])
    assert re.fullmatch(r"z: not gs\(16,16\), 73\.4% zeros, \d+ violations", lines[2])
    assert not result.stderr


def test_info(dense):
    target, _ = pruned(dense, "-p", "gs(16,16)", "-s", 0.75, "--include", "fc1.weight")
    result = run("info", target)
    assert result.exit_code == 0
    matrix = gs.load_file(target)["fc1.weight"]
    line = next(line for line in result.stdout.splitlines() if "fc1.weight" in line)
    for text in ("gs(16,16)", "32 x 48", "float32", f"{matrix.nnz:,}", f"{matrix.nbytes:,}"):
        assert text in line
    assert f"{matrix.nbytes / (32 * 48 * 4):.1%}" in line
    assert "16 x 16 x 3 x 3" in result.stdout


def test_a_file_is_not_overwritten_by_accident(dense):
    target, _ = pruned(dense, "-p", "gs(16,16)", "-s", 0.5)
    before = target.read_bytes()
    again = run("prune", dense[0], target, "-p", "irregular", "-s", 0.9)
    assert again.exit_code == 2
    assert "--force" in again.stderr
    assert target.read_bytes() == before
    assert run("prune", dense[0], target, "-p", "irregular", "-s", 0.9, "--force").exit_code == 0
    assert target.read_bytes() != before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-p", "gs(16,5)", "-s", "0.9"], "per_row must divide banks"),
        (["-p", "gs(16,16)", "-s", "90"], r"--sparsity must be .* did you mean 0\.9\?$"),
        (["-p", "2:4", "-s", "0.5"], "error: 2:4 has a sparsity of its own: leave --sparsity out$"),
        (["-p", "gs(16,16)"], "--sparsity is needed"),
        (["-p", "gs(64,64)", "-s", "0.5"], "fc1.weight: .*48.*--exclude"),
        (["-p", "gs(16,16)", "-s", "0.5", "--include", "fc2*"], "'fc2\\*' means no weight"),
    ],
)
def test_errors_are_one_line(dense, options, message):
    source, _ = dense
    target = source.with_name("none.safetensors")
    result = run("prune", source, target, *options)
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert re.search(message, result.stderr)
    assert not target.exists()


def test_a_damaged_file_is_refused(dense):
    target, _ = pruned(dense, "-p", "gs(16,16)", "-s", 0.5)
    data = bytearray(target.read_bytes())
    data[-3] ^= 1
    target.write_bytes(data)
    result = run("info", target)
    assert result.exit_code == 2
    assert f"[checksum] {target}: " in result.stderr
    assert "[checksum]" in run("check", target, "-p", "gs(16,16)").stderr
    missing = run("info", target.with_name("missing.safetensors"))
    assert missing.exit_code == 2
    assert "missing.safetensors" in missing.stderr


@pytest.mark.parametrize("options", [[], ["--dense"]])
def test_a_missing_folder_is_named(dense, options):
    source, _ = dense
    target = source.parent / "missing" / "out.safetensors"
    result = run("prune", source, target, "-p", "irregular", "-s", 0.9, *options)
    assert result.exit_code == 2
    assert result.stderr.strip() == f"error: [Errno 2] No such file or directory: '{target}'"


def test_as_a_program(dense):
    source, _ = dense
    target = source.with_name("out.safetensors")

    def call(*arguments):
        command = [sys.executable, "-m", "gspattern", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = call("prune", source, target, "--pattern", "gs(cpu)", "--sparsity", 0.5)
    assert done.returncode == 0, done.stderr
    assert call("check", target, "--pattern", "gs(cpu)").returncode == 0
    assert call("check", target, "--pattern", "block(4,4)").returncode == 1
    assert "prune" in call("--help").stdout


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_missing_extras_are_named(package):
    code = f"import sys; sys.modules[{package!r}] = None; import gspattern.cli"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        f'the command line needs {package}: pip install "gspattern[cli]", '
        "or in a checkout pip install '.[cli]'\n"
    )


def test_convert_what_another_tool_pruned(dense, tmp_path):
    source, tensors = dense
    sparse = dict(tensors)
    rng = np.random.default_rng(1)
    for name in ("conv.weight", "half.weight"):
        sparse[name] = tensors[name] * (rng.random(tensors[name].shape) < 0.2)
    save_arrays(sparse, tmp_path / "sparse.safetensors", metadata={"format": "pt"})
    target, back = tmp_path / "compact.safetensors", tmp_path / "back.safetensors"
    result = run("convert", tmp_path / "sparse.safetensors", target)
    assert result.exit_code == 0, result.output
    loaded = gs.load_file(target)
    assert {n for n, v in loaded.items() if isinstance(v, gs.Matrix)} == {"conv.weight", "half.weight"}  # fmt: skip
    assert loaded["conv.weight"].kernel_shape == (16, 16, 3, 3)
    assert loaded["conv.weight"].nnz == np.count_nonzero(sparse["conv.weight"])
    assert f"{target.stat().st_size:,} bytes" in result.stdout.replace("\n", "")
    assert run("convert", target, back, "--dense").exit_code == 0
    again = load_arrays(back)
    assert again.keys() == sparse.keys()
    for name, value in sparse.items():
        assert again[name].dtype == value.dtype
        assert np.array_equal(again[name], value)
    with safe_open(back, framework="np") as opened:
        assert opened.metadata() == {"format": "pt"}
    options = ["-p", "gs(8,8)", "--include", "half*", "--dtype", "int8", "--force"]
    assert run("convert", tmp_path / "sparse.safetensors", target, *options).exit_code == 0
    matrix = gs.load_file(target)["half.weight"]
    assert (str(matrix.pattern), str(matrix.dtype)) == ("gs(8,8)", "int8")
    assert gs.check(matrix.mask(), "gs(8,8)")
    assert run("convert", source, target, "--force").exit_code == 2
    assert "at least half zeros; --include some" in run("convert", source, target, "--force").output
    assert "give --force" in run("convert", source, target).output


def test_engine_counts_cycles(dense):
    source, _ = dense
    shape = ["--shape", "64x128", "-s", 0.75, "-p", "dense", "-p", "gs(16,1)"]
    result = run("engine", *shape, "--set", "dram_bytes_per_cycle=1", "--set", "prefetch=true")
    assert result.exit_code == 0, result.output
    row = next(line for line in result.stdout.splitlines() if "gs(16,1)" in line)
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    bundles = 64 * 128 // 4 // 16
    assert cells[3] == f"{bundles}"  # a gather takes a cycle
    assert cells[4] == "0"
    assert cells[2] == f"{bundles * 16 * (2 + 2) + 4 * 4:,}"  # a value and an index; pointers
    assert run("engine", source).exit_code == 0
    for wrong, said in [
        ([], "give one of a file, --shape, --model and --gather-bench"),
        ([*shape, "--set", "ports=x"], "ports must be of type int, got 'x'"),
        ([*shape, "--set", "harbours=2"], "a setting is name=value, with one of lanes"),
        ([*shape, "--preset", "paper32"], "one of paper64, paper128"),
        (["--model", "vgg"], "vgg"),
    ]:
        result = run("engine", *wrong)
        assert result.exit_code == 2, wrong
        assert said in result.output.replace("\n", " "), wrong


def test_spatter_exports_and_replays(dense, tmp_path):
    source, _ = dense
    suite = tmp_path / "suite.json"
    random = ["--shape", "64x128", "-s", 0.75, "-p", "gs(16,1)", "--n", 2]
    result = run("spatter", "export", suite, *random)
    assert result.exit_code == 0, result.output
    result = run("spatter", "replay", suite)
    assert result.exit_code == 0, result.output
    row = next(line for line in result.stdout.splitlines() if "gs(16,1)" in line)
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    bundles = 2 * 64 * 128 // 4 // 16
    assert cells[1:6] == ["gather", f"{bundles}", f"{bundles * 16:,}", f"{bundles + 2}", "0"]
    assert "give --force" in run("spatter", "export", suite, *random).output.replace("\n", " ")
    assert (
        run("spatter", "export", suite, "--file", source, "--kernel", "gs", "--force").exit_code
        == 0
    )
    assert len(json.loads(suite.read_text())) > 1
    for wrong, said in [
        (["export", tmp_path / "a"], "give one of --file and --shape"),
        (["export", tmp_path / "a", "--shape", "64"], "--shape must be such as 1024x1024"),
        (["export", tmp_path / "a", *random, "--kernel", "copy"], "kernel must be one of"),
        (["replay", source.with_name("none.json")], "No such file"),
    ]:
        result = run("spatter", *wrong)
        assert result.exit_code == 2, wrong
        assert said in result.output.replace("\n", " "), wrong


def test_view_shows_banks(dense, tmp_path):
    source, _ = dense
    result = run("view", "--shape", "32x64", "-p", "gs(16,16)", "--cycles", 20)
    assert result.exit_code == 0, result.output
    assert "times as long" in result.stdout
    assert "0 lost to conflicts" in result.stdout
    assert run("view", source, "--out", tmp_path / "a.svg").exit_code == 0
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")
    for wrong, said in [
        ([], "give one of a file and --shape"),
        (["--shape", "64"], "--shape must be such as 64x256"),
        ([source, "--layer", "none"], "none"),
        (["--shape", "32x64", "--out", tmp_path / "a.pdf"], ".png or .svg"),
    ]:
        result = run("view", *wrong)
        assert result.exit_code == 2, wrong
        assert said in result.output.replace("\n", " "), wrong
