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
