"""Finding the user's functions, and the messages where they are not to be found."""

import sys

import pytest

from livella.study import sources
from livella.study.errors import StudyError
from tests.study import worlds
from tests.study.worlds import users


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to stand in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(spec):
    with pytest.raises(StudyError) as caught:
        sources.call(spec, "a network")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_is_found_from_where_one_stands_and_may_import_its_neighbours(here):
    (here / "sub").mkdir()
    (here / "sub" / "nearby_parts.py").write_text("SEVEN = 7\n")
    (here / "sub" / "mine.py").write_text(
        "def f():\n    import nearby_parts as n\n    return n.SEVEN\n"
    )
    assert sources.call("sub/mine.py:f", "a number") == 7


def test_a_module_is_found_from_where_one_stands(here):
    (here / "module_of_a_user.py").write_text("def f():\n    return 7\n")
    assert sources.call("module_of_a_user:f", "a number") == 7


def test_two_files_of_one_name_are_two_modules(here):
    for value, folder in enumerate(("a", "b")):
        (here / folder).mkdir()
        (here / folder / "net.py").write_text(f"def f():\n    return {value}\n")
    assert [sources.call(f"{folder}/net.py:f", "a number") for folder in "ab"] == [0, 1]


def test_what_is_missing_is_named(here):
    (here / "mine.py").write_text("def one(): ...\ndef two(): ...\n")
    assert refused("mine.py:three") == "no function 'three' in mine.py: it has one, two"
    assert refused("other.py:f") == f"no file 'other.py' (looked in {here})"
    assert "no module 'nowhere_at_all'" in refused("nowhere_at_all:f")
    assert "no module 'livella.nowhere'" in refused("livella.nowhere:f")
    assert "names no function" in refused("mine.py:")
    assert "names no function" in refused(":f")
    assert "no function 'not_callable'" in refused(users("not_callable"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1 / 0", "raised ZeroDivisionError: division by zero"),
        ("def broken(", "raised SyntaxError"),
        ("import nowhere_at_all", "raised ModuleNotFoundError: No module named 'nowhere_at_all'"),
    ],
)
def test_a_file_that_fails_on_import_is_named_and_tried_again_when_mended(here, text, said):
    (here / "mine.py").write_text(text)
    message = refused("mine.py:f")
    assert message.startswith("importing mine.py ")
    assert said in message
    (here / "mine.py").write_text("def f():\n    return 7\n# mended, and of another length\n")
    assert sources.call("mine.py:f", "a number") == 7


def test_a_function_that_fails_is_named():
    assert refused(users("fails")).endswith("fails raised RuntimeError: no such disk")


def test_the_digest_changes_with_the_file_alone(here):
    for name, text in (("a", "x = 1"), ("b", "x = 1"), ("c", "x = 2")):
        (here / f"{name}.py").write_text(f"{text}\ndef f(): ...\n")
    a, b, c = (sources.digest(f"{name}.py:f") for name in "abc")
    assert a == b
    assert a != c


def test_whatever_can_be_called_has_the_digest_of_its_file():
    plain = sources.digest(users("build"))
    assert sources.digest(users("build_partially")) == plain
    assert sources.digest(users("_Cnn")) == plain


def test_the_users_file_is_not_left_among_the_modules_where_its_import_fails(here):
    before = set(sys.modules)
    (here / "mine.py").write_text("1 / 0")
    refused("mine.py:f")
    assert set(sys.modules) == before


def test_the_shared_file_of_these_tests_is_where_it_is_said_to_be():
    assert worlds.USERS.is_file()


def test_a_file_edited_during_a_session_is_read_again(tmp_path):
    file = tmp_path / "edited.py"
    file.write_text("def answer():\n    return 1\n")
    assert sources.call(f"{file}:answer", "a number") == 1
    before = sources.digest(f"{file}:answer")

    file.write_text("def answer():\n    return 2\n")
    assert sources.call(f"{file}:answer", "a number") == 2
    assert sources.digest(f"{file}:answer") != before


def test_the_digest_of_a_folder_changes_with_its_files(tmp_path):
    file = tmp_path / "train-labels-idx1-ubyte"
    file.write_bytes(b"1")
    before = sources.digest(f"idx:{tmp_path}")
    assert sources.digest(f"idx:{tmp_path}") == before
    file.write_bytes(b"2")
    assert sources.digest(f"idx:{tmp_path}") != before
