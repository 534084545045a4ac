"""What models are trained on: documents (corpus), tokenizers (tokenizer), packed tokens and windows (tokens), n-gram
baselines (ngrams) and neural cellular automata (nca). Import the module that you need: some load torch, some do not."""
