"""What `linnet run` runs without a checkout: the compiled pipeline and the built-in settings."""
