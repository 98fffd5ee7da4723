"""Base models: aliases, hub ids, folders and single files, and the miniature that ships."""
