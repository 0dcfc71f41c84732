"""Starts `mmrl.train` elsewhere: TPU slices, GPU clusters, several processes of this machine.

One description (`launch.job.Job`) is rendered for each place; `launch.submit` prints or submits.
"""
