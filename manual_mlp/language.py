"""The loss of a language model, whose head is a module: its weight is taken where that is all the head is."""

from typing import Any, SupportsIndex

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manual_mlp.checks import check_options, check_tensor
from manual_mlp.cross_entropy import linear_cross_entropy
from manual_mlp.formulas.cross_entropy import Stats
from manual_mlp.loss_checks import capping, check_torchs_options, check_whole, ignored_class, shift_of, shifted
from manual_mlp.losses import LOSSES, Criterion
from manual_mlp.modules import Linear
from manual_mlp.output import loss_of_output
from manual_mlp.sequential import is_one_of
from manual_mlp.transforms import called_as_it_is, has_class, modules_are_watched


def lm_loss(
    hidden: Tensor,
    head: nn.Module,
    labels: Tensor,
    *,
    shift: bool | int = True,
    num_items_in_batch: Tensor | float | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: SupportsIndex | None = None,
    label_smoothing: float = 0.0,
    row_weight: Tensor | None = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    return_stats: bool = False,
    chunk_rows: int | None = None,
    options: Any = None,
) -> Any:
    r"""Compute the loss of a language model from its last hidden states and its head, mostly without all logits.

    The value and every derivative equal those of ``F.cross_entropy`` between ``head(hidden)[..., :-1, :]`` and
    ``labels[..., 1:]``. Where the head is an ``nn.Linear`` or a :class:`manual_mlp.Linear` and nothing else, it is
    :func:`manual_mlp.linear_cross_entropy` of its weight and bias, and logits exist a few rows at a time; a weight that
    is tied to an embedding gets its gradients from both. Where the head does more (an adapter, a subclass, a hook, a
    parametrisation, another forward, ``fully_shard``), and where the class of its weight computes in its own way (a
    quantised one), it is called as it is, with all of ``hidden``, and all logits exist at once. The weight of a head
    that is a DTensor is taken where ``hidden`` is a DTensor too.

    Args:
        hidden: floating-point tensor, of the last layer before the head.
        head: the module that makes logits of it, such as ``model.lm_head``.
        labels: classes (int64 or uint8), those of ``ignore_index`` for nothing.
        shift: the positions by which labels are ahead of ``hidden``: True is 1, for labels that are the tokens that
            came in, as models of transformers have them. 0 or False for labels that are shifted already.
        num_items_in_batch: the labels that count in all parts of a batch whose gradients are added up, as the trainer
            of transformers passes it: the loss is the sum divided by it. A number, or a tensor of one entry.
        weight, ignore_index, label_smoothing, z_loss, softcap, chunk_rows, options: as in
            :func:`manual_mlp.linear_cross_entropy`.
        reduction: ``"mean"`` over the labels that count, ``"sum"`` or ``"none"``.
        row_weight: the weight of each label, shifted with it, as in :func:`manual_mlp.linear_cross_entropy`.
        return_stats: whether to return (loss, stats), as :func:`manual_mlp.linear_cross_entropy` does.

    Shape:
        - hidden: :math:`(*, T, D)`; :math:`(*, D)` without a shift
        - labels, row_weight: :math:`(*, T)`; :math:`(*)` without a shift
        - weight: :math:`(V)`
        - Output: scalar; :math:`(*, T - shift)` if ``reduction`` is ``"none"``. So are the statistics.

    Raises:
        ValueError: shapes or devices do not fit together, or an option is out of range.
        TypeError: the head is no module, or dtypes differ or are not those named here.
        IndexError: a label is out of range (on a CPU; CUDA reports it as torch does, by an assertion).

    Example::

        hidden = torch.randn(2, 5, 4)  # model.model(tokens).last_hidden_state
        head = torch.nn.Linear(4, 7, bias=False)  # model.lm_head
        labels = torch.randint(7, (2, 5))
        lm_loss(hidden, head, labels)
    """
    by = _fits(hidden, head, labels, row_weight, shift)
    if num_items_in_batch is not None:
        if reduction != "mean":
            raise ValueError(f"expected reduction 'mean' with num_items_in_batch, got {reduction!r}")
        reduction, row_weight = "sum", _shares(hidden, row_weight, num_items_in_batch)
    # Labels are moved, not states: these would be copied, and a called head sees all of them, as in its model.
    labels, row_weight = _moved(by, labels.long(), row_weight, ignored_class(ignore_index))
    given: dict[str, Any] = {"weight": weight, "ignore_index": ignore_index, "label_smoothing": label_smoothing}
    given |= {"row_weight": row_weight, "z_loss": z_loss, "softcap": softcap, "return_stats": return_stats}
    given |= {"reduction": reduction, "chunk_rows": chunk_rows, "options": options}
    made_by_class = has_class(getattr(head, "weight", None)) and not has_class(hidden)
    found = loss_of_called(head, hidden, labels, **given) if made_by_class else loss_of(head, hidden, labels, **given)
    loss, *stats = found if return_stats else (found,)
    if by and reduction == "none":
        loss = loss[..., :-by]
    if not return_stats:
        return loss
    return loss, Stats(*(t[..., :-by] for t in stats[0])) if by else stats[0]


