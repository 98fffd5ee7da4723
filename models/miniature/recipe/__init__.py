"""How the miniature is trained from scratch, and exported to ship."""
