"""Which tests reach the kernels: seen while they run on them, and run again on the reference path.

A test of what the kernels compute is judged on both paths; all others are judged once. Nobody
keeps a list: a run on the kernels notes in pytest's cache who reached them in its own process, or
compiled something, and `--reached` runs those and no others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from typing import Any

import pytest
import torch

from livella import functional, native

CACHED = "livella/reached"
REACHED = "reached the kernels"


class Reached:
    """A plugin of pytest that watches the one place where the path is chosen."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.seen = False
        self.made: set[tuple[str, str]] = set()
        self.ran: dict[str, bool] = {}
        self.watched = pytest.MonkeyPatch()
        self._watch(functional, "_kernels_take", lambda takes: takes)
        self._watch(torch, "compile", lambda _: True)
        self._watch(torch.export, "export", lambda _: True)

    def _watch(self, place: Any, name: str, reaches: Callable[[Any], bool]) -> None:
        function = getattr(place, name)

        @functools.wraps(function)
        def watched(*args: Any, **options: Any) -> Any:
            result = function(*args, **options)
            if not torch.compiler.is_compiling() and reaches(result):
                self.seen = True
            return result

        self.watched.setattr(place, name, watched)

    def pytest_unconfigure(self) -> None:
        """Leave what was watched as it was."""
        self.watched.undo()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        """Look at each test by itself, with the fixtures that are made for it."""
        self.seen = False

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
        """Note the fixtures that reached them: all tests that use one do."""
        before, self.seen = self.seen, False
        try:
            return (yield)
        finally:
            if self.seen:
                self.made.add((fixturedef.baseid, fixturedef.argname))
            self.seen |= before

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Function, call: pytest.CallInfo[None]) -> None:
        """Say it in the report, which travels to the process that writes it down."""
        uses = any(n in item.fixturenames and item.nodeid.startswith(b) for b, n in self.made)
        if call.when == "teardown" and (self.seen or uses):
            item.user_properties.append((REACHED, True))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect what the reports of all processes say."""
        if report.when == "teardown":
            self.ran[report.nodeid] = (REACHED, True) in report.user_properties

    def pytest_sessionfinish(self) -> None:
        """Write down what was seen on the kernels; what did not run now stays as it was known."""
        cache: pytest.Cache | None = getattr(self.config, "cache", None)
        if cache is None or hasattr(self.config, "workerinput"):
            return
        if not native.loaded:  # judged on the reference path already: none is left to run again
            cache.set(CACHED, cache.get(CACHED, []))
            return
        known = dict.fromkeys(cache.get(CACHED, []), True) | self.ran
        cache.set(CACHED, sorted(name for name, reached in known.items() if reached))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--reached`."""
    parser.addoption(
        "--reached",
        action="store_true",
        help="run only the tests that reached the kernels when the suite last ran on them",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Watch; and refuse, before any process is started, to choose tests where none are known."""
    cache: pytest.Cache | None = getattr(config, "cache", None)
    if config.getoption("--reached") and (cache is None or cache.get(CACHED, None) is None):
        raise pytest.UsageError("--reached: run the suite first, with pytest's cache")
    config.pluginmanager.register(Reached(config), "livella-reached")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the tests out that the path does not matter to, where asked for."""
    if not config.getoption("--reached"):
        return
    assert config.cache is not None, "seen to above"
    chosen = set(config.cache.get(CACHED, []))
    left_out = [item for item in items if item.nodeid not in chosen]
    items[:] = [item for item in items if item.nodeid in chosen]
    config.hook.pytest_deselected(items=left_out)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Where the first run was on the reference path nothing is left to run again: that is well."""
    if session.config.getoption("--reached") and exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
        session.exitstatus = pytest.ExitCode.OK
