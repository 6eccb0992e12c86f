"""The machine's store of trunk outputs: computed once an image, shared by all processes."""
