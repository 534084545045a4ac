"""Verbs with files of text that they cannot take: recipes, studies, concepts, prompts, corpora, tokenizers."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path

import pytest
from bad import refuse

DEEP = 100_000  # brackets that no recursive reader survives unless it says so
HUGE = "#" * ((1 << 20) + 1)
PHASE = "[[phases]]\nn_steps = 1\nbatch_size = 1\n"
MODEL = "[model]\nn_layers = 1\nd_model = 8\nn_heads = 2\nd_head = 4\nd_mlp = 8\nn_ctx = 16\nd_vocab = 300\n"
RECIPE = f'name = "a"\n{MODEL}{PHASE}'
STUDY = 'name = "s"\nmodels = ["janus-v3-control-nano"]\n'
SET = 'category = "thing"\ntopology = "ordinal"\nwords = ["king", "queen", "river"]\n'
RECALL = 'statement = "{name} has {value}."\nquestion = "{name} has {value}"\nnames = ["A", "B"]\nvalues = ["c", "d"]\n'

# name, what the file holds, part of the one line that `train FILE` says
RECIPES = [
    ("empty", "", "name: Field required"),
    ("not UTF-8", b"\xffname", "is not UTF-8"),
    ("a NUL", b'name = "a\0b"', "is not TOML"),
    ("a byte-order mark in UTF-16", RECIPE.encode("utf-16"), "is UTF-16; expected UTF-8"),
    ("half a line", "name =", "is not TOML"),
    ("a key twice", 'name = "a"\nname = "b"', "is not TOML"),
    ("deep brackets", "a = " + "[" * DEEP, "is not TOML"),
    ("deep tables", "a = " + "{a = " * DEEP, "is not TOML"),
    ("too large", HUGE, "expected at most 1048576"),
    ("a huge integer", RECIPE.replace("n_steps = 1", f"n_steps = {'9' * 5000}"), "is not TOML"),
    ("a name of nothing", RECIPE.replace('"a"', '""'), "name: String should have at least 1 character"),
    ("a name that leads away", RECIPE.replace('"a"', '"../../away"'), "name: got '../../away'; expected"),
    ("a name with a slash", RECIPE.replace('"a"', '"a/b"'), "name: got 'a/b'; expected"),
    ("a name of dots", RECIPE.replace('"a"', '".."'), "name: got '..'; expected"),
    ("a name with a line break", RECIPE.replace('"a"', '"a\\nb"'), "name: got"),
    ("a number for a name", RECIPE.replace('"a"', "3"), "name: Input should be a valid string (got 3)"),
    ("no model", f'name = "a"\n{PHASE}', "model: Field required"),
    ("a word for a model", f'name = "a"\nmodel = "big"\n{PHASE}', "model:"),
    ("no phase", f'name = "a"\nphases = []\n{MODEL}', "phases: Tuple should have at least 1 item"),
    ("phases that are none", f'name = "a"\nphases = "one"\n{MODEL}', "phases: Input should be a valid tuple"),
    ("an unknown key", RECIPE + "n_step = 3\n", "unknown key 'phases.0.n_step'; nearest: n_steps"),
    ("an unknown table", RECIPE + "[modell]\nx = 1\n", "unknown key 'modell'; nearest: model"),
    ("two phases of one name", RECIPE + PHASE, "expected each name once"),
    *((f"n_steps {value}", RECIPE.replace("n_steps = 1", f"n_steps = {value}"), "phases.0.n_steps: Input should be")
      for value in ("0", "-1", "1.5", "nan", "inf", "'many'", "[1]", "{}", "2024-01-01")),
    *((f"{key} {value}", RECIPE.replace(f"\n{key} = ", f"\n{key} = {value} #"), f"{key}: Input should be")
      for key, value in (("n_layers", "0"), ("d_model", "-8"), ("n_ctx", "0"), ("d_vocab", "1"), ("n_heads", "0"),
                         ("d_head", "'four'"), ("d_mlp", "1e400"))),
    ("an unknown activation", RECIPE.replace("d_mlp = 8", 'd_mlp = 8\nact_fn = "sin"'), "act_fn: Input should be"),
    ("an infinite softcap", RECIPE.replace("d_mlp = 8", "d_mlp = 8\noutput_logits_soft_cap = inf"),
     "output_logits_soft_cap: Input should be a finite number"),
    ("a clip of nan", RECIPE + "clip_norm = nan\n", "clip_norm: Input should be a finite number"),
    ("a clip of 0", RECIPE + "clip_norm = 0\n", "clip_norm: Input should be greater than 0"),
    ("an unknown phase", RECIPE + 'kind = "dreams"\n', "phases.0.kind: Input should be 'language' or 'nca'"),
    ("unknown automata", RECIPE + 'kind = "nca"\nnca = "life"\n', "nca: got 'life'; expected settings, or one of"),
    ("held out all", RECIPE + "[data]\nheld_out_fraction = 1\n", "held_out_fraction: Input should be less than 1"),
    ("heads in groups that do not divide", RECIPE.replace("d_mlp = 8", "d_mlp = 8\nn_key_value_heads = 3"),
     "n_key_value_heads"),
    ("a learning rate below 0", RECIPE + "[phases.optimizer.adamw]\nlr = -1.0\n", "lr: Input should be"),
    ("a learning rate of nan", RECIPE + "[phases.optimizer.adamw]\nlr = nan\n", "lr: Input should be a finite"),
    ("checkpoints every 0", RECIPE + "[checkpoint]\nevery = 0\n", "checkpoint.every: Input should be"),
]  # fmt: skip

# name, what the file holds, part of the one line that `study FILE` says
STUDIES = [
    ("empty", "", "models: Field required"),
    ("not UTF-8", b"\x80", "is not UTF-8"),
    ("deep brackets", "a = " + "[" * DEEP, "is not TOML"),
    ("too large", HUGE, "expected at most 1048576"),
    ("no models", 'name = "s"\nmodels = []', "models: Tuple should have at least 1 item"),
    ("a model that is not there", 'name = "s"\nmodels = ["nope"]', "recipe: no recipe or file 'nope'"),
    ("a model twice", 'name = "s"\nmodels = ["janus-v3-control-nano", "janus-v3-control-nano"]', "expected each once"),
    ("an unknown analysis", STUDY + 'analyses = ["magic"]', "analyses"),
    ("features without SAEs", STUDY + 'analyses = ["atlas"]', "'atlas' reads 'sae-train'; expected"),
    ("a role without a model", STUDY + 'roles = {control = "x"}', "roles.control: got 'x'; expected one of the models"),
    ("no seeds", STUDY + "n_seeds = 0", "n_seeds: Input should be"),
    ("l1 below 0", STUDY + "[settings.sae-train]\nl1 = [-1.0]", "l1: got [-1.0]; expected finite"),
    ("l1 that is no number", STUDY + "[settings.sae-train]\nl1 = [nan]", "l1.0"),
    ("an unknown key", STUDY + "seed = 3", "unknown key 'seed'; nearest"),
    ("a setting that no recipe has", STUDY + 'train = {"model.x" = 1}', "unknown key 'x'"),
]  # fmt: skip

# name, what the file holds, part of the one line that `probe --concepts FILE` says
CONCEPTS = [
    ("empty", "", "is empty; expected a table [name] for each set"),
    ("not UTF-8", b"\xff", "is not UTF-8"),
    ("deep brackets", "a = " + "[" * DEEP, "is not TOML"),
    ("too large", HUGE, "expected at most 1048576"),
    ("no table", "a = 3", "a is a int; expected a table [a]"),
    ("an empty table", "[a]", "category: Field required"),
    ("an unknown key", f"[a]\n{SET}word = 3", "unknown key 'word'; nearest: words"),
    ("an unknown topology", f"[a]\n{SET}".replace("ordinal", "knot"), "topology: Input should be"),
    ("two words", f"[a]\n{SET}".replace(', "river"', ""), "words: got 2; expected at least 3"),
    ("a word twice", f"[a]\n{SET}".replace("river", "king"), "'king'"),
    ("an empty word", f"[a]\n{SET}".replace("river", ""), "''"),
    ("a word in white space", f"[a]\n{SET}".replace("river", " river"), "' river'"),
    ("numbers for words", f"[a]\n{SET}".replace('"river"', "3"), "words.2: Input should be a valid string"),
    ("too few positions", f"[a]\n{SET}positions = [1, 2]", "positions: got 2 for 3 words; expected one each"),
    ("positions of nan", f"[a]\n{SET}positions = [1, 2, nan]", "positions.2: Input should be a finite number"),
    ("positions without end", f"[a]\n{SET}positions = [1, 2, inf]", "positions.2: Input should be a finite number"),
    ("a period of 0", f"[a]\n{SET}period = 0".replace("ordinal", "cyclic"), "period: Input should be greater"),
    ("a period on a line", f"[a]\n{SET}period = 3", 'period: given for topology = "ordinal"'),
    ("latitudes out of range",
     f"[a]\n{SET}latitudes = [1, 2, 91]\nlongitudes = [1, 2, 3]".replace("ordinal", "geographic"),
     "latitudes: got 1 … 91; expected degrees"),
    ("no longitudes", f"[a]\n{SET}latitudes = [1, 2, 3]".replace("ordinal", "geographic"), "longitudes: got 0 for 3"),
    ("words in pairs", f"[a]\n{SET}".replace("ordinal", "paired"), "words: given for a paired set"),
    ("a set of ours again", f"[months]\n{SET}", "months given twice; expected another name"),
]  # fmt: skip

# name, what the file holds, part of the one line that `text-quality --prompts FILE` says
PROMPTS = [
    ("empty", "", "prompts.toml is empty; expected a table [name] for each kind"),
    ("not UTF-8", b"\xff", "is not UTF-8"),
    ("deep brackets", "a = " + "[" * DEEP, "is not TOML"),
    ("too large", HUGE, "expected at most 1048576"),
    ("no table", "a = 3", "a is a int; expected a table [a]"),
    ("no prompts", "[a]\nprompts = []", "[a] prompts: Tuple should have at least 1 item"),
    ("an empty prompt", '[a]\nprompts = [""]', "expected text without white space around it"),
    ("a prompt in white space", '[a]\nprompts = ["the "]', "expected text without white space around it"),
    ("a prompt twice", '[a]\nprompts = ["the king", "the king"]', "stands twice; expected each once"),
    ("a prompt in two tables", '[a]\nprompts = ["the"]\n[b]\nprompts = ["the"]', "stands twice; expected each once"),
    ("an unknown key", '[a]\nprompts = ["the"]\nprompt = "x"', "unknown key 'prompt'"),
    ("a prompt that is too long", f'[a]\nprompts = ["{"the king " * 40}x"]', "short of the model's n_ctx = 48"),
]
RECALLS = [
    ("empty", "", "recall.toml is empty; expected a table [name] for each kind"),
    ("no question", f"[a]\n{RECALL}".replace("question", "# question"), "question: Field required"),
    ("a question that goes on", f"[a]\n{RECALL}".replace('{value}"\nn', '{value} now"\nn'), "ends in ' {value}'"),
    ("a statement without name", f"[a]\n{RECALL}".replace('statement = "{name}', 'statement = "It'), "one {name}"),
    ("one name", f"[a]\n{RECALL}".replace('"A", ', ""), "names: Tuple should have at least 2 items"),
    ("a value twice", f"[a]\n{RECALL}".replace('"d"', '"c"'), "'c' stands twice; expected each once"),
]


def _line(text: object, **more: object) -> bytes:
    return (json.dumps({"text": text} | more) + "\n").encode()


WHOLE = _line("the king walked and the queen sang.") * 3
# name of the file, what it holds, part of the one line that `evaluate --data FILE` says
DATA = [
    ("a.txt", b"", "a.txt is empty; expected text"),
    ("a.txt", b" \n\t\n", "a.txt holds no text; expected at least one document that is not blank"),
    ("a.txt", b"the king\nthe \xff queen\n", "a.txt line 2 is not UTF-8"),
    ("a.txt", "the king".encode("utf-16"), "a.txt line 1 is UTF-16; expected UTF-8"),
    ("a.txt", b"x", "expected enough to hold out"),
    ("a.csv", b"text\nking\n", "a.csv is of no known kind; expected one of"),
    ("a.pkl", b"\x80\x04.", "a.pkl is of no known kind; expected one of"),
    ("a.jsonl", b"[" * DEEP, "a.jsonl line 1 is not JSON"),
    ("a.jsonl", b'{"text": ' * DEEP, "a.jsonl line 1 is not JSON"),
    ("a.jsonl", WHOLE + b'{"text": ', "a.jsonl line 4 is not JSON"),
    ("a.jsonl", WHOLE + b"[]\n", "a.jsonl line 4 is a list; expected an object with 'text'"),
    ("a.jsonl", WHOLE + b"3\n", "a.jsonl line 4 is a int; expected an object"),
    ("a.jsonl", WHOLE + _line(3), "a.jsonl line 4 has a int in 'text'; expected text"),
    ("a.jsonl", WHOLE + b'{"txt": "x"}\n', "a.jsonl line 4 has no 'text'; expected one of txt"),
    ("a.jsonl", WHOLE + b'{"text": "\\ud800"}\n', "a.jsonl line 4 holds half of a surrogate pair"),
    ("a.jsonl", WHOLE + b'{"text": "\xff"}\n', "a.jsonl line 4 is not UTF-8"),
    ("a.jsonl", b'{"text": ""}\n' * 3, "a.jsonl holds no text"),
    ("a.jsonl.gz", gzip.compress(WHOLE)[:-12], "a.jsonl.gz is damaged after line"),
    ("a.jsonl.gz", b"\x1f\x8b\x08 not gzip", "a.jsonl.gz is damaged after line 0"),
    ("a.jsonl.gz", WHOLE, "a.jsonl.gz is damaged after line 0"),
    ("a.txt.xz", lzma.compress(b"king " * 500)[:-20], "a.txt.xz is damaged after line"),
    ("a.txt.xz", b"", "a.txt.xz is empty; expected text"),
    ("a.parquet", b"PAR1 and no more", "a.parquet is not Parquet, or damaged"),
    ("a.parquet", b"", "a.parquet is empty; expected text"),
    ("a.txt/b.log", b"the king", "a.txt holds no file to read; expected files ending in"),
    ("a.txt/b.txt", b"\xff", "b.txt line 1 is not UTF-8"),
]


def _tokenizer(**changes: object) -> bytes:
    """A tokenizer of five words, with what is changed."""
    plain = {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "WordLevel", "vocab": {"</s>": 0, "the": 1, "king": 2}, "unk_token": "the"},
    }
    return json.dumps(plain | changes).encode()


# name, what the file holds, part of the one line that `train --tokenizer FILE` says
TOKENIZERS = [
    ("empty", b"", "t.json cannot be read"),
    ("not JSON", b"{", "t.json cannot be read"),
    ("not UTF-8", b"\xff\xff", "t.json cannot be read"),
    ("deep brackets", b"[" * DEEP, "t.json cannot be read"),
    ("deep objects", b'{"model": ' * DEEP, "t.json cannot be read"),
    ("a number", b"3", "t.json cannot be read"),
    ("a list", b"[]", "t.json cannot be read"),
    ("an unknown model", _tokenizer(model={"type": "Magic"}), "t.json cannot be read"),
    ("a word for an id", _tokenizer(model={"type": "WordLevel", "vocab": {"a": "b"}, "unk_token": "a"}), "cannot be"),
    ("an id below 0", _tokenizer(model={"type": "WordLevel", "vocab": {"</s>": -1}, "unk_token": "a"}), "cannot be"),
    ("an id that is huge",
     _tokenizer(model={"type": "WordLevel", "vocab": {"</s>": 0, "a": 4_000_000_000}, "unk_token": "a"}),
     "expected at most d_vocab = 300"),
    ("no end of text", _tokenizer(model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}),
     "nothing says which token ends a text (special tokens: none); expected eos_token in"),
    ("a merge of what is not there",
     _tokenizer(model={"type": "BPE", "vocab": {"</s>": 0, "a": 1}, "merges": [["b", "c"]]}), "t.json cannot be read"),
    ("larger than the model's vocabulary",
     _tokenizer(model={"type": "WordLevel", "vocab": {f"w{i}": i for i in range(1, 400)} | {"</s>": 0},
                       "unk_token": "w1"}),
     "d_vocab"),
]  # fmt: skip


def _cases():
    def put(table, file, command):
        for name, content, message in table:
            yield f"{command.split()[0]} {file}: {name}", file, content, command, message

    yield from put(RECIPES, "bad.toml", "train bad.toml")
    yield from put(STUDIES, "bad.toml", "study bad.toml")
    yield from put(CONCEPTS, "bad.toml", "probe --ckpt {model} --concepts bad.toml")
    yield from put(PROMPTS, "prompts.toml", "text-quality --ckpt {model} --prompts prompts.toml --max-new-tokens 4")
    yield from put(RECALLS, "recall.toml", "text-quality --ckpt {model} --recall recall.toml --max-new-tokens 4")
    yield from put(TOKENIZERS, "t.json", "train {recipe.toml} --tokenizer t.json")
    for i, (file, content, message) in enumerate(DATA):
        command = f"evaluate --ckpt {{model}} --stride 24 --data {file.split('/')[0]}"
        yield f"evaluate {file} {i}", file, content, command, message


CASES = list(_cases())


@pytest.mark.parametrize(
    ("file", "content", "command", "message"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_a_bad_text_is_one_line(ground, home, tally, file, content, command, message) -> None:
    path = Path(file)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    refuse(ground, tally, "recipes, concepts, texts, tokenizers", command, 1, message)


def test_no_two_are_the_same() -> None:
    assert len({(file, content, command) for _, file, content, command, _ in CASES}) == len(CASES)
