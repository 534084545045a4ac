"""What the ledger says of the first paper's claims: figures, verdicts, and how to read them, on made-up tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from probes.jackknife import jackknife_interval
from workbench.study.claims import judge_claims

CONTROL, ADAPTIVE = "janus-v3-control-nano", "janus-v3-adaptive-nano"
ROLES = {"control": CONTROL, "adaptive": ADAPTIVE}
# what the made-up tables of three seeds hold an effect of
MADE = (
    "janus-correlation-3", "janus-correlation-6", "janus-correlation-9", "janus-rank", "janus-rank-utilization",
    "janus-l0-3", "janus-l0-9", "janus-top-head", "janus-content", "janus-content-top-head",
)  # fmt: skip


def topology(changes: dict[tuple[str, int], float], rank: dict[int, float], seeds=(0,), jitter: float = 0.0):
    """topology_stats of two models: Adaptive's cosines of (basis, layer), nuclear_rank of layer changed by a share; the
    mean cosine changes by the square root of what the largest does."""
    rng = np.random.default_rng(0)
    rows = []
    for seed in seeds:
        for model in (CONTROL, ADAPTIVE):
            for layer in range(4):
                for basis in ("z", "pattern", "residual"):
                    cos, own_rank = 0.1 * (layer + 1), 50.0
                    if model == ADAPTIVE:
                        cos *= 1 + changes.get((basis, layer), 0.0) + jitter * rng.normal()
                        own_rank *= 1 + rank.get(layer, 0.0) + jitter * rng.normal()
                    rows.append((model, seed, layer, basis, cos, own_rank))
    df = pd.DataFrame(rows, columns=["model", "seed", "layer", "basis", "max_cos", "nuclear_rank"])
    return df.assign(mean_cos=df["max_cos"] ** 0.5, rank_utilization=df["nuclear_rank"] / 100)


def saes(l0: dict[int, float], fvu: dict[int, float], l1=(2.0,), seeds=(0,)):
    """sae_training_results with Adaptive's l0 and fvu of a layer changed by a share; two heads, controls beside."""
    rows = []
    for seed in seeds:
        for model in (CONTROL, ADAPTIVE):
            for layer in range(4):
                for head in range(2):
                    for coefficient in l1:
                        base_l0, base_fvu = 40.0 / coefficient + head, 0.05 * coefficient
                        if model == ADAPTIVE:
                            base_l0 *= 1 + l0.get(layer, 0.0)
                            base_fvu *= 1 + fvu.get(layer, 0.0)
                        rows.append((model, seed, layer, head, coefficient, base_l0, base_fvu, "trained"))
                        rows.append((model, seed, layer, head, coefficient, 99.0, 9.0, "random"))
    return pd.DataFrame(rows, columns=["model", "seed", "layer", "head", "l1", "l0", "fvu", "dictionary"])


def ablation(control: list[float], adaptive: list[float], error: float, seeds=(0,), scale=(1.0,)):
    """ablation_results: impacts of layer 0's heads, ± 1.96 errors."""
    rows = []
    for seed, factor in zip(seeds, scale, strict=True):
        for model, impacts in ((CONTROL, control), (ADAPTIVE, [factor * i for i in adaptive])):
            for head, impact in enumerate(impacts):
                interval = (impact - 1.96 * error, impact + 1.96 * error)
                rows.append((model, seed, 0, head, "zero", impact, *interval))
                rows.append((model, seed, 0, head, "mean", 1000.0, 999.0, 1001.0))
    return pd.DataFrame(rows, columns=["model", "seed", "layer", "head", "kind", "impact_pct", "ci_low", "ci_high"])


def ledger(tables) -> dict[str, dict]:
    df = judge_claims(tables, ROLES)
    return {row["claim_id"]: row for row in df[df["treated"] == "adaptive"].to_dict("records")}


@pytest.fixture
def tables():
    return {
        "topology_stats": topology({("z", 2): -0.9, ("residual", 2): -0.2}, {1: -0.1, 3: -0.5}),
        "sae_training_results": saes({0: -0.2, 2: 0.3}, {0: 0.2, 2: -0.3}),
        "ablation_results": ablation([1.84, 0.4], [0.9, 0.5], 0.02),
    }


