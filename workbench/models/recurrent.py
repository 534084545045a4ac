"""The chassis of a depth-recurrent model: effective layers with hooks of their own over blocks stored once.

`blocks.{l}` are all n_layers effective layers, each a whole block to whoever looks (attention weights, hooks, attend,
feed_forward); their parameters are those of `unique_blocks.{l mod n_unique}`, under whose names they are saved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from workbench.models.block import Block, Blocks
from workbench.models.config import ModelConfig, Recurrence
from workbench.models.hooks import HookPoint
from workbench.models.layers import MLP, Attention, KeyValueCache, hook_copy
from workbench.models.masks import Padding
from workbench.models.recurrence import Pass, RecurrentStream, build_mechanisms


class ScaledAttention(Attention):
    """Attention whose `W_O` reads as W_O · diag(attn_scale of this layer): what its heads write, each as it counts."""

    def __init__(self, cfg: ModelConfig, layer: int, control: nn.Module) -> None:
        super().__init__(cfg, layer)
        self._control = (control,)  # in a tuple: registered once, in the model

    def __getattr__(self, name: str):
        if name == "W_O":
            return _scaled(self, "W_O", self._control[0].get_parameter("attn_scale")[self.layer])
        return super().__getattr__(name)


class ScaledMLP(MLP):
    """Feed-forward whose `W_out` reads as W_out · diag(mlp_scale of this layer)."""

    def __init__(self, cfg: ModelConfig, layer: int, control: nn.Module) -> None:
        super().__init__(cfg)
        self.layer, self._control = layer, (control,)

    def __getattr__(self, name: str):
        if name == "W_out":
            return _scaled(self, "W_out", self._control[0].get_parameter("mlp_scale")[self.layer])
        return super().__getattr__(name)


def _scaled(module: nn.Module, name: str, scale: Tensor) -> Tensor:
    # on the weight, not on its output: there are fewer rows in it than tokens in a batch
    stored = module._parameters[name]
    assert stored is not None
    return stored * scale


class RecurrentBlock(Block):
    """One effective layer: its block between the mechanisms of its layer and, at the ends of a pass, the pass's."""

    def __init__(self, cfg: ModelConfig, layer: int, recurrence: Recurrence, mechanisms: nn.ModuleDict) -> None:
        super().__init__(cfg, layer)
        self._of = dict(mechanisms.items())  # registered once, in the model
        self.mixes = recurrence.residual_mix
        if recurrence.attn_scale:
            self.attn = ScaledAttention(cfg, layer, mechanisms["control"])
        if recurrence.mlp_scale:
            self.mlp = ScaledMLP(cfg, layer, mechanisms["control"])
        if recurrence.value_embed == "value":
            self.hook_value_embed = HookPoint()  # [batch pos d_model], what is added to V's input
        sources = recurrence.skip_sources(cfg.n_layers)
        self.is_source, self.is_target = layer in sources.values(), layer in sources
        if self.is_target:
            self.hook_skip = HookPoint()  # [batch pos d_model], what is added
        if "routes" in mechanisms:
            self.hook_route_gain = HookPoint()  # α [batch pos route]
        self._begins: tuple[Pass, ...] = ()
        self._ends: tuple[Pass, ...] = ()

    def enter(self, of: Pass) -> None:
        """This block is the first of pass `of`."""
        self._begins = (of,)

    def leave(self, of: Pass) -> None:
        """This block is the last of pass `of`."""
        self._ends = (of,)

    def attend(  # type: ignore[override]
        self, state: RecurrentStream, cache: KeyValueCache | None = None, padding: Padding | None = None
    ) -> RecurrentStream:
        assert padding is None, "the model refuses it: carry and resonance count positions"
        for of in self._begins:
            state = of.begin(state, cache)
        x = state.x
        if self.is_target:
            x = self._of["skips"](x, state.kept, self.layer, self.hook_skip)
        if self.mixes:
            keep, add = self._of["control"].get_parameter("mix")[self.layer]
            assert state.x0 is not None, "embed_state keeps it for the mix"
            x = torch.addcmul(x * keep, state.x0, add)
        resid_pre = hook_copy(self.hook_resid_pre, x)  # x may be the pass's start, or kept for a later layer
        inputs = self._attn_input(resid_pre)
        if state.value is not None:
            inputs = self._with_value(inputs, state.value)
        return replace(state, x=resid_pre + self.hook_attn_out(self.attn(inputs, cache)))

    def feed_forward(self, state: RecurrentStream, read_out: Callable | None = None) -> RecurrentStream:  # type: ignore[override]
        resid_mid = self.hook_resid_mid(state.x)
        h = self.ln2(hook_copy(self.hook_mlp_in, resid_mid))
        out = self.mlp(h)
        if "routes" in self._of:
            out = out * self._of["routes"](h, self.layer, self.hook_route_gain)
        state = replace(state, x=resid_mid + self.hook_mlp_out(out))
        for of in self._ends:
            state = of.end(state)
        x = hook_copy(self.hook_resid_post, state.x)  # which may be what the next pass's carry reads
        return replace(state, x=x, kept=(*state.kept, (self.layer, x)) if self.is_source else state.kept)

    def _with_value(self, inputs: Tensor | tuple[Tensor, Tensor, Tensor], value: Tensor) -> tuple[Tensor, ...]:
        q, k, v = inputs if isinstance(inputs, tuple) else (inputs, inputs, inputs)
        added = self.hook_value_embed(value * self._of["value_embed"].get_parameter("scale")[self.layer])
        return q, k, v + (added if v.ndim == 3 else added[:, :, None])


def build_chassis(model: nn.Module, cfg: ModelConfig, recurrence: Recurrence) -> None:
    """Give `model` its unique_blocks, mechanisms, passes (as "pass") and blocks, in the order that names parameters."""
    mechanisms = build_mechanisms(cfg, recurrence)
    passes = nn.ModuleList(Pass(i, recurrence, mechanisms) for i in range(recurrence.n_passes))
    blocks = [RecurrentBlock(cfg, layer, recurrence, mechanisms) for layer in range(cfg.n_layers)]
    n = recurrence.n_unique
    unique = [_weights_of(block) for block in blocks[:n]]
    for block in blocks:
        _share(block, unique[block.layer % n])
        if block.layer % n == 0:
            block.enter(passes[block.layer // n])  # type: ignore[arg-type]
        if block.layer % n == n - 1:
            block.leave(passes[block.layer // n])  # type: ignore[arg-type]
    # a parameter goes by the first name under which it is met
    model.add_module("unique_blocks", nn.ModuleList(unique))
    model.add_module("mechanisms", mechanisms)
    model.add_module("pass", passes)
    model.add_module("blocks", Blocks(blocks))


def _weights_of(module: nn.Module) -> nn.Module:
    """A tree with the parameters of `module` under their names, and nothing else."""
    shell = nn.Module()
    for name, parameter in module._parameters.items():
        shell.register_parameter(name, parameter)
    for name, child in module.named_children():
        if next(child.parameters(), None) is not None:
            shell.add_module(name, _weights_of(child))
    return shell


def _share(module: nn.Module, shell: nn.Module) -> None:
    """Put the parameters of `shell` in the place of those of `module`."""
    for name in module._parameters:
        module._parameters[name] = shell._parameters[name]
    for name, child in module.named_children():
        if name in shell._modules:
            _share(child, shell.get_submodule(name))
