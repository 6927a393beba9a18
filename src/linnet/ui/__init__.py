"""The web page: people drop pictures, a model behind a V2 endpoint answers."""
