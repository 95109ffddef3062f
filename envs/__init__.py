"""Batched torch environments."""
