"""What an asset needs from outside: the CLIP model, storage, and the embeddings' IO manager."""
