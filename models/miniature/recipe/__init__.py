"""How the miniature is trained from nothing, and made ready to ship."""
