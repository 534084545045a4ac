"""One rule for verbs and studies: attention, spectra, compare and probe give the same files byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tomli_w
from studies_for_tests import write_place
from typer.testing import CliRunner

from probes import benjamini_hochberg
from reports.tables import read_table
from workbench.analyses import find_analysis
from workbench.analyses.attention.statistics import attention
from workbench.analyses.attention_patterns.patterns import attention_patterns
from workbench.analyses.compare.comparison import compare
from workbench.analyses.probe.analysis import TESTED
from workbench.analyses.spectra.weights import matrix_spectra, spectra_tables
from workbench.cli.app import app
from workbench.data.text_windows import spread_windows
from workbench.models.load import load
from workbench.study.study import study

pytestmark = [
    pytest.mark.filterwarnings("ignore::probes.ProbeWarning"),
    pytest.mark.usefixtures("cache"),
]  # few words, few points
RUNS = [f"tiny-{name}-seed{seed}" for seed in (0, 1) for name in ("control", "adaptive")]
SETTINGS: dict[str, dict[str, Any]] = {
    "attention": {"n_tokens": 192, "n_repeated": 3},
    "attention-patterns": {"n_tokens": 192},
    "spectra": {},
    "compare": {"n_sequences": 8},
    "probe": {"n_points": 60, "n_permutations": 29, "n_stability_permutations": 20, "sets": "tens,years_x,small"},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A text, its tokenizer, two training recipes of it, and concept sets whose prompts fit 16 tokens."""
    place = write_place(tmp_path_factory.mktemp("one_rule"))
    concepts = {
        "tens": {"category": "c", "topology": "ordinal", "words": [f"{i}0" for i in range(1, 10)]},
        "years_x": {"category": "c", "topology": "cyclic", "words": ["18", "29", "37", "46", "55"]},
        "small": {"category": "c", "topology": "paired", "pairs": [["up", "on"], ["in", "at"], ["go", "do"]]},
    }
    (place / "concepts.toml").write_text(tomli_w.dumps(concepts))
    SETTINGS["probe"] |= {"concepts": str(place / "concepts.toml"), "template": ["a {X}", "of {X},"]}
    return place


@pytest.fixture(scope="module")
def made(place) -> Path:
    """A study of two models and two seeds with all four."""
    recipe = {"name": "concepts", "models": [str(place / "control.toml"), str(place / "adaptive.toml")]}
    recipe |= {"analyses": list(SETTINGS), "settings": SETTINGS}
    (place / "concepts_study.toml").write_text(tomli_w.dumps(recipe))
    return study(place / "concepts_study.toml", place / "made", seeds=2, device="cpu")


def run(name: str, out: Path, *models: Path) -> Path:
    """The directory of a verb with the study's settings."""
    settings = []
    for key, value in SETTINGS[name].items():
        for one in value if isinstance(value, list) else [value]:
            settings += [f"--{key.replace('_', '-')}", str(one)]
    sources = list(map(str, models))
    if find_analysis(name).takes == "model":
        sources = [word for source in sources for word in ("--ckpt", source)]
    result = CliRunner().invoke(app, [name, *sources, *settings, "--device", "cpu", "--out", str(out)])
    assert result.exit_code == 0, result.output
    return out


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.glob("*.csv"))}


@pytest.mark.parametrize("name", ["attention", "attention-patterns", "spectra", "probe"])
def test_the_verb_on_a_model_and_its_job_write_the_same(name, made, tmp_path) -> None:
    found = files_of(run(name, tmp_path / "out", made / "models" / RUNS[3]))
    assert found == files_of(made / name / RUNS[3])
    assert set(found) <= {f"{table.name}.csv" for table in find_analysis(name).tables}


@pytest.mark.parametrize("name", ["attention", "attention-patterns", "spectra", "probe"])
def test_the_verb_on_all_models_and_the_study_write_the_same(name, made, tmp_path) -> None:
    found = files_of(run(name, tmp_path / "out", *(made / "models" / own for own in RUNS)))
    assert found == {file: (made / file).read_bytes() for file in found}
    assert len(found) >= 2


