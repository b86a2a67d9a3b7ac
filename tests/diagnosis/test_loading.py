"""Weights of any origin: what fits is loaded, what does not is told, and no code is run."""

import os
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from livella.diagnosis import loading
from livella.diagnosis.loading import LoadError
from livella.study.errors import StudyError


def model():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def weights():
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).state_dict()


def save(path, values):
    if path.suffix == ".safetensors":
        save_file(values, path)
    else:
        torch.save(values, path)
    return path


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_what_was_saved_is_loaded(tmp_path, name):
    mine, own = model(), weights()
    account = loading.load_weights(mine, save(tmp_path / name, own))
    assert all(torch.equal(value, own[key]) for key, value in mine.state_dict().items())
    assert str(account) == f"{len(own)} tensors loaded"


@pytest.mark.parametrize("nested", [None, *loading.NESTED])
@pytest.mark.parametrize("prefix", ["", *loading.PREFIXES])
def test_checkpoints_of_trainers_and_wrappers(tmp_path, nested, prefix):
    named = {f"{prefix}{key}": value for key, value in weights().items()}
    path = save(tmp_path / "w.pt", named if nested is None else {nested: named, "epoch": 3})
    mine = model()
    account = loading.load_weights(mine, path)
    assert (account.missing, account.unexpected) == ((), ())
    assert torch.equal(mine[0].weight, weights()["0.weight"])


def test_missing_and_unexpected_names_are_told(tmp_path):
    values = weights()
    values["head.weight"] = values.pop("1.running_mean")
    account = loading.load_weights(model(), save(tmp_path / "w.pt", values))
    assert account.missing == ("1.running_mean",)
    assert account.unexpected == ("head.weight",)
    assert "1 missing (1.running_mean); 1 unexpected (head.weight)" in str(account)


class Runs:
    def __reduce__(self):
        return os.mkdir, ("the-code-was-run",)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "w.pt"
    torch.save({"0.weight": Runs()}, path)
    with pytest.raises(LoadError, match="could run its code"):
        loading.load_weights(model(), path)
    path.write_bytes(pickle.dumps(Runs()))
    with pytest.raises(LoadError, match=r"w\.pt"):
        loading.load_weights(model(), path)
    assert not (tmp_path / "the-code-was-run").exists()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("keep", [0, 5, 200])
def test_a_truncated_file_is_told(tmp_path, name, keep):
    path = save(tmp_path / name, weights())
    path.write_bytes(path.read_bytes()[:keep])
    mine = model()
    before = [value.clone() for value in mine.state_dict().values()]
    with pytest.raises(LoadError, match=name):
        loading.load_weights(mine, path)
    assert all(torch.equal(a, b) for a, b in zip(before, mine.state_dict().values(), strict=True))


def test_other_shapes_and_other_models_are_told_and_nothing_is_loaded(tmp_path):
    mine = model()
    before = mine[1].running_mean.clone()
    values = {**weights(), "0.weight": torch.zeros(5, 3), "1.running_mean": torch.ones(4)}
    with pytest.raises(LoadError, match=r"0\.weight: the file has \(5, 3\), the model \(4, 3\)"):
        loading.load_weights(mine, save(tmp_path / "w.pt", values))
    with pytest.raises(LoadError, match="fits nothing of the model"):
        loading.load_weights(mine, save(tmp_path / "w.pt", {"other": torch.zeros(2)}))
    with pytest.raises(LoadError, match="expected a state_dict"):
        loading.load_weights(mine, save(tmp_path / "w.pt", [torch.zeros(2)]))
    with pytest.raises(LoadError, match="no file"):
        loading.load_weights(mine, tmp_path / "nowhere.pt")
    assert torch.equal(mine[1].running_mean, before)


def test_models_and_loaders_by_name(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def net(): return torch.nn.Sequential(torch.nn.BatchNorm1d(3))\n"
        "def several(): return [torch.zeros(2, 3)], [torch.ones(2, 3)]\n"
        "def one(): return [(torch.zeros(2, 3), torch.zeros(2))]\n"
        "def once(): return iter([torch.zeros(2, 3)])\n"
        "def number(): return 3\n"
    )
    spec = f"{tmp_path / 'mine.py'}:"
    assert isinstance(loading.model_of(spec + "net"), nn.Sequential)
    assert float(loading.batches_of(spec + "several")[0].sum()) == 0
    assert len(loading.batches_of(spec + "one")[0]) == 2
    for name, message in (("once", "read once"), ("number", "a int: expected a loader")):
        with pytest.raises(LoadError, match=message):
            loading.batches_of(spec + name)
    with pytest.raises(LoadError, match=r"expected a torch\.nn\.Module"):
        loading.model_of(spec + "number")


def test_functions_are_found_and_not_called(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def loss(output, batch): return output.sum() + batch\n"
        "def forward(model, batch): return model(batch)\n"
        "def old(model, batch): return model(batch).sum()\n"
        "def labels(batch): return batch['far']\n"
        "entropy = torch.nn.CrossEntropyLoss()\n"
    )
    spec = f"{tmp_path / 'mine.py'}:"
    assert float(loading.loss_of(spec + "loss")(torch.ones(3), 2)) == 5
    assert loading.forward_of(spec + "forward")(abs, -3) == 3
    assert loading.target_of(spec + "labels")({"far": 7}) == 7
    for name in ("old", "entropy"):
        with pytest.raises(LoadError, match=r"expected .*loss=lambda output, batch"):
            loading.loss_of(spec + name)
    for call in (loading.loss_of, loading.forward_of, loading.target_of):
        with pytest.raises(StudyError, match="no function 'nothing'"):
            call(spec + "nothing")
    with pytest.raises(StudyError, match="names no function"):
        loading.loss_of("labels")


@pytest.mark.parametrize(
    ("text", "target"), [("none", None), ("1", 1), ("-1", -1), ("mask", "mask"), ("y2", "y2")]
)
def test_where_labels_are_is_read(text, target):
    assert loading.target_of(text) == target
