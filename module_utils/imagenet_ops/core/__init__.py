"""What every part stands on: errors, durable files, progress, retry, hashing; knows no data set and no AWS."""
