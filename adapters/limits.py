"""Limits on the size of adapters; loads nothing."""

MAX_TOKENS = 16
MAX_STAGES = 100
"""Stages of a timestep token; each adds two prompts to encode."""
MAX_RANK = 1024
