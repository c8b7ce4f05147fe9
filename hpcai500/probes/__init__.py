"""The measurements of ``hpcai500 selfcheck``, one subject a module, and what is made of them (verdict.py)."""
