"""What is counted, logged and traced. Nothing in this folder ever decides anything."""
