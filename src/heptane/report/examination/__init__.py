"""What a trained model gets right and wrong: one pass over held-out data, after training and off its clock."""
