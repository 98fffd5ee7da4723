"""Synthetic scenes: individuals, places, and the captions that describe them."""
