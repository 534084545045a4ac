"""Monitors: a linear probe on one place of a model with a threshold and what to do above it, as one file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Float64
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sae.tensors import hash_tensor
from workbench.runs import atomic_write, shorten
from workbench.runs.foreign_files import refuse_pointer
from workbench.runs.records import describe_errors

Pool = Literal["max", "mean", "ema"]
Action = Literal["log", "stop", "ablate", "steer"]
CHANGES = ("ablate", "steer")  # actions that change activations
FORMAT = "workbench-monitor"
_KEY = "monitor"  # of the safetensors file's metadata
_VECTORS = ("weights", "value")
MAX_WIDTH = 1 << 20
MAX_HEADER = 1 << 20  # characters of the JSON


@dataclass(frozen=True)
class Monitor:
    """A probe that reads one place of a model at every token, and what is done where its score stays above a threshold.

    The score of a token is weights · x + bias, x what `hook` passes there: a head's part of it, all of it, or the
    activation of an SAE's feature. It is pooled over the tokens so far: their maximum, their mean, or the exponential
    mean e ← decay · e + (1 − decay) · score, which begins with the first score. The monitor fires at the first token
    whose pooled score is above the threshold.
    """

    hook: str
    """name of the hook, such as blocks.2.attn.hook_z"""
    weights: Float[Tensor, " d"]
    bias: float
    threshold: float
    pool: Pool = "max"
    action: Action = "log"
    head: int | None = None
    """head of the hook that is read; None: all of it"""
    feature: int | None = None
    """feature of the hook's SAE that is read (then d is 1); None: the activation itself"""
    decay: float = 0.9
    """of pool ema"""
    value: Float[Tensor, " d_value"] | None = None
    """ablate: what takes the activation's place from then on, or the feature's activation (d_value 1); steer: what is
    added to the activation from then on"""
    model_sha256: str | None = None
    """of the weights of the model that it was trained on; None: any of this width"""
    model_name: str | None = None
    sae_sha256: str | None = None
    """of the SAE that has the feature"""
    notes: Mapping[str, str | float] = field(default_factory=dict)
    """what it was trained on and for"""

    def __post_init__(self) -> None:
        _read_record(self._record(), "monitor")
        for name in _VECTORS:
            own = getattr(self, name)
            if own is not None and not (own.ndim == 1 and len(own) and bool(own.isfinite().all())):
                raise ValueError(f"monitor: got {name} of shape {list(own.shape)}; expected finite numbers [d], d ≥ 1")
        if (self.action in CHANGES) != (self.value is not None):
            got = "none" if self.value is None else "one"
            raise ValueError(f"monitor: got {got} as value for {self.action}; expected one for ablate and steer alone")
        if self.feature is not None and len(self.weights) != 1:
            raise ValueError(f"monitor: got {len(self.weights)} weights for a feature; expected 1")
        self._check_place()

    def _record(self) -> dict[str, Any]:
        own = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in _VECTORS}
        return own | {"notes": dict(self.notes)}

    def _check_place(self) -> None:
        """Raise ValueError for a value of another width, and for the ablation of a whole hook."""
        if self.value is None:
            return
        wanted = len(self.weights) if self.feature is None else 1 if self.action == "ablate" else len(self.value)
        if len(self.value) != wanted:
            raise ValueError(f"monitor: got a value of {len(self.value)} numbers; expected {wanted}")
        if self.action == "ablate" and self.feature is None and self.head is None:
            raise ValueError(
                f"monitor: got action ablate at all of {self.hook}; expected a head of hook_z or a feature"
            )

    def score(self, x: Float[Tensor, "*n d"]) -> Float64[Tensor, "*n"]:
        """The score of each token that shows x, in float64."""
        return x.double() @ self.weights.to(x.device, torch.float64) + self.bias

    def pooled(
        self, scores: Float64[Tensor, "batch step"], before: Float64[Tensor, " batch"] | None = None, n_before: int = 0
    ) -> Float64[Tensor, "batch step"]:
        """The scores pooled up to each step, of which n_before came earlier and were pooled to `before`."""
        last, found = before, []
        for step, own in enumerate(scores.unbind(1)):
            if last is None:
                last = own
            elif self.pool == "max":
                last = torch.maximum(last, own)
            else:
                keep = self.decay if self.pool == "ema" else 1 - 1 / (n_before + step + 1)
                last = keep * last + (1 - keep) * own
            found.append(last)
        return torch.stack(found, dim=1) if found else scores

    def save(self, file: str | os.PathLike[str]) -> Path:
        """Write the monitor as one safetensors file, what it is as JSON in its metadata."""
        tensors = {
            name: own.detach().cpu().contiguous() for name in _VECTORS if (own := getattr(self, name)) is not None
        }
        said = self._record() | {"sha256": {name: hash_tensor(own) for name, own in tensors.items()}}
        text = json.dumps({"format": FORMAT, "version": 1, **said}, allow_nan=False)
        atomic_write(file, save(tensors, {_KEY: text}))
        return Path(file)

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> Monitor:
        """The monitor that `save` wrote; nothing in the file is run.

        Raises:
            ValueError: naming the file, if it is missing, damaged, no monitor, or has numbers that are none.
        """
        path = Path(file)
        if not path.is_file():
            raise ValueError(f"monitor: {path} is not there; expected a file that `workbench monitor` wrote")
        refuse_pointer(path)
        try:
            with safe_open(path, framework="pt") as opened:
                text = (opened.metadata() or {}).get(_KEY)
                shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
                record = _parse(text, str(path))
                _check_shapes(shapes, str(path))
                tensors = {name: opened.get_tensor(name) for name in shapes}
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"monitor: {path} cannot be read ({error}); expected a file of `workbench monitor`"
            ) from None
        for name, tensor in tensors.items():
            if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
                raise ValueError(f"monitor: {path} has {name} with nan, inf or no numbers; expected finite numbers")
            if record.sha256.get(name) != hash_tensor(tensor):
                raise ValueError(f"monitor: {path} is altered: {name} has another sha256; expected it as it was saved")
        given = record.model_dump(exclude={"format", "version", "sha256"})
        try:
            return cls(**given, weights=tensors["weights"], value=tensors.get("value"))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


