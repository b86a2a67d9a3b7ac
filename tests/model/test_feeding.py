"""A model gets of a batch what it looks at, whatever form the batch has, and never the labels."""

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from livella.model import feeding

X, MORE = torch.randn(4, 3), torch.randn(4, 2)
Y, IDS = torch.arange(4), torch.arange(4) + 100
Example = namedtuple("Example", "image label")


class One(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return x


class Two(nn.Module):
    def forward(self, x: Tensor, more: Tensor) -> Any:
        return x, more


class Named(nn.Module):
    def forward(self, *, image: Tensor, scale: float = 1.0) -> Any:
        return image


@dataclass
class Both:
    image: Tensor
    label: Tensor


@dataclass
class Several:
    image: Tensor
    depth: Tensor


@pytest.mark.parametrize(
    "batch",
    [
        X,
        (X,),
        (X, Y),
        [X, Y],
        (X, Y, IDS),
        ((X, IDS), Y),
        ((X, {"path": ["a"] * 4}), Y),
        ([X, ["a"] * 4], Y),
        {"image": X, "label": Y},
        {"label": Y, "image": X},
        {"x": X, "anything": MORE},
        {"pixels": X, "labels": Y, "id": IDS},
        {"image": X, "target": MORE},
        {"tokens": IDS, "label": Y},
        Both(X, Y),
        Example(X, Y),
    ],
)
def test_one_argument_is_found(batch):
    seen = feeding.feed(One(), batch)
    wanted = IDS if isinstance(batch, dict) and "tokens" in batch else X
    assert seen is wanted
    assert feeding.given_to(One(), batch) == {id(wanted)} or isinstance(batch, tuple | list)


@pytest.mark.parametrize("batch", [(X, MORE), (X, MORE, Y), {"x": X, "more": MORE, "label": Y}])
def test_two_arguments_are_found(batch):
    assert feeding.feed(Two(), batch) == (X, MORE)


def test_names_that_forward_knows_are_given_by_name():
    assert feeding.feed(Named(), {"image": X, "label": Y}) is X


@pytest.mark.parametrize("batch", [{"image": X, "depth": MORE}, Several(X, MORE)])
def test_of_several_entries_none_is_chosen_and_the_model_gets_the_batch(batch):
    assert feeding.feed(One(), batch) is batch


@pytest.mark.parametrize("batch", ["words", 3, {"image": X}, (X,)])
def test_what_does_not_fit_is_told_with_the_way_out(batch):
    with pytest.raises(TypeError, match="forward=lambda model, batch"):
        feeding.feed(Two(), batch)