def test_the_rows_say_what_the_tables_hold(tables) -> None:
    rows = ledger(tables)
    assert {*MADE, "janus-loss"} <= set(rows)
    first = rows["janus-correlation-9"]
    assert first["published"] == "−60.3 % at layer 9 of 12 (.0305 → .0121)"
    assert first["measured"] == (
        "max |cos| on z at layer 2 of 4: −90.0 %, 0.3 → 0.03 (1 seed: no interval); "
        "mean |cos| on z −68.4 %; on the residual contributions −20.0 %; on the attention maps +0.0 %"
    )
    assert first["verdict"] == "not enough seeds"
    assert "only 22 % of the fall is left; most is one of basis" in first["why"]
    rank = rows["janus-rank"]
    assert rank["measured"] == (
        "nuclear rank of z at layer 1 of 4: −10.0 %, 50 → 45 (1 seed: no interval); at the last layer −50.0 %"
    )
    assert "takes directions away" in rank["why"]
    assert first["source_rows"] == "layer=2 basis=z"


def test_middle_and_last_layer_may_part(tables) -> None:
    parted = tables | {"topology_stats": topology({}, {1: 0.1, 3: -0.5})}
    assert "Middle and last layer move in opposite directions." in ledger(parted)["janus-rank"]["why"]


def test_l0_is_read_beside_fvu(tables) -> None:
    rows = ledger(tables)
    early, deep = rows["janus-l0-3"], rows["janus-l0-9"]
    assert early["measured"] == "l0 at layer 0 of 4, l1 2: −20.0 %, 20.5 → 16.4 (1 seed: no interval); fvu +20.0 %"
    assert early["why"].startswith("Fewer features are active and more variance is left over")
    assert early["source_rows"] == "layer=0 dictionary=trained l1=2"
    assert "l0 at layer 2 of 4, l1 2: +30.0 %" in deep["measured"]
    assert deep["why"].startswith("More features are active and less variance is left over")
    both_better = tables | {"sae_training_results": saes({0: -0.2}, {0: -0.2})}
    why = ledger(both_better)["janus-l0-3"]["why"]
    assert why.startswith("Not a trade of sparsity for error: fewer features leave less over")
    no_fvu = tables | {"sae_training_results": tables["sae_training_results"].drop(columns="fvu")}
    assert ledger(no_fvu)["janus-l0-3"]["why"].startswith("The same l1 buys another sparsity")


def test_a_sweep_adds_the_comparison_at_matched_l0(tables) -> None:
    # Adaptive's curve is Control's with every fvu a quarter lower: so it is at any l0
    swept = tables | {"sae_training_results": saes({}, dict.fromkeys(range(4), -0.25), l1=(1.0, 2.0, 4.0))}
    early = ledger(swept)["janus-l0-3"]
    assert early["measured"].endswith("fvu −25.0 %")
    assert "At matched l0, along the sweep of l1, fvu is −25.0 %." in early["why"]
    # curves that never meet in l0 are not compared
    apart = tables | {"sae_training_results": saes({0: -0.99}, {}, l1=(1.0, 2.0, 4.0))}
    assert "matched" not in ledger(apart)["janus-l0-3"]["why"]


def test_near_copies_are_said_beside_claims_on_l0(tables) -> None:
    saes_ = tables["sae_training_results"]
    is_adaptive = saes_["model"] == ROLES["adaptive"]
    shares = (0.2 + 0.1 * saes_["layer"]).where(~is_adaptive, 0.95)
    told = tables | {"sae_training_results": saes_.assign(near_copy_share=shares, neighbour_cosine=shares + 0.03)}
    rows = ledger(told)
    said = "Living features with another within a cosine of .9: {} % in control (median cosine {}), 95 % in adaptive"
    assert said.format(20, "0.2300") in rows["janus-l0-3"]["why"]
    assert said.format(40, "0.4300") in rows["janus-l0-9"]["why"]
    assert "Living" not in ledger(tables)["janus-l0-9"]["why"]


