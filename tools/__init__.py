"""Scripts that made files of this repository; none of them is installed."""
