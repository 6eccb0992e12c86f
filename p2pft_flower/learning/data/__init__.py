"""Images: datasets, how files become pictures, who holds what, and in which order it is seen."""
