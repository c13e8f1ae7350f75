"""Reading the project's Markdown: fenced blocks, tables, links, and names in backticks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line it begins at."""

    language: str
    text: str
    line: int


def documents() -> list[Path]:
    """Every Markdown file that was written by hand: what lies in `docs/` is a report, made by a program."""
    return sorted(ROOT.glob("*.md"))


def fenced_blocks(text: str) -> list[Block]:
    """Fenced blocks in order; an unclosed fence is an error."""
    blocks, language, body, start = [], None, [], 0
    for number, line in enumerate(text.splitlines(), 1):
        if not line.startswith("```"):
            body.append(line)
        elif language is None:
            language, body, start = line[3:].strip(), [], number
        else:
            assert line == "```", f"line {number}: a fence inside a block"
            blocks.append(Block(language, "\n".join(body) + "\n", start))
            language = None
    assert language is None, f"line {start}: the block is not closed"
    return blocks


def prose(text: str) -> str:
    """The text without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def table(text: str, first_header: str) -> list[list[str]]:
    """Cells of the one table whose first column is headed ``first_header``, without its header."""
    tables = re.findall(rf"^\| {re.escape(first_header)} \|.*\n\|[-|: ]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert len(tables) == 1, f"{len(tables)} tables headed {first_header!r}"
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in tables[0].splitlines()]


def code_spans(text: str) -> list[str]:
    """What stands in single backticks, outside of fenced blocks."""
    return re.findall(r"`([^`\n]+)`", prose(text))


def links(text: str) -> list[str]:
    """Targets of inline links."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(text))


def anchors(text: str) -> set[str]:
    """Anchors of the headings, as they are formed from their words."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
