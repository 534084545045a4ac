"""The analyses: each a file or folder of this one, and a user's own from plug-ins; known by one name.

A module is imported when its analysis is asked for, and what loads torch only when it measures.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from reports.contract import Table, declare, declared
from workbench.extend import Analysis, Intervention, interventions_of

GROUP = "workbench"  # of the entry points by which installed packages announce theirs
BUILT_IN = tuple(sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__)))

_FOUND: dict[str, Analysis] = {}
_PLUGINS: list[str] = []


def analysis_names() -> list[str]:
    """Names of all analyses: the package's, those of installed packages, those of loaded plug-ins."""
    return list(dict.fromkeys([*BUILT_IN, *_announced(), *_FOUND]))


def find_analysis(name: str) -> Analysis:
    """The analysis of that name, `-` and `_` being the same.

    Raises:
        ValueError: no such analysis (the nearest are named), or an installed package's that is none.
    """
    name = name.replace("_", "-")
    if name in _FOUND:
        return _FOUND[name]
    announced = _announced()
    if name in BUILT_IN:
        _register(importlib.import_module(f"{__name__}.{name.replace('-', '_')}"))
    elif name in announced:
        found = announced[name].load()
        _add(found) if isinstance(found, Analysis) else _register(found)
    if name not in _FOUND:
        names = analysis_names()
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names
        raise ValueError(f"analysis: got {name!r:.60}; nearest: {', '.join(near)}")
    return _FOUND[name]


def all_analyses() -> list[Analysis]:
    """Every analysis, those that others need before them."""
    ordered: dict[str, Analysis] = {}

    def visit(name: str) -> None:
        own = find_analysis(name)
        for needed in own.needs:
            visit(needed)
        ordered.setdefault(own.name, own)

    for name in analysis_names():
        visit(name)
    return list(ordered.values())


def known_tables() -> Mapping[str, Table]:
    """The tables of the study and of all analyses, plug-ins' among them, by name."""
    all_analyses()  # declares them
    return declared()


def figures_of_tables() -> dict[str, Sequence[Callable[..., Any]]]:
    """Table -> the functions by which analyses draw it on the page."""
    found: dict[str, Sequence[Callable[..., Any]]] = {}
    for own in all_analyses():
        if own.tables and own.figures:
            found |= own.figures if isinstance(own.figures, Mapping) else {own.tables[0].name: own.figures}
    return found


def load_plugin(source: str) -> list[Analysis]:
    """The analyses of a file or importable module, which from then on are known by their names, as its interventions
    are by their kinds, its families of models by their `model_type`, and its architectures of SAEs by their names.

    Raises:
        ValueError: no such file or module, one that fails or holds none of these, a name that is taken.
    """
    module = _import(source)
    own, interventions = _register(module), _register_interventions(module)
    if not any((own, interventions, _register_families(module), _register_architectures(module))):
        raise ValueError(
            f"plugin: {source} holds neither; expected an Analysis or Intervention of workbench.extend, a Family, or "
            "an Architecture of sae"
        )
    if source not in _PLUGINS:
        _PLUGINS.append(source)
    return own


def loaded_plugins() -> tuple[str, ...]:
    """What `load_plugin` was given, for another process to load."""
    return tuple(_PLUGINS)


def _import(source: str) -> ModuleType:
    path = Path(source).expanduser()
    try:
        if path.suffix != ".py":
            return importlib.import_module(source)
        name = f"workbench_plugin_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path.resolve())
        if not path.is_file() or spec is None or spec.loader is None:
            raise ValueError(f"plugin: no file {str(path)!r}; expected a Python file or an importable module")
        if name in sys.modules and sys.modules[name].__file__ == str(path.resolve()):
            return sys.modules[name]
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module
    except ModuleNotFoundError as error:
        raise ValueError(f"plugin: {source}: {error}; expected a Python file or an importable module") from error
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"plugin: {source} fails ({type(error).__name__}: {error})") from error


def _register(module: ModuleType) -> list[Analysis]:
    own = [value for value in vars(module).values() if isinstance(value, Analysis)]
    for analysis in own:
        _add(analysis)
    return own


def _register_interventions(module: ModuleType) -> list[type[Intervention]]:
    own = interventions_of(module)
    if own:  # torch is loaded for them, and not for a plug-in of analyses alone
        from workbench.training.interventions import register

        for intervention in own:
            register(intervention)
    return own


def _register_families(module: ModuleType) -> list[Any]:
    if "workbench.models.family" not in sys.modules:  # who makes one has imported it, and torch with it
        return []
    from workbench.models.families import register
    from workbench.models.family import Family

    own = [value for value in vars(module).values() if isinstance(value, Family)]
    for family in own:
        register(family)
    return own


def _register_architectures(module: ModuleType) -> list[Any]:
    if "sae.architecture" not in sys.modules:  # as with families
        return []
    from sae.architecture import Architecture
    from sae.architectures import register

    own = [value for value in vars(module).values() if isinstance(value, Architecture)]
    for architecture in own:
        register(architecture)
    return own


def _add(analysis: Analysis) -> None:
    known = _FOUND.setdefault(analysis.name, analysis)
    is_taken = analysis.name in BUILT_IN and not analysis.measure.__module__.startswith(f"{__name__}.")
    if known is not analysis or is_taken:
        raise ValueError(f"plugin: the name {analysis.name!r} is taken; expected another")
    declare(analysis.tables)


def _announced() -> dict[str, EntryPoint]:
    return {point.name.replace("_", "-"): point for point in entry_points(group=GROUP)}
