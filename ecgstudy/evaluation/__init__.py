"""How robust an encoder is: attacks, corruptions, masking checks, embeddings."""
