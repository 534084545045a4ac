"""The optimizers of a phase behind one object: AdamW, or Muon for hidden matrices and AdamW for the rest."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Annotated, Any

import torch
from einops import rearrange
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from workbench.runs.records import Frozen, is_default

# How a hidden matrix of TransformerLens's shape is laid out as the [out, in] matrix that torch's Muon takes: its step
# is scaled by √max(1, out/in), so the orientation matters.
MATRIX_LAYOUT = {
    "W_Q": "head d_model d_head -> (head d_head) d_model",
    "W_K": "head d_model d_head -> (head d_head) d_model",
    "W_V": "head d_model d_head -> (head d_head) d_model",
    "W_O": "head d_head d_model -> d_model (head d_head)",
    "W_gate": "d_model d_mlp -> d_mlp d_model",
    "W_in": "d_model d_mlp -> d_mlp d_model",
    "W_out": "d_mlp d_model -> d_model d_mlp",
}
# The same for the factors of low-rank matrices: hidden matrices too, though no layer has one of each.
FACTOR_LAYOUT = {
    **dict.fromkeys(("W_K_in", "W_V_in"), "d_model rank -> rank d_model"),
    **dict.fromkeys(("W_K_out", "W_V_out"), "head rank d_head -> (head d_head) rank"),
    **dict.fromkeys(("W_A", "W_Az", "W_Ah"), "d_model rank -> rank d_model"),
    **dict.fromkeys(("W_B", "W_Bz", "W_Bh"), "rank d_model -> d_model rank"),
}
_LAYOUTS = MATRIX_LAYOUT | FACTOR_LAYOUT
Decay = Annotated[float, Field(ge=0, lt=1)]


class AdamW(Frozen):
    """torch's AdamW (Loshchilov & Hutter 2019). Weight decay acts on the weight matrices `W_*` alone, embeddings
    included; norms, biases, gains and routing queries have none, as is the field's custom."""

    lr: float = Field(default=3e-4, description="base learning rate, times the schedule", gt=0)
    betas: tuple[Decay, Decay] = Field(default=(0.9, 0.999), description="decay of the two moments, each in [0, 1)")
    eps: float = Field(default=1e-8, description="added to the root of the second moment", gt=0)
    weight_decay: float = Field(default=0.0, description="decoupled decay of weight matrices, per unit of lr", ge=0)
    embed_lr: float | None = Field(default=None, description="base rate of embeddings and unembedding; none: lr", gt=0)
    boundary_lr: float | None = Field(
        default=None, description="base rate of learned block boundaries; none: lr", gt=0, exclude_if=is_default
    )


class Muon(Frozen):
    """torch's Muon (Jordan 2024) for the hidden matrices: q, k, v, o, gate, in, out, each one matrix over all heads."""

    lr: float = Field(default=0.02, description="base learning rate, times the schedule", gt=0)
    weight_decay: float = Field(default=0.01, description="decoupled decay, per unit of lr", ge=0)
    momentum: float = Field(default=0.95, description="momentum (Nesterov), 0 to 1", ge=0, lt=1)
    momentum_start: float | None = Field(
        default=None, description="momentum of step 0, rising linearly; none: constant", ge=0, lt=1
    )
    n_momentum_steps: int = Field(default=500, description="steps over which momentum rises from momentum_start", ge=1)
    n_newton_schulz: int = Field(default=5, description="iterations of the orthogonalisation", ge=1, lt=100)


class OptimizerConfig(Frozen):
    """What updates which weights."""

    adamw: AdamW = Field(default_factory=AdamW, description="for all weights, or for what Muon does not take")
    muon: Muon | None = Field(default=None, description="for the hidden matrices; none: AdamW takes them too")


