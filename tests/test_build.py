"""What setup.py compiles and what it finds again; the lock, which leaves nothing to resolve.

The compiler is a stand-in that notes what it is asked for.
"""

import os
import re
import runpy
import shutil
import time
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("setuptools")
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from setuptools import Distribution, Extension
from setuptools.errors import CompileError

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "constraints.txt"
if not LOCK.exists():
    pytest.skip("needs a checkout", allow_module_level=True)
SETUP = SimpleNamespace(**runpy.run_path(str(ROOT / "setup.py"), run_name="setup"))


class Compiler:
    """Its text is the sources and the macros it defines; its objects say of what they were made."""

    compiler_type = "unix"

    def __init__(self, command=("c++", "-pipe"), version="12.2", fails=False):
        self.compiler_so_cxx, self.version, self.fails = list(command), version, fails
        self.compiled, self.linked = [], []
        self.meanwhile = lambda: None

    def compile(self, sources, output_dir, include_dirs, extra_postargs):
        made = Path(output_dir, sources[0]).with_suffix(".o")
        made.parent.mkdir(parents=True, exist_ok=True)
        headers = sorted(Path(sources[0]).parent.glob("*.h"))
        read = "".join(path.read_text() for path in [*headers, Path(sources[0])])
        if "-E" in extra_postargs:
            made.write_text(self.version + read)
        elif self.fails:
            raise CompileError("no")
        else:
            self.compiled.append((Path(output_dir).parent.name, extra_postargs))
            made.write_text(f"{extra_postargs} {read}")
            self.meanwhile()
        return [str(made)]

    def link_shared_object(self, objects, library, **options):
        self.linked = [Path(path).parts for path in objects]
        Path(library).parent.mkdir(parents=True, exist_ok=True)
        Path(library).write_text("".join(Path(path).read_text() for path in objects))


