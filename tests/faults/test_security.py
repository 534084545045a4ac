"""No pickle is read, no foreign code runs, no shell is asked, and no socket is opened unless a hub name was given."""

from __future__ import annotations

import ast
import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from damage import copy
from grounds import call
from processes import environment

ROOT = Path(__file__).parents[2]
FILES = sorted(file for package in ("workbench", "sae", "probes", "reports") for file in (ROOT / package).rglob("*.py"))
MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "commands", "pty"}
CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.execv", "os.execvp", "os.spawnl",
    "torch.load", "torch.save", "torch.jit.load", "torch.hub.load", "yaml.load", "yaml.unsafe_load",
    "subprocess.getoutput", "subprocess.getstatusoutput", "pandas.read_pickle", "pd.read_pickle",
}  # fmt: skip
# keyword -> the values that it may have
KEYWORDS = {"shell": {False}, "allow_pickle": {False}, "trust_remote_code": {False}, "weights_only": {True}}


def faults(source: str) -> list[str]:
    """What a source does that none of ours may, by line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(node.module or "").split(".")[0]]
        found += [f"{node.lineno}: imports {name}" for name in names if name in MODULES]
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in CALLS:
                found.append(f"{node.lineno}: calls {called}")
            for keyword in node.keywords:
                allowed = KEYWORDS.get(keyword.arg or "")
                if allowed is not None and not (
                    isinstance(keyword.value, ast.Constant) and keyword.value.value in allowed
                ):
                    found.append(f"{node.lineno}: {keyword.arg} = {ast.unparse(keyword.value)}")
        elif isinstance(node, ast.Name) and node.id in ("eval", "exec"):  # handed on under another name
            found.append(f"{node.lineno}: names {node.id}")
    return found


def test_no_source_of_ours_reads_pickles_runs_code_or_asks_a_shell(tally) -> None:
    wrong = {str(file.relative_to(ROOT)): own for file in FILES if (own := faults(file.read_text(encoding="utf-8")))}
    tally("security", "source files without pickle, eval, exec or a shell", len(FILES), len(FILES) - len(wrong))
    assert not wrong


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "def f():\n    import dill", "eval('1')", "run = exec",
        "import torch\ntorch.load('x')", "np.load('x', allow_pickle=True)", "subprocess.run('ls', shell=True)",
        "load('x', trust_remote_code=True)", "load('x', trust_remote_code=flag)", "os.system('ls')",
        "torch.load('x', weights_only=False)", "compile('1', 'x', 'eval')",
    ],
)  # fmt: skip
def test_the_scan_sees_it(source) -> None:
    assert faults(source)


class Bomb:
    """What leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def _zipped(data: bytes, file: Path) -> None:
    """The form of torch.save."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")


# where a pickle is put (in a copy of what lies in the ground), and what is then read
PICKLES = {
    "a checkpoint's weights": ("model", "x/model.safetensors", "hooks --ckpt x"),
    "a checkpoint's configuration": ("model", "x/hooked_config.json", "hooks --ckpt x"),
    "a checkpoint's tokenizer": ("model", "x/tokenizer.json", "hooks --ckpt x"),
    "a folder's weights": ("hf", "x/model.safetensors", "import x --out y"),
    "a folder's pytorch_model.bin": ("hf", "x/pytorch_model.bin", "import x --out y"),
    "a folder's model.pt": ("hf", "x/model.pt", "import x --out y"),
    "a folder's vocabulary": ("hf", "x/tokenizer.json", "import x --out y"),
    "a text": ("model", "x/text.pkl", "evaluate --ckpt {model} --data x/text.pkl"),
    "a text by another name": ("model", "x/text.jsonl", "evaluate --ckpt {model} --data x/text.jsonl"),
    "a table by another name": ("model", "x/text.parquet", "evaluate --ckpt {model} --data x/text.parquet"),
    "a tokenizer": ("model", "x/t.json", "train {recipe.toml} --tokenizer x/t.json"),
    "a recipe": ("model", "x/recipe.toml", "train x/recipe.toml"),
    "concepts": ("model", "x/c.toml", "probe --ckpt {model} --concepts x/c.toml"),
    "prompts": ("model", "x/p.toml", "text-quality --ckpt {model} --prompts x/p.toml"),
    "a GGUF file": ("model", "x/m.gguf", "hooks --ckpt x/m.gguf"),
    "a checkpoint by its file": ("model", "x/model.ckpt", "hooks --ckpt x/model.ckpt"),
}


@pytest.mark.parametrize("form", ["pickle", "zip"])
@pytest.mark.parametrize("where", list(PICKLES))
def test_a_pickle_is_never_opened(ground, home, tally, where, form) -> None:
    tally("security", "pickles in places where files are read", 1, 0)
    source, file, command = PICKLES[where]
    copy(ground[source], "x")
    mark, data = home / "mark", pickle.dumps(Bomb(home / "mark"))
    pickle.loads(data)
    assert mark.exists(), "it would leave its mark"
    mark.unlink()
    if form == "zip":
        _zipped(data, Path(file))
    else:
        Path(file).write_bytes(data)
    if file.endswith((".bin", ".pt")):
        Path("x/model.safetensors").unlink()
    shutil.rmtree("x/manifest.json", ignore_errors=True)
    result = call(*ground.fill(command))
    assert not mark.exists()
    assert result.exit_code == 1, result.output
    assert "--debug shows where" not in result.stderr
    tally("security", "pickles in places where files are read", 0, 1)


CODE = "import pathlib\npathlib.Path({mark!r}).touch()\nclass Evil:\n    pass\nEvilConfig = EvilTokenizer = Evil\n"


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"auto_map": {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.Evil"}}),
        ("config.json", {"model_type": "evil", "auto_map": {"AutoConfig": "evil.EvilConfig"}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.EvilTokenizer", None]}}),
        ("tokenizer_config.json", {"tokenizer_class": "EvilTokenizer",
                                   "auto_map": {"AutoTokenizer": ["evil.EvilTokenizer", None]}}),
    ],
)  # fmt: skip
def test_code_that_a_folder_brings_along_is_not_run(ground, home, tally, file, changes) -> None:
    tally("security", "code brought along by a model's folder", 1, 0)
    copy(ground["hf"], "x")
    for name in ("manifest.json", "config.toml"):
        Path("x", name).unlink()
    content = json.loads(Path("x", file).read_text()) if Path("x", file).is_file() else {}
    Path("x", file).write_text(json.dumps(content | changes))
    for name in ("evil.py", "__init__.py", "setup.py", "conftest.py"):
        Path("x", name).write_text(CODE.format(mark=str(home / "mark")))
    call("import", "x", "--out", "y")
    assert not (home / "mark").exists()
    tally("security", "code brought along by a model's folder", 0, 1)


# every way out of the machine is refused and counted, while every verb of the ground runs
WATCHED = """
import json, sys
tried = []

