"""Named statistics in one network: one set for each domain that its data come from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn

from livella.model import adopt, given, sites
from livella.nn.moving_average import MovingAverageNorm
from livella.nn.precision import keep_precision
from livella.nn.stack import BatchNormRNN

CHILD = "domains"
"""The child of a layer that holds the statistics of its domains, and so its name in a state_dict.

Those of the domain in use are in the layer itself, where every tool finds them, and its own then
lie in that domain's place; saving and loading put them where they belong for so long.
"""
_ENTERED, _IN_PLACE, _PINNED = (
    "_livella_domains_entered", "_livella_domain_in_place", "_livella_pinned",
)  # fmt: skip


class Statistics(nn.Module):
    """Statistics that a layer does not use just now, under the names that they have in it.

    Args:
        buffers: what to begin with; copied.
        exact: keep them in float32 or better whatever the model becomes, as the layer does.

    """

    def __init__(self, buffers: dict[str, Tensor], exact: bool) -> None:
        super().__init__()
        self.exact = exact
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer.detach().clone())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Statistics:
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.exact:
            keep_precision(self._buffers, before, list(self._buffers))
        return self


class Domains(nn.Module):
    """The statistics of all domains of a layer, by name; any name will do."""

    def __init__(self, held: dict[str, Statistics]) -> None:
        super().__init__()
        self._modules.update(held)  # not as attributes: "train" and "type" are methods


def add_domains(
    model: nn.Module, names: Iterable[str], layers: Iterable[str] | None = None
) -> None:
    """Give every batch norm named statistics, one set for each domain that the data come from.

    Each begins as a copy of the layer's own; γ and β are shared. `with domain(model, name):` uses
    one, trains it, estimates it, adapts to it; all are in the `state_dict`, as
    "<layer>.domains.<name>.running_mean" and so on. A checkpoint with domains is loaded after they
    were added. Chang et al. 2019, "Domain-Specific Batch Normalization for Unsupervised Domain
    Adaptation", section 3 (who keep γ and β apart as well); Xie et al. 2020, "Adversarial Examples
    Improve Image Recognition", section 3.

    Args:
        model: any module, a batch norm itself too. Livella's moving average layers get domains as
            well; recurrent ones, whose statistics are by time step, do not.
        names: of the domains, such as "day" and "night".
        layers: names of layers, or of modules all batch norms in which are meant. Default: all of
            the model that keep running statistics.

    Raises:
        ValueError: a name with a dot, an empty one, or one that a layer has already; no layer that
            keeps running statistics, or one of `layers` that has none. The model is then as before.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
        >>> add_domains(model, ["day", "night"])
        >>> with domain(model, "night"):
        ...     _ = model.train()(torch.randn(6, 4))  # no statistics but those of the night change

    """
    given.check_model(model, "add_domains")
    if isinstance(names, str):
        names = (names,)
    chosen = tuple(dict.fromkeys(names))
    found = _layers_to_divide(model, layers)
    for name in chosen:
        if not isinstance(name, str) or not name or "." in name:
            raise ValueError(f"add_domains: expected names without dots, got {name!r}")
        there = [layer for layer, module in found.items() if name in _held(module)]
        if there:
            raise ValueError(
                f"add_domains: layer {there[0]!r} has a domain {name!r} already; remove_domains "
                "it first, to begin it anew"
            )
    for module in found.values() if chosen else ():
        added = {name: Statistics(_own(module), _is_exact(module)) for name in chosen}
        module._modules[CHILD] = Domains({**_held(module), **added})


def remove_domains(model: nn.Module, names: Iterable[str] | None = None) -> None:
    """Take domains away again, with their statistics; by default all. The layers keep their own.

    Raises:
        ValueError: a domain that the model has not, or that is in use.

    """
    given.check_model(model, "remove_domains")
    if isinstance(names, str):
        names = (names,)
    chosen = domains(model) if names is None else tuple(names)
    for name in chosen:
        _check(model, name, "remove_domains")
    divided = list(_divided(model))
    if used := {name for layer in divided for name in _entered(layer)} & set(chosen):
        raise ValueError(f"remove_domains: domain {used.pop()!r} is in use; leave it first")
    for layer in divided:
        left = {name: each for name, each in _held(layer).items() if name not in chosen}
        if left:
            layer._modules[CHILD] = Domains(left)
        else:
            del layer._modules[CHILD]


def domains(model: nn.Module) -> tuple[str, ...]:
    """Name the domains of a model, in the order in which they were added."""
    given.check_model(model, "domains")
    return tuple(dict.fromkeys(name for layer in _divided(model) for name in _held(layer)))


@contextmanager
def domain(model: nn.Module, name: str | None) -> Iterator[None]:
    """Use the statistics of one domain for as long as the context lasts.

    They normalize in evaluation and take in the batches of training, and whatever measures or
    writes statistics (`estimate_population`, `adapt`) does so with these; what it gave back is
    reverted where it belongs. A checkpoint saved or loaded meanwhile is the same as outside.
    Contexts nest; a copy made inside stays in the domain. It is the state of the model, for all
    threads, and whatever else reads or replaces buffers (`named_buffers`, `functional_call`,
    an averaged copy with `use_buffers=True`, `convert_sync_batchnorm`) sees those in use as the
    layer's own: do such things outside.

    Args:
        model: one with `add_domains`. Layers without a domain of this name use their own
            statistics.
        name: of a domain, or none for the layers' own statistics.

    Raises:
        ValueError: no layer has such a domain; or it is entered inside a pass that measures, or
            that gathers updates, instead of around it. What the context's body raises passes
            through, with the former statistics in use again.

    """
    given.check_model(model, "domain")
    if name is not None:
        _check(model, name, "domain")
    layers = list(_divided(model))
    for layer in layers:
        if reason := vars(layer).get(_PINNED):
            raise ValueError(f"domain: cannot be entered {reason}; enter it around that")
    with ExitStack() as leaving:
        for layer in layers:
            leaving.callback(_use, layer, _entered(layer))
            _use(layer, (*_entered(layer), name if name in _held(layer) else None))
        yield


@contextmanager
def pinned(layers: Iterable[nn.Module], reason: str) -> Iterator[None]:
    """Let no domain of these layers be entered for a while: their buffers are others just now."""
    with ExitStack() as leaving:
        for layer in layers:
            leaving.callback(_mark, layer, _PINNED, vars(layer).get(_PINNED))
            vars(layer)[_PINNED] = reason
        yield


def in_use(layer: nn.Module) -> str | None:
    """Name the domain whose statistics a layer uses; none for its own."""
    entered = _entered(layer)
    return entered[-1] if entered else None


def buffer_of(layer: nn.Module, domain: str | None, name: str) -> Tensor:
    """Give a buffer of a domain, or of a layer's own, wherever it is just now."""
    place: str | None = vars(layer).get(_IN_PLACE)
    # What is not in place lies in its own holder, and the layer's own in that of what is.
    holder = None if domain == place else place if domain is None else domain
    found = (layer if holder is None else _held(layer)[holder])._buffers[name]
    assert found is not None
    return found


