"""What the speed claims rest on: each module prints ratios measured in one run."""
