"""A request that is not answered: its HTTP status and one sentence, in OpenAI's error shape."""

_INVALID = "invalid_request_error"
_KINDS = {429: "rate_limit_error"}


class Refusal(Exception):
    """Why a request gets no answer. `param` names the field at fault, `code` is for programs."""

    def __init__(self, status: int, text: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.param = param
        self.code = code

    @property
    def body(self) -> dict[str, dict[str, str | None]]:
        """What OpenAI's clients expect to read."""
        kind = _KINDS.get(self.status, "server_error" if self.status >= 500 else _INVALID)
        return {"error": {"message": self.text, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """A busy or a starting server says when to come again; a missing key, what kind of key."""
        if self.status in (429, 503):
            return {"retry-after": "1"}
        return {"www-authenticate": "Bearer"} if self.status == 401 else {}
