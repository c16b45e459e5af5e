"""The extension: plain C, and one file per instruction set with flags of its own.

Environment: GSPATTERN_WERROR=1 makes warnings errors, GSPATTERN_SANITIZE=1 builds with
AddressSanitizer and UndefinedBehaviorSanitizer. Both are for the tests.
"""

import os
import re
import subprocess
from pathlib import Path

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FLAGS = ["-std=c11", "-O3", "-ffp-contract=off", "-fvisibility=hidden", "-pthread"]
LINK_FLAGS = ["-pthread", "-lm"]
if os.environ.get("GSPATTERN_WERROR") == "1":
    FLAGS += ["-Wall", "-Wextra", "-Werror"]
if os.environ.get("GSPATTERN_SANITIZE") == "1":
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    FLAGS += ["-O1", "-g", "-fno-omit-frame-pointer", *sanitize]
    LINK_FLAGS += sanitize

FLAGS_FILE = Path("csrc/kernels/flags.mk")
ISA_FLAGS = {
    isa: flags.split()
    for isa, flags in re.findall(r"^ISA_(\w+) = (.*)$", FLAGS_FILE.read_text("utf-8"), re.MULTILINE)
}


def isa_of(source: str) -> str | None:
    """The instruction set that a file is for, None for plain C."""
    return next((isa for isa in ISA_FLAGS if Path(source).stem.endswith("_" + isa)), None)


class BuildExt(build_ext):
    """Compiles the files of an instruction set with its flags, or leaves them out."""

    def takes(self, flags: list[str]) -> bool:
        probe = ["-Werror", "-fsyntax-only", "-x", "c", os.devnull]
        command = [*self.compiler.compiler_so, *flags, *probe]
        return subprocess.run(command, capture_output=True).returncode == 0

    def build_extensions(self) -> None:
        known = {isa for isa, flags in ISA_FLAGS.items() if self.takes(flags)}
        compile_file = self.compiler._compile

        def compile_for_isa(obj, src, ext, cc_args, extra_postargs, pp_opts):
            flags = ISA_FLAGS.get(isa_of(src), [])
            compile_file(obj, src, ext, cc_args, extra_postargs + flags, pp_opts)

        self.compiler._compile = compile_for_isa
        for extension in self.extensions:
            extension.define_macros += [(f"GSP_HAVE_{isa.upper()}", "1") for isa in sorted(known)]
            # Only while building: an sdist holds the files of every instruction set.
            extension.sources = [
                source for source in extension.sources if isa_of(source) in known | {None}
            ]
        super().build_extensions()


def files(*endings: str) -> list[str]:
    return sorted(str(path) for end in endings for path in Path("csrc").rglob("*" + end))


setup(
    ext_modules=[
        Extension(
            "gspattern._core",
            sources=files(".c"),
            depends=["setup.py", *files(".h", ".inc", ".mk")],
            include_dirs=[numpy.get_include()],
            extra_compile_args=FLAGS,
            extra_link_args=LINK_FLAGS,
        )
    ],
    cmdclass={"build_ext": BuildExt},
)
