"""One file a verb; each holds a click command called ``command``, imported when it is called."""
