"""Keys and signatures: only their owner can read a key, and nothing but the signed file passes."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from recording import record_submission

from hpcai500.__main__ import main
from hpcai500.errors import RecordError, UsageError
from hpcai500.formats import read_record
from hpcai500.register.keys import is_signed, load_key, make_key, public_key, sign, signed_bytes
from hpcai500.register.trusted import TrustedKeys
from hpcai500.signature import Signature, describe_signature, sign_submission, signature_path

# RFC 8032, section 7.1, test 2.
RFC_SECRET = "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"
RFC_PUBLIC = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
RFC_SIGNATURE = (
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)


@pytest.fixture(scope="module")
def submission(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_submission(tmp_path_factory.mktemp("recorded"), num_runs=1, num_ranks=1)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "hpcai500"


def test_signatures_are_those_of_the_standard() -> None:
    key = ed25519.Ed25519PrivateKey.from_private_bytes(bytes.fromhex(RFC_SECRET))
    assert public_key(key) == RFC_PUBLIC
    assert sign(key, b"\x72") == RFC_SIGNATURE
    assert is_signed(b"\x72", signature=RFC_SIGNATURE, by=RFC_PUBLIC)
    assert not is_signed(b"\x73", signature=RFC_SIGNATURE, by=RFC_PUBLIC)


@pytest.mark.parametrize("by", ["0" * 64, "f" * 64, "01" + "0" * 62, RFC_PUBLIC[:62]])
@pytest.mark.parametrize("signature", ["0" * 128, "f" * 128, RFC_SIGNATURE[:126]])
def test_no_key_and_signature_makes_the_check_raise(by: str, signature: str) -> None:
    assert is_signed(b"\x72", signature=signature, by=by) in (False, True)  # a weak key signs everything
    assert not is_signed(b"\x72", signature=signature, by=RFC_PUBLIC)


def test_a_key_is_its_owners_alone_and_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "key.pem"
    key = make_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert public_key(load_key(path)) == public_key(key)
    with pytest.raises(UsageError, match="exists and is never overwritten"):
        make_key(path)
    for mode in (0o640, 0o604, 0o620):
        path.chmod(mode)
        with pytest.raises(UsageError, match=rf"may be used by others than you \(mode {mode:04o}\).*chmod 600"):
            load_key(path)


def test_a_file_that_is_no_key_is_refused_in_a_sentence(tmp_path: Path) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    contents = {
        "text": b"no key",
        "empty": b"",
        "curve": ec.generate_private_key(ec.SECP256R1()).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        ),
        "locked": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"word")),
    }
    for name, content in contents.items():
        path = tmp_path / name
        path.touch(mode=0o600)
        path.write_bytes(content)
        with pytest.raises(UsageError, match="is no Ed25519 private key in PEM without a password"):
            load_key(path)
    with pytest.raises(UsageError, match=r"there is no key .*make it with --new-key"):
        load_key(tmp_path / "none")
    with pytest.raises(UsageError, match="cannot be read"):
        load_key(tmp_path)
    with pytest.raises(UsageError, match="cannot be written"):
        make_key(Path("/proc/key.pem"))


def test_openssl_makes_a_key_that_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    command = ["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    path.chmod(0o600)
    assert len(public_key(load_key(path))) == 64


def test_what_is_signed_can_be_made_by_anybody(submission: Path, tmp_path: Path) -> None:
    path = tmp_path / submission.name
    path.write_bytes(submission.read_bytes())
    key = make_key(tmp_path / "key.pem")
    sign_submission(path, key, name="Zürich")
    written = json.loads(signature_path(path).read_text(encoding="utf-8"))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert written["vouched"] == {
        "format": 1,
        "public_key": public_key(key),
        "name": "Zürich",
        "submission_sha256": digest,
    }
    named = f'"name":"Zürich","public_key":"{public_key(key)}"'
    text = f'{{"format":1,{named},"submission_sha256":"{digest}"}}'
    signed = f"hpcai500 submission 1\n{text}".encode()
    signature = read_record(signature_path(path), Signature)
    assert signed_bytes("submission", signature.vouched) == signed
    key.public_key().verify(bytes.fromhex(written["signature"]), signed)  # raises if it is not


def test_a_signature_is_never_overwritten_and_only_a_submission_is_signed(submission: Path, tmp_path: Path) -> None:
    path, key = tmp_path / submission.name, make_key(tmp_path / "key.pem")
    path.write_bytes(submission.read_bytes())
    sign_submission(path, key)
    before = signature_path(path).read_bytes()
    with pytest.raises(RecordError, match="exists and is never overwritten"):
        sign_submission(path, key)
    assert signature_path(path).read_bytes() == before
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(RecordError, match="is not a submission of hpcai500"):
        sign_submission(tmp_path / "other.json", key)
    with pytest.raises(RecordError, match="cannot read"):
        sign_submission(tmp_path / "none.json", key)


def test_the_command_signs_with_the_users_own_key(
    submission: Path, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / submission.name
    path.write_bytes(submission.read_bytes())
    assert main(["sign", str(path), "--name", "Us"]) == 2
    assert f"there is no key {str(home / 'key.pem')!r}; make it with --new-key" in capsys.readouterr().err
    assert not signature_path(path).exists()
    assert main(["sign", str(path), "--name", "Us", "--new-key"]) == 0
    key = public_key(load_key(home / "key.pem"))
    assert capsys.readouterr().out == f"{signature_path(path)}: signed with key {key}\n"
    assert main(["sign", "--show-key"]) == 0
    assert capsys.readouterr().out == f"{key}\n"
    assert describe_signature(path, TrustedKeys()) == f"unknown key {key}, which calls itself 'Us'"
    assert describe_signature(path, TrustedKeys(signers={key: "Them"})) == f"Them (key {key})"
    assert main(["sign", str(path), "--new-key"]) == 2
    assert "exists and is never overwritten" in capsys.readouterr().err


def test_neither_a_ticket_nor_a_signature_costs_the_verifier_its_start() -> None:
    code = "import sys, hpcai500.verify; print('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
