"""Where a shard's rows and images are: parquet, tar, TFRecord, folders and URLs."""
