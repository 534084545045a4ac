"""Run directories: what is whole, what is refused, and what a kill, a full disk or a second process leaves behind."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from sae.checkpoint import new_directory
from workbench import runs
from workbench.runs import directory
from workbench.runs import manifest as manifests
from workbench.runs import settings as settings_files

CONFIG = {
    "name": "a",
    "seed": 3,
    "n": 1,
    "lr": 1e-3,
    "no": None,
    "model": {"n_layers": 2, "no": None},
    "hooks": ("x", "y"),
}


def _whole(directory: Path) -> Path:
    out = directory / "run"
    with runs.open_run(out, CONFIG) as run:
        (run.path / "tables").mkdir()
        (run.path / "tables" / "a.csv").write_text("a,b\n1,2\n")
        (run.path / "weights.bin").write_bytes(bytes(range(256)) * 50)
        (run.path / "empty").write_bytes(b"")
    return out


def test_a_run_becomes_whole_with_its_three_records(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run"
    with runs.open_run(out, CONFIG, device="cpu", seed=7) as run:
        assert run.path == tmp_path / "deep" / "run.partial"
        assert run.path.is_dir()
        assert not out.exists()
        assert not run.is_complete
        assert not run.is_resumed
        (run.path / "x.txt").write_text("x")
    assert sorted(p.name for p in out.parent.iterdir()) == ["run"]  # no lock, no partial
    assert sorted(p.name for p in out.iterdir()) == ["config.toml", "env.json", "manifest.json", "x.txt"]
    kept = {"name": "a", "seed": 3, "n": 1, "lr": 1e-3, "model": {"n_layers": 2}, "hooks": ["x", "y"]}
    assert runs.read_config(out) == runs.read_config(out / "config.toml") == kept
    env = json.loads((out / "env.json").read_text())
    assert env["seed"] == 7
    assert env["device"] == "cpu"
    assert env["seconds"] >= 0
    assert env["resumed"] is False
    assert env["versions"]["numpy"]
    assert env["python"].startswith("3.")
    assert 1e6 < env["peak_memory_bytes"] < 1e12
    manifest = runs.verify_manifest(out)
    assert sorted(manifest["files"]) == ["config.toml", "env.json", "x.txt"]
    # known answer: SHA-256 of "x", `printf x | sha256sum`
    known = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    assert manifest["files"]["x.txt"] == {"sha256": known, "bytes": 1}
    assert runs.sha256_file(out / "x.txt") == known


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_who_may_read_the_run_may_read_its_files(tmp_path: Path, mask: int) -> None:
    import torch
    from safetensors.torch import save_file

    old = os.umask(mask)
    try:
        with runs.open_run(tmp_path / "run", CONFIG) as run:
            (run.path / "sae").mkdir()
            save_file({"x": torch.ones(1)}, run.path / "sae" / "sae.safetensors")  # leaves 0600 behind
            (run.path / "table.csv").write_text("a\n1\n")
    finally:
        os.umask(old)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert set(modes.values()) == {0o666 & ~mask}, modes


def test_a_pydantic_config_is_written_resolved(tmp_path: Path) -> None:
    from pydantic import BaseModel

    class Settings(BaseModel):
        path: Path = Path("a/b")
        n: int | None = None
        rate: float = 0.5

    with runs.open_run(tmp_path / "r", Settings()):
        pass
    assert runs.read_config(tmp_path / "r") == {"path": "a/b", "rate": 0.5}


def test_runs_does_not_load_torch() -> None:
    code = "import sys, workbench.runs; assert not {'torch', 'transformer_lens', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), SystemExit(1)])
def test_an_exception_leaves_the_partial_directory(tmp_path: Path, error: BaseException) -> None:
    out = tmp_path / "run"

    def job() -> None:
        with runs.open_run(out, CONFIG) as run:
            (run.path / "half.txt").write_text("half")
            raise error

    with pytest.raises(type(error)):
        job()
    assert not out.exists()
    assert not (tmp_path / "run.lock").exists()
    assert sorted(p.name for p in (tmp_path / "run.partial").iterdir()) == ["config.toml", "half.txt"]
    with pytest.raises(ValueError, match=r"unfinished run; expected --resume"), runs.open_run(out, CONFIG):
        pass
    with runs.open_run(out, CONFIG, resume=True) as run:
        assert run.is_resumed
        assert (run.path / "half.txt").read_text() == "half"
    assert runs.verify_manifest(out)["files"].keys() == {"config.toml", "env.json", "half.txt"}


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(1)])
def test_an_exception_before_anything_was_written_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "here").mkdir()

    def refuse() -> None:
        with runs.open_run(tmp_path / "here" / "runs" / "deep" / "run", CONFIG):
            raise error

    with pytest.raises(type(error)):
        refuse()
    assert [path.name for path in tmp_path.rglob("*")] == ["here"]


@pytest.mark.parametrize("broken", ["fsync", "write"])
def test_a_write_that_fails_says_where(tmp_path: Path, broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system names no file where it only has a descriptor."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def job() -> None:
        with runs.open_run(tmp_path / "run", CONFIG) as run:
            (run.path / "begun").touch()
            if broken == "write":
                fail()
            monkeypatch.setattr(os, "fsync", fail)
            runs.atomic_write(run.path / "table.csv", "a")

    with pytest.raises(OSError, match=r"No space left on device: .*run\.partial") as caught:
        job()
    assert ("table.csv" in str(caught.value)) is (broken == "fsync")


def test_a_whole_run_is_refused_or_recognised(tmp_path: Path) -> None:
    out = _whole(tmp_path)
    before = runs.sha256_file(out / "manifest.json")
    with pytest.raises(ValueError, match=r"out: .*run already exists; expected a new directory, or --resume"):
        runs.open_run(out, CONFIG).__enter__()
    with runs.open_run(out, CONFIG, resume=True) as run:
        assert run.is_complete
        assert run.path == out
    assert runs.sha256_file(out / "manifest.json") == before
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    with pytest.raises(ValueError, match=r"resume: seed is 3 in .*config.toml, got 4"):
        runs.open_run(out, CONFIG | {"seed": 4}, resume=True).__enter__()
    (out / "empty").write_text("no longer")
    with pytest.raises(ValueError, match=r"empty is altered, 9 bytes; expected 0"):
        runs.open_run(out, CONFIG, resume=True).__enter__()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, r"resume: seed is 3 .*, got 4"),
        ({"n": True}, r"resume: n is 1 .*, got True"),
        ({"model": {"n_layers": 3}}, r"resume: model\.n_layers is 2 .*, got 3"),
        ({"model": {"n_layers": 2, "more": 1}}, r"resume: model\.more is 'absent' .*, got 1"),
        ({"lr": None}, r"resume: lr is 0\.001 .*, got 'absent'"),
        ({"hooks": ["x", "z"]}, r"resume: hooks\[1\] is 'y' .*, got 'z'"),
        ({"hooks": ["x"]}, r"resume: hooks is \['x', 'y'\] .*, got \['x'\]"),
    ],
)
def test_resume_names_the_first_key_that_differs(tmp_path: Path, change: dict, message: str) -> None:
    (tmp_path / "run.partial").mkdir()
    (tmp_path / "run.partial" / "config.toml").write_text(tomli_w.dumps(directory._as_toml(CONFIG)))
    with pytest.raises(ValueError, match=message):
        runs.open_run(tmp_path / "run", CONFIG | change, resume=True).__enter__()
    assert (tmp_path / "run.partial").is_dir()


_NAMES = st.text(min_size=1, max_size=5)
_VALUES = st.recursive(
    st.booleans() | st.integers(-(2**62), 2**62) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=3),
    max_leaves=8,
)


@given(config=st.dictionaries(_NAMES, _VALUES, max_size=4))
@settings(max_examples=60, deadline=None)
def test_any_config_resumes_with_itself(tmp_path_factory: pytest.TempPathFactory, config: dict) -> None:
    """Resume compares what was written with what would be written: also for nan, any unicode and odd keys."""
    out = tmp_path_factory.mktemp("c") / "run"

    def fail(resume: bool) -> None:
        with runs.open_run(out, config, resume=resume) as run:
            assert run.is_resumed is resume
            (run.path / "begun").touch()
            raise RuntimeError

    for resume in (False, True):
        with pytest.raises(RuntimeError):
            fail(resume)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"a": {3: 1}}, r"config: key 3 in \[a\] is a int; expected a string"),
        ({"a": {"b": object()}}, r"config: a\.b is a object; expected a string, number"),
        ({"a": [1, None]}, r"config: a\[1\] is a NoneType"),
        ([1], r"config: a list; expected a mapping"),
    ],
)
def test_a_config_that_toml_cannot_hold_is_refused(tmp_path: Path, config: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        runs.open_run(tmp_path / "run", config).__enter__()
    assert not list(tmp_path.iterdir())


def _file(path: Path) -> None:
    path.write_text("")


@pytest.mark.parametrize(
    ("prepare", "name", "message"),
    [
        (lambda d: _file(d / "f"), "f/run", r"out: .*f is a file; expected a directory there"),
        (lambda d: _file(d / "run"), "run", r"already exists"),
        (lambda d: (d / "run").mkdir(), "run", r"already exists"),
        (lambda d: (d / "run").symlink_to(d / "gone"), "run", r"already exists"),
        (lambda d: _file(d / "run.partial"), "run", r"run\.partial is not a directory"),
        (lambda d: (d / "run.partial").symlink_to(d), "run", r"run\.partial is not a directory"),
        (lambda d: (d / "run.lock").symlink_to(d / "gone"), "run", r"run\.lock is not a plain file"),
        (lambda d: None, "run.partial", r"ends in \.partial; expected the run's own name"),
        (lambda d: None, "run\0x", r"names no directory"),
    ],
)
def test_places_that_cannot_be_written_are_refused(
    tmp_path: Path, prepare: Callable[[Path], object], name: str, message: str
) -> None:
    prepare(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=message):
        runs.open_run(f"{tmp_path}/{name}", CONFIG).__enter__()
    assert sorted(tmp_path.rglob("*")) == before


def test_resume_refuses_a_directory_that_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "run.partial").mkdir()
    _file(tmp_path / "run.partial" / "mine.txt")
    with pytest.raises(ValueError, match=r"run\.partial has no config\.toml"):
        runs.open_run(tmp_path / "run", CONFIG, resume=True).__enter__()
    assert (tmp_path / "run.partial" / "mine.txt").exists()


def test_resume_takes_what_a_kill_at_the_very_start_or_end_left(tmp_path: Path) -> None:
    (tmp_path / "run.partial").mkdir()  # killed before config.toml
    (tmp_path / "run.partial" / ".config.toml.0123abcd.tmp").write_text("ha")
    (tmp_path / "run.lock").write_text("process 1 on nowhere")  # a file is no lock
    with runs.open_run(tmp_path / "run", CONFIG, resume=True) as run:
        (run.path / "a").write_text("a")
        (run.path / "manifest.json").write_text("of an attempt")
    assert runs.verify_manifest(tmp_path / "run")["files"].keys() == {"config.toml", "env.json", "a"}
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_resume_removes_the_directories_that_a_kill_left_of_a_stack(tmp_path: Path) -> None:
    """A begun one, and an older one that was moved aside; a directory of another name is the run's own."""
    with contextlib.suppress(KeyboardInterrupt), runs.open_run(tmp_path / "run", CONFIG) as run:
        (run.path / "mine.partial").mkdir()
        _file(run.path / "mine.partial" / "b")
        if (pid := os.fork()) == 0:
            with new_directory(run.path / "saes" / "sae") as begun:
                _file(begun / "sae.json")
                shutil.copytree(begun, begun.with_suffix(".old"))
                os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)
        assert len(list((run.path / "saes").iterdir())) == 2
        raise KeyboardInterrupt
    with runs.open_run(tmp_path / "run", CONFIG, resume=True) as run:
        _file(run.path / "a")
    assert runs.verify_manifest(tmp_path / "run")["files"].keys() == {"config.toml", "env.json", "a", "mine.partial/b"}


