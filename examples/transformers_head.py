"""Train a small model of transformers with its own loss and with lm_loss: the same losses, a fraction of the memory.

The model is a Llama made from a config, with a vocabulary of 32,000 tokens and an embedding that is tied to its head;
the text is docs/derivation.md, a byte a token. The model's own loss makes the logits of all tokens at once, and so does
its backward; lm_loss makes those of a few at a time. What changes is the five lines of `loss_of_head`.

    python examples/transformers_head.py
    python examples/transformers_head.py --device cuda
"""

import argparse
import importlib.util
import os
import statistics
import time
from pathlib import Path

import torch

TEXT = Path(__file__).parents[1] / "docs" / "derivation.md"
VOCABULARY, LENGTH, BATCH = 32_000, 128, 4


def loss_of_model(model, tokens):
    """Compute the loss as transformers does."""
    return model(input_ids=tokens, labels=tokens).loss


def loss_of_head(model, tokens):
    """Compute the same loss by lm_loss: these five lines are all that changes."""
    from manual_mlp import lm_loss

    hidden = model.model(input_ids=tokens).last_hidden_state
    head = model.lm_head
    labels = tokens  # lm_loss shifts them, as the model does
    return lm_loss(hidden, head, labels)


LOSSES = {"transformers": loss_of_model, "lm_loss": loss_of_head}


def llama(vocabulary=VOCABULARY, width=64, layers=2):
    """Build a Llama from a config, with initial parameters at random."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def batches(steps, device):
    """Yield parts of the text that are drawn at random, a byte a token."""
    text = torch.frombuffer(bytearray(TEXT.read_bytes()), dtype=torch.uint8).long()
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        starts = torch.randint(len(text) - LENGTH, (BATCH,), generator=generator)
        yield torch.stack([text[start : start + LENGTH] for start in starts.tolist()]).to(device)


def held(step, device):
    """Run a step, and list when it allocates or frees memory, and the bytes of new tensors that it holds from then on.

    torch's profiler tells. What was there before the step is not counted, and must not be freed by it.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would announce itself
    with torch.autograd.profiler.profile(profile_memory=True) as profiler:
        step()
        if device == "cuda":
            torch.cuda.synchronize()
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    events = [event for event in events if event.device_type().name.lower() == device]
    events.sort(key=lambda event: event.start_ns())
    times = [(event.start_ns() - events[0].start_ns()) / 1e9 for event in events]
    changes = torch.tensor([event.nbytes() for event in events], dtype=torch.float64)
    return times, changes.cumsum(0).tolist()


def train(loss, steps, seed, device):
    """Train a model by AdamW; return the loss and the seconds of every step, and what one more step holds."""
    torch.manual_seed(seed)
    model = llama().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def step(tokens):
        value = loss(model, tokens)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        return value.item()

    losses, seconds, parts = [], [], list(batches(steps + 1, device))
    for tokens in parts[:steps]:
        start = time.perf_counter()
        losses.append(step(tokens))
        seconds.append(time.perf_counter() - start)
    return losses, seconds, held(lambda: step(parts[-1]), device)


def draw(picture, found):
    """Save the losses, what a step holds while it runs, and the most of that."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12.5, 3.9), layout="constrained")
    styles = {"transformers": ("tab:orange", 5, 0.5), "lm_loss": ("tab:blue", 1.5, 1.0)}
    for name, (losses, seconds, (times, held_bytes)) in found.items():
        color, width, alpha = styles[name]
        left.plot(range(1, len(losses) + 1), losses, color=color, linewidth=width, alpha=alpha, label=name)
        middle.step(times, [b / 1e6 for b in held_bytes], where="post", color=color, linewidth=1.5, label=name)
        bars = right.bar(name, max(held_bytes) / 1e6, color=color, width=0.6)
        right.bar_label(bars, [f"{max(held_bytes) / 1e6:.0f} MB\n{1e3 * statistics.median(seconds):.0f} ms a step"])
    left.set(title="Loss: the same", xlabel="step", ylabel="cross-entropy of the next byte")
    middle.set(title="New tensors held during one step", xlabel="seconds", ylabel="MB")
    right.set(title="The most of it", ylabel="MB")
    right.margins(y=0.2)
    left.legend()
    middle.legend()
    figure.savefig(picture, dpi=100)


def arguments():
    """Read the flags, and stop in one line at one that cannot be."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.error = lambda message: parser.exit(2, f"error: {message}\n")
    parser.add_argument("--steps", type=int, default=30, help="steps of AdamW with each loss (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the initial parameters (default: %(default)s)")
    parser.add_argument("--picture", type=Path, default=Path(__file__).with_suffix(".png"), help="PNG file to write")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: %(default)s)")
    args = parser.parse_args()
    if args.steps < 1:
        parser.error(f"expected --steps to be at least 1, got {args.steps}")
    if not 0 <= args.seed < 2**64:
        parser.error(f"expected --seed to be in [0, 2^64), got {args.seed}")
    if args.picture.suffix != ".png" or not args.picture.absolute().parent.is_dir():
        parser.error(f"expected --picture to be a .png file in an existing folder, got {args.picture}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("expected a CUDA device for --device cuda, got none")
    for package, what in (("matplotlib", "picture"), ("transformers", "model")):
        if importlib.util.find_spec(package) is None:
            parser.error(f"expected {package}, for the {what}, got none: pip install '.[examples]'")
    return args


def main():
    args = arguments()
    found = {name: train(loss, args.steps, args.seed, args.device) for name, loss in LOSSES.items()}
    draw(args.picture, found)
    theirs, ours = (losses for losses, _, _ in found.values())
    print(f"{'step':>12} " + " ".join(f"{name:>12}" for name in found))
    for k in sorted({*range(0, args.steps, max(1, args.steps // 8)), args.steps - 1}):
        print(f"{k + 1:>12} {theirs[k]:>12.5f} {ours[k]:>12.5f}")
    for what, numbers in (
        ("ms a step", [1e3 * statistics.median(seconds) for _, seconds, _ in found.values()]),
        ("MB at most", [max(held_bytes) / 1e6 for _, _, (_, held_bytes) in found.values()]),
    ):
        print(f"{what:>12} " + " ".join(f"{number:>12.1f}" for number in numbers))
    print(f"largest difference of the losses {max(abs(a - b) for a, b in zip(theirs, ours, strict=True)):.1e}")
    print(f"picture: {args.picture}")


if __name__ == "__main__":
    main()
