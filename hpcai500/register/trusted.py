"""Whose keys this user trusts, and what that makes of a submission's ticket and signature.

A ticket or signature says by itself only that it was made with some key. A name counts if it stands beside the key in
a file of the reader, in TOML::

    [issuers]
    4f7c0e... = "The HPC AI500 leaderboard"

    [signers]
    91ab02... = "Our Computing Centre"
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec

from hpcai500.errors import UsageError
from hpcai500.events import Text
from hpcai500.formats import PublicKey, SignedTicket
from hpcai500.register.keys import config_folder
from hpcai500.register.ticket import SELF, is_genuine

UNREGISTERED = "unregistered"


class TrustedKeys(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Public keys and the names of their owners: who issues tickets, and who signs submissions."""

    issuers: dict[PublicKey, Text] = {}
    signers: dict[PublicKey, Text] = {}


def default_trusted_path() -> Path:
    """The file that is read if it is there and nobody names one."""
    return config_folder() / "trusted_keys.toml"


def find_trusted_keys(path: Path | None = None) -> TrustedKeys:
    """Read the file that was named, else this user's if there is one.

    Raises:
        UsageError: it is missing, or not of that form.
    """
    if path is None:
        path = default_trusted_path()
        if not path.is_file():
            return TrustedKeys()
    form = '[issuers] and [signers] with lines as KEY = "NAME", where KEY is 64 hexadecimal digits'
    try:
        with path.open("rb") as file:
            return msgspec.convert(tomllib.load(file), TrustedKeys)
    except OSError as error:
        raise UsageError(f"trusted keys {str(path)!r} cannot be read ({error.strerror}); name another file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError, RecursionError) as error:
        raise UsageError(f"trusted keys {str(path)!r} are not TOML with {form}") from error


def describe_registration(signed: SignedTicket | None, trusted: TrustedKeys) -> str:
    """Who says that the runs were announced before they were made.

    Returns:
        "registered by NAME" only if the ticket's key is trusted; else "unregistered" or why that is as good as it.
    """
    if signed is None:
        return UNREGISTERED
    ticket = signed.ticket
    if not is_genuine(signed):
        return f"{UNREGISTERED}: its ticket does not bear the signature of its issuer"
    if ticket.issuer_key in trusted.issuers:
        return f"registered by {trusted.issuers[ticket.issuer_key]}"
    if ticket.issuer == SELF:
        return f"self-signed: {UNREGISTERED}"
    return f"ticket of unknown issuer {ticket.issuer_key}, which calls itself {ticket.issuer!r}"


def describe_signer(key: str, name: str | None, trusted: TrustedKeys) -> str:
    """Who vouches for a submission: the name the reader knows the key by, else what it calls itself."""
    if key in trusted.signers:
        return f"{trusted.signers[key]} (key {key})"
    called = f", which calls itself {name!r}" if name else ""
    return f"unknown key {key}{called}"
