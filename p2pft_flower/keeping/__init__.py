"""What lies on disk: checkpoints, journals, counts of starts, and who runs on this machine."""