def used_by(layers: Mapping[str, nn.Module]) -> dict[str, str | None]:
    """Name the domains that layers use now, for `check_still_used`."""
    return {name: in_use(layer) for name, layer in layers.items()}


def check_still_used(
    layers: Mapping[str, nn.Module], then: Mapping[str, str | None], caller: str
) -> None:
    """Refuse to go on where another domain is in use than when something began.

    Raises:
        ValueError: it is; the layer and both domains are named.

    """
    for name, layer in layers.items():
        if in_use(layer) != then[name]:
            raise ValueError(
                f"{caller}: layer {name!r} uses domain {in_use(layer)!r} now, and used "
                f"{then[name]!r} when this began; go on where it began"
            )


def has_domains(layer: nn.Module) -> bool:
    """Whether a layer has named statistics."""
    return bool(_held(layer))


# Which statistics are in their place


def _use(layer: nn.Module, entered: tuple[str | None, ...]) -> None:
    """Normalize by the statistics of the domain entered last where there is one, else its own."""
    _mark(layer, _ENTERED, entered)
    _bring(layer, in_use(layer))
    _see_to_checkpoints(layer, in_use(layer) is not None)


def _bring(layer: nn.Module, name: str | None) -> None:
    """Put a domain's statistics into the layer, or its own; the others where they rest."""
    now = vars(layer).get(_IN_PLACE)
    for each in (now, name) if now != name else ():
        if each is not None:
            _exchange(layer, _held(layer)[each])
    _mark(layer, _IN_PLACE, name)


