"""An AWS in one machine: the API is moto's, volumes are loop devices, instances are namespaces with a real sshd.

Run it with ``python -m lab up``; README.md beside this file says what it gives and how it is built.
"""
