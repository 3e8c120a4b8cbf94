"""The two faces of the explanation: the command with its text, and the page."""

import html.parser
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from manual_mlp import activations
from manual_mlp.__main__ import main
from manual_mlp.explain import MISTAKES, draw_network, explain, page, terminal
from manual_mlp.explain.blocks import Check, Matrix, Numbers, Refused, Step, Text
from manual_mlp.explain.mathml import mathml, typeset
from manual_mlp.explain.steps.digit import trained_picture

OPTIONS = (
    "--html",
    "--inputs",
    "--outputs",
    "--batch",
    "--activation",
    "--loss",
    "--seed",
    "--break",
    "--digit",
    "--checkpoint",
    "--data-dir",
)
OTHERS = ("--inputs", "2", "--outputs", "3", "--batch", "5", "--activation", "tanh", "--loss", "cross-entropy")
OTHERS += ("--seed", "4", "--digit", "3")
LOW = "₀₁₂₃₄₅₆₇₈₉ᵢₖₗₙₘ"
HIGH = "ᵀ⁺²⁻¹"
VOID = ("meta", "br", "link", "img", "input", "hr")


class Parsed(html.parser.HTMLParser):
    """What a page holds, by Python's own parser of HTML; tags that do not match are an error."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text.append((tuple(self.open), data))

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def words(self):
        return " ".join(" ".join(data for _, data in self.text).split())


class Counted(TorchDispatchMode):
    """Count the operations, and the entries of the largest tensor that one of them makes."""

    operations = largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.operations += 1
        self.largest = max(self.largest, *(t.numel() for t in tree_leaves(made) if isinstance(t, torch.Tensor)), 0)
        return made


@pytest.fixture(autouse=True)
def _a_reader(monkeypatch):
    """A terminal of 80 columns; the threads of torch are given back."""
    for name in ("NO_COLOR", "MANUAL_MLP_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Run the command in an empty folder: exit status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*options):
        try:
            status = main(["explain", *map(str, options)])
        except SystemExit as exit:
            status = exit.code
        return status, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The page of the default numbers, as the command writes it."""
    path = tmp_path_factory.mktemp("page") / "explained.html"
    assert main(["explain", "--html", str(path)]) == 0
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def parsed(written):
    return Parsed(written)


def tree(text):
    """The page, by Python's own parser of XML."""
    return ET.fromstring(text.split("\n", 1)[1])


# The command.


def test_it_prints_every_step_and_ends_in_the_verdict(run, tmp_path):
    status, out, err = run()
    assert status == 0
    assert err == ""
    assert re.findall(r"^(\d+)\. ", out, re.MULTILINE) == [str(n) for n in range(13)]
    checks = re.findall(r"^  (ok    |FAILED) ", out, re.MULTILINE)
    assert set(checks) == {"ok    "}
    assert out.splitlines()[-1] == f"All {len(checks)} checks passed."
    assert "`" not in out
    assert "\033" not in out
    assert list(tmp_path.iterdir()) == []


def test_the_options_are_those_of_the_network(run):
    _, out, _ = run(*OTHERS)
    assert "A row H of 2 numbers enters the layer, and a row Y of 3 numbers leaves it. A batch of 5" in " ".join(
        out.split()
    )
    assert "entry by entry, here tanh" in " ".join(out.split())
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
        (["--activation", "sine"], "lecun_tanh, got 'sine'"),
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
    assert "\033[1m0. Shapes\033[0m" in coloured
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


# The page.


def test_the_page_is_html_and_well_formed_xml(written, parsed):
    assert written.startswith("<!DOCTYPE html>\n")
    root = tree(written)
    assert root.tag == "html"
    assert root.get("lang") == "en"
    assert {"header", "nav", "main", "footer", "h1"} <= {name for name, _ in parsed.tags}
    assert root.find("./head/title").text


def test_the_page_refers_to_nothing_outside(written, parsed):
    assert "://" not in written
    assert "//" not in re.sub(r"/\*.*?\*/", "", written)
    assert "url(" not in written
    assert "@import" not in written
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form", "use", "image"} & {
        name for name, _ in parsed.tags
    }
    names = {name for _, name, _ in parsed.attributes}
    assert not {"src", "srcset", "action", "data", "xlink:href", "background", "poster"} & names
    assert not any(name.startswith("on") for name in names)
    assert all(value.startswith("#") for _, name, value in parsed.attributes if name == "href")


