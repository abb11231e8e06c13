"""Training material on its way into training shards: where it lies, and what is in it."""
