"""Text quality: continuations sampled and counted, and the recall battery."""