def test_every_link_of_the_page_leads_somewhere(parsed):
    ids = [value for _, name, value in parsed.attributes if name == "id"]
    links = {value[1:] for _, name, value in parsed.attributes if name == "href"}
    assert len(ids) == len(set(ids))
    assert links == set(ids) == {f"step-{n}" for n in range(13)}


def test_the_page_is_for_phones_for_the_dark_and_for_paper(written, parsed):
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in parsed.all("meta")
    assert {"charset": "utf-8"} in parsed.all("meta")
    style = re.search(r"<style>(.*?)</style>", written, re.DOTALL)[1]
    for rule in (
        "color-scheme: light dark",
        "@media (prefers-color-scheme: dark)",
        "@media print",
        "@media (max-width",
    ):
        assert rule in style
    assert style.count("{") == style.count("}")
    assert "overflow-x: auto" in style


def test_the_page_gives_a_colour_to_every_class_it_uses(written, parsed):
    style = re.search(r"<style>(.*?)</style>", written, re.DOTALL)[1]
    used = {name for attributes in (a for _, a in parsed.tags) for name in (attributes.get("class") or "").split()}
    assert {name for name in used if f".{name}" not in style} <= {"word"}


def test_the_same_numbers_make_the_same_page(run, tmp_path, written):
    for name in ("one.html", "two.html"):
        assert run("--html", name)[0] == 0
    one, two = ((tmp_path / name).read_bytes() for name in ("one.html", "two.html"))
    assert one == two == written.encode()
    run("--html", "two.html", "--seed", "1")
    assert (tmp_path / "two.html").read_bytes() != one


def test_every_step_of_the_page_has_a_picture_and_ends_in_its_check(written):
    sections = tree(written).findall(".//section")
    assert [section.get("id") for section in sections] == [f"step-{n}" for n in range(13)]
    for section in sections:
        assert section.find(".//figure") is not None, section.get("id")
        pictures = section.findall(".//svg") + section.findall(".//div[@class='bars']")
        assert pictures, section.get("id")
        assert section[-1].get("class") == "check ok"
        assert all(figure.find("figcaption") is not None for figure in section.findall(".//figure"))


def test_every_picture_says_in_words_what_it_is(parsed):
    pictures = parsed.all("svg")
    assert len(pictures) > 40
    for picture in pictures:
        assert picture["role"] == "img"
        assert picture["aria-label"].strip()
        # One size of a picture is enough: "H, 8×8, 8×8" says it twice.
        sizes = re.findall(r"\d+×\d+", picture["aria-label"])
        assert len(sizes) == len(set(sizes)), picture["aria-label"]


def test_every_formula_of_the_page_is_set(written, parsed):
    assert "`" not in parsed.words()
    for where, data in parsed.text:
        if "math" in where:
            assert not set(data) & set(LOW + HIGH), data
    formulas = tree(written).findall(".//div[@class='formula']")
    assert len(formulas) > 20
    assert all(formula.find("math").get("display") == "block" for formula in formulas)
    allowed = {"math", "mi", "mo", "mn", "mtext", "mrow", "mfrac", "msub", "msup", "msubsup", "munder", "mspace"}
    children = {"mfrac": 2, "msub": 2, "msup": 2, "munder": 2, "msubsup": 3}
    for math in tree(written).iter("math"):
        for element in math.iter():
            assert element.tag in allowed
            assert len(element) == children.get(element.tag, len(element))


def test_the_page_shows_the_numbers_of_the_run(written):
    section = tree(written).find(".//section[@id='step-4']")
    shown = ["".join(cell.itertext()) for cell in section.iter("td")]
    steps = explain(draw_network(), mistaken=())
    for block in steps[4].blocks:
        for part in block.parts if isinstance(block, Numbers) else ():
            if isinstance(part, Matrix):
                for number in part.values.flatten().tolist():
                    if number:
                        assert f"{number:.4f}".replace("-", "−") in shown
    verdict = tree(written).find(".//header/p[@class='verdict ok']").text
    assert re.fullmatch(r"All \d+ checks passed\.", verdict)
    assert len(re.findall('class="check ok"', written)) == int(re.search(r"\d+", verdict)[0])
    assert "failed" not in re.sub(r"<style>.*?</style>", "", written, flags=re.DOTALL)


