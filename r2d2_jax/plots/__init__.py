"""Pictures: numbers in, PNG files out. Nothing here is imported before something is to be drawn."""
