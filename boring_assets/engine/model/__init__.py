"""The CLIP model on its device: loading, preprocess numbers, images and texts to embeddings."""
