"""The tables of the documents that the code knows are what it says."""

import runpy
from pathlib import Path

import pytest

from manual_mlp import Activation, activations, losses

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tables():
    return runpy.run_path(str(ROOT / "docs" / "tables.py"))


def test_the_documents_are_up_to_date(tables, capsys):
    assert tables["main"](["--check"]) == 0, "make tables"
    assert capsys.readouterr().out == ""
    found = [name for path in tables["DOCUMENTS"] for _, name, _ in tables["MARKED"].findall(path.read_text("utf-8"))]
    assert sorted(found) == sorted(tables["TABLES"])
    listed = (ROOT / "README.md").read_text("utf-8")
    assert all(f"`{name}`" in listed for name in (*activations.names(), *losses.LOSSES))


@pytest.mark.usefixtures("forget")
def test_what_is_added_to_the_code_comes_into_the_tables(tables):
    @activations.register
    def bent(slope=2.0):
        """A line that bends.

        f = z if z > |slope|, else slope·z
        f′ = 1 if z > 0, else slope
        f″ = 0
        f′ of y = 1 if y > 0, else slope
        ∂f′/∂y = 0
        where u = 2·z
        """
        return Activation(lambda z: z, lambda z: z, lambda z: z, df_y=lambda y: y, d2f_y=lambda y: y)

    late = (ROOT / "docs" / "derivation.md").read_text("utf-8")
    rewritten = tables["rewritten"](late)
    of_z = r"| `bent(slope)` | z if z > \|slope\|, else slope·z | 1 if z > 0, else slope | 0 | u = 2·z |"
    of_y = "| `bent(slope)` | 1 if y > 0, else slope | 0 |"
    assert set(rewritten.splitlines()) - set(late.splitlines()) == {of_z, of_y}
    assert "`sin`, `bent`." in tables["rewritten"]((ROOT / "README.md").read_text("utf-8"))


def test_a_document_that_is_late_is_told_and_rewritten(tables, tmp_path, capsys):
    path = tmp_path / "README.md"
    text = "- Names:\n  <!-- table: activations -->\n  old\n  <!-- end -->\n\nMore.\n"
    path.write_text(text)
    tables["main"].__globals__.update(DOCUMENTS=(path,), ROOT=tmp_path)
    assert tables["main"](["--check"]) == 1
    assert path.read_text() == text
    assert capsys.readouterr().out == "README.md differs: make tables\n"
    assert tables["main"]([]) == 0
    assert path.read_text() == text.replace("old", tables["names"]())
    assert tables["main"](["--check"]) == 0
