"""A version of a concept as files that other tools read, and their files as versions."""
