"""Vouch for a submission: sign it with a key of yours, so that others see offline that it is from you and unaltered.

Run as ``hpcai500 sign submission.json`` or ``python -m hpcai500.sign submission.json``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hpcai500.command import run_command
from hpcai500.register.keys import add_key_arguments, key_of, public_key
from hpcai500.signature import sign_submission, signature_path

EPILOG = """examples:
  hpcai500 sign runs/NAME/submission.json --name "Our Computing Centre" --new-key     the first time
  hpcai500 sign runs/NAME/submission.json --name "Our Computing Centre"
  hpcai500 sign --show-key                                                            your public key, for others

The signature goes to submission.json.sig. Publish your public key where people know you: who writes it under [signers]
of trusted_keys.toml sees your name in the verdict."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's words."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("submission", type=Path, nargs="?", help="the submission.json to sign")
    what.add_argument("--show-key", action="store_true", help="print the public key and stop")
    parser.add_argument("--name", help="who vouches for it")
    add_key_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Sign, or show the public key."""
    key = key_of(args)
    if args.show_key:
        print(public_key(key))
        return 0
    signature = sign_submission(args.submission, key, name=args.name)
    print(f"{signature_path(args.submission)}: signed with key {signature.vouched.public_key}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m hpcai500.sign``."""
    return run_command("python -m hpcai500.sign", sys.modules[__name__], argv)


if __name__ == "__main__":
    sys.exit(main())
