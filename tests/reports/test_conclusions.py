"""The box at the top: which rows its sentences are chosen from, and that nothing is said without them."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pandas as pd
import pytest

from reports.conclusions import N_MODELS, conclude, introduce, limits
from reports.page import write_report
from reports.setup import describe_setup
from reports.study import read_study
from reports.study_tables import CLAIMS, FINDINGS
from reports.tables import write_table

NAN = float("nan")
COLUMNS = list(FINDINGS.leading)


def finding(measure: str, ends: tuple[float, float], effect: float, low: float, high: float, **other: object) -> dict:
    scale = max(map(abs, ends))
    nearer, farther = sorted((abs(low), abs(high)))
    row = {
        "table": "topology_stats", "measure": measure, "comparison": "",
        "model_a": "m-control", "model_b": "m-adaptive",
        "value_a": ends[0], "value_b": ends[1], "effect": effect, "ci_low": low, "ci_high": high, "n": 3,
        "interval": "paired", "at_least": 0.0 if low <= 0 <= high else nearer / scale, "at_most": farther / scale,
        "label": measure, "unit": "",
    }  # fmt: skip
    return row | other


def study_of(directory: Path, rows: list[dict], **record: object):
    write_table(pd.DataFrame(rows, columns=COLUMNS), directory, "findings")
    (directory / "study.json").write_text(json.dumps(record))
    return read_study(directory)


def said(study) -> dict[str, str]:
    return {item.about: item.text for item in conclude(study)}


def test_what_moved_is_ranked_by_the_least_change_that_its_interval_allows(tmp_path):
    rows = [
        finding("sure and small", (1.0, 1.1), 0.1, 0.09, 0.11, table="a"),
        finding("large and sure", (1.0, 0.2), -0.8, -0.85, -0.75, table="b"),
        finding("large and unsure", (1.0, 1.9), 0.9, 0.05, 1.75, table="c"),
        finding("of the same table", (1.0, 0.3), -0.7, -0.75, -0.65, table="b"),
        finding("not known", (1.0, 9.0), 8.0, -1.0, 17.0, table="d"),
    ]
    found = said(study_of(tmp_path, rows))
    order = [found["What moved"].index(name) for name in ("arge and sure", "sure and small", "large and unsure")]
    assert order == sorted(order)
    assert "of the same table" not in found["What moved"]  # another table has its say first
    assert "not known" not in " ".join(found.values())  # neither moved nor unmoved
    assert "Large and sure: 1.00 → 0.200, −80.0 % (difference −0.800 [−0.850, −0.750])" in found["What moved"]
    assert (
        introduce(read_study(tmp_path)) == "Adaptive against control; brackets are 95 % intervals over seeds (3 seeds)."
    )


def test_redundancy_on_z_is_never_said_without_that_of_what_heads_write(tmp_path):
    rows = [
        finding("mean |cos| on z", (1.0, 0.2), -0.8, -0.85, -0.75, label="on z"),
        finding("mean |cos|, residual", (1.0, 1.1), 0.1, -0.4, 0.6, label="what they write"),
    ]
    moved = said(study_of(tmp_path, rows))["What moved"]
    assert moved.endswith("what they write: 1.00 → 1.10, +10.0 % (difference +0.100 [−0.400, 0.600]).")


def test_only_a_narrow_interval_that_holds_0_says_that_nothing_moved(tmp_path):
    rows = [
        finding("still", (1.0, 1.001), 0.001, -0.02, 0.022),
        finding("equal by construction", (1.0, 1.0), 0.0, 0.0, 0.0),
        finding("wide", (1.0, 1.0), 0.0, -0.5, 0.5),
        finding("just moved", (1.0, 1.02), 0.02, 0.001, 0.039),
    ]
    found = said(study_of(tmp_path, rows))
    assert found["What did not"] == "Still: 1.00 → 1.00 (by no more than 2.2 %)."
    assert "wide" not in found["What moved"]


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.01, 0.03, "which excludes 0"), (-0.01, 0.05, "which holds 0"), (NAN, NAN, "without")],
)
def test_the_cost_says_whether_its_interval_holds_0(tmp_path, low, high, verdict):
    rows = [
        finding("held-out loss", (4.0, 4.02), 0.02, low, high, unit="nats", table="train_log"),
        finding("held-out perplexity", (54.6, 55.7), 1.1, NAN, NAN, table="train_log"),
    ]
    text = said(study_of(tmp_path, rows))["What it cost"]
    assert text.startswith("Held-out loss +0.020 nats")
    assert verdict in text
    assert text.endswith("perplexity 54.6 → 55.7, +2.0 %.")


def test_shares_are_said_in_points(tmp_path):
    row = finding("dead", (0.01, 0.045), 0.035, 0.026, 0.043, unit="share")
    assert said(study_of(tmp_path, [row]))["What moved"] == "Dead: 1.0 % → 4.5 % (+3.5 points [+2.6, +4.3])."


def test_of_many_models_a_few_are_named_and_the_rest_counted(tmp_path):
    names = [f"m-{letter}" for letter in "bcdefgh"]
    rows = [finding("x", (1.0, 2.0), 1.0, 0.9 - k / 100, 1.1, model_b=name) for k, name in enumerate(names)]
    text = said(study_of(tmp_path, rows))["What moved"]
    assert text.count(" against control: ") == N_MODELS
    assert f"{len(names) - N_MODELS} further comparisons are in findings.csv." in text


def test_without_intervals_no_difference_is_called_one(tmp_path):
    rows = [finding("x", (1.0, 2.0), 1.0, NAN, NAN, n=1, interval="none")]
    found = said(study_of(tmp_path, rows))
    assert found == {
        "What moved": "No difference between the models has an interval, so none is known to be more than chance."
    }


def claim(claim_id: str, verdict: str, figure: str, effect: float, **other: object) -> dict:
    texts = dict.fromkeys([*CLAIMS.leading, *(column.name for column in CLAIMS.trailing)], "")
    numbers = {"ci_low": effect - 0.1, "ci_high": effect + 0.1, "n": 1, "effect": effect, "published_effect": 1.54}
    numbers |= {"margin": NAN, "reference_value": NAN, "treated_value": NAN, "published_params": 40e6}
    own = {"claim": claim_id, "claim_id": claim_id, "verdict": verdict, "figure": figure, "scale": "ratio"}
    return texts | numbers | own | {"unit": "factor", "group": "g"} | other


def test_the_paper_is_held_against_what_was_measured(tmp_path):
    rows = [
        claim("holds", "same direction", "holds", 1.5),
        claim("otherwise", "not seen", "excludes", -0.13),
        claim("larger", "reproduced", "excludes", 3.0),
        claim("missing", "not measured", "", NAN),
    ]
    write_table(pd.DataFrame(rows), tmp_path, "claims")
    models = [{"name": "m", "n_parameters_no_embedding": 800_000}]
    study = study_of(tmp_path, [finding("x", (1.0, 1.0), 0.0, -1.0, 1.0)], models=models)
    text = said(study)["What held of the paper"]
    assert text.startswith("2 of the 3 claims that could be measured hold")
    assert text.endswith("published: “otherwise”, 0.870 × [0.770, 0.970], excludes 2.54 ×.")
    assert "Size: 0.80 M parameters without embeddings against 40.0 M published (2.0 %)." in limits(study)


def test_a_study_that_says_nothing_has_no_box(tmp_path):
    df = pd.DataFrame({"name": ["bigram"], "nats": [4.6], "n_tokens": [9]})
    write_table(df, tmp_path, "baselines")
    study = read_study(tmp_path)
    assert (conclude(study), limits(study), describe_setup(study), introduce(study)) == ([], [], "", "")
    assert 'id="conclusions"' not in write_report(tmp_path).read_text(encoding="utf-8")


def test_one_model_has_limits_and_a_setup_and_no_comparison(made_study, tmp_path):
    for name in ("topology_stats", "train_log", "baselines", "seed_means"):
        df = pd.read_csv(made_study / f"{name}.csv", dtype={"seeds": "str", "values": "str"}, keep_default_na=False)
        if "model" in df:
            df = df[df["model"].isin(["", "janus-v3-control-nano"])]
        df.to_csv(tmp_path / f"{name}.csv", index=False)
    shape = {"name": "janus-v3-control-nano", "n_layers": 2, "n_heads": 4, "d_head": 16, "d_model": 64, "n_ctx": 128}
    (tmp_path / "study.json").write_text(json.dumps({"models": [shape]}))
    study = read_study(tmp_path)
    assert conclude(study) == []
    assert any(text.startswith("Distance to a bigram model of the same text") for text in limits(study))
    setup = describe_setup(study)
    assert setup.startswith("2 layers, 4 heads per layer, d_head 16, d_model 64, 128 tokens of context; ")
    assert "training tokens; held-out tokens: " in setup


def test_the_box_stands_before_the_ledger_with_its_terms_marked_once(made_study, tmp_path):
    page = write_report(made_study, tmp_path / "report.html").read_text(encoding="utf-8")
    box = page[page.index('id="conclusions"') : page.index('id="ledger"')]
    keys = re.findall(r'href="#term-([\w-]+)"', box)
    assert keys
    assert len(set(keys)) == len(keys)
    for key in re.findall(r'href="#term-([\w-]+)"', page):
        assert page.count(f'id="term-{key}"') == 1
    text = html.unescape(re.sub(r"<[^>]*>", "", box))
    assert "What moved" in text
