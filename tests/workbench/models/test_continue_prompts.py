"""Prompts of several lengths side by side: against growing each alone with plain forwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models_for_tests import ARCHITECTURES, small_model

from workbench.models.generate import continue_prompts

PROMPTS = [[5, 9, 3], [1], [2, 7, 7, 4, 11, 30], [8, 8, 1]]


def uniforms(n_prompts=4, n_new=9, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).random((n_prompts, n_new)))


def grow_alone(model, prompt, n_new, numbers, temperature):
    """One token after the other, each from a whole forward and the naive search through its distribution."""
    tokens = list(prompt)
    for i in range(n_new):
        with torch.no_grad():
            logits = model(torch.tensor([tokens]))[0, -1].float()
        if temperature == 0:
            tokens.append(int(logits.argmax()))
            continue
        probabilities = torch.softmax(logits / temperature, -1).double().tolist()
        so_far, wanted, chosen = 0.0, float(numbers[i]) * sum(probabilities), len(probabilities) - 1
        for token, p in enumerate(probabilities):
            so_far += p
            if so_far > wanted:
                chosen = token
                break
        tokens.append(chosen)
    return tokens[len(prompt) :]


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
@pytest.mark.parametrize("temperature", [0, 0.7])
def test_each_prompt_grows_as_it_would_alone(kind, temperature):
    model, numbers = small_model(kind).double(), uniforms()
    found = continue_prompts(model, PROMPTS, 9, numbers, temperature=temperature)
    wanted = [grow_alone(model, p, 9, row, temperature) for p, row in zip(PROMPTS, numbers, strict=True)]
    assert found == wanted


def test_a_text_ends_at_its_stop_and_the_others_go_on():
    model, numbers = small_model("janus-v3").double(), uniforms()
    free = continue_prompts(model, PROMPTS, 9, numbers)
    stop = free[2][4]
    stopped = continue_prompts(model, PROMPTS, 9, numbers, stop_at=stop)
    assert stopped == [row[: row.index(stop)] if stop in row else row for row in free]
    assert len(stopped[2]) <= 4
    several = {stop, free[0][2], 10**6}
    wanted = [row[: next((i for i, token in enumerate(row) if token in several), len(row))] for row in free]
    assert continue_prompts(model, PROMPTS, 9, numbers, stop_at=several) == wanted


def test_draws_follow_the_distribution():
    model = small_model("janus-v3")
    n = 4000
    found = continue_prompts(model, [[3, 1, 4]] * n, 1, uniforms(n, 1), temperature=1.5)
    with torch.no_grad():
        wanted = torch.softmax(model(torch.tensor([[3, 1, 4]]))[0, -1] / 1.5, -1)
    share = torch.bincount(torch.tensor(found)[:, 0], minlength=model.cfg.d_vocab) / n
    torch.testing.assert_close(share, wanted, atol=0.032, rtol=0)  # four standard errors of a share of 4,000 draws


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": []}, "prompts: got none"),
        ({"prompts": [[1], []]}, "prompts: 0 to 1 tokens long; expected 1 to 15"),
        (
            {"prompts": [[1], [1] * 16]},
            "1 to 16 tokens long; expected 1 to 15, 9 new tokens short of the model's n_ctx = 24",
        ),
        ({"max_new_tokens": 0}, "max_new_tokens: got 0"),
        ({"temperature": -0.1}, "temperature: got -0.1"),
        ({"uniforms": uniforms(3)}, r"uniforms: shape \[3, 9\]; expected \[4, 9\]"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    settings = {"prompts": PROMPTS, "max_new_tokens": 9, "uniforms": uniforms()} | arguments
    with pytest.raises(ValueError, match=message):
        continue_prompts(small_model("janus-v3"), **settings)
