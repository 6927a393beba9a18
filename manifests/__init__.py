"""The platform that Linnet runs on, and what installs it."""
