"""`python tests/faults/again.py PLACE OUT STAGE …`: these of `STAGES` once more, on a ground that is there, in a
process of its own, where sets have another order and no call came before."""

from __future__ import annotations

import hashlib
import shlex
import sys
import warnings
from pathlib import Path

# stage -> what is typed, run in the ground's directory; {out} is where it writes
STAGES = {
    "topology": "topology --ckpt model --data text.txt --n-tokens 576 --out {out}",
    "attention": "attention --ckpt model --data text.txt --n-tokens 576 --set n_repeated=4 --out {out}",
    "attention patterns": "attention-patterns --ckpt model --data text.txt --n-tokens 576 --out {out}",
    "evaluate": "evaluate --ckpt model --data text.txt --stride 24 --n-bytes 3000 --out {out}",
    "compare": "compare model twin --data text.txt --n-sequences 12 --out {out}",
    "text quality": "text-quality --ckpt model --prompts prompts.toml --recall recall.toml --battery none "
    "--tagger none --n-samples 2 --max-new-tokens 12 --out {out}",
    "atlas": "atlas --sae saes --ckpt model --data text.txt --n-tokens 288 --n-contexts 2 --out {out}",
    "report": "report probe --out {out}",
    "report of a study": "report study --out {out}",
    "probe": "probe --ckpt model --concepts concepts.toml --sets things --data text.txt "
    "--set n_permutations=19 --set n_points=64 --out {out}",
    "automata generator": "{out}",
}
NEEDS = {"atlas": "saes", "report": "probe", "report of a study": "study"}  # of the ground's run directories
# clocks, memory, and the hash of what holds them
MAY_DIFFER = ("env.json", "manifest.json")


def do(stage: str, out: Path) -> None:
    """Run the stage; it writes to `out`."""
    if stage == "automata generator":
        draw_automata(out)
        return
    from grounds import call

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # too little text for some statistics
        result = call(*shlex.split(STAGES[stage].format(out=shlex.quote(str(out)))))
    assert result.exit_code == 0, f"{stage}: {result.output}"


def draw_automata(out: Path) -> None:
    """Three batches of small automata, their scored places, and where the sampler stands, in one file."""
    import json

    from workbench.data.nca import NCAConfig
    from workbench.data.nca_sampler import NCASampler

    config = NCAConfig(size=8, channels=2, burn_in=2, steps=(6, 9), max_ratio=2, independence=(0, 2))
    sampler = NCASampler(config, n_ctx=60, batch_size=4, seed=5, n_rules=8)
    batches = [tensor.numpy().tobytes() for _ in range(3) for tensor in sampler.next_batch()]
    out.write_bytes(b"".join(batches) + json.dumps(sampler.state_dict()).encode())


def digests(out: Path) -> dict[str, str]:
    """sha256 of every file that must not differ."""
    files = [out] if out.is_file() else sorted(path for path in out.rglob("*") if path.is_file())
    return {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files if path.name not in MAY_DIFFER}  # fmt: skip


if __name__ == "__main__":
    import os

    here, place, out = Path(__file__).parent, Path(sys.argv[1]).absolute(), Path(sys.argv[2]).absolute()
    sys.path[:0] = [str(here.parent / "workbench")]
    os.chdir(place)
    for name in sys.argv[3:]:
        do(name, out / name)