def test_the_top_head_is_a_ratio_with_the_intervals_of_both(tables) -> None:
    row = ledger(tables)["janus-top-head"]
    low, high = (0.9 - 1.96 * 0.02) / (1.84 + 1.96 * 0.02), (0.9 + 1.96 * 0.02) / (1.84 - 1.96 * 0.02)
    assert row["measured"] == (
        "0.489 × (control L0H0 1.84 %; adaptive L0H0 0.90 %); "
        f"1 seed: 95 % interval over the text alone {low:.3g} × to {high:.3g} ×"
    )
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((low - 1, high - 1))
    assert (row["verdict"], row["interval"]) == ("reversed", "own")
    assert "exchangeable: control not tested; adaptive not tested." in row["why"]
    ps = {(CONTROL, 0): 0.9, (CONTROL, -1): 0.0005, (ADAPTIVE, 0): 0.0005, (ADAPTIVE, -1): 0.06}
    tested = pd.DataFrame(
        [(model, 0, "zero", layer, "load_bearing_p", p) for (model, layer), p in ps.items()],
        columns=["model", "seed", "kind", "layer", "measure", "value"],
    )
    row = ledger(tables | {"ablation_summary": tested})["janus-top-head"]
    assert "control in 1 of 1 seeds (p ≤ .0005); adaptive in 0 of 1 seeds (p = .060)." in row["why"]
    greater = tables | {"ablation_results": ablation([1.0, 0.4], [2.5, 0.5], 0.02)}
    assert ledger(greater)["janus-top-head"]["verdict"] == "same direction"  # one seed never reproduces
    noisy = tables | {"ablation_results": ablation([1.84, 0.4], [0.9, 0.5], 0.8)}
    assert ledger(noisy)["janus-top-head"]["verdict"] == "not seen"
    useless = tables | {"ablation_results": ablation([0.01, 0.0], [0.9, 0.5], 0.1)}
    row = ledger(useless)["janus-top-head"]
    assert row["verdict"] == "not seen"
    assert row["measured"].endswith("95 % interval over the text alone 0 × to no limit")
    bare = tables | {"ablation_results": tables["ablation_results"].drop(columns=["ci_low", "ci_high"])}
    assert ledger(bare)["janus-top-head"]["verdict"] == "not enough seeds"


def content(shares: dict[tuple[str, int, int], float], seeds=(0, 1, 2)) -> pd.DataFrame:
    """content_share of two models of four layers and two heads, and of a whole hook; .5 where nothing is given."""
    rows = [
        (model, seed, layer, head, shares.get((model, layer, head), 0.5) + 0.01 * seed, 0.6, 0.55)
        for model in (CONTROL, ADAPTIVE)
        for seed in seeds
        for layer in range(4)
        for head in (-1, 0, 1)
    ]
    table = pd.DataFrame(rows, columns=["model", "seed", "layer", "head", "share", "text_rate", "null_mean"])
    return table.assign(excess_over_null=table["share"] - table["null_mean"])


def test_content_shares_are_read_at_a_layer_and_at_the_top_head() -> None:
    """Layer 9 of 12 is layer 2 of 4; the top head is Control's 0.0 and Adaptive's 0.1, by its impact alone."""
    shares = {(ADAPTIVE, 2, 0): 0.9, (ADAPTIVE, 2, -1): 9.0, (CONTROL, 0, 0): 0.3, (ADAPTIVE, 0, 1): 0.8}
    impacts = ablation([1.8, 0.4], [0.5, 0.9], 0.02, (0, 1, 2), (1.0, 1.1, 1.2))
    rows = ledger({"content_share": content(shares), "ablation_results": impacts})
    layer, top = rows["janus-content"], rows["janus-content-top-head"]
    assert (layer["reference_value"], layer["treated_value"]) == pytest.approx((0.51, 0.71))
    assert layer["measured"].startswith("content share of features, mean over heads at layer 2 of 4: +20.0 points")
    assert "text's own words 60.0 % are content words; permuted labels give 55.0 % in the reference" in layer["why"]
    assert (top["reference_value"], top["treated_value"]) == pytest.approx((0.31, 0.81))
    assert (layer["verdict"], top["verdict"]) == ("reproduced", "reproduced")
    turned = shares | {(CONTROL, 0, 0): 0.9}
    rows = ledger({"content_share": content(turned), "ablation_results": impacts})
    assert rows["janus-content-top-head"]["verdict"] == "reversed"
    rows = ledger({"content_share": content(shares)})
    assert rows["janus-content-top-head"]["verdict"] == "not measured", "no ablation says which head it is"
    assert rows["janus-content"]["verdict"] == "reproduced"


