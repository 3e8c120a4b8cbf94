"""A usual loss of few logits, for a compiler: torch's own operations, and few questions.

What a compiler looks up while it traces it looks up again at each call, to see that it still holds. So most questions
are to the tensors themselves, which it looks at in any case.
"""

from torch import Tensor

from manual_mlp.formulas.layer import z_of
from manual_mlp.sweep.tiling import FEW_LOGITS, FEW_LOGITS_OF_CUDA
from manual_mlp.transforms import composed_while_compiling


def usual_logits(
    h: Tensor, w: Tensor, b: Tensor | None, target: Tensor, weight: Tensor | None = None, of_classes: bool = True
) -> Tensor | None:
    """Compute few logits (*, V), if these fit together and are of one dtype, float32 or float64; else None.

    The weight is of the classes; the target is numbers, or classes. Where a class of tensors is among these, its own
    operations are called, except those of a weight that is cut.
    """
    rows, classes, dtype = h.shape[:-1], w.shape[:1], h.dtype
    if (
        w.dtype is not dtype
        or not dtype.is_floating_point
        or dtype.itemsize < 4
        or h.shape[-1:] != w.shape[1:]
        or (b is not None and (b.shape != classes or b.dtype is not dtype))
        or (weight is not None and (weight.shape != classes or weight.dtype is not dtype))
        or hasattr(w, "device_mesh")
    ):
        return None
    of_classes = of_classes and target.dtype.itemsize == 8 and not (target.is_floating_point() or target.is_complex())
    if not of_classes and target.dtype is not dtype:
        return None
    if target.shape != (rows if of_classes else (*rows, *classes)) or composed_while_compiling():
        return None
    # Not before a compiler is there: it imports much.
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    # Of a dynamic size nothing is known, and nothing is to be asked.
    few = rows.numel() * classes[0] < (FEW_LOGITS_OF_CUDA if h.is_cuda else FEW_LOGITS)
    return z_of(h, w, b) if statically_known_true(few) else None
