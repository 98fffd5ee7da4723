"""Scores of what a concept draws, the suites they are from, and the choice of the best version."""
