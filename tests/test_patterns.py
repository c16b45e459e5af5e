"""Patterns: their parameters, their text, their geometry, and what goes wrong with them."""

import copy
import dataclasses
import importlib
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import gspattern as gs
from gspattern.patterns import Banked

EXAMPLES = {
    "gs(16,4)": gs.GS(16, 4),
    "gs(16,1)+scatter": gs.GS(16, 1, scatter=True),
    "gs(16,16,contiguous)": gs.GS(16, 16, layout="contiguous"),
    "gs(16,1,contiguous)+scatter": gs.GS(16, 1, True, "contiguous"),
    "gs(65536,1)": gs.GS(65536, 1),
    "gs(1,1)": gs.GS(1, 1),
    "gs(cpu)": gs.CpuGS(),
    "bank_balanced(16)": gs.BankBalanced(16),
    "irregular": gs.Irregular(),
    "auto": gs.Auto(),
    "block(1,16)": gs.Block(1, 16),
    "block(16,1)": gs.Block(rows=16, cols=1),
    "2:4": gs.NM(2, 4),
    "4:4": gs.NM(n=4, m=4),
}


@st.composite
def gs_patterns(draw: st.DrawFn, most: int = 65536) -> gs.GS:
    per_row = draw(st.integers(1, most))
    rows = draw(st.integers(1, most // per_row))
    layout = draw(st.sampled_from(["interleaved", "contiguous"]))
    return gs.GS(per_row * rows, per_row, draw(st.booleans()), layout)


sizes = st.integers(1, 65536)
patterns = st.one_of(
    gs_patterns(),
    st.builds(gs.BankBalanced, sizes),
    st.builds(gs.Block, sizes, sizes),
    st.integers(1, 256).flatmap(lambda m: st.builds(gs.NM, st.integers(1, m), st.just(m))),
    st.sampled_from([gs.CpuGS(), gs.Irregular(), gs.Auto()]),
)


# ---------------------------------------------------------------------- text


@pytest.mark.parametrize("text", EXAMPLES)
def test_text_is_read_and_written(text):
    assert gs.parse_pattern(text) == EXAMPLES[text]
    assert str(EXAMPLES[text]) == text


@given(patterns)
def test_round_trip(pattern):
    assert gs.parse_pattern(str(pattern)) == pattern
    assert gs.parse_pattern(str(pattern)).scatter == pattern.scatter


@given(patterns, st.randoms(use_true_random=False))
def test_case_and_blanks_do_not_matter(pattern, random):
    def blank():
        return random.choice(["", " ", "\t", "  "])

    # Between words, numbers and signs: a blank inside a word or a number would split it.
    text = str(pattern)
    loose = blank()
    for i, c in enumerate(text):
        loose += c.upper() if random.random() < 0.5 else c
        following = text[i + 1 : i + 2]
        if not ((c.isalnum() or c == "_") and (following.isalnum() or following == "_")):
            loose += blank()
    assume(len(loose) <= 100)
    assert gs.parse_pattern(loose + blank()) == pattern


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("gs(16,4,interleaved)", gs.GS(16, 4)),
        ("GS(16, 4, Contiguous) + Scatter", gs.GS(16, 4, True, "contiguous")),
        ("bank-balanced(8)", gs.BankBalanced(8)),
        ("gs(016,+4)", gs.GS(16, 4)),
        (" 1:2\n", gs.NM(1, 2)),
    ],
)
def test_other_spellings(text, pattern):
    assert gs.parse_pattern(text) == pattern


@pytest.mark.parametrize("pattern", EXAMPLES.values(), ids=str)
def test_a_pattern_is_returned_as_it_is(pattern):
    assert gs.parse_pattern(pattern) is pattern


