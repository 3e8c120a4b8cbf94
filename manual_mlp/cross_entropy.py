"""The last layer whose softmax is compared with classes: what users of language models ask for, in one step."""

from typing import Any, Literal, SupportsIndex, overload

import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from manual_mlp.engines import native
from manual_mlp.formulas.cross_entropy import Options, Stats
from manual_mlp.head.plan import Head
from manual_mlp.head.traced import usual_logits
from manual_mlp.loss_checks import capping, chunk_rows_of, shifted
from manual_mlp.losses import LOSSES, Criterion
from manual_mlp.output import loss_of_head


@overload
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: SupportsIndex | None = None,
    label_smoothing: float = 0.0,
    row_weight: Tensor | None = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    shift: int = 0,
    return_stats: Literal[False] = False,
    chunk_rows: int | None = None,
    options: Any = None,
) -> Tensor: ...
@overload
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: SupportsIndex | None = None,
    label_smoothing: float = 0.0,
    row_weight: Tensor | None = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    shift: int = 0,
    return_stats: bool,
    chunk_rows: int | None = None,
    options: Any = None,
) -> Any: ...
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: SupportsIndex | None = None,
    label_smoothing: float = 0.0,
    row_weight: Tensor | None = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    shift: int = 0,
    return_stats: bool = False,
    chunk_rows: int | None = None,
    options: Any = None,
) -> Any:
    r"""Compute the cross-entropy of a linear layer's softmax, whose gradient is δ = (Σa)p − a, a few rows at a time.

    The value and every derivative equal those of ``F.cross_entropy(F.linear(input, linear_weight, linear_bias),
    target, …)``, where ``input`` may have any number of dimensions, classes in the last. With all options a row that
    is not ignored has the value::

        u ((Σa) lse − a·s + ζ lse²),   s = c·tanh(z/c),   lse = ln Σ exp(s)

    with its weight u, ``z_loss`` ζ, ``softcap`` c (s = z without one), and a its target after smoothing and class
    weights: δ = u ((Σa + 2ζ lse) p − a) ⊙ (1 − (s/c)²).

    In float16 and bfloat16 values are computed and added up in float32, then rounded once: with label smoothing or
    many classes, such as 128,256, torch's own overflow to infinity in float16, and lose digits in bfloat16.

    The classes may be shared out among processes: ``linear_weight`` is a DTensor whose placement is ``Shard(0)`` on a
    mesh of one dimension, and so is ``linear_bias``. Each process computes the logits of its own classes, a chunk of
    rows at a time, and tells the others a few numbers of each row: one all-reduce a chunk, and one for the gradient of
    ``input`` in the end. (Where float16 or ``reduction="none"`` makes logits twice, it tells twice.) ``input``,
    ``target`` and the weights are replicated DTensors, or plain tensors **that are the same in each process**, as they
    are behind the layers of tensor parallelism: the loss, and the gradient of ``input``, are then plain too. All
    processes make the same calls, and ask for the same gradients.

    Args:
        input: floating-point tensor.
        linear_weight: of the input's dtype and device; under autocast dtypes may differ. For a DTensor see above.
        target: classes (int64 or uint8), or probabilities of the classes, which may require grad.
        linear_bias: as ``linear_weight``, or None.
        weight: of the classes; of the input's dtype where the target is classes, unless autocast is on.
        reduction: ``"mean"`` (over the rows that count, by their weights u and those of their classes; over all rows,
            by their weights, for probabilities), ``"sum"`` or ``"none"``.
        ignore_index: a class whose rows count for nothing; None is -100.
        label_smoothing: ε of the target (1 − ε)t + ε/V, from 0 to 1.
        row_weight: u, of any real dtype, or a mask; the loss keeps its own dtype. It may require grad: then all logits
            are kept. Where all are 0, a mean is not a number, and has no gradient, as where all rows are ignored.
        z_loss: ζ, from 0 up, such as 1e-4: it draws lse to 0 (Chowdhery et al., PaLM, 2022, section 5).
        softcap: c, above 0, in units of a logit, such as 30: no logit leaves −c to c (Gemma Team, Gemma 2, 2024).
        shift: the positions s by which targets are ahead: row t of each sequence is compared with target t + s, the
            last s rows with nothing. True is 1, the next token.
        return_stats: whether to return (loss, stats), where ``stats.logsumexp`` is lse of every row, in float32 at
            least, and ``stats.correct`` tells whether its largest logit is that of the target, or of the likeliest
            class of it; False for an ignored row. Both are detached.
        chunk_rows: the rows of logits to hold at once; None for what :mod:`manual_mlp.sweep.tiling` finds best.
        options: ``torch.nn.LinearCrossEntropyOptions``, whose chunks are taken for ``chunk_rows``; a chunking method
            "auto" is None. ``acc_dtype`` may be no narrower than float32, in which all sums are added up in any case;
            ``acc_policy`` and ``allow_retain_graph`` change nothing, since both are always granted.

    Shape:
        - input: :math:`(*, D)`; :math:`(*, T, D)` with a shift
        - linear_weight: :math:`(V, D)`
        - target: :math:`(*)`, or :math:`(*, V)` for probabilities
        - linear_bias, weight: :math:`(V)`
        - row_weight: :math:`(*)`
        - Output: scalar; :math:`(*)` if ``reduction`` is ``"none"``, where T is T − shift. So are the statistics.

    Raises:
        ValueError: shapes or devices do not fit together, or an option is out of range.
        TypeError: dtypes differ or are not those named here.
        IndexError: a class is out of range (on a CPU; CUDA reports it as torch does, by an assertion).

    Example::

        hidden, weight, target = torch.randn(6, 4), torch.randn(7, 4), torch.randint(7, (6,))
        loss = linear_cross_entropy(hidden, weight, target)
        theirs = torch.nn.functional.cross_entropy(hidden @ weight.T, target)
        assert torch.allclose(loss, theirs, atol=1e-6)
    """
    if is_dynamo_compiling() and not (shift or return_stats) and z_loss == label_smoothing == 0:
        usual = row_weight is None and softcap is None and ignore_index is None and chunk_rows is None
        usual = usual and options is None and input.dim() == 2 and reduction in ("mean", "sum", "none")
        logits = usual_logits(input, linear_weight, linear_bias, target, weight) if usual else None
        if logits is not None:
            return F.cross_entropy(logits, target, weight, reduction=reduction)
    input, target, row_weight = shifted(shift, input, target, row_weight)
    activation, chunk_rows = capping(softcap), chunk_rows_of(options, chunk_rows, input, linear_weight)
    if not is_dynamo_compiling() and native.doors is not None:
        of = ("cross_entropy", target, weight, None, row_weight, ignore_index, label_smoothing, z_loss, return_stats)
        found = native.doors.head(input, linear_weight, linear_bias, activation, reduction, chunk_rows, *of)
        if found is not None:
            return (found[0], Stats(*found[1:])) if return_stats else found
    given = Options(weight, ignore_index, label_smoothing, row_weight, z_loss)
    criterion = Criterion(LOSSES["cross_entropy"], target, reduction, given._asdict(), return_stats)
    return loss_of_head(Head(input, linear_weight, linear_bias, activation), criterion, chunk_rows)
