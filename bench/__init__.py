"""What is measured, and how: times of the ops and of a step, the GPU suite, and tables of training runs."""
