"""Averages in float32 or better: in fewer bits small steps round to none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def keep_precision(
    buffers: dict[str, Tensor | None], before: Mapping[str, Tensor | None], names: Iterable[str]
) -> None:
    """Give buffers that hold fewer bits than float32 what they held before, or themselves, in it.

    Args:
        buffers: of a module, after a change of dtype or device.
        before: what they were; empty where that is not known.
        names: those to look at; of integers and none there is nothing to keep.

    """
    for name in names:
        now = buffers[name]
        if now is None or not now.is_floating_point() or now.dtype.itemsize >= 4:
            continue
        exact = before.get(name)
        source = now if exact is None or exact.is_meta else exact
        buffers[name] = source.to(now.device, torch.float32)
