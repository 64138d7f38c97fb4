"""A data set in a bucket and back."""
