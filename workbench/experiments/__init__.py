"""Experiments on a model: each takes a hooked model and tokens [n_sequences, n_ctx] and gives back a table or a stream.

The subject may be our `HookedLM` or a TransformerLens model: only `cfg`, `run_with_hooks`, `run_with_cache` and a
forward with `stop_at_layer` are asked of it. Import the module that you need.
"""
