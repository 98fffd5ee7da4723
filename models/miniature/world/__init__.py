"""The drawn world: individuals, places, scenes, and the captions that describe them."""
