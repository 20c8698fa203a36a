"""Plans training runs with the real TPU compiler, on a machine without TPU."""
