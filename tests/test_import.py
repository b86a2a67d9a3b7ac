"""What `import livella` brings, and what it leaves for when it is used."""

import ast
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import livella
from livella import study

# Tried in one process that has torch alone, each in a fork of it.
FORKS = """
import os, sys, torch
before = set(sys.modules)
for code in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        exec(code, {"before": before})
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, code
"""


def forked(*codes):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", FORKS, *codes],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


LAYER = """
import sys, livella
livella.nn.BatchNorm2d(3)
new = set(sys.modules) - before
others = {name.partition(".")[0] for name in new} - sys.stdlib_module_names
assert others <= {"livella", "torch"}, others
assert not {name for name in new if name.startswith(("torch._dynamo", "torch._inductor"))}
rooms = {name.split(".")[1] for name in new if name.startswith("livella.")}
assert not rooms & {"model", "diagnosis", "bench", "report", "cli"}, rooms
assert {name for name in new if "study" in name} <= {"livella.study", "livella.study.errors"}
"""
TRIAL = """
import sys
from livella.study.runner import run_trial
new = {".".join(name.split(".")[:2]) for name in set(sys.modules) - before}
unwanted = {"livella.diagnosis", "livella.bench", "livella.report", "livella.cli"}
unwanted |= {"rich", "typer", "jinja2", "plotly", "scipy", "sklearn", "pandas"}
assert not new & unwanted, new & unwanted
"""


def test_a_layer_and_a_trial_of_a_study_load_what_they_stand_on_alone():
    forked(LAYER, TRIAL)


def test_the_function_study_keeps_its_name_whatever_is_imported_first():
    the_function = "assert isinstance(livella.study, FunctionType), livella.study"
    orders = [
        f"import livella, livella.study.claims; {the_function}",
        f"import livella.study.run; {the_function}; from livella.study import CLAIMS",
        f"import livella; {the_function}; import livella.study, livella.study.claims",
        "from livella.study import study, CLAIMS; import livella; assert livella.study is study",
        "from livella import study; import livella.study.run; assert livella.study is study",
        "import livella; from livella import nn, bench, report",
    ]
    forked(*(f"from types import FunctionType; {o}; {the_function}" for o in orders))


def test_type_checkers_are_told_of_the_names_that_there_are():
    statements = ast.parse(Path(livella.__file__).read_text()).body
    (block,) = (s for s in statements if ast.unparse(s).startswith("if TYPE_CHECKING:"))
    told = {name.asname: line.module for line in block.body for name in line.names}
    assert told.pop("nn") == told.pop("functional") == "livella"
    assert told == livella._HOME


@pytest.mark.parametrize("name", livella._HOME)
def test_a_public_name_is_where_the_table_says_and_can_be_pickled(name):
    value = getattr(livella, name)
    assert value.__module__ == livella._HOME[name]
    assert pickle.loads(pickle.dumps(value)) is value


def test_every_name_shows_and_a_star_brings_the_public_ones():
    names = {}
    exec("from livella import *", names)
    assert {*names} - {"__builtins__"} == {"nn", "functional", *livella._HOME}
    assert {*names} - {"__builtins__"} <= {*dir(livella)}
    assert names["study"] is livella.study is study
    for module in livella._MODULES:
        assert getattr(livella, module) is sys.modules[f"livella.{module}"]


def test_a_name_that_is_not_there_is_an_attribute_error_that_says_so():
    with pytest.raises(AttributeError, match=r"module 'livella' has no attribute 'inspct'"):
        _ = livella.inspct
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        exec("from livella import nothing")
    with pytest.raises(AttributeError, match=r"module 'livella.study' has no attribute 'nothing'"):
        _ = sys.modules["livella.study"].nothing
