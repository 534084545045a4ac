"""relu: the penalty l1 makes it sparse.

    acts = relu((x − b_dec) W_enc + b_enc),  recon = acts W_dec + b_dec
    loss = mean over tokens of ( ‖recon − x‖² + l1 · Σ acts · ‖W_dec row‖ )

W_enc [d_in, d_sae], b_enc [d_sae], W_dec [d_sae, d_in], b_dec [d_in]. SAELens's standard. Source: Bricken et al. 2023;
the norm in the penalty as in Conerly et al. 2024.
"""

from __future__ import annotations

from sae.one_layer import OneLayer


class ReLU(OneLayer):
    name = "relu"
    step_numbers = 3.1
    read_from = "standard"


ARCHITECTURE = ReLU()
