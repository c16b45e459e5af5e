"""The extension: plain C, and one file per instruction set with flags of its own."""

from pathlib import Path

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# Flags of the kernel files, by the end of their names: spmv_avx2.c gets those of avx2.
ISA_FLAGS = {
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"],
}
FLAGS = ["-std=c11", "-O3", "-ffp-contract=off", "-fvisibility=hidden", "-pthread"]


def isa_of(source: str) -> str | None:
    return next((isa for isa in ISA_FLAGS if Path(source).stem.endswith("_" + isa)), None)


class BuildExt(build_ext):
    """Compiles the kernel files with the flags of their instruction set."""

    def build_extension(self, ext: Extension) -> None:
        sources = list(ext.sources)
        for source in sources:
            if isa := isa_of(source):
                ext.extra_objects += self.compiler.compile(
                    [source],
                    output_dir=self.build_temp,
                    include_dirs=ext.include_dirs,
                    extra_postargs=ext.extra_compile_args + ISA_FLAGS[isa],
                    depends=ext.depends,
                )
        ext.sources = [source for source in sources if not isa_of(source)]
        try:
            super().build_extension(ext)
        finally:
            ext.sources = sources


setup(
    ext_modules=[
        Extension(
            "gspattern._core",
            sources=sorted(str(path) for path in Path("csrc").rglob("*.c")),
            depends=sorted(str(path) for path in Path("csrc").rglob("*.h")),
            include_dirs=[numpy.get_include()],
            extra_compile_args=FLAGS,
            extra_link_args=["-pthread"],
        )
    ],
    cmdclass={"build_ext": BuildExt},
)
