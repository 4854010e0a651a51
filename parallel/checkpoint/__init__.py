"""Sharded checkpoints: written beside training, committed whole or not at all, loaded at any layout.

Where to look: `pieces` is the language, `writer.Saver` saves, `store.Store` finds and keeps, `reader.load` loads,
`inspect` prints. Nothing here uses a collective: processes agree through the file system alone.
"""
