"""Alembic's entry: runs migrations on the connection that `open_store` hands over."""

from alembic import context

from leverplus.store.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