def test_runs_nest(tmp_path: Path) -> None:
    with runs.open_run(tmp_path / "study", CONFIG) as study, runs.open_run(study.path / "train", CONFIG) as train:
        (train.path / "w").write_text("w")
    files = runs.verify_manifest(tmp_path / "study")["files"]
    assert "train/manifest.json" in files
    assert "train/w" in files
    assert "manifest.json" not in files
    runs.verify_manifest(tmp_path / "study" / "train")


# --- two processes, and processes that die

_HOLD = """
    import sys, time
    from workbench import runs
    with runs.open_run(sys.argv[1], {"a": 1}, resume=len(sys.argv) > 2) as run:
        (run.path / "x").write_text("x")
        if len(sys.argv) > 3:
            import os
            if os.fork() == 0:
                print("ready", flush=True)  # said by the child: until it runs, it holds its copy of the lock
                time.sleep(30)
                os._exit(0)
        else:
            print("ready", flush=True)
        time.sleep(30)
"""


def _hold(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(_HOLD), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_second_process_is_refused_and_a_kill_frees_the_lock(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with _hold(str(out), "resume", "fork") as process:
        for resume in (False, True):
            with pytest.raises(
                ValueError, match=rf"is being written by process {process.pid} on .*; expected one process"
            ):
                runs.open_run(out, {"a": 1}, resume=resume).__enter__()
        process.kill()  # the forked child lives on, and must not keep the lock
        process.wait()
        assert (tmp_path / "run.lock").exists()
        with runs.open_run(out, {"a": 1}, resume=True) as run:
            assert run.is_resumed
            assert (run.path / "x").read_text() == "x"
        os.killpg(process.pid, signal.SIGKILL)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_the_same_process_cannot_open_a_run_twice(tmp_path: Path) -> None:
    with (
        runs.open_run(tmp_path / "run", CONFIG),
        pytest.raises(ValueError, match="is being written by process"),
        runs.open_run(tmp_path / "run", CONFIG, resume=True),
    ):
        pass
    runs.verify_manifest(tmp_path / "run")


def test_a_lock_file_removed_between_opening_and_locking_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder before us removes the file just after we opened it: our lock would be on a file nobody else sees."""
    import fcntl

    real, operations = fcntl.flock, []

    def racing(descriptor: int, operation: int) -> None:
        operations.append(operation)
        if len(operations) == 1:
            (tmp_path / "run.lock").unlink()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", racing)
    with runs.locked(tmp_path / "run"):
        assert operations == [fcntl.LOCK_EX | fcntl.LOCK_NB] * 2
        with pytest.raises(ValueError, match="is being written by process"), runs.locked(tmp_path / "run"):
            pass


def test_one_of_many_racing_processes_wins(tmp_path: Path) -> None:
    code = """
    import sys
    from workbench import runs
    try:
        with runs.open_run(sys.argv[1], {"a": 1}, resume=True) as run:
            if not run.is_complete:
                with (run.path / "writers").open("a") as file:
                    file.write("x")
    except ValueError as error:
        assert "is being written by" in str(error), error
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "run")]
    processes = [subprocess.Popen(command) for _ in range(6)]
    assert [p.wait() for p in processes] == [0] * 6
    assert (tmp_path / "run" / "writers").read_text() == "x"
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


