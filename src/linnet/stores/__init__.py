"""Objects in folders and S3; runs, models and their versions in MLflow."""
