"""How much an adapter may hold; known without loading anything."""

MAX_TOKENS = 16
MAX_STAGES = 100
"""Of a token that changes with time; each is two prompts more to encode."""
MAX_RANK = 1024
