"""What several gateways share through Redis.

connection.py   one process's way to Redis: commands with a bound, the lease of this node, whether the store is there
layout.py       the keys, what stands in them, and the scripts
journal.py      the writer's side: what is appended to logs here is written to Redis, gathered
watcher.py      the reader's side: logs of other nodes are followed here, all by one blocking read; this node's mailbox
adoption.py     streams of dead nodes go on here
listing.py      the running streams of all nodes
remote.py       a stream of another node, as its readers here see it

Nothing here is imported where `store` is `memory`.
"""
