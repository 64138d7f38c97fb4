"""Packs whatever lies in a folder, under each policy for bad images: `make zoo FOLDER=...`."""
