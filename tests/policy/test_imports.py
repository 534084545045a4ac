"""The import rule: workbench knows sae, probes and reports; these know nobody. And what no file may hold."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEAVES = {"sae", "probes", "reports"}
FORBIDDEN = {
    "sae": {"workbench", "probes", "reports", "transformer_lens", "sae_lens", "pandas"},
    "probes": {"workbench", "sae", "reports", "torch", "transformer_lens", "pandas"},
    "reports": {"workbench", "sae", "probes", "torch", "scipy", "transformer_lens"},
}
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
