"""`workbench sae-train`: from text and from shards, sweeps and seeds, and what it refuses."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from reports.tables import read_table
from sae import StackedSAE, Trainer, architectures
from workbench import analyses, runs
from workbench.analyses.sae_train import head_saes, sae_train
from workbench.analyses.sae_train.head_saes import find_stack
from workbench.analyses.sae_train.settings import HeadSaeSettings
from workbench.analyses.sae_train.stack_training import StackTraining
from workbench.cli.app import app
from workbench.cli.generate import N_MEASURED
from workbench.data.text_windows import spread_windows
from workbench.extend import Merged
from workbench.models.generate import generate
from workbench.models.load import load
from workbench.models.steering import measure_constants, steered
from workbench.models.tokenizer_files import decode_continuation, stop_ids

PAIR = "ln2.hook_normalized:hook_mlp_out"
PLUGIN = Path(__file__).parents[3] / "docs" / "plugins" / "p_annealed.py"


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def small(place):
    """Options of a training that takes a moment."""
    sizes = {"batch_size": 48, "buffer_tokens": 96, "expansion": 2, "n_ce_tokens": 48}
    chosen = [option for key, value in sizes.items() for option in ("--set", f"{key}={value}")]
    return ["--ckpt", place / "shallow", "--data", place / "text.txt", "--n-eval-tokens", 480, *chosen]


def harvested(place, model="shallow", split="train", out="h"):
    subject = ["--ckpt", place / model, "--data", place / "text.txt", "--n-sequences", 20]
    result = call("harvest", *subject, "--layers", "0-1", "--split", split, "--out", out)
    assert result.exit_code == 0, result.output
    return Path.cwd() / out


def test_a_sweep_with_seeds_writes_every_table(small):
    chosen = ["--layer", 1, "--heads", "0,2", "--l1", "1,4", "--seeds", "0-1", "--n-train-tokens", 960]
    result = call("sae-train", *small, *chosen, "--out", "s")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(Path.cwd() / "s")
    names = {
        "sae", "sae_training_results.csv", "sae_density.csv", "sae_curves.csv", "sae_pareto.csv", "sae_stability.csv",
        "sae_training_results_blocks.csv",
        "sae_alarms.csv", "config.toml", "datapackage.json", "env.json", "manifest.json",
    }  # fmt: skip
    assert {p.name for p in Path("s").iterdir()} == names
    assert len(read_table("s", "sae_pareto")) == 2 * 2
    assert len(read_table("s", "sae_stability")) == 2 * 2 * 2
    assert len(read_table("s", "sae_training_results")) == 3 * 8
    assert [(s.layer, s.head, s.l1, s.seed) for s in find_stack("s").info.sources][:3] == [
        (1, 0, 1.0, 0), (1, 0, 1.0, 1), (1, 0, 4.0, 0),
    ]  # fmt: skip
    runs.verify_manifest("s")


def test_one_coefficient_and_one_seed_have_nothing_to_compare(small):
    assert call("sae-train", *small, "--layer", 0, "--n-train-tokens", 480, "--out", "s").exit_code == 0
    assert not list(Path("s").glob("sae_pareto.csv")) + list(Path("s").glob("sae_stability.csv"))


def test_special_tokens_are_included_where_asked(small):
    for option, n_left_out in ((["--include-special"], 0), ([], 20)):
        out = f"s{n_left_out}"
        result = call("sae-train", *small, "--layer", 0, "--n-train-tokens", 480, *option, "--out", out)
        assert result.exit_code == 0, result.output
        table = read_table(out, "sae_training_results")
        kept = table.loc[table["dictionary"] == "trained", ["n_eval_tokens", "n_left_out"]]
        assert (kept.sum(axis=1) == 480).all()
        assert (kept["n_left_out"] >= n_left_out).all()
        assert (kept["n_left_out"] == 0).all() == bool(option)
        assert find_stack(out).info.include_special is bool(option)
    refused = call("sae-train", *small, "--include-special", "--set", "include_special=true", "--out", "t")
    assert refused.exit_code == 2
    assert "set: include_special is given by --include-special too; expected one of the two" in refused.stderr


def test_a_killed_run_of_two_models_trains_no_finished_stack_again(place, small, monkeypatch):
    both = [*small, "--ckpt", place / "shallow-other", "--layer", 0, "--n-train-tokens", 480, "--l1", "1,4"]
    assert call("sae-train", *both, "--out", "whole").exit_code == 0
    splice, n_calls = head_saes.splice_sequences, []

    def dies_at_the_second(*given, **settings):
        n_calls.append(1)
        return splice(*given, **settings) if len(n_calls) == 1 else 1 / 0

    monkeypatch.setattr(head_saes, "splice_sequences", dies_at_the_second)
    assert call("sae-train", *both, "--out", "cut").exit_code == 1
    monkeypatch.setattr(head_saes, "splice_sequences", splice)
    monkeypatch.setattr(StackTraining, "step", lambda *_, **__: 1 / 0)
    result = call("sae-train", *both, "--out", "cut", "--resume")
    assert result.exit_code == 0, result.output
    names = {path.relative_to("whole") for path in Path("whole").rglob("*") if path.suffix in (".csv", ".safetensors")}
    assert {Path("sae_matched_l0.csv"), Path("shallow-other-seed0/sae/sae.safetensors")} <= names
    assert all((Path("cut") / name).read_bytes() == (Path("whole") / name).read_bytes() for name in names)


def test_what_k_makes_sparse_has_no_l1_by_default(small):
    topk = [*small, "--layer", 0, "--n-train-tokens", 480, "--set", "architecture=topk", "--set", "k=2"]
    assert call("sae-train", *topk, "--out", "s").exit_code == 0
    assert set(read_table("s", "sae_training_results")["l1"]) == {0.0}
    refused = call("sae-train", *topk, "--l1", "2", "--out", "t")
    assert refused.exit_code == 2
    assert "l1: got [2.0] for topk, which k alone makes sparse; expected 0" in refused.stderr
    assert not list(Path().glob("t*"))


def test_architectures_and_their_options_are_options(small):
    nested = [*small, "--layer", 0, "--n-train-tokens", 480, "--architecture", "matryoshka", "--k", "2"]
    assert call("sae-train", *nested, "--widths", "4,16", "--out", "s").exit_code == 0
    assert find_stack("s").config.widths == (4, 16)
    for words, message in {
        ("--widths", "4,8"): "SAEConfig.widths: got [4, 8]; expected numbers ≥ 1 that rise strictly to d_sae = 16",
        ("--widths", "8,4,16"): "SAEConfig.widths: got [8, 4, 16]",
        ("--k", "17"): "SAEConfig.k: got 17.0 for matryoshka; expected 0 < k ≤ d_sae = 16",
    }.items():
        refused = call("sae-train", *nested, *words, "--out", "t")
        assert refused.exit_code != 0
        assert message in refused.stderr
        assert not list(Path().glob("t*"))


def test_a_plug_ins_architecture_trains_resumes_and_is_refused_without_it(small, monkeypatch):
    monkeypatch.setattr(analyses, "_PLUGINS", [])
    monkeypatch.setattr(architectures, "_FOUND", {})
    annealed = ["sae-train", *small, "--layer", 1, "--n-train-tokens", 960, "--architecture", "p-annealed"]
    with_plugin = ["--plugin", PLUGIN, *annealed]
    result = call(*with_plugin, "--out", "whole")
    assert result.exit_code == 0, result.output
    step = Trainer.step
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", lambda own, x: step(own, x) if own.n_steps_done < 7 else 1 / 0)
        assert call(*with_plugin, "--out", "cut").exit_code == 1
    assert call(*with_plugin, "--out", "cut", "--resume").exit_code == 0
    for name in ("sae/sae.safetensors", "sae/sae.json", "sae_training_results.csv", "sae_curves.csv"):
        assert (Path("cut") / name).read_bytes() == (Path("whole") / name).read_bytes()
    stack = find_stack("whole")
    assert stack.config.architecture == "p-annealed"
    stack.to_sae_lens("lens")
    as_relu, x = StackedSAE.from_sae_lens("lens"), torch.randn(len(stack.W_dec), 9, stack.config.d_in)
    assert as_relu.config.architecture == "relu"
    assert torch.equal(as_relu.encode(x), stack.encode(x))

    monkeypatch.setattr(architectures, "_FOUND", {})
    with pytest.raises(
        ValueError, match=r"sae.json: config.architecture: got 'p-annealed'; .* \(--plugin FILE\)"
    ) as caught:
        find_stack("whole")
    assert len(str(caught.value).splitlines()) == 1
    refused = call(*annealed, "--out", "t")
    assert refused.exit_code != 0
    assert "architecture: got 'p-annealed'; expected one of batchtopk" in refused.stderr
    assert not list(Path().glob("t*"))


def test_shards_are_trained_on_and_resumed(place, small):
    shards = harvested(place)
    result = call("sae-train", *small, "--layer", 1, "--shards", shards, "--out", "s")
    assert result.exit_code == 0, result.output
    # 20 windows of 24 tokens: all that count, 23 of each at most, in whole batches of 48
    assert set(read_table("s", "sae_training_results")["n_train_tokens"]) == {432, 0}
    assert runs.read_config("s")["settings"]["shards"] == runs.sha256_file(shards / "manifest.json")
    before = find_stack("s")
    assert call("sae-train", *small, "--layer", 1, "--shards", shards, "--out", "s", "--resume").exit_code == 0
    assert torch.equal(find_stack("s").W_dec, before.W_dec)
    assert call("sae-train", *small, "--layer", 1, "--out", "s", "--resume").exit_code == 1


def test_a_dry_run_on_shards_writes_nothing(place, small):
    shards = harvested(place)
    result = call("sae-train", *small, "--shards", shards, "--out", "s", "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["n_models"] == 1
    assert not Path("s").exists()


def test_shards_of_another_model_altered_or_held_out_are_one_line(place, small):
    foreign, held_out, damaged = (
        harvested(place, "other", out="foreign"), harvested(place, split="held_out", out="held"), harvested(place)
    )  # fmt: skip
    file = damaged / "shard_00000.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 16
    file.write_bytes(data)
    for shards, message in (
        (foreign, "holds activations of the model with sha256"),
        (held_out, "holds a sequence of the held-out tokens; expected shards of other text"),
        (damaged, "shard_00000.safetensors is altered, sha256"),
        (place, "is missing; expected a harvest's directory"),
    ):
        result = call("sae-train", *small, "--shards", shards, "--out", "s")
        assert result.exit_code == 1
        assert message in result.stderr
        assert "Traceback" not in result.stderr
        assert not Path("s").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--layer", "7"], 1, "layers: got 7; expected 0…1"),
        (["--heads", "4"], 1, "heads: got 4; expected 0…3"),
        (["--l1", "-1"], 2, "l1: got [-1.0]; expected finite numbers ≥ 0"),
        (["--l1", "a,b"], 2, "--l1: got 'a,b'; expected numbers such as 1,2,4"),
        (["--seeds", "x"], 2, "--seeds: got 'x'"),
        (["--hook", "hook_zz"], 1, "hook 'blocks.0.hook_zz' does not exist; nearest"),
        (["--hook", f"hook_zz:{PAIR[4:]}", "--architecture", "transcoder"], 2, "expected a hook, or two as IN:OUT"),
        (["--hook", "hook_zz:hook_mlp_out", "--architecture", "transcoder"], 1, "hook 'blocks.0.hook_zz' does not"),
        (["--architecture", "transcoder"], 2, "architecture: got transcoder for hook z; expected a hook IN:OUT"),
        (["--hook", PAIR], 2, f"hook: got {PAIR} for relu; expected a transcoder's architecture for it"),
        (["--set", "bach=3"], 2, "unknown key 'bach'; nearest: batch_size"),
    ],
)
def test_bad_input_is_one_line(small, arguments, code, message):
    result = call("sae-train", *small, "--n-train-tokens", 480, "--out", "s", *arguments)
    assert (result.exit_code, "Traceback" in result.stderr) == (code, False), result.stderr
    assert message in result.stderr
    assert not Path("s").exists()


def test_a_split_that_is_none_is_refused(place):
    result = call("harvest", "--ckpt", place / "shallow", "--layers", "0", "--split", "test", "--out", "h")
    assert result.exit_code == 2
    assert "--split: got 'test'; expected 'held_out' or 'train'" in result.stderr


# --- SAELens


@pytest.fixture
def trained(small):
    assert (
        call("sae-train", *small, "--layer", 1, "--heads", "1,3", "--n-train-tokens", 480, "--out", "s").exit_code == 0
    )
    return Path("s")


def test_saes_go_to_sae_lens_and_come_back(trained):
    sae_lens = pytest.importorskip("sae_lens")
    result = call("export", "--ckpt", trained, "--to", "sae-lens", "--out", "lens")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(Path.cwd() / "lens")
    ours = find_stack(trained)
    for k, head in enumerate((1, 3)):
        theirs = sae_lens.SAE.load_from_disk(f"lens/sae_00{k}")
        assert (theirs.cfg.metadata.hook_name, theirs.cfg.metadata.hook_head_index) == ("blocks.1.attn.hook_z", head)
        assert torch.equal(theirs.W_dec, ours.W_dec[k])
    runs.verify_manifest("lens")
    assert call("import", "lens", "--out", "back").exit_code == 0
    back = find_stack("back")
    assert back.info.sources == ours.info.sources
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in back.state_dict().items())
    again = call("export", "--ckpt", trained, "--to", "sae-lens", "--out", "lens")
    assert (again.exit_code, "already exists" in again.stderr) == (1, True)


def test_saes_that_sae_lens_reads_otherwise_are_not_put_in_place(trained, monkeypatch):
    sae_lens = pytest.importorskip("sae_lens")
    load = sae_lens.SAE.load_from_disk

    def altered(path):
        sae = load(path)
        sae.b_enc.data += 1e-3
        return sae

    monkeypatch.setattr(sae_lens.SAE, "load_from_disk", altered)
    result = call("export", "--ckpt", trained, "--to", "sae-lens", "--out", "lens")
    assert result.exit_code == 1
    assert "sae_000 encodes or decodes to other bits" in result.stderr
    assert not Path("lens").exists()


def test_a_model_is_no_stack_of_saes(place):
    result = call("export", "--ckpt", place / "shallow", "--to", "sae-lens", "--out", "lens")
    assert (result.exit_code, "Traceback" in result.stderr) == (1, False)
    assert "sae.json" in result.stderr


def test_an_atlas_tells_several_saes_of_one_model_apart(place, small):
    for hook in ("z_concat", "hook_resid_post"):
        chosen = ["--hook", hook, "--layer", 0, "--n-train-tokens", 480, "--out", f"s-{hook}"]
        assert call("sae-train", *small, *chosen).exit_code == 0
    both = [option for name in ("z_concat", "hook_resid_post") for option in ("--sae", f"s-{name}")]
    text = ["--data", place / "text.txt", "--n-tokens", 96, "--out"]
    result = call("atlas", *both, *["--ckpt", place / "shallow"] * 2, *text, "a")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(Path.cwd() / "a" / "atlas.html")
    features = read_table("a", "feature_atlas")
    assert set(features["model"]) == {f"{place / 'shallow'} {i}" for i in (1, 2)}
    assert set(features["match"]) == {""}
    result = call("atlas", *both[:2], *["--ckpt", place / "shallow"] * 2, *text, "b")
    assert (result.exit_code, Path("b").exists()) == (1, False)
    assert "atlas: got 1 directories of sae-train for 2 models; expected one each" in result.stderr


@pytest.fixture
def several(small):
    """A run of four stacks, by two hooks and two architectures."""
    kinds = ["--hook", "z", "--hook", "hook_resid_post", "--architecture", "relu,topk", "--k", 2]
    result = call("sae-train", *small, *kinds, "--layer", 1, "--n-train-tokens", 480, "--out", "s")
    assert result.exit_code == 0, result.output
    return Path("s")


def test_verbs_take_one_of_several_stacks(place, several):
    names = {"z-relu-16", "z-topk-16-k2", "hook_resid_post-relu-64", "hook_resid_post-topk-64-k2"}
    assert {p.name for p in (several / "sae").iterdir()} == names
    subject = ["--ckpt", place / "shallow", "--data", place / "text.txt", "--n-tokens", 96]
    for verb, out in (("atlas", "feature_atlas"), ("feature-effects", "feature_effects")):
        refused = call(verb, *subject, "--sae", several, "--out", "x")
        assert (refused.exit_code, Path("x").exists()) == (1, False)
        assert "SAEs: 4 of s fit any stack; expected one of hook_resid_post-relu-64, " in refused.stderr
        found = []
        for i, words in enumerate((["--sae", several, "--stack", "z-topk-16-k2"], ["--sae", "s/sae/z-topk-16-k2"])):
            result = call(verb, *subject, *words, "--out", f"{verb}{i}")
            assert result.exit_code == 0, result.output
            found.append(Path(f"{verb}{i}", f"{out}.csv").read_bytes())
        assert found[0] == found[1]
    words = ["generate", "The cat", "--ckpt", place / "shallow", "--max-new-tokens", 2, "--steer", "1.all.3:2"]
    assert call(*words, "--sae", several / "sae" / "hook_resid_post-relu-64").exit_code == 0
    result = call("export", "--ckpt", several / "sae" / "z-relu-16", "--to", "sae-lens", "--out", "e")
    assert result.exit_code == 0, result.output
    assert len(list(Path("e").glob("sae_*"))) == find_stack(several, "z-relu-16").config.n_saes


def test_of_two_models_with_several_stacks_pages_read_one(place, small):
    kinds = ["--hook", "z", "--hook", "hook_resid_post", "--architecture", "topk,relu", "--k", "4,2,3", "--l1", "1,4"]
    both = [*small, "--ckpt", place / "shallow-other", "--layer", 0, "--n-train-tokens", 480, *kinds]
    result = call("sae-train", *both, "--out", "s")
    assert result.exit_code == 0, result.output
    tables = {name: read_table("s", name) for name in ("sae_training_results", "sae_density", "sae_matched_l0")}
    for name, n in {"sae_training_results": 8, "sae_density": 8}.items():  # where no other table keeps them, all
        assert len(tables[name].groupby(["hook", "architecture", "k"], dropna=False)) == n
    assert len(tables["sae_matched_l0"]) == 2 * 2  # of the one layer, over the sweep of k or l1

    words = {"hook": ("z", "hook_resid_post"), "architecture": "topk,relu", "k": "4,2,3", "l1": "1,4"}
    configs = {name: load(place / name).cfg for name in ("shallow", "shallow-other")}
    models = dict(zip(dict.fromkeys(tables["sae_density"]["model"]), configs.values(), strict=True))
    own = Merged(tables, HeadSaeSettings(expansion=2, **words), (Path("s"), Path("s")), Path("s"), models)
    shown = sae_train.merge(own)
    for name in ("sae_training_results", "sae_density"):
        kinds = set(zip(shown[name]["hook"], shown[name]["architecture"], shown[name]["k"], strict=True))
        assert kinds == {("z", "topk", 3.0)}, name
        assert set(shown[name]["model"]) == set(models)
    assert len(shown["sae_matched_l0"]) == 1


def test_a_plan_of_several_stacks_is_the_sum_of_theirs(small):
    def planned(*words):
        result = call("sae-train", *small, "--layer", 0, *words, "--dry-run", "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    one, other = planned("--hook", "z"), planned("--hook", "hook_resid_post", "--architecture", "topk", "--k", 2)
    of_one = planned("--hook", "z", "--architecture", "topk", "--k", 2)
    of_other = planned("--hook", "hook_resid_post")
    every = planned("--hook", "z", "--hook", "hook_resid_post", "--architecture", "relu,topk", "--k", 2)
    parts = [one, other, of_one, of_other]
    assert every["bytes_on_disk"] == sum(own["bytes_on_disk"] for own in parts)
    assert max(own["flops"] for own in parts) < every["flops"] < sum(own["flops"] for own in parts)
    assert every["bytes_in_memory"] > max(own["bytes_in_memory"] for own in parts)
    pair = ["--hook", PAIR, "--architecture", "transcoder"]
    beside = [*pair[:3], "relu,transcoder", "--hook", "hook_mlp_out"]
    one, other, every = (planned(*words) for words in (pair, ["--hook", "hook_mlp_out"], beside))
    assert one["bytes_on_disk"] == other["bytes_on_disk"] == every["bytes_on_disk"] / 2
    assert every["flops"] < one["flops"] + other["flops"]


def test_a_pair_of_hooks_is_trained_and_read(place, small):
    kinds = ["--hook", PAIR, "--hook", "hook_mlp_out", "--architecture", "relu,skip_transcoder"]
    chosen = ["--layer", 1, "--activation", "topk", "--k", 2, "--n-train-tokens", 480]
    result = call("sae-train", *small, *kinds, *chosen, "--out", "s")
    assert result.exit_code == 0, result.output
    name = "ln2.hook_normalized-to-hook_mlp_out-skip_transcoder-topk-64-k2"
    assert {p.name for p in Path("s", "sae").iterdir()} == {"hook_mlp_out-relu-64", name}
    table = read_table("s", "sae_training_results")
    assert list(table["hook"].unique()) == [PAIR, "hook_mlp_out"]
    assert list(table["activation"].unique()) == ["topk", "relu"]
    again = call("sae-train", *small, *kinds, *chosen, "--out", "s", "--resume")
    assert again.exit_code == 0, again.output
    subject = ["--ckpt", place / "shallow", "--data", place / "text.txt", "--n-tokens", 96, "--sae", "s"]
    for verb, out in (("atlas", "feature_atlas"), ("feature-effects", "feature_effects")):
        result = call(verb, *subject, "--stack", name, "--out", verb)
        assert result.exit_code == 0, result.output
        rows = read_table(verb, out)
        assert len(rows) == 64
        assert set(rows["layer"]) == {1}
    assert (read_table("atlas", "feature_atlas")["logit_promoted"].str.len() > 2).all()  # written to the stream


def test_an_alarm_is_one_warning_of_one_line(small):
    with warnings.catch_warnings(record=True) as said:  # so large an l1 has other faults, too
        warnings.simplefilter("always")
        result = call("sae-train", *small, "--layer", 0, "--l1", 200, "--n-train-tokens", 4800, "--out", "s")
    assert result.exit_code == 0, result.output
    lines = [str(own.message) for own in said if "features per token are active" in str(own.message)]
    assert len(lines) == 1
    assert "\n" not in lines[0]
    assert set(read_table("s", "sae_alarms")["kind"]) >= {"few_active"}


def test_a_page_is_drawn_anew_from_its_directory(place, trained):
    text = ["--data", place / "text.txt", "--n-tokens", 96, "--out", "a"]
    assert call("atlas", "--sae", trained, "--ckpt", place / "shallow", *text).exit_code == 0
    Path("a/atlas.html").unlink()
    result = call("atlas", "a")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "a/atlas.html"
    assert Path("a/atlas.html").stat().st_size > 10_000
    runs.verify_manifest("a")
    for arguments, message in (
        ((), "got neither a directory nor --ckpt"),
        (("a", "--n-contexts", 3), "--n-contexts: got a directory, whose tables are there"),
    ):
        result = call("atlas", *arguments)
        assert (result.exit_code, message in result.stderr) == (2, True), result.stderr


def test_saes_of_another_model_are_no_atlas_of_this_one(place, trained):
    text = ["--data", place / "text.txt", "--n-tokens", 96, "--out", "a"]
    result = call("atlas", "--sae", trained, "--ckpt", place / "shallow-other", *text)
    assert (result.exit_code, Path("a").exists()) == (1, False)
    assert "sha256" in result.stderr


def test_an_atlas_of_other_saes_is_another_run(place, small):
    for seed in (0, 1):
        chosen = ["--layer", 0, "--n-train-tokens", 480, "--seeds", seed, "--out", f"s{seed}"]
        assert call("sae-train", *small, *chosen).exit_code == 0
    common = ["--ckpt", place / "shallow", "--data", place / "text.txt", "--n-tokens", 96, "--out", "a", "--resume"]
    assert call("atlas", "--sae", "s0", *common).exit_code == 0
    assert call("atlas", "--sae", "s0", *common).exit_code == 0
    result = call("atlas", "--sae", "s1", *common)
    assert result.exit_code == 1
    assert "resume: models" in result.output


def test_generation_is_steered_by_a_feature_as_python_steers_it(small, place):
    assert call("sae-train", *small, "--layer", 1, "--n-train-tokens", 960, "--out", "s").exit_code == 0
    model, stack = load(place / "shallow"), find_stack("s")
    tokens = spread_windows(model, None, n_tokens=N_MEASURED)
    found = {j: measure_constants(model, stack, (1, 0, j), tokens) for j in range(stack.config.d_sae)}
    strongest = max(found, key=lambda j: found[j].max_act)
    words = ["generate", "The cat", "--ckpt", place / "shallow", "--max-new-tokens", 8, "--temperature", 0, "--json"]
    said = {}
    for how in ("max_act", "norm", "clamp", "remove"):
        option = ["--sae", "s", "--steer", f"1.0.{strongest}:40", "--how", how]
        said[how] = json.loads(call(*words, *option).stdout)["rows"][0]["continuation"]
        prompt = model.to_tokens("The cat", truncate=False)
        with steered(model, stack, (1, 0, strongest), how, 40.0, **found[strongest]._asdict()):
            grown = generate(model, prompt, 8, temperature=0, stop_at=stop_ids(model))[0].tolist()
        n = prompt.shape[1]
        assert said[how] == decode_continuation(model.tokenizer, grown[:n], grown[n:])
    plain = json.loads(call(*words).stdout)["rows"][0]["continuation"]
    assert said["max_act"] != plain
    dead = call(*words, "--sae", "s", "--steer", f"1.0.{strongest}:nan")
    assert dead.exit_code == 1
    assert dead.stderr.startswith("error: alpha: got nan; expected a finite number")
