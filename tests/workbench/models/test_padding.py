"""Texts of unequal lengths side by side: against each text alone, and TransformerLens under the same mask."""

from __future__ import annotations

import pytest
import torch
from models_for_tests import ARCHITECTURES, small_model, tokens_for, worded_model

from workbench.models import Extensions, KeyValueCache, layers
from workbench.models.config import RopeScaling
from workbench.models.generate import continue_texts, generate
from workbench.models.hooks import MAPS
from workbench.models.masks import pad_rows
from workbench.models.tokenizer_files import decode_continuation, pad_id
from workbench.models.transformer_lens import to_hooked_transformer

KINDS = sorted(set(ARCHITECTURES) - {"recurrent"})
SIDES = ("left", "right", "both", "within")
TEXTS = [tokens_for(small_model("janus-v3"), 1, n, seed=n)[0].tolist() for n in (16, 11, 5)]
PAD = 7  # stands in texts as well
WORDS = ["The old man came down", "It is a truth universally acknowledged, that", "Once"]


def padded(side, texts=TEXTS):
    """(tokens, mask) of the texts in 20 positions; "within" has two of padding behind each text's third token."""
    tokens, mask = pad_rows([*texts, [PAD] * 20], PAD, side if side in ("left", "right") else "right")
    tokens, mask = tokens[:-1], mask[:-1]
    if side == "both":
        tokens, mask = (torch.stack([row.roll(2) for row in x]) for x in (tokens, mask))
    elif side == "within":
        order = [*range(3), 18, 19, *range(3, 18)]
        tokens, mask = tokens[:, order], mask[:, order]
    return tokens, mask


def alone(model, function=lambda model, tokens: model(tokens)[0], texts=TEXTS):
    return [function(model, torch.tensor([text])) for text in texts]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@torch.no_grad()
def test_a_text_reads_as_it_does_alone(kind, dtype, tolerance):
    model = small_model(kind).to(dtype)
    wanted = torch.cat(alone(model))
    for side in SIDES:
        tokens, mask = padded(side)
        found = model(tokens, attention_mask=mask.long())
        assert bool(found.isfinite().all())
        # logits here are of size 10
        torch.testing.assert_close(found[mask], wanted, atol=tolerance * float(wanted.abs().max()), rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["left", "within"])
