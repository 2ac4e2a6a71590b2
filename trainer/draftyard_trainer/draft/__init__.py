"""The EAGLE-3 draft model: its configuration, its attention, its layers. No loss and no files."""
