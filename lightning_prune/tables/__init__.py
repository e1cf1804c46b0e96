"""A table as text, Markdown, CSV and HTML."""
