"""The process: signals, drain, reload, listeners; and the parent of several workers."""
