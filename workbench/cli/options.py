"""Options that several verbs share, each with its one help text. Like a verb's module, this one loads nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Checkpoint = Annotated[
    str, typer.Option("--ckpt", help="Run directory, Hugging Face folder or hub name, or GGUF file.", metavar="MODEL")
]
Checkpoints = Annotated[
    list[str],
    typer.Option("--ckpt", help="As --ckpt elsewhere; give it several times for several models.", metavar="MODEL"),
]
Out = Annotated[Path | None, typer.Option("--out", help="Directory to write; must not exist. [default: runs/VERB]")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything that is drawn.", min=0, max=2**63 - 1)]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda[:n].")]
Dtype = Annotated[
    str | None,
    typer.Option("--dtype", help="Of the weights: float32, bfloat16, float16, float64. [default: as stored]"),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an unfinished --out; a finished one is checked.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan (tokens, bytes, memory, time) and stop.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Any other setting; may be given several times.", metavar="KEY=VALUE")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, for machines.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

Data = Annotated[
    str, typer.Option("--data", help="Text: embedded, a file, a folder, or a hub name; its held-out part is read.")
]
NSequences = Annotated[int, typer.Option("--n-sequences", help="Windows of text.", min=1)]
NCtx = Annotated[int | None, typer.Option("--n-ctx", help="Tokens a window. [default: the model's n_ctx]", min=2)]
Layers = Annotated[
    str | None, typer.Option("--layers", help="Layers, as 0,2,5-7. [default: all]", metavar="LIST", show_default=False)
]
Heads = Annotated[
    str | None, typer.Option("--heads", help="Heads, as 0,2,5-7. [default: all]", metavar="LIST", show_default=False)
]
AnyText = Annotated[str, typer.Option("--data", help="Text: embedded, a file, a folder, or a hub name.")]
Split = Annotated[str, typer.Option("--split", help="Part of the text: held_out, train, or all.")]
MaxBytes = Annotated[
    int | None, typer.Option("--max-bytes", help="Read this much of the text, taken from all over it.", min=1)
]
