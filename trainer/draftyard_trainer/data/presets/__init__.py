"""Well-known data sets: where each lies, how a row of it becomes a conversation, and under which licence."""
