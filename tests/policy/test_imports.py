"""The import rules: which package and which part of workbench may import which, no circle of files, and what no file
may hold."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEAVES = {"sae", "probes", "reports"}
FORBIDDEN = {
    "sae": {"workbench", "probes", "reports", "transformer_lens", "sae_lens", "pandas"},
    "probes": {"workbench", "sae", "reports", "torch", "transformer_lens", "pandas"},
    "reports": {"workbench", "sae", "probes", "torch", "scipy", "transformer_lens"},
}
# the parts of workbench, each of which may import those behind it; `extend` is what analyses and interventions import
PARTS = ("__main__", "cli", "study", "analyses", "training", "extend", "data", "models", "runs", "progress")
FILES = sorted(f for package in (*LEAVES, "workbench") for f in (ROOT / package).rglob("*.py"))


def imported_roots(file: Path) -> set[str]:
    """First names of everything a file imports, also inside functions."""
    roots = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            roots.add(node.module.split(".")[0])
    return roots


@pytest.mark.parametrize("package", sorted(LEAVES))
def test_leaves_know_nobody(package):
    for file in (ROOT / package).rglob("*.py"):
        assert not imported_roots(file) & FORBIDDEN[package], file


def test_the_rule_sees_an_import_inside_a_function(tmp_path):
    file = tmp_path / "x.py"
    file.write_text("def f():\n    from workbench.models import HookedLM\n")
    assert imported_roots(file) == {"workbench"}


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_no_pickle_no_shell_and_sizes(file):
    text = file.read_text(encoding="utf-8")
    roots = imported_roots(file)
    assert not roots & {"pickle", "dill", "joblib", "shelve"}
    for word in ("torch.load(", "weights_only=False", "shell=True", "trust_remote_code=True", "allow_pickle=True"):
        assert word not in text
    assert len(text.splitlines()) <= 600
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            body = node.end_lineno - node.lineno - len((ast.get_docstring(node) or "").splitlines())
            assert body <= 70, f"{file.name}:{node.lineno} {node.name} has {body} lines"


def test_top_level_is_what_the_architecture_says():
    present = {p.name for p in ROOT.iterdir() if (p / "__init__.py").exists()}
    assert {"workbench", "sae", "probes", "reports"} <= present


def test_leaves_import_without_the_heavy_ones():
    code = (
        "import sys, probes, reports\n"
        "assert not {'torch', 'transformer_lens', 'workbench'} & set(sys.modules), sorted(sys.modules)\n"
        "import sae\n"
        "assert 'transformer_lens' not in sys.modules and 'workbench' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# --- the graph of files


def imports(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Every import that runs, also inside functions: all but those under `if TYPE_CHECKING`."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node
    is_typing = isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
    for child in node.orelse if is_typing else ast.iter_child_nodes(node):
        yield from imports(child)


def handed_on(tree: ast.Module) -> dict[str, str]:
    """Name -> module, of a package that imports its names on first use (its `_WHERE`)."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_WHERE":
            found = next(inner for inner in ast.walk(node.value) if isinstance(inner, ast.Dict))
            pairs = ast.literal_eval(found).items()
            return {name: where if isinstance(where, str) else where[0] for name, where in pairs}
    return {}


def file_graph(root: Path, packages: tuple[str, ...]) -> dict[str, set[str]]:
    """Module -> the modules of these packages that its file imports. A name that a package's `__init__` imports on
    first use leads to its module."""
    trees = {}
    for file in (f for package in packages for f in (root / package).rglob("*.py")):
        name = ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        trees[name] = ast.parse(file.read_text(encoding="utf-8"))
    lazy = {name: handed_on(tree) for name, tree in trees.items()}
    graph: dict[str, set[str]] = {}
    for name, tree in trees.items():
        wanted = set()
        for node in imports(tree):
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif node.module in trees:
                inner = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
                wanted |= {m if m in trees else lazy[node.module].get(n, node.module) for n, m in inner.items()}
        graph[name] = wanted & trees.keys() - {name}
    return graph


GRAPH = file_graph(ROOT, ("workbench", *sorted(LEAVES)))


def test_no_files_import_each_other_in_a_circle():
    graphlib.TopologicalSorter(GRAPH).prepare()  # CycleError names the files


def test_the_parts_of_workbench_import_downwards():
    def part(module: str) -> str:
        return (module.split(".") + ["__main__"])[1]  # the package's __init__, which nothing imports, stands on top

    arrows = {(name, other) for name, others in GRAPH.items() for other in others}
    of_workbench = {pair for pair in arrows if all(name.split(".")[0] == "workbench" for name in pair)}
    assert {part(name) for name in GRAPH if name.startswith("workbench")} <= set(PARTS)
    upwards = {(a, b) for a, b in of_workbench if PARTS.index(part(a)) > PARTS.index(part(b))}
    assert not upwards
    assert len(of_workbench) > 400  # the graph is not empty


@pytest.mark.parametrize(
    ("planted", "is_circle"),
    [
        ("def f():\n    from p.a import x\n", True),
        ("def f():\n    import p.a\n", True),
        ("from p import a\n", True),
        ("from p import x\n", True),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.a import x\n", False),
        ("from p.c import x\n", False),
    ],
)
def test_a_planted_circle_is_seen(tmp_path, planted, is_circle):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "__init__.py").write_text('_WHERE = dict({"x": "p.a"})\n')
    (tmp_path / "p" / "a.py").write_text("from p.b import y\nx = 1\n")
    (tmp_path / "p" / "b.py").write_text(planted)
    (tmp_path / "p" / "c.py").write_text("x = 1\n")
    sorter = graphlib.TopologicalSorter(file_graph(tmp_path, ("p",)))
    if is_circle:
        with pytest.raises(graphlib.CycleError, match=r"p\.a"):
            sorter.prepare()
    else:
        sorter.prepare()


@pytest.mark.parametrize("package", sorted(LEAVES | {"workbench"}))
def test_types_are_shipped(package):
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert (ROOT / package / "py.typed").is_file()
    assert "py.typed" in settings["package-data"]["*"]