@pytest.mark.parametrize("seed", [0, 1])
def test_a_pair_is_compared_alike(seed, made, tmp_path) -> None:
    pair = [f"tiny-{name}-seed{seed}" for name in ("control", "adaptive")]
    found = files_of(run("compare", tmp_path / "out", *(made / "models" / own for own in pair)))
    assert set(found) == {"eigenspectra_divergence.csv", "pc_cosine.csv"}
    assert found == files_of(made / "compare" / f"tiny-control--tiny-adaptive-seed{seed}")
    merged = read_table(made, "pc_cosine").query("seed == @seed").reset_index(drop=True)
    pd.testing.assert_frame_equal(merged, read_table(tmp_path / "out", "pc_cosine"), check_exact=True)
    assert merged.columns[-1] == "seed"


def test_two_seeds_of_one_recipe_are_told_apart(made, tmp_path) -> None:
    pair = [made / "models" / f"tiny-control-seed{seed}" for seed in (0, 1)]
    table = read_table(run("compare", tmp_path / "out", *pair), "pc_cosine")
    assert table[["model_a", "model_b", "seed"]].drop_duplicates().to_numpy().tolist() == [[*map(str, pair), 1]]


def test_rows_are_those_of_the_functions(made) -> None:
    """What the windows, seeds and settings of the jobs are: said once more, by hand."""
    a, b = (load(made / "models" / own) for own in RUNS[2:])
    assert a.trained_on is not None
    text = a.trained_on.source
    tokens = spread_windows(a, text, n_tokens=192, n_ctx=16)
    assert tokens.shape == (12, 16)
    own = {"seed": 1, "name": "tiny-control"}
    tables = {
        "attention_stats": attention(a, tokens, n_repeated=3, **own),
        "attention_patterns": attention_patterns(a, tokens, **own),
        **spectra_tables(matrix_spectra(a), "tiny-control", 1),
    }
    both = spread_windows(a, text, n_sequences=8, n_ctx=16)
    found = compare(a, b, both, names=("tiny-control", "tiny-adaptive"), seeds=(1, 1), seed=1)
    tables |= {"pc_cosine": found.pc_cosine, "eigenspectra_divergence": found.eigenspectra_divergence}
    for name, table in tables.items():
        kept = read_table(made, name).query("seed == 1")
        kept = kept[kept["model"] == "tiny-control"] if "model" in kept else kept.drop(columns="seed")
        kept = kept.reset_index(drop=True)
        pd.testing.assert_frame_equal(kept, table, check_exact=True, check_dtype=False, check_like=True, obj=name)


@pytest.mark.parametrize("name", TESTED)
def test_q_is_over_all_models_and_seeds(name, made) -> None:
    merged = read_table(made, name)
    assert len(merged[["model", "seed"]].drop_duplicates()) == 4
    np.testing.assert_array_equal(merged["q"], benjamini_hochberg(merged["p"].to_numpy()))
    jobs = [read_table(made / "probe" / own, name) for own in RUNS]
    for job in jobs:
        np.testing.assert_array_equal(job["q"], benjamini_hochberg(job["p"].to_numpy()))
    apart = pd.concat(jobs, ignore_index=True)
    assert (apart["q"] != merged["q"]).any()
    pd.testing.assert_frame_equal(apart.drop(columns="q"), merged.drop(columns="q"), check_exact=True)


def test_q_of_two_seeds_of_one_recipe_is_over_both(made, tmp_path) -> None:
    out = run("probe", tmp_path / "out", *(made / "models" / f"tiny-control-seed{seed}" for seed in (0, 1)))
    for name in TESTED:
        table = read_table(out, name)
        assert table["seed"].unique().tolist() == [0, 1]
        np.testing.assert_array_equal(table["q"], benjamini_hochberg(table["p"].to_numpy()))
