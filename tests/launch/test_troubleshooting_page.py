"""Every sentence that docs/troubleshooting.md quotes is one that the code says."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
QUOTED = [
    quote
    for line in PAGE.read_text().splitlines()
    if line.startswith("| `")
    for quote in re.findall(r"`([^`]+)`", line.split(" | ")[0])
]


def _literal(node: ast.AST) -> str | None:
    """What a literal says, with … for what is filled in."""
    match node:
        case ast.Constant(value=str() as text):
            return text
        case ast.JoinedStr(values=values):
            return "".join(_literal(value) or "…" for value in values)
    return None


def _said() -> Iterator[str]:
    for folder in ("protocol", "loader", "compute", "launch"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                text = _literal(node)
                if text is not None:
                    yield text


#: One sentence a line; %s of the logging module is filled in as well.
SAID = "\n".join(re.sub(r"%[sd]", "…", " ".join(text.split())) for text in _said())


def _pattern(quote: str) -> str:
    """The quote with each … standing for anything on the line, filled in or not."""
    return ".*".join(re.escape(part.strip()) for part in quote.split("…"))


def test_the_page_quotes_many() -> None:
    assert len(QUOTED) > 40


@pytest.mark.parametrize("quote", QUOTED)
def test_what_is_quoted_is_said(quote: str) -> None:
    assert re.search(_pattern(quote), SAID), f"nothing in the code says {quote!r}"
