"""The derivation of a dense layer's gradients, computed in front of the reader and checked step by step.

On the command line it is ``python -m manual_mlp explain``.
"""

from manual_mlp.explain.engine import Explanation, explain
from manual_mlp.explain.formulas import MISTAKES, Formulas, Mistake
from manual_mlp.explain.given import read_numbers, to_numbers
from manual_mlp.explain.grade import Grade, check_my_backward
from manual_mlp.explain.network import Network, draw_network

__all__ = [
    "MISTAKES",
    "Explanation",
    "Formulas",
    "Grade",
    "Mistake",
    "Network",
    "check_my_backward",
    "draw_network",
    "explain",
    "read_numbers",
    "to_numbers",
]