def test_one_seed_of_content_shares_has_an_interval_over_documents() -> None:
    """Shares without each of 16 blocks a little apart, as much in both models but for a tenth of it."""
    shares = {(ADAPTIVE, 2, 0): 0.9, (ADAPTIVE, 0, 1): 0.8}
    whole = content(shares, seeds=(0,))
    moves = np.random.default_rng(0).normal(0, 0.01, 16)
    twin = pd.concat(
        whole.assign(block=i, share=whole["share"] + move * np.where(whole["model"] == ADAPTIVE, 1.1, 1.0))
        for i, move in enumerate(moves)
    )
    given = {"content_share": whole, "ablation_results": ablation([1.8, 0.4], [0.5, 0.9], 0.02, (0,), (1.0,))}
    rows = ledger(given | {"content_share_blocks": twin})
    for name in ("janus-content", "janus-content-top-head"):
        row = rows[name]
        wanted = jackknife_interval(row["effect"], 0.1 * moves)
        assert (row["verdict"], row["interval"], row["n"]) == ("same direction", "own", 1)
        assert row["ci_high"] - row["ci_low"] == pytest.approx(wanted.high - wanted.low)
        assert ledger(given)[name]["verdict"] == "not enough seeds"


def test_whole_layers_and_mlps_are_no_heads(tables) -> None:
    parts = tables["ablation_results"].head(1).assign(head=-1, impact_pct=99.0, ci_low=98.0, ci_high=100.0)
    row = ledger(tables | {"ablation_results": pd.concat([tables["ablation_results"], parts])})["janus-top-head"]
    assert row["reference_value"] == 1.84


@pytest.mark.parametrize("sign", [1, -1])
def test_three_seeds_can_reproduce_or_reverse_everything(sign) -> None:
    seeds = (0, 1, 2)
    ratios = (2.5, 2.6, 2.4) if sign > 0 else (0.5, 0.45, 0.55)
    tables = {
        "topology_stats": topology(
            {("z", layer): -0.6 * sign for layer in range(3)} | {("residual", 2): -0.5 * sign},
            {1: 0.1 * sign},
            seeds,
            jitter=0.001,
        ),
        "sae_training_results": pd.concat(
            [
                saes({0: (-0.12 + d) * sign, 2: (0.25 + d) * sign}, {}, seeds=(s,))
                for s, d in zip(seeds, (0, 0.01, 0.02), strict=True)
            ]
        ),
        "ablation_results": ablation([1.0, 0.4], [1.0, 0.2], 0.5, seeds, ratios),
        "content_share": content({(ADAPTIVE, layer, 0): 0.5 + 0.2 * sign for layer in (0, 2)}),
    }
    ledgered = ledger(tables)
    rows = {name: ledgered[name] for name in MADE}
    assert {row["verdict"] for row in rows.values()} == {"reproduced" if sign > 0 else "reversed"}
    assert all("3 seeds: 95 % interval over seeds" in row["measured"] for row in rows.values())
    why = rows["janus-correlation-9"]["why"]
    assert ("falls too, by 83 % of it" if sign > 0 else "do not fall even there") in why


def test_a_fall_that_is_all_basis_is_said_to_be() -> None:
    tables = {"topology_stats": topology({("z", 2): -0.9, ("residual", 2): 0.05}, {})}
    assert "became no less alike at all, so the fall is one of basis" in ledger(tables)["janus-correlation-9"]["why"]
    unmeasured = {"topology_stats": tables["topology_stats"].query("basis == 'z'")}
    assert "which do not, were not measured." in ledger(unmeasured)["janus-correlation-9"]["why"]
