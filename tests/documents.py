"""The README and the pages of the guide, as the tests read them.

What stands in fences is run, by the language they name:

    python   the blocks of one document are one program, run in their order against an empty database
             (in a page with `manage.py`: a block that begins with `# a/name.py` is that file of a project)
    sql      each statement runs in that database, after the program
    sh       each line is a command: those that call `pgjobs` run, the others are looked at
    output   what the program, or the command, above it prints: no more and no less
    text     a drawing, or a configuration file; not run
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

from psycopg.conninfo import conninfo_to_dict

from pgjobs import guide

ROOT = Path(__file__).parent.parent
PLACEHOLDER = "postgresql://localhost/app"  # the database in all examples
SQLALCHEMY_PLACEHOLDER = "postgresql+psycopg://localhost/app"
LANGUAGES = {"python", "sql", "sh", "output", "text"}


class Block(NamedTuple):
    language: str
    code: str
    line: int  # of the document where the code begins


class Document(NamedTuple):
    name: str
    path: Path

    @property
    def text(self) -> str:
        return self.path.read_text()

    @property
    def prose(self) -> str:
        """The text without what stands in fences."""
        return re.sub(r"^```.*?^```$", "", self.text, flags=re.MULTILINE | re.DOTALL)

    def blocks(self, *languages: str) -> list[Block]:
        """The fences of these languages; of all when none is named."""
        return [
            Block(match[1], match[2], self.text.count("\n", 0, match.start(2)) + 1)
            for match in re.finditer(r"^```(\w*)\n(.*?)^```$", self.text, re.MULTILINE | re.DOTALL)
            if not languages or match[1] in languages
        ]

    @property
    def files(self) -> dict[str, str]:
        """The files of the project that the page makes, by their names."""
        if not any("manage.py" in block.code for block in self.blocks("sh")):
            return {}
        blocks = [(re.match(r"# (\S+\.py)\n", block.code), block.code) for block in self.blocks("python")]
        return {name[1]: code for name, code in blocks if name}

    def program(self, dsn: str) -> str:
        """All Python of the document, on the lines on which it stands there, for this database."""
        lines: list[str] = []
        url = "postgresql+psycopg://?" + urlencode(conninfo_to_dict(dsn))
        for block in self.blocks("python"):
            if block.code in self.files.values():
                continue
            lines += [""] * (block.line - 1 - len(lines))
            lines += block.code.replace(PLACEHOLDER, dsn).replace(SQLALCHEMY_PLACEHOLDER, url).splitlines()
        return "\n".join([*lines, ""])

    def output_after(self, language: str) -> str:
        """What the document says that its blocks of this language print."""
        said, before = "", ""
        for block in self.blocks():
            if block.language == "output" and before == language:
                said += block.code
            before = before if block.language == "output" else block.language
        return said

    @property
    def sections(self) -> list[str]:
        """The headings below the title."""
        outside = re.sub(r"^```.*?^```$", "", self.text, flags=re.MULTILINE | re.DOTALL)
        return re.findall(r"^##+ (.*)$", outside, re.MULTILINE)


README = Document("README", ROOT / "README.md")
PAGES = [Document(topic, ROOT / "pgjobs" / "guide" / f"{topic}.md") for topic in guide.TOPICS]
DOCUMENTS = [README, *PAGES]


def anchor(heading: str) -> str:
    """What a link to a heading ends with."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
