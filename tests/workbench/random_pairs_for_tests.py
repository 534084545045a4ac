"""Pairs of random prompts, for tests of what reads any pairs."""

from __future__ import annotations

import torch

from workbench.data.pairs import PairTokens


def pairs_for(model, n: int = 3, n_pos: int = 9, seed: int = 0) -> PairTokens:
    """Random prompts of unequal lengths that differ in some tokens from the third on."""
    g = torch.Generator().manual_seed(seed)
    clean = torch.randint(0, model.cfg.d_vocab, (n, n_pos), generator=g)
    corrupt = clean.clone()
    corrupt[:, 3:6] = torch.randint(0, model.cfg.d_vocab, (n, 3), generator=g)
    corrupt[:, 3] = (clean[:, 3] + 1) % model.cfg.d_vocab
    lengths = torch.tensor([n_pos - i % 2 for i in range(n)])
    ids = torch.stack([torch.randperm(model.cfg.d_vocab, generator=g)[:2] for _ in range(n)])
    positions = {"changed": torch.full((n,), 3)}
    is_token = torch.arange(n_pos) < lengths[:, None]
    return PairTokens("by-hand", clean, corrupt, is_token, ids[:, :1], ids[:, 1:], torch.arange(n), positions)
