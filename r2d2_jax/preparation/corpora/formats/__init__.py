"""The file formats that corpora are read from."""
