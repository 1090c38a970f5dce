"""How an encoder is judged: attacked scores, corruptions, masking checks, engineered-feature references."""
