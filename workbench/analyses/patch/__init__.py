"""What putting one prompt's activations into another's forward pass does to its answer."""
