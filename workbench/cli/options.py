"""Options that several verbs share, each with one help text. Like the verbs' modules, this one loads nothing heavy.

A default that the signature does not show is given as `show_default`: inside a help text, Rich takes [brackets] for
markup.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Checkpoint = Annotated[
    str,
    typer.Option(
        "--ckpt",
        help="Run directory, Hugging Face folder or hub name, or GGUF file; RUN@step400, NAME@REVISION.",
        metavar="MODEL",
    ),
]
SAEs = Annotated[
    str | None,
    typer.Option(
        "--sae",
        help="SAEs by which to steer: a directory of sae-train, a SAELens folder, Gemma Scope's params.npz, RELEASE/ID "
        "of SAELens's registry, or OWNER/REPO/PATH of the hub.",
        metavar="SOURCE",
    ),
]
Checkpoints = Annotated[
    list[str],
    typer.Option(
        "--ckpt",
        help="Run directory, Hugging Face folder or hub name, or GGUF file; RUN@step400, NAME@REVISION. Repeat it for "
        "several models.",
        metavar="MODEL",
    ),
]
Steps = Annotated[
    str | None,
    typer.Option(
        "--steps",
        help="Checkpoints that a run of ours kept, all or such as 0,50,100-400: one table with a column step.",
        metavar="LIST",
    ),
]
Revisions = Annotated[
    str | None,
    typer.Option(
        "--revisions",
        help="Revisions of a hub's repository, such as step1000,step2000: one table with the columns step and "
        "revision.",
        metavar="LIST",
    ),
]
Out = Annotated[
    Path | None, typer.Option("--out", help="Directory to write; must not exist yet.", show_default="runs/VERB")
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.", min=0, max=2**63 - 1)]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Devices = Annotated[
    str,
    typer.Option(
        "--device",
        help="auto, cpu, cuda or cuda:N; or several, such as cuda:0,cuda:1, over which a model's layers are spread.",
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype", help="Dtype of the weights: float32, bfloat16, float16 or float64.", show_default="as stored"
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an unfinished --out; a finished one is verified.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan (tokens, operations, bytes) and stop.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Any other setting of the verb or its recipe. Repeatable.",
        metavar="KEY=VALUE",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
