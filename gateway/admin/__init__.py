"""The listener of the operators: metrics, probes, the list of streams. It sees no prompt and no answer."""
