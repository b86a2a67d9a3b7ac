"""What a model is called with, for batches as loaders give them."""

import dataclasses
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from livella.model import feeding
from livella.model.feeding import arguments, feed, samples_in, to_device

X, Y, META = torch.randn(4, 3), torch.arange(4), torch.ones(4, 2)
IMAGES = [torch.zeros(3, 5 + k, 7) for k in range(2)]


class One(nn.Module):
    def forward(self, x):
        return x


class Two(nn.Module):
    def forward(self, image, meta):
        return image, meta


class Tokens(nn.Module):
    def forward(self, ids, mask=None, labels=None):
        return ids, mask, labels


class Opens(nn.Module):
    def forward(self, inputs):
        return inputs["image"]


class Around(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Opens()

    def forward(self, given):
        return self.inner(given)


class ByAttribute(nn.Module):
    def forward(self, example):
        return example.image


class TakesBatch(nn.Module):
    def forward(self, batch):
        return batch


@dataclasses.dataclass
class Example:
    image: Tensor
    label: Tensor


class Named(NamedTuple):
    label: Tensor
    image: Tensor


class Pair(NamedTuple):
    label: Tensor
    first: Tensor
    second: Tensor


@dataclasses.dataclass
class Sized:
    size: Tensor
    scan: Tensor


class Reads(One):
    def forward(self, x):
        return x.reshape(x.size(0), -1)


ONE = {
    "tensor": X,
    "pair": (X, Y),
    "list": [X, Y],
    "alone": (X,),
    "together": ((X, META), Y),
    "together in lists": [[X, META], Y],
    "dict": {"x": X, "label": Y},
    "image and label": {"image": X, "label": Y},
    "any name": {"spectrum": X, "label": Y},
    "metadata": {"image": X, "label": Y, "id": Y, "path": ["a"], "weight": torch.ones(4)},
    "whole numbers beside": {"scan": X, "sex": Y},
    "metadata of floating point": {"scan": X, "weight": torch.ones(4), "boxes": META},
    "several, one usual": {"image": X, "depth": META, "label": Y},
    "whole numbers": {"tokens": X.long(), "label": Y},
    "dict in a tuple": ({"image": X}, Y),
    "dataclass": Example(X, Y),
    "dataclass in a tuple": (Example(X, Y), Y),
    "a field that tensors have too": Sized(Y, X),
    "named tuple": Named(Y, X),
    "named tuple in a tuple": (Named(Y, X), Y),
}


@pytest.mark.parametrize("form", ONE)
def test_one_argument(form):
    found = feed(Reads(), ONE[form])
    assert torch.equal(found, X.long() if form == "whole numbers" else X)
    assert samples_in(ONE[form]) == 4


TWO = {
    "tuple": (X, META, Y),
    "together": ((X, META), Y),
    "together in lists": [[X, META], Y],
    "together with a dict": ((X, META), {"label": Y}),
    "dict": {"meta": META, "label": Y, "image": X},
    "dict in a tuple": ({"meta": META, "image": X}, Y),
    "named tuple by position": Pair(Y, X, META),
}


@pytest.mark.parametrize("form", TWO)
def test_two_arguments(form):
    image, meta = feed(Two(), TWO[form])
    assert image is X
    assert meta is META


def test_options_are_given_by_name_and_labels_never():
    batch = {"ids": Y, "mask": META, "labels": X, "other": 3}
    assert feed(Tokens(), batch) == (Y, META, None)
    assert arguments(Tokens(), (Y, META)) == ((Y,), {})


@pytest.mark.parametrize("model", [Opens(), Around(), TakesBatch(), nn.Sequential(Opens())])
def test_a_model_that_opens_a_dict_itself_is_given_it(model):
    batch = {"image": X, "label": Y}
    assert arguments(model, batch) == ((batch,), {})


def test_a_model_that_reads_attributes_is_given_the_dataclass():
    batch = Example(X, Y)
    assert feed(ByAttribute(), batch) is X
    assert feed(ByAttribute(), (batch, Y)) is X


def test_a_list_with_an_image_a_sample_is_one_argument():
    batch = (IMAGES, [{"boxes": torch.zeros(1, 4)}, {"boxes": torch.zeros(2, 4)}])
    assert feed(One(), batch) is IMAGES
    assert samples_in(batch) == 2


def test_packed_sequences_stay_whole():
    packed = pack_sequence([X, X[:2]])
    for batch in (packed, (packed, Y)):
        assert isinstance(feed(One(), batch), PackedSequence)
    moved = to_device((packed, Y), torch.device("meta"))
    assert moved[0].data.device.type == moved[1].device.type == "meta"
    assert moved[0].batch_sizes.device.type == "cpu"


def test_wrapped_models_are_called_as_those_inside(monkeypatch):
    compiled = nn.Module()
    compiled._orig_mod = Two()
    compiled.forward = lambda *args, **kwargs: compiled._orig_mod(*args, **kwargs)
    wrapped = (nn.DataParallel(Two()), compiled, torch.optim.swa_utils.AveragedModel(Two()))
    for model in wrapped:
        args, named = arguments(model, {"meta": META, "image": X, "label": Y})
        assert (args, set(named)) == ((), {"image", "meta"})


@pytest.mark.parametrize(
    ("model", "batch", "said"),
    [
        (Two(), X[:, :1], None),
        (Two(), (X,), r"called with \(image, meta\), got tuple"),
        (Two(), {"image": X, "label": Y}, r"\(image, meta\), got \['image', 'label'\]"),
        (One(), {"left": X, "right": X, "label": Y}, r"got several that it may be, left, right"),
        (One(), {"a": Y, "b": Y}, r"got several that it may be, a, b"),
        (One(), 3, r"One can be called with \(x\), got int"),
        (One(), (), r"One can be called with \(x\), got tuple"),
    ],
)
def test_what_cannot_be_fed_says_how(model, batch, said):
    with pytest.raises(TypeError, match=said) as error:
        feed(model, batch)
    if said is not None:
        assert "forward=lambda model, batch: model(batch" in str(error.value)
        assert "\n" not in str(error.value)


def test_names_are_told_apart():
    groups: list[Any] = [set(feeding.LABELS), set(feeding.INPUTS), set(feeding.METADATA)]
    assert len(set.union(*groups)) == sum(map(len, groups))
