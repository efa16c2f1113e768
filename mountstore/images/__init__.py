"""Resizing of images, in processes of their own: requests and their limits here, decoders in the worker only.

The daemon imports `geometry`, `job` and `workers`; `render` and `worker`, which need Pillow, run in
processes that `workers` starts.
"""
