"""From a job's settings to a monitor: the site that is read, the text, and what the action puts there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probes import LogisticProbe
from workbench.analyses.monitor.armed import N_PROMPT, NEVER
from workbench.analyses.monitor.examples import Tokens, Windows, check_parts, read_tokens, read_windows, spread
from workbench.analyses.monitor.quality import Fitted, Splits, choose_feature
from workbench.data.monitoring import Target, read_target
from workbench.data.text_windows import window_length
from workbench.models.checks import choose, device_of, middle_layer
from workbench.models.monitor_sites import Site, find_site
from workbench.models.monitors import Monitor
from workbench.models.transformer import check_ours, check_tokenized
from workbench.models.weights import weights_sha256

CHARACTERS_PER_TOKEN = 6  # of the texts that windows are the beginnings of: more than English takes
MAX_N_CTX = 128  # tokens per window, unless more are asked for


@dataclass(frozen=True)
class Opened:
    """What a job is of."""

    site: Site
    layer: int
    stack: Any
    """the SAEs that the site's feature is of; None where it reads none"""
    target: Target
    windows: Windows
    """all of the target's"""

    @property
    def columns(self) -> dict[str, int]:
        """The site as tables write it."""
        head, feature = self.site.head, self.site.feature
        return {
            "layer": self.layer,
            "head": -1 if head is None else head,
            "feature": -1 if feature is None else feature,
        }


