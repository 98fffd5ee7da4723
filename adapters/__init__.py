"""Adapters: what is learned of a subject, injected into a base model, and stored."""
