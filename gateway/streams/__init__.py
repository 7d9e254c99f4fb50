"""The append-only log of a generation: one writer, any number of readers, each reading on from its own place."""
