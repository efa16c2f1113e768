"""Ordinary programs on real mounts."""
