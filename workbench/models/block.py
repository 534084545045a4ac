"""One layer, attention then feed-forward, over a residual state: the plain stream, or the sums that routing reads."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from workbench.models.attn_residuals import RoutedStream, Routing
from workbench.models.config import ModelConfig
from workbench.models.hooks import HookPoint
from workbench.models.layers import MLP, Attention, KeyValueCache, Norm, beside, hook_copy, is_watched, per_head_copies
from workbench.models.learned_blocks import SegmentedStream
from workbench.models.masks import Padding
from workbench.models.recurrence import RecurrentStream

# What flows between blocks: the plain residual stream [batch pos d_model], the sums that routing chooses from (of
# listed or of learned blocks), or a stream with what its passes left behind.
Routed = RoutedStream | SegmentedStream
State = Tensor | Routed | RecurrentStream


@dataclass(frozen=True)
class Attended:
    """The plain stream after attention, where its sum alone does not say how the layer goes on, or how it would have
    with other heads: a parallel MLP reads what attention read; a norm behind attention saw what heads wrote.

    Attributes:
        running: resid_pre and what attention added.
        resid_pre: the stream before.
        written: what heads wrote together, ahead of the norm; None where none stands there.
    """

    running: Float[Tensor, "batch pos d_model"]
    resid_pre: Float[Tensor, "batch pos d_model"]
    written: Float[Tensor, "batch pos d_model"] | None = None

    def __add__(self, change: Float[Tensor, "batch pos d_model"]) -> Attended:
        return Attended(self.running + change, self.resid_pre, self.written)

    def repeated(self, n: int, running: Tensor, written: Tensor | None = None) -> Attended:
        """This state n times over along the batch, with other sums, [n·batch pos d_model]."""
        return Attended(running, self.resid_pre.repeat(n, 1, 1), written)


class Block(nn.Module):
    """One layer: attention, then feed-forward, each reading from the state and adding to it; or both from the state
    before them, where they are parallel."""

    def __init__(self, cfg: ModelConfig, layer: int) -> None:
        super().__init__()
        self.cfg, self.layer = cfg, layer
        self.ln1, self.attn = Norm(cfg), Attention(cfg, layer)
        self.ln2, self.mlp = Norm(cfg), MLP(cfg)
        self.hook_attn_in, self.hook_q_input = HookPoint(), HookPoint()  # [batch pos head d_model], when watched
        self.hook_k_input, self.hook_v_input = HookPoint(), HookPoint()  # likewise; kv heads
        self.hook_mlp_in = HookPoint()  # [batch pos d_model]
        self.hook_attn_out, self.hook_mlp_out = HookPoint(), HookPoint()  # [batch pos d_model]
        self.hook_resid_pre, self.hook_resid_post = HookPoint(), HookPoint()
        if not cfg.parallel_attn_mlp:  # there is no stream in between
            self.hook_resid_mid = HookPoint()
        if cfg.use_normalization_before_and_after:
            self.ln1_post, self.ln2_post = Norm(cfg), Norm(cfg)
        self.route_attn: Routing | None = None
        self.hook_route_attn: HookPoint | None = None
        if (attn_res := cfg.extensions.attn_res) is not None:
            # a channel of attention alone is empty at layer 0: nothing to route, or to commit
            has_sources = layer > 0 or attn_res.streams == "both"
            self.is_boundary = has_sources and attn_res.commits(layer)
            if has_sources:
                self.route_attn, self.hook_route_attn = Routing(cfg), HookPoint()  # [batch pos source]
            self.route_mlp, self.hook_route_mlp = Routing(cfg), HookPoint()

    def forward(
        self,
        state: State,
        cache: KeyValueCache | None = None,
        read_out: Callable | None = None,
        padding: Padding | None = None,
    ) -> State:
        """The state after this layer. `read_out` turns a routed state into the stream hook_resid_post shows."""
        return self.feed_forward(self.attend(state, cache, padding), read_out)

    def attend(
        self, state: State, cache: KeyValueCache | None = None, padding: Padding | None = None
    ) -> State | Attended:
        """The state after the attention sub-layer: what `feed_forward` continues from."""
        if isinstance(state, Routed):
            state = state.enter()
            read = state.read(self.route_attn, self.hook_route_attn)
            # without routing it is the main stream itself, which goes on
            resid_pre = hook_copy(self.hook_resid_pre, read) if self.route_attn is None else self.hook_resid_pre(read)
            state = state.commit() if self.is_boundary else state
            return state + self.hook_attn_out(self.attn(self._attn_input(resid_pre), cache, padding))
        if isinstance(state, Tensor):
            state = beside(state, self.ln1.w)
            padding = None if padding is None else padding.at(state.device)
        resid_pre = self.hook_resid_pre(state)
        written = self.attn(self._attn_input(resid_pre), cache, padding)
        running = resid_pre + self.hook_attn_out(self.behind_attention(written))
        if self.cfg.writes_linearly:
            return Attended(running, resid_pre) if self.cfg.parallel_attn_mlp else running
        return Attended(running, resid_pre, written)

    def behind_attention(self, written: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """What enters the stream of what heads wrote together: itself, or that under a norm."""
        return written if self.norm_behind is None else getattr(self, self.norm_behind)(written)

    @property
    def norm_behind(self) -> str | None:
        """Name of the norm behind attention, where one stands there."""
        if self.cfg.use_normalization_before_and_after:
            return "ln1_post"
        return "ln1" if self.cfg.extensions.post_norm else None

    def feed_forward(self, state: State | Attended, read_out: Callable | None = None) -> State:
        """The state after the feed-forward sub-layer, from the one `attend` returns."""
        if isinstance(state, Routed):
            resid_mid = self.hook_resid_mid(state.read(self.route_mlp, self.hook_route_mlp))
            state = state.add_mlp(self.hook_mlp_out(self.mlp(self.ln2(self.hook_mlp_in(resid_mid)))))
            if read_out is not None and is_watched(self.hook_resid_post):
                self._show(read_out(state))
            return state
        running = state.running if isinstance(state, Attended) else state
        if self.cfg.parallel_attn_mlp:
            assert isinstance(state, Attended), "attend returns one"
            read = state.resid_pre
        else:
            running = read = self.hook_resid_mid(running)
        mlp_in = hook_copy(self.hook_mlp_in, read)
        out = self.mlp(mlp_in if self.cfg.extensions.post_norm else self.ln2(mlp_in))
        return self.hook_resid_post(running + self.hook_mlp_out(self.behind_mlp(out)))

    def behind_mlp(self, written: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """What enters the stream of what the MLP wrote: itself, or that under a norm."""
        if self.cfg.use_normalization_before_and_after:
            return self.ln2_post(written)
        return self.ln2(written) if self.cfg.extensions.post_norm else written

    def _show(self, resid_post: Tensor) -> None:
        """hook_resid_post of a routed stream: a reading of its sums, which nothing after it reads.

        Warns where a forward hook returns other values or (seen outside inference mode) writes into it.
        """
        version = None if resid_post.is_inference() else resid_post._version
        seen = self.hook_resid_post(resid_post)
        is_written = version is not None and resid_post._version != version
        if is_written or (seen is not resid_post and not torch.equal(seen, resid_post)):
            name = f"blocks.{self.layer}.hook_resid_post"
            warnings.warn(
                f"{name}: a hook edits it, which changes nothing: under attention residuals nothing reads it; expected "
                "hook_resid_pre, hook_attn_out, hook_resid_mid or hook_mlp_out edited",
                stacklevel=2,
            )

    def _attn_input(self, resid_pre: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        points = (self.hook_q_input, self.hook_k_input, self.hook_v_input)
        norm = nn.Identity() if self.cfg.extensions.post_norm else self.ln1
        if not is_watched(self.hook_attn_in, *points):
            return norm(resid_pre)
        shared = resid_pre
        if is_watched(self.hook_attn_in):
            shared = hook_copy(self.hook_attn_in, per_head_copies(resid_pre, self.cfg.n_heads))
        inputs = []
        for point, n_heads in zip(points, (self.cfg.n_heads, self.cfg.kv_heads, self.cfg.kv_heads), strict=True):
            x = shared if shared.ndim == 3 else shared[:, :, :: self.cfg.n_heads // n_heads]
            if is_watched(point):
                x = hook_copy(point, x if x.ndim == 4 else per_head_copies(x, n_heads))
            inputs.append(norm(x))
        return inputs[0], inputs[1], inputs[2]


class Blocks(nn.ModuleList):
    """A ModuleList that says what it holds."""

    if TYPE_CHECKING:

        def __iter__(self) -> Iterator[Block]: ...

        def __getitem__(self, idx: int) -> Block: ...  # type: ignore[override]
