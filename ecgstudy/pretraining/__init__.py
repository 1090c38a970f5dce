"""Arms, weighting, the contrastive loss and the training loop."""
