"""Train an MLP on MNIST: data, recipe, loop and TensorBoard. Needs the extra `train`."""
