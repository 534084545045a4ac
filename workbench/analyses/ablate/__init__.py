"""Head ablation: what the loss loses without a head, a layer, an MLP or a pair of heads, with intervals."""
