"""Settings of all tests."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# For the package `examples`; last, so that the gspattern that is tested is the one installed or named by PYTHONPATH.
sys.path.append(str(Path(__file__).parents[1]))

# No deadline: machines differ, and sanitizers are slow. "fixed" tries the same examples in every run, so that
# a failure can be repeated; "random" others each time.
settings.register_profile("fixed", deadline=None, derandomize=True)
settings.register_profile("random", deadline=None, max_examples=500, print_blob=True)
settings.register_profile("sanitized", deadline=None, derandomize=True, max_examples=20)
PROFILE = os.environ.get("GSPATTERN_HYPOTHESIS", "fixed")
settings.load_profile(PROFILE)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--tier",
        choices=["quick", "full"],
        default="quick",
        help="how many seeds and networks tests/accuracy has",
    )


def pytest_configure(config: pytest.Config) -> None:
    from gspattern import _core

    if PROFILE == "sanitized" and "asan" not in _core.__file__:
        pytest.exit(f"the sanitized core was to be tested, not {_core.__file__}", returncode=1)
