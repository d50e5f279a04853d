"""Makes HTML of the guide: the part of Markdown that its pages use. Everything else in a page is text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from markupsafe import Markup, escape

Address = Callable[[str, str], str | None]  # of a page of the guide, from its topic and anchor; None if there is none

_INLINE = re.compile(
    r"`(?P<code>[^`]+)`|\*\*(?P<strong>[^*]+)\*\*|\*(?P<em>[^*\s][^*]*)\*|\[(?P<text>[^\]]+)\]\((?P<to>[^)\s]+)\)"
)
_HEADING = re.compile(r"(#{1,4}) (.+)")
_ITEM = re.compile(r"(- |\d+\. )(.*)")
_PAGE = re.compile(r"(?P<topic>[a-z-]*)(?:\.md)?(?:#(?P<anchor>[a-z0-9-]+))?")


def to_html(text: str, address: Address) -> Markup:
    """The page as HTML. Its first heading is left out, since the page around it has that as its title."""
    blocks = list(_blocks(text.split("\n")))
    if blocks and _HEADING.fullmatch(blocks[0][0]):
        del blocks[0]
    return Markup("\n").join(_block(lines, address) for lines in blocks)


def _blocks(lines: Sequence[str]) -> Iterator[list[str]]:
    """The lines of each block: paragraphs and the like are separated by empty lines, except within a fence."""
    block: list[str] = []
    fenced = False
    for line in lines:
        if line.startswith("```"):
            if not fenced and block:
                yield block
                block = []
            fenced = not fenced
        if not fenced and not line.strip():
            if block:
                yield block
                block = []
        else:
            block.append(line)
            if not fenced and (line.startswith("```") or (len(block) == 1 and _HEADING.fullmatch(line))):
                yield block
                block = []
    if block:
        yield block


def _block(lines: Sequence[str], address: Address) -> Markup:
    first = lines[0]
    if first.startswith("```"):
        return Markup("<pre><code>{}</code></pre>").format("\n".join(lines[1:-1]))
    heading = _HEADING.fullmatch(first)
    if heading:
        level = len(heading[1])
        return Markup('<h{0} id="{1}">{2}</h{0}>').format(level, anchor(heading[2]), _inline(heading[2], address))
    if first.startswith("|"):
        return _table(lines, address)
    if _ITEM.match(first):
        return _list(lines, address)
    return Markup("<p>{}</p>").format(_inline(" ".join(lines), address))


def anchor(heading: str) -> str:
    """The id of a heading, as links to it have it."""
    return re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")


def _table(lines: Sequence[str], address: Address) -> Markup:
    head, _, *rows = [[cell.strip() for cell in _cells(line)] for line in lines]
    html = [Markup("<tr>") + _row(head, "th", address) + Markup("</tr>")]
    html += [Markup("<tr>") + _row(row, "td", address) + Markup("</tr>") for row in rows]
    return Markup('<div class="wide"><table>') + Markup("\n").join(html) + Markup("</table></div>")


def _cells(line: str) -> list[str]:
    return re.split(r"(?<!\\)\|", line.strip().strip("|"))


def _row(cells: Sequence[str], tag: str, address: Address) -> Markup:
    return Markup("").join(
        Markup("<{0}>{1}</{0}>").format(tag, _inline(cell.replace("\\|", "|"), address)) for cell in cells
    )


def _list(lines: Sequence[str], address: Address) -> Markup:
    """A list without lists in it: a line that begins no item belongs to the one before."""
    tag = "ul" if lines[0].startswith("- ") else "ol"
    items: list[str] = []
    for line in lines:
        match = _ITEM.match(line)
        if match:
            items.append(match[2])
        else:
            items[-1] += " " + line.strip()
    html = Markup("").join(Markup("<li>{}</li>").format(_inline(item, address)) for item in items)
    return Markup("<{0}>{1}</{0}>").format(tag, html)


def _inline(text: str, address: Address) -> Markup:
    html, end = Markup(""), 0
    for match in _INLINE.finditer(text):
        html += escape(text[end : match.start()]) + _marked(match, address)
        end = match.end()
    return html + escape(text[end:])


def _marked(match: re.Match[str], address: Address) -> Markup:
    if match["code"] is not None:
        return Markup("<code>{}</code>").format(match["code"])
    if match["to"] is None:
        tag, text = ("strong", match["strong"]) if match["strong"] else ("em", match["em"])
        return Markup("<{0}>{1}</{0}>").format(tag, _inline(text, address))
    text = _inline(match["text"], address)
    page = _PAGE.fullmatch(match["to"])
    to = address(page["topic"], page["anchor"] or "") if page else match["to"]
    is_link = to is not None and (page is not None or to.startswith("https://"))
    return Markup('<a href="{}">{}</a>').format(to, text) if is_link else text
