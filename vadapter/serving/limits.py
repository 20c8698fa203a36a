"""What a server gives and what it takes at most."""

import dataclasses

from vadapter.base.errors import UserError


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of a server. None of them can be passed by a client.

    Attributes:
        requests: that are held at the same time, from the first byte of the body to the last of the answer; further
            ones are told to come again.
        rows: requests of a model that are decoded at the same time.
        new_tokens: of an answer; a request may ask for fewer.
        default_new_tokens: of an answer to a request that does not say it, as `vadapter infer` has it.
        media: images and videos of a request; None is 4 for a model that was trained on conversations, else 1.
        body_bytes: of a request, its images in base64 included.
        held_bytes: of all bodies that are read at the same time.
        pixels: of an image or of a video's frame.
        seconds: of a request, from its body to the end of its answer.
        body_seconds: of a body.
        media_seconds: of work on a video, or of fetching a file.
        media_hosts: from which images and videos are fetched; none is none.
    """

    requests: int = 128
    rows: int = 8
    new_tokens: int = 256
    default_new_tokens: int = 32
    media: int | None = None
    body_bytes: int = 32 << 20
    held_bytes: int = 512 << 20
    pixels: int = 40_000_000
    seconds: float = 120.0
    body_seconds: float = 30.0
    media_seconds: float = 15.0
    media_hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not value > 0:
                raise UserError(f"Expected Limits.{field.name} to be above 0; found {value}. Raise it.")

    def tokens(self, asked: int | None) -> int:
        """Returns the limit of an answer for which so many tokens were asked."""
        return min(self.default_new_tokens, self.new_tokens) if asked is None else asked
