"""MedMD and RadMD as datasets: downloads of the sources → records of one schema → Parquet shards for the Hub."""
