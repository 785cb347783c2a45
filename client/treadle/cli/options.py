"""Options that many commands share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from treadle.client import Client, Tls

__all__ = ("Connection", "Output", "OutputOption", "TagOption", "read_tags")

Output = Literal["table", "json", "jsonl"]

OutputOption = Annotated[Output, Parameter(name=["--output", "-o"])]
"""How data is printed: a table, one JSON document, or one JSON document a line."""

TagOption = Annotated[list[str] | None, Parameter(negative="", consume_multiple=False)]
"""Tags, each as KEY=VALUE; may be repeated."""


def read_tags(words: Iterable[str] | None) -> dict[str, str]:
    """Return tags given as KEY=VALUE.

    Raises:
        ConfigError: One is not written like that, or a key is given twice.
    """
    from treadle.protocol.errors import ConfigError

    tags: dict[str, str] = {}
    for word in words or ():
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"--tag {word!r}: write it like customer=42")
        if key in tags:
            raise ConfigError(f"--tag {word!r}: {key!r} is given twice")
        tags[key] = value
    return tags


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class Connection:
    """Where the control plane is, and who asks.

    Attributes:
        server: "host:port" of the control plane.
        namespace: Tenant or environment.
        token: Access token.
        tls: Encrypt, trusting the usual certificate authorities.
        tls_ca: Encrypt, trusting the certificates in this PEM file.
        tls_cert: The client's own certificate (PEM file).
        tls_key: Its private key (PEM file).
        insecure: Allow plaintext to another machine.
        keys_file: Encrypt and decrypt values with the keys in this file.
        codec: "package.module:name" of a codec of your own.
        blobs: Where large values are kept, if not where the control plane says.
    """

    server: Annotated[str, Parameter(env_var="TREADLE_SERVER")] = "localhost:7430"
    namespace: Annotated[str, Parameter(env_var="TREADLE_NAMESPACE")] = "default"
    token: Annotated[str | None, Parameter(env_var="TREADLE_TOKEN", show_default=False)] = None
    tls: Annotated[bool, Parameter(negative="")] = False
    tls_ca: Annotated[str | None, Parameter(env_var="TREADLE_TLS_CA")] = None
    tls_cert: Annotated[str | None, Parameter(env_var="TREADLE_TLS_CERT")] = None
    tls_key: Annotated[str | None, Parameter(env_var="TREADLE_TLS_KEY")] = None
    insecure: Annotated[bool, Parameter(env_var="TREADLE_INSECURE", negative="")] = False
    keys_file: Annotated[str | None, Parameter(env_var="TREADLE_KEYS_FILE")] = None
    codec: Annotated[str, Parameter(env_var="TREADLE_CODEC")] = ""
    blobs: Annotated[str, Parameter(env_var="TREADLE_BLOBS")] = ""

    def client(self) -> Client:
        """Return a client; nothing is asked yet.

        Raises:
            ConfigError: The options do not fit together.
        """
        from treadle.client import Client
        from treadle.client.vault import codec_of

        return Client(
            self.server,
            namespace=self.namespace,
            token=self.token,
            tls=self.credentials(),
            insecure=self.insecure,
            codec=codec_of(keys_file=self.keys_file, codec=self.codec),
            blobs=self.blobs,
        )

    def credentials(self) -> Tls | None:
        """Return how to encrypt; None: plaintext."""
        from treadle.client import Tls

        if self.tls or self.tls_ca or self.tls_cert or self.tls_key:
            return Tls(ca=self.tls_ca, cert=self.tls_cert, key=self.tls_key)
        return None
