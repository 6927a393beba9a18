"""Answers of a release for any number of pictures, in parts that many processes may share."""
