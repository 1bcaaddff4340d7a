"""All that touches the store's files: layout, tables, chunk file, sessions, reads, checks."""
