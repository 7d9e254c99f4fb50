"""What several gateways share through Redis.

access.py       how Redis is reached: addresses, TLS, Unix sockets, Sentinels, credentials
wire.py         a connection that many callers share
health.py       what must hold of Redis before it is used
trouble.py      what is wrong with it, in one sentence
connection.py   one process's way to Redis: commands with a bound, the lease of this node, whether the store is there
nodes.py        which nodes there are, alive and dead
inquiry.py      what `gateway check --ask` asks it
layout.py       the keys, what stands in them, and the scripts
journal.py      the writer's side: what is appended to logs here is written to Redis, gathered
watcher.py      the reader's side: logs of other nodes are followed here, all by one blocking read; this node's mailbox
adoption.py     streams of dead nodes go on here
listing.py      the running streams of all nodes
remote.py       a stream of another node, as its readers here see it
shared.py       all of it, as the rest of the program sees it
limits.py       the limits of principals over all nodes: who decides, and what is sent
shares.py       what this node holds of one principal's plan; what it decides alone while Redis is away
ledger.py       a principal's ledger in Redis, and the script that decides there
sealed.py       what lies in Redis so that only the nodes can read it
backlog.py      what is yet to be written, in the background
state.py        what nodes share beside streams, put together:
sessions.py     chat histories, of which each node has a copy
tickets.py      tickets, issued at one node and used at any
revocation.py   revocations, which every node learns of

Nothing here is imported where `store` is `memory`.
"""
