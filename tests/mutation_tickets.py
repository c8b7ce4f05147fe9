"""Mutants of a submission with a ticket, its issuer's signature left as it is or made anew with a key of the forger."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from mutation_fields import Mutant, event_mutants, record_mutants, submission_mutants
from mutation_ledgers import ledger_mutants
from mutation_model import Model
from recording import NS_PER_S, record_submission

from hpcai500.formats import RunConfig, Ticket
from hpcai500.register.keys import public_key, sign
from hpcai500.register.ticket import TicketRequest, issue_ticket, ticket_bytes, ticket_sha256

ISSUER_KEY = Ed25519PrivateKey.from_private_bytes(b"\1" * 32)
FORGERS_KEY = Ed25519PrivateKey.from_private_bytes(b"\2" * 32)
ISSUED_NS = (1_790_000_000 - 100) * NS_PER_S


def record_ticketed(folder: Path) -> Path:
    """A submission of two announced runs."""
    request = TicketRequest(workload="resnet50", level="free", size="smoke", num_runs=2, submitter="somebody")
    ticket = issue_ticket(ISSUER_KEY, request, issuer="A register", now_ns=ISSUED_NS)
    return record_submission(folder, ticket=ticket)


def ticket_mutants(model: Model) -> Iterator[Mutant]:
    """What is about the ticket, in the submission, the configurations and the ledgers; and whole runs."""
    for mutant in submission_mutants(model):
        if mutant.field.startswith("submission.ticket") or mutant.field in ("submission.created",):
            yield mutant
            if mutant.keeps_form and mutant.field.startswith("submission.ticket."):
                change = partial(_signed_anew, mutant)
                yield Mutant(mutant.field, mutant.how, "signed anew with a key of the forger", change)
    for mutant in record_mutants(model, "config.json", RunConfig, "config"):
        if mutant.field.startswith(("config.announced", "config.seed")):
            yield mutant
    for mutant in event_mutants(model, "run_open"):
        if mutant.field in ("run_open.ticket_sha256", "run_open.wall_ns"):
            yield mutant
    for mutant in ledger_mutants(model):
        if mutant.field in ("runs", "clock", "ledgers"):
            yield mutant


def _signed_anew(mutant: Mutant, model: Model) -> None:
    """Alter the ticket, sign it with another key, and let configurations and ledgers name it."""
    mutant.change(model)
    signed = model.submission["ticket"]
    if not isinstance(signed, dict):
        return
    signed["ticket"]["issuer_key"] = public_key(FORGERS_KEY)
    try:
        ticket = msgspec.convert(signed["ticket"], Ticket)
    except msgspec.ValidationError:
        return  # no ticket any more
    signed["signature"] = sign(FORGERS_KEY, ticket_bytes(ticket))
    for run in model.runs:
        run.config["announced"]["ticket_sha256"] = ticket_sha256(ticket)
        for opened in run.events("run_open"):
            opened["ticket_sha256"] = ticket_sha256(ticket)
    if "ticket.json" in model.others:
        model.others["ticket.json"] = msgspec.json.encode(signed)
