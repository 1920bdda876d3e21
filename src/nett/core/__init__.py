"""The ground floor: knows no method and imports no room; holds every primitive of input and output."""