FORMS = "patterns look like gs(16,4), gs(16,4,contiguous), gs(16,1)+scatter or gs(cpu), "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot read the pattern ''; " + FORMS),
        ("gs(16,4", "cannot read the pattern 'gs(16,4'; " + FORMS),
        ("2:4:8", "cannot read the pattern '2:4:8'; " + FORMS),
        ("gs((16,4))", "cannot read the pattern"),
        ("gs(16,4) gs(16,4)", "cannot read the pattern"),
        ("\u0661:\u0662", "cannot read the pattern"),
        ("dense", "unknown pattern 'dense'; " + FORMS),
        ("iregular", "unknown pattern 'iregular'; did you mean irregular?"),
        ("unstructured", "unknown pattern 'unstructured'; did you mean irregular?"),
        ("blok(1,2)", "unknown pattern 'blok'; did you mean block(1,16)?"),
        ("bankbalanced(4)", "unknown pattern 'bankbalanced'; did you mean bank_balanced(16)?"),
        ("gss(1,2)", "unknown pattern 'gss'; did you mean gs(16,4)"),
        ("nm", "unknown pattern 'nm'; did you mean 2:4?"),
        ("gs", "gs takes banks and per_row, and perhaps a layout, got 'gs'; write gs(16,4)"),
        ("gs()", "gs takes banks and per_row, and perhaps a layout, got 'gs()'; write gs(16,4)"),
        ("gs(16)", "gs takes banks and per_row, and perhaps a layout, got 'gs(16)'; write"),
        ("gs(16,4,contiguous,2)", "gs takes banks and per_row, and perhaps a layout, got"),
        ("gs(cup)", "gs takes banks and per_row, or cpu, got 'gs(cup)'; did you mean gs(cpu)?"),
        ("gs(fast)", "gs takes banks and per_row, or cpu, got 'gs(fast)'; write gs(16,4)"),
        ("gs(16.0,4)", "banks must be an integer, got '16.0' in 'gs(16.0,4)'"),
        ("gs(16,)", "per_row must be an integer, got '' in 'gs(16,)'"),
        ("gs(1 6,4)", "banks must be an integer, got '1 6' in"),
        ("gs(1_6,4)", "banks must be an integer, got '1_6' in"),
        ("gs(16,4,contigous)", "got 'contigous'; did you mean contiguous?"),
        ("gs(16,4,scatter)", "layout must be interleaved or contiguous, got 'scatter'"),
        (
            "gs(16,4)+scater",
            "unknown option '+scater' in 'gs(16,4)+scater'; did you mean +scatter?",
        ),
        ("gs(16,4)+x", "unknown option '+x' in 'gs(16,4)+x'; the only option is +scatter"),
        ("gs(16,4)+", "unknown option '+' in 'gs(16,4)+'; the only option is +scatter"),
        ("gs(16,4)+scatter+scatter", "+scatter is given 2 times in"),
        ("gs(cpu)+scatter", "gs(cpu) orders the rows by itself; leave +scatter out of"),
        ("block(1,2)+scatter", "only gs takes +scatter, got 'block(1,2)+scatter'; leave it out"),
        ("irregular+scatter", "only gs takes +scatter, got 'irregular+scatter'; leave it out"),
        ("irregular()", "irregular takes no parentheses, got 'irregular()'; write irregular"),
        ("auto(1)", "auto takes no parentheses, got 'auto(1)'; write auto"),
        ("block(2)", "block takes rows and cols in parentheses, got 'block(2)'; write block(1,16)"),
        ("block", "block takes rows and cols in parentheses, got 'block'; write block(1,16)"),
        (
            "bank_balanced(1,2)",
            "bank_balanced takes banks in parentheses, got 'bank_balanced(1,2)'",
        ),
        ("block(a,2)", "rows must be an integer, got 'a' in 'block(a,2)'"),
        ("x" * 101, "a pattern has at most 100 characters, got 101"),
        (None, "a pattern must be a text such as 'gs(16,16)' or a Pattern, got None (NoneType)"),
        (16, "a pattern must be a text such as 'gs(16,16)' or a Pattern, got 16 (int)"),
        (b"gs(16,4)", "or a Pattern, got b'gs(16,4)' (bytes)"),
    ],
)
def test_text_that_is_no_pattern(text, message):
    with pytest.raises(gs.PatternError) as error:
        gs.parse_pattern(text)
    assert message in str(error.value)


