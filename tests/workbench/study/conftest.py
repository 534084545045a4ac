"""A study of a recurrent model and a plain one, both tiny, opened with every analysis that reads text or trains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tomli_w

from workbench.data.batteries import read_prompts
from workbench.study.study import study
from workbench.training import load_recipe

SMALL = {
    "n_layers": 2, "d_model": 16, "n_heads": 2, "n_key_value_heads": 1, "d_head": 8, "d_mlp": 16, "n_ctx": 64,
}  # fmt: skip
SETTINGS = {
    "evaluate": {"n_bytes": 2000, "use_int8": True, "stride": 32},
    "harvest": {"n_sequences": 3, "n_ctx": 32, "hook": ["hook_resid_post"], "layers": "0-1", "shard_bytes": 6000},
    "ladder": {"n_bytes": 2000},
    "mechanisms": {"n_bytes": 2000},
    "text-quality": {"n_samples": 2, "max_new_tokens": 4},
}


@pytest.fixture(scope="session")
def recurrent_study(tmp_path_factory) -> Path:
    """The study; its models have the embedded text's tokenizer, for which the prompts are words."""
    place = tmp_path_factory.mktemp("recurrent")
    recurrent = load_recipe("recurrent-nano").model_dump(mode="json", exclude_none=True)
    recurrence = recurrent["model"]["extensions"]["recurrence"] | {"n_unique": 1, "n_passes": 2, "carry_rank": 2}
    recurrence |= {"td_rank": 2, "n_routes": 2}
    recurrent["model"]["extensions"] |= {"k_rank": 2, "recurrence": recurrence}
    recurrent["model"] |= SMALL
    phase = recurrent["phases"][0] | {"n_steps": 1, "batch_size": 2, "eval_every": 1, "log_every": 1}
    phase["optimizer"]["muon"]["n_momentum_steps"] = 1
    phase["schedule"] = {"kind": "constant"}
    recurrent |= {"name": "tiny-recurrent", "phases": [phase]}
    rows = [{"text": prompt * 20} for one in read_prompts() for prompt in one.prompts]
    (place / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recurrent["data"] |= {"source": str(place / "text.jsonl"), "held_out_fraction": 0.3, "n_held_out_windows": 4}
    recurrent.pop("monitor")
    plain = load_recipe("p3-muon-nano").model_dump(mode="json", exclude_none=True)
    plain["model"] |= SMALL | {"n_key_value_heads": 2}
    step = {"n_steps": 1, "batch_size": 2, "eval_every": 1, "log_every": 1, "schedule": {"kind": "constant"}}
    plain |= {"name": "tiny-plain", "phases": [plain["phases"][0] | step], "data": recurrent["data"]}
    plain.pop("monitor")
    for recipe in (recurrent, plain):
        (place / f"{recipe['name']}.toml").write_text(tomli_w.dumps(recipe))
    settings = {
        "name": "tiny", "n_seeds": 1, "analyses": list(SETTINGS),
        "models": [str(place / "tiny-recurrent.toml"), str(place / "tiny-plain.toml")],
        "settings": SETTINGS,
    }  # fmt: skip
    (place / "study.toml").write_text(tomli_w.dumps(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", str(place / "cache"))
        return study(place / "study.toml", place / "made", device="cpu")
