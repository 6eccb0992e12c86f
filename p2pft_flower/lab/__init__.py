"""Faults at random on processes of this machine, and checks of all that must hold nevertheless."""
