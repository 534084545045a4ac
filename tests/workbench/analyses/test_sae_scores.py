"""The analysis sae-scores: splices against naive forwards, probes against scikit-learn, planted absorption, the job."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from models_for_tests import ARCHITECTURES, small_model, tokens_for, worded_model
from saes_for_tests import stack_for
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from subjects_for_tests import subject

import workbench
from reports.tables import COLUMNS, read_table
from sae import SAEConfig, SAESource, StackedSAE, StackInfo
from workbench.analyses import find_analysis
from workbench.analyses.sae_scores import absorption, probing, scoring
from workbench.analyses.sae_scores.absorption import LEAD, best_f1, letter_family, main_features
from workbench.analyses.sae_scores.core import open_scored, ratio_scores
from workbench.analyses.sae_scores.figures import draw_kept, draw_shrinkage
from workbench.analyses.sae_scores.probing import probing_table, tasks_of
from workbench.analyses.sae_scores.readings import PASSAGE_TOKENS, example_ids
from workbench.analyses.sae_scores.scoring import sae_scores
from workbench.data.probing_tasks import passage_family, word_families
from workbench.models.activations import Positions, choose_slots, special_ids
from workbench.models.tokenizer_files import begin_ids, encode, tokenizer_of
from workbench.models.weights import weights_sha256
from workbench.study import measuring

CORE = {"parts": ["core"], "n_bootstrap": 100}
QUICK = {"n_passages": 5, "n_words": 120, "n_bootstrap": 100}


def naive(model, tokens, source, value_of, counted):
    """[sequence] (mean loss, mean KL from the clean prediction) of a whole forward with one slot replaced."""

    def replace(x, hook):
        rows = x[:, :, source.head] if source.head is not None else x.flatten(2)
        new = torch.where(counted[..., None], value_of(rows), rows).to(x)
        if source.head is None:
            return new.view(x.shape)
        out = x.clone()
        out[:, :, source.head] = new
        return out

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clean, log_p = (
            torch.log_softmax(model.run_with_hooks(tokens, return_type="logits", fwd_hooks=h)[:, :-1].double(), -1)
            for h in ([], [(source.hook_name, replace)])
        )
    loss = -log_p.gather(-1, tokens[:, 1:, None]).squeeze(-1).mean(1)
    return loss.numpy(), (clean.exp() * (clean - log_p)).sum(-1).mean(1).numpy()


def assert_core(model, sae, tokens, positions, table, atol) -> None:
    """kl, ce and explained variance of the trained rows are those of naive forwards."""
    counted = positions.of(tokens)
    rows: Any = table[table["dictionary"] == "trained"]
    assert len(rows) == len(sae.info.sources)
    for row, (k, source) in zip(rows.itertuples(), enumerate(sae.info.sources), strict=True):
        own = sae.select(k)
        recon = lambda x, own=own: own(x.flatten(0, 1).float().to(own.dtype))[1].view(x.shape)  # noqa: E731
        ce_zero, kl_zero = naive(model, tokens, source, torch.zeros_like, counted)
        ce_sae, kl_sae = naive(model, tokens, source, recon, counted)
        base, _ = naive(model, tokens, source, lambda x: x, counted)
        assert (row.kl_zero, row.kl_sae) == pytest.approx((kl_zero.mean(), kl_sae.mean()), abs=atol)
        assert (row.ce_zero, row.ce_sae) == pytest.approx((ce_zero.mean(), ce_sae.mean()), abs=atol)
        assert row.ce_base == pytest.approx(base.mean(), abs=atol)
        assert row.kl_score == pytest.approx(1 - row.kl_sae / row.kl_zero, abs=1e-9)
        assert row.ce_score == pytest.approx((row.ce_zero - row.ce_sae) / (row.ce_zero - row.ce_base), abs=1e-9)
        assert row.kl_low <= row.kl_score <= row.kl_high


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_scores_of_heads_are_those_of_whole_forwards(kind) -> None:
    model = small_model(kind).double()
    tokens = tokens_for(model, batch=4)
    sae = stack_for(model, choose_slots(model.cfg, [0, 2], [1, 3]))
    table = sae_scores(model, sae, tokens, **CORE)["sae_core"]
    assert list(table.columns[: len(COLUMNS["sae_core"])]) == list(COLUMNS["sae_core"])
    assert_core(model, sae, tokens, Positions(), table, 1e-6)


@pytest.mark.parametrize("hook", ["hook_resid_pre", "hook_resid_post", "hook_mlp_out", "z_concat"])
@pytest.mark.parametrize("kind", ["janus-v3", "untied-softcap", "recurrent"])
def test_scores_of_whole_hooks_are_those_of_whole_forwards(kind, hook) -> None:
    model = small_model(kind).double()
    tokens = tokens_for(model, batch=4)
    sae = stack_for(model, choose_slots(model.cfg, [1, 2], hook=hook))
    assert_core(model, sae, tokens, Positions(), sae_scores(model, sae, tokens, **CORE)["sae_core"], 1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["plain", "qwen-3"])
@pytest.mark.parametrize("hook", ["z", "hook_resid_post"])
def test_models_of_another_library_are_scored_in_all_parts(kind, hook) -> None:
    model = subject(kind).model
    tokens = tokens_for(model, batch=4, pos=12)
    sae = stack_for(model, choose_slots(model.cfg, [1], hook=hook), dtype=torch.float32)
    found = sae_scores(model, sae, tokens, **QUICK)
    assert_core(model, sae, tokens, Positions(special_ids(model)), found["sae_core"], 1e-4)
    assert len(found["sae_probing"])
    assert len(found["sae_absorption"])


@pytest.mark.parametrize(
    ("architecture", "k"),
    [("relu", None), ("topk", 3), ("batchtopk", 2.5), ("jumprelu", None), ("gated", None), ("matryoshka", 2.5)],
)
def test_every_architecture_is_scored_in_all_parts(architecture, k) -> None:
    model = worded_model("janus-v3", n_layers=2)
    slots = choose_slots(model.cfg, [1], hook="hook_resid_post")
    sae = stack_for(model, slots, dtype=torch.float32, architecture=architecture, k=k)
    found = sae_scores(model, sae, tokens_for(model), **QUICK)
    assert list(found) == ["sae_core", "sae_probing", "sae_absorption"]
    for name, table in found.items():
        assert list(table.columns[: len(COLUMNS[name])]) == list(COLUMNS[name])
        assert len(table)


def identity(model, layer: int) -> StackedSAE:
    """An SAE that reconstructs hook_resid_post of a layer exactly: relu(x) − relu(−x)."""
    d = model.cfg.d_model
    source = SAESource(hook_name=f"blocks.{layer}.hook_resid_post", layer=layer)
    config = SAEConfig(n_saes=1, d_in=d, d_sae=2 * d, decoder_init_norm=1.0)
    both = torch.cat([torch.eye(d), -torch.eye(d)]).double()[None]
    tensors = {"W_dec": both, "W_enc": both.mT.contiguous()}
    tensors |= {"b_enc": torch.zeros(1, 2 * d).double(), "b_dec": torch.zeros(1, d).double()}
    return StackedSAE.from_tensors(config, tensors, StackInfo(sources=(source,), model_sha256=weights_sha256(model)))


def test_a_perfect_sae_has_perfect_scores_and_zero_has_none() -> None:
    model = small_model("janus-v3").double()
    tokens, sae = tokens_for(model, batch=6), identity(model, 1)
    perfect = sae_scores(model, sae, tokens, **CORE)["sae_core"].iloc[0]
    for name in ("kl_score", "ce_score", "explained_variance", "cosine", "norm_ratio", "reconstruction_bias"):
        assert perfect[name] == pytest.approx(1, abs=1e-6), name
    assert perfect["encoder_decoder_cosine"] == pytest.approx(1)
    with torch.no_grad():
        sae.W_dec.mul_(0.5)
    shrunk = sae_scores(model, sae, tokens, **CORE)["sae_core"].iloc[0]
    assert (shrunk["reconstruction_bias"], shrunk["norm_ratio"], shrunk["cosine"]) == pytest.approx((0.5, 0.5, 1))
    with torch.no_grad():
        sae.W_dec.zero_()
    nothing = sae_scores(model, sae, tokens, **CORE)["sae_core"].iloc[0]
    assert (nothing["kl_score"], nothing["ce_score"]) == pytest.approx((0, 0), abs=1e-9)
    assert np.isnan([nothing["cosine"], nothing["reconstruction_bias"], nothing["encoder_decoder_cosine"]]).all()


def test_zero_spares_the_positions_that_reconstructions_spare() -> None:
    """SAEBench zeroes every position, also those where the SAE is passed by: by that the same reconstructions have
    another score."""
    model = worded_model("janus-v3").double()
    tokens = tokens_for(model, batch=4)
    tokens[:, 5] = min(special_ids(model))
    sae = stack_for(model, choose_slots(model.cfg, [1], hook="hook_resid_post"))
    table = sae_scores(model, sae, tokens, **CORE)["sae_core"]
    positions = Positions(special_ids(model))
    assert_core(model, sae, tokens, positions, table, 1e-6)
    everywhere = torch.ones_like(tokens, dtype=torch.bool)
    _, at_all = naive(model, tokens, sae.info.sources[0], torch.zeros_like, everywhere)
    row = table.iloc[0]
    assert abs(1 - row["kl_sae"] / at_all.mean() - row["kl_score"]) > 0.1


def test_intervals_resample_both_sums_of_a_ratio() -> None:
    rng = np.random.default_rng(0)
    whole = rng.exponential(size=(2, 40))
    gain = 0.8 * whole + 0.01 * rng.standard_normal((2, 40))
    score, low, high = ratio_scores(gain, whole, np.random.default_rng(1), 1000)
    np.testing.assert_allclose(score, gain.sum(1) / whole.sum(1))
    assert bool((high - low < 0.05).all())  # a ratio of means that vary by a sixth each
    apart = np.array([rng.permutation(row) for row in whole])
    _, wide_low, wide_high = ratio_scores(gain, apart, np.random.default_rng(1), 1000)
    assert bool((wide_high - wide_low > 5 * (high - low)).all())
    assert np.isnan(ratio_scores(gain, 0 * whole, rng, 100)).all()


# --- probing


def test_probes_are_scikit_learns_on_states_read_one_by_one() -> None:
    model = worded_model("janus-v3", n_layers=2)
    sae = stack_for(model, choose_slots(model.cfg, [1], [0, 2]), dtype=torch.float32, d_sae=24)
    scored = open_scored(model, sae, tokens_for(model))
    about = {"n_bootstrap": 100, "name": "a", "seed": 0, "bootstrap_seed": 0}
    table = probing_table(scored, n_passages=12, tell=lambda share: None, **about)
    families = [passage_family(12, 8 * PASSAGE_TOKENS), *word_families()[:1]]
    tokenizer, positions = tokenizer_of(model), Positions(special_ids(model))
    for family, lead in zip(families, (None, "The word is "), strict=True):
        means = []
        for example in family.examples:
            text = example.text if lead is None else lead + example.text
            ids = (begin_ids(tokenizer) + encode(tokenizer, text))[: PASSAGE_TOKENS if lead is None else None]
            ids = torch.tensor([ids[: model.cfg.n_ctx]])
            z = model.run_with_cache(ids, return_cache_object=False)[1]["blocks.1.attn.hook_z"][0, :, 2]
            acts = sae.select(1).encode(z).detach()
            rows = positions.of(ids)[0] if lead is None else torch.arange(ids.shape[1]) == ids.shape[1] - 1
            means.append((acts[rows].mean(0).numpy(), z[rows].mean(0).detach().numpy()))
        features, states = (np.array(own).astype(float) for own in zip(*means, strict=True))
        for task in tasks_of(family):
            train, y = task.is_train, task.label
            for probe, X, k in (("trained", features, 5), ("activation", states, 8)):
                if k == 5:
                    spread = np.where(X[train].std(0) > 0, X[train].std(0), np.inf)
                    gap = np.abs(X[train & y].mean(0) - X[train & ~y].mean(0)) / spread
                    X = X[:, np.argsort(-gap)[:5]]
                scaler = StandardScaler().fit(X[train])
                fit = LogisticRegression(tol=1e-10, max_iter=10_000).fit(scaler.transform(X[train]), y[train])
                log_odds = fit.decision_function(scaler.transform(X[~train]))
                where = (table["head"] == 2) & (table["task"] == task.name) & (table["probe"] == probe)
                (row,) = table[where & (table["k"] == k)].itertuples()
                assert row.accuracy == pytest.approx(((log_odds > 0) == y[~train]).mean(), abs=1e-12)
                assert row.auroc == pytest.approx(roc_auc_score(y[~train], log_odds), abs=0.01)
                assert row.base_rate == pytest.approx(max(y[~train].mean(), 1 - y[~train].mean()))
                assert row.n_train + row.n_test == len(y)


def test_a_feature_that_says_the_label_is_found_and_a_shuffled_label_is_not() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(300) % 3 == 0
    X = rng.exponential(size=(300, 40))
    X[:, 17] = y + 0.1 * rng.random(300)
    task = probing.Task("a", y, np.arange(300), np.arange(300) < 180)
    found = probing.probe_row(X, task, 1, rng, 200)
    assert (found["accuracy"], found["auroc"], found["k"]) == (1, 1, 1)
    n_held = 0
    for seed in range(20):
        shuffled = probing.Task("a", np.random.default_rng(seed).permutation(y), task.group, task.is_train)
        own = probing.probe_row(X, shuffled, 5, rng, 200)
        n_held += own["auroc_low"] <= 0.5 <= own["auroc_high"]
    assert n_held >= 17  # of 20 intervals that hold the truth 19 times


# --- absorption

D_MODEL, N_WORDS = 96, 700


def planted(letters: dict[str, int]):
    """A model whose embedding of a word is its letter's direction, and an SAE with a feature for each letter but for
    the first test words of some letters: there the feature of the word holds the letter, and the letter's is silent."""
    model = worded_model("janus-v3", n_layers=1, d_model=D_MODEL, n_heads=4, d_head=24)
    family = letter_family(tokenizer_of(model), N_WORDS)
    is_test = ~family.is_train()
    basis = torch.linalg.qr(torch.randn(D_MODEL, D_MODEL, generator=torch.Generator().manual_seed(0)))[0]
    names = sorted({example.label for example in family.examples})
    letter = {name: basis[i] for i, name in enumerate(names)}
    absorbed = []
    for name, n in letters.items():
        of = [i for i, e in enumerate(family.examples) if e.label == name and is_test[i]]
        absorbed += of[:n]
    own = {i: basis[len(names) + j] for j, i in enumerate(absorbed)}
    ids = example_ids(model, family, LEAD)
    with torch.no_grad():
        model.embed.W_E.mul_(0.05)
        for i, example in enumerate(family.examples):
            model.embed.W_E[ids[i][-1]] += letter[example.label] + (2 * own[i] if i in own else 0)
    of_letters = torch.stack([letter[n] - (torch.stack(list(own.values())).sum(0) if own else 0) for n in names])
    enc = torch.cat([of_letters, *(own[i][None] for i in absorbed)])
    dec = torch.stack([*letter.values(), *(letter[family.examples[i].label] + 2 * own[i] for i in absorbed)])
    b = torch.tensor([-0.4] * len(names) + [-1.0] * len(absorbed))
    config = SAEConfig(n_saes=1, d_in=D_MODEL, d_sae=len(dec), decoder_init_norm=1.0)
    tensors = {"W_enc": enc.T[None], "W_dec": dec[None], "b_enc": b[None], "b_dec": torch.zeros(1, D_MODEL)}
    info = StackInfo(sources=(SAESource(hook_name="blocks.0.hook_resid_pre", layer=0),))
    sae = StackedSAE.from_tensors(config, {name: own.contiguous() for name, own in tensors.items()}, info)
    return model, sae, family


