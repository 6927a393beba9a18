"""What starts the pipeline by itself, once for each reason, and who and why is kept."""
