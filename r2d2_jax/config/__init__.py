"""The configuration: blocks of frozen dataclasses, each beside its contradictions, and the one reader of ConfigDict."""
