"""Class scores in what a model gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from livella.model import feeding

NAMES = ("logits", "out")
"""Under which networks give class scores: of transformers, and of torchvision's segmentation."""


def of_classes(scores: Tensor) -> Tensor:
    """Give scores of two classes or more, (N, K, ...), as they are.

    Raises:
        TypeError: they are something else.

    """
    if scores.dim() < 2 or scores.shape[1] < 2:
        raise TypeError(
            f"adapt: expected scores of two classes or more, (N, K, ...), got shape "
            f"{tuple(scores.shape)}; of one score a sample make two: logits=lambda output: "
            "torch.cat([-output, output], 1) / 2"
        )
    return scores


def guessed(output: Any) -> Tensor:
    """Find what are class scores without doubt: no boxes, no maps of features.

    A tensor, what is named "logits" or "out", or the first item (N, K) of several.

    Raises:
        TypeError: there is none.

    """
    named = output if isinstance(output, Mapping) else getattr(output, "__dict__", {})
    found = next((named[name] for name in NAMES if isinstance(named.get(name), Tensor)), output)
    if isinstance(found, Tensor):
        return found
    for tensor in feeding.tensors_in(output):
        if tensor.is_floating_point() and tensor.dim() >= 2:
            if tensor.dim() == 2:
                return tensor
            break
    shapes = [tuple(tensor.shape) for tensor in feeding.tensors_in(output)]
    raise TypeError(
        f"adapt: no class scores (N, K) or (N, K, H, W) were found in the output, a "
        f"{type(output).__name__} of {shapes or 'no tensors'}; if it has some, say where with "
        "logits=, for example logits=lambda output: output.scores"
    )
