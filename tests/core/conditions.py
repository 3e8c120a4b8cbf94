"""What a layer may be computed under: precisions, and numbers of threads."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# The dtype of the operands, and that of a region of autocast.
PRECISIONS = {
    "float32": (torch.float32, None),
    "float16": (torch.float16, None),
    "bfloat16": (torch.bfloat16, None),
    "autocast to float16": (torch.float32, torch.float16),
    "autocast to bfloat16": (torch.float32, torch.bfloat16),
}


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
