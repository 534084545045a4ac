"""Ours beside the peer, in one process, by turns: medians, spreads, ratios."""
