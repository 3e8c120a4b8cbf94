"""`python -m manual_mlp explain`: what it prints, where, and with what status it ends."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from faces import OPTIONS, OTHERS, Counted, tree
from manual_mlp import activations
from manual_mlp.__main__ import main
from manual_mlp.explain import MISTAKES, draw_network, page, terminal
from manual_mlp.explain.blocks import Check, Matrix, Numbers, Refused, Step

# The command.


def test_it_prints_every_step_and_ends_in_the_verdict(run, tmp_path):
    status, out, err = run()
    assert status == 0
    assert err == ""
    assert re.findall(r"^(\d+)\. ", out, re.MULTILINE) == [str(n) for n in range(14)]
    checks = re.findall(r"^  (ok    |FAILED) ", out, re.MULTILINE)
    assert set(checks) == {"ok    "}
    assert out.splitlines()[-1] == f"All {len(checks)} checks passed."
    assert "`" not in out
    assert "\033" not in out
    assert list(tmp_path.iterdir()) == []


def test_the_options_are_those_of_the_network(run):
    _, out, _ = run(*OTHERS)
    assert "the row that enters, here 2 numbers" in " ".join(out.split())
    assert "Over 5 rows, J is " in " ".join(out.split())
    assert "Here f is tanh: f(z) = tanh(z)." in " ".join(out.split())
    assert "softmax(Y)" in out
    assert "The right answer is 3." in " ".join(out.split())
    net = draw_network(2, 3, 5, "tanh", "cross-entropy", 4)
    assert f"{float(net.h[0, 0]):.4f}".replace("-", "−") in out


def test_help_lists_every_option_and_name(run):
    status, out, err = run("--help")
    text = " ".join(out.split()).replace("- ", "-")
    assert status == 0
    assert err == ""
    for option in OPTIONS:
        assert f"{option} " in text.split("options:")[1], option
    assert all(name in text for name in (*activations.names(), *MISTAKES, "squared-error", "cross-entropy"))
    assert "exit status" in text


def test_without_a_command_it_says_which_there_are(capsys):
    with pytest.raises(SystemExit) as exit:
        main([])
    assert exit.value.code == 2
    with pytest.raises(SystemExit) as exit:
        main(["--help"])
    assert exit.value.code == 0
    assert "explain" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--inputs", "0"], "at least 1, got 0, 2, 4"),
        (["--outputs", "-1"], "at least 1, got 3, -1, 4"),
        (["--batch", "0"], "at least 1, got 3, 2, 0"),
        (["--outputs", "5000"], "expected inputs · outputs² of at most 1,048,576"),
        (["--batch", "100000000"], "expected batch · (inputs + outputs) of at most 1,048,576"),
        (["--inputs", "100000"], "at most"),
        (["--inputs", str(10**30)], "at most"),
        (["--inputs", "many"], "--inputs"),
        (["--inputs", "1.5"], "--inputs"),
        (["--activation", "sine"], "sin, got 'sine'"),
        (["--activation", ""], "got ''"),
        (["--loss", "l1"], "cross-entropy"),
        (["--loss", "cross-entropy", "--outputs", "1"], "at least 2 outputs"),
        (["--break", "transpose"], "transpose-dropped"),
        (["--digit", "10"], "--digit"),
        (["--digit", "-1"], "--digit"),
        (["--seed", str(2**63)], "expected a seed of 64 bits"),
        (["--seed", "x"], "--seed"),
        (["--checkpoint", "nowhere"], "expected the folder of a run of train.py, got nowhere"),
        (["--html", "no/such/folder.html"], "expected a writable --html, got no/such/folder.html"),
        (["--html", "."], "expected a writable --html, got ."),
        (["--data-dir", "images"], "--checkpoint"),
        (["--nonsense"], "--nonsense"),
        (["--html", "page.html", "--activation", "sine"], "got 'sine'"),
        (["--html", "page.html", "--digit", "12"], "--digit"),
    ],
)
def test_a_bad_option_is_one_line_with_status_2_and_nothing_written(run, tmp_path, options, expected):
    status, out, err = run(*options)
    assert status == 2
    assert out == ""
    assert expected in err.splitlines()[-1]
    assert "error: " in err.splitlines()[-1]
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_bad_options_are_told_in_one_way(run):
    # One line, as train.py does; no usage before it.
    for options in (["--digit", "10"], ["--loss", "l1"], ["--inputs", "x"], ["--activation", "sine"]):
        _, _, err = run(*options)
        assert err.startswith("error: "), err
        assert err.count("\n") == 1, err


def test_a_page_that_cannot_be_written_is_one_line_with_status_2(run, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "write_text", refuse)
    monkeypatch.setattr(Path, "write_bytes", refuse)
    status, out, err = run("--html", "locked.html")
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert "Permission denied" in err
    assert err.count("\n") == 1


def test_a_run_that_fails_says_so_on_stderr_and_in_its_status(run, tmp_path):
    status, out, err = run("--break", "slope-forgotten", "--html", "broken.html")
    assert status == 1
    assert out.startswith("wrote broken.html: ")
    assert err.startswith("failed: ")
    assert "first in step 3, ∂Y/∂B in full" in err
    assert (tmp_path / "broken.html").exists()


def test_a_terminal_gets_colour_and_a_pipe_none(run, monkeypatch):
    plain = run()[1]
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: True)
    coloured = run()[1]
    assert "\033[1m0. The question, and what its signs mean\033[0m" in coloured
    assert [line.rstrip() for line in re.sub("\033\\[[0-9;]*m", "", coloured).splitlines()] == [
        line.rstrip() for line in plain.splitlines()
    ]
    assert coloured.count("\033[") % 2 == 0
    _, red, _ = run("--break", "convention-swapped")
    assert "\033[31mFAILED\033[0m" in red
    monkeypatch.setenv("NO_COLOR", "1")
    assert run()[1] == plain
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert run()[1] == plain


def test_an_empty_no_color_says_nothing(run, monkeypatch):
    # https://no-color.org: "when present and not an empty string".
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: True)
    monkeypatch.setenv("NO_COLOR", "")
    assert "\033[1m" in run()[1]


@pytest.mark.parametrize("columns", [1, 40, 80, 500])
def test_the_text_fits_the_terminal(run, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    _, out, _ = run()
    paragraphs = [line for line in out.splitlines() if line and not line.startswith(" ")]
    if columns >= 40:
        assert max(map(len, paragraphs)) <= columns
    assert out.splitlines()[-1].startswith("All")
    if columns >= 110:
        assert max(map(len, out.splitlines())) <= 110


def test_wide_matrices_are_shown_in_part(run):
    _, out, _ = run("--inputs", "20", "--outputs", "12", "--batch", "9", "--activation", "relu")
    assert "…" in out
    assert "H  9×20" in out
    assert "k=9" not in out


def test_the_default_is_computed_in_few_small_operations(run):
    # Some µs each: what is counted is quick on any machine that does nothing else.
    with Counted() as counted:
        assert run()[0] == 0
    assert 1000 < counted.operations < 100_000
    assert counted.largest <= 2**17  # all embedded digits


def test_the_command_imports_torch_and_next_to_nothing_else():
    # A second or more is what matplotlib, torchvision, torch's compiler or the ONNX exporter would take.
    code = (
        "import contextlib, io, sys, torch; before = set(sys.modules); from manual_mlp.__main__ import main\n"
        "with contextlib.redirect_stdout(io.StringIO()): assert main(['explain']) == 0\n"
        "print(*(name for name in sys.modules if name not in before))"
    )
    added = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    others = [name for name in added if name.partition(".")[0] not in {"manual_mlp", *sys.stdlib_module_names}]
    assert "manual_mlp.explain.engine" in added
    assert {name.partition(".")[0] for name in others} <= {"torch"}, others
    assert len(others) < 10, others


def test_the_command_as_a_user_runs_it():
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    command = [sys.executable, "-W", "error", "-m", "manual_mlp", "explain"]
    whole = subprocess.run(command, capture_output=True, env=environment)
    assert whole.returncode == 0
    assert whole.stderr == b""
    text = whole.stdout.decode("utf-8")
    assert "∂J/∂W = Hᵀ δ" in text
    assert "\033" not in text


def test_a_reader_who_has_seen_enough_gets_no_traceback():
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}
    shell = 'set -o pipefail; "$PYTHON" -m manual_mlp explain | head -1; echo "${PIPESTATUS[0]}"'
    found = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, env=environment)
    assert found.stderr == ""
    assert found.stdout.splitlines()[-1] == "0"


# The text.


def test_a_check_that_could_not_be_made_says_why():
    step = Step(3, "A title", (Check("a", "b", None, 1e-12, "the shape is (1,), and should be (2,)"),))
    assert "FAILED a, by b: the shape is (1,), and should be (2,)" in terminal.render([step])
    assert terminal.verdict_of([step]) == "1 of 1 checks failed, first in step 3, A title: a, by b"
    assert "by b: no difference\n" in terminal.render([Step(1, "t", (Check("a", "b", 0.0, 0.0),))])


def test_a_refused_matrix_is_said_to_be_none():
    block = Numbers((Matrix("M", Refused("sides <1> & 2")), "=", Matrix("N", torch.eye(2))))
    assert "none:" in terminal.render([Step(0, "t", (block,))])
    text = page.render([Step(0, "t", (block,))], "about")
    assert "none: sides <1> & 2" in "".join(tree(text).itertext())
