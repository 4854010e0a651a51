"""Documents out of files: what a corpus is made of, and a reader for each format."""

from data.sources.files import Piece, SourceFile, inventory_hash, list_files
from data.sources.read import Fields, Quarantined, read_piece

__all__ = ["Fields", "Piece", "Quarantined", "SourceFile", "inventory_hash", "list_files", "read_piece"]
