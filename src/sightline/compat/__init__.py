"""Names and signatures of other libraries on top of Sightline, so that their users change one import line.

One module per library. What belongs here: thin translations. What does not: anything that computes.
"""
