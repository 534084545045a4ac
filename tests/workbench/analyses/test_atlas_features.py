"""The atlas's data: contexts against sorting all activations, logit effects and matches against plain loops."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from models_for_tests import ARCHITECTURES, small_model, tokens_for, worded_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from reports.atlas import write_atlas
from reports.tables import COLUMNS, read_table, write_table
from sae import SAEConfig, SAESource, StackedSAE, StackInfo
from workbench.analyses.atlas import features as module
from workbench.analyses.atlas.features import (
    ContextKeeper,
    atlas_features,
    logit_effects,
    piece_bytes,
    scan,
    stack_slots,
    token_decoder,
)
from workbench.analyses.match.features import PairSums, match_cells, match_features
from workbench.models.activations import Positions, Slot, choose_slots, collect
from workbench.models.tokenizer_files import wrap_tokenizer
from workbench.models.weights import weights_sha256

KINDS = sorted(ARCHITECTURES)


def stack_for(model, slots, seed=0, d_sae=12, bias=-0.5, l1=1.0) -> StackedSAE:
    """Random SAEs that read these slots of this model, sparse by their bias."""
    d_in = collect(model, tokens_for(model), slots).shape[-1]
    sources = tuple(SAESource(hook_name=s.hook_name, layer=s.layer, head=s.head, l1=l1, seed=0) for s in slots)
    info = StackInfo(sources=sources, model_name="m", model_sha256=weights_sha256(model))
    config = SAEConfig(n_saes=len(slots), d_in=d_in, d_sae=d_sae, decoder_init_norm=1.0)
    sae = StackedSAE(config, torch.Generator().manual_seed(seed), info=info)
    with torch.no_grad():
        sae.b_enc.fill_(bias)
        sae.b_enc[0, 0] = -1e6  # one feature that never fires
    return sae


@pytest.fixture(scope="module")
def model():
    return small_model("janus-v3", n_layers=2)


@pytest.fixture(scope="module")
def tokens(model):
    return tokens_for(model, batch=30, pos=16)


@pytest.fixture(scope="module")
def sae(model):
    return stack_for(model, choose_slots(model.cfg))


def acts_of(model, sae, tokens):
    """[sae sequence pos feature], all at once."""
    with torch.no_grad():
        acts = sae.encode(collect(model, tokens, stack_slots(sae)))
    return acts.unflatten(1, tokens.shape)


def numbers(acts):
    """Activations as an array, nan where they are null."""
    return np.array(acts, dtype=float)


# --- the pass over the tokens


@pytest.mark.parametrize("n_forward", [16, 48, 4096])
def test_sums_and_contexts_are_those_of_sorting_everything(model, sae, tokens, monkeypatch, n_forward) -> None:
    monkeypatch.setattr(module, "ACTS_HELD", n_forward * sae.config.n_saes * sae.config.d_sae)
    k, radius = 4, 3
    special = {5, 17, 40}
    found = scan(model, sae, tokens, stack_slots(sae), k, radius, positions=Positions(frozenset(special)))
    counts = torch.tensor(
        [[place > 0 and token not in special for place, token in enumerate(row)] for row in tokens.tolist()]
    )
    assert 0 < int(counts.sum()) < 30 * 15, "some tokens behind the first are special"
    acts = acts_of(model, sae, tokens)
    largest_anywhere = acts.amax(dim=(1, 2))
    acts = acts * counts[None, :, :, None]
    assert bool((largest_anywhere > acts.amax(dim=(1, 2))).any()), "and some features are strongest where they are not"
    assert found.n_tokens == int(counts.sum())
    torch.testing.assert_close(found.n_active, (acts > 0).sum((1, 2)).double(), atol=0, rtol=0)
    torch.testing.assert_close(found.total, acts.sum((1, 2)).double(), rtol=1e-5, atol=1e-6)
    n_short = 0
    for s in range(sae.config.n_saes):
        for f in range(sae.config.d_sae):
            rows = acts[s, :, :, f]
            peaks = rows.max(dim=1)
            order = sorted(range(len(rows)), key=lambda i: (-float(peaks.values[i]), i))
            want = [i for i in order if peaks.values[i] > 0][:k]
            n_short += len(want) < k
            own = found.contexts
            torch.testing.assert_close(own.values[s, f, : len(want)], peaks.values[want], rtol=1e-5, atol=1e-6)
            assert own.sequences[s, f].tolist()[len(want) :] == [-1] * (k - len(want))
            assert not own.values[s, f, len(want) :].any()
            for place in range(len(want)):
                sequence, peak = int(own.sequences[s, f, place]), int(own.peaks[s, f, place])
                assert float(rows[sequence, peak]) == pytest.approx(float(own.values[s, f, place]), rel=1e-5)
                assert counts[sequence, peak]
                window = own.windows[s, f, place].tolist()
                plain = [
                    0.0 if not 0 <= p < 16 else float(rows[sequence, p]) if counts[sequence, p] else np.nan
                    for p in range(peak - radius, peak + radius + 1)
                ]
                np.testing.assert_allclose(window, plain, rtol=1e-5, atol=1e-6)
                assert np.nanmax(window) == pytest.approx(float(own.values[s, f, place]))
            assert len(set(own.sequences[s, f, : len(want)].tolist())) == len(want), "each sequence once"
    assert n_short > 0, "some features have fewer contexts than were asked for"


def test_ties_keep_the_earlier_sequence_and_the_first_peak(sae) -> None:
    keeper = ContextKeeper(sae, 2, 1)
    acts = torch.zeros(sae.config.n_saes, 5, 6, sae.config.d_sae)
    acts[0, [1, 3, 4], 2, 0] = 1.0
    acts[0, 3, 4, 0] = 1.0
    keeper.update(acts[:, :2])
    keeper.update(acts[:, 2:])
    own = keeper.contexts()
    assert own.sequences[0, 0].tolist() == [1, 3]
    assert own.peaks[0, 0].tolist() == [2, 2]
    assert own.windows[0, 0].tolist() == [[0, 1, 0], [0, 1, 0]]


def test_contexts_memory_does_not_grow_with_tokens(sae) -> None:
    keeper = ContextKeeper(sae, 3, 2)
    for seed in range(4):
        acts = torch.rand(sae.config.n_saes, 7, 5, sae.config.d_sae, generator=torch.Generator().manual_seed(seed))
        keeper.update(acts)
        own = keeper.contexts()
        assert own.windows.shape == (sae.config.n_saes, sae.config.d_sae, 3, 5)


# --- what features write


@pytest.mark.parametrize("kind", KINDS)
def test_logit_effects_are_the_direct_path(kind) -> None:
    model = small_model(kind)
    slots = choose_slots(model.cfg, heads=[1, 2])
    sae = stack_for(model, slots)
    promoted, suppressed = logit_effects(model, sae, slots, 5)
    if not model.cfg.writes_linearly:  # a norm stands between a head and the stream
        assert all(found is None for found in (*promoted, *suppressed))
        return
    with torch.no_grad():
        for k, slot in enumerate(slots):
            direction = sae.W_dec[k].double() @ model.blocks[slot.layer].attn.W_O[slot.head].double()
            if model.cfg.normalization_type == "LN":
                direction = direction - direction.mean(-1, keepdim=True)
            effect = direction * model.ln_final.gain.double() @ model.W_U.double()
            effect = effect - effect.mean(-1, keepdim=True)
            for found, largest in ((promoted, True), (suppressed, False)):
                want = effect.topk(5, dim=-1, largest=largest)
                torch.testing.assert_close(found[k][0].double(), want.values, rtol=1e-4, atol=1e-5)
                picked = effect.gather(-1, found[k][1])
                torch.testing.assert_close(picked, want.values, rtol=1e-4, atol=1e-5)


def test_adding_a_feature_moves_the_logits_as_said() -> None:
    """A predicted effect must be the measured one: with the norm's scale held, a last layer's feature moves the logits
    by act · effect / scale."""
    model = small_model("janus-v3", n_layers=1).double()
    slots = choose_slots(model.cfg, heads=[2])
    sae = stack_for(model, slots)
    tokens = tokens_for(model, batch=1)
    with torch.no_grad():
        model.blocks[0].mlp.W_out.zero_()  # nothing but the direct path
        direction = sae.W_dec[0, 3].double() @ model.blocks[0].attn.W_O[2]
        state = model(tokens, return_type=None)
        scale = (state.square().mean(-1, keepdim=True) + model.cfg.eps).sqrt()

        def logits(resid):
            return (resid / scale * model.ln_final.w) @ model.W_U

        moved = logits(state + 0.7 * direction) - logits(state)
        promoted, _ = logit_effects(model, sae, slots, model.cfg.d_vocab)
        values, ids = promoted[0]
        moved = (moved - moved.mean(-1, keepdim=True))[0, :, ids[3]] * scale[0]
    torch.testing.assert_close(moved, (0.7 * values[3].double()).expand_as(moved), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("hook", "writes"),
    [
        ("z_concat", True), ("hook_resid_mid", True), ("mlp.hook_post", True), ("attn.hook_result", True),
        ("attn.hook_q", False),
    ],
)  # fmt: skip
def test_other_hooks_write_through_their_own_matrix(model, hook, writes) -> None:
    slots = choose_slots(model.cfg, [1], hook=hook)
    sae = stack_for(model, slots)
    promoted, _ = logit_effects(model, sae, slots, 3)
    if not writes:
        assert promoted == [None]
        return
    block = model.blocks[1]
    matrices = {"z_concat": block.attn.W_O.flatten(0, 1), "mlp.hook_post": block.mlp.W_out}
    matrix = (matrices | {"attn.hook_result": torch.eye(32).repeat(4, 1)}).get(hook)
    with torch.no_grad():
        direction = sae.W_dec[0] if matrix is None else sae.W_dec[0] @ matrix
        effect = direction * model.ln_final.w @ model.W_U
        want = (effect - effect.mean(-1, keepdim=True)).topk(3).values
    torch.testing.assert_close(promoted[0][0], want, rtol=1e-4, atol=1e-5)


# --- the table


def test_the_table_has_a_row_a_feature_and_goes_through_the_page(model, sae, tokens, tmp_path) -> None:
    table = atlas_features(model, sae, tokens, n_contexts=3, radius=2, name="m", seed=5)
    assert tuple(table.columns[: len(COLUMNS["feature_atlas"])]) == COLUMNS["feature_atlas"]
    assert len(table) == sae.config.n_saes * sae.config.d_sae
    write_table(table, tmp_path, "feature_atlas")
    back = read_table(tmp_path, "feature_atlas")
    assert back["top_contexts"].tolist() == table["top_contexts"].tolist()
    assert write_atlas(tmp_path, tmp_path / "atlas.html").stat().st_size > 10_000
    acts = acts_of(model, sae, tokens)
    row = table[(table["layer"] == 1) & (table["head"] == 2) & (table["feature"] == 7)].iloc[0]
    own = acts[4 + 2, :, :, 7].clone()
    own[:, 0] = 0  # not counted: no token before it to read
    assert row["density"] == pytest.approx(float((own[:, 1:] > 0).double().mean()))
    assert row["mean_act"] == pytest.approx(float(own[own > 0].mean()), rel=1e-5)
    assert row["max_act"] == pytest.approx(float(own[:, 1:].max()), rel=1e-5)
    assert (row["model"], row["seed"], row["l1"], row["sae_seed"]) == ("m", 5, 1.0, 0)
    contexts = json.loads(row["top_contexts"])
    place = int(own[:, 1:].argmax())
    sequence, peak = place // 15, place % 15 + 1
    first = contexts[0]
    start = max(0, peak - 2)
    assert first["tokens"] == [f"[{t}]" for t in tokens[sequence, start : peak + 3].tolist()]
    assert first["peak"] == peak - start
    assert first["value"] == pytest.approx(row["max_act"], abs=1e-4)
    want = [None if start + i == 0 else float(act) for i, act in enumerate(own[sequence, start : peak + 3])]
    assert [act is None for act in first["acts"]] == [act is None for act in want]
    np.testing.assert_allclose(numbers(first["acts"]), numbers(want), atol=1e-4)
    for cell, largest in zip(table["top_contexts"], table["max_act"], strict=True):
        shown = [(max(act for act in c["acts"] if act is not None), c["value"]) for c in json.loads(cell)]
        assert all(top == value for top, value in shown), "the strongest token shown is the one that is said"
        assert not shown or max(shown)[0] == pytest.approx(largest, abs=1e-4)
    assert "null" in "".join(table["top_contexts"]), "and some windows reach position 0"
    assert row["top_token"] == f"[{int(tokens[sequence, peak])}]"
    check_spread(row, contexts, own)
    dead = table.iloc[0]
    assert (dead["histogram"], json.loads(dead["interval_contexts"])) == ("", [])
    assert bool(dead["dead"])
    assert (dead["density"], dead["max_act"], dead["mean_act"], dead["top_token"]) == (0, 0, 0, "")
    assert json.loads(dead["top_contexts"]) == []


def check_spread(row, top: list[dict], acts: torch.Tensor) -> None:
    """A feature's cells of bins and of intervals against its activations [sequence pos], 0 at position 0."""
    histogram = json.loads(row["histogram"])
    width, fires = histogram["width"], acts[acts > 0].double()
    edges = width * np.arange(len(histogram["counts"]) + 1)
    assert 16 * width <= row["max_act"] < 32 * width
    assert histogram["counts"] == np.histogram(fires, edges)[0].tolist()
    assert histogram["zero"] + len(fires) == row["n_tokens"] == acts[:, 1:].numel()
    contexts = json.loads(row["interval_contexts"])
    assert contexts
    assert [own["low"] for own in contexts] == sorted((own["low"] for own in contexts), reverse=True)
    for own in contexts:
        assert own["high"] - own["low"] == 4 * width
        assert own["low"] <= own["value"] + 1e-4
        assert own["value"] - 1e-4 < own["high"]
        assert own["acts"][own["peak"]] == own["value"]
    shown = {round(own["low"] / (4 * width)) for own in contexts}
    filled = set((fires / (4 * width)).long().tolist())
    in_top = {int(own["value"] // (4 * width)) for own in top}
    assert shown <= filled <= shown | in_top, "an interval has a context of its own unless the one drawn is a top one"


def test_small_activations_keep_their_digits(model, sae, tokens) -> None:
    """Encoder over 10⁴, decoder times 10⁴: the same SAE with activations of another unit, and the reverse."""
    table = atlas_features(model, sae, tokens, n_contexts=2)
    for factor in (1e-4, 1e4):
        tensors = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
        tensors["W_enc"] *= factor
        tensors["b_enc"] *= factor
        tensors["W_dec"] /= factor
        scaled = atlas_features(model, StackedSAE.from_tensors(sae.config, tensors, sae.info), tokens, n_contexts=2)
        for own, other in zip(table.itertuples(), scaled.itertuples(), strict=True):
            for a, b in zip(json.loads(own.top_contexts), json.loads(other.top_contexts), strict=True):
                limit = 2e-3 * own.max_act
                np.testing.assert_allclose(numbers(b["acts"]) / factor, numbers(a["acts"]), atol=limit)
                assert b["value"] / factor == pytest.approx(a["value"], abs=limit)
            for a, b in ((own.logit_promoted, other.logit_promoted), (own.logit_suppressed, other.logit_suppressed)):
                pairs = list(zip(json.loads(a), json.loads(b), strict=True))
                for (_, x), (_, y) in pairs:
                    assert y * factor == pytest.approx(x, abs=1e-2 * abs(pairs[0][0][1]))


def test_a_bfloat16_stack_is_counted_exactly(model, tokens) -> None:
    sae = stack_for(model, choose_slots(model.cfg, [0]), bias=-0.01).to(torch.bfloat16)
    found = scan(model, sae, tokens, stack_slots(sae), 2, 1)
    acts = acts_of(model, sae, tokens)
    torch.testing.assert_close(found.n_active, (acts > 0).sum((1, 2)).double(), atol=0, rtol=0)
    torch.testing.assert_close(found.total, acts.double().sum((1, 2)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_contexts": 0}, "atlas: n_contexts is 0; expected ≥ 1"),
        ({"radius": -1}, "atlas: radius is -1; expected ≥ 0"),
        ({"n_logits": -1}, "atlas: n_logits is -1; expected ≥ 0"),
        ({"n_neighbours": -1}, "atlas: n_neighbours is -1; expected ≥ 0"),
        ({"tokens": torch.zeros(4, 1, dtype=torch.int64)}, "atlas: windows of 1 tokens; expected 2 to"),
    ],
)
def test_counts_out_of_range_are_refused(model, sae, tokens, arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        atlas_features(model, sae, **{"tokens": tokens} | arguments)


def test_several_saes_of_one_head_are_no_page(model, tokens, tmp_path) -> None:
    slots = choose_slots(model.cfg, [0], [0])
    table = atlas_features(model, stack_for(model, [*slots, *slots]), tokens, n_contexts=1)
    message = r"feature_atlas: model .*, seed 0, layer 0, head 0, feature 0 stands in several rows; expected one SAE"
    with pytest.raises(ValueError, match=message):
        write_atlas({"feature_atlas": table}, tmp_path / "a.html")


def test_neighbours_are_the_nearest_rows_of_the_same_head(model, sae, tokens) -> None:
    table = atlas_features(model, sae, tokens, n_contexts=1, n_neighbours=3)
    rows = torch.nn.functional.normalize(sae.W_dec[5].detach().double(), dim=-1)
    cosines = rows @ rows.T - 2 * torch.eye(12)
    own = table[(table["layer"] == 1) & (table["head"] == 1)].set_index("feature")
    for feature in range(12):
        found = json.loads(own.loc[feature, "neighbours"])
        want = cosines[feature].topk(3)
        assert [f for f, _ in found] == want.indices.tolist()
        np.testing.assert_allclose([c for _, c in found], want.values, atol=1e-4)
    alone = stack_for(model, choose_slots(model.cfg, [0], [0]), d_sae=1)
    assert set(atlas_features(model, alone, tokens)["neighbours"]) == {"[]"}


def test_another_models_saes_are_refused(model, sae, tokens) -> None:
    other = small_model("janus-v3", seed=8, n_layers=2)
    with pytest.raises(ValueError, match="check_model: the SAEs belong to m with sha256"):
        atlas_features(other, sae, tokens)
    nameless = StackedSAE(sae.config, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="does not say which hooks it reads"):
        atlas_features(model, nameless, tokens)
    with pytest.raises(ValueError, match="atlas: token id 99"):
        atlas_features(model, sae, torch.full((2, 8), 99))


# --- tokens as text


def test_pieces_of_characters_show_their_bytes() -> None:
    model = worded_model("janus-v3")
    decode = token_decoder(model)
    ids = model.tokenizer.encode(" the 東", add_special_tokens=False)
    shown = [decode(i) for i in ids]
    assert shown[0] == " the"
    assert "".join(shown[1:]).replace(" ", "") == "⟨e6⟩⟨9d⟩⟨b1⟩"
    for token in range(4096):
        text = decode(token)
        assert "\ufffd" not in text
        text.encode()  # no lone surrogate
    assert token_decoder(small_model("janus-v3"))(7) == "[7]"


def test_sentencepiece_tokens_keep_their_spaces() -> None:
    """As Llama's and Mistral's tokenizers have them: ▁ before a word, bytes for what has no piece."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁catheng", "at", "▁c", "▁cat", "▁▁", "hen"]
    merges = [("a", "t"), ("▁", "c"), ("▁c", "at"), ("▁", "▁"), ("h", "e"), ("he", "n")]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys([*pieces, "he"]))}
    own = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    own.pre_tokenizer = pre_tokenizers.Metaspace()
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    own.decoder = decoders.Sequence(parts)
    model = small_model("janus-v3", d_vocab=len(vocabulary))
    model.tokenizer = wrap_tokenizer(own)
    decode = token_decoder(model)
    shown = [decode(token) for token in model.tokenizer.encode("cat hen  cat é", add_special_tokens=False)]
    assert "".join(shown) == " cat hen  cat <0xC3><0xA9>"
    assert " cat" in shown
    assert decode(vocabulary["▁▁"]) == "  "
    assert decode(vocabulary["at"]) == "at"


def test_every_byte_has_one_sign() -> None:
    signs = module._byte_of_sign()
    assert sorted(signs.values()) == list(range(256))
    assert piece_bytes("Ġthe") == " the"
    assert piece_bytes("âĢ") == "⟨e2⟩⟨80⟩"
    assert piece_bytes("東") == "東"  # not a byte-level piece


# --- matches


def test_matches_are_the_largest_correlations_within_the_layer(model, tokens) -> None:
    other = small_model("janus-v3", seed=8, n_layers=2)
    slots = choose_slots(model.cfg, [0, 1], [0, 3])
    a, b = stack_for(model, slots), stack_for(other, slots, seed=3, d_sae=9)
    ours, theirs = match_features(model, a, other, b, tokens)
    acts_a, acts_b = (
        acts_of(m, s, tokens)[:, :, 1:].flatten(1, 2).double().numpy() for m, s in ((model, a), (other, b))
    )
    n_other_heads = 0
    for k, slot in enumerate(slots):
        for found, own, others in ((ours[k], acts_a[k], acts_b), (theirs[k], acts_b[k], acts_a)):
            same = [j for j in range(len(slots)) if slots[j].layer == slot.layer]
            with np.errstate(invalid="ignore"):
                r = {j: np.corrcoef(own.T, others[j].T)[: own.shape[1], own.shape[1] :] for j in same}
            for feature in range(own.shape[1]):
                row = np.concatenate([r[j][feature] for j in same])
                value, sae = float(found.correlations[feature]), int(found.saes[feature])
                if np.isnan(row).all():
                    assert np.isnan(value)
                    continue
                assert value == pytest.approx(np.nanmax(row), abs=1e-5)
                assert r[sae][feature, int(found.features[feature])] == pytest.approx(np.nanmax(row), abs=1e-5)
                n_other_heads += sae != k
    assert n_other_heads > 0
    cells = match_cells(ours, "other", slots)
    assert cells[0] == "", "a dead feature has no match"
    assert json.loads(cells[5]) == [
        "other", slots[int(ours[0].saes[5])].head, int(ours[0].features[5]),
        pytest.approx(float(ours[0].correlations[5]), abs=1e-4),
    ]  # fmt: skip


def test_a_model_matches_itself_feature_by_feature(model, sae, tokens) -> None:
    ours, _ = match_features(model, sae, model, sae, tokens)
    for k, own in enumerate(ours):
        alive = ~own.correlations.isnan()
        assert own.features[alive].tolist() == torch.arange(12)[alive].tolist(), k
        assert set(own.saes[alive].tolist()) == {k}
        one = torch.ones_like(own.correlations[alive])
        torch.testing.assert_close(own.correlations[alive], one, atol=1e-6, rtol=0)


def test_correlations_keep_their_digits_over_many_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 5000, 3, generator=generator), torch.rand(2, 5000, 4, generator=generator)
    b[:, :, 0] = 0.3 * a[:, :, 1] + 0.7 * b[:, :, 0]
    sums = PairSums.zeros(2, 3, 4)
    for start in range(0, 5000, 123):
        sums.update(a[:, start : start + 123], b[:, start : start + 123])
    r = sums.correlations()
    for k in range(2):
        want = np.corrcoef(a[k].double().numpy().T, b[k].double().numpy().T)[:3, 3:]
        np.testing.assert_allclose(r[k], want, atol=1e-5)


def test_features_that_are_always_on_keep_their_correlations() -> None:
    """A mean of a thousand deviations, and one that never varies, which has no correlation."""
    generator = torch.Generator().manual_seed(1)
    a = torch.rand(1, 3000, 3, generator=generator)
    b = 0.5 * a + 0.5 * torch.rand(1, 3000, 3, generator=generator)
    a[0, :, 1] += 300
    b[0, :, 1] += 1000
    a[0, :, 2] = 3.3
    sums = PairSums.zeros(1, 3, 3)
    for start in range(0, 3000, 70):
        sums.update(a[:, start : start + 70], b[:, start : start + 70])
    with np.errstate(invalid="ignore"):
        want = np.corrcoef(a[0].double().numpy().T, b[0].double().numpy().T)[:3, 3:]
    np.testing.assert_allclose(sums.correlations()[0], want, atol=1e-5)
    assert np.isnan(want[2]).all()


def test_models_that_cannot_be_matched_are_refused(model, sae, tokens) -> None:
    other = small_model("janus-v3", seed=8, n_layers=2, d_vocab=50)
    with pytest.raises(ValueError, match="vocabularies of 61 and 50 entries"):
        match_features(model, sae, other, stack_for(other, choose_slots(other.cfg)), tokens)
    fewer = stack_for(model, choose_slots(model.cfg, [0]))
    with pytest.raises(ValueError, match="read different hooks or heads"):
        match_features(model, sae, model, fewer, tokens)
    assert stack_slots(fewer)[0] == Slot("blocks.0.attn.hook_z", 0, 0)
