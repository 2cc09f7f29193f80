"""Bundles: a discriminator with its Fisher statistics, where it comes from, and what is checked about it."""
