"""Ed25519 keys (RFC 8032): their files, and signatures over records.

A private key is a PEM file (PKCS #8, without a password) that only its owner may read; a public key is 64 hexadecimal
digits. ``cryptography`` is imported only when something is signed or a signature is looked at.
"""

from __future__ import annotations

import argparse
import json
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from hpcai500.errors import UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MAX_KEY_BYTES = 1 << 16


def config_folder() -> Path:
    """Where this user's keys lie (XDG Base Directory Specification: configuration)."""
    home = os.environ.get("XDG_CONFIG_HOME")
    return (Path(home) if home else Path.home() / ".config") / "hpcai500"


def default_key_path() -> Path:
    """The key file that is used if nobody names one."""
    return config_folder() / "key.pem"


def add_key_arguments(parser: argparse._ActionsContainer) -> None:
    """Declare the words by which a command is told its private key."""
    parser.add_argument(
        "--key", type=Path, metavar="FILE", help=f"private key (default: {default_key_path()}); keep it to yourself"
    )
    parser.add_argument("--new-key", action="store_true", help="make that key first; an existing one is not touched")


def key_of(args: argparse.Namespace) -> Ed25519PrivateKey:
    """The private key that the words of a command name, made anew if they ask for that.

    Raises:
        UsageError: there is none, it cannot be used, or it is to be made and exists.
    """
    path = args.key or default_key_path()
    return make_key(path) if args.new_key else load_key(path)


def make_key(path: Path) -> Ed25519PrivateKey:
    """Make a key and write it where only this user can read it, never over an existing file.

    Raises:
        UsageError: the file exists or cannot be written.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(descriptor)
    except FileExistsError:
        raise UsageError(
            f"key {str(path)!r} exists and is never overwritten; leave --new-key away to use it, or name another --key"
        ) from None
    except OSError as error:
        raise UsageError(f"key {str(path)!r} cannot be written ({error.strerror}); name another --key") from None
    return key


def load_key(path: Path) -> Ed25519PrivateKey:
    """Read a private key.

    Raises:
        UsageError: it is missing, may be read by others, or is no Ed25519 key without a password.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            pem = file.read(MAX_KEY_BYTES) if stat.S_ISREG(mode) else b""
    except FileNotFoundError:
        raise UsageError(f"there is no key {str(path)!r}; make it with --new-key, or name another --key") from None
    except OSError as error:
        raise UsageError(f"key {str(path)!r} cannot be read ({error.strerror}); name another --key") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UsageError(
            f"key {str(path)!r} may be used by others than you (mode {stat.S_IMODE(mode):04o}), so it proves nothing; "
            f"if nobody has read it, `chmod 600 {path}`, else make another one"
        )
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it has a password
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(
            f"{str(path)!r} is no Ed25519 private key in PEM without a password; make one with --new-key, or with "
            "`openssl genpkey -algorithm ed25519`"
        )
    return key


def public_key(key: Ed25519PrivateKey) -> str:
    """Its public key, 64 hexadecimal digits."""
    return key.public_key().public_bytes_raw().hex()


def signed_bytes(purpose: str, record: msgspec.Struct) -> bytes:
    """What is signed: a line that says for what, and the record as JSON with sorted keys and without spaces.

    The line keeps a signature that was given for one purpose from being shown for another. The JSON is that of
    ``json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)`` in UTF-8, so anybody can make it.
    """
    fields = msgspec.to_builtins(record)
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return f"hpcai500 {purpose} 1\n{text}".encode()


def sign(key: Ed25519PrivateKey, content: bytes) -> str:
    """The signature, 128 hexadecimal digits."""
    return key.sign(content).hex()


def is_signed(content: bytes, *, signature: str, by: str) -> bool:
    """Whether a signature over ``content`` was made with the private key that belongs to the public key ``by``."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(by)).verify(bytes.fromhex(signature), content)
    except (InvalidSignature, ValueError):
        return False
    return True
