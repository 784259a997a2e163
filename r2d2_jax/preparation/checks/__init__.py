"""What is in a corpus or a prepared dataset, and whether training on it should start; see docs/check_data.md."""
