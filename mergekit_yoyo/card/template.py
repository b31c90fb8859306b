"""The text of cards: jinja2 templates (`*.md.jinja`) beside the code that fills them in."""

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, **values: object) -> str:
    """Fill in a template of the package, named by its path in it: `finish/card.md.jinja`.

    Lines that hold only a statement leave no trace, values stand as they are (Markdown needs no
    escapes of HTML), and a value that the template asks for and `values` lacks is an error.
    """
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("mergekit_yoyo", "."),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        autoescape=False,
    )