def watch(event, arguments):
    if event in ("socket.connect", "socket.sendto"):
        if isinstance(arguments[1], tuple):
            tried.append(str(arguments[1]))
            raise OSError("no network")
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "urllib.Request"):
        tried.append(str(arguments[0]))
        raise OSError("no network")

sys.addaudithook(watch)
sys.path[:0] = sys.argv[2:]
import warnings
from pathlib import Path
from grounds import MADE, call, write_ground
warnings.simplefilter("ignore")
ground = write_ground(Path(sys.argv[1]))
for name in MADE:
    ground.run(name)
more = ["hooks --ckpt {model}", "recipes", "generate --ckpt {model} the", "report {study}", "atlas {study}",
        "attention --ckpt {model} --data {text.txt} --n-tokens 96 --out {cache}/a",
        "attention-patterns --ckpt {model} --data {text.txt} --n-tokens 96 --out {cache}/p",
        "compare {model} {twin} --data {text.txt} --n-sequences 8 --out {cache}/c",
        "evaluate --ckpt {model} --data {text.txt} --stride 24 --out {cache}/e",
        "export --ckpt {model} --to transformer-lens --out {cache}/t",
        "export --ckpt {saes} --to sae-lens --out {cache}/s",
        "import {hf} --out {cache}/i",
        "text-quality --ckpt {model} --prompts {prompts.toml} --recall {recall.toml} --tagger none --n-samples 1 "
        "--max-new-tokens 4 --out {cache}/q"]
