"""What notebooks import: every name is there, and `import workbench` loads nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import workbench
from workbench.analyses import all_analyses


def test_every_public_name_resolves():
    of_analyses = {analysis.python_name for analysis in all_analyses()}
    for name in {*workbench.__all__, *of_analyses}:
        assert callable(getattr(workbench, name)), name
    named_by_records = {analysis.python_name for analysis in all_analyses() if analysis.function}
    assert set(workbench.__all__) == set(workbench._WHERE) | named_by_records


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(workbench, "nothing_of_the_kind")


def test_importing_loads_nothing_heavy():
    code = (
        "import sys, time; t = time.perf_counter(); import workbench; t = time.perf_counter() - t\n"
        "assert not {'torch', 'pandas', 'transformer_lens', 'plotly'} & set(sys.modules)\n"
        "assert t < 0.2, t"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
