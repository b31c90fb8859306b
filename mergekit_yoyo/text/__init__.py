"""Text to measure models on: the user's files, or what a model writes itself; in token windows."""

from mergekit_yoyo.text.reading import Text, parse_texts, read_texts
from mergekit_yoyo.text.windows import Window, halves, token_windows
from mergekit_yoyo.text.writing import Writing, Written, written_text

__all__ = [
    "Text",
    "Window",
    "Writing",
    "Written",
    "halves",
    "parse_texts",
    "read_texts",
    "token_windows",
    "written_text",
]