@pytest.fixture(autouse=True)
def checkout(tmp_path, monkeypatch):
    """A checkout with little in it, and a home of its own."""
    sources = tmp_path / "checkout" / SETUP.SOURCES
    sources.mkdir(parents=True)
    for unit in SETUP.units():
        (tmp_path / "checkout" / unit.source).write_text(f"int {unit.source.stem};")
    (sources / "kernels.h").write_text("int header;")
    monkeypatch.chdir(tmp_path / "checkout")
    for name in ("LIVELLA_CACHE", "LIVELLA_CXXFLAGS", "LIVELLA_LDFLAGS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "checkout"


def build(compiler=None, folder="build"):
    """Build in a folder that holds nothing; give the compiler, with what it was asked for."""
    shutil.rmtree(folder, ignore_errors=True)
    command = SETUP.BuildKernels(Distribution())
    command.build_temp, command.build_lib, command.inplace = f"{folder}/temp", folder, False
    command.compiler = compiler or Compiler()
    command.extensions = [Extension("livella._kernels", sources=[])]
    command.build_extension(command.extensions[0])
    return command.compiler


def library(folder="build"):
    return Path(folder, "livella", "_kernels.so").read_text()


def kept(tmp_path):
    return sorted((tmp_path / "home" / "livella").iterdir())


def test_each_unit_is_compiled_once_and_linked():
    compiler = build()
    names = [unit.name for unit in SETUP.units()]
    assert sorted(name for name, _ in compiler.compiled) == sorted(names)
    assert len(compiler.linked) == len(names) == len(set(names))


def test_units_that_run_on_every_processor_are_linked_first():
    flags = [[flag for flag in unit.flags if flag.startswith("-m")] for unit in SETUP.units()]
    assert flags == sorted(flags, key=len)
    # An object lies in a folder of its unit's name.
    assert [path[2] for path in build().linked] == [unit.name for unit in SETUP.units()]


def test_what_is_unchanged_is_found_again_wherever_it_is_built(tmp_path, monkeypatch, checkout):
    build()
    before = library()
    again = build()
    assert again.compiled == []
    assert library() == before
    shutil.copytree(checkout, tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert build().compiled == []
    assert library() == before


@pytest.mark.parametrize("file", ["kernels.h", "bindings.cpp"])
def test_a_changed_source_is_compiled_again(file):
    build()
    Path(SETUP.SOURCES, file).write_text("int other;")
    assert build().compiled
    assert "int other;" in library()


@pytest.mark.parametrize(
    "compiler",
    [
        lambda: Compiler(command=("other", "-pipe")),
        lambda: Compiler(command=("c++", "-pipe", "-g")),
        lambda: Compiler(version="13.1"),
    ],
    ids=["another command", "another flag", "another version"],
)
def test_another_compiler_finds_nothing(compiler):
    build()
    assert len(build(compiler()).compiled) == len(SETUP.units())


def test_flags_of_the_environment_are_followed_and_their_objects_not_kept(monkeypatch, tmp_path):
    build()
    before = kept(tmp_path)
    monkeypatch.setenv("LIVELLA_CXXFLAGS", "-O1 -g")
    build()
    compiler = build()
    assert kept(tmp_path) == before
    assert len(compiler.compiled) == len(SETUP.units())
    assert all(flags[-2:] == ["-O1", "-g"] for _, flags in compiler.compiled)
    monkeypatch.delenv("LIVELLA_CXXFLAGS")
    assert build().compiled == []


def test_a_source_edited_while_it_is_compiled_is_not_taken_for_what_it_was(tmp_path):
    header = Path(SETUP.SOURCES, "kernels.h")
    before = header.read_text()
    compiler = Compiler()
    compiler.meanwhile = lambda: header.write_text("int edited;")
    build(compiler)
    header.write_text(before)
    build()
    assert "int edited;" not in library()


def test_nothing_is_kept_where_that_is_not_wanted(tmp_path, monkeypatch):
    monkeypatch.setenv("LIVELLA_CACHE", "")
    build()
    assert build().compiled
    assert not (tmp_path / "home").exists()


def test_the_folder_can_be_named(tmp_path, monkeypatch):
    monkeypatch.setenv("LIVELLA_CACHE", str(tmp_path / "named"))
    build()
    assert build().compiled == []
    assert len(list((tmp_path / "named").iterdir())) == len(SETUP.units())


def test_a_folder_that_cannot_be_used_does_no_harm(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LIVELLA_CACHE", str(tmp_path / "file" / "below"))
    assert build().compiled
    assert library()


def test_a_unit_that_does_not_compile_leaves_nothing_behind(tmp_path):
    with pytest.raises(CompileError):
        build(Compiler(fails=True))
    assert not (tmp_path / "home").exists()


def test_an_object_that_could_not_be_kept_whole_is_not_kept(tmp_path, monkeypatch):
    def full(source, to):
        Path(to).write_text("half")
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        build()
    assert kept(tmp_path) == []
    assert build().compiled


def test_an_empty_object_is_as_good_as_none(tmp_path):
    build()
    kept(tmp_path)[0].write_bytes(b"")
    assert len(build().compiled) == 1
    assert build().compiled == []


def test_an_object_swept_while_it_is_fetched_stays_away(tmp_path, monkeypatch):
    build()
    used = os.utime

    def swept(path):
        path.unlink()
        used(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "utime", swept)
        assert build().compiled == []
    assert kept(tmp_path) == []


def test_without_a_home_nothing_is_kept(tmp_path, monkeypatch):
    def nobody(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(SETUP.Path, "expanduser", nobody)
    assert len(build().compiled) == len(SETUP.units())
    assert not (tmp_path / "home").exists()


def test_what_nobody_asked_for_in_a_long_time_is_removed(tmp_path):
    build()
    *others, asked, old = kept(tmp_path)
    mine = tmp_path / "home" / "livella" / "mine.o"
    mine.touch()
    past = time.time() - (SETUP.DAYS_KEPT + 1) * 24 * 3600
    for path in (old, mine):
        os.utime(path, (past, past))
    SETUP.Cache().sweep()
    assert kept(tmp_path) == sorted([*others, asked, mine])


def test_what_is_asked_for_stays(tmp_path):
    build()
    past = time.time() - (SETUP.DAYS_KEPT + 1) * 24 * 3600
    for path in kept(tmp_path):
        os.utime(path, (past, past))
    build()
    assert len(kept(tmp_path)) == len(SETUP.units())


def test_without_torch_there_are_no_kernels_and_it_says_what_to_do(monkeypatch):
    monkeypatch.setitem(SETUP.BuildKernels.build_extension.__globals__, "find_spec", lambda _: None)
    with pytest.raises(CompileError, match=r"install torch first.*no-build-isolation"):
        build()


def lock():
    """What the lock names for this Python."""
    lines = [line for line in LOCK.read_text().splitlines() if line and not line.startswith("#")]
    pins = [Requirement(line) for line in lines]
    return [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]


def test_the_lock_pins_each_package_once():
    names = [canonicalize_name(pin.name) for pin in lock()]
    assert sorted(names) == sorted(set(names))
    for pin in lock():
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), pin


def needed(requirement, extras=frozenset({""})):
    """The requirements of an installed package, those of its extras included."""
    for text in distribution(requirement).requires or ():
        each = Requirement(text)
        if any(each.marker is None or each.marker.evaluate({"extra": extra}) for extra in extras):
            yield each


def test_the_lock_names_all_that_is_needed_in_versions_that_go_together():
    """It is installed without looking at what its packages need."""
    pins = {canonicalize_name(pin.name): str(pin.specifier) for pin in lock()}
    wrong, seen, waiting = set(), set(), [Requirement("livella[dev]")]
    while waiting:
        asked = waiting.pop()
        key = (canonicalize_name(asked.name), frozenset(asked.extras), str(asked.specifier))
        if key in seen:
            continue
        seen.add(key)
        pin = pins.get(key[0])
        if key[0] not in ("livella", "torch") and (
            pin is None or not asked.specifier.contains(pin.removeprefix("=="), prereleases=True)
        ):
            wrong.add(f"{asked}: {pin}")
        try:
            found = list(needed(asked.name, {"", *asked.extras}))
        except PackageNotFoundError:
            continue
        # What torch needs is installed with it, as it differs by platform.
        waiting += [each for each in found if key[0] != "torch"]
    assert not wrong
