"""Hidden states: one document's states in memory, how they are stored, and the two sources that yield them."""
