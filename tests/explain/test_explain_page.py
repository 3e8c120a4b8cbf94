"""The page: well-formed, without anything from outside, every formula set, every number the run's."""

import json
import re
import xml.etree.ElementTree as ET
from importlib.resources import files

import pytest
import torch

from faces import HIGH, LOW, OTHERS, Parsed, tree
from manual_mlp.explain import MISTAKES, draw_network, explain, page
from manual_mlp.explain.blocks import Check, Matrix, Numbers, Step, Text
from manual_mlp.explain.mathml import mathml, typeset

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
    assert "//" not in re.sub(r"/\*.*?\*/|<script>.*</script>", "", written, flags=re.DOTALL)
    assert not re.search(
        r"fetch|import\b|XMLHttpRequest|WebSocket|sendBeacon", re.search("<script>.*", written, re.DOTALL)[0]
    )
    assert "url(" not in written
    assert "@import" not in written
    assert not {"link", "img", "iframe", "object", "embed", "base", "use", "image"} & {name for name, _ in parsed.tags}
    names = {name for _, name, _ in parsed.attributes}
    assert not {"src", "srcset", "action", "data", "xlink:href", "background", "poster"} & names
    assert not any(name.startswith("on") for name in names)
    assert all(value.startswith("#") for _, name, value in parsed.attributes if name == "href")


def test_every_link_of_the_page_leads_somewhere(parsed):
    ids = [value for _, name, value in parsed.attributes if name == "id"]
    links = {value[1:] for _, name, value in parsed.attributes if name == "href"}
    assert len(ids) == len(set(ids))
    assert links <= set(ids)
    assert links >= {f"step-{n}" for n in range(14)} | {f"proof-{tag}" for tag in ("B1", "B2", "B3", "B4", "O2")}


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
    sections = [section for section in tree(written).iter("section") if section.get("id").startswith("step-")]
    assert [section.get("id") for section in sections] == [f"step-{n}" for n in range(14)]
    for section in sections[:13]:
        assert section.find(".//figure") is not None, section.get("id")
        pictures = section.findall(".//svg") + section.findall(".//div[@class='bars']")
        assert pictures, section.get("id")
        assert section.find("details")[-1].get("class") == "check ok"
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
    told = [item for item in tree(written).iter("li") if item.get("data-check") and not item.get("hidden")]
    assert {item.get("class") for item in told} == {"ok"}
    assert len(told) == int(re.search(r"\d+", verdict)[0])
    quiet = tree(written).findall(".//p[@class='check ok']")
    assert sum(int(re.match(r"✓ (\d+) ", line.text)[1]) for line in quiet) == len(told)
    assert "failed" not in re.sub(r"<(style|script).*?</\1>", "", written, flags=re.DOTALL)


def test_the_page_has_every_mistake(written):
    section = tree(written).find(".//section[@id='step-11']")
    assert [heading.text.strip() for heading in section.iter("h3")] == list(MISTAKES)


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
    listed = [item for item in root.findall(".//li[@class='failed']") if not item.get("hidden")]
    for failed in (listed, root.findall(".//p[@class='check failed']")):
        assert failed
        assert all("✗" in "".join(check.itertext()) for check in failed)
    assert len(listed) == int(first.text.split()[0])
    (thrown,) = json.loads(root.find(".//script[@id='data']").text)["state"]["mistakes"]
    assert thrown == name
    assert [heading.text.strip() for heading in root.find(".//section[@id='step-11']").iter("h3")] == list(MISTAKES)


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
    steps = [section for section in root.iter("section") if re.fullmatch(r"step-(\d|1[0-2])", section.get("id"))]
    assert len(steps) == 13
    assert all(section.find(".//figure") is not None for section in steps)
    shown = re.sub(r"<(style|script).*?</\1>", "", text, flags=re.DOTALL)
    assert not re.search(r"\b(nan|inf)\b", "".join(Parsed(shown).words()))
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
    assert found.endswith('<span class="kept"><math><mi>W</mi></math>,</span> and it is so')
    assert typeset("one plain sentence") == "one plain sentence"


def test_text_of_others_cannot_break_the_page():
    steps = [Step(0, "A <title> & more", (Text("a <script>alert(1)</script> & b"), Check("<x>", "y", 0.0, 0.0)))]
    text = page.render(steps, "<about> & so on", "a <note>")
    assert "script" not in {name for name, _ in Parsed(text).tags}
    assert "<about> & so on" in "".join(tree(text).itertext())


def test_the_script_is_small_enough_to_be_read():
    lines = files("manual_mlp.explain").joinpath("page.js").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 600
    assert max(map(len, lines)) <= 120
