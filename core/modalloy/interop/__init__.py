"""Others' checkpoints and adapters, read as parents; and compositions written for others."""
