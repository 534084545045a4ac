"""Studies: models trained and analysed end to end, by jobs that are done once, and what the findings are."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    """This package, which is the function `workbench.study` too: importing any module of it puts it in that place."""

    def __call__(self, *args: Any, **settings: Any) -> Path:
        from workbench.study.study import study

        return study(*args, **settings)


sys.modules[__name__].__class__ = _Package
