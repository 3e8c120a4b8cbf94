"""What the layers cost: ``python -m benchmarks``; needs torch and manual_mlp alone (the plot: matplotlib)."""
