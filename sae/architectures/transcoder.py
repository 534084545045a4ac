"""transcoder: features of one activation x that reconstruct another one y, as an MLP's output from its input.

    acts = A(x W_enc + b_enc),  recon = acts W_dec + b_dec
    loss = mean over tokens of ( ‖recon − y‖² + l1 · sparsity )

A and what l1 multiplies are those of relu, topk, batchtopk or jumprelu (`SAEConfig.activation`), and so are further
tensors. W_enc [d_in, d_sae], b_enc [d_sae], W_dec [d_sae, d_out], b_dec [d_out]. At the start W_dec is 0 and b_dec the
mean of y, so that training begins from the best constant, and W_enc has random columns of norm decoder_init_norm: the
first step moves W_dec alone, towards Σ acts (y − mean y), and from then on all learn (a penalty by ‖W_dec row‖ has the
subgradient 0 at 0). SAELens has them as transcoder and jumprelu_transcoder, and none of topk.

Source: Dunefsky et al. 2024, whose penalty is Σ acts alone; the start of Paulo et al. 2025.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sae.architecture import Architecture, SAELensForm, Weights
from sae.architectures.batchtopk import BatchTopK
from sae.architectures.jumprelu import JumpReLU
from sae.architectures.relu import ReLU
from sae.architectures.topk import TopK
from sae.one_layer import OneLayer

if TYPE_CHECKING:
    from sae.config import SAEConfig

THEIR_NAMES = {"standard": "{}", "jumprelu": "jumprelu_{}"}
"""SAELens's transcoder of each of its SAEs that has one."""


class Transcoder(OneLayer):
    """What is a transcoder's own; the activation function is the class's beside it."""

    name = "transcoder"
    reads_pair = True
    defaults = {"apply_b_dec_to_input": False, "b_dec_init": "mean"}  # noqa: RUF012  # never changed

    def check(self, config: SAEConfig) -> None:
        super().check(config)
        for field in ("apply_b_dec_to_input", "use_unit_norm_decoder"):
            if getattr(config, field):
                why = "b_dec is the output's" if field == "apply_b_dec_to_input" else "its decoder starts at 0"
                raise ValueError(f"SAEConfig.{field}: got True for {self.name}; expected False ({why})")

    def to_sae_lens(self, config: SAEConfig, w: Weights) -> SAELensForm:
        form = super().to_sae_lens(config, w)
        if form.architecture not in THEIR_NAMES:
            raise ValueError(
                f"to_sae_lens: got a {self.name} with activation {config.activation}, which SAELens does not have; "
                "expected relu, batchtopk or jumprelu"
            )
        theirs = THEIR_NAMES[form.architecture].format(self.name)
        return SAELensForm(theirs, form.tensors, form.fields | {"d_out": config.d_target})

    def options_from_sae_lens(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        own = {"d_out": fields.get("d_out")}
        return own if self is next(iter(self.forms.values())) else own | {"activation": self.activation}

    @property
    def activation(self) -> str:
        """What `SAEConfig.activation` calls this form."""
        return next(name for name, form in self.forms.items() if form is self)


def forms_of(kind: type[Transcoder]) -> dict[str, Architecture]:
    """A transcoder with each activation function, by its name."""
    forms: dict[str, Architecture] = {}
    for activation in (ReLU, TopK, BatchTopK, JumpReLU):
        theirs = THEIR_NAMES.get(activation.read_from or "")
        own = {
            "options": activation.options | {"activation", "d_out"},
            "read_from": theirs and theirs.format(kind.name),
            "forms": forms,
            "__module__": kind.__module__,
        }
        forms[activation.name] = type(f"{activation.__name__}{kind.__name__}", (kind, activation), own)()
    return forms


ARCHITECTURE = forms_of(Transcoder)["relu"]
