"""Search over one's own photographs: what lies in a folder, its embeddings on disk, and questions in two stages."""
