"""Which batch norm calls depend on which: what must be known before each can be measured.

A model is run once on a batch while every operation of torch is watched. What an operation reads
passes its dependencies on to what it writes, memory by memory, so that views and changes in place
count too, and no gradient is needed. What is not known for certain, a number read out of a tensor
or memory that comes from outside torch, counts as depending on every call so far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from livella.model import sites

Site = tuple[str, int]
"""One call of a layer: its name, and which of its calls in a pass, from zero."""
Dependencies = dict[Site, frozenset[Site]]


def observe(
    run: Callable[[], object], layers: Mapping[str, nn.Module], known: Iterable[object] = ()
) -> Dependencies:
    """Run once, and tell on which earlier calls the input of each call depends.

    Args:
        run: runs the model on a batch; without gradients, or the graph is watched too.
        layers: the layers whose calls matter, by name.
        known: what holds the tensors that depend on no call: the batch, parameters, buffers.

    Returns:
        The calls in their order, each with all it depends on, directly or through others.

    """
    watch = _Watch(known)
    calls: Dependencies = {}
    with ExitStack() as cleanup:
        for name, layer in layers.items():
            for handle in _hooks(name, layer, watch, calls):
                cleanup.callback(handle.remove)
        cleanup.enter_context(watch)
        run()
    return calls


def _hooks(name: str, layer: nn.Module, watch: _Watch, calls: Dependencies) -> Iterator[Any]:
    made, features = [0], sites.channels(layer)

    @sites.looks_on
    def before(layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        x = args[0] if args else named.get("input")
        if isinstance(x, Tensor):
            sites.check_channels(name, layer, x, features)
        site = (name, made[0])
        made[0] += 1
        met = (args, named.get("input"), named.get("mask"))  # what is added later is not measured
        calls[site] = watch.of(met) | watch.everywhere
        watch.so_far |= {site}

    @sites.looks_on
    def after(_layer: nn.Module, _args: Any, output: Any) -> None:
        watch.add(output, frozenset({(name, made[0] - 1)}))

    yield layer.register_forward_pre_hook(before, with_kwargs=True)
    yield layer.register_forward_hook(after)


class _Watch(TorchDispatchMode):
    """Keeps for every memory which calls it depends on."""

    def __init__(self, known: Iterable[object]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # Weak references: memory may be freed, but its address is then not taken for another's.
        self._of: dict[StorageWeakRef, frozenset[Site]] = {}
        self.so_far: frozenset[Site] = frozenset()
        self.everywhere: frozenset[Site] = frozenset()
        for memory in _memories(known):
            self._of[memory] = frozenset()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = self.of((args, kwargs)) | self.everywhere
        result = func(*args, **kwargs)
        if isinstance(result, bool | int | float | complex):
            self.everywhere |= before  # a number now, and whatever is decided by it
        self.add(result, before)
        self.add(list(_written(func, args, kwargs)), before)
        return result

    def of(self, values: object) -> frozenset[Site]:
        """What these values depend on; memory never met may hold anything there was so far."""
        return frozenset().union(
            *(self._of.setdefault(memory, self.so_far) for memory in _memories(values))
        )

    def add(self, values: object, sites: frozenset[Site]) -> None:
        for memory in _memories(values):
            self._of[memory] = self._of.get(memory, frozenset()) | sites


def _memories(values: object) -> Iterator[StorageWeakRef]:
    for leaf in tree_leaves(values):
        if isinstance(leaf, Tensor):
            yield StorageWeakRef(leaf.untyped_storage())


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            if position < len(args):
                yield args[position]
            elif argument.name in kwargs:
                yield kwargs[argument.name]


def levels(dependencies: Mapping[Site, Iterable[Site]]) -> dict[Site, int]:
    """Give the level of each call: zero where it depends on none, else one above the highest.

    Raises:
        ValueError: two calls come before each other, in different batches.

    """
    found: dict[Site, int] = {}
    left = {site: set(others) for site, others in dependencies.items()}
    level = 0
    while left:
        ready = [site for site, others in left.items() if others <= found.keys()]
        if not ready:
            names = ", ".join(sorted({name for name, _ in left}))
            raise ValueError(f"expected an order of the calls, got a circle among {names}")
        for site in ready:
            found[site] = level
            del left[site]
        level += 1
    return found


def pooled(dependencies: Dependencies) -> Dependencies:
    """Let what depends on one call of a layer depend on all its calls, which share statistics.

    Except where layers feed each other in a circle, as a layer called twice in a row feeds itself:
    there each call stands for itself.
    """
    sites_of: dict[str, set[Site]] = {}
    for site in dependencies:
        sites_of.setdefault(site[0], set()).add(site)
    circles = circles_of(dependencies)
    return {
        site: frozenset().union(
            *({other} if other[0] in circles[site[0]] else sites_of[other[0]] for other in others)
        )
        for site, others in dependencies.items()
    }


def circles_of(dependencies: Dependencies) -> dict[str, frozenset[str]]:
    """Give, for each layer, those that it depends on and that depend on it, itself with them."""
    reach: dict[str, set[str]] = {name: set() for name, _ in dependencies}
    for (name, _), others in dependencies.items():
        reach[name] |= {other for other, _ in others}
    for middle in reach:  # what is reached through another, Warshall's way
        for name, reached in reach.items():
            if middle in reached:
                reach[name] = reached | reach[middle]
    return {
        name: frozenset({name} | {other for other in reached if name in reach[other]})
        for name, reached in reach.items()
    }