@given(st.text(max_size=60) | st.from_regex(r"[a-z_]{0,9}\(?[0-9, :]{0,9}\)?(\+[a-z]*)?"))
def test_any_text_is_a_pattern_or_a_pattern_error(text):
    try:
        pattern = gs.parse_pattern(text)
    except gs.PatternError:
        return
    assert gs.parse_pattern(str(pattern)) == pattern


# ---------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gs.GS(0, 1), "banks must be from 1 to 65536, got 0"),
        (lambda: gs.GS(-16, 1), "banks must be from 1 to 65536, got -16"),
        (lambda: gs.GS(65537, 1), "banks must be from 1 to 65536, got 65537"),
        (lambda: gs.GS(16, 0), "per_row must be at least 1, got 0"),
        (lambda: gs.GS(16, -4), "per_row must be at least 1, got -4"),
        (lambda: gs.GS(16.0, 4), "banks must be an integer, got 16.0 (float)"),
        (lambda: gs.GS("16", 4), "banks must be an integer, got '16' (str)"),
        (lambda: gs.GS(16, None), "per_row must be an integer, got None (NoneType)"),
        (lambda: gs.GS(True, 1), "banks must be an integer, got True (bool)"),
        (lambda: gs.GS(np.True_, 1), "banks must be an integer, got np.True_ (bool)"),
        (lambda: gs.GS(16, np.float32(4)), "per_row must be an integer, got"),
        (
            lambda: gs.GS(16, 5),
            "per_row must divide banks, got banks = 16 and per_row = 5; "
            "divisors nearby: 2, 4, 8 or 16",
        ),
        (lambda: gs.GS(16, 32), "divisors nearby: 8 or 16"),
        (lambda: gs.GS(7, 6), "divisors nearby: 1 or 7"),
        (lambda: gs.GS(16, 4, scatter=1), "scatter must be True or False, got 1 (int)"),
        (
            lambda: gs.GS(16, 4, "contiguous"),
            "scatter must be True or False, got 'contiguous' (str)",
        ),
        (
            lambda: gs.GS(16, 4, layout="Contiguous "),
            "layout must be interleaved or contiguous, got 'Contiguous '; did you mean contiguous?",
        ),
        (lambda: gs.GS(16, 4, layout=1), "layout must be interleaved or contiguous, got 1"),
        (lambda: gs.BankBalanced(0), "banks must be from 1 to 65536, got 0"),
        (lambda: gs.BankBalanced(False), "banks must be an integer, got False (bool)"),
        (lambda: gs.Block(0, 1), "rows must be from 1 to 65536, got 0"),
        (lambda: gs.Block(1, 1 << 40), "cols must be from 1 to 65536, got 1099511627776"),
        (lambda: gs.Block(1, 1.5), "cols must be an integer, got 1.5 (float)"),
        (lambda: gs.NM(0, 4), "n must be at least 1, got 0"),
        (lambda: gs.NM(1, 257), "m must be from 1 to 256, got 257"),
        (
            lambda: gs.NM(4, 2),
            "n must be at most m, got 4:2, 4 of every 2 columns; did you mean 2:4?",
        ),
        (
            lambda: gs.NM(300, 4),
            "n must be at most m, got 300:4, 300 of every 4 columns; give n from 1",
        ),
        (lambda: gs.NM(2, 4.0), "m must be an integer, got 4.0 (float)"),
    ],
)
def test_parameters_out_of_range(make, message):
    with pytest.raises(gs.PatternError) as error:
        make()
    assert message in str(error.value)
    assert isinstance(error.value, ValueError)


