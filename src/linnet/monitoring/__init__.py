"""What a released model meets in use: does it still look like what it was measured on?"""
