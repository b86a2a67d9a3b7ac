"""What of a network stays with each client of federated learning."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from livella.model import given, sites
from livella.model.freeze import scale_and_shift


def local_parameters(model: nn.Module, *, statistics_only: bool = False) -> tuple[str, ...]:
    """Name what of a `state_dict` stays with each client, for all the rest to be averaged.

    That is what every batch norm has: its running statistics, of all domains, and γ and β (Li et
    al. 2021, "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization",
    section 3). It is told by what the layers are and not by their names: a test for "bn" in a key
    misses `downsample.1`. Group, layer and instance norm are shared.

    Args:
        model: any module.
        statistics_only: γ and β are shared too (Andreux et al. 2020, "Siloed Federated Learning for
            Multi-Centric Histopathology Datasets", section 3.2). Default: false.

    Returns:
        Keys of `model.state_dict()`, in its order; empty where no batch norm is.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
        >>> local = local_parameters(model)
        >>> {k: v for k, v in model.state_dict().items() if k not in local}.keys()
        dict_keys(['0.weight', '0.bias'])

    """
    given.check_model(model, "local_parameters")
    local = set(_names(model, statistics_only))
    return tuple(name for name in model.state_dict() if name in local)


def _names(model: nn.Module, statistics_only: bool) -> Iterator[str]:
    for prefix, layer in model.named_modules(remove_duplicate=False):
        if not sites.keeps_averages(layer):
            continue
        kept = [name for name, _ in layer.named_buffers(remove_duplicate=False)]
        if not statistics_only:
            kept += [name for name, _ in scale_and_shift(layer)]
        yield from (f"{prefix}.{name}" if prefix else name for name in kept)
