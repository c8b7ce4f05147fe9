"""Replay: some steps of a submitted run are trained again on the verifier's machine, and the losses compared."""
