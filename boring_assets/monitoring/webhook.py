"""Posts JSON to a webhook; its URL is a secret and appears in no error and no log."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

_TRIES = 3
_SECONDS = 10.0
_TOO_MANY = 429


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Refuses redirects: the server must not choose another receiver."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Follows none; the answer then counts as an error."""


def post(url: str, body: Mapping[str, Any]) -> str:
    """Posts a JSON object; if the server does not answer or has an error, tries three times.

    Without urllib3, which logs the paths of URLs: Slack's paths are secret. Most webhooks show `text`.

    Returns:
        Why it could not be delivered, without the address; empty if it was delivered.
    """
    opener = urllib.request.build_opener(_NoRedirects)
    data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
    problem = ""
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(2 ** (attempt - 1))
        try:
            request = urllib.request.Request(url, data, headers, method="POST")
            with opener.open(request, timeout=_SECONDS):
                return ""
        except urllib.error.HTTPError as error:
            problem = f"the webhook answered {error.code}"
            error.close()
            if error.code < 500 and error.code != _TOO_MANY:
                break
        except Exception as error:  # its text may hold the address
            problem = f"the webhook cannot be reached ({type(getattr(error, 'reason', error)).__name__})"
    return problem