def test_every_divisor_and_no_other_number_is_a_per_row():
    for banks in (1, 2, 7, 12, 16, 60, 65536):
        for per_row in range(1, min(banks, 300) + 2):
            if per_row <= banks and banks % per_row == 0:
                assert gs.GS(banks, per_row).group_rows * per_row == banks
            else:
                with pytest.raises(gs.PatternError, match="divisors nearby"):
                    gs.GS(banks, per_row)


def test_numpy_integers_become_ints():
    pattern = gs.GS(np.uint16(16), np.int64(4), np.bool(True), "contiguous")
    assert pattern == gs.GS(16, 4, True, "contiguous")
    assert all(type(getattr(pattern, name)) is int for name in ("banks", "per_row"))
    assert type(pattern.scatter) is bool
    assert hash(pattern) == hash(gs.GS(16, 4, True, "contiguous"))


@given(patterns)
def test_patterns_are_values(pattern):
    assert pickle.loads(pickle.dumps(pattern)) == pattern
    assert copy.deepcopy(pattern) == pattern
    assert {pattern: 1}[gs.parse_pattern(str(pattern))] == 1
    assert eval(repr(pattern), vars(gs)) == pattern
    for field in dataclasses.fields(pattern):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(pattern, field.name, 1)


def test_different_patterns_differ():
    assert len(set(EXAMPLES.values())) == len(EXAMPLES)
    assert gs.BankBalanced(16) != gs.GS(16, 16, layout="contiguous")
    assert gs.GS(16, 4) != gs.GS(16, 4, scatter=True)


# ------------------------------------------------------------------ geometry


