"""Rows through engines: manifests in, shards through workers, files out."""
