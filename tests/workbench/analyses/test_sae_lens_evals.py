"""SAELens's `run_evals` on our exported SAEs: its loss recovered, l0 and variance are ours."""

from __future__ import annotations

import pytest
import torch
from models_for_tests import small_model, tokens_for

from workbench.analyses.sae_train.head_saes import sae_train
from workbench.analyses.sae_train.interop import export_saes
from workbench.models.transformer_lens import to_hooked_transformer

pytestmark = [
    pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning"),
    # SAELens copies tokenised rows by torch.tensor
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning"),
]
N_CTX = 16


def evaluate_by_sae_lens(model, sae, held_out):
    """All of `run_evals` on these sequences, each once, in order."""
    from datasets import Dataset
    from sae_lens import ActivationsStore
    from sae_lens.evals import EvalConfig, run_evals
    from sae_lens.training.activation_scaler import ActivationScaler

    store = ActivationsStore.from_sae(
        model, sae, Dataset.from_dict({"tokens": held_out.tolist()}), streaming=False, total_tokens=1,
        store_batch_size_prompts=len(held_out), train_batch_size_tokens=len(held_out) * N_CTX, n_batches_in_buffer=1,
        disable_concat_sequences=True,
    )  # fmt: skip
    config = EvalConfig(
        batch_size_prompts=len(held_out), n_eval_reconstruction_batches=1, n_eval_sparsity_variance_batches=1,
        compute_ce_loss=True, compute_sparsity_metrics=True, compute_variance_metrics=True,
    )  # fmt: skip
    found = run_evals(sae, store, model, ActivationScaler(), config, exclude_special_tokens=False)[0]
    return {name: value for group in found.values() for name, value in group.items()}


@pytest.mark.parametrize(
    ("kind", "hook"), [("janus-v3", "z"), ("kotodama", "z"), ("kotodama", "z_concat"), ("janus-v3", "hook_resid_post")]
)
def test_run_evals_finds_what_our_table_says(tmp_path, kind, hook, record_property):
    sae_lens = pytest.importorskip("sae_lens")
    model = small_model(kind, n_layers=2)
    with torch.no_grad():
        model.blocks[1].attn.W_O.mul_(6)  # so that every head costs enough for its score to have digits
    held_out = tokens_for(model, batch=12, pos=N_CTX, seed=9)
    tokens = tokens_for(model, batch=200, pos=N_CTX)
    stack, table = sae_train(
        model, tokens, [1], l1=0.3, held_out=held_out, hook=hook, batch_size=64, buffer_tokens=1024,
        n_ce_tokens=held_out.numel(), n_train_tokens=6400, normalize="none", lr=1e-2, expansion=4,
        include_special=True,  # SAELens measures every position
    )  # fmt: skip
    trained = table[table["dictionary"] == "trained"]
    theirs = to_hooked_transformer(model)
    largest = 0.0
    for folder, (_, row) in zip(stack.to_sae_lens(tmp_path / "saes"), trained.iterrows(), strict=True):
        found = evaluate_by_sae_lens(theirs, sae_lens.SAE.load_from_disk(str(folder)), held_out)
        for name, own in (
            ("ce_loss_without_sae", "ce_base"),
            ("ce_loss_with_sae", "ce_spliced"),
            ("ce_loss_with_ablation", "ce_zero"),
        ):
            assert found[name] == pytest.approx(row[own], abs=1e-5), (name, row["head"])
        assert abs(row["ce_zero"] - row["ce_base"]) > 0.01, "a score that means something"
        largest = max(largest, abs(found["ce_loss_score"] - row["ce_recovered"]))
        assert found["l0"] == pytest.approx(row["l0"], rel=1e-6)
        assert found["explained_variance"] == pytest.approx(row["explained_variance"], abs=1e-5)
    record_property("largest difference of ce_loss_score and ce_recovered", f"{largest:.2g}")
    assert largest < 1e-4


def test_an_export_of_all_heads_together_is_verified(tmp_path):
    sae_lens = pytest.importorskip("sae_lens")
    model = small_model("janus-v3", n_layers=2)
    tokens = tokens_for(model, batch=40, pos=N_CTX)
    settings = {"hook": "z_concat", "batch_size": 64, "buffer_tokens": 128, "n_ce_tokens": 32, "expansion": 2}
    settings |= {"n_train_tokens": 640}
    stack, _ = sae_train(model, tokens, l1=0.3, out=tmp_path / "run", **settings)
    lens = export_saes(tmp_path / "run", tmp_path / "lens")
    for layer in range(2):
        theirs = sae_lens.SAE.load_from_disk(str(lens / f"sae_00{layer}"))
        z = model.run_with_cache(tokens)[1][f"blocks.{layer}.attn.hook_z"]
        own = stack.select([layer])(z.flatten(2).flatten(0, 1))[1]
        torch.testing.assert_close(theirs(z), own.view(z.shape))
