"""Batch normalization for PyTorch, done completely.

A name is loaded when it is first used: the command line tells an error in its arguments without
torch, and a training script pays for the layers alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from livella import functional as functional
    from livella import nn as nn
    from livella.diagnosis.inspection import Inspection as Inspection
    from livella.diagnosis.inspection import inspect as inspect
    from livella.diagnosis.repair import Repair as Repair
    from livella.diagnosis.repair import repair as repair
    from livella.model.accelerate import accelerate as accelerate
    from livella.model.accumulate import accumulate as accumulate
    from livella.model.adapt import adapt as adapt
    from livella.model.adaptation import Adaptation as Adaptation
    from livella.model.conversion import Conversion as Conversion
    from livella.model.convert import convert as convert
    from livella.model.domains import add_domains as add_domains
    from livella.model.domains import domain as domain
    from livella.model.domains import domains as domains
    from livella.model.domains import remove_domains as remove_domains
    from livella.model.estimate import PopulationEstimate as PopulationEstimate
    from livella.model.freeze import freeze as freeze
    from livella.model.freeze import is_frozen as is_frozen
    from livella.model.freeze import unfreeze as unfreeze
    from livella.model.local import local_parameters as local_parameters
    from livella.model.population import estimate_population as estimate_population
    from livella.model.population import update_bn as update_bn
    from livella.model.updates import pooled_updates as pooled_updates
    from livella.model.updates import set_update_policy as set_update_policy
    from livella.model.updates import skipped_updates as skipped_updates
    from livella.model.updates import step as step
    from livella.moments import Moments as Moments
    from livella.study.errors import StudyError as StudyError
    from livella.study.run import study as study

_HOMES = {
    "livella.diagnosis.inspection": ("Inspection", "inspect"),
    "livella.diagnosis.repair": ("Repair", "repair"),
    "livella.model.accelerate": ("accelerate",),
    "livella.model.accumulate": ("accumulate",),
    "livella.model.adapt": ("adapt",),
    "livella.model.adaptation": ("Adaptation",),
    "livella.model.conversion": ("Conversion",),
    "livella.model.convert": ("convert",),
    "livella.model.domains": ("add_domains", "domain", "domains", "remove_domains"),
    "livella.model.estimate": ("PopulationEstimate",),
    "livella.model.freeze": ("freeze", "is_frozen", "unfreeze"),
    "livella.model.local": ("local_parameters",),
    "livella.model.population": ("estimate_population", "update_bn"),
    "livella.model.updates": ("pooled_updates", "set_update_policy", "skipped_updates", "step"),
    "livella.moments": ("Moments",),
    "livella.study.errors": ("StudyError",),
    "livella.study.run": ("study",),
}
"""Where each public name is defined; the imports above tell type checkers the same."""
_HOME = {name: module for module, names in _HOMES.items() for name in names}
_MODULES = ("checks", "diagnosis", "functional", "model", "moments", "native", "nn", "operators",
            "provenance", "reference", "report")  # fmt: skip
"""What can be reached by `import livella` alone as well."""


def _load(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOME:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message, name=name, obj=import_module(__name__))
    globals()[name] = value = getattr(import_module(_HOME[name]), name)
    return value


if not TYPE_CHECKING:
    # `livella.study` is a function and a package. Python binds a package's name once, when it is
    # loaded: done here, no import later takes the name from the function.
    from livella import study

    del study

    __all__ = ["functional", "nn", *_HOME]
    __getattr__ = _load

    def __dir__():
        own = (name for name in globals() if name.startswith("__"))
        return sorted({*own, *__all__, *_MODULES})
