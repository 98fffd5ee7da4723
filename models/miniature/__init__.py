"""The base model that ships: its synthetic scenes, and the recipe that trains it on them."""
