"""Step 2 of PASS: pixel attention, clustering, label generation."""
