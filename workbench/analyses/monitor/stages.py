"""Stages of a monitor's job, each kept as a file from which a killed run goes on: the probe, and each batch of
continuations."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sae.tensors import hash_tensor
from workbench.analyses.monitor import building, quality
from workbench.analyses.monitor.armed import Continuations, Keep
from workbench.analyses.monitor.building import Opened
from workbench.models.monitors import Monitor
from workbench.runs.resume_state import read_state, write_state

if TYPE_CHECKING:
    from workbench.extend import Job

STAGES = "stage_*.safetensors"
State = tuple[dict[str, Tensor], str]


class Stages:
    """The stages of one job, read where their file is there, else made and written.

    A file's name has a digest of the labelled windows and of the SAE, which settings know by their paths alone: text or
    SAEs that changed since the kill are measured afresh.
    """

    def __init__(self, job: Job, opened: Opened) -> None:
        self.job, self.opened = job, opened
        own = opened.windows
        parts = [hash_tensor(one) for one in (own.tokens, own.is_token, own.labels, own.part, own.document)]
        self._digest = hashlib.sha256("\0".join([*parts, str(opened.site.sae_sha256)]).encode()).hexdigest()[:12]

    def probe(self) -> tuple[Opened, Monitor, pd.DataFrame, pd.DataFrame]:
        """(the site with its feature chosen, the monitor without a threshold yet, rows of `monitor`, rows of
        `monitor_curves`)."""
        job = self.job
        model, settings = job.subject.model, job.settings
        tensors, note = self._keep("probe", self._fit)
        opened = building.with_feature(model, self.opened, int(tensors.pop("feature")))
        tables = [pd.DataFrame(**own) for own in json.loads(note)]
        return opened, building.build_monitor(model, opened, settings, **tensors), tables[0], tables[1]

    def _fit(self) -> State:
        job = self.job
        model, rng = job.subject.model, np.random.default_rng([job.seed, 1])
        opened, splits = building.read_splits(model, self.opened, job.settings)
        fitted = quality.fit_probes(splits, rng)
        table = quality.quality_table(splits, fitted, model.cfg.d_vocab, rng)
        curves = quality.curves_table(splits, fitted)
        tensors = building.fitted_tensors(opened.site, job.settings, fitted[0], splits.training)
        feature = -1 if opened.site.feature is None else opened.site.feature
        note = json.dumps([own.to_dict("split") for own in (table, curves)])
        return tensors | {"feature": torch.tensor(feature)}, note

    def batches(self, name: str, begin: float, end: float) -> Keep:
        """What keeps each batch of continuations of this name; the job's progress goes from `begin` to `end`."""

        def keep(batch: int, n_batches: int, make: Callable[[], Continuations]) -> Continuations:
            tensors, _ = self._keep(
                f"{name}_{batch:05d}", lambda: ({key: torch.from_numpy(own) for key, own in asdict(make()).items()}, "")
            )
            self.job.progress(begin + (end - begin) * (batch + 1) / n_batches)
            return Continuations(**{key: own.numpy() for key, own in tensors.items()})

        return keep

    def _keep(self, name: str, make: Callable[[], State]) -> State:
        file = self.job.directory / STAGES.replace("*", f"{self._digest}_{name}")
        if not file.is_file():
            write_state(file, *make())
        return read_state(file)

    def remove(self) -> None:
        """Remove the files, those of other text too: the tables are made."""
        for file in sorted(Path(self.job.directory).glob(STAGES)):
            file.unlink()
