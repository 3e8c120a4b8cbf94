"""Who computes what torch's own operations take several passes for."""
