"""The networks of the study: small ones of its own, and the user's with its kind swapped."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from livella import nn as ours
from livella import reference
from livella.model import sites
from livella.nn import make_norm
from livella.nn.moving_average import MovingAverageNorm
from livella.study import recurrence, sources
from livella.study.errors import StudyError
from livella.study.microbatch import MicroBatches

OWN = ("mlp", "cnn", "lstm")

_OURS = (
    *(ours.BatchNorm1d, ours.BatchNorm2d, ours.BatchNorm3d),
    *(ours.BatchNormAct1d, ours.BatchNormAct2d, ours.BatchNormAct3d),
)

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "relu6": nn.ReLU6,
    "leaky_relu": nn.LeakyReLU,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    "identity": nn.Identity,
}


_WEIGHTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "centred": ours.centre_weights,
    "standardized": ours.standardize_weights,
}


@dataclass(frozen=True)
class Network:
    """What a trial trains: `kind` is "mlp", "cnn", "lstm", or the user's `module:function`."""

    kind: str = "mlp"
    norm: str = "none"
    """A kind of `make_norm`; of an "lstm" "none", "per_step", "shared" or "layer"."""
    norm_batch: int = 0
    """Examples that a batch norm takes together in training; 0 stands for the whole batch."""
    depth: int = 3
    width: int = 100
    activation: str = "relu"
    init: str = "he"
    """"he", or "normal:0.1" for a normal distribution of that standard deviation."""
    dropout: float = 0.0
    noise: bool = False
    norm_momentum: float = 0.0
    """Momentum of the running averages of batch norm; 0 stands for the layer's own."""
    gamma: float = 0.0
    """Where the γ of an "lstm" with batch norm start; 0 stands for the layer's own."""
    dropout_last: bool = False
    """Drop out before the classifier alone, behind the last normalization."""
    weights: str = ""
    """"centred" or "standardized": what is done to those of every layer but the last."""


@dataclass(frozen=True)
class Built:
    """A network and, in the order of the calls, the modules whose output feeds a nonlinearity."""

    model: nn.Module
    sites: tuple[nn.Module, ...]


def build(network: Network, shape: tuple[int, ...], classes: int) -> Built:
    """Build the network for examples of `shape`, with weights from torch's current seed."""
    built = _build(network, shape, classes)
    if network.weights:
        _WEIGHTS[network.weights](built.model)
    return built


def _build(network: Network, shape: tuple[int, ...], classes: int) -> Built:
    if network.kind not in OWN:
        model, found = users_model(network.kind, shape, classes)
        return Built(model, tuple(_swap(model, site, network) for site in found))
    if network.kind == "lstm":
        classifier = recurrence.SequenceClassifier(
            shape, network.width, classes, network.norm, network.gamma
        )
        return Built(classifier, ())
    built = (
        _mlp(network, shape, classes) if network.kind == "mlp" else _cnn(network, shape, classes)
    )
    for module in built.model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            _initialize(module, network.init)
    return built


def _mlp(network: Network, shape: tuple[int, ...], classes: int) -> Built:
    layers: list[nn.Module] = [nn.Flatten()]
    sites = []
    width = math.prod(shape)
    for layer in range(1, network.depth + 1):
        sites.append(_site(network, network.width, ndim=1))
        layers += [nn.Linear(width, network.width), sites[-1], _ACTIVATIONS[network.activation]()]
        if network.dropout and (layer == network.depth or not network.dropout_last):
            layers.append(nn.Dropout(network.dropout))
        width = network.width
    return Built(nn.Sequential(*layers, nn.Linear(width, classes)), tuple(sites))


def _cnn(network: Network, shape: tuple[int, ...], classes: int) -> Built:
    """3×3 convolutions, the second at stride 2 and from there twice as wide; global average."""
    layers: list[nn.Module] = []
    sites = []
    channels = shape[0]
    for k in range(network.depth):
        width = network.width * (1 if k == 0 else 2)
        sites.append(_site(network, width, ndim=2))
        stride = 2 if k == 1 else 1
        convolution = nn.Conv2d(channels, width, 3, stride=stride, padding=1)
        layers += [convolution, sites[-1], _ACTIVATIONS[network.activation]()]
        channels = width
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
    return Built(nn.Sequential(*layers, *head), tuple(sites))


def _site(network: Network, width: int, ndim: int) -> nn.Module:
    return _as_asked(make_norm(network.norm, width, ndim), network)


