"""Recipes: the shape, the loader, overrides."""
