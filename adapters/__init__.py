"""What is learnt of a subject and injected into a pipeline, and how it is stored."""