def _as_asked(norm: nn.Module, network: Network) -> nn.Module:
    """The normalization as the network wants it: over part of the batch, or with noise after."""
    if network.norm_momentum and sites.is_batch_norm(norm):
        norm.momentum = network.norm_momentum
    if network.norm_batch and isinstance(norm, MovingAverageNorm):
        norm.ghost_size = network.norm_batch
    elif network.norm_batch and sites.is_batch_norm(norm):
        norm = MicroBatches(norm, network.norm_batch)
    return nn.Sequential(norm, ShiftNoise()) if network.noise else norm


def _initialize(module: nn.Linear | nn.Conv2d, init: str) -> None:
    if init == "he":
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    elif init.startswith("normal:"):
        nn.init.normal_(module.weight, std=float(init.removeprefix("normal:")))
    else:
        raise StudyError(f"initialization {init!r}: expected 'he' or 'normal:STD'")
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def users_model(
    spec: str, shape: tuple[int, ...], classes: int
) -> tuple[nn.Module, tuple[sites.Site, ...]]:
    """The user's network as its function gives it, and the normalizations it calls.

    Raises:
        StudyError: it is no network, fails on the data, gives no class scores, or has no
            normalization that can be swapped.
    """
    model = sources.call(spec, "a torch.nn.Module")
    if not isinstance(model, nn.Module):
        raise StudyError(f"{spec} returned a {type(model).__name__}: expected a torch.nn.Module")
    sample = torch.zeros(2, *shape)
    try:
        found = sites.find(model, sample)
        with torch.no_grad():
            scores = model.eval()(sample)
    except Exception as error:
        raise StudyError(
            f"the model of {spec} failed on examples of shape {shape}: {sources.in_words(error)}"
        ) from error
    if not isinstance(scores, Tensor) or scores.dim() != 2 or scores.shape[1] < classes:
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise StudyError(
            f"the model of {spec} gave {got} for 2 examples: expected (2, {classes}) scores"
        )
    if not found:
        raise StudyError(
            f"the model of {spec} has no normalization to swap: expected batch, instance or "
            "group norm layers (torch's or Livella's)"
        )
    return model, found


def _swap(model: nn.Module, site: sites.Site, network: Network) -> nn.Module:
    """Put the kind under test in the place of a normalization; returns what feeds on from there.

    A batch norm of the user's stays as its author set it up where batch norm is the kind; any
    other kind takes over what it can of γ and β, and an activation that was fused in.
    """
    own = site.module
    new: nn.Module = own
    if network.norm != "batch" or not sites.is_batch_norm(own):
        new = make_norm(network.norm, site.num_features, max(1, site.input_dim - 2))
        for name, value in own.named_parameters(recurse=False):
            if isinstance(getattr(new, name, None), nn.Parameter):
                getattr(new, name).data.copy_(value)
        if isinstance(own, _OURS):
            new = Called(new, own.activation)
    new = _as_asked(new, network)
    sites.replace(model, own, new)
    return new


class Called(nn.Module):
    """Another kind in the place of one of Livella's layers: called as that is, with a residual."""

    def __init__(self, norm: nn.Module, activation: str | None) -> None:
        super().__init__()
        self.norm, self.activation = norm, activation

    def forward(
        self,
        x: Tensor,
        *,
        residual: Tensor | None = None,
        mask: Tensor | None = None,
        activation: str | None = None,
    ) -> Tensor:
        """Normalize, add, activate; a mask has no meaning to the other kinds."""
        if mask is not None:
            raise StudyError(
                "a normalization of the model is called with a mask, which only batch norm takes; "
                "leave the mask out to compare it with other kinds"
            )
        z = self.norm(x) if residual is None else self.norm(x) + residual
        name = activation or self.activation
        return z if name is None else reference.ACTIVATIONS[name].forward(z)


class ShiftNoise(nn.Module):
    r"""Noise that makes the distribution of every unit jump at every training step.

    Each step draws anew for each unit j $\mu_j \sim U(-0.5, 0.5)$ and $\sigma_j \sim U(1, 1.25)$,
    and its values $x_{ij}$ become $\sigma_j x_{ij} + \mu_j$. In inference mode it is the identity.

    After the experiment of Santurkar et al. 2018, "How Does Batch Normalization Help
    Optimization?", section 2.1, which also varies the noise a little from example to example.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        unit = (1, x.shape[1]) + (1,) * (x.dim() - 2)
        mean = torch.empty(unit).uniform_(-0.5, 0.5)
        return torch.addcmul(mean, x, torch.empty(unit).uniform_(1, 1.25))
