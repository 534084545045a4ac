"""Size as an axis: lines and headings on simulated effects of known slopes, and how a study names its sizes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from studies_for_tests import tiny, write_place

from reports.tables import COLUMNS
from workbench.analyses.topology.heads import Size
from workbench.data.claims import read_claims
from workbench.data.papers import read_papers
from workbench.study.jobs import plan_jobs
from workbench.study.plan import plan
from workbench.study.recipe import StudyRecipe, load_study
from workbench.study.sizes import (
    AWAY,
    FLAT,
    TOWARDS,
    UNCERTAIN,
    check_sizes,
    count_parameters,
    find_heading,
    fit_line,
    judge_sizes,
    largest_size,
    notes_on_sizes,
)
from workbench.training.recipe import load_recipe, phase_model

N_DRAWS = 4000
X = [math.log10(n) for n in (197_440, 443_232, 787_072, 3_149_056)]
PUBLISHED_X = math.log10(37_755_392)
COVERED = (0.93, 0.97)


def simulate(slope: float, middle: float, noise: float, n_seeds: int = 3, n_draws: int = N_DRAWS) -> np.ndarray:
    """[draw seed size] effects on a line, with independent normal noise."""
    rng = np.random.default_rng(0)
    line = middle + slope * (np.array(X) - np.mean(X))
    return line + noise * rng.standard_normal((n_draws, n_seeds, len(X)))


@pytest.mark.parametrize("n_seeds", [3, 5])
@pytest.mark.parametrize("slope", [-0.4, 0.0, 0.25])
def test_intervals_cover_the_slope_and_one_more_model_at_their_rate(slope, n_seeds) -> None:
    rng = np.random.default_rng(1)
    of_slope, of_model, of_mean = 0, 0, 0
    at = -0.3 + slope * (PUBLISHED_X - np.mean(X))
    for effects in simulate(slope, -0.3, 0.1, n_seeds):
        line = fit_line(X, effects)
        assert line.slope_bounds is not None
        assert line.mean_bounds is not None
        of_slope += line.slope_bounds[0] <= slope <= line.slope_bounds[1]
        of_mean += line.mean_bounds[0] <= -0.3 <= line.mean_bounds[1]
        low, high = line.predict(PUBLISHED_X)
        of_model += low <= at + 0.1 * rng.standard_normal() <= high
    for n in (of_slope, of_mean, of_model):
        assert COVERED[0] <= n / N_DRAWS <= COVERED[1]


def test_the_slopes_interval_holds_where_seeds_have_slopes_of_their_own() -> None:
    rng = np.random.default_rng(2)
    own = 0.3 * rng.standard_normal((N_DRAWS, 3, 1)) * (np.array(X) - np.mean(X))
    found = [fit_line(X, effects).slope_bounds for effects in simulate(0.2, 0.0, 0.1) + own]
    covered = np.mean([low <= 0.2 <= high for low, high in filter(None, found)])
    assert len(found) == N_DRAWS
    assert COVERED[0] <= covered <= COVERED[1]


def test_the_line_is_least_squares_over_all_seeds_and_sizes() -> None:
    effects = simulate(0.3, 0.1, 0.2, n_draws=1)[0]
    line = fit_line(X, effects)
    oracle: Any = scipy.stats.linregress(np.tile(X, 3), effects.ravel())
    assert line.slope == pytest.approx(oracle.slope)
    assert line.at(PUBLISHED_X) == pytest.approx(oracle.intercept + oracle.slope * PUBLISHED_X)
    assert line.residual / math.sqrt(line.spread) == pytest.approx(oracle.stderr)
    lines: list[Any] = [scipy.stats.linregress(X, own) for own in effects]
    by_seed = [own.slope for own in lines]
    interval = scipy.stats.t.interval(0.95, 2, np.mean(by_seed), scipy.stats.sem(by_seed))
    assert line.slope_bounds == pytest.approx(interval)


def test_few_seeds_and_sizes_give_what_they_can() -> None:
    two = fit_line(X, simulate(0.3, 0.0, 0.1, n_seeds=2, n_draws=1)[0])
    assert two.slope_bounds is None
    assert find_heading(two, PUBLISHED_X, 1.0, 1) == UNCERTAIN
    assert all(map(math.isfinite, two.predict(PUBLISHED_X)))
    alone = fit_line(X[:2], np.array([[0.0, 1.0]]))
    assert all(map(math.isnan, alone.predict(PUBLISHED_X)))
    with pytest.raises(ValueError, match="expected \\[seed size\\], two sizes that differ"):
        fit_line([5.0, 5.0], np.zeros((3, 2)))


# --- headings


def heading_rate(wanted: str, slope: float, middle: float, noise: float, **claim) -> float:
    given = {"published": -0.5, "direction": -1, "margin": None} | claim
    found = [find_heading(fit_line(X, own), PUBLISHED_X, **given) for own in simulate(slope, middle, noise)]
    return found.count(wanted) / len(found)


@pytest.mark.parametrize(
    ("wanted", "slope", "middle", "claim"),
    [
        (TOWARDS, -0.3, -0.1, {}),
        (TOWARDS, 0.3, -1.2, {}),
        (AWAY, 0.3, -0.1, {}),
        (AWAY, -0.3, -1.2, {}),
        (FLAT, 0.0, -0.1, {}),
        (TOWARDS, -0.3, 0.1, {"published": None}),
        (AWAY, 0.3, -0.1, {"published": None}),
        (FLAT, 0.0, -0.5, {"published": None}),
        (TOWARDS, -0.3, 0.4, {"published": 0.0, "direction": 0, "margin": 0.05}),
        (TOWARDS, 0.3, -0.4, {"published": None, "direction": 0, "margin": 0.05}),
        (AWAY, 0.3, 0.4, {"published": 0.0, "direction": 0, "margin": 0.05}),
        (FLAT, 0.01, 0.4, {"published": 0.0, "direction": 0, "margin": 0.05}),
    ],
)
def test_a_precise_slope_has_the_right_heading(wanted, slope, middle, claim) -> None:
    # 93 %: the interval of a slope of 0 leaves 0 out in 5 % of draws
    assert heading_rate(wanted, slope, middle, 0.002, **claim) >= 0.93


@pytest.mark.parametrize("noise", [0.002, 0.05, 0.5])
def test_a_slope_of_nothing_is_called_one_in_five_per_cent_at_most(noise) -> None:
    called = sum(heading_rate(wanted, 0.0, -0.1, noise) for wanted in (TOWARDS, AWAY))
    assert called <= 0.06


@pytest.mark.parametrize("noise", [0.02, 0.1, 0.5])
def test_a_slope_is_called_the_wrong_way_in_five_per_cent_at_most(noise) -> None:
    assert heading_rate(AWAY, -0.1, -0.1, noise) <= 0.03
    assert heading_rate(TOWARDS, 0.1, -0.1, noise) <= 0.03
    way = PUBLISHED_X - float(np.mean(X))
    steep = 0.5 / 2 / way * 1.01  # just what is no longer flat
    assert heading_rate(FLAT, -steep, -0.1, noise) <= 0.03


def test_an_effect_that_cannot_be_told_from_the_published_one_has_no_side_to_go_to() -> None:
    assert heading_rate(UNCERTAIN, -0.3, -0.5, 0.02) >= 0.93


# --- a study's sizes


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return write_place(tmp_path_factory.mktemp("sizes"))


def sized(place, **sizes) -> StudyRecipe:
    given = {"small": {"model.d_model": 8}, "large": {"phases.language.interventions.vsm.steering": 1.0}}
    return StudyRecipe.model_validate(tiny(place) | {"sizes": sizes or given})


def test_every_model_is_there_at_every_size_with_the_settings_that_it_has(place) -> None:
    recipe = sized(place)
    control, adaptive, control_large, adaptive_large = recipe.train_recipes()
    assert [own.name for own in (control, adaptive)] == ["tiny-control@small", "tiny-adaptive@small"]
    assert [own.name for own in (control_large, adaptive_large)] == ["tiny-control@large", "tiny-adaptive@large"]
    assert [own.model.d_model for own in recipe.train_recipes()] == [8, 8, 16, 16]
    assert adaptive_large.phases[0].interventions[0].model_dump()["steering"] == 1.0
    assert control_large.phases[0].interventions == ()
    assert recipe.roles_at("large") == {"control": "tiny-control@large", "adaptive": "tiny-adaptive@large"}


def test_pairs_are_of_one_size(place) -> None:
    jobs = plan_jobs(sized(place))
    pairs = [[name for name, _ in job.models] for job in jobs if job.kind == "match"]
    assert pairs == [[f"tiny-control@{size}", f"tiny-adaptive@{size}"] for size in ("small", "large")]
    assert len(jobs) == 2 * len(plan_jobs(StudyRecipe.model_validate(tiny(place))))


def test_sizes_can_be_set_by_path(place) -> None:
    recipe = load_study(place / "tiny.toml", {"sizes.small.model.d_model": 8, "sizes.small.model.d_mlp": 12})
    assert recipe.sizes == {"small": {"model.d_model": 8, "model.d_mlp": 12}}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"small": {"model.widht": 8}}, r"sizes.small: got 'model.widht'; expected a setting that a model has"),
        ({"small": {"name": "other"}}, r"sizes.small: got 'name'; expected a setting that a model has"),
        ({"small": {"model": {"d_model": 8}}}, r"sizes: small: got a table 'model'; expected paths in quotes"),
        ({"small": {"model.d_model": 0}}, r"sizes.small: set: model.d_model: .*greater than"),
        ({"a@b": {}}, r"tiny.toml: sizes: got a size 'a@b'; expected letters, digits"),
        ({"a/b": {}}, r"tiny.toml: sizes: got a size 'a/b'; expected letters, digits"),
        (
            {"one": {}, "two": {"phases.language.n_steps": 5}},
            r"sizes: got 3,408 parameters without embeddings of tiny-control at one and at two; expected sizes",
        ),
    ],
)  # fmt: skip
def test_wrong_sizes_are_one_line(place, sizes, message) -> None:
    def read() -> None:
        recipe = load_study(place / "tiny.toml", {"sizes": sizes})
        check_sizes(recipe, recipe.train_recipes())

    with pytest.raises(ValueError, match=message) as found:
        read()
    assert "\n" not in str(found.value)


def test_a_model_whose_name_holds_the_sign_is_refused(place) -> None:
    text = (place / "control.toml").read_text().replace("tiny-control", "tiny@control")
    (place / "at.toml").write_text(text)
    own = tiny(place) | {"models": [str(place / "at.toml")], "roles": {}, "sizes": {"a": {}}, "analyses": ["ablate"]}
    with pytest.raises(ValueError, match="sizes: got a model 'tiny@control'; expected no '@' in its name"):
        StudyRecipe.model_validate(own | {"settings": {}}).train_recipes()


def test_set_names_a_size_and_a_setting(place) -> None:
    for given in ({"sizes.small": 3}, {"sizes": 3, "sizes.small.model.d_model": 8}):
        with pytest.raises(ValueError, match=r"set sizes.small.*: names no setting of a size; expected sizes.SIZE.KEY"):
            load_study(place / "tiny.toml", given)


def test_a_dry_run_counts_every_size(place) -> None:
    facts = plan(sized(place), device="cpu")
    assert list(facts["trainings"]) == [
        "tiny-control@small", "tiny-adaptive@small", "tiny-control@large", "tiny-adaptive@large",
    ]  # fmt: skip


def test_published_sizes_are_those_of_the_full_size_recipes() -> None:
    assert set(read_papers()) == {claim.group for claim in read_claims()}
    for paper in read_papers().values():
        cfg = phase_model(load_recipe(paper.recipe), -1)
        assert Size.of(cfg).n_parameters_no_embedding == paper.n_parameters


# --- the ledger by size


def planted(recipe: StudyRecipe, slope: float, middle: float, n_seeds: int = 3) -> dict[str, pd.DataFrame]:
    """topology_stats whose max |cos| on z falls from Control to Adaptive by a line over the sizes."""
    rng, rows = np.random.default_rng(3), []
    for name, n in count_parameters(recipe.train_recipes()).items():
        for seed in range(n_seeds):
            effect = middle + slope * math.log10(n) if "adaptive" in name else 0.0
            value = 0.02 * math.exp(effect + 1e-4 * rng.standard_normal())
            rows += [(name, seed, layer, "z", value, value) for layer in range(2)]
    columns = ["model", "seed", "layer", "basis", "max_cos", "mean_cos"]
    return {"topology_stats": pd.DataFrame(rows, columns=columns)}


SIZES = {"large": {"model.d_model": 32}, "small": {"model.d_model": 8}, "mid": {"model.d_model": 16}}


def test_the_ledger_by_size_is_the_planted_line(place) -> None:
    recipe = sized(place, **SIZES)
    trainings = recipe.train_recipes()
    claims = [claim for claim in read_claims() if claim.id.startswith(("janus-correlation", "janus-rank", "kotodama"))]
    tables = judge_sizes(planted(recipe, -0.05, 0.1), recipe, trainings, claims)
    assert {name: tuple(df.columns) for name, df in tables.items() if name != "claims"} == {
        name: COLUMNS[name] for name in ("claims_by_size", "size_slopes")
    }
    slopes = tables["size_slopes"].set_index("claim_id")
    assert list(slopes.index) == ["janus-correlation-3", "janus-correlation-6", "janus-correlation-9"]
    row: Any = slopes.loc["janus-correlation-9"]
    assert row["slope"] == pytest.approx(-0.05, abs=1e-3)
    assert row["ci_low"] < row["slope"] < row["ci_high"]
    assert row["predicted"] == pytest.approx(math.expm1(0.1 - 0.05 * PUBLISHED_X), abs=2e-3)
    assert row["predicted_low"] < row["predicted"] < row["predicted_high"]
    assert row[["n", "n_sizes", "published_params"]].tolist() == [3, 3, 37_755_392]
    by_size = tables["claims_by_size"]
    assert list(dict.fromkeys(by_size["size"])) == ["small", "mid", "large"], "by parameters"
    own = by_size[by_size["claim_id"] == "janus-correlation-9"]
    counts = count_parameters(trainings)
    assert own["n_parameters"].tolist() == [counts[f"tiny-adaptive@{size}"] for size in ("small", "mid", "large")]
    assert own["effect"].tolist() == pytest.approx(
        [math.expm1(0.1 - 0.05 * math.log10(n)) for n in own["n_parameters"]], abs=1e-3
    )
    assert own["line"].tolist() == pytest.approx(own["effect"].tolist(), abs=1e-3)
    assert set(by_size[by_size["claim_id"] == "janus-rank"]["verdict"]) == {"not measured"}
    assert not by_size["claim_id"].str.startswith("kotodama").any(), "models that the study has not"
    ledger = tables["claims"].set_index("claim_id")
    assert ledger.loc["janus-correlation-9", "effect"] == own["effect"].iloc[-1], "the ledger is the largest size's"


def test_headings_of_the_ledger(place) -> None:
    recipe = sized(place, **SIZES)
    claims = [claim for claim in read_claims() if claim.id == "janus-correlation-9"]
    for slope, heading in ((-0.05, TOWARDS), (0.05, AWAY), (0.0, FLAT)):
        tables = judge_sizes(planted(recipe, slope, -0.1), recipe, recipe.train_recipes(), claims)
        assert tables["size_slopes"]["heading"].tolist() == [heading]


def test_what_two_models_give_together_has_a_line_over_sizes(place) -> None:
    recipe = sized(place, **SIZES)
    planned = planted(recipe, -0.05, -0.1)
    given = {"sae_training_results": planned["topology_stats"].drop(columns="basis")}
    df = given["sae_training_results"].assign(dictionary="trained", l1=2.0, head=0)
    turns = df["model"].str.contains("adaptive") & (df["layer"] == 1)
    given["sae_training_results"] = df.assign(l0=df["max_cos"].where(~turns, 1.0))
    claim = next(own for own in read_claims() if own.id == "janus-l0-crossover")
    (row,) = judge_sizes(given, recipe, recipe.train_recipes(), [claim])["size_slopes"].to_dict("records")
    assert (row["slope"], row["n"], row["n_sizes"], row["predicted"]) == pytest.approx((0.0, 3, 3, 1.0))


def test_a_group_without_a_published_size_has_a_slope_alone(place) -> None:
    recipe = sized(place, **SIZES)
    claim = next(own for own in read_claims() if own.id == "janus-correlation-9").model_copy(update={"group": "mine"})
    tables = planted(recipe, -0.05, -0.1)
    (row,) = judge_sizes(tables, recipe, recipe.train_recipes(), [claim])["size_slopes"].to_dict("records")
    assert row["heading"] == ""
    assert math.isfinite(row["slope"])
    assert math.isnan(row["predicted"])
    named = claim.model_copy(update={"published_params": 1_000_000})
    (row,) = judge_sizes(tables, recipe, recipe.train_recipes(), [named])["size_slopes"].to_dict("records")
    assert row["predicted"] == pytest.approx(math.expm1(-0.1 - 0.05 * 6), abs=2e-3)


def test_one_size_has_no_slopes_and_says_so(place) -> None:
    recipe = sized(place, only={"model.d_model": 8})
    trainings = recipe.train_recipes()
    tables = judge_sizes(planted(recipe, -0.05, -0.1), recipe, trainings, read_claims())
    assert "size_slopes" not in tables
    assert tables["claims_by_size"]["line"].isna().all()
    assert notes_on_sizes(recipe, trainings)[-1] == "One size gives no slope: a line takes two sizes or more."
    assert largest_size(recipe, trainings) == "only"