def test_the_page_has_every_mistake(written):
    section = tree(written).find(".//section[@id='step-11']")
    assert [heading.text for heading in section.iter("h3")] == list(MISTAKES)


def test_the_foot_of_the_page_tells_how_to_make_it_again(run, tmp_path):
    run("--html", "page.html", *OTHERS)
    (foot,) = tree((tmp_path / "page.html").read_text("utf-8")).findall("./body/footer")
    text = "".join(foot.itertext())
    assert f"python -m manual_mlp explain {' '.join(OTHERS)}" in text
    assert torch.__version__ in text


@pytest.mark.parametrize("name", MISTAKES)
def test_the_page_of_a_mistake_shows_the_failure(run, tmp_path, name):
    assert run("--break", name, "--html", "page.html")[0] == 1
    text = (tmp_path / "page.html").read_text("utf-8")
    Parsed(text)
    root = tree(text)
    first, note = (p for p in root.findall(".//header/p") if "failed" in p.get("class", ""))
    assert "checks failed, first in step" in first.text
    assert name in "".join(note.itertext())
    failed = root.findall(".//div[@class='check failed']")
    assert len(failed) == int(first.text.split()[0])
    assert all("✗" in "".join(check.itertext()) for check in failed)


@pytest.mark.parametrize(
    "options",
    [
        ["--inputs", "1", "--outputs", "1", "--batch", "1"],
        ["--inputs", "12", "--outputs", "11", "--batch", "9", "--activation", "relu"],
        ["--outputs", "4", "--loss", "cross-entropy", "--activation", "gelu", "--seed", "3"],
        ["--activation", "identity", "--digit", "0"],
    ],
)
def test_other_pages_parse_and_have_all_pictures(run, tmp_path, options):
    assert run("--html", "page.html", *options)[0] == 0
    text = (tmp_path / "page.html").read_text("utf-8")
    Parsed(text)
    root = tree(text)
    assert all(section.find(".//figure") is not None for section in root.iter("section"))
    assert not re.search(r"\b(nan|inf)\b", "".join(root.find("body").itertext()))
    assert "://" not in text


# The formulas of the page.


@pytest.mark.parametrize(
    ("formula", "inside"),
    [
        ("H", "<mi>H</mi>"),
        ("Hᵀδ", "<msup><mi>H</mi><mrow><mo>⊤</mo></mrow></msup><mi>δ</mi>"),
        ("Y*", "<msup><mi>Y</mi><mrow><mo>*</mo></mrow></msup>"),
        ("δ₁", "<msub><mi>δ</mi><mrow><mn>1</mn></mrow></msub>"),
        ("δᵢₗ", "<msub><mi>δ</mi><mrow><mi>i</mi><mi>l</mi></mrow></msub>"),
        ("Hₙₖ", "<msub><mi>H</mi><mrow><mi>n</mi><mi>k</mi></mrow></msub>"),
        ("Y*₁", "<msubsup><mi>Y</mi><mrow><mn>1</mn></mrow><mrow><mo>*</mo></mrow></msubsup>"),
        ("Σₙ", "<msub><mo>∑</mo><mrow><mi>n</mi></mrow></msub>"),
        ("dW", "<mrow><mi>d</mi><mi>W</mi></mrow>"),
        ("a < b & c", "<mi>a</mi><mo>&lt;</mo><mi>b</mi><mo>&amp;</mo><mi>c</mi>"),
        ("weight.grad", "<mtext>weight.grad</mtext>"),
        ("1.5", "<mn>1.5</mn>"),
    ],
)
def test_a_formula_is_set(formula, inside):
    assert mathml(formula) == f"<math>{inside}</math>"


def test_a_fraction_stands_on_a_line_of_its_own_and_lies_within_a_sentence():
    assert "<mfrac><mrow>" in mathml("∂J/∂Wₖₗ", display=True)
    assert "<mfrac>" not in mathml("∂J/∂Wₖₗ")
    (fraction,) = ET.fromstring(mathml("∂Yₙᵢ/∂θ", display=True))
    assert ["".join(part.itertext()) for part in fraction] == ["∂Yni", "∂θ"]


