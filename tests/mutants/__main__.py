"""The command: mutants of every tagged line, and others drawn by chance, each against the suite."""

import argparse
import importlib
import os
import re
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from mutants import drawn
from mutants.record import OURS, Record
from mutants.slots import Job, copy_of, deal
from mutants.source import Mutant, sources
from mutants.suite import Plan, file_of
from mutants.tagged import of_tagged_lines

LOADED = (
    *("torch", "torch.func", "torch._dynamo", "torch._functorch.aot_autograd", "numpy", "pytest", "hypothesis"),
    *("torchvision", "torch.utils.tensorboard", "tyro", "tqdm", "sklearn.datasets", "safetensors.torch"),
)
CASES = 3  # of each test function, that are seen to reach what they reach


def hunt(mutant: Mutant, record: Record, verdicts: dict[Mutant, str | None], patience: float, told: str) -> Job:
    """Run the suite on a mutant to its first red, the likeliest tests first, and put down which that was."""
    start = time.monotonic()
    killer = None
    for plan in record.plans(mutant):
        if not plan.files or time.monotonic() - start > patience:
            continue
        found = yield plan
        if found.error:
            raise RuntimeError(f"{mutant}: pytest did not run: {found.error}")
        if found.red:
            (killer, *_) = found.red
            record.killed(mutant, killer)
            break
    verdicts[mutant] = killer
    verdict = f"killed by {killer}" if killer else "SURVIVED"
    print(f"{told}{mutant}\n    {verdict} ({time.monotonic() - start:.0f} s)", flush=True)


def record_of(root: Path, file: Path, trees: list[Path], again: bool) -> Record:
    """Read which tests reach which functions, or find out, for the files of which that is not known."""
    record = Record.load(file) if file.exists() and not again else Record()
    read, known = {source.path: source for source in sources(root)}, {OURS, *map(file_of, record.seconds)}

    def one(path: str) -> Job:
        found = yield Plan([path], cases=CASES, trace=True)
        if found.red:
            # Some know that they are traced.
            found.red = (yield Plan([path], found.red, cases=len(found.red))).red
        if found.error:
            raise RuntimeError(f"{path}: pytest did not run: {found.error}")
        record.add(found, read)
        record.save(file)

    files = sorted(path.relative_to(root).as_posix() for path in (root / "tests").rglob("test_*.py"))
    unknown = [path for path in files if path not in known]
    if unknown:
        print(f"running {len(unknown)} files of tests without a mutant, to see what they reach", flush=True)
    deal([(None, one(path)) for path in unknown], trees)
    return record


def red_alone(killers: set[str], seen: set[str], trees: list[Path], record: Record) -> set[str]:
    """List those of the tests that are red without a mutant too, but for what was seen before."""
    red: set[str] = set()

    def one(file: str) -> Job:
        tests = sorted(test for test in killers - seen if file_of(test) == file)
        found = yield Plan([file], tests, seconds=record.seconds, cases=len(tests))
        seen.update(tests)
        red.update(found.red)
        if found.error:
            raise RuntimeError(f"{file}: pytest did not run: {found.error}")

    deal([(None, one(file)) for file in sorted({*map(file_of, killers - seen)})], trees)
    return red


def main() -> int:
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[2], help="of the tree")
    parser.add_argument("--tagged", action="store_true", help="the mutants of tagged lines alone")
    parser.add_argument("--others", type=int, default=60, help="how many others are drawn")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument(
        "--only", default="", metavar="PATTERN", help="mutants whose line of output fits a regular expression"
    )
    parser.add_argument("--jobs", type=int, default=2, help="how many run at once")
    parser.add_argument(
        "--patience",
        type=float,
        default=float("inf"),
        metavar="SECONDS",
        help="after which nothing more is tried on one",
    )
    parser.add_argument("--record", action="store_true", help="find out anew what the tests reach")
    parser.add_argument("--list", action="store_true", help="list the mutants, and run nothing")
    options = parser.parse_args()
    root = options.root.resolve()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))

    read = sources(root)
    chosen = [mutant for source in read for mutants in of_tagged_lines(source).values() for mutant in mutants]
    chosen += [] if options.tagged else drawn.draw(read, options.others, options.seed)
    kept = [mutant for mutant in chosen if re.search(options.only, str(mutant))]
    if options.list:
        print(*kept, sep="\n")
        return 0

    # A process that has started threads cannot be forked. What is broken is the formulas, which plain runs.
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1", MANUAL_MLP_ENGINE="plain")
    text = "".join(
        path.read_text(encoding="utf-8") for room in ("manual_mlp", "tests") for path in (root / room).rglob("*.py")
    )
    for name in LOADED:
        if name.partition(".")[0] in text:
            with suppress(ImportError):
                importlib.import_module(name)
    start, verdicts = time.monotonic(), dict[Mutant, str | None]()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        trees = [copy_of(root, Path(folder) / f"tree{k}") for k in range(options.jobs)]
        record = record_of(root, root / ".mutants.json", trees, options.record)
        todo, seen = kept, set[str]()
        while todo:
            jobs = [
                (mutant, hunt(mutant, record, verdicts, options.patience, f"{k}/{len(todo)} "))
                for k, mutant in enumerate(todo, 1)
            ]
            deal(jobs, trees)
            # The record may be older than the suite.
            void = red_alone({killer for killer in verdicts.values() if killer}, seen, trees, record)
            record.red |= void
            todo = [mutant for mutant in kept if verdicts[mutant] in void]
        record.save(root / ".mutants.json")

    survivors = [mutant for mutant in kept if verdicts[mutant] is None]
    print(f"\n{len(kept)} mutants, {len(survivors)} survived, {time.monotonic() - start:.0f} s")
    for test in sorted(record.red):
        print(f"red without a mutant: {test}")
    for mutant in survivors:
        print(f"SURVIVED {mutant}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
