"""Search over the embeddings: index, queries, pictures, web page, near duplicates."""
