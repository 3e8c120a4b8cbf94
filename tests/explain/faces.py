"""Readers of the page: by Python's parser of HTML, and as XML."""

import html.parser
import xml.etree.ElementTree as ET

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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


def tree(text):
    """The page, by Python's own parser of XML."""
    return ET.fromstring(text.split("\n", 1)[1])


LOWERED = dict(zip("0123456789ijklnm", "₀₁₂₃₄₅₆₇₈₉ᵢⱼₖₗₙₘ", strict=True))
RAISED = {"⊤": "ᵀ", "+": "⁺", "−1": "⁻¹", "2": "²", "*": "*"}
LINES = ("p", "caption", "figcaption", "h3", "summary", "small", "label", "li", "th", "dt", "dd")


def formula(element):
    """A formula of the page as it was written, with spaces between its letters: ∂ J / ∂ Wₖₗ = Hᵀ δ."""
    parts = [formula(part) for part in element]
    match element.tag:
        case "msub" | "munder":
            return parts[0] + "".join(LOWERED[c] for c in parts[1] if c != " ")
        case "msup":
            return parts[0] + RAISED[parts[1]]
        case "msubsup":
            return parts[0] + RAISED[parts[2]] + "".join(LOWERED[c] for c in parts[1] if c != " ")
        case "mfrac":
            return " / ".join(parts)
    return " ".join([(element.text or "").replace("∑", "Σ"), *parts]).strip()


def line(element):
    """What a reader reads in an element."""
    found = [element.text or ""]
    for part in element:
        shown = "" if part.get("hidden") or part.tag == "svg" else formula(part) if part.tag == "math" else line(part)
        found += [" ", shown, " ", part.tail or ""]
    return " ".join("".join(found).split())


def lines(element):
    """What a reader reads in an element, line by line; but no titles, no matrix's numbers, and nothing hidden."""
    numbers = element.tag == "td" and element.get("class") not in ("word", "number")
    if element.get("hidden") or element.tag in ("svg", "h2") or numbers:
        return
    told = element.tag == "tr" and element.find("td[@class='word']") is not None
    if told or (element.tag in LINES and element.find("h2") is None):
        yield line(element)
    elif element.tag == "math":
        yield formula(element)
    else:
        yield (element.text or "").strip()
        for part in element:
            yield from lines(part)
            yield (part.tail or "").strip()
