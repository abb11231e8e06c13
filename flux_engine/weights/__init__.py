"""Weights: where files come from, how they are read, and what their names mean."""