@torch.no_grad()
def test_every_hook_shows_what_it_shows_of_a_text_alone(kind, side):
    model = small_model(kind).double()
    tokens, mask = padded(side)
    settings = {"names_filter": lambda name: True, "return_cache_object": False}
    logits, found = model.run_with_cache(tokens, attention_mask=mask, **settings)
    torch.testing.assert_close(logits, model(tokens, attention_mask=mask), atol=1e-11, rtol=0)
    for i, (_, wanted) in enumerate(alone(model, lambda model, t: model.run_with_cache(t, **settings))):
        for name, activation in found.items():
            assert not bool(activation.isnan().any()), name
            own = activation[i]
            if name.endswith(MAPS):
                own = own[:, mask[i]]
                masked = -torch.inf if name.endswith("scores") else 0.0
                assert bool((own[..., ~mask[i]] == masked).all()), name
                own = own[..., mask[i]]
            else:
                own = own[mask[i]]
            torch.testing.assert_close(own, wanted[name][0], atol=1e-11, rtol=0, msg=name)
        pattern = found["blocks.1.attn.hook_pattern"][i][:, mask[i]]
        torch.testing.assert_close(pattern.sum(-1), torch.ones_like(pattern[..., 0]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["left", "within"])
@torch.no_grad()
def test_a_cache_keeps_the_padding(kind, side):
    model = small_model(kind).double()
    tokens, mask = padded(side)
    cache, more = KeyValueCache(24), tokens_for(model, 3, 4)
    parts = [
        model(tokens[:, a:b], past_kv_cache=cache, attention_mask=mask[:, a:b])
        for a, b in ((0, 6), (6, 7), (7, 20))  # the first of them padding alone in a row
    ]
    parts += [model(more[:, a:b], past_kv_cache=cache) for a, b in ((0, 1), (1, 4))]  # tokens alone: no mask
    texts = [text + new for text, new in zip(TEXTS, more.tolist(), strict=True)]
    is_token = torch.cat((mask, torch.ones_like(more).bool()), dim=1)
    wanted = torch.cat(alone(model, texts=texts))
    torch.testing.assert_close(torch.cat(parts, dim=1)[is_token], wanted, atol=1e-11, rtol=0)


@torch.no_grad()
def test_padding_may_come_after_calls_without_any():
    model = small_model("janus-v3").double()
    tokens, mask = padded("left")
    start = tokens_for(model, 3, 4, seed=5)
    cache = KeyValueCache(24)
    model(start, past_kv_cache=cache)
    found = model(tokens, past_kv_cache=cache, attention_mask=mask)[mask]
    texts = [a + b for a, b in zip(start.tolist(), TEXTS, strict=True)]
    torch.testing.assert_close(found, torch.cat([x[4:] for x in alone(model, texts=texts)]), atol=1e-11, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_without_padding_changes_no_bit(kind):
    model, tokens = small_model(kind), tokens_for(small_model(kind))
    ones = torch.ones_like(tokens)
    for return_type in ("logits", "loss"):
        wanted = model(tokens, return_type=return_type)
        assert torch.equal(model(tokens, return_type=return_type, attention_mask=ones), wanted)


def test_without_padding_no_mask_is_made(monkeypatch):
    monkeypatch.setattr(layers, "causal", lambda *_: pytest.fail("a mask was made"))
    model = small_model("janus-v3")
    cache = KeyValueCache(24)
    model(tokens_for(model), past_kv_cache=cache, attention_mask=torch.ones(2, 16, dtype=torch.bool))
    model(tokens_for(model, pos=1), past_kv_cache=cache)
    assert cache.is_token is None


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_forward_goes_on_from_a_padded_state(kind):
    model = small_model(kind)
    tokens, mask = padded("left")
    wanted, losses = model(tokens, attention_mask=mask, return_type="both", loss_per_token=True)
    state = model(tokens, attention_mask=mask, stop_at_layer=1)
    settings = {"start_at_layer": 1, "attention_mask": mask, "tokens": tokens, "return_type": "both"}
    logits, again = model(state, loss_per_token=True, **settings)
    assert torch.equal(logits, wanted)
    assert torch.equal(again, losses)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["left", "both"])
def test_loss_and_gradient_are_those_of_the_texts(kind, side):
    model = small_model(kind).double()
    tokens, mask = padded(side)
    per_token = alone(model, lambda model, t: model(t, return_type="loss", loss_per_token=True)[0])
    wanted = torch.cat(per_token).mean()
    wanted.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    loss = model(tokens, return_type="loss", attention_mask=mask)
    loss.backward()
    torch.testing.assert_close(loss, wanted)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-10, rtol=1e-8, msg=name)
    losses = model(tokens, return_type="loss", loss_per_token=True, attention_mask=mask)
    is_pair = mask[:, 1:] & mask[:, :-1]
    torch.testing.assert_close(losses[is_pair], torch.cat(per_token))
    assert bool((losses[~is_pair] == 0).all())
    first = torch.zeros_like(is_pair, dtype=torch.float64)
    first[0] = 1
    of_first = model(tokens, return_type="loss", attention_mask=mask, loss_mask=first)
    torch.testing.assert_close(of_first, per_token[0].mean())


@pytest.mark.parametrize("watched", [False, True])
def test_float32_gradients_are_finite(watched):
    model = small_model("normed-twice" if watched else "kotodama")
    tokens, mask = padded("left")
    hooks = [(lambda name: name.endswith(MAPS), lambda x, hook: x)] if watched else []
    with model.hooks(fwd_hooks=hooks):
        model(tokens, return_type="loss", attention_mask=mask).backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


@torch.no_grad()
def test_longrope_is_chosen_for_each_text_by_its_own_length():
    factors = {"short_factor": (1.0, 1.1, 1.2, 1.3), "long_factor": (2.0, 2.5, 3.0, 4.0)}
    rope = RopeScaling(rope_type="longrope", original_max_position_embeddings=11, **factors)
    model = small_model("janus-v3", rotary_adjacent_pairs=False, extensions=Extensions(rope=rope)).double()
    wanted = torch.cat(alone(model))
    for side in SIDES:  # one text is longer than the original context, one is as long as it, one shorter
        tokens, mask = padded(side)
        torch.testing.assert_close(model(tokens, attention_mask=mask)[mask], wanted, atol=1e-11, rtol=0)


