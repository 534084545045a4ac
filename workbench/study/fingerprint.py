"""What a result's definition is known by: the source that makes it.

    fingerprint = SHA-256 over the syntax trees, without docstrings and comments, of an analysis's own modules and of
    those of the package that they import, and these in turn, and over the data files beside them that they name

so that a changed constant or formula is another definition, and a reworded comment is not. What only reads, writes and
shows (run directories, tables, command line, progress) makes no number and is not part of it.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

from sae.architectures import architecture_names, find_architecture
from workbench.analyses import all_analyses
from workbench.data.claims import EMBEDDED_CLAIMS
from workbench.data.papers import PAPERS
from workbench.extend import Analysis
from workbench.training.interventions import make_interventions
from workbench.training.recipe import Recipe

PACKAGES = ("workbench", "sae", "probes")
ROOTS = {name: Path(importlib.import_module(name).__path__[0]) for name in PACKAGES}
# modules that make no number, by the beginning of their names
SILENT = ("workbench.extend", "workbench.runs", "workbench.cli", "workbench.progress", "workbench.study")
TRAINING = "workbench.training.loop"
DATA_FILES = (".toml", ".json", ".xz")
PAGE_FILES = (".py", ".toml", ".j2", ".css", ".js")


def fingerprint(analysis: Analysis) -> str:
    """The digest of an analysis's definition, 64 hexadecimal digits."""
    module = analysis.measure.__module__
    package = ".".join(module.split(".")[:3])
    if package.startswith("workbench.analyses."):
        folder = ROOTS["workbench"].joinpath(*package.split(".")[1:])
        return _digest((package, *(f"{package}.{file.stem}" for file in sorted(folder.glob("*.py")))), _named())
    return _digest((module,), _named())


def training_fingerprint(recipe: Recipe) -> str:
    """The digest of what trains a model: the trainer, and the interventions of the recipe."""
    acting = {type(own).__module__ for phase in recipe.phases for own in make_interventions(phase.interventions)}
    return _digest((TRAINING, *sorted(acting)), _named())


@functools.lru_cache(maxsize=1)
def pages_fingerprint() -> str:
    """The digest of what merges tables, judges published claims and draws pages, plug-ins' figures among it."""
    folders = [Path(importlib.import_module("reports").__path__[0]), ROOTS["workbench"] / "study"]
    files = sorted(file for folder in folders for file in folder.rglob("*") if file.suffix in PAGE_FILES)
    names = ("claims.py", "remarks.py", "papers.py")
    files += [*EMBEDDED_CLAIMS, PAPERS, *(ROOTS["workbench"] / "data" / name for name in names)]
    lines = [f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n" for file in files]
    lines += [f"{own.name} {fingerprint(own)}\n" for own in all_analyses()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _named() -> tuple[str, ...]:
    """Modules of the architectures of SAEs, which `sae.architectures` imports by their names."""
    return tuple(type(find_architecture(name)).__module__ for name in architecture_names())


@functools.lru_cache(maxsize=256)
def _digest(roots: tuple[str, ...], named: tuple[str, ...]) -> str:
    seen: dict[str, str] = {}
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name not in seen and (path := _source(name)) is not None:
            seen[name], imported = _read(path)
            waiting += [*imported, *named] if name == "sae.architectures" else imported
    lines = [f"{name} {digest}\n" for name, digest in sorted(seen.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@functools.lru_cache(maxsize=1024)
def _read(path: Path) -> tuple[str, tuple[str, ...]]:
    """(digest of a module and of the data files beside it that it names, names of what it imports of the package)."""
    tree = ast.parse(path.read_bytes())
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    files = sorted(file for text in texts if text.endswith(DATA_FILES) and (file := path.parent / text).is_file())
    imported = [own for own in _imported(tree) if own.split(".")[0] in PACKAGES and not own.startswith(SILENT)]
    digest = hashlib.sha256(ast.dump(_bare(tree)).encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest(), tuple(imported)


@functools.lru_cache(maxsize=4096)
def _source(name: str) -> Path | None:
    """The file of a module of ours or of a plug-in; nothing for a name within one."""
    package, *rest = name.split(".")
    if package not in PACKAGES:
        file = getattr(sys.modules.get(name), "__file__", None)
        return Path(file) if file else None
    root = ROOTS[package].joinpath(*rest)
    return next((file for file in (root.with_suffix(".py"), root / "__init__.py") if file.is_file()), None)


def _imported(tree: ast.AST) -> Iterator[str]:
    """Names of what a module imports anywhere, but for types alone; of `from a import b` both a and a.b."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        yield from _imported(node)


def _bare(tree: ast.Module) -> ast.Module:
    """The tree without docstrings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or [ast.Pass()]
    return tree