class _Record(BaseModel):
    """What a monitor is, beside its vectors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    hook: str = Field(min_length=1, max_length=200)
    bias: float
    threshold: float
    pool: Pool
    action: Action
    head: int | None = Field(ge=0)
    feature: int | None = Field(ge=0)
    decay: float = Field(ge=0, lt=1)
    model_sha256: str | None = Field(max_length=64)
    model_name: str | None
    sae_sha256: str | None = Field(max_length=64)
    notes: dict[str, str | float]


class _Stored(_Record):
    """The same as it stands in a file."""

    format: Literal["workbench-monitor"]
    version: Literal[1]
    sha256: dict[str, str]


def _read_record(values: Mapping[str, Any], where: str, record: type[_Record] = _Record) -> Any:
    try:
        return record.model_validate(dict(values))
    except ValidationError as error:
        raise ValueError(f"{where}: {describe_errors(error, record)}") from None


def _parse(text: str | None, where: str) -> _Stored:
    if text is None or len(text) > MAX_HEADER:
        got = "no description" if text is None else f"one of {len(text)} characters"
        raise ValueError(f"monitor: {where} has {got}; expected a file of `workbench monitor`")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"monitor: {where} has a description that is not JSON ({error}); expected an object") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ValueError(f"monitor: {where} describes {shorten(repr(values))}; expected format {FORMAT!r}")
    return _read_record(values, f"monitor: {where}", _Stored)


def _check_shapes(shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Raise ValueError before a tensor is read, if these are not a monitor's."""
    names = set(shapes)
    is_right = {"weights"} <= names <= set(_VECTORS)
    if not is_right or not all(len(own) == 1 and 1 <= own[0] <= MAX_WIDTH for own in shapes.values()):
        got = ", ".join(f"{shorten(name, 30)} {list(own)}" for name, own in sorted(shapes.items())[:5])
        raise ValueError(f"monitor: {where} holds {got or 'no tensor'}; expected weights [d] and at most value [d]")