# --- the manifest


def _edit_manifest(out: Path, edit: Callable[[dict], object], seals: bool = True) -> None:
    """Edited and, unless told otherwise, sealed again: by somebody who knows how, not by chance."""
    manifest = json.loads((out / "manifest.json").read_text())
    edit(manifest)
    if seals:
        manifest["sha256"] = manifests._seal(manifest["files"])
    (out / "manifest.json").write_text(json.dumps(manifest))


def _flip(path: Path, bit: int = 3) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1 << bit
    path.write_bytes(data)


def _swap(a: Path, b: Path) -> None:
    a_bytes, b_bytes = a.read_bytes(), b.read_bytes()
    a.write_bytes(b_bytes)
    b.write_bytes(a_bytes)


_ENTRY = {"sha256": "0" * 64, "bytes": 1}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda o: _flip(o / "weights.bin"), r"weights\.bin is altered, sha256"),
        (lambda o: _flip(o / "env.json"), r"env\.json is altered"),
        (lambda o: (o / "weights.bin").write_bytes(b"short"), r"weights\.bin is altered, 5 bytes; expected 12800"),
        (lambda o: (o / "empty").unlink(), r"empty is missing"),
        (lambda o: (o / "tables" / "b.csv").write_text(""), r"tables/b\.csv is not in the manifest"),
        (lambda o: _swap(o / "weights.bin", o / "tables" / "a.csv"), r"is altered"),
        (lambda o: (o / "tables" / "link").symlink_to(o / "empty"), r"link is a symbolic link"),
        (lambda o: os.mkfifo(o / "pipe"), r"pipe is a device, pipe or socket"),
        (lambda o: (o / "manifest.json").unlink(), r"manifest\.json is missing"),
        (lambda o: (o / "manifest.json").write_bytes(b"\xff{}"), r"is not UTF-8"),
        (lambda o: (o / "manifest.json").write_text("{"), r"is not JSON"),
        (lambda o: (o / "manifest.json").write_text("[" * 200_000), r"is not JSON"),
        (lambda o: (o / "manifest.json").write_text('{"format": 1, "format": 2}'), r"a key stands twice"),
        (lambda o: (o / "manifest.json").write_text("[]"), r"has another format"),
        (lambda o: _edit_manifest(o, lambda m: m.update(format="v2")), r"has another format"),
        (lambda o: _edit_manifest(o, lambda m: m.update(files=[])), r'has no "files"'),
        (lambda o: _edit_manifest(o, lambda m: m["files"].update({"../x": _ENTRY})), r"path '\.\./x' .*stays in"),
        (lambda o: _edit_manifest(o, lambda m: m["files"].update({"a/../../x": _ENTRY})), r"stays in the directory"),
        (lambda o: _edit_manifest(o, lambda m: m["files"].update({"/etc/passwd": _ENTRY})), r"stays in the directory"),
        (lambda o: _edit_manifest(o, lambda m: m["files"].update({"a\\b": _ENTRY})), r"stays in the directory"),
        (lambda o: _edit_manifest(o, lambda m: m["files"].update({"a\0b": _ENTRY})), r"stays in the directory"),
        (lambda o: _edit_manifest(o, lambda m: m["files"].update({"": _ENTRY})), r"stays in the directory"),
        (lambda o: _edit_manifest(o, lambda m: m["files"].update({"./empty": _ENTRY})), r"stays in the directory"),
        (lambda o: _edit_manifest(o, lambda m: m["files"].update(empty=3)), r"entry 'empty'"),
        (lambda o: _edit_manifest(o, lambda m: m["files"]["empty"].update(bytes=-1)), r"entry 'empty'"),
        (lambda o: _edit_manifest(o, lambda m: m["files"]["empty"].update(bytes=True)), r"entry 'empty'"),
        (lambda o: _edit_manifest(o, lambda m: m["files"]["empty"].update(sha256="F" * 64)), r"entry 'empty'"),
        (lambda o: _edit_manifest(o, lambda m: m["files"].pop("empty")), r"empty is not in the manifest"),
        (lambda o: _edit_manifest(o, lambda m: m["files"]["empty"].update(mode=1)), r"entry 'empty'"),
        (lambda o: _edit_manifest(o, lambda m: m.update(note="")), r"has a key 'note'"),
        (lambda o: _edit_manifest(o, lambda m: m["files"].pop("empty"), seals=False), r"json is altered, its files'"),
        (lambda o: _edit_manifest(o, lambda m: m.update(sha256=[]), seals=False), r"expected \[\]"),
    ],
)
def test_verify_manifest_names_the_damage(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    out = _whole(tmp_path)
    runs.verify_manifest(out)
    damage(out)
    with pytest.raises(ValueError, match=rf"manifest: .*{message}"):
        runs.verify_manifest(out)


def test_every_bit_of_a_manifest_counts_for_who_reads_a_part_of_the_run(tmp_path: Path) -> None:
    out = _whole(tmp_path)
    manifest = out / "manifest.json"
    data = manifest.read_bytes()
    runs.verify_files(out, lambda name: False)  # nothing is read but the manifest
    for bit in range(8 * len(data)):
        altered = bytearray(data)
        altered[bit // 8] ^= 1 << bit % 8
        manifest.write_bytes(altered)
        with pytest.raises(ValueError, match=r"manifest: .*manifest\.json"):
            runs.verify_files(out, lambda name: False)


def test_a_manifest_without_a_seal_is_read(tmp_path: Path) -> None:
    out = _whole(tmp_path)  # as runs of before had it
    _edit_manifest(out, lambda m: m.pop("sha256"), seals=False)
    runs.verify_manifest(out)
    runs.amend_manifest(out, ["empty"])
    assert runs.verify_manifest(out)["sha256"] == manifests._seal(runs.verify_manifest(out)["files"])


def test_a_manifest_of_no_directory_and_one_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"manifest: .*nowhere is not a directory"):
        runs.verify_manifest(tmp_path / "nowhere")
    out = _whole(tmp_path)
    monkeypatch.setattr(settings_files, "MAX_SETTINGS_BYTES", 10)
    with pytest.raises(ValueError, match=r"manifest\.json has \d+ bytes; expected at most 10"):
        runs.verify_manifest(out)


@given(data=st.binary(max_size=60))
@settings(max_examples=100, deadline=None)
def test_readers_refuse_any_bytes_with_a_value_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    directory = tmp_path_factory.mktemp("fuzz")
    (directory / "manifest.json").write_bytes(data)
    (directory / "config.toml").write_bytes(data)
    with pytest.raises(ValueError, match="manifest: "):
        runs.verify_manifest(directory)
    try:
        message = f"config: {runs.read_config(directory)}"
    except ValueError as error:
        message = str(error)
    assert message.startswith("config: ")


def test_finishing_refuses_a_link_and_keeps_the_partial(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="symbolic link"), runs.open_run(tmp_path / "run", CONFIG) as run:
        (run.path / "l").symlink_to("/etc/hostname")
    assert (tmp_path / "run.partial").is_dir()
    assert not (tmp_path / "run").exists()


def test_a_directory_made_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="was made by another process meanwhile"),
        runs.open_run(tmp_path / "run", CONFIG),
    ):
        (tmp_path / "run").mkdir()
    assert (tmp_path / "run.partial" / "config.toml").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff", "is not UTF-8"),
        (b"a = ", "is not TOML"),
        (b"a = " + b"[" * 50_000, "is not TOML"),
        (None, "is missing"),
    ],
)
def test_read_config_refuses(tmp_path: Path, data: bytes | None, message: str) -> None:
    if data is not None:
        (tmp_path / "config.toml").write_bytes(data)
    with pytest.raises(ValueError, match=rf"config: .*config\.toml {message}"):
        runs.read_config(tmp_path)


