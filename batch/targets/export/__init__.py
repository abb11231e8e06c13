"""Targets in the forms of other trainers, one module for each."""
