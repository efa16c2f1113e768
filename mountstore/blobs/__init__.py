"""Blobs: digests, the balanced tree, pieces and manifests; knows no names."""
