"""Labelled sequences: the .ts format, JapaneseVowels where it is installed, and LSTMs over them."""

import copy

import pytest
import torch
from torch import nn as nn_torch

from livella import nn
from livella.study import data, models, recurrence, timeseries, trial
from livella.study.errors import StudyError
from livella.study.models import Network
from tests.study import worlds

TEXT = """# a comment
@problemName planted
@data
1,2,3:4,5,6:yes

# another
7:8:no
"""


def written(tmp_path, text):
    path = tmp_path / "planted.ts"
    path.write_text(text)
    return path


def test_a_file_is_read(tmp_path):
    sequences, labels = timeseries.read(written(tmp_path, TEXT))
    assert [s.tolist() for s in sequences] == [[[1, 2, 3], [4, 5, 6]], [[7], [8]]]
    assert labels == ["yes", "no"]
    padded = timeseries.pad(sequences, 4)
    assert padded.shape == (2, 2, 4)
    assert timeseries.lengths(padded).tolist() == [3, 1]
    assert padded[1, :, 1:].isnan().all()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "none stands below @data"),
        ("@data\n", "none stands below @data"),
        ("@data\n1,2:3,4,5:a\n", "line 2 is no example: its channels have 2, 3 values"),
        ("@data\n1,x:a\n", "line 2 is no example: could not convert"),
        ("@data\n1,nan:a\n", "it has NaN or infinity"),
        ("@data\n1,2\n", "expected channels and a label"),
        ("@data\n1:2:a\n1:2:3:a\n", "line 3 is no example: it has 3 channels, not 2"),
    ],
)
def test_what_is_no_such_file_is_refused_by_its_line(tmp_path, text, said):
    with pytest.raises(StudyError) as caught:
        timeseries.read(written(tmp_path, text))
    assert said in str(caught.value)


def test_a_missing_file_and_a_missing_package_are_told(tmp_path, monkeypatch):
    with pytest.raises(StudyError, match="cannot be read"):
        timeseries.read(tmp_path / "none.ts")
    monkeypatch.setattr(timeseries.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(StudyError, match="pip install --no-deps aeon"):
        timeseries.japanese_vowels()


def vowels():
    try:
        return data.load("japanese-vowels")
    except StudyError as missing:
        pytest.skip(str(missing))


def test_the_vowels_are_those_of_the_archive():
    found = vowels()
    train, validation, test = (x for x, _ in (found.train, found.validation, found.test))
    assert (len(train) + len(validation), len(test)) == (270, 370)
    steps = torch.cat([timeseries.lengths(x) for x in (train, validation, test)])
    assert (int(steps.min()), int(steps.max())) == (7, 29)
    assert found.classes == 9
    assert "7 to 29 steps of 12 channels" in found.describe()


KINDS = [("none", 0.0), ("per_step", 0.1), ("shared", 1.0), ("layer", 0.0)]


@pytest.mark.parametrize(("norm", "gamma"), KINDS)
def test_what_comes_after_the_end_of_a_sequence_has_no_say(norm, gamma):
    torch.manual_seed(0)
    model = recurrence.SequenceClassifier((2, 6), 5, 3, norm, gamma).train()
    x = torch.randn(4, 2, 6)
    ends = torch.tensor([6, 2, 4, 1])
    x[(torch.arange(6) >= ends[:, None])[:, None].expand_as(x)] = torch.nan
    scores = model(x)
    longer = torch.cat([x, torch.full((4, 2, 3), torch.nan)], dim=2)
    torch.testing.assert_close(model(longer), scores)
    assert scores.isfinite().all()


def test_layer_norm_in_an_lstm_is_that_of_the_paper():
    """Ba, Kiros & Hinton 2016, equations 20 to 22, step by step with torch's own function."""
    torch.manual_seed(0)
    layer = recurrence.LayerNormLSTM(3, 4)
    for parameter in layer.parameters():
        nn_torch.init.normal_(parameter)
    x, h, c = torch.randn(2, 5, 3), torch.zeros(2, 4), torch.zeros(2, 4)

    def norm(of, value):
        return nn_torch.functional.layer_norm(value, value.shape[1:], of.weight, of.bias)

    for t in range(5):
        gates = norm(layer.norm_hidden, h @ layer.hidden.weight.T)
        gates = gates + norm(layer.norm_input, x[:, t] @ layer.input.weight.T)
        i, f, g, o = gates.split(4, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * norm(layer.norm_cell, c).tanh()
    torch.testing.assert_close(layer(x, torch.tensor([5, 5])), h)


def test_images_are_read_pixel_by_pixel_or_row_by_row():
    x = torch.arange(64.0).reshape(1, 1, 8, 8)
    assert recurrence.as_sequence(x)[0, :, 0].tolist() == list(range(64))
    rows = recurrence.as_sequence(torch.randn(2, 3, 28, 28))
    assert rows.shape == (2, 28, 84)
    assert recurrence.as_sequence(torch.randn(2, 7)).shape == (2, 7, 1)
    assert recurrence.as_sequence(torch.randn(2, 12, 29)).shape == (2, 29, 12)


@pytest.mark.parametrize(("norm", "gamma"), KINDS)
def test_a_recurrent_trial_runs_and_is_told_apart_by_its_gamma(norm, gamma):
    network = Network("lstm", norm=norm, gamma=gamma, width=6)
    one = worlds.trial(network=network, optimizer="adam", steps=2, evaluations=1)
    outcome = trial.run(one)
    assert not outcome.failed
    assert outcome == trial.run(one)
    if gamma:
        built = models.build(network, (1, 8, 8), 10)
        gammas = [p for name, p in built.model.named_parameters() if name.startswith("lstm.gamma")]
        assert gammas
        assert all((p == gamma).all() for p in gammas)


@pytest.mark.parametrize("statistics", ["per_step", "shared"])
@pytest.mark.parametrize("kind", [nn.BatchNormLSTM, nn.BatchNormGRU])
def test_vowels_padded_to_any_length_with_anything_give_the_same_bits(kind, statistics):
    x = vowels().train[0][:32].transpose(1, 2)  # (N, T, C), NaN after the ends
    lengths = timeseries.lengths(x.transpose(1, 2))
    steps = x[:, : lengths.max()].nan_to_num()
    inside = (torch.arange(steps.shape[1]) < lengths[:, None])[..., None]
    torch.manual_seed(0)
    layer = kind(12, 16, batch_first=True, bidirectional=True, statistics=statistics)
    found = []
    for padding, more in ((0.0, 0), (torch.nan, 0), (torch.inf, 5), (-1e30, 40), (7.0, 1)):
        filled = torch.where(inside, steps, padding)
        filled = nn_torch.functional.pad(filled, (0, 0, 0, more), value=padding)
        one = copy.deepcopy(layer)
        y, h = one(filled, lengths=lengths)
        y[:, : steps.shape[1]].square().sum().backward()
        gradients = [p.grad for p in one.parameters()]
        found.append((y[:, : steps.shape[1]].detach(), h, gradients, dict(one.state_dict())))
        assert not y[:, steps.shape[1] :].any()
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=0)
