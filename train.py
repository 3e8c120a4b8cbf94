"""Train an MLP whose every gradient is written by hand. `python train.py --help` lists the flags."""

import os
import signal
import sys


def main() -> int:
    # Loading torch takes seconds, and numpy does not survive a KeyboardInterrupt: until then Ctrl-C just ends.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    import torch

    from manual_mlp import streams
    from manual_mlp.training import build, checkpoint, state
    from manual_mlp.training.cli import one_line_errors, parse
    from manual_mlp.training.data import load
    from manual_mlp.training.distributed import processes
    from manual_mlp.training.interrupt import Interrupt
    from manual_mlp.training.log import open_log
    from manual_mlp.training.loop import Trainer

    streams.forgive()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with one_line_errors(), processes() as group:
        config = parse()
        device = build.pick_device(config.device, group)
        torch.manual_seed(config.seed)

        data = load(config.dataset, config.data_dir, device, config.held_out, config.normalised)
        model = build.build_model(config, data, device)
        trainer = Trainer(model, data, config, group)
        settings = checkpoint.settings(config, data)
        group.print(f"{data}, on {device}")
        group.print(model)

        with Interrupt() as interrupt, checkpoint.run_folder(config, group) as folder, open_log(folder, group) as log:
            if config.resume:
                checkpoint.require_same(config, settings)
                trainer.resume(folder)
                finished = ": the run was finished" if trainer.epoch == config.epochs else ""
                group.print(f"resumed after epoch {trainer.epoch} of {config.epochs}{finished}")
            elif group.first:
                checkpoint.save_settings(folder, settings)
            log.start(settings, model, data, trainer.step)
            result = trainer.fit(log, interrupt, folder)
            if interrupt.signal:
                group.print(f"interrupted: these are the results so far; --resume goes on after epoch {result.epochs}")
            test = data.read_test()
            metrics = trainer.evaluate(test)
            with trainer.autocast:
                log.finish(result.steps, model, test, data, metrics, settings)

        group.print(f"trained {result.steps} steps in {result.seconds:.1f} s")
        group.print(f"gradients at most {result.gradient_error:.1e} from autograd's, on {result.checks} batches")
        if not config.dry_run:
            group.print(f"model: {folder / state.LAST}")
            group.print(f"TensorBoard: {checkpoint.tensorboard_command(folder)}")
        group.print(f"test accuracy {100 * metrics.accuracy:.2f} %")
        return interrupt.exit_status


if __name__ == "__main__":
    # OpenMP's threads then wait for each other asleep. Awake, on a busy machine, they take the processor from the
    # very thread they wait for, and a step can take twenty times as long.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted at once: --resume goes on from the last checkpoint, if there is one", file=sys.stderr)
        sys.exit(130)
