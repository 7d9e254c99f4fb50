"""What is counted, logged and traced. Nothing in here ever decides anything."""
