"""How a concept is taught: a file per method, one training engine."""
