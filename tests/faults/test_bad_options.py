"""Every verb with options that it cannot take: {model} and the like stand for what lies in the ground."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from bad import refuse

from workbench.cli.app import VERBS

T = "--data {text.txt}"
# short enough for the context of these models
FEW = "--prompts {prompts.toml} --recall {recall.toml} --battery none --max-new-tokens 2"
# what is typed, exit code, part of the one line
CASES = [
    # no verb, or no such verb
    ("nonsense", 2, "No such command 'nonsense'"),
    ("--nonsense", 2, "--nonsense"),
    # what every verb that writes asks of --out
    (f"topology --ckpt {{model}} {T} --n-sequences 2 --out {{text.txt}}", 1, "already exists; "
        "expected a new directory"),
    (f"topology --ckpt {{model}} {T} --n-sequences 2 --out {{text.txt}}/x", 1, "text.txt is a file; "
        "expected a directory"),
    (f"topology --ckpt {{model}} {T} --n-sequences 2 --out x.partial", 1, "ends in .partial; "
        "expected the run's own name"),
    (f"topology --ckpt {{model}} {T} --n-sequences 2 --out x.lock", 1, "ends in .lock; expected the run's own name"),
    (f"topology --ckpt {{model}} {T} --n-sequences 2 --out /", 1, "names no directory"),
    (f"ablate --ckpt {{model}} {T} --n-sequences 2 --out {{model}}", 1, "already exists; expected a new directory"),
    (f"ablate --ckpt {{model}} {T} --n-sequences 2 --out {{model}} --resume", 1, "config.toml is missing"),
    (f"attention --ckpt {{model}} {T} --n-tokens 96 --out {{model}}", 1, "already exists; expected a new directory"),
    (f"harvest --ckpt {{model}} {T} --layers 0 --n-sequences 2 --out {{model}}", 1, "already exists; expected a new"),
    (f"evaluate --ckpt {{model}} {T} --stride 24 --out {{model}}", 1, "already exists; expected a new directory"),
    (f"compare {{model}} {{twin}} {T} --n-sequences 8 --out {{model}}", 1, "already exists; expected a new directory"),
    ("probe --ckpt {model} --concepts {concepts.toml} --sets things --out {model} "
     "--set n_permutations=19 --set n_points=0", 1, "already exists; expected a new directory"),
    (f"text-quality --ckpt {{model}} {FEW} --n-samples 1 --out {{model}}", 1,
     "already exists; expected a new directory"),
    ("export --ckpt {model} --to hf --out {model}", 1, "already exists; expected a new directory"),
    ("import {hf} --out {model}", 1, "already exists; expected a new directory"),
    ("train {recipe.toml} --out {model}", 1, "already exists; expected a new directory"),
    ("study {tiny.toml} --out {model}", 1, "already exists; expected a new directory"),
    (f"topology --ckpt {{model}} {T} --n-sequences 2 --out /proc/x", 1, "/proc/x.lock"),  # where no file is ever made
    (f"topology --ckpt {{model}} {T} --n-sequences 2 --out {'x' * 5000}", 1, "File name too long"),
    # a name of a page, in each place where one is said again
    *((f"{verb} {'x' * 5000}", code, "xxx") for verb, code in (
        ("hooks --ckpt", 1), (f"topology --ckpt {{model}} {T} --device", 1), (f"ablate --ckpt {{model}} {T} --kind", 2),
        (f"harvest --ckpt {{model}} {T} --n-sequences 2 --hook", 1), ("train {recipe.toml} --monitor", 1),
        (f"probe --ckpt {{model}} {T} --sets", 1), ("report", 1), ("export --ckpt {model} --to", 2),
    )),
    # --seed
    (f"topology --ckpt {{model}} {T} --seed -1", 2, "--seed"),
    (f"topology --ckpt {{model}} {T} --seed 1.5", 2, "--seed"),
    (f"topology --ckpt {{model}} {T} --seed 99999999999999999999999", 2, "--seed"),
    ("train {recipe.toml} --seed -3", 2, "--seed"),
    ("train {recipe.toml} --seed 18446744073709551616", 2, "--seed"),
    ("generate --ckpt {model} hello --seed 18446744073709551616", 2, "--seed"),
    # --device and --dtype
    *((f"{verb} --device tpu", 1, "device: got 'tpu'") for verb in (
        f"topology --ckpt {{model}} {T}", f"attention --ckpt {{model}} {T}", f"evaluate --ckpt {{model}} {T}",
        f"compare {{model}} {{twin}} {T}", f"sae-train --ckpt {{model}} {T}", "generate --ckpt {model} hello",
        "text-quality --ckpt {model}", f"harvest --ckpt {{model}} --layers 0 {T}", "train {recipe.toml}",
        "study {tiny.toml}", f"probe --ckpt {{model}} {T}", "mechanisms --ckpt {model}",
        "ladder recurrent-nano",
    )),
    ("generate --ckpt {model} hello --device cuda:7", 1, "device: got 'cuda:7'"),
    ("generate --ckpt {model} hello --device ''", 1, "device: got ''"),
    *((f"{verb} --dtype int8", 1, "dtype: got 'int8'; expected one of") for verb in (
        f"topology --ckpt {{model}} {T}", f"attention --ckpt {{model}} {T}", f"evaluate --ckpt {{model}} {T}",
        f"compare {{model}} {{twin}} {T}", f"sae-train --ckpt {{model}} {T}", "generate --ckpt {model} hello",
        "hooks --ckpt {model}", "export --ckpt {model} --to hf", f"harvest --ckpt {{model}} --layers 0 {T}",
    )),
    ("train {recipe.toml} --dtype int8", 1, "dtype: got 'int8'; expected"),
    (f"harvest --ckpt {{model}} --layers 0 {T} --store-dtype int8 --n-sequences 2", 1, "dtype: got 'int8'; "
        "expected one"),
    # --ckpt
    *((f"{verb} --ckpt nowhere", 1, "nowhere: not there; expected a run directory, a Hugging Face folder") for verb in (
        "topology", "attention", "evaluate", "mechanisms", "probe", "sae-train", "hooks", "generate hello",
        "ablate", "harvest --layers 0", "text-quality", "export --to hf",
    )),
    ("compare nowhere {model}", 1, "nowhere: not there"),
    ("compare {model} nowhere", 1, "nowhere: not there"),
    ("import nowhere", 1, "nowhere"),
    ("hooks --ckpt {model} --n-ctx 9999", 1, "n_ctx: got 9999; expected 2 to the model's n_ctx"),
    ("hooks --ckpt ''", 1, "expected a run directory, a Hugging Face folder"),
    ("hooks --ckpt {text.txt}", 1, "text.txt: not there; expected a run directory"),
    ("hooks --ckpt {cache}", 1, "holds neither latest, hooked_config.json nor config.json; expected a checkpoint"),
    ("hooks --ckpt ../../etc", 1, "expected a"),
    ("compare {model} {mute}", 1, "vocabular"),
    (f"topology --ckpt {{mute}} {T}", 1, "no tokenizer"),
    (f"sae-train --ckpt {{mute}} {T}", 1, "no tokenizer; expected a model with one"),
    (f"evaluate --ckpt {{mute}} {T}", 1, "no tokenizer"),
    ("generate --ckpt {mute} hello", 1, "no tokenizer"),
    ("text-quality --ckpt {mute}", 1, "no tokenizer"),
    (f"probe --ckpt {{mute}} {T}", 1, "no tokenizer"),
    (f"mechanisms --ckpt {{model}} {T}", 1, "mechanism"),
    # --layers, --heads and lists
    *((f"{verb} --ckpt {{model}} {T} --layers {text}", 2, "expected") for verb in (
        "topology", "attention", "harvest", "sae-train") for text in ("a", "1..2", "-1", "0,,1", "1e3", "０,x")),
    *((f"{verb} --ckpt {{model}} {T} --layers 2", 1, "layers: got 2; expected 0…1") for verb in (
        "topology", "attention", "harvest", "sae-train")),
    *((f"{verb} --ckpt {{model}} {T} --layers 0,0", 1, "each once") for verb in (
        "topology", "attention", "sae-train")),
    (f"topology --ckpt {{model}} {T} --layers 0-999999", 1, "layers: got"),
    (f"sae-train --ckpt {{model}} {T} --heads 4", 1, "heads: got 4; expected 0…3"),
    (f"sae-train --ckpt {{model}} {T} --heads x", 2, "--heads: got 'x'"),
    (f"sae-train --ckpt {{model}} {T} --l1 a", 2, "--l1: got 'a'; expected numbers such as 1,2,4"),
    (f"sae-train --ckpt {{model}} {T} --l1 ''", 2, "--l1: got ''; expected numbers"),
    (f"sae-train --ckpt {{model}} {T} --l1 -1", 1, "l1"),
    (f"sae-train --ckpt {{model}} {T} --l1 nan", 1, "l1"),
    (f"sae-train --ckpt {{model}} {T} --l1 inf", 1, "l1"),
    (f"sae-train --ckpt {{model}} {T} --l1 1,1", 1, "l1"),
    (f"sae-train --ckpt {{model}} {T} --seeds x", 2, "--seeds: got 'x'"),
    (f"sae-train --ckpt {{model}} {T} --seeds 1,1", 1, "seeds"),
    (f"sae-train --ckpt {{model}} {T} --hook nope", 1, "nope"),
    (f"sae-train --ckpt {{model}} {T} --hook hook_resid_post --heads 0", 1, "heads"),
    (f"sae-train --ckpt {{model}} {T} --normalize twice", 1, "normalize"),
    (f"sae-train --ckpt {{model}} {T} --n-tokens 0", 2, "--n-tokens"),
    (f"sae-train --ckpt {{model}} {T} --n-tokens {10**29}", 2, "--n-tokens"),
    (f"sae-train --ckpt {{model}} {T} --set nope=1", 1, "unknown key 'nope'"),
    (f"sae-train --ckpt {{model}} {T} --set batchsize=1", 1, "nearest: batch_size"),
    (f"sae-train --ckpt {{model}} {T} --set normalize=none", 2, "normalize has an option of its own; "
        "expected --normalize"),
    (f"sae-train --ckpt {{model}} {T} --set n_train_tokens=64", 2, "expected --n-tokens"),
    (f"sae-train --ckpt {{model}} {T} --set lr=inf", 1, "lr: Input should be a finite number"),
    (f"sae-train --ckpt {{model}} {T} --set lr=fast", 1, "lr"),
    (f"sae-train --ckpt {{model}} {T} --set lr=nan", 1, "lr"),
    (f"sae-train --ckpt {{model}} {T} --set lr", 2, "expected key=value"),
    (f"sae-train --ckpt {{model}} {T} --set batch_size=0", 1, "batch_size"),
    (f"sae-train --ckpt {{model}} {T} --set expansion=-2", 1, "expansion"),
    (f"sae-train --ckpt {{model}} {T} --set expansion=1000000000", 1, "GiB are free on cpu; expected less"),
    (f"sae-train --ckpt {{model}} {T} --set expansion=1000000000 --dry-run", 1, "GiB are free on cpu; expected less"),
    (f"sae-train --ckpt {{model}} {T} --set buffer_tokens=1000000000000", 1, "buffer of 1,000,000,000,000 tokens"),
    ("train {recipe.toml} --set model.d_model=800000000", 1, "a model of d_model = 800,000,000 needs"),
    ("train {recipe.toml} --set phases.0.batch_size=100000000000", 1, "(phases.0.batch_size) needs"),
    ("sae-train --ckpt {model} --shards nowhere", 1, "nowhere/shards.json is missing"),
    ("sae-train --ckpt {model} --shards {model}", 1, "shards.json is missing; expected a harvest's directory"),
    # windows and data
    (f"topology --ckpt {{model}} {T} --n-ctx 1", 2, "--n-ctx"),
    (f"topology --ckpt {{model}} {T} --n-ctx 49", 1, "n_ctx: got 49; expected 2 to the model's n_ctx = 48"),
    (f"sae-train --ckpt {{model}} {T} --n-ctx 49", 1, "n_ctx"),
    (f"evaluate --ckpt {{model}} {T} --n-ctx 49", 1, "n_ctx"),
    (f"evaluate --ckpt {{model}} {T} --stride 0", 2, "--stride"),
    (f"evaluate --ckpt {{model}} {T} --stride 49", 1, "stride"),
    (f"evaluate --ckpt {{model}} {T} --split most", 2, "--split: got 'most'; expected held_out, train or all"),
    (f"evaluate --ckpt {{model}} {T} --max-bytes 0", 2, "--max-bytes"),
    (f"evaluate --ckpt {{model}} {T} --max-bytes 1", 1, "expected"),
    (f"harvest --ckpt {{model}} {T} --layers 0 --split both", 1, "split"),
    (f"harvest --ckpt {{model}} {T} --layers 0 --hook nope --n-sequences 2", 1, "nearest"),
    (f"sae-train --ckpt {{model}} {T} --hook attn.hook_pattern --layer 0", 1, "expected a hook with one row"),
    (f"harvest --ckpt {{model}} {T} --layers 0 --set shard_bytes=big --n-sequences 2", 2, "shard_bytes = 'big'; "
        "expected"),
    (f"harvest --ckpt {{model}} {T} --layers 0 --set batch_size=0 --n-sequences 2", 1, "batch_size: got 0; expected"),
    (f"harvest --ckpt {{model}} {T} --layers 0 --set shard_bytes=-1 --n-sequences 2", 1, "shard_bytes: got -1"),
    (f"attention --ckpt {{model}} {T} --set n_repeated=-1", 2, "n_repeated"),
    (f"attention --ckpt {{model}} {T} --set n_repeated=1 --set n_repeated=1", 2, "given twice; expected it once"),
    (f"compare {{model}} {{twin}} {T} --set n_components=0 --n-sequences 8", 2, "n_components"),
    (f"compare {{model}} {{twin}} {T} --set n_components=99 --n-sequences 8", 1, "n_components"),
    (f"compare {{model}} {{twin}} {T} --n-sequences 1", 1, "compare: 1 sequences; expected at least 4"),
    # ablate
    (f"ablate --ckpt {{model}} {T} --components tail", 2, "--components: got 'tail'; expected some of head,layer,mlp"),
    (f"ablate --ckpt {{model}} {T} --components head,head", 2, "each once"),
    (f"ablate --ckpt {{model}} {T} --pairs 0.0", 2, "--pairs: got '0.0'; expected within, or pairs such as"),
    (f"ablate --ckpt {{model}} {T} --pairs 0.0+0.9 --n-sequences 2", 1, "0.9"),
    (f"ablate --ckpt {{model}} {T} --pairs 0.0+0.0 --n-sequences 2", 1, "0.0"),
    (f"ablate --ckpt {{model}} {T} --memory-gib nan", 2, "--memory-gib"),
    (f"ablate --ckpt {{model}} {T} --memory-gib inf", 2, "--memory-gib"),
    (f"ablate --ckpt {{model}} {T} --memory-gib -1", 2, "--memory-gib"),
    (f"ablate --ckpt {{model}} {T} --n-resamples 0", 2, "--n-resamples"),
    (f"ablate --ckpt {{model}} {T} --n-resamples 4", 2, "--n-resamples: got with --kind zero, where nothing"),
    # generate
    ("generate --ckpt {model} hello --temperature -1", 2, "--temperature"),
    ("generate --ckpt {model} hello --temperature nan", 2, "--temperature"),
    ("generate --ckpt {model} hello --temperature inf", 1, "temperature: got inf"),
    ("generate --ckpt {model} hello --top-p 0", 1, "top_p: got 0"),
    ("generate --ckpt {model} hello --top-p nan", 1, "top_p: got nan"),
    ("generate --ckpt {model} hello --top-k 0", 2, "--top-k"),
    ("generate --ckpt {model} hello --max-new-tokens 0", 2, "--max-new-tokens"),
    # probe
    (f"probe --ckpt {{model}} {T} --sets nope", 1, "nope"),
    (f"probe --ckpt {{model}} {T} --sets ''", 1, "sets"),
    (f"probe --ckpt {{model}} {T} --sets months,months", 1, "expected each once"),
    (f"probe --ckpt {{model}} {T} --concepts nowhere.toml", 1, "concepts: no file 'nowhere.toml'; "
        "expected a TOML file"),
    (f"probe --ckpt {{model}} {T} --concepts {{concepts.toml}} --sets things --template 'none'", 1,
     "{X}"),
    (f"probe --ckpt {{model}} {T} --concepts {{concepts.toml}} --sets things "
     "--template '{X} {X}'", 1, "{X}"),
    (f"probe --ckpt {{model}} {T} --set n_permutations=0", 2, "n_permutations"),
    (f"probe --ckpt {{model}} {T} --set n_points=-1", 2, "n_points"),
    # text-quality
    ("text-quality --ckpt {model} --prompts nowhere.toml", 1, "prompts: no file 'nowhere.toml'; expected a TOML file"),
    ("text-quality --ckpt {model} --recall nowhere.toml", 1, "recall: no file 'nowhere.toml'; expected a TOML file"),
    ("text-quality --ckpt {model} --n-samples 0", 2, "--n-samples"),
    ("text-quality --ckpt {model} --max-new-tokens 4000", 1, "max_new_tokens"),
    (f"text-quality --ckpt {{model}} {FEW} --tagger nope", 1, "nope"),
    (f"text-quality --ckpt {{model}} {FEW} --temperature inf", 1,
     "temperature: got inf"),
    # atlas and report
    ("atlas", 2, "atlas: expected either a study's directory or --sae with --ckpt"),
    ("atlas {model} --sae {model}", 2, "atlas: expected either a study's directory or --sae with --ckpt"),
    ("atlas --sae {model}", 2, "atlas: got 1 --sae and 0 --ckpt; expected one model for each"),
    (f"atlas --sae {{model}} --ckpt {{model}} {T} --n-sequences 2", 1, "sae.json"),
    ("atlas nowhere", 1, "nowhere"),
    ("atlas {model}", 1, "feature_atlas.csv"),
    ("report nowhere", 1, "nowhere: not a directory; expected one that holds a study's CSV files"),
    ("report {model}", 1, "holds no known table"),
    ("report {text.txt}", 1, "not a directory"),
    # export and import
    ("export --ckpt {model}", 2, "--to"),
    ("export --ckpt {model} --to sae-lens", 1, "sae.json"),
    ("import {text.txt}", 1, "expected"),
    # train, study, ladder
    ("train", 2, "RECIPE"),
    ("train ''", 1, "recipe: no recipe or file ''"),
    ("train {model}", 1, "recipe: no recipe or file"),
    ("train {text.txt}", 1, "is not TOML"),
    ("train {recipe.toml} --keep 0", 2, "--keep"),
    ("train {recipe.toml} --monitor paper", 1, "monitor: got 'paper'"),
    ("train {recipe.toml} --set model.n_layers", 2, "expected key=value"),
    ("train {recipe.toml} --set name=a --set name=b", 2, "given twice; expected it once"),
    ("study {tiny.toml} --set name", 2, "expected key=value"),
    ("ladder recurrent-nano --set =3", 2, "expected key=value"),
    ("train {recipe.toml} --set model=3", 1, "model"),
    ("train {recipe.toml} --set phases.7.n_steps=3", 1, "expected an index from 0 to 0"),
    ("train {recipe.toml} --set phases.x.n_steps=3", 1, "expected an index from 0 to 0"),
    ("train {recipe.toml} --set name.x=3", 1, "'name' is a single value"),
    ("train {recipe.toml} --fsdp", 1, "torchrun"),
    ("train {recipe.toml} --data nowhere.txt", 1, "data: no file or folder 'nowhere.txt'"),
    ("train {recipe.toml} --tokenizer nowhere.json", 1, "tokenizer: no file or folder 'nowhere.json'"),
    ("train {recipe.toml} --tokenizer embedded-12", 1, "tokenizer: embedded-12; expected 257"),
    ("train {recipe.toml} --tokenizer embedded-99999", 1, "tokenizer: embedded-99999; expected 257"),
    ("study nope", 1, "study: no study or file 'nope'; nearest:"),
    ("study {recipe.toml}", 1, "models"),
    ("study {tiny.toml} --seeds 0", 2, "--seeds"),
    ("study {tiny.toml} --executor slurm", 1, "executor: got 'slurm'; expected one of"),
    ("study {tiny.toml} --ray-address here", 2, "--ray-address: got with --executor in-process"),
    ("study {tiny.toml} --threads 0", 2, "--threads"),
    ("study {tiny.toml} --reuse nowhere --out x", 1, "reuse: nowhere has no jobs.json; "
        "expected the directory of a study"),
    ("study {tiny.toml} --set nope=1", 1, "unknown key 'nope'"),
    ("study {tiny.toml} --set models.x=1", 1, "models"),
    ("study {tiny.toml} --set analyses='[\"magic\"]'", 1, "analyses"),
    ("study {tiny.toml} --set train.phases.0.n_steps=-1", 1, "n_steps"),
    ("study {tiny.toml} --set sae_l1='[]'", 1, "sae_l1"),
    ("study {tiny.toml} --set sae_l1='[nan]'", 1, "sae_l1"),
    ("ladder nope", 1, "recipe: no recipe or file 'nope'"),
    ("ladder {recipe.toml}", 1, "recurrent"),
    ("ladder recurrent-nano --n-seeds 0", 2, "--n-seeds"),
    ("ladder recurrent-nano --set nope=1", 1, "unknown key 'nope'"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "code", "message"), CASES, ids=[case[0][:70] for case in CASES])
def test_a_bad_option_is_one_line(ground, home, tally, command, code, message) -> None:
    tally("bad input", "options of verbs", 1, 0)
    refuse(ground, command, code, message)
    tally("bad input", "options of verbs", 0, 1)


# name, what lies there first, what is typed, part of the one line; x is a copy of an ablation's whole directory
PLACES = [
    ("inside a finished run", lambda: None, f"topology --ckpt {{model}} {T} --n-sequences 2 --out x/more", "lies in "),
    ("deep inside one", lambda: None, f"topology --ckpt {{model}} {T} --n-sequences 2 --out x/a/b/../c", "lies in "),
    ("below a link to nowhere", lambda: Path("y").symlink_to("nowhere"),
     f"topology --ckpt {{model}} {T} --n-sequences 2 --out y/z", "y is a link that leads nowhere; "
         "expected a directory"),
    ("below a link to itself", lambda: Path("y").symlink_to("y"),
     f"topology --ckpt {{model}} {T} --n-sequences 2 --out y/z", "y is a link that leads nowhere; "
         "expected a directory"),
    ("a page over a table", lambda: None, "report x --out x/ablation_results.csv", "exists and is no page; "
        "expected a new"),
    ("a page over a manifest", lambda: None, "report x --out x/manifest.json", "exists and is no page; expected a new"),
    ("a page over a directory", lambda: Path("y.html").mkdir(), "report x --out y.html", "exists and is no page"),
    ("a page over a device", lambda: None, "report x --out /dev/null", "exists and is no page; expected a new file"),
]  # fmt: skip


@pytest.mark.parametrize(("prepare", "command", "message"), [p[1:] for p in PLACES], ids=[p[0] for p in PLACES])
def test_a_bad_place_is_one_line(ground, home, tally, prepare, command, message) -> None:
    tally("bad input", "options of verbs", 1, 0)
    shutil.copytree(ground.run("ablation"), "x")
    prepare()
    refuse(ground, command, 1, message)
    tally("bad input", "options of verbs", 0, 1)


def test_every_verb_is_among_them() -> None:
    assert len({command for command, _, _ in CASES}) == len(CASES)
    assert set(VERBS) - {"recipes"} <= {command.split()[0] for command, _, _ in CASES}