@pytest.mark.parametrize("kind", ["janus-small", "janus-v3", "kotodama", "untied-softcap"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@torch.no_grad()
def test_logits_and_losses_are_those_of_transformer_lens(kind):
    model = small_model(kind)
    hooked = to_hooked_transformer(model)
    for side in SIDES:
        tokens, mask = padded(side)
        settings = {"return_type": "both", "attention_mask": mask.long()}
        (logits, loss), (their_logits, their_loss) = model(tokens, **settings), hooked(tokens, **settings)
        assert float((logits - their_logits)[mask].abs().max()) < 1e-4
        assert float(loss) == pytest.approx(float(their_loss), abs=1e-4)
        losses, theirs = (m(tokens, **settings, loss_per_token=True)[1] for m in (model, hooked))
        torch.testing.assert_close(losses, theirs, atol=1e-4, rtol=0)


# --- generation


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("use_cache", [True, False])
def test_a_padded_prompt_grows_as_it_would_alone(kind, use_cache):
    model = small_model(kind).double()
    tokens, mask = pad_rows(TEXTS, PAD, "left")
    found = generate(model, tokens, 8, temperature=0, use_cache=use_cache, attention_mask=mask)
    for row, own, text in zip(found, mask, TEXTS, strict=True):
        single = generate(model, torch.tensor([text]), 8, temperature=0)[0]
        assert torch.equal(row[: len(own)][own], torch.tensor(text))
        assert torch.equal(row[len(own) :], single[len(text) :])


def test_each_prompt_ends_at_its_own_stop():
    model = small_model("janus-v3").double()
    tokens, mask = pad_rows(TEXTS, PAD, "left")
    free = generate(model, tokens, 8, temperature=0, attention_mask=mask)[:, 16:].tolist()
    stop = free[1][3]
    found = generate(model, tokens, 8, temperature=0, attention_mask=mask, stop_at=stop)[:, 16:].tolist()
    for row_free, row in zip(free, found, strict=True):
        end = row_free.index(stop) if stop in row_free else 8
        assert row[: end + 1] == row_free[: end + 1]
        assert set(row[end + 1 :]) <= {stop}


def test_draws_under_padding_do_not_depend_on_the_cache():
    model = small_model("kotodama").double()
    tokens, mask = pad_rows(TEXTS, PAD, "left")
    draws = [
        generate(
            model, tokens, 8, use_cache=c, attention_mask=mask, top_k=9, generator=torch.Generator().manual_seed(0)
        )
        for c in (True, False)
    ]
    assert torch.equal(*draws)


def test_texts_are_continued_as_each_alone():
    model = worded_model("janus-v3").double()
    free = continue_texts(model, WORDS, 6, temperature=0)
    assert free == [continue_texts(model, [text], 6, temperature=0)[0] for text in WORDS]
    tokens = model.to_tokens(WORDS[0])
    grown = generate(model, tokens, 6, temperature=0)[0].tolist()
    n_prompt = tokens.shape[1]
    assert free[0] == decode_continuation(model.tokenizer, grown[:n_prompt], grown[n_prompt:])
    stopped = continue_texts(model, WORDS, 6, temperature=0, stop_at=grown[n_prompt + 2])
    n_kept = grown[n_prompt:].index(grown[n_prompt + 2])
    assert stopped[0] == decode_continuation(model.tokenizer, grown[:n_prompt], grown[n_prompt : n_prompt + n_kept])


# --- texts


@pytest.mark.parametrize("side", [None, "left", "right"])
@torch.no_grad()
def test_texts_come_with_their_mask(side):
    model = worded_model("janus-v3")
    tokens, mask = model.to_batch(WORDS, padding_side=side)
    assert torch.equal(tokens, model.to_tokens(WORDS, padding_side=side))
    assert mask.dtype == torch.bool
    for row, own, text in zip(tokens, mask, WORDS, strict=True):
        assert torch.equal(row[own], model.to_tokens(text)[0])
        assert set(row[~own].tolist()) <= {pad_id(model.tokenizer)}
        assert bool(own[0 if side != "left" else -1]), "the text stands at the other side"
    wanted = torch.cat([model(text)[0] for text in WORDS])
    torch.testing.assert_close(model(tokens, attention_mask=mask)[mask], wanted, atol=1e-5, rtol=1e-4)
    if side != "left":
        torch.testing.assert_close(model(tokens)[mask], wanted, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(model(WORDS)[mask], wanted, atol=1e-5, rtol=1e-4)
    loss = model(WORDS, return_type="loss")
    torch.testing.assert_close(loss, model(tokens, return_type="loss", attention_mask=mask))
    assert float(loss) != pytest.approx(float(model(tokens, return_type="loss")), abs=1e-4)


def test_one_text_and_equal_ones_have_no_padding():
    model = worded_model("janus-v3")
    for texts in ("Once", ["Once"], ["Once", "Once"]):
        tokens, mask = model.to_batch(texts, padding_side="left")
        assert bool(mask.all())
        assert torch.equal(tokens, model.to_tokens(texts))


def test_the_tokenizers_own_token_pads():
    model = worded_model("janus-v3")
    tokenizer = model.tokenizer
    assert tokenizer.pad_token is None
    assert pad_id(tokenizer) == tokenizer.eos_token_id
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(100)
    assert model.to_tokens(WORDS)[2, -1] == 100


def test_bad_texts_are_named():
    model = worded_model("janus-v3")
    with pytest.raises(ValueError, match="padding_side: got 'middle'; expected 'left' or 'right'"):
        model.to_tokens(WORDS, padding_side="middle")
    with pytest.raises(ValueError, match="texts: got 'Once'; expected a list"):
        continue_texts(model, "Once")
    model.tokenizer.eos_token = model.tokenizer.pad_token = None
    with pytest.raises(ValueError, match="tokens long, and the tokenizer names neither pad_token nor eos_token"):
        model.to_tokens(WORDS, prepend_bos=False)


# --- what is refused

T, M = padded("right")
BAD_MASKS = {
    "shape": (lambda m: m(T, attention_mask=M[:, :-1]), r"got shape \[3, 19\]; expected \[batch pos\] = \[3, 20\]"),
    "all keys of a cache": (
        lambda m: [m(T, past_kv_cache=(c := KeyValueCache(24))), m(T[:, :1], past_kv_cache=c, attention_mask=M)],
        r"got shape \[3, 20\]; expected \[batch pos\] = \[3, 1\], as the new tokens",
    ),
    "floats": (lambda m: m(T, attention_mask=M.float()), "got torch.float32; expected booleans or integers"),
    "values": (lambda m: m(T, attention_mask=M.long() * 2), "got the value 2; expected 1 at a token and 0 at padding"),
    "negative": (lambda m: m(T, attention_mask=M.long() - 1), "got the value -1"),
    "nothing": (lambda m: m(T, attention_mask=M & (torch.arange(3) != 1)[:, None]), "got padding alone in row 1"),
    "no pair": (
        lambda m: m(T, return_type="loss", attention_mask=torch.eye(3, 20, dtype=torch.bool)),
        "got no two tokens side by side",
    ),
    "behind a prompt": (
        lambda m: generate(m, T, 2, temperature=0, attention_mask=M),
        "got padding behind the prompt in row 0; expected it in front",
    ),
}


@pytest.mark.parametrize("case", BAD_MASKS)
def test_bad_masks_are_named(case):
    call, message = BAD_MASKS[case]
    with pytest.raises(ValueError, match=f"^attention_mask: {message}"):
        call(small_model("janus-v3"))


def test_a_padded_prompt_needs_room_in_the_context():
    tokens, mask = pad_rows(TEXTS, PAD, "left")
    message = (
        "the longest of the padded prompts has 16 tokens; expected at most 14, max_new_tokens short of .* n_ctx = 24"
    )
    with pytest.raises(ValueError, match=message):
        generate(small_model("janus-v3"), tokens, 10, temperature=0, attention_mask=mask)


def test_another_batch_than_the_caches_is_refused():
    model, cache = small_model("janus-v3"), KeyValueCache(24)
    model(T, past_kv_cache=cache, attention_mask=M)
    with pytest.raises(ValueError, match="past_kv_cache: got 2 sequences; expected 3, as in earlier calls"):
        model(T[:2, :1], past_kv_cache=cache)


@torch.no_grad()
def test_a_recurrent_model_takes_padding_on_the_right_without_a_mask():
    model = small_model("recurrent").double()
    assert torch.equal(model(T, attention_mask=torch.ones_like(T)), model(T))
    torch.testing.assert_close(model(T)[M], torch.cat(alone(model)), atol=1e-11, rtol=0)
    with pytest.raises(ValueError, match="^attention_mask: got padding in a recurrent model"):
        model(T, attention_mask=M)
    with pytest.raises(ValueError, match="^attention_mask: got padding in a recurrent model"):
        generate(model, *pad_rows(TEXTS, PAD, "left")[:1], 2, temperature=0, attention_mask=padded("left")[1][:, 4:])
