"""Models, what of them is trained, datasets, who holds what, and the peers' objectives."""
