"""Made-up studies for the tests of the pages: drawn once a session, because a thousand features take a moment."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_study import write_fake_study  # noqa: E402 - the path above leads to it
from headless import browser, pages, tab  # noqa: E402, F401 - fixtures

FIRST_TABLES = frozenset(
    (
        "topology_stats",
        "head_cosines",
        "sae_training_results",
        "sae_density",
        "ablation_results",
        "train_log",
        "baselines",
        "feature_atlas",
        "effects",
        "seed_means",
    )
)


@pytest.fixture(scope="session")
def made_study(tmp_path_factory) -> Path:
    """Two models, two layers of four heads, every table: read only."""
    directory = tmp_path_factory.mktemp("study") / "small"
    return write_fake_study(directory, n_layers=2, n_heads=4, d_sae=24, n_contexts=4, later=True)


@pytest.fixture
def study_copy(made_study, tmp_path) -> Path:
    """Its tables of the first job in a directory of the test's own, to break."""
    later = [path.name for path in made_study.glob("*.csv") if path.stem not in FIRST_TABLES]
    return shutil.copytree(made_study, tmp_path / "study", ignore=shutil.ignore_patterns(*later))
