"""Where the page listens, and what it takes."""

from typing import Annotated, ClassVar

from pydantic import Field

from linnet.inference.settings import Port, Seconds
from linnet.settings import Count, Settings

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class PageSettings(Settings):
    """Everything the page can be told; the defaults show it to this machine alone."""

    called: ClassVar[str] = "page settings"

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0: every interface")
    port: Port = Field(8090, description="port of the page; 0: any free one")
    allowed_hosts: tuple[str, ...] = Field(
        (),
        description="names that browsers may ask for; none: this machine's or, if others "
        "may reach the page, any",
    )
    max_picture_bytes: Annotated[int, Field(ge=1024, le=1 << 30)] = Field(
        32 << 20, description="largest picture, bytes; the server has a limit of its own"
    )
    upload_timeout_s: Seconds = Field(60.0, description="longest time to send a picture")
    answer_timeout_s: Seconds = Field(30.0, description="longest wait for each try of an answer")
    pictures_at_once: Count = Field(8, description="pictures that are received or asked about")
    pictures_waiting: Count = Field(64, description="more than these are told to come later")
    explanations_waiting: Count = Field(
        4, description="the same of explanations, which go one at a time: each asks 167 times"
    )
    look_again_s: Seconds = Field(
        60.0, description="time after which the release that answers is asked for anew"
    )
    answers_counted: Count = Field(200, description="last answers that the releases' shares are of")

    def hosts(self) -> list[str]:
        """Return what the Host header of a request may be, against DNS rebinding."""
        if self.allowed_hosts:
            return list(self.allowed_hosts)
        return ["127.0.0.1", "localhost"] if self.host in _LOOPBACK else ["*"]
