"""The verb of an analysis, made from its record: its options are the settings' fields and what all verbs share.

workbench NAME --ckpt MODEL [--ckpt MODEL …]     an analysis of one model, or of all together
workbench NAME A B                               of a pair
workbench NAME RECIPE                            of a training recipe
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BeforeValidator, ValidationError
from pydantic.fields import FieldInfo

from workbench.cli import options
from workbench.cli.cli_args import parse_overrides
from workbench.cli.errors import UsageError, guarded
from workbench.cli.output import progress, report
from workbench.extend import Analysis, Settings

MODEL_HELP = "Run directory, Hugging Face folder or hub name, or GGUF file."
SEED = Annotated[
    int | None,
    typer.Option(
        "--seed", help="Seed of everything random.", min=0, max=2**63 - 1, show_default="the model's own; 0 without one"
    ),
]


def make_verb(analysis: Analysis) -> Any:
    """The function that Typer makes the analysis's verb of."""

    def verb(ctx: typer.Context, **given: Any) -> None:
        run_verb(analysis, ctx, given)

    own = {name: _setting(name, field) for name, field in analysis.settings.model_fields.items()}
    shared = {name: hint for name, hint in _shared(analysis).items() if name not in own}
    parameters = [inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)]
    for name, (hint, default) in {**_subjects(analysis), **own, **shared}.items():
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint))
    verb.__name__ = analysis.python_name
    verb.__doc__ = analysis.summary
    verb.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    verb.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    return guarded(verb)


def _subjects(analysis: Analysis) -> dict[str, tuple[Any, Any]]:
    """The parameters that say what is measured, and what is read of other analyses."""
    from workbench.analyses import find_analysis

    found: dict[str, tuple[Any, Any]] = {}
    empty = inspect.Parameter.empty
    if analysis.page is not None:
        help_ = "A directory that has the tables already: its page is drawn anew, and nothing is measured."
        found["directory"] = (Annotated[Path | None, typer.Argument(help=help_, metavar="[DIR]")], None)
    if analysis.takes == "pair":
        for name in ("a", "b"):
            found[name] = (Annotated[str, typer.Argument(help=MODEL_HELP)], empty)
    elif analysis.takes == "recipe":
        found["recipe"] = (Annotated[str, typer.Argument(help="Training recipe: a name or a TOML file.")], empty)
        found["n_seeds"] = (Annotated[int, typer.Option("--n-seeds", help="Seeds 0, 1, …", min=1)], 3)
    elif analysis.page is not None:
        hint = typer.Option("--ckpt", help=f"{MODEL_HELP} Repeatable.", metavar="MODEL")
        found["ckpt"] = (Annotated[list[str] | None, hint], None)
    else:
        found["ckpt"] = (options.Checkpoints, empty)
    if analysis.over_training:
        found |= {"steps": (options.Steps, None), "revisions": (options.Revisions, None)}
    for name in analysis.needs:
        source_help = find_analysis(name).source_help
        help_ = source_help or f"Directory that {name} wrote, one for each model in their order."
        metavar = "SOURCE" if source_help else "DIR"
        hint = typer.Option(f"--{_needed_option(name)}", help=help_, metavar=metavar)
        found[_needed_key(name)] = (Annotated[list[Path] | None, hint], None)
    return found


def _needed_option(name: str) -> str:
    from workbench.analyses import find_analysis

    return find_analysis(name).option.removeprefix("--")


def _needed_key(name: str) -> str:
    return "needs_" + name.replace("-", "_")


def _shared(analysis: Analysis) -> dict[str, tuple[Any, Any]]:
    found: dict[str, tuple[Any, Any]] = {"out": (options.Out, None)}
    if analysis.takes != "recipe":
        found["seed"] = (SEED, None)
    found["device"] = (options.Device if analysis.takes == "recipe" else options.Devices, "auto")
    if analysis.takes != "recipe":
        found["dtype"] = (options.Dtype, None)
    return found | {
        "resume": (options.Resume, False),
        "dry_run": (options.DryRun, False),
        "set_": (options.Settings, None),
        "as_json": (options.Json, False),
        "debug": (options.Debug, False),
    }


# --- a setting as an option


def _setting(name: str, field: FieldInfo) -> tuple[Any, Any]:
    """(annotation, default) of a setting's option."""
    kind, is_list = _option_type(field)
    flag = f"--{name.replace('_', '-')}"
    bounds = {_BOUNDS[key]: getattr(item, key) for item in field.metadata for key in _BOUNDS if hasattr(item, key)}
    settings: dict[str, Any] = {"help": _sentence(field.description or "")}
    if kind in (int, float):
        settings |= bounds
    if is_list:
        settings["metavar"] = "LIST"
    elif get_args(field.annotation) and get_origin(field.annotation) is Literal:
        settings["metavar"] = "|".join(map(str, get_args(field.annotation)))
    default = field.default
    if isinstance(default, tuple) and is_list:
        default = ",".join(f"{item:g}" if isinstance(item, float) else str(item) for item in default)
    elif isinstance(default, tuple):
        default = list(default) or None
    if default is None:
        settings["show_default"] = False
    flags = [f"{flag}/--no-{name.replace('_', '-')}"] if kind is bool else [flag]
    if isinstance(field.json_schema_extra, dict):
        flags += map(str, field.json_schema_extra.get("flags", ()))  # pyright: ignore[reportArgumentType]
    optional = kind if default is not None else kind | None
    return Annotated[optional, typer.Option(*flags, **settings)], default


_BOUNDS = {"ge": "min", "le": "max"}


