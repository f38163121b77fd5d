"""What is known of each class of transformer: one row each, one small file for close kin."""
