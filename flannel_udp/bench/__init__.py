"""What benches have found: read, judged, compared and shown. Measuring itself is not here."""