# --- atomic writes


def test_atomic_write_replaces_or_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "f"
    runs.atomic_write(file, "naïve\n")
    assert file.read_bytes() == "naïve\n".encode()
    runs.atomic_write(file, b"\0\1")
    assert file.read_bytes() == b"\0\1"

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        runs.atomic_write(file, b"new")
    assert file.read_bytes() == b"\0\1"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_disk_that_is_full_at_the_start_leaves_nothing_and_at_the_end_the_partial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsync is where a full disk shows last; it fails at the n-th call, for every n that a run makes."""
    calls, real, n = 0, os.fsync, 0

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == n:
            raise OSError(28, "No space left on device")
        real(descriptor)

    def job(resume: bool) -> None:
        with runs.open_run(tmp_path / "run", CONFIG, resume=resume) as run:
            (run.path / "x").write_text("x")

    monkeypatch.setattr(os, "fsync", fsync)
    for n in range(1, 100):
        calls = 0
        try:
            job(resume=False)
        except OSError:
            left = sorted(p.name for p in tmp_path.iterdir())
            assert left in ([], ["run.partial"], ["run"])
            if left == ["run.partial"]:
                n_failed, n = n, 0
                job(resume=True)
                n = n_failed
            if left:
                runs.verify_manifest(tmp_path / "run")
                shutil.rmtree(tmp_path / "run")
            continue
        break
    assert 8 < n < 99
    runs.verify_manifest(tmp_path / "run")


def test_nothing_is_written_into_a_finished_run(tmp_path: Path) -> None:
    """Its manifest would no longer be true: --resume, --reuse and who verifies it would refuse it."""
    out = _whole(tmp_path)
    with pytest.raises(ValueError, match=r"more lies in .*run, a finished run"), runs.open_run(out / "more", CONFIG):
        pass
    runs.verify_manifest(out)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text("{}")  # of whoever else
    with runs.open_run(tmp_path / "other" / "mine", CONFIG):
        pass


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
def test_a_place_where_no_file_can_be_made_is_no_race(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), runs.open_run("/proc/run", CONFIG):
        pass


# --- whole runs made unfinished again


def test_a_reopened_run_is_resumed_and_becomes_whole_again(tmp_path: Path) -> None:
    out = _whole(tmp_path)
    assert runs.reopen(out, CONFIG) == tmp_path / "run.partial"
    assert [p.name for p in tmp_path.iterdir()] == ["run.partial"]
    assert sorted(p.name for p in (tmp_path / "run.partial").iterdir()) == [
        "config.toml", "empty", "tables", "weights.bin",
    ]  # fmt: skip
    with runs.open_run(out, CONFIG, resume=True) as run:
        assert run.is_resumed
        (run.path / "empty").write_text("filled")
    assert runs.verify_manifest(out)["files"]["empty"]["bytes"] == 6


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda o: (o / "empty").write_text("x"), r"manifest: .*empty is altered"),
        (lambda o: (o / "manifest.json").unlink(), r"manifest\.json is missing"),
        (lambda o: shutil.rmtree(o), r"run is not a directory"),
        (lambda o: o.with_name("run.partial").mkdir(), r"run\.partial is an unfinished run"),
        (lambda o: shutil.copytree(o, o / "inner"), r"inner.*not in the manifest"),
    ],
)
def test_only_a_whole_run_is_reopened(tmp_path: Path, prepare: Callable[[Path], object], message: str) -> None:
    out = _whole(tmp_path)
    prepare(out)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=message):
        runs.reopen(out, CONFIG)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_is_not_reopened_with_another_config(tmp_path: Path) -> None:
    out = _whole(tmp_path)
    with pytest.raises(ValueError, match="resume: seed is 3"):
        runs.reopen(out, {**CONFIG, "seed": 1})
    runs.verify_manifest(out)


def test_a_run_inside_a_finished_run_or_being_written_is_not_reopened(tmp_path: Path) -> None:
    with runs.open_run(tmp_path / "study", CONFIG) as study:
        _whole(study.path)
    with pytest.raises(ValueError, match=r"lies in .*study, a finished run"):
        runs.reopen(tmp_path / "study" / "run", CONFIG)
    runs.reopen(tmp_path / "study", CONFIG)
    with (
        runs.open_run(tmp_path / "study", CONFIG, resume=True) as study,
        pytest.raises(ValueError, match="is being written by process"),
    ):
        runs.reopen(tmp_path / "study", CONFIG)
    runs.verify_manifest(tmp_path / "study" / "run")  # a run within it stays whole


def test_a_kill_while_a_run_is_reopened_loses_nothing(tmp_path: Path) -> None:
    """SIGKILL before the n-th change of a name, and before the n-th fsync, for every n that `reopen` makes."""
    names = {"rename": Path, "unlink": Path, "fsync": os}
    left = []
    for n in range(1, 20):
        out = _whole(tmp_path / str(n))
        if (pid := os.fork()) == 0:
            calls = [0]

            def count(real: Callable, calls: list[int] = calls, n: int = n) -> Callable:
                def counted(*arguments: object, **options: object) -> object:
                    calls[0] += 1
                    if calls[0] == n:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return real(*arguments, **options)

                return counted

            for name, where in names.items():
                setattr(where, name, count(getattr(where, name)))
            runs.reopen(out, CONFIG)
            os._exit(0)
        status = os.waitpid(pid, 0)[1]
        left.append(sorted(p.name for p in out.parent.iterdir() if p.suffix != ".lock"))
        if left[-1] == ["run"]:
            runs.verify_manifest(out)
            runs.reopen(out, CONFIG)
        with runs.open_run(out, CONFIG, resume=True) as run:
            assert run.is_resumed
            (run.path / "again").write_text(str(n))
        files = runs.verify_manifest(out)["files"]
        assert files.keys() == {"again", "config.toml", "empty", "env.json", "tables/a.csv", "weights.bin"}
        assert [p.name for p in out.parent.iterdir()] == ["run"]
        if os.WIFEXITED(status):
            break
    assert len(left) == 7  # rename, fsync, two unlinks, fsync, and the lock's removal
    assert left == [["run"]] + [["run.partial"]] * 6