for command in more:
    result = call(*ground.fill(command))
    assert result.exit_code == 0, (command, result.output)
print(json.dumps({"tried": tried, "n_verbs": len(MADE) + len(more)}))
"""


@pytest.mark.full
def test_no_verb_opens_a_socket_unless_a_hub_name_was_given(tmp_path, tally) -> None:
    here = Path(__file__).parent
    command = [sys.executable, "-c", WATCHED, str(tmp_path / "g"), str(here), str(here.parent / "workbench"), str(ROOT)]
    (tmp_path / "g").mkdir()
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    tally("security", "verbs without a hub name that open no socket", found["n_verbs"],
          found["n_verbs"] - min(found["n_verbs"], len(found["tried"])))  # fmt: skip
    assert not found["tried"]


OFFLINE = """
import json, socket, sys
sys.path[:0] = sys.argv[1:]
connected, real = [], socket.socket.connect

def connect(self, address):
    connected.append(str(address))
    return real(self, address)

socket.socket.connect = connect
from typer.testing import CliRunner
from workbench.cli.app import app
results = [CliRunner().invoke(app, ["--offline", *command.split()]) for command in json.loads(sys.stdin.read())]
print(json.dumps([connected, [[one.exit_code, one.stdout, one.stderr] for one in results]]))
"""
HUB_NAMES = (
    "hooks --ckpt no-such-owner/no-such-model", "train janus-v3-control-nano --data no-such-owner/no-such-data",
    "train janus-v3-control-nano --tokenizer no-such-owner/no-such-tokenizer", "import no-such-owner/no-such-model",
)  # fmt: skip


def test_offline_refuses_a_hub_name_without_a_connection(tmp_path, tally) -> None:
    """Its own process: what --offline refuses is refused until the process ends."""
    own = environment(HF_HOME=str(tmp_path / "hub"))
    command = [sys.executable, "-c", OFFLINE, str(ROOT)]
    done = subprocess.run(
        command, input=json.dumps(HUB_NAMES), capture_output=True, text=True, cwd=tmp_path, env=own, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    connected, results = json.loads(done.stdout.splitlines()[-1])
    is_right = [
        code == 1 and not said and error.startswith("error: ") and len(error.strip().splitlines()) == 1
        for code, said, error in results
    ]
    tally(
        "security", "hub names refused by --offline without a connection", len(results), sum(is_right) * (not connected)
    )
    assert not connected
    assert all(is_right), results


def test_offline_refuses_any_connection() -> None:
    code = (
        "import socket\n"
        "from workbench.cli.offline import stay_offline\n"
        "stay_offline()\n"
        "for reach in (lambda: socket.create_connection(('192.0.2.1', 80), 1),\n"
        "              lambda: socket.getaddrinfo('a.invalid', 80),\n"
        "              lambda: socket.socket().connect(('192.0.2.1', 80))):\n"
        "    try:\n"
        "        reach()\n"
        "    except OSError as error:\n"
        "        assert str(error).startswith('offline: got a connection to '), error\n"
        "    else:\n"
        "        raise AssertionError\n"
        "server = socket.create_server(('127.0.0.1', 0))\n"
        "socket.create_connection(server.getsockname(), 1).close()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=environment())
