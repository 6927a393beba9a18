"""Where a prediction log's parts lie below its place; for who writes and who reads them."""

PREDICTIONS = "predictions"
FEEDBACK = "feedback"
