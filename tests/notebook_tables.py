"""What a notebook shows."""

from html.parser import HTMLParser
from operator import methodcaller

draw = methodcaller("_repr_html_")  # as a notebook does


class Page(HTMLParser):
    """The tags and the texts of HTML, in their order."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        if data.strip():
            self.texts.append(data)


def texts_of(value):
    return Page(draw(value)).texts


def cells_of(table):
    """Return the texts of a table as a terminal shows them."""
    rows = [str(cell) for row in table.rows for cell in row]
    headings = [column.heading for column in table.columns]
    return [text for text in (table.title, *headings, *rows, *table.notes) if text]
