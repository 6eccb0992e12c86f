"""Faults at random on processes of this machine, and whether all that is promised held."""
