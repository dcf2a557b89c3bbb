"""Actors on a Ray cluster, for one learner. Ray itself is imported when it is used."""
