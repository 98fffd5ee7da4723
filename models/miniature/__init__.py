"""The embedded base model: a drawn world, and the recipe that teaches it to Stable Diffusion."""