def banks_by_definition(pattern, cols):
    """The bank of every column by definition: j mod B, or the run of columns that j is in."""
    banks = pattern.banks
    if pattern.layout == "interleaved":
        return [j % banks for j in range(cols)]
    result = []
    for b in range(banks):
        result += [b] * ((b + 1) * cols // banks - b * cols // banks)
    return result


@pytest.mark.parametrize("banks", [1, 2, 3, 5, 15, 16, 17, 33, 64])
@pytest.mark.parametrize("make", [gs.GS, lambda b, k: gs.GS(b, k, layout="contiguous")])
def test_banks_by_definition(banks, make):
    pattern = make(banks, 1)
    for cols in [*range(banks, 3 * banks + 2), 127, 128, 1000, 1024]:
        expected = banks_by_definition(pattern, cols)
        got = pattern.bank_of(np.arange(cols), cols)
        assert got.dtype == np.int64
        assert got.tolist() == expected
        widths = pattern.bank_widths(cols)
        assert widths.dtype == np.int64
        assert widths.tolist() == [expected.count(b) for b in range(banks)]
        if cols >= banks:
            assert pattern.bank_starts(cols).tolist() == [expected.index(b) for b in range(banks)]


@given(gs_patterns(), st.integers(0, 10**9), st.data())
def test_banks_of_large_matrices(pattern, more, data):
    cols = pattern.banks + more
    column = data.draw(st.integers(0, cols - 1))
    bank = int(pattern.bank_of(column, cols))
    widths = pattern.bank_widths(cols)
    assert widths.sum() == cols
    assert set(widths.tolist()) <= {cols // pattern.banks, cols // pattern.banks + 1}
    if pattern.layout == "interleaved":
        assert bank == column % pattern.banks
    else:
        assert widths[:bank].sum() <= column < widths[: bank + 1].sum()


def test_bank_of_keeps_the_shape_and_refuses_what_is_no_column():
    pattern = gs.GS(4, 1)
    assert pattern.bank_of(np.arange(6, dtype=np.uint16).reshape(2, 3), 6).tolist() == [
        [0, 1, 2],
        [3, 0, 1],
    ]
    assert pattern.bank_of([], 6).shape == (0,)
    with pytest.raises(IndexError, match=r"column 6 is not in \[0, 6\)"):
        pattern.bank_of([5, 6], 6)
    with pytest.raises(IndexError, match=r"column -1 is not in \[0, 6\)"):
        pattern.bank_of([0, -1], 6)
    with pytest.raises(TypeError, match="columns must be integers, got dtype float64"):
        pattern.bank_of([0.5], 6)


@pytest.mark.parametrize(
    ("text", "group_rows", "bundle_size"),
    [
        ("gs(16,16)", 1, 16),
        ("gs(16,4)", 4, 16),
        ("gs(16,1)", 16, 16),
        ("gs(1,1)", 1, 1),
        ("bank_balanced(8)", 1, 8),
        ("irregular", 1, 1),
        ("block(3,5)", 3, 15),
        ("2:4", 1, 2),
    ],
)
def test_groups_and_bundles(text, group_rows, bundle_size):
    pattern = gs.parse_pattern(text)
    assert pattern.group_rows == group_rows
    assert pattern.bundle_size == bundle_size
    for rows in range(40):
        assert pattern.groups(rows) == len(range(0, rows, group_rows))


@pytest.mark.parametrize(
    ("text", "core"),
    [
        ("gs(16,4)", ("gs", 16, 4, 0)),
        ("gs(16,4,contiguous)+scatter", ("gs", 16, 4, 1)),
        ("bank_balanced(16)", ("gs", 16, 16, 1)),
        ("irregular", ("irregular",)),
        ("block(2,3)", ("block", 2, 3)),
        ("2:4", ("nm", 2, 4)),
    ],
)
def test_core(text, core):
    assert gs.parse_pattern(text).core() == core


# ------------------------------------------------------------------- resolve


@pytest.mark.parametrize(
    "text", ["gs(16,4)", "bank_balanced(16)", "irregular", "block(2,3)", "2:4"]
)
@pytest.mark.parametrize("shape", [(1, 16), (100, 17), (0, 1000), np.zeros((5, 100)).shape])
def test_resolved_patterns_stay(text, shape):
    pattern = gs.parse_pattern(text)
    assert pattern.resolve(shape) is pattern


@pytest.mark.parametrize(
    ("cols", "banks"), [(1, 1), (31, 1), (32, 1), (33, 2), (64, 2), (65, 3), (1000, 32), (1024, 32)]
)
def test_gs_cpu_resolves_to_banks_of_at_most_32_columns(cols, banks):
    pattern = gs.CpuGS().resolve((7, cols))
    assert pattern == gs.GS(banks, banks, scatter=True, layout="contiguous")
    assert pattern.scatter == gs.CpuGS().scatter
    assert pattern.bank_widths(cols).max() <= 32
    assert (
        banks == 1 or gs.GS(banks - 1, banks - 1, True, "contiguous").bank_widths(cols).max() > 32
    )


def test_gs_cpu_at_its_limit():
    assert gs.CpuGS().resolve((1, 65536 * 32)).banks == 65536
    with pytest.raises(
        gs.PatternError, match=r"at most 2097152 columns .* the matrix has 2097153;"
    ):
        gs.CpuGS().resolve((1, 65536 * 32 + 1))


def fitting(pattern, cols):
    """Whether the pattern resolves for a matrix of `cols` columns."""
    try:
        pattern.resolve((4, cols))
    except gs.PatternError:
        return False
    return True


@given(gs_patterns(most=512) | st.builds(gs.BankBalanced, st.integers(1, 512)), st.integers(1, 600))
def test_more_banks_than_columns_names_the_largest_that_fits(pattern, cols):
    if pattern.banks <= cols:
        assert pattern.resolve((4, cols)) is pattern
        return
    with pytest.raises(gs.PatternError) as error:
        pattern.resolve((4, cols))
    message = str(error.value)
    assert message.startswith(f"{pattern} needs at least {pattern.banks} columns")
    assert f"the matrix has {cols};" in message
    advised = gs.parse_pattern(message.rsplit(" ", 1)[1])
    assert fitting(advised, cols)
    assert type(advised) is type(pattern)
    assert (advised.scatter, advised.layout) == (pattern.scatter, pattern.layout)
    if pattern.per_row == pattern.banks:
        assert advised.banks == advised.per_row == cols
    elif pattern.per_row <= cols:
        # Nothing larger with the same per_row fits.
        assert advised.per_row == pattern.per_row
        assert advised.banks + advised.per_row > cols
    else:
        assert advised.group_rows == min(pattern.group_rows, cols)
        assert advised.banks + advised.group_rows > cols


@pytest.mark.parametrize("text", ["gs(4,2)", "gs(4,4)", "bank_balanced(2)", "gs(cpu)"])
def test_no_columns(text):
    with pytest.raises(gs.PatternError, match="a matrix without columns has nothing to keep"):
        gs.parse_pattern(text).resolve((4, 0))


@pytest.mark.parametrize("text", ["irregular", "block(1,16)", "2:4"])
def test_no_columns_is_fine_without_banks(text):
    assert str(gs.parse_pattern(text).resolve((4, 0))) == text


@pytest.mark.parametrize("pattern", EXAMPLES.values(), ids=str)
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (16, r"shape must be \(rows, columns\), got 16"),
        ((16,), r"shape must be \(rows, columns\), got \(16,\)"),
        ((8, 4, 3, 3), r"got \(8, 4, 3, 3\); as_matrix turns the weights of a convolution"),
        ((-1, 4), "rows must be at least 0, got -1"),
        ((4, -1), "columns must be at least 0, got -1"),
        ((4, 2.0), r"columns must be an integer, got 2.0 \(float\)"),
    ],
)
def test_shapes_that_are_none(pattern, shape, message):
    with pytest.raises(gs.PatternError, match=message):
        pattern.resolve(shape)