@pytest.mark.parametrize("letters", [{}, {"s": 4, "c": 2}])
def test_planted_absorption_is_measured_and_none_where_there_is_none(letters) -> None:
    model, sae, family = planted(letters)
    found: Any = sae_scores(model, sae, tokens_for(model), parts=["absorption"], n_words=N_WORDS)["sae_absorption"]
    trained = found[found["dictionary"] == "trained"]
    rows = {row.letter: row for row in trained.itertuples()}
    assert {"s", "c", "p", "all"} <= rows.keys()
    assert len(rows) == 1 + len(family.tasks)
    for name, row in rows.items():
        assert row.status == "measured"
        wanted = sum(letters.values()) if name == "all" else letters.get(name, 0)
        assert row.n_absorbed == wanted, name
        assert row.absorption_rate == pytest.approx(wanted / row.n_true_positives)
        assert row.ci_low <= row.absorption_rate <= row.ci_high
        assert row.ci_high > 0
        if name != "all":
            assert row.n_main == 1
            assert row.n_true_positives <= row.n_letter
    assert rows["all"].n_letters == len(family.tasks)


def test_a_model_that_knows_no_letters_has_no_rate() -> None:
    model = worded_model("janus-v3", n_layers=1)
    sae = stack_for(model, choose_slots(model.cfg, [0]), dtype=torch.float32)
    found: Any = sae_scores(model, sae, tokens_for(model), parts=["absorption"], n_words=300)["sae_absorption"]
    assert len(found)
    assert (found["status"] == "task_absent").all()
    assert found[["absorption_rate", "ci_low", "ci_high"]].isna().all(axis=None)
    few: Any = sae_scores(model, sae, tokens_for(model), parts=["absorption"], n_words=9)["sae_absorption"]
    assert few["letter"].tolist() == ["all", "all"] * 4  # no letter has words enough
    assert few["absorption_rate"].isna().all()


