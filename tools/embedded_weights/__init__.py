"""Scripts that made the weights of the embedded model."""
