"""Models: weights, the trained part, trunk and tail."""
