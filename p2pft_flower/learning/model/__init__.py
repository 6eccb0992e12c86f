"""Models: their weights, their tuned part, trunk and tail."""
