"""Attacks of the evaluation and natural corruptions."""
