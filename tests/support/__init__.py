"""What several tests and the benches share: peers written independently of our engine, labs with unique names."""
