"""What the pages of this project hold: commands, code, names, links and headings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for path in (
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "data").glob("*.md"),
        *(ROOT / "examples").glob("*.md"),
        *(ROOT / "configs").rglob("*.md"),
    )
)

SHELL = ("bash", "sh", "shell", "console")
# A line that starts so is a command, wherever it stands on a page.
COMMAND = re.compile(
    r"(?:[A-Za-z_]\w*=\S* +)*(?:\S*/)?(?:python3?|bash|pip|pytest|ruff|torchrun|pre-commit) \S"
)
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")


@dataclass(frozen=True)
class Block:
    """A piece of a page that is code."""

    page: Path
    line: int
    language: str
    """That of the fence; `indented` and `inline` for the other two ways to write code."""
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The fenced and indented blocks and the inline code of a page."""
    found, prose = [], []
    lines = page.read_text().splitlines()
    at = 0
    while at < len(lines):
        fence = re.match(r" *(```+|~~~+) *(\S*)", lines[at])
        if fence:
            end = at + 1
            while not lines[end].lstrip().startswith(fence[1]):
                end += 1
            found.append(
                Block(page, at + 2, fence[2] or "plain", "\n".join(lines[at + 1 : end]) + "\n")
            )
            prose += [""] * (end + 1 - at)
            at = end + 1
        elif lines[at].startswith("    ") and (not prose or not prose[-1].strip()):
            end = at
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            text = "\n".join(line[4:] for line in lines[at:end]) + "\n"
            found.append(Block(page, at + 1, "indented", text))
            prose += [""] * (end - at)
            at = end
        else:
            prose.append(lines[at])
            at += 1
    text = "\n".join(prose)
    for match in re.finditer(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)*)`(?!`)", text):
        code = re.sub(r"\s*\n\s*", " ", match[1])
        found.append(Block(page, text.count("\n", 0, match.start()) + 1, "inline", code))
    return found


def shell_text(block: Block) -> str | None:
    """What of a block a shell would be given; None where there is no command in it."""
    lines = block.text.splitlines()
    if block.language in SHELL:
        if any(line.startswith("$ ") for line in lines):
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        return "\n".join(lines) + "\n"
    if block.language == "inline":
        return block.text if COMMAND.match(block.text) else None
    if block.language in ("indented", "plain") and any(map(COMMAND.match, lines)):
        first = next(line for line in lines if line.strip())
        if COMMAND.match(first) or _ASSIGNMENT.match(first) or first.startswith("#"):
            return "\n".join(lines) + "\n"
    return None


def links(page: Path) -> list[str]:
    """The targets of a page's links and pictures."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    return re.findall(r"!?\[[^\]]*\]\(([^)\s]+)[^)]*\)", text)


def anchors(page: Path) -> set[str]:
    """What `#...` may say to mean a heading of the page, by GitHub's rules."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.+?) *#*$", text, flags=re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")
        number, name = 0, slug
        while name in found:
            number += 1
            name = f"{slug}-{number}"
        found.add(name)
    return found
