"""What a worker does to a shard's rows."""
