"""From a formula in plain characters, such as ∂J/∂Wₖₗ = Σₙ Hₙₖ δₙₗ, to MathML."""

from __future__ import annotations

import re
from html import escape

from manual_mlp.explain.writing import unprotected

_LOW = str.maketrans("₀₁₂₃₄₅₆₇₈₉ᵢⱼₖₗₙₘ", "0123456789ijklnm")
_HIGH = {
    "ᵀ": "<mo>⊤</mo>",
    "⁺": "<mo>+</mo>",
    "⁻¹": "<mn>−1</mn>",
    "²": "<mn>2</mn>",
    "*": "<mo>*</mo>",
    "′": "<mo>′</mo>",
}
_ATOM = r"(?:d[A-Z]|[A-Za-zΔγεδηθΣ])(?:⁻¹|[ᵀ⁺²*′])*[₀-₉ᵢⱼₖₗₙₘ]*"
_TOKEN = re.compile(
    rf"(?P<fraction>∂{_ATOM}/∂{_ATOM})|(?P<word>[a-z]+(?:\.[a-z]+)+|[a-z]{{2,}}(?: [a-z]{{2,}})*|softmax)"
    rf"|(?P<atom>{_ATOM})|(?P<number>\d[\d.,]*)|(?P<close>\)[₀-₉ᵢⱼₖₗₙₘ]+)|(?P<gap> {{2,}})|(?P<space> )|(?P<sign>.)"
)

# A letter of the notation, or a few, that stand alone in a sentence.
_LETTERS = re.compile(
    r"(?<![\w.])(∂[A-Za-z][₀-₉ᵢⱼₖₗₙₘ]*/∂[A-Zpθ][₀-₉ᵢⱼₖₗₙₘ]*|Y\*|f′\(XV \+ C\)|"
    r"Σₙ|[A-Zpδγ][₀-₉ᵢⱼₖₗₙₘ]+|[HX]ᵀ[δγ]|δᵀH|δWᵀ|[HW][ᵀ⁺]δ?|[δγ]|H dW|dW|f′\(Zᵢ?\)|f′|"
    r"[HWBZYJXVCUSIθεηNfnkijlpt])(?![\w(])"
)


def typeset(text: str) -> str:
    """Write a sentence as HTML: what stands between backticks, and letters of the notation, as formulas."""
    parts = text.split("`")
    found = "".join(mathml(part) if i % 2 else _typeset_letters(part) for i, part in enumerate(parts))
    # A formula and the sign that ends it stay on one line.
    return unprotected(re.sub(r"(<math>(?:(?!</math>).)*</math>)([.,:;?)]+)", r'<span class="kept">\1\2</span>', found))


def _typeset_letters(text: str) -> str:
    parts = _LETTERS.split(text)
    return "".join(mathml(part) if i % 2 else escape(part) for i, part in enumerate(parts))


def mathml(formula: str, display: bool = False) -> str:
    """Write a formula as a ``math`` element."""
    attribute = ' display="block"' if display else ""
    return f"<math{attribute}>{_row(formula, display)}</math>"


def _row(formula: str, display: bool) -> str:
    return "".join(_token(found.lastgroup or "", found[0], display) for found in _TOKEN.finditer(formula))


def _token(kind: str, text: str, display: bool) -> str:
    match kind:
        case "fraction":
            above, below = text.split("/")
            if not display:
                return f'{_partial(above)}<mo lspace="0" rspace="0">/</mo>{_partial(below)}'
            return f"<mfrac><mrow>{_partial(above)}</mrow><mrow>{_partial(below)}</mrow></mfrac>"
        case "word":
            return f"<mtext>{escape(text)}</mtext>"
        case "atom":
            return _atom(text, display)
        case "number":
            return f"<mn>{text}</mn>"
        case "gap":
            return '<mspace width="1.5em"/>'
        case "space":
            return ""
        case "close":
            return f"<msub>{_sign(')')}<mrow>{_indices(text[1:])}</mrow></msub>"
    return _sign(text)


def _sign(text: str) -> str:
    fixed = ' stretchy="false"' if text in "()⟨⟩" else ""
    return f"<mo{fixed}>{escape(text)}</mo>"


def _indices(low: str) -> str:
    return "".join(f"<mn>{c}</mn>" if c.isdigit() else f"<mi>{c}</mi>" for c in low.translate(_LOW))


def _partial(text: str) -> str:
    return f'<mo lspace="0" rspace="0">∂</mo>{_atom(text[1:], False)}'


def _atom(text: str, display: bool) -> str:
    found = re.match(r"(d[A-Z]|.)((?:⁻¹|[ᵀ⁺²*′])*)(.*)", text)
    assert found is not None
    letter, high, low = found.groups()
    below = _indices(low)
    if letter == "Σ":
        tag = "munder" if display else "msub"
        return f"<{tag}><mo>∑</mo><mrow>{below}</mrow></{tag}>" if below else "<mo>∑</mo>"
    base = f"<mi>{letter}</mi>" if len(letter) == 1 else f"<mrow><mi>{letter[0]}</mi><mi>{letter[1]}</mi></mrow>"
    if high == "′":
        # The sign is raised in every font; a superscript would raise it once more.
        base, high = f'<mrow>{base}<mo lspace="0" rspace="0">′</mo></mrow>', ""
    above = "".join(_HIGH[sign] for sign in re.findall("⁻¹|.", high))
    if above and below:
        return f"<msubsup>{base}<mrow>{below}</mrow><mrow>{above}</mrow></msubsup>"
    if above:
        return f"<msup>{base}<mrow>{above}</mrow></msup>"
    return f"<msub>{base}<mrow>{below}</mrow></msub>" if below else base