class Optimizer:
    """One object to the trainer: `start(step, multiplier)`, `step`, `zero_grad`, `state_dict`, `load_state_dict`.

    Muon works on [out, in] copies of the 3-D head weights: the gradient is laid out anew, torch's own Muon takes its
    step on the copy, and the copy is written back. All of it only moves numbers, so the result is torch's to the bit.
    """

    def __init__(self, model: nn.Module, cfg: OptimizerConfig, own: Collection[str] | None = None) -> None:
        """own: names of the hidden matrices that Muon updates here; None: all."""
        self.cfg = cfg
        parameters = dict(model.named_parameters())
        hidden = {name: p for name, p in parameters.items() if cfg.muon and is_hidden_matrix(name)}
        self._adamw = _build_adamw({name: p for name, p in parameters.items() if name not in hidden}, cfg.adamw)
        self._hidden = hidden
        matrices = ((name, to_matrix(name, self._whole(p.detach()))) for name, p in hidden.items())
        self._copies = {
            name: nn.Parameter(matrix.clone(memory_format=torch.contiguous_format))
            for name, matrix in matrices
            if own is None or name in own
        }
        self._muon: torch.optim.Muon | None = None
        if cfg.muon and self._copies:
            if not hasattr(torch.optim, "Muon"):
                raise ValueError(f"optimizer.muon: torch is {torch.__version__}; expected 2.9 or newer, which has Muon")
            self._muon = torch.optim.Muon(
                list(self._copies.values()),
                lr=cfg.muon.lr,
                weight_decay=cfg.muon.weight_decay,
                momentum=cfg.muon.momentum,
                ns_steps=cfg.muon.n_newton_schulz,
            )
        self._names = {id(p): name for name, p in parameters.items()}
        self._names |= {id(p): name for name, p in self._copies.items()}

    def start(self, step: int, multiplier: float) -> float:
        """The learning rate of `step` (0-based in the phase): the hidden matrices', i.e. Muon's where there is one."""
        for group in self._adamw.param_groups:
            group["lr"] = group["base_lr"] * multiplier
        if self.cfg.muon is None or not self._hidden:
            return self.cfg.adamw.lr * multiplier
        if self._muon is not None:
            self._muon.param_groups[0]["lr"] = self.cfg.muon.lr * multiplier
            self._muon.param_groups[0]["momentum"] = momentum(self.cfg.muon, step)
        return self.cfg.muon.lr * multiplier

    @torch.no_grad()
    def step(self) -> None:
        """Update every weight that has a gradient."""
        self._adamw.step()
        if self._muon is None:
            return
        for name, copy in self._copies.items():
            parameter = self._hidden[name]
            copy.copy_(to_matrix(name, parameter))
            copy.grad = None if parameter.grad is None else to_matrix(name, parameter.grad).contiguous()
        self._muon.step()
        for name, copy in self._copies.items():
            self._hidden[name].copy_(from_matrix(name, copy, self._hidden[name].shape))
            copy.grad = None

    def zero_grad(self) -> None:
        """Drop all gradients."""
        self._adamw.zero_grad(set_to_none=True)
        for parameter in self._hidden.values():
            parameter.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors named `{adamw|muon}/{weight}/{moment}`; rates and momentum follow from the step and are no state."""
        return {
            f"{kind}/{self._names[id(p)]}/{key}": value
            for kind, optimizer in self._parts()
            for p, state in optimizer.state.items()
            for key, value in state.items()
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from `state_dict()`'s tensors. Raises ValueError naming a tensor that does not belong here."""
        found: dict[str, dict[str, dict[str, Tensor]]] = {}
        for key, value in state.items():
            kind, _, rest = key.partition("/")
            name, _, moment = rest.rpartition("/")
            found.setdefault(kind, {}).setdefault(name, {})[moment] = value
        for kind, optimizer in self._parts():
            self._load(kind, optimizer, found.pop(kind, {}))
        if found:
            raise ValueError(
                f"optimizer state: got tensors of {', '.join(sorted(found))}; expected this recipe's optimizers"
            )

    def _whole(self, tensor: Tensor) -> Tensor:
        """All of a weight: for who keeps but a part of it."""
        return tensor

    def _like(self, parameter: Tensor, whole: Tensor) -> Tensor:
        """`whole` laid out in memory as its weight: the fused kernel runs through both in memory order."""
        return torch.empty_like(parameter).copy_(whole)

    def _load(self, kind: str, optimizer: torch.optim.Optimizer, found: dict[str, dict[str, Tensor]]) -> None:
        members = [p for group in optimizer.param_groups for p in group["params"]]
        wanted = {self._names[id(p)]: p for p in members}
        for name, state in found.items():
            if name not in wanted:
                raise ValueError(
                    f"optimizer state: got {kind}/{name}, which the model has not; expected this model's state"
                )
            for moment, value in state.items():
                if value.ndim and value.shape != wanted[name].shape:
                    raise ValueError(
                        f"optimizer state: {kind}/{name}/{moment} has shape {tuple(value.shape)}; "
                        f"expected {tuple(wanted[name].shape)}"
                    )
        state = {
            i: {m: self._like(p, v) if v.ndim else v for m, v in found[self._names[id(p)]].items()}
            for i, p in enumerate(members)
            if self._names[id(p)] in found
        }
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

    def _parts(self) -> Iterator[tuple[str, torch.optim.Optimizer]]:
        yield "adamw", self._adamw
        if self._muon is not None:
            yield "muon", self._muon