def test_words_are_single_tokens_behind_the_lead() -> None:
    model = worded_model("janus-v3", n_layers=1)
    family = letter_family(tokenizer_of(model), 200)
    ids = example_ids(model, family, LEAD)
    assert len(family.examples) == 200
    assert {len(own) for own in ids} == {len(ids[0])}
    assert len({own[-1] for own in ids}) == 200
    assert all(e.text[0].lower() == e.label and e.text.isalpha() for e in family.examples)


def test_main_features_are_the_few_that_help() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(400) % 4 == 0
    acts = rng.exponential(size=(400, 12)) * (rng.random((400, 12)) < 0.1)
    acts[:, 3] = y
    assert main_features(acts, y) == [3]
    halves = acts.copy()
    halves[:, 3], halves[:, 8] = y & (np.arange(400) % 8 == 0), y & (np.arange(400) % 8 == 4)
    assert sorted(main_features(halves, y)) == [3, 8]
    assert main_features(-acts * y[:, None], y) == []
    scores = np.round(rng.standard_normal(400) + y, 1)
    naive_f1 = max(2 * (y & (scores >= t)).sum() / ((scores >= t).sum() + y.sum()) for t in np.unique(scores))
    assert best_f1(scores, y) == pytest.approx(naive_f1, abs=1e-12)


