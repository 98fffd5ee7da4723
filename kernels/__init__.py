"""Attention that returns token maps, or only their moments, without writing the map."""
