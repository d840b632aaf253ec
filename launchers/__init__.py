"""How processes start: one file a launcher, imported when its verb is called."""
