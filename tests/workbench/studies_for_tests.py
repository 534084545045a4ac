"""A study of two tiny models that train in a moment, and what is asked of studies in several tests."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import tomli_w

from reports.tables import read_table
from workbench.data.tokenizer import train_bpe
from workbench.study.jobs import Context
from workbench.study.recipe import load_study

WORDS = "the a king queen forest river stone walked sang slept under over bright dark and then home away"
MODEL = {"n_layers": 2, "d_model": 16, "n_heads": 2, "d_head": 4, "d_mlp": 24, "n_ctx": 16, "d_vocab": 300}
TABLES = (
    "ablation_results", "ablation_summary", "attention_examples", "attention_patterns", "attention_sentences",
    "attention_stats", "baselines", "feature_atlas", "head_cosines", "head_kinds", "sae_density",
    "sae_training_results", "topology_stats", "train_log",
)  # fmt: skip


def write_place(place: Path) -> Path:
    """A text, its tokenizer, two training recipes of it and a study of both, written into a directory."""
    rng = random.Random(0)
    rows = [{"text": " ".join(rng.choices(WORDS.split(), k=400))} for _ in range(30)]
    (place / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train_bpe((row["text"] for row in rows), 300).save(str(place / "tokenizer.json"))
    phase: dict[str, Any] = {"n_steps": 4, "batch_size": 2, "eval_every": 2, "log_every": 1}
    phase |= {"optimizer": {"adamw": {"lr": 1e-2}}, "schedule": {"kind": "constant"}}
    data = {"source": str(place / "text.jsonl"), "tokenizer": str(place), "held_out_fraction": 0.3}
    pressed = {"kind": "vsm", "controller": {"kind": "fixed", "weight": 0.1}}
    for name, own in (("control", []), ("adaptive", [pressed])):
        phases = [phase | {"interventions": own}]
        recipe = {"name": f"tiny-{name}", "model": MODEL, "data": data, "phases": phases}
        recipe["monitor"] = {"every": 2, "n_sequences": 2}
        (place / f"{name}.toml").write_text(tomli_w.dumps(recipe))
    (place / "tiny.toml").write_text(tomli_w.dumps(tiny(place)))
    return place


def tiny(place: Path) -> dict[str, Any]:
    """The study's recipe."""
    saes = {"l1": [0.5, 1.0], "seeds": [3], "expansion": 3, "n_eval_tokens": 512}
    saes |= {"n_train_tokens": 512, "batch_size": 64, "buffer_tokens": 128, "n_ce_tokens": 64}
    return {
        "name": "tiny",
        "title": "Two tiny models",
        "models": [str(place / "control.toml"), str(place / "adaptive.toml")],
        "roles": {"control": "tiny-control", "adaptive": "tiny-adaptive"},
        "settings": {
            "sae-train": saes,
            **{name: {"n_tokens": 256} for name in ("ablate", "topology", "attention", "attention-patterns")},
            "atlas": {"n_tokens": 256, "n_contexts": 2},
        },
    }


def context_of(directory: Path) -> Context:
    """What the jobs of a finished study shared."""
    recipe = load_study(directory / "config.toml")
    return Context(recipe, tuple(recipe.train_recipes()), directory, "cpu")


def tables_of(directory: Path, names: tuple[str, ...] = TABLES) -> dict[str, str]:
    """sha256 of merged tables, the columns of clocks left out."""
    found = {}
    for name in names:
        text = read_table(directory, name).drop(columns="tokens_per_s", errors="ignore").to_csv()
        found[name] = hashlib.sha256(text.encode()).hexdigest()
    return found
