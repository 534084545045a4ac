"""An intervention: presses the MLP outputs of neighbouring layers towards orthogonality."""

import torch
from pydantic import Field

from workbench.extend import Intervention, Settings, Terms


class MlpOrthogonality(Intervention):
    """Presses the MLP outputs of neighbouring layers towards orthogonality."""

    class Settings(Settings):
        weight: float = Field(default=0.01, description="weight of the term", ge=0)

    def watch(self, cfg):
        return [f"blocks.{layer}.hook_mlp_out" for layer in range(cfg.n_layers)]

    def terms(self, seen, context):
        x = torch.stack([activation.flatten() for activation in seen.values()]).float()
        x = x / x.norm(dim=1, keepdim=True)
        loss = (x[1:] * x[:-1]).sum(1).abs().mean()
        return Terms(loss=self.settings.weight * loss, telemetry={"cos": loss.detach()})
