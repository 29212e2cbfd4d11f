"""Training a parent: a connector, then connector and low-rank deltas, over a frozen base."""
