"""What answers are scored with: functions of texts and numbers that know no files, items or models."""
