"""From conversations to documents: rows, chat templates, loss masks, the draft vocabulary, and how they are kept."""
