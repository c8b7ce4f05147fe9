"""Announcing runs before they are started, so that nobody can choose among them afterwards (docs/register.rst)."""