# --- the job, and what is said of it


def test_a_model_without_tokenizer_has_the_core_alone_and_says_so() -> None:
    model = small_model("janus-v3", n_layers=1)
    sae = stack_for(model, choose_slots(model.cfg, [0]), dtype=torch.float32)
    with pytest.warns(UserWarning, match="no tokenizer; probing and absorption left out"):
        found = sae_scores(model, sae, tokens_for(model), n_bootstrap=100)
    assert list(found) == ["sae_core"]
    assert workbench.sae_scores is sae_scores


def request_for(model, tokens, saes, **settings) -> measuring.Request:
    analysis = find_analysis("sae-scores")
    own = analysis.settings.model_validate(QUICK | settings)
    needs = {"sae-train": (saes,)}
    return measuring.Request(analysis, own, sources=(model,), needs=needs, tokens=tokens, device="cpu")


def test_a_killed_job_goes_on_to_the_same_tables(tmp_path, monkeypatch) -> None:
    model = worded_model("janus-v3", n_layers=2)
    tokens = tokens_for(model, batch=3)
    saes = stack_for(model, choose_slots(model.cfg, [0, 1], [1]), dtype=torch.float32).save(tmp_path / "saes")
    request = request_for(model, tokens, saes, layers=[1])
    whole = measuring.measure(request, tmp_path / "whole")
    made = {part: getattr(scoring, f"{part}_table") for part in ("core", "probing", "absorption")}
    for killed in ("core", "probing", "absorption"):
        out = tmp_path / killed

        def dies(*given, **more):
            raise MemoryError("killed")

        monkeypatch.setattr(scoring, f"{killed}_table", dies)
        with pytest.raises(MemoryError):
            measuring.measure(request, out)
        done = list(made)[: list(made).index(killed)]
        for part, function in made.items():
            monkeypatch.setattr(scoring, f"{part}_table", None if part in done else function)  # none is made twice
        measuring.measure(request, out, resume=True)
        for part in made:
            monkeypatch.setattr(scoring, f"{part}_table", made[part])
            assert (out / f"sae_{part}.csv").read_bytes() == (whole / f"sae_{part}.csv").read_bytes()
    core = read_table(whole, "sae_core")
    said = find_analysis("sae-scores").facts(whole)  # pyright: ignore[reportOptionalCall]
    assert said["kl_score_trained"] == pytest.approx(core.loc[core["dictionary"] == "trained", "kl_score"].mean())


