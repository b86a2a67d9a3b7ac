"""The command line: what it shows, and one line with exit code 2 for what its user can mend."""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

import livella
from livella import cli
from livella.study import CLAIMS
from tests.report.inspections import HEALTHY, SICK
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
words = [*words, ["inspect", "json:loads", "--weights", "none.pt"]]
words = [*words, ["inspect", "json:loads", "--out", "none/here.html"]]
words = [*words, ["inspect", "json:loads", "--ignore", "nothing"]]
words = [*words, ["inspect", "json:loads", "--loss", "nowhere"]]
words = [*words, ["inspect", "json:loads", "--target", "none.py:labels"]]
repair = ["repair", "json:loads", "--data", "json:loads", "--out"]
words = [*words, [*repair, "none/w.pt"], [*repair, "w.pt", "--page", "none/page.html"]]
for sys.argv[1:] in words:
    try:
        main()
    except SystemExit as end:
        codes.append(end.code)
assert codes == [0] * 3 + [2] * 14, codes
heavy = {"torch", "numpy", "scipy", "sklearn", "joblib", "plotly", "pandas"} & {*sys.modules}
assert not heavy, heavy
"""


def test_help_versions_and_errors_in_arguments_do_without_torch():
    ran = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert "unknown claim 'speed'" in ran.stderr
    assert "no folder 'none' to write 'page.html' in: make it first" in ran.stderr
    assert "ignore: there is no check 'nothing': expected check or check@layer" in ran.stderr
    assert "no file 'none.pt'" in ran.stderr


INTERRUPTED = """
import sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Finder())
from livella.cli import main
sys.argv[1:] = sys.argv[1].split()
main()
"""


@pytest.mark.parametrize(
    "words", ["study", "bench --quick", "inspect json:loads",
              "repair json:loads --data json:loads --out w.safetensors"],
)  # fmt: skip
def test_an_interrupt_while_torch_is_loaded_ends_with_one_line(folder, words):
    command = [sys.executable, "-c", INTERRUPTED, words]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 130, ran.stderr
    (line,) = ran.stderr.splitlines()
    assert line.startswith("livella: interrupted; ")
    assert list(folder.iterdir()) == []


MINE = """
import torch

def net():
    torch.manual_seed(0)
    layers = torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
    return torch.nn.Sequential(*layers)

def batches():
    g = torch.Generator().manual_seed(1)
    inputs = [20 + 5 * torch.randn(32, 6, generator=g) for _ in range(12)]
    labels = net()(torch.cat(inputs)).argmax(1)  # by the statistics of all the data
    return list(zip(inputs, labels.split(32)))

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


def test_inspect_says_the_command_that_repairs(mine):
    words = ("inspect", "mine.py:net", "--fail-on", "never")
    told = " ".join(invoke(*words, "--data", "mine.py:batches").stdout.replace("\\\n", " ").split())
    assert "livella repair mine.py:net --data mine.py:batches --out mended.safetensors" in told
    stored = " ".join(invoke(*words).stdout.replace("\\\n", " ").split())
    assert "how the network does was not measured" in stored
    assert "livella repair mine.py:net --data FILE.py:FUNCTION --out" in stored
    page = invoke(*words, "--data", "mine.py:batches", "--format", "html").stdout
    assert "livella repair mine.py:net" in page


EVERYTHING = ("never_updated", "statistics_gap", "stale_statistics")


def test_what_is_accepted_is_shown_and_counts_for_nothing(mine):
    words = ("inspect", "mine.py:net", "--data", "mine.py:batches")
    ignoring = [word for check in EVERYTHING for word in ("--ignore", check)]
    assert invoke(*words).exit_code == 1
    result = invoke(*words, *ignoring)
    assert result.exit_code == 0
    assert "ignored." in result.stdout
    assert "never_updated" in result.stdout
    found = json.loads(invoke(*words, *ignoring, "--format", "json").stdout)
    assert {each["check"] for each in found["ignored"]} <= set(EVERYTHING)
    assert not {each["check"] for each in found["findings"]} & set(EVERYTHING)
    (mine / "pyproject.toml").write_text(f"[tool.livella]\nignore = {list(EVERYTHING)}\n")
    assert invoke(*words).stdout == result.stdout
    assert invoke(*words, "--ignore", "momentum@other").exit_code == 0


