"""Learning: models and their trained part, datasets and the peers' shares, the peers' objectives."""
