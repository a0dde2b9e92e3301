"""Requests of OpenAI's chat API as they are accepted here. What is not in these classes is refused by its name."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from . import limits
from .errors import ApiError, from_validation

# Fields of OpenAI's API that are not supported, with the values that mean what happens here anyway.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
    "store": (False,),
    "tools": ([],),
}


class Strict(BaseModel):
    """A JSON object without further fields, and without conversions of types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ReadChoice(Strict):
    """What `load_scan` is told about a source that holds more than one scan; not in OpenAI's API.

    Args:
        series: UID, number or description of a DICOM series.
        volume: index from 0, or what tells the volume from the others, such as {"EchoTime": 4.6}.
        allow_missing: fill missing slices by interpolation.
    """

    series: str | int | None = None
    volume: int | dict[str, str | float] | None = None
    allow_missing: bool = False

    # In one validator each: pydantic would report a union as a fault of each of its types.
    @field_validator("series", mode="plain")
    @classmethod
    def _check_series(cls, series: Any) -> Any:
        if series is not None and (isinstance(series, bool) or not isinstance(series, str | int)):
            raise ValueError("is no UID, number or description of a series.")
        return series

    @field_validator("volume", mode="plain")
    @classmethod
    def _check_volume(cls, volume: Any) -> Any:
        is_index = isinstance(volume, int) and not isinstance(volume, bool) and volume >= 0
        is_key = isinstance(volume, dict) and bool(volume) and all(isinstance(v, str | int | float) for v in volume.values())
        if volume is not None and not is_index and not is_key:
            raise ValueError('is neither an index from 0 nor an object such as {"EchoTime": 4.6}.')
        return volume


class FileSource(ReadChoice):
    """A scan in the request (`file_data`, base64 or a data URL), or uploaded before (`file_id`)."""

    file_id: str | None = None
    filename: str | None = None
    file_data: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.file_id is None) == (self.file_data is None):
            raise ValueError("give either file_id or file_data.")
        return self


class ImageUrl(ReadChoice):
    """A scan in the request, as a data URL."""

    url: str
    detail: Literal["auto"] | None = None


class TextPart(Strict):
    type: Literal["text"]
    text: str


class FilePart(Strict):
    type: Literal["file"]
    file: FileSource


class ImagePart(Strict):
    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | FilePart | ImagePart, Field(discriminator="type")]


def _as_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class Message(Strict):
    """A message; a content that is a string is one text part. Only a user's message has scans."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[Part], BeforeValidator(_as_parts), Field(min_length=1)]

    @model_validator(mode="after")
    def _scans_of_users(self) -> Self:
        if self.role != "user" and not all(isinstance(part, TextPart) for part in self.content):
            raise ValueError(f"a message of the role {self.role} has text alone.")
        return self


class StreamOptions(Strict):
    include_usage: bool = False


def _as_list(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


class ChatRequest(Strict):
    """The body of `POST /v1/chat/completions`."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: Annotated[list[Annotated[str, Field(min_length=1)]] | None, BeforeValidator(_as_list), Field(max_length=4)] = None
    n: Annotated[int, Field(ge=1, le=limits.ANSWERS)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        return {k: v for k, v in body.items() if not (k in NEUTRAL and (v is None or v in NEUTRAL[k]))}

    @field_validator("stream", mode="before")
    @classmethod
    def _null_is_false(cls, stream: Any) -> Any:
        return False if stream is None else stream

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.messages[-1].role == "assistant":
            raise ValueError("messages: the last message is the assistant's, and there is nothing to answer.")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: needs stream: true.")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: needs logprobs: true.")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens: differs from max_completion_tokens, its new name; give one of them.")
        scans = sum(not isinstance(part, TextPart) for message in self.messages for part in message.content)
        if scans > limits.SCANS:
            raise ValueError(f"messages: have {scans} scans, more than the {limits.SCANS} of one request.")
        return self

    @property
    def new_tokens(self) -> int | None:
        """The longest answer in tokens, None where the request does not say."""
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens


def parse_chat_request(body: bytes | bytearray) -> ChatRequest:
    """A request body → `ChatRequest`. Raises `ApiError` 400 that names the first field that is wrong."""
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise from_validation(error) from None
    except RecursionError:
        raise ApiError(400, "The body nests too many objects.") from None
