"""How the command line words things for a terminal."""


def some(number: int, noun: str) -> str:
    """A number with its noun: `1 shard`, `2,000 shards`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def first_of(names: list[str], most: int = 5) -> str:
    """The first few names of a list, and a sign that there are more."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def plain(text: str) -> str:
    """A text that a terminal shows as it is.

    Names, URLs and error texts come from the data: what they hold of control characters is escaped. Local
    places are shown as paths.
    """
    text = text.replace("file:///", "/")
    return "".join(
        letter if letter.isprintable() or letter == "\n" else letter.encode("unicode_escape").decode()
        for letter in text
    )
