"""Train an MLP whose every gradient is written by hand. `python train.py --help` lists the flags."""

import os
import signal
import sys


def main() -> int:
    # Loading torch takes seconds, and numpy does not survive a KeyboardInterrupt: until then Ctrl-C just ends.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    import torch

    from manual_mlp.training import checkpoint, recipe
    from manual_mlp.training.cli import one_line_errors, parse
    from manual_mlp.training.data import load
    from manual_mlp.training.interrupt import Interrupt
    from manual_mlp.training.log import Log
    from manual_mlp.training.loop import Trainer

    signal.signal(signal.SIGINT, signal.default_int_handler)
    with one_line_errors():
        config = parse()
        device = recipe.pick_device(config.device)
        torch.manual_seed(config.seed)

        data = load(config.dataset, config.data_dir, device)
        model = recipe.build_model(config, data, device)
        trainer = Trainer(model, data, config)
        settings = checkpoint.settings(config, data)
        print(f"{data}, on {device}")
        print(model, flush=True)

        with Interrupt() as interrupt, checkpoint.run_folder(config) as folder, Log(folder) as log:
            checkpoint.save_settings(folder, settings)
            log.settings(settings)
            result = trainer.fit(log, interrupt)
            if interrupt.signal:
                print("interrupted: these are the results so far")
            saved = checkpoint.save_model(folder, model)
            test = trainer.evaluate(data.read_test())
            log.metrics(result.steps, "test", test)

        print(f"trained {result.steps} steps in {result.seconds:.1f} s")
        print(f"gradients at most {result.gradient_error:.1e} from autograd's, on {result.checks} batches")
        if not config.dry_run:
            print(f"model: {saved}")
            print(f"TensorBoard: {checkpoint.tensorboard_command(folder)}")
        print(f"test accuracy {100 * test.accuracy:.2f} %")
        return interrupt.exit_status


if __name__ == "__main__":
    # OpenMP's threads then wait for each other asleep. Awake, on a busy machine, they take the processor from the
    # very thread they wait for, and a step can take twenty times as long.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted before there was a result", file=sys.stderr)
        sys.exit(130)
