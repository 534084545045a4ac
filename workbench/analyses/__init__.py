"""Experiments on a model: each takes a hooked model and tokens [n_sequences, n_ctx] and gives back a table or a stream.

The subject may be our `HookedLM` or a TransformerLens model (`HookedTransformer`, `TransformerBridge`), and is run by
`subject.run_hooked`: only `cfg`, `hook_dict` and `run_with_hooks` are asked of it. Import the module that you need.
"""
