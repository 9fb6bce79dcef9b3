"""Training: one loop for teachers, students and fine-tuning. Importing this loads no torch."""
