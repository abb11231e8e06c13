"""What is written down: job files, rows and records. No torch, no Ray."""
