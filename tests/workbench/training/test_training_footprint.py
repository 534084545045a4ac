"""What a model too large to try would take, from shapes: against the tensors of real models, optimizers and steps."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
import torch
from interventions_for_tests import objective_under
from models_for_tests import ARCHITECTURES, small_model
from typer.testing import CliRunner

from workbench.cli.app import app
from workbench.models import HookedLM
from workbench.models.costs import on_meta
from workbench.runs.memory import peak_bytes
from workbench.training import Recipe, apply_overrides, load_recipe
from workbench.training.footprint import Footprint, footprints, kept_bytes
from workbench.training.monitor import monitor_columns
from workbench.training.objective import Batch, objective
from workbench.training.optimizers import Optimizer
from workbench.training.plan import plan
from workbench.training.prescription import Moment, Prescription
from workbench.training.recipe import phase_model

BIG = "lang-ddv1-3b"
# the recipe's own model and phases, with few layers, a narrow width and the embedded text
SLICE = {
    "model.n_layers": 2, "model.d_model": 96, "model.d_head": 4, "model.d_mlp": 264, "model.n_ctx": 128,
    "model.d_vocab": 4096, "model.extensions.attn_res.boundaries": [0, 1], "monitor.rank_layers": [1],
    "phases.0.nca": "small", "data.source": "embedded", "data.tokenizer": "embedded", "data.held_out_fraction": 0.05,
    "data.n_held_out_windows": 4, "monitor.n_sequences": 2, "phases.0.n_steps": 3, "phases.1.n_steps": 3,
    "phases.0.schedule.n_warmup_steps": 1, "phases.1.schedule.n_warmup_steps": 1,
}  # fmt: skip


def test_the_size_of_the_recipe_and_of_its_family():
    small, big = load_recipe("lang-ddv1").model, load_recipe(BIG).model
    model = on_meta(big)
    assert (model.n_parameters(), model.n_parameters(embeddings=False)) == (2_970_099_712, 2_819_104_768)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    heads, kv, width = 24 * 128, 8 * 128, 8192
    by_hand = 28 * (3072 * (2 * heads + 2 * kv + 3 * width) + 2 * 3072 + 2 * 128) + 3072 + (4 * 28 + 2) * 3072
    assert model.n_parameters(embeddings=False) == by_hand
    for cfg in (small, big):
        assert (cfg.n_layers, cfg.d_head, cfg.n_heads * cfg.d_head / cfg.d_model) == (28, 128, 1)
    routed = big.extensions.attn_res
    assert routed is not None
    assert routed.boundaries == (0, 1, 3, 7, 15, 19, 24)
    assert big.extensions.model_copy(update={"attn_res": small.extensions.attn_res}) == small.extensions


@pytest.mark.parametrize("kind", [kind for kind in sorted(ARCHITECTURES) if "learned-" not in kind])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_what_a_forward_keeps_is_what_a_real_one_keeps(kind, autocast):
    model = small_model(kind)
    tokens = torch.zeros(2, 16, dtype=torch.long)
    phase = load_recipe("p3-muon-nano").phases[0].model_copy(update={"interventions": ()})
    none = Prescription((), model.cfg, 1)
    real = really_kept(model, lambda: objective(model, Batch(tokens), none, Moment(0), autocast))
    assert kept_bytes(on_meta(model.cfg), phase, 2, 16, autocast) == pytest.approx(real, rel=0.02)


@pytest.mark.parametrize(
    "recipe",
    [
        "janus-v3-control-nano", "janus-v3-adaptive-nano", "janus-v3-pattern-nano", "janus-small-nano", "p3-muon-nano",
        "recurrent-nano",
    ],
)  # fmt: skip
def test_what_interventions_keep_is_counted(recipe):
    loaded = load_recipe(recipe)
    phase, model = loaded.phases[0], HookedLM(phase_model(loaded, 0))
    batch = Batch(torch.zeros(2, 16, dtype=torch.long))
    tables = [own.model_dump() for own in phase.interventions]
    pressed = {own.name or own.kind: {"lambda": 0.01} for own in phase.interventions if own.kind == "vsm"}
    real = really_kept(model, lambda: objective_under(model, batch, *tables, **pressed))
    assert kept_bytes(on_meta(model.cfg), phase, 2, 16, None) == pytest.approx(real, rel=0.02)


def really_kept(model, run) -> int:
    """Bytes of the tensors that autograd keeps while it runs, the weights left out."""
    owned = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage  # held, so that no other takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = run()
    del result
    return sum(storage.nbytes() for storage in kept.values())


def language_alone(**changes) -> Recipe:
    recipe = apply_overrides(load_recipe(BIG), SLICE | changes)
    return recipe.model_copy(update={"phases": recipe.phases[1:]})


def test_parts_of_one_gpu_are_those_of_a_real_model_and_optimizer():
    recipe = language_alone()
    (found,) = footprints(recipe, None, [1])
    model = HookedLM(phase_model(recipe, 0))
    optimizer = Optimizer(model, recipe.phases[0].optimizer)
    tokens = torch.arange(8 * 128).reshape(8, 128)
    model(tokens, return_type="loss").backward()
    optimizer.step()
    sizes = {name: p.numel() * 4 for name, p in model.named_parameters()}
    assert found.parameters_bytes == found.gradients_bytes == sum(sizes.values())
    state = sum(t.numel() * t.element_size() for n, t in optimizer.state_dict().items() if not n.endswith("/step"))
    copies = sum(copy.numel() * 4 for copy in optimizer._copies.values())
    assert found.optimizer_bytes == state + copies
    assert (found.step_bytes, found.gathered_bytes, found.whole_bytes) == (copies, 0, 0)
    busy = max(found.gradients_bytes + found.activations_bytes, found.gradients_bytes + found.step_bytes)
    assert found.total_bytes == found.parameters_bytes + found.optimizer_bytes + busy


def test_parts_of_several_gpus():
    recipe = language_alone()
    one, two, eight = footprints(recipe, n_gpus=(1, 2, 8))
    weights = one.parameters_bytes
    assert (two.parameters_bytes, eight.parameters_bytes) == (weights // 2, -(-weights // 8))
    # gradients of accumulated micro-batches are exchanged after the last: until then each GPU has all of them
    assert two.gradients_bytes == eight.gradients_bytes == two.whole_bytes == weights
    at_once = language_alone(**{"phases.1.n_accumulation": 1})
    assert footprints(at_once, n_gpus=(8,))[0].gradients_bytes < weights
    model = on_meta(phase_model(recipe, 0))
    blocks = [sum(p.numel() * 4 for p in block.parameters()) for block in model.blocks]
    assert eight.gathered_bytes >= model.embed.W_E.numel() * 4 + 2 * blocks[0]
    # a row's share of what is kept, and the narrow copies of the weights that all GPUs keep alike
    model.shares_routing = False
    kept = [kept_bytes(model, recipe.phases[0], n, 128, torch.bfloat16) for n in (1, 2, 4)]
    assert kept[2] - kept[1] == 2 * (kept[1] - kept[0])
    assert eight.total_bytes < two.total_bytes < one.total_bytes
    assert [found.n_gpus for found in footprints(language_alone(**{"phases.1.batch_size": 6}))] == [1, 2]


def test_a_large_recipe_is_planned_without_a_weight():
    before = peak_bytes()
    found = plan(load_recipe(BIG), device="cpu", dtype="bfloat16")
    assert peak_bytes() - before < 1 << 29  # of weights of 12 GB
    n, tokens = 2_970_099_712, 851_968_000
    assert found["n_parameters"] == n
    assert found["n_tokens_by_phase"]["nca"] == tokens
    # the table that is looked up is the unembedding too; norms, which do not multiply, are next to none
    of_automata = n - (49_152 - 10_002) * 3072
    attention = 3 * 2 * 28 * 24 * 128 * (2048 + 1)
    by_hand = (6 * of_automata + attention) * tokens + (6 * n + attention) * (found["n_tokens"] - tokens)
    assert found["flops"] == pytest.approx(by_hand, rel=1e-4)
    (one,) = footprints(load_recipe(BIG), n_gpus=(1,))
    assert found["bytes_in_memory"] - before >= one.total_bytes
    assert not {"seconds", "tokens_per_s_by_phase"} & set(found)
    hidden = 28 * 3072 * (2 * 3072 + 2 * 1024 + 3 * 8192)
    assert found["bytes_on_disk"] == 3 * 4 * (n + 2 * (n - hidden) + hidden)


def test_the_dry_run_says_what_each_gpu_holds():
    settings = [part for key, value in SLICE.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    done = CliRunner().invoke(app, ["train", BIG, *settings, "--dry-run", "--fsdp", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [row["n_gpus"] for row in found["rows"]] == [1, 2, 4, 8]
    assert set(found["rows"][3]) == {field.name for field in fields(Footprint)}


def test_three_steps_of_a_slice(tmp_path):
    from reports.tables import read_table
    from workbench.training import train

    recipe = apply_overrides(load_recipe(BIG), SLICE | {f"phases.{i}.n_accumulation": 1 for i in (0, 1)})
    out = train(recipe, tmp_path / "run", device="cpu", dtype="float32", progress=False)
    log = read_table(out, "train_log")
    assert log["phase"].tolist()[-1] == "language"
    last = log.iloc[-1]
    measured = ("trajectory_consistency", "stable_rank.W_Q.1", "bos_mass.1", "head_entropy.1", "held_out_loss")
    assert all(float("-inf") < float(last[name]) < float("inf") for name in measured)
    assert "stable_rank.W_Q.0" not in log.columns
    wanted = {"stable_rank.W_Q.14", "bos_mass.14", "head_entropy.14", "trajectory_consistency"}
    assert wanted <= set(monitor_columns(load_recipe(BIG).model, load_recipe(BIG).monitor))


@pytest.mark.parametrize("layers", [[2], [-1], [1, 1]])
def test_layers_to_rank_that_are_not_there(layers):
    with pytest.raises(ValueError, match=r"monitor.rank_layers: got .*; expected layers from 0 to 1, each once"):
        apply_overrides(load_recipe(BIG), SLICE | {"monitor.rank_layers": layers})