def _mark(layer: nn.Module, mark: str, value: object) -> None:
    if value:
        vars(layer)[mark] = value
    else:
        vars(layer).pop(mark, None)


def _exchange(layer: nn.Module, held: nn.Module) -> None:
    for name, resting in _tensors(held._buffers).items():
        used = layer._buffers[name]
        assert used is not None
        layer._buffers[name] = resting
        held._buffers[name] = used


# Functions of this module, so that they are copied and pickled with the layer.


def _at_rest(layer: nn.Module, *_: Any) -> None:
    _bring(layer, None)


def _as_in_use(layer: nn.Module, *_: Any) -> None:
    _bring(layer, in_use(layer))


def _see_to_checkpoints(layer: nn.Module, needed: bool) -> None:
    """Have everything in its own place while a checkpoint is written or read."""
    there = _as_in_use in layer._state_dict_hooks.values()
    if needed and not there:
        layer.register_state_dict_pre_hook(_at_rest)
        layer.register_state_dict_post_hook(_as_in_use)
        layer.register_load_state_dict_pre_hook(_at_rest)
        layer.register_load_state_dict_post_hook(_as_in_use)
    if there and not needed:
        saving = (layer._state_dict_pre_hooks, layer._state_dict_hooks)
        loading = (layer._load_state_dict_pre_hooks, layer._load_state_dict_post_hooks)
        for hooks in (*saving, *loading):
            for key, hook in list(hooks.items()):
                if getattr(hook, "hook", hook) in (_at_rest, _as_in_use):
                    del hooks[key]


# What there is


def _layers_to_divide(model: nn.Module, names: Iterable[str] | None) -> dict[str, nn.Module]:
    found = adopt.named_layers(model, names)
    without = {name: layer for name, layer in found.items() if not _can_be_divided(layer)}
    kept = {name: layer for name, layer in found.items() if name not in without}
    if not kept or (without and names is not None):
        raise ValueError(
            f"add_domains: expected batch norms that keep running statistics, got "
            f"{sites.in_words(without) or f'a {type(model).__name__} with none'}; build them with "
            "track_running_stats=True, or name others"
        )
    return kept


def _can_be_divided(layer: nn.Module) -> bool:
    """Whether it keeps running statistics, has room for more, and none of them by time step."""
    free = CHILD not in layer._modules or has_domains(layer)
    return free and bool(_buffers(layer)) and not isinstance(layer, BatchNormRNN)


def _check(model: nn.Module, name: str, caller: str) -> None:
    known = domains(model)
    if name in known:
        return
    near = get_close_matches(str(name), known, 1)
    remedy = f"did you mean {near[0]!r}?" if near else "add it with livella.add_domains"
    raise ValueError(f"{caller}: expected one of the domains {list(known)}, got {name!r}; {remedy}")


def _divided(model: nn.Module) -> Iterator[nn.Module]:
    return (layer for layer in list(model.modules()) if has_domains(layer))


def _held(layer: nn.Module) -> dict[str, Statistics]:
    held = layer._modules.get(CHILD)
    if not isinstance(held, Domains):
        return {}
    return {name: each for name, each in held._modules.items() if isinstance(each, Statistics)}


def _own(layer: nn.Module) -> dict[str, Tensor]:
    """Give what a layer keeps outside of all domains, wherever that is now."""
    name = vars(layer).get(_IN_PLACE)
    return _buffers(layer) if name is None else _tensors(_held(layer)[name]._buffers)


def _entered(layer: nn.Module) -> tuple[str | None, ...]:
    entered: tuple[str | None, ...] = vars(layer).get(_ENTERED, ())
    return entered


def _is_exact(layer: nn.Module) -> bool:
    """Whether it keeps its averages in float32 or better whatever the model becomes."""
    guarded = getattr(layer, "update_policy", "torch") == "guarded"
    return guarded or isinstance(layer, MovingAverageNorm)


def _buffers(layer: nn.Module) -> dict[str, Tensor]:
    """Give what a layer keeps of its data: its buffers, but those no checkpoint has."""
    kept = set(layer._buffers) - layer._non_persistent_buffers_set
    return {name: each for name, each in _tensors(layer._buffers).items() if name in kept}


def _tensors(buffers: dict[str, Tensor | None]) -> dict[str, Tensor]:
    return {name: buffer for name, buffer in buffers.items() if buffer is not None}