def test_the_words_about_data_reach_the_call(mine, monkeypatch):
    from livella.diagnosis import loading

    asked = {}

    def call(model, batches, **options):
        asked.update(options)
        raise ValueError("asked enough")

    for name in ("loss_of", "target_of", "forward_of"):
        monkeypatch.setattr(loading, name, lambda text, name=name: (name, text), raising=False)
    words = ["mine.py:net", "--data", "mine.py:batches", "--loss", "mine.py:net", "--target",
             "label", "--forward", "mine.py:fitted", "--ignore", "momentum@a.*"]  # fmt: skip
    expected = {
        "loss": ("loss_of", "mine.py:net"), "target": ("target_of", "label"),
        "forward": ("forward_of", "mine.py:fitted"), "ignore": ("momentum@a.*",),
    }  # fmt: skip
    for command, more in (("inspect", {}), ("repair", {"changing": False})):
        asked.clear()
        monkeypatch.setattr(livella, command, call)
        out = ["--out", "w.safetensors"] if command == "repair" else []
        result = invoke(command, *words, *out)
        assert result.exit_code == 2
        assert "asked enough" in result.stderr
        assert asked == expected | more


def test_repair_writes_weights_that_inspect_then_finds_healthy(mine):
    repaired = invoke("repair", "mine.py:net", "--data", "mine.py:batches", "--out",
                      "w.safetensors", "--page", "page.html")  # fmt: skip
    assert repaired.exit_code == 0, repaired.stderr
    assert "measure_statistics: 1" in repaired.stdout
    assert "repaired, eval()" in repaired.stdout
    assert "After the repair" in (mine / "page.html").read_text()
    again = invoke("inspect", "mine.py:net", "--weights", "w.safetensors", "--data",
                   "mine.py:batches")  # fmt: skip
    assert again.exit_code == 0
    assert "tensors loaded" in again.stderr


OUTCOMES = {
    "repaired": ({"applied": {"measure_statistics": ("0.bn",)}}, 0, True, ""),
    "nothing to do": ({}, 0, True, ""),
    "a gap stays": ({"left": "few data"}, 1, True, "livella: a gap stays: few data"),
    "worse": ({"worse": "score 9 % → 8 %", "left": "few data"}, 1, False,
              "livella: refused to write what got worse: score 9 % → 8 %"),
}  # fmt: skip


@pytest.mark.parametrize(("said", "code", "written", "line"), OUTCOMES.values(), ids=OUTCOMES)
def test_the_exit_code_of_a_repair_says_what_came_of_it(
    mine, monkeypatch, said, code, written, line
):
    done = SimpleNamespace(
        before=SICK, after=HEALTHY, worse="", left="", applied={}, done="nothing to do"
    )
    done.__dict__.update(said, write=lambda path: path.write_text("weights") and path)
    monkeypatch.setattr(livella, "repair", lambda *_args, **_options: done)
    result = invoke("repair", "mine.py:net", "--data", "mine.py:batches", "--out", "w.safetensors")
    assert result.exit_code == code, result.stderr
    assert (mine / "w.safetensors").exists() is written
    assert result.stderr.splitlines() == ([line] if line else [])
    assert "running statistics, eval()" in result.stdout
    assert ("repaired, eval()" in result.stdout) is ("applied" in said)


BAD_MODELS = {
    "no file": (["nowhere.py:net"], "no file 'nowhere.py'"),
    "no function": (["mine.py:nothing"], "no function 'nothing'"),
    "no module": (["mine.py:batches"], "expected a torch.nn.Module"),
    "no weights": (["mine.py:net", "--weights", "w.pt"], "no file 'w.pt'"),
    "a loader that raises": (
        ["mine.py:net", "--data", "mine.py:failing"], "RuntimeError: no such disk",
    ),
    "no loader": (["mine.py:net", "--data", "mine.py:fails"], "read once"),
    "no folder": (["mine.py:net", "--out", "none/page.html"], "no folder 'none' to write"),
    "a folder": (["mine.py:net", "--out", "."], "'.' is a folder: expected a file to write"),
    "no function of labels": (["mine.py:net", "--target", "none.py:labels"], "no file 'none.py'"),
    "no check": (["mine.py:net", "--ignore", "smal_batch"], "such as small_batch"),
}  # fmt: skip


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(("words", "said"), BAD_MODELS.values(), ids=BAD_MODELS)
def test_what_cannot_be_inspected_is_told_in_one_line(words, said):
    result = invoke("inspect", *words)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("livella: ")
    assert said in line