@pytest.mark.parametrize(
    "formula",
    [
        "∂J/∂Wₖₗ = Σᵢ ∂J/∂Yᵢ f′(Zᵢ) Hₖ δᵢₗ = Hₖ δₗ",
        "⟨δ, H dW⟩ = Σₙₗ δₙₗ Σₖ Hₙₖ dWₖₗ = Σₖₗ (Σₙ Hₙₖ δₙₗ) dWₖₗ = ⟨Hᵀδ, dW⟩",
        "∂J/∂Hₙₖ = Σᵢ δₙᵢ Wₖᵢ = (δ Wᵀ)ₙₖ",
        "δₗ = Σᵢ ∂J/∂pᵢ pᵢ (δᵢₗ − pₗ) = pₗ − tₗ",
        "∂J/∂W = H δ   instead of   ∂J/∂W = Hᵀ δ",
        "H⁺δ",
        "H⁻¹δ",
        "W₁₂",
        "δ = ∂J/∂p ⊙ p ⊙ (1 − p)",
    ],
)
@pytest.mark.parametrize("display", [True, False])
def test_no_index_stays_a_character_of_its_own(formula, display):
    element = ET.fromstring(mathml(formula, display))
    text = "".join(element.itertext())
    assert not set(text) & set(LOW + HIGH), text
    # Nothing is lost: the letters are those of the formula.
    letters = [c for c in formula if c.isalpha() and c not in LOW + HIGH]
    missing = {c for c in letters if c not in text.replace("∑", "Σ")}
    assert not missing


def test_a_sentence_is_escaped_and_its_formulas_are_set():
    found = typeset("a <b> & `Hᵀδ` of W, and it is so")
    assert found.startswith("a &lt;b&gt; &amp; <math>")
    assert "<math><mi>W</mi></math>" in found
    assert found.endswith(", and it is so")
    assert typeset("one plain sentence") == "one plain sentence"


def test_text_of_others_cannot_break_the_page():
    steps = [Step(0, "A <title> & more", (Text("a <script>alert(1)</script> & b"), Check("<x>", "y", 0.0, 0.0)))]
    text = page.render(steps, "<about> & so on", "a <note>")
    assert "script" not in {name for name, _ in Parsed(text).tags}
    assert "<about> & so on" in "".join(tree(text).itertext())


# A trained layer and a real image.


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    pytest.importorskip("safetensors")
    from manual_mlp.training.data import load

    return load("digits", Path("unused"), torch.device("cpu"))


@pytest.fixture
def trained(digits, tmp_path_factory):
    """Train a few steps and write the folder of a run, as train.py does."""

    def write(hidden, activation="relu", loss="cross-entropy", name="run", without=(), settings=()):
        from safetensors.torch import save_file

        from manual_mlp.modules import MLP
        from manual_mlp.training import checkpoint, state
        from manual_mlp.training.config import Config

        folder = tmp_path_factory.mktemp("runs") / name
        folder.mkdir()
        config = Config(dataset="digits", hidden=hidden, activation=activation, loss=loss, dropout=0.1)
        values = {**checkpoint.settings(config, digits), **dict(settings)}
        torch.manual_seed(0)
        model = MLP(values["sizes"], activation, dropout=0.1)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(15):
            optimizer.zero_grad()
            if values["sizes"] == [64, *hidden, 10]:
                torch.nn.functional.cross_entropy(model(digits.train.images), digits.train.labels).backward()
                optimizer.step()
        checkpoint.save_settings(folder, {key: value for key, value in values.items() if key not in without})
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / state.LAST)
        return folder

    return write


def image_of(digits, digit):
    found = digits.validation.images[digits.validation.labels == digit][0]
    return found.double().view(8, 8)


