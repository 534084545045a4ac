"""The model on a CUDA device: logits, gradients, hooks, generation, and TransformerLens beside it."""

from __future__ import annotations

import pytest
import torch
from models_for_tests import ARCHITECTURES, small_config, small_model, tokens_for

from workbench.models import Extensions, HookedLM
from workbench.models.generate import generate
from workbench.models.transformer_lens import to_hooked_transformer

# float64: sums in another order; float32: the same, over logits of size ~10
TOLERANCE = {torch.float64: {"rtol": 1e-10, "atol": 1e-10}, torch.float32: {"rtol": 1e-3, "atol": 1e-4}}


def on_both(kind: str, dtype: torch.dtype):
    """The same model twice, and tokens for it: on the CPU, on the device."""
    ours = small_model(kind).to(dtype)
    tokens = tokens_for(ours)
    return (ours, tokens), (small_model(kind).to("cuda", dtype), tokens.cuda())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_logits_and_gradients_are_the_cpus(kind: str, dtype: torch.dtype) -> None:
    found = []
    for model, tokens in on_both(kind, dtype):
        logits = model(tokens)
        loss = model(tokens, return_type="loss", z_loss=1e-4)
        loss.backward()
        grads = {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}
        found.append((logits.detach().cpu(), loss.detach().cpu(), grads))
    (logits, loss, grads), (their_logits, their_loss, their_grads) = found
    torch.testing.assert_close(their_logits, logits, **TOLERANCE[dtype])
    torch.testing.assert_close(their_loss, loss, **TOLERANCE[dtype])
    assert grads.keys() == their_grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(their_grads[name], grad, **TOLERANCE[dtype], msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_activation_is_the_cpus(kind: str) -> None:
    caches = []
    for model, tokens in on_both(kind, torch.float64):
        with torch.no_grad():
            caches.append(model.run_with_cache(tokens)[1])
    assert caches[0].keys() == caches[1].keys()
    for name in caches[0]:
        torch.testing.assert_close(caches[1][name].cpu(), caches[0][name], **TOLERANCE[torch.float64])


@pytest.mark.parametrize("kind", ARCHITECTURES)
@torch.no_grad()
def test_bfloat16_stays_near(kind: str) -> None:
    model = small_model(kind).cuda()
    tokens = tokens_for(model, batch=8).cuda()
    exact = model(tokens, return_type="loss")
    with torch.autocast("cuda", torch.bfloat16):
        rounded = model(tokens, return_type="loss")
    assert rounded.dtype == torch.float32
    # activations carry 8 bits, so logits of size ~10 are off by a few hundredths, their mean by less
    assert abs(float(rounded - exact)) < 0.05 * float(exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_odd_widths_are_padded_without_a_trace(dtype: torch.dtype, biased: bool) -> None:
    """61 tokens and 85 neurons: logits, losses and gradients are those of the same model whose hooks are watched."""
    extensions = Extensions(mlp_bias=biased)
    cfg = small_config("janus-v3", d_mlp=85, extensions=extensions, tie_word_embeddings=not biased)
    model = HookedLM(cfg).cuda()
    tokens = tokens_for(model, batch=4).cuda()
    seen, found = [], []

    def see(activation, hook) -> None:
        seen.append(activation.shape[-1])

    for hooks in ([], [(f"blocks.{i}.mlp.hook_post", see) for i in range(3)]):
        with model.hooks(fwd_hooks=hooks), torch.autocast("cuda", dtype, enabled=dtype == torch.bfloat16):
            loss = model(tokens, return_type="loss", z_loss=1e-3)
            per_token = model(tokens, return_type="loss", loss_per_token=True)
        loss.backward()
        found.append((loss.detach(), per_token.detach(), {n: p.grad for n, p in model.named_parameters()}))
        model.zero_grad(set_to_none=True)
    assert set(seen) == {85}
    near = {"rtol": 3e-2, "atol": 3e-3} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-6}
    (loss, per_token, grads), (own_loss, own_per_token, own_grads) = found
    torch.testing.assert_close(loss, own_loss, **near)
    torch.testing.assert_close(per_token, own_per_token, **near)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, own_grads[name], **near, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("kind", ["janus-v3", "kotodama", "attn-res", "recurrent"])
@torch.no_grad()
def test_a_forward_goes_on_from_a_stored_state(kind: str) -> None:
    model = small_model(kind).to("cuda", torch.float64)
    tokens = tokens_for(model).cuda()
    whole = model(tokens)
    state = model(tokens, stop_at_layer=1)
    torch.testing.assert_close(model(state, start_at_layer=1), whole, **TOLERANCE[torch.float64])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["janus-small", "janus-v3", "kotodama"])
@torch.no_grad()
def test_transformer_lens_agrees(kind: str) -> None:
    model = small_model(kind)
    theirs = to_hooked_transformer(model).to("cuda")
    ours, tokens = model.to("cuda"), tokens_for(model).cuda()
    torch.testing.assert_close(ours(tokens), theirs(tokens), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["janus-v3", "kotodama"])
def test_greedy_text_with_and_without_cache(kind: str) -> None:
    model = small_model(kind).to("cuda", torch.float64)
    tokens = tokens_for(model, batch=1, pos=4).cuda()
    texts = [generate(model, tokens, 12, temperature=0.0, use_cache=use) for use in (True, False)]
    assert torch.equal(*texts)


def test_the_config_follows_the_weights() -> None:
    model = small_model("janus-v3").to("cuda")
    assert torch.device(model.cfg.device).type == "cuda"
    assert torch.device(model.cpu().cfg.device).type == "cpu"