def test_gs_cpu_has_no_numbers_before_it_is_resolved():
    for ask in (lambda p: p.core(), lambda p: p.bundle_size):
        with pytest.raises(
            gs.PatternError, match=r"gs\(cpu\) has no numbers before it is resolved"
        ):
            ask(gs.CpuGS())
    assert gs.CpuGS().group_rows == 1
    assert gs.CpuGS().groups(7) == 7


def test_only_the_pruner_resolves_auto():
    for ask in (
        lambda p: p.core(),
        lambda p: p.bundle_size,
        lambda p: p.group_rows,
        lambda p: p.groups(3),
        lambda p: p.resolve((3, 4)),
    ):
        with pytest.raises(gs.PatternError, match=r"only the Pruner of gspattern\.torch"):
            ask(gs.Auto())
    assert gs.Auto().scatter is False


def test_which_patterns_have_banks():
    assert isinstance(gs.GS(16, 4), Banked)
    assert isinstance(gs.BankBalanced(16), Banked)
    assert not any(isinstance(p, Banked) for p in (gs.Irregular(), gs.Block(1, 2), gs.CpuGS()))


# -------------------------------------------------------------------- import


def test_exports_exist():
    assert all(hasattr(gs, name) for name in gs.__all__)
    assert len(set(gs.__all__)) == len(gs.__all__)


def test_import_is_quick_and_does_not_pull_in_the_heavy_libraries(tmp_path):
    # CPU time: the goal is for a machine that has nothing else to do. From bytecode, as an installed package has it,
    # whatever the environment says about writing it: the first of the imports compiles.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    env["PYTHONPYCACHEPREFIX"] = str(tmp_path)
    code = (
        "import sys, time; t = time.process_time(); import gspattern; t = time.process_time() - t;"
        "print(t, *sorted({m.split('.')[0] for m in sys.modules}))"
    )
    seconds = []
    for _ in range(9):
        command = [sys.executable, "-c", code]
        out = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
        spent, *modules = out.stdout.split()
        assert not {"torch", "scipy", "matplotlib", "rich", "typer", "tqdm"} & set(modules)
        seconds.append(float(spent))
        if seconds[-1] < 0.2:
            return
    pytest.fail(f"importing gspattern takes {min(seconds):.3f} s at best, the goal is 0.2 s")


def test_patterns_can_be_imported_alone():
    assert importlib.import_module("gspattern.patterns").parse_pattern is gs.parse_pattern