@pytest.mark.parametrize("loss", ["cross-entropy", "squared-error"])
@pytest.mark.parametrize(("hidden", "activation"), [((), "relu"), ((12,), "relu"), ((12, 11), "gelu")])
def test_a_trained_network_looks_at_a_real_image(run, trained, digits, hidden, activation, loss):
    from manual_mlp.explain.blocks import Table, Tiles
    from manual_mlp.explain.steps.digit import digit, trained_picture
    from manual_mlp.training.checkpoint import load_model

    folder = trained(hidden, activation, loss)
    status, out, err = run("--checkpoint", folder, "--digit", "3")
    assert (status, err) == (0, "")
    words = " ".join(out.split())
    sizes = "-".join(map(str, (64, *hidden, 10)))
    assert f"an image of digits, normalised, before the {sizes} network of the run run" in words
    assert "The right answer is 3." in words

    step = digit(trained_picture(folder, 3))
    assert not step.failed
    image = next(block for block in step.blocks if isinstance(block, Tiles)).parts[0].values
    torch.testing.assert_close(image, image_of(digits, 3))
    # Against autograd through the model itself.
    model = load_model(folder).double()
    y, one_hot = model(image.reshape(1, -1)), torch.eye(10, dtype=torch.float64)[3:4]
    if loss == "cross-entropy":
        torch.nn.functional.cross_entropy(y, one_hot, reduction="sum").backward()
    else:
        (0.5 * (y - one_hot) ** 2).sum().backward()
    first = next(model.parameters())
    table = next(block for block in step.blocks if isinstance(block, Table))
    units = [int(line[0].split()[1]) - bool(hidden) for line in table.rows]
    pictures = [block for block in step.blocks if isinstance(block, Tiles)]
    assert len(pictures) == 3
    for unit, update, weights in zip(units, pictures[1].parts, pictures[2].parts, strict=True):
        torch.testing.assert_close(update.values.flatten(), -first.grad[unit], rtol=0, atol=1e-12)
        torch.testing.assert_close(weights.values.flatten(), first.detach()[unit])


def test_of_a_squared_error_an_output_is_not_called_a_share(run, trained):
    _, out, _ = run("--checkpoint", trained((), loss="squared-error"))
    words = " ".join(out.split())
    assert "share that the softmax gives" not in words
    assert "the right answer's output goes from" in words


def test_the_page_of_a_trained_network_shows_the_run_whatever_it_is_called(run, trained, tmp_path):
    folder = trained((12,), name="a `run` <of> W & H")
    assert run("--checkpoint", folder, "--html", "page.html")[0] == 0
    section = tree((tmp_path / "page.html").read_text("utf-8")).find(".//section[@id='step-12']")
    assert len(section.findall(".//figure")) == 3
    assert "of the run a `run` <of> W & H." in " ".join("".join(section.find("p").itertext()).split())


def test_the_image_is_normalised_as_the_run_says(trained, digits):
    raw = trained_picture(trained((12,), settings={"mean": 0.0, "std": 1.0}), 7)
    assert "normalised" not in raw.source
    assert raw.image.min() == 0
    other = trained_picture(trained((12,), settings={"mean": 0.25, "std": 0.5}), 7)
    assert "normalised" in other.source
    assert torch.allclose(other.image, (raw.image - 0.25) / 0.5)
    assert torch.allclose(image_of(digits, 7), (raw.image - digits.mean) / digits.std, atol=1e-6)


@pytest.mark.parametrize(
    ("without", "settings"),
    [
        (("loss",), {}),
        (("data_dir",), {}),
        (("dataset",), {}),
        ((), {"dataset": "cifar"}),
        ((), {"loss": "hinge"}),
        ((), {"sizes": [32, 12, 10]}),
        ((), {"sizes": [64, 12, 5]}),
    ],
)
def test_a_damaged_run_is_one_line_with_status_2(run, trained, without, settings):
    folder = trained((12,), without=without, settings=settings)
    status, out, err = run("--checkpoint", folder, "--digit", "9")
    assert (status, out) == (2, "")
    assert err.startswith("error: expected ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("file", ["config.json", "last.safetensors"])
@pytest.mark.parametrize("content", [b"", b"[1, 2]", b"\xff\xfe", None])
def test_a_file_of_a_run_that_is_damaged_is_one_line_with_status_2(run, trained, file, content):
    path = trained((12,)) / file
    path.unlink() if content is None else path.write_bytes(content)
    status, out, err = run("--checkpoint", path.parent)
    assert (status, out) == (2, "")
    what = "weights of a run in" if file.startswith("last") else "folder of a run of train.py, got"
    assert err.startswith(f"error: expected the {what} {path if file.startswith('last') else path.parent}")
    assert err.count("\n") == 1


def test_without_the_extra_it_says_how_to_install_it(run, trained, monkeypatch):
    folder = trained((12,))
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    status, out, err = run("--checkpoint", folder)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert "manual_mlp[train]" in err
    assert err.count("\n") == 1


def test_no_words_are_said_twice(run):
    _, out, _ = run()
    assert "right answer of the right answer" not in " ".join(out.split())
