"""The seeded simulator: the real core, two nodes of it, in one process and in no real time.

    options.py     what kind of run a seed is
    scheduler.py   true time and the clocks of machines
    network.py     hosts, ways between them, connections
    node.py        one process around the real core (links.py, requests.py: its connections;
                   chronicle.py: what it leaves behind for the checkers)
    register.py    the view register (nothing to do with versioned ones)
    client.py      Clerk's real decisions around simulated sockets (tasks.py: its threads;
                   workload.py: what clients do; versioned.py: with versioned registers;
                   records.py: what is told of it to the checkers)
    cluster.py     the two nodes; faults.py: what goes wrong; loss.py: what is lost on purpose
    trace.py       what is recorded
    run.py         one seed; campaign.py: many
    mutants.py     deliberate bugs, to be caught (register_mutants.py: of versioned registers;
                   view_mutants.py: of views; mutant.py: what one is)

By hand, from ``tests/``: ``python -m harness.simulator --seed 17 --trace``.
"""
