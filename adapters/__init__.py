"""What is learnt of a subject and injected into a base model, and how it is stored."""
