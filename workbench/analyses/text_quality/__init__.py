"""Text quality: continuations sampled and counted, and batteries of items."""