def is_hidden_matrix(name: str) -> bool:
    """Whether a weight of this name is a hidden matrix (q, k, v, o, gate, in, out, or a factor), which Muon takes."""
    return _leaf(name) in _LAYOUTS


def decays(name: str) -> bool:
    """Whether weight decay acts on a weight of this name: the matrices `W_*`, embeddings included."""
    return _leaf(name).startswith("W_")


def to_matrix(name: str, weight: Float[Tensor, ...]) -> Float[Tensor, "d_out d_in"]:
    """A hidden weight as one [out, in] matrix over all heads (a view where the layout allows)."""
    return rearrange(weight, _LAYOUTS[_leaf(name)])


def from_matrix(name: str, matrix: Float[Tensor, "d_out d_in"], shape: torch.Size) -> Float[Tensor, ...]:
    """The inverse of `to_matrix` for a weight of `shape`."""
    source, target = _LAYOUTS[_leaf(name)].split(" -> ")
    return rearrange(matrix, f"{target} -> {source}", **({"head": shape[0]} if "head" in source else {}))


def momentum(cfg: Muon, step: int) -> float:
    """Muon's momentum at `step`: constant, or rising linearly from momentum_start over n_momentum_steps."""
    if cfg.momentum_start is None:
        return cfg.momentum
    share = min(1.0, step / cfg.n_momentum_steps)
    return cfg.momentum_start + share * (cfg.momentum - cfg.momentum_start)


def _leaf(name: str) -> str:
    return name.rsplit(".", 1)[-1].lstrip("_")  # grouped-query models call theirs _W_K and _W_V


def _build_adamw(parameters: dict[str, nn.Parameter], cfg: AdamW) -> torch.optim.AdamW:
    embeds = [n for n in parameters if _leaf(n) in ("W_E", "W_U")]
    bounds = [n for n in parameters if cfg.boundary_lr and n.startswith("boundaries.")]
    groups: list[dict[str, Any]] = []

    def add(names: list[str], rate: float, decay: bool) -> None:
        if names:
            weight_decay = cfg.weight_decay if decay else 0.0
            members = [parameters[n] for n in names]
            groups.append({"params": members, "lr": rate, "base_lr": rate, "weight_decay": weight_decay})

    for is_embed in (False, True):
        rate = cfg.embed_lr if is_embed and cfg.embed_lr else cfg.lr
        for decay in (True, False):
            of_kind = [n for n in parameters if (n in embeds) == is_embed and decays(n) == decay]
            add([n for n in of_kind if n not in bounds], rate, decay)
    add(bounds, cfg.boundary_lr or cfg.lr, False)
    # one fused kernel a group; torch has it for these devices
    fused = all(p.device.type in ("cpu", "cuda", "mps") for p in parameters.values())
    return torch.optim.AdamW(groups, lr=cfg.lr, betas=cfg.betas, eps=cfg.eps, fused=fused)
