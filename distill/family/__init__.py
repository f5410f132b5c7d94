"""Facts about model architectures, read from the checkpoint."""
