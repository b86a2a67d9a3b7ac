"""Builds the kernels beside the package, where there is a compiler for them.

All else about the package stands in pyproject.toml. The library holds no Python and is built on
LibTorch's stable ABI: one build serves every Python, and every torch from 2.10 on.

What was compiled is kept for the next build, wherever that is done: `LIVELLA_CACHE` names the
folder, in place of ~/.cache/livella; where it is empty nothing is kept. `LIVELLA_CXXFLAGS` adds to
the flags, and then nothing is kept either; `LIVELLA_LDFLAGS` takes the place of the linker's.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

SOURCES = Path("src/livella/csrc")
X86 = platform.machine().lower() in {"x86_64", "amd64"} and sys.maxsize > 2**32

INSTRUCTION_SETS: dict[str, list[str]] = {"portable": []}
if X86:
    INSTRUCTION_SETS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    INSTRUCTION_SETS["avx512"] = [
        *INSTRUCTION_SETS["avx2"],
        *(f"-mavx512{part}" for part in ("f", "bw", "vl", "dq")),
    ]
TYPES = ("f32", "f64", "bf16", "f16")

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
    "-Wno-uninitialized",  # GCC's own headers of intrinsics
    "-Wno-maybe-uninitialized",
    "-DTORCH_TARGET_VERSION=0x020a000000000000",
    *(["-DLIVELLA_X86"] if X86 else []),
]
DAYS_KEPT = 30
"""How long an object is kept that no build asks for."""


class Unit(NamedTuple):
    """What is compiled by itself: a source, with flags of its own."""

    name: str
    source: Path
    flags: list[str]


def units() -> list[Unit]:
    """Give all of them, in the order to link.

    Where the linker finds one inline function in several objects it takes the first, and that one
    must run on every processor: so the units without flags for an instruction set come first.
    """
    plain = [Unit(name, SOURCES / f"{name}.cpp", []) for name in ("bindings", "memory", "dispatch")]
    variants = [
        Unit(
            f"{name}_{kind}",
            SOURCES / "variant.cpp",
            [*flags, f"-DLIVELLA_ISA={name}", f"-DLIVELLA_TYPE={kind}"],
        )
        for name, flags in INSTRUCTION_SETS.items()
        for kind in TYPES
    ]
    return [*plain, *variants]


def processors() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Cache:
    """Objects of earlier builds, each by a digest of all that it was compiled from.

    What cannot be read or written here is compiled as if nothing had been kept.
    """

    def __init__(self) -> None:
        named = os.environ.get("LIVELLA_CACHE")
        if named is None:
            with suppress(RuntimeError):  # nobody's home
                home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
                named = str(Path(home, "livella"))
        if os.environ.get("LIVELLA_CXXFLAGS"):
            # To debug, sanitize or measure coverage lines and paths matter, which no digest holds.
            named = None
        self.folder = Path(named) if named else None

    def fetch(self, digest: str, to: Path) -> bool:
        """Copy the object to `to`; says whether there is one."""
        if self.folder is None:
            return False
        kept = self._kept(self.folder, digest)
        try:
            shutil.copyfile(kept, to)
        except OSError:
            return False
        with suppress(OSError):  # it may be there to read alone, or be swept just now
            os.utime(kept)
        return to.stat().st_size > 0  # a crash of the machine may have left a name for nothing

    def keep(self, digest: str, built: Path) -> None:
        """Take an object in: whole, whoever else does the same now."""
        if self.folder is None:
            return
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(".o", self._kept(Path(), "").stem, self.folder)
            os.close(descriptor)
            beside = Path(name)
            try:
                shutil.copyfile(built, beside)
                beside.replace(self._kept(self.folder, digest))
            finally:
                beside.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what no build has asked for in a long time."""
        if self.folder is None:
            return
        for kept in self.folder.glob(self._kept(Path(), "*").name):
            with suppress(OSError):
                if kept.stat().st_mtime < time.time() - DAYS_KEPT * 24 * 3600:
                    kept.unlink()

    @staticmethod
    def _kept(folder: Path, digest: str) -> Path:
        return folder / f"livella-{digest}.o"


class BuildKernels(build_ext):
    """Compiles each unit with flags of its own, and links them."""

    built = False

    def build_extension(self, ext: Extension) -> None:
        """Build the one library; where that cannot be, the package is installed without it."""
        if self.compiler.compiler_type == "msvc":
            raise CompileError("livella's kernels need the vector extensions of g++ or clang++")
        torch = find_spec("torch")
        if torch is None or torch.origin is None:
            raise CompileError(
                "livella's kernels are built against an installed torch: install torch first, "
                "then livella with pip's --no-build-isolation"
            )
        home, cache = Path(torch.origin).parent, Cache()
        with ThreadPoolExecutor(processors()) as pool:
            objects = list(pool.map(lambda unit: self.compile(unit, home, cache), units()))
        cache.sweep()
        self.compiler.link_shared_object(
            objects,
            self.get_ext_fullpath(ext.name),
            library_dirs=[str(home / "lib")],
            libraries=["torch_cpu"],
            extra_postargs=os.environ.get("LIVELLA_LDFLAGS", "-Wl,-s").split(),
            target_lang="c++",
        )
        self.built = True

    def compile(self, unit: Unit, torch: Path, cache: Cache) -> str:
        """Compile a unit, unless what was kept came of the same.

        The same is: the command, and the text that the compiler makes of the source and of all that
        it includes, with every macro: these tell the compiler, its version and the processor's
        instructions too. Where torch's headers lie does not matter.
        """
        flags = [*FLAGS, *unit.flags, *os.environ.get("LIVELLA_CXXFLAGS", "").split()]

        def run(folder: str, *more: str) -> str:
            [made] = self.compiler.compile(
                [str(unit.source)],
                output_dir=str(Path(self.build_temp, unit.name, folder)),
                include_dirs=[str(torch / "include")],
                extra_postargs=[f"-fmacro-prefix-map={torch}=torch", *flags, *more],
            )
            return made

        def digest() -> str:
            text = Path(run("text", "-E", "-P", "-dD")).read_bytes()
            command = "\0".join([*self.compiler.compiler_so_cxx, *flags])
            return hashlib.sha256(command.encode() + text).hexdigest()

        made_from = digest()
        built = Path(self.build_temp, unit.name, "object.o")
        if not cache.fetch(made_from, built):
            Path(run("object")).replace(built)
            if digest() == made_from:  # nobody edited it meanwhile
                cache.keep(made_from, built)
        return str(built)

    def get_ext_filename(self, fullname: str) -> str:
        """Name the library without a Python's tag: it is for all of them."""
        return str(Path(*fullname.split("."))) + ".so"


class Wheel(bdist_wheel):
    """A wheel for any Python: of this platform with the kernels, of any without them."""

    def get_tag(self) -> tuple[str, str, str]:
        """Give Python, ABI and platform."""
        built = self.get_finalized_command("build_ext").built
        return "py3", "none", super().get_tag()[2] if built else "any"


if __name__ == "__main__":
    setup(
        ext_modules=[Extension("livella._kernels", sources=[], optional=True)],
        cmdclass={"build_ext": BuildKernels, "bdist_wheel": Wheel},
    )
