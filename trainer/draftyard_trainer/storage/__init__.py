"""The workspace: named objects that are published whole or not at all. One module per storage kind."""
