"""Kills at random moments: `python tests/faults/kills.py PLACE STAGE N SEED` prints, as JSON, what became of N of them.

The verb runs in a child that is forked from a process that has loaded everything once, so that a kill costs the verb's
own time and no import. A child is killed after a random share of the time that an undisturbed one takes; then --resume
goes on, and is killed again with even odds, until the verb is through. What it leaves must be what the undisturbed one
left, but for what `MAY_DIFFER` names.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

# what holds the clock, or a hash of what does: file -> what of it is left out; None: all of it
MAY_DIFFER = {
    "env.json": None,  # seconds, peak memory, resumed
    "manifest.json": None,  # sha256 of env.json among others
    "report.html": None,  # shows study.json
    "study.json": ("created", "timings", "models", "command"),
    "train_state.json": ("log", "own_sha256"),  # length and sha256 of train_log.csv
    "train_log.csv": ("tokens_per_s",),
}
SMALL_NCA = {
    "model.n_layers": 2, "model.d_model": 16, "model.d_head": 8, "model.d_mlp": 32, "model.n_ctx": 64,
    "model.d_vocab": 300, "model.n_heads": 2, "model.n_key_value_heads": 1,
    "model.extensions.attn_res.boundaries": [0, 1], "data.source": "text.jsonl", "data.tokenizer": ".",
    "data.held_out_fraction": 0.3, "data.n_held_out_windows": 2, "monitor.n_sequences": 2, "monitor.every": 4,
    "checkpoint.every": 2, "phases.0.n_steps": 10, "phases.1.n_steps": 6, "phases.0.batch_size": 2,
    "phases.1.batch_size": 2, "phases.0.schedule.n_warmup_steps": 2, "phases.1.schedule.n_warmup_steps": 2,
    "phases.0.nca.steps": [6, 9], "phases.0.nca.max_ratio": 2, "phases.0.nca.independence": [0, 2],
}  # fmt: skip
SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
ENDED = {-signal.SIGKILL, -signal.SIGINT, -signal.SIGTERM, 130}
N_ATTEMPTS = 60  # to finish one run; more would mean that it makes no way


@dataclass
class Outcome:
    """What became of the kills of one stage."""

    stage: str
    n_kills: int = 0
    """that ended a process before its end"""
    n_late: int = 0
    """that came when it had ended: not counted"""
    n_runs: int = 0
    n_right: int = 0
    """kills of runs that came out like the undisturbed one"""
    by_signal: dict[str, int] = field(default_factory=dict)
    n_with_state: int = 0
    """kills after which something had been saved"""
    seconds: float = 0.0
    """of the undisturbed run"""
    wrong: list[str] = field(default_factory=list)


def commands(place: Path) -> dict[str, str]:
    """What is typed for each stage, without --out."""
    import tomli_w
    from grounds import MADE

    from workbench.training import apply_overrides, load_recipe

    train = apply_overrides(load_recipe(place / "adaptive.toml"), {"phases.0.n_steps": 16, "checkpoint.every": 3})
    nca = apply_overrides(load_recipe("lang-ddv1-nano"), SMALL_NCA)
    for name, recipe in (("kill-train", train), ("kill-nca", nca)):
        (place / f"{name}.toml").write_text(tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True)))
    options = "--dtype float32 --device cpu --json"
    without_out = {name: command.rsplit(" --out", 1)[0] for name, command in MADE.items()}
    return {
        "training": f"train kill-train.toml {options}",
        "automata": f"train kill-nca.toml {options}",
        "harvest": without_out["harvest"].replace("--n-sequences 12", "--n-sequences 96"),
        "SAE training": without_out["saes"].replace("--n-train-tokens 480", "--n-train-tokens 9600"),
        "export": "export --ckpt model --to transformer-lens",
        "import": "import hf",
        "ablation": "ablate --ckpt model --data text.txt --n-tokens 768 --memory-gib 0.002 --components head,mlp "
        "--kind resample --pairs within",
        "probe": without_out["probe"].replace("n_permutations=19", "n_permutations=999"),
        "study": without_out["study"],
    }


def warm() -> None:
    """Load what verbs load, in this process and so in its children."""
    import torch

    torch.set_num_threads(1)
    # scipy and transformers load their parts late
    import scipy.optimize
    import scipy.spatial.distance
    import scipy.special
    import scipy.stats

    import reports.atlas
    import reports.page
    import workbench.analyses.ablate.ablation
    import workbench.analyses.ablate.pairs
    import workbench.analyses.atlas.features
    import workbench.analyses.harvest.storing
    import workbench.analyses.probe.concept_tests
    import workbench.analyses.sae_train.head_saes
    import workbench.data.text_windows
    import workbench.study.study
    import workbench.training.loop  # noqa: F401
    from workbench.data.tokenizer import load_tokenizer
    from workbench.models.tokenizer_files import wrap_tokenizer

    assert wrap_tokenizer(load_tokenizer("embedded")).wrapped is not None


def begin(command: str, before: Callable[[], object] = dict, log: str = "last.log") -> int:
    """The process of the verb, which first calls `before`; what it says goes to a file."""
    pid = os.fork()
    if pid:
        return pid
    code = 70  # of what no verb should come to
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(nowhere, 0)
        os.dup2(said, 1)
        os.dup2(said, 2)
        from workbench.cli.app import app

        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
        before()
        sys.argv = ["workbench", *command.split()]
        app()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except KeyboardInterrupt:  # before the verb could take it
        code = 130
    finally:
        os._exit(code)


def end(pid: int) -> int:
    """Its exit code; minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def digests(directory: Path) -> dict[str, str]:
    """sha256 of every file, without what may differ."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if not path.is_file():
            continue
        data, left_out = path.read_bytes(), MAY_DIFFER.get(path.name, ())
        if left_out is None:
            data = b""  # that it is there counts
        elif left_out and path.suffix == ".json":
            content = json.loads(data)
            data = json.dumps({k: v for k, v in content.items() if k not in left_out}, sort_keys=True).encode()
        elif left_out:
            data = without_columns(data.decode(), left_out).encode()
        found[path.relative_to(directory).as_posix()] = hashlib.sha256(data).hexdigest()
    return found


def without_columns(text: str, columns: tuple[str, ...]) -> str:
    """A CSV without these columns; none of its cells holds a comma."""
    header, *rows = (line.split(",") for line in text.splitlines())
    keep = [i for i, name in enumerate(header) if name not in columns]
    return "\n".join(",".join(row[i] for i in keep) for row in [header, *rows])


def kill(stage: str, command: str, n: int, rng: random.Random) -> Outcome:
    """What became of n kills of a stage, in the working directory."""
    outcome = Outcome(stage)
    for name in ("first", "whole"):  # the first packs the text
        started = time.monotonic()
        code = end(begin(f"{command} --out {name}"))
        assert code == 0, f"{stage}: exit {code}: {Path('last.log').read_text()[-2000:]}"
        outcome.seconds = time.monotonic() - started
    wanted = digests(Path("whole"))
    assert digests(Path("first")) == wanted, f"{stage}: two undisturbed ones differ: {differing('first', wanted)}"
    while outcome.n_kills < n:
        outcome.n_runs += 1
        if n_here := _one_run(command, n - outcome.n_kills, rng, outcome):
            unlike = differing("cut", wanted)
            outcome.n_kills += n_here
            outcome.n_right += n_here * (not unlike)
            if unlike:
                outcome.wrong.append(unlike)
        shutil.rmtree("cut", ignore_errors=True)
        shutil.rmtree("cut.partial", ignore_errors=True)
    shutil.rmtree("first")
    shutil.rmtree("whole")
    return outcome


def _one_run(command: str, n_left: int, rng: random.Random, outcome: Outcome) -> int:
    """Kills of one run until it is through; where it does not get through, that is said."""
    n_kills = 0
    for attempt in range(N_ATTEMPTS):
        pid = begin(f"{command} --out cut" + (" --resume" if attempt else ""))
        if n_kills < n_left and (attempt == 0 or rng.random() < 0.5):
            time.sleep(rng.uniform(0.02, 0.98) * outcome.seconds)
            number = rng.choice(SIGNALS)
            os.kill(pid, number)
            code = end(pid)
            if code in ENDED:
                n_kills += 1
                outcome.by_signal[number.name] = outcome.by_signal.get(number.name, 0) + 1
                outcome.n_with_state += len(list(Path("cut.partial").glob("*"))) > 1
                continue
            outcome.n_late += 1
        else:
            code = end(pid)
        if code == 0:
            return n_kills
        outcome.wrong.append(f"exit {code}: {Path('last.log').read_text()[-500:]}")
        return n_kills
    outcome.wrong.append(f"not through after {N_ATTEMPTS} attempts")
    return n_kills


def differing(name: str, wanted: dict[str, str]) -> str:
    """Names of the files of a directory that are not as wanted; nothing if all are."""
    if not Path(name).is_dir():
        return f"there is no {name}"
    found = digests(Path(name))
    return ", ".join(sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key)))


def enter(place: Path) -> dict[str, str]:
    """`commands`, after the ground was laid, everything loaded, and the directory entered."""
    here = Path(__file__).parent
    sys.path[:0] = [str(here), str(here.parent / "workbench")]
    if not (place / "model").exists():
        from grounds import write_ground

        place.mkdir(parents=True, exist_ok=True)
        write_ground(place)
    os.environ["WORKBENCH_CACHE"] = str(place / "cache")
    os.chdir(place)
    found = commands(place)
    warm()
    return found


def main(place: Path, stage: str, n: int, seed: int) -> None:
    """Print what became of n kills of a stage."""
    command = enter(place)[stage]
    print(json.dumps(asdict(kill(stage, command, n, random.Random(f"{stage} {seed}")))))


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
