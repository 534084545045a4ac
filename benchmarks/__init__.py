"""Ours beside the peer, in one process, by turns: medians, spreads, ratios."""

from workbench.runs.allocator import keep_large_blocks

keep_large_blocks()  # as the command line does; it stands for the peer as well, which runs in the same process
