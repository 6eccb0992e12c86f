"""Files on disk: checkpoints, journals, plans, counts of starts, and the peers that run on this machine."""
