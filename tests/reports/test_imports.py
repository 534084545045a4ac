"""A page is drawn on a machine without torch: the package imports neither it nor what computes statistics."""

from __future__ import annotations

import subprocess
import sys


def test_drawing_needs_no_torch_no_scipy_and_no_workbench(made_study, tmp_path):
    code = f"""
import sys
for name in ("torch", "scipy", "sklearn", "workbench", "sae", "probes", "transformer_lens"):
    sys.modules[name] = None  # an import of it now fails
from reports.page import write_report
from reports.atlas import write_atlas
write_report({str(made_study)!r}, {str(tmp_path / "report.html")!r})
write_atlas({str(made_study)!r}, {str(tmp_path / "atlas.html")!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "atlas.html").is_file()


def test_the_contract_is_cheap_to_import():
    code = "import sys, reports.tables; assert not {'plotly', 'jinja2', 'torch'} & set(sys.modules), 'too much'"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
