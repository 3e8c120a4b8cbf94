"""A layer and its loss as one Function: a network of one layer, run a tile of rows at a time."""
