"""Bytes to values and back: tar headers, chunk frames, recipes, OCI documents, decompression. Nothing here does I/O."""
