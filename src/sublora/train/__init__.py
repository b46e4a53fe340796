"""Training students: many adapters, or many small full fine-tunes, in one pass over one frozen base."""
