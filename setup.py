"""Builds the kernels beside the package, where there is a compiler for them.

All else about the package stands in pyproject.toml. The library holds no Python and is built on
LibTorch's stable ABI: one build serves every Python, and every torch from 2.10 on.
"""

from __future__ import annotations

import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

SOURCES = Path("src/livella/csrc")
X86 = platform.machine().lower() in {"x86_64", "amd64"} and sys.maxsize > 2**32

# The portable variant comes first: where the linker finds one inline function in several objects it
# takes the first, and that one must run on every processor.
VARIANTS: dict[str, list[str]] = {"portable": []}
if X86:
    VARIANTS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    VARIANTS["avx512"] = [
        *VARIANTS["avx2"],
        *(f"-mavx512{part}" for part in ("f", "bw", "vl", "dq")),
    ]

FLAGS = [
    "-std=c++20",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-g0",
    "-Wno-psabi",
    "-Wno-maybe-uninitialized",  # GCC's own headers of intrinsics
    "-DTORCH_TARGET_VERSION=0x020a000000000000",
    *(["-DLIVELLA_X86"] if X86 else []),
    *os.environ.get("LIVELLA_CXXFLAGS", "").split(),
]


class BuildKernels(build_ext):
    """Compiles each variant with flags of its own, and links them."""

    built = False

    def build_extension(self, ext: Extension) -> None:
        """Build the one library; where that cannot be, the package is installed without it."""
        if self.compiler.compiler_type == "msvc":
            raise CompileError("livella's kernels need the vector extensions of g++ or clang++")
        try:
            from torch.utils import cpp_extension
        except ImportError as error:
            raise CompileError(
                "livella's kernels are built against an installed torch: install torch first, "
                "then livella with pip's --no-build-isolation"
            ) from error
        include = cpp_extension.include_paths()
        sources = {f"{SOURCES}/{name}.cpp": flags for name, flags in VARIANTS.items()}
        sources |= {f"{SOURCES}/{name}.cpp": [] for name in ("dispatch", "memory", "bindings")}

        def compile_one(source: str) -> list[str]:
            return self.compiler.compile(
                [source],
                output_dir=self.build_temp,
                include_dirs=include,
                extra_postargs=[*FLAGS, *sources[source]],
                depends=[str(path) for path in SOURCES.glob("*.h")],
            )

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = [built for each in pool.map(compile_one, sources) for built in each]
        self.compiler.link_shared_object(
            objects,
            self.get_ext_fullpath(ext.name),
            library_dirs=cpp_extension.library_paths(),
            libraries=["torch_cpu"],
            extra_postargs=os.environ.get("LIVELLA_LDFLAGS", "-Wl,-s").split(),
            target_lang="c++",
        )
        self.built = True

    def get_ext_filename(self, fullname: str) -> str:
        """Name the library without a Python's tag: it is for all of them."""
        return str(Path(*fullname.split("."))) + ".so"


class Wheel(bdist_wheel):
    """A wheel for any Python: of this platform with the kernels, of any without them."""

    def get_tag(self) -> tuple[str, str, str]:
        """Give Python, ABI and platform."""
        built = self.get_finalized_command("build_ext").built
        return "py3", "none", super().get_tag()[2] if built else "any"


setup(
    ext_modules=[Extension("livella._kernels", sources=[], optional=True)],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": Wheel},
)
