"""Proof that an implementation is the reference's: proof.py compares two (judge half), the others make one."""
