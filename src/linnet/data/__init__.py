"""From labelled pictures, wherever they are, to a checked dataset on disk."""
