"""What the default study measures is shown on a page, or stands in a list here of what is not."""

from __future__ import annotations

import re
from pathlib import Path

from workbench.analyses import find_analysis
from workbench.study.recipe import load_study

ROOT = Path(__file__).parents[2]
# table -> columns that no page shows: counts and settings that every row repeats, and what other columns are made of
SAES = {"architecture", "d_sae"}
NOT_SHOWN = {
    "ablation_results": {"error_pct"},
    "attention_sentences": {"ids"},
    "content_share": {"text_rate", "excess", "excess_over_null", "n_documents", "tagger"},
    "content_share_features": {"n_content", "n_function", "n_activations", "n_documents"},
    **dict.fromkeys(("sae_density", "sae_curves", "sae_alarms"), SAES),
    "sae_matched_l0": {"l0_low", "l0_high", "fvu_a", "fvu_b", "ce_recovered_a", "ce_recovered_b", *SAES},
    "sae_pareto": {"on_front", *SAES},
    "sae_training_results": {
        "n_train_tokens", "explained_variance", "ce_zero_stderr", "ce_spliced_stderr", "fvu_with_special",
        "n_left_out", "n_outlying", "n_outlying_left_out", "neighbour_cosine", "near_copy_share", "rare_fraction",
        *SAES,
    },
}  # fmt: skip
# drawn by analyses' own figures or shown whole; not written by default
OTHERS = frozenset(("scrubbing", "scrubbing_heads", "scrubbing_members", "tasks", "ablation_pairs", "sae_stability"))


def sources() -> str:
    """What draws the pages, without what declares columns."""
    code = [path for path in (ROOT / "reports").rglob("*.py") if path.name not in ("contract.py", "study_tables.py")]
    return "\n".join(path.read_text(encoding="utf-8") for path in [*code, *(ROOT / "reports" / "templates").iterdir()])


def test_what_is_measured_is_shown_or_listed():
    text, found = sources(), {}
    for name in load_study(None).analyses:
        for table in find_analysis(name).tables:
            if "block" in table.key or table.name in OTHERS:
                continue
            columns = [own.name for own in (*table.columns, *table.trailing)]
            hidden = {own for own in columns if not re.search(rf"\b{re.escape(own)}\b", text)}
            if hidden - NOT_SHOWN.get(table.name, set()):
                found[table.name] = hidden - NOT_SHOWN.get(table.name, set())
    assert found == {}


def test_induction_previous_token_kl_and_standard_errors_are_shown():
    text = "\n".join(
        (ROOT / "reports" / name).read_text(encoding="utf-8") for name in ("heads.py", "templates/heads_view.js")
    )
    for column in ("induction", "previous_token", "kl", "stderr", "estimate_pct", "base_loss", "n_half", "n_repeated"):
        assert re.search(rf'"{column}"', text), column
