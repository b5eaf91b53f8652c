"""Report of a run: read its folder, write one HTML file that opens offline."""
