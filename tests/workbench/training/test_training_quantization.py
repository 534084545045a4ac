"""The int8 form of a model and what comes back from it."""

from __future__ import annotations

import zlib

import pytest
import torch
from models_for_tests import ARCHITECTURES, small_model, tokens_for

from workbench.training.quantization import (
    LARGEST,
    dequantize_rows,
    int8_distance,
    pack_model,
    quantize_rows,
    unpack_model,
)


def test_rows_come_back_within_half_a_step():
    W = torch.randn(20, 33, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 3, 20)[:, None]
    W[3] = 0
    q, scale = quantize_rows(W)
    assert q.dtype == torch.int8
    assert scale.dtype == torch.float16
    assert int(q.abs().max()) == LARGEST
    normal = scale.float() > 6.2e-5  # below, float16 has fewer digits for the scale itself
    back = dequantize_rows(q, scale)
    # half a step, and what the largest entry loses where float16 rounded the scale down
    limit = scale.float()[:, None] * (0.5 + LARGEST * 2**-11)
    assert bool(((W - back).abs() <= limit)[normal].all())
    assert torch.equal(back[3], torch.zeros(33))
    again, same = quantize_rows(back)
    assert torch.equal(again[normal], q[normal])


def test_weights_that_int8_cannot_hold_are_named():
    model = small_model("recurrent")
    with torch.no_grad():
        model.get_parameter("unique_blocks.1.mlp.W_in")[0, 0] = 1e9
    with pytest.raises(ValueError, match=r"unique_blocks.1.mlp.W_in reaches 1e\+09; expected finite weights"):
        pack_model(model)
    model = small_model("recurrent")
    with torch.no_grad():
        model.ln_final.w[0] = 1e6
    with pytest.raises(ValueError, match=r"ln_final.w reaches 1e\+06; expected at most 65504"):
        pack_model(model)


def test_the_distance_pulls_towards_the_grid():
    model = small_model("recurrent")
    distance = int8_distance(model)
    distance.backward()
    W = model.get_parameter("unique_blocks.0.mlp.W_in")
    rows = W.detach().T
    error = rows - dequantize_rows(*quantize_rows(rows))
    n = sum(p.numel() for name, p in model.named_parameters() if name.rsplit(".", 1)[-1].lstrip("_").startswith("W_"))
    torch.testing.assert_close(W.grad, (error.sign() / n).T)


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_a_packed_model_comes_back(kind):
    model = small_model(kind)
    data = pack_model(model)
    again = unpack_model(data)
    assert again.cfg == model.cfg
    for name, parameter in model.named_parameters():
        difference = (again.get_parameter(name) - parameter).detach().abs().max()
        assert float(difference) <= 0.006 * float(parameter.detach().abs().max()), name
    assert torch.equal(unpack_model(pack_model(again))(tokens_for(model)), again(tokens_for(model)))
    n_large = sum(p.numel() for p in model.parameters())
    assert len(data) < 2 * n_large + 4000


@pytest.mark.parametrize("damage", ["cut", "other", "header", "short"])
def test_packed_models_that_are_no_such(damage):
    data = pack_model(small_model("janus-v3"))
    raw = zlib.decompress(data)
    bad = {
        "cut": data[:-40],
        "other": b"not zlib",
        "header": zlib.compress((4).to_bytes(8, "little") + b"null"),
        "short": zlib.compress(raw[:-100]),
    }[damage]
    with pytest.raises(ValueError, match="packed model"):
        unpack_model(bad)
