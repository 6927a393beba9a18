"""What installs the platform: python -m manifests.install."""
