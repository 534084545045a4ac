"""Damage to begun runs: `python tests/faults/begun.py PLACE STAGE N SEED` prints, as JSON, what became of N of them.

A verb is killed at one of its writes (see `writes`); a file of what it leaves is damaged, and --resume goes on. It must
refuse in one line that names the file, or make anew what is damaged and come to the bytes of an undisturbed run.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import kills
import writes
from corruptions import DAMAGES, files_of, leave

# the option that makes a run another seed's, whose files are replayed; else --seed 1
OTHER = {"SAE training": "--seeds 1", "study": "--seeds 1"}
N_BEGUN = 8  # moments at which a verb is killed


@dataclass
class Outcome:
    """What became of the damages to begun runs of one stage."""

    stage: str
    n_tried: int = 0
    n_right: int = 0
    n_refused: int = 0
    by_damage: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def begin_some(command: str, n_writes: int, into: Path) -> list[Path]:
    """Begun runs, each killed at another write, the first after a fifth of them."""
    here, found = Path.cwd(), []
    for i in range(N_BEGUN):
        disk = writes.Disk(round(n_writes * (0.2 + 0.78 * i / (N_BEGUN - 1))), "kill")
        code = kills.end(kills.begin(f"{command} --out cut", lambda disk=disk: writes.install(disk, here)))
        assert code == -signal.SIGKILL, code
        found.append(Path(shutil.move("cut.partial", into / str(i))))
    return found


def damage_begun(stage: str, command: str, n: int, rng: random.Random) -> Outcome:
    """What became of n damages, in the working directory."""
    outcome, here = Outcome(stage), Path.cwd()
    home = here / "begun"  # away from what else lies beside the stages' inputs
    (home / "older").mkdir(parents=True)
    assert kills.end(kills.begin(f"{command} --out whole")) == 0, Path("last.log").read_text()[-2000:]
    wanted = kills.digests(Path("whole"))
    n_writes = writes.count(command, "kill", here)
    begun = begin_some(command, n_writes, home)
    begin_some(f"{command} {OTHER.get(stage, '--seed 1')}", n_writes, home / "older")
    damages = [damage for damage in DAMAGES if damage is not leave]
    while outcome.n_tried < n:
        damage = damages[outcome.n_tried % len(damages)]
        place = Path(shutil.copytree(rng.choice(begun), home / "cut.partial"))
        file = rng.choice(files_of(place))
        if names := damage(place, file, rng):
            outcome.n_tried += 1
            outcome.by_damage[damage.__name__] = outcome.by_damage.get(damage.__name__, 0) + 1
            code = kills.end(kills.begin(f"{command} --out begun/cut --resume"))
            wrong = _wrong(code, [*names, file.parent.name], wanted)
            outcome.n_refused += code == 1
            outcome.n_right += not wrong
            if wrong:
                outcome.wrong.append(f"{damage.__name__} of {file.relative_to(place)}: {wrong}")
        for left in ("cut", "cut.partial", "outside"):
            path = home / left
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    shutil.rmtree(home)
    shutil.rmtree("whole")
    return outcome


def _wrong(code: int, names: list[str], wanted: dict[str, str]) -> str:
    if code == 0:
        return kills.differing("begun/cut", wanted)
    said = Path("last.log").read_text()
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    is_clear = len(errors) == 1 and "Traceback" not in said and "--debug shows where" not in said
    if code != 1 or not is_clear or not any(name in errors[0] for name in names):
        return f"exit {code}: {said.strip()[-400:]}"
    return "there is a run of that name all the same" if Path("begun/cut").exists() else ""


if __name__ == "__main__":
    place, stage, n, seed = sys.argv[1:]
    found = kills.enter(Path(place).absolute())
    print(json.dumps(asdict(damage_begun(stage, found[stage], int(n), random.Random(f"{stage} {seed}")))))