def open_monitor(model: Any, settings: Any, seed: int) -> Opened:
    """The site and the text of a job's settings, checked; a feature that none is named for is 0 until it is chosen.

    Raises:
        ValueError: for what `monitor` cannot be of, in one line.
    """
    check_ours("monitor", model)
    check_tokenized("monitor", model)
    length = window_length(model, settings.n_window, MAX_N_CTX)
    if N_PROMPT + settings.max_new_tokens > length:
        raise ValueError(
            f"max_new_tokens: got {settings.max_new_tokens}, with the prompt {N_PROMPT + settings.max_new_tokens} "
            f"tokens; expected at most a window's {length}"
        )
    layer = middle_layer(model.cfg.n_layers) if settings.layer is None else settings.layer
    choose("layer", [layer], model.cfg.n_layers)
    site, stack = _site(model, settings, layer)
    if settings.action == "ablate" and site.head is None and site.feature is None:
        raise ValueError(f"action: got ablate at all of {site.hook}; expected a head of hook z, or a feature of --sae")
    rng = np.random.default_rng([seed, 0])
    n_texts = max(settings.n_tokens // length, 5 * settings.n_continuations)
    target = read_target(settings.target, n_texts, CHARACTERS_PER_TOKEN * length, rng)
    windows = read_windows(model, target, length, rng)
    check_parts(windows, target.name)
    return Opened(site, layer, stack, target, windows)


def _site(model: Any, settings: Any, layer: int) -> tuple[Site, Any]:
    if settings.sae is None:
        if settings.feature is not None:
            raise ValueError(f"feature: got {settings.feature} and no sae; expected the source of its SAEs")
        name = "attn.hook_z" if settings.hook == "z" else settings.hook
        return find_site(model, f"blocks.{layer}.{name}", settings.head), None
    from workbench.analyses.sae_train.head_saes import one_a_slot
    from workbench.analyses.sae_train.loading import check_saes, open_saes
    from workbench.models.sae_places import stack_slots

    stack = one_a_slot(open_saes(settings.sae)).to(device_of(model))
    check_saes(model, stack)
    column = -1 if settings.head is None else settings.head
    slots = stack_slots(stack)
    places = [i for i, slot in enumerate(slots) if (slot.layer, slot.column) == (layer, column)]
    if not places:
        have = sorted({(slot.layer, slot.column) for slot in slots})
        raise ValueError(f"sae: got layer {layer}, head {column}; expected (layer, head) of the SAEs, in {have}")
    own = stack.select(places[:1])
    return find_site(model, slots[places[0]].hook_name, settings.head, settings.feature or 0, own), own


def with_feature(model: Any, opened: Opened, feature: int) -> Opened:
    """The same, reading this feature; -1: as it is."""
    own = opened.site
    if feature == -1 or feature == own.feature:
        return opened
    return replace(opened, site=find_site(model, own.hook, own.head, feature, opened.stack))


def _best_feature(opened: Opened, settings: Any, training: Tokens) -> int:
    """The feature that tells the training tokens apart best, where none was named; -1 where it is not to be chosen."""
    place = opened.site.place
    if place is None or settings.feature is not None:
        return -1

    def acts(x: np.ndarray) -> np.ndarray:
        rows = torch.from_numpy(x).to(place.sae.W_dec)
        return place.sae.encode(rows[None])[0].detach().float().cpu().numpy()

    return choose_feature(acts, training)


def read_splits(model: Any, opened: Opened, settings: Any) -> tuple[Opened, Splits]:
    """The site, its feature chosen, and the counted tokens of each part, n_tokens in all at most."""
    own = spread(opened.windows, max(3, settings.n_tokens // opened.windows.tokens.shape[1]))
    check_parts(own, opened.target.name)
    training = read_tokens(model, opened.site, own.of_part(0))
    chosen = with_feature(model, opened, _best_feature(opened, settings, training))
    if chosen is not opened:
        training = read_tokens(model, chosen.site, own.of_part(0))
    rest = [read_tokens(model, chosen.site, own.of_part(part)) for part in (1, 2)]
    return chosen, Splits(training, *rest)


def fitted_tensors(site: Site, settings: Any, fitted: Fitted, training: Tokens) -> dict[str, Tensor]:
    """What a monitor has of the text: the weights [d] and the bias by which scores are calibrated log-odds, and what
    its action puts there."""
    assert fitted.probe is not None
    scaling = fitted.scaling
    weights = torch.from_numpy(scaling.slope * fitted.probe.weights)
    bias = torch.tensor(scaling.slope * fitted.probe.bias + scaling.intercept, dtype=torch.float64)
    value = _value(site, settings, weights, training)
    return {"weights": weights, "bias": bias} | ({} if value is None else {"value": value})


def build_monitor(
    model: Any, opened: Opened, settings: Any, weights: Tensor, bias: Tensor, value: Tensor | None = None
) -> Monitor:
    """The monitor of these tensors, without a threshold yet."""
    site = opened.site
    return Monitor(
        hook=site.hook, head=site.head, feature=site.feature, weights=weights, bias=float(bias), threshold=NEVER,
        pool=settings.pool, decay=settings.decay, action=settings.action, value=value,
        model_sha256=weights_sha256(model), model_name=model.cfg.model_name, sae_sha256=site.sae_sha256,
        notes={"target": opened.target.name, "alpha": settings.alpha},
    )  # fmt: skip


def _value(site: Site, settings: Any, weights: Tensor, training: Tokens) -> Tensor | None:
    """What the action puts there: ablate: the mean of the negatives, of a feature 0; steer: `strength` mean lengths of
    the activation away from the positives, along the difference of means, of a feature along its decoder row."""
    if settings.action == "ablate":
        if site.feature is not None:
            return torch.zeros(1, dtype=torch.float64)
        return torch.from_numpy(training.x[~training.labels].mean(axis=0, dtype=np.float64))
    if settings.action != "steer":
        return None
    if site.place is not None:
        assert site.feature is not None
        row = site.place.sae.directions[0, site.feature].detach().double().cpu().numpy()
        direction = row * float(torch.sign(weights[0]))
    else:
        direction = _difference(training)
    length = np.linalg.norm(direction)
    if not length > 0:
        raise ValueError("action: got steer along a direction of zeros; expected means, or a feature, that differ")
    size = float(np.linalg.norm(training.whole, axis=1).mean(dtype=np.float64))
    return torch.from_numpy(-settings.strength * size * direction / length)


def _difference(training: Tokens) -> np.ndarray:
    from workbench.analyses.monitor.quality import difference_of_means

    own: LogisticProbe = difference_of_means(training.x, training.labels)
    return own.weights
