"""Removes secrets from texts, e.g. from error messages of other libraries."""

import os
import re

# A variable with such a name holds a secret: AWS_SECRET_ACCESS_KEY, HF_TOKEN, PGPASSWORD, ...
_NAMES = re.compile(
    r"SECRET|TOKEN|PASSW|ACCOUNT_KEY|STORAGE_KEY|API_KEY|CONNECTION_STRING|WEBHOOK", re.IGNORECASE
)
_SHORTEST = 8
_USER_INFO = re.compile(r"(?<=://)[^\s\"'<>@]*:[^\s\"'<>@]*@")
_QUERY = re.compile(r"\?[\w.~%+-]+=[^\s\"'<>)]*")
_LOOSE = re.compile(
    r"(?i)\b((?:x-(?:amz|goog)-)?(?:signature|sig|security-token|credential|token|password)=)[^&\s\"']+"
)
# A secret may itself hold a slash. `container@account` and `host:22` are not secrets.
CREDENTIALS = re.compile(r"://[^/@]*:(?!\d+(/|$)).*@|(?i:[?&][\w-]*(signature|sig|token|password|secret)=)")
"""Matches a URI that holds a password, a token or a signature."""


def without_secrets(text: str) -> str:
    """Returns the text without secrets from the environment, credentials in URLs, and URL queries."""
    text = _USER_INFO.sub("<credentials>@", text)
    text = _LOOSE.sub(r"\1<hidden>", _QUERY.sub("?<hidden>", text))
    for name, value in os.environ.items():
        if _NAMES.search(name) and len(value) >= _SHORTEST:
            text = text.replace(value, f"<{name}>")
    return text


def without_secret_causes(error: BaseException) -> BaseException:
    """Cuts the error's causes before one whose text holds a secret, since Dagster stores all of them."""
    one: BaseException | None = error
    while one is not None:
        cause = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
        if cause is not None and without_secrets(str(cause)) != str(cause):
            one.__cause__ = None  # which hides the context too
            break
        one = cause
    return error
