"""One file a paper: does its effect hold? See README.md in this folder."""
