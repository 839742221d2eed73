"""The embedding engine: shards in, embedded and failed samples out. It knows nothing of Dagster."""
