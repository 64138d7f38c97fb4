"""Errors of the SDK for people; one S3 bucket."""
