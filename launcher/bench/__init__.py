"""What Triaxis costs: the real step path against a loop written by hand and against `transformers.Trainer`."""
