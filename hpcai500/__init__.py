"""hpcai500: how fast a machine trains real models to a quality.

The package has two halves (docs/architecture.rst). The run half trains and writes a run folder; the judge half reads
run folders, verifies and ranks, and imports neither torch nor MPI. Importing this module imports neither half.
"""

from hpcai500.version import __version__

__all__ = ["__version__"]