def test_figures_show_what_the_table_says() -> None:
    model = small_model("janus-v3")
    sae = stack_for(model, choose_slots(model.cfg, [1]), dtype=torch.float32)
    table = sae_scores(model, sae, tokens_for(model), name="a", **CORE)["sae_core"]
    kept, shrinkage = draw_kept(table), draw_shrinkage(table)
    for figure, x, y in ((kept, "explained_variance", "kl_score"), (shrinkage, "l0", "reconstruction_bias")):
        for trace, dictionary in zip(figure.data, ("trained", "random"), strict=True):
            rows = table[table["dictionary"] == dictionary]
            assert (list(trace.x), list(trace.y)) == (rows[x].tolist(), rows[y].tolist())


def test_bad_settings_are_refused(tmp_path) -> None:
    model = worded_model("janus-v3", n_layers=1)
    tokens = tokens_for(model)
    sae = stack_for(model, choose_slots(model.cfg, [0], [0, 3]), dtype=torch.float32)
    of = lambda **more: lambda: sae_scores(model, sae, tokens, **more)  # noqa: E731
    for call, message in (
        (of(parts=["heart"]), "parts: got ['heart']; expected some of core, probing, absorption, each once"),
        (of(parts=["core", "core"]), "parts: got ['core', 'core']"),
        (of(n_words=0), "n_words: got 0; expected at least 1"),
        (of(n_passages=4), "n_passages: got 4; expected at least 5"),
        (of(n_splice_tokens=1), "n_splice_tokens: got 1; expected at least 2"),
        (of(n_bootstrap=9), "n_bootstrap: got 9; expected at least 100"),
        (of(layers=[4]), "layers: got 4; expected some that the SAEs read: [0]"),
        (of(heads=[1]), "heads: got 1; expected some that the SAEs read: [0, 3]"),
        (lambda: sae_scores(model, sae, tokens[:, :1], **CORE), "sae-scores: windows of 1 tokens; expected 2"),
    ):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            call()
        assert str(caught.value).startswith(message)
    short = worded_model("janus-v3", n_layers=1, n_ctx=8)
    own = stack_for(short, choose_slots(short.cfg, [0]), dtype=torch.float32)
    for part, family in (("absorption", "letter"), ("probing", "concept")):
        with pytest.raises(ValueError, match=rf"the prompts of {family} take \d+ tokens; expected at most 8"):
            sae_scores(short, own, tokens_for(short, pos=8), parts=[part])
    other = small_model("janus-v3", seed=9)
    saes = stack_for(other, choose_slots(other.cfg, [0]), dtype=torch.float32).save(tmp_path / "saes")
    with pytest.raises(ValueError, match="check_model: the SAEs belong to"):
        measuring.measure(request_for(model, tokens, saes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_absorption_reads_thresholds_of_the_paper() -> None:
    from sae.absorption import MIN_COSINE, MIN_SHARE

    assert (MIN_COSINE, MIN_SHARE, absorption.MIN_GAIN) == (0.025, 0.4, 0.03)
