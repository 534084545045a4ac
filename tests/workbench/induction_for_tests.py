"""A two-layer model whose weights are set by hand so that it does induction by one circuit, and pairs that ask for it.

A previous-token head (layer 0, head 1) writes each token's predecessor into a subspace of its own. The induction head
(layer 1, head 2) looks from a token for positions whose predecessor is the same token, and copies the token there to
the output. All other heads attend and write at random into a subspace that nothing reads; MLPs write nothing.
"""

from __future__ import annotations

import torch

from workbench.data.pairs import PairTokens
from workbench.models import HookedLM, ModelConfig

N_TOKENS, N_CTX, N_REST = 18, 12, 6
PREVIOUS, INDUCTION = (0, 1), (1, 2)  # (layer, head)
SHARPNESS = 8.0  # of attention: a score's distance from all others is some 60, and what leaks is below 1e-20


def induction_model(seed: int = 0) -> HookedLM:
    """The model, in float64."""
    d_model, d_head = 3 * N_TOKENS + N_CTX + N_REST, max(N_TOKENS, N_CTX)
    cfg = ModelConfig(
        n_layers=2, d_model=d_model, n_ctx=N_CTX, d_vocab=N_TOKENS, n_heads=4, d_head=d_head, d_mlp=8, gated_mlp=False,
        act_fn="relu", positional_embedding_type="standard", tie_word_embeddings=False, dtype=torch.float64,
    )  # fmt: skip
    token, previous = slice(0, N_TOKENS), slice(N_TOKENS, 2 * N_TOKENS)
    output, place = slice(2 * N_TOKENS, 3 * N_TOKENS), slice(3 * N_TOKENS, 3 * N_TOKENS + N_CTX)
    model, generator = HookedLM(cfg, seed=seed), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if name.endswith(".w") else 0.0)
        for block in model.blocks:
            for W in (block.attn.W_Q, block.attn.W_K, block.attn.W_V):
                W.copy_(torch.randn(W.shape, generator=generator, dtype=W.dtype) * 0.3)
            rest = torch.randn(*block.attn.W_O.shape[:2], N_REST, generator=generator, dtype=W.dtype)
            block.attn.W_O[:, :, -N_REST:] = 0.02 * rest
        eye, steps = torch.eye(d_head, dtype=torch.float64), torch.eye(N_CTX, dtype=torch.float64)
        model.embed.W_E[:, token] = eye[:N_TOKENS, :N_TOKENS]
        model.pos_embed.W_pos[:, place] = steps
        model.unembed.W_U[output] = eye[:N_TOKENS, :N_TOKENS]
        for layer, head in (PREVIOUS, INDUCTION):
            for W in (model.blocks[layer].attn.W_Q, model.blocks[layer].attn.W_K, model.blocks[layer].attn.W_V):
                W[head] = 0.0
            model.blocks[layer].attn.W_O[head] = 0.0
        first, second = model.blocks[0].attn, model.blocks[1].attn
        first.W_Q[PREVIOUS[1], place, :N_CTX] = SHARPNESS * steps.roll(-1, dims=1)  # a query asks for the place before
        first.W_K[PREVIOUS[1], place, :N_CTX] = steps
        first.W_V[PREVIOUS[1], token, :N_TOKENS] = 0.2 * eye[:N_TOKENS, :N_TOKENS]
        first.W_O[PREVIOUS[1], :N_TOKENS, previous] = eye[:N_TOKENS, :N_TOKENS]
        second.W_Q[INDUCTION[1], token, :N_TOKENS] = SHARPNESS * eye[:N_TOKENS, :N_TOKENS]
        second.W_K[INDUCTION[1], previous, :N_TOKENS] = eye[:N_TOKENS, :N_TOKENS]
        second.W_V[INDUCTION[1], token, :N_TOKENS] = eye[:N_TOKENS, :N_TOKENS]
        second.W_O[INDUCTION[1], :N_TOKENS, output] = eye[:N_TOKENS, :N_TOKENS]
    return model


def induction_pairs(n: int = 16, seed: int = 0) -> PairTokens:
    """… A B … C D … A → B, corrupt … C B … A D … A → D: B and D stay in their places, and only what stands before them
    is exchanged, so that the previous-token head's output decides."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.stack([torch.randperm(N_TOKENS, generator=generator)[:8] for _ in range(n)])
    a, b, c, d, *rest = rows.unbind(1)
    clean = torch.stack([rest[0], a, b, rest[1], c, d, rest[2], rest[3], a], dim=1)
    corrupt = torch.stack([rest[0], c, b, rest[1], a, d, rest[2], rest[3], a], dim=1)
    positions = {"after": torch.full((n,), 2)}
    is_token = torch.ones_like(clean, dtype=torch.bool)
    return PairTokens("induction-by-hand", clean, corrupt, is_token, b[:, None], d[:, None], torch.arange(n), positions)
