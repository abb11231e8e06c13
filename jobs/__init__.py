"""What is submitted: one module per job, each started with `python -m jobs.<name>`."""
