"""`pgjobs guide`."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap

from pgjobs import guide
from pgjobs.cli.arguments import Commands


def add_parser(commands: Commands) -> None:
    parser = commands.add_parser("guide", help="print a page of the guide, or list its topics")
    parser.description = "Print a page of the guide, through a pager on a terminal. Without a topic, list the topics."
    parser.add_argument("topic", nargs="?", help=", ".join(guide.TOPICS))
    parser.set_defaults(run=_guide)


def _guide(options: argparse.Namespace) -> int:
    if options.topic is None:
        print(_topics())
        return 0
    page = guide.read(options.topic)
    if sys.stdout.isatty():
        import pydoc  # slow to import, and used only here

        pydoc.pager(page)
    else:
        print(page, end="")
    return 0


def _topics() -> str:
    indent = " " * (max(map(len, guide.TOPICS)) + 2)
    lines = textwrap.TextWrapper(width=min(shutil.get_terminal_size().columns, 100), subsequent_indent=indent)
    listed = [lines.fill(f"{topic:{len(indent)}}{guide.summary(topic)}") for topic in guide.TOPICS]
    return "\n".join([*listed, "", "`pgjobs guide TOPIC` prints one of them."])
