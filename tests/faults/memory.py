"""`python tests/faults/memory.py PLACE [VERB …]`: peak memory of each verb against its --dry-run, at the nano size.

Prints rows of (verb, planned bytes, peak bytes), each as JSON. The peak is VmHWM of the verb's own process, as its
env.json has it. The models are `janus-v3-control-nano` and `recurrent-nano` after a few steps: as large as any of their
kinds.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from processes import environment

FEW = "--set phases.0.n_steps=6 --set monitor.every=3 --set phases.0.eval_every=3"
FEW += " --set phases.0.schedule.n_warmup_steps=1"
SAES = "sae-train --ckpt train --n-eval-tokens 8192 --set n_ce_tokens=1024"
# a study's settings, beside those of its trainings: little text
LITTLE = " ".join(
    f"--set settings.{setting}"
    for setting in (
        "sae-train.n_train_tokens=20480", "sae-train.n_ce_tokens=256", "sae-train.n_eval_tokens=8192",
        "ablate.n_tokens=512", "topology.n_tokens=4096", "attention.n_tokens=4096", "attention-patterns.n_tokens=4096",
        "atlas.n_tokens=8192",
    )
)  # fmt: skip
# a step of each of the ladder's seventeen trainings
ONE = "--set phases.0.n_steps=1 --set phases.0.schedule.n_warmup_steps=0 --set monitor.every=0"
ONE += " --set data.n_held_out_windows=16"
OUT = "m-"  # before the name of a command: where it writes; what takes --sae reads what sae-train has written
COMMANDS = {
    "train": f"train janus-v3-control-nano {FEW}",
    "train, recurrent": f"train recurrent-nano {FEW}",
    "harvest": "harvest --ckpt train --layers all --n-sequences 32",
    "sae-train": f"{SAES} --n-train-tokens 40960",
    "sae-train, large": f"{SAES} --n-train-tokens 20480 --l1 1,2 --set expansion=32 --set buffer_tokens=131072",
    "sae-train, compiled": f"{SAES} --n-train-tokens 40960 --set use_bf16=true --set use_compile=true",
    "ablate": "ablate --ckpt train --layers 0,3 --n-tokens 1024",
    "ablate, small budget": "ablate --ckpt train --layers 0,3 --n-tokens 1024 --memory-gib 0.25",
    "patch": "patch --ckpt train --layers 0,1 --n-bootstrap 100",
    "topology": "topology --ckpt train --n-tokens 8192",
    "attention": "attention --ckpt train --n-tokens 4096",
    "attention-patterns": "attention-patterns --ckpt train --n-tokens 4096",
    "evaluate": "evaluate --ckpt train --n-bytes 40000",
    "probe": "probe --ckpt train --n-permutations 99",
    "spectra": "spectra --ckpt train",
    "compare": "compare train train --n-sequences 32",
    "atlas": f"atlas --ckpt train --sae {OUT}sae-train --n-tokens 8192",
    "content-share": f"content-share --ckpt train --sae {OUT}sae-train",
    "feature-effects": f"feature-effects --ckpt train --sae {OUT}sae-train --n-exact 2 --n-tokens 1024",
    "steer": f"steer --ckpt train --sae {OUT}sae-train --n-random 2 --alphas 1 --n-tokens 8192",
    "monitor": "monitor --ckpt train --n-tokens 8192 --n-continuations 64 --max-new-tokens 16",
    "scrub": "scrub --ckpt train --n-pairs 32 --n-random 2",
    "sae-scores": f"sae-scores --ckpt train --sae {OUT}sae-train --n-tokens 8192 --n-splice-tokens 1024",
    "match": f"match train train --sae {OUT}sae-train --sae {OUT}sae-train --n-tokens 4096",
    "text-quality": "text-quality --ckpt train --n-samples 1 --max-new-tokens 24 --tagger none",
    "tasks": "tasks --ckpt train",
    "mechanisms": "mechanisms --ckpt recurrent --n-bytes 20000",
    "ladder": f"ladder recurrent-nano --n-seeds 1 --n-bytes 20000 {ONE}",
    "study": f"study {FEW.replace('--set ', '--set train.')} {LITTLE}",
    "study, large": f"study {FEW.replace('--set ', '--set train.')} {LITTLE} "
    "--set settings.sae-train.buffer_tokens=131072",
}


def run(words: list[str], place: Path) -> str:
    """What a verb in a process of its own says on stdout."""
    done = subprocess.run(
        [sys.executable, "-m", "workbench", *words],
        cwd=place,
        env=environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{words}: {done.stderr[-2000:]}"
    return done.stdout


def main(place: Path, names: list[str]) -> None:
    """Print a row a verb."""
    for name, out in (("train", "train"), ("train, recurrent", "recurrent")):
        if not (place / out).exists():
            run([*COMMANDS[name].split(), "--device", "cpu", "--json", "--out", out], place)
    for name in names or COMMANDS:
        words = [*COMMANDS[name].split(), "--device", "cpu", "--json"]
        planned = json.loads(run([*words, "--dry-run"], place))["bytes_in_memory"]
        out = OUT + name.replace(", ", "-").replace(" ", "-")
        run([*words, "--out", out], place)
        peak = json.loads((place / out / "env.json").read_text())["peak_memory_bytes"]
        print(json.dumps((name, planned, peak)), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), sys.argv[2:])
