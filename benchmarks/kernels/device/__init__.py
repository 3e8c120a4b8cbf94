"""Kernels in Triton, by purpose. To import them is to import Triton, so that is left until they are called."""
