"""Services over the embedding API; each has a wire protocol, its error table, and no decisions."""
