"""Kernels for CUDA tensors. To import them is to import Triton, so that is left until they are called."""
