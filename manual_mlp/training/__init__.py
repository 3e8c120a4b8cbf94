"""Train an MLP on MNIST: data, recipe, loop and TensorBoard. Needs the extra `train`.

Example::

    from manual_mlp.training import load_run

    model = load_run("runs/first")  # what train.py wrote with --name first
    classes = model(images.flatten(1) / 255).argmax(1)  # images (N, 28, 28), from 0 to 255
"""

from manual_mlp.training.export import load_run

__all__ = ["load_run"]
