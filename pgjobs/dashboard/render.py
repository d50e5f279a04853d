"""Makes HTML of templates: everything is escaped, and a text of a job stands in a <bdi>, whatever its direction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pgjobs.dashboard.problem import sentence
from pgjobs.version import __version__

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


class Renderer:
    """The templates of the package. `nav` are the pages that each page links to, with their titles; `section_of` says
    by the name of a page to which of them it belongs."""

    def __init__(self, nav: Sequence[tuple[str, str]], section_of: Mapping[str, str]) -> None:
        self._environment = Environment(
            loader=PackageLoader("pgjobs.dashboard", "templates"),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=StrictUndefined,
        )
        self._environment.globals |= {"nav": nav, "section_of": section_of, "version": __version__}
        self._environment.filters |= {
            "bdi": bdi, "number": number, "span": span, "when": when, "instant": instant_text, "sentence": sentence,
        }  # fmt: skip

    def __call__(self, template: str, **values: Any) -> str:
        return self._environment.get_template(template).render(values)


def bdi(text: object) -> Markup:
    """A text from outside, such as a kind, which cannot change the direction of the texts around it."""
    return Markup("<bdi>{}</bdi>").format("" if text is None else visible(str(text)))


def visible(text: str) -> str:
    """A text that can be seen and clicked: in quotes, if it is nothing but spaces."""
    return f'"{text}"' if text and not text.strip() else text


def number(value: float | None) -> str:
    """A number with thousands: 12,345; a fraction with three figures."""
    if value is None:
        return "–"
    if isinstance(value, int) or value == int(value):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def span(value: timedelta | float | None) -> str:
    """A length of time with its two largest units: 3 d 4 h, 12 min, 0.25 s. A number is seconds."""
    if value is None:
        return "–"
    seconds = value.total_seconds() if isinstance(value, timedelta) else float(value)
    if seconds < 0:
        return f"-{span(-seconds)}"
    if seconds < 10:
        return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2g} s"
    rest, parts = round(seconds), list[str]()
    for size, unit in _UNITS:
        if rest >= size or parts:
            parts.append(f"{rest // size:,} {unit}" if rest // size else "")
            rest %= size
    return " ".join(part for part in parts[:2] if part)


def instant_text(value: datetime | None) -> str:
    """An instant in UTC."""
    return "–" if value is None else f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def when(value: datetime | None, now: datetime) -> Markup:
    """An instant as the time since then or until then; the date is its tooltip."""
    if value is None:
        return Markup("–")
    passed = now - value
    text = f"{span(passed)} ago" if passed >= timedelta(0) else f"in {span(-passed)}"
    exact = value.astimezone(UTC)
    return Markup('<time datetime="{}" title="{}">{}</time>').format(exact.isoformat(), instant_text(exact), text)
