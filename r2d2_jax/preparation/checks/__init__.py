"""Reports what a corpus or a prepared dataset holds and whether training on it should start; docs/check_data.md."""
