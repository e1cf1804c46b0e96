"""HTML of text that may carry a style of rich; everything is escaped."""

from html import escape

from rich.style import Style
from rich.text import Text


def write_element(tag: str, text: Text, **css: str) -> str:
    """Return an element with a text.

    Args:
        tag: Name of the element.
        text: The text; a style of the whole text becomes CSS.
        **css: Properties, with ``_`` for ``-``.

    Examples:
        >>> write_element("td", Text("a < b", style="bold"), text_align="right")
        '<td style="text-align: right; font-weight: bold">a &lt; b</td>'
    """
    style = text.style if isinstance(text.style, Style) else Style.parse(text.style)
    rules = [f"{name.replace('_', '-')}: {value}" for name, value in css.items()]
    rules += filter(None, [style.get_html_style()])
    attribute = f' style="{"; ".join(rules)}"' if rules else ""
    return f"<{tag}{attribute}>{escape(text.plain)}</{tag}>"
