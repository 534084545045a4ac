"""SAEs from elsewhere in the forward pass, beside SAELens's own HookedSAETransformer."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from foreign_saes_for_tests import HELD, build, save
from models_for_tests import worded_model

import workbench
from sae import StackedSAE, steer
from workbench.analyses.feature_effects.effects import feature_effects

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
sae_lens = pytest.importorskip("sae_lens")
HOOKS = ("blocks.1.hook_resid_pre", "blocks.1.attn.hook_z", "blocks.0.hook_mlp_out")
NORMS = ("none", "layer_norm", "constant_norm_rescale")
CASES = [(kind, norm, hook) for kind in HELD for norm in NORMS for hook in HOOKS]


@pytest.fixture(scope="module")
def theirs_and_ours() -> tuple[Any, Any]:
    """One model as SAELens's HookedSAETransformer and as a HookedLM."""
    import transformer_lens

    cfg = transformer_lens.HookedTransformerConfig(
        n_layers=2, d_model=16, n_ctx=12, d_head=8, n_heads=4, d_vocab=30, act_fn="relu", d_mlp=16, seed=0,
        dtype=torch.float64,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = sae_lens.HookedSAETransformer(cfg)
    theirs.setup()
    return theirs, workbench.from_hooked_transformer(theirs)


@pytest.mark.parametrize(("kind", "norm", "hook"), CASES)
def test_logits_are_theirs_in_both_models(theirs_and_ours, tmp_path, kind, norm, hook):
    """Replaced, with the error kept, and with the strongest feature set to 0 and the error kept."""
    width = 32 if hook.endswith("z") else 16
    keys = {"normalize_activations": norm, "reshape_activations": "hook_z" if hook.endswith("z") else "none"}
    folder = save(build(kind, width, 48, hook=hook, dtype="float64", **keys), tmp_path / "theirs")
    their_sae, ours = sae_lens.SAE.load_from_disk(str(folder)), StackedSAE.from_sae_lens(folder)
    their_model, our_model = theirs_and_ours
    tokens = torch.randint(30, (3, 12), generator=torch.Generator().manual_seed(5))
    layer = int(hook.split(".")[1])
    with torch.no_grad():
        x = their_model.run_with_cache(tokens)[1][hook].flatten(2).flatten(0, 1)
        strongest = int(ours.encode(x).sum(dim=0).argmax())

        def zero(acts, hook):
            acts[..., strongest] = 0
            return acts

        point = f"{hook}.hook_sae_acts_post"
        expected = [
            their_model.run_with_saes(tokens, saes=[their_sae], use_error_term=False),
            their_model.run_with_saes(tokens, saes=[their_sae], use_error_term=True),
        ]
        with their_model.saes(saes=[their_sae], use_error_term=True):
            expected.append(their_model.run_with_hooks(tokens, fwd_hooks=[(point, zero)]))
        ways: list[dict[str, Any]] = [{"error": False}, {"error": True}, {"features": {(layer, -1, strongest): 0.0}}]
        for way, logits in zip(ways, expected, strict=True):
            for model in (their_model, our_model):
                with workbench.attached(model, ours, include_special=True, **way):
                    torch.testing.assert_close(model(tokens), logits, rtol=1e-9, atol=1e-9)
        plain = our_model(tokens)
    assert not torch.allclose(expected[0], plain)
    assert not torch.allclose(expected[2], plain)


# --- a token's norm scales what a feature writes


@pytest.fixture
def model() -> Any:
    return worded_model("janus-v3").double()


def normed_stack(norm: str, tmp_path, d_in: int, seed: int) -> StackedSAE:
    keys = {"normalize_activations": norm, "dtype": "float64", "hook": "blocks.1.hook_resid_post", "seed": seed}
    return StackedSAE.from_sae_lens(save(build("standard", d_in, 24, **keys), tmp_path / "theirs"))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("norm", NORMS)
def test_feature_effects_of_normalised_saes_are_those_of_ablation(model, tmp_path, norm, seed):
    """delta_loss beside the loss with the feature set to 0 in the forward; the estimate beside a small step."""
    sae = normed_stack(norm, tmp_path, model.cfg.d_model, seed)
    tokens = torch.randint(4096, (4, 16), generator=torch.Generator().manual_seed(seed))
    table: Any = feature_effects(model, sae, tokens, n_exact=5, n_bootstrap=100)
    exact = table[table["delta_loss"].notna()]
    assert len(exact) == 5
    with torch.no_grad():
        base = model(tokens, return_type="loss")
        for row in exact.itertuples():
            with workbench.attached(model, sae, features={(1, -1, int(row.feature)): 0.0}):
                assert float(model(tokens, return_type="loss") - base) == pytest.approx(row.delta_loss, abs=1e-12)

            def less(acts, slot, feature=int(row.feature)):
                acts = acts.clone()
                acts[..., feature] *= 1 - 1e-6
                return acts

            with workbench.attached(model, sae, edit=less):
                slope = float(model(tokens, return_type="loss") - base) / 1e-6
            assert slope == pytest.approx(row.estimate, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("how", ["max_act", "clamp"])
def test_steering_adds_what_the_feature_would_decode_to(model, tmp_path, norm, how):
    sae = normed_stack(norm, tmp_path, model.cfg.d_model, 0)
    tokens = torch.randint(4096, (2, 12), generator=torch.Generator().manual_seed(1))
    hook, seen = "blocks.1.hook_resid_post", {}
    with torch.no_grad():
        x = model.run_with_cache(tokens, names_filter=hook)[1][hook].flatten(0, 1)
        with workbench.steered(model, sae, (1, -1, 3), how, 2.0, max_act=1.5, include_special=True):
            model.run_with_hooks(tokens, fwd_hooks=[(hook, lambda x, hook: seen.update(out=x))])
        acts = sae.encode(x)
        edited = acts.clone()
        edited[:, 3] = 3.0 if how == "clamp" else acts[:, 3] + 3.0
        expected = x + sae.decode(edited, x) - sae.decode(acts, x)
    torch.testing.assert_close(seen["out"].flatten(0, 1), expected)
    if norm == "none":
        torch.testing.assert_close(expected, steer(x, sae.W_dec[0, 3].detach(), how, 2.0, acts=acts[:, 3], max_act=1.5))
