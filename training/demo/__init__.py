"""The demo checkpoint: trained on small public packs of real scans, in two stages."""
