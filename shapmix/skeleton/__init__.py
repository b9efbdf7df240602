"""Skeletons: layouts of joints, bones and body parts, and forward kinematics."""
