"""The signature of a submission: who vouches for it, in ``submission.json.sig`` beside it; checked offline.

submission.json carries the digests of all files of all runs, so a signature over its digest covers them all.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from hpcai500.errors import RecordError, UsageError
from hpcai500.events import Sha256, Text
from hpcai500.formats import PublicKey, SignatureHex, Submission, decode, read_bytes, write_json
from hpcai500.register.keys import is_signed, public_key, sign, signed_bytes
from hpcai500.register.trusted import TrustedKeys, describe_signer

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


class Vouched(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is signed: the digest of submission.json, with the key and the name of who signs."""

    format: Literal[1] = 1
    public_key: PublicKey
    name: Text | None
    submission_sha256: Sha256


class Signature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """submission.json.sig: an Ed25519 signature over hpcai500.register.keys.signed_bytes("submission", vouched)."""

    vouched: Vouched
    signature: SignatureHex


def signature_path(submission: Path) -> Path:
    """Where the signature of a submission lies."""
    return submission.with_name(f"{submission.name}.sig")


def sign_submission(submission: Path, key: Ed25519PrivateKey, *, name: str | None = None) -> Signature:
    """Sign a submission and write the signature beside it.

    Args:
        submission: the file.
        key: private key of who vouches for it.
        name: under which it is known.

    Raises:
        RecordError: the file is no submission, or has a signature, which is never overwritten.
        UsageError: the name cannot be one.
    """
    if name is not None and not (name.strip() and name.isprintable() and len(name) <= 200):
        raise UsageError(f"--name {name!r} cannot be a name; give at most 200 characters that can be printed")
    content = read_bytes(submission)
    problems = decode(content, Submission)
    if isinstance(problems, list):
        raise RecordError(f"{str(submission)!r} is not a submission of hpcai500: {'; '.join(problems)}")
    vouched = Vouched(public_key=public_key(key), name=name, submission_sha256=hashlib.sha256(content).hexdigest())
    signature = Signature(vouched=vouched, signature=sign(key, signed_bytes("submission", vouched)))
    write_json(signature_path(submission), signature)
    return signature


def is_sealed(signature: Signature) -> bool:
    """Whether it was made with the key that it names."""
    vouched = signature.vouched
    return is_signed(signed_bytes("submission", vouched), signature=signature.signature, by=vouched.public_key)


def describe_signature(submission: Path, trusted: TrustedKeys) -> str | None:
    """Who vouches for a submission; None if nobody does, or not truly so.

    Raises:
        RecordError: the submission cannot be read.
    """
    try:
        signature = read_signature(submission)
    except RecordError:  # check_signature says so
        return None
    if not isinstance(signature, Signature) or not is_sealed(signature):
        return None
    if signature.vouched.submission_sha256 != hashlib.sha256(read_bytes(submission)).hexdigest():
        return None
    return describe_signer(signature.vouched.public_key, signature.vouched.name, trusted)


def read_signature(submission: Path) -> Signature | list[str] | None:
    """The signature of a submission, all that is wrong with its form, or None if there is none.

    Raises:
        RecordError: it cannot be read, or is not JSON.
    """
    path = signature_path(submission)
    if not path.exists() and not path.is_symlink():
        return None
    if not path.is_file():
        raise RecordError(f"{path.name!r} is not a file")
    return decode(read_bytes(path), Signature)