def loss_of(head: nn.Module, input: Tensor, target: Tensor, **options: Any) -> Any:
    """Compute linear_cross_entropy() of a head that is its weight and bias, or of the logits of one that is more."""
    if not (is_one_of((nn.Linear, Linear), head) and called_as_it_is(head)) or modules_are_watched():
        return loss_of_called(head, input, target, **options)
    linear: Any = head
    return linear_cross_entropy(input, linear.weight, target, linear_bias=linear.bias, **options)


def loss_of_called(head: nn.Module, input: Tensor, target: Tensor, **options: Any) -> Any:
    """Compute the same of the logits that a head makes, with the options of linear_cross_entropy()."""
    of_loss = {name: options[name] for name in LOSSES["cross_entropy"].options}
    check_options(options["reduction"], options["chunk_rows"])
    check_torchs_options(options["options"])
    input, target, of_loss["row_weight"] = shifted(options.get("shift", 0), input, target, of_loss["row_weight"])
    y = head(input)
    check_whole(y, head)
    if not isinstance(y, Tensor) or y.shape[:-1] != input.shape[:-1]:
        leading = "".join(f"{size}, " for size in input.shape[:-1])
        got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"expected {type(head).__name__} to return logits ({leading}V), got {got}")
    criterion = Criterion(LOSSES["cross_entropy"], target, options["reduction"], of_loss, options["return_stats"])
    return loss_of_output(y, criterion, capping(options["softcap"]))


def _fits(hidden: Tensor, head: nn.Module, labels: Tensor, row_weight: Tensor | None, shift: bool | int) -> int:
    """Return the positions to shift by, or raise an error unless there is a head, and a label for each state."""
    check_tensor("hidden", hidden)
    check_tensor("labels", labels)
    if not isinstance(head, nn.Module):
        raise TypeError(f"expected head to be a module, got {type(head).__name__}; linear_cross_entropy takes a weight")
    if labels.dtype not in (torch.int64, torch.uint8):
        raise TypeError(f"expected labels to be int64 or uint8 classes, got {labels.dtype}")
    by, least = shift_of(shift), 2 if shift else 1
    if hidden.dim() < least:
        expected = "(*, T, D) where labels are shifted" if by else "(*, D)"
        raise ValueError(f"expected hidden {expected}, got {tuple(hidden.shape)}")
    if by and by >= hidden.shape[-2]:
        most = hidden.shape[-2] - 1
        raise ValueError(f"expected shift from 0 to {most} for hidden {tuple(hidden.shape)}, got {by}")
    for name, t in {"labels": labels, "row_weight": row_weight}.items():
        if t is None:
            continue
        check_tensor(name, t)
        if t.shape != hidden.shape[:-1]:
            expected = f"{name} {tuple(hidden.shape[:-1])} for hidden {tuple(hidden.shape)}"
            raise ValueError(f"expected {expected}, got {tuple(t.shape)}")
    return by


def _shares(hidden: Tensor, row_weight: Tensor | None, items: Tensor | float) -> Tensor:
    """Divide the weights of rows: in float16 a sum may be infinite before it is divided."""
    if isinstance(items, Tensor):
        if items.numel() != 1:
            raise ValueError(f"expected num_items_in_batch of one entry, got {tuple(items.shape)}")
        items = items.to(hidden.device).reshape(())
    elif isinstance(items, bool) or not isinstance(items, (int, float)):
        raise TypeError(f"expected num_items_in_batch to be a number or a tensor, got {items!r}")
    elif items <= 0:
        raise ValueError(f"expected num_items_in_batch above 0, got {items}")
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    rows = hidden.new_ones(hidden.shape[:-1], dtype=dtype) if row_weight is None else row_weight.to(dtype)
    return rows / items


def _moved(by: int, labels: Tensor, row_weight: Tensor | None, ignored: int) -> tuple[Tensor, Tensor | None]:
    """Move labels to the states before them; of the last states nothing counts."""
    if not by:
        return labels, row_weight
    labels = F.pad(labels[..., by:], (0, by), value=ignored)
    return labels, None if row_weight is None else F.pad(row_weight[..., by:], (0, by))
