"""The widgets of the series, and the explorer as a page of its own."""
