"""Bits per byte by hand, windows that score each token once, the int8 round trip, mechanisms off, and the ladder."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from models_for_tests import ARCHITECTURES, small_config, small_model
from typer.testing import CliRunner

from reports.tables import COLUMNS, read_table
from workbench.analyses.evaluate.bits import (
    Window,
    bits_per_byte,
    bits_with_interval,
    encode_text,
    evaluate,
    plan_windows,
    token_nats,
)
from workbench.analyses.ladder import rungs
from workbench.analyses.ladder.rungs import RUNGS, ladder, ladder_recipes
from workbench.analyses.mechanisms.switches import OFF, mechanisms, switched_on, without
from workbench.cli.app import app
from workbench.data.tokenizer import train_bpe
from workbench.models import HookedLM
from workbench.models.checkpoint import save
from workbench.models.cross_entropy import perplexity
from workbench.models.load import load
from workbench.models.tokenizer_files import wrap_tokenizer
from workbench.training import load_recipe
from workbench.training.quantization import pack_model, unpack_model

TEXT = "the naïve cat – sat on the mat, and the hat sat on the naïve cat. " * 3
TOKENIZER = train_bpe([TEXT], 270)


def subject(kind: str = "recurrent", **changes) -> HookedLM:
    model = small_model(kind, d_vocab=270, **changes)
    model.tokenizer = wrap_tokenizer(TOKENIZER)
    return model.eval()


# --- encoding


def test_a_text_is_encoded_with_every_byte_counted():
    text = encode_text(TOKENIZER, ["aé", "", "b<|endoftext|>"])
    assert text.n_bytes == 3 + 0 + 14
    assert text.tokens[~text.is_text].tolist() == [0, 0, 0]
    assert text.n_scored == len(text.tokens) - 3
    decoded = TOKENIZER.decode(text.tokens[text.is_text].tolist(), skip_special_tokens=False)
    assert decoded == "aéb<|endoftext|>"


def test_a_tokenizer_that_loses_bytes():
    import tokenizers

    lossy = train_bpe([TEXT], 270)
    lossy.normalizer = tokenizers.normalizers.Lowercase()
    with pytest.raises(ValueError, match=r"loses bytes: 'Mat' comes back as 'mat'"):
        encode_text(lossy, ["the Mat"])
    unknown = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<|endoftext|>": 0, "the": 1, "?": 2}, unk_token="?"))
    unknown.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    unknown.add_special_tokens(["<|endoftext|>"])
    with pytest.raises(ValueError, match="loses bytes"):
        encode_text(unknown, ["the cat"])


def test_text_that_cannot_be_scored():
    with pytest.raises(ValueError, match="not UTF-8 at character 3"):
        encode_text(TOKENIZER, ["abc\ud800"])
    with pytest.raises(ValueError, match="expected a list of documents that are not all empty"):
        encode_text(TOKENIZER, ["", ""])
    with pytest.raises(ValueError, match="expected a list of documents"):
        encode_text(TOKENIZER, "a text on its own")
    with pytest.raises(ValueError, match="no tokenizer"):
        encode_text(None, ["a"])


# --- windows


@pytest.mark.parametrize("n_tokens", [2, 9, 24, 25, 26, 100])
@pytest.mark.parametrize("stride", [None, 1, 5, 24])
def test_windows_score_each_token_once_from_the_context_they_should(n_tokens, stride):
    n_ctx, scored = 24, []
    windows = plan_windows(n_tokens, n_ctx, stride)
    for window in windows:
        targets = range(window.stop - window.n_scored + 1, window.stop + 1)
        scored += targets
        assert 0 <= window.start < window.stop < n_tokens
        assert window.stop - window.start <= n_ctx
        for target in targets if stride else ():
            n_before = target - window.start
            assert n_before >= min(target, n_ctx - stride + 1)
    assert scored == list(range(1, n_tokens))
    if stride:
        assert all(w.n_scored <= stride for w in windows[1:])


def test_windows_of_a_short_text_by_hand():
    assert plan_windows(11, 4) == [Window(0, 4, 4), Window(4, 8, 4), Window(8, 10, 2)]
    assert plan_windows(11, 4, 3) == [Window(0, 4, 4), Window(3, 7, 3), Window(6, 10, 3)]
    assert plan_windows(10, 4, 3) == [Window(0, 4, 4), Window(3, 7, 3), Window(5, 9, 2)]
    with pytest.raises(ValueError, match="stride: got 5; expected 1 to the window's 4 tokens"):
        plan_windows(11, 4, 5)
    with pytest.raises(ValueError, match="stride: got 0"):
        plan_windows(11, 4, 0)
    with pytest.raises(ValueError, match="expected at least 1"):
        plan_windows(1, 4)


# --- bits


def naive_bits(model, text, n_ctx, stride):
    """Token by token: the whole window through the model, −log2 p of the one token."""
    ids = [0, *TOKENIZER.encode(text, add_special_tokens=False).ids]
    bits = 0.0
    for target in range(1, len(ids)):
        if target <= n_ctx:
            start = 0
        elif stride:
            stop = min(n_ctx + -(-(target - n_ctx) // stride) * stride, len(ids) - 1)
            start = stop - n_ctx
        else:
            start = (target - 1) // n_ctx * n_ctx
        logits = model(torch.tensor([ids[start:target]]))[0, -1]
        bits -= float(torch.log_softmax(logits, -1)[ids[target]]) / math.log(2)
    return bits / len(text.encode())


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_bits_per_byte_are_minus_log2_p_of_each_token(kind):
    model = subject(kind).double()
    table = evaluate(model, [TEXT[:150]], stride=7, n_ctx=20, quantized=False).set_index("windows")
    with torch.no_grad():
        for windows, stride in (("plain", None), ("sliding", 7)):
            expected = naive_bits(model, TEXT[:150], 20, stride)
            assert table.loc[windows, "bits_per_byte"] == pytest.approx(expected, rel=1e-9)
    n_tokens = len(TOKENIZER.encode(TEXT[:150]).ids)
    assert table.loc["plain", "n_tokens"] == n_tokens
    bytes_ = len(TEXT[:150].encode())
    assert table.loc["plain", "nats"] / math.log(2) * n_tokens / bytes_ == pytest.approx(
        table.loc["plain", "bits_per_byte"]
    )
    for windows in ("plain", "sliding"):  # a perplexity is the reciprocal of the geometric mean of the tokens' p
        for end, bits in (("", "bits_per_byte"), ("_low", "ci_low"), ("_high", "ci_high")):
            expected = 2 ** (table.loc[windows, bits] * bytes_ / n_tokens)
            assert table.loc[windows, f"perplexity{end}"] == pytest.approx(expected, rel=1e-12)


def test_a_perplexity_is_infinite_where_no_float_holds_it_and_undefined_where_the_loss_is():
    # four tokens of p = 1/2, 1/4, 1/8, 1: the reciprocal of their geometric mean
    assert perplexity(float(np.mean(np.log([2, 4, 8, 1])))) == pytest.approx(64**0.25)
    assert perplexity(0.0) == 1.0
    assert math.isfinite(perplexity(709.78))
    assert perplexity(709.79) == perplexity(math.inf) == math.inf
    assert math.isnan(perplexity(math.nan))


def test_the_batching_does_not_show_and_other_models_are_read_by_their_logits():
    model = subject().double()
    text = encode_text(TOKENIZER, [TEXT, TEXT[5:90]])
    windows = plan_windows(len(text.tokens), 24, 5)
    together, apart = (token_nats(model, text, windows, tokens_together=n) for n in (10_000, 1))
    torch.testing.assert_close(together, apart)

    class Other(torch.nn.Module):  # whatever gives logits, a TransformerLens model for one
        def __init__(self):
            super().__init__()
            self.inner, self.cfg = model, model.cfg

        def forward(self, tokens, return_type):
            return self.inner(tokens, return_type=return_type)

    torch.testing.assert_close(token_nats(Other(), text, windows), together)
    assert float(together[~text.is_text[1:]].abs().sum()) == 0, "ends of texts are not scored"


def test_the_artifact_is_what_is_scored():
    model = subject()
    table = evaluate(model, [TEXT], stride=8).set_index(["weights", "windows"])
    data = pack_model(model)
    assert table.loc[("int8", "plain"), "artifact_bytes"] == len(data)
    again = unpack_model(data)
    again.tokenizer = model.tokenizer
    direct = evaluate(again, [TEXT], stride=8, quantized=False).set_index("windows")
    for windows in ("plain", "sliding"):
        of_artifact = table.loc[("int8", windows), "bits_per_byte"]
        assert of_artifact == direct.loc[windows, "bits_per_byte"]
        assert of_artifact != table.loc[("stored", windows), "bits_per_byte"]
        assert of_artifact == pytest.approx(table.loc[("stored", windows), "bits_per_byte"], rel=0.05)
    assert np.isnan(table.loc[("stored", "plain"), "artifact_bytes"])
    assert 1 < table.loc[("stored", "plain"), "exit_depth"] < 3
    assert np.isnan(evaluate(subject("kotodama"), [TEXT], stride=8, quantized=False)["exit_depth"]).all()


def test_intervals_are_of_the_mean_and_shrink_with_text():
    rng = torch.Generator().manual_seed(0)
    few, many = torch.rand(200, generator=rng).double(), torch.rand(20_000, generator=rng).double()
    for nats in (few, many):
        found = bits_with_interval(nats, len(nats), 20, seed=0)
        assert found.value == pytest.approx(float(nats.mean()) / math.log(2))
        assert found.low < found.value < found.high
        assert found.high - found.low == pytest.approx(4 * found.stderr, rel=0.4)
    narrow, wide = (bits_with_interval(n, len(n), 20, seed=0).stderr for n in (many, few))
    assert narrow == pytest.approx(wide / 10, rel=0.5)
    assert bits_per_byte(torch.tensor([math.log(2)] * 8, dtype=torch.float64), 4) == pytest.approx(2.0)


# --- mechanisms


def test_each_mechanism_off_is_the_model_without_it():
    model = subject()
    assert switched_on(model) == list(OFF)
    table = mechanisms(model, [TEXT], n_ctx=20).set_index("mechanism")
    text = encode_text(TOKENIZER, [TEXT])
    windows = plan_windows(len(text.tokens), 20)
    base = bits_per_byte(token_nats(model, text, windows), text.n_bytes)
    for name in OFF:
        reduced = without(model, name)
        off = bits_per_byte(token_nats(reduced, text, windows), text.n_bytes)
        assert table.loc[name, "off_bits"] == pytest.approx(off)
        assert table.loc[name, "delta_bits"] == pytest.approx(off - base)
        assert abs(off - base) > 1e-6, f"{name} does something here"
        assert table.loc[name, "ci_low"] <= table.loc[name, "delta_bits"] <= table.loc[name, "ci_high"]
    assert bits_per_byte(token_nats(model, text, windows), text.n_bytes) == base, "the model itself is as it was"


def test_off_is_the_identity_of_each_mechanism():
    model = subject().double()
    tokens = encode_text(TOKENIZER, [TEXT]).tokens[:20][None]
    neutral = {
        "attn_scale": ("control.attn_scale", 1.0),
        "mlp_scale": ("control.mlp_scale", 1.0),
        "value_embed": ("value_embed.scale", 0.0),
        "resonance": ("resonance.strength", 0.0),
        "carry_rank": ("carry.gain", -1e9),
        "confidence": ("confidence.direction", 0.0),
        "memory": ("memory.strength", 0.0),
        "skips": ("skips.scale", 0.0),
        "td_rank": ("td.gain", -1e9),
        "n_routes": ("routes.gain", 0.0),
    }
    for name, (parameter, value) in neutral.items():
        with torch.no_grad():
            weight = model.get_parameter(f"mechanisms.{parameter}")
            before = weight.clone()
            weight.fill_(value)
            expected = model(tokens)
            weight.copy_(before)
            torch.testing.assert_close(without(model, name)(tokens), expected, msg=name)


def test_models_and_names_without_mechanisms():
    with pytest.raises(ValueError, match="no depth recurrence; expected a recurrent model"):
        mechanisms(subject("kotodama"), [TEXT])
    with pytest.raises(ValueError, match="got 'carry'; expected one of attn_scale"):
        without(subject(), "carry")
    with pytest.raises(ValueError, match="n_ctx: got 25; expected 1 to the model's n_ctx = 24"):
        evaluate(subject(), [TEXT], n_ctx=25)
    with pytest.raises(ValueError, match="stride: got 64; expected 1 to the window's 24 tokens"):
        evaluate(subject(), [TEXT], stride=64)
    assert set(evaluate(subject(), [TEXT], quantized=False)["stride"]) == {24}, "n_ctx where that is less than 64"


# --- the ladder


def test_the_ladder_adds_one_thing_at_a_time_and_ends_at_the_recipe():
    recipe = load_recipe("recurrent-nano")
    made = ladder_recipes(recipe)
    assert [name for name, _ in made] == ["base", *RUNGS]
    assert made[-1][1].model_copy(update={"name": recipe.name}) == recipe
    base = made[0][1].model.extensions.recurrence
    assert base is not None
    assert {k for k, v in base.model_dump().items() if v not in (False, None, "off")} == {"n_unique", "n_passes"}
    flat = [json.dumps(r.model_dump(mode="json", exclude={"name"}), sort_keys=True) for _, r in made]
    assert len(set(flat)) == len(flat)


def test_a_small_ladder_is_climbed(tmp_path, monkeypatch):
    kept = {name: RUNGS[name] for name in ("exit gate", "confidence")}
    monkeypatch.setattr(rungs, "RUNGS", kept)
    TOKENIZER.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "text.txt").write_text(TEXT * 30)
    small = {
        "model.n_layers": 2, "model.extensions.recurrence.n_unique": 1, "model.extensions.recurrence.n_passes": 2,
        "model.d_model": 32, "model.d_mlp": 32, "model.d_head": 8, "model.n_heads": 4, "model.n_ctx": 16,
        "model.d_vocab": 270, "model.extensions.recurrence.carry_rank": 4, "model.extensions.k_rank": 8,
        "data.source": str(tmp_path / "text.txt"), "data.tokenizer": str(tmp_path / "tokenizer.json"),
        "data.n_held_out_windows": 2, "phases.0.n_steps": 2, "phases.0.batch_size": 2, "monitor.every": 0,
        "phases.0.schedule.n_warmup_steps": 1,
    }  # fmt: skip
    options = {"overrides": small, "seeds": (0, 1), "device": "cpu", "cache": tmp_path / "cache"}
    table = ladder("recurrent-nano", [TEXT], tmp_path / "out", **options)
    assert table["mechanism"].tolist() == ["base"] * 2 + ["exit gate"] * 2 + ["confidence"] * 2
    bits = table.pivot(index="rung", columns="seed", values="bits_per_byte")
    deltas = table.pivot(index="rung", columns="seed", values="delta_bits")
    np.testing.assert_allclose(deltas.iloc[1:], bits.diff().iloc[1:])
    assert deltas.iloc[0].isna().all()
    again = ladder("recurrent-nano", [TEXT], tmp_path / "out", **options)
    assert again.equals(table), "what is trained is taken as it is"


# --- the verbs


@pytest.fixture
def saved(tmp_path):
    save(subject(), tmp_path)
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    return tmp_path


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_the_verbs_write_what_the_functions_give(saved, tmp_path):
    common = ["--ckpt", str(saved), "--data", str(saved / "text.txt"), "--split", "all", "--json"]
    done = run("evaluate", *common, "--out", str(tmp_path / "bits"), "--stride", "8", "--use-int8")
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    model = load(saved, "cpu")
    expected = evaluate(model, [TEXT], stride=8)
    assert [r["bits_per_byte"] for r in rows] == pytest.approx(expected["bits_per_byte"].tolist())
    packed = (tmp_path / "bits" / "model.int8.zlib").read_bytes()
    assert len(packed) == rows[-1]["artifact_bytes"]
    done = run("mechanisms", *common, "--out", str(tmp_path / "off"))
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert [r["delta_bits"] for r in rows] == pytest.approx(mechanisms(model, [TEXT])["delta_bits"].tolist())


@pytest.mark.parametrize(
    ("verb", "function", "stride"), [("evaluate", evaluate, {"stride": 8}), ("mechanisms", mechanisms, {})]
)
def test_the_seed_that_is_given_draws_the_intervals_of_a_run_of_another_seed(
    saved, tmp_path, monkeypatch, verb, function, stride
):
    monkeypatch.setattr("workbench.models.checkpoint.training_config", lambda path: {"seed": 7})
    common = ["--ckpt", str(saved), "--data", str(saved / "text.txt"), "--split", "all", "--json", "--seed", "5"]
    common += ["--stride", "8"] if stride else []
    done = run(verb, *common, "--out", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    model = load(saved, "cpu")
    assert {row["seed"] for row in rows} == {7}
    rest = stride | ({"quantized": False} if stride else {})
    five, seven = (function(model, [TEXT], seed=seed, **rest)["ci_low"].tolist() for seed in (5, 7))
    assert [row["ci_low"] for row in rows] == pytest.approx(five)
    assert five != seven


def test_faults_of_the_verbs(saved, tmp_path):
    common = ["--ckpt", str(saved), "--out", str(tmp_path / "out")]
    latin = tmp_path / "latin.txt"
    latin.write_bytes("naïve".encode("latin-1"))
    cases = {
        ("--data", str(latin), "--split", "all"): ("is not UTF-8", 1),
        ("--data", str(saved / "text.txt"), "--split", "half"): ("expected 'held_out', 'train' or 'all'", 2),
        ("--data", str(saved / "text.txt"), "--stride", "99"): ("stride: got 99", 1),
        ("--data", str(tmp_path / "none.txt")): ("no file or folder", 1),
    }
    for arguments, (message, code) in cases.items():
        done = run("evaluate", *common, *arguments)
        assert (done.exit_code, message in done.output) == (code, True), done.output
    assert not (tmp_path / "out").exists()
    save(HookedLM(small_config("janus-v3", d_vocab=270), tokenizer=wrap_tokenizer(TOKENIZER)), saved)
    done = run("mechanisms", *common, "--data", str(saved / "text.txt"))
    assert "no depth recurrence" in done.output
    assert done.exit_code == 1


@pytest.mark.slow
def test_the_full_recipe_takes_a_step_and_fits_its_budget():
    from workbench.training.objective import Batch, objective
    from workbench.training.optimizers import Optimizer
    from workbench.training.prescription import Moment, Prescription

    recipe = load_recipe("recurrent-golf")
    model, phase = HookedLM(recipe.model), recipe.phases[0]
    prescription = Prescription(phase.interventions, model.cfg, phase.n_steps)
    optimizer = Optimizer(model, phase.optimizer)
    tokens = torch.randint(0, 1024, (1, 256), generator=torch.Generator().manual_seed(0))
    losses = []
    for step in range(3):
        optimizer.start(step, 0.1)
        part = objective(model, Batch(tokens), prescription, Moment(step))
        part.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(part.loss))
    assert losses[-1] < losses[0]
    with torch.no_grad():  # as random as weights can be: nothing for zlib to save
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.05)
    assert len(pack_model(model)) <= 16_000_000


def test_a_key_that_the_ladder_lacks_is_one_of_its_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = ["phases.0.n_steps=700", "n_bytes=900"]
    command = [part for one in settings for part in ("--set", one)]
    climbed = []

    def climb(recipe, texts, out, **rest):
        climbed.append((recipe, sum(len(text.encode()) for text in texts), rest["seeds"]))
        (out / "rung").touch()
        return pd.DataFrame([dict.fromkeys(COLUMNS["ladder"], 0)])

    monkeypatch.setattr(rungs, "ladder", climb)
    done = run("ladder", "recurrent-nano", "--n-seeds", "2", *command, "--out", "out", "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert [recipe.phases[0].n_steps for recipe, _, _ in climbed] == [700, 700]
    assert all(0 < n <= 900 for _, n, _ in climbed)
    assert [seeds for _, _, seeds in climbed] == [[0], [1]]
    assert len(read_table("out", "ladder")) == 2
    assert sorted(p.name for p in Path("out").iterdir() if p.is_dir()) == [
        "recurrent-nano-seed0", "recurrent-nano-seed1",
    ]  # fmt: skip
    for arguments, message in (
        (["recurrent-nano", "--set", "phases.0.n_step=7"], "n_step"),
        (["p3-muon-nano"], "has no depth recurrence"),
    ):
        done = run("ladder", *arguments, "--out", "no")
        assert done.exit_code == 1
        assert message in done.output
        assert not Path("no").exists()
