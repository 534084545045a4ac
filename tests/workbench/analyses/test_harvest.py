"""Streams and shards: the right activations, in an order that loses nothing, and nothing altered goes unseen."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from models_for_tests import small_model, tokens_for

from workbench import runs
from workbench.analyses.harvest import storing
from workbench.analyses.harvest.storing import harvest
from workbench.analyses.sae_train.head_saes import sae_train
from workbench.data.shards import open_shards, read_shards
from workbench.models import layers
from workbench.models.streams import default_batch_size, stream
from workbench.models.transformer_lens import to_hooked_transformer

pytestmark = pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
Z0, Z1, RESID = "blocks.0.attn.hook_z", "blocks.1.attn.hook_z", "blocks.1.hook_resid_post"
HOOKS = [Z0, RESID, "hook_embed"]


def cached(model, tokens):
    return model.run_with_cache(tokens)[1]


@pytest.mark.parametrize("kind", ["janus-small", "kotodama", "attn-res"])
@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_a_stream_is_the_cache_cut_into_batches(kind, batch_size):
    model = small_model(kind)
    tokens = tokens_for(model, 5)
    cache = cached(model, tokens)
    batches = list(stream(model, tokens, HOOKS, batch_size))
    assert all(list(batch) == HOOKS for batch in batches)
    for name in HOOKS:
        together = torch.cat([batch[name] for batch in batches])
        assert not together.requires_grad
        torch.testing.assert_close(together, cache[name], atol=1e-5, rtol=1e-5)  # the batch size moves float32 sums


def test_a_stream_runs_no_layer_that_it_does_not_need():
    model = small_model("janus-v3")
    ran = []
    for layer, block in enumerate(model.blocks):
        block.hook_resid_pre.add_hook(lambda tensor, hook, layer=layer: ran.append(layer))
    next(stream(model, tokens_for(model), [Z0]))
    assert ran == [0]
    ran.clear()
    next(stream(model, tokens_for(model), ["hook_embed"]))
    assert ran == []
    next(stream(model, tokens_for(model), [Z1, "hook_embed"]))
    assert ran == [0, 1]


def test_hooks_behind_the_last_block_can_be_streamed():
    model = small_model("attn-res")
    tokens = tokens_for(model)
    cache = cached(model, tokens)
    names = ["ln_final.hook_normalized", "hook_route_final"]
    batch = next(stream(model, tokens, names))
    for name in names:
        torch.testing.assert_close(batch[name], cache[name])


def test_a_stream_leaves_gradients_on_for_its_reader():
    model = small_model("janus-v3")
    for _ in stream(model, tokens_for(model), [Z0]):
        assert torch.is_grad_enabled()


def test_a_transformer_lens_model_streams_the_same():
    model = small_model("kotodama")
    tokens = tokens_for(model, 3)
    ours = next(stream(model, tokens, [Z0, RESID]))
    theirs = next(stream(to_hooked_transformer(model), tokens, [Z0, RESID]))
    for name in (Z0, RESID):
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("shard_bytes", [1, 20_000, 1 << 20])
def test_every_token_has_one_row_that_says_where_it_stood(tmp_path, seed, shard_bytes):
    model = small_model("janus-v3")
    tokens = tokens_for(model, 7)
    shards = harvest(model, tokens, HOOKS, tmp_path / "h", seed=seed, shard_bytes=shard_bytes)
    cache = cached(model, tokens)
    parts = list(read_shards(tmp_path / "h"))
    assert len(parts) == len(shards.shards) == {1: 7, 20_000: 3, 1 << 20: 1}[shard_bytes]
    together = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    where = together["sequence"], together["position"]
    assert sorted(zip(*(w.tolist() for w in where), strict=True)) == [(s, p) for s in range(7) for p in range(16)]
    assert torch.equal(together["token"], tokens[where])
    for name in HOOKS:
        torch.testing.assert_close(together[name], cache[name][where], atol=1e-5, rtol=1e-5)
    assert together["sequence"].tolist() != sorted(together["sequence"].tolist())
    assert shards.n_tokens == 7 * 16
    assert shards.hooks == {Z0: (4, 8), RESID: (32,), "hook_embed": (32,)}


def test_the_order_is_the_seeds(tmp_path):
    orders = []
    model = small_model("janus-v3")
    for number, seed in enumerate((0, 0, 1)):
        out = tmp_path / str(number)
        harvest(model, tokens_for(model, 4), [Z0], out, seed=seed)
        part = next(read_shards(out))
        orders.append((part["sequence"] * 16 + part["position"]).tolist())
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_activations_are_stored_in_the_dtype_asked_for(tmp_path, dtype):
    model = small_model("janus-v3")
    tokens = tokens_for(model, 3)
    harvest(model, tokens, [Z0], tmp_path / "h", dtype=dtype)
    part = next(read_shards(tmp_path / "h", [Z0]))
    assert str(part[Z0].dtype) == f"torch.{dtype}"
    want = cached(model, tokens)[Z0][part["sequence"], part["position"]].to(part[Z0].dtype)
    torch.testing.assert_close(part[Z0], want, atol=1e-2, rtol=1e-2)


def test_activations_that_would_be_stored_as_infinite_are_refused(tmp_path):
    model = small_model("janus-v3")
    tokens = tokens_for(model, 5)
    with torch.no_grad():
        model.blocks[1].mlp.W_out *= 1e5
    message = (
        r"harvest: blocks.1.hook_resid_post has \d+ nan or inf from sequence \d on in float16, which ends at 65504"
    )
    with pytest.raises(ValueError, match=message):
        harvest(model, tokens, [Z0, RESID], tmp_path / "h", dtype="float16")
    (kept,) = read_shards(harvest(model, tokens, [RESID], tmp_path / "b", dtype="bfloat16").path)
    assert bool(kept[RESID].isfinite().all())
    assert float(kept[RESID].abs().max()) > 65504
    with torch.no_grad():
        model.embed.W_E[tokens[3, 0]] = torch.nan
    with pytest.raises(
        ValueError, match=r"hook_resid_post has \d+ nan or inf from sequence \d on; expected finite act"
    ):
        harvest(model, tokens, [RESID], tmp_path / "n")


def test_a_killed_harvest_goes_on_and_comes_out_the_same(tmp_path, monkeypatch):
    model = small_model("janus-v3")
    tokens = tokens_for(model, 6)
    harvest(model, tokens, HOOKS, tmp_path / "whole", shard_bytes=1)

    class Killed(BaseException):
        pass

    def kill_at_half(share):
        if share >= 0.5:
            raise Killed

    with pytest.raises(Killed):
        harvest(model, tokens, HOOKS, tmp_path / "cut", shard_bytes=1, on_progress=kill_at_half)
    assert not (tmp_path / "cut").exists()
    written = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "cut.partial").glob("shard_*")}
    assert len(written) == 3
    with pytest.raises(ValueError, match="unfinished run; expected --resume"):
        harvest(model, tokens, HOOKS, tmp_path / "cut", shard_bytes=1)
    calls = []
    stream_once = storing.stream
    monkeypatch.setattr(storing, "stream", lambda *a, **k: calls.append(1) or stream_once(*a, **k))
    harvest(model, tokens, HOOKS, tmp_path / "cut", shard_bytes=1, resume=True)
    assert len(calls) == 1 + 3, "one look at the shapes, and the three shards that were missing"
    for name, time in written.items():
        assert (tmp_path / "cut" / name).stat().st_mtime_ns == time
    for file in sorted((tmp_path / "whole").glob("shard*")):
        assert file.read_bytes() == (tmp_path / "cut" / file.name).read_bytes(), file.name


def test_a_finished_harvest_is_returned_and_another_model_refused(tmp_path):
    model = small_model("janus-v3")
    tokens = tokens_for(model, 3)
    first = harvest(model, tokens, [Z0], tmp_path / "h")
    assert harvest(model, tokens, [Z0], tmp_path / "h", resume=True) == first
    with pytest.raises(ValueError, match="resume: model_sha256 is"):
        harvest(small_model("janus-v3", seed=1), tokens, [Z0], tmp_path / "h", resume=True)
    with pytest.raises(ValueError, match="resume: tokens_sha256 is"):
        harvest(model, tokens.flip(0), [Z0], tmp_path / "h", resume=True)
    with pytest.raises(ValueError, match="already exists"):
        harvest(model, tokens, [Z0], tmp_path / "h")
    assert runs.verify_manifest(tmp_path / "h")["files"].keys() >= {"shards.json", "shard_00000.safetensors"}


def flip(file):
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: flip(d / "shard_00001.safetensors"), r"shard_00001\.safetensors is altered, sha256"),
        (
            lambda d: (d / "shard_00001.safetensors").unlink(),
            r"shard_00001\.safetensors is missing; expected \d+ bytes",
        ),
        (
            lambda d: (d / "shard_00001.safetensors").write_bytes((d / "shard_00001.safetensors").read_bytes()[:-9]),
            r"shard_00001\.safetensors is altered, \d+ bytes; expected \d+",
        ),
        (lambda d: (d / "shards.json").unlink(), r"shards\.json is missing"),
        (lambda d: (d / "shards.json").write_text("{"), r"shards\.json is not JSON"),
        (lambda d: (d / "shards.json").write_text("[]"), r"shards\.json holds a list"),
        (lambda d: (d / "shards.json").write_text('{"format": "x"}'), "another format"),
        (
            lambda d: (d / "shards.json").write_text(
                (d / "shards.json").read_text().replace("shard_00001.safetensors", "../h/x")
            ),
            r"names '\.\./h/x'; expected shard_NNNNN",
        ),
    ],
)
def test_damage_is_named(tmp_path, damage, message):
    model = small_model("janus-v3")
    harvest(model, tokens_for(model, 3), [Z0], tmp_path / "h", shard_bytes=1)
    damage(tmp_path / "h")
    runs.write_manifest(tmp_path / "h")  # by whoever altered it: else the manifest would already tell
    with pytest.raises(ValueError, match=message):
        list(read_shards(tmp_path / "h"))


def test_a_shard_altered_while_the_run_lay_unfinished_is_named(tmp_path):
    model = small_model("janus-v3")
    tokens = tokens_for(model, 4)

    def stop(share):
        if share > 0.4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        harvest(model, tokens, [Z0], tmp_path / "h", shard_bytes=1, on_progress=stop)
    flip(tmp_path / "h.partial" / "shard_00000.safetensors")
    with pytest.raises(ValueError, match=r"shard_00000\.safetensors is altered"):
        harvest(model, tokens, [Z0], tmp_path / "h", shard_bytes=1, resume=True)


def test_a_disk_too_small_is_refused_before_the_first_shard(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=(64 << 20) + 1000))
    model = small_model("janus-v3")
    with pytest.raises(
        ValueError, match=r"disk: .* has 67109864 bytes free; expected 671\d+ for what is to be written"
    ):
        harvest(model, tokens_for(model, 4), [Z0], tmp_path / "h")
    assert not list(tmp_path.rglob("shard_*"))


def test_an_unknown_hook_of_a_harvest_is_refused(tmp_path):
    model = small_model("janus-v3")
    harvest(model, tokens_for(model, 2), [Z0], tmp_path / "h")
    with pytest.raises(ValueError, match=r"has no 'blocks.1.attn.hook_z'; expected some of blocks.0.attn.hook_z"):
        next(read_shards(tmp_path / "h", [Z1]))
    assert open_shards(tmp_path / "h").n_ctx == 16
    assert json.loads((tmp_path / "h" / "shards.json").read_text())["format"] == "workbench-shards/1"


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        ([], "hooks: got "),
        ("blocks.0.attn.hook_z", "expected a list"),
        (["blocks.0.attn.hook_zz"], r"hook 'blocks.0.attn.hook_zz' does not exist; nearest: blocks.0.attn.hook_z"),
        (["blocks.9.attn.hook_z"], "does not exist; nearest"),
        ([Z0, Z0], "expected each name once"),
    ],
)
@pytest.mark.parametrize("is_ours", [True, False])
def test_wrong_hooks_are_refused(tmp_path, hooks, message, is_ours):
    model = small_model("janus-v3")
    model = model if is_ours else to_hooked_transformer(model)
    with pytest.raises(ValueError, match=message):
        harvest(model, tokens_for(model), hooks, tmp_path / "h")
    assert not list(tmp_path.iterdir())


def test_a_batch_of_nothing_is_refused():
    model = small_model("janus-v3")
    with pytest.raises(ValueError, match="batch_size: got 0"):
        next(stream(model, tokens_for(model), [Z0], 0))


# --- attention maps

PATTERN, SCORES = "blocks.1.attn.hook_pattern", "blocks.0.attn.hook_attn_scores"


@pytest.mark.parametrize("kind", ["janus-small", "kotodama", "attn-res", "recurrent"])
@pytest.mark.parametrize("seed", [0, 1])
def test_maps_are_those_of_the_cache_a_sequence_each(tmp_path, kind, seed):
    model = small_model(kind)
    tokens = tokens_for(model, 7)
    names = [name for name in model.hook_dict if name.endswith(("hook_pattern", "hook_attn_scores"))]
    found = harvest(model, tokens, [*names, Z0], tmp_path / "h", seed=seed, batch_size=1, shard_bytes=40_000)
    parts = list(read_shards(tmp_path / "h"))
    assert len(parts) == len(found.shards) > 1
    together = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    order = together["map_sequence"]
    assert sorted(order.tolist()) == list(range(7))
    assert order.tolist() != list(range(7))
    assert torch.equal(together["map_tokens"], tokens[order])
    # exactly: the same layers fused, and the same tokens together
    single = [model.run_with_cache(tokens[i : i + 1], names_filter=[*names, Z0])[1] for i in range(7)]
    for name in names:
        assert torch.equal(together[name], torch.cat([single[i][name] for i in order])), name
        assert found.hooks[name] == (model.cfg.n_heads, 16, 16)
    rows = torch.stack([cache[Z0][0] for cache in single])
    assert torch.equal(together[Z0], rows[together["sequence"], together["position"]])
    for part in parts:
        assert set(part["map_sequence"].tolist()) == set(part["sequence"].tolist()), "a shard's maps are of its tokens"
    assert "map_sequence" not in next(read_shards(tmp_path / "h", [Z0]))
    assert json.loads((tmp_path / "h" / "shards.json").read_text())["format"] == "workbench-shards/2"


def test_only_the_layer_that_is_watched_computes_its_map(tmp_path, monkeypatch):
    model = small_model("janus-v3")
    fused = []
    whole = layers._fused
    monkeypatch.setattr(layers, "_fused", lambda *a: fused.append(1) or whole(*a))
    harvest(model, tokens_for(model, 1), [PATTERN], tmp_path / "h")
    n_forwards = 2  # one look at the shapes, one shard
    assert len(fused) == n_forwards * 1, "layer 0, and layer 1 is the last that runs"


def test_a_killed_harvest_of_maps_goes_on_and_comes_out_the_same(tmp_path):
    model = small_model("janus-v3")
    tokens = tokens_for(model, 6)
    settings = {"shard_bytes": 1, "dtype": "float16"}
    harvest(model, tokens, [PATTERN, SCORES], tmp_path / "whole", **settings)

    def stop(share):
        if share >= 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        harvest(model, tokens, [PATTERN, SCORES], tmp_path / "cut", on_progress=stop, **settings)
    assert len(list((tmp_path / "cut.partial").glob("shard_*"))) == 3
    harvest(model, tokens, [PATTERN, SCORES], tmp_path / "cut", resume=True, **settings)
    for file in sorted((tmp_path / "whole").glob("shard*")):
        assert file.read_bytes() == (tmp_path / "cut" / file.name).read_bytes(), file.name
    flip(tmp_path / "cut" / "shard_00002.safetensors")
    runs.write_manifest(tmp_path / "cut")
    with pytest.raises(ValueError, match=r"shard_00002\.safetensors is altered"):
        list(read_shards(tmp_path / "cut"))


def test_scores_keep_what_a_mask_made_and_nothing_else_that_is_infinite(tmp_path):
    model = small_model("janus-v3")
    tokens = tokens_for(model, 3)
    harvest(model, tokens, [SCORES], tmp_path / "h", dtype="float16")
    scores = next(read_shards(tmp_path / "h"))[SCORES]
    assert torch.equal(scores == -torch.inf, torch.ones(16, 16).triu(1).bool().expand(3, 4, 16, 16))
    with torch.no_grad():
        model.blocks[0].attn.W_Q *= 1e7
    with pytest.raises(ValueError, match=r"hook_attn_scores has \d+ nan or inf from sequence \d on in float16, which"):
        harvest(model, tokens, [SCORES], tmp_path / "f", dtype="float16")
    with torch.no_grad():
        model.embed.W_E[tokens[1, 3]] = torch.nan
    with pytest.raises(ValueError, match=r"hook_attn_scores has \d+ nan or inf from sequence \d on; expected finite"):
        harvest(model, tokens, [SCORES], tmp_path / "n")


def test_a_batch_of_maps_is_held_within_its_limit():
    cfg = small_model("janus-v3").cfg
    assert default_batch_size(cfg, 128, [Z0]) == 64
    assert default_batch_size(cfg, 128, [PATTERN]) == 64
    wide = cfg.model_copy(update={"n_ctx": 4096, "n_heads": 32})
    assert default_batch_size(wide, 1024, [Z0]) == 8
    assert default_batch_size(wide, 1024, [PATTERN]) == 2
    assert default_batch_size(wide, 1024, [PATTERN, SCORES]) == 1
    assert default_batch_size(wide, 4096, [PATTERN]) == 1


def test_a_transformer_lens_model_gives_the_same_maps(tmp_path):
    model = small_model("kotodama")
    tokens = tokens_for(model, 2)
    harvest(model, tokens, [PATTERN, SCORES], tmp_path / "ours")
    harvest(to_hooked_transformer(model), tokens, [PATTERN, SCORES], tmp_path / "theirs")
    (ours,), (theirs,) = read_shards(tmp_path / "ours"), read_shards(tmp_path / "theirs")
    for name in (PATTERN, SCORES):
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-4, rtol=1e-4)


def test_saes_are_not_trained_on_maps_but_on_what_lies_beside_them(tmp_path):
    model = small_model("janus-v3")
    tokens = tokens_for(model, 12)
    harvest(model, tokens[:8], [PATTERN, Z1], tmp_path / "h")
    settings = {"layers": [1], "held_out": tokens[8:], "n_train_tokens": 64, "batch_size": 16, "buffer_tokens": 32}
    with pytest.raises(
        ValueError, match=r"sae_train: blocks.1.attn.hook_pattern is \[batch head query key\]; expected a"
    ):
        sae_train(model, tmp_path / "h", hook="attn.hook_pattern", **settings)
    stack, _ = sae_train(model, tmp_path / "h", hook="z", **settings)
    assert len(stack.info.sources) == 4
