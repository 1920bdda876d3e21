"""What ``make demo`` runs; needs a checkout and the ``models`` extra."""
