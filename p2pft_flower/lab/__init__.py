"""Experiments on this machine: faults at random on processes, with checks; runs in one process."""
