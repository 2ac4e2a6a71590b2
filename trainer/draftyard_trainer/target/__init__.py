"""The frozen target: where it lies, what it is, its head and embeddings, and its captured hidden states."""
