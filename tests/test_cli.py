"""The command line: what it shows, and one line with exit code 2 for what its user can mend."""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import livella
from livella import cli
from livella.study import CLAIMS
from tests.study.worlds import users

LIVELLA = str(Path(sys.executable).with_name("livella"))
TINY = ("--steps", "1", "--seeds", "1", "--jobs", "1")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder to stand in, and an import path of the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def invoke(*words):
    return CliRunner().invoke(cli.app, words)


BAD = {
    "unknown claim": (["speed"], "unknown claim 'speed': the claims are convergence, learning_"),
    "one of two claims unknown": (["batch_size", "x"], "unknown claim 'x'"),
    "unknown data": (["--data", "cifar"], "unknown data 'cifar'"),
    "no module": (["--model", "nowhere_at_all:f"], "no module 'nowhere_at_all'"),
    "no file": (["--model", "nowhere.py:f"], "no file 'nowhere.py'"),
    "no function": (["--model", users("nowhere")], "no function 'nowhere'"),
    "no function of data": (["--data", users("nowhere")], "no function 'nowhere'"),
    "a function that fails": (["--data", users("fails")], "raised RuntimeError: no such disk"),
    "no normalization": (["--model", users("no_norm_for_digits")], "no normalization to swap"),
    "one class": (["--data", users("one_class")], "has one class only"),
    "NaN": (["--data", users("nan")], "has NaN or infinity in 1 of 72 examples"),
    "empty loader": (["--data", users("empty")], "is empty"),
    "no IDX folder": (["--data", "idx:nowhere"], "no folder 'nowhere' with IDX files"),
    "no jobs": (["--jobs", "0"], "jobs is 0: expected a whole number from 1"),
    "no seeds": (["--seeds", "0"], "seeds is 0"),
    "no steps": (["--steps", "0"], "steps is 0"),
}


@pytest.mark.parametrize(("words", "said"), BAD.values(), ids=BAD)
def test_bad_input_is_told_in_one_line_and_nothing_is_written(folder, words, said):
    result = invoke("study", *words)
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("livella: ")
    assert said in line
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_a_file_in_the_way_is_told_in_one_line_and_stays(folder, out):
    (folder / "file").write_text("mine")
    result = invoke("study", "batch_size", *TINY, "--out", out)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"livella: cannot write to '{out}': ")
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [("file", "mine")]


def test_a_report_that_cannot_be_written_is_told_in_one_line(folder):
    (folder / "out" / "report.html").mkdir(parents=True)
    result = invoke("study", "batch_size", *TINY, "--out", "out")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1


def test_a_study_shows_its_verdicts_and_where_the_page_is(folder):
    result = invoke("study", "batch_size", *TINY, "--out", "out")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert "inconclusive" in result.stdout
    assert result.stdout.endswith("The page: out/report.html\n")
    assert sorted(path.name for path in (folder / "out").iterdir()) == [
        ".lock",
        "report.html",
        "report.json",
        "trials.jsonl",
    ]


def test_every_option_reaches_the_call(folder, monkeypatch):
    asked = {}

    def study(claims, **settings):
        asked.update(settings, claims=claims)
        raise livella.StudyError("asked\nenough")

    monkeypatch.setattr(livella, "study", study)
    words = [
        "study",
        "shift",
        "dropout",
        "--data",
        "d",
        "--model",
        "m:f",
        "--seeds",
        "7",
        "--jobs",
        "3",
        "--out",
        "o",
        "--steps",
        "9",
    ]
    assert invoke(*words).stderr == "livella: asked enough\n"
    expected = {"data": "d", "model": "m:f", "seeds": 7, "jobs": 3, "out": Path("o"), "steps": 9}
    assert asked == {"claims": ["shift", "dropout"], **expected}
    invoke("study")
    expected = {"data": "digits", "model": None, "seeds": 5, "jobs": None, "steps": None}
    assert asked == {"claims": (), "out": Path("livella-study"), **expected}


