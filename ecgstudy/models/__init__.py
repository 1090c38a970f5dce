"""Backbones, encoders, heads, checkpoints and released encoders."""
