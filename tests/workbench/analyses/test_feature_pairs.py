"""Logit differences without a feature: against whole forwards of one prompt at a time, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models_for_tests import ARCHITECTURES, small_model, worded_model
from saes_for_tests import stack_for

from reports.tables import COLUMNS, read_table
from sae import set_feature
from workbench.analyses import find_analysis
from workbench.analyses.ablate.ablation import draw_donors
from workbench.analyses.feature_effects import pairs as module
from workbench.analyses.feature_effects.pairs import pair_effects
from workbench.data.tasks.listed import PromptPair, encode_pairs, read_pairs
from workbench.data.tokenizer import load_tokenizer
from workbench.models.activations import Positions, choose_slots, special_ids
from workbench.models.sae_places import saes_by_hook
from workbench.models.tokenizer_files import wrap_tokenizer
from workbench.study import measuring

PAIRS = [
    PromptPair(prompt="The keys of the house", answer=" are", foil=" is"),
    PromptPair(prompt="The key", answer=" is", foil=" are"),
    PromptPair(prompt="The old men of the town and the king", answer=" were", foil=" was"),
]


def with_words(kind):
    model = small_model(kind, d_vocab=4096).double()
    model.tokenizer = wrap_tokenizer(load_tokenizer("embedded"))
    return model


def sparse(sae, bias=-0.4):
    with torch.no_grad():
        sae.b_enc.fill_(bias)
    return sae


def difference(model, pair, hooks=()):
    tokens = model.to_tokens(pair.prompt)
    ids = [model.to_tokens(pair.prompt + own)[0, -1] for own in (pair.answer, pair.foil)]
    logits = model.run_with_hooks(tokens, fwd_hooks=list(hooks))[0, -1]
    return float((logits[ids[0]] - logits[ids[1]]).detach())


def naive(model, sae, k, j, pair, value, step=1.0):
    """Change of m with one feature moved `step` of the way to value(its position), by whole forwards of one prompt."""
    source, own = sae.info.sources[k], sae.select(k)
    counted = Positions(special_ids(model)).of(model.to_tokens(pair.prompt))[0]

    def edit(z, hook):
        rows = z[0, :, source.head]
        acts = own.encode(rows)[:, j]
        new = value(acts)
        moved = set_feature(rows, own.W_dec[0, j], acts, acts + step * (new - acts))
        out = z.clone()
        out[0, :, source.head] = torch.where((counted & new.isfinite())[:, None], moved.nan_to_num(), rows)
        return out

    return difference(model, pair, [(source.hook_name, edit)]) - difference(model, pair)


def effects_of(model, sae, **more) -> Any:
    positions = Positions(special_ids(model))
    value = torch.zeros(sae.config.n_saes, sae.config.d_sae, dtype=torch.float64)
    given = {"name": "m", "seed": 0, "n_bootstrap": 100} | more
    pairs, value = encode_pairs(model, PAIRS), given.pop("value", value)
    return pair_effects(model, sae, saes_by_hook(model, sae), pairs, positions, value, **given)


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_differences_are_those_of_whole_forwards(kind, monkeypatch) -> None:
    monkeypatch.setattr(module, "ROWS_TOGETHER", 4)
    model = with_words(kind)
    sae = sparse(stack_for(model, choose_slots(model.cfg, [0, 2], [1, 3])))
    table = effects_of(model, sae, n_exact=3)
    base = [difference(model, pair) for pair in PAIRS]
    assert table["base_difference"].iloc[0] == pytest.approx(sum(base) / 3, abs=1e-9)
    exact = table[table["delta"].notna()]
    assert len(exact) >= 6
    for row in exact.itertuples():
        k = [(s.layer, s.head) for s in sae.info.sources].index((row.layer, row.head))
        change = [naive(model, sae, k, row.feature, pair, torch.zeros_like) for pair in PAIRS]
        assert row.delta == pytest.approx(sum(change) / 3, abs=1e-9, rel=1e-7)
        assert row.ci_low <= row.delta + 1e-12
        assert row.delta <= row.ci_high + 1e-12
        if kind == "recurrent":  # stops gradients on purpose
            continue
        ends = [sum(naive(model, sae, k, row.feature, p, torch.zeros_like, s) for p in PAIRS) for s in (1e-5, -1e-5)]
        assert row.estimate == pytest.approx((ends[0] - ends[1]) / 2e-5 / 3, abs=1e-7)


@pytest.mark.parametrize("kind", ["mean", "source"])
def test_a_feature_may_be_set_to_a_value_or_to_that_of_another_prompt(kind) -> None:
    model = with_words("janus-v3")
    sae = sparse(stack_for(model, choose_slots(model.cfg, [1], [0])))
    value = torch.full((1, sae.config.d_sae), 0.3, dtype=torch.float64)
    table = effects_of(model, sae, kind=kind, n_exact=4, value=value, bootstrap_seed=5)
    donors, slot = draw_donors(3, 1, 5)[0].tolist(), "blocks.1.attn.hook_z"
    for row in table[table["delta"].notna()].itertuples():
        total = 0.0
        for i, pair in enumerate(PAIRS):
            lent = model.run_with_cache(model.to_tokens(PAIRS[donors[i]].prompt), names_filter=slot)[1][slot][0, :, 0]
            other = sae.encode(lent)[:, row.feature].detach()

            def new(acts, other=other):
                if kind == "mean":
                    return torch.full_like(acts, 0.3)
                n = min(len(acts), len(other))
                return torch.cat([other[:n], torch.full((len(acts) - n,), torch.nan, dtype=acts.dtype)])

            total += naive(model, sae, 0, row.feature, pair, new)
        assert row.delta == pytest.approx(total / 3, abs=1e-9, rel=1e-7)


def test_the_job_writes_a_second_table(tmp_path) -> None:
    model = worded_model("janus-v3", n_layers=2).double()
    saes = sparse(stack_for(model, choose_slots(model.cfg, [1]))).save(tmp_path / "saes")
    file = tmp_path / "pairs.toml"
    file.write_text(
        "".join(f'[[pairs]]\nprompt = "{p.prompt}"\nanswer = "{p.answer}"\nfoil = "{p.foil}"\n' for p in PAIRS)
    )
    assert list(read_pairs(file)) == PAIRS
    analysis = find_analysis("feature-effects")
    tokens = torch.randint(0, 4096, (3, 16), generator=torch.Generator().manual_seed(0))
    own = analysis.settings.model_validate({"n_bootstrap": 100, "n_exact": 2, "pairs": file})
    request = measuring.Request(
        analysis, own, sources=(model,), needs={"sae-train": (saes,)}, tokens=tokens, device="cpu"
    )  # fmt: skip
    out = measuring.measure(request, tmp_path / "out")
    table = read_table(out, "feature_logit_differences")
    assert list(table.columns[: len(COLUMNS["feature_logit_differences"])]) == list(
        COLUMNS["feature_logit_differences"]
    )
    assert len(table) == len(read_table(out, "feature_effects"))
    assert (table["n_pairs"] == 3).all()


def test_bad_pairs_are_refused(tmp_path) -> None:
    model = with_words("janus-v3")
    for change, message in (
        (
            {"answer": " are is"},
            "answer: got ' are is' behind 'The keys of the house'; expected one token, such as ' is'",
        ),
        ({"answer": ""}, "answer: got '' behind"),
        ({"foil": " are"}, "foil: got ' are', the answer itself; expected another token"),
        ({"prompt": "the king and " * 20}, "prompt: 'the king and the king"),
    ):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            encode_pairs(model, [PAIRS[0].model_copy(update=change)])
        assert str(caught.value).startswith(message), str(caught.value)
    with pytest.raises(ValueError, match="tokenizer"):
        encode_pairs(small_model("janus-v3"), PAIRS)
    (tmp_path / "bad.toml").write_text("[[pairs]]\nprompt = 'a'\n")
    with pytest.raises(ValueError, match=r"pairs: .*bad\.toml: .*answer"):
        read_pairs(tmp_path / "bad.toml")
