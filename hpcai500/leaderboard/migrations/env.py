"""What Alembic runs to bring a database to a version; hpcai500/leaderboard/database.py gives it the connection."""

from __future__ import annotations

from alembic import context

from hpcai500.leaderboard.tables import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
with context.begin_transaction():
    context.run_migrations()
