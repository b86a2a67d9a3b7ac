"""What a user accepts: which findings a pattern means, and where a project writes it down."""

import pytest

from livella.diagnosis import accepted
from livella.diagnosis.accepted import of_project, sort_out
from livella.diagnosis.checks import CHECKS
from livella.diagnosis.records import Finding, Level

FOUND = [
    Finding(check, Level.WARNING, name, "")
    for check, name in (("momentum", "stem"), ("momentum", "head.0.bn"), ("momentum", "head.bn"),
                        ("small_batch", "stem"), ("not_of_the_statistics", ""))
]  # fmt: skip
PATTERNS = {
    "nothing": ([], []),
    "a check": (["momentum"], ["momentum@stem", "momentum@head.0.bn", "momentum@head.bn"]),
    "a layer": (["momentum@stem"], ["momentum@stem"]),
    "layers": (["momentum@head.*"], ["momentum@head.0.bn", "momentum@head.bn"]),
    "one of a few": (["momentum@*.[0-9].bn"], ["momentum@head.0.bn"]),
    "two": (["small_batch", "momentum@stem"], ["momentum@stem", "small_batch@stem"]),
    "the model": (["not_of_the_statistics"], ["not_of_the_statistics"]),
    "of no layer": (["momentum@stem2", "momentum@"], []),
}


@pytest.mark.parametrize(("patterns", "meant"), PATTERNS.values(), ids=PATTERNS)
def test_a_pattern_means_these_findings(patterns, meant):
    kept, ignored = sort_out(FOUND, patterns)
    assert [each.key for each in ignored] == meant
    assert sorted(map(id, (*kept, *ignored))) == sorted(map(id, FOUND))
    assert list(kept) == [each for each in FOUND if each in kept]


@pytest.mark.parametrize("check", [check.__name__ for check in CHECKS])
def test_every_check_can_be_ignored(check):
    finding = Finding(check, Level.NOTE, "bn", "")
    assert sort_out([finding], [check]) == ((), (finding,))


def test_an_unknown_check_is_told_with_the_nearest():
    with pytest.raises(ValueError, match=r"no check 'smal_batch': .*such as small_batch"):
        sort_out(FOUND, ["smal_batch@stem"])
    with pytest.raises(ValueError, match="such as not_finite"):
        sort_out(FOUND, ["xyzzy"])


def test_a_text_in_place_of_a_list_is_told_as_such():
    with pytest.raises(TypeError, match=r"got the text 'momentum', expected .* \['momentum'\]"):
        sort_out(FOUND, "momentum")


def test_the_nearest_table_upwards_counts(tmp_path):
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    assert of_project(inner) == ()
    (tmp_path / "pyproject.toml").write_text('[tool.livella]\nignore = ["momentum@head.*"]\n')
    (tmp_path / "a" / "pyproject.toml").write_text("[project]\nname = 'another'\n")
    assert of_project(inner) == ("momentum@head.*",)
    (inner / "pyproject.toml").write_text('[tool.livella]\nignore = ["small_batch"]\n')
    assert of_project(inner) == ("small_batch",)


BAD = {
    "no TOML": ("[tool.livella\n", "cannot be read as TOML"),
    "no list": ('[tool.livella]\nignore = "momentum"\n', "expected a list such as"),
    "a list of numbers": ("[tool.livella]\nignore = [1]\n", "expected a list such as"),
    "no table": ("tool.livella = 3\n", "is 3: expected a table"),
    "no check": ('[tool.livella]\nignore = ["smal_batch"]\n', "such as small_batch"),
    "another name": ("[tool.livella]\nignored = []\n", "has ignored: it may have ignore alone"),
}


@pytest.mark.parametrize(("text", "said"), BAD.values(), ids=BAD)
def test_a_table_that_cannot_be_read_is_told(tmp_path, text, said):
    (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(ValueError, match=said) as caught:
        of_project(tmp_path)
    assert "pyproject.toml" in str(caught.value)


def test_where_nothing_reads_toml_it_says_what_to_install(tmp_path, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(accepted.importlib, "import_module", missing)
    (tmp_path / "pyproject.toml").write_text("[tool.other]\n")
    assert of_project(tmp_path) == ()
    (tmp_path / "pyproject.toml").write_text("[tool.livella]\n")
    with pytest.raises(ValueError, match=r"pyproject.toml: .*pip install tomli"):
        of_project(tmp_path)


def test_another_project_may_be_broken(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[tool.other\n")
    assert of_project(tmp_path) == ()
