"""The way to the providers: targets and their balance, one attempt over HTTP, the intake of an answer's bytes."""
