"""What a run says about itself: `summary` for programs, `page` for people."""
