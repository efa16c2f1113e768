"""Whole-store work: checking and repairing."""