def test_an_interrupt_ends_with_its_own_code_and_one_line(monkeypatch):
    def interrupted(*_args, **_settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(livella, "study", interrupted)
    result = invoke("study")
    assert result.exit_code == 130
    assert result.stderr.splitlines() == [
        "livella: interrupted; finished trials are kept, and the same command goes on"
    ]


@pytest.mark.parametrize("words", [["--help"], ["study", "--help"]])
def test_help_explains_itself(words):
    result = invoke(*words)
    assert result.exit_code == 0
    assert "study" in result.stdout
    assert all(len(line) <= 100 for line in result.stdout.splitlines())


def test_the_help_of_study_names_every_option():
    shown = invoke("study", "--help").stdout
    assert all(f"--{o}" in shown for o in ("data", "model", "seeds", "jobs", "out", "steps"))


@pytest.mark.parametrize("command", [[LIVELLA], [sys.executable, "-m", "livella"]])
def test_the_installed_command_tells_bad_input_in_one_line(folder, command):
    result = subprocess.run([*command, "study", "speed"], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stdout == ""
    names = ", ".join(claim.name for claim in CLAIMS)
    assert result.stderr == f"livella: unknown claim 'speed': the claims are {names}\n"
    assert list(folder.iterdir()) == []


def test_the_record_holds_what_was_asked(folder):
    invoke("study", "batch_size", *TINY, "--out", "out")
    record = json.loads((folder / "out" / "report.json").read_text())
    assert record["seeds"] == 1
    assert [claim["name"] for claim in record["claims"]] == ["batch_size"]


def test_the_version_says_whether_kernels_were_built():
    shown = invoke("--version")
    assert shown.exit_code == 0
    built = Path(livella.__file__).with_name("_kernels.so").exists()
    assert shown.stdout == (
        f"livella {metadata.version('livella')}, torch {torch.__version__}, "
        f"kernels: {'built' if built else 'not built'}\n"
    )


LIGHT = """
import sys
from livella.cli import main
words = ["--help"], ["--version"], ["study", "--help"], ["inspect"], ["bench", "--wrong"]
codes = []
words = [*words, ["repair", "m.py:f", "--wrong"], ["study", "speed"], ["inspect", "m.py"]]
words = [*words, ["study", "--model", "none.py:f"], ["bench", "--threads", "0"]]
for sys.argv[1:] in words:
    try:
        main()
    except SystemExit as end:
        codes.append(end.code)
assert codes == [0] * 3 + [2] * 7, codes
heavy = {"torch", "numpy", "scipy", "sklearn", "joblib", "plotly", "pandas"} & {*sys.modules}
assert not heavy, heavy
"""


def test_help_versions_and_errors_in_arguments_do_without_torch():
    ran = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert "unknown claim 'speed'" in ran.stderr


MINE = """
import torch

def net():
    torch.manual_seed(0)
    layers = torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
    return torch.nn.Sequential(*layers)

def batches():
    g = torch.Generator().manual_seed(1)
    return [2 + torch.randn(32, 6, generator=g) for _ in range(12)]

def fitted():
    model = net()
    import livella
    model[1].num_batches_tracked += 12
    livella.estimate_population(model.eval(), batches(), progress=False).apply()
    return model

def fails():
    yield batches()[0]
    raise RuntimeError("no such disk")

def failing():
    class Loader:
        def __iter__(self):
            return fails()
    return Loader()
"""


@pytest.fixture
def mine(folder):
    (folder / "mine.py").write_text(MINE)
    return folder


def test_inspect_names_the_layer_and_fails_by_level(mine):
    result = invoke("inspect", "mine.py:net", "--data", "mine.py:batches")
    assert result.exit_code == 1
    assert "1: never_updated" in result.stdout
    assert "Wrong in use" in result.stdout
    healthy = ("inspect", "mine.py:fitted", "--data", "mine.py:batches")
    assert invoke(*healthy).exit_code == 0
    assert invoke(*healthy, "--fail-on", "note").exit_code == 1, "the bias before it"
    assert invoke("inspect", "mine.py:net", "--fail-on", "never").exit_code == 0
    assert invoke("inspect", "mine.py:net", "--fail-on", "warning").exit_code == 1


@pytest.mark.parametrize("form", ["text", "html", "json", "sarif"])
def test_inspect_writes_every_format(mine, form):
    words = ("inspect", "mine.py:net", "--format", form, "--fail-on", "never")
    shown = invoke(*words)
    result = invoke(*words, "--out", "found")
    assert result.exit_code == 0
    assert "never_updated" in (mine / "found").read_text()
    assert "never_updated" in shown.stdout
    if form in ("json", "sarif"):
        json.loads(shown.stdout)
    if form == "sarif":
        assert '"uri": "mine.py"' in shown.stdout


def test_repair_writes_weights_that_inspect_then_finds_healthy(mine):
    repaired = invoke("repair", "mine.py:net", "--data", "mine.py:batches", "--out",
                      "w.safetensors", "--page", "page.html")  # fmt: skip
    assert repaired.exit_code == 0
    assert "measure_statistics: 1" in repaired.stdout
    assert "After the repair" in (mine / "page.html").read_text()
    again = invoke("inspect", "mine.py:net", "--weights", "w.safetensors", "--data",
                   "mine.py:batches")  # fmt: skip
    assert again.exit_code == 0
    assert "tensors loaded" in again.stderr


BAD_MODELS = {
    "no file": (["nowhere.py:net"], "no file 'nowhere.py'"),
    "no function": (["mine.py:nothing"], "no function 'nothing'"),
    "no module": (["mine.py:batches"], "expected a torch.nn.Module"),
    "no weights": (["mine.py:net", "--weights", "w.pt"], "no file 'w.pt'"),
    "a loader that raises": (
        ["mine.py:net", "--data", "mine.py:failing"], "RuntimeError: no such disk",
    ),
    "no loader": (["mine.py:net", "--data", "mine.py:fails"], "read once"),
}  # fmt: skip


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(("words", "said"), BAD_MODELS.values(), ids=BAD_MODELS)
def test_what_cannot_be_inspected_is_told_in_one_line(words, said):
    result = invoke("inspect", *words)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("livella: ")
    assert said in line
