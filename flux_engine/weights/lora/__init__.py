"""LoRA files: what they change in a model, read strictly from every layout in use, and written."""
