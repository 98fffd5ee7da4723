"""Limits on the size of adapters; loads nothing."""

MAX_TOKENS = 16
MAX_STAGES = 100
"""Stages of a timestep token; each adds two prompts to encode."""
MAX_RANK = 1024
MAX_FOREIGN_TOKENS = 75
"""Vectors of an imported embedding: a prompt of CLIP has no more positions."""
