"""All rows of a network, a tile of them at a time, forward and backward, in Python."""
