"""The ground of the fault tests: a text, its tokenizer, small models, and a whole run directory of every kind."""

from __future__ import annotations

import os
import random
import shlex
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import tomli_w
from models_for_tests import small_model
from studies_for_tests import write_place
from typer.testing import CliRunner, Result

from workbench.cli.app import app
from workbench.data.tokenizer import load_tokenizer
from workbench.models.checkpoint import save
from workbench.models.tokenizer_files import wrap_tokenizer
from workbench.training import apply_overrides, load_recipe

WORDS = "the a king queen forest river stone walked sang slept under over bright dark and then home away"
# what makes one whole run directory of each kind, in the ground's own directory
MADE = {
    "train": "train recipe.toml --dtype float32 --device cpu --json --out train",
    "harvest": "harvest --ckpt model --split train --layers all --data text.txt --n-sequences 12 "
    "--set shard_bytes=14000 --out harvest",
    "saes": "sae-train --ckpt model --layers 0 --data text.txt --n-train-tokens 480 --n-eval-tokens 240 "
    "--set batch_size=32 "
    "--set buffer_tokens=128 --set expansion=3 --set n_ce_tokens=48 --out saes",
    "ablation": "ablate --ckpt model --data text.txt --n-tokens 288 --out ablation",
    "topology": "topology --ckpt model --data text.txt --n-tokens 288 --out topology",
    "probe": "probe --ckpt model --concepts concepts.toml --sets things --data text.txt "
    "--set n_permutations=19 --set n_points=64 --out probe",
    "atlas": "atlas --sae saes --ckpt model --data text.txt --n-tokens 288 --n-contexts 2 --out atlas",
    "study": "study tiny.toml --device cpu --threads 1 --json --out study",
}
STUDY = {"analyses": ["sae-train", "ablate", "topology", "atlas"]}
CONCEPTS = {
    "things": {"category": "colour", "topology": "ordinal", "words": ["river", "forest", "stone", "king", "queen"]}
}

# short: the embedded battery's items are longer than the models' windows
RECALL = {
    "hats": {
        "statement": "{name} a {value}", "question": "{name} {value}", "names": ["king", "queen"],
        "values": ["stone", "river"],
    }
}  # fmt: skip


@dataclass(frozen=True)
class Ground:
    """Where things lie, by name."""

    place: Path

    def __getitem__(self, name: str) -> Path:
        return self.place / name

    def fill(self, command: str) -> list[str]:
        """The words of a command; `{name}` stands for what lies there, absolute."""
        names = (p.name for p in self.place.iterdir())
        for name in sorted(names, key=len, reverse=True):
            command = command.replace("{" + name + "}", str(self.place / name))
        return shlex.split(command)

    def run(self, name: str) -> Path:
        """The whole run directory of a kind, made the first time that it is asked for."""
        if not (self.place / name).exists():
            if name == "atlas":
                self.run("saes")
            here = Path.cwd()
            os.chdir(self.place)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # too little text for some statistics
                    result = call(*shlex.split(MADE[name]))
            finally:
                os.chdir(here)
            assert result.exit_code == 0, result.output
        return self.place / name


def call(*arguments: object) -> Result:
    """What a verb says and how it ends, in this process."""
    return CliRunner().invoke(app, [str(a) for a in arguments])


def write_ground(place: Path) -> Ground:
    """A ground without run directories, which are made when they are first asked for."""
    os.environ["WORKBENCH_CACHE"] = str(place / "cache")
    write_place(place)
    rng = random.Random(1)
    lines = (" ".join(rng.choices(WORDS.split(), k=12)) for _ in range(600))
    (place / "text.txt").write_text("".join(f"{line}.\n" for line in lines))
    tokenizer = wrap_tokenizer(load_tokenizer(place / "tokenizer.json"))
    for name, kind, seed in (("model", "janus-v3", 0), ("twin", "janus-v3", 1), ("grouped", "kotodama", 0)):
        model = small_model(kind, n_layers=2, d_vocab=300, n_ctx=48, seed=seed)
        model.tokenizer = tokenizer
        (place / name).mkdir()
        save(model, place / name)
    (place / "mute").mkdir()
    save(small_model("janus-v3", n_layers=2), place / "mute")  # no tokenizer, another vocabulary
    recipe = apply_overrides(load_recipe(place / "control.toml"), {"checkpoint.every": 2})
    (place / "recipe.toml").write_text(tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True)))
    study = (place / "tiny.toml").read_text()
    (place / "tiny.toml").write_text(f"analyses = {STUDY['analyses']}\n{study}")
    (place / "concepts.toml").write_text(tomli_w.dumps(CONCEPTS))
    (place / "prompts.toml").write_text('[plain]\nprompts = ["the king", "a river"]\n')
    (place / "recall.toml").write_text(tomli_w.dumps(RECALL))
    (place / "cache").mkdir(exist_ok=True)
    from workbench.models.interop import export  # loads transformers: not where a ground is only read

    export(model, "hf", place / "hf")
    return Ground(place)


if __name__ == "__main__":  # python tests/faults/grounds.py PLACE: every run directory, for a process that kills
    found = write_ground(Path(sys.argv[1]))
    for kind in MADE:
        found.run(kind)
