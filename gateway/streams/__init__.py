"""The append-only log of a generation: one writer, any number of readers, each following from its own place."""
