"""What a page of the web page asks for, as it stands in its URL."""

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from boring_assets.errors import SettingsError

if TYPE_CHECKING:
    from starlette.datastructures import QueryParams

SIZES = (24, 100, 1000)
"""Results on a page."""
MOST_PAGE = 1000
_MOST_TEXT = 1000


@dataclass(frozen=True)
class Question:
    """What a page asks for: a text, a picture that was given, or one that is in the index; see `read`.

    Attributes:
        text: The text.
        picture: Name of a picture that was given before.
        partition: Of a picture in the index.
        row: Of a picture in the index; None where the question is another.
        filters: Column, operator and value of each.
        least_score: Results with a lower score are left out.
        size: Results on a page.
        page: From 1.
    """

    text: str
    picture: str
    partition: str
    row: int | None
    filters: list[tuple[str, str, str]]
    least_score: float
    size: int
    page: int

    @property
    def asked(self) -> bool:
        """Whether there is anything to search by."""
        return bool(self.text or self.picture or self.row is not None)

    @property
    def offset(self) -> int:
        """Results before this page."""
        return (self.page - 1) * self.size

    @classmethod
    def read(cls, params: "QueryParams") -> "Question":
        """Reads the query of a URL.

        Raises:
            SettingsError: A value is none.
        """
        given = zip(
            params.getlist("column"), params.getlist("operator"), params.getlist("value"), strict=False
        )
        try:
            size, page = int(params.get("n", SIZES[0])), int(params.get("page", 1))
            least = float(params.get("least") or -1)
            row = int(params["row"]) if "row" in params else None
        except ValueError as error:
            raise SettingsError(f"n, page, least and row are numbers: {error}.") from error
        if not 1 <= size <= SIZES[-1] or not 1 <= page <= MOST_PAGE:
            raise SettingsError(f"n goes from 1 to {SIZES[-1]}, and page from 1 to {MOST_PAGE}.")
        text = params.get("q", "").strip()
        if len(text) > _MOST_TEXT:
            raise SettingsError(f"The text is longer than {_MOST_TEXT} characters.")
        filters = [each for each in given if each[0]]
        picture, partition = params.get("picture", ""), params.get("partition", "")
        return cls(text, picture, partition, row, filters, least, size, page)

    def url(self, page: int) -> str:
        """The URL of a page of the same question."""
        pairs: list[tuple[str, object]] = [("q", self.text)] if self.text else []
        pairs += [("picture", self.picture)] if self.picture else []
        pairs += [("partition", self.partition), ("row", self.row)] if self.row is not None else []
        for column, operator, value in self.filters:
            pairs += [("column", column), ("operator", operator), ("value", value)]
        return "/?" + urlencode([*pairs, ("least", self.least_score), ("n", self.size), ("page", page)])
