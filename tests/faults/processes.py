"""What the processes that the fault tests start find in their environment, and what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def environment(**more: str) -> dict[str, str]:
    """This process's, with the checkout first on the path of modules: what was on it stays, behind."""
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path)} | more


def said_by(script: str, *arguments: str) -> Any:
    """What a script of this folder prints as its last line."""
    command = [sys.executable, str(Path(__file__).with_name(script)), *arguments]
    own = environment(PYTHONWARNINGS="ignore")
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=own, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
