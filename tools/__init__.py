"""What made files of this repository; none of it is installed."""
