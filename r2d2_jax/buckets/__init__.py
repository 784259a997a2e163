"""Folders and files in Google Cloud Storage, under names such as gs://BUCKET/FOLDER."""
