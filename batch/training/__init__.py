"""Training: rows into samples, checkpoints, the driver and its report."""
