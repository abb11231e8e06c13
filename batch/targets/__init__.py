"""Distillation targets as they are stored, and their reader: torch and pyarrow, no Ray."""