def _option_type(field: FieldInfo) -> tuple[Any, bool]:
    """(type that the command line reads, whether it is a comma-separated list)."""
    if any(isinstance(item, BeforeValidator) for item in field.metadata):
        return str, True
    hint = field.annotation
    if get_origin(hint) in (Union, types.UnionType):
        parts = [part for part in get_args(hint) if part is not type(None)]
        hint = parts[0] if len(parts) == 1 else str
    if get_origin(hint) is Annotated:  # of an optional list
        is_list = any(isinstance(item, BeforeValidator) for item in get_args(hint)[1:])
        hint = str if is_list else get_args(hint)[0]
        if is_list:
            return str, True
    if get_origin(hint) is tuple:
        return list[get_args(hint)[0]], False
    if hint in (int, float, bool, Path):
        return hint, False
    return str, False


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "." * (not text.endswith((".", "…")))


def read_settings(analysis: Analysis, given: Mapping[str, Any], overrides: Mapping[str, Any]) -> Settings:
    """The settings of the options that were given and of --set.

    Raises:
        UsageError: an unknown or unfit setting, or one that is given twice.
    """
    for key in overrides:
        if key in given:
            raise UsageError(f"set: {key} is given by --{key.replace('_', '-')} too; expected one of the two")
    try:
        return analysis.settings.model_validate({**given, **overrides})
    except ValidationError as error:
        from workbench.runs.records import describe_errors

        item = error.errors()[0]
        place = ".".join(map(str, item["loc"][:1]))
        if item["type"] == "extra_forbidden" or place in overrides:
            raise UsageError(f"set: {describe_errors(error, analysis.settings.model_fields)}") from None
        said = item["msg"].removeprefix("Value error, ")
        if not place and (head := said.partition(": "))[0] in analysis.settings.model_fields:
            place, _, said = head  # what a validator of several settings says of one
        if said.startswith("Input should be "):
            said = f"got {item['input']!r}; expected {said.removeprefix('Input should be ')}"
        where = f"--{place.replace('_', '-')}: " if place else ""
        raise UsageError(f"{where}{said}") from None


# --- running it


def run_verb(analysis: Analysis, ctx: typer.Context, given: dict[str, Any]) -> None:
    """Measure, or plan, what the command line asks for, and say what came out."""
    is_given = {
        parameter.name for parameter in ctx.command.params
        if (source := ctx.get_parameter_source(str(parameter.name))) is not None and source.name == "COMMANDLINE"
    }  # fmt: skip
    own = {name: given[name] for name in analysis.settings.model_fields if name in is_given}
    overrides, of_recipe = parse_overrides(given.get("set_")), {}
    if analysis.takes == "recipe":  # what is no setting of the analysis is one of its recipe
        of_recipe = {key: overrides.pop(key) for key in [*overrides] if key not in analysis.settings.model_fields}
    settings = read_settings(analysis, own, overrides)
    if given.get("directory") is not None:
        _draw(analysis, given, is_given)
        return
    if analysis.page is not None and not given.get("ckpt"):
        raise UsageError(f"{analysis.name}: got neither a directory nor --ckpt; expected one of the two")
    from reports.tables import read_table
    from workbench.study import measuring

    over_training = _over_training(given) if analysis.over_training else {}
    request = measuring.Request(
        analysis,
        settings,
        sources=tuple(given.get("ckpt") or [given[name] for name in ("a", "b") if name in given]),
        recipe=given.get("recipe"),
        overrides=of_recipe,
        n_seeds=given.get("n_seeds", 1),
        needs={name: tuple(given.get(_needed_key(name)) or ()) for name in analysis.needs},
        seed=given.get("seed"),
        device=given["device"],
        dtype=None if "dtype" in own else given.get("dtype"),
        **over_training,
    )
    if given["dry_run"]:
        from workbench.study.plan import plan_request

        report(as_json=given["as_json"], facts=plan_request(request))
        return
    measure = measuring.measure
    if over_training:
        from workbench.study.over_training import measure_over_training as measure
    out = measure(request, given["out"] or Path("runs") / analysis.name, resume=given["resume"], show=progress)
    if analysis.page is not None:
        report(as_json=given["as_json"], out=out / f"{analysis.name}.html")
        return
    found = [table.name for table in analysis.tables if (out / f"{table.name}.csv").is_file()]
    facts = analysis.facts(out) if analysis.facts is not None and not over_training else None
    report(as_json=given["as_json"], out=out, table=read_table(out, found[0]) if found else None, facts=facts)


def _over_training(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a request says of the checkpoints of --steps or --revisions; nothing where neither is given."""
    steps, revisions = given["steps"], given["revisions"]
    if steps is not None and revisions is not None:
        raise UsageError("--steps, --revisions: got both; expected one of the two")
    if steps is not None:
        from workbench.study.over_training import parse_steps

        try:
            return {"steps": parse_steps(steps)}
        except ValueError as error:
            raise UsageError(f"--steps: {error}") from None
    if revisions is None:
        return {}
    names = tuple(name.strip() for name in revisions.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise UsageError(f"--revisions: got {revisions!r}; expected names such as step1000,step2000, each once")
    return {"revisions": names}


def _draw(analysis: Analysis, given: Mapping[str, Any], is_given: set[str]) -> None:
    from workbench.cli.cli_args import amend_page, check_page, check_tables

    unread = sorted(is_given - {"directory", "out", "as_json", "debug"})
    if unread:
        needed = {_needed_key(name): _needed_option(name) for name in analysis.needs}
        spelt = ", ".join(f"--{needed.get(name, name.replace('_', '-'))}" for name in unread)
        raise UsageError(f"{spelt}: got a directory, whose tables are there; expected --ckpt")
    directory, out = given["directory"], given["out"]
    check_tables(directory)
    check_page(out)
    assert analysis.page is not None
    page = analysis.page(directory, out or directory / f"{analysis.name}.html")
    amend_page(directory, page)
    report(as_json=given["as_json"], out=page)
