"""ECG data sets, one file each, and what their loaders share."""
