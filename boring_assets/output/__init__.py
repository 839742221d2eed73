"""The output contract: schema, commit, identity, totals, measures and verification."""
