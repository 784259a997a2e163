"""Texts: the tokenizer and the words of a caption."""
